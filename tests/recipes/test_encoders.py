"""Encoders of every kind that a recipe may be given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession

import gradcut
from gradcut import recipes
from gradcut.errors import GradcutError, SpecError
from gradcut.recipes.assembly import Assembly, imported
from models import encoder as encoders
from tests.exported import exported, text
from tests.recipes import plain

SEED = 91
SMALL: dict[str, Any] = {"projector": 16, "dim": 8, "predictor": 4, "optimizer": "sgd:lr=0.05"}


def trained(ours: recipes.Program, *views: Any, steps: int = 3) -> recipes.RecipeSession:
    session = ours.session(threads=1)
    for _ in range(steps):
        assert np.isfinite(session.step(*views).loss)
    return session


def came_out(session: recipes.RecipeSession, given: Any, path: Path, feeds: dict[str, Any]) -> None:
    """The tuned file runs in a stock runtime, gives what the session says, and every weight of it has moved."""
    session.export(path)
    stock = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    embedded = session.embed(feeds if len(feeds) > 1 else next(iter(feeds.values())))
    np.testing.assert_allclose(stock.run(None, feeds)[0], embedded, rtol=1e-3, atol=1e-4)
    before = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(given).graph.initializer}
    after = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    assert before.keys() == after.keys()


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_opsets(opset: int, tmp_path: Path) -> None:
    file = encoders.export(tmp_path / "encoder.onnx", opset=opset)
    (views,) = plain.view_batches(1, 16, SEED)
    session = trained(recipes.simsiam(file, **SMALL), *views)
    assert session.program.artifacts.manifest["opset"] == max(opset, 21)
    came_out(session, file, tmp_path / "tuned.onnx", {"image": views[0]})


def test_the_older_exporter(tmp_path: Path) -> None:
    """No InputSpec.kind in the file: what trains is found by where weights stand. Written for training, as otherwise it
    folds the norms into the convolutions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoders.module().train(),
            (torch.zeros(2, 1, 8, 8),),
            tmp_path / "encoder.onnx",
            input_names=["image"],
            output_names=["features"],
            dynamic_axes={"image": {0: "batch"}, "features": {0: "batch"}},
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    (views,) = plain.view_batches(1, 16, SEED)
    ours = recipes.simsiam(tmp_path / "encoder.onnx", **SMALL)
    names = {name for name in ours.artifacts.trainable if not name.startswith(("projector", "predictor"))}
    assert names == {name for name, _ in encoders.module().named_parameters()}
    assert set(ours.artifacts.manifest["batch_norm"].values()) == {"train"}
    trained(ours, *views).export(tmp_path / "tuned.onnx")


TOKENS = text(
    """
g (int64[n, t] ids, float[n, t] mask) => (float[n, 6] pooled)
<float[9, 6] table = {TABLE}, float[6, 6] w = {W}>
{
    rows = Gather (table, ids)
    last = Constant <value_ints = [2]> ()
    wide = Unsqueeze (mask, last)
    kept = Mul (rows, wide)
    one = Constant <value_ints = [1]> ()
    mean = ReduceMean <keepdims = 0> (kept, one)
    pooled = MatMul (mean, w)
}""".replace("TABLE", ", ".join(f"{x:.3f}" for x in np.random.default_rng(0).normal(size=54))).replace(
        "W", ", ".join(f"{x:.3f}" for x in np.random.default_rng(1).normal(size=36))
    )
)


def test_several_inputs_and_a_table_that_both_views_share(tmp_path: Path) -> None:
    draw = np.random.default_rng(SEED)
    views = [
        {"ids": draw.integers(0, 9, (12, 5)), "mask": draw.integers(0, 2, (12, 5)).astype(np.float32)} for _ in range(2)
    ]
    ours = recipes.simsiam(TOKENS, **SMALL)
    assert ours.composed.views == (("view1_ids", "view1_mask"), ("view2_ids", "view2_mask"))
    names = [value.name for value in ours.composed.model.graph.initializers.values()]
    assert names.count("table") == 1 and {"table", "w"} <= {*ours.artifacts.trainable}
    session = trained(ours, *views)
    session.export(tmp_path / "tuned.onnx")
    stock = InferenceSession(str(tmp_path / "tuned.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(stock.run(None, views[0])[0], session.embed(views[0]), rtol=1e-4, atol=1e-5)


def test_marks_and_freezes_of_the_encoder_count() -> None:
    model = gradcut.freeze(gradcut.stop_gradient(str(plain.encoder_file()), "relu_1"), "bn3.bias")
    ours = recipes.simsiam(model, **SMALL)
    status = {one["name"]: one["status"] for one in ours.artifacts.manifest["parameters"]}
    assert status["conv1.weight"] == status["conv2.weight"] == "unreached"
    assert status["bn3.bias"] == "frozen" and status["conv3.weight"] == "trained"
    assert model.metadata_props["gradcut.frozen"] == '["bn3.bias"]'


def test_an_inner_value_is_the_embedding_and_the_head_is_left_alone(tmp_path: Path) -> None:
    file = exported("digits")
    ours = recipes.simsiam(file, **SMALL, output="view")  # what its head reads
    assert not [name for name in ours.artifacts.trainable if name.startswith("head")]
    (views,) = plain.view_batches(1, 16, SEED)
    tuned = tmp_path / "tuned.onnx"
    trained(ours, *views).export(tuned)
    before, after = ({one.name: one.raw_data for one in onnx.load(path).graph.initializer} for path in (file, tuned))
    assert before["head.weight"] == after["head.weight"]
    assert before["encoder.conv1.weight"] != after["encoder.conv1.weight"]


def test_a_transformer_with_dropout_draws_anew_for_each_view() -> None:
    """Equal views give different embeddings in training, and the same in inference."""
    source = text(
        """
    g (float[n, 8] x) => (float[n, 8] y) <float[8, 8] w = {W}>
    {
        h = MatMul (x, w)
        half = Constant <value_float = 0.5> ()
        yes = Constant <value_ints = [1]> ()
        zero = Constant <value_ints = [0]> ()
        one = Squeeze (yes, zero)
        mode = Cast <to = 9> (one)
        y = Dropout (h, half, mode)
    }""".replace("W", ", ".join(f"{x:.3f}" for x in np.random.default_rng(2).normal(size=64)))
    )
    x = np.random.default_rng(SEED).normal(size=(16, 8)).astype(np.float32)
    session = recipes.simsiam(source, **SMALL).session(threads=1)
    outputs = session.step(x, x).outputs
    assert not np.allclose(outputs["z1"], outputs["z2"])
    np.testing.assert_array_equal(session.embed(x), session.embed(x))


def test_the_given_model_is_not_changed() -> None:
    model = gradcut.load(plain.encoder_file())
    before = ir.to_proto(model).SerializeToString()
    recipes.moco(model, projector=8, dim=4, queue=8).session(threads=1)
    assert ir.to_proto(model).SerializeToString() == before


def test_what_no_recipe_takes() -> None:
    tokens = text("g (float[n, t, 4] x) => (float[n, t, 4] y) { y = Relu (x) }")
    with pytest.raises(SpecError, match=r"the embedding is \[N, d\] or maps"):
        recipes.simsiam(tokens)
    bare = text("g (float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }")
    view = np.random.default_rng(SEED).normal(size=(8, 4)).astype(np.float32)
    assert trained(recipes.simsiam(bare, **SMALL), view, view).training.steps == 3  # heads alone may train
    with pytest.raises(GradcutError, match="is frozen"):
        recipes.simsiam(bare, **SMALL, freeze="*")
    with pytest.raises(SpecError, match=r"takes gradcut.recipes.SimSiam\(\.\.\.\)"):
        recipes.simsiam(bare, recipes.BYOL())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="options beside a recipe"):
        recipes.simsiam(bare, recipes.SimSiam(), dim=3)


def test_weights_of_one_name_are_refused() -> None:
    model = imported(
        text("g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = Mul (x, w) }")
    )
    assembly = Assembly([model])
    assembly.module(model)
    with pytest.raises(SpecError, match="two weights would be called 'w'"):
        assembly.module(model)
    assert assembly.module(model, "other.").parameters == ("other.w",)
