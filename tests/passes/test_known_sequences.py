"""Sequences whose elements are known are constructed at once, and then taken apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradcut.passes import Import
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.control_flow.subjects import feeds, model

JOIN = "y = ConcatFromSequence<axis = 0>(s)"
#: Each gives s from x and w.
KNOWN = {
    "inserted": "e = SequenceEmpty() a = SequenceInsert(e, x) s = SequenceInsert(a, w)",
    "inserted_first": "z = Constant<value_int = 0>() a = SequenceConstruct(x, x) s = SequenceInsert(a, w, z)",
    "inserted_before_last": "z = Constant<value_int = -1>() a = SequenceConstruct(x, x) s = SequenceInsert(a, w, z)",
    "erased": "z = Constant<value_int = 0>() a = SequenceConstruct(x, w, x) s = SequenceErase(a, z)",
    "last_erased": "a = SequenceConstruct(x, w, x) s = SequenceErase(a)",
    "mapped": "a = SequenceConstruct(x, w) s = SequenceMap<body = b (float[2] i) => (float[2] o) { o = Mul(i, x) }>(a)",
    "mapped_with": """a = SequenceConstruct(x, w) c = SequenceConstruct(w, w)
        s = SequenceMap<body = b (float[2] i, float[2] j, float[2] k) => (float[2] o) { p = Mul(i, j) o = Mul(p, k) }>
            (a, c, x)""",
}


def sequence(made: str) -> str:
    return f"(float[2] x, float[2] w, int64 n) => (float[T] y) {{ {made} {JOIN} }}"


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_sequence_is_taken_apart(name: str) -> None:
    proto = model(sequence(KNOWN[name]))
    work = ir.from_proto(proto)
    Import()(work)
    assert not [node.op_type for node in work.graph if "Sequence" in node.op_type]
    given = feeds(n=0)
    np.testing.assert_array_equal(runtime(ir.to_proto(work))(given)[0], runtime(proto)(given)[0])
    require(check_gradients(proto, given))


@pytest.mark.parametrize("place", [-1, 0, 2])
def test_a_place_that_only_a_run_knows(place: int) -> None:
    """Such a sequence stays, and has a derivative of its own."""
    made = "a = SequenceConstruct(x, x) s = SequenceInsert(a, w, n)"
    require(check_gradients(model(sequence(made)), feeds(n=place)))
