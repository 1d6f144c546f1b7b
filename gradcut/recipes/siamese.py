"""Two views and a predictor of one from the other: SimSiam and BYOL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.errors import LossError, SpecError
from gradcut.losses import Cosine, Loss, parse_loss
from gradcut.recipes.assembly import Assembly, on_batch_statistics
from gradcut.recipes.base import Composed, Recipe, averages, names_of, view_inputs
from gradcut.recipes.encoder import Encoder
from gradcut.recipes.heads import Norm, head, mlp


@dataclass(frozen=True, kw_only=True)
class SimSiam(Recipe):
    """Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021.

    L = factor D(p1, stop(z2)) + factor D(p2, stop(z1)), z the projection of a view, p its prediction of the other's.

    Attributes:
        projector: width of the projector's two hidden layers. dim: of z and p. predictor: the bottleneck's width; 0: no
            predictor, p = z.
        last_bn: BatchNormalization without scale and bias behind the projector's last layer.
        stop_gradient: False takes the mark out, and nothing else: the collapse of section 4.1.
        loss: D, any of `gradcut.losses`. factor: of each of the two terms.
    """

    name: ClassVar[str] = "simsiam"
    category: ClassVar[str] = "non-contrastive"
    optimizer: ClassVar[str] = "sgd:lr=0.05,momentum=0.9,weight_decay=1e-4"

    projector: int = 2048
    dim: int = 2048
    predictor: int = 512
    last_bn: bool = True
    stop_gradient: bool = True
    loss: str = "neg_cosine"
    factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("projector", "dim")
        D = parse_loss(self.loss)
        if not D.elementwise or D.output or D.labels or D.target:
            raise LossError(
                "simsiam: loss is one between two vectors, such as neg_cosine or mse, with nothing said of what it "
                f"reads, not {self.loss!r}"
            )
        if self.predictor < 0:
            raise SpecError(f"simsiam: predictor is {self.predictor}; it is at least 0")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        backbone = a.module(encoder.model)
        layers = mlp([self.projector] * 2, self.dim, last_norm=Norm(affine=False) if self.last_bn else None)
        projector = a.module(head("projector", layers, encoder.embedding, seed))
        views = [view_inputs(a, backbone, name) for name in ("view1", "view2")]
        z1, z2 = (projector(backbone(*view)) for view in views)
        p1, p2 = self._predicted(a, z1, z2, seed)
        loss = symmetric(a, parse_loss(self.loss), (p1, p2), (z1, z2), self.factor, self.stop_gradient)
        model = a.model({"loss": loss, "p1": p1, "p2": p2, "z1": z1, "z2": z2}, doc=self.spec())
        return Composed(model, tuple(names_of(view) for view in views), ("z1", "z2"))

    def _predicted(self, a: Assembly, z1: ir.Value, z2: ir.Value, seed: int) -> tuple[ir.Value, ir.Value]:
        if not self.predictor:
            return z1, z2
        predictor = a.module(head("predictor", mlp([self.predictor], self.dim), z1, seed))
        return predictor(z1), predictor(z2)


@dataclass(frozen=True, kw_only=True)
class BYOL(Recipe):
    """Grill et al., *Bootstrap Your Own Latent*, NeurIPS 2020.

    L = (2 - 2 cos(p1, stop(t2))) + (2 - 2 cos(p2, stop(t1))), p what the online network predicts of a view, t what the
    target network, running averages of the online one, projects of the other. The target's norms run on batch
    statistics.

    Attributes:
        projector, predictor: widths of their hidden layers. dim: of z, p and t.
        tau: the decay of the averages. steps: K; tau rises to 1 as 1 - (1 - tau)(cos(pi k / K) + 1) / 2; 0: it stays.
    """

    name: ClassVar[str] = "byol"
    category: ClassVar[str] = "non-contrastive"
    has_momentum_encoder: ClassVar[bool] = True
    optimizer: ClassVar[str] = "lars:lr=0.2,momentum=0.9,weight_decay=1.5e-6"

    projector: int = 4096
    dim: int = 256
    predictor: int = 4096
    tau: float = 0.996
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("projector", "dim", "predictor")
        self._require_share("tau")
        if self.steps < 0:
            raise SpecError(f"byol: steps is {self.steps}; it is at least 0")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        layers = head("projector", mlp([self.projector], self.dim), encoder.embedding, seed)
        online = [a.module(encoder.model), a.module(layers)]
        target = [a.module(one, "target.", trains=False) for one in (on_batch_statistics(encoder.model), layers)]
        views = [view_inputs(a, online[0], name) for name in ("view1", "view2")]
        z = [online[1](online[0](*view)) for view in views]
        t = [target[1](target[0](*view, prefix="target/"), prefix="target/") for view in views]
        predictor = a.module(head("predictor", mlp([self.predictor], self.dim), z[0], seed))
        p = predictor(z[0]), predictor(z[1])
        loss = symmetric(a, Cosine(), p, (t[0], t[1]), factor=2.0)
        outputs = {"loss": loss, "p1": p[0], "p2": p[1], "z1": z[0], "z2": z[1], "t1": t[0], "t2": t[1]}
        model = a.model(outputs, doc=self.spec())
        state = (averages(target, online, self.tau, self.steps),)
        return Composed(model, tuple(names_of(view) for view in views), ("z1", "z2"), state)


def symmetric(
    a: Assembly,
    D: Loss,
    p: tuple[ir.Value, ir.Value],
    z: tuple[ir.Value, ir.Value],
    factor: float,
    stop_gradient: bool = True,
) -> ir.Value:
    """``factor D(p1, stop(z2)) + factor D(p2, stop(z1))``, as `gradcut.losses.symmetric` has it."""
    targets = [a.stop(value) if stop_gradient else value for value in reversed(z)]
    with a.build("loss/") as b:
        terms = [D.build(b, one, target) * factor for one, target in zip(p, targets, strict=True)]
        return b.Add(terms[0], terms[1])
