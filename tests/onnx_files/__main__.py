"""``python -m tests.onnx_files [NAME ...]``: the architectures of `light/`, head and all parameters, against torch."""

from __future__ import annotations

import sys
import time

from tests.onnx_files.light import NAMES, Expected, errors, light

#: Attributes are float32 in a file, torch's defaults are not: an epsilon of 1e-5 is 2.5e-8 off.
EXACT = 1e-7
#: What the runtime may be off in float32: rounding, or so many times what torch itself is.
ROUNDING, TIMES = 1e-5, 10.0


def main(names: list[str]) -> int:
    wrong = 0
    for name in names or NAMES:
        start = time.monotonic()
        expected = Expected(light(name), roundings=range(-2, 3))
        for wrt in (expected.names[-2:], expected.names):
            exact, float32 = (max(found.values()) for found in errors(expected, wrt))
            wrong += exact > EXACT or float32 > limit(expected)
            print(
                f"{name}: {len(wrt)} parameters, worst relative error {exact:.0e} in float64, {float32:.0e} in ", end=""
            )
            print(f"float32 (torch's own {expected.noise:.0e})", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return wrong > 0


def limit(expected: Expected) -> float:
    return max(ROUNDING, TIMES * expected.noise)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
