"""Files that ONNX Runtime itself optimised and saved: gradients are those of the plain file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from onnx import numpy_helper
from onnxruntime.transformers import optimizer
from torch import Tensor, nn

import gradcut
from gradcut.runtime.check import check_gradients, require
from tests.test_optimised_exports import Logits
from tests.test_tied import export

HEADS, WIDTH, WORDS = 4, 32, 60
Gradients = dict[str, np.ndarray]


class _Classified(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]


def bert() -> tuple[nn.Module, tuple[Tensor, ...], str]:
    config = hf.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation="eager",
    )
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, WORDS, (2, 8)))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return _Classified(hf.BertForSequenceClassification(config)), (ids, mask), "cross_entropy"


def gpt2() -> tuple[nn.Module, tuple[Tensor, ...], str]:
    config = hf.GPT2Config(
        vocab_size=WORDS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_positions=16,
        use_cache=False,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, WORDS, (2, 8)))
    return Logits(hf.GPT2LMHeadModel(config), "input_ids"), (ids,), "cross_entropy:axis=-1"


def by_session(plain: Path, kind: str) -> Path:
    """What a session of ORT_ENABLE_EXTENDED writes."""
    found, options = plain.with_name("session.onnx"), ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(found), 3
    ort.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    return found


def by_tool(plain: Path, kind: str) -> Path:
    """What `onnxruntime.transformers.optimizer` writes."""
    found = plain.with_name("tool.onnx")
    optimizer.optimize_model(
        str(plain), model_type=kind, num_heads=HEADS, hidden_size=WIDTH, opt_level=0
    ).save_model_to_file(str(found))
    return found


@dataclass(frozen=True)
class Plain:
    kind: str
    path: Path
    feeds: dict[str, np.ndarray]
    loss: str
    gradients: Gradients


@pytest.fixture(scope="module", params=[bert, gpt2], ids=lambda build: build.__name__)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    torch.manual_seed(3)
    module, arguments, loss = request.param()
    for parameter in module.eval().parameters():
        nn.init.normal_(parameter, std=0.2)
    path = export(module, arguments, tmp_path_factory.mktemp("runtime") / "plain.onnx", optimize=False)
    inputs = [value.name for value in onnx.load(path).graph.input]
    feeds = {name: tensor.numpy() for name, tensor in zip(inputs, arguments, strict=True)}
    feeds["labels"] = np.array([0, 2]) if loss == "cross_entropy" else np.roll(feeds[inputs[0]], 1, 1)
    return Plain(request.param.__name__, path, feeds, loss, gradients(path, feeds, loss))


def gradients(path: Path, feeds: dict[str, np.ndarray], loss: str) -> Gradients:
    return gradcut.TrainingSession(gradcut.compile(path, loss), threads=1).gradients(feeds)


@pytest.mark.filterwarnings("ignore::gradcut.errors.GradcutWarning")
@pytest.mark.parametrize("optimise", [by_session, by_tool], ids=lambda one: one.__name__)
def test_gradients_are_those_of_the_plain_file(plain: Plain, optimise: Callable[[Path, str], Path]) -> None:
    path = optimise(plain.path, plain.kind)
    assert any(node.domain == "com.microsoft" for node in onnx.load(path).graph.node)
    found, before, after = gradients(path, plain.feeds, plain.loss), weights(plain.path), weights(path)
    kept = [name for name in plain.gradients if name in found]
    assert len(kept) >= len(plain.gradients) / 2
    for name in kept:
        turned = before[name].shape != after[name].shape or not np.array_equal(before[name], after[name])
        expected = plain.gradients[name].T if turned else plain.gradients[name]
        np.testing.assert_array_equal(after[name], before[name].T if turned else before[name])
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore::gradcut.errors.GradcutWarning")
@pytest.mark.parametrize("optimise", [by_session, by_tool], ids=lambda one: one.__name__)
def test_what_was_joined_or_turned_agrees_with_differences(plain: Plain, optimise: Callable[[Path, str], Path]) -> None:
    path = optimise(plain.path, plain.kind)
    feeds = {name: array for name, array in plain.feeds.items() if name != "labels"}
    known = plain.gradients.keys()
    new = [name for name, array in weights(path).items() if name not in known and is_weight(array)]
    if new:
        require(check_gradients(path, feeds, new[:2], directions=1))


def weights(path: Path) -> Gradients:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def is_weight(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and array.ndim == 2 and WIDTH in array.shape and bool(np.isfinite(array).all())
