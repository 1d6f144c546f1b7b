"""``python -m tests.benchmarks``: step time, peak memory, head-only over inference, compile time; a table and JSON.

Every ratio is of medians of one run whose sides alternate; below 1 gradcut is faster or smaller. A number past its
mark is printed with ``MISSED``. ONNX Runtime Training takes part where its environment is: ``bash .ci/ort_training``
makes it. Peak memory is that of a whole process; in brackets, what the imports need taken off on both sides.
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
from tests.benchmarks.ort_training import Peer

#: Step time over torch eager and over ONNX Runtime Training, by what trains.
TORCH = {"full": 1.0, "last block": 0.8, "head": 0.6}
ORT_TRAINING = {"full": 1.0, "last block": 1.0, "head": 1.15}
#: Head-only over plain inference, above 5 ms; peak memory over torch's.
INFERENCE, MEMORY = 1.05, 0.8
WARM_UP = 3


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="how often the sides alternate")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--ort-training", type=Path, default=Path(".venv-ort/bin/python"), help="its Python")
    parser.add_argument("-o", "--output", default="benchmarks.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"threads": cells.THREADS, "cells": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in cells.CELLS:
            if options.only in cell.name:
                peer = options.ort_training if options.ort_training.is_file() else None
                results["cells"][cell.name] = measure(cell, folder, options.rounds, not options.no_memory, peer)
                print(cell.name, json.dumps(results["cells"][cell.name]), file=sys.stderr, flush=True)
    if not options.no_compile:
        results["compile"] = compile_times()
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def measure(cell: cells.Cell, folder: Path, rounds: int, memory: bool, peer: Path | None) -> dict[str, float]:
    """Milliseconds and megabytes of one cell, and their ratios.

    Args:
        peer: the Python of ONNX Runtime Training's environment, where there is one.
    """
    data = cells.feeds(cell.model, cell.batch)
    np.savez(folder / f"{cell.model}.npz", **data)
    artifacts = cells.compiled(cell, folder)
    sides: dict[str, Callable[[], float]] = {
        "gradcut": timed(cells.gradcut_step(artifacts, data)),
        "torch": timed(cells.torch_step(cell, data)),
    }
    if cell.mask == "head":
        sides["inference"] = timed(cells.inference(cell, folder, data))
    other = None
    if peer is not None:
        file = cells.legacy_file(cell.model, folder)
        other = Peer(peer, file, folder / f"{cell.model}.npz", cells.THREADS, cell.train)
        sides["ort_training"] = other.step
    times = interleaved(sides, rounds)
    if other is not None:
        other.close()
    found = {f"{side}_ms": 1e3 * seconds for side, seconds in times.items()}
    found |= {f"over_{side}": times["gradcut"] / times[side] for side in times if side != "gradcut"}
    if memory:
        peaks = {side: peak(side, cell, folder) for side in ("gradcut", "torch")}
        for number, kind in enumerate(("mb", "net_mb")):
            found |= {f"{side}_{kind}": peaks[side][number] / 1e6 for side in peaks}
        found["memory_over_torch"] = found["gradcut_mb"] / found["torch_mb"]
        found["net_memory_over_torch"] = found["gradcut_net_mb"] / found["torch_net_mb"]
    return found


def timed(step: Callable[[], object]) -> Callable[[], float]:
    """The step, giving its seconds."""

    def run() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return run


def interleaved(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median seconds of each side; in each round every side runs some steps, the first of them not counted."""
    for step in sides.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, step in sides.items():
            step()
            seconds[side] += [step() for _ in range(4)]
    return {side: statistics.median(values) for side, values in seconds.items()}


def peak(side: str, cell: cells.Cell, folder: Path) -> tuple[int, int]:
    """Bytes, in a process of its own: of the whole process, and less what its imports need."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", side, cell.name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole, net = done.stdout.split()[-2:]
    return int(whole), int(net)


def show(results: dict[str, Any]) -> None:
    """The tables."""
    table = Table("cell", "gradcut ms", "over torch", "over ORT Training", "over inference", "MB", "memory (net)")
    for name, found in results["cells"].items():
        number = lambda key, digits=2, found=found: f"{found[key]:.{digits}f}" if key in found else ""
        ratios = [
            number(f"over_{side}") + _missed(name, found, side) for side in ("torch", "ort_training", "inference")
        ]
        memory = f"{number('memory_over_torch')}{_missed(name, found, 'memory')} ({number('net_memory_over_torch')})"
        table.add_row(name, number("gradcut_ms", 1), *ratios, number("gradcut_mb", 0), memory)
    console = Console(width=140)
    console.print(table)
    if "compile" in results:
        console.print("compile, chain of n nodes:", {n: f"{s:.2f} s" for n, s in results["compile"].items()})
        growth = results["compile"]["10000"] / results["compile"]["1000"]
        missed = " MISSED" if growth > 11 or results["compile"]["10000"] > 30 else ""
        console.print(f"10,000 nodes over 1,000: {growth:.1f}{missed}")


def _missed(name: str, found: dict[str, float], side: str) -> str:
    """``MISSED`` where a ratio is past its mark."""
    mask = name.partition("/")[2]
    marks = {"torch": TORCH[mask], "ort_training": ORT_TRAINING[mask], "inference": INFERENCE, "memory": MEMORY}
    key = "memory_over_torch" if side == "memory" else f"over_{side}"
    binding = key in found and (side != "inference" or found["gradcut_ms"] > 5)
    return " MISSED" if binding and found[key] > marks[side] else ""


if __name__ == "__main__":
    main()
