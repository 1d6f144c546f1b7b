"""onnxruntime 1.31 dies of MatMul(Transpose<perm = [1, 0, 2]>(X), W) in float16 with W constant: none is emitted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import gradcut
from tests.written import session

W = (np.arange(20).reshape(5, 4) / 8 - 1).astype(np.float16)
BODIES = {
    "behind": "a = MatMul (x, w)  y = Transpose <perm = [1, 0, 2]> (a)",
    "before": "a = Transpose <perm = [1, 0, 2]> (x)  y = MatMul (a, w)",
    "cast": "a = Transpose <perm = [1, 0, 2]> (x)  b = Cast <to = 1> (a)  c = MatMul (b, v)  y = Cast <to = 10> (c)",
}


def is_deadly(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    by_output = {output: one for one in graph.node for output in one.output}
    before = by_output.get(node.input[0])
    while before is not None and before.op_type == "Cast":
        before = by_output.get(before.input[0])
    return before is not None and before.op_type == "Transpose"


@pytest.mark.parametrize("size", ["2, 3", "t, n"])
@pytest.mark.parametrize("body", BODIES)
def test_no_such_product_is_emitted(body: str, size: str) -> None:
    turned = ", ".join(reversed(size.split(", ")))
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float16[{size}, 5] x) => (float16[{turned}, 4] y)'
        f" {{ {BODIES[body]} }}"
    )
    model.graph.initializer.extend(numpy_helper.from_array(W.astype(t), n) for n, t in (("w", "f2"), ("v", "f4")))
    emitted = gradcut.vjp(model, ["x"], ["y"])
    assert not any(is_deadly(emitted.graph, node) for node in emitted.graph.node if node.op_type == "MatMul")
    rng = np.random.default_rng(1)
    x, u = rng.standard_normal((2, 3, 5)).astype(np.float16), rng.standard_normal((3, 2, 4)).astype(np.float16)
    y, gradient = session(emitted).run(None, {"x": x, "y_grad": u})
    np.testing.assert_allclose(y, np.swapaxes(x.astype(float) @ W.astype(float), 0, 1), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(gradient, np.swapaxes(u.astype(float), 0, 1) @ W.astype(float).T, rtol=1e-2, atol=1e-2)
