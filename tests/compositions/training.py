"""One step of SGD on a random graph by `gradcut.compile`, against torch's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

import gradcut
from gradcut.errors import NoGradientError, NothingTrainsError
from tests import in_torch
from tests.compositions.generate import Case, generate

KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
RATE = 0.05


@dataclass(frozen=True)
class Training:
    """A case whose weights are parameters, with an output to bring to random targets."""

    case: Case
    output: str
    train: tuple[str, ...]
    freeze: tuple[str, ...]


def training(seed: int) -> Training | None:
    """The training of a seed; None where its graph has no weight, or no output that a loss is defined on."""
    case, rng = generate(seed), random.Random(seed)
    weights = [t.name for t in case.model.graph.initializer if t.name.startswith("w")]
    shapes = {v.name: v.type.tensor_type.shape for v in case.model.graph.output}
    outputs = [name for name in case.of if len(shapes[name].dim)]
    if not weights or not outputs:
        return None
    for name in weights:
        info = case.model.graph.value_info.add(name=name)
        tensor = next(t for t in case.model.graph.initializer if t.name == name)
        info.CopyFrom(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(tensor.dims)))
        info.metadata_props.add(key=KIND, value="InputKind.PARAMETER")
    train = rng.sample(weights, rng.randint(1, len(weights)))
    others = [name for name in weights if name != train[0]]
    freeze = rng.sample(others, rng.randint(0, len(others) // 2))
    return Training(case, rng.choice(outputs), tuple(train), tuple(freeze))


def by_torch(one: Training) -> tuple[float, dict[str, np.ndarray]]:
    """The loss before the step, and every weight after it, in float64."""
    case, weights = one.case, in_torch.weights(one.case.model)
    trained = [name for name in one.train if name not in one.freeze]
    output = in_torch.values(case.model, case.feeds, weights, stop_at=case.stop_at)[one.output]
    loss = torch.nn.functional.mse_loss(output, in_torch.tensor(target(one, tuple(output.shape))))
    asked = [weights[name] for name in trained]
    found: Sequence[torch.Tensor | None] = [None for _ in asked]
    if loss.requires_grad and asked:
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    moved = {n: w if g is None else w - RATE * g for n, w, g in zip(trained, asked, found, strict=True)}
    after = {name: moved.get(name, weight) for name, weight in weights.items() if name.startswith("w")}
    return loss.item(), {name: weight.detach().numpy() for name, weight in after.items()}


def target(one: Training, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([one.case.seed, 2]).normal(size=shape).astype(np.float32)


def by_gradcut(one: Training) -> tuple[float, dict[str, np.ndarray]]:
    """The same by a session; modes are the file's."""
    artifacts = gradcut.compile(
        one.case.model,
        loss=f"mse:output={one.output}",
        train=list(one.train),
        freeze=list(one.freeze),
        stop_at=list(one.case.stop_at),
        optimizer=gradcut.SGD(lr=RATE),
        batch_norm="eval",
        dropout="eval",
    )
    session = gradcut.TrainingSession(artifacts, threads=1)
    shape = in_torch.values(one.case.model, one.case.feeds, in_torch.weights(one.case.model))[one.output].shape
    loss = session.step({**one.case.feeds, artifacts.manifest["loss"]["labels"]: target(one, tuple(shape))}).loss
    return loss, session.parameters()


def disagreement(one: Training) -> str | None:
    """What differs after the step; where nothing trains, torch moves nothing either."""
    start = {t.name: numpy_helper.to_array(t) for t in one.case.model.graph.initializer if t.name.startswith("w")}
    loss, expected = by_torch(one)
    try:
        mine, found = by_gradcut(one)
    except NothingTrainsError:
        mine, found = loss, start
    except NoGradientError:
        return None  # what the graph has no rank for
    apart = {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}
    apart["the loss"] = abs(mine - loss) / max(1.0, abs(loss))
    allowed = {name: _allowed(start[name], expected[name]) for name in expected}
    wrong = [f"{name} is off by {error:.1e}" for name, error in apart.items() if error > allowed.get(name, 1e-4)]
    return "; ".join(wrong) or None


def _allowed(before: np.ndarray, after: np.ndarray) -> float:
    """Relative to how far a weight moves, and what float32 leaves of its own size."""
    return 1e-3 * float(np.abs(after - before).max()) + 1e-6 * (1 + float(np.abs(before).max()))
