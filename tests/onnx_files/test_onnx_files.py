"""Every file of the onnx package's backend data: right, refused and why, or nothing to differentiate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gradcut.errors import GradcutError
from gradcut.runtime.check import check_gradients
from tests.onnx_files.__main__ import EXACT, limit
from tests.onnx_files.light import DATA, NAMES, Expected, errors, light

#: Those whose numbers in the package lie where the operator has no value.
_POSITIVE = {"pytorch-operator/test_operator_pow", "pytorch-operator/test_operator_sqrt"}
#: Files in which nothing is a float that depends on one: text, lengths, integers.
CONSTANT = {
    "pytorch-operator/test_operator_non_float_params",
    "simple/test_sequence_model6",
    "simple/test_sequence_model8",
    "simple/test_strnorm_model_monday_casesensintive_lower",
    "simple/test_strnorm_model_monday_casesensintive_nochangecase",
    "simple/test_strnorm_model_monday_casesensintive_upper",
    "simple/test_strnorm_model_monday_empty_output",
    "simple/test_strnorm_model_monday_insensintive_upper_twodim",
    "simple/test_strnorm_model_nostopwords_nochangecase",
}
#: What is refused, and a part of why.
REFUSED = {
    "simple/test_gradient_of_add": "ai.onnx.preview.training.Gradient",
    "simple/test_gradient_of_add_and_mul": "ai.onnx.preview.training.Gradient",
}
FOLDERS = {"pytorch-converted": 82, "pytorch-operator": 35, "simple": 23}


def files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (DATA / folder).rglob("*.onnx"))


def name_of(path: Path) -> str:
    return path.relative_to(DATA).parent.as_posix()


def data(path: Path, model: onnx.ModelProto) -> dict[str, np.ndarray] | None:
    """The numbers that the package has for the file; made up where it lacks one that is fed."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for index, value in enumerate(model.graph.input):
        stored = path.parent / "test_data_set_0" / f"input_{index}.pb"
        if value.name in weights or not value.type.HasField("tensor_type"):
            continue
        if not stored.exists():
            return None
        array = numpy_helper.to_array(onnx.TensorProto.FromString(stored.read_bytes()))
        found[value.name] = np.abs(array) + 0.5 if name_of(path) in _POSITIVE and array.dtype.kind == "f" else array
    return found


def test_the_package_has_these_files() -> None:
    """So that nothing is missed, and what is listed is there."""
    assert Counter(name_of(path).partition("/")[0] for path in files()) == FOLDERS
    assert {path.stem for path in (DATA / "light").glob("*.onnx")} == {f"light_{name}" for name in NAMES}
    assert {*CONSTANT, *REFUSED, *_POSITIVE} <= set(map(name_of, files()))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_the_gradients_of_a_small_file(path: Path) -> None:
    """By every parameter and float input, against finite differences."""
    model, name = onnx.load(path), name_of(path)
    try:
        report = check_gradients(model, data(path, model), directions=2)
    except GradcutError as error:
        expected = "has no float output to take gradients of" if name in CONSTANT else REFUSED.get(name)
        assert expected is not None and expected in str(error), str(error)
    else:
        assert name not in CONSTANT and name not in REFUSED
        assert report.ok and report.values, str(report)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_the_gradients_of_an_architecture(name: str) -> None:
    """By the last layer's parameters, and by all; the other seven by ``python -m tests.onnx_files``."""
    expected = Expected(light(name))
    assert all(np.linalg.norm(values) > 0 for values in expected.values.values())
    for wrt in (expected.names[-2:], expected.names):
        exact, float32 = errors(expected, wrt)
        assert max(exact.values()) <= EXACT, {one: error for one, error in exact.items() if error > EXACT}
        assert max(float32.values()) <= limit(expected)
