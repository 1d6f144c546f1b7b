"""Samples of RNN, GRU and LSTM: directions, activations, lengths of sequences, operands and outputs left out.

Every subset of the wanted operands is checked, so most samples want few of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Sample, sample, within

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
OUTPUTS = {"RNN": 2, "GRU": 2, "LSTM": 3}
OPERANDS = ("X", "W", "R", "B", "initial_h", "initial_c", "P")
#: By how many numbers of `activation_alpha` and of `activation_beta` they take.
ACTIVATIONS = {
    "Relu": (0, 0),
    "Tanh": (0, 0),
    "Sigmoid": (0, 0),
    "Affine": (1, 1),
    "LeakyRelu": (1, 0),
    "ThresholdedRelu": (1, 0),
    "ScaledTanh": (1, 1),
    "HardSigmoid": (1, 1),
    "Elu": (1, 0),
    "Softsign": (0, 0),
    "Softplus": (0, 0),
}


def samples() -> Iterator[Sample]:
    for op in GATES:
        yield from _operands_and_outputs(op)
        yield from _directions(op)
        yield from _clips_and_sizes(op)
        yield from _activations(op)
    yield from _gru()
    yield from _lstm()


def _recurrent(
    op: str,
    name: str,
    want: str = "X R",
    *,
    sizes: tuple[int, int, int, int] = (3, 2, 2, 3),
    lens: list[int] | None = None,
    without: str = "",
    **options: Any,
) -> Sample:
    """One layer.

    Args:
        want: operands to differentiate by. sizes: T steps, N sequences, I inputs and H hidden numbers.
        without: operands that are left out.
    """
    (T, N, inputs, H), gates = sizes, GATES[op]
    D = 2 if options.get("direction") == "bidirectional" else 1
    shapes = {
        "X": (T, N, inputs),
        "W": (D, gates * H, inputs),
        "R": (D, gates * H, H),
        "B": (D, 2 * gates * H),
        "sequence_lens": (N,),
        "initial_h": (D, N, H),
        "initial_c": (D, N, H),
        "P": (D, 3 * H),
    }
    mine = [operand for operand in shapes if op == "LSTM" or operand not in ("initial_c", "P")]
    operands = [None if operand in without.split() else within(*shapes[operand]) for operand in mine]
    operands[4] = None if lens is None else np.asarray(lens, np.int32)
    unwanted = " ".join(operand for operand in OPERANDS if operand not in want.split())
    given = {"outputs": OUTPUTS[op], "hidden_size": H, "runtime": "sequence_lens", "unwanted": unwanted, **options}
    given["dtypes"] = "float16 float64" if op == "RNN" else "float16"  # ONNX Runtime loads the others, and fails
    return sample(op, name, *operands, **given)


def _operands_and_outputs(op: str) -> Iterator[Sample]:
    yield _recurrent(op, "all", "X W R B initial_h initial_c P", sizes=(2, 2, 2, 2))
    yield _recurrent(op, "plain", "X W R", without="B initial_h initial_c P")
    yield _recurrent(op, "Y", "W initial_h", outputs=1)
    yield _recurrent(op, "lengths", "X W initial_h initial_c P", lens=[3, 2, 1], sizes=(3, 3, 2, 2))
    yield _recurrent(op, "short", "X B", lens=[1, 2], sizes=(4, 2, 2, 2), without="initial_h")
    yield _recurrent(op, "empty_sequence", "R initial_h initial_c", lens=[0, 3])


def _directions(op: str) -> Iterator[Sample]:
    yield _recurrent(op, "reverse", "X W initial_h initial_c", direction="reverse")
    yield _recurrent(op, "both", "X R B", direction="bidirectional")
    yield _recurrent(op, "both_plain", "W initial_h", direction="bidirectional", without="B P initial_c")
    yield _recurrent(op, "reverse_lengths", "X W B", direction="reverse", lens=[2, 3], without="P")
    yield _recurrent(op, "both_lengths", "X R initial_h P", direction="bidirectional", lens=[1, 3])
    yield _recurrent(op, "both_empty", "X initial_c", direction="bidirectional", lens=[3, 0])


def _clips_and_sizes(op: str) -> Iterator[Sample]:
    yield _recurrent(op, "clip", "X W R", clip=0.3)
    yield _recurrent(op, "clip_both", "X B P", clip=0.4, direction="bidirectional")
    yield _recurrent(op, "one_step", "X W R", sizes=(1, 2, 2, 3))
    yield _recurrent(op, "one_of_each", "X R", sizes=(1, 1, 1, 1))
    yield _recurrent(op, "one_sequence", "W R", sizes=(4, 1, 3, 2))
    if op == "RNN":  # ONNX Runtime's LSTM leaves memory as it is there, and its GRU aborts the process
        yield _recurrent(op, "no_steps", "X W R initial_h", sizes=(0, 2, 2, 3))
        yield _recurrent(op, "no_steps_reverse", "W R", sizes=(0, 2, 2, 3), direction="reverse", lens=[0, 0])


def _activations(op: str) -> Iterator[Sample]:
    """Each as every function of the cell, and different ones side by side."""
    count = OUTPUTS[op] if op == "LSTM" else 2 if op == "GRU" else 1
    for name, (alphas, betas) in ACTIVATIONS.items():
        numbers = _numbers([0.3] * count * alphas, [0.6] * count * betas)
        yield _recurrent(op, name, activations=[name] * count, **numbers)
    many = ["LeakyRelu", "Sigmoid", "ScaledTanh", "Affine", "Softsign", "Elu"][: 2 * count]
    numbers = _numbers([0.2, 0.7, 0.5, 0.4], [0.8, 0.1])
    yield _recurrent(op, "many", "X W", activations=many, direction="bidirectional", **numbers)
    few = ["HardSigmoid", "Elu", "LeakyRelu"][:count]
    yield _recurrent(op, "numbers_left_out", activations=few, activation_alpha=[0.3])


def _numbers(alpha: list[float], beta: list[float]) -> dict[str, list[float]]:
    given = {"activation_alpha": alpha, "activation_beta": beta}
    return {key: numbers for key, numbers in given.items() if numbers}


def _gru() -> Iterator[Sample]:
    for name, options in {
        "linear": {},
        "linear_both": {"direction": "bidirectional", "lens": [2, 3]},
        "linear_clip": {"clip": 0.4, "direction": "reverse"},
        "linear_no_bias": {"without": "B initial_h"},
        "linear_softsign": {"activations": ["Softsign", "Softplus"]},
    }.items():
        want = "X W R initial_h" if options.get("without") else "W R B"
        yield _recurrent("GRU", name, want, linear_before_reset=1, **options)


def _lstm() -> Iterator[Sample]:
    for name, options in {
        "coupled": {},
        "coupled_plain": {"without": "P initial_c"},
        "coupled_both": {"direction": "bidirectional", "lens": [2, 3]},
        "coupled_clip": {"clip": 0.5},
    }.items():
        yield _recurrent("LSTM", name, "X R P", input_forget=1, **options)
    yield _recurrent("LSTM", "no_peepholes", "X W initial_h initial_c", without="P", sizes=(4, 2, 2, 2))
    yield _recurrent("LSTM", "no_peepholes_lengths", "R B initial_c", without="P", lens=[3, 1])
