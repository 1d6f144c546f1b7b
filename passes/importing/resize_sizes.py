"""Sizes of Resize of which ONNX's inference tells another number than ONNX Runtime makes.

- A size times a scale is rounded to float32 before it is rounded down: 10 times 0.7 is 7, where inference says 6.
- The proportions of axes that are counted from the end are kept by leaving all as it is.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from gradcut.dims import Dim
from gradcut.ops import Builder
from gradcut.passes.importing.hidden import hidden


def made_by_resize(node: ir.Node) -> list[Dim | None] | None:
    """The sizes of all axes, None for one that is open."""
    X, scales = node.inputs[0], _scales(node)
    if X is None or X.shape is None:
        return None
    sizes: list[Dim | None] = list(X.shape)
    if _is_copied(node):
        return sizes
    if scales is None or len(scales) != len(_axes(node, len(sizes))):
        return None
    for axis, scale in zip(_axes(node, len(sizes)), scales, strict=True):
        size = sizes[axis]
        if scale != 1:
            sizes[axis] = int(scale * np.float32(size)) if isinstance(size, int) else None
    return sizes


def hide_scales(node: ir.Node, b: Builder) -> None:
    """Let inference know nothing of the scales; where they are of all axes, those of 1 are left out."""
    scales = _scales(node)
    if scales is None:
        return
    moved = [axis for axis, scale in enumerate(scales) if scale != 1]
    if "axes" not in node.attributes and _input(node, 1) is None:
        node.attributes.add(ir.AttrInt64s("axes", moved))
        scales = scales[moved]
    assert node.inputs[0] is not None
    node.replace_input_with(2, hidden(b, b.constant(scales), node.inputs[0]))


def _is_copied(node: ir.Node) -> bool:
    policy = node.attributes.get("keep_aspect_ratio_policy")
    in_proportion = _input(node, 3) is not None and policy is not None and policy.as_string() != "stretch"
    return in_proportion and "axes" in node.attributes and min(node.attributes["axes"].as_ints()) < 0


def _axes(node: ir.Node, rank: int) -> list[int]:
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(rank)
    return [axis % rank for axis in axes]


def _scales(node: ir.Node) -> np.ndarray | None:
    scales = _input(node, 2)
    tensor = None if scales is None or _input(node, 3) is not None else ir.convenience.get_const_tensor(scales)
    return None if tensor is None or math.prod(tensor.shape.numpy()) == 0 else tensor.numpy()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
