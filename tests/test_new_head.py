"""`--new-head` and `replace_head`: every refusal's text, the command, a head that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import LossError, SpecError
from gradcut.heads import new_parameters
from gradcut.runtime.data import split_indices
from models import zoo
from tests.exported import exported, text
from tests.test_cli import good, refused
from tests.test_heads import TWO, ocr, run, tensors, uniform

__all__ = ["ocr"]  # a fixture


# --- bad input ------------------------------------------------------------------------------------------------

NO_HEAD = {
    "norm": (
        "g (float[n, 3] x) => (float[n, 3] y) <float[3] s = {1.0, 2.0, 3.0}> "
        "{ [ln] y = LayerNormalization <axis = -1> (x, s) }",
        "replace_head: walking back from 'y' the first layer is 'ln' (LayerNormalization), which is a norm; "
        "name the output of a head with output= (--new-head OUTPUT=K)",
    ),
    "embedding": (
        "g (int64[n] i) => (float[n, 3] y) <float[2, 3] t = {1, 2, 3, 4, 5, 6}> "
        "{ [look] y = Gather <axis = 0> (t, i) }",
        "replace_head: walking back from 'y' the first layer is 'look' (Gather), which is an embedding; "
        "name the output of a head with output= (--new-head OUTPUT=K)",
    ),
    "einsum": (
        "g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> "
        '{ [sum] y = Einsum <equation = "ij,jk->ik"> (x, w) }',
        "replace_head: walking back from 'y' the first layer is 'sum' (Einsum), which is an Einsum, whose class axis "
        "gradcut does not look for; name the output of a head with output= (--new-head OUTPUT=K)",
    ),
    "no layer": (
        "g (float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }",
        "replace_head: 'y' has no head: walking back leads to an input, 'x', and past no layer with weights",
    ),
    "computed weight": (
        "g (float[n, 3] x, float[3, 2] w) => (float[n, 2] y) { [mm] y = MatMul (x, w) }",
        "replace_head: walking back from 'y' the first layer is 'mm' (MatMul), which is no layer whose one weight is a "
        "constant with the classes along one axis; name the output of a head with output= (--new-head OUTPUT=K)",
    ),
    "residual": (
        "g (float[n, 3] x) => (float[n, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> "
        "{ z = MatMul (x, w) [res] y = Add (z, x) }",
        "replace_head: walking back from 'y' the first layer is 'res' (Add), which is no linear layer or convolution "
        "with a constant weight; name the output of a head with output= (--new-head OUTPUT=K)",
    ),
    "scale of every class": (
        "g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] s = {1, 2}> "
        "{ z = MatMul (x, w) [scale] y = Mul (z, s) }",
        "replace_head: 'scale' (Mul) holds 2 numbers (s), which belong to the old classes; name a value before it with "
        "output=",
    ),
    "mixed": (
        "g (float[n, 3, 4, 4] x) => (float[n, 32] y) <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}> "
        "{ z = Conv (x, w) [flat] y = Flatten (z) }",
        "replace_head: 'flat' (Flatten) stands behind the head, and it mixes the classes with other axes; name the "
        "head's own output with output= (--new-head OUTPUT=K)",
    ),
    "squeezed away": (
        "g (float[n, 3] x) => (float[n] y) <float[3, 1] w = {1, 2, 3}, int64[1] a = {1}> "
        "{ z = MatMul (x, w) [gone] y = Squeeze (z, a) }",
        "replace_head: 'gone' (Squeeze) stands behind the head, and it squeezes the one class away; name the head's "
        "own output with output= (--new-head OUTPUT=K)",
    ),
    "flattened away": (
        "g (float[n, 3] x) => (float[m] y) <float[3, 1] w = {1, 2, 3}, int64[1] a = {-1}> "
        "{ z = MatMul (x, w) [flat] y = Reshape (z, a) }",
        "replace_head: 'flat' (Reshape) stands behind the head, and it does not keep the 1 classes apart (its shape is "
        "[-1]); name the head's own output with output= (--new-head OUTPUT=K)",
    ),
    "others count": (
        "g (float[n, 3] x) => (float[n, 2] y, float[n, 2] q) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] s = {1, 2}> "
        "{ y = MatMul (x, w) [scale] q = Mul (y, s) }",
        "replace_head: 'scale' (Mul) reads what the head gives with 2 numbers of its own (s), which belong to the old "
        "classes; take it out of the model first",
    ),
}


@pytest.mark.parametrize("name", NO_HEAD)
def test_what_is_no_head(name: str) -> None:
    source, message = NO_HEAD[name]
    model = ir.from_proto(text(source))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(SpecError) as error:
        gradcut.replace_head(model, 5, output="y")
    assert str(error.value) == message
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "replace_head: classes is a whole number of at least 1, not 0"),
        ({"classes": 2.5}, "replace_head: classes is a whole number of at least 1, not 2.5"),
        ({"classes": True}, "replace_head: classes is a whole number of at least 1, not True"),
        ({"classes": 3, "seed": -1}, "replace_head: seed is a whole number of at least 0, not -1"),
        ({"classes": 3, "activation": "auto"}, "replace_head: activation is keep or drop, not 'auto'"),
        ({"classes": 3},
         "replace_head: which output's head is meant is unclear; the float outputs are p, logits, value. "
         "Say output=NAME (--new-head NAME=K)."),
        ({"classes": 3, "output": "valeu"}, "replace_head: the model has no value 'valeu'. Nearest: value."),
    ],
)  # fmt: skip
def test_what_the_arguments_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        gradcut.replace_head(text(TWO), **options)
    assert str(error.value) == message


# --- the command ----------------------------------------------------------------------------------------------


def test_fine_tuning_a_new_head_on_digits(tmp_path: Path) -> None:
    """Ten classes on the encoder that was pretrained on five: accuracy rises from chance."""
    given = zoo.MODELS / "digits.onnx"
    done = good(
        "compile", given, "--new-head", 10, "--loss", "cross_entropy", "--train", "head.*", "-o", tmp_path / "d"
    )
    assert done.line("new head") == "head.weight [10, 256], head.bias [10]"
    data = np.load(zoo.MODELS / "digits.npz")
    _, held = split_indices(len(data["labels"]), 0.2, 0)
    batch = {name: data[name][held] for name in ("image", "labels")}

    def accuracy() -> float:
        logits = gradcut.TrainingSession(tmp_path / "d").evaluate(batch).outputs["logits"]
        return float(np.mean(logits.argmax(1) == batch["labels"]))

    assert accuracy() < 0.3
    good("train", tmp_path / "d", "--data", zoo.MODELS / "digits.npz", "--epochs", 2)
    assert accuracy() > 0.9
    good("export", tmp_path / "d", "-o", tmp_path / "t.onnx")
    before, after = tensors(given), tensors(tmp_path / "t.onnx")
    assert {key for key in before if (before[key] != after[key]).any()} == {"head.weight", "head.bias"}
    (logits,) = run(onnx.load(tmp_path / "t.onnx"), {"image": batch["image"]})
    assert np.mean(logits.argmax(1) == batch["labels"]) == accuracy()


def test_the_command_drops_a_softmax_for_a_loss_that_wants_logits(ocr: Path, tmp_path: Path) -> None:
    done = good("compile", ocr, "--new-head", 5, "--loss", "cross_entropy", "-o", tmp_path / "ocr", "--seed", 2)
    assert done.line("new head") == ("fc_0.w_0 [200, 5], fc_0.b_0 [5]; to train it alone: --train 'fc_0.*'")
    artifacts = gradcut.TrainingArtifacts.load(tmp_path / "ocr")
    assert artifacts.manifest["loss"]["classes"] == 5
    assert "Softmax" not in [node.op_type for node in artifacts.model.graph]
    np.testing.assert_array_equal(tensors(artifacts.model)["fc_0.w_0"], uniform(5, 200, 2).T)
    good("compile", ocr, "--new-head", 5, "--loss", "mse", "-o", tmp_path / "kept")
    kept = gradcut.TrainingArtifacts.load(tmp_path / "kept").model
    assert [node.op_type for node in kept.graph][-2:] == ["Softmax", "Identity"]
    with pytest.raises(LossError, match="nll takes log-probabilities"):
        gradcut.compile(kept, "nll")


def test_the_command_takes_a_head_for_each_output(tmp_path: Path) -> None:
    onnx.save(text(TWO), tmp_path / "m.onnx")
    both = ["--loss", "cross_entropy:output=p", "--loss", "0.5*mse:output=value"]
    good("compile", tmp_path / "m.onnx", "--new-head", "p=5", "--new-head", "value=6", *both, "-o", tmp_path / "m")
    artifacts = gradcut.TrainingArtifacts.load(tmp_path / "m")
    assert [str(value.shape) for value in artifacts.model.graph.outputs] == ["[n,5]", "[n,5]", "[n]", "[n,6]"]
    assert list(new_parameters(artifacts.model)) == ["w", "v"]
    good("compile", tmp_path / "m.onnx", "--new-head", "5", "--loss", "cross_entropy:output=p", "-o", tmp_path / "n")
    assert gradcut.TrainingArtifacts.load(tmp_path / "n").manifest["loss"]["classes"] == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("many", "--new-head is K or OUTPUT=K, with K classes, such as 10 or logits=10; not 'many'"),
        ("p=0", "replace_head: classes is a whole number of at least 1, not 0"),
        ("3", "replace_head: which output's head is meant is unclear; the float outputs are p, logits, value. "
              "Say output=NAME (--new-head NAME=K)."),
        ("best=3", "replace_head: walking back from 'best' the first layer is 'top' (ArgMax), which is no linear layer "
                   "or convolution with a constant weight; name the output of a head with output= "
                   "(--new-head OUTPUT=K)"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(asked: str, message: str, tmp_path: Path) -> None:
    onnx.save(text(TWO.replace("best =", "[top] best =")), tmp_path / "m.onnx")
    assert refused("compile", tmp_path / "m.onnx", "--new-head", asked, "-o", tmp_path / "d") == message
    assert not (tmp_path / "d").exists()


def test_labels_beyond_the_new_head_are_refused() -> None:
    session = gradcut.TrainingSession(gradcut.compile(gradcut.replace_head(exported("mlp"), 4), "cross_entropy"))
    with pytest.raises(gradcut.errors.FeedError, match="holds label 4 at row 1; the model has 4 classes, 0 to 3"):
        session.step({**zoo.example_inputs("mlp", 2), "labels": np.array([0, 4])})
