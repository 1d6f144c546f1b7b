"""Settings that were attributes before opset 11, of models that are not of float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import gradcut
from tests.written import parse, session

BODIES = {
    "clip": "y = Clip <min = -0.5, max = 0.75> (x)",
    "clip below": "y = Clip <max = 0.75> (x)",
    "pad": "y = Pad <pads = [1, 2], value = 2.5> (x)",
    "pad with zeros": "y = Pad <pads = [1, 2]> (x)",
    "of an inner value": "h = Neg (x) y = Clip <min = -0.5> (h)",
}


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("kind", ["double", "float16", "float"])
@pytest.mark.parametrize("name", BODIES)
def test_are_operands_of_the_type_of_the_data(name: str, kind: str, opset: int) -> None:
    size = 8 if "pad" in name else 5
    model = parse(f"g ({kind}[5] x) => ({kind}[{size}] y) {{ {BODIES[name]} }}", opset, 8)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.array([-1.0, -0.25, 0.0, 0.5, 1.0], dtype)
    (before,) = session(model).run(None, {"x": x})
    y, dX = session(gradcut.vjp(model, ["x"], ["y"])).run(None, {"x": x, "y_grad": np.ones(size, dtype)})
    np.testing.assert_array_equal(y, before)
    inside = {"clip": x.clip(-0.5, 0.75) == x, "clip below": x <= 0.75, "of an inner value": -1 * (x <= 0.5)}
    np.testing.assert_array_equal(dX, inside.get(name, np.ones(5)).astype(dtype))
