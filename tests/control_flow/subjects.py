"""Small models with If, Loop and Scan, as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser

Array = np.ndarray[Any, Any]
X = np.array([1.5, -0.7], np.float32)
W = np.array([0.3, 0.8], np.float32)

BRANCHES = """(float[2] x, float[2] w, bool c) => (float[2] y) {
    h = Tanh(x)
    y = If(c) <
        then_branch = yes () => (float[2] t) { u = Mul(h, w) t = Mul(u, h) },
        else_branch = no () => (float[2] e) { e = Sin(x) }>
}"""
LOOP = """(float[2] x, float[2] w, int64 n, bool go) => (float[2] y, float[K, 2] s) {
    y, s = Loop(n, go, x) <body = step (int64 i, bool on, float[2] h) => (bool still, float[2] next, float[2] o) {
        still = Identity(on)
        t = Mul(h, w)
        next = Tanh(t)
        o = Sin(next)
    }>
}"""
#: A Loop that its condition ends; a state that is handed on, one that is swapped in late, one that nothing reads.
EARLY = """(float[2] x, float[2] w, int64 n) => (float[2] y, float[K, 2] s) {
    y, late, same, unread, s = Loop(n, , x, x, w, x) <body = step (int64 i, bool on, float[2] h, float[2] g, float[2] v,
            float[2] d) => (bool still, float[2] next, float[2] h, float[2] v, float[2] d2, float[2] o) {
        q = ReduceSum<keepdims = 0>(h)
        limit = Constant<value_float = 6.0>()
        still = Less(q, limit)
        t = Mul(h, v)
        u = Mul(g, t)
        next = Add(h, u)
        d2 = Exp(d)
        o = Sin(next)
    }>
}"""
#: If in Loop in If; both levels capture from both levels above.
NESTED = """(float[2] x, float[2] w, int64 n, bool c) => (float[2] y) {
    a = Sin(x)
    y = If(c) <then_branch = yes () => (float[2] t) {
        k = Mul(a, w)
        t = Loop(n, , k) <body = step (int64 i, bool on, float[2] h) => (bool still, float[2] next) {
            still = Identity(on)
            one = Constant<value_int = 1>()
            first = Less(i, one)
            m = If(first) <
                then_branch = first () => (float[2] p) { p = Mul(h, w) },
                else_branch = later () => (float[2] q) { r = Mul(h, k) q = Mul(r, a) }>
            next = Tanh(m)
        }>
    }, else_branch = no () => (float[2] e) { e = Neg(x) }>
}"""
IN_TURN = """(float[2] x, float[2] w, int64 n) => (float[2] y) {
    y = Loop(n, , x) <body = outer (int64 i, bool on, float[2] h) => (bool still, float[2] next) {
        still = Identity(on)
        next = Loop(n, , h) <body = inner (int64 j, bool go, float[2] g) => (bool goes, float[2] after) {
            goes = Identity(go)
            t = Mul(g, w)
            u = Mul(t, h)
            after = Tanh(u)
        }>
    }>
}"""
#: One more row each turn.
GROWING = """(float[1, 2] x, float[2, 2] w, int64 n) => (float[A, 2] y) {
    y = Loop(n, , x) <body = step (int64 i, bool on, float[R, 2] h) => (bool still, float[S, 2] next) {
        still = Identity(on)
        r = MatMul(h, w)
        t = Tanh(r)
        next = Concat<axis = 0>(h, t)
    }>
}"""


def model(text: str, opset: int = 21) -> onnx.ModelProto:
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "gradcut" : 1]> g '
    return onnx.parser.parse_model(head + text)


def feeds(**values: Any) -> dict[str, Array]:
    """Numbers and flags as arrays; x and w are there."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {"x": X, "w": W, **arrays}
