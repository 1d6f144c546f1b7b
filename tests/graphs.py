"""Small random ONNX graphs, valid by construction, for tests of the analysis.

Almost every value is a float [2,
4]; the others are there to have paths that carry no derivative. A failing case is
made smaller by `shrink` before it is shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx
import onnx.shape_inference
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
SHAPES = {"f": [2, 4], "i": [2, 4], "b": [2, 4], "d": [2, 4], "s": [2], "h": [2, 2], "m": [2, 1], "0": []}
TYPES = {"i": TensorProto.INT64, "b": TensorProto.BOOL, "d": TensorProto.DOUBLE, "s": TensorProto.INT64}
SMOOTH = ("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Exp")
STEPS = ("Floor", "Ceil", "Round", "Sign")


@dataclass(frozen=True)
class Case:
    """A graph and a question about it."""

    seed: int
    model: ModelProto
    of: list[str]
    wrt: list[str]
    stop_at: list[str]
    parameters: list[str]
    frozen: list[str]

    def __str__(self) -> str:
        question = f"seed {self.seed}: of={self.of} wrt={self.wrt} stop_at={self.stop_at} frozen={self.frozen}"
        return f"{question}\n{onnx.printer.to_text(self.model)}"


class Writer:
    """Adds random nodes over values by kind; a branch has a writer of its own that sees the outer values too."""

    def __init__(self, rng: random.Random, prefix: str = "", outer: Writer | None = None) -> None:
        self.rng, self.prefix = rng, prefix
        self.values: dict[str, list[str]] = {k: list(v) for k, v in outer.values.items()} if outer else {}
        self.nodes: list[NodeProto] = []
        self.made: list[str] = []

    def pick(self, kind: str) -> str | None:
        found = self.values.get(kind)
        if not found:
            return None
        return self.rng.choice(found[-4:] if self.rng.random() < 0.6 else found)

    def node(self, op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> list[str] | None:
        """A node over values of the kinds `inputs`; `outputs` are kinds too. None where there is no such value."""
        picked = [name if len(name) > 1 else self.pick(name) for name in inputs.split()]
        if None in picked:
            return None
        return self.emit(op, picked, outputs, domain, **attributes)

    def emit(self, op: str, inputs: list[str], outputs: str, domain: str = "", **attributes: object) -> list[str]:
        number = len(self.nodes)
        names = [f"{self.prefix}v{number}" + ("" if i == 0 else f"_{i}") for i in range(len(outputs.split()))]
        for name, kind in zip(names, outputs.split(), strict=True):
            self.values.setdefault(kind, []).append(name)
            self.made += [name] if kind == "f" else []
        name = f"{self.prefix}n{number}_{op}"
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names

    def step(self, depth: int = 0) -> None:
        """One random node."""
        rng = self.rng
        choices: list[tuple[int, Callable[[], object]]] = [
            (8, lambda: self.node(rng.choice(SMOOTH), "f", "f")),
            (12, lambda: self.node(rng.choice(("Add", "Mul", "Sub")), "f f", "f")),
            (2, lambda: self.node(rng.choice(STEPS), "f", "f")),
            (3, lambda: self.node("StopGradient", "f", "f", domain="gradcut")),
            (1, lambda: self.node("Greater", "f f", "b")),
            (3, lambda: self.node("Where", "b f f", "f")),
            (1, lambda: self.node("Cast", "f", "i", to=TensorProto.INT64)),
            (1, lambda: self.node("Cast", "i", "f", to=TensorProto.FLOAT)),
            (1, lambda: self.node("Cast", "f", "d", to=TensorProto.DOUBLE)),
            (1, lambda: self.node("Sigmoid", "d", "d")),
            (2, lambda: self.node("Cast", "d", "f", to=TensorProto.FLOAT)),
            (1, lambda: self.node("Shape", "f", "s")),
            (3, lambda: self.node("Reshape", "f s", "f")),
            (3, lambda: self.node("Gather", "f s", "f")),
            (1, lambda: self.node("GatherElements", "f i", "f", axis=1)),
            (2, lambda: self.node("Split", "f", "h h", axis=1, num_outputs=2)),
            (3, lambda: self.node("Concat", "h h", "f", axis=1)),
            (1, lambda: self.node("TopK", "f four", "f i")),
            (2, lambda: self.normalization()),
            (1, lambda: self.node("Mul", "f m", "f")),
            (1, lambda: self.node("ReduceMax", "f", "0", keepdims=0)),
            (1, lambda: self.node("Clip", "f 0 0", "f")),
            (1, lambda: self.node("Dropout", "f ratio training", rng.choice(("f", "f b")))),
        ]
        if depth == 0:
            choices.append((2, self.branch))
        weights, makers = zip(*choices, strict=True)
        rng.choices(makers, weights)[0]()

    def normalization(self) -> None:
        made = self.node("LayerNormalization", "f f f", self.rng.choice(("f", "f m", "f m m")))
        if made is not None and len(made) == 3 and self.rng.random() < 0.5:
            self.nodes[-1].output[1] = ""
            self.values["m"].remove(made[1])

    def branch(self) -> None:
        """An If on a graph input, or on the sign of something; both branches may read what is outside."""
        condition = "flag"
        if self.rng.random() < 0.5 and (scalar := self.pick("0")) is not None:
            (condition,) = self.emit("Cast", [scalar], "cond", to=TensorProto.BOOL)
        number = len(self.nodes)
        bodies = [self.body(f"{self.prefix}if{number}_{side}_") for side in ("then", "else")]
        self.emit("If", [condition], "f", then_branch=bodies[0], else_branch=bodies[1])

    def body(self, prefix: str) -> onnx.GraphProto:
        inner = Writer(self.rng, prefix, self)
        inner.emit(self.rng.choice(SMOOTH), [self.pick("f") or "x0"], "f")
        for _ in range(self.rng.randrange(3)):
            inner.step(depth=1)
        output = self.rng.choice(inner.made)
        return helper.make_graph(inner.nodes, f"{prefix}body", [], [helper.make_tensor_value_info(output, 1, [2, 4])])


def generate(seed: int, most_nodes: int = 14) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    w = Writer(rng)
    inputs = [f"x{i}" for i in range(rng.randint(1, 2))]
    weights = [f"w{i}" for i in range(rng.randint(1, 4))]
    w.values = {"f": [*inputs, *weights, "offset"], "i": ["ids"], "0": ["low"]}
    size = rng.randint(3, most_nodes)
    while len(w.nodes) < size:
        w.step()
    floats = [*inputs, *weights, "offset", *w.made]
    outputs = _some(rng, [v for v in w.made if v not in (*inputs, *weights)] or [w.emit("Relu", ["x0"], "f")[0]], 3)
    of = _some(rng, outputs if rng.random() < 0.8 else floats, 2)
    wrt = _some(rng, [*weights, *inputs] if rng.random() < 0.6 else floats, 3)
    model = _model(w.nodes, inputs, weights, outputs)
    frozen = _some(rng, weights, 2) if rng.random() < 0.3 else []
    if frozen:
        helper.set_model_props(model, {"gradcut.frozen": "[" + ", ".join(f'"{name}"' for name in frozen) + "]"})
    stop_at = _stops(rng, model, [name for name in floats if name not in outputs]) if rng.random() < 0.4 else []
    return Case(seed, model, of, wrt, stop_at, weights, frozen)


def _some(rng: random.Random, names: list[str], most: int) -> list[str]:
    return rng.sample(names, min(len(names), rng.randint(1, most)))


def _stops(rng: random.Random, model: ModelProto, names: list[str]) -> list[str]:
    uses = [f"{v}->{n.name}" for n in model.graph.node for v in dict.fromkeys(n.input) if v in names]
    return _some(rng, names, 2) if rng.random() < 0.5 or not uses else _some(rng, uses, 2)


def _model(nodes: list[NodeProto], inputs: list[str], weights: list[str], outputs: list[str]) -> ModelProto:
    value = helper.make_tensor_value_info
    numbers = lambda name, count, kind=1: helper.make_tensor(name, kind, [2, 4], [0.5] * count)
    graph = helper.make_graph(
        nodes,
        "random",
        [*(value(name, 1, [2, 4]) for name in inputs), value("ids", 7, [2, 4]), value("flag", 9, [])],
        [value(name, 1, [2, 4]) for name in outputs],
        [
            *(numbers(name, 8) for name in weights),
            numbers("offset", 8),
            helper.make_tensor("low", 1, [], [-9.0]),
            helper.make_tensor("ratio", 1, [], [0.5]),
            helper.make_tensor("training", 9, [], [True]),
            helper.make_tensor("four", 7, [1], [4]),
        ],
    )
    for name in weights:
        info = graph.value_info.add()
        info.CopyFrom(value(name, 1, [2, 4]))
        info.metadata_props.add(key=KIND, value="InputKind.PARAMETER")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("gradcut", 1)]
    mark = helper.make_function(
        "gradcut", "StopGradient", ["X"], ["Y"], [helper.make_node("Identity", ["X"], ["Y"])], opsets[:1]
    )
    return helper.make_model(graph, opset_imports=opsets, functions=[mark], ir_version=10)


# --- making a failing case small -----------------------------------------------------------------------------


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found that still fails, by taking out nodes and questions while it does."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            try:
                onnx.checker.check_model(candidate.model, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
                continue
            if fails(candidate):
                case, smaller = candidate, True
                break
    return case


def _smaller(case: Case):
    for field in ("stop_at", "of", "wrt", "frozen"):
        names = getattr(case, field)
        for name in names if len(names) > (field in ("of", "wrt")) else ():
            yield replace(case, **{field: [other for other in names if other != name]})
    asked = {*case.of, *case.wrt, *(stop.split("->")[0] for stop in case.stop_at)}
    for index, node in enumerate(case.model.graph.node):
        if asked.isdisjoint(node.output) and not any(stop.endswith(f"->{node.name}") for stop in case.stop_at):
            model = _without(case.model, index)
            if model is not None:
                yield replace(case, model=model)


def _without(model: ModelProto, index: int) -> ModelProto | None:
    """Without one node: nobody may read it, or what reads it reads its first operand instead."""
    result = ModelProto()
    result.CopyFrom(model)
    removed = result.graph.node.pop(index)
    bypass = removed.input[0] if removed.input else ""
    for name in removed.output[:1]:
        for node in every_node(result.graph.node):
            for position, operand in enumerate(node.input):
                if operand == name:
                    node.input[position] = bypass
    kept = [output for output in result.graph.output if output.name not in removed.output]
    result.graph.ClearField("output")
    result.graph.output.extend(kept)
    return result if kept else None


def every_node(nodes):
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from every_node(attribute.g.node)
