"""Makers of operators that work on elements alone."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from tests.compositions.makers import makes
from tests.compositions.writer import Unfit, Writer

ATTRIBUTES = {
    "Elu": ("alpha",),
    "Celu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Shrink": ("lambd", "bias"),
}


@makes(
    "Abs Asinh Atan Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Round "
    "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign StopGradient Tanh ThresholdedRelu"
)
def of_any(w: Writer, op: str) -> None:
    names = [name for name in ATTRIBUTES.get(op, ()) if w.rng.random() < 0.6]
    w.op(op, w.pick(), **{name: round(w.rng.uniform(0.1, 0.9), 3) for name in names})


@makes("Gelu")
def gelu(w: Writer, op: str) -> None:
    w.op(op, w.pick(), approximate=w.rng.choice(("none", "tanh")))


@makes("Log Reciprocal Sqrt")
def of_positive(w: Writer, op: str) -> None:
    w.op(op, w.positive(w.pick()))


@makes("Acos Asin Atanh Tan")
def of_inside(w: Writer, op: str) -> None:
    w.op(op, w.inside(w.pick()))


@makes("Acosh")
def acosh(w: Writer, op: str) -> None:
    w.op(op, w.op("Add", w.positive(w.pick()), w.number(1.0)))


@makes("Add Sub Mul")
def of_two(w: Writer, op: str) -> None:
    x = w.pick()
    pair = [x, x if w.rng.random() < 0.1 else w.broadcasting(w.shape(x))]
    w.rng.shuffle(pair)
    w.op(op, *pair)


@makes("Div")
def div(w: Writer, op: str) -> None:
    x = w.pick()
    w.op(op, x, w.nonzero(w.broadcasting(w.shape(x))))


@makes("Mod")
def mod(w: Writer, op: str) -> None:
    x = w.pick()
    w.op(op, x, w.nonzero(w.broadcasting(w.shape(x))), fmod=1)


@makes("Pow")
def power(w: Writer, op: str) -> None:
    x = w.pick()
    if w.rng.random() < 0.5:
        w.op(op, x, w.number(w.rng.choice((2.0, 3.0))))
    else:
        w.op(op, w.positive(x), w.broadcasting(w.shape(x)))


@makes("Max Min Sum Mean")
def of_several(w: Writer, op: str) -> None:
    x = w.pick()
    w.op(op, x, *(w.broadcasting(w.shape(x)) for _ in range(w.rng.randint(0, 2))))


@makes("Where")
def where(w: Writer, op: str) -> None:
    shape = w.shape(w.pick())
    w.op(op, w.condition(shape), w.broadcasting(shape), w.broadcasting(shape))


@makes("PRelu")
def prelu(w: Writer, op: str) -> None:
    x = w.pick()
    slope = w.broadcasting(w.shape(x))
    if torch.broadcast_shapes(w.shape(x), w.shape(slope)) != w.shape(x):
        raise Unfit
    w.op(op, x, slope)


@makes("Clip")
def clip(w: Writer, op: str) -> None:
    """Bounds that are constant, computed, or left out."""
    low = w.rng.choice(("", w.number(-0.7), "computed"))
    high = w.rng.choice(("", w.number(0.8), "computed"))
    bound = lambda at: w.op("Add", w.op("Tanh", w.like(())), w.number(at))
    w.op(op, w.pick(), bound(-1.0) if low == "computed" else low, bound(1.5) if high == "computed" else high)


@makes("Cast")
def cast(w: Writer, op: str) -> None:
    """To float64 and back, with something between; or of a condition."""
    if w.rng.random() < 0.3:
        w.op(op, w.condition(w.shape(w.pick())), to=onnx.TensorProto.FLOAT)
        return
    wide = w.op(op, w.op("Tanh", w.pick()), to=onnx.TensorProto.DOUBLE)
    square = w.op("Mul", wide, wide) if w.rng.random() < 0.5 else wide
    w.floats[:] = [name for name in w.floats if name not in (wide, square)]
    w.op(op, square, to=onnx.TensorProto.FLOAT)


@makes("CastLike")
def cast_like(w: Writer, op: str) -> None:
    w.op(op, w.pick(), w.pick())


@makes("Dropout")
def dropout(w: Writer, op: str) -> None:
    w.op(op, w.pick(), w.number(0.4), w.constant(np.array(False)))
