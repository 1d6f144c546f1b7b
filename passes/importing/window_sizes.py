"""Windows of which ONNX's inference tells another number than ONNX Runtime makes, as the same windows said plainly.

- A pool with ``auto_pad=SAME_*`` and dilations pads for a kernel without them.
- In ceil_mode a last window that would begin behind X and its first pad is left out, at any opset; and there may be
  none where X with its pads is shorter than a window.
- ConvTranspose with ``auto_pad=SAME_*`` has input times stride places, output_padding or not, and fewer where windows
  do not reach that far. An ``output_shape`` that is smaller than X is no less what is made.
- For Resize see `resize_sizes`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from gradcut.dims import Dim, static_dims
from gradcut.ops import Builder, Names
from gradcut.passes.importing.hidden import of_hidden_shape
from gradcut.passes.importing.resize_sizes import hide_scales, made_by_resize

_POOLS = ("MaxPool", "AveragePool", "LpPool")


class _Axis(NamedTuple):
    """A pool along one spatial axis: places, windows as the runtime makes them, and what says so."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    ceil: bool

    @property
    def reach(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def made(self) -> int:
        windows = self.counted(self.end, self.ceil)
        dropped = self.ceil and (windows - 1) * self.stride >= self.size + self.begin
        return windows - 1 if dropped else windows

    def counted(self, end: int, ceil: bool) -> int:
        """By the formula of ONNX's page."""
        steps = (self.size + self.begin + end - self.reach) / self.stride
        return (math.ceil(steps) if ceil else int(steps)) + 1

    @property
    def needed(self) -> int:
        """The pad at the end with which as many windows fit without ceil_mode."""
        return max((self.made - 1) * self.stride + self.reach - self.size - self.begin, self.end)


def right_window_sizes(model: ir.Model) -> bool:
    """Say such windows plainly; the sizes of all that follows from the first of them are unknown then.

    Returns:
        Whether there were any: then shapes are to be inferred again, and this is to be called again.
    """
    tainted, wrong, names = set[ir.Value](), False, functools.cache(lambda: Names.of(model))
    for node in model.graph:
        if any(value in tainted for value in node.inputs):
            for value in node.outputs:
                value.shape = None
        elif _is_wrong(node):
            b = Builder(names(), prefix=f"{node.outputs[0].name}_")
            _say(node, b)
            model.graph.insert_before(node, b.nodes)
            wrong = True
        else:
            continue
        tainted.update(node.outputs)
    return wrong


def _is_wrong(node: ir.Node) -> bool:
    made, shape = _made(node), node.outputs[0].shape
    if made is None or shape is None:
        return False
    told = list(shape)[_first(node) :]
    return len(told) != len(made) or any(isinstance(m, int) and m != t for m, t in zip(made, told, strict=True))


def _first(node: ir.Node) -> int:
    """The first axis of those whose sizes `_made` tells."""
    return 0 if node.op_type == "Resize" else 2


def _made(node: ir.Node) -> Sequence[Dim | None] | None:
    """The spatial sizes, where they are known and inference may take others; for Resize those of all axes."""
    X = node.inputs[0] if node.inputs else None
    if (node.domain, node.op_type) == ("", "Resize"):
        return made_by_resize(node)
    if node.domain or node.op_type not in (*_POOLS, "ConvTranspose") or X is None or X.shape is None:
        return None
    if "output_shape" in node.attributes:
        return _ints(node, "output_shape", [])
    sizes = static_dims(ir.Shape(list(X.shape)[2:]))
    if sizes is None:
        return None
    return _transposed(node, sizes) if node.op_type == "ConvTranspose" else [axis.made for axis in _axes(node, sizes)]


def _say(node: ir.Node, b: Builder) -> None:
    """Sizes that cannot be told by attributes are written down, and hidden from inference what it would tell."""
    made = _made(node)
    assert made is not None and node.inputs[0] is not None
    known = list(node.outputs[0].shape or ())[: _first(node)]
    if node.op_type == "ConvTranspose" and "output_shape" not in node.attributes:
        node.attributes.add(ir.AttrInt64s("output_shape", [size for size in made if isinstance(size, int)]))
    elif node.op_type in ("ConvTranspose", "Resize") or not _said_plainly(node):
        if node.op_type == "Resize":
            hide_scales(node, b)
        elif node.op_type in _POOLS:
            node.replace_input_with(0, of_hidden_shape(b, node.inputs[0]))
        for value in node.outputs:
            value.shape = ir.Shape([*known, *made])
        return
    for value in node.outputs:
        value.shape = None


def _said_plainly(node: ir.Node) -> bool:
    """Put explicit pads, without ceil_mode, where they mean the same."""
    assert node.inputs[0] is not None
    axes = _axes(node, static_dims(ir.Shape(list(node.inputs[0].shape or ())[2:])) or ())
    plain = [max(axis.end, 0) for axis in axes]
    forms = [(plain, False), (plain, True)]
    if node.op_type != "AveragePool" or not _ints(node, "count_include_pad", [0])[0]:
        forms.append(([axis.needed for axis in axes], False))
    for ends, ceil in forms:
        if all(
            axis.counted(end, ceil) == axis.made >= 1 and axis.begin >= 0 and 0 <= end < axis.kernel
            for axis, end in zip(axes, ends, strict=True)
        ):
            node.attributes.pop("auto_pad", None)
            node.attributes.add(ir.AttrInt64("ceil_mode", int(ceil)))
            node.attributes.add(ir.AttrInt64s("pads", [*(axis.begin for axis in axes), *ends]))
            return True
    return False


def _transposed(node: ir.Node, sizes: Sequence[int]) -> list[int] | None:
    """With SAME_*, of which ONNX Runtime makes no pads that are negative."""
    W = node.inputs[1]
    kernel = None if W is None or W.shape is None else static_dims(ir.Shape(list(W.shape)[2:]))
    if kernel is None or not _auto_pad(node).startswith("SAME"):
        return None
    made, count = [], len(sizes)
    for axis, size in enumerate(sizes):
        stride, dilation = (_ints(node, name, [1] * count)[axis] for name in ("strides", "dilations"))
        reach = (kernel[axis] - 1) * dilation + 1 + _ints(node, "output_padding", [0] * count)[axis]
        made.append((size - 1) * stride + min(stride, reach))
    return made


def _axes(node: ir.Node, sizes: Sequence[int]) -> list[_Axis]:
    axes, kernels, auto = [], _ints(node, "kernel_shape", []), _auto_pad(node)
    count, ceil = len(kernels), bool(_ints(node, "ceil_mode", [0])[0])
    pads = _ints(node, "pads", [0] * (2 * count)) if auto == "NOTSET" else [0] * (2 * count)
    for i, (size, kernel) in enumerate(zip(sizes, kernels, strict=True)):
        stride, dilation = (_ints(node, name, [1] * count)[i] for name in ("strides", "dilations"))
        begin, end = pads[i], pads[i + count]
        if auto.startswith("SAME"):
            total = (math.ceil(size / stride) - 1) * stride + kernel - size
            begin = int((total + (auto == "SAME_LOWER")) / 2)
            end = total - begin
        axes.append(_Axis(size, kernel, stride, dilation, begin, end, ceil))
    return axes


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())


def _auto_pad(node: ir.Node) -> str:
    attribute = node.attributes.get("auto_pad")
    return "NOTSET" if attribute is None else attribute.as_string()
