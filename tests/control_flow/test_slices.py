"""What a Loop reads by the number of its turn, against torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import gradcut
from tests.written import parse, run

SEED = 20260804
TEXT = """g (float[T,2] x, int64 n) => (float[2] y) <float[2] h0 = {0.3, -0.2}, bool on = {1}> {
    y = Loop (n, on, h0) <body = step (int64 i, bool go, float[2] h) => (bool still, float[2] next) {
        still = Identity (go)
        BODY
    }>
}"""
BODIES = {
    "once": "r = Gather (x, i)  m = Mul (h, r)  next = Sin (m)",
    "twice": "r = Gather (x, i)  q = Gather <axis = 0> (x, i)  u = Mul (h, r)  m = Add (u, q)  next = Sin (m)",
    "its_shape_too": """s = Shape (x)  f = Cast <to = 1> (s)  l = ReduceSum <keepdims = 0> (f)
        r = Gather (x, i)  d = Div (r, l)  m = Mul (h, d)  next = Sin (m)""",
    "a_sum_too": "r = Gather (x, i)  l = ReduceSum <keepdims = 0> (x)  k = Mul (r, l)  m = Mul (h, k)  next = Sin (m)",
    "in_an_if": """q = ReduceSum <keepdims = 0> (h)  zero = Constant <value_float = 0.0> ()  up = Greater (q, zero)
        next = If (up) <then_branch = yes () => (float[2] a) { r = Gather (x, i)  b = Mul (h, r)  a = Sin (b) },
            else_branch = no () => (float[2] c) { p = Gather (x, i)  e = Add (h, p)  c = Sin (e) }>""",
}


def in_torch(name: str, x: torch.Tensor, turns: int) -> torch.Tensor:
    h = torch.tensor([0.3, -0.2])
    for t in range(turns):
        up = bool(h.sum() > 0)
        h = {
            "once": lambda h=h, r=x[t]: h * r,
            "twice": lambda h=h, r=x[t]: h * r + r,
            "its_shape_too": lambda h=h, r=x[t]: h * (r / sum(x.shape)),
            "a_sum_too": lambda h=h, r=x[t]: h * (r * x.sum()),
            "in_an_if": lambda h=h, r=x[t], up=up: h * r if up else h + r,
        }[name]().sin()
    return h


@pytest.mark.parametrize("turns", [0, 1, 3, 5])
@pytest.mark.parametrize("name", BODIES)
def test_gradients(name: str, turns: int) -> None:
    """Of five rows, of which fewer may be read."""
    x = np.random.default_rng(SEED).standard_normal((5, 2)).astype(np.float32)
    rows = torch.from_numpy(x.copy()).requires_grad_()
    out = in_torch(name, rows, turns)
    (expected,) = torch.autograd.grad(out, rows, torch.tensor([1.0, 0.5]), allow_unused=True) if turns else (None,)
    backward = gradcut.vjp(parse(TEXT.replace("BODY", BODIES[name])), ["x"], ["y"])
    seed = {backward.graph.input[-1].name: np.float32([1.0, 0.5])}
    found = run(backward, {"x": x, "n": np.array(turns), **seed})[-1]
    np.testing.assert_allclose(found, np.zeros((5, 2)) if expected is None else expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "largest"), [("once", 1), ("twice", 1), ("its_shape_too", 1), ("a_sum_too", 2)])
def test_no_turn_carries_what_is_as_large_as_all_rows(name: str, largest: int) -> None:
    backward = gradcut.vjp(parse(TEXT.replace("BODY", BODIES[name])), ["x"], ["y"])
    loops = [node for node in ir.from_proto(backward).graph if node.op_type == "Loop"]
    carried = list(loops[-1].attributes["body"].as_graph().inputs[2:])
    assert max(len(value.shape or ()) for value in carried) == largest
