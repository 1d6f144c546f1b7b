"""One direction of a recurrent layer as its backward sees it: the last step first.

Outside of a loop stand all products over every step at once: the gates again, from X and the hidden states that the
forward gave, and what the weights get. One Scan carries the cotangent of the state from step to step.

Names: T steps, N sequences, I inputs, H hidden numbers, G gates; values are [T, N, ...] unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import onnx_ir as ir

from gradcut.dims import Dim
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint
from gradcut.rules.recurrent_activations import Activation

#: What one step of a Scan does: its states and what it reads there, to the new states and what it gives there.
Step = Callable[[Builder, Sequence[ir.Value], Sequence[ir.Value]], tuple[Sequence[ir.Value], Sequence[ir.Value]]]


class Direction:
    """What the cells share: operands and outputs of one direction, in the order of the backward.

    Args:
        index: which direction it is. functions: its activations.
    """

    gates = 1

    def __init__(self, op: Adjoint, index: int, functions: Sequence[Activation]) -> None:
        self.op, self.b, self.index, self.functions = op, op.b, index, functions
        direction = op.attr("direction", "forward")
        self.reverse, self.both = index == 1 or direction == "reverse", direction == "bidirectional"
        self.T, self.N, self.I = _dims(op["X"], 3)
        self.H = _dims(op["R"], 3)[2]

    # --- operands ------------------------------------------------------------------------------------------------

    def operand(self, name: str) -> ir.Value | None:
        """An operand of this direction [...], without the axis of directions."""
        value = self.op.get(name)
        return None if value is None else self._of_direction(value, 0, 2 if name in ("B", "P") else 3)

    def weight(self, name: str) -> ir.Value:
        """W [G H, I] or R [G H, H]."""
        value = self.operand(name)
        assert value is not None
        return value

    def _of_direction(self, value: ir.Value, axis: int, rank: int) -> ir.Value:
        shape = ir.Shape([dim for at, dim in enumerate(_dims(value, rank)) if at != axis])
        if not self.both:
            return self.b.op("Squeeze", value, self.b.ints([axis]), shape=shape)
        return self.b.op("Gather", value, self.b.constant(self.index, ir.DataType.INT64), axis=axis, shape=shape)

    @cached_property
    def lens(self) -> ir.Value | None:
        """How long each sequence is, INT64 [N]; None where each has T steps."""
        lens = self.op.get("sequence_lens")
        return None if lens is None else self.b.Cast(lens, to=ir.DataType.INT64)

    @cached_property
    def live(self) -> ir.Value | None:
        """Whether a step is within its sequence, BOOL [T, N, 1]."""
        if self.lens is None:
            return None
        b, minus = self.b, self.b.constant(-1, ir.DataType.INT64)
        last = b.Sub(b.op("Squeeze", b.dim(self.op["X"], 0), b.ints([0]), shape=ir.Shape([])), 1)
        steps = b.op("Range", last, minus, minus, shape=ir.Shape([self.T]))
        lens = b.op("Unsqueeze", self.lens, b.ints([1]), shape=ir.Shape([self.N, 1]))
        steps = b.op("Unsqueeze", steps, b.ints([1, 2]), shape=ir.Shape([self.T, 1, 1]))
        return b.op("Less", steps, lens, shape=self.shape(1))

    @cached_property
    def X(self) -> ir.Value:
        """[T, N, I]; zero past the end of a sequence, where anything may stand, so that it cannot spread."""
        X = self.ordered(self.op["X"])
        if self.live is None:
            return X
        return self.b.op("Where", self.live, X, self.b.scalar_like(0.0, X), shape=self.shape(self.I))

    @cached_property
    def Y(self) -> ir.Value:
        """The hidden state after each step; zero past the end of a sequence."""
        Y = self.op.out("Y")
        if Y.dtype is None or Y.shape is None:
            Y.type, Y.shape = self.op["X"].type, ir.Shape([self.T, 2 if self.both else 1, self.N, self.H])
        return self.ordered(self._of_direction(Y, 1, 4))

    @cached_property
    def before(self) -> ir.Value:
        """The hidden state before each step."""
        return self.shifted(self.Y, "initial_h")

    def shifted(self, states: ir.Value, initial: str) -> ir.Value:
        """The state before each step, from those after each, and the initial one or zeros."""
        b, first = self.b, self.operand(initial)
        start = self.zeros() if first is None else first
        start = b.op("Unsqueeze", start, b.ints([0]), shape=ir.Shape([1, self.N, self.H]))
        more = ir.Shape([self.T + 1 if isinstance(self.T, int) else None, self.N, self.H])
        every = b.op("Concat", states, start, axis=0, dtype=states.dtype, shape=more)
        return b.op("Slice", every, b.ints([1]), b.ints([_END]), b.ints([0]), shape=self.shape(self.H))

    def zeros(self) -> ir.Value:
        """[N, H]."""
        X = self.op["X"]
        dims = self.b.dims(self.b.dim(X, 1), self.b.dim(self.op["R"], 2))
        return self.b.zeros(dims, X.dtype or ir.DataType.FLOAT, ir.Shape([self.N, self.H]))

    def shape(self, last: Dim | None) -> ir.Shape:
        return ir.Shape([self.T, self.N, last])

    # --- order ---------------------------------------------------------------------------------------------------

    def ordered(self, value: ir.Value) -> ir.Value:
        """A value in the order of time, in that of the backward."""
        if self.reverse and self.lens is None:
            return value
        return self.flipped(self._each_reversed(value) if self.reverse else value)

    def restored(self, value: ir.Value) -> ir.Value:
        """A value in the order of the backward, in that of time."""
        if self.reverse and self.lens is None:
            return value
        flipped = self.flipped(value)
        return self._each_reversed(flipped) if self.reverse else flipped

    def flipped(self, value: ir.Value) -> ir.Value:
        """The last step first."""
        b, shape = self.b, ir.Shape(_dims(value, 3))
        return b.op("Slice", value, b.ints([-1]), b.ints([-_END]), b.ints([0]), b.ints([-1]), shape=shape)

    def _each_reversed(self, value: ir.Value) -> ir.Value:
        return self.b.op("ReverseSequence", value, self.lens, time_axis=0, batch_axis=1, shape=value.shape)

    # --- cotangents ----------------------------------------------------------------------------------------------

    @cached_property
    def dY(self) -> ir.Value | None:
        """The cotangent of Y, [T, N, H]."""
        dY = self.op.cotangent("Y")
        return None if dY is None else self.ordered(self._of_direction(dY, 1, 4))

    def d_last(self, output: str) -> ir.Value:
        """The cotangent of a last state, [N, H]: zero for an empty sequence, which ONNX Runtime leaves zeros of."""
        found, b = self.op.cotangent(output), self.b
        if found is None:
            return self.zeros()
        mine = self._of_direction(found, 0, 3)
        if self.lens is None:
            return mine
        some = b.op("Unsqueeze", b.Greater(self.lens, 0), b.ints([1]), shape=ir.Shape([self.N, 1]))
        return b.Where(some, mine, b.scalar_like(0.0, mine))

    # --- steps ---------------------------------------------------------------------------------------------------

    def gates_of(self, value: ir.Value, names: int | None = None) -> list[ir.Value]:
        """[..., G H] as G parts [..., H]."""
        count = names or self.gates
        node = self.b.node("Split", value, axis=-1, num_outputs=count, outputs=count)
        shape = None if value.shape is None else ir.Shape([*list(value.shape)[:-1], self.H])
        for part in node.outputs:
            part.type, part.shape = value.type, shape
        return list(node.outputs)

    def joined(self, *parts: ir.Value) -> ir.Value:
        """Parts side by side along the last axis."""
        return joined(self.b, *parts)

    def back(self, states: Sequence[ir.Value], reads: Sequence[ir.Value], step: Step) -> list[ir.Value]:
        """The backward's Scan: last states and what each step gives; a step past its sequence's end does nothing."""
        if self.live is None:
            return self.scan(states, reads, step)

        def masked(
            b: Builder, before: Sequence[ir.Value], here: Sequence[ir.Value]
        ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
            after, given = step(b, before, here[1:])
            kept = [b.Where(here[0], new, old) for new, old in zip(after, before, strict=True)]
            return kept, [b.Where(here[0], value, b.scalar_like(0.0, value)) for value in given]

        return self.scan(states, [self.live, *reads], masked)

    def scan(self, states: Sequence[ir.Value], reads: Sequence[ir.Value], step: Step) -> list[ir.Value]:
        """A Scan over the first axis of `reads`.

        ONNX Runtime's takes no sequence without a step, which its RNN and LSTM do: where T is not known, what is read
        gets a step of zeros then, which leaves states of zeros.
        """
        b, reads = self.b, [self._one_at_least(value) for value in reads]
        slices = [ir.Value(name="here", type=value.type, shape=_rest(value)) for value in reads]
        gives: list[ir.Value] = []

        def build(inner: Builder, *values: ir.Value) -> Sequence[ir.Value]:
            after, given = step(inner, values[: len(states)], values[len(states) :])
            gives[:] = given
            return [*after, *given]

        body = b.body([*states, *slices], build, "step")
        count = len(body.outputs)
        node = b.node("Scan", *states, *reads, body=body, num_scan_inputs=len(reads), outputs=count)
        for output, like in zip(node.outputs, states, strict=False):
            output.type, output.shape = like.type, like.shape
        for output, like in zip(node.outputs[len(states) :], gives, strict=True):
            output.type, output.shape = like.type, self.shape(None if like.shape is None else like.shape[-1])
        return [*node.outputs[: len(states)], *map(self._at_most_all, node.outputs[len(states) :])]

    def _one_at_least(self, value: ir.Value) -> ir.Value:
        if isinstance(self.T, int) and self.T > 0:
            return value
        b = self.b
        missing = b.Max(b.Sub(1, b.dim(self.op["X"], 0)), 0)
        pads = b.op("Concat", b.ints([0, 0, 0]), missing, b.ints([0, 0]), axis=0)
        return b.op("Pad", value, pads, dtype=value.dtype, shape=self._open(value))

    def _at_most_all(self, value: ir.Value) -> ir.Value:
        if isinstance(self.T, int) and self.T > 0:
            return value
        b, shape = self.b, value.shape
        value.shape = self._open(value)
        return b.op("Slice", value, b.ints([0]), b.dim(self.op["X"], 0), b.ints([0]), shape=shape)

    @staticmethod
    def _open(value: ir.Value) -> ir.Shape | None:
        return None if value.shape is None else ir.Shape([None, *list(value.shape)[1:]])

    # --- products over all steps ---------------------------------------------------------------------------------

    def product(self, value: ir.Value, weight: ir.Value) -> ir.Value:
        """[T, N, K] times a weight [M, K], transposed: [T, N, M]."""
        return self.b.op("MatMul", value, self.b.transpose(weight, 2), shape=self.shape(_dims(weight, 2)[0]))

    def over_steps(self, D: ir.Value, value: ir.Value) -> ir.Value:
        """What a weight [G, K] gets from the cotangent [T, N, G] of its products with a value [T, N, K]."""
        a, c = (self.b.op("Flatten", self.op.wide(v), axis=2) for v in (D, value))
        for flat, given in ((a, D), (c, value)):
            flat.shape = ir.Shape([None, given.shape[-1] if given.shape is not None else None])
        shape = ir.Shape([a.shape[-1], c.shape[-1]])  # type: ignore[index]
        return self.b.Cast(self.b.op("Gemm", a, c, transA=1, shape=shape), to=D.dtype)

    def total(self, D: ir.Value) -> ir.Value:
        """[T, N, G] summed to [G]."""
        summed = self.b.op("ReduceSum", self.op.wide(D), self.b.ints([0, 1]), keepdims=0)
        return self.b.Cast(summed, to=D.dtype)


_END = 2**63 - 1


def joined(b: Builder, *parts: ir.Value, axis: int = -1) -> ir.Value:
    """Parts behind each other along an axis; one alone as it is."""
    if len(parts) == 1:
        return parts[0]
    shape = None if parts[0].shape is None else ir.Shape(_joined_dims(parts, axis))
    return b.op("Concat", *parts, axis=axis, dtype=parts[0].dtype, shape=shape)


def _joined_dims(parts: Sequence[ir.Value], axis: int) -> list[Dim | None]:
    dims: list[Dim | None] = list(parts[0].shape or ())
    sizes = [part.shape[axis] if part.shape is not None else None for part in parts]
    known = [int(size) for size in sizes if isinstance(size, int)]
    dims[axis] = sum(known) if len(known) == len(sizes) else None
    return dims


def _rest(value: ir.Value) -> ir.Shape | None:
    """The shape without the first axis."""
    return None if value.shape is None else ir.Shape(list(value.shape)[1:])


def _dims(value: ir.Value, rank: int) -> list[Dim | None]:
    return [None] * rank if value.shape is None else list(value.shape)
