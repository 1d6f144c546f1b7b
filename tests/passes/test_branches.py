"""Ifs without a choice, against ONNX Runtime on the file as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.runtime.check import check_gradients, imported
from tests.written import parse, run

SEED = 20260802
Arrays = dict[str, np.ndarray[Any, Any]]

#: As torch's older exporter writes ``x.squeeze(1)``, ``x[None] if x.dim() == 2 else x``, and one in the other.
SQUEEZED = """m (float[n,1,4] x) => (float[n,4] y) {
    one = Constant <value_int: int = 1> ()
    shape = Shape (x)
    size = Gather <axis: int = 0> (shape, one)
    is_one = Equal (size, one)
    squeezed = If (is_one) <
        then_branch: graph = yes () => (a) { axes = Constant <value_ints: ints = [1]> ()  a = Squeeze (x, axes) },
        else_branch: graph = no () => (b) { b = Identity (x) }
    >
    y = Exp (squeezed)
}"""
NESTED = """m (float[2,3] x) => (float[2,3] y, float z)
    <bool no = {0}, float[3] w = {1.0, 2.0, 3.0}, int64 two = {2}> {
    shape = Shape (x)
    rank = Size (shape)
    is_matrix = Equal (rank, two)
    y, kept = If (is_matrix) <
        then_branch: graph = t () => (i, j) {
            half = Constant <value_float: float = 0.5> ()
            same = Mul (x, half)
            i = If (no) <
                then_branch: graph = tt () => (k) { k = Neg (same) },
                else_branch: graph = te () => (l) { same_again = Mul (same, w)  l = Sin (same_again) }
            >
            j = Identity (x)
        },
        else_branch: graph = e () => (o, p) { o = Neg (x)  p = Identity (x) }
    >
    is_other = Not (is_matrix)
    u = If (is_other) <
        then_branch: graph = t2 () => (i2) { i2 = Neg (x) },
        else_branch: graph = e2 () => (j2) { same = Exp (kept)  j2 = Mul (same, same) }
    >
    z = ReduceSum <keepdims: int = 0> (u)
}"""
IN_A_LOOP = """m (float[3] x, int64 count) => (float[3] y) <bool yes = {1}> {
    y = Loop (count, yes, x) <body: graph = b (int64 i, bool go, float[3] s) => (bool on, float[3] r) {
        on = Identity (go)
        r = If (yes) <
            then_branch: graph = t () => (c) { d = Mul (s, x)  c = Sin (d) },
            else_branch: graph = e () => (f) { f = Identity (s) }
        >
    }>
}"""
#: Weights of one name in both branches.
WEIGHED = """m (float[n,2] x) => (float[n,2] y) {
    shape = Shape (x)
    rank = Size (shape)
    two = Constant <value_int: int = 2> ()
    is_matrix = Equal (rank, two)
    y = If (is_matrix) <
        then_branch: graph = t () => (a) <float[2,2] w = {1.0, 2.0, 3.0, 4.0}> { a = MatMul (x, w) },
        else_branch: graph = e () => (b) <float[2,2] w = {5.0, 6.0, 7.0, 8.0}> { b = MatMul (x, w) }
    >
}"""
#: As torch's older exporter writes scatter_reduce, with the shapes that it tells: those of the branch that never runs.
TOLD_BY_THE_OTHER = """m (float[3,5] x) => (float[15] y) {
    shape = Shape (x)
    rank = Size (shape)
    zero = Constant <value_int: int = 0> ()
    is_scalar = Equal (rank, zero)
    h = If (is_scalar) <
        then_branch: graph = t () => (float[15] a) { n = Constant <value_ints: ints = [-1]> ()  a = Reshape (x, n) },
        else_branch: graph = e () => (float[3,5] b) { b = Identity (x) }
    >
    s = Sin (h)
    i = If (is_scalar) <
        then_branch: graph = t2 () => (float[15] c) { c = Squeeze (s) },
        else_branch: graph = e2 () => (float[15] d) { d = Identity (s) }
    >
    y = Mul (i, i)
}"""
FILES = {"squeezed": SQUEEZED, "nested": NESTED, "in_a_loop": IN_A_LOOP}


def feeds(name: str) -> Arrays:
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal({"squeezed": (1, 1, 4), "nested": (2, 3), "in_a_loop": (3,)}[name]).astype(np.float32)
    return {"x": x, "count": np.array(3)} if name == "in_a_loop" else {"x": x}


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


@pytest.mark.parametrize("name", FILES)
def test_the_branch_that_runs_takes_the_place(name: str) -> None:
    """Outputs are equal, by their names, and gradients right."""
    given = parse(FILES[name])
    taken = imported(given)
    assert "If" not in ops(taken)
    assert [value.name for value in taken.graph.outputs] == [value.name for value in given.graph.output]
    for expected, found in zip(run(given, feeds(name)), run(taken, feeds(name)), strict=True):
        np.testing.assert_array_equal(found, expected)
    report = check_gradients(given, feeds(name))
    assert report.ok, str(report)


def test_shapes_are_those_of_the_branch_that_runs() -> None:
    model, x = parse(TOLD_BY_THE_OTHER), np.random.default_rng(SEED).standard_normal((3, 5)).astype(np.float32)
    assert imported(model).graph.outputs[0].shape == ir.Shape([3, 5])
    y, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": x, "y_grad": np.ones_like(x)})
    np.testing.assert_allclose(y, np.sin(x) ** 2, rtol=1e-5)
    np.testing.assert_allclose(dx, np.sin(2 * x), rtol=1e-4)


def test_one_size_of_a_shape_is_enough_and_other_sizes_are_not() -> None:
    open_size = SQUEEZED.replace("float[n,1,4]", "float[n,k,4]")
    assert "If" in ops(imported(parse(open_size)))
    first = SQUEEZED.replace("int = 1", "int = 0")
    assert "If" in ops(imported(parse(first)))
    more = SQUEEZED.replace("float[n,1,4]", "float[n,2,4]").replace("float[n,4] y", "float[n,2,4] y")
    assert "Squeeze" not in ops(imported(parse(more)))


def test_results_and_values_of_branches_keep_their_names() -> None:
    """But where two branches use one: the second gets another."""
    taken = imported(parse(NESTED))
    names = [value.name for node in taken.graph for value in node.outputs]
    assert len(names) == len(set(names))
    assert {"y", "kept", "u", "half", "same", "same_again"} <= set(names)


@pytest.mark.parametrize("condition", ["x", "w"], ids=["an input", "a parameter"])
def test_what_an_input_or_a_parameter_decides_stays(condition: str) -> None:
    model = parse(
        """m (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}, float zero = {0.0}> {
        sum = ReduceSum <keepdims: int = 0> (CONDITION)  positive = Greater (sum, zero)  z = Mul (x, w)
        y = If (positive) <then_branch: graph = t () => (a) { a = Exp (z) },
            else_branch: graph = e () => (b) { b = Neg (z) }>
    }""".replace("CONDITION", condition)
    )
    assert "If" in ops(imported(model))


def test_weights_of_a_branch_train_and_go_back_into_the_file(tmp_path: Path) -> None:
    model = parse(WEIGHED)
    session = gradcut.TrainingSession(gradcut.compile(model, "mse:output=y", optimizer=gradcut.SGD(lr=0.1)))
    x = np.random.default_rng(SEED).standard_normal((3, 2)).astype(np.float32)
    batch = {"x": x, "labels": np.ones((3, 2), np.float32)}
    first = session.step(batch).loss
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert tuned.graph.node[-1].op_type == "If"
    loss = float(np.mean((run(tuned, {"x": x})[0] - 1) ** 2))
    assert loss < first
    assert loss == pytest.approx(session.step(batch).loss, rel=1e-6)
