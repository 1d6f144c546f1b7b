"""From a module to torch's own program: `torch.export.export`, and what it would lose without a word."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import UserError
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.export import ExportedProgram
from torch.utils.checkpoint import CheckpointFunction

from gradcut.errors import TorchExportError
from gradcut.torch.arguments import Request

#: How torch suggests bounds for a size: ``batch = Dim('batch', max=25)``.
_SUGGESTED = re.compile(r"(\w+) = Dim\('\w+'((?:, (?:min|max)=\d+)+)\)")
#: ``You marked batch as dynamic but your code specialized it to be a constant (5)``.
_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_BOUND = re.compile(r"(min|max)=(\d+)")


@dataclass(frozen=True)
class Captured:
    """torch's program, and the sizes that it holds for where that is not every size."""

    program: ExportedProgram
    ranges: dict[str, str]


def capture(request: Request) -> Captured:
    """The module as torch.export traces it, with gradients on.

    Raises:
        TorchExportError: with torch's reason, in one line.
    """
    lost: list[str] = []
    with quiet(), torch.enable_grad(), _watched(lost), _seen(), _no_fast_path():
        try:
            found = _traced(request)
        except Exception as error:
            raise TorchExportError(lost[0] if lost else _reason(request, error)) from error
    if lost:
        raise TorchExportError(lost[0])
    return found


def _traced(request: Request) -> Captured:
    """Where the module's code takes another way from some size on, the program is that of the example's side."""
    args, kwargs = request.example()

    def trace(shapes: Any) -> ExportedProgram:
        return torch.export.export(request.module, args, kwargs, dynamic_shapes=shapes, strict=False)

    try:
        return Captured(trace(request.dynamic_shapes()), {})
    except UserError as error:
        ranges = dict(_SUGGESTED.findall(str(error)))
        if not ranges:
            raise
    bounds = {name: {one[1]: int(one[2]) for one in _BOUND.finditer(text)} for name, text in ranges.items()}
    said = {name: text.removeprefix(", ") for name, text in ranges.items() if bounds[name] != {"min": 2}}
    return Captured(trace(request.dynamic_shapes(bounds)), said)


def hooked(module: nn.Module) -> list[str]:
    """Modules and parameters with hooks that see, and may change, gradients."""
    modules = [name or "the module" for name, one in module.named_modules() if _has_hooks(one)]
    return modules + [name for name, one in module.named_parameters() if one._backward_hooks]


def first_line(error: BaseException) -> str:
    """What went wrong first, in one line: torch wraps it, and explains at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) < 400 else f"{text[:400]}..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings and logs, which speak of its inside."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _watched(lost: list[str]) -> Iterator[None]:
    """Note what changes gradients by Python code, which a trace does not hold."""
    function: Any = torch.autograd.Function
    tensor: Any = torch.Tensor
    apply, register = function.__dict__["apply"], tensor.register_hook

    def noted(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            lost.append("torch.utils.checkpoint with use_reentrant=True cannot be traced; give it use_reentrant=False")
        elif torch.is_grad_enabled() and not cls.__module__.startswith("torch."):  # torch's own are what they run
            lost.append(
                f"the module calls {cls.__qualname__}, a torch.autograd.Function, whose backward no file can hold; "
                "write a straight-through estimator as x + (f(x) - x).detach(), or leave the function out and call "
                "gradcut.custom_gradient on the file"
            )
        return apply.__func__(cls, *args, **kwargs)

    def hooked_tensor(self: torch.Tensor, hook: Any) -> Any:
        lost.append(
            "forward calls register_hook on a tensor, and what the hook makes of a gradient no file can hold; see "
            "gradcut.gradient_scale, gradient_reversal and gradient_clip"
        )
        return register(self, hook)

    function.apply, tensor.register_hook = classmethod(noted), hooked_tensor
    try:
        yield
    finally:
        function.apply, tensor.register_hook = apply, register


@contextlib.contextmanager
def _seen() -> Iterator[None]:
    """Have two ways to stop gradients be the ones that a trace holds: `inference_mode` and ``x.data``."""
    mode: Any = torch.inference_mode
    tensor: Any = torch.Tensor
    entering, leaving = mode.__enter__, mode.__exit__
    data: Any = torch._C.TensorBase.data
    guards: dict[int, list[Any]] = {}

    def enter(self: Any) -> None:
        guards.setdefault(id(self), []).append(torch.set_grad_enabled(not self.mode))

    def leave(self: Any, *error: Any) -> None:
        guards[id(self)].pop().__exit__(*error)

    def detached(self: torch.Tensor) -> Any:
        return self.detach() if isinstance(self, (FakeTensor, FunctionalTensor)) else data.__get__(self)

    mode.__enter__, mode.__exit__, tensor.data = enter, leave, property(detached, data.__set__)
    try:
        yield
    finally:
        mode.__enter__, mode.__exit__ = entering, leaving
        del tensor.data


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """A frozen transformer layer in eval mode would run as one fused operator, which ONNX does not have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _reason(request: Request, error: Exception) -> str:
    name = type(request.module).__name__
    fixed = _FIXED.search(str(error))
    if fixed is None:
        return f"torch cannot export {name}: {first_line(error)}"
    if not isinstance(request.dynamic_batch, Mapping):
        return (
            f"{name} fixes the batch at {fixed[2]}, so that axis 0 cannot be of any size: find what depends on its "
            "value (a reshape to a number, a buffer of that size), or give dynamic_batch=False"
        )
    return (
        f"{name} fixes {fixed[1]} at {fixed[2]}, so that it cannot be of any size: find what depends on its value (a "
        "reshape to a number, a buffer of that size, the length that torch unrolls a recurrent layer to), or leave it "
        "out of dynamic_batch"
    )
