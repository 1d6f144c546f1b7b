"""Which operators there are, and who writes each into a graph."""

from __future__ import annotations

from collections.abc import Callable

from tests.compositions.writer import Writer

Maker = Callable[[Writer, str], object]
MAKERS: dict[str, Maker] = {}


def makes(operators: str) -> Callable[[Maker], Maker]:
    """Declare the maker of some operators: a function of the writer and of the operator's name."""

    def declare(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(operators.split(), maker))
        return maker

    return declare
