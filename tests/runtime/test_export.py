"""Export: the given graph with the trained tensors in it, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import gradcut
from gradcut.errors import ArtifactsError
from models import zoo
from tests.exported import exported, text
from tests.runtime.stepping import MODEL, compiled, feeds


def run(path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, given)


def tensors(model: onnx.ModelProto) -> dict[str, bytes]:
    """The bytes of every initializer."""
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def nodes(model: onnx.ModelProto) -> list[tuple[object, ...]]:
    """Every node field by field; an unset field and an empty one are the same, and tensors have no names."""
    value = lambda a: numpy_helper.to_array(a.t).tolist() if a.HasField("t") else onnx.helper.get_attribute_value(a)
    said = lambda node: [(a.name, value(a)) for a in node.attribute]
    return [(n.op_type, n.domain, n.name, list(n.input), list(n.output), said(n)) for n in model.graph.node]


def trained(artifacts: gradcut.TrainingArtifacts, batches: list[dict[str, np.ndarray]]) -> gradcut.TrainingSession:
    session = gradcut.TrainingSession(artifacts, threads=1)
    for given in batches:
        session.step(given)
    return session


def zoo_feeds(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    return {**zoo.example_inputs(name, 8, seed), "labels": zoo.example_labels(name, 8, seed)}


@pytest.mark.parametrize(("name", "train"), [("digits", ["head.*"]), ("digits", None), ("mlp", ["body.2.*"])])
def test_the_original_graph_with_new_weights(name: str, train: Any, tmp_path: Path) -> None:
    artifacts = gradcut.compile(exported(name), "cross_entropy", train=train, optimizer=gradcut.SGD(lr=0.1))
    session = trained(artifacts, [zoo_feeds(name, seed) for seed in range(3)])
    session.export(tmp_path / "tuned.onnx")
    given, tuned = onnx.load(exported(name)), onnx.load(tmp_path / "tuned.onnx")
    onnx.checker.check_model(tuned, full_check=True)
    assert [n.op_type for n in tuned.graph.node] == [n.op_type for n in given.graph.node]
    assert tuned.opset_import == given.opset_import and tuned.ir_version == given.ir_version
    before, after = tensors(given), tensors(tuned)
    moved = {*artifacts.trainable, *artifacts.manifest["state"]}
    assert {key for key in before if before[key] != after[key]} == moved
    for key, array in session.parameters().items():
        assert after[key] == array.tobytes()
    inputs = zoo_feeds(name, 7)
    expected = session.evaluate(inputs).outputs
    (logits,) = run(tmp_path / "tuned.onnx", {key: inputs[key] for key in zoo.ZOO[name].input_names})
    np.testing.assert_allclose(logits, expected[zoo.OUTPUT], rtol=1e-5, atol=1e-5)


def test_an_export_before_training_is_the_model_itself(tmp_path: Path) -> None:
    """Names, order, metadata, documentation and weights, field by field."""
    given = onnx.load(exported("digits"))
    session = gradcut.TrainingSession(gradcut.compile(exported("digits"), "cross_entropy"), threads=1)
    session.export(tmp_path / "same.onnx")
    same = onnx.load(tmp_path / "same.onnx")
    assert tensors(same) == tensors(given)
    assert nodes(same) == nodes(given)
    for side in ("input", "output"):
        assert list(getattr(same.graph, side)) == list(getattr(given.graph, side)), side
    assert same.doc_string == given.doc_string and same.producer_name == given.producer_name
    props = lambda m: {p.key: p.value for p in m.metadata_props}
    assert props(same) == props(given)


@pytest.mark.parametrize("keep", [False, True])
def test_marks_and_freezes_are_stripped_or_kept(keep: bool, tmp_path: Path) -> None:
    session = trained(compiled(stop_at=["active"]), [feeds()])
    session.export(tmp_path / "tuned.onnx", keep_marks=keep)
    tuned = onnx.load(tmp_path / "tuned.onnx")
    onnx.checker.check_model(tuned, full_check=True)
    marks = [node for node in tuned.graph.node if node.domain == "gradcut"]
    assert len(marks) == keep == len(tuned.functions)
    assert ("gradcut.frozen" in {p.key for p in tuned.metadata_props}) == keep
    assert {o.domain for o in tuned.opset_import} == ({"", "gradcut"} if keep else {""})
    np.testing.assert_array_equal(
        run(tmp_path / "tuned.onnx", {"x": feeds()["x"]})[0].shape, session.evaluate(feeds()).outputs["logits"].shape
    )
    if keep:  # the mark and the freeze still count
        again = gradcut.compile(tmp_path / "tuned.onnx", "cross_entropy")
        assert set(again.trainable) == {"tied", "b"}


def test_marks_on_outputs_and_weights_leave_their_names(tmp_path: Path) -> None:
    session = gradcut.TrainingSession(
        gradcut.compile(MODEL, "mse:output=second", stop_at=["logits", "tied->MatMul_first", "x"]), threads=1
    )
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert [value.name for value in tuned.graph.output] == ["logits"]
    assert [node.op_type for node in tuned.graph.node] == [node.op_type for node in MODEL.graph.node]
    assert tensors(tuned).keys() == tensors(MODEL).keys()


CONSTANTS = text("""
g (float[n, 2] x) => (float[n, 2] y)
{
    w = Constant <value = float[2, 2] {1.0, 2.0, 3.0, 4.0}> ()
    b = Constant <value_floats = [0.5, -0.5]> ()
    h = MatMul (x, w)
    y = Add (h, b)
}""")


def test_weights_in_constant_nodes_stay_there(tmp_path: Path) -> None:
    x = np.ones((3, 2), np.float32)
    given = {"x": x, "labels": np.zeros((3, 2), np.float32)}
    session = trained(gradcut.compile(CONSTANTS, "mse", optimizer=gradcut.SGD(lr=0.1)), [given] * 3)
    assert set(session.parameters()) == {"w", "b"}
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert [node.op_type for node in tuned.graph.node] == ["Constant", "Constant", "MatMul", "Add"]
    assert not tuned.graph.initializer
    (y,) = run(tmp_path / "tuned.onnx", {"x": x})
    np.testing.assert_allclose(y, session.evaluate(given).outputs["y"], rtol=1e-6)


def test_initializers_that_are_also_inputs_stay_both(tmp_path: Path) -> None:
    given = onnx.ModelProto.FromString(MODEL.SerializeToString())
    for weight in given.graph.initializer:
        given.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    session = trained(gradcut.compile(given, "cross_entropy"), [feeds(seed=s) for s in range(2)])
    assert [p["name"] for p in session.manifest["graphs"]["eval_model"]["inputs"] if p["role"] == "user"] == ["x"]
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert [value.name for value in tuned.graph.input] == [value.name for value in given.graph.input]
    assert tensors(tuned)["tied"] == session.parameters()["tied"].tobytes()


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_an_old_model_keeps_its_opset(opset: int, tmp_path: Path) -> None:
    old = text("""
    g (float[n, 4] x) => (float[n, 3] y)
    <float[4, 3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0}, float[3] b = {0.1, 0.2, 0.3}>
    {
        h = Gemm (x, w, b)
        y = Relu (h)
    }""", opset)  # fmt: skip
    given = {"x": feeds()["x"], "labels": feeds()["labels"]}
    session = trained(gradcut.compile(old, "cross_entropy"), [given])
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert tuned.opset_import[0].version == opset
    assert nodes(tuned) == nodes(old)
    np.testing.assert_allclose(
        run(tmp_path / "tuned.onnx", {"x": given["x"]})[0], session.evaluate(given).outputs["y"], rtol=1e-5
    )


def test_tied_weights_are_written_once_and_read_twice(tmp_path: Path) -> None:
    session = trained(compiled(), [feeds(seed=s) for s in range(2)])
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert sum("tied" in node.input for node in tuned.graph.node) == 2
    assert tensors(tuned)["tied"] == session.parameters()["tied"].tobytes()
    assert tensors(tuned)["mean"] == session._slots["mean"].numpy().tobytes()
    assert tensors(tuned)["frozen"] == tensors(MODEL)["frozen"]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, target = gradcut.TrainingSession(compiled(), threads=1), tmp_path / "tuned.onnx"
    target.write_bytes(b"the one before")
    monkeypatch.setattr("gradcut.runtime.export.ir.save", _fail)
    with pytest.raises(ArtifactsError, match=r"tuned.onnx: the model could not be written \(the disk is full\)"):
        session.export(target)
    assert target.read_bytes() == b"the one before" and list(tmp_path.iterdir()) == [target]


def test_places_that_no_file_can_be_written_to(tmp_path: Path) -> None:
    compiled().save(tmp_path / "d")
    session = gradcut.TrainingSession(tmp_path / "d", threads=1)
    for place, message in (
        (tmp_path, "is a directory; name the file to write"),
        (tmp_path / "no" / "t.onnx", "there is no directory .*no$"),
        (tmp_path / "d" / "model.onnx", "is a file of the artifacts in"),
    ):
        with pytest.raises(ArtifactsError, match=message):
            session.export(place)


def test_text_holds_the_same_model(tmp_path: Path) -> None:
    session = trained(compiled(), [feeds(seed=1)])
    session.export(tmp_path / "tuned.onnx")
    session.export(tmp_path / "tuned.onnxtxt")
    one, other = (gradcut.load(tmp_path / f"tuned.{kind}") for kind in ("onnx", "onnxtxt"))
    assert [n.op_type for n in one.graph] == [n.op_type for n in other.graph]
    for name, value in one.graph.initializers.items():
        np.testing.assert_array_equal(other.graph.initializers[name].const_value.numpy(), value.const_value.numpy())


def test_a_weight_inside_a_function_is_written_where_it_was_inlined(tmp_path: Path) -> None:
    given = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1.0, 2.0, 3.0, 4.0}> { h = my.Twice (x, w) y = Relu (h) }
    <domain: "my", opset_import: ["" : 21]>
    Twice (a, b) => (c) {
        k = Constant <value = float[2, 2] {1.0, 0.0, 0.0, 1.0}> ()
        d = MatMul (a, b)
        c = MatMul (d, k)
    }""")
    batch = {"x": np.ones((3, 2), np.float32), "labels": np.zeros((3, 2), np.float32)}
    for train, functions in ((["w"], 1), (None, 0)):
        session = trained(gradcut.compile(given, "mse", train=train, optimizer=gradcut.SGD(lr=0.01)), [batch] * 2)
        session.export(tmp_path / "tuned.onnx")
        assert len(onnx.load(tmp_path / "tuned.onnx").functions) == functions
        (y,) = run(tmp_path / "tuned.onnx", {"x": batch["x"]})
        np.testing.assert_allclose(y, session.evaluate(batch).outputs["y"], rtol=1e-6)


def test_weights_that_are_too_many_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered here; `tests/test_big.py` has a model that is over it."""
    monkeypatch.setattr("gradcut.runtime.export.MAX_BYTES", 1000)
    session = trained(gradcut.compile(exported("digits"), "cross_entropy"), [zoo_feeds("digits")])
    session.export(tmp_path / "tuned.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tuned.onnx", "tuned.onnx.data"]
    assert (
        tensors(onnx.load(tmp_path / "tuned.onnx")).items()
        >= {name: array.tobytes() for name, array in session.parameters().items()}.items()
    )
    inputs = zoo_feeds("digits", 3)
    (logits,) = run(tmp_path / "tuned.onnx", {"image": inputs["image"]})
    np.testing.assert_allclose(logits, session.evaluate(inputs).outputs["logits"], rtol=1e-5, atol=1e-5)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("gradcut.runtime.export.ir.save", _fail)
    session.step(inputs)
    with pytest.raises(ArtifactsError, match="the disk is full"):
        session.export(tmp_path / "tuned.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def _fail(*_: Any, **__: Any) -> None:
    raise OSError("the disk is full")
