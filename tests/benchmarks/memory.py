"""Peak resident memory of one side of one cell: ``python -m tests.benchmarks.memory SIDE CELL FOLDER``, in bytes.

Two numbers, over 20 steps: the peak of the whole process, and that less what is resident after the imports and before
the model is loaded.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

STEPS = 20


def main(side: str, name: str, folder: Path) -> tuple[int, int]:
    """Run in a fresh process."""
    from tests.benchmarks import cells

    cell = cells.by_name(name)
    data = cells.feeds(cell.model, cell.batch) if side == "torch" else _loaded(folder, cell.model)
    _imports(side)
    before = _status("VmRSS")
    if side == "torch":
        step = cells.torch_step(cell, data)
    else:
        step = cells.gradcut_step(folder / name.replace("/", "_").replace(" ", "_"), data)
    for _ in range(STEPS):
        step()
    whole = _status("VmHWM")
    return whole, whole - before


def _imports(side: str) -> None:
    """Everything a side imports, and what its first use loads; then the high-water mark starts over."""
    if side == "torch":
        import torch

        torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1, requires_grad=True)).sum().backward()
        torch.optim.AdamW([torch.ones(1, requires_grad=True)], fused=True)
        from models import zoo  # noqa: F401
    else:
        import numpy as np

        import gradcut.runtime.session
        from gradcut.runtime.host_optimizer import HostOptimizer

        one = {name: np.zeros(1, np.float32) for name in ("w", "exp_avg", "exp_avg_sq")}
        HostOptimizer(gradcut.AdamW(), {"w": one["w"]}, {"w": one}).step({"w": np.ones(1, np.float32)}, 1e-3, 0)
    Path("/proc/self/clear_refs").write_text("5")


def _loaded(folder: Path, model: str) -> dict[str, object]:
    import numpy as np

    return dict(np.load(folder / f"{model}.npz"))


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
