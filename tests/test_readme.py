"""What the README says is what the code says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

import gradcut
from gradcut.passes import PASSES
from tests.readme import README, current


def test_the_operator_table_is_current() -> None:
    assert README.read_text(encoding="utf-8") == current(), "run: python -m tests.readme"


def test_every_pass_stands_in_the_picture_of_the_pipeline() -> None:
    picture = README.read_text(encoding="utf-8").split("## The pipeline")[1].split("```")[1]
    assert [name for name in PASSES if not re.search(rf"\b{name} ", picture)] == []


def test_the_public_face() -> None:
    names = """load stop_gradient freeze unfreeze compile TrainingArtifacts TrainingSession vjp analyze Pipeline passes
    to_networkx register_rule SGD AdamW errors GradcutError losses schedules replace_head"""
    assert [name for name in names.split() if not hasattr(gradcut, name)] == []
    assert all(hasattr(gradcut, name) for name in gradcut.__all__)


def test_every_public_name_has_a_home() -> None:
    assert sorted(gradcut.__all__) == sorted([*gradcut._HOMES, *gradcut._MODULES])


def test_the_python_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(README.parent / "models")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(blocks[0], found)
    assert math.isfinite(found["result"].loss) and found["a"].cut
    assert (tmp_path / "build" / "one_step.onnx").is_file()
