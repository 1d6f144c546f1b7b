"""Checking what a caller feeds, before the runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import FeedError
from gradcut.losses import terms_of
from gradcut.text import join_names, nearest

Array = np.ndarray[Any, Any]


class FeedCheck:
    """The inputs that a caller gives a graph: names, dtypes, shapes, and labels within their classes.

    Args:
        ports: inputs as the manifest lists them (name, role, dtype, shape).
        loss: the manifest's wiring of the loss.
    """

    def __init__(self, ports: Sequence[Mapping[str, Any]], loss: Mapping[str, Any] | None) -> None:
        self.ports = {port["name"]: port for port in ports}
        self.terms = terms_of(loss)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The feeds as contiguous arrays in the order of the graph.

        Raises:
            FeedError: a name, dtype, shape or label that does not fit.
        """
        self._names(feeds)
        arrays = {}
        sizes: dict[str, tuple[str, int]] = {}
        for name, port in self.ports.items():
            array = np.asarray(feeds[name])
            self._class_numbers(name, array)
            self._dtype(name, port, array)
            _shape(name, port, array, sizes)
            arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
        for term in self.terms:
            if "classes" in term and term.get("labels") in arrays:
                classes = term["classes"]
                known = sizes[classes][1] if isinstance(classes, str) and classes in sizes else classes
                _labels(term, arrays[term["labels"]], known if isinstance(known, int) else None)
        return arrays

    def _names(self, feeds: Mapping[str, Any]) -> None:
        if not isinstance(feeds, Mapping):
            raise FeedError(f"feeds are arrays by input name, such as {{{next(iter(self.ports), 'x')!r}: array}}")
        for name in feeds:
            if name not in self.ports:
                hint = ", ".join(nearest(str(name), self.ports) or self.ports)
                raise FeedError(f"the graph has no input {name!r}; it takes {hint}")
        missing = [name for name in self.ports if name not in feeds]
        if missing:
            raise FeedError(f"no feed for {join_names(missing)}; the graph takes {join_names(self.ports)}")

    def _class_numbers(self, name: str, array: Array) -> None:
        """Raise where labels that are class numbers have a row for each, which no cast mends."""
        for term in self.terms:
            if name != term.get("labels") or "classes" not in term or self.ports[name]["shape"] is None:
                continue
            rank, axis = len(self.ports[name]["shape"]), term["axis"]
            if array.ndim == rank + 1 and array.shape[axis] == term["classes"]:
                raise FeedError(
                    f"feed {name!r} has shape {list(array.shape)}; {term['kind']} takes class numbers, one for each "
                    f"row of {term['classes']}: of one-hot rows use .argmax({axis})"
                )

    def _dtype(self, name: str, port: Mapping[str, Any], array: Array) -> None:
        if port["dtype"] is None or port["dtype"] == "STRING":
            return
        wanted = ir.DataType[port["dtype"]].numpy()
        if array.dtype != wanted:
            raise FeedError(f"feed {name!r} is {array.dtype}; the graph takes {wanted}: use .astype({wanted.name!r})")


def _labels(term: Mapping[str, Any], labels: Array, classes: int | None) -> None:
    """Within 0 to `classes`; where a run alone knows how many there are, at least not negative."""
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    bad &= labels != term["ignore_index"]
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        where = place[0] if len(place) == 1 else place
        count = "classes counted from 0" if classes is None else f"{classes} classes, 0 to {classes - 1}"
        raise FeedError(
            f"feed {term['labels']!r} holds label {int(labels[place])} at row {where}; the model has {count}"
        )


def _shape(name: str, port: Mapping[str, Any], array: Array, sizes: dict[str, tuple[str, int]]) -> None:
    """Numbers fit exactly, and one symbol has one size over all feeds."""
    shape = port["shape"]
    if shape is None:
        return
    if len(shape) != array.ndim:
        raise FeedError(f"feed {name!r} has shape {list(array.shape)}; the graph takes {_text(shape)}")
    for axis, (wanted, size) in enumerate(zip(shape, array.shape, strict=True)):
        if isinstance(wanted, int) and wanted != size:
            raise FeedError(f"feed {name!r} has shape {list(array.shape)}; the graph takes {_text(shape)}")
        if isinstance(wanted, str):
            other, known = sizes.setdefault(wanted, (name, size))
            if known != size:
                raise FeedError(
                    f"feed {name!r} has {size} at axis {axis} ({wanted}), and {other!r} has {known}; they must agree"
                )


def _text(shape: Sequence[Any]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
