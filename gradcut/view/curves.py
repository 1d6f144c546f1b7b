"""Curves over steps as one svg: a panel a figure, a line a run, told apart by colour and dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

#: By kind of run, in order: colour and dash; the two differ without colour too.
STYLES = (("#2b6cb0", ""), ("#c53030", "7 4"), ("#276749", "2 3"), ("#6b46c1", "9 3 2 3"))
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP, _BELOW = 380, 240, 52, 58, 64, 62
_GREY, _FONT = "#718096", "font-family='Arial, sans-serif'"
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One run's figure over its steps; `kind` is what the legend calls it."""

    kind: str
    points: Points


@dataclass(frozen=True)
class Panel:
    """One figure of all runs; `guides` are values with a name, drawn across."""

    title: str
    lines: Sequence[Line]
    guides: Sequence[tuple[float, str]] = ()


def curves(panels: Sequence[Panel], title: str = "", note: str = "") -> str:
    """The panels side by side, a legend under the title, a note at the bottom."""
    kinds = list(dict.fromkeys(line.kind for panel in panels for line in panel.lines))
    style = {kind: STYLES[place % len(STYLES)] for place, kind in enumerate(kinds)}
    width = len(panels) * (_LEFT + _WIDTH) + (len(panels) - 1) * (_GAP - _LEFT) + 20
    height = _TOP + _HEIGHT + _BELOW
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(12, 20, title, size=14, weight="bold"),
        *_legend(style),
    ]
    for place, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + place * (_WIDTH + _GAP), style)
    return "\n".join([*parts, _text(12, height - 8, note, size=10, fill=_GREY), "</svg>"]) + "\n"


def _legend(style: dict[str, tuple[str, str]]) -> Iterator[str]:
    x = 12.0
    for kind, (colour, dash) in style.items():
        yield f"<path d='M{x:.1f} 34h28' stroke='{colour}' stroke-width='2' stroke-dasharray='{dash or 'none'}'/>"
        yield _text(x + 34, 38, kind, size=11)
        x += 52 + 6.2 * len(kind)


def _panel(panel: Panel, left: float, style: dict[str, tuple[str, str]]) -> Iterator[str]:
    xs = _Scale([x for line in panel.lines for x, _ in line.points], left, left + _WIDTH, tight=True)
    ys = _Scale(
        [*(y for line in panel.lines for _, y in line.points), *(y for y, _ in panel.guides)], _TOP + _HEIGHT, _TOP
    )
    yield _text(left, _TOP - 6, panel.title, size=11, weight="bold")
    yield f"<rect x='{left}' y='{_TOP}' width='{_WIDTH}' height='{_HEIGHT}' fill='none' stroke='#cbd5e0'/>"
    for y in ys.ticks():
        yield f"<path d='M{left} {ys(y):.1f}h{_WIDTH}' stroke='#edf2f7'/>"
        yield _text(left - 5, ys(y) + 4, f"{y:g}", size=10, anchor="end", fill=_GREY)
    for x in xs.ticks():
        yield _text(xs(x), _TOP + _HEIGHT + 14, f"{x:g}", size=10, anchor="middle", fill=_GREY)
    yield _text(left + _WIDTH / 2, _TOP + _HEIGHT + 30, "step", size=10, anchor="middle", fill=_GREY)
    for y, name in panel.guides:
        yield f"<path d='M{left} {ys(y):.1f}h{_WIDTH}' stroke='{_GREY}' stroke-dasharray='1 3'/>"
        yield _text(left + _WIDTH - 4, ys(y) - 4, name, size=10, anchor="end", fill=_GREY)
    for line in panel.lines:
        colour, dash = style[line.kind]
        path = "M" + "L".join(f"{xs(x):.1f} {ys(y):.1f}" for x, y in line.points if math.isfinite(y))
        yield f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='1.6' stroke-dasharray='{dash or 'none'}'/>"


def _text(x: float, y: float, text: str, size: int, anchor: str = "start", fill: str = "#1a202c", **more: str) -> str:
    rest = "".join(f" font-{key}='{value}'" for key, value in more.items())
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}'"
    return f"<text {place} {_FONT} font-size='{size}'{rest}>{escape(text)}</text>"


class _Scale:
    """Values to places, with room above and below and ticks at round numbers."""

    def __init__(self, values: Iterable[float], start: float, end: float, tight: bool = False) -> None:
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        room = 0.0 if tight else 0.05 * (high - low)
        self.low, self.high = (low - room, high + room) if high > low else (low - 0.5, high + 0.5)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
