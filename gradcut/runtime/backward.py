"""The backward that `gradcut.vjp` emits, run as users run it: in ONNX Runtime, else in onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from gradcut.runtime.replay import expose_draws
from gradcut.runtime.widen import Array, Run, is_real, reference, runtime, widen

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
RUNTIME, EXACT = "onnxruntime", "float64 in onnx's reference evaluator"


@dataclass(frozen=True)
class Results:
    """What one run gave.

    Attributes:
        draws: what random operators drew, by the first output of their node.
        exact: it ran in float64, and no constant was rounded to a half before.
    """

    outputs: list[Array]
    gradients: list[Array]
    draws: dict[str, Array]
    exact: bool


class Backward:
    """The emitted graph, ready to run.

    Args:
        count: how many outputs are differentiated.
        how: ``runtime``: ONNX Runtime first; ``reference``: onnx's evaluator in float64 alone.

    Attributes:
        place: where it ran last. notes: why it did not run elsewhere.
    """

    def __init__(self, proto: onnx.ModelProto, count: int, how: str) -> None:
        self.count, self.place, self.notes = count, "", list[str]()
        self.cotangents = [value.name for value in proto.graph.input[-count:]]
        self._given, self._proto, self._total = proto, onnx.ModelProto(), len(proto.graph.output)
        self._proto.CopyFrom(proto)
        self._kinds = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
        halves = [kind for kind in map(ir.DataType, self._kinds.values()) if kind in HALVES]
        self._half = max(halves).numpy() if halves else None
        self._draws = expose_draws(self._proto)
        self._left = [RUNTIME, EXACT] if how == "runtime" else [EXACT]
        self._run: Run | None = None

    def exactly(self) -> Backward:
        """The same graph in float64."""
        return Backward(self._given, self.count, "reference")

    def dtype(self, position: int) -> np.dtype[np.generic]:
        """The dtype of the cotangent of an output."""
        return ir.DataType(self._kinds[self.cotangents[position]]).numpy()

    def __call__(self, feeds: Mapping[str, Array], cotangents: Sequence[Array]) -> Results | None:
        """What it gives at a point; None where nothing runs it, for the reasons in `notes`."""
        arrays = {**feeds, **dict(zip(self.cotangents, cotangents, strict=True))}
        while self._left:
            self.place = self._left[0]
            try:
                return self._results(self._run_there(arrays))
            except Exception as error:  # no kernel for a dtype, or whatever it is; the report says so
                self.notes.append(f"backward in {self.place}: {line(error)}")
                del self._left[0]
                self._run = None
        return None

    def _run_there(self, arrays: Mapping[str, Array]) -> list[Array]:
        if self._run is None:
            self._run = runtime(self._proto) if self.place == RUNTIME else _exactly(self._proto)
        return self._run(arrays)

    def _results(self, results: list[Array]) -> Results:
        names = [output.name for output in self._proto.graph.output]
        by_name = dict(zip(names, results, strict=True))
        draws = {first: by_name[drawn] for first, drawn in self._draws.items()}
        outputs, gradients = results[: self.count], results[self.count : self._total]
        if self._half and self.place == EXACT:  # what the model's type rounded, its constants say, is rounded
            gradients = [gradient.astype(self._half) for gradient in gradients]
        return Results(outputs, gradients, draws, exact=self.place == EXACT and self._half is None)


def _exactly(proto: onnx.ModelProto) -> Run:
    """Every float in float64."""
    run = reference(ir.to_proto(widen(ir.from_proto(proto))))
    return lambda feeds: run({name: a.astype(np.float64) if is_real(a) else a for name, a in feeds.items()})


def line(error: Exception) -> str:
    """What an error says, on one line that a report has room for."""
    return " ".join(str(error).split())[:160]
