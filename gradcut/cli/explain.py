"""``gradcut explain``: why a value does or does not get a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What gradcut compile wrote.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A parameter, an input or an inner value.")],
) -> None:
    """Say why NAME does or does not get a gradient."""
    from gradcut.artifacts import TrainingArtifacts
    from gradcut.view.explain import explain

    for line in explain(TrainingArtifacts.load(folder), name):
        typer.echo(line)
