"""`gradcut.vjp` on random graphs against torch, where marks and stops are `detach`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto, NodeProto, numpy_helper

import gradcut
from tests.graphs import Case, every_node, generate, shrink
from tests.written import session

Values = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]
DTYPES = {1: torch.float32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


def detached_steps(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Outputs]:
    return lambda node, x: (function(x).detach(),)


def smooth(function: Callable[..., torch.Tensor]) -> Callable[..., Outputs]:
    return lambda node, *operands: (function(*operands),)


def attribute(node: NodeProto, name: str) -> AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def normalization(node: NodeProto, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> Outputs:
    mean = x.mean(-1, keepdim=True)
    inverse = ((x - mean).square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return (x - mean) * inverse * scale + bias, mean, inverse


#: op -> what torch computes for it.
TORCH: dict[str, Callable[..., Outputs]] = {
    "Relu": smooth(torch.relu),
    "Sigmoid": smooth(torch.sigmoid),
    "Tanh": smooth(torch.tanh),
    "Neg": smooth(torch.neg),
    "Identity": smooth(lambda x: x),
    "Exp": smooth(torch.exp),
    "Add": smooth(torch.add),
    "Mul": smooth(torch.mul),
    "Sub": smooth(torch.sub),
    "Where": smooth(torch.where),
    "Greater": smooth(torch.gt),
    "Clip": smooth(lambda x, low, high: torch.minimum(torch.maximum(x, low), high)),
    "Concat": smooth(lambda a, b: torch.cat([a, b], 1)),
    "GatherElements": smooth(lambda x, i: torch.gather(x, 1, i)),
    "ReduceMax": smooth(lambda x: torch.amax(x, (0, 1))),
    "Floor": detached_steps(torch.floor),
    "Ceil": detached_steps(torch.ceil),
    "Round": detached_steps(torch.round),
    "Sign": detached_steps(torch.sign),
    "StopGradient": detached_steps(lambda x: x),
    "Shape": smooth(lambda x: torch.tensor(x.shape)),
    "Reshape": smooth(lambda x, s: x.reshape(tuple(s))),
    "Split": lambda node, x: tuple(torch.split(x, 2, 1)),
    "TopK": lambda node, x, k: tuple(torch.topk(x, 4, 1)),
    "Dropout": lambda node, x, ratio, training: (x, torch.ones_like(x, dtype=torch.bool)),
    "Cast": lambda node, x: (x.to(DTYPES[attribute(node, "to").i]),),
    "LayerNormalization": normalization,
}


def evaluate(nodes: list[NodeProto], known: Values, case: Case, wanted: dict[str, torch.Tensor]) -> None:
    """Every value by name. A wanted one gets a zero added, so that there is something to differentiate by."""

    def operand(name: str, node: NodeProto) -> torch.Tensor:
        value = known[name]
        return value.detach() if name in case.stop_at or f"{name}->{node.name}" in case.stop_at else value

    for node in nodes:
        if node.op_type == "If":
            side = "then_branch" if bool(known[node.input[0]]) else "else_branch"
            body = attribute(node, side).g
            evaluate(list(body.node), known, case, wanted)
            results = (known[body.output[0].name],)
        else:
            results = TORCH[node.op_type](node, *(operand(name, node) for name in node.input))
        for name, value in zip(node.output, results, strict=False):
            known[name] = value + wanted[name] if name in wanted else value


def by_torch(case: Case, feeds: dict[str, np.ndarray], seeds: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients of the case's question."""
    known = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in case.model.graph.initializer}
    known |= {name: torch.tensor(value) for name, value in feeds.items()}
    wanted = {name: torch.zeros(2, 4, requires_grad=True) for name in case.wrt}
    known |= {name: known[name] + wanted[name] for name in wanted if name in known}
    evaluate(list(case.model.graph.node), known, case, wanted)
    objective = sum((known[name] * torch.tensor(seed)).sum() for name, seed in zip(case.of, seeds, strict=True))
    if not objective.requires_grad:
        return [np.zeros((2, 4), np.float32) for _ in case.wrt]
    found = torch.autograd.grad(objective, list(wanted.values()), allow_unused=True)
    return [np.zeros((2, 4), np.float32) if g is None else g.numpy() for g in found]


def by_gradcut(case: Case, feeds: dict[str, np.ndarray], seeds: list[np.ndarray]) -> list[np.ndarray]:
    derived = gradcut.vjp(case.model, wrt=case.wrt, of=case.of, stop_at=case.stop_at)
    onnx.checker.check_model(derived, full_check=True)
    names = [value.name for value in derived.graph.input[-len(seeds) :]]
    outputs = session(derived).run(None, {**feeds, **dict(zip(names, seeds, strict=True))})
    return outputs[len(seeds) :]


def numbers(case: Case) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(case.seed)
    real = lambda: rng.normal(size=(2, 4)).astype(np.float32)
    kinds = {"ids": rng.integers(0, 4, (2, 4)), "flag": np.array(bool(rng.integers(2)))}
    feeds = {value.name: kinds.get(value.name, real()) for value in case.model.graph.input}
    for tensor in case.model.graph.initializer:
        if list(tensor.dims) == [2, 4]:
            tensor.CopyFrom(numpy_helper.from_array(real(), tensor.name))
        elif tensor.name == "training":
            tensor.CopyFrom(numpy_helper.from_array(np.array(False), "training"))
    return feeds, [real() for _ in case.of]


def comparable(case: Case) -> bool:
    """Indices out of range, and draws, are left to other tests; and numbers that explode."""
    nodes = list(every_node(case.model.graph.node))
    computed = {n.output[0] for n in nodes if n.op_type == "Cast" and attribute(n, "to").i == 7}
    return not any(n.op_type == "Gather" or (n.op_type == "GatherElements" and n.input[1] in computed) for n in nodes)


def disagreement(case: Case) -> str | None:
    feeds, seeds = numbers(case)
    try:
        found = by_gradcut(case, feeds, seeds)
    except gradcut.errors.NoGradientError:
        return None  # refused, which is not wrong
    expected = by_torch(case, feeds, seeds)
    for name, mine, theirs in zip(case.wrt, found, expected, strict=True):
        tame = np.isfinite(theirs).all() and np.abs(theirs).max() < 1e4
        if tame and not np.allclose(mine, theirs, rtol=2e-3, atol=2e-4):
            return f"by {name}:\n{mine}\nand not\n{theirs}"
    return None


@pytest.mark.parametrize("block", range(5))
def test_gradients_of_random_graphs_equal_torchs(block: int) -> None:
    cases = filter(comparable, (generate(seed) for seed in range(10_000 + 60 * block, 10_060 + 60 * block)))
    for case in cases:
        if disagreement(case) is not None:
            case = shrink(case, lambda smaller: comparable(smaller) and disagreement(smaller) is not None)
            pytest.fail(f"{disagreement(case)}\n{case}")
