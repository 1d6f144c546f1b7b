"""A model that contradicts itself is refused where it comes in, in a line that says which node and values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import ImportModelError, LossError
from tests.written import parse, session

HEAD = "g (float[2,3] x, float[4,5] z) => (float[a,b] y) <float[3] w = {1, 2, 3}> "
FIX = "correct the model, or the shapes that its inputs declare"
ONE_TYPE = "which the operator takes of one type; put a Cast before it, or correct what the file declares"
CONTRADICTIONS = [
    (
        "h = Mul (x, w)  k = Neg (z)  y = MatMul (h, k)",
        "node 'MatMul_y' (MatMul) cannot take 'h' [2, 3], 'k' [4, 5]: Incompatible dimensions for matrix "
        f"multiplication; {FIX}",
    ),
    (
        "h = Mul (x, w)  y = Add (h, z)",
        f"node 'Add_y' (Add) cannot take 'h' [2, 3], 'z' [4, 5]: Incompatible dimensions; {FIX}",
    ),
    (
        "y = Relu <alpha = 1.0> (x)",
        "the Relu that gives 'y' has an attribute 'alpha', which the operator does not have at opset 21; it has none",
    ),
    (
        "[named] y = Softmax <axes = 1> (x)",
        "node 'named' (Softmax) has an attribute 'axes', which the operator does not have at opset 21; it has axis",
    ),
    ("[n] y = Softmax <axis = 1.0> (x)", "node 'n' (Softmax): its attribute 'axis' is FLOAT, not INT"),
    ("[n] y = Concat (x, x)", "node 'n' (Concat) lacks its attribute axis"),
    ("[n] y = Relu (x, w)", "node 'n' (Relu) has 2 operands; at opset 21 it takes 1"),
    ("[n] y = Clip (x, w, w, w)", "node 'n' (Clip) has 4 operands; at opset 21 it takes 1 to 3"),
    ("[n] y, k = Relu (x)", "node 'n' (Relu) has 2 results; at opset 21 it takes 1"),
    (
        "h = Mul (x, w)  d = Cast <to = 11> (h)  y = Add (h, d)",
        f"node 'Add_y' (Add): 'h' is FLOAT and 'd' is DOUBLE, {ONE_TYPE}",
    ),
]


@pytest.mark.parametrize(("nodes", "message"), CONTRADICTIONS)
def test_a_contradiction_is_refused_by_every_way_in(nodes: str, message: str) -> None:
    proto = parse(f"{HEAD} {{ {nodes} }}")
    with pytest.raises(Exception, match=r"(?i)fail|invalid"):
        session(proto)  # no file that runs is refused
    for ask in (
        lambda: gradcut.compile(proto, loss="mse"),
        lambda: gradcut.vjp(proto, wrt=["x"], of=["y"]),
        lambda: gradcut.analyze(proto, of=["y"], wrt=["x"]),
    ):
        with pytest.raises(ImportModelError) as raised:
            ask()
        assert str(raised.value) == message


def test_an_output_of_another_type_than_its_node_gives() -> None:
    with pytest.raises(ImportModelError, match="'x' is FLOAT and 'y' is DOUBLE"):
        gradcut.vjp(parse("g (float[2] x) => (double[2] y) { y = Relu (x) }"), wrt=["x"], of=["y"])


VALID = {
    "a fixed batch that the file declares inside": """
        g (float[N,3] x, float[4,3] t) => (float[1,3] y) <float[1,3] h> { h = Relu (x)  y = Add (h, t) }""",
    "dimensions of different names": "g (float[N,3] x, float[M,3] t) => (float[K,3] y) { y = Add (x, t) }",
    "an operator of somebody else's": """
        g (float[2,3] x, float[4,5] t) => (float[a,b] y) { h = other.Fold <deep = 3> (x)  k = MatMul (h, t)
        y = Neg (k) }""",
    "an attribute that ONNX leaves to others": """
        g (float[2,3] x, float[2,3] t) => (float[2,3] y) { y = Add <__note__ = 1> (x, t) }""",
    "operands left out": "g (float[2,3] x, float t) => (float[2,3] y) { y = Clip (x, , t) }",
    "a body that only runs where its shapes fit": """
        g (float[2,3] x, bool t) => (float[a,b] y) {
        y = If (t) <then_branch = one () => (float[a,b] p) { p = MatMul (x, x) },
                    else_branch = two () => (float[a,b] q) { q = Neg (x) }> }""",
}


@pytest.mark.parametrize("name", VALID)
def test_what_is_only_loose_is_taken(name: str) -> None:
    model = gradcut.load(parse(VALID[name], also=', "other" : 1'))
    gradcut.analyze(model, of=["y"], wrt=["x"])


def test_attributes_are_those_of_the_files_own_opset() -> None:
    gradcut.vjp(parse("g (float[2,3] x) => (float[2] y) { y = ReduceSum <axes = [1], keepdims = 0> (x) }", opset=11),
                wrt=["x"], of=["y"])  # fmt: skip
    with pytest.raises(ImportModelError, match="'axes', which the operator does not have at opset 13"):
        parsed = parse("g (float[2,3] x) => (float[2] y) { y = ReduceSum <axes = [1], keepdims = 0> (x) }", opset=13)
        gradcut.vjp(parsed, wrt=["x"], of=["y"])


def test_inside_functions_and_branches() -> None:
    function = "own.F (X) => (Y) { Y = Relu <slope = 2.0> (X) }".replace("own.F", "F")
    text = "g (float[2] x) => (float[2] y) { y = own.F (x) }"
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "own": 1]> {text} <domain: "own", opset_import: ["": 21]> {function}'
    )
    with pytest.raises(ImportModelError, match="the Relu that gives 'Y' has an attribute 'slope'"):
        gradcut.vjp(proto, wrt=["x"], of=["y"])


def test_weights_over_the_size_that_onnx_is_given_count_by_their_shape() -> None:
    proto = parse("g (float[2,64] x) => (float[a,b] y) { y = MatMul (x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((128, 64), np.float32), "w"))
    with pytest.raises(ImportModelError, match=r"cannot take 'x' \[2, 64\], 'w' \[128, 64\]: Incompatible dimensions"):
        gradcut.compile(proto, loss="mse")


# --- a loss graph --------------------------------------------------------------------------------------------

MODEL = "g (float[N,4] x) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul (x, w) }"


def test_a_loss_graph_of_another_type() -> None:
    loss = parse("l (double[N,4] y) => (double loss) { loss = ReduceMean <keepdims = 0> (y) }")
    with pytest.raises(LossError) as raised:
        gradcut.compile(parse(MODEL), loss=loss)
    assert str(raised.value) == (
        "the loss graph: its input 'y' is DOUBLE, and the model's output 'y' is FLOAT; write the loss graph for FLOAT, "
        "with a Cast behind that input"
    )


def test_a_loss_graph_of_other_shapes() -> None:
    loss = parse("""l (float[N,3] y) => (float loss) <float[3] v = {1, 2, 3}> {
        d = Sub (y, v)  loss = ReduceMean <keepdims = 0> (d) }""")
    with pytest.raises(ImportModelError, match=r"\(Sub\) cannot take 'y' \[N, 4\], 'v' \[3\]: Incompatible dimensions"):
        gradcut.compile(parse(MODEL), loss=loss)


def test_a_model_of_the_ir_stays_as_it_is_when_it_is_refused() -> None:
    model = ir.from_proto(parse("g (float[2,3] x) => (float[a,b] y) { y = MatMul (x, x) }"))
    before = str(model)
    with pytest.raises(ImportModelError):
        gradcut.vjp(model, wrt=["x"], of=["y"])
    assert str(model) == before


def test_a_constant_may_say_its_value_in_ways_that_came_later() -> None:
    """Onnxruntime runs it at any opset."""
    text = "g (float[2] x) => (float[2] y) { c = Constant <value_float: float = 2.0> ()  y = Mul (x, c) }"
    assert gradcut.vjp(parse(text, opset=9, ir_version=6), ["x"], ["y"])
