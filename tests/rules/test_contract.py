"""What a user's rule does wrong is said by node, before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx.parser
import pytest
from onnx import helper

import gradcut
from gradcut.errors import NoGradientError
from gradcut.rules import REGISTRY, Adjoint


def model(rank: int = 2) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, 1, ["n", 4][-rank:]) for name in "xwy"]
    node = helper.make_node("Own", ["x", "w"], ["y"], "n", domain="contract")
    graph = helper.make_graph([node], "g", ends[:2], ends[2:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("contract", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def own() -> Iterator[Callable[..., None]]:
    """Registers a rule for contract.Own, until the test is over."""
    yield lambda rule, operands="X W": gradcut.register_rule("Own", "contract", operands=operands)(rule)
    REGISTRY._rules.pop(("contract", "Own"), None)


def row(op: Adjoint) -> Any:
    return op.b.ReduceSum(op.dY, op.b.ints([0]), keepdims=0)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda op: iter([("Z", op.dY)]), "its rule asks for 'Z'; the operands are X, W"),
        (lambda op: iter([("X", op["Z"])]), "its rule asks for 'Z'; the operands are X, W"),
        (lambda op: iter([("X", None)]), "its rule yields ('X', None); it yields (operand, cotangent), where op.b"),
        (lambda op: iter([op.dY]), "it yields (operand, cotangent), where op.b builds the cotangent"),
        (lambda op: None, "its rule is no generator; it yields (operand, cotangent)"),
        (lambda op: iter([("X", op.dY), ("X", op.dY)]), "its rule yields X twice; add the two up"),
        (lambda op: iter([("X", op.dY), ("W", op.dY)]), "its rule yields W, which is not wanted; ask op.wants before"),
        (lambda op: iter([]), "its rule gives none for X"),
        (lambda op: iter([("X", row(op))]), "gives X, which is FLOAT[n, 4], a cotangent that is FLOAT[4]; op.b.sum_to"),
        (lambda op: iter([("X", op.b.ReduceSum(op.dY))]), "a cotangent that is FLOAT[1, 1]; op.b.sum_to"),
        (lambda op: iter([("X", op.b.Shape(op.dY))]), "a cotangent that is INT64"),
    ],
)
def test_a_rule_that_breaks_its_contract(rule: Any, said: str, own: Callable[..., None]) -> None:
    own(rule)
    with pytest.raises(NoGradientError) as caught:
        gradcut.vjp(model(), ["x"], ["y"])
    assert str(caught.value).startswith("node 'n' (Own, opset 21) has no gradient here: ")
    assert said in str(caught.value)


def test_operands_without_names_go_by_their_numbers(own: Callable[..., None]) -> None:
    def by_number(op: Adjoint) -> Any:
        yield "0", op.dY * op["1"]
        yield 1, op.dY * op["0"]

    own(by_number, "")
    assert [output.name for output in gradcut.vjp(model(), ["x", "w"], ["y"]).graph.output] == ["y", "x_grad", "w_grad"]


def test_rules_of_ours_do_not_trip_over_a_file_that_lies_about_a_shape() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y) <float[5,7] h> {
        h = Neg (x)  y = Relu (h) }"""
    assert gradcut.vjp(onnx.parser.parse_model(text), ["x"], ["y"])
