"""Contrastive divergence for an RBM: the sampling chain is data to the gradient.

Hinton, Training Products of Experts by Minimizing Contrastive Divergence, 2002. The objective is the difference of free
energies F(v) = -b v - sum softplus(v W + c) of the data and of the chain's end, which is held constant.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import gradcut
from tests.uses.common import backward, close, outputs
from tests.written import parse

V, H = 6, 4
ENERGY = """
    {0}_in = MatMul ({0}, W)
    {0}_pre = Add ({0}_in, c)
    {0}_plus = Softplus ({0}_pre)
    {0}_hidden = ReduceSum <keepdims = 0> ({0}_plus, last)
    {0}_b = Mul ({0}, b)
    {0}_visible = ReduceSum <keepdims = 0> ({0}_b, last)
    {0}_free = Add ({0}_hidden, {0}_visible)
"""
#: One turn of block Gibbs sampling; the visible units are left as their probabilities, so that a derivative would pass.
TURN = """
    {i}_h_in = MatMul ({v}, W)
    {i}_h_pre = Add ({i}_h_in, c)
    {i}_h_p = Sigmoid ({i}_h_pre)
    {i}_h = {draw}
    {i}_wt = Transpose (W)
    {i}_v_in = MatMul ({i}_h, {i}_wt)
    {i}_v_pre = Add ({i}_v_in, b)
    {i}_v = Sigmoid ({i}_v_pre)
"""
DRAWS = {
    "Bernoulli": "Bernoulli ({i}_h_p)",
    "uniform": "Cast <to = 1> ({i}_less)\n",
    "mean field": "Identity ({i}_h_p)",  # no sampling at all: every turn has a derivative
}


def turns(k: int, draw: str) -> str:
    lines = []
    for i in range(k):
        text = TURN.replace("{draw}", DRAWS[draw]).replace("{v}", "v" if i == 0 else f"t{i - 1}_v")
        if draw == "uniform":
            text = text.replace(
                "{i}_h = ", "{i}_u = RandomUniformLike ({i}_h_p)\n    {i}_less = Less ({i}_u, {i}_h_p)\n    {i}_h = "
            )
        lines.append(text.replace("{i}", f"t{i}"))
    return "".join(lines) + f"    end = Identity (t{k - 1}_v)\n"


LOOP = """
    end = Loop (turns, yes, v) <body = body (int64 i, bool go, float[n,6] before) => (bool on, float[n,6] after) {
        on = Identity (go)
        l_h_in = MatMul (before, W)  l_h_pre = Add (l_h_in, c)  l_h_p = Sigmoid (l_h_pre)  l_h = Bernoulli (l_h_p)
        l_wt = Transpose (W)  l_v_in = MatMul (l_h, l_wt)  l_v_pre = Add (l_v_in, b)  after = Sigmoid (l_v_pre) }>
"""


def rbm(chain: str, stopped: bool = True) -> onnx.ModelProto:
    weights = ", ".join(f"{x:.4f}" for x in np.random.default_rng(0).normal(0, 0.5, V * H))
    mark = "gradcut.StopGradient" if stopped else "Identity"
    return parse(f"""g (float[n,{V}] v) => (float loss, float[n,{V}] end)
        <float[{V},{H}] W = {{{weights}}}, float[{V}] b = {{0.1, 0, -0.2, 0, 0, 0.3}},
         float[{H}] c = {{0, 0.1, -0.1, 0}}, int64[1] last = {{-1}}, bool yes = {{1}}, int64 turns = {{3}}> {{
        {chain}
        fantasy = {mark} (end)
        {ENERGY.format("v")} {ENERGY.format("fantasy")}
        difference = Sub (fantasy_free, v_free)
        loss = ReduceMean <keepdims = 0> (difference) }}""")


def bars(seed: int, n: int = 40) -> np.ndarray:
    """Rows of 2 x 3 pixels with one or both of two stripes lit."""
    return np.repeat(np.random.default_rng(seed).integers(0, 2, (n, 2)), 3, axis=1).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def contrast(data: np.ndarray, model: np.ndarray, W: np.ndarray, b: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    """Minus (<v h>_data - <v h>_model), in float64: what gradient descent takes."""
    data, model = data.astype(np.float64), model.astype(np.float64)
    h, g, n = sigmoid(data @ W + c), sigmoid(model @ W + c), len(data)
    return {"W": (model.T @ g - data.T @ h) / n, "b": (model - data).mean(0), "c": (g - h).mean(0)}


CHAINS = {
    "CD-1": turns(1, "Bernoulli"),
    "CD-3": turns(3, "Bernoulli"),
    "CD-2 by comparison": turns(2, "uniform"),
    "mean field": turns(2, "mean field"),
    "a loop": LOOP,
}
TRAIN = ["W", "b", "c"]


@pytest.mark.parametrize("chain", CHAINS)
def test_the_gradient_is_the_contrast_of_the_correlations(chain: str) -> None:
    """By vjp: the end of the chain is an output of the same run, so both sides have seen the same draws."""
    model, v = rbm(CHAINS[chain]), bars(0)
    derived = gradcut.vjp(model, wrt=TRAIN, of=["loss", "end"])
    found = outputs(derived, {"v": v, "loss_grad": 1.0, "end_grad": np.zeros_like(v)})
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name in TRAIN}
    close({name: found[f"{name}_grad"] for name in TRAIN}, contrast(v, found["end"], **weights), rtol=1e-4, atol=1e-6)


def test_in_training_the_same_draws_come_again_and_give_the_same_gradient() -> None:
    """Compiled, randomness is that of (seed, step): what `step` hands out is what the gradient was made of."""
    session = gradcut.TrainingSession(gradcut.compile(rbm(CHAINS["CD-3"]), train=TRAIN, seed=7, optimizer="sgd:lr=0"))
    v = bars(1)
    gradients, weights = session.gradients({"v": v}), session.parameters()
    end = session.step({"v": v}).outputs["end"]
    close(gradients, contrast(v, end, **{name: weights[name] for name in TRAIN}), rtol=1e-4, atol=1e-6)
    assert np.abs(session.step({"v": v}).outputs["end"] - end).max() > 1e-3  # the next step draws anew


@pytest.mark.parametrize("chain", CHAINS)
def test_no_backward_node_in_the_chain(chain: str) -> None:
    found = backward(gradcut.vjp(rbm(CHAINS[chain]), wrt=TRAIN, of=["loss"]))
    assert not [node for node in found if node.startswith(("MatMul_t", "Sigmoid", "Transpose", "Loop"))]
    assert {node for node in found if node.startswith("MatMul")} == {"MatMul_v_in", "MatMul_fantasy_in"}


def test_without_the_mark_the_chain_is_differentiated_too() -> None:
    v, seen = bars(0), []
    for stopped in (True, False):
        derived = gradcut.vjp(rbm(CHAINS["mean field"], stopped), wrt=TRAIN, of=["loss"])
        seen.append(outputs(derived, {"v": v, "loss_grad": 1.0})["W_grad"])
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


def test_it_learns_to_reconstruct() -> None:
    session = gradcut.TrainingSession(gradcut.compile(rbm(CHAINS["CD-1"]), train=TRAIN, optimizer="sgd:lr=.5"))
    errors = []
    for step in range(300):
        v = bars(step)
        errors.append(float(np.square(session.step({"v": v}).outputs["end"] - v).mean()))
    assert np.mean(errors[-30:]) < 0.5 * np.mean(errors[:10])
