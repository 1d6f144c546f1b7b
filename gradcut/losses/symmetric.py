"""The symmetric loss of two views."""

from __future__ import annotations

import dataclasses
import os

from gradcut.errors import LossError
from gradcut.losses.base import Loss
from gradcut.losses.elements import NegCosine
from gradcut.losses.spec import parse_loss, split_path


def symmetric(
    p1: str,
    p2: str,
    z1: str,
    z2: str,
    loss: str | Loss | os.PathLike[str] | None = None,
    factor: float = 0.5,
    stop_gradient: bool = True,
) -> list[tuple[float, str]]:
    """``factor D(p1, stop(z2)) + factor D(p2, stop(z1))``, an objective that `gradcut.compile` takes.

    Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, equation 4.

    Args:
        p1, p2, z1, z2: values of the model by name: what is predicted from each view, and what each view gives.
        loss: D, minus the mean cosine by default: one of `gradcut.losses` or its text, or a loss graph
            (``FILE.onnx:its_prediction=p,its_target=z``, by these two letters) whose values are outputs of the model.
        stop_gradient: False leaves the marks out, which is what collapses.

    Raises:
        LossError: the loss is already wired to values, or a graph's wiring names no p and z.
    """
    return [(factor, _between(loss, p, z, stop_gradient)) for p, z in ((p1, z2), (p2, z1))]


def _between(loss: str | Loss | os.PathLike[str] | None, p: str, z: str, stop: bool) -> str:
    text = os.fspath(loss) if isinstance(loss, os.PathLike) else loss
    path, renames = split_path(text) if isinstance(text, str) else (None, {})
    if path is not None:
        return _of_graph(path, renames, p, z, stop)
    parsed = parse_loss(text) if isinstance(text, str) else NegCosine() if text is None else text
    if not isinstance(parsed, Loss):
        raise LossError(f"symmetric takes a loss such as gradcut.losses.NegCosine() or its text, not {loss!r}")
    if parsed.output or parsed.target or parsed.labels:
        raise LossError(f"symmetric says itself what {parsed.name} reads; leave out output, target and labels")
    return dataclasses.replace(parsed, output=p, target=z, stop_target=stop).spec()


def _of_graph(path: str, renames: dict[str, str], p: str, z: str, stop: bool) -> str:
    if sorted(renames.values()) != ["p", "z"]:
        raise LossError(f"symmetric: say which input of {path} is which: {path}:its_prediction=p,its_target=z")
    meant = {"p": p, "z": f"stop({z})" if stop else z}
    return f"{path}:" + ",".join(f"{its}={meant[letter]}" for its, letter in renames.items())
