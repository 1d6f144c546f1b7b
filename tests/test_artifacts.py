"""Artifacts on disk: whole or not at all, the same bytes each time, and one contract for any host."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort
import pytest
import torch

import gradcut
from gradcut import artifacts as module
from gradcut.artifacts import check_output
from gradcut.errors import ArtifactsError
from models import zoo
from tests.exported import exported
from tests.runtime.stepping import MODEL, compiled, feeds, state

FILES = {
    "model.onnx",
    "training_model.onnx",
    "optimizer_model.onnx",
    "step_model.onnx",
    "eval_model.onnx",
    "checkpoint.safetensors",
    "manifest.json",
}


def opened(path: Path) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(path, threads=1)


# --- the directory -------------------------------------------------------------------------------------------


def test_a_directory_gives_back_what_was_saved(tmp_path: Path) -> None:
    artifacts = compiled()
    artifacts.save(tmp_path / "d")
    assert {file.name for file in (tmp_path / "d").iterdir()} == FILES
    loaded = gradcut.TrainingArtifacts.load(tmp_path / "d")
    assert loaded.trainable == artifacts.trainable
    assert {k: v for k, v in loaded.manifest.items() if k != "files"} == json.loads(json.dumps(artifacts.manifest))
    assert loaded.start == artifacts.start
    for name, array in artifacts.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
    for name in ("model", *artifacts.graphs()):
        onnx.checker.check_model(tmp_path / "d" / f"{name}.onnx", full_check=True)


def test_training_from_a_directory_is_training_from_memory(tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    left, right = gradcut.TrainingSession(compiled(), threads=1), opened(tmp_path / "d")
    for seed in range(4):
        assert left.step(feeds(seed=seed)).loss == right.step(feeds(seed=seed)).loss
    assert state(left) == state(right)


def test_training_goes_on_from_the_directorys_checkpoint(tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    first = opened(tmp_path / "d")
    for seed in range(3):
        first.step(feeds(seed=seed))
    first.save_checkpoint(tmp_path / "d" / module.CHECKPOINT)
    assert state(opened(tmp_path / "d")) == state(first)
    again = gradcut.TrainingArtifacts.load(tmp_path / "d")
    again.save(tmp_path / "copy")
    assert state(opened(tmp_path / "copy")) == state(first)


@pytest.mark.parametrize("name", sorted(FILES - {"checkpoint.safetensors", "manifest.json"}))
def test_a_file_that_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    file = tmp_path / "d" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactsError, match=f"{name} is not the file that was compiled; compile again"):
        gradcut.TrainingArtifacts.load(tmp_path / "d")
    file.unlink()
    with pytest.raises(ArtifactsError, match=f"{name} is missing; compile again"):
        gradcut.TrainingArtifacts.load(tmp_path / "d")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is no manifest of gradcut's"),
        ('{"schema": "other"}', "is no manifest of gradcut's"),
        ('{"schema": "gradcut.artifacts", "version": 99}', "was made by another version"),
        ('{"schema": "gradcut.artifacts", "version": 2}', "is damaged"),
        ("\x00\xff", "is damaged"),
    ],
)
def test_a_manifest_that_is_none(manifest: str, message: str, tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").write_bytes(manifest.encode("latin-1"))
    with pytest.raises(ArtifactsError, match=message):
        gradcut.TrainingArtifacts.load(tmp_path / "d")


def test_a_place_that_holds_no_artifacts(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ArtifactsError, match="holds no artifacts"):
            gradcut.TrainingArtifacts.load(place)


def test_what_save_does_not_overwrite(tmp_path: Path) -> None:
    foreign, file = tmp_path / "foreign", tmp_path / "file"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years")
    file.write_text("data")
    for place in (foreign, file):
        with pytest.raises(ArtifactsError, match="is there already and holds no artifacts; choose another place"):
            compiled().save(place, force=True)
    assert (foreign / "thesis.tex").read_text() == "years" and file.read_text() == "data"
    (tmp_path / "empty").mkdir()
    compiled().save(tmp_path / "empty")


def test_trained_artifacts_are_overwritten_only_by_force(tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    compiled().save(tmp_path / "d")  # never trained
    (tmp_path / "d" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactsError, match="was trained; it is overwritten only with --force"):
        compiled().save(tmp_path / "d")
    compiled().save(tmp_path / "d", force=True)
    assert not (tmp_path / "d" / "metrics.jsonl").exists()


def test_what_is_not_ours_survives_saving_again(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    compiled().save(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "runs").mkdir()
    (folder / "runs" / "1").write_text("too")
    (tmp_path / "link").symlink_to(folder)
    compiled().save(tmp_path / "link", force=True)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "runs" / "1").read_text() == "too"
    assert (tmp_path / "link").is_symlink()
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "link"]
    gradcut.TrainingArtifacts.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "training_model.onnx", "checkpoint.safetensors"])
def test_an_output_is_no_file_of_artifacts(name: str, tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    with pytest.raises(ArtifactsError, match="is a file of the artifacts in"):
        check_output(tmp_path / "d" / name)
    check_output(tmp_path / "d" / "tuned.onnx")
    check_output(tmp_path / name)


def test_a_directory_trained_through_the_api_is_overwritten_only_by_force(tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    running = opened(tmp_path / "d")
    running.step(feeds())
    running.save_checkpoint(tmp_path / "d" / module.CHECKPOINT)
    with pytest.raises(ArtifactsError, match="was trained"):
        compiled().save(tmp_path / "d")
    assert state(opened(tmp_path / "d")) == state(running)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("step", ["_write_weights", "_with_external", "checkpoint", "sha256"])
def test_a_failure_leaves_no_half_directory(
    before: bool, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "d"
    if before:
        compiled().save(target)
    held = {file.name: file.read_bytes() for file in target.iterdir()} if before else {}

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is full")

    place, name = (module.checkpoint, "save") if step == "checkpoint" else (module, step)
    monkeypatch.setattr(place, name, fail)
    with pytest.raises(OSError, match="the disk is full"):
        compiled(gradcut.SGD()).save(target)
    assert sorted(tmp_path.iterdir()) == ([target] if before else [])
    assert {file.name: file.read_bytes() for file in target.iterdir()} == held if before else not target.exists()


# --- weights, once -------------------------------------------------------------------------------------------


def test_large_weights_are_written_once(tmp_path: Path) -> None:
    artifacts = gradcut.compile(exported("bert_tiny"), "cross_entropy", train=["classifier.*"])
    artifacts.save(tmp_path / "d")
    size = {file.name: file.stat().st_size for file in (tmp_path / "d").iterdir()}
    given = exported("bert_tiny").stat().st_size
    assert size["weights.bin"] < 1.1 * given
    assert sum(size.values()) < 1.5 * given
    onnx.checker.check_model(tmp_path / "d" / "training_model.onnx")
    inputs = {**zoo.example_inputs("bert_tiny"), "labels": zoo.example_labels("bert_tiny")}
    memory, disk = gradcut.TrainingSession(artifacts, threads=1), opened(tmp_path / "d")
    assert memory.step(inputs).loss == disk.step(inputs).loss
    assert state(memory) == state(disk)


def test_a_saved_directory_may_move(tmp_path: Path) -> None:
    gradcut.compile(exported("bert_tiny"), "cross_entropy", train=["classifier.*"]).save(tmp_path / "d")
    artifacts = gradcut.TrainingArtifacts.load(tmp_path / "d")
    artifacts.save(tmp_path / "d")  # onto itself, its weights being read from there
    (tmp_path / "d").rename(tmp_path / "e")
    inputs = {**zoo.example_inputs("bert_tiny"), "labels": zoo.example_labels("bert_tiny")}
    running = opened(tmp_path / "e")
    assert np.isfinite(running.step(inputs).loss)
    running.export(tmp_path / "tuned.onnx")
    onnx.checker.check_model(tmp_path / "tuned.onnx", full_check=True)


@pytest.mark.parametrize("attributes", [False, True])
def test_external_data_of_the_given_model(attributes: bool, tmp_path: Path) -> None:
    proto = onnx.load(exported("mlp"))
    (tmp_path / "m").mkdir()
    apart = onnx.load(exported("mlp"))
    for weight in list(apart.graph.initializer) if attributes else []:
        apart.graph.node.insert(0, onnx.helper.make_node("Constant", [], [weight.name], value=weight))
        apart.graph.initializer.remove(weight)
    file = {"location": "mlp.data", "size_threshold": 0, "convert_attribute": attributes}
    onnx.save(apart, tmp_path / "m" / "mlp.onnx", save_as_external_data=True, **file)
    artifacts = gradcut.compile(tmp_path / "m" / "mlp.onnx", "cross_entropy", train=["head.*"])
    artifacts.save(tmp_path / "d")
    inputs = {**zoo.example_inputs("mlp"), "labels": zoo.example_labels("mlp")}
    whole = gradcut.TrainingSession(gradcut.compile(proto, "cross_entropy", train=["head.*"]), threads=1)
    expected = whole.step(inputs).loss
    assert gradcut.TrainingSession(artifacts, threads=1).step(inputs).loss == expected
    (tmp_path / "m" / "mlp.data").unlink()
    running = opened(tmp_path / "d")
    assert running.step(inputs).loss == expected
    running.export(tmp_path / "tuned.onnx")
    assert onnx.load(tmp_path / "tuned.onnx").ByteSize() > 0.9 * proto.ByteSize()


# --- determinism ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys, gradcut
gradcut.compile(sys.argv[1], "cross_entropy", stop_at=sys.argv[3:], dropout="train", seed=3).save(sys.argv[2])
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "stop"), [("bert_tiny", ["bert.encoder.layer.0.attention.self.query"]), ("digits", []), ("model", [])]
)
def test_the_same_input_and_options_give_the_same_bytes(name: str, stop: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.SerializeToString() if name == "model" else exported(name).read_bytes())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, path, tmp_path / seed, *stop],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(zoo.MODELS.parent)},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in running] == [0, 0]
    first, second = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert first.keys() == second.keys()
    assert [file for file in first if first[file] != second[file]] == []


def test_compile_changes_nothing_that_it_is_given() -> None:
    proto = onnx.ModelProto.FromString(MODEL.SerializeToString())
    model = gradcut.load(onnx.ModelProto.FromString(MODEL.SerializeToString()))
    text = str(model)
    gradcut.compile(proto, "cross_entropy", freeze=["frozen"], stop_at=["active"])
    gradcut.compile(model, "cross_entropy", freeze=["frozen"], stop_at=["active"])
    assert proto.SerializeToString() == MODEL.SerializeToString()
    assert str(model) == text


# --- the contract for a host in any language -----------------------------------------------------------------


def runner(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ports(manifest: dict[str, Any], graph: str, side: str, *roles: str) -> list[str]:
    return [p["name"] for p in manifest["graphs"][graph][side] if p["role"] in roles]


OPTIMIZERS = [gradcut.AdamW(lr=0.01), gradcut.SGD(lr=0.1, momentum=0.9, nesterov=True), gradcut.SGD(lr=0.1)]
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["adamw", "nesterov", "sgd"])


@optimizers
def test_the_step_model_alone_trains(optimizer: Any, tmp_path: Path) -> None:
    """Plain onnxruntime, the manifest, and `<name>_next` fed back as `<name>`: bit for bit what a session does."""
    artifacts = compiled(optimizer)
    artifacts.save(tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    step = runner(tmp_path / "d" / "step_model.onnx")
    state_names = ports(manifest, "step_model", "inputs", "parameter", "slot", "state")
    held = {name: np.array(artifacts.tensors[name]) for name in state_names}
    names = manifest["names"]
    fixed = {names["learning_rate"]: np.float32(optimizer.lr), names["seed"]: np.int64(manifest["seed"])}
    moving = {**held, names["step"]: np.int64(0)}
    session = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend="graph")
    outputs = [value.name for value in step.get_outputs()]
    assert outputs == [p["name"] for p in manifest["graphs"]["step_model"]["outputs"]]
    for seed in range(5):
        given = {**feeds(seed=seed), **fixed, **moving}
        results = dict(zip(outputs, step.run(None, {k: np.asarray(v) for k, v in given.items()}), strict=True))
        assert results[manifest["loss"]["loss"]] == pytest.approx(session.step(feeds(seed=seed)).loss, rel=1e-6)
        moving = {name: results[f"{name}_next"] for name in moving}
    assert int(moving[names["step"]]) == 5
    for name in held:
        np.testing.assert_allclose(moving[name], session._slots[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    assert not ports(manifest, "step_model", "outputs", "gradient")


@optimizers
def test_the_optimizer_model_alone_updates(optimizer: Any, tmp_path: Path) -> None:
    artifacts = compiled(optimizer)
    artifacts.save(tmp_path / "d")
    manifest = artifacts.manifest
    update = runner(tmp_path / "d" / "optimizer_model.onnx")
    session = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend="graph")
    moving = {name: np.array(artifacts.tensors[name]) for one in manifest["trainable"] for name in one["next"]}
    moving[manifest["names"]["step"]] = np.asarray(0, np.int64)
    rate = {manifest["names"]["learning_rate"]: np.asarray(optimizer.lr, np.float32)}
    for seed in range(5):
        by_name = session.gradients(feeds(seed=seed))
        gradients = {one["gradient"]: by_name[one["name"]] for one in manifest["trainable"]}
        outputs = [value.name for value in update.get_outputs()]
        results = dict(zip(outputs, update.run(None, {**moving, **gradients, **rate}), strict=True))
        moving = {name: results[f"{name}_next"] for name in moving}
        session.step(feeds(seed=seed))
    for name in moving.keys() - {manifest["names"]["step"]}:
        np.testing.assert_array_equal(moving[name], session._slots[name].numpy(), err_msg=name)


def test_the_evaluation_model_alone_evaluates(tmp_path: Path) -> None:
    artifacts = compiled()
    artifacts.save(tmp_path / "d")
    evaluate = runner(tmp_path / "d" / "eval_model.onnx")
    moving = ports(artifacts.manifest, "eval_model", "inputs", "parameter", "state")
    given = {**feeds(), **{name: artifacts.tensors[name] for name in moving}}
    loss, logits = evaluate.run(None, given)
    expected = gradcut.TrainingSession(artifacts, threads=1).evaluate(feeds())
    assert float(loss) == expected.loss
    np.testing.assert_array_equal(logits, expected.outputs["logits"])


def test_inputs_and_outputs_stand_in_the_manifests_order() -> None:
    manifest = compiled().manifest["graphs"]
    roles = lambda graph, side: list(dict.fromkeys(p["role"] for p in manifest[graph][side]))
    assert roles("training_model", "inputs") == ["user", "label", "parameter", "state", "seed", "step"]
    assert roles("training_model", "outputs") == ["loss", "output", "gradient", "next"]
    assert roles("optimizer_model", "outputs") == ["next"]
    assert roles("eval_model", "inputs") == ["user", "label", "parameter", "state"]
    assert roles("eval_model", "outputs") == ["loss", "output"]


def test_names_that_are_taken_get_the_next_free_suffix() -> None:
    """A model that calls its own values as we would call ours."""
    given = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 2] step, float[n, 2] seed, float[n, 2] learning_rate) => (float[n, 2] loss, float[n, 2] w_grad)
    <float[2, 2] w = {1.0, 2.0, 3.0, 4.0}, float[2] w_next = {0.0, 0.0}, float ratio = {0.5}, bool on = {1}>
    {
        labels = Add (step, seed)
        step_next = Add (labels, learning_rate)
        w_exp_avg = MatMul (step_next, w)
        dropped = Dropout (w_exp_avg, ratio, on)
        loss = Add (dropped, w_next)
        w_grad = Neg (loss)
    }""")
    artifacts = gradcut.compile(given, "mse:output=loss", train=["w", "w_next"])
    running = gradcut.TrainingSession(artifacts, threads=1)
    x = np.ones((3, 2), np.float32)
    label = artifacts.manifest["loss"]["labels"]
    result = running.step({"step": x, "seed": x, "learning_rate": x, label: x})
    assert set(result.outputs) == {"loss", "w_grad"}
    assert set(running.gradients({"step": x, "seed": x, "learning_rate": x, label: x})) == {"w", "w_next"}
    for ports_ in artifacts.manifest["graphs"].values():
        for side in ("inputs", "outputs"):
            names = [p["name"] for p in ports_[side]]
            assert len(set(names)) == len(names)


@pytest.mark.parametrize("opset", [13, 21, 22, 24, 26])
def test_emitted_opset_and_ir_version(opset: int, tmp_path: Path) -> None:
    given = onnx.ModelProto()
    given.CopyFrom(MODEL)
    given.opset_import[0].version = opset
    artifacts = gradcut.compile(_without_dropout(given) if opset < 14 else given, "cross_entropy")
    artifacts.save(tmp_path / "d")
    for name in artifacts.graphs():
        emitted = onnx.load(tmp_path / "d" / f"{name}.onnx")
        assert {o.domain: o.version for o in emitted.opset_import}[""] == max(opset, 21)
        assert emitted.ir_version >= 10 and (opset > 21 or emitted.ir_version == 10)
        assert not emitted.functions
        onnx.checker.check_model(emitted, full_check=True)
    assert artifacts.manifest["opset"] == max(opset, 21)
    assert gradcut.TrainingSession(artifacts, threads=1).step(feeds()).step == 1


def _without_dropout(model: onnx.ModelProto) -> onnx.ModelProto:
    """Opset 13 has no training_mode."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            del node.attribute[:], node.output[1:]
    return model


def test_the_pipeline_in_the_manifest_parses_back() -> None:
    for artifacts in (compiled(), compiled(stop_at=["active"], batch_norm="eval", dropout="train")):
        pipeline = artifacts.manifest["pipeline"]
        assert str(gradcut.Pipeline.parse(pipeline)) == pipeline
        assert artifacts.training_model.metadata_props["gradcut.pipeline"] == pipeline


def test_artifacts_are_values() -> None:
    artifacts = compiled()
    with pytest.raises(dataclasses.FrozenInstanceError):
        artifacts.manifest = {}  # type: ignore[misc]
    running = gradcut.TrainingSession(artifacts, threads=1)
    before = {name: array.copy() for name, array in artifacts.tensors.items()}
    running.step(feeds())
    for name, array in before.items():
        np.testing.assert_array_equal(artifacts.tensors[name], array)


def test_moments_of_half_precision_parameters_are_floats() -> None:
    """1e-3 g^2 is 0 in float16 below g = 5e-3; a first moment over such a second one throws the weight away."""
    table = np.linspace(-1, 1, 12).reshape(6, 2).astype(np.float16)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["emb", "x"], ["y"])],
        "table",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["n", 2])],
        [onnx.numpy_helper.from_array(table, "emb")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = gradcut.TrainingSession(gradcut.compile(model, loss="mse", optimizer=gradcut.AdamW(lr=1e-3)))
    ours = torch.tensor(table.astype(np.float32), requires_grad=True)
    theirs = torch.optim.AdamW([ours], lr=1e-3)
    for ids in ([0, 1], [2, 3], [2, 3], [2, 3]):
        labels = (table[ids].astype(np.float32) - 0.002).astype(np.float16)
        session.step({"x": np.array(ids), "labels": labels})
        theirs.zero_grad()
        ((ours[torch.tensor(ids)] - torch.tensor(labels.astype(np.float32))) ** 2).mean().backward()
        theirs.step()
    np.testing.assert_allclose(session.parameters()["emb"], ours.detach().numpy(), atol=3e-3)
