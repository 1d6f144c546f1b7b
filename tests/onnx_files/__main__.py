"""``python -m tests.onnx_files [NAME ...]``: the architectures of `light/`, head and all parameters, against torch."""

from __future__ import annotations

import sys
import time

from tests.onnx_files.light import NAMES, Expected, errors, light

LIMIT = 1e-2


def main(names: list[str]) -> int:
    worst = 0.0
    for name in names or NAMES:
        start, model = time.monotonic(), light(name)
        expected = Expected(model)
        for wrt in (expected.names[-2:], expected.names):
            found = errors(model, expected, wrt)
            at = max(found, key=lambda one: found[one])
            worst = max(worst, found[at])
            print(f"{name}: {len(wrt)} parameters, worst relative error {found[at]:.1e} at {at}", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return worst > LIMIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
