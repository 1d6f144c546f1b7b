"""Views of one image near each other, of all others far: SimCLR and MoCo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.recipes.assembly import Assembly, on_batch_statistics
from gradcut.recipes.base import Composed, Recipe, averages, names_of, view_inputs
from gradcut.recipes.encoder import Encoder
from gradcut.recipes.heads import head, mlp, unit
from gradcut.state import State

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class SimCLR(Recipe):
    """Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020.

    L = NT-Xent: of the 2N projections of a batch's two views, the cross entropy of finding a view's partner among the
    other 2N - 1 by cosine / temperature, equation 1. Nothing is cut.

    Attributes:
        projector: width of the projector's hidden layer. dim: of z.
        norm: BatchNormalization behind the hidden layer, as the published code has it.
    """

    name: ClassVar[str] = "simclr"
    category: ClassVar[str] = "contrastive"
    optimizer: ClassVar[str] = "sgd:lr=0.3,momentum=0.9,weight_decay=1e-6"

    projector: int = 2048
    dim: int = 128
    temperature: float = 0.5
    norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("projector", "dim", "temperature")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        backbone = a.module(encoder.model)
        projector = a.module(head("projector", mlp([self.projector], self.dim, self.norm), encoder.embedding, seed))
        views = [view_inputs(a, backbone, name) for name in ("view1", "view2")]
        z1, z2 = (projector(backbone(*view)) for view in views)
        with a.build("loss/") as b:
            loss = nt_xent(b, z1, z2, self.temperature)
        model = a.model({"loss": loss, "z1": z1, "z2": z2}, doc=self.spec())
        return Composed(model, tuple(names_of(view) for view in views), ("z1", "z2"))


@dataclass(frozen=True, kw_only=True)
class MoCo(Recipe):
    """He et al., *Momentum Contrast*, CVPR 2020, as its second version has it: Chen et al., arXiv 2003.04297.

    q of one view is to find k of the other among the keys of earlier batches, a queue: InfoNCE, the cross entropy of
    q k / temperature over the one and the queue. Keys come from an encoder of running averages, cut off; its norms run
    on batch statistics. (Batches are not shuffled between devices: there is one.)

    Attributes:
        projector: width of the head's hidden layer. dim: of q and k. queue: keys that are kept; the newest push out the
            oldest. decay: of the key encoder, 0.999 a step.
    """

    name: ClassVar[str] = "moco"
    category: ClassVar[str] = "contrastive"
    has_memory_bank: ClassVar[bool] = True
    has_momentum_encoder: ClassVar[bool] = True
    optimizer: ClassVar[str] = "sgd:lr=0.03,momentum=0.9,weight_decay=1e-4"

    projector: int = 2048
    dim: int = 128
    queue: int = 65536
    temperature: float = 0.2
    decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("projector", "dim", "queue", "temperature")
        self._require_share("decay")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        layers = head("projector", mlp([self.projector], self.dim, norm=False), encoder.embedding, seed)
        online = [a.module(encoder.model), a.module(layers)]
        target = [a.module(one, "key.", trains=False) for one in (on_batch_statistics(encoder.model), layers)]
        queue = a.tensor("queue", _keys(self.queue, self.dim, seed).astype(encoder.dtype))
        views = [view_inputs(a, online[0], name) for name in ("query", "key")]
        q, k = online[1](online[0](*views[0])), target[1](target[0](*views[1], prefix="key/"), prefix="key/")
        with a.build("key/") as b:
            keys = unit(b, k)
        stopped = a.stop(keys)
        with a.build("loss/") as b:
            loss = info_nce(b, unit(b, q), stopped, queue, self.temperature)
        model = a.model({"loss": loss, "q": q, "k": keys}, doc=self.spec())
        state = averages(target, online, self.decay, 0), State("queue", _enqueue(queue, keys, a.opset))
        return Composed(model, tuple(names_of(view) for view in views), ("q",), state)


def _keys(count: int, dim: int, seed: int) -> Array:
    """Random directions [count, dim], as the queue starts."""
    drawn = np.random.default_rng([seed % 2**64, 2]).normal(size=(count, dim))
    directions: Array = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return directions


def _enqueue(queue: ir.Value, keys: ir.Value, opset: int) -> ir.Model:
    """The newest keys in front, the oldest pushed out."""
    b = Builder(Names([queue.name, keys.name]), prefix="queue_")
    old, new = (ir.Value(name=v.name, type=v.type, shape=v.shape) for v in (queue, keys))
    both = b.op("Concat", new, old, axis=0, dtype=queue.dtype)
    assert queue.shape is not None
    kept = b.op("Slice", both, b.ints([0]), b.ints([int(queue.shape[0])]), dtype=queue.dtype, shape=queue.shape)  # type: ignore[arg-type]
    kept.name = "queue_next"
    return ir.Model(
        ir.Graph([old, new], [kept], nodes=b.nodes, opset_imports={"": opset}, name="enqueue"), ir_version=10
    )


def nt_xent(b: Builder, z1: ir.Value, z2: ir.Value, temperature: float) -> ir.Value:
    """The mean over both views: a row's partner is N rows further on, and it is no partner of itself."""
    count = b.dim(z1, 0)
    both = b.op("Add", count, count, shape=ir.Shape([1]))
    z = b.op("Concat", unit(b, z1), unit(b, z2), axis=0, dtype=z1.dtype, shape=ir.Shape([None, _width(z1)]))
    scores = b.Mul(b.op("MatMul", z, b.transpose(z)), 1 / temperature)
    rows = _indices(b, both)
    same = b.Equal(b.Unsqueeze(rows, b.ints([1])), b.Unsqueeze(rows, b.ints([0])))
    others = b.op("Where", same, b.scalar_like(-1e9, scores), scores, dtype=scores.dtype, shape=scores.shape)
    return _cross_entropy(b, others, b.op("Mod", b.op("Add", rows, count), both, dtype=ir.DataType.INT64))


def info_nce(b: Builder, q: ir.Value, k: ir.Value, queue: ir.Value, temperature: float) -> ir.Value:
    """The mean over rows of minus log softmax([q k, q queue] / temperature) at the first."""
    one = b.op("ReduceSum", b.Mul(q, k), b.ints([1]), keepdims=1)
    many = b.op("MatMul", q, b.transpose(queue))
    scores = b.op("Concat", one, many, axis=1, dtype=q.dtype, shape=ir.Shape([None, None]))
    first = b.zeros(b.dim(q, 0), ir.DataType.INT64)
    return _cross_entropy(b, b.Mul(scores, 1 / temperature), first)


def _width(z: ir.Value) -> int:
    assert z.shape is not None
    return int(z.shape[1])  # type: ignore[arg-type]


def _indices(b: Builder, count: ir.Value) -> ir.Value:
    """0, 1, ..., count - 1 from an INT64 [1]."""
    end = b.op("Squeeze", count, b.ints([0]), dtype=ir.DataType.INT64, shape=ir.Shape([]))
    return b.op("Range", b.constant(0), end, b.constant(1), dtype=ir.DataType.INT64, shape=ir.Shape([None]))


def _cross_entropy(b: Builder, scores: ir.Value, labels: ir.Value) -> ir.Value:
    return b.op("SoftmaxCrossEntropyLoss", scores, labels, reduction="mean", dtype=scores.dtype, shape=ir.Shape([]))
