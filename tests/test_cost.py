"""Estimates of what bodies cost, against counts by hand."""

from __future__ import annotations

import onnx
import pytest

import gradcut
from gradcut.cost import NOMINAL, Cost, flops
from gradcut.runtime.check import imported
from tests.written import parse

WEIGHT = "float[4,4] w"
PRODUCT = 2 * 4 * 4
LOOP = """g (float[1,4] x, int64 n) => (float[1,4] y) <
        float[4,4] w = {WEIGHT}, int64 five = {5}, int64 most = {9223372036854775807}, bool on = {1}> {
    y = Loop (COUNT, on, x) <body = step (int64 i, bool go, float[1,4] h) => (bool still, float[1,4] next) {
        still = Identity (go)
        next = MatMul (h, w)
    }>
}"""
SCAN = """g (float[1,4] x, float[T,1,4] z) => (float[1,4] y) <float[4,4] w = {WEIGHT}> {
    y = Scan <num_scan_inputs = 1, body = step (float[1,4] h, float[1,4] here) => (float[1,4] next) {
        next = MatMul (here, w)
    }> (x, z)
}"""
IF = """g (float[1,4] x, bool c) => (float[1,4] y) <float[4,4] w = {WEIGHT}> {
    y = If (c) <then_branch = yes () => (float[1,4] a) { a = MatMul (x, w) },
        else_branch = no () => (float[1,4] b) { b = Neg (x) }>
}"""


def model(text: str, **put: str) -> onnx.ModelProto:
    for name, value in {"WEIGHT": ", ".join(["0.5"] * 16), **put}.items():
        text = text.replace(name, value)
    return parse(text)


@pytest.mark.parametrize(
    ("proto", "products"),
    [
        (model(LOOP, COUNT="five"), 5),
        (model(LOOP, COUNT="n"), NOMINAL),
        (model(LOOP, COUNT="most"), NOMINAL),
        (model(SCAN), NOMINAL),
        (model(SCAN.replace("float[T,", "float[7,")), 7),
        (model(IF), 1),
    ],
    ids=["constant", "open", "endless", "scan", "scan_of_7", "if"],
)
def test_bodies_count_as_often_as_they_run(proto: onnx.ModelProto, products: int) -> None:
    assert sum(flops(node) for node in imported(proto).graph) == products * PRODUCT


@pytest.mark.parametrize("count", ["five", "n"])
def test_the_backward_of_a_loop_costs_what_its_products_do(count: str) -> None:
    """In each turn: the two products of the gradient; the forward's own is not needed again."""
    proto = model(LOOP, COUNT=count)
    cost = Cost(**gradcut.compile(proto, "mse:output=y").manifest["cost"])
    backward, turns = cost.flops - cost.forward_flops, 5 if count == "five" else NOMINAL
    assert 2 * turns * PRODUCT <= backward <= 2 * turns * PRODUCT + turns * 64 + 200
    assert cost.backward_nodes >= 5
    assert cost.saved_bytes >= 4 * 4
