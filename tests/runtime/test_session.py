"""Sessions: what they take as feeds, on which devices, of which types, and their corners."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import gradcut
from gradcut.errors import (
    FeedError,
    GradcutError,
    MissingExtraError,
    NotFiniteError,
    SpecError,
)
from gradcut.runtime import backend
from tests.exported import exported, text

# One model with everything: a batch norm, a dropout, a weight that two layers read, and a frozen one.
from tests.runtime.stepping import compiled, feeds, session, state, typed

# --- feeds ---------------------------------------------------------------------------------------------------

TWO_INPUTS = text("""
g (float[n, 4] left, float[n, 4] right, int64[3] index) => (float[n, 3] y)
<float[4, 3] w = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}>
{
    sum = Add (left, right)
    picked = MatMul (sum, w)
    y = Gather <axis = 1> (picked, index)
}""")
GOOD = {
    "left": np.zeros((2, 4), np.float32),
    "right": np.zeros((2, 4), np.float32),
    "index": np.zeros(3, np.int64),
    "labels": np.zeros(2, np.int64),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lefd": GOOD["left"]}, "the graph has no input 'lefd'; it takes left, labels"),
        ({"zzz": GOOD["left"]}, "the graph has no input 'zzz'; it takes left, right, index, labels"),
        ({"right": None}, "no feed for right; the graph takes left, right, index, labels"),
        ({"right": None, "index": None}, "no feed for right, index; the graph takes left, right, index, labels"),
        (
            {"left": np.zeros((2, 4))},
            "feed 'left' is float64; the graph takes float32: use .astype('float32')",
        ),
        (
            {"labels": np.zeros(2, np.int32)},
            "feed 'labels' is int32; the graph takes int64: use .astype('int64')",
        ),
        ({"left": np.zeros(4, np.float32)}, "feed 'left' has shape [4]; the graph takes [n, 4]"),
        ({"left": np.zeros((2, 5), np.float32)}, "feed 'left' has shape [2, 5]; the graph takes [n, 4]"),
        ({"index": np.zeros(2, np.int64)}, "feed 'index' has shape [2]; the graph takes [3]"),
        (
            {"right": np.zeros((3, 4), np.float32)},
            "feed 'right' has 3 at axis 0 (n), and 'left' has 2; they must agree",
        ),
        ({"labels": np.zeros(3, np.int64)}, "feed 'labels' has 3 at axis 0 (n), and 'left' has 2; they must agree"),
        (
            {"labels": np.array([0, 3])},
            "feed 'labels' holds label 3 at row 1; the model has 3 classes, 0 to 2",
        ),
    ],
)
def test_a_feed_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    running = gradcut.TrainingSession(gradcut.compile(TWO_INPUTS, "cross_entropy"), threads=1)
    before = state(running)
    given = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    for call in (running.step, running.evaluate, running.gradients):
        with pytest.raises(FeedError) as error:
            call(given)
        assert str(error.value) == message
    assert state(running) == before
    running.step({**GOOD, "labels": np.array([-100, 1])})


def test_feeds_may_be_lists_views_and_fortran_ordered() -> None:
    running, given = session(), feeds()
    expected = running.evaluate(given).loss
    x = given["x"]
    strided = np.zeros((6, 8), np.float32)[:, ::2]
    strided[...] = x
    for form in (np.asfortranarray(x), strided, x.astype(">f4").astype("f4")):
        assert running.evaluate({**given, "x": form}).loss == expected
    assert running.evaluate({**given, "labels": given["labels"].tolist()}).loss == expected


def test_a_caller_may_change_what_it_fed_and_what_it_got() -> None:
    running, given = session(), feeds()
    first = running.evaluate(given)
    kept = {name: array.copy() for name, array in given.items()}
    first.outputs["logits"][...] = 7.0
    running.parameters()["tied"][...] = 7.0
    running.gradients(given)["tied"][...] = 7.0
    np.testing.assert_array_equal(given["x"], kept["x"])
    assert running.evaluate(given).loss == first.loss


def test_results_stay_as_they_were_when_later_steps_run() -> None:
    running = session()
    gradients, result = running.gradients(feeds()), running.step(feeds())
    kept = {name: array.copy() for name, array in gradients.items()}
    logits = result.outputs["logits"].copy()
    for seed in range(3):
        running.step(feeds(seed=seed + 1))
        running.gradients(feeds(seed=seed + 1))
    np.testing.assert_array_equal(result.outputs["logits"], logits)
    for name, array in kept.items():
        np.testing.assert_array_equal(gradients[name], array)


def test_the_batch_is_dynamic_and_the_last_one_ragged() -> None:
    running = session()
    for rows in (6, 6, 2, 1, 17, 6):
        assert running.step(feeds(rows)).outputs["logits"].shape == (rows, 3)


# --- devices, runtimes, types --------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(GradcutError, match="device 'cuda': this onnxruntime has no CUDA provider; ") as error:
        gradcut.TrainingSession(compiled(), device="cuda")
    assert "\n" not in str(error.value)
    with pytest.raises(GradcutError, match="there is no device 'tpu'; there are cpu, cuda"):
        gradcut.TrainingSession(compiled(), device="tpu")


def test_without_a_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ort", None)
    artifacts = compiled()  # needs none
    with pytest.raises(MissingExtraError) as error:
        gradcut.TrainingSession(artifacts)
    assert str(error.value) == ("a training session needs an extra that is not installed: pip install 'gradcut[cpu]'")


def test_without_numba_the_graph_optimizer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("host_optimizer", "host_updates", "kernels"):
        monkeypatch.delitem(sys.modules, f"gradcut.runtime.{name}", raising=False)
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "numba":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert session().optimizer_backend == "graph"
    with pytest.raises(MissingExtraError, match=r"the host optimizer needs .*gradcut\[cpu\]"):
        session(backend="host")


@pytest.mark.parametrize("kind", ["auto", "host", "graph"])
def test_float64_models_train(kind: str) -> None:
    artifacts = gradcut.compile(typed("float64"), "cross_entropy", optimizer=gradcut.SGD(lr=0.5, momentum=0.9))
    running = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
    layer = torch.nn.Linear(4, 3).double()
    start = running.parameters()
    layer.weight.data, layer.bias.data = torch.from_numpy(start["w"].T.copy()), torch.from_numpy(start["b"])
    peer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for seed in range(5):
        given = feeds(seed=seed)
        given["x"] = given["x"].astype(np.float64)
        peer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(given["x"])), torch.from_numpy(given["labels"]))
        loss.backward()
        peer.step()
        assert running.step(given).loss == pytest.approx(loss.item(), rel=1e-9)
    np.testing.assert_allclose(running.parameters()["w"], layer.weight.detach().numpy().T, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [gradcut.SGD(lr=0.5, momentum=0.9), gradcut.AdamW(lr=0.05)])
def test_float16_models_train_through_the_graph(optimizer: Any) -> None:
    artifacts = gradcut.compile(typed("float16"), "cross_entropy", optimizer=optimizer)
    running = gradcut.TrainingSession(artifacts, threads=1)
    assert running.optimizer_backend == "graph"
    given = feeds()
    given["x"] = given["x"].astype(np.float16)
    losses = [running.step(given).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert running.parameters()["w"].dtype == np.float16
    with pytest.raises(SpecError, match="takes float32 and float64 parameters on the CPU; use 'graph'"):
        gradcut.TrainingSession(artifacts, optimizer_backend="host")


# --- data-free corners ---------------------------------------------------------------------------------------


def test_labels_that_are_all_ignored_are_not_finite_as_in_torch() -> None:
    running = session()
    before = state(running)
    given = {**feeds(), "labels": np.full(6, -100)}
    assert np.isnan(torch.nn.functional.cross_entropy(torch.zeros(6, 3), torch.full((6,), -100)).item())
    with pytest.raises(NotFiniteError, match="every label is -100, the ignore_index"):
        running.step(given)
    assert not any(gradient.any() for gradient in running.gradients(given).values())  # as torch's
    with pytest.raises(NotFiniteError, match="the feed 'x' is empty"):
        running.step({name: array[:0] for name, array in feeds().items()})
    assert state(running) == before


@pytest.mark.parametrize("kind", ["host", "graph"])
def test_weights_that_are_not_finite_are_written_nowhere(kind: str, tmp_path: Path) -> None:
    """sqrt at 0 has a finite value and an infinite derivative; 0 times it is NaN."""
    model = text("g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { m = Mul (x, w)  y = Sqrt (m) }")
    running = gradcut.TrainingSession(gradcut.compile(model, "mse"), optimizer_backend=kind, threads=1)
    given = {"x": np.ones((1, 2), np.float32), "labels": np.zeros((1, 2), np.float32)}
    running.step(given)
    running.save_checkpoint(tmp_path / "c")
    good = (tmp_path / "c").read_bytes()
    assert np.isfinite(running.step({**given, "x": np.zeros((1, 2), np.float32)}).loss)
    for write, name in ((running.save_checkpoint, "c"), (running.export, "t.onnx")):
        with pytest.raises(NotFiniteError, match=rf"'w' is not finite after step 2.*{name} was not written"):
            write(tmp_path / name)
    assert (tmp_path / "c").read_bytes() == good and [one.name for one in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf"), 1e300, "fast"])
def test_learning_rates_that_none_can_have(lr: Any) -> None:
    running = session()
    before = state(running)
    with pytest.raises(SpecError, match=r"lr (must be at|is a finite number)"):
        running.step(feeds(), lr=lr)
    with pytest.raises(SpecError, match=r"lr (must be at|is a finite number)"):
        gradcut.SGD(lr=lr)
    assert state(running) == before
    with pytest.raises(SpecError, match="threads is -3; it is at least 1"):
        gradcut.TrainingSession(compiled(), threads=-3)


def test_digits_train_from_the_shipped_file() -> None:
    with np.load(exported("digits").with_suffix(".npz")) as data:
        image, labels = data["image"][:256], data["labels"][:256]
    artifacts = gradcut.compile(exported("digits"), "cross_entropy", train=["head.*"], optimizer=gradcut.AdamW(lr=1e-2))
    running = gradcut.TrainingSession(artifacts, threads=1)
    first = running.evaluate({"image": image, "labels": labels}).loss
    for _ in range(15):
        running.step({"image": image, "labels": labels})
    assert running.evaluate({"image": image, "labels": labels}).loss < 0.3 * first


def small(source: str) -> gradcut.TrainingSession:
    """A session of a graph with a parameter `w`, trained to outputs `y` by mse with SGD."""
    return gradcut.TrainingSession(
        gradcut.compile(text(source), "mse:output=y", train=["w"], optimizer=gradcut.SGD(lr=0.1)), threads=1
    )


X = np.ones((3, 2), np.float32)
WEIGHT = "<float[2, 2] w = {1.0, 2.0, 3.0, 4.0}>"


@pytest.mark.parametrize(("name", "kind"), [("x", "float[n, 2]"), ("w", "float[2, 2]")])
def test_outputs_that_are_inputs_or_weights_keep_their_names(name: str, kind: str) -> None:
    running = small(f"g (float[n, 2] x) => (float[n, 2] y, {kind} {name}) {WEIGHT} {{ y = MatMul (x, w) }}")
    for call in (running.evaluate, running.step, running.evaluate):
        before = {"x": X, **running.parameters()}[name]
        outputs = call({"x": X, "labels": X}).outputs
        assert set(outputs) == {"y", name}
        np.testing.assert_array_equal(outputs[name], before)


def test_a_scalar_constant_trains_where_train_names_it(tmp_path: Path) -> None:
    source = """g (float[n, 2] x) => (float[n, 2] y)
    { w = Constant <value = float {2.0}> () h = Mul (x, w) y = Neg (h) }"""
    running = small(source)
    running.step({"x": X, "labels": X})  # y = -2; d loss / dw = 2 (y - 1) (-1) = 6
    assert running.parameters() == {"w": pytest.approx(1.4)}
    running.export(tmp_path / "tuned.onnx")
    (constant, *_) = onnx.load(tmp_path / "tuned.onnx").graph.node
    assert onnx.numpy_helper.to_array(constant.attribute[0].t) == pytest.approx(1.4)


def test_what_cannot_train() -> None:
    integer = text("g (float[n, 2] x) => (float[n, 2] y) <int64[1] i = {1}> { y = Unsqueeze (x, i) }")
    with pytest.raises(SpecError, match="train: 'i' is INT64; only floats carry a gradient"):
        gradcut.compile(integer, "mse", train=["i"])
    with pytest.raises(SpecError, match="nothing is left to train: the model has no parameter"):
        gradcut.compile(integer, "mse")
    with pytest.raises(SpecError, match=r"seed is an integer of 64 bits, not 2\.5"):
        compiled(seed=2.5)


@pytest.mark.parametrize("label", [2, -1])
def test_labels_are_checked_where_the_classes_are_a_symbol(label: int) -> None:
    model = text("g (float[n, c] x) => (float[n, c] y) <float[1] w = {1.0}> { y = Mul (x, w) }")
    running = gradcut.TrainingSession(gradcut.compile(model, "cross_entropy", train=["w"]), threads=1)
    assert running.step({"x": X, "labels": np.array([0, 1, -100])}).step == 1
    with pytest.raises(FeedError, match=f"holds label {label} at row 1; the model has 2 classes, 0 to 1"):
        running.step({"x": X, "labels": np.array([0, label, 1])})


def test_feeds_that_only_a_run_can_refuse_leave_the_state(capfd: pytest.CaptureFixture[str]) -> None:
    """A token beyond the table: one error, and nothing on the terminal from the runtime."""
    running = small(f"g (int64[n] i) => (float[n, 2] y) {WEIGHT} {{ y = Gather (w, i) }}")
    labels = X[:1]
    before = state(running)
    with pytest.raises(FeedError, match=r"onnxruntime could not run the graph on these feeds: .*indices"):
        running.step({"i": np.array([7]), "labels": labels})
    assert state(running) == before and capfd.readouterr() == ("", "")
    assert running.step({"i": np.array([1]), "labels": labels}).step == 1


@pytest.mark.parametrize(
    ("kind", "name"), [("string", "string"), ("bfloat16", "bfloat16")], ids=["strings", "bfloat16"]
)
def test_inputs_that_no_value_can_be_made_of(kind: str, name: str) -> None:
    source = f"""g (float[n, 2] x, {kind}[n] s) => (float[n, 2] y, {kind}[n] t) {WEIGHT}
    {{ y = MatMul (x, w) t = Identity (s) }}"""
    with pytest.raises(GradcutError, match=rf"input 's' is tensor\({name}\), which a session cannot bind"):
        small(source)


def test_feeds_and_artifacts_of_another_kind() -> None:
    with pytest.raises(FeedError, match=r"feeds are arrays by input name, such as {'x': array}"):
        session().step([X])
    with pytest.raises(SpecError, match="a session trains TrainingArtifacts or their directory, not None"):
        gradcut.TrainingSession(None)
