"""What the target ort-training emits, trained by `onnxruntime.training.api`, against the onnx target and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from onnxruntime.training.api import CheckpointState, Module, Optimizer

import gradcut
from tests.ort_training.subjects import SUBJECTS, Subject, tensors, torch_losses

LR = 1e-2
#: What reordered sums may differ by.
FLOAT32 = 1e-5
DROPOUT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 8] x) => (float[n, 3] y)
{
    half = Constant <value_float = 0.5> ()
    yes = Constant <value = bool {1}> ()
    t, mask = Dropout (x, half, yes)
    y = MatMul (t, w)
}
"""


@dataclass
class Trainer:
    """Artifacts on disk, loaded by ORT Training."""

    folder: Path
    state: CheckpointState
    module: Module
    optimizer: Optimizer

    def step(self, *inputs: np.ndarray) -> float:
        """The loss before the step."""
        self.module.train()
        loss, _ = self.module(*inputs)
        self.optimizer.step()
        self.module.lazy_reset_grad()
        return float(loss)

    def evaluate(self, *inputs: np.ndarray) -> tuple[float, np.ndarray]:
        self.module.eval()
        loss, outputs = self.module(*inputs)
        return float(loss), outputs

    def gradients(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {name: self.state.parameters[name].grad for name in names}


def trainer(art: gradcut.TrainingArtifacts, folder: Path, lr: float = LR) -> Trainer:
    art.save(folder)
    art.save_ort_checkpoint(folder / "checkpoint")
    return open_trainer(folder, "checkpoint", lr)


def open_trainer(folder: Path, checkpoint: str, lr: float = LR) -> Trainer:
    state = CheckpointState.load_checkpoint(folder / checkpoint)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    module = Module(folder / "training_model.onnx", state, folder / "eval_model.onnx", session_options=options)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(lr)
    return Trainer(folder, state, module, optimizer)


def both_targets(
    subject: Subject, folder: Path, optimizer: str = f"adamw:lr={LR}"
) -> tuple[gradcut.TrainingArtifacts, gradcut.TrainingSession]:
    """Artifacts for ORT Training, and a session of the onnx target, here on the same runtime."""
    path = subject.write(folder)
    compiled = partial(gradcut.compile, path, loss="cross_entropy", train=subject.train, optimizer=optimizer)
    return compiled(target="ort-training"), gradcut.TrainingSession(compiled(), threads=1)


def feeds(session: gradcut.TrainingSession, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    ports = session.manifest["graphs"]["training_model"]["inputs"]
    return dict(zip([port["name"] for port in ports if port["role"] in ("user", "label")], arrays, strict=True))


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Per tensor, relative to its norm and to a little of the largest one's."""
    assert found.keys() == expected.keys()
    largest = max(np.linalg.norm(array) for array in expected.values())
    for name, array in expected.items():
        away = np.linalg.norm(found[name] - array)
        assert away <= tolerance * max(np.linalg.norm(array), 1e-4 * largest), (name, away)


every_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


@every_subject
def test_gradients_are_the_onnx_targets(subject: Subject, tmp_path: Path) -> None:
    art, session = both_targets(subject, tmp_path)
    batch = subject.batches()[0]
    one = trainer(art, tmp_path / "build")
    loss, outputs = one.module(*batch)
    expected = session.gradients(feeds(session, *batch))
    assert one.gradients(art.trainable).keys() == set(session.artifacts.trainable)
    assert_near(one.gradients(art.trainable), expected, FLOAT32)
    result = session.step(feeds(session, *batch))
    assert float(loss) == pytest.approx(result.loss, rel=FLOAT32)
    np.testing.assert_allclose(outputs, result.outputs["logits"], rtol=1e-5, atol=1e-5)


@every_subject
@pytest.mark.parametrize(
    ("optimizer", "torch_optimizer"),
    [
        (f"adamw:lr={LR}", partial(torch.optim.AdamW, lr=LR)),
        (
            f"adamw:lr={LR},beta1=0.8,beta2=0.9,eps=1e-4,weight_decay=0.5",
            partial(torch.optim.AdamW, lr=LR, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5),
        ),
        (f"sgd:lr={LR}", partial(torch.optim.SGD, lr=LR)),
    ],
    ids=["adamw", "adamw with options", "sgd"],
)
def test_five_steps_follow_torch(
    subject: Subject, optimizer: str, torch_optimizer: Callable[..., torch.optim.Optimizer], tmp_path: Path
) -> None:
    art, session = both_targets(subject, tmp_path, optimizer)
    one = trainer(art, tmp_path / "build", art.manifest["optimizer"]["lr"])
    reference = tensors(subject.write(tmp_path))
    expected = torch_losses(subject, reference, art.trainable, torch_optimizer)
    assert [one.step(*batch) for batch in subject.batches()] == pytest.approx(expected, rel=1e-4)
    onnx_target = [session.step(feeds(session, *batch)).loss for batch in subject.batches()]
    assert onnx_target == pytest.approx(expected, rel=1e-4)


def test_running_statistics_move_as_the_onnx_targets_do(tmp_path: Path) -> None:
    """By SGD: AdamW's first steps follow the sign of a gradient, however small."""
    subject = SUBJECTS["digits-full"]
    art, session = both_targets(subject, tmp_path, f"sgd:lr={LR}")
    one = trainer(art, tmp_path / "build")
    before = {name: np.array(one.state.parameters[name].data) for name in art.manifest["state"]}
    for batch in subject.batches():
        one.step(*batch)
        session.step(feeds(session, *batch))
    session.save_checkpoint(tmp_path / "reference.safetensors")
    expected, _ = gradcut.checkpoint.load(tmp_path / "reference.safetensors")
    reference = tensors(subject.write(tmp_path))
    torch_losses(subject, reference, art.trainable, partial(torch.optim.SGD, lr=LR))
    assert len(before) == 6
    for name, start in before.items():
        found = one.state.parameters[name]
        assert not found.requires_grad
        assert np.abs(found.data - start).max() > 1e-3
        np.testing.assert_allclose(found.data, expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.data, reference[name].numpy(), rtol=1e-4, atol=1e-5)


@every_subject
def test_evaluation_and_export_after_training(subject: Subject, tmp_path: Path) -> None:
    art, session = both_targets(subject, tmp_path)
    one = trainer(art, tmp_path / "build")
    for batch in subject.batches():
        one.step(*batch)
        session.step(feeds(session, *batch))
    x, labels = subject.batches()[0]
    loss, outputs = one.evaluate(x, labels)
    expected = session.evaluate(feeds(session, x, labels))
    assert loss == pytest.approx(expected.loss, rel=1e-3)
    np.testing.assert_allclose(outputs, expected.outputs["logits"], rtol=1e-3, atol=1e-3)
    exported = tmp_path / "build" / "tuned.onnx"
    one.module.export_model_for_inferencing(exported, ["logits"])
    (port,) = (inference := ort.InferenceSession(str(exported))).get_inputs()
    np.testing.assert_allclose(inference.run(["logits"], {port.name: x})[0], outputs, rtol=1e-5, atol=1e-5)


def test_frozen_weights_do_not_move(tmp_path: Path) -> None:
    subject = SUBJECTS["digits-head"]
    art, _ = both_targets(subject, tmp_path)
    one = trainer(art, tmp_path / "build")
    for batch in subject.batches():
        one.step(*batch)
    assert {name for name, _ in one.state.parameters} == set(art.trainable)
    one.module.export_model_for_inferencing(tmp_path / "build" / "tuned.onnx", ["logits"])
    tuned, given = tensors(tmp_path / "build" / "tuned.onnx"), tensors(subject.write(tmp_path))
    kept = [name for name in tuned.keys() & given.keys() if name.startswith("encoder.")]
    assert len(kept) == 15
    assert all(torch.equal(tuned[name], given[name]) for name in kept)
    assert not torch.equal(tuned["head.weight"], given["head.weight"])


def test_gradients_add_up_until_they_are_reset(tmp_path: Path) -> None:
    subject = SUBJECTS["mlp-full"]
    art, session = both_targets(subject, tmp_path)
    one = trainer(art, tmp_path / "build")
    batches = subject.batches()[:2]
    for batch in batches:
        one.module(*batch)
    parts = [session.gradients(feeds(session, *batch)) for batch in batches]
    assert_near(one.gradients(art.trainable), {name: parts[0][name] + parts[1][name] for name in parts[0]}, FLOAT32)
    one.module.lazy_reset_grad()
    one.module(*batches[1])
    assert_near(one.gradients(art.trainable), parts[1], FLOAT32)


def test_its_own_checkpoint_resumes(tmp_path: Path) -> None:
    subject = SUBJECTS["digits-full"]
    art, _ = both_targets(subject, tmp_path)
    one = trainer(art, tmp_path / "build")
    batches = subject.batches()
    for batch in batches[:2]:
        one.step(*batch)
    CheckpointState.save_checkpoint(one.state, tmp_path / "build" / "second", include_optimizer_state=True)
    rest = [one.step(*batch) for batch in batches[2:]]
    again = open_trainer(tmp_path / "build", "second")
    assert [again.step(*batch) for batch in batches[2:]] == rest
    for name in art.manifest["state"]:
        np.testing.assert_array_equal(again.state.parameters[name].data, one.state.parameters[name].data)


def test_seed_and_step_are_inputs_where_the_graph_draws(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(DROPOUT)
    weight = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compiled = partial(gradcut.compile, model, loss="cross_entropy", optimizer="sgd:lr=0.1", seed=7)
    art, session = compiled(target="ort-training"), gradcut.TrainingSession(compiled(), threads=1)
    one = trainer(art, tmp_path / "build", 0.1)
    assert one.module.input_names() == ["x", "labels", "seed", "step"]
    x, labels = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32), np.arange(6) % 3
    losses = [one.step(x, labels, np.array(7), np.array(step)) for step in range(3)]
    assert losses == pytest.approx([session.step({"x": x, "labels": labels}).loss for _ in range(3)], rel=1e-5)
    assert len(set(losses)) == 3
    assert one.evaluate(x, labels)[0] == pytest.approx(session.evaluate({"x": x, "labels": labels}).loss, rel=1e-5)
