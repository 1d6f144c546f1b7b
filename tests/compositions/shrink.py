"""Makes a failing case small: fewer questions, fewer nodes, plainer shapes, as long as it fails.

A node goes in one of two ways: what reads it reads an operand of the same shape instead, or what it computed becomes an
input. So the nodes before a wrong one go as well as those behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests import in_torch
from tests.compositions.compare import verdict
from tests.compositions.generate import Case

Arrays = dict[str, np.ndarray]
Fails = Callable[[Case], bool]


def smallest(case: Case) -> Case:
    """The smallest case found that fails as this one does."""
    kind = verdict(case).kind
    return shrink(case, lambda other: verdict(other).kind == kind)


def shrink(case: Case, fails: Fails) -> Case:
    """The smallest case found that still fails; one that cannot be run at all counts as one that does not."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(case):
            if _fails(candidate, fails):
                case, smaller = candidate, True
                break
    return case


def _fails(case: Case | None, fails: Fails) -> bool:
    try:
        return case is not None and fails(case)
    except Exception:  # torch cannot run it: the operator does not take what is left
        return False


def _candidates(case: Case) -> Iterator[Case | None]:
    yield from _questions(case)
    nodes = list(case.model.graph.node)
    for index in range(len(nodes) - 1, -1, -1):
        yield _attempt(lambda at=index: _cut(case, at, ask=False))  # type: ignore[misc]
        yield _attempt(lambda at=index: _cut(case, at, ask=True))  # type: ignore[misc]
    for index in range(len(nodes) - 1, -1, -1):
        for operand in dict.fromkeys(nodes[index].input):
            yield _attempt(lambda at=index, name=operand: _bypassed(case, at, name))  # type: ignore[misc]
    yield _static(case)
    yield from _sliced(case)


def _attempt(change: Callable[[], Case | None]) -> Case | None:
    try:
        return change()
    except Exception:  # what is left does not fit together
        return None


# --- questions -----------------------------------------------------------------------------------------------


def _questions(case: Case) -> Iterator[Case | None]:
    for name in case.stop_at:
        yield replace(case, stop_at=tuple(other for other in case.stop_at if other != name))
    if case.again:
        yield replace(case, again=())
    for name in case.again if len(case.again) > 1 else ():
        yield replace(case, again=tuple(other for other in case.again if other != name))
    for name in case.of if len(case.of) > 1 else ():
        yield _attempt(lambda: rebuilt(replace(case, of=tuple(n for n in case.of if n != name))))  # noqa: B023
    for name in case.wrt if len(case.wrt) > 1 and not case.again else ():
        yield _attempt(lambda: rebuilt(replace(case, wrt=tuple(n for n in case.wrt if n != name))))  # noqa: B023


# --- nodes ---------------------------------------------------------------------------------------------------


def _cut(case: Case, index: int, ask: bool) -> Case | None:
    """Without a node: its outputs are inputs, or constants where they are no floats.

    Args:
        ask: the gradient is asked for by the new inputs, and by no other value.
    """
    node = case.model.graph.node[index]
    plain = in_torch.values(case.model, case.feeds, in_torch.weights(case.model))
    nodes = [other for other in case.model.graph.node if other is not node]
    read = {name for other in nodes for name in other.input} | {*case.wrt, *case.of}
    made = {name: plain[name].detach().numpy() for name in node.output if name in read}
    if any(name in made for name in case.of):
        return None
    floats = {name: array.astype(np.float32) for name, array in made.items() if array.dtype.kind == "f"}
    others = {name: array for name, array in made.items() if array.dtype.kind != "f"}
    if ask and (case.again or not floats):
        return None
    asked = replace(case, wrt=tuple(floats)) if ask else case
    return rebuilt(asked, nodes, {**case.feeds, **floats}, others)


def _bypassed(case: Case, index: int, operand: str) -> Case | None:
    """Without a node: what reads its first output reads `operand`, which has the same shape and type."""
    node = case.model.graph.node[index]
    plain = in_torch.values(case.model, case.feeds, in_torch.weights(case.model))
    gone = node.output[0]
    if not operand or plain[operand].shape != plain[gone].shape or plain[operand].dtype != plain[gone].dtype:
        return None
    nodes = [_renamed(other, gone, operand) for other in case.model.graph.node if other is not node]
    made = {name for other in nodes for name in other.output}
    other_name = lambda names: tuple(dict.fromkeys(operand if name == gone else name for name in names))
    of, wrt = other_name(case.of), other_name(case.wrt)
    if not set(of) <= made or any(name in node.output for name in (*of, *wrt)):
        return None
    return rebuilt(replace(case, of=of, wrt=wrt, again=other_name(case.again)), nodes)


def _renamed(node: NodeProto, old: str, new: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [new if name == old else name for name in node.input]
    return copy


# --- shapes --------------------------------------------------------------------------------------------------


def _static(case: Case) -> Case | None:
    shapes = [value.type.tensor_type for value in case.model.graph.input]
    if all(t.HasField("shape") and not any(d.dim_param for d in t.shape.dim) for t in shapes):
        return None
    return _attempt(lambda: rebuilt(case, static=True))


def _sliced(case: Case) -> Iterator[Case | None]:
    """One axis of one leaf shorter, at its end or its beginning, or all axes of one length."""
    leaves = {**case.feeds, **{t.name: numpy_helper.to_array(t) for t in case.model.graph.initializer}}
    floats = {name: array for name, array in leaves.items() if array.dtype.kind == "f"}
    for name, array in floats.items():
        for axis, size in enumerate(array.shape):
            for kept in (range(size - 1), range(1, size)) if size > 1 else ():
                yield _attempt(lambda: _resized(case, {name: np.take(array, kept, axis)}))  # noqa: B023
    for size in sorted({size for array in floats.values() for size in array.shape if size > 1}):
        yield _attempt(lambda: _resized(case, {n: _shorter(a, size) for n, a in floats.items()}))  # noqa: B023


def _shorter(array: np.ndarray, size: int) -> np.ndarray:
    return array[tuple(slice(0, size - 1 if have == size else have) for have in array.shape)]


def _resized(case: Case, arrays: Arrays) -> Case | None:
    feeds = {name: arrays.get(name, array) for name, array in case.feeds.items()}
    return rebuilt(case, feeds=feeds, changed={n: a for n, a in arrays.items() if n not in feeds}, static=True)


# --- putting it together -------------------------------------------------------------------------------------


def rebuilt(
    case: Case,
    nodes: list[NodeProto] | None = None,
    feeds: Arrays | None = None,
    changed: Arrays | None = None,
    static: bool = False,
) -> Case | None:
    """The case over other nodes, leaves or outputs, without what nobody reads; None where nothing is left.

    Args:
        changed: initializers that are new or other than before.
        static: with the shapes that there are, else none where there was none.
    """
    graph = case.model.graph
    kept, read = _live(list(graph.node) if nodes is None else nodes, {*case.of, *case.wrt})
    arrays = {**{t.name: numpy_helper.to_array(t) for t in graph.initializer}, **(changed or {})}
    arrays = {name: array for name, array in arrays.items() if name in read}
    fed = {name: array for name, array in (case.feeds if feeds is None else feeds).items() if name in read}
    if not kept:
        return None
    known = {v.name: v for v in graph.input} if not static else {}
    inputs = [known.get(name) or _info(name, array.shape) for name, array in fed.items()]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    outputs = {v.name: v for v in graph.output}
    model.graph.CopyFrom(helper.make_graph(kept, graph.name, inputs, [], weights))
    values = in_torch.values(model, fed, in_torch.weights(model))
    again = [_info(n, tuple(values[n].shape)) if static or n not in outputs else outputs[n] for n in case.of]
    model.graph.output.extend(again)
    return replace(case, model=model, feeds=fed)


def _info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _live(nodes: list[NodeProto], wanted: set[str]) -> tuple[list[NodeProto], set[str]]:
    """The nodes that something wanted is made by, and all that is read."""
    read, kept = set(wanted), []
    for node in reversed(nodes):
        if read & set(node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1], read
