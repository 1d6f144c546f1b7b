"""Losses: values and gradients against torch, wiring, graphs of the user's own, and every refusal's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut.errors import FeedError, LossError, SpecError
from tests.exported import text


def scores(dims: str, opset: int = 21) -> onnx.ModelProto:
    """x (1 + w), to train w [1] at 0: its gradient is that along x."""
    return text(
        f"""
        g (float[{dims}] x) => (float[{dims}] logits) <float[1] w = {{0.0}}>
        {{
            scaled = Mul (x, w)
            logits = Add (x, scaled)
        }}""",
        opset,
    )


def compiled(dims: str, loss: Any) -> gradcut.TrainingArtifacts:
    return gradcut.compile(scores(dims), loss, train=["w"])


def run(model: onnx.ModelProto, loss: Any, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """The loss and its derivative by w, which multiplies x by 1 + w."""
    session = gradcut.TrainingSession(gradcut.compile(model, loss, train=["w"]), threads=1)
    return session.evaluate(feeds).loss, float(session.gradients(feeds)["w"][0])


def torch_run(x: np.ndarray, loss: Any) -> tuple[float, float]:
    w = torch.zeros(1, requires_grad=True)
    value = loss(torch.from_numpy(x) * (1 + w))
    value.backward()
    return value.item(), float(w.grad)


def draw(*shape: int, classes: int = 4, axis: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape).astype(np.float32)
    return x, generator.integers(0, classes, [d for i, d in enumerate(shape) if i != axis % len(shape)])


# --- cross entropy -------------------------------------------------------------------------------------------

OPTIONS = ["", "ignore_index=2", "label_smoothing=0.1", "ignore_index=2,label_smoothing=0.3", "label_smoothing=1.0"]


def options_of(text: str) -> dict[str, float]:
    pairs = (item.split("=") for item in text.split(",") if item)
    return {key: int(value) if key == "ignore_index" else float(value) for key, value in pairs}


def spec(*options: str) -> str:
    return "cross_entropy" + (":" if any(options) else "") + ",".join(filter(None, options))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("dims", "shape", "axis"),
    [
        ("n, 4", (6, 4), None),
        ("n, 4", (6, 4), 1),
        ("n, 4", (6, 4), -1),
        ("n, 4, t", (3, 4, 5), 1),
        ("n, t, 4", (3, 5, 4), -1),
        ("n, t, 4", (3, 5, 4), 2),
        ("n, 4, h, w", (2, 4, 3, 5), 1),
        ("n, h, 4, w", (2, 3, 4, 5), 2),
        ("n, h, w, 4", (2, 3, 5, 4), -1),
    ],
)
def test_cross_entropy_is_torchs(dims: str, shape: tuple[int, ...], axis: int | None, options: str) -> None:
    x, labels = draw(*shape, axis=axis or 1)
    if "ignore_index" not in options:
        labels.flat[1] = -100  # the default, as torch's
    wired = spec("" if axis is None else f"axis={axis}", options)
    actual = run(scores(dims), wired, {"x": x, "labels": labels})
    target = torch.from_numpy(labels)
    expected = torch_run(x, lambda s: F.cross_entropy(s.movedim(axis or 1, 1), target, **options_of(options)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_cross_entropy_is_stable_for_large_scores(options: str) -> None:
    x, labels = draw(6, 4)
    x = np.sign(x) * np.float32(1e4)
    actual = run(scores("n, 4"), spec(options), {"x": x, "labels": labels})
    target = torch.from_numpy(labels)
    np.testing.assert_allclose(actual, torch_run(x, lambda s: F.cross_entropy(s, target, **options_of(options))), 1e-5)


def test_a_language_models_padding() -> None:
    """Whole rows ignored, the class axis last."""
    x, labels = draw(3, 5, 4, axis=-1)
    labels[1] = -100
    actual = run(scores("n, t, 4"), "cross_entropy:axis=-1", {"x": x, "labels": labels})
    expected = torch_run(x, lambda s: F.cross_entropy(s.flatten(0, 1), torch.from_numpy(labels).flatten()))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dims", "loss", "message"),
    [
        (
            "n, t, 4",
            "cross_entropy",
            "cross_entropy: 'logits' has rank 3, so the class axis must be said: "
            "axis=1 as torch has it, axis=-1 for a language model",
        ),
        ("4", "cross_entropy", "cross_entropy: 'logits' has rank 1; scores are [batch, classes, ...]"),
        ("n, 4", "cross_entropy:axis=0", "cross_entropy: axis=0 is no class axis of 'logits' (rank 2)"),
        ("n, 4", "cross_entropy:axis=2", "cross_entropy: axis=2 is no class axis of 'logits' (rank 2)"),
        ("n, 4", "cross_entropy:axis=-2", "cross_entropy: axis=-2 is no class axis of 'logits' (rank 2)"),
        (
            "n, 4",
            "cross_entropy:label_smoothing=2.0",
            "cross_entropy: label_smoothing is 2.0; it lies between 0 and 1",
        ),
        ("n, 4", "cross_entropy:axis=last", "cross_entropy: axis is int, not 'last'"),
        (
            "n, 4",
            "cross_entropy:smoothing=0.1",
            "cross_entropy has no option 'smoothing'; it has output, labels, target, stop_target, reduction, axis, "
            "weight, ignore_index, label_smoothing",
        ),
        (
            "n, 4",
            "cross_entrop",
            "there is no loss 'cross_entrop'. Nearest: cross_entropy. There are bce_with_logits, cosine, "
            "cross_entropy, huber, kl_div, l1, mse, neg_cosine, nll, smooth_l1, a scalar output of the model by its "
            "name, or a graph of your own: FILE.onnx",
        ),
        (
            "n, 4",
            "mse+l1",
            "'mse+l1' is no loss; a sum is written with blanks around +: 'mse + -0.5*l1:output=b'",
        ),
    ],
)
def test_what_cross_entropy_refuses(dims: str, loss: str, message: str) -> None:
    with pytest.raises((LossError, SpecError)) as error:
        compiled(dims, loss)
    assert str(error.value) == message


@pytest.mark.parametrize("label", [4, -1, -99, 2**40])
def test_a_label_out_of_range_is_refused_before_the_step(label: int) -> None:
    session = gradcut.TrainingSession(compiled("n, 4", "cross_entropy"), threads=1)
    x, labels = draw(3, 4)
    labels[1] = label
    for call in (session.step, session.evaluate, session.gradients):
        with pytest.raises(FeedError) as error:
            call({"x": x, "labels": labels})
        assert str(error.value) == (f"feed 'labels' holds label {label} at row 1; the model has 4 classes, 0 to 3")
    assert session.steps == 0


# --- mse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "shape"), [("n, 4", (3, 4)), ("n", (5,)), ("n, 2, 3", (4, 2, 3)), ("2, 2", (2, 2))])
def test_mse_is_torchs(dims: str, shape: tuple[int, ...]) -> None:
    x, y = (np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in (0, 1))
    actual = run(scores(dims), "mse", {"x": x, "labels": y})
    np.testing.assert_allclose(actual, torch_run(x, lambda s: F.mse_loss(s, torch.from_numpy(y))), rtol=1e-5)


def test_mse_labels_have_the_outputs_shape() -> None:
    """Otherwise [n, 1] against [n] would broadcast to [n, n] without a word."""
    session = gradcut.TrainingSession(compiled("n, 1", "mse"), threads=1)
    with pytest.raises(FeedError):
        session.step({"x": np.ones((3, 1), np.float32), "labels": np.ones(3, np.float32)})
    with pytest.raises(FeedError):
        session.step({"x": np.ones((3, 1), np.float32), "labels": np.ones((1, 1), np.float32)})


# --- wiring --------------------------------------------------------------------------------------------------

TWO_HEADS = text("""
g (float[n, 2] x) => (float[n, 3] left, float[n, 4] right, int64[n] best)
<float[2, 3] a = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[2, 4] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}>
{
    left = MatMul (x, a)
    inner = MatMul (x, b)
    right = Relu (inner)
    best = ArgMax <axis = 1, keepdims = 0> (left)
}""")


def test_an_unclear_output_lists_them() -> None:
    with pytest.raises(LossError) as error:
        gradcut.compile(TWO_HEADS, "cross_entropy")
    assert str(error.value) == (
        "cross_entropy: which output is the loss's is unclear; the float outputs are left, right. "
        "Say --loss cross_entropy:output=NAME."
    )


def test_an_output_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(LossError, match=r"cross_entropy: the model has no value 'rihgt'\. Nearest: right\."):
        gradcut.compile(TWO_HEADS, "cross_entropy:output=rihgt")


@pytest.mark.parametrize("output", ["right", "inner"])
def test_output_names_an_output_or_an_inner_value(output: str) -> None:
    x, labels = draw(5, 2)[0], draw(5, 4)[1]
    session = gradcut.TrainingSession(gradcut.compile(TWO_HEADS, f"cross_entropy:output={output}"), threads=1)
    result = session.evaluate({"x": x, "labels": labels})
    b = torch.arange(1.0, 9.0).reshape(2, 4)
    inner = torch.from_numpy(x) @ b
    value = F.cross_entropy(inner if output == "inner" else inner.relu(), torch.from_numpy(labels))
    assert result.loss == pytest.approx(value.item(), rel=1e-5)
    assert set(result.outputs) == {"left", "right", "best"}
    assert session.artifacts.trainable == ("b",)


def test_the_label_input_takes_the_next_free_name() -> None:
    model = text("""
    g (float[n, 4] x, float[n, 4] labels) => (float[n, 4] loss) <float[4] w = {1.0, 1.0, 1.0, 1.0}>
    {
        sum = Add (x, labels)
        loss = Mul (sum, w)
    }""")
    artifacts = gradcut.compile(model, "cross_entropy")
    assert artifacts.manifest["loss"]["labels"] == "labels_2"
    x, labels = draw(3, 4)
    result = gradcut.TrainingSession(artifacts, threads=1).step({"x": x, "labels": x, "labels_2": labels})
    assert result.loss == pytest.approx(F.cross_entropy(torch.from_numpy(2 * x), torch.from_numpy(labels)).item())
    np.testing.assert_allclose(result.outputs["loss"], 2 * x)


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("behind", ["", "Identity", "Reshape", "Flatten"])
def test_probabilities_are_refused_where_logits_are_expected(operator: str, behind: str) -> None:
    shape = "int64[2] shape = {-1, 4}, " if behind == "Reshape" else ""
    last = f"y = {behind} (p{', shape' if shape else ''})" if behind else ""
    model = text(f"""
    g (float[n, 4] x) => (float[n, 4] {"y" if behind else "p"}) <{shape}float[4] w = {{1.0, 1.0, 1.0, 1.0}}>
    {{
        z = Mul (x, w)
        p = {operator} (z)
        {last}
    }}""")
    with pytest.raises(LossError) as error:
        gradcut.compile(model, "cross_entropy")
    node = str(error.value).split("(")[1].split(")")[0]
    assert str(error.value) == (
        f"cross_entropy takes logits, and {'y' if behind else 'p'!r} comes from {operator} ({node}); "
        "take what goes into it: --loss cross_entropy:output=z"
    )
    with pytest.raises(LossError, match="takes logits"):
        gradcut.compile(gradcut.stop_gradient(model, "w"), "cross_entropy")
    with pytest.raises(LossError, match="takes logits"):
        gradcut.compile(model, "cross_entropy", stop_at=["p->*"] if behind else ["p"])
    assert gradcut.compile(model, "cross_entropy:output=z").trainable == ("w",)
    assert gradcut.compile(model, "mse").trainable == ("w",)


# --- no loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "reshape"), [("", False), ("[1]", True)])
def test_a_scalar_output_is_the_loss(shape: str, reshape: bool) -> None:
    model = text(f"""
    g (float[n] x) => (float[n] y, float{shape} objective) <float[1] w = {{2.0}}, int64[1] one = {{1}}>
    {{
        y = Mul (x, w)
        square = Mul (y, y)
        mean = ReduceMean <keepdims = 0> (square)
        objective = {"Reshape (mean, one)" if reshape else "Identity (mean)"}
    }}""")
    x = np.array([1.0, 2.0, 3.0], np.float32)
    session = gradcut.TrainingSession(gradcut.compile(model, train=["w"]), threads=1)
    assert session.evaluate({"x": x}).loss == pytest.approx(4 * 14 / 3)
    assert session.gradients({"x": x})["w"] == pytest.approx([4 * 14 / 3])
    assert set(session.step({"x": x}).outputs) == {"y"}


TWO_SCALARS = """g (float[n] x) => (float a, float b, float[n] y) <float[1] w = {2.0}> {
    y = Mul (x, w)  a = ReduceMean <keepdims = 0> (y)  s = ReduceSum <keepdims = 0> (y)  b = Mul (s, s) }"""


def test_two_scalar_outputs_are_unclear() -> None:
    message = r"several outputs are scalars \(a, b\); say which is the loss, --loss a, or what sum of them"
    with pytest.raises(LossError, match=message):
        gradcut.compile(text(TWO_SCALARS), train=["w"])


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        ("a", 4, 2),  # a = 2 w, b = (4 w)^2 = 16 w^2 at x = 1, 3
        ("b", 64, 64),
        ("a + 0.5*b", 36, 34),
        ([(0.5, "b"), "a"], 36, 34),
        ("0.5*a", 2, 1),
        ("a + mse:output=y,labels=x", 4 + 5, 2 + 10),  # beside a loss of the table: mean of (x w - x)^2
        ("b + b", 128, 128),
    ],
)
def test_a_scalar_output_by_its_name_is_a_term(loss: object, value: float, gradient: float) -> None:
    session = gradcut.TrainingSession(gradcut.compile(text(TWO_SCALARS), loss, train=["w"]), threads=1)
    x = np.float32([1, 3])
    assert session.gradients({"x": x})["w"] == pytest.approx([gradient])
    assert session.evaluate({"x": x}).loss == pytest.approx(value)
    result = session.step([{"x": x}, {"x": x}])
    assert result.loss == pytest.approx(value)
    assert {"a", "b", "y"} - ({loss} if isinstance(loss, str) else set()) <= set(result.outputs)


def test_what_is_neither_a_loss_nor_a_scalar_output() -> None:
    with pytest.raises(LossError, match=r"there is no loss 'c'.*a scalar output of the model by its name"):
        gradcut.compile(text(TWO_SCALARS), "a + c", train=["w"])
    message = r"the output 'y' is FLOAT\[n\], and a loss is one float; say which loss of it: mse:output=y"
    with pytest.raises(LossError, match=message):
        gradcut.compile(text(TWO_SCALARS), "y", train=["w"])


def test_without_a_loss_the_cotangents_are_inputs() -> None:
    artifacts = gradcut.compile(TWO_HEADS, optimizer=gradcut.SGD(lr=0.1))
    assert artifacts.manifest["loss"] is None
    session = gradcut.TrainingSession(artifacts, threads=1)
    x = draw(5, 2)[0]
    left, right = draw(5, 3, seed=1)[0], draw(5, 4, seed=2)[0]
    feeds = {"x": x, "left_grad": left, "right_grad": right}
    gradients = session.gradients(feeds)
    inner = x @ np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(gradients["a"], x.T @ left, rtol=1e-5)
    np.testing.assert_allclose(gradients["b"], x.T @ (right * (inner > 0)), rtol=1e-5, atol=1e-6)
    before = session.parameters()
    result = session.step(feeds)
    assert np.isnan(result.loss) and set(result.outputs) == {"left", "right", "best"}
    np.testing.assert_allclose(session.parameters()["a"], before["a"] - 0.1 * gradients["a"], rtol=1e-6)
    assert np.isnan(session.evaluate({"x": x}).loss)
    with pytest.raises(LossError, match="compile with one"):
        session.require_loss()


# --- a graph of the user's -----------------------------------------------------------------------------------


def l1(first: str = "logits", second: str = "target", opset: int = 21) -> onnx.ModelProto:
    """mean |first - second| * half, of names that the model uses too."""
    return text(
        f"""
        loss_graph (float[n, 4] {first}, float[n, 4] {second}) => (float value) <float half = {{0.5}}>
        {{
            scaled = Sub ({first}, {second})
            distance = Abs (scaled)
            mean = ReduceMean <keepdims = 0> (distance)
            value = Mul (mean, half)
        }}""",
        opset,
    )


def torch_l1(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return torch_run(x, lambda s: 0.5 * (s - torch.from_numpy(y)).abs().mean())


@pytest.mark.parametrize("kind", ["proto", "ir", "path", "text of a path", "onnx text"])
def test_a_loss_graph_in_every_form(kind: str, tmp_path: Path) -> None:
    graph, path = l1(), tmp_path / "my loss.onnx"
    onnx.save(graph, path)
    (tmp_path / "loss.onnxtxt").write_text(onnx.printer.to_text(graph))
    forms = {
        "proto": graph,
        "ir": ir.from_proto(graph),
        "path": path,
        "text of a path": str(path),
        "onnx text": str(tmp_path / "loss.onnxtxt"),
    }
    x, y = draw(3, 4)[0], draw(3, 4, seed=1)[0]
    np.testing.assert_allclose(run(scores("n, 4"), forms[kind], {"x": x, "target": y}), torch_l1(x, y), rtol=1e-5)


def test_a_loss_graph_with_renamed_inputs(tmp_path: Path) -> None:
    onnx.save(l1("prediction", "logits_"), tmp_path / "l.onnx")
    x, y = draw(3, 4)[0], draw(3, 4, seed=1)[0]
    wired = f"{tmp_path}/l.onnx:prediction=logits"
    np.testing.assert_allclose(run(scores("n, 4"), wired, {"x": x, "logits_": y}), torch_l1(x, y), rtol=1e-5)


@pytest.mark.parametrize(("model_opset", "loss_opset"), [(21, 13), (21, 23), (23, 21), (17, 13), (13, 17), (9, 26)])
def test_a_loss_graph_of_another_opset(model_opset: int, loss_opset: int) -> None:
    x, y = draw(3, 4)[0], draw(3, 4, seed=1)[0]
    actual = run(scores("n, 4", model_opset), l1(opset=loss_opset), {"x": x, "target": y})
    np.testing.assert_allclose(actual, torch_l1(x, y), rtol=1e-5)


def test_marks_and_scopes_survive_a_conversion_for_the_loss() -> None:
    """The model goes to the loss graph's opset with its marks in it."""
    model = gradcut.stop_gradient(scores("n, 4"), "scaled")
    with pytest.raises(gradcut.errors.NothingTrainsError):
        gradcut.compile(model, l1(opset=23), train=["w"])


def test_a_loss_graph_may_read_several_outputs() -> None:
    both = text("""
    l (float[n, 3] left, float[n, 4] right, float[n] weight) => (float value)
    {
        a = ReduceSum <keepdims = 0> (left)
        axes = Constant <value_ints = [1]> ()
        rows = ReduceSum <keepdims = 0> (right, axes)
        weighted = Mul (rows, weight)
        c = ReduceSum <keepdims = 0> (weighted)
        value = Add (a, c)
    }""")
    artifacts = gradcut.compile(TWO_HEADS, both)
    assert artifacts.trainable == ("a", "b")
    assert artifacts.manifest["loss"]["inputs"] == ["weight"]
    x = np.abs(draw(5, 2)[0])
    result = gradcut.TrainingSession(artifacts, threads=1).step({"x": x, "weight": np.ones(5, np.float32)})
    assert result.loss == pytest.approx(sum(result.outputs[name].sum() for name in ("left", "right")), rel=1e-5)


def test_constants_of_a_loss_graph_never_train() -> None:
    """They are not in the given model, so there is nowhere to write them back to."""
    weighted = text("""
    l (float[n, 4] logits) => (float value) <float[4] w = {1.0, 2.0, 3.0, 4.0}>
    {
        scaled = Mul (logits, w)
        value = ReduceMean <keepdims = 0> (scaled)
    }""")
    artifacts = gradcut.compile(scores("n, 4"), weighted, train=["w"])
    assert artifacts.trainable == ("w",)
    session = gradcut.TrainingSession(artifacts, threads=1)
    assert list(session.parameters()) == ["w"]
    x = draw(3, 4)[0]
    assert session.step({"x": x}).loss == pytest.approx((x * [1, 2, 3, 4]).mean(), rel=1e-4)


TWO_RESULTS = text(
    "l (float[n, 4] logits) => (float a, float b) { a = ReduceMean <keepdims = 0> (logits) b = Neg (a) }"
)
WITH_ROWS = text(
    "l (float[n, 4] logits) => (float[n, 4] rows, float a) { rows = Abs (logits) a = ReduceMean <keepdims = 0> (rows) }"
)
NO_SCALAR = text("l (float[n, 4] logits) => (float[n, 4] value) { value = Abs (logits) }")
INTEGER = text("l (float[n, 4] logits) => (int64 value) { value = Size (logits) }")


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            TWO_RESULTS,
            "the loss graph: one of its outputs must be a scalar float, and of 'a' (FLOAT, []), 'b' (FLOAT, []) 2 are",
        ),
        (
            NO_SCALAR,
            "the loss graph: one of its outputs must be a scalar float, and of 'value' (FLOAT, [n,4]) 0 are",
        ),
        (INTEGER, "the loss graph: one of its outputs must be a scalar float, and of 'value' (INT64, []) 0 are"),
        (
            l1("a", "b"),
            "no input of the loss graph (a, b) has the name of an output of the model (logits); "
            "match them: FILE.onnx:its_input=model_output",
        ),
    ],
)
def test_what_a_loss_graph_must_be(graph: onnx.ModelProto, message: str) -> None:
    with pytest.raises(LossError) as error:
        compiled("n, 4", graph)
    assert str(error.value) == message


def test_the_one_scalar_of_several_outputs_is_the_loss() -> None:
    artifacts = compiled("n, 4", WITH_ROWS)
    assert artifacts.manifest["graphs"]["training_model"]["outputs"][0]["role"] == "loss"
    assert "rows" not in [output.name for output in artifacts.training_model.graph.outputs]


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ("nothing=logits", "{file} has no input 'nothing'; it has a, b"),
        ("a=nothing", "the model has no output 'nothing'; it has logits"),
    ],
)
def test_a_rename_that_names_nothing(rename: str, message: str, tmp_path: Path) -> None:
    onnx.save(l1("a", "b"), tmp_path / "l.onnx")
    with pytest.raises(LossError) as error:
        compiled("n, 4", f"{tmp_path}/l.onnx:{rename}")
    assert str(error.value) == message.format(file=tmp_path / "l.onnx")


def test_a_loss_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(gradcut.GradcutError, match="there is no such file"):
        compiled("n, 4", f"{tmp_path}/l.onnx")
