"""RNN, GRU and LSTM: their rules; the cells are in `recurrent_cells` and `recurrent_lstm`."""

from __future__ import annotations

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.recurrent_activations import activations
from gradcut.rules.recurrent_cells import Cell, GRUCell, RNNCell
from gradcut.rules.recurrent_layer import joined
from gradcut.rules.recurrent_lstm import LSTMCell
from gradcut.rules.registry import rule


def _cotangents(op: Adjoint, kind: type[Cell]) -> Cotangents:
    if op.attr("layout", 0):
        op.refuse("layout=1 has no rule; the pass import turns it into Transposes around layout=0")
    directions = 2 if op.attr("direction", "forward") == "bidirectional" else 1
    cells = [kind(op, d, functions) for d, functions in enumerate(activations(op, kind.defaults, directions))]
    if op.wants("X"):
        forward, *backward = (cell.of_X() for cell in cells)
        yield "X", forward + backward[0] if backward else forward
    for name in filter(op.wants, kind.operands):
        each = [op.b.op("Unsqueeze", cell.of(name), op.b.ints([0])) for cell in cells]
        yield name, joined(op.b, *each, axis=0)


@rule("RNN", "X W R B initial_h", weights="W R B")
def rnn(op: Adjoint) -> Cotangents:
    """Elman 1990: `RNNCell`; any activations, directions and lengths of sequences."""
    yield from _cotangents(op, RNNCell)


@rule("GRU", "X W R B initial_h", weights="W R B")
def gru(op: Adjoint) -> Cotangents:
    """Cho et al. 2014: `GRUCell`; any activations, directions and lengths of sequences."""
    yield from _cotangents(op, GRUCell)


@rule("LSTM", "X W R B initial_h initial_c P", weights="W R B P")
def lstm(op: Adjoint) -> Cotangents:
    """Hochreiter and Schmidhuber 1997: `LSTMCell`; any activations, directions and lengths of sequences."""
    yield from _cotangents(op, LSTMCell)
