"""``gradcut check``: gradients against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from gradcut.runtime.check import CheckReport


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An .onnx file, or text (.onnxtxt, .textproto, .json).")
    ],
    wrt: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="Float values, by name or pattern; every parameter and float input by default."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="F", help="An .npz of inputs; made up by default.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows of --data are fed.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of made-up inputs and of the directions.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="No further gradient is looked at after this long.")
    ] = 60.0,
    quantized: Annotated[str, typer.Option(metavar="Q", help="refuse or straight-through.")] = "refuse",
) -> None:
    """Compare the gradients of MODEL with finite differences."""
    from gradcut.errors import GradientCheckError
    from gradcut.passes.propagate import main_values
    from gradcut.runtime.check import check_gradients, imported

    work = imported(model, quantized=quantized)
    feeds = None if data is None else _rows(data, rows, work)
    wanted = None if wrt is None else _matched(wrt, [*main_values(work.graph)])
    report = check_gradients(model, feeds, wanted, seed=seed, seconds=seconds, quantized=quantized)
    typer.echo(str(report))
    if not report.ok:
        raise GradientCheckError(report.summary)
    typer.echo(f"{len(report.values)} gradients agree with finite differences{_late(report, seconds)}")


def _late(report: CheckReport, seconds: float) -> str:
    count, options = len(report.unseen), "(--seconds, --wrt)"
    if not count:
        return ""
    if report.together is None:
        return f"; {count} were not looked at in {seconds:g} s {options}"
    return f", and {count} others together, for which {seconds:g} s were too short one by one {options}"


def _rows(path: Path, count: int, model: ir.Model) -> dict[str, np.ndarray]:
    """The first rows of a data file, checked against the graph's inputs."""
    import numpy as np

    from gradcut.errors import FeedError
    from gradcut.graphs import signature
    from gradcut.runtime.data import check_keys, load_npz
    from gradcut.runtime.feeds import FeedCheck

    arrays = load_npz(path)
    ports = signature(model, {})["inputs"]
    names = [one["name"] for one in ports]
    check_keys(arrays, names)
    try:
        feeds = FeedCheck(ports, None)({name: arrays[name][:count] for name in names})
    except FeedError as error:
        raise FeedError(f"{path}: {error}") from None
    for name, feed in feeds.items():
        if feed.dtype.kind == "f" and np.isnan(feed).any():
            raise FeedError(f"{path}: feed {name!r} holds nan in its first {count} rows, and nan has no slope")
    return feeds


def _matched(patterns: list[str], known: list[str]) -> list[str]:
    from gradcut.errors import PatternError
    from gradcut.spec import match
    from gradcut.text import nearest

    found: dict[str, None] = {}
    for pattern in patterns:
        names = match(pattern, known)
        if not names:
            raise PatternError(pattern, "value", nearest(pattern, known))
        found.update(dict.fromkeys(names))
    return list(found)
