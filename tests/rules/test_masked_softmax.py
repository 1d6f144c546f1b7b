"""Softmax over a row that is -inf throughout, which the model then replaces: 0 there, torch's slopes in other rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

import gradcut
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, normal

SCORES = np.concatenate([normal(2, 4), np.full((1, 4), -np.inf, np.float32), normal(1, 4)])
SCORES[0, 2] = -np.inf
SEEN = np.isfinite(SCORES).any(axis=1)
#: How a model replaces the row, y being its softmax and z what it goes on with.
WAYS = {
    "where it is no number": "bad = IsNaN(y) z = Where(bad, zero, y)",
    "where nothing is seen": "top = ReduceMax(x, last) bad = IsInf(top) z = Where(bad, zero, y)",
    "otherwise": "top = ReduceMax(x, last) bad = IsInf(top) good = Not(bad) z = Where(good, y, zero)",
    "behind a cast": "c = Cast<to = 1>(y) i = Identity(c) bad = IsNaN(i) z = Where(bad, zero, i)",
}


def model(op: str, way: str, axis: int = -1) -> onnx.ModelProto:
    return parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,4] x) => (float[4,4] z) <float zero = {{0}}, int64[1] last = {{1}}> {{
            y = {op}<axis = {axis}>(x)
            {WAYS[way]}
        }}""")


def gradient(proto: onnx.ModelProto, scores: Array, cotangent: Array) -> Array:
    return np.asarray(runtime(gradcut.vjp(proto, ["x"], ["z"]))({"x": scores, "z_grad": cotangent})[-1])


def by_torch(op: str, scores: Array, cotangent: Array) -> Array:
    x = torch.tensor(scores, requires_grad=True)
    y = torch.softmax(x, -1) if op == "Softmax" else torch.log_softmax(x, -1)
    y.backward(torch.tensor(cotangent))
    assert x.grad is not None
    return x.grad.numpy()


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_sees_nothing_has_no_gradient_and_spoils_no_other(way: str, op: str) -> None:
    cotangent = normal(4, 4)
    mine = gradient(model(op, way), SCORES, cotangent)
    assert (mine[~SEEN] == 0).all()
    expected = by_torch(op, SCORES[SEEN], cotangent[SEEN])
    np.testing.assert_allclose(mine[SEEN], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_against_differences(way: str) -> None:
    require(check_gradients(model("Softmax", way), {"x": SCORES}, ["x"], ["z"]))


def test_along_the_first_axis() -> None:
    cotangent = normal(4, 4)
    turned = gradient(model("Softmax", "where it is no number", axis=0), SCORES.T.copy(), cotangent.T.copy())
    expected = gradient(model("Softmax", "where it is no number"), SCORES, cotangent)
    np.testing.assert_allclose(turned.T, expected, rtol=1e-5, atol=1e-6)


def test_what_looks_for_nothing_is_not_guarded() -> None:
    plain = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,4] x) => (float[4,4] z) { y = Softmax(x) z = Neg(y) }""")
    assert {node.op_type for node in gradcut.vjp(plain, ["x"], ["z"]).graph.node}.isdisjoint({"IsNaN", "Where"})
