"""What `gradcut.torch.export` was asked for, checked before torch sees any of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradcut.errors import ArtifactsError, SpecError

OPSETS = range(18, 24)
BATCH = "batch"
Bounds = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Request:
    """The checked arguments; `given` is the example by the names of forward's arguments."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[str, Any]
    path: Path
    dynamic_batch: bool | str | Mapping[str, Any]
    opset: int
    input_names: tuple[str, ...] | None
    output_names: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        module: Any,
        args: Any,
        kwargs: Mapping[str, Any] | None,
        path: str | os.PathLike[str],
        dynamic_batch: bool | str | Mapping[str, Any],
        opset: int,
        input_names: Sequence[str] | None,
        output_names: Sequence[str] | None,
    ) -> Request:
        """Checked, or SpecError; ArtifactsError where `path` cannot be written."""
        module = _module(module)
        positional, named = _arguments(args), dict(kwargs or {})
        given = _bound(module, positional, named)
        if opset not in OPSETS or isinstance(opset, bool):
            raise SpecError(f"opset is {OPSETS[0]} to {OPSETS[-1]}, not {opset!r}")
        check_path(path)
        names = tuple(_names(what, one) for what, one in (("input", input_names), ("output", output_names)))
        request = cls(module, positional, named, given, Path(path), dynamic_batch, opset, *names)
        request.dynamic_shapes()
        return request

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of the example, called by its place: ``x``, ``batch['image']``."""
        for name, part in self.given.items():
            for path, value in pytree.tree_leaves_with_path(part):
                if isinstance(value, Tensor):
                    yield f"{name}{pytree.keystr(path)}", value

    def dynamic_shapes(self, bounds: Bounds | None = None) -> Any:
        """As `torch.export.export` takes them; `bounds` are of sizes by name."""
        if self.dynamic_batch is False:
            return None
        if isinstance(self.dynamic_batch, Mapping):
            return self._asked_for(self.dynamic_batch, bounds)
        if not isinstance(self.dynamic_batch, (bool, str)) or not self.dynamic_batch:
            raise SpecError(f"dynamic_batch is True, False, a name or a mapping, not {self.dynamic_batch!r}")
        self._check_batch()
        dim = _dim(BATCH if self.dynamic_batch is True else self.dynamic_batch, bounds)
        return pytree.tree_map(lambda one: {0: dim} if isinstance(one, Tensor) and one.ndim else None, self.given)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to trace with: torch takes a size of 1 for a constant, so a batch of one is doubled."""
        single = {tensor.shape[0] for _, tensor in self.tensors() if tensor.ndim} == {1}
        if not single or isinstance(self.dynamic_batch, Mapping) or self.dynamic_batch is False:
            return self.args, self.kwargs
        doubled = lambda one: torch.cat([one, one]) if isinstance(one, Tensor) and one.ndim else one
        with torch.no_grad():
            return pytree.tree_map(doubled, self.args), pytree.tree_map(doubled, self.kwargs)

    def _asked_for(self, shapes: Mapping[str, Any], bounds: Bounds | None) -> Any:
        unknown = [name for name in shapes if name not in self.given]
        if unknown:
            raise SpecError(f"dynamic_batch names {unknown[0]!r}; forward's arguments here are {', '.join(self.given)}")
        dims: dict[str, Any] = {}
        named = lambda one: dims.setdefault(one, _dim(one, bounds)) if isinstance(one, str) else one
        return {name: pytree.tree_map(named, shapes.get(name)) for name in self.given}

    def _check_batch(self) -> None:
        sizes = {name: tensor.shape[0] for name, tensor in self.tensors() if tensor.ndim}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise SpecError(
                f"dynamic_batch=True takes axis 0 of every tensor for the batch, and its sizes differ ({listed}); name "
                f'the axes, dynamic_batch={{"{next(iter(sizes))}": {{0: "{BATCH}"}}}}, or give dynamic_batch=False'
            )


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise ArtifactsError where no file can be written."""
    if not isinstance(path, (str, os.PathLike)):
        raise SpecError(f"path is that of the file to write, not {type(path).__name__}")
    target = Path(path)
    if target.is_dir():
        raise ArtifactsError(f"{path} is a directory; name the file to write")
    if not target.parent.is_dir():
        raise ArtifactsError(f"{path} cannot be written: there is no directory {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise ArtifactsError(f"{path} cannot be written: the directory {target.parent} does not allow it")


def _module(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise SpecError(f"gradcut.torch.export takes a torch.nn.Module, not {_kind(module)}")
    if isinstance(module, torch.jit.ScriptModule):
        raise SpecError("a scripted module cannot be exported; give the torch.nn.Module that it was made from")
    inner = getattr(module, "_orig_mod", None)  # what torch.compile gives
    return inner if isinstance(inner, nn.Module) else module


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _arguments(args: Any) -> tuple[Any, ...]:
    if isinstance(args, (tuple, list)):
        return tuple(args)
    if isinstance(args, Tensor):
        return (args,)
    hint = "; keyword arguments go into kwargs" if isinstance(args, Mapping) else ""
    raise SpecError(f"args is a tuple of forward's arguments, or one tensor, not {_kind(args)}{hint}")


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise SpecError(f"args do not fit {type(module).__name__}.forward: {error}") from None
    if not any(isinstance(one, Tensor) for one in pytree.tree_leaves(given)):
        raise SpecError(f"args hold no tensor; give an example of what {type(module).__name__}.forward takes")
    return dict(given)


def _names(what: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    found = tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in found):
        raise SpecError(f"{what}_names is a list of names, not {names!r}")
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"{what}_names has {twice!r} twice")
    return found


def _dim(name: str, bounds: Bounds | None) -> Any:
    if not name.isidentifier():
        raise SpecError(f"{name!r} is no name for a dimension: letters, digits and _ alone")
    return torch.export.Dim(name, **(bounds or {}).get(name, {}))
