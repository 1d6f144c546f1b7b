"""The cell of LSTM: two states, of which the forward gives the hidden one alone; the others are computed again."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.recurrent_cells import Cell, Values
from gradcut.rules.recurrent_layer import joined


class LSTMCell(Cell):
    """C' = f C + i g, H' = o h(C'); Hochreiter and Schmidhuber 1997, peepholes P of Gers and Schmidhuber 2000.

    With dC the cotangent of C', dC += dH' o h'(C') + dao Po; dai = dC g i', daf = dC C f', dag = dC i g',
    dao = dH' h(C') o'; dC = dC f + dai Pi + daf Pf. Where `input_forget` is set, f is 1 - i, as ONNX Runtime has it.
    The clip bounds what i, o, f and g are made of, and not C' before h: there ONNX Runtime leaves the page.
    """

    gates = 4
    defaults = ("Sigmoid", "Tanh", "Tanh")
    operands = ("W", "R", "B", "initial_h", "initial_c", "P")

    # --- forward, again ------------------------------------------------------------------------------------------

    @cached_property
    def coupled(self) -> bool:
        return bool(self.op.attr("input_forget", 0))

    @cached_property
    def peepholes(self) -> dict[str, ir.Value]:
        """Pi, Po and Pf by gate, [H]; empty where there are none."""
        P = self.operand("P")
        return {} if P is None else dict(zip("iof", self.gates_of(P, 3), strict=True))

    @cached_property
    def parts(self) -> dict[str, ir.Value]:
        """What stands before each activation, but for the peepholes."""
        return dict(zip("iofg", self.gates_of(self.linear), strict=True))

    def before_activation(self, gate: str, C: ir.Value, part: ir.Value) -> ir.Value:
        return part + C * self.peepholes[gate] if gate in self.peepholes else part

    def gate(self, name: str) -> tuple[ir.Value, ir.Value]:
        """The value of a gate and its slope."""
        function = self.functions[1 if name == "g" else 0]
        before = (
            self.before_activation(name, self.C if name == "o" else self.C_before, self.parts[name])
            if name in self.peepholes
            else self.parts[name]
        )
        value = function(self.b, before)
        return value, function.slope(self.b, before, value)

    @cached_property
    def i(self) -> tuple[ir.Value, ir.Value]:
        return self.gate("i")

    @cached_property
    def o(self) -> tuple[ir.Value, ir.Value]:
        return self.gate("o")

    @cached_property
    def f(self) -> tuple[ir.Value, ir.Value]:
        return self.gate("f")

    @cached_property
    def g(self) -> tuple[ir.Value, ir.Value]:
        return self.gate("g")

    @cached_property
    def forget(self) -> ir.Value:
        return 1.0 - self.i[0] if self.coupled else self.f[0]

    @cached_property
    def C(self) -> ir.Value:
        """The cell after each step."""
        initial = self.operand("initial_c")
        state = [self.zeros() if initial is None else initial]
        if self.peepholes:
            reads, step = [self.parts["i"], self.parts["f"], self.g[0]], self._peeping_step
        else:
            reads, step = [self.forget, self.i[0] * self.g[0]], _plain_step
        return self.flipped(self.scan(state, [self.flipped(value) for value in reads], step)[-1])

    def _peeping_step(self, b: Builder, states: Values, read: Values) -> tuple[Values, Values]:
        (C,), (part_i, part_f, g), f = states, read, self.functions[0]
        i = f(b, self.before_activation("i", C, part_i))
        forget = 1.0 - i if self.coupled else f(b, self.before_activation("f", C, part_f))
        new = b.Add(forget * C, i * g)
        return [new], [new]

    @cached_property
    def C_before(self) -> ir.Value:
        """The cell before each step."""
        return self.shifted(self.C, "initial_c")

    # --- backward ------------------------------------------------------------------------------------------------

    def start(self) -> list[ir.Value]:
        return [self.d_last("Y_h"), self.d_last("Y_c")]

    @cached_property
    def found(self) -> list[ir.Value]:
        factors, into_cell, through_cell = self._factors()
        R = self.weight("R")

        def step(b: Builder, carried: Values, read: Values) -> tuple[Values, Values]:
            here = list(read)
            dH = self.through(b, carried[0], here)
            factor, into, through = here
            dC = carried[1] + dH * into
            D = b.Mul(joined(b, dC, dH, dC, dC), factor)
            return [b.MatMul(D, R), dC * through], [D]

        return self.back(self.start(), self.read(factors, into_cell, through_cell), step)

    def _factors(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """By which dC and dH' give D, dH' goes into dC, and dC goes on."""
        b, function = self.b, replace(self.functions[2], clip=None)
        (i, of_i), (o, of_o), (g, of_g) = self.i, self.o, self.g
        h = function(b, self.C)
        to_o, into = h * of_o, o * function.slope(b, self.C, h)
        if self.coupled:
            to_i, to_f = (g - self.C_before) * of_i, b.zeros_like(i)
        else:
            to_i, to_f = g * of_i, self.C_before * self.f[1]
        through = self.forget
        if self.peepholes:
            into = into + to_o * self.peepholes["o"]
            through = through + to_i * self.peepholes["i"]
            through = through if self.coupled else through + to_f * self.peepholes["f"]
        return self.joined(to_i, to_o, to_f, i * of_g), into, through

    # --- what the operands get -----------------------------------------------------------------------------------

    def of(self, operand: str) -> ir.Value:
        if operand == "initial_c":
            return self.found[1]
        return self._of_P() if operand == "P" else super().of(operand)

    def _of_P(self) -> ir.Value:
        of_i, of_o, of_f, _ = self.gates_of(self.D)
        seen = (of_i, self.C_before), (of_o, self.C), (of_f, self.C_before)
        return joined(self.b, *(self.total(D * C) for D, C in seen))


def _plain_step(b: Builder, states: Values, read: Values) -> tuple[Values, Values]:
    new = b.Add(states[0] * read[0], read[1])
    return [new], [new]
