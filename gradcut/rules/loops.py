"""Loop and Scan: turn after turn of a body. The backward of both is a Loop over the turns, the last turn first.

It carries the cotangents of the states and the sums of the cotangents of captured values. In each turn it computes the
body again (`gradcut.rules.control_flow.rerun`) from the states that went into that turn, which the forward node gives
as further outputs, stacked. What the forward stacked, the backward takes slices of the cotangent of, and the other way
round. ONNX Runtime's Scan takes no sequence of length 0, so the backward of a Scan is a Loop too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dims import same_shape
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Captures
from gradcut.rules.control_flow import rerun, settle
from gradcut.rules.loop_slices import BEFORE_ALL, laid_out, picked
from gradcut.rules.registry import rule
from gradcut.subgraphs import Copy


@dataclass(frozen=True)
class State:
    """A value that each turn takes from the one before: operand, input and output of the body, output of the node."""

    operand: int
    given: ir.Value
    result: ir.Value
    output: int


@dataclass(frozen=True)
class Sliced:
    """What lies along an axis of an operand or an output at `place`, one slice a turn, from the end if `backwards`.

    Attributes:
        value: the slice, an input or an output of the body.
    """

    place: int
    value: ir.Value
    axis: int
    backwards: bool


@dataclass(frozen=True)
class Turns:
    """What a Loop and a Scan have in common.

    Attributes:
        operands: those that are sliced. outputs: those that are stacked.
        shift: how many outputs the body has before those that the node has too.
        count: how many turns were taken, an INT64 scalar.
    """

    body: ir.Graph
    states: list[State]
    operands: list[Sliced]
    outputs: list[Sliced]
    shift: int
    count: ir.Value


@rule("Loop", "v_initial")
def loop(op: Adjoint) -> Captures:
    """``s = body(turn, s)`` until a condition or a count ends it.

    Not covered: a body with a Multinomial draw.
    """
    body = op.graph("body")
    carried = len(body.inputs) - 2
    states = [State(2 + i, body.inputs[2 + i], body.outputs[1 + i], i) for i in range(carried)]
    outputs = [Sliced(i, body.outputs[1 + i], 0, False) for i in range(carried, len(body.outputs) - 1)]
    counted = _stack(op, body, body.inputs[0], shift=1)  # the condition may end it before the count does
    turns = Turns(body, states, [], outputs, 1, op.b.op("Size", counted, shape=ir.Shape([])))
    yield from _Backward(op, turns, {body.inputs[0]: counted}).cotangents()


@rule("Scan", "initial_state_and_scan_inputs")
def scan(op: Adjoint) -> Captures:
    """``s, y[t] = body(s, x[t])`` along axes of the operands x.

    Not covered: a body with a Multinomial draw.
    """
    body = op.graph("body")
    first = len(op.node.inputs) - op.attr("num_scan_inputs")
    states = [State(i, body.inputs[i], body.outputs[i], i) for i in range(first)]
    operands = _sliced(op, "input", first, body.inputs[first:])
    outputs = _sliced(op, "output", first, body.outputs[first:])
    length = op.b.dim(op[first], operands[0].axis)
    count = op.b.op("Squeeze", length, op.b.ints([0]), dtype=ir.DataType.INT64, shape=ir.Shape([]))
    yield from _Backward(op, Turns(body, states, operands, outputs, 0, count), {}).cotangents()


def _sliced(op: Adjoint, side: str, first: int, values: Sequence[ir.Value]) -> list[Sliced]:
    axes = op.attr(f"scan_{side}_axes") or [0] * len(values)
    backwards = op.attr(f"scan_{side}_directions") or [0] * len(values)
    return [Sliced(first + i, value, axes[i], bool(backwards[i])) for i, value in enumerate(values)]


def _stack(op: Adjoint, body: ir.Graph, value: ir.Value, shift: int) -> ir.Value:
    """Have the forward node give, as one more output, what a value of its body is in each turn."""
    b = Builder(op.b.names, prefix=f"{value.name}_")
    copy = b.op("Identity", value, dtype=value.dtype, shape=value.shape)
    body.extend(b.nodes)
    body.outputs.append(copy)
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in op.node.attributes:
            op.node.attributes.add(ir.AttrInt64s(name, [*op.attr(name), 0]))
    outputs = [op.out(index) for index in range(len(body.outputs) - shift)]  # each has a name now
    stack = outputs[-1]
    stack.type = value.type
    stack.shape = None if value.shape is None else ir.Shape([None, *value.shape])
    return stack


class _Backward:
    """The Loop over the turns, the last first.

    Attributes:
        states: those that carry a cotangent. sliced: the operands that want one.
        stacks: what the forward gives of each turn, by the value of its body.
        picked: captured values that are sliced too, with their slices. summed: the other captured values.
    """

    def __init__(self, op: Adjoint, turns: Turns, stacks: Mapping[ir.Value, ir.Value]) -> None:
        active = op.inside.active
        self.op, self.turns, self.stacks = op, turns, dict(stacks)
        self.states = [s for s in turns.states if op.wants(s.operand) or s.given in active or s.result in active]
        self.sliced = [one for one in turns.operands if op.wants(one.place)]
        is_loop = op.node.op_type == "Loop"
        self.picked = picked(turns.body, op.captured) if is_loop else {}
        self.summed = [value for value in op.captured if value not in self.picked]
        self.last = op.b.Sub(turns.count, op.b.constant(1))
        self.last.shape = ir.Shape([])

    def cotangents(self) -> Captures:
        op, b = self.op, self.op.b
        starts = [op.cotangent(state.output) or b.zeros_like(self._last(state)) for state in self.states]
        sums = [b.zeros_like(value) for value in self.summed]
        turn = ir.Value(name="turn", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        like = [_like(state) for state in self.states]
        body = b.body([turn, going, *like, *self.summed], self._turn)
        count = len(body.outputs) - 1
        outputs = b.node("Loop", self.turns.count, b.constant(True), *starts, *sums, body=body, outputs=count).outputs
        kept = [*like, *self.summed]
        for output, value in zip(outputs, kept, strict=False):
            output.type, output.shape = value.type, value.shape
        for state, output in zip(self.states, outputs, strict=False):
            if op.wants(state.operand):
                output.shape = op[state.operand].shape
                yield state.operand, output
        yield from zip(self.summed, outputs[len(self.states) :], strict=False)
        slices = iter(outputs[len(kept) :])
        for one in self.sliced:
            yield one.place, self._unsliced(one, next(slices))
        for value in self.picked:
            yield value, laid_out(b, value, next(slices), self.turns.count)

    def _last(self, state: State) -> ir.Value:
        """What a state is after the last turn; an output that the file leaves out has no type."""
        last = self.op.out(state.output)
        last.type = last.type or state.given.type
        return last

    def _turn(self, b: Builder, turn: ir.Value, going: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        """One turn of the backward: whether to go on, cotangents of states, sums, cotangents of slices."""
        op, body, count = self.op, self.turns.body, len(self.states)
        at = b.Sub(self.last, turn)
        seeds = {state.output + self.turns.shift: c for state, c in zip(self.states, carried, strict=False)}
        for one in self.turns.outputs:
            if (stacked := op.cotangent(one.place)) is not None:
                seeds[one.place + self.turns.shift] = _slice(b, one, stacked, turn if one.backwards else at)
        given = {value: _stand_in(b, value) for value in body.inputs}
        for each in self.picked.values():
            given.update(dict.fromkeys(each, _stand_in(b, each[0])))
        ahead = len(b.nodes)
        slices = [*(one.value for one in self.sliced), *(each[0] for each in self.picked.values())]
        wanted = [*(s.given for s in self.states), *self.summed, *slices]
        found = rerun(op, b, body, given, seeds, wanted)
        results = [b.constant(True)]
        for state, cotangent, mine in zip(self.states, carried, found, strict=False):
            results.append(mine or b.zeros_like(cotangent if _keeps_shape(state) else given[state.given]))
        for total, mine in zip(carried[count:], found[count:], strict=False):
            results.append(total if mine is None else b.plus(total, mine))
        for value, mine in zip(slices, found[len(carried) :], strict=True):
            results.append(mine or b.zeros_like(given[value]))
        return self._settled(b, ahead, results, given, turn, at)

    def _settled(
        self,
        b: Builder,
        ahead: int,
        results: list[ir.Value],
        given: Mapping[ir.Value, ir.Value],
        turn: ir.Value,
        at: ir.Value,
    ) -> list[ir.Value]:
        """Put what went into this turn in the place of its stand-ins, as far as it is needed."""
        before, b.nodes[:] = b.nodes[:ahead], b.nodes[ahead:]
        settle(self.op, b, results)
        front = Builder(b.names, prefix=b.prefix)
        needed = [value for value in given if given[value].uses()]
        sequences = self._sequences(front, needed, at)
        records = self._recorded([value for value in needed if value not in sequences and self._varies(value)])
        for value in needed:
            if value in sequences:
                saved = sequences[value]
            elif value in records:
                saved = front.op("SequenceAt", records[value], at, dtype=value.dtype, shape=value.shape)
            else:
                saved = self._saved(front, value, turn, at)
            ir.convenience.replace_all_uses_with(given[value], saved)
        b.nodes[:] = [*before, *front.nodes, *b.nodes]
        return results

    def _saved(self, b: Builder, value: ir.Value, turn: ir.Value, at: ir.Value) -> ir.Value:
        """What an input of the body, of one shape in every turn, was in the turn `at`."""
        for one in self.turns.operands:
            if one.value is value:
                return _slice(b, one, self.op[one.place], turn if one.backwards else at)
        for source, each in self.picked.items():
            if value in each:
                return _slice(b, Sliced(0, value, 0, False), source, at)
        for state in self.turns.states:
            if state.given is value and _origin(state.result) is value:
                return self.op[state.operand]  # the same in every turn
        if value not in self.stacks:
            self.stacks[value] = _stack(self.op, self.turns.body, value, self.turns.shift)
        return _slice(b, Sliced(0, value, 0, False), self.stacks[value], at)

    # --- states that change their shape, or are sequences --------------------------------------------------------

    def _varies(self, value: ir.Value) -> bool:
        """Whether an input of the body may have another shape in each turn, so that it cannot be stacked."""
        return self.op.node.op_type == "Loop" and any(not _keeps_shape(state) for state in self._carried([value]))

    def _carried(self, values: Sequence[ir.Value]) -> list[State]:
        """The states among inputs of the body that are not the same in every turn."""
        return [s for s in self.turns.states if s.given in values and _origin(s.result) is not s.given]

    def _recorded(self, values: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
        """What such tensors were in each turn, as sequences: by the Loop once more, which carries them along."""
        if not values:
            return {}
        b = self.op.b
        records = [ir.Value(name=f"{v.name}_turns", type=ir.SequenceType(ir.TensorType(v.dtype))) for v in values]  # type: ignore[arg-type]
        outputs = self._again(b, self.turns.count, values, records)
        return dict(zip(values, outputs[len(self.turns.states) :], strict=True))

    def _sequences(self, b: Builder, needed: Sequence[ir.Value], at: ir.Value) -> dict[ir.Value, ir.Value]:
        """What sequences among the states were at the begin of the turn `at`: by the turns before it once more.

        Nothing holds a sequence of sequences; so this takes as many turns as there are pairs of them.
        """
        found = [state for state in self._carried(needed) if isinstance(state.given.type, ir.SequenceType)]
        if not found:
            return {}
        outputs = self._again(b, at, (), ())
        return {state.given: outputs[self.turns.states.index(state)] for state in found}

    def _again(
        self, b: Builder, count: ir.Value, values: Sequence[ir.Value], records: Sequence[ir.Value]
    ) -> Sequence[ir.Value]:
        """The states after the first `count` turns, and sequences of what `values` were in each of them."""
        body, states = self.turns.body, self.turns.states

        def turn(inner: Builder, *given: ir.Value) -> list[ir.Value]:
            now = dict(zip(body.inputs, given, strict=False))
            copy = Copy(inner.names, dict(now))
            inner.nodes += copy.nodes(body)
            results = [copy.of(value) for value in body.outputs[: len(states) + 1]]
            for value, record in zip(values, given[len(body.inputs) :], strict=True):
                results.append(inner.op("SequenceInsert", record, now[value]))
                results[-1].type = record.type
            settle(self.op, inner, results)
            return results

        starts = [self.op[state.operand] for state in states]
        empty = [b.empty_sequence(record) for record in records]
        graph = b.body([*body.inputs, *records], turn, name="record")
        kept = [*(state.given for state in states), *records]
        node = b.node("Loop", count, b.constant(True), *starts, *empty, body=graph, outputs=len(kept))
        for output, value in zip(node.outputs, kept, strict=True):
            output.type = value.type
        return node.outputs

    # --- operands that were sliced ------------------------------------------------------------------------------

    def _unsliced(self, one: Sliced, stacked: ir.Value) -> ir.Value:
        """The cotangent of a sliced operand, of slices as the backward's turns gave them."""
        b, operand = self.op.b, self.op[one.place]
        stacked.type = operand.type
        if not one.backwards:
            stacked = b.Slice(stacked, b.ints([-1]), b.ints([BEFORE_ALL]), b.ints([0]), b.ints([-1]))
        if one.axis:
            rank = self.op.rank(one.place) if one.value.shape is None else len(one.value.shape) + 1
            order = list(range(1, rank))
            order.insert(one.axis % rank, 0)
            stacked = b.op("Transpose", stacked, perm=order, dtype=operand.dtype)
        stacked.shape = operand.shape
        return stacked


def _slice(b: Builder, one: Sliced, whole: ir.Value, index: ir.Value) -> ir.Value:
    return b.op("Gather", whole, index, axis=one.axis, dtype=whole.dtype, shape=one.value.shape)


def _stand_in(b: Builder, value: ir.Value) -> ir.Value:
    return ir.Value(name=b.names.fresh(value.name or "given"), type=value.type, shape=value.shape)


def _keeps_shape(state: State) -> bool:
    return same_shape(state.given.shape, state.result.shape)


def _like(state: State) -> ir.Value:
    """Of the type of a state's cotangent, and of its shape where that is the same in every turn."""
    shape = state.given.shape if _keeps_shape(state) else None
    return ir.Value(name=f"{state.result.name}_grad", type=state.given.type, shape=shape)


def _origin(value: ir.Value) -> ir.Value:
    """What a value is a copy of."""
    while (node := value.producer()) is not None and (node.domain, node.op_type) == ("", "Identity"):
        source = node.inputs[0]
        assert source is not None
        value = source
    return value
