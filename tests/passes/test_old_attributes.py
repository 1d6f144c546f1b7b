"""Settings that were attributes before opset 11, of models that are not of float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import gradcut
from tests.written import parse, session

#: The node, what it gives, and which way each element of x moves it.
BODIES = {
    "clip": ("y = Clip <min = -0.5, max = 0.75> (x)", [-0.5, -0.25, 0, 0.5, 0.75], [0, 1, 1, 1, 0]),
    "clip below": ("y = Clip <max = 0.75> (x)", [-1, -0.25, 0, 0.5, 0.75], [1, 1, 1, 1, 0]),
    "pad": ("y = Pad <pads = [1, 2], value = 2.5> (x)", [2.5, -1, -0.25, 0, 0.5, 1, 2.5, 2.5], [1] * 5),
    "pad with zeros": ("y = Pad <pads = [1, 2]> (x)", [0, -1, -0.25, 0, 0.5, 1, 0, 0], [1] * 5),
    "inner": ("h = Neg (x) y = Clip <min = -0.5> (h)", [1, 0.25, 0, -0.5, -0.5], [-1, -1, -1, -1, 0]),
}


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("kind", ["double", "float16", "float"])
@pytest.mark.parametrize("name", BODIES)
def test_are_operands_of_the_type_of_the_data(name: str, kind: str, opset: int) -> None:
    body, expected, slopes = BODIES[name]
    model = parse(f"g ({kind}[5] x) => ({kind}[{len(expected)}] y) {{ {body} }}", opset, 8)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.array([-1.0, -0.25, 0.0, 0.5, 1.0], dtype)
    y, dX = session(gradcut.vjp(model, ["x"], ["y"])).run(None, {"x": x, "y_grad": np.ones(len(expected), dtype)})
    np.testing.assert_array_equal(y, np.array(expected, dtype))
    np.testing.assert_array_equal(dX, np.array(slopes, dtype))
