"""Declared state: updates that do not run leave a session as it was; declarations that mean nothing are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import gradcut
from gradcut.errors import FeedError, SpecError
from tests.exported import text

ROWS = 4
RNG = np.random.default_rng(5)

RING = """agraph (float[4,2] queue, int64[1] pointer, float[n,2] z) => (float[4,2] queue_next, int64[1] pointer_next) {
    zero = Constant<value_ints=[0]>()
    one = Constant<value_ints=[1]>()
    sizes = Shape(z)
    count = Slice(sizes, zero, one)
    start = Constant<value_int=0>()
    step = Constant<value_int=1>()
    end = Squeeze(count, zero)
    rows = Range(start, end, step)
    places = Add(rows, pointer)
    where = Unsqueeze(places, one)
    queue_next = ScatterND(queue, where, z)
    pointer_next = Add(pointer, count)
}"""


def model() -> onnx.ModelProto:
    graph = """<ir_version: 10, opset_import: ["" : 21]> agraph (float[n,3] x) => (float[n,2] z, float loss) {
        z = MatMul(x, w)
        turned = Transpose<perm=[1,0]>(queue)
        scores = MatMul(z, turned)
        square = Mul(scores, scores)
        loss = ReduceMean<keepdims=0>(square)
    }"""
    proto = onnx.parser.parse_model(graph)
    weights = {"w": RNG.standard_normal((3, 2)), "queue": RNG.standard_normal((ROWS, 2)), "w2": RNG.random((2, 3))}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "pointer"))
    return proto


@pytest.mark.parametrize("backend", ["host", "graph"])
def test_an_update_that_does_not_run_leaves_everything_as_it_was(backend: str) -> None:
    """A ring whose pointer never turns back: the third batch of two has no place in four rows."""
    state = gradcut.State(["queue", "pointer"], text(RING))
    compiled = gradcut.compile(model(), optimizer="adam:lr=0.1", state=state)
    session = gradcut.TrainingSession(compiled, optimizer_backend=backend)
    held: dict[str, np.ndarray[Any, Any]] = {}
    feeds = {"x": RNG.standard_normal((2, 3)).astype(np.float32)}
    for _ in range(2):
        session.step(feeds)
        held = {name: slot.numpy() for name, slot in session._slots.items()}
    assert held["pointer"] == ROWS and session.steps == 2
    with pytest.raises(FeedError, match=r"the update of declared state \(queue, pointer\) does not run"):
        session.step(feeds)
    assert session.steps == 2
    assert len(held) > 4
    for name, slot in session._slots.items():
        assert slot.numpy().tobytes() == held[name].tobytes(), name


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: gradcut.EMA({"queue": "w"}),
            r"'queue' is \[4,2\], and cannot be the average of 'w', which",
        ),
        (lambda: gradcut.EMA({"w": "w"}), "'w' cannot be the average of itself"),
        (lambda: gradcut.EMA({"w2": "w"}, decay="0.9"), "decay must be from 0 to 1"),  # type: ignore[arg-type]
        (lambda: gradcut.State(3, text(RING)), "a state's name is that of a tensor"),  # type: ignore[arg-type]
        (lambda: gradcut.State([], text(RING)), "a state's name is that of a tensor"),
        (lambda: gradcut.State(["queue", 1], text(RING)), "a state's name is that of a tensor"),  # type: ignore[list-item]
    ],
)
def test_what_means_nothing_is_said(state: Callable[[], gradcut.State], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        gradcut.compile(model(), state=[state()])
