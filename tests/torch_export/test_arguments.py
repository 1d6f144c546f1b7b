"""Names, sizes and structures of what goes in and comes out; and what is refused before anything is written."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import gradcut
from gradcut.errors import ArtifactsError, GradcutWarning, MissingExtraError, SpecError, TorchExportError
from gradcut.inspection import inspect
from gradcut.torch import exporter
from tests.torch_export.exported import agrees, export, exported, run
from tests.torch_export.subjects import SUBJECTS

X = torch.randn(3, 4)


class Ports(nn.Module):
    """Several inputs of several kinds, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, pair: tuple[Tensor, Tensor], power: int = 2, *, more: dict[str, Tensor], scale: Tensor
    ) -> dict[str, Any]:
        h = self.linear(x) + pair[0] * pair[1] ** power
        return {"logits": h, "parts": (h * more["mask"], h * scale), "nothing": None, "given": x}


def given(rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = lambda: torch.randn(rows, 4)
    return (x(), (x(), x()), 3), {"more": {"mask": x()}, "scale": torch.tensor(0.5)}


def shapes(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.output)
    }


def test_ports_are_called_as_in_forward(tmp_path: Path) -> None:
    args, kwargs = given(3)
    module = Ports()
    path = export(module, args, tmp_path / "m.onnx", kwargs=kwargs)
    batch = ["batch", 4]
    assert shapes(path) == {
        **dict.fromkeys(("x", "pair_0", "pair_1", "more_mask"), batch),
        "scale": [],
        **dict.fromkeys(("logits", "parts_0", "parts_1", "given"), batch),
    }
    args, kwargs = given(5)
    inputs = {"x": args[0], "pair_0": args[1][0], "pair_1": args[1][1], "more_mask": kwargs["more"]["mask"]}
    found = run(path, {**inputs, "scale": kwargs["scale"]})
    expected = module(*args, **kwargs)
    for one, other in zip(found, [expected["logits"], *expected["parts"], args[0]], strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_ports_are_called_as_asked_for(tmp_path: Path) -> None:
    args, kwargs = given(3)
    names = {"input_names": ["a", "b", "c", "d", "e"], "output_names": ["v", "w", "y", "z"]}
    path = export(Ports(), args, tmp_path / "m.onnx", "rows", kwargs=kwargs, **names)
    assert list(shapes(path)) == list("abcdevwyz") and shapes(path)["a"] == ["rows", 4]
    for wrong, message in {
        "input_names": r"^input_names has 2 names, and the model 5 inputs: x, pair_0, pair_1, more_mask, scale$",
        "output_names": r"^output_names has 2 names, and the model 4 outputs: logits, parts_0, parts_1, given$",
    }.items():
        with pytest.raises(SpecError, match=message):
            gradcut.torch.export(Ports(), args, tmp_path / "n.onnx", kwargs=kwargs, **{wrong: ["p", "q"]})
    with pytest.raises(SpecError, match=r"^the name 'linear\.weight' is taken by a parameter"):
        gradcut.torch.export(
            Ports(), args, tmp_path / "n.onnx", kwargs=kwargs, output_names=["linear.weight", "b", "c", "d"]
        )
    assert not (tmp_path / "n.onnx").exists()


def test_sizes_are_those_that_were_asked_for(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).mean(1)

    x = torch.randn(3, 6, 4)
    assert shapes(export(Mean(), x, tmp_path / "m.onnx")) == {"x": ["batch", 6, 4], "output": ["batch", 2]}
    assert shapes(export(Mean(), x, tmp_path / "m.onnx", False)) == {"x": [3, 6, 4], "output": [3, 2]}
    both = export(Mean(), x, tmp_path / "m.onnx", {"x": {0: "rows", 1: "length"}})
    assert shapes(both) == {"x": ["rows", "length", 4], "output": ["rows", 2]}
    one = export(Mean(), x[:1], tmp_path / "m.onnx")  # torch would take a batch of one for a constant
    assert shapes(one)["x"] == ["batch", 6, 4] and run(one, {"x": x})[0].shape == (3, 2)
    assert run(one, {"x": x[:1]})[0].shape == (1, 2)


def test_parameters_are_called_as_in_torch() -> None:
    """Tied ones by their first name; frozen ones stand in the model."""
    for name in ("tied", "byol", "frozen backbone", "weights of weights"):
        module = SUBJECTS[name].module()
        model = gradcut.load(exported(name))
        named = dict(module.named_parameters())
        assert set(named) <= set(model.graph.initializers)
        frozen = sorted(one for one, parameter in named.items() if not parameter.requires_grad)
        assert json.loads(model.metadata_props.get("gradcut.frozen", "[]")) == frozen
        known = {one.name: one for one in inspect(model).decisions if one.kind == "parameter"}
        assert set(known) == set(named)
    assert gradcut.compile(exported("tied"), "mse", train=["out.weight"]).trainable == ("embed.weight",)


def test_a_compiled_module_is_its_own(tmp_path: Path) -> None:
    path = export(torch.compile(nn.Linear(4, 2)), X, tmp_path / "m.onnx")
    assert list(gradcut.load(path).graph.initializers) == ["weight", "bias"]


def test_the_file_may_be_text(tmp_path: Path) -> None:
    path = export(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), X, tmp_path / "m.onnxtxt")
    assert path == tmp_path / "m.onnxtxt" and "Tanh" in path.read_text()
    assert set(gradcut.compile(path, "mse").trainable) == {"0.weight", "0.bias"}


def test_many_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "write_model", partial(exporter.write_model, limit=10))
    module = nn.Linear(4, 2)
    path = export(module, X, tmp_path / "m.onnx")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_allclose(run(path, {"input": X})[0], module(X).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert gradcut.compile(path, "mse").trainable == ("weight", "bias")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_module_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).to(dtype)
    path = export(module, X.to(dtype), tmp_path / "m.onnx")
    (found,) = run(path, {"input": X.to(dtype)})
    assert found.dtype == module[0].weight.detach().numpy().dtype
    np.testing.assert_allclose(found, module(X.to(dtype)).detach().numpy(), rtol=1e-2, atol=1e-3)


# --- refused -------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4) * 2.0


class Turning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if x.shape[0] < 10 else x * 3.0


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if x.sum() > 0 else x


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x.T @ x).real


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no module": ({"module": torch.relu}, SpecError, r"takes a torch\.nn\.Module, not builtin_function_or_method$"),
    "a class": ({"module": nn.Linear}, SpecError, r"takes a torch\.nn\.Module, not the class Linear$"),
    "too many": ({"args": (X, X)}, SpecError, r"^args do not fit Linear\.forward: too many positional arguments$"),
    "unknown": ({"kwargs": {"y": X}}, SpecError, r"^args do not fit Linear\.forward: got an unexpected keyword"),
    "a mapping": ({"args": {"input": X}}, SpecError, r"not dict; keyword arguments go into kwargs$"),
    "no tensor": ({"args": (3,)}, SpecError, r"^args hold no tensor; give an example of what Linear\.forward takes$"),
    "shape": ({"args": X[:, :3]}, TorchExportError, r"^torch cannot export Linear: .*3\].*4"),
    "opset": ({"opset": 17}, SpecError, r"^opset is 18 to 23, not 17$"),
    "names": ({"input_names": "x"}, SpecError, r"^input_names is a list of names, not 'x'$"),
    "names twice": ({"output_names": ["y", "y"]}, SpecError, r"^output_names has 'y' twice$"),
    "batch": ({"dynamic_batch": 3}, SpecError, r"^dynamic_batch is True, False, a name or a mapping, not 3$"),
    "batch name": ({"dynamic_batch": "a b"}, SpecError, r"^'a b' is no name for a dimension"),
    "batch input": (
        {"dynamic_batch": {"z": {0: "n"}}},
        SpecError,
        r"^dynamic_batch names 'z'; forward's .* are input$",
    ),
    "sizes": (
        {"module": Pair(), "args": (X, torch.randn(5, 4))},
        SpecError,
        r'sizes differ \(x has 3, y has 5\); name the axes, dynamic_batch=\{"x": \{0: "batch"\}\}',
    ),
    "fixed": ({"module": Fixed()}, TorchExportError, r"^Fixed fixes the batch at 3, .* or give dynamic_batch=False$"),
    "a length": (
        {"module": nn.Sequential(nn.GRU(4, 2)), "args": torch.randn(5, 3, 4), "dynamic_batch": {"input": {0: "t"}}},
        TorchExportError,
        r"^Sequential fixes t at 5, so that it cannot be of any size: .* or leave it out of dynamic_batch$",
    ),
    "deciding": ({"module": Deciding()}, TorchExportError, r"^torch cannot export Deciding: .*data-dependent"),
    "operator": (
        {"module": Unknown()},
        TorchExportError,
        r"^torch cannot write Unknown as ONNX: No ONNX function found for .*linalg_eig",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_in_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    wrong, error, message = WRONG[case]
    (tmp_path / "m.onnx").write_text("there before")
    with pytest.raises(error, match=message) as caught:
        gradcut.torch.export(**{"module": nn.Linear(4, 2), "args": X, "path": tmp_path / "m.onnx", **wrong})
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "there before"


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactsError, match=r"is a directory; name the file to write$"):
        gradcut.torch.export(nn.Linear(4, 2), X, tmp_path)
    with pytest.raises(ArtifactsError, match=r"m\.onnx cannot be written: there is no directory "):
        gradcut.torch.export(nn.Linear(4, 2), X, tmp_path / "missing" / "m.onnx")
    with pytest.raises(SpecError, match=r"^path is that of the file to write, not NoneType$"):
        gradcut.torch.export(nn.Linear(4, 2), X, None)  # type: ignore[arg-type]


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactsError, match=r"the model could not be written \(No space left on device\)$"):
        gradcut.torch.export(nn.Linear(4, 2), X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_other_code_at_other_sizes_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(GradcutWarning, match=r"^the file holds for batch with max=9: the code takes another way"):
        path = gradcut.torch.export(Turning(), X, tmp_path / "m.onnx")
    np.testing.assert_array_equal(run(path, {"x": X})[0], 2.0 * X.numpy())


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_what_is_not_installed(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gradcut.torch.importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(gradcut.torch.importlib, "import_module", missing)
    message = (
        rf"^gradcut\.torch, without {package}, needs an extra that is not installed: pip install 'gradcut\[torch\]'$"
    )
    with pytest.raises(MissingExtraError, match=message):
        gradcut.torch.export(nn.Linear(4, 2), X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Named(nn.Module):
    """Parameters and buffers called as torch calls what operators give."""

    def __init__(self) -> None:
        super().__init__()
        self.t, self.mean, self.add = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.register_buffer("exp", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.t.t() + (self.add + self.exp)
        return (h.detach() * (h - h.mean() * self.mean).exp()).mean()


def test_a_parameter_may_have_the_name_of_an_operator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Named()
    path = export(module, torch.randn(4, 4), tmp_path / "m.onnx", dynamic_batch=False)
    assert agrees(module, path, {"x": torch.randn(4, 4)}).keys() == {"t", "mean", "add"}
