"""A cut graph as an svg or png file, laid out by Graphviz."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from gradcut.errors import GradcutError, SpecError
from gradcut.io import atomic_write_bytes
from gradcut.view.collapse import LIMIT, collapse
from gradcut.view.describe import CutGraph
from gradcut.view.dot import to_dot

FORMATS = ("svg", "png")
_PACKAGE = "graphviz-pure"


def draw(graph: CutGraph, path: str | os.PathLike[str], limit: int = LIMIT) -> None:
    """Write the picture, whole or not at all; beyond `limit` boxes, module scopes are collapsed.

    Raises:
        SpecError: the file's suffix is no format that can be drawn, or the limit is no positive number.
    """
    target = Path(path)
    kind = target.suffix[1:].lower()
    if kind not in FORMATS:
        raise SpecError(f"{target}: a picture ends in {' or '.join('.' + one for one in FORMATS)}")
    atomic_write_bytes(target, render(to_dot(collapse(graph, limit)), kind))


def render(dot: str, kind: str) -> bytes:
    """Graphviz text as svg or png."""
    done = subprocess.run([program(), f"-T{kind}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise GradcutError(f"graphviz could not draw the picture: {said or 'it gave nothing'}")
    return done.stdout


def program() -> str:
    """The renderer that came with the package, else a Graphviz of the system's."""
    try:
        files = metadata.distribution(_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    own = [Path(str(file.locate())) for file in files if file.stem == _PACKAGE and file.suffix in ("", ".exe")]
    found = next((str(path.resolve()) for path in own if path.is_file()), None)
    found = found or shutil.which(_PACKAGE) or shutil.which("dot")
    if found is None:
        raise GradcutError(f"pictures need {_PACKAGE}: pip install {_PACKAGE}")
    return found
