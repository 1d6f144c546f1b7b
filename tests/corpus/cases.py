"""The operator cases of the onnx package, and what a gradient check says of each."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from gradcut.errors import GradcutError, GradientCheckError
from gradcut.passes.importing.convert import NEWEST, OLDEST
from gradcut.runtime.check import check_gradients
from gradcut.runtime.widen import runtime
from tests.corpus.listed import FLAT, REFUSED

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
#: What a check of a case can find.
RIGHT, FLAT_HERE, NO_GRADIENT, WRONG = "right", "zero", "refused", "wrong"


@dataclass(frozen=True)
class Case:
    """One case: a model, and arrays that it runs on.

    Attributes:
        inputs, outputs: names of those that are tensors of floats.
    """

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def has_floats(self) -> bool:
        return bool(self.inputs and self.outputs)

    @property
    def in_reach(self) -> bool:
        """Whether it is at an opset that gradcut and the runtime take."""
        opsets = {opset.domain or "ai.onnx": opset.version for opset in self.model.opset_import}
        return OLDEST <= opsets.get("ai.onnx", 0) <= NEWEST

    @property
    def expected(self) -> str:
        """What the lists say that a check finds."""
        kinds = [(REFUSED, NO_GRADIENT), (FLAT, FLAT_HERE)]
        return next((kind for patterns, kind in kinds if listed(self.name, patterns)), RIGHT)

    @property
    def runs(self) -> bool:
        """Whether the installed runtime runs the model."""
        try:
            runtime(self.model)(self.feeds)
        except Exception:  # of whatever kind: a kernel that is missing, an opset it does not know, a type
            return False
        return True


def listed(name: str, patterns: Mapping[str, str]) -> str:
    """The first pattern that a name matches; empty for none."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), "")


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every case, in the package's order; the same numbers in every process."""
    random.seed(0)
    np.random.seed(0)  # the package draws from it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(_case(found) for found in collect_testcases(None))


def _case(found: Any) -> Case:
    graph = found.model.graph
    names = [value.name for value in graph.input if value.name]
    feeds = {name: _array(array) for name, array in zip(names, found.data_sets[0][0], strict=False)}
    return Case(found.name, found.model, feeds, _float_tensors(graph.input), _float_tensors(graph.output))


def _array(given: Any) -> Any:
    return numpy_helper.to_array(given) if isinstance(given, TensorProto) else given


def _float_tensors(values: Any) -> tuple[str, ...]:
    return tuple(value.name for value in values if value.type.tensor_type.elem_type in _FLOATS)


def subject() -> list[Case]:
    """The cases that a gradient could be asked of: floats in, floats out, at an opset in reach."""
    return [case for case in cases() if case.has_floats and case.in_reach]


def judge(case: Case) -> tuple[str, str]:
    """What a check finds, and its words."""
    try:
        report = check_gradients(case.model, case.feeds, case.inputs, case.outputs, directions=2)
    except GradientCheckError as error:
        return WRONG, str(error)
    except GradcutError as error:
        return NO_GRADIENT, f"{type(error).__name__}: {error}"
    if not report.ok:
        return WRONG, f"{report.summary}\n{report}"
    return FLAT_HERE if all(value.analytic == 0 for value in report.values) else RIGHT, str(report)


def counts() -> dict[str, int]:
    """How many of the cases are of which kind, by the lists; that each is, the tests say."""
    expected = [case.expected for case in subject()]
    return {
        "right": expected.count(RIGHT),
        "refused": expected.count(NO_GRADIENT),
        "not differentiable": expected.count(FLAT_HERE),
        f"at an opset other than {OLDEST} to {NEWEST}": sum(c.has_floats and not c.in_reach for c in cases()),
        "without float tensors in and out": sum(not c.has_floats for c in cases()),
    }


def share() -> float:
    """Of the cases that have a derivative and that the installed runtime runs, the part that is right."""
    kinds = [case.expected for case in subject() if case.expected != FLAT_HERE and case.runs]
    return kinds.count(RIGHT) / len(kinds)
