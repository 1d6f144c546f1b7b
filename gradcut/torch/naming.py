"""Names of what torch numbers: outputs by what forward returns, parameters as ``named_parameters()`` calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from gradcut.errors import SpecError
from gradcut.ops import Names

OUTPUT = "output"


def name_tensors(model: ir.Model, module: nn.Module) -> None:
    """Call a tied parameter by its first name, as torch does; its exporter takes the last."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    for name, tensor in named:
        first.setdefault(id(tensor), name)
    chosen = {name: first[id(tensor)] for name, tensor in named}
    for value in [value for name, value in model.graph.initializers.items() if chosen.get(name, name) != name]:
        old = value.name or ""
        if chosen[old] not in model.graph.initializers:
            del model.graph.initializers[old]
            value.name = chosen[old]
            model.graph.initializers[chosen[old]] = value


def name_ports(
    model: ir.Model, program: ExportedProgram, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> None:
    """Give inputs and outputs their names; where a parameter or an input has one, an output gets the next free one.

    Raises:
        SpecError: `inputs` or `outputs` are not as many as the model has.
    """
    graph = model.graph
    _check(inputs, [value.name or "" for value in graph.inputs], "input")
    names = list(_output_names(program))
    _check(outputs, names, "output")
    _part_outputs(graph)
    ports = [*graph.inputs, *graph.outputs]
    taken = Names([*graph.initializers])
    wanted = [*(inputs or [value.name or "" for value in graph.inputs]), *(outputs or names)]
    final = [taken.fresh(name) for name in wanted]
    asked = {*(inputs or ()), *(outputs or ())}
    for name, got in zip(wanted, final, strict=True):
        if name in asked and name != got:
            raise SpecError(f"the name {name!r} is taken by a parameter, a buffer or another input or output")
    new = {*final} - {value.name for value in ports}
    taken.take(Names.of(model).taken)
    _free(model, {*new, *graph.initializers}, {*ports, *graph.initializers.values()}, taken)
    for value, name in zip(ports, final, strict=True):
        value.name = name


def name_dimensions(model: ir.Model, program: ExportedProgram, dims: Any) -> None:
    """Call sizes as they were asked for: torch's exporter numbers them.

    Args:
        dims: what `torch.export.export` took as dynamic_shapes, by the names of forward's arguments.
    """
    given = {value.name: value for value in model.graph.inputs}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    asked = _asked(dims, len(specs), program)
    names: dict[str, str] = {}
    for spec, axes in zip(specs, asked, strict=True):
        value = given.get(str(getattr(spec.arg, "name", None)))
        shape = value.shape if value is not None else None
        for axis, dim in axes.items() if shape is not None else ():
            symbol = shape[axis]  # type: ignore[index]
            if isinstance(symbol, ir.SymbolicDim) and symbol.value is not None:
                names.setdefault(symbol.value, getattr(dim, "__name__", symbol.value))
    rename = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in _values(model) if names else ():
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, rename, names) for dim in value.shape])


def _asked(dims: Any, count: int, program: ExportedProgram) -> list[dict[int, Any]]:
    """The axes asked for, by input of the program."""
    leaves = pytree.tree_leaves(dims, is_leaf=lambda one: one is None or _is_axes(one))
    found = [one if _is_axes(one) else {} for one in leaves]
    return found if len(found) == count else [{}] * count


def _is_axes(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(key, int) for key in value)


def _renamed(dim: int | ir.SymbolicDim, rename: re.Pattern[str], names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else rename.sub(lambda found: names[found[0]], dim.value)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _check(names: Sequence[str] | None, have: Sequence[str], what: str) -> None:
    if names is not None and len(names) != len(have):
        raise SpecError(f"{what}_names has {len(names)} names, and the model {len(have)} {what}s: {', '.join(have)}")


def _output_names(program: ExportedProgram) -> Iterator[str]:
    """One for each tensor that forward returns: ``output``, ``output_0``, or by keys."""
    specs = program.graph_signature.output_specs
    user = [spec for spec in specs if spec.kind.name == "USER_OUTPUT"]
    tree = program.call_spec.out_spec
    assert tree is not None
    paths = [path for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(list(range(len(user))), tree))]
    for path, spec in zip(paths, user, strict=True):
        if isinstance(spec.arg, TensorArgument):
            yield _path_name(path)


def _path_name(path: Sequence[Any]) -> str:
    parts = [str(getattr(one, "key", getattr(one, "idx", getattr(one, "name", "")))) for one in path]
    named = bool(path) and not isinstance(path[0], pytree.SequenceKey)
    return "_".join(parts if named else [OUTPUT, *parts])


def _part_outputs(graph: ir.Graph) -> None:
    """An Identity where one value is an output twice, or an input or a weight itself: it can have one name alone."""
    seen: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    for position, value in enumerate(graph.outputs):
        if value in seen:
            node = ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.append(node)
            graph.outputs[position] = copy
        seen.add(graph.outputs[position])


def _free(model: ir.Model, wanted: set[str], kept: set[ir.Value], taken: Names) -> None:
    """Rename inner values that have a name that is to be a port's or is a parameter's: torch calls a sum ``add``."""
    for graph in model.graphs():
        for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
            if value.name in wanted and value not in kept:
                value.name = taken.fresh(f"{value.name}_value")
