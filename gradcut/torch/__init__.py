"""Marks from torch: a module as an ONNX file that means backward what the module means.

`export` keeps what the ordinary exporter loses: ``x.detach()``, ``torch.no_grad()``, ``requires_grad_(False)``, the
modes of BatchNormalization and Dropout, the names of parameters, the paths of modules. torch itself is imported when
one of the functions is called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradcut.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

__all__ = ["export", "stop_gradient"]

#: What marks are emitted at, so that nothing is converted on the way.
OPSET = 21


def export(
    module: torch.nn.Module,
    args: Any,
    path: str | os.PathLike[str],
    dynamic_batch: bool | str | Mapping[str, Any] = True,
    *,
    kwargs: Mapping[str, Any] | None = None,
    opset: int = OPSET,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """Write a module as an ONNX file that `gradcut.compile` trains as torch would train the module.

    ``x.detach()``, ``x.detach_()`` (later uses only), ``torch.no_grad()`` regions and `stop_gradient` become marks,
    parameters with ``requires_grad=False`` the model's frozen ones, and each BatchNormalization and Dropout keeps the
    mode that its module is in. Parameters are called as in ``module.named_parameters()``. The file runs in stock
    ONNX Runtime, is written whole or not at all, and the module is left as it was.

    Args:
        module: any module that `torch.export.export` takes; ``train()`` and ``eval()`` of each part count.
        args: the example's positional arguments, a tuple, or one tensor. Python numbers become constants.
        path: the file; weights over 1.9 GB lie beside it, in ``<path>.data``.
        dynamic_batch: ``True``: axis 0 of every tensor input is one dimension of any size, ``batch``; a string: the
            same under that name; ``False``: every size is the example's; a mapping: by the names of forward's
            arguments what `torch.export.export` calls dynamic_shapes, sizes named by strings
            (``{"x": {0: "batch", 1: "length"}}``).
        kwargs: the example's keyword arguments.
        opset: 18 to 23.
        input_names: for the tensors among the arguments, in order; else those of forward's arguments.
        output_names: for the tensors that forward returns, in order; else ``output``, ``output_0``, ``output_1``,
            ..., or the keys where it returns a dictionary.

    Returns:
        `path`.

    Raises:
        SpecError: an argument of this function is no module, does not fit, or is out of range.
        TorchExportError: torch cannot export the module, or its backward is one that ONNX cannot hold.
        ArtifactsError: `path` cannot be written.
        MissingExtraError: torch or onnxscript is not installed.

    Warns:
        GradcutWarning: the module has gradient hooks, or its forward moves buffers of its own; both stay in torch.
    """
    _require("torch", "onnxscript")
    from gradcut.torch.arguments import Request
    from gradcut.torch.exporter import write

    return write(Request.of(module, args, kwargs, path, dynamic_batch, opset, input_names, output_names))


def stop_gradient(x: torch.Tensor) -> torch.Tensor:
    """`x`, through which no gradient goes: ``x.detach()`` in torch, a mark in what `export` writes.

    Raises:
        SpecError: `x` is no tensor.
    """
    _require("torch")
    import torch

    if not isinstance(x, torch.Tensor):
        from gradcut.errors import SpecError

        raise SpecError(f"gradcut.torch.stop_gradient takes a torch.Tensor, not {type(x).__name__}")
    return x.detach()


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(f"gradcut.torch, without {package},", "torch") from error
