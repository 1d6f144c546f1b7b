"""SimSiam, BYOL and MoCo: what is compared against is a constant; the recipes build on this.

Chen and He, Exploring Simple Siamese Representation Learning, 2021; Grill et al., 2020; He et al., 2020.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import gradcut
from tests.uses.common import backward, close, export, normal, operators, seeded, torch_gradients

VIEWS = {"x1": normal(0, 6, 5), "x2": normal(1, 6, 5)}


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


def distance(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """D: minus the mean cosine."""
    return -cosine_similarity(p, z, dim=1).mean()


class SimSiam(nn.Module):
    def __init__(self, predictor: bool, stopped: bool) -> None:
        super().__init__()
        self.encoder, self.stopped = encoder(), stopped
        self.predictor = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)) if predictor else nn.Identity()

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        z1, z2 = self.encoder(x1), self.encoder(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        if self.stopped:
            z1, z2 = z1.detach(), z2.detach()
        return 0.5 * distance(p1, z2) + 0.5 * distance(p2, z1)


def siamese(folder: Path, predictor: bool, stopped: bool) -> Path:
    return export(seeded(SimSiam, predictor, stopped), VIEWS, folder / f"{predictor}_{stopped}.onnx", ["loss"])


def gradients(file: Path) -> dict[str, np.ndarray]:
    return gradcut.TrainingSession(gradcut.compile(file)).gradients(VIEWS)


def test_without_a_predictor_the_marks_give_half_of_the_unmarked_gradient(tmp_path: Path) -> None:
    marked, unmarked = (gradients(siamese(tmp_path, False, one)) for one in (True, False))
    assert np.abs(unmarked["encoder.0.weight"]).max() > 1e-2
    close({name: 2 * array for name, array in marked.items()}, unmarked, rtol=1e-5, atol=1e-7)


def test_with_a_predictor_it_is_torchs_and_not_half(tmp_path: Path) -> None:
    found = {}
    for stopped in (True, False):
        module = seeded(SimSiam, True, stopped)
        loss = module(**{name: torch.tensor(array) for name, array in VIEWS.items()})
        found[stopped] = gradients(siamese(tmp_path, True, stopped))
        close(found[stopped], torch_gradients(module, loss))
    assert np.abs(2 * found[True]["encoder.0.weight"] - found[False]["encoder.0.weight"]).max() > 1e-3


def test_the_forward_does_not_see_the_marks(tmp_path: Path) -> None:
    one, other = (gradcut.compile(siamese(tmp_path, True, stopped)) for stopped in (True, False))
    assert operators(one.eval_model) == operators(other.eval_model)
    losses = {gradcut.TrainingSession(artifacts).evaluate(VIEWS).loss for artifacts in (one, other)}
    assert len(losses) == 1


# --- momentum branches -----------------------------------------------------------------------------------------


class BYOL(nn.Module):
    """Two copies of the encoder; the target's copy follows the online one outside the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = encoder(), encoder()
        self.predictor = nn.Linear(4, 4)

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            t1, t2 = self.target(x1), self.target(x2)
        one = distance(self.predictor(self.online(x1)), t2)
        return 2 + one + distance(self.predictor(self.online(x2)), t1)


class MoCo(nn.Module):
    """InfoNCE of a query against its key and a queue of others."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = encoder(), encoder()

    def forward(self, x1: torch.Tensor, x2: torch.Tensor, queue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = normalize(self.query(x1), dim=1)
        k = normalize(self.key(x2), dim=1).detach()
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.2
        return cross_entropy(logits, torch.zeros_like(x1[:, 0]).long()), k


QUEUE = normal(2, 10, 4) / np.linalg.norm(normal(2, 10, 4), axis=1, keepdims=True)


@pytest.fixture(scope="module")
def byol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(BYOL), VIEWS, tmp_path_factory.mktemp("byol") / "byol.onnx", ["loss"])


@pytest.fixture(scope="module")
def moco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moco") / "moco.onnx"
    return export(seeded(MoCo), {**VIEWS, "queue": QUEUE}, path, ["loss", "keys"], fixed="queue")


def readers(file: Path, module: str) -> set[str]:
    """The nodes that read a parameter of a module; a region of `no_grad` has no module paths in the file."""
    reads = lambda node: any(value is not None and value.name.startswith(f"{module}.") for value in node.inputs)
    return {node.name for node in gradcut.load(file).graph if reads(node)}


@pytest.mark.parametrize("options", [{"freeze": "target"}, {"train": ["online", "predictor"]}], ids=str)
def test_no_backward_node_in_the_target_branch_of_byol(options: dict[str, str], byol: Path) -> None:
    artifacts = gradcut.compile(byol, **options)
    target, online = readers(byol, "target"), readers(byol, "online")
    assert len(target) == len(online) == 4
    built = backward(artifacts.training_model)
    assert online <= built.keys() and not target & built.keys()
    assert sum(node.startswith("node_tanh") for node in built) == 2  # the online branch's, and not the target's two
    module = seeded(BYOL)
    expected = torch_gradients(module, module(**{name: torch.tensor(array) for name, array in VIEWS.items()}))
    close(gradcut.TrainingSession(artifacts).gradients(VIEWS), expected)


def test_marks_of_no_grad_survive_gradcuts_own_export_and_the_target_is_an_average(tmp_path: Path) -> None:
    """Nothing need be said; what moves the target is declared, and equals the closed form: t' = d t + (1 - d) p."""
    args = tuple(torch.tensor(array) for array in VIEWS.values())
    file = gradcut.torch.export(seeded(BYOL), args, tmp_path / "byol.onnx", output_names=["loss"])
    average = gradcut.EMA({"target.*": "online.*"}, decay=0.9)
    artifacts = gradcut.compile(file, state=average, optimizer="sgd:lr=0.1")
    assert not in_scope(file, "target") & backward(artifacts.training_model).keys()
    assert in_scope(file, "online") <= backward(artifacts.training_model).keys()
    session = gradcut.TrainingSession(artifacts)
    expected = {n.removeprefix("target."): a for n, a in session.state().items() if n.startswith("target.")}
    assert expected.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for _ in range(5):
        session.step(VIEWS)
        online = session.parameters()
        expected = {n: 0.9 * a + 0.1 * online[f"online.{n}"] for n, a in expected.items()}
    close({n.removeprefix("target."): a for n, a in session.state().items()}, expected, rtol=1e-5)


def in_scope(file: Path, module: str) -> set[str]:
    paths = "pkg.torch.onnx.name_scopes"
    return {n.name for n in gradcut.load(file).graph if f"'{module}'" in n.metadata_props.get(paths, "")}


def test_no_backward_node_in_the_key_branch_of_moco(moco: Path) -> None:
    """Its detach is a mark in the file, so nothing need be said."""
    artifacts = gradcut.compile(moco, "loss")
    built = backward(artifacts.training_model)
    assert readers(moco, "query") <= built.keys() and not readers(moco, "key") & built.keys()
    assert sum(node.startswith("node_tanh") for node in built) == 1
    feeds = {**VIEWS, "queue": QUEUE}
    module = seeded(MoCo)
    expected = torch_gradients(module, module(**{name: torch.tensor(array) for name, array in feeds.items()})[0])
    session = gradcut.TrainingSession(artifacts)
    close(session.gradients(feeds), expected)
    before = session.parameters()
    session.step(feeds)
    for name, array in session.parameters().items():
        assert (array.tobytes() == before[name].tobytes()) == name.startswith("key."), name
