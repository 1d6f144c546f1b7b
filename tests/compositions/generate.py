"""The case of a seed: a random graph and a random question about it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from gradcut.passes.importing.functions import BY_BODY
from gradcut.rules import REGISTRY
from tests.compositions import elements, indices, norms, products, shapes, windows  # noqa: F401  they declare makers
from tests.compositions.makers import MAKERS
from tests.compositions.writer import Shape, Writer

OPSETS = (13, 17, 21, 21, 23, 26)
FORMS = ("static", "static", "static", "symbolic", "unknown")
_PLAIN = frozenset({"And", "Equal", "Greater", "Less", "Not", "Or", "StopGradient", "Constant"})


@dataclass(frozen=True)
class Case:
    """A graph, what it is fed, and a question about its gradients.

    Attributes:
        feeds: of every input. again: of which gradients a gradient is asked too; empty: of none.
    """

    seed: int
    model: ModelProto
    feeds: dict[str, np.ndarray]
    of: tuple[str, ...]
    wrt: tuple[str, ...]
    stop_at: tuple[str, ...] = ()
    again: tuple[str, ...] = ()

    def __str__(self) -> str:
        fed = "; ".join(f"{name} = {array.tolist()}" for name, array in self.feeds.items())
        question = f"of={list(self.of)} wrt={list(self.wrt)} stop_at={list(self.stop_at)} again={list(self.again)}"
        return f"seed {self.seed}: {question}\n{onnx.printer.to_text(self.model)}\nfed: {fed}"

    @property
    def operators(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]


def operators(opset: int = 26) -> list[str]:
    """Those that a graph of an opset is made of: all that have a maker and here a rule, and their like."""
    writer = Writer(random.Random(0), opset)
    known = lambda op: REGISTRY.knows("", op) or op in _PLAIN or op in BY_BODY
    return [op for op in sorted(MAKERS) if writer.has(op) and known(op)]


def generate(seed: int, smallest: int = 5, largest: int = 30) -> Case:
    """The case of a seed; the same one while the operators are the same."""
    rng = random.Random(seed)
    w = Writer(rng, rng.choice(OPSETS))
    for _ in range(rng.randint(1, 3)):
        w.leaf(w.random_shape(0, 5) if rng.random() < 0.3 else w.random_shape(2, 4))
    size, choices = rng.randint(smallest, largest), operators(w.opset)
    while len(w.nodes) < size:
        op = rng.choice(choices)
        w.attempt(lambda w, op=op: MAKERS[op](w, op))  # type: ignore[misc]
    return _question(seed, rng, w)


def _question(seed: int, rng: random.Random, w: Writer) -> Case:
    produced = {name for node in w.nodes for name in node.output}
    inner = [name for name in w.floats if name in produced]
    read = {name for node in w.nodes for name in node.input}
    ends = [name for name in inner if name not in read] or inner[-1:]
    outputs = list(dict.fromkeys([*rng.sample(ends, min(len(ends), 3)), *rng.sample(inner, rng.randint(0, 1))]))
    of = some(rng, outputs, len(outputs))
    leaves = [*w.inputs, *w.weights]
    again = rng.random() < 0.15
    others = rng.sample(inner, min(2, len(inner))) if not again and rng.random() < 0.3 else []
    wrt = some(rng, [*leaves, *others], 4)
    stop_at = _stops(rng, w, [name for name in (*leaves, *inner) if name not in (*outputs, *wrt)])
    case = Case(seed, model(w, outputs), dict(w.inputs), of, wrt, stop_at)
    case = replace(case, model=formed(case.model, rng.choice(FORMS)))
    return replace(case, again=some(rng, wrt, 2)) if again else case


def some(rng: random.Random, names: Sequence[str], most: int) -> tuple[str, ...]:
    return tuple(rng.sample(list(names), min(len(names), rng.randint(1, most))))


def _stops(rng: random.Random, w: Writer, names: list[str]) -> tuple[str, ...]:
    """Values, or single uses of them."""
    if not names or rng.random() < 0.7:
        return ()
    nodes = [node for node in w.nodes if node.op_type not in BY_BODY]
    uses = [f"{name}->{node.name}" for node in nodes for name in dict.fromkeys(node.input) if name in names]
    return some(rng, uses if uses and rng.random() < 0.5 else names, 2)


def model(w: Writer, outputs: Sequence[str]) -> ModelProto:
    """What a writer wrote, with shapes of inputs and outputs."""
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, _shape(w.known[name]))
    tensors = {**w.weights, **w.constants}
    used = {name for node in w.nodes for name in node.input}
    initializers = [
        numpy_helper.from_array(array, name) for name, array in tensors.items() if name in used | {*w.weights}
    ]
    graph = helper.make_graph(
        w.nodes, "composition", [value(n) for n in w.inputs], [value(n) for n in outputs], initializers
    )
    opsets = [helper.make_opsetid("", w.opset), helper.make_opsetid("gradcut", 1)]
    mark = helper.make_function(
        "gradcut", "StopGradient", ["X"], ["Y"], [helper.make_node("Identity", ["X"], ["Y"])], opsets[:1]
    )
    return helper.make_model(graph, opset_imports=opsets, functions=[mark], ir_version=10 if w.opset < 26 else 13)


def _shape(tensor: Tensor) -> Shape:
    return tuple(tensor.shape)


def formed(model: ModelProto, form: str) -> ModelProto:
    """With dimensions of inputs and outputs under names, or left out."""
    for value in (*model.graph.input, *model.graph.output) if form != "static" else ():
        shape = value.type.tensor_type.shape
        if form == "unknown":
            value.type.tensor_type.ClearField("shape")
            continue
        for axis, dim in enumerate(shape.dim):
            dim.dim_param = f"{value.name}_d{axis}"
    return model
