"""Small texts: `name:key=value,...` specs, pass options, nearest names, figures a person reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from gradcut.errors import SpecError

Scalar = bool | int | float | str
_COMMA = re.compile(r",(?![^\[]*\])")
_BARE = re.compile(r"[^\s,{}\[\]='\"]+")


def parse_spec(spec: str) -> tuple[str, dict[str, Scalar]]:
    """``"cross_entropy:axis=1,label_smoothing=0.1"`` -> ``("cross_entropy", {"axis": 1, "label_smoothing": 0.1})``.

    A comma within brackets separates no options.
    """
    name, _, rest = spec.partition(":")
    options: dict[str, Scalar] = {}
    for item in filter(None, _COMMA.split(rest)):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"{item!r} in {spec!r} is not an option; write key=value")
        if key.strip() in options:
            raise SpecError(f"option {key.strip()!r} is given twice in {spec!r}")
        options[key.strip()] = parse_scalar(value.strip())
    return name.strip(), options


def format_spec(name: str, options: Mapping[str, Scalar]) -> str:
    """The inverse of `parse_spec`."""
    rest = ",".join(f"{key}={format_scalar(value)}" for key, value in options.items())
    return f"{name}:{rest}" if rest else name


def parse_scalar(text: str) -> Scalar:
    """true / false, integers and floats by their look; anything else is a string."""
    if text in ("true", "True"):
        return True
    if text in ("false", "False"):
        return False
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def format_scalar(value: Scalar) -> str:
    """The inverse of `parse_scalar`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, (int, float)) else value


def quote(text: str) -> str:
    """A pass option's string as pipeline text: bare where it can be, quoted where it must."""
    if _BARE.fullmatch(text) and isinstance(parse_scalar(text), str):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` known names closest to `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def hint(name: str, known: Iterable[str]) -> str:
    """``". Nearest: a, b"``, or nothing: what an error about a name ends with."""
    near = ", ".join(nearest(name, known))
    return f". Nearest: {near}" if near else ""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """``'adamv' is no optimizer. Nearest: adamw. There are sgd, adamw.``"""
    names = list(known)
    close = nearest(str(name), names, 1)
    hint = f" Nearest: {close[0]}." if close else ""
    return f"{name!r} is no {what}.{hint} There are {join_names(names)}."


def join_names(names: Iterable[str], limit: int = 8) -> str:
    """``"a, b, c and 4 more"``."""
    listed = list(names)
    shown = ", ".join(listed[:limit])
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"


def counted(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def human(number: float, unit: str = "") -> str:
    """``1234567 -> "1.23 M"``: three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            digits = f"{number:.3g}" if isinstance(number, float) and prefix else f"{number:g}"
            return f"{digits} {prefix}{unit}".rstrip()
        number = number / 1000.0
    return f"{number:.3g} P{unit}"
