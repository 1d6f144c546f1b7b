"""A fresh encoder of the digits, for recipes: `python -m models.encoder` writes `models/encoder.onnx`.

It is that of `zoo.Digits` with weights as torch draws them: 1-32-64-64 channels, BatchNormalization, 256 features.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn

from models import zoo
from models.common import float_inputs, seeded
from models.vision import Digits


class Encoder(nn.Sequential):
    """Image [N, 1, 8, 8] -> features [N, 256]."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


def module(seed: int = 0) -> nn.Module:
    """The encoder untrained, in eval mode."""
    return seeded(lambda: Encoder(OrderedDict(Digits().encoder.named_children())), seed)


def export(path: str | Path, seed: int = 0, opset: int = zoo.OPSET) -> Path:
    """Write the encoder as one ONNX file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = float_inputs(2, 0, (1, 8, 8))
        return zoo.export_module(module(seed), inputs, path, opset, output="features")


def main() -> None:
    """Export it beside this file, where git ignores it."""
    parser = argparse.ArgumentParser(prog="python -m models.encoder", description="Write models/encoder.onnx.")
    parser.add_argument("--seed", type=int, default=0, help="what the weights are drawn from")
    path = export(zoo.MODELS / "encoder.onnx", parser.parse_args().seed)
    print(f"{path.relative_to(zoo.MODELS.parent)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
