"""Gradual unfreezing: one run through phases, against torch with an optimizer that is told likewise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.errors import GradcutError, SpecError
from gradcut.runtime.plan import Plan
from gradcut.runtime.signals import Interrupt
from gradcut.runtime.train import Trainer
from models.zoo import MODELS

PHASES = ["epochs=1,train=head.*", "epochs=2,train=mid.*,head.*,lr=0.01", "epochs=1,train=mid.*"]
TRAINS = [("head",), ("mid", "head"), ("mid",)]
RATES = [1e-3, 0.01, 1e-3]
SOURCE = """agraph (float[n,5] x) => (float[n,3] logits) {
    a = Gemm<transB=1>(x, "low.weight", "low.bias")
    b = Tanh(a)
    c = Gemm<transB=1>(b, "mid.weight", "mid.bias")
    d = Tanh(c)
    logits = Gemm<transB=1>(d, "head.weight", "head.bias")
}"""


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.mid, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.mid(torch.tanh(self.low(x)))))
        return logits


def model() -> onnx.ModelProto:
    """The module, as a file would hold it."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{SOURCE}')
    weights = {name: one.detach().numpy() for name, one in Stack().named_parameters()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def feeds(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {"x": rng.standard_normal((16, 5)).astype(np.float32), "labels": rng.integers(0, 3, 16)}


def artifacts(phases: Any = PHASES, **options: Any) -> gradcut.TrainingArtifacts:
    return gradcut.compile(model(), loss="cross_entropy", phases=phases, **options)


def in_torch(steps: int) -> list[dict[str, np.ndarray]]:
    """Each parameter has Adam's state of its own in torch, which begins with its first step."""
    module, found = Stack(), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for phase, (trains, rate) in enumerate(zip(TRAINS, RATES, strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        for step in range(steps):
            given = {name: torch.from_numpy(array) for name, array in feeds(phase * steps + step).items()}
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(module(given["x"]), given["labels"]).backward()
            for name, parameter in module.named_parameters():
                if not name.startswith(trains):
                    parameter.grad = None
            optimizer.step()
        found.append({name: one.detach().numpy().copy() for name, one in module.named_parameters()})
    return found


@pytest.mark.parametrize("backend", ["host", "graph"])
def test_three_phases_follow_torch(backend: str) -> None:
    session = gradcut.TrainingSession(artifacts(), optimizer_backend=backend)
    before = session.parameters()
    for number, expected in enumerate(in_torch(6)):
        session.phase = f"phase{number + 1}"
        for step in range(6):
            session.step(feeds(number * 6 + step))
        after = session.parameters()
        moved = {name for name in after if after[name].tobytes() != before[name].tobytes()}
        assert moved == {name for name in after if name.startswith(TRAINS[number])}
        for name, array in expected.items():
            np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-6, err_msg=f"{name} phase {number + 1}")
        before = after


def test_a_run_is_taken_up_in_the_middle_of_a_phase(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    whole, first = (gradcut.TrainingSession(tmp_path / "a") for _ in range(2))
    stretches = [("phase1", range(3)), ("phase2", range(3, 6)), ("phase2", range(6, 8)), ("phase3", range(8, 10))]
    for session, last in ((whole, 4), (first, 2)):
        for name, steps in stretches[:last]:
            for step in steps:
                session.step(name, feeds(step))
    first.save_checkpoint(tmp_path / "half.safetensors")
    second = gradcut.TrainingSession(tmp_path / "a")
    second.load_checkpoint(tmp_path / "half.safetensors")
    assert second.phase == "phase2"
    for name, steps in stretches[2:]:
        second.phase = name
        for step in steps:
            second.step(feeds(step))
    for name, array in whole.parameters().items():
        assert array.tobytes() == second.parameters()[name].tobytes(), name


def test_what_a_later_phase_trains_is_a_weight_of_the_graph_until_then() -> None:
    steps = artifacts().steps
    inputs = [{v.name for v in one.training_model.graph.inputs} for one in steps.values()]
    assert not any(name.startswith(("low", "mid")) for name in inputs[0])
    assert {"mid.weight", "head.weight"} <= inputs[1] and "low.weight" not in inputs[1]
    roles = {p["name"]: p["role"] for p in steps["phase3"].manifest["graphs"]["training_model"]["inputs"]}
    assert roles["head.weight"] == "held" and roles["mid.weight"] == "parameter"
    backward = [
        sum("gradcut.adjoint" in node.metadata_props for node in one.training_model.graph) for one in steps.values()
    ]
    assert backward[0] < backward[2] <= backward[1]


def test_phases_only_go_forward() -> None:
    session = gradcut.TrainingSession(artifacts())
    session.step("phase2", feeds(0))
    with pytest.raises(SpecError, match="phase1 lies behind: phase2 has trained already"):
        session.step("phase1", feeds(0))
    with pytest.raises(SpecError, match="no phase 'phase9'; there are phase1, phase2, phase3"):
        session.phase = "phase9"


def digits(tmp_path: Path, *phases: str) -> Path:
    """Compiled by the command, by phases."""
    folder = tmp_path / "d"
    said = [argument for phase in phases for argument in ("--phase", phase)]
    command = ["compile", str(MODELS / "digits.onnx"), "--loss", "cross_entropy", "-o", str(folder), *said]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "phase1" in result.output and "2 epochs" in result.output
    return folder


def test_the_commands_go_through_the_phases(tmp_path: Path) -> None:
    folder = digits(tmp_path, "epochs=1,train=head.*", "epochs=2,train=encoder.*,head.*,lr=1e-4")
    before = gradcut.TrainingSession(folder).parameters()
    train = ["train", str(folder), "--data", str(MODELS / "digits.npz"), "--batch-size", "64"]
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(one["epoch"], one["lr"]) for one in records] == [(1, 1e-3), (2, 1e-4), (3, 1e-4)]
    session = gradcut.TrainingSession(folder)
    assert session.phase == "phase2" and session.program().steps == 2 * session.programs["phase1"].steps
    after = session.parameters()
    assert any(after[name].tobytes() != before[name].tobytes() for name in after if name.startswith("encoder"))
    exported = CliRunner().invoke(app, ["export", str(folder), "-o", str(tmp_path / "tuned.onnx")])
    assert exported.exit_code == 0, exported.output
    tuned = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "tuned.onnx").graph.initializer}
    assert all(tuned[name].tobytes() == after[name].tobytes() for name in after)
    again = CliRunner().invoke(app, [*train, "--epochs", "5", "--resume"])
    assert again.exit_code == 2 and "the phases last 3 epochs together" in again.output


def test_one_phase_is_not_trained_by_itself(tmp_path: Path) -> None:
    """Its checkpoint would lie where nothing reads it."""
    folder = digits(tmp_path, "epochs=1,train=head.*", "epochs=2,train=head.*")
    result = CliRunner().invoke(app, ["train", str(folder / "phase1"), "--data", str(MODELS / "digits.npz")])
    assert result.exit_code == 2 and "phase1 is one step of" in result.output
    assert not (folder / "phase1" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("options", [{"lr": 0.01}, {"schedule": "cosine:warmup=3"}])
def test_rates_of_a_resumed_run_keep_their_proportion(options: dict[str, Any], tmp_path: Path) -> None:
    """A run that stops in the second phase and goes on ends as one that does not."""
    whole = digits(tmp_path, "epochs=1,train=head.*", "epochs=2,train=encoder.*,head.*,lr=1e-4")
    parts = Path(shutil.copytree(whole, tmp_path / "parts"))
    plan = Plan(data=MODELS / "digits.npz", batch_size=64, **options)
    Trainer(whole, plan).run(MagicMock())
    begun = Trainer(parts, plan)
    while begun.position.epoch < 2:
        begun._epoch(MagicMock(), Interrupt())
    Trainer(parts, replace(plan, resume=True)).run(MagicMock())
    assert Trainer(parts, replace(plan, resume=True)).position.epoch == 3
    ends = [gradcut.TrainingSession(folder).parameters() for folder in (whole, parts)]
    assert all(array.tobytes() == ends[1][name].tobytes() for name, array in ends[0].items())


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], "at least one"),
        (["train=head.*"], "does not say how long it lasts"),
        (["epochs=0,train=head.*"], "at least one epoch"),
        (["epochs=2,trian=head.*"], "'trian' in .* is no option of a phase"),
        (["epochs=2,epochs=3"], "given twice"),
        (["epochs=2,head.*"], "is not an option"),
        (["epochs=2,train=head.*", "epochs=1,train=nothing.*"], "phase2: 'nothing.*' matches no parameter"),
        (["epochs=2,train=head.*", "epochs=1,train=head.*,freeze=head.*"], "phase2: nothing is left to train"),
        (["epochs=1,train=low.*,stop-at=b"], "phase1: no trainable reaches the loss"),
        ([3], "phases are gradcut.Phase"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(phases: Any, said: str) -> None:
    with pytest.raises(GradcutError, match=said):
        artifacts(phases)


def test_options_beside_phases() -> None:
    with pytest.raises(SpecError, match="train belongs into the phases"):
        artifacts(train="head.*")
    with pytest.raises(SpecError, match="exclude each other"):
        gradcut.compile(model(), steps={"a": gradcut.Step(loss="cross_entropy")}, phases=PHASES)
    with pytest.raises(SpecError, match="ort-training takes one"):
        artifacts(target="ort-training")
    compiled = artifacts(groups={"mid.*": {"lr": 1e-4}}, ema=0.9, clip_norm=1.0)
    assert {one["optimizer"] for one in compiled.steps["phase3"].manifest["trainable"]} == {"adamw:lr=0.0001"}
    with pytest.raises(SpecError, match=r"'low.\*' matches no parameter that any phase trains"):
        artifacts(groups={"low.*": {"lr": 1e-4}})
    session = gradcut.TrainingSession(compiled)
    session.step("phase1", feeds(0))
    session.step("phase2", feeds(1))
    averaged = session.parameters(ema=True)
    assert averaged["low.weight"].tobytes() == session.parameters()["low.weight"].tobytes()
    assert averaged["head.weight"].tobytes() != session.parameters()["head.weight"].tobytes()
