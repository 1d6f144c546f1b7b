"""Attentions that ONNX Runtime's kernel does not take: outputs are onnx's own, gradients those of differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import gradcut
from gradcut.passes import Import
from gradcut.rules import REGISTRY
from gradcut.runtime.check import check_gradients, require
from tests.written import session

SEED = 11
Array = np.ndarray[Any, Any]
OPERANDS = ("Q", "K", "V", "attn_mask", "past_key", "past_value")


def normal(*shape: int) -> Array:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


PLAIN = {"Q": normal(2, 4, 3, 8), "K": normal(2, 4, 5, 8), "V": normal(2, 4, 5, 6)}
PAST = {"past_key": normal(2, 4, 2, 8), "past_value": normal(2, 4, 2, 6)}
BEYOND: dict[str, tuple[int, dict[str, Array], dict[str, int]]] = {
    "window": (25, PLAIN, {"left_window_size": 1, "right_window_size": 1}),
    "left_window": (25, PLAIN, {"left_window_size": 0}),
    "right_window_of_a_past": (25, {**PLAIN, **PAST}, {"right_window_size": 2}),
    "causal_window": (26, PLAIN, {"left_window_size": 1, "is_causal": 1}),
    "mask_of_keys": (23, {**PLAIN, "attn_mask": normal(5)}, {}),
    "one_row_for_all_queries": (23, {**PLAIN, "attn_mask": normal(1, 5)}, {}),
    "fewer_keys": (24, {**PLAIN, "attn_mask": normal(3, 4)}, {}),
    "mask_of_booleans": (23, {**PLAIN, "attn_mask": normal(2, 1, 1, 5) > -1}, {}),
}


def model(opset: int, feeds: dict[str, Array], attributes: dict[str, int]) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    names = [name if name in feeds else "" for name in OPERANDS]
    outputs = ["Y", "present_key", "present_value"] if "past_key" in feeds else ["Y"]
    node = helper.make_node("Attention", names, outputs, "attend", **attributes)
    typed = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "g", ports, typed)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def imported(proto: onnx.ModelProto) -> onnx.ModelProto:
    work = ir.from_proto(proto)
    Import()(work)
    return ir.to_proto(work)


def has_attention(proto: onnx.ModelProto) -> bool:
    return any(node.op_type == "Attention" for node in proto.graph.node)


@pytest.mark.parametrize("name", BEYOND)
def test_it_is_written_out_and_gives_what_onnx_says(name: str) -> None:
    opset, feeds, attributes = BEYOND[name]
    proto = model(opset, feeds, attributes)
    out = imported(proto)
    assert not has_attention(out)
    assert [value.name for value in out.graph.output] == [value.name for value in proto.graph.output]
    for found, expected in zip(session(out).run(None, feeds), ReferenceEvaluator(proto).run(None, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BEYOND)
def test_gradients(name: str) -> None:
    opset, feeds, attributes = BEYOND[name]
    require(check_gradients(model(opset, feeds, attributes), feeds, seed=SEED))


def test_a_window_gradient_by_hand() -> None:
    """With left_window_size=0 and is_causal, each query sees its own key alone: Y = V, dV = dY, dQ = dK = 0."""
    Q, V = normal(1, 2, 3, 4), normal(1, 2, 3, 5)
    feeds = {"Q": Q, "K": normal(1, 2, 3, 4) / math.sqrt(2), "V": V}
    proto = gradcut.vjp(model(25, feeds, {"left_window_size": 0, "is_causal": 1}), ["Q", "K", "V"], ["Y"])
    dY = normal(1, 2, 3, 5) + 1
    Y, dQ, dK, dV = session(proto).run(None, {**feeds, "Y_grad": dY})
    np.testing.assert_allclose(Y, V, rtol=1e-6)
    np.testing.assert_allclose(dV, dY, rtol=1e-6)
    assert not dQ.any() and not dK.any()


def test_what_the_kernel_takes_stays() -> None:
    assert has_attention(imported(model(23, {**PLAIN, "attn_mask": normal(3, 5)}, {"is_causal": 1})))


def test_a_rule_of_the_user_s_own_is_for_the_node_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    (rule,) = [rule for rule in REGISTRY if (rule.domain, rule.op_type) == ("", "Attention")]
    monkeypatch.setitem(REGISTRY._rules, ("", "Attention"), [replace(rule, foreign=True)])
    opset, feeds, attributes = BEYOND["window"]
    assert has_attention(imported(model(opset, feeds, attributes)))
