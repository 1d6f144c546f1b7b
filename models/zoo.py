"""Small torch models with fixed seeds, and the export that keeps them trainable.

Every entry of `ZOO` gives the same weights each time it is built, so that a test may compare an exported file
with torch itself:

>>> export("mlp", "mlp.onnx")
>>> module = torch_module("mlp")  # the weights that the file holds

`digits` is the one trained model: its weights come from `models/digits.onnx`, which `models/make_digits.py`
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import nn

from models.audio import audio_cnn, whisper
from models.common import (
    Inputs,
    answer_tokens,
    class_labels,
    float_inputs,
    next_tokens,
    pair_inputs,
    pixel_labels,
    seeded,
    token_inputs,
)
from models.language import bert, gpt2, t5
from models.vision import Digits, convnext, mlp, mobilenet_v2, resnet18, unet, vit

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
TEXT = {1: "sequence"}
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class ZooModel:
    """A model by name: how it is built, what it takes, and how many classes its one output has."""

    name: str
    build: Callable[[], nn.Module]  # in eval mode, with the same weights on every call
    inputs: Callable[..., Inputs]  # (batch, seed, **sizes) -> arrays by the graph's input names
    classes: int
    output: str = OUTPUT
    doc: str = ""
    axis: int = 1  # of the classes in the output
    labels: Callable[[Inputs, int, int], np.ndarray] = class_labels  # (inputs, seed, classes) -> class numbers
    dynamic: Axes = field(default_factory=dict)  # axes beside the first whose size is known only at run time

    @property
    def input_names(self) -> list[str]:
        """The graph's inputs, in order."""
        return list(self.inputs(1, 0))

    @property
    def loss(self) -> str:
        """The loss that `labels` are for, as gradcut's text."""
        return "cross_entropy" if self.axis == 1 and self.labels is class_labels else f"cross_entropy:axis={self.axis}"


def digits() -> nn.Module:
    """The shipped model: encoder and head as trained on the digits 0 to 4 alone."""
    module = seeded(Digits)
    arrays = onnx.load(MODELS / "digits.onnx").graph.initializer
    state = {array.name: torch.from_numpy(onnx.numpy_helper.to_array(array).copy()) for array in arrays}
    known = {name: state[name] for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    module.load_state_dict(known, strict=False)
    return module


_ENTRIES = [
    ZooModel("digits", digits, partial(float_inputs, shape=(1, 8, 8)), 10, doc=DIGITS_DOC),
    ZooModel("mlp", mlp, partial(float_inputs, shape=(64,), low=-1.0, name="x"), 10),
    ZooModel("bert_tiny", partial(bert, 128, 2, 1000), partial(token_inputs, vocabulary=1000), 3),
    ZooModel("bert_mini", partial(bert, 256, 4, 30522), partial(token_inputs, vocabulary=30522, length=128), 3),
    ZooModel("resnet18", resnet18, partial(float_inputs, shape=(3, 64, 64), low=-1.0), 10),
    ZooModel("resnet18_small", partial(resnet18, 8), partial(float_inputs, shape=(3, 32, 32), low=-1.0), 10),
    ZooModel("mobilenet_v2_small", mobilenet_v2, partial(float_inputs, shape=(3, 32, 32), low=-1.0), 5),
    ZooModel("convnext_tiny", convnext, partial(float_inputs, shape=(3, 32, 32), low=-1.0), 5),
    ZooModel("vit_tiny", vit, partial(float_inputs, shape=(3, 16, 16), low=-1.0), 5),
    ZooModel("unet_tiny", unet, partial(float_inputs, shape=(3, 18, 26), low=-1.0), 4, labels=pixel_labels),
    ZooModel("audio_cnn", audio_cnn, partial(float_inputs, shape=(1, 512), low=-1.0, name="wave"), 5),
    ZooModel("whisper_tiny", whisper, partial(float_inputs, shape=(8, 32), low=-1.0, name="input_features"), 5),
    ZooModel(
        "gpt2_tiny",
        partial(gpt2, 97),
        partial(token_inputs, vocabulary=97, length=12),
        97,
        axis=-1,
        labels=next_tokens,
        dynamic={"input_ids": TEXT, "attention_mask": TEXT},
    ),
    ZooModel(
        "t5_tiny",
        partial(t5, 97),
        partial(pair_inputs, vocabulary=97),
        97,
        axis=-1,
        labels=answer_tokens,
        dynamic={"input_ids": TEXT, "attention_mask": TEXT, "decoder_input_ids": {1: "answer"}},
    ),
]
ZOO = {entry.name: entry for entry in _ENTRIES}


def torch_module(name: str) -> nn.Module:
    """The torch module in eval mode, with the weights that `export(name, ...)` writes."""
    return ZOO[name].build()


def example_inputs(name: str, batch: int = 4, seed: int = 0, **sizes: int) -> Inputs:
    """Inputs of the model as numpy arrays by the graph's input names; `sizes` are those of its dynamic axes."""
    return ZOO[name].inputs(batch, seed, **sizes)


def example_labels(name: str, batch: int = 4, seed: int = 0, **sizes: int) -> np.ndarray:
    """Random class numbers, int64: [batch], or one for each token or pixel, some of them -100."""
    entry = ZOO[name]
    return entry.labels(entry.inputs(batch, seed, **sizes), seed, entry.classes)


def export(name: str, path: str | Path, opset: int = OPSET, module: nn.Module | None = None) -> Path:
    """Write the model `name`, or `module` in its place, as one ONNX file; returns the path."""
    entry = ZOO[name]
    return export_module(module or torch_module(name), example_inputs(name), path, opset, entry.doc, entry.dynamic)


def export_module(
    module: nn.Module,
    inputs: Inputs,
    path: str | Path,
    opset: int = OPSET,
    doc: str = "",
    dynamic: Axes | None = None,
    output: str = OUTPUT,
) -> Path:
    """Write any module with one output as one ONNX file whose first axis is dynamic; it is left in eval mode.

    `optimize=False` is what keeps the file trainable: the exporter's optimizer folds weights into nameless
    constants and BatchNormalization into Conv. `dynamic` names further axes, by input and number.
    """
    program = torch.onnx.export(
        module.eval(),
        kwargs={name: torch.from_numpy(array) for name, array in inputs.items()},
        dynamic_shapes=_dimensions(inputs, dynamic or {}),
        input_names=list(inputs),
        output_names=[output],
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


def _dimensions(inputs: Inputs, dynamic: Axes) -> dict[str, dict[int, torch.export.Dim]]:
    """The dynamic axes of each input; equal names are one size. A model with places bounds its sequence itself."""
    axes = {name: {0: "batch", **dynamic.get(name, {})} for name in inputs}
    sizes = {size: torch.export.Dim(size) for named in axes.values() for size in named.values()}
    return {name: {axis: sizes[size] for axis, size in named.items()} for name, named in axes.items()}


def _drop_stack_traces(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
