"""What an ordinary export loses is said, with the line that keeps it; what ours writes has lost nothing."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import gradcut
from gradcut.errors import GradcutWarning
from gradcut.exporters import destroyed
from gradcut.inspection import inspect
from tests.torch_export.exported import compiled, exported
from tests.torch_export.subjects import SUBJECTS

LINE = 'export with gradcut.torch.export(model, args, "model.onnx")'
#: The ordinary ways; both fold a norm in inference mode into the convolution before it.
WAYS: dict[str, dict[str, Any]] = {"dynamo": {"dynamo": True}, "before dynamo": {"dynamo": False}}


@pytest.fixture(scope="module", params=WAYS)
def ordinary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ordinary") / "m.onnx"
    subject = SUBJECTS["convnet eval"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            subject.module(), tuple(subject.inputs(3, 0).values()), path, verbose=False, **WAYS[request.param]
        )
    return path


def test_compile_warns_with_the_line_to_call(ordinary: Path) -> None:
    with pytest.warns(GradcutWarning) as caught:
        artifacts = gradcut.compile(ordinary, "mse")
    said = [str(one.message) for one in caught if issubclass(one.category, GradcutWarning)]
    assert said == artifacts.manifest["warnings"]
    assert [one for one in said if "2 BatchNormalization seem folded into Conv (" in one and LINE in one]


def test_inspect_says_it_too(ordinary: Path) -> None:
    lost = inspect(ordinary).destroyed
    assert [one for one in lost if one.startswith("2 BatchNormalization seem folded") and LINE in one]


def test_a_weight_without_its_name_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.nn.Linear(4, 3), (torch.randn(2, 5, 4),), path, dynamo=False, verbose=False)
    with pytest.warns(
        GradcutWarning, match=r"^1 weight has lost its name to the exporter's optimizer \(onnx::MatMul_\d+\)"
    ):
        gradcut.compile(path, "mse")


def test_ours_has_lost_nothing() -> None:
    for name in SUBJECTS:
        assert list(destroyed(gradcut.load(exported(name)).graph)) == []
        assert compiled(name).manifest["warnings"] == [] or not SUBJECTS[name].training
