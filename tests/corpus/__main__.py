"""``python -m tests.corpus`` prints the counts; with ``--run`` it checks every case and prints what the lists miss.

Names behind it choose the cases whose name holds one of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.corpus.cases import cases, counts, judge, share, subject


def _judged(at: int) -> tuple[str, str, str, str]:
    case = cases()[at]
    try:
        found, why = judge(case)
    except Exception as error:  # said, and the others go on
        found, why = "crash", f"{type(error).__name__}: {error}"
    return case.name, case.expected, found, why


def _run(parts: list[str]) -> None:
    chosen = {case.name for case in subject() if not parts or any(part in case.name for part in parts)}
    places = [at for at, case in enumerate(cases()) if case.name in chosen]
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(_judged, places, chunksize=8))
    print(dict(Counter(found for _, _, found, _ in results)))
    for name, expected, found, why in results:
        if found != expected:
            lines = [line for line in why.splitlines() if not line.startswith("ok ")]
            print("\n  ".join([f"{name}: {found}, listed as {expected}", *lines]))


if __name__ == "__main__":
    for kind, number in counts().items():
        print(f"{number:5d} {kind}")
    print(f"{share():.1%} of those that have a derivative and that the runtime runs are right")
    if "--run" in sys.argv:
        _run([part for part in sys.argv[1:] if part != "--run"])
