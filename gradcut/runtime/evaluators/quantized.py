"""Quantisation for onnx's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]


class DynamicQuantizeLinear(OpRun):
    """Onnx's rounds to float32, and has another scale than ONNX Runtime where all is 0."""

    def _run(self, x: Array) -> tuple[Array, Array, Array]:
        high, low = np.max(x, initial=0), np.min(x, initial=0)
        scale = (high - low) / 255 if high > low else x.dtype.type(1)
        zero = np.rint(np.clip(-low / scale, 0, 255))
        y = np.clip(np.rint(x / scale) + zero, 0, 255)
        return y.astype(np.uint8), np.asarray(scale, x.dtype), np.asarray(zero, np.uint8)


QUANTIZED: list[type[OpRun]] = [DynamicQuantizeLinear]
