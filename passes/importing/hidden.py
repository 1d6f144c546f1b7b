"""Numbers that inference is not to see, as what it would tell by them is not what ONNX Runtime makes.

ONNX Runtime infers shapes too, again after each of its optimizations, and refuses a graph where they contradict each
other; whatever depends on static shapes alone it computes beforehand.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder


def hidden(b: Builder, numbers: ir.Value, witness: ir.Value) -> ir.Value:
    """`numbers` [n], chosen at run time between themselves and themselves by the first element of a float value."""
    flat = b.Reshape(witness, b.ints([-1]))
    first = b.op("Slice", flat, b.ints([0]), b.ints([1]), dtype=witness.dtype)
    return b.op("Where", b.IsNaN(first), numbers, numbers, shape=numbers.shape)


def of_hidden_shape(b: Builder, X: ir.Value) -> ir.Value:
    """`X`, of whose static shape nothing but the rank is known."""
    assert X.shape is not None
    shape = hidden(b, b.shape_of(X), X)
    return b.op("Reshape", X, shape, dtype=X.dtype, shape=ir.Shape([None] * len(X.shape)))
