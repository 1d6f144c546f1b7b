"""Tensors that share memory: what an in-place operator writes, and where a mark would come between the two."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.fx import GraphModule, Node

from gradcut.errors import TorchExportError
from gradcut.torch.operators import STOP_GRADIENT

_HERE = Path(__file__).parent
#: A line of a traceback and the code below it.
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)')
_Schema = torch._C.FunctionSchema


def written(node: Node) -> Iterator[Node]:
    """The tensors whose memory an in-place operator changes, each as what its views go back to."""
    for operand in _written_operands(node):
        yield root(operand)


def root(node: Node, through_marks: bool = False) -> Node:
    """What a view, a view of a view, ... or an in-place result is of."""
    while (source := _source(node, through_marks)) is not None:
        node = source
    return node


def check_in_place(module: GraphModule) -> None:
    """Refuse an in-place operator on one side of a mark where the other side is read later.

    In torch both are one memory; a file has values.
    """
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    sharing: dict[Node, list[Node]] = defaultdict(list)
    for node in order:
        sharing[root(node, through_marks=True)].append(node)
    for node in order:
        for operand in _written_operands(node):
            mine = root(operand)
            for other in sharing[root(operand, through_marks=True)]:
                later = any(order[user] > order[node] for user in other.users)
                if order[other] < order[node] and later and root(other) is not mine:
                    raise TorchExportError(
                        f"{where(node)} changes in place a tensor that shares its memory with a detached one "
                        f"({other.name}), which is read later; a file has no shared memory: detach().clone() it"
                    )


def where(node: Node) -> str:
    """An operator as a person finds it: its name and the line of code that it came from."""
    name = str(node.target).removesuffix(".default").removesuffix(".Tensor")
    frames = [found for found in _FRAME.findall(node.meta.get("stack_trace") or "") if Path(found[0]).parent != _HERE]
    return f"{name} ({Path(frames[-1][0]).name}:{frames[-1][1]}: {frames[-1][2]})" if frames else name


def _schema(node: Node) -> _Schema | None:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def _written_operands(node: Node) -> Iterator[Node]:
    schema = _schema(node)
    if schema is None or node.target in (torch.ops.aten.detach_.default,):
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Node):
                yield one


def _source(node: Node, through_marks: bool) -> Node | None:
    if node.op == "call_function" and node.target is STOP_GRADIENT:
        source = node.args[0]
        return source if through_marks and isinstance(source, Node) else None
    schema = _schema(node)
    if schema is None or not any(one.alias_info is not None for one in schema.returns):
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, Node):
                return value
    return None
