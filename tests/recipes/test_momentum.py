"""BYOL against plain torch; what the target branches of BYOL and MoCo must not have; averages against closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradcut
from gradcut import recipes
from gradcut.dialect import is_mark
from gradcut.errors import SpecError
from gradcut.recipes import BYOL, Program
from models import encoder as encoders
from tests.recipes import plain

SEED = 31
SMALL = {"projector": 64, "dim": 32, "predictor": 48}
SGD = "sgd:lr=0.001,momentum=0.9"


def programs() -> list[Program]:
    byol = recipes.byol(plain.encoder_file(), **SMALL, optimizer=SGD)
    moco = recipes.moco(plain.encoder_file(), projector=64, dim=32, queue=64, optimizer=SGD)
    return [byol, moco]


def regression(p: Tensor, t: Tensor) -> Tensor:
    """Equation 2 of the paper."""
    return ((F.normalize(p, dim=1) - F.normalize(t, dim=1)) ** 2).sum(1).mean()


def tau(start: float, step: int, steps: int) -> float:
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2


def test_byol_follows_torch_for_twenty_steps() -> None:
    recipe = BYOL(**SMALL, tau=0.9, steps=20)
    ours = recipes.byol(plain.encoder_file(), recipe, optimizer=SGD)
    online = plain.Network(ours, projector=plain.bottleneck(256, 64, 32))
    predictor = plain.with_weights(plain.bottleneck(32, 48, 32), ours, "predictor.")
    target = copy.deepcopy(online)
    optimizer = plain.sgd([online, predictor], lr=0.001, momentum=0.9)
    session = ours.session(threads=1)
    losses = []
    for number, (x1, x2) in enumerate(plain.view_batches(20, 128, SEED)):
        z1, z2 = online(x1), online(x2)
        with torch.no_grad():
            t1, t2 = target(x1), target(x2)
        optimizer.zero_grad()
        loss = regression(predictor(z1), t2) + regression(predictor(z2), t1)
        loss.backward()
        optimizer.step()
        plain.averaged(target, online, tau(0.9, number, 20))
        losses.append(session.step(x1, x2).loss)
        assert losses[-1] == pytest.approx(loss.item(), abs=1e-4), f"step {number + 1}, seed {SEED}"
    assert losses[-1] < losses[0] - 0.05
    tensors = session.tensors()
    parameters = online.tensors() | target.tensors("target.") | plain.named_tensors({"predictor.": predictor})
    assert plain.largest_difference(tensors, parameters)[0] < 1e-4
    statistics = online.tensors(buffers=True) | target.tensors("target.", buffers=True)
    assert plain.largest_difference(tensors, statistics)[0] < 1e-3


@pytest.mark.parametrize(("steps", "decay"), [(0, 0.8), (6, 0.5)])
def test_averages_equal_the_closed_form(steps: int, decay: float) -> None:
    """t_n = prod d_k t_0 + sum_k (1 - d_k) prod_{j > k} d_j w_k, in float64 over the weights of each step."""
    session = recipes.byol(plain.encoder_file(), **SMALL, tau=decay, steps=steps, optimizer="sgd:lr=0.05").session()
    start, weights = session.tensors(), []
    for views in plain.view_batches(6, 32, SEED):
        session.step(*views)
        weights.append(session.tensors())
    decays = [tau(decay, k, steps) if steps else decay for k in range(6)]
    names = [name for name in start if f"target.{name}" in start and "running" not in name]
    assert len(names) == 14
    for name in names:
        expected = np.prod(decays) * start[f"target.{name}"].astype(np.float64)
        for k, now in enumerate(weights):
            expected += (1 - decays[k]) * np.prod(decays[k + 1 :]) * now[name].astype(np.float64)
        np.testing.assert_allclose(session.tensors()[f"target.{name}"], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("which", [0, 1])
def test_no_backward_node_in_the_target_branch(which: int) -> None:
    """No cotangent is computed of a value of the branch, and of its values the backward reads the last alone."""
    ours, scope = programs()[which], ("target/", "key/")[which]
    graph = ours.artifacts.training_model.graph
    marked = {node.inputs[0].name for node in ours.composed.model.graph if is_mark(node) and node.inputs[0] is not None}
    computing = [node for node in graph if node.op_type != "Constant"]
    inside = {v.name for node in computing for v in node.outputs if (v.name or "").startswith(scope)} - marked
    assert len(inside) > 10
    weights = [name for name in ours.composed.model.graph.initializers if name.startswith(("target.", "key."))]
    assert len(weights) >= 14
    forward = {node.name for node in ours.composed.model.graph}
    backward = [node for node in graph if node.metadata_props.get("gradcut.adjoint")]
    assert len(backward) > 30
    for node in backward:
        assert node.name not in forward
        assert not (node.name or "").startswith(scope), node.name
        reads = {value.name for value in node.inputs if value is not None}
        assert not reads & inside and not reads & {*weights}, node.name
    made = {port["name"] for port in ours.artifacts.manifest["graphs"]["training_model"]["outputs"]}
    assert not [name for name in weights if f"{name}_grad" in made]


def test_without_its_target_branch_the_backward_is_as_large() -> None:
    """As many backward nodes as where the target's projections are fed: the branch costs no gradient."""
    ours = programs()[0]
    backward = lambda art: sum(bool(n.metadata_props.get("gradcut.adjoint")) for n in art.training_model.graph)
    fed = ours.composed.model.clone()
    inputs = {}
    for node in list(fed.graph):
        if is_mark(node):
            value = node.inputs[0]
            assert value is not None
            inputs[value.name] = ir.Value(name=f"{value.name}_fed", type=value.type, shape=value.shape)
            fed.graph.inputs.append(inputs[value.name])
            node.replace_input_with(0, inputs[value.name])
    fed.graph.outputs[:] = [value for value in fed.graph.outputs if value.name not in ("t1", "t2")]
    assert backward(ours.artifacts) == backward(gradcut.compile(fed, optimizer=SGD, batch_norm="train"))


def test_target_norms_run_on_batch_statistics() -> None:
    """With a target equal to the online network, t is z: in inference mode it would be far from it."""
    session = programs()[0].session(threads=1)
    outputs = session.step(*plain.view_batches(1, 64, SEED)[0]).outputs
    for t, z in (("t1", "z1"), ("t2", "z2")):
        np.testing.assert_allclose(outputs[t], outputs[z], rtol=1e-4, atol=1e-5)
    before = encoders.module().state_dict()["bn1.running_mean"].numpy()
    assert not np.allclose(session.tensors()["target.bn1.running_mean"], before)


def test_a_program_goes_on_from_its_checkpoint(tmp_path: object) -> None:
    one, two = (program.session(threads=1) for program in (programs()[0], programs()[0]))
    batches = plain.view_batches(4, 32, SEED)
    for views in batches[:2]:
        one.step(*views)
    one.training.save_checkpoint(f"{tmp_path}/c.safetensors")
    two.training.load_checkpoint(f"{tmp_path}/c.safetensors")
    for views in batches[2:]:
        assert one.step(*views).loss == two.step(*views).loss
    for name, array in one.tensors().items():
        assert np.array_equal(array, two.tensors()[name]), name


def test_what_byol_is() -> None:
    recipe = BYOL()
    assert (recipe.projector, recipe.dim, recipe.predictor, recipe.tau) == (4096, 256, 4096, 0.996)
    assert (recipe.name, recipe.category) == ("byol", "non-contrastive")
    assert recipe.has_momentum_encoder and not recipe.has_memory_bank
    for options, message in (({"tau": 2.0}, r"tau is 2\.0"), ({"steps": -1}, "steps is -1"), ({"dim": 0}, "dim is 0")):
        with pytest.raises(SpecError, match=message):
            BYOL(**options)  # type: ignore[arg-type]
