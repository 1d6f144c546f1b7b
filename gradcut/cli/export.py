"""``gradcut export``: trained artifacts -> the model as it was given, with its new weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What gradcut compile wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The .onnx file to write, or .onnxtxt.")
    ],
    best: Annotated[
        bool, typer.Option("--best", help="The weights of the best evaluation, not those of the last step.")
    ] = False,
    keep_marks: Annotated[bool, typer.Option("--keep-marks", help="Leave gradcut.StopGradient nodes in.")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="The running averages of the parameters (compile --ema).")] = False,
) -> None:
    """Write the model in DIR with the trained parameters and running statistics."""
    from gradcut.artifacts import TrainingArtifacts
    from gradcut.runtime.ema import averages
    from gradcut.runtime.export import export, trained, written_back

    artifacts = TrainingArtifacts.load(folder)
    moved = {*written_back(artifacts)}
    tensors, step = trained(artifacts, best)
    tensors |= averages(artifacts, tensors) if ema else {}
    data = export(artifacts.model, {name: tensors[name] for name in sorted(moved)}, output, keep_marks)
    beside = f" (weights in {data.name}, which belongs beside it)" if data is not None else ""
    typer.echo(f"{output}{beside}: {len(moved)} tensors as of step {step}, the rest as it was given")
