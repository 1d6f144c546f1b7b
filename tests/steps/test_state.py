"""Declared state: averages of parameters, a queue of embeddings, a centre, a counter; each against numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import gradcut
from gradcut.errors import FeedError, PatternError, SpecError
from tests.exported import text

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 2)).astype(np.float32)
QUEUE = RNG.standard_normal((6, 2)).astype(np.float32)


GRAPH = """agraph (float[n,3] x{inputs}) => (float[n,2] z, float loss) {{
    z = MatMul(x, "online.w")
    keys = MatMul(x, "target.w")
    d = Sub(z, keys)
    square = Mul(d, d)
    pull = ReduceMean<keepdims=0>(square)
    turned = Transpose<perm=[1,0]>(queue)
    scores = MatMul(z, turned)
    push = ReduceMean<keepdims=0>(scores)
    loss = Add(pull, push)
}}"""


def model(queue_fed: bool = False) -> onnx.ModelProto:
    """An online and a target branch of one weight each, pulled together, and pushed off a queue of keys."""
    weights = {"online.w": W, "target.w": W + 1} | ({} if queue_fed else {"queue": QUEUE})
    source = GRAPH.format(inputs=", float[6,2] queue" if queue_fed else "")
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{source}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(proto)
    return proto


ENQUEUE = """agraph (float[6,2] queue, float[n,2] keys) => (float[6,2] queue_next) {
    both = Concat<axis=0>(keys, queue)
    zero = Constant<value_ints=[0]>()
    six = Constant<value_ints=[6]>()
    queue_next = Slice(both, zero, six)
}"""


def average(**options: object) -> gradcut.EMA:
    return gradcut.EMA({"target.w": "online.w"}, **{"decay": 0.9, **options})  # type: ignore[arg-type]


def queue(**options: object) -> gradcut.State:
    return gradcut.State("queue", text(ENQUEUE), **options)  # type: ignore[arg-type]


def artifacts(proto: onnx.ModelProto | None = None, **options: object) -> gradcut.TrainingArtifacts:
    asked = {"optimizer": gradcut.SGD(lr=0.1), "state": [average(), queue()], **options}
    return gradcut.compile(proto or model(), **asked)  # type: ignore[arg-type]


def feeds(step: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(step).standard_normal((2, 3)).astype(np.float32)}


def in_numpy(steps: int, decay: object = 0.9) -> dict[str, np.ndarray]:
    """The same training written out in float64; the average takes the parameter after its update."""
    w, target, kept = W.astype(np.float64), W.astype(np.float64) + 1, QUEUE.astype(np.float64)
    for step in range(steps):
        x = feeds(step)["x"].astype(np.float64)
        keys = x @ target
        d = x @ w - keys
        w = w - 0.1 * (x.T @ (2 * d / d.size) + x.T @ np.tile(kept.sum(0) / (len(x) * len(kept)), (len(x), 1)))
        rate = decay(step) if callable(decay) else decay
        target = rate * target + (1 - rate) * w
        kept = np.concatenate([keys, kept])[:6]
    return {"online.w": w, "target.w": target, "queue": kept}


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", ["host", "graph"])
def test_averages_and_queues_follow_their_formula(backend: str) -> None:
    session = gradcut.TrainingSession(artifacts(), optimizer_backend=backend)
    for step in range(5):
        session.step(feeds(step))
    close(session.parameters() | session.state(), in_numpy(5))
    assert session.state().keys() == {"target.w", "queue"}


def test_a_queue_may_be_an_input_of_the_model(tmp_path: Path) -> None:
    compiled = artifacts(model(queue_fed=True), state=[average(), queue(initial=QUEUE.astype(np.float64))])
    session = gradcut.TrainingSession(compiled)
    for step in range(3):
        session.step(feeds(step))
    close(session.parameters() | session.state(), in_numpy(3))
    session.export(tmp_path / "tuned.onnx")  # which takes it as before
    names = [one.name for one in ort.InferenceSession(tmp_path / "tuned.onnx").get_inputs()]
    assert names == ["x", "queue"]


def test_the_decay_of_an_average_rises_along_a_cosine() -> None:
    session = gradcut.TrainingSession(artifacts(state=[average(decay=0.5, until=4), queue()]))
    for step in range(6):
        session.step(feeds(step))
    rate = lambda step: 1 - 0.5 * (math.cos(math.pi * min(step, 4) / 4) + 1) / 2
    close(session.parameters() | session.state(), in_numpy(6, rate))


def test_what_is_declared_never_trains_and_has_no_backward() -> None:
    compiled = artifacts()
    assert compiled.trainable == ("online.w",)
    status = {one["name"]: one["status"] for one in compiled.manifest["parameters"]}
    assert status == {"online.w": "trained", "target.w": "state", "queue": "state"}
    served = {node.metadata_props.get("gradcut.adjoint", "") for node in compiled.training_model.graph}
    assert not any("target.w" in one or one.startswith("keys") for one in served)
    roles = {port["name"]: port["role"] for port in compiled.manifest["graphs"]["training_model"]["outputs"]}
    assert roles["keys"] == "captured"
    result = gradcut.TrainingSession(compiled).step(feeds(0))
    assert result.outputs.keys() == {"z"}


def test_evaluation_reads_it_and_leaves_it() -> None:
    session = gradcut.TrainingSession(artifacts())
    before = session.evaluate(feeds(9)).loss
    for step in range(3):
        session.step(feeds(step))
    held = session.state()
    assert session.evaluate(feeds(9)).loss != before
    assert all(array.tobytes() == held[name].tobytes() for name, array in session.state().items())


def test_the_step_model_moves_it_too(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    runner = ort.InferenceSession(tmp_path / "a" / "step_model.onnx")
    session = gradcut.TrainingSession(tmp_path / "a")
    state = {name: slot.numpy() for name, slot in session._slots.items()}
    state["step"], wanted = np.asarray(0), [one.name for one in runner.get_outputs()]
    assert "keys" not in wanted
    for step in range(3):
        given = state | feeds(step) | {"learning_rate": np.asarray(0.1, np.float32)}
        results = dict(
            zip(wanted, runner.run(None, {one.name: given[one.name] for one in runner.get_inputs()}), strict=True)
        )
        for one in manifest["trainable"]:
            state |= {name: results[after] for name, after in one["next"].items()}
        state |= {name: results[after] for name, after in manifest["declared"].items()} | {"step": results["step_next"]}
    close(state, in_numpy(3))


def test_it_is_in_checkpoints_and_exports(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    first = gradcut.TrainingSession(tmp_path / "a")
    first.step(feeds(0))
    first.save_checkpoint(tmp_path / "half.safetensors")
    second = gradcut.TrainingSession(tmp_path / "a")
    second.load_checkpoint(tmp_path / "half.safetensors")
    second.step(feeds(1))
    close(second.parameters() | second.state(), in_numpy(2))
    second.export(tmp_path / "tuned.onnx")
    tuned = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "tuned.onnx").graph.initializer}
    close(tuned, in_numpy(2))


def test_a_counter_of_integers_and_a_model_of_two_states() -> None:
    """An update may move several tensors, read the step, and read the model's inputs."""
    update = text(
        """agraph (int64[1] seen, float[2] centre, float[n,3] x, float[n,2] keys, int64 step)
               => (int64[1] seen_next, float[2] centre_next) {
            all = Shape<start=0, end=1>(x)
            more = Add(seen, all)
            seen_next = Add(more, step)
            zero = Constant<value_ints=[0]>()
            mean = ReduceMean<keepdims=0>(keys, zero)
            sum = Add(centre, mean)
            half = Constant<value_float=0.5>()
            centre_next = Mul(sum, half)
        }"""
    )
    proto = model()
    for name, array in {"seen": np.array([5]), "centre": np.zeros(2, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    session = gradcut.TrainingSession(
        artifacts(proto, state=[gradcut.State(["seen", "centre"], update)], train="online.w")
    )
    centre = np.zeros(2)
    for step in range(3):
        session.step(feeds(step))
        centre = (centre + (feeds(step)["x"] @ (W + 1)).mean(0)) / 2
    assert session.state()["seen"].tolist() == [5 + 3 * 2 + 0 + 1 + 2]
    np.testing.assert_allclose(session.state()["centre"], centre, rtol=1e-5)


def test_of_several_steps_each_moves_what_it_has_the_values_for() -> None:
    proto = model()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("pull", 1, []))
    steps = {
        "online": gradcut.Step(loss="mse:output=z,labels=y", train="online.w", outputs="z"),
        "none": gradcut.Step(loss="mse:output=z,labels=y", train="other", outputs="z"),
    }
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "other"))
    proto.graph.node.append(onnx.helper.make_node("Add", ["z", "other"], ["moved"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("moved", 1, ["n", 2]))
    steps["none"] = gradcut.Step(loss="mse:output=moved,labels=y", train="other")
    compiled = artifacts(proto, state=[average()], steps=steps, optimizer="sgd:lr=0.1")
    session = gradcut.TrainingSession(compiled)
    y = {"y": np.zeros((2, 2), np.float32)}
    session.step("none", feeds(0) | y)
    assert session.state()["target.w"].tobytes() == (W + 1).tobytes()
    session.step("online", feeds(0) | y)
    expected = 0.9 * (W + 1) + 0.1 * session.parameters()["online.w"]
    np.testing.assert_allclose(session.state()["target.w"], expected, rtol=1e-5)


def test_a_pattern_pairs_parameters() -> None:
    proto = model()
    session = gradcut.TrainingSession(
        artifacts(proto, state=[gradcut.EMA({"target.*": "online.*"}, decay=0.9), queue()])
    )
    session.step(feeds(0))
    close(session.parameters() | session.state(), in_numpy(1))


def test_micro_batches_are_refused_where_an_update_reads_the_batch() -> None:
    session = gradcut.TrainingSession(artifacts())
    with pytest.raises(FeedError, match="one batch"):
        session.step([feeds(0), feeds(1)])
    averaged = gradcut.TrainingSession(artifacts(state=average()))
    averaged.step([feeds(0), feeds(1)])
    expected = 0.9 * (W + 1) + 0.1 * averaged.parameters()["online.w"]
    np.testing.assert_allclose(averaged.state()["target.w"], expected, rtol=1e-5)


OTHER = "agraph (float[2,2] queue) => (float[2,2] queue_next) { queue_next = Identity(queue) }"
UNKNOWN = "agraph (float[6,2] queue, float[n,2] kees) => (float[6,2] queue_next) { queue_next = Identity(queue) }"
UNNAMED = "agraph (float[6,2] queue) => (float[6,2] a, float[6,2] b) { a = Identity(queue) b = Identity(queue) }"


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ([average(), average()], SpecError, r"'target.w' is declared as state twice|target.w is declared"),
        (gradcut.State("que", text(ENQUEUE)), SpecError, "the model has no 'que'. Nearest: queue"),
        (gradcut.State("z", text(ENQUEUE)), SpecError, "gives|computed"),
        (gradcut.State("queue", text(OTHER)), SpecError, r"gives FLOAT\[2,2\], and 'queue' is FLOAT\[6,2\]"),
        (gradcut.State("queue", text(UNKNOWN)), SpecError, "reads 'kees', which the model has not. Nearest: keys"),
        (gradcut.State("queue", text(UNNAMED)), SpecError, "gives no 'queue_next'"),
        (queue(initial=np.zeros((2, 2))), SpecError, "starts as"),
        ("queue", SpecError, "state is gradcut.State"),
        (gradcut.EMA({"target.*": "onlin.*"}), SpecError, r"no float tensor onlin.w. Nearest: online.w"),
        (gradcut.EMA({"targe.*": "online.*"}), SpecError, "names no float tensor"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(state: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        artifacts(state=state)


def test_what_cannot_be() -> None:
    with pytest.raises(SpecError, match="decay"):
        average(decay=1.5)
    with pytest.raises(SpecError, match="until"):
        average(until=0)
    with pytest.raises(SpecError, match="one"):
        artifacts(state=gradcut.EMA({"target.*": "online.w"}))
    with pytest.raises(SpecError, match="declared as state"):
        artifacts(train=["online.w", "target.w"])
    with pytest.raises(PatternError, match="nothing"):
        artifacts(train=["nothing"])
    with pytest.raises(SpecError, match="say what it starts as"):
        artifacts(model(queue_fed=True))
    with pytest.raises(SpecError, match="target onnx"):
        artifacts(target="ort-training")
