"""Sequences that exporters write become the Split or Concat that they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradcut.passes import Import
from tests.written import gradients, parse, run

X = np.arange(12, dtype=np.float32).reshape(2, 6) / 10


def split(how: str, parts: str = "y = Mul(a, b)", out: str = "float[N, 3] y") -> onnx.ModelProto:
    return parse(
        f"""g (float[N, 6] x) => ({out})
        <int64 zero = {{0}}, int64 one = {{1}}, int64 last = {{-1}}, int64[2] sizes = {{3, 3}}, int64 three = {{3}}>
        {{ parts = {how}
           a = SequenceAt(parts, zero)
           b = SequenceAt(parts, one)
           {parts} }}"""
    )


def ops(proto: onnx.ModelProto) -> list[str]:
    model = ir.from_proto(proto)
    Import()(model)
    return [node.op_type for node in model.graph if node.op_type not in ("Constant", "Mul")]


@pytest.mark.parametrize("sizes", ["sizes", "three"])
def test_a_split_to_sequence_becomes_a_split(sizes: str) -> None:
    proto = split(f"SplitToSequence<axis = 1>(x, {sizes})")
    assert ops(proto) == ["Split"]
    (dx,) = gradients(proto, {"x": X}, ["x"], ["y"])
    np.testing.assert_array_equal(dx, X[:, [3, 4, 5, 0, 1, 2]])


def test_parts_of_a_length_that_is_not_known() -> None:
    text = """g (float[N, K] x) => (float[N, L] y) <int64 zero = {0}, int64 two = {2}, int64 three = {3}> {
        parts = SplitToSequence<axis = 1>(x, three)
        a = SequenceAt(parts, zero)
        c = SequenceAt(parts, two)
        b = ReduceSum<keepdims = 0>(c)
        y = Mul(a, b) }"""
    x = np.arange(14, dtype=np.float32).reshape(2, 7) / 10
    assert ops(parse(text)) == ["Slice", "Slice", "ReduceSum"]
    (dx,) = gradients(parse(text), {"x": x}, ["x"], ["y"])
    sums = np.float32([[x[:, 6].sum()] * 3, [0] * 3, [x[:, :3].sum()] * 3]).reshape(1, 9)[:, [0, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_allclose(dx, np.repeat(sums, 2, 0), rtol=1e-6)


def test_single_slices_without_their_axis() -> None:
    proto = split("SplitToSequence<axis = 1, keepdims = 0>(x)", out="float[N] y")
    assert ops(proto) == ["Split", "Squeeze", "Squeeze"]
    (dx,) = gradients(proto, {"x": X}, ["x"], ["y"])
    np.testing.assert_array_equal(dx, np.column_stack([X[:, 1], X[:, 0], np.zeros((2, 4), np.float32)]))


def test_a_part_that_is_an_output_keeps_its_name() -> None:
    proto = split("SplitToSequence<axis = 1>(x, sizes)", out="float[N, 3] a, float[N, 3] y")
    model = ir.from_proto(proto)
    Import()(model)
    a, y = run(model, {"x": X})
    np.testing.assert_array_equal(a, X[:, :3])
    np.testing.assert_array_equal(y, X[:, :3] * X[:, 3:])


def test_a_negative_place() -> None:
    proto = split("SplitToSequence<axis = 1>(x, sizes)", "c = SequenceAt(parts, last)\n y = Mul(a, c)")
    assert ops(proto) == ["Split"]
    assert run(ir.from_proto(proto), {"x": X})[0].tolist() == (X[:, :3] * X[:, 3:]).tolist()


def test_a_sequence_that_something_else_reads_stays() -> None:
    proto = split("SplitToSequence<axis = 1>(x, sizes)", "y = ConcatFromSequence<axis = 1>(parts)", "float[N, 6] y")
    assert "SplitToSequence" in ops(proto)


@pytest.mark.parametrize(("new_axis", "shape"), [(0, "4"), (1, "2, 2")])
def test_a_concat_from_a_constructed_sequence(new_axis: int, shape: str) -> None:
    proto = parse(
        f"""g (float[2] u, float[2] v) => (float[{shape}] y)
        {{ w = Mul(u, v)
           parts = SequenceConstruct(u, w)
           y = ConcatFromSequence<axis = 0, new_axis = {new_axis}>(parts) }}"""
    )
    assert ops(proto) == ["Unsqueeze"] * 2 * new_axis + ["Concat"]
    du, dv = gradients(proto, {"u": [2.0, 3.0], "v": [5.0, 7.0]}, ["u", "v"], ["y"])
    assert (du.tolist(), dv.tolist()) == ([6.0, 8.0], [2.0, 3.0])


def test_an_element_of_a_constructed_sequence() -> None:
    proto = parse(
        """g (float[2] u, float[2] v) => (float[2] y)
        <int64 one = {1}>
        { parts = SequenceConstruct(u, v)
          a = SequenceAt(parts, one)
          y = Mul(a, a) }"""
    )
    assert ops(proto) == []
    assert gradients(proto, {"u": [2.0, 3.0], "v": [5.0, 7.0]}, ["v"], ["y"])[0].tolist() == [10.0, 14.0]
