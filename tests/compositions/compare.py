"""A case by gradcut in ONNX Runtime and by torch in float64, and whether the two agree."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

import gradcut
from tests import in_torch
from tests.compositions.generate import Case
from tests.written import session

Arrays = list[np.ndarray]
#: By the model's floats: relative to the largest element of a gradient, and to the largest of all; and how far numbers
#: are moved to find a kink.
_TOLERANCES = {"float64": (1e-8, 1e-10, 1e-13), "float32": (5e-4, 5e-6, 3e-7), "float16": (5e-2, 5e-3, 1e-3)}


@dataclass(frozen=True)
class Verdict:
    """What came of a case: ``right``, ``refused``, ``kink``, ``not run`` (nor is the model itself by ONNX Runtime), or
    what is wrong."""

    kind: str
    text: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in ("right", "refused", "kink", "not run")


def verdict(case: Case) -> Verdict:
    """Run both sides.

    A kink, or a point where the derivative changes faster than float32 can tell, is where the gradient in float64
    itself moves when the numbers move by as much as float32 rounds.
    """
    reference = Reference(case)
    try:
        outputs, gradients = by_gradcut(case, reference.cotangents, reference.gradients)
    except gradcut.errors.NoGradientError as error:
        return Verdict("refused", str(error))
    except Exception as error:  # whatever it is, the graph is valid
        return Verdict("crash", f"{type(error).__name__}: {error}") if runs(case) else Verdict("not run")
    names = [*(f"output {name}" for name in case.again or case.of), *(f"gradient by {name}" for name in case.wrt)]
    found, expected = [*outputs, *gradients], [*reference.outputs, *reference.gradients]
    count = len(outputs)
    limits = [_limits(case, expected[:count]), _limits(case, expected[count:])]
    for name, mine, theirs, limit in zip(names, found, expected, [*limits[0], *limits[1]], strict=True):
        if mine.dtype != width(case):
            return Verdict("type", f"{name}: {mine.dtype} and not {width(case)}")
        if mine.shape != theirs.shape:
            return Verdict("shape", f"{name}: {mine.shape} and not {theirs.shape}")
        if not _close(mine, theirs, limit):
            kind = "output" if name.startswith("output") else "gradient"
            return Verdict("kink") if reference.moves(limits) else Verdict(kind, f"{name}:\n{mine}\nand not\n{theirs}")
    return Verdict("right")


def width(case: Case) -> np.dtype[np.generic]:
    """The floats of the model."""
    return helper.tensor_dtype_to_np_dtype(case.model.graph.output[0].type.tensor_type.elem_type)


def _limits(case: Case, expected: Arrays) -> list[float]:
    relative, of_all, _ = _TOLERANCES[width(case).name]
    sizes = [float(np.abs(array).max(initial=0.0)) for array in expected]
    return [relative * size + of_all * max([1.0, *sizes]) for size in sizes]


def _close(mine: np.ndarray, theirs: np.ndarray, limit: float) -> bool:
    return bool(np.all(np.abs(mine - theirs) <= limit))


# --- torch ---------------------------------------------------------------------------------------------------


class Reference:
    """Outputs and gradients of a case in float64.

    Attributes:
        cotangents: random, in float32; those of the outputs, and of the gradients that are differentiated again.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.cotangents: dict[str, np.ndarray] = {}
        self.outputs, self.gradients = self._run()

    def moves(self, limits: Sequence[Sequence[float]]) -> bool:
        """Whether numbers moved by what their width rounds move a result by a share of its limit, or torch's own
        rounding does."""
        if width(self.case) == np.float32 and self._apart(self._run(dtype=torch.float32), limits):
            return True
        for seed in range(6):
            rng = np.random.default_rng([self.case.seed, seed])
            if self._apart(self._run(rng), limits):
                return True
        return False

    def _apart(self, other: tuple[Arrays, Arrays], limits: Sequence[Sequence[float]]) -> bool:
        pairs = zip((*other[0], *other[1]), (*self.outputs, *self.gradients), (*limits[0], *limits[1]), strict=True)
        return not all(_close(mine, theirs, 0.3 * limit) for mine, theirs, limit in pairs)

    def _run(self, rng: np.random.Generator | None = None, dtype: torch.dtype = torch.float64) -> tuple[Arrays, Arrays]:
        case, weights = self.case, in_torch.weights(self.case.model, dtype)
        feeds = {name: in_torch.tensor(array, dtype) for name, array in case.feeds.items()}
        leaves = {name: t.detach() for name, t in {**weights, **feeds}.items()}
        if rng is not None:
            by = _TOLERANCES[width(case).name][2]
            leaves = {name: _nudged(t, rng, by) for name, t in leaves.items()}
        plain = in_torch.values(case.model, {}, leaves, dtype=dtype, stop_at=case.stop_at)
        wanted = {name: torch.zeros_like(plain[name], requires_grad=True) for name in case.wrt}
        found = in_torch.values(case.model, {}, leaves, dtype=dtype, wanted=wanted, stop_at=case.stop_at)
        outputs = [found[name] for name in case.of]
        gradients = _gradients(outputs, [self._cotangent(n, found[n]) for n in case.of], wanted, bool(case.again))
        if case.again:
            first = [gradients[case.wrt.index(name)] for name in case.again]
            seeds = [self._cotangent(f"{name} again", g) for name, g in zip(case.again, first, strict=True)]
            gradients = _gradients(first, seeds, wanted, False)
            outputs = first
        return [o.detach().numpy(force=True) for o in outputs], [g.detach().numpy(force=True) for g in gradients]

    def _cotangent(self, name: str, like: Tensor) -> Tensor:
        if name not in self.cotangents:
            rng = np.random.default_rng([self.case.seed, zlib.crc32(name.encode())])
            self.cotangents[name] = np.asarray(rng.normal(size=like.shape), np.float32).astype(width(self.case))
        return in_torch.tensor(self.cotangents[name]).to(like.dtype)


def _nudged(t: Tensor, rng: np.random.Generator, by: float) -> Tensor:
    if not t.is_floating_point():
        return t
    noise = torch.from_numpy(np.asarray(rng.normal(size=t.shape)))
    return t + by * noise * t.abs().clamp(min=0.1)


def _gradients(outputs: list[Tensor], seeds: list[Tensor], wanted: Mapping[str, Tensor], again: bool) -> list[Tensor]:
    objective = sum(((o * s).sum() for o, s in zip(outputs, seeds, strict=True)), torch.zeros(()))
    zeros = [torch.zeros_like(value) for value in wanted.values()]
    if not objective.requires_grad:
        return zeros
    found = torch.autograd.grad(objective, list(wanted.values()), allow_unused=True, create_graph=again)
    return [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]


def runs(case: Case) -> bool:
    """Whether ONNX Runtime runs the model itself."""
    try:
        session(case.model).run(None, case.feeds)
    except Exception:
        return False
    return True


# --- gradcut -------------------------------------------------------------------------------------------------


def by_gradcut(case: Case, cotangents: Mapping[str, np.ndarray], like: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and gradients by ONNX Runtime; of a gradient's gradient, the gradient is the output.

    Args:
        like: one array for each wanted value.
    """
    derived = gradcut.vjp(case.model, wrt=case.wrt, of=case.of, stop_at=case.stop_at)
    feeds = {**case.feeds, **_seeds(derived, {name: cotangents[name] for name in case.of})}
    wrt, count = list(case.wrt), len(case.of)
    if case.again:
        gradients = [value.name for value in derived.graph.output][count:]
        first = {gradients[case.wrt.index(name)]: cotangents[f"{name} again"] for name in case.again}
        wrt, count = [name for name in case.wrt if name in _values(derived)], len(first)
        if not wrt:  # nothing that is wanted reaches an output, so none is in the first result
            return [np.zeros_like(array) for array in first.values()], [np.zeros(g.shape, width(case)) for g in like]
        derived = gradcut.vjp(derived, wrt=wrt, of=list(first))
        feeds |= _seeds(derived, first)
    if all(v.type.tensor_type.HasField("shape") for v in (*derived.graph.input, *derived.graph.output)):
        onnx.checker.check_model(derived, full_check=True)
    results = session(derived).run(None, feeds)
    by_name = dict(zip(wrt, results[count:], strict=True))
    return results[:count], [
        by_name.get(name, np.zeros(g.shape, width(case))) for name, g in zip(case.wrt, like, strict=True)
    ]


def _seeds(derived: onnx.ModelProto, cotangents: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feeds for the last inputs, one for each differentiated output."""
    names = [value.name for value in derived.graph.input[-len(cotangents) :]]
    return dict(zip(names, cotangents.values(), strict=True))


def _values(model: onnx.ModelProto) -> set[str]:
    leaves = {value.name for value in (*model.graph.initializer, *model.graph.input)}
    return leaves | {name for node in model.graph.node for name in node.output}
