"""Products with weights of few bits, of ONNX Runtime's own domain."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcut.runtime.evaluators.contrib import Contrib
from gradcut.runtime.widen import Array


class MatMulNBits(Contrib):
    def _run(
        self,
        A: Array,
        B: Array,
        scales: Array,
        zero_points: Array | None = None,
        g_idx: Array | None = None,
        bias: Array | None = None,
        **_: Any,
    ) -> tuple[Array]:
        N, K, size = (self.attr(name, 0) for name in ("N", "K", "block_size"))
        scales = scales.reshape(N, -1)
        numbers = self._unpacked(B).reshape(N, scales.shape[1], size)
        offset = np.full_like(scales, 2.0 ** (self.attr("bits", 4) - 1))
        if zero_points is not None and zero_points.dtype == np.uint8:
            offset = self._unpacked(zero_points.reshape(N, -1))[:, : scales.shape[1]]
        elif zero_points is not None:
            offset = zero_points.reshape(N, -1)
        W = ((numbers - offset[:, :, None]) * scales[:, :, None]).reshape(N, -1)[:, :K]
        return (np.asarray(A @ W.T + (0.0 if bias is None else bias)).astype(A.dtype),)

    def _unpacked(self, stored: Array) -> Array:
        """The integers of each row, [N, ...], those of the lowest bits of a byte first."""
        bits = self.attr("bits", 4)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        apart = stored.reshape(len(stored), -1, 1) >> shifts & np.uint8(2**bits - 1)
        return np.asarray(apart.reshape(len(stored), -1).astype(np.int64))
