"""Running averages of the trained parameters, out of the tensors that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import SpecError
from gradcut.optimizers import EMA

Array = np.ndarray[Any, Any]


def slots(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The tensor that holds the running average of each trained parameter.

    Raises:
        SpecError: none is kept.
    """
    if manifest["optimizer"].get("ema") is None:
        raise SpecError("there are no running averages; compile with --ema 0.999 (in Python, ema=0.999) to keep them")
    return {one["name"]: one["slots"][EMA] for one in manifest["trainable"]}


def averages(artifacts: TrainingArtifacts, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The running average of each parameter that any step trains, a copy in the parameter's dtype.

    Raises:
        SpecError: none is kept.
    """
    found: dict[str, str] = {}
    for one in artifacts.steps.values() or (artifacts,):
        found |= slots(one.manifest)
    return {name: np.array(tensors[slot], tensors[name].dtype) for name, slot in found.items()}
