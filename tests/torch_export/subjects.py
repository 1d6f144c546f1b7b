"""Modules as people write them, with gradients stopped in torch's own ways; some give their loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradcut.torch

Shapes = dict[str, tuple[int, ...]]


class Mlp(nn.Module):
    """A detached hidden layer beside the same layer as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(h.detach())) + h)


class ConvNet(nn.Module):
    """Norms in training and in inference mode, as `train()` and `eval()` left them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6, momentum=0.3, eps=1e-3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.bn1(self.conv1(x)))
        return self.head(torch.tanh(self.bn2(self.conv2(h))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        h = F.silu(self.body(h)) + gradcut.torch.stop_gradient(h)
        return self.head(h.flatten(2).mean(-1))


def encoder(width: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, width))


def distance(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z, dim=-1).mean()


class SimSiam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.predictor = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 10))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        z1, z2 = self.encoder(one), self.encoder(two)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * distance(p1, z2.detach()) + 0.5 * distance(p2, z1.detach())


class Byol(nn.Module):
    """The target runs with batch statistics of its own, and has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.online = encoder()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Linear(10, 10)

    @torch.no_grad()
    def aim(self, x: Tensor) -> Tensor:
        return F.normalize(self.target(x), dim=-1)

    def forward(self, one: Tensor, two: Tensor) -> dict[str, Tensor]:
        p = self.predictor(self.online(one))
        return {"loss": (F.normalize(p, dim=-1) - self.aim(two)).square().sum(-1).mean(), "prediction": p}


class Attention(nn.Module):
    """An encoder layer, whose own attention is also looked at without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        with torch.no_grad():
            _, weights = self.attention(h, h, h)
        mixed, _ = self.attention(h, h, h, need_weights=False)
        return self.head((weights @ mixed).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(4, 5, batch_first=True), nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, (last, _) = self.lstm(x)
        g, _ = self.gru(h.detach())
        return self.head(torch.cat([last[-1], g[:, -1]], dim=-1))


class Embedding(nn.Module):
    """The table is read twice, once without a gradient; indices are detached, which says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens.detach())
        with torch.no_grad():
            weights = torch.softmax(self.table(tokens).sum(-1), dim=-1)
        return self.head((rows * weights.unsqueeze(-1)).sum(1))


class ActorCritic(nn.Module):
    """The advantage is a constant to the actor; the bootstrap target is one to the critic."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, state: Tensor, following: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        h = torch.tanh(self.trunk(state))
        value = self.critic(h).squeeze(-1)
        with torch.no_grad():
            target = reward + 0.9 * self.critic(torch.tanh(self.trunk(following))).squeeze(-1)
        advantage = (target - value).detach()
        chosen = F.log_softmax(self.actor(h), dim=-1).gather(1, action.unsqueeze(1)).squeeze(1)
        return -(chosen * advantage).mean() + F.mse_loss(value, target)


class VqVae(nn.Module):
    """Straight-through quantisation, codebook and commitment losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = nn.Linear(6, 4), nn.Linear(4, 6), nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        with torch.no_grad():
            nearest = (z.unsqueeze(1) - self.codes.weight).square().sum(-1).argmin(-1)
        q = self.codes(nearest)
        through = z + (q - z).detach()
        loss = F.mse_loss(self.decode(through), x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return loss, q


class MultiTask(nn.Module):
    """Of three outputs, one is of a head on a detached trunk, and one only looks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.main, self.side = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.gelu(self.trunk(x))
        return {"main": self.main(h), "side": self.side(h.detach()), "norm": h.norm(dim=-1).detach()}


class Frozen(nn.Module):
    """A frozen backbone of norms in inference mode under a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.backbone(x)))


class Tied(nn.Module):
    """The table of a language model is its output layer too; one of its uses is without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.embed(tokens)
        return self.out(torch.tanh(self.mix(rows)) + 0.1 * F.linear(rows, self.mix.weight.detach()))


class Normed(nn.Module):
    """Weights made of other weights: weight norm, spectral norm, a parametrization of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)).eval()
        self.symmetric = nn.Linear(8, 8)
        nn.utils.parametrize.register_parametrization(self.symmetric, "weight", Symmetric())
        self.head = nn.Linear(8, 3)

    def train(self, mode: bool = True) -> Normed:
        super().train(mode)
        self.spectral.eval()  # in training mode each forward moves its vectors
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.spectral(torch.tanh(self.weighted(x))))
        return self.head(torch.tanh(self.symmetric(h)) * h.detach())


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class InPlace(nn.Module):
    """`detach_` stops the uses after it; other operators in place are what they are in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        before = h * 2.0
        h.detach_()
        after = F.relu(h + 0.5, inplace=True)
        after += before
        copy = after.detach().clone()
        copy[:, 0] = 0.0
        return self.second(after * copy + h)


class Nested(nn.Module):
    """Gradients off, on again inside, and off by a decorator, over submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            quiet = torch.tanh(self.first(x))
            with torch.enable_grad():
                loud = torch.tanh(self.second(quiet))
                with torch.set_grad_enabled(False):
                    scale = self.second(loud).abs() + 1.0
            both = quiet + loud
        return self.third(loud / scale + both + self.first(x))


@dataclass(frozen=True)
class Subject:
    """A module and what it is fed: `shapes` by argument without the batch; `loss` is gradcut's, None where forward has
    its own.
    """

    build: Callable[[], nn.Module]
    shapes: Shapes
    loss: str | None = None
    labels: tuple[int, ...] = (3,)
    integers: dict[str, int] = field(default_factory=dict)
    training: bool = True

    def module(self) -> nn.Module:
        """Seeded, with norms and statistics that are not those of a fresh module."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            module = self.build().train(self.training)
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.2 * torch.randn_like(parameter))
                for name, buffer in module.named_buffers():
                    if name.endswith("running_var"):
                        buffer.uniform_(0.5, 1.5)
        return module

    def inputs(self, batch: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randint(0, self.integers[name], (batch, *shape), generator=generator)
            if name in self.integers
            else torch.randn(batch, *shape, generator=generator)
            for name, shape in self.shapes.items()
        }

    def targets(self, batch: int, seed: int) -> Tensor:
        return torch.randn(batch, *self.labels, generator=torch.Generator().manual_seed(seed + 1000))


IMAGE = {"x": (2, 6, 6)}
SUBJECTS = {
    "mlp": Subject(Mlp, {"x": (6,)}, "mse"),
    "convnet train": Subject(ConvNet, IMAGE, "mse"),
    "convnet eval": Subject(ConvNet, IMAGE, "mse", training=False),
    "residual": Subject(Residual, IMAGE, "mse"),
    "simsiam": Subject(SimSiam, {"one": (6,), "two": (6,)}),
    "byol": Subject(Byol, {"one": (6,), "two": (6,)}),
    "attention": Subject(Attention, {"x": (5, 8)}, "mse"),
    "recurrent": Subject(Recurrent, {"x": (4, 4)}, "mse"),
    "embedding": Subject(Embedding, {"tokens": (4,)}, "mse", integers={"tokens": 11}),
    "actor-critic": Subject(
        ActorCritic, {"state": (6,), "following": (6,), "action": (), "reward": ()}, integers={"action": 4}
    ),
    "vq-vae": Subject(VqVae, {"x": (6,)}),
    "multi-task": Subject(MultiTask, {"x": (6,)}, "mse:output=main"),
    "frozen backbone": Subject(Frozen, IMAGE, "mse"),
    "tied": Subject(Tied, {"tokens": (4,)}, "mse", labels=(4, 9), integers={"tokens": 9}),
    "weights of weights": Subject(Normed, {"x": (6,)}, "mse"),
    "in place": Subject(InPlace, {"x": (6,)}, "mse"),
    "nested": Subject(Nested, {"x": (6,)}, "mse"),
}
