"""The generated parts of the README: ``python -m tests.readme`` writes them, a test says they are current."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from gradcut.dialect import DOMAIN
from gradcut.passes.importing.functions import BY_BODY
from gradcut.rules import REGISTRY, Rule
from gradcut.rules.registry import names_of
from tests.corpus.cases import counts

README = Path(__file__).parents[1] / "README.md"


def operators() -> str:
    """The operators with a derivative, what of them is refused, and those whose derivative is zero."""
    rules = [rule for rule in REGISTRY if rule.domain != DOMAIN]
    derived = names_of([rule for rule in rules if rule.vjp is not None])
    zero = names_of([rule for rule in rules if rule.zero])
    lines = [
        f"A derivative, at opsets 21 to 26 and imported from 6 to 20 ({len(derived)}):",
        ", ".join(derived) + ".",
        "",
        f"Taken apart into these on import: {', '.join(sorted(BY_BODY))}.",
        "",
        "A gradient is refused through:",
        "",
        *(f"- {', '.join(names)}: {limits}" for limits, names in limited(rules).items()),
        "",
        f"Zero almost everywhere, or no float function of its operands; a cut with its reason ({len(zero)}):",
        ", ".join(zero) + ".",
    ]
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  " * line.startswith("- ")) for line in lines)


def corpus() -> str:
    """How many of the operator cases of the onnx package are of which kind."""
    found = counts()
    rows = ["| cases of the onnx package | number |", "|---|---:|"]
    return "\n".join([*rows, *(f"| {kind} | {number} |" for kind, number in found.items())])


def limited(rules: Iterable[Rule]) -> dict[str, list[str]]:
    """What rules do not cover, with the operators that they are of."""
    found: dict[str, list[str]] = {}
    for rule in rules:
        if rule.limits:
            found.setdefault(rule.limits, []).extend(names_of([rule]))
    return found


def with_part(text: str, name: str, part: str) -> str:
    """`text` with what stands between the markers of a part replaced; the opening marker may say how."""
    pattern = rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{part}\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"README.md has {count} parts called {name!r}")
    return replaced


def current() -> str:
    """The README as it should be."""
    parts = {"operators": operators(), "corpus": corpus()}
    return functools.reduce(lambda text, name: with_part(text, name, parts[name]), parts, README.read_text("utf-8"))


if __name__ == "__main__":
    README.write_text(current(), encoding="utf-8")
