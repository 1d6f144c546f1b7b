"""``python -m tests.benchmarks``: step time, peak memory, head-only over inference, compile time; a table and JSON.

Every ratio is of medians of one run whose sides alternate; below 1 gradcut is faster or smaller. A number past its
mark is printed with ``MISSED``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks import cells
from tests.benchmarks.chain import compile_times

#: Step time over torch eager: BERT-mini and every head-only case; head-only over plain inference above 5 ms.
MARKS = {"torch": 0.75, "inference": 1.05}
WARM_UP = 3


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="how often the sides alternate")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("-o", "--output", default="benchmarks.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"threads": cells.THREADS, "cells": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in cells.CELLS:
            if options.only in cell.name:
                results["cells"][cell.name] = measure(cell, folder, options.rounds, not options.no_memory)
                print(cell.name, json.dumps(results["cells"][cell.name]), file=sys.stderr, flush=True)
    if not options.no_compile:
        results["compile"] = compile_times()
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def measure(cell: cells.Cell, folder: Path, rounds: int, memory: bool) -> dict[str, float]:
    """Milliseconds and megabytes of one cell, and their ratios."""
    data = cells.feeds(cell.model, cell.batch)
    np.savez(folder / f"{cell.model}.npz", **data)
    artifacts = cells.compiled(cell, folder)
    sides: dict[str, Callable[[], Any]] = {
        "gradcut": cells.gradcut_step(artifacts, data),
        "torch": cells.torch_step(cell, data),
    }
    if cell.mask == "head":
        sides["inference"] = cells.inference(cell, folder, data)
    times = interleaved(sides, rounds)
    found = {f"{side}_ms": 1e3 * seconds for side, seconds in times.items()}
    for side in ("torch", "inference"):
        if side in times:
            found[f"over_{side}"] = times["gradcut"] / times[side]
    if memory:
        for side in ("gradcut", "torch"):
            found[f"{side}_mb"] = peak(side, cell, folder) / 1e6
        found["memory_over_torch"] = found["gradcut_mb"] / found["torch_mb"]
    return found


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each side; in each round every side runs some steps, the first of them not counted."""
    for step in sides.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, step in sides.items():
            step()
            for _ in range(4):
                start = time.perf_counter()
                step()
                seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(values) for side, values in seconds.items()}


def peak(side: str, cell: cells.Cell, folder: Path) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", side, cell.name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def show(results: dict[str, Any]) -> None:
    """The tables."""
    table = Table("cell", "gradcut ms", "torch ms", "time ratio", "over inference", "gradcut MB", "torch MB", "memory")
    for name, found in results["cells"].items():
        number = lambda key, digits=2, found=found: f"{found[key]:.{digits}f}" if key in found else ""
        row = [number("gradcut_ms", 1), number("torch_ms", 1), number("over_torch") + _time_mark(name, found)]
        row += [number("over_inference") + _inference_mark(found)]
        row += [number("gradcut_mb", 0), number("torch_mb", 0), number("memory_over_torch")]
        table.add_row(name, *row)
    console = Console(width=140)
    console.print(table)
    if "compile" in results:
        console.print("compile, chain of n nodes:", {n: f"{s:.2f} s" for n, s in results["compile"].items()})
        growth = results["compile"]["10000"] / results["compile"]["1000"]
        missed = " MISSED" if growth > 11 or results["compile"]["10000"] > 30 else ""
        console.print(f"10,000 nodes over 1,000: {growth:.1f}{missed}")


def _time_mark(name: str, found: dict[str, float]) -> str:
    binding = name.startswith("bert_mini") or name.endswith("head")
    return " MISSED" if binding and found["over_torch"] > MARKS["torch"] else ""


def _inference_mark(found: dict[str, float]) -> str:
    binding = "over_inference" in found and found["gradcut_ms"] > 5
    return " MISSED" if binding and found["over_inference"] > MARKS["inference"] else ""


if __name__ == "__main__":
    main()
