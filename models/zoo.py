"""Small torch models with fixed seeds, and the export that keeps them trainable.

Every entry of `ZOO` gives the same weights each time it is built, so that a test may compare an exported file
with torch itself:

>>> export("mlp", "mlp.onnx")
>>> module = torch_module("mlp")  # the weights that the file holds

`digits` is the one trained model: its weights come from `models/digits.onnx`, which `models/make_digits.py`
writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

Inputs = dict[str, np.ndarray]

MODELS = Path(__file__).resolve().parent
OPSET = 21
IR_VERSION = 10  # stock ONNX Runtime refuses files whose IR is newer than itself; 10 is what opset 21 needs
OUTPUT = "logits"
# Written by the exporter for every node; it holds the paths of whoever exported.
STACK_TRACE = "pkg.torch.onnx.stack_trace"
DIGITS_DOC = (
    "A classifier of 8x8 images of handwritten digits, trained on the digits 0 to 4 alone. Data: Optical "
    "Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49, CC BY 4.0, as scikit-learn ships it; pixels scaled to 0..1."
)


class Digits(nn.Module):
    """Three convolutions on [N, 1, 8, 8] images, 256 features, and a linear head of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = []
        for index, (before, after) in enumerate([(1, 32), (32, 64), (64, 64)], start=1):
            layers += [
                (f"conv{index}", nn.Conv2d(before, after, 3, padding=1, bias=False)),
                (f"bn{index}", nn.BatchNorm2d(after)),
                (f"relu{index}", nn.ReLU()),
            ]
            if index > 1:
                layers.append((f"pool{index}", nn.AvgPool2d(2)))
        layers.append(("flatten", nn.Flatten()))
        self.encoder = nn.Sequential(OrderedDict(layers))
        self.head = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 1, 8, 8] -> logits [N, 10]."""
        return self.head(self.encoder(image))


class Mlp(nn.Module):
    """64 features, two hidden layers of 128 (ReLU, then Tanh), ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64] -> logits [N, 10]."""
        return self.head(self.body(x))


class Bert(BertForSequenceClassification):
    """A BERT classifier that returns the logits alone; a subclass, so that parameter names get no prefix."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask [N, T], int64 -> logits [N, classes]."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the shape changes (He et al., 2015)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] -> [N, after, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18: stem, four stages of two basic blocks, global average, one linear layer."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(before: int, after: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes]."""
        stem = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(stem))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


@dataclass(frozen=True)
class ZooModel:
    """A model by name: how it is built, what it takes, and how many classes its one output has."""

    name: str
    build: Callable[[], nn.Module]  # in eval mode, with the same weights on every call
    inputs: Callable[[int, int], Inputs]  # (batch, seed) -> arrays by the graph's input names
    classes: int
    output: str = OUTPUT
    doc: str = ""

    @property
    def input_names(self) -> list[str]:
        """The graph's inputs, in order."""
        return list(self.inputs(1, 0))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build in eval mode with torch's generator at `seed`, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def mlp() -> nn.Module:
    """64-128-128-10 with ReLU and Tanh."""
    return seeded(Mlp)


def bert(hidden: int, layers: int, vocabulary: int, classes: int = 3) -> nn.Module:
    """A BERT with heads of 64 channels and attention in plain matrix products."""
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        num_labels=classes,
        attn_implementation="eager",
    )
    return seeded(partial(Bert, config))


def resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    """ResNet-18 whose running statistics are away from 0 and 1, as a trained one's are."""
    module = seeded(partial(ResNet18, width, classes))
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def digits() -> nn.Module:
    """The shipped model: encoder and head as trained on the digits 0 to 4 alone."""
    module = seeded(Digits)
    arrays = onnx.load(MODELS / "digits.onnx").graph.initializer
    state = {array.name: torch.from_numpy(onnx.numpy_helper.to_array(array).copy()) for array in arrays}
    known = {name: state[name] for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    module.load_state_dict(known, strict=False)
    return module


def float_inputs(batch: int, seed: int, shape: tuple[int, ...], low: float = 0.0, name: str = "image") -> Inputs:
    """Uniform values in [low, 1)."""
    values = np.random.default_rng(seed).uniform(low, 1.0, (batch, *shape))
    return {name: values.astype(np.float32)}


def token_inputs(batch: int, seed: int, vocabulary: int, length: int = 32) -> Inputs:
    """Random tokens; rows end at different lengths, so that the mask matters."""
    generator = np.random.default_rng(seed)
    ends = generator.integers(length // 2, length + 1, (batch, 1))
    mask = (np.arange(length) < ends).astype(np.int64)
    tokens = generator.integers(1, vocabulary, (batch, length), dtype=np.int64)
    return {"input_ids": tokens * mask, "attention_mask": mask}


_ENTRIES = [
    ZooModel("digits", digits, partial(float_inputs, shape=(1, 8, 8)), 10, doc=DIGITS_DOC),
    ZooModel("mlp", mlp, partial(float_inputs, shape=(64,), low=-1.0, name="x"), 10),
    ZooModel("bert_tiny", partial(bert, 128, 2, 1000), partial(token_inputs, vocabulary=1000), 3),
    ZooModel("bert_mini", partial(bert, 256, 4, 30522), partial(token_inputs, vocabulary=30522, length=128), 3),
    ZooModel("resnet18", resnet18, partial(float_inputs, shape=(3, 64, 64), low=-1.0), 10),
    ZooModel("resnet18_small", partial(resnet18, 8), partial(float_inputs, shape=(3, 32, 32), low=-1.0), 10),
]
ZOO = {entry.name: entry for entry in _ENTRIES}


def torch_module(name: str) -> nn.Module:
    """The torch module in eval mode, with the weights that `export(name, ...)` writes."""
    return ZOO[name].build()


def example_inputs(name: str, batch: int = 4, seed: int = 0) -> Inputs:
    """Inputs of the model as numpy arrays by the graph's input names."""
    return ZOO[name].inputs(batch, seed)


def example_labels(name: str, batch: int = 4, seed: int = 0) -> np.ndarray:
    """Random class numbers, int64 [batch]."""
    return np.random.default_rng(seed).integers(0, ZOO[name].classes, batch, dtype=np.int64)


def export(name: str, path: str | Path, opset: int = OPSET, module: nn.Module | None = None) -> Path:
    """Write the model `name`, or `module` in its place, as one ONNX file; returns the path."""
    return export_module(module or torch_module(name), example_inputs(name), path, opset, ZOO[name].doc)


def export_module(module: nn.Module, inputs: Inputs, path: str | Path, opset: int = OPSET, doc: str = "") -> Path:
    """Write any module with one output as one ONNX file whose first axis is dynamic; it is left in eval mode.

    `optimize=False` is what keeps the file trainable: the exporter's optimizer folds weights into nameless
    constants and BatchNormalization into Conv.
    """
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module.eval(),
        kwargs={name: torch.from_numpy(array) for name, array in inputs.items()},
        dynamic_shapes={name: {0: batch} for name in inputs},
        input_names=list(inputs),
        output_names=[OUTPUT],
        opset_version=opset,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    proto = program.model_proto
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    proto.doc_string = doc
    _drop_stack_traces(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)
    return Path(path)


def _drop_stack_traces(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
