"""Attention against torch's scaled_dot_product_attention."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import gradcut
from tests.written import session

SEED = 5
CASES = {
    "plain": ((2, 2), None, {}),
    "grouped": ((4, 2), None, {}),
    "causal": ((2, 2), None, {"is_causal": 1}),
    "scale": ((2, 2), None, {"scale": 0.2}),
    "mask": ((2, 2), (2, 1, 5, 5), {}),
    "bool": ((4, 2), "bool", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_torchs(name: str) -> None:
    (heads, groups), mask, attributes = CASES[name]
    rng = np.random.default_rng(SEED)
    shapes = [(2, heads, 5, 4), (2, groups, 5, 4), (2, groups, 5, 3)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    names = ["q", "k", "v"]
    if mask == "bool":
        arrays.append(np.tri(5, dtype=bool) & (np.arange(5) != 3)[:, None])  # a query that sees nothing
    elif mask is not None:
        arrays.append(rng.standard_normal(mask).astype(np.float32))
    names += ["m"] * (mask is not None)
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, heads, 5, 3))
    graph = helper.make_graph([helper.make_node("Attention", names, ["y"], **attributes)], "g", ports, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    wanted = [n for n, a in zip(names, arrays, strict=True) if a.dtype.kind == "f"]
    dY = rng.standard_normal((2, heads, 5, 3)).astype(np.float32)
    feeds = dict(zip(names, arrays, strict=True))
    y, *found = session(gradcut.vjp(model, wanted, ["y"])).run(None, {**feeds, "y_grad": dY})

    tensors = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors[:3],
        attn_mask=tensors[3] if mask is not None else None,
        is_causal=bool(attributes.get("is_causal")),
        scale=attributes.get("scale"),
        enable_gqa=True,
    )
    expected.backward(torch.tensor(dY))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found, [t.grad for t in tensors if t.requires_grad], strict=True):
        assert theirs is not None
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-6)
