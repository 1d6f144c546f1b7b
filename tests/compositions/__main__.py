"""``python -m tests.compositions --count 5000 --seed 0``: random graphs against torch, the first wrong one made small.

Prints what came of them, and for each operator in how many right graphs it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import torch

from tests.compositions.compare import verdict
from tests.compositions.generate import generate, operators
from tests.compositions.shrink import smallest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compositions", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many graphs")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; each next one has the next")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start, kinds, proven = time.monotonic(), Counter[str](), Counter[str]()
    for seed in range(asked.seed, asked.seed + asked.count):
        if time.monotonic() - start > asked.seconds:
            break
        case = generate(seed)
        found = verdict(case)
        kinds[found.kind] += 1
        proven.update(set(case.operators) if found.kind == "right" else ())
        if found.failed:
            small = smallest(case)
            print(
                f"seed {seed}, {found.kind}; the smallest graph that still fails:\n{small}\n{verdict(small).text}\n",
                flush=True,
            )
        elif found.kind == "refused":
            print(f"seed {seed}, refused: {found.text}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    never = [op for op in operators() if not proven[op]]
    print(f"{len(proven)} operators; in no right graph: {', '.join(never) or 'none'}")
    return any(kind not in ("right", "refused", "kink", "not run") for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
