"""One model put together from calls of others.

A model becomes a `Module` of an `Assembly`: its weights are there once, under their names or behind a scope, and every
call of it is a copy of its nodes. So two views share one set of weights, and a momentum encoder has a set of its own.

    assembly = Assembly()
    encoder, target = assembly.module(model), assembly.module(model, "target.", trains=False)
    h, t = encoder(x), target(x)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dialect import declare, new_mark
from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.parameters import KEEPS_MODE, KIND, decide
from gradcut.passes import Import
from gradcut.passes.base import FROZEN, write_json
from gradcut.passes.importing.convert import TARGET, convert_to
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import frozen_names
from gradcut.recipes.heads import CONSTANT, PARAMETER
from gradcut.rules import REGISTRY
from gradcut.source import Source, own
from gradcut.subgraphs import Copy, captured, inner_graphs
from gradcut.text import join_names, nearest

Array = np.ndarray[Any, Any]
#: The IR version that opset 21 needs; stock runtimes refuse files that are newer than themselves.
_IR_VERSION = 10


class Assembly:
    """A graph that grows by calls of modules and by nodes of its own.

    Args:
        models: imported models that will be modules: the graph is at the newest opset among them.
    """

    def __init__(self, models: Iterable[ir.Model] = ()) -> None:
        self.names = Names()
        self.opset = max([TARGET, *(model.opset_imports[""] for model in models)])
        self._opsets: dict[str, int] = {}
        self._functions: dict[ir.OperatorIdentifier, ir.Function] = {}
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._weights: dict[str, ir.Value] = {}
        self._frozen: list[str] = []

    def module(self, model: ir.Model, scope: str = "", trains: bool = True) -> Module:
        """A model's weights, behind `scope`, ready to be called.

        Args:
            model: imported; it stays as it is. trains: whether its parameters are parameters here too.

        Raises:
            SpecError: a weight of that name is there already.
        """
        mine = model.clone()
        if mine.opset_imports[""] < self.opset:
            convert_to(mine, self.opset)
        self._opsets.update({domain: max(v, self._opsets.get(domain, 0)) for domain, v in mine.opset_imports.items()})
        self._functions.update(mine.functions)
        decided = decide(mine.graph, REGISTRY)
        weights, parameters = {}, []
        for name, value in mine.graph.initializers.items():
            if decided[name].kind == "parameter":
                parameters.append(f"{scope}{name}")
            weights[value] = self._weight(f"{scope}{name}", value, trains and decided[name].kind == "parameter")
        if trains:
            self._frozen += [f"{scope}{name}" for name in frozen_names(mine) if name in mine.graph.initializers]
        return Module(self, mine.graph, weights, parameters)

    def tensor(self, name: str, array: Array) -> ir.Value:
        """A tensor that is no parameter, such as a queue that is declared as state."""
        tensor = ir.Tensor(array, name=name)
        shape = ir.Shape(list(array.shape))
        return self._weight(name, ir.Value(type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor), False)

    def _weight(self, name: str, like: ir.Value, trained: bool) -> ir.Value:
        if name in self._weights:
            raise SpecError(f"two weights would be called {name!r}; rename one of them in its model")
        tensor = like.const_value
        assert tensor is not None
        mine = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)  # onnx_ir names a tensor after its value
        value = ir.Value(name=name, type=like.type, shape=like.shape, const_value=mine)
        value.metadata_props[KIND] = PARAMETER if trained else CONSTANT
        self._weights[name] = value
        self.names.take([name])
        return value

    def input(self, name: str, like: ir.Value) -> ir.Value:
        """A new input of the type and shape of another value."""
        value = ir.Value(name=self.names.fresh(name), type=like.type, shape=like.shape)
        self._inputs.append(value)
        return value

    def stop(self, value: ir.Value) -> ir.Value:
        """The value behind a mark."""
        mark = new_mark(value, self.names)
        self._nodes.append(mark)
        return mark.outputs[0]

    @contextmanager
    def build(self, prefix: str = "") -> Iterator[Builder]:
        """A builder with arithmetic, whose nodes go behind those there are."""
        b = Builder(self.names, prefix)
        with b.arithmetic():
            yield b
        self._nodes += b.nodes

    def extend(self, nodes: Sequence[ir.Node]) -> None:
        self._nodes += nodes

    def model(self, outputs: Mapping[str, ir.Value], doc: str = "") -> ir.Model:
        """The model whose outputs are these values, under these names."""
        given = {*self._inputs, *self._weights.values()}
        results = []
        for name, value in outputs.items():
            if value in given or value in results:
                with self.build() as b:
                    value = b.op("Identity", value, dtype=value.dtype, shape=value.shape)
            value.name = self.names.fresh(name)
            results.append(value)
        graph = ir.Graph(
            self._inputs,
            results,
            nodes=self._nodes,
            initializers=list(self._weights.values()),
            opset_imports={**self._opsets, "": self.opset},
            name="recipe",
            doc_string=doc or None,
        )
        model = ir.Model(
            graph, ir_version=_IR_VERSION, producer_name="gradcut", functions=list(self._functions.values())
        )
        write_json(model, FROZEN, sorted(self._frozen))
        declare(model)
        return model


class Module:
    """A model inside an assembly; made by `Assembly.module`.

    Attributes:
        parameters: the names that they have in the assembly, in the order of the model.
    """

    def __init__(
        self, assembly: Assembly, graph: ir.Graph, values: Mapping[ir.Value, ir.Value], parameters: Sequence[str]
    ) -> None:
        self._assembly, self._graph, self._values = assembly, graph, values
        self.parameters = tuple(parameters)

    @property
    def inputs(self) -> list[ir.Value]:
        """The model's inputs, to make the assembly's like."""
        return list(self._graph.inputs)

    def __call__(self, *inputs: ir.Value, prefix: str = "") -> ir.Value:
        """The model's only output for these inputs, in their order.

        Args:
            prefix: what the names of this call's nodes and values begin with.
        """
        feeds = dict(zip(self._graph.inputs, inputs, strict=True))
        copy = Copy(_Prefixed(self._assembly.names, prefix), {**self._values, **feeds})
        self._assembly.extend(copy.nodes(self._graph))
        (output,) = self._graph.outputs
        return copy.of(output)


class _Prefixed(Names):
    """Names of another place, each with something in front."""

    def __init__(self, names: Names, prefix: str) -> None:
        super().__init__()
        self._names, self._prefix = names, prefix

    def fresh(self, base: str) -> str:
        return self._names.fresh(f"{self._prefix}{base}")


# --- taking models in ----------------------------------------------------------------------------------------


def imported(model: Source) -> ir.Model:
    """A model of one's own, as passes expect it.

    No norm holds to the mode that its exporter said it keeps: a recipe says how norms run, in all of its branches.
    """
    work = own(model)
    Import()(work)
    for node in work.graph.all_nodes():
        node.metadata_props.pop(KEEPS_MODE, None)
    return work


def cut_to(model: ir.Model, outputs: Sequence[ir.Value]) -> None:
    """Keep of an imported model what these values need: nodes, weights and inputs."""
    graph = model.graph
    graph.outputs[:] = list(outputs)
    needed: set[ir.Value] = set(outputs)
    for node in reversed(list(graph)):
        if needed.isdisjoint(node.outputs):
            graph.remove(node, safe=False)
            continue
        needed.update(value for value in node.inputs if value is not None)
        needed.update(captured(inner_graphs(node)))
    graph.inputs[:] = [value for value in graph.inputs if value in needed]
    for name, value in list(graph.initializers.items()):
        if value not in needed:
            del graph.initializers[name]


def on_batch_statistics(model: ir.Model) -> ir.Model:
    """A copy whose BatchNormalization nodes normalise by the batch, whatever mode they were written in."""
    copy = model.clone()
    names = Names.of(copy)
    for node in copy.graph.all_nodes():
        if node.op_type == "BatchNormalization" and node.domain == "":
            node.attributes.add(ir.AttrInt64("training_mode", 1))
            had = len(node.outputs)
            node.resize_outputs(3)
            for value, statistic in zip(node.outputs[had:], node.inputs[2 + had : 5], strict=True):
                assert statistic is not None
                value.name = names.fresh(f"{statistic.name}_moved")
                value.type, value.shape = statistic.type, statistic.shape
    return copy


def one_float_output(model: ir.Model, output: str | None, what: str) -> ir.Value:
    """The value that is meant: the one named, or the only float output.

    Raises:
        SpecError: no such value, or several float outputs and none named.
    """
    known = main_values(model.graph)
    if output is not None:
        if output not in known:
            near = join_names(nearest(output, known) or (v.name or "" for v in model.graph.outputs))
            raise SpecError(f"{what} has no value {output!r}. Nearest: {near}.")
        return known[output]
    floats = [value for value in model.graph.outputs if is_float(value)]
    if len(floats) != 1:
        listed = join_names(value.name or "" for value in floats) or "none"
        raise SpecError(f"which output of {what} is meant is unclear; the float outputs are {listed}: say output=NAME")
    return floats[0]
