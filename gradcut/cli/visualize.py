"""``gradcut visualize``: a picture of what is computed, what is cut and why, and what was pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[Path, typer.Argument(metavar="DIR|MODEL", help="Artifacts, or a model that is not compiled.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="A .svg or .png file.")],
    limit: Annotated[int, typer.Option(min=1, help="Beyond so many boxes, module scopes are collapsed.")] = 24,
) -> None:
    """Draw forward, backward, the cut and what was pruned."""
    from gradcut.artifacts import TrainingArtifacts
    from gradcut.view import describe, describe_model, draw

    if source.is_dir():
        graph = describe(TrainingArtifacts.load(source), source.name)
    else:
        graph = describe_model(source, source.name)
    draw(graph, output, limit)
    typer.echo(f"{output}")
