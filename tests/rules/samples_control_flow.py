"""Samples of Loop and Scan; If differentiates captured values alone, see `tests.control_flow`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser

from tests.rules.sample import Sample, ints, sample, within

_YES = np.array(True)
_STEP = """step (int64 turn, bool go, float[2, 3] h) => (bool on, float[2, 3] next, float[2, 3] y) {
    on = Identity(go)
    t = Tanh(h)
    next = Mul(t, h)
    y = Sin(next)
}"""
_UNTIL = """until (int64 turn, bool go, float[2, 3] h) => (bool on, float[2, 3] next) {
    two = Constant<value = int64 {2}>()
    on = Less(turn, two)
    s = Sin(h)
    next = Add(s, h)
}"""
_CELL = """cell (float[2] s, float[2] a) => (float[2] next, float[2] y) {
    m = Mul(s, a)
    next = Tanh(m)
    y = Add(next, a)
}"""
_TWO = """two (float[2] s, float[2] r, float[2] a, float[2] b) =>
        (float[2] next, float[2] same, float[2] y, float[2] z) {
    m = Mul(s, a)
    n = Add(m, b)
    next = Tanh(n)
    y = Mul(next, r)
    z = Sin(b)
    same = Identity(r)
}"""


def body(text: str) -> onnx.GraphProto:
    return onnx.parser.parse_graph(text)


def samples() -> Iterator[Sample]:
    state = within(2, 3)
    yield sample("Loop", "counted", ints(3)[0], None, state, outputs=2, body=body(_STEP), dtypes="")
    yield sample(
        "Loop", "runtime_count", ints(2)[0], _YES, state, runtime="M cond", outputs=2, body=body(_STEP), dtypes=""
    )
    yield sample("Loop", "no_turns", ints(0)[0], None, state, outputs=2, body=body(_STEP), dtypes="")
    yield sample(
        "Loop", "never", ints(3)[0], np.array(False), state, runtime="cond", body=body(_STEP), outputs=2, dtypes=""
    )
    yield sample("Loop", "first_output", ints(3)[0], _YES, state, body=body(_UNTIL), dtypes="")
    yield sample("Loop", "ended_by_its_condition", None, _YES, state, body=body(_UNTIL), dtypes="")
    start, rows, columns = within(2), within(4, 2), within(2, 4)
    yield sample("Scan", "rows", start, rows, outputs=2, num_scan_inputs=1, body=body(_CELL), dtypes="")
    yield sample("Scan", "one_turn", start, within(1, 2), outputs=2, num_scan_inputs=1, body=body(_CELL), dtypes="")
    back = {"scan_input_directions": [1], "scan_output_directions": [1]}
    yield sample("Scan", "backwards", start, rows, outputs=2, num_scan_inputs=1, body=body(_CELL), dtypes="", **back)
    across = {"scan_input_axes": [1], "scan_output_axes": [-1], "scan_output_directions": [1]}
    yield sample("Scan", "columns", start, columns, outputs=2, num_scan_inputs=1, body=body(_CELL), dtypes="", **across)
    mixed = {"scan_input_axes": [0, -1], "scan_input_directions": [0, 1], "scan_output_axes": [1, 0]}
    two = (start, within(2), rows, columns)
    yield sample("Scan", "two_of_each", *two, outputs=4, num_scan_inputs=2, body=body(_TWO), dtypes="", **mixed)
