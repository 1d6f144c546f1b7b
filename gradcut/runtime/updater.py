"""How a session's parameters move by their gradients: a compiled host kernel in place, or the emitted graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradcut.errors import MissingExtraError, SpecError
from gradcut.optimizers import UpdatePlan
from gradcut.runtime.backend import Runner, Slot, cores, scalar
from gradcut.runtime.finite import require_finite_norm

BACKENDS = ("auto", "graph", "host")
_HOST_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Updater:
    """One update of every trained parameter and its optimizer state, over a session's memory.

    Args:
        manifest: of the artifacts. slots: the session's state by name. gradients: the buffers by gradient's name.
        backend: ``auto``, ``graph`` or ``host``, see `TrainingSession`.
        runner: loads one of the emitted graphs by its name.

    Attributes:
        backend: which of ``graph`` and ``host`` was taken.

    Raises:
        SpecError: no such backend, or one that cannot be had here.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        slots: Mapping[str, Slot],
        gradients: Mapping[str, Slot],
        backend: str,
        device: str,
        threads: int | None,
        runner: Callable[[str], Runner],
    ) -> None:
        self.plan, self._manifest = UpdatePlan.of_manifest(manifest), manifest
        self._trained = manifest["trainable"]
        self._slots, self._gradients = slots, gradients
        self.backend = _choose(backend, device, [slots[one["name"]].array.dtype for one in self._trained])
        self._kernel = self._host(threads) if self.backend == "host" else None
        self._graph = runner("optimizer_model") if self._kernel is None else None

    def step(self, lr: float, done: int, clocks: Mapping[str, int]) -> float | None:
        """Move the parameters; the norm of the gradients where they are clipped by it.

        Args:
            done: updates before this one. clocks: likewise, by the names of counts of their own.

        Raises:
            NotFiniteError: that norm is NaN or infinite; nothing moved.
        """
        if self._kernel is None:
            return self._run_graph(lr, done, clocks)
        arrays = {one["name"]: self._gradients[one["gradient"]].array for one in self._trained}
        norm: float | None = self._kernel.step(arrays, lr, done, clocks)
        return norm

    def _host(self, threads: int | None) -> Any:
        from gradcut.runtime.host_optimizer import HostOptimizer

        parameters = {one["name"]: self._slots[one["name"]].array for one in self._trained}
        slots = {one["name"]: {s: self._slots[n].array for s, n in one["slots"].items()} for one in self._trained}
        return HostOptimizer(self.plan, parameters, slots, threads=threads or cores())

    def _run_graph(self, lr: float, done: int, clocks: Mapping[str, int]) -> float | None:
        assert self._graph is not None
        names = self._manifest["names"]
        moving = [name for one in self._trained for name in one["next"]]
        inputs = {name: self._slots[name].current for name in moving}
        inputs |= {name: slot.current for name, slot in self._gradients.items()}
        inputs |= {names["learning_rate"]: scalar(lr, np.float32), names["step"]: scalar(done, np.int64)}
        inputs |= {name: scalar(clocks.get(clock, 0), np.int64) for clock, (name, _) in names["clocks"].items()}
        outputs = {after: self._slots[name].spare for one in self._trained for name, after in one["next"].items()}
        results = self._graph.run(inputs, outputs)
        norm = float(results[names["gradient_norm"]].numpy()) if self.plan.clip_norm is not None else None
        if norm is not None:
            require_finite_norm(norm, done + 1)
        for name in moving:
            self._slots[name].swap()
        return norm


def _choose(wanted: str, device: str, dtypes: list[Any]) -> str:
    if wanted not in BACKENDS:
        raise SpecError(f"optimizer_backend is one of {', '.join(BACKENDS)}, not {wanted!r}")
    fits = device == "cpu" and all(dtype in _HOST_DTYPES for dtype in dtypes)
    if wanted == "host" and not fits:
        raise SpecError("optimizer_backend='host' takes float32 and float64 parameters on the CPU; use 'graph'")
    if wanted == "graph" or not fits:
        return "graph"
    try:
        import gradcut.runtime.host_optimizer  # noqa: F401
    except MissingExtraError:
        if wanted == "host":
            raise
        return "graph"
    return "host"
