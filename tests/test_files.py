"""Files people have: magika's and RapidOCR's, from their packages, compiled, trained and exported.

Gradients are held against torch in float64, which runs the same file operator by operator (`tests/in_torch.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

import gradcut
from gradcut.errors import LossError
from gradcut.inspection import inspect
from tests import in_torch

Feeds = dict[str, np.ndarray]
_MAGIKA = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2"


@dataclass(frozen=True)
class File:
    """One file, and how it is trained here.

    Attributes:
        logits: what goes into the activation that the file ends in. axis: of its classes.
        head: patterns of the last layer's parameters. middle: a value on every way to the head.
        counts: parameters and statistics.
    """

    package: str
    path: str
    feed: Callable[[np.random.Generator], np.ndarray]
    loss: str
    logits: str
    axis: int
    head: tuple[str, ...]
    middle: str
    counts: tuple[int, int]

    @property
    def where(self) -> Path:
        """Found without importing the package, which wants things of its own."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations, (
            f"pip install 'gradcut[test]' brings {self.package}"
        )
        return Path(spec.submodule_search_locations[0]) / "models" / self.path


def images(*shape: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.standard_normal(shape).astype(np.float32)


FILES = {
    "magika": File(
        package="magika",
        path="standard_v3_3/model.onnx",
        feed=lambda rng: rng.integers(0, 257, (3, 2048)).astype(np.int32),
        loss=f"cross_entropy:output={_MAGIKA}/Dense_1/AddV2:0",
        logits=f"{_MAGIKA}/Dense_1/AddV2:0",
        axis=1,
        head=(f"{_MAGIKA}/Dense_1/*", "jax2tf_get_logits_/Const_24:0"),
        middle=f"{_MAGIKA}/LayerNorm_1/AddV2_1:0",
        counts=(10, 0),
    ),
    "cls": File(
        package="rapidocr",
        path="ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        feed=images(4, 3, 48, 96),
        loss="cross_entropy:output=linear_1.tmp_1",
        logits="linear_1.tmp_1",
        axis=1,
        head=("fc_0.*",),
        middle="pool2d_10.tmp_0",
        counts=(143, 70),
    ),
    "det": File(
        package="rapidocr",
        path="PP-OCRv6_det_small.onnx",
        feed=images(2, 3, 64, 96),
        loss="mse",
        logits="fetch_name_0",
        axis=1,
        head=("auto.cast.98", "p2o.pd_op.reshape.76.0"),
        middle="p2o.pd_op.relu.19.0",
        counts=(162, 0),
    ),
    "rec": File(
        package="rapidocr",
        path="PP-OCRv6_rec_small.onnx",
        feed=images(2, 3, 48, 64),
        loss="cross_entropy:output=p2o.pd_op.add.79.0,axis=-1",
        logits="p2o.pd_op.add.79.0",
        axis=2,
        head=("linear_8.*",),
        middle="p2o.pd_op.squeeze.0.0",
        counts=(145, 6),
    ),
}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> File:
    return FILES[request.param]


@functools.cache
def given(file: File) -> onnx.ModelProto:
    return onnx.load(file.where)


@functools.cache
def feeds(file: File, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    x = file.feed(rng)
    logits = in_torch.values(given(file), {given(file).graph.input[0].name: x}, in_torch.weights(given(file)))
    shape = list(logits[file.logits].shape)
    if file.loss.startswith("mse"):
        labels = rng.random(shape).astype(np.float32)
    else:
        labels = rng.integers(0, shape.pop(file.axis), shape)
    return {given(file).graph.input[0].name: x, "labels": labels}


@functools.cache
def expected(file: File, training: bool) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients by torch."""
    model, arrays = given(file), dict(feeds(file))
    labels = torch.from_numpy(arrays.pop("labels"))
    weights = in_torch.weights(model)
    logits = in_torch.values(model, arrays, weights, training)[file.logits]
    if file.loss.startswith("mse"):
        loss = F.mse_loss(logits, labels.double())
    else:
        loss = F.cross_entropy(logits.movedim(file.axis, 1), labels)
    loss.backward()
    return float(loss), {name: w.grad.numpy() for name, w in weights.items() if w.grad is not None}


def close(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> None:
    """Relative to each gradient's norm; one that is zero, as a bias's before a norm, to what rounding leaves of all.

    In float32 a few of the thousands of kinks fall on their other side, which makes the gap of half a percent.
    """
    overall = np.sqrt(sum(np.sum(np.square(reference[name])) for name in found))
    for name, gradient in found.items():
        error = np.linalg.norm(gradient - reference[name].reshape(gradient.shape))
        limit = 1e-2 * np.linalg.norm(reference[name]) + 1e-6 * overall
        assert error <= limit, f"{name}: {error:.2e} of {np.linalg.norm(reference[name]):.2e}"


def quietly(file: File, **options: object) -> gradcut.TrainingArtifacts:
    """Compiled without a word: there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", gradcut.errors.GradcutWarning)
        return gradcut.compile(file.where, **{"loss": file.loss, **options})


def stock(path: Path, x: Feeds) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: x[value.name] for value in session.get_inputs()})


def tensors(model: onnx.ModelProto) -> dict[str, bytes]:
    """The bytes of every initializer and Constant."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"}
    return {name: array.tobytes() for name, array in found.items()}


# --- what they are -------------------------------------------------------------------------------------------


def test_inspect_finds_the_weights(file: File) -> None:
    found = inspect(file.where)
    kinds = [decision.kind for decision in found.decisions]
    assert (kinds.count("parameter"), kinds.count("state")) == file.counts
    assert not found.destroyed
    left = {d.name for d in found.decisions if d.kind == "constant" and d.size > 1 and d.reason != "not a float"}
    scales = {
        value.name for node in found.model.graph if node.op_type == "Resize" for value in node.inputs[1:] if value
    }
    assert left <= scales, "no weight is overlooked"


@pytest.mark.parametrize(
    ("name", "output", "node", "logits"),
    [
        ("cls", "save_infer_model/scale_0.tmp_1", "Softmax (Softmax@0)", "linear_1.tmp_1"),
        ("rec", "fetch_name_0", "Softmax (Softmax.2)", "p2o.pd_op.add.79.0"),
        ("det", "fetch_name_0", "Sigmoid (Sigmoid.0)", "p2o.pd_op.add.97.0"),
    ],
)
def test_a_loss_on_logits_names_what_goes_into_the_last_activation(
    name: str, output: str, node: str, logits: str
) -> None:
    file = FILES[name]
    with pytest.raises(LossError) as raised:
        gradcut.compile(file.where, loss=f"cross_entropy:output={output},axis={file.axis}")
    message = str(raised.value)
    assert message.startswith(f"cross_entropy takes logits, and {output!r} comes from {node}; ")
    assert message.endswith(f"--loss cross_entropy:output={logits}")


# --- what they compute ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["eval", "auto"])
def test_every_gradient_is_that_of_torch(file: File, batch_norm: str) -> None:
    artifacts = quietly(file, batch_norm=batch_norm)
    session = gradcut.TrainingSession(artifacts, threads=1)
    assert len(artifacts.trainable) == file.counts[0]
    assert bool(artifacts.manifest["state"]) == (batch_norm == "auto" and file.counts[1] > 0)
    loss, reference = expected(file, training=batch_norm == "auto")
    assert session.step(feeds(file), lr=0.0).loss == pytest.approx(loss, rel=1e-4)
    close(session.gradients(feeds(file)), reference)


def test_a_head_trains_and_everything_else_keeps_its_bytes(file: File, tmp_path: Path) -> None:
    """Constants stay Constants, the graph stays the graph, and onnxruntime computes of it what the session says."""
    artifacts = quietly(file, train=list(file.head), optimizer=gradcut.AdamW(lr=1e-3))
    assert len(artifacts.trainable) == 2 and not artifacts.manifest["state"]
    session = gradcut.TrainingSession(artifacts, threads=1)
    close(session.gradients(feeds(file)), expected(file, training=False)[1])
    losses = [session.step(feeds(file)).loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[4] < losses[0]
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    before, after = tensors(given(file)), tensors(tuned)
    assert list(before) == list(after) and {n for n in before if before[n] != after[n]} == set(artifacts.trainable)
    plain = lambda model: [(n.op_type, list(n.input), list(n.output)) for n in model.graph.node]
    assert plain(tuned) == plain(given(file)) and tuned.opset_import == given(file).opset_import
    outputs = session.evaluate(feeds(file)).outputs
    (y,) = stock(tmp_path / "tuned.onnx", feeds(file))
    np.testing.assert_allclose(outputs[given(file).graph.output[0].name], y, rtol=1e-4, atol=1e-6)


def test_a_mark_in_the_middle_leaves_what_is_behind_it(file: File) -> None:
    """A mark changes no mode: the norms before it still take the statistics of the batch."""
    artifacts = gradcut.compile(file.where, file.loss, stop_at=[file.middle])
    reference = expected(file, training=True)[1]
    head = gradcut.compile(file.where, file.loss, train=list(file.head))
    assert set(artifacts.trainable) == set(head.trainable)
    assert all("mark" in why or "stop-at" in why for why in artifacts.manifest["unreached"].values())
    close(gradcut.TrainingSession(artifacts, threads=1).gradients(feeds(file)), reference)


def test_five_steps_of_all_parameters_lower_the_loss(file: File) -> None:
    session = gradcut.TrainingSession(quietly(file, batch_norm="eval", optimizer=gradcut.AdamW(lr=1e-4)), threads=1)
    losses = [session.step(feeds(file)).loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[4] < losses[0]


def test_what_is_evaluated_is_the_file(file: File) -> None:
    """Before training, the evaluation graph gives what plain onnxruntime makes of the file."""
    name, session = given(file).graph.output[0].name, gradcut.TrainingSession(quietly(file), threads=1)
    for seed in (0, 1):
        outputs = session.evaluate(feeds(file, seed)).outputs
        (y,) = stock(file.where, feeds(file, seed))
        np.testing.assert_allclose(outputs[name], y, rtol=1e-5, atol=1e-6)
