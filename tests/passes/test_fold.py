"""Fold computes shape arithmetic, and leaves to the runtime what onnx's evaluator may have another view of."""

from __future__ import annotations

import numpy as np
import pytest

import gradcut
from gradcut.passes import Fold
from gradcut.runtime.check import imported
from tests.written import parse, run


def outputs(body: str) -> np.ndarray:
    model = parse("g (float[4] x) => (float[4] y) <float[4] w = {1, 1, 1, 1}> { h = Mul (x, w) " + body + " }")
    session = gradcut.TrainingSession(gradcut.compile(model, loss="mse", train=["w"]))
    x = np.ones(4, np.float32)
    session.step({"x": x, "labels": x})
    return gradcut.TrainingSession(gradcut.compile(model, loss="mse")).evaluate({"x": x, "labels": x}).outputs["y"]


def test_an_operator_that_is_no_shape_arithmetic_is_left_to_the_runtime() -> None:
    found = outputs("""a = Constant <value = float[4] {-1.5, 0.5, 2.5, -0.5}> ()
        c = LpNormalization <p=1> (a)  y = Mul (h, c)""")
    np.testing.assert_allclose(found, np.float32([-1.5, 0.5, 2.5, -0.5]) / 5, rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "a = Constant <value = int64[1] {2}> ()  st = Cast <to=8> (a)  c = Cast <to=1> (st)  y = Mul (h, c)",
        'st = Constant <value_string = "2"> ()  c = Cast <to=1> (st)  y = Mul (h, c)',
    ],
)
def test_strings_beside_the_path_change_nothing(body: str) -> None:
    np.testing.assert_array_equal(outputs(body), np.float32([2, 2, 2, 2]))


@pytest.mark.parametrize("index", ["1", "-1"])
def test_one_static_dimension_folds_in_a_body_and_an_open_one_stays(index: str) -> None:
    model = parse(
        """g (float[n,4] x, bool c) => (float[n,4] y) {
        y = If (c) <then_branch = yes () => (float[n,4] a) {
            s = Shape (x)  at = Constant <value_int = INDEX> ()
            d = Gather (s, at)  f = Cast <to = 1> (d)  a = Mul (x, f)
        }, else_branch = no () => (float[n,4] b) {
            t = Shape (x)  first = Constant <value_int = 0> ()
            e = Gather (t, first)  g = Cast <to = 1> (e)  b = Mul (x, g)
        }>
    }""".replace("INDEX", index)
    )
    work = imported(model)
    Fold()(work)
    assert [node.op_type for node in work.graph.all_nodes()].count("Gather") == 1
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        np.testing.assert_array_equal(run(work, feeds)[0], x * (4 if condition else 2))
