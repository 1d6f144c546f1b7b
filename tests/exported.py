"""Models of the zoo as files, exported once per process; and small graphs as ONNX text."""

from __future__ import annotations

import atexit
import functools
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import onnx
import onnx.checker
import onnx.parser

from models import zoo


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gradcut-exported-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def exported(name: str) -> Path:
    """The file of the zoo's model `name`; do not write to it."""
    if name == "digits":
        return zoo.MODELS / "digits.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.export(name, _folder() / f"{name}.onnx")


def text(source: str, opset: int = 21) -> onnx.ModelProto:
    """A model from the ONNX text of its graph, checked."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{source}')
    onnx.checker.check_model(model)
    return model
