"""Several heads over one trunk: one loss is cut from the trunk, and outputs that only look give it nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from tests.uses.common import backward, close, export, normal, seeded, torch_gradients


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.classes = nn.Linear(8, 3)
        self.value = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.trunk(x)
        return self.classes(h), self.value(h)


BATCH = {"x": normal(0, 5, 6), "labels": np.arange(5) % 3, "labels_2": normal(1, 5, 1)}
BOTH = "cross_entropy:output=logits + 0.5*mse:output=score"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "heads.onnx"
    return export(seeded(TwoHeads), {"x": BATCH["x"]}, path, ["logits", "score"])


def losses(module: TwoHeads) -> tuple[torch.Tensor, torch.Tensor]:
    logits, score = module(torch.tensor(BATCH["x"]))
    return cross_entropy(logits, torch.tensor(BATCH["labels"])), mse_loss(score, torch.tensor(BATCH["labels_2"]))


def gradients(file: Path, **options: object) -> dict[str, np.ndarray]:
    session = gradcut.TrainingSession(gradcut.compile(file, **options))
    feeds = {port["name"] for port in session.manifest["graphs"]["training_model"]["inputs"]}
    return session.gradients({name: array for name, array in BATCH.items() if name in feeds})


#: What goes from the trunk into the value head: by modules, by the value, by the node that reads it.
CUTS = ["trunk->value", "tanh->value", "tanh->node_linear_2", "*->value", "trunk->value.0"]


@pytest.mark.parametrize("cut", CUTS)
def test_the_trunks_gradient_is_that_of_the_remaining_loss(cut: str, file: Path) -> None:
    module = seeded(TwoHeads)
    alone = torch_gradients(module, losses(module)[0])
    found = gradients(file, loss=BOTH, stop_at=cut)
    close({n: g for n, g in found.items() if "value" not in n}, {n: g for n, g in alone.items() if "value" not in n})
    theirs = torch_gradients(module, 0.5 * losses(module)[1])
    close({n: g for n, g in found.items() if "value" in n}, {n: g for n, g in theirs.items() if "value" in n})


def test_without_the_cut_both_reach_it(file: Path) -> None:
    module = seeded(TwoHeads)
    first, second = losses(module)
    close(gradients(file, loss=BOTH), torch_gradients(module, first + 0.5 * second))


def test_the_cut_costs_nothing_in_the_graph(file: Path) -> None:
    """One matrix product less: that of the cotangent with the value head's first weight."""
    cut = backward(gradcut.compile(file, loss=BOTH, stop_at="trunk->value").training_model)
    whole = backward(gradcut.compile(file, loss=BOTH).training_model)
    assert whole["node_linear_2"] - cut["node_linear_2"] == {"A"}
    assert {n: operands for n, operands in whole.items() if n != "node_linear_2"} == {
        n: operands for n, operands in cut.items() if n != "node_linear_2"
    }


def test_from_the_command_line(file: Path, tmp_path: Path) -> None:
    options = ["--loss", "cross_entropy:output=logits", "--loss", "0.5*mse:output=score", "--stop-at", "trunk->value"]
    result = CliRunner().invoke(app, ["compile", str(file), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    found = gradcut.TrainingSession(tmp_path / "out").gradients(BATCH)
    close(found, gradients(file, loss=BOTH, stop_at="trunk->value"), rtol=0, atol=0)


def test_an_output_that_only_looks_gives_the_trunk_nothing(file: Path) -> None:
    """The value is an output of the training graph still, and has no part in its backward."""
    looking = gradcut.compile(file, loss="cross_entropy:output=logits", train=["trunk.*", "classes.*"])
    assert not {"node_linear_2", "node_linear_3", "node_tanh_1"} & backward(looking.training_model).keys()
    result = gradcut.TrainingSession(looking).evaluate({name: BATCH[name] for name in ("x", "labels")})
    module = seeded(TwoHeads)
    np.testing.assert_allclose(result.outputs["score"], module(torch.tensor(BATCH["x"]))[1].detach(), atol=1e-6)
    close(
        gradients(file, loss="cross_entropy:output=logits", train=["trunk.*", "classes.*"]),
        torch_gradients(module, losses(module)[0]),
    )


def test_a_head_that_the_loss_does_not_reach_is_left_out_and_said(file: Path) -> None:
    artifacts = gradcut.compile(file, loss="cross_entropy:output=logits")
    assert not [name for name in artifacts.trainable if name.startswith("value.")]
    assert artifacts.manifest["unreached"]["value.0.weight"] == "no-path-to-loss"
    with pytest.raises(gradcut.errors.NothingTrainsError, match=r"value\.0\.weight, .*: no-path-to-loss"):
        gradcut.compile(file, loss="cross_entropy:output=logits", strict=True)
