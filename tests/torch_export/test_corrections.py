"""Operators that torch's own exporter writes as something else, or not at all: forward and backward are torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcut.errors import TorchExportError
from tests.torch_export.exported import agrees, export

WEIGHT = torch.tensor([0.5, 2.0, 1.5])


class Scored(nn.Module):
    """A loss of the logits [rows, 3, 4] and labels [rows, 4], the last of them ignored; or of other forms of these."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.linear(x).reshape(-1, 3, 4), labels)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smoothed": lambda z, t: F.cross_entropy(z, t, label_smoothing=0.3),
    "smoothed and weighted": lambda z, t: F.cross_entropy(z, t, WEIGHT, label_smoothing=0.3, ignore_index=1),
    "smoothed sum": lambda z, t: F.cross_entropy(z, t, WEIGHT, reduction="sum", label_smoothing=0.3),
    "smoothed, one by one": lambda z, t: (F.cross_entropy(z, t, reduction="none", label_smoothing=0.3) ** 2).sum(),
    "a distribution": lambda z, t: F.cross_entropy(z, z.softmax(1), WEIGHT, label_smoothing=0.2),
    "a constant distribution": lambda z, t: F.cross_entropy(z[..., 0], z[..., 1].detach().sigmoid(), reduction="sum"),
    "one row": lambda z, t: F.cross_entropy(z[0, :, 0], t[0, 0]),
    "plain": lambda z, t: F.cross_entropy(z, t, WEIGHT, ignore_index=1),
    "a pool": lambda z, t: F.avg_pool2d(z, 2, 1, 1, divisor_override=3).pow(2).sum(),
    "another pool": lambda z, t: F.avg_pool3d(z[None], (1, 2, 3), divisor_override=5).pow(2).sum(),
    "distances": lambda z, t: torch.cdist(z, z[:1].detach() + 1.0).sum(),
    "distances to itself": lambda z, t: torch.cdist(z, z).sum(),
    "distances by sums": lambda z, t: torch.cdist(z, z[:1] * 2.0, p=1.0).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_file_means_what_torch_does(loss: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Scored(LOSSES[loss])
    given = lambda rows: (torch.randn(rows, 4), torch.randint(0, 3, (rows, 4)))
    path = export(module, given(3), tmp_path / "m.onnx")
    for rows in (3, 5):
        assert agrees(module, path, dict(zip(("x", "labels"), given(rows), strict=True)))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, proj_size=3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].sum()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Projected(), r"^aten\.lstm\.input.* has proj_size, and ONNX's LSTM no projection: leave it out, or write "),
        (Scored(lambda z, t: F.avg_pool2d(z, 2, ceil_mode=True, divisor_override=3).sum()), r"^aten\.avg_pool2d.*ceil"),
        (Scored(lambda z, t: torch.cdist(z, z, p=3.0).sum()), r"cdist with p=3: ONNX has the norms p=1 and p=2"),
    ],
)
def test_what_no_file_can_hold(module: nn.Module, message: str, tmp_path: Path) -> None:
    args = (torch.randn(3, 2, 4),) if isinstance(module, Projected) else (torch.randn(3, 4), torch.zeros(3, 4).long())
    with pytest.raises(TorchExportError, match=message):
        export(module, args, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
