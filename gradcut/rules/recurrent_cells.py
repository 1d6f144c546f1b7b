"""The cells of RNN and GRU, and what they share: how a step goes back, and what each operand gets.

Each step of a cell's backward is linear in the cotangents that it carries, and the factors of all steps are known
before the first: they are computed from X and Y at once, see `recurrent_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.recurrent_layer import Direction, joined

Values = Sequence[ir.Value]


class Cell(Direction):
    """A direction with the cotangents of its gates.

    Attributes:
        defaults: its activations where the node names none.
        operands: those that each direction has its own of, in the operator's order.
    """

    defaults: ClassVar[tuple[str, ...]] = ("Tanh",)
    operands: ClassVar[tuple[str, ...]] = ("W", "R", "B", "initial_h")

    @cached_property
    def found(self) -> list[ir.Value]:
        """What the backward's Scan gives: the cotangents of the initial states, then `D`."""
        raise NotImplementedError

    @property
    def D(self) -> ir.Value:
        """The cotangent of what stands before the activations, as W and Wb see it, [T, N, G H]."""
        return self.found[-1]

    @property
    def D_recurrent(self) -> ir.Value:
        """The same as R and Rb see it."""
        return self.D

    @cached_property
    def linear(self) -> ir.Value:
        """X W^T + H R^T + Wb + Rb."""
        both = self.b.Add(self.product(self.X, self.weight("W")), self.product(self.before, self.weight("R")))
        B = self.operand("B")
        if B is None:
            return both
        Wb, Rb = self.halves(B)
        return self.b.Add(both, Wb + Rb)

    def halves(self, B: ir.Value) -> list[ir.Value]:
        """Wb and Rb, [G H]."""
        node = self.b.node("Split", B, axis=-1, num_outputs=2, outputs=2)
        for part in node.outputs:
            part.type, part.shape = B.type, ir.Shape([self.gates * self.H if isinstance(self.H, int) else None])
        return list(node.outputs)

    def start(self) -> list[ir.Value]:
        """The cotangents that the first step back carries."""
        return [self.d_last("Y_h")]

    def through(self, b: Builder, carried: ir.Value, here: list[ir.Value]) -> ir.Value:
        """The cotangent of a step's hidden state; takes that of Y off what the step reads."""
        return carried if self.dY is None else b.Add(carried, here.pop(0))

    def read(self, *factors: ir.Value) -> list[ir.Value]:
        """What each step reads: the cotangent of Y, if there is one, and factors."""
        return [*factors] if self.dY is None else [self.dY, *factors]

    # --- what the operands get -----------------------------------------------------------------------------------

    def of_X(self) -> ir.Value:
        """The cotangent of X by way of this direction, [T, N, I], in the order of time."""
        return self.restored(self.b.op("MatMul", self.D, self.weight("W"), shape=self.shape(self.I)))

    def of(self, operand: str) -> ir.Value:
        """The cotangent of an operand of this direction."""
        if operand == "initial_h":
            return self.found[0]
        makers: dict[str, Callable[[], ir.Value]] = {"W": self._of_W, "R": self._of_R, "B": self._of_B}
        return makers[operand]()

    def _of_W(self) -> ir.Value:
        return self.over_steps(self.D, self.X)

    def _of_R(self) -> ir.Value:
        return self.over_steps(self.D_recurrent, self.before)

    def _of_B(self) -> ir.Value:
        of_W = self.total(self.D)
        return joined(self.b, of_W, of_W if self.D_recurrent is self.D else self.total(self.D_recurrent))


class RNNCell(Cell):
    """H' = f(a), a = X W^T + H R^T + Wb + Rb: da = dH' f'(a), dH = da R."""

    @cached_property
    def found(self) -> list[ir.Value]:
        (f,) = self.functions
        slope = f.slope(self.b, self.Y if f.by_value else self.linear, self.Y)
        R = self.weight("R")

        def step(b: Builder, carried: Values, read: Values) -> tuple[Values, Values]:
            here = list(read)
            D = b.Mul(self.through(b, carried[0], here), here[0])
            return [b.MatMul(D, R)], [D]

        return self.back(self.start(), self.read(slope), step)


class GRUCell(Cell):
    """H' = (1 - z) h + z H, z = f(az), r = f(ar), h = g(ah); Cho et al. 2014.

    With s = H Rh^T + Rbh, ah = X Wh^T + Wbh + r s where linear_before_reset is set, and X Wh^T + Wbh + (r H) Rh^T +
    Rbh where it is not. dz = dH' (H - h), dh = dH' (1 - z), and in the first case dr = dah s, in the second
    dr = (dah Rh) H.
    """

    gates = 3
    defaults = ("Sigmoid", "Tanh")

    @cached_property
    def linear_before_reset(self) -> bool:
        return bool(self.op.attr("linear_before_reset", 0))

    @cached_property
    def found(self) -> list[ir.Value]:
        return self._linear_first() if self.linear_before_reset else self._reset_first()

    @cached_property
    def D_recurrent(self) -> ir.Value:
        if not self.linear_before_reset:
            return self.D
        return self.b.Mul(self.D, self._reset_factor)

    # --- gates ---------------------------------------------------------------------------------------------------

    @cached_property
    def linear_parts(self) -> tuple[list[ir.Value], list[ir.Value]]:
        """X W^T + Wb and H R^T + Rb by gate; the latter without its last where H is reset before."""
        of_X = self.product(self.X, self.weight("W"))
        R = self.weight("R") if self.linear_before_reset else joined(self.b, *self.R_parts[:2], axis=0)
        of_H = self.product(self.before, R)
        B = self.operand("B")
        if B is not None:
            Wb, Rb = self.halves(B)
            if not self.linear_before_reset:
                bz, br, bh = self.gates_of(Rb)
                Wb, Rb = Wb + joined(self.b, self.b.zeros_like(bz), self.b.zeros_like(br), bh), joined(self.b, bz, br)
            of_X, of_H = of_X + Wb, of_H + Rb
        return self.gates_of(of_X), self.gates_of(of_H, 3 if self.linear_before_reset else 2)

    @cached_property
    def R_parts(self) -> list[ir.Value]:
        """Rz, Rr and Rh, [H, H]."""
        node = self.b.node("Split", self.weight("R"), axis=0, num_outputs=3, outputs=3)
        for part in node.outputs:
            part.type, part.shape = self.weight("R").type, ir.Shape([self.H, self.H])
        return list(node.outputs)

    @cached_property
    def z(self) -> tuple[ir.Value, ir.Value]:
        """The update gate and its slope."""
        return self._gate(0)

    @cached_property
    def r(self) -> tuple[ir.Value, ir.Value]:
        """The reset gate and its slope."""
        return self._gate(1)

    def _gate(self, index: int) -> tuple[ir.Value, ir.Value]:
        f, (of_X, of_H) = self.functions[0], self.linear_parts
        before = of_X[index] + of_H[index]
        value = f(self.b, before)
        return value, f.slope(self.b, before, value)

    @cached_property
    def reset(self) -> ir.Value:
        """r H."""
        return self.b.Mul(self.r[0], self.before)

    @cached_property
    def h(self) -> tuple[ir.Value, ir.Value]:
        """What would replace the state, and its slope."""
        g, (of_X, of_H) = self.functions[1], self.linear_parts
        recurrent = self.r[0] * of_H[2] if self.linear_before_reset else self.product(self.reset, self.R_parts[2])
        before = of_X[2] + recurrent
        value = g(self.b, before)
        return value, g.slope(self.b, before, value)

    @cached_property
    def _reset_factor(self) -> ir.Value:
        """[1, 1, r]: D as R sees it is this times D as W sees it."""
        one = self.b.op("Expand", self.b.scalar_like(1.0, self.X), self.b.shape_of(self.z[0]), shape=self.z[0].shape)
        return self.joined(one, one, self.r[0])

    # --- steps ---------------------------------------------------------------------------------------------------

    def _linear_first(self) -> list[ir.Value]:
        (z, of_z), (_, of_r), (h, of_h) = self.z, self.r, self.h
        kept = (1.0 - z) * of_h
        factors = self.joined((self.before - h) * of_z, kept * self.linear_parts[1][2] * of_r, kept)
        R = self.weight("R")

        def step(b: Builder, carried: Values, read: Values) -> tuple[Values, Values]:
            here = list(read)
            dH = self.through(b, carried[0], here)
            factor, reset, z = here
            D = b.Mul(joined(b, dH, dH, dH), factor)
            return [b.MatMul(D * reset, R) + dH * z], [D]

        return self.back(self.start(), self.read(factors, self._reset_factor, z), step)

    def _reset_first(self) -> list[ir.Value]:
        (z, of_z), (r, of_r), (h, of_h) = self.z, self.r, self.h
        factors = self.joined((self.before - h) * of_z, self.before * of_r)
        Rh, others = self.R_parts[2], joined(self.b, *self.R_parts[:2], axis=0)

        def step(b: Builder, carried: Values, read: Values) -> tuple[Values, Values]:
            here = list(read)
            dH = self.through(b, carried[0], here)
            of_h, factor, r, z = here
            Dh = dH * of_h
            d_reset = b.MatMul(Dh, Rh)
            D = b.Mul(joined(b, dH, d_reset), factor)
            return [b.MatMul(D, others) + dH * z + d_reset * r], [joined(b, D, Dh)]

        return self.back(self.start(), self.read((1.0 - z) * of_h, factors, r, z), step)

    def _of_R(self) -> ir.Value:
        if self.linear_before_reset:
            return super()._of_R()
        of_z, of_r, of_h = self.gates_of(self.D)
        zr = self.over_steps(joined(self.b, of_z, of_r), self.before)
        return joined(self.b, zr, self.over_steps(of_h, self.reset), axis=0)
