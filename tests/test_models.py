"""Exported models equal torch and keep their parameters; digits was trained on what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch.nn.functional import cross_entropy

from gradcut.runtime.data import split_indices
from models import make_digits, zoo
from tests.against_torch import parameters
from tests.exported import exported as exported_file

LARGE = {"bert_mini", "resnet18"}  # small ones with other numbers
SMALL = [name for name in zoo.ZOO if name not in LARGE]
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in SMALL])
def exported(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, exported_file(request.param)


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    with np.load(zoo.MODELS / "digits.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("gpt2_tiny", {"length": 1}), ("gpt2_tiny", {"length": 29}), ("t5_tiny", {"length": 31, "answer": 2})],
)
def test_outputs_equal_torch_at_any_length(name: str, sizes: dict[str, int]) -> None:
    feeds = zoo.example_inputs(name, 2, **sizes)
    with torch.no_grad():
        expected = zoo.torch_module(name)(**{key: torch.from_numpy(value) for key, value in feeds.items()}).numpy()
    (actual,) = session(exported_file(name)).run(None, feeds)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_outputs_equal_torch_at_any_batch_size(exported: tuple[str, Path]) -> None:
    name, path = exported
    module, runner = zoo.torch_module(name), session(path)
    for batch in (1, 5):
        feeds = zoo.example_inputs(name, batch, seed=batch)
        with torch.no_grad():
            expected = module(**{key: torch.from_numpy(value) for key, value in feeds.items()}).numpy()
        (actual,) = runner.run([zoo.ZOO[name].output], feeds)
        assert actual.shape[0] == batch
        assert actual.shape[zoo.ZOO[name].axis] == zoo.ZOO[name].classes
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_every_parameter_and_statistic_keeps_its_name_and_value(exported: tuple[str, Path]) -> None:
    name, path = exported
    initializers = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    module = zoo.torch_module(name)
    tied = {key for key, _ in module.named_parameters(remove_duplicate=False)} - set(parameters(module))
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked") and key not in tied:  # inference reads neither
            np.testing.assert_array_equal(initializers[key], value.numpy(), err_msg=key)


def test_exactly_the_parameters_are_declared_as_parameters(exported: tuple[str, Path]) -> None:
    name, path = exported
    kinds = {
        info.name: entry.value
        for info in onnx.load(path).graph.value_info
        for entry in info.metadata_props
        if entry.key == KIND
    }
    declared = {value for value, kind in kinds.items() if kind.endswith("PARAMETER")}
    assert declared == set(parameters(zoo.torch_module(name)))


def test_files_are_pinned_and_name_no_paths(exported: tuple[str, Path]) -> None:
    name, path = exported
    model = onnx.load(path)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", zoo.OPSET)]
    assert [value.name for value in model.graph.input] == zoo.ZOO[name].input_names
    assert [value.name for value in model.graph.output] == [zoo.ZOO[name].output]
    assert str(zoo.MODELS.parent).encode() not in path.read_bytes()


def test_batch_norm_is_exported_in_inference_mode(exported: tuple[str, Path]) -> None:
    _, path = exported
    for node in onnx.load(path).graph.node:
        if node.op_type == "BatchNormalization":
            modes = [attribute.i for attribute in node.attribute if attribute.name == "training_mode"]
            assert (len(node.input), len(node.output), sum(modes)) == (5, 1, 0)


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_the_same_on_every_build(name: str) -> None:
    torch.manual_seed(1)
    first = zoo.torch_module(name).state_dict()
    torch.manual_seed(2)
    second = zoo.torch_module(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_digits_file_is_the_data_set_of_the_script(digits: dict[str, np.ndarray]) -> None:
    data = make_digits.load()
    assert digits.keys() == data.keys() == {"image", "labels"}
    for key, value in data.items():
        assert digits[key].dtype == value.dtype
        np.testing.assert_array_equal(digits[key], value)


def test_digits_has_no_two_equal_images(digits: dict[str, np.ndarray]) -> None:
    """So no held-out image can be a copy of one that was trained on."""
    assert len({image.tobytes() for image in digits["image"]}) == len(digits["image"]) == 1797


def test_pretraining_saw_no_held_out_row_and_no_digit_above_four(digits: dict[str, np.ndarray]) -> None:
    training, held = split_indices(len(digits["labels"]), 0.2, 0)
    seen = make_digits.pretraining_indices()
    assert set(seen) <= set(training)
    assert not set(seen) & set(held)
    assert set(digits["labels"][seen]) == {0, 1, 2, 3, 4}


def test_shipped_model_needs_the_fine_tuning(digits: dict[str, np.ndarray]) -> None:
    _, held = make_digits.split()
    (logits,) = session(zoo.MODELS / "digits.onnx").run(None, {"image": digits["image"][held]})
    right = logits.argmax(axis=1) == digits["labels"][held]
    assert right.mean() < 0.6
    assert right[digits["labels"][held] < 5].mean() > 0.95
    assert not right[digits["labels"][held] >= 5].any()


def test_torch_fine_tunes_the_head_to_above_092(digits: dict[str, np.ndarray]) -> None:
    """What our own training reaches for with its defaults: AdamW at 1e-3, five epochs, batches of 32."""
    module = zoo.torch_module("digits")
    with torch.no_grad():  # a frozen encoder in eval mode gives the same features in every epoch
        features = module.encoder(torch.from_numpy(digits["image"]))
    labels = torch.from_numpy(digits["labels"])
    training, held = (torch.from_numpy(rows) for rows in make_digits.split())
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.head.parameters(), lr=1e-3)
    for _ in range(5):
        for batch in torch.randperm(len(training), generator=generator).split(32):
            rows = training[batch]
            optimizer.zero_grad()
            cross_entropy(module.head(features[rows]), labels[rows]).backward()
            optimizer.step()
    predicted = module.head(features[held]).argmax(dim=1)
    assert (predicted == labels[held]).float().mean() > 0.92
