"""`differentiate`, `simplify` and `lower`, before and after as text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

import gradcut
from gradcut.passes import Differentiate, Import, Lower, Propagate, Simplify, verify
from tests.written import lines, parse


def derived(text: str, of: str, wrt: str, *passes: gradcut.passes.Pass, **options: object) -> list[str]:
    """The nodes that `differentiate` and what follows add."""
    model = ir.from_proto(parse(text))
    Import()(model)
    forward = set(lines(model))
    for one in (Propagate(of=tuple(of.split()), wrt=tuple(wrt.split())), Differentiate(**options), *passes):
        one(model)
        verify(model, str(one))
    return [line for line in lines(model) if line not in forward]


LINEAR = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w)  y = Relu (h) }"


# --- differentiate -------------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_built() -> None:
    assert derived(LINEAR, "y", "x", Simplify()) == [
        "h_grad = gradcut.ReluGrad (y_grad, y)",
        "x_grad = Gemm <transB: int = 1> (h_grad, w)",
    ]
    assert derived(LINEAR, "y", "w", Simplify()) == [
        "h_grad = gradcut.ReluGrad (y_grad, y)",
        "w_grad = Gemm <transA: int = 1> (x, h_grad)",
    ]
    assert derived(LINEAR, "y", "h", Simplify()) == ["h_grad = gradcut.ReluGrad (y_grad, y)"]


def test_nothing_is_built_behind_a_mark() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Exp (x)  h = gradcut.StopGradient (a)  y = Mul (h, x) }"
    assert derived(text, "y", "x") == ["x_grad = Mul (y_grad, h)"]


def test_several_uses_add_up_as_a_balanced_tree() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Sum (x, x, x, x) }"
    (last, *others) = reversed(derived(text, "y", "x"))
    assert last.startswith("x_grad = Add (") and len(others) == 2


def test_broadcasting_is_undone() -> None:
    text = """g (float[3,2] x) => (float[3,2] y) <float[2] b = {1, 2}, float[3,1] c = {1, 2, 3}> {
        h = Add (x, b)  y = Add (h, c) }"""
    found = derived(text, "y", "b c", Simplify())
    assert [line.partition(" = ")[2].split(" (")[0] for line in found if "Reduce" in line] == [
        "ReduceSum <keepdims: int = 1>",
        "ReduceSum <keepdims: int = 0>",
    ]


def test_a_seed_of_one_for_a_loss() -> None:
    text = "g (float[2] x) => (float y) { h = Mul (x, x)  y = ReduceSum <keepdims = 0> (h) }"
    model = ir.from_proto(parse(text))
    Import()(model)
    gradcut.Pipeline.parse("propagate{of=y wrt=x},differentiate{seed=one},simplify,lower")(model)
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_what_nothing_reaches_may_be_left_out() -> None:
    text = "g (float[2] x, float[2] z) => (float[2] y) { y = Relu (x) }"
    assert derived(text, "y", "x z", unreached="drop") == ["x_grad = gradcut.ReluGrad (y_grad, y)"]


def test_other_outputs_may_stay() -> None:
    model = ir.from_proto(parse("g (float[2] x) => (float[2] a, float[2] y) { a = Neg (x)  y = Relu (a) }"))
    Import()(model)
    gradcut.Pipeline.parse("propagate{of=y wrt=x},differentiate{keep=true}")(model)
    assert [value.name for value in model.graph.outputs] == ["y", "a", "x_grad"]


def test_differentiating_without_a_question() -> None:
    model = ir.from_proto(parse(LINEAR))
    with pytest.raises(gradcut.errors.PipelineError, match="differentiate needs the question that propagate"):
        Differentiate()(model)


def test_each_backward_node_says_what_it_serves() -> None:
    model = ir.from_proto(parse(LINEAR))
    Import()(model)
    gradcut.Pipeline.parse("propagate{of=y wrt=[x,w]},differentiate,simplify")(model)
    served = {node.outputs[0].name: node.metadata_props.get("gradcut.adjoint") for node in model.graph}
    assert served["h_grad"] == "Relu_y:X"
    assert (served["x_grad"], served["w_grad"]) == ("MatMul_h:A", "MatMul_h:B")


# --- simplify ------------------------------------------------------------------------------------------------


def simplified(text: str) -> list[str]:
    model = ir.from_proto(parse(text))
    Import()(model)
    Simplify()(model)
    verify(model, "simplify")
    return lines(model)


ONE = "one = Constant <value_float = 1.0> ()  zero = Constant <value_float = 0.0> ()"


@pytest.mark.parametrize("node", ["Mul (a, one)", "Mul (one, a)", "Div (a, one)", "Add (a, zero)", "Sub (a, zero)"])
def test_ones_and_zeros_go(node: str) -> None:
    text = f"g (float[2] x) => (float[2] y) {{ {ONE}  a = Neg (x)  h = {node}  y = Exp (h) }}"
    assert simplified(text) == ["a = Neg (x)", "y = Exp (a)"]


@pytest.mark.parametrize("node", ["Div (one, a)", "Sub (zero, a)", "Mul (a, zero)", "Add (a, one)", "Pow (a, one)"])
def test_other_numbers_stay(node: str) -> None:
    text = f"g (float[2] x) => (float[2] y) {{ {ONE}  a = Neg (x)  h = {node}  y = Exp (h) }}"
    assert any(line.startswith("h = ") for line in simplified(text))


def test_a_weight_that_happens_to_be_one_stays() -> None:
    """It may be trained: it is one only now."""
    text = """g (float[2] x) => (float[2] y) <float[1] w = {1}, float b = {0}> {
        a = Neg (x)  h = Mul (a, w)  k = Add (h, b)  y = Exp (k) }"""
    assert "h = Mul (a, w)" in simplified(text) and "k = Add (h, b)" in simplified(text)


def test_a_one_that_broadcasts_stays() -> None:
    text = """g (float[2] x) => (float[1,3,2] y) <float[3,2] w = {1,2,3,4,5,6}> {
        c = Constant <value = float[1,1,1] {1.0}> ()  a = Mul (x, c)  y = Mul (a, w) }"""
    assert "a = Mul (x, c)" in simplified(text)


def test_an_output_keeps_its_name() -> None:
    text = f"g (float[2] x) => (float[2] y) {{ {ONE}  y = Mul (x, one) }}"
    assert simplified(text)[-1] == "y = Mul (x, one)"


def test_transposes_of_transposes_go() -> None:
    text = """g (float[2,3,4] x) => (float[2,3,4] y) {
        a = Transpose <perm = [2, 0, 1]> (x)  b = Transpose <perm = [%s]> (a)  y = Exp (b) }"""
    assert simplified(text % "1, 2, 0") == ["y = Exp (x)"]
    other = text.replace("float[2,3,4] y", "float[3,4,2] y") % "2, 1, 0"
    assert len(simplified(other)) == 3


def test_a_transposed_product_swaps_its_operands() -> None:
    text = """g (float[2,3] a, float[3,4] b) => (float[4,2] y) {
        p = Gemm <alpha = 2.0> (a, b)  y = Transpose <perm = [1, 0]> (p) }"""
    assert simplified(text) == ["y = Gemm <transA: int = 1, transB: int = 1, alpha: float = 2> (b, a)"]
    read_twice = text.replace("=> (", "=> (float[2,4] q, ").replace("y = Tr", "q = Neg (p)  y = Tr")
    assert any("Transpose" in line for line in simplified(read_twice))


def test_equal_computations_are_one() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Exp (x)  b = Exp (x)  c = Neg (a)  d = Neg (b)  y = Mul (c, d) }"
    assert simplified(text) == ["a = Exp (x)", "c = Neg (a)", "y = Mul (c, c)"]


@pytest.mark.parametrize(
    "op", ["gradcut.StopGradient (x)", "RandomNormalLike (x)", "Bernoulli (x)", "Dropout (x, r, t)"]
)
def test_marks_and_draws_stay_apart(op: str) -> None:
    text = f"""g (float[2] x) => (float[2] y) <float r = {{0.5}}, bool t = {{1}}> {{
        a = {op}  b = {op}  y = Sub (a, b) }}"""
    assert len(simplified(text)) == 3


def test_what_a_foreign_operator_does_is_not_known() -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] a, float[2] b> { a = c.Draw (x)  b = c.Draw (x)  y = Sub (a, b) }"
    model = ir.from_proto(parse(text, also=', "c" : 1'))
    Import()(model)
    Simplify()(model)
    assert len(model.graph) == 3


def test_equal_nodes_of_which_only_one_gives_an_output() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <float[4] s = {1, 1, 1, 1}> {
        a, , b = LayerNormalization (x, s)  c, m, d = LayerNormalization (x, s)
        e = Mul (a, b)  f = Sub (d, m)  y = Add (e, f) }"""
    assert simplified(text) == [
        "a, m, b = LayerNormalization (x, s)",
        "e = Mul (a, b)",
        "f = Sub (b, m)",
        "y = Add (e, f)",
    ]


def test_dead_code_goes_with_what_only_its_branches_read() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) { h = Exp (x)
        d = If (c) <then_branch = a () => (float[2] p) { p = Relu (h) }, else_branch = b () => (float[2] q) {
        q = Neg (h) }>
        y = Relu (x) }"""
    assert simplified(text) == ["y = Relu (x)"]


# --- lower ---------------------------------------------------------------------------------------------------


def test_lowering_leaves_plain_onnx_and_marks() -> None:
    text = LINEAR.replace("y = Relu (h)", "m = gradcut.StopGradient (x)  k = Relu (h)  y = Mul (k, m)")
    found = derived(text, "y", "x w", Simplify(), Lower())
    assert not any("gradcut." in line for line in found)
    assert any(line.startswith("h_grad = Where (") for line in found)


def test_an_unknown_target() -> None:
    with pytest.raises(gradcut.errors.PipelineError, match="lower has no target 'tvm'; it has onnx, ort-training"):
        derived(LINEAR, "y", "x", Lower(target="tvm"))


# --- the same bytes ------------------------------------------------------------------------------------------

SCRIPT = """
import sys, onnx_ir as ir, gradcut
from tests.graphs import generate
from gradcut.passes import Import
for seed in (5, 17, 23, 42):
    case = generate(seed)
    model = ir.from_proto(case.model)
    passes = [f"stop-gradient{{at=[{','.join(map(repr, case.stop_at))}]}}"] if case.stop_at else []
    text = ",".join(["import", *passes, f"propagate{{of=[{','.join(case.of)}] wrt=[{','.join(case.wrt)}]}}"])
    gradcut.Pipeline.parse(text)(model)
    ir.save(model, f"{sys.argv[1]}/{seed}.onnx")
model = ir.from_onnx_text(sys.stdin.read())
gradcut.freeze(model, ["w*"])
open(f"{sys.argv[1]}/vjp.onnx", "wb").write(
    gradcut.vjp(model, wrt=["x", "w1", "w2"], of=["y"], stop_at=["*->n2", "n3*"]).SerializeToString())
ir.save(model, f"{sys.argv[1]}/frozen.onnx")
"""
TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y) <float[2,2] w1 = {1,2,3,4}, float[2,2] w2 = {1,2,3,4},
float[2] w3 = {1,2}> {
    [n1] a = MatMul (x, w1)  [n2] b = MatMul (a, w2)  [n3] n3b = Add (b, w3)  [n4] c = Softmax (n3b)
    [n5] y = Add (c, a) }"""


def test_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    """In two processes whose sets and dicts of strings are ordered otherwise."""
    folders = []
    for hash_seed in ("1", "4711"):
        folder = tmp_path / hash_seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], input=TEXT, text=True, check=True, env=environment)
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(folders[0]) == 6
    assert folders[0] == folders[1]
