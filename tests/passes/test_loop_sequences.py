"""A list that a Loop collects becomes a stack."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradcut.passes import Import
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.control_flow.subjects import feeds, model


def collecting(join: str, shape: str, body: str = "out = SequenceInsert(list, next)") -> onnx.ModelProto:
    return model(f"""(float[2] x, float[2] w, int64 n) => (float[2] last, float[{shape}] y) {{
        none = SequenceEmpty()
        same, parts, last = Loop(n, , w, none, x) <body = step (int64 i, bool on, float[2] v, seq(float[2]) list,
                float[2] h) => (bool still, float[2] v2, seq(float[2]) out, float[2] next) {{
            still = Identity(on)
            v2 = Identity(v)
            t = Mul(h, v)
            next = Tanh(t)
            {body}
        }}>
        y = {join}(parts)
    }}""")


@pytest.mark.parametrize(
    ("join", "shape"),
    [("ConcatFromSequence<axis = 0, new_axis = 1>", "T, 2"), ("ConcatFromSequence<axis = 0>", "T")],
)
def test_the_list_is_a_stack(join: str, shape: str) -> None:
    proto = collecting(join, shape)
    work = ir.from_proto(proto)
    Import()(work)
    assert not {"SequenceEmpty", "SequenceInsert", "ConcatFromSequence"} & {n.op_type for n in work.graph.all_nodes()}
    before, after = (runtime(p)(feeds(n=3)) for p in (proto, ir.to_proto(work)))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    require(check_gradients(proto, feeds(n=3)))


@pytest.mark.parametrize(
    "body",
    ["out = SequenceInsert(list, next, i)", "z = SequenceInsert(list, next) out = SequenceInsert(z, h)"],
)
def test_another_list_stays_and_has_a_gradient(body: str) -> None:
    proto = collecting("ConcatFromSequence<axis = 0, new_axis = 1>", "T, 2", body)
    require(check_gradients(proto, feeds(n=3)))
