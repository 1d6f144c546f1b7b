"""For each optimizer: its kernels, and their scalars: what `Optimizer.prepare` and `update` put in a graph.

`scalars` are in the kernels' order, behind the gradient's factor and bound, with weight decay within the gradient
first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import SpecError
from gradcut.optimizers import LAMB, LARS, SGD, Adagrad, Optimizer, RMSprop
from gradcut.optimizers.adam import AdamLike
from gradcut.runtime import kernels
from gradcut.runtime.kernels import Kernel

Array = np.ndarray[Any, Any]
#: Norms of the parameters and of the gradients (or updates), a number for each tensor -> each tensor's rate.
Ratios = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class HostUpdate:
    """How one optimizer updates tensors.

    Attributes:
        kernel: moves parameters and slots. scalars: for a learning rate and the number of updates done before.
        sign: -1 where gradients are ascended.
        measure: a kernel that runs before it, whose sums give each tensor a rate of its own by `ratios`.
    """

    kernel: Kernel
    scalars: Callable[[float, int], list[float]]
    sign: float = 1.0
    measure: Kernel | None = None
    ratios: Ratios | None = None


def host_update(optimizer: Optimizer) -> HostUpdate:
    """The kernels of an optimizer.

    Raises:
        SpecError: it has none.
    """
    sign = -1.0 if getattr(optimizer, "maximize", False) else 1.0
    if isinstance(optimizer, AdamLike):
        return _adam(optimizer, sign)
    if isinstance(optimizer, SGD):
        return _sgd(optimizer, sign)
    if isinstance(optimizer, RMSprop):
        return _rmsprop(optimizer, sign)
    if isinstance(optimizer, Adagrad):
        return _adagrad(optimizer, sign)
    if isinstance(optimizer, LARS):
        return _lars(optimizer)
    if isinstance(optimizer, LAMB):
        return _lamb(optimizer)
    raise SpecError(f"{optimizer.name} has no host kernel; take optimizer_backend='graph'")


def _sgd(optimizer: SGD, sign: float) -> HostUpdate:
    direction = [1.0, optimizer.momentum] if optimizer.nesterov else [0.0, 1.0]

    def scalars(lr: float, step: int) -> list[float]:
        share = 1.0 if step == 0 else 1.0 - optimizer.dampening
        return [optimizer.weight_decay, lr, optimizer.momentum, share, *direction]

    return HostUpdate(kernels.momentum if optimizer.momentum else kernels.sgd, scalars, sign)


def _adam(optimizer: AdamLike, sign: float) -> HostUpdate:
    beta1, beta2 = optimizer.betas
    inside, beside = (0.0, optimizer.weight_decay) if optimizer.decoupled else (optimizer.weight_decay, 0.0)

    def scalars(lr: float, step: int) -> list[float]:
        first, root = _corrections(optimizer.betas, step)
        averages = [beta1, 1.0 - beta1, beta2, 1.0 - beta2]
        return [inside, *averages, 1.0 - lr * beside, lr * root / first, optimizer.eps * root]

    return HostUpdate(kernels.amsgrad if optimizer.amsgrad else kernels.adam, scalars, sign)


def _corrections(betas: tuple[float, float], step: int) -> tuple[float, float]:
    beta1, beta2 = betas
    return 1.0 - beta1 ** (step + 1), math.sqrt(1.0 - beta2 ** (step + 1))


def _rmsprop(optimizer: RMSprop, sign: float) -> HostUpdate:
    of_centered = {False: kernels.rmsprop, True: kernels.rmsprop_centered}
    of_momentum = {False: kernels.rmsprop_momentum, True: kernels.rmsprop_centered_momentum}
    kernel = (of_momentum if optimizer.momentum else of_centered)[optimizer.centered]
    rest = [optimizer.alpha, 1.0 - optimizer.alpha, optimizer.eps, optimizer.momentum]
    return HostUpdate(kernel, lambda lr, step: [optimizer.weight_decay, lr, *rest], sign)


def _adagrad(optimizer: Adagrad, sign: float) -> HostUpdate:
    def scalars(lr: float, step: int) -> list[float]:
        return [optimizer.weight_decay, lr / (1.0 + step * optimizer.lr_decay), optimizer.eps]

    return HostUpdate(kernels.adagrad, scalars, sign)


def _lars(optimizer: LARS) -> HostUpdate:
    """Gradient descent whose rate is each tensor's; with momentum the rate is within the buffer."""

    def scalars(lr: float, step: int) -> list[float]:
        if not optimizer.momentum:
            return [optimizer.weight_decay, lr]
        return [optimizer.weight_decay, 1.0, optimizer.momentum, lr, 0.0, 1.0]

    def ratios(weights: Array, gradients: Array) -> Array:
        below = gradients + optimizer.weight_decay * weights + optimizer.eps
        return _ratios(optimizer.trust_coefficient * weights, below, weights, gradients)

    kernel = kernels.momentum if optimizer.momentum else kernels.sgd
    if not optimizer.trust_coefficient:
        return HostUpdate(kernel, scalars)
    return HostUpdate(kernel, scalars, measure=kernels.squares, ratios=ratios)


def _lamb(optimizer: LAMB) -> HostUpdate:
    beta1, beta2 = optimizer.betas

    def scalars(lr: float, step: int) -> list[float]:
        first, root = _corrections(optimizer.betas, step)
        averages = [beta1, 1.0 - beta1, beta2, 1.0 - beta2]
        return [optimizer.weight_decay, *averages, root / first, optimizer.eps * root, lr]

    def ratios(weights: Array, updates: Array) -> Array:
        return _ratios(weights, updates, weights, updates)

    return HostUpdate(kernels.lamb, scalars, measure=kernels.lamb_moments, ratios=ratios)


def _ratios(above: Array, below: Array, first: Array, second: Array) -> Array:
    """above / below, and 1 where one of the two norms is 0."""
    return np.divide(above, below, out=np.ones_like(above), where=(first > 0) & (second > 0))
