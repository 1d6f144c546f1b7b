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
    keep_marks: Annotated[bool, typer.Option("--keep-marks", help="Leave gradcut.StopGradient nodes in.")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="The running averages of the parameters (compile --ema).")] = False,
) -> None:
    """Write the model in DIR with the trained parameters and running statistics."""
    import numpy as np

    from gradcut.artifacts import TrainingArtifacts
    from gradcut.runtime.ema import averages
    from gradcut.runtime.export import export

    artifacts = TrainingArtifacts.load(folder)
    moved = {*artifacts.trainable, *artifacts.manifest["state"]}
    tensors = {name: np.asarray(array) for name, array in artifacts.tensors.items()}
    tensors |= averages(artifacts.manifest, tensors) if ema else {}
    export(artifacts.model, {name: tensors[name] for name in sorted(moved)}, output, keep_marks)
    typer.echo(f"{output}: {len(moved)} tensors as of step {artifacts.start.get('step', 0)}, the rest as it was given")
