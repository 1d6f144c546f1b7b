"""Taking a model in: whatever the file is, an error that says so."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import ExternalDataError, ImportModelError, NotOnnxError, SpecError, UnsupportedModelError
from tests.written import parse, session

TEXT = "g (float[2] x) => (float[2] y) <float[2] w = {2, 5}> { y = Mul (x, w) }"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    onnx.save(parse(TEXT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_path_a_proto_and_a_model(saved: Path) -> None:
    for given in (saved, str(saved), onnx.load(saved)):
        assert [value.name for value in gradcut.load(given).graph.inputs] == ["x"]
    model = ir.load(saved)
    assert gradcut.load(model) is model


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    path.write_text(onnx.printer.to_text(parse(TEXT)))
    assert [node.op_type for node in gradcut.load(path).graph] == ["Mul"]


def sparse(indices: np.ndarray, how: str) -> onnx.ModelProto:
    """y = x w, where w has the numbers 2, 3, 5 at some places."""
    values = onnx.numpy_helper.from_array(np.float32([2, 3, 5]), "w")
    tensor = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(indices, "at"), [3, 4])
    model = parse("g (float[2, 3] x) => (float[2, 4] y) { y = MatMul (x, w) }")
    if how == "Constant":
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    else:
        model.graph.sparse_initializer.append(tensor)
    return model


PLACES = {"flat": np.int64([0, 5, 11]), "by axis": np.int64([[0, 0], [1, 1], [2, 3]])}


@pytest.mark.parametrize("how", ["initializer", "Constant"])
@pytest.mark.parametrize("places", PLACES)
def test_sparse_weights_are_made_dense(places: str, how: str, tmp_path: Path) -> None:
    model = sparse(PLACES[places], how)
    before = model.SerializeToString()
    onnx.save(model, tmp_path / "m.onnx")
    x, dY = np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    weight = np.float32([[2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 5]])
    for given in (model, tmp_path / "m.onnx"):
        y, dX, dW = session(gradcut.vjp(given, ["x", "w"], ["y"])).run(None, {"x": x, "y_grad": dY})
        np.testing.assert_array_equal(y, x @ weight)
        np.testing.assert_array_equal(dX, dY @ weight.T)
        np.testing.assert_array_equal(dW, x.T @ dY)
    assert model.SerializeToString() == before


def test_sparse_weights_that_contradict_themselves() -> None:
    with pytest.raises(NotOnnxError, match=r"sparse tensor 'w' of shape \[3, 4\]: index 12 is out of bounds"):
        gradcut.load(sparse(np.int64([0, 5, 12]), "initializer"))


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["m.onnx"]])
def test_something_else(wrong: object) -> None:
    with pytest.raises(ImportModelError, match=r"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not "):
        gradcut.load(wrong)


def test_no_such_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=r"nix.onnx: there is no such file"):
        gradcut.load(tmp_path / "nix.onnx")
    with pytest.raises(ImportModelError, match=r"is a directory; give the model file in it, such as .*model.onnx"):
        gradcut.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, this is no model",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"{}",
        bytes(1000),
        random.Random(0).randbytes(64),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(NotOnnxError, match=r"m.onnx "):
        gradcut.load(path)


def test_a_file_cut_short_anywhere(saved: Path) -> None:
    """Protobuf takes a message that ends between two fields; such a one lacks what a model must have."""
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(NotOnnxError):
            gradcut.load(saved)


def test_another_message_of_onnx(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pb"
    path.write_bytes(onnx.numpy_helper.from_array(np.ones(3), "t").SerializeToString())
    with pytest.raises(NotOnnxError):
        gradcut.load(path)


def test_text_with_an_error_says_where(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    path.write_text('<ir_version: 10, opset_import: ["" : 21]>\ng (float[2] x) => (float[2] y) {\n  y = Mul (x,,\n}\n')
    with pytest.raises(NotOnnxError) as raised:
        gradcut.load(path)
    message = str(raised.value)
    assert "line: 4" in message or "line: 3" in message
    assert "b'" not in message and "\\n" not in message and "\n" not in message
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotOnnxError, match="is not ONNX text"):
        gradcut.load(path)


@pytest.mark.parametrize("suffix", [".textproto", ".pbtxt", ".prototxt", ".json", ".onnxjson", ".onnxtext", ".txt"])
def test_other_text_that_onnx_writes(suffix: str, tmp_path: Path) -> None:
    """Read, trained and exported: each keeps every number."""
    model = parse(TEXT, ir_version=10)
    path, tuned = tmp_path / f"m{suffix}", tmp_path / f"tuned{suffix}"
    if suffix in (".onnxtext", ".txt"):
        path.write_text(onnx.printer.to_text(model))
    else:
        onnx.save(model, path)
    loaded = gradcut.load(path)
    assert [node.op_type for node in loaded.graph] == ["Mul"]
    session = gradcut.TrainingSession(gradcut.compile(path, loss="mse", optimizer="sgd:lr=0.1"), threads=1)
    session.step({"x": np.float32([1, 2]), "labels": np.float32([0, 0])})
    session.export(tuned)
    weight = gradcut.load(tuned).graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(weight, session.parameters()["w"])
    np.testing.assert_allclose(weight, [2 - 0.1 * 2, 5 - 0.1 * 2 * 10], rtol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [
        (".json", b'{"irVersion": "10", "grap', "an ONNX model as json"),
        (".json", b'{"answer": 42}', "an ONNX model as json"),
        (".textproto", b"graph { node {", "an ONNX model as textproto"),
        (".pbtxt", b"\xff\xfe", "ONNX text"),
        (".prototxt", b'layer { name: "conv1" type: "Convolution" }', "an ONNX model as textproto"),
    ],
)
def test_text_that_is_none_of_these(suffix: str, content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(NotOnnxError, match=f"m{suffix} is not {kind}: .") as raised:
        gradcut.load(path)
    assert "\n" not in str(raised.value)


def test_a_file_over_what_protobuf_takes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)
    with pytest.raises(NotOnnxError, match=r"m.onnx is over 2 GB, which no ONNX file can be; save the model with its"):
        gradcut.load(path)


# --- weights beside the file ---------------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    model = parse(TEXT)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([2, 5]), "w"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "m.onnx"


def change(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    onnx.save(model, path)


def test_weights_beside_the_file(external: Path) -> None:
    weight = gradcut.load(external).graph.initializers["w"].const_value
    assert weight.numpy().tolist() == [2, 5]


def test_missing_and_short(external: Path) -> None:
    (external.parent / "w.bin").write_bytes(bytes(5))
    with pytest.raises(ExternalDataError, match=r"tensor 'w' needs 8 bytes of 'w.bin', which has 5"):
        gradcut.load(external)
    (external.parent / "w.bin").unlink()
    with pytest.raises(ExternalDataError, match=r"tensor 'w' needs 'w.bin', which is not beside the model"):
        gradcut.load(external)


@pytest.mark.parametrize(
    ("entries", "message"),
    [({"length": "4"}, "takes 8 bytes, and the model says 4 at 0"), ({"offset": "4096"}, "needs 4104 bytes")],
)
def test_an_entry_that_does_not_fit(external: Path, entries: dict[str, str], message: str) -> None:
    change(external, **entries)
    with pytest.raises(ExternalDataError, match=message):
        gradcut.load(external)


def test_outside_the_folder(external: Path) -> None:
    outside = external.parent.parent / "w.bin"
    outside.write_bytes(bytes(8))
    for location in ("../w.bin", str(outside), "sub/../../w.bin"):
        change(external, location=location)
        with pytest.raises(ExternalDataError, match="which lies outside the model's folder"):
            gradcut.load(external)


def test_a_link_that_leads_outside(external: Path) -> None:
    outside = external.parent.parent / "elsewhere.bin"
    outside.write_bytes(bytes(8))
    (external.parent / "w.bin").unlink()
    (external.parent / "w.bin").symlink_to(outside)
    with pytest.raises(ExternalDataError, match="which lies outside the model's folder"):
        gradcut.load(external)


def test_a_link_inside_and_a_folder_below_are_fine(external: Path) -> None:
    (external.parent / "sub").mkdir()
    (external.parent / "w.bin").rename(external.parent / "sub" / "real.bin")
    (external.parent / "w.bin").symlink_to(external.parent / "sub" / "real.bin")
    assert gradcut.load(external).graph.initializers["w"].const_value.numpy().tolist() == [2, 5]
    change(external, location="sub/real.bin")
    assert gradcut.load(external).graph.initializers["w"].const_value.numpy().tolist() == [2, 5]


def test_a_model_opened_through_a_link(external: Path) -> None:
    link = external.parent / "link.onnx"
    link.symlink_to(external)
    assert gradcut.load(link).graph.initializers["w"].const_value.numpy().tolist() == [2, 5]


def test_a_proto_must_hold_its_weights(external: Path) -> None:
    with pytest.raises(
        ExternalDataError, match=r"tensor 'w' lies outside the proto, in 'w.bin'; give the model's path"
    ):
        gradcut.load(onnx.load(external, load_external_data=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ y = MatMul (x, q) }", "reads 'q', which nothing gives"),
        ("{ z = Relu (x) }", "output 'y' is given by no node"),
        ("{ y = Relu (x)  y = Abs (x) }", "redeclared"),
        ("{ [a] h = Mul (x, y) [b] y = Abs (h) }", r"the nodes 'b' \(Abs\) -> 'a' \(Mul\) wait for each other"),
        (
            "{ h = If (c) <then_branch = t () => (y2) { y2 = Abs (y) }, else_branch = e () => (x2) { x2 = Abs (x) }>"
            " c = Cast <to = 9> (h) y = Abs (h) }",
            "wait for each other's outputs; none of them can be the first",
        ),
    ],
)
def test_a_graph_that_does_not_hold_together(text: str, message: str, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[2,2] x) => (float[2,2] y) {text}'
    )
    onnx.save(proto, tmp_path / "m.onnx")
    for given in (proto, tmp_path / "m.onnx"):
        with pytest.raises(NotOnnxError, match=message):
            gradcut.load(given)


@pytest.mark.parametrize("suffix", [".onnx", ".onnxtxt"])
@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("initializers", "(float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] w = {3, 4}> { y = Mul (x, w) }"),
        ("inputs", "(float[2] w, float[2] w) => (float[2] y) { y = Neg (w) }"),
    ],
)
def test_two_of_one_name(what: str, text: str, suffix: str, tmp_path: Path) -> None:
    """onnx_ir would keep the last."""
    proto, path = parse(f"g {text}"), tmp_path / f"m{suffix}"
    path.write_bytes(proto.SerializeToString() if suffix == ".onnx" else onnx.printer.to_text(proto).encode())
    for given in (proto, path):
        with pytest.raises(NotOnnxError) as raised:
            gradcut.load(given)
        assert str(raised.value) == (f"two {what} are called 'w'; which one is meant is unclear, rename one of them")


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) { h = Relu (x)  y = Abs (h) }")
    swapped = [proto.graph.node[1], proto.graph.node[0]]
    proto.graph.ClearField("node")
    proto.graph.node.extend(swapped)
    assert [node.op_type for node in gradcut.load(proto).graph] == ["Relu", "Abs"]


def test_a_tensor_of_the_wrong_size(tmp_path: Path) -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }")
    proto.graph.initializer[0].ClearField("float_data")
    proto.graph.initializer[0].raw_data = b"abc"
    with pytest.raises(NotOnnxError, match="tensor 'w' should have 16 bytes, and has 3"):
        gradcut.load(proto)


def test_a_tensor_without_a_type_and_a_node_without_an_operator() -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { [n] y = MatMul (x, w) }")
    proto.graph.node[0].op_type = ""
    with pytest.raises(NotOnnxError, match="node 'n' says no operator"):
        gradcut.load(proto)
    proto.graph.initializer[0].data_type = 0
    with pytest.raises(NotOnnxError, match="tensor 'w' says no type of its numbers"):
        gradcut.load(proto)


def test_a_model_that_was_given_is_as_it_was() -> None:
    """onnx_ir names the tensor of a Constant after its value when it looks at it."""
    proto = parse("g (float[2,2] x) => (float[2,2] y) { c = Constant <value = float {2.0}> ()  y = Mul (x, c) }")
    before = proto.SerializeToString(deterministic=True)
    model = gradcut.load(onnx.ModelProto.FromString(before))
    text = str(model)
    for given in (proto, model):
        gradcut.vjp(given, wrt=["x"], of=["y"])
        gradcut.compile(given, train=["c"])
    assert proto.SerializeToString(deterministic=True) == before and str(model) == text


@pytest.mark.parametrize(
    ("body", "call", "message"),
    [
        ("Y = Neg (X)", "StopGradient (x)", "as something else than Identity"),
        ("Y = Identity (X)", "StopGradient (x, x)", "takes one value and gives one"),
        ("Y = Identity (X)", "StopGradint (x)", "there is no gradcut.StopGradint.*nearest: StopGradient"),
    ],
)
def test_a_mark_that_is_none(body: str, call: str, message: str) -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) { y = gradcut." + call + " }")
    opset = [onnx.helper.make_opsetid("", 21)]
    nodes = [onnx.helper.make_node(body.split()[2], ["X"], ["Y"])]
    proto.functions.append(onnx.helper.make_function("gradcut", "StopGradient", ["X"], ["Y"], nodes, opset))
    if not any(one.domain == "gradcut" for one in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("gradcut", 1))
    with pytest.raises(UnsupportedModelError, match=message):
        gradcut.vjp(proto, wrt=["x"], of=["y"])


@pytest.mark.parametrize(
    ("frozen", "message"),
    [("garbage", "is no JSON"), ("{}", "JSON list of parameter names"), ('["nope"]', "names nope, which it does not")],
)
def test_a_freeze_in_the_file_that_means_nothing(frozen: str, message: str) -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }")
    onnx.helper.set_model_props(proto, {"gradcut.frozen": frozen})
    with pytest.raises(SpecError, match=message):
        gradcut.compile(proto, loss="mse")


def test_a_loss_graph_that_was_given_is_as_it_was() -> None:
    """Its initializer has a name that the model has too, and goes by another one in what is compiled."""
    model = parse("g (float[n,3] x) => (float[n,3] y) <float[3] half = {1, 2, 3}> { y = Mul (x, half) }")
    loss = parse("""l (float[n,3] y, float[n,3] t) => (float loss) <float half = {0.5}> {
        d = Sub (y, t)  h = Mul (d, half)  loss = ReduceMean <keepdims=0> (h) }""")
    before = loss.SerializeToString(deterministic=True)
    for _ in range(2):
        gradcut.TrainingSession(gradcut.compile(model, loss=loss))
    assert loss.SerializeToString(deterministic=True) == before
