"""SimSiam around an exported encoder: against plain torch, against itself without the mark, and on bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession

import gradcut
from gradcut import losses, recipes
from gradcut.dialect import is_mark
from gradcut.errors import FeedError, LossError, SpecError
from gradcut.recipes import SimSiam
from tests.exported import text
from tests.recipes import plain

SMALL: dict[str, Any] = {"projector": 24, "dim": 16, "predictor": 8}
SEED = 11
SGD = "sgd:lr=0.05,momentum=0.9,weight_decay=1e-4"


def program(**options: Any) -> recipes.Program:
    return recipes.simsiam(plain.encoder_file(), **{**SMALL, "optimizer": SGD, **options})


# --- against torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_bn", [False, True])
def test_twenty_steps_follow_torch(last_bn: bool) -> None:
    """Where torch follows itself: at a rate of 0.05 a change of 1e-7 in one weight is one of 1e-3 in the loss of the
    twentieth step, as ReLUs switch."""
    ours = program(projector=64, dim=32, predictor=16, last_bn=last_bn, optimizer=SGD.replace("0.05", "0.001"))
    theirs = plain.SimSiam(ours)
    optimizer = plain.sgd([theirs], lr=0.001, momentum=0.9, weight_decay=1e-4)
    session = ours.session(threads=1)
    losses = []
    for number, views in enumerate(plain.view_batches(20, 256, SEED)):
        optimizer.zero_grad()
        loss = plain.simsiam_loss(*theirs(*map(torch.from_numpy, views)))
        loss.backward()
        optimizer.step()
        losses.append(session.step(*views).loss)
        assert losses[-1] == pytest.approx(loss.item(), abs=1e-4), f"step {number + 1}, seed {SEED}"
    assert losses[-1] < losses[0] - 0.08
    modules = {"": theirs.encoder, "projector.": theirs.projector, "predictor.": theirs.predictor}
    tensors = session.tensors()
    assert plain.largest_difference(tensors, plain.named_tensors(modules))[0] < 1e-4
    assert plain.largest_difference(tensors, plain.named_tensors(modules, buffers=True))[0] < 1e-3


def test_the_first_gradients_are_torchs() -> None:
    ours = program()
    theirs = plain.SimSiam(ours)
    (views,) = plain.view_batches(1, 64, SEED)
    plain.simsiam_loss(*theirs(*map(torch.from_numpy, views))).backward()
    modules = (("", theirs.encoder), ("projector.", theirs.projector), ("predictor.", theirs.predictor))
    wanted = {f"{prefix}{name}": p.grad for prefix, module in modules for name, p in module.named_parameters()}
    session = ours.session(threads=1)
    gradients = session.training.gradients(session.program.feeds(*views))
    assert gradients.keys() == wanted.keys()
    scale = max(float(one.abs().max()) for one in wanted.values() if one is not None)
    assert plain.largest_difference(gradients, wanted)[0] < 1e-5 * max(scale, 1)  # type: ignore[arg-type]


def test_the_model_and_losses_symmetric_say_the_same() -> None:
    ours = program()
    outputs = [value for value in ours.composed.model.graph.outputs if value.name != "loss"]
    bare = ours.composed.model.clone()
    bare.graph.outputs[:] = [value for value in bare.graph.outputs if value.name != "loss"]
    named = [value.name or "" for value in outputs]
    assert named == ["p1", "p2", "z1", "z2"]
    other = gradcut.TrainingSession(
        gradcut.compile(bare, losses.symmetric("p1", "p2", "z1", "z2"), batch_norm="train"), threads=1
    )
    session = ours.session(threads=1)
    feeds = session.program.feeds(*plain.view_batches(1, 32, SEED)[0])
    for name, gradient in session.training.gradients(feeds).items():
        np.testing.assert_allclose(other.gradients(feeds)[name], gradient, rtol=1e-4, atol=1e-7, err_msg=name)


# --- the mark ------------------------------------------------------------------------------------------------


def forward(model: ir.Model) -> list[str]:
    """What a training graph computes for its loss, its outputs and its next state: nodes as text, in order."""
    kept = {"loss", "p1", "p2", "z1", "z2"}
    results = [v for v in model.graph.outputs if v.name in kept or (v.name or "").endswith(("_mean_next", "_var_next"))]
    needed, lines = set(results), []
    for node in reversed(list(model.graph)):
        if needed.isdisjoint(node.outputs):
            continue
        needed.update(value for value in node.inputs if value is not None)
        reads = [value.name if value is not None else "" for value in node.inputs]
        used = [value.name for value in node.outputs if value in needed]
        attributes = sorted(str(attribute) for attribute in node.attributes.values())
        lines.append(f"{used} = {node.domain}.{node.op_type}({reads}) {attributes}")
    return lines[::-1]


def test_without_the_mark_the_forward_graphs_are_the_same() -> None:
    """Node for node, in what is trained and in what is evaluated, and the weights that both start from."""
    marked, unmarked = program(), program(stop_gradient=False)
    assert sum(map(is_mark, marked.composed.model.graph)) == 2
    assert not any(map(is_mark, unmarked.composed.model.graph))
    for graph in ("training_model", "eval_model"):
        lines = forward(marked.artifacts.models[graph])
        assert len(lines) > 40
        assert lines == forward(unmarked.artifacts.models[graph])
    assert marked.artifacts.tensors.keys() == unmarked.artifacts.tensors.keys()
    for name, tensor in marked.artifacts.tensors.items():
        assert np.array_equal(tensor, unmarked.artifacts.tensors[name]), name
    assert len(marked.artifacts.training_model.graph) < len(unmarked.artifacts.training_model.graph)


def test_without_a_predictor_the_mark_halves_the_gradient() -> None:
    """Chen & He, section 4.2: D is symmetric, so stop(z2) takes one of two equal halves."""
    (views,) = plain.view_batches(1, 64, SEED)
    found = []
    for stop in (True, False):
        session = program(predictor=0, stop_gradient=stop).session(threads=1)
        found.append(session.training.gradients(session.program.feeds(*views)))
    half, whole = found
    scale = max(float(np.abs(one).max()) for one in whole.values())
    assert scale > 1e-3
    for name, gradient in whole.items():
        np.testing.assert_allclose(2 * half[name], gradient, rtol=1e-4, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize(("loss", "factor"), [("mse", 1.0), ("huber:delta=0.3", 0.25)])
def test_any_loss_and_factor(loss: str, factor: float) -> None:
    ours = program(loss=loss, factor=factor)
    theirs = plain.SimSiam(ours)
    (views,) = plain.view_batches(1, 32, SEED)
    D = torch.nn.functional.mse_loss if loss == "mse" else torch.nn.HuberLoss(delta=0.3)
    p1, p2, z1, z2 = theirs(*map(torch.from_numpy, views))
    expected = factor * D(p1, z2.detach()) + factor * D(p2, z1.detach())
    assert ours.session(threads=1).step(*views).loss == pytest.approx(expected.item(), rel=1e-5)


# --- the heads, the encoder, what comes out ------------------------------------------------------------------


def test_the_published_heads_are_the_default() -> None:
    recipe = SimSiam()
    assert (recipe.projector, recipe.dim, recipe.predictor, recipe.last_bn) == (2048, 2048, 512, True)
    assert (recipe.stop_gradient, recipe.loss, recipe.factor) == (True, "neg_cosine", 0.5)
    assert (recipe.name, recipe.category) == ("simsiam", "non-contrastive")
    assert not recipe.has_memory_bank and not recipe.has_momentum_encoder
    shapes = {
        name: tuple(value.const_value.shape)  # type: ignore[union-attr]
        for name, value in recipes.simsiam(plain.encoder_file()).composed.model.graph.initializers.items()
        if name.startswith(("projector", "predictor")) and "running" not in name
    }
    assert shapes == {
        "projector.0.weight": (2048, 256),
        "projector.1.weight": (2048,),
        "projector.1.bias": (2048,),
        "projector.3.weight": (2048, 2048),
        "projector.4.weight": (2048,),
        "projector.4.bias": (2048,),
        "projector.6.weight": (2048, 2048),
        "projector.7.scale": (2048,),
        "projector.7.shift": (2048,),
        "predictor.0.weight": (512, 2048),
        "predictor.1.weight": (512,),
        "predictor.1.bias": (512,),
        "predictor.3.weight": (2048, 512),
        "predictor.3.bias": (2048,),
    }


def test_heads_are_drawn_as_torch_draws_them() -> None:
    """Uniform within 1/sqrt(in): the bound is kept, nearly reached, and the std is bound / sqrt(3)."""
    weights = program().composed.model.graph.initializers
    for name, width in (("projector.0.weight", 256), ("predictor.3.weight", 8), ("predictor.3.bias", 8)):
        array = weights[name].const_value.numpy()  # type: ignore[union-attr]
        bound = 1 / np.sqrt(width)
        assert 0.7 * bound < np.abs(array).max() <= bound
        if array.size > 1000:
            assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_the_tuned_encoder_comes_out(tmp_path: Any) -> None:
    ours = program()
    session = ours.session(threads=1)
    for views in plain.view_batches(3, 32, SEED):
        session.step(*views)
    session.export(tmp_path / "tuned.onnx")
    before, after = onnx.load(plain.encoder_file()), onnx.load(tmp_path / "tuned.onnx")
    assert [one.name for one in after.graph.initializer] == [one.name for one in before.graph.initializer]
    tensors = session.tensors()
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        array = onnx.numpy_helper.to_array(new)
        assert not np.array_equal(array, onnx.numpy_helper.to_array(old)), new.name
        assert np.array_equal(array, tensors[new.name]), new.name
    images = plain.digits()[0][:16]
    stock = InferenceSession(str(tmp_path / "tuned.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.embed(images), stock.run(None, {"image": images})[0], rtol=1e-4, atol=1e-5)


def test_frozen_parts_of_the_encoder_stay() -> None:
    ours = recipes.simsiam(plain.encoder_file(), **SMALL, optimizer=SGD, freeze=["conv1*", "bn1*"])
    session = ours.session(threads=1)
    before = session.training.parameters()
    session.step(*plain.view_batches(1, 32, SEED)[0])
    after = session.training.parameters()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name for name in before if name not in moved} == {"conv1.weight", "bn1.weight", "bn1.bias"}


def test_the_same_twice_is_byte_for_byte_the_same() -> None:
    one, two = (ir.to_proto(program().artifacts.training_model).SerializeToString() for _ in range(2))
    assert one == two


MAPS = text(
    """
g (float[batch, 2, 4, 4] image, float[batch, 3] extra) => (float[batch, 5, h, w] maps, float[batch, 3] other)
<float[5, 2, 3, 3] kernel = {KERNEL}>
{ maps = Conv (image, kernel) other = Neg (extra) }""".replace("KERNEL", ", ".join(["0.1"] * 90))
)


def test_maps_are_averaged_and_unused_inputs_are_left_out() -> None:
    ours = recipes.simsiam(MAPS, **SMALL, output="maps")
    assert ours.encoder.width == 5
    image = np.random.default_rng(SEED).normal(size=(6, 2, 4, 4)).astype(np.float32)
    session = ours.session(threads=1)
    expected = torch.nn.functional.conv2d(torch.from_numpy(image), torch.full((5, 2, 3, 3), 0.1)).mean((2, 3))
    np.testing.assert_allclose(session.embed(image), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.isfinite(session.step(image, image).loss)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unclear": ({}, "which output of the encoder is meant is unclear; the float outputs are maps, other: say output="),
    "unknown": ({"output": "map"}, "the encoder has no value 'map'. Nearest: maps"),
    "rank": ({"output": "kernel2"}, "the encoder has no value 'kernel2'. Nearest: kernel"),
    "option": ({"output": "maps", "hidden": 3}, "simsiam has no option 'hidden'."),
    "kind": ({"output": "maps", "dim": "wide"}, "simsiam: dim is int, not 'wide'"),
    "zero": ({"output": "maps", "dim": 0}, "simsiam: dim is 0; it is above 0"),
    "negative": ({"output": "maps", "predictor": -1}, "simsiam: predictor is -1; it is at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        recipes.simsiam(MAPS, **options)
    assert str(caught.value).startswith(message)


def test_bad_loss_and_bad_feeds() -> None:
    with pytest.raises(LossError, match="there is no loss 'cosin'"):
        program(loss="cosin")
    with pytest.raises(LossError, match="simsiam: loss is one between two vectors"):
        program(loss="cross_entropy")
    session = program().session(threads=1)
    ((one, two),) = plain.view_batches(1, 8, SEED)
    with pytest.raises(FeedError, match="simsiam takes 2 views of a batch, not 1"):
        session.step(one)
    with pytest.raises(FeedError, match="a view names the encoder's inputs, image, not picture"):
        session.step({"picture": one}, {"picture": two})
    assert session.step({"image": one}, {"image": two}).step == 1
