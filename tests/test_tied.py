"""Tied and shared weights: one parameter, one gradient, written back where it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gradcut
from gradcut.errors import GradcutWarning
from gradcut.inspection import inspect
from tests.written import parse, run

VOCABULARY = 61


class Gpt2(GPT2LMHeadModel):
    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids=input_ids, use_cache=False).logits


def gpt2(fresh: bool) -> Gpt2:
    """Two layers; unless `fresh`, no two of its norms and biases are alike."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    module = Gpt2(config).eval()
    if not fresh:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return module


def export(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, optimize: bool, dims: dict | None = None
) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, example, dynamo=True, optimize=optimize, dynamic_shapes=dims, opset_version=21, verbose=False
        )
    assert program is not None
    program.save(path)
    return path


TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (3, 7)))
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 7)))
FEEDS = {"input_ids": TOKENS.numpy(), "labels": LABELS.numpy()}
LOSS = "cross_entropy:axis=-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    for fresh in (False, True):
        for optimize in (False, True):
            dims = {"input_ids": {0: "batch", 1: "length"}}
            export(gpt2(fresh), (TOKENS,), folder / f"{fresh}{optimize}.onnx", optimize, dims)
    return folder


def torch_gradients(module: nn.Module) -> dict[str, np.ndarray]:
    F.cross_entropy(module(TOKENS).reshape(-1, VOCABULARY), LABELS.reshape(-1)).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def gradients(path: Path, **options: object) -> dict[str, np.ndarray]:
    return gradcut.TrainingSession(gradcut.compile(path, LOSS, **options), threads=1).gradients(FEEDS)


def close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    atol = 1e-5 * np.abs(expected).max() + 1e-8  # a bias of attention's keys has the gradient zero
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol, err_msg=what)


def said(path: Path, **options: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradcutWarning)
        gradcut.compile(path, LOSS, **options)
    return [str(one.message) for one in caught if issubclass(one.category, GradcutWarning)]


# --- GPT-2 ---------------------------------------------------------------------------------------------------


def test_the_tied_weight_of_gpt2_is_one_parameter_with_one_gradient(folder: Path) -> None:
    module = gpt2(fresh=False)
    expected = torch_gradients(module)  # torch calls it transformer.wte.weight, and its exporter lm_head.weight
    expected["lm_head.weight"] = expected.pop("transformer.wte.weight")
    found = gradients(folder / "FalseFalse.onnx")
    assert found.keys() == expected.keys() and not said(folder / "FalseFalse.onnx")
    for name, gradient in expected.items():
        close(found[name], gradient, name)


@pytest.mark.parametrize(
    "pattern",
    ["lm_head*", "lm_head", "lm_head.weight", "transformer.wte*", "transformer.wte", "transformer.wte.weight"],
)
@pytest.mark.parametrize("option", ["train", "freeze"])
def test_patterns_match_every_name_of_it(folder: Path, pattern: str, option: str) -> None:
    artifacts = gradcut.compile(folder / "FalseFalse.onnx", LOSS, **{option: [pattern]})
    assert (artifacts.trainable == ("lm_head.weight",)) == (option == "train")
    assert ("lm_head.weight" in artifacts.trainable) == (option == "train")


def test_inspect_tells_the_other_name(folder: Path) -> None:
    rows = [row for _, table in inspect(folder / "FalseFalse.onnx").tables() for row in table]
    assert ["; also transformer.wte.weight" in row[-1] for row in rows if row[0] == "lm_head.weight"] == [True]


def test_a_step_and_the_export_of_gpt2(folder: Path, tmp_path: Path) -> None:
    """Plain gradient descent, and torch runs the same step; the weight stands once in the file, and both read it."""
    path = folder / "FalseFalse.onnx"
    session = gradcut.TrainingSession(gradcut.compile(path, LOSS, optimizer=gradcut.SGD(lr=0.5)), threads=1)
    session.step(FEEDS)
    session.export(tmp_path / "tuned.onnx")
    module = gpt2(fresh=False)
    torch_gradients(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.5 * parameter.grad
    given, tuned = onnx.load(path), onnx.load(tmp_path / "tuned.onnx")
    assert [t.name for t in tuned.graph.initializer] == [t.name for t in given.graph.initializer]
    assert [list(n.input) for n in tuned.graph.node] == [list(n.input) for n in given.graph.node]
    (logits,) = run(tuned, {"input_ids": TOKENS.numpy()})
    np.testing.assert_allclose(logits, module(TOKENS).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_gpt2_that_the_exporter_optimised(folder: Path) -> None:
    """Biases and norms keep their names; the head is a transposed copy of the embedding, and neither knows of it."""
    path = folder / "FalseTrue.onnx"
    expected, found = torch_gradients(gpt2(fresh=False)), gradients(path)
    kept = expected.keys() & found.keys()
    assert len(kept) == 27 and found.keys() - kept == {"lm_head.weight"}
    for name in kept:
        close(found[name], expected[name], name)
    (copy,) = [one.name for one in inspect(path).decisions if one.overlooked]
    first, second = said(path)
    assert first.startswith(f"{copy} stands where weights do, but the file does not name them parameters")
    assert second == (
        f"the file holds a weight twice, as exporters write a tied one (lm_head.weight and {copy}): trained, the two "
        'no longer agree; export with gradcut.torch.export(model, args, "model.onnx"), or freeze them'
    )
    both = gradients(path, train=["lm_head.weight", copy])
    assert both[copy].shape == both["lm_head.weight"].shape[::-1]
    close(both[copy].T + both["lm_head.weight"], expected["transformer.wte.weight"], "the sum of both")


def test_weights_that_the_exporter_merged(folder: Path) -> None:
    """Fresh norms are alike, so torch's optimizer makes one of all: its gradient is the sum of theirs."""
    path = folder / "TrueTrue.onnx"
    expected, found = torch_gradients(gpt2(fresh=True)), gradients(path)
    norms = [name for name in expected if ".ln_" in name and name.endswith("weight")]
    merged = "transformer.h.0.ln_1.weight"
    assert len(norms) == 5 and set(norms) & found.keys() == {merged}
    close(found[merged], sum(expected[name] for name in norms), merged)
    (message,) = [one for one in said(path) if "merged" in one]
    assert message.startswith(
        "weights of equal content seem merged by the exporter's optimizer, and train as one "
        "(transformer.h.0.ln_1.weight in 5 modules, transformer.h.0.ln_1.bias in 5 modules): export with "
    )
    assert not [one for one in said(folder / "TrueFalse.onnx") if "merged" in one]


# --- modules that share ---------------------------------------------------------------------------------------


class Siamese(nn.Module):
    """One encoder on two inputs, its last layer once more behind itself, and its weight as a factor where asked for."""

    def __init__(self, factor: bool) -> None:
        super().__init__()
        self.factor = factor
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5))
        self.again = self.encoder[2]
        self.norm = nn.LayerNorm(5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one, other = self.encoder(a), self.again(self.encoder(b))
        product = self.norm(one) * self.norm(other)
        return product + F.linear(one, self.encoder[2].weight.T) if self.factor else product


@pytest.mark.parametrize("optimize", [False, True])
def test_branches_share_their_weights(optimize: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module, a, b, labels = Siamese(factor=not optimize), torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 5)
    batch = torch.export.Dim("batch")
    path = export(module, (a, b), tmp_path / "m.onnx", optimize, {"a": {0: batch}, "b": {0: batch}})
    F.mse_loss(module(a, b), labels).backward()
    feeds = {"a": a.numpy(), "b": b.numpy(), "labels": labels.numpy()}
    session = gradcut.TrainingSession(gradcut.compile(path, "mse"), threads=1)
    found = session.gradients(feeds)
    for name, parameter in module.named_parameters():  # torch takes the first name of a module, its exporter the last
        close(found[name.replace("encoder.2.", "again.")], parameter.grad.numpy(), name)
    assert len(found) == len(list(module.parameters()))
    for pattern in ("encoder.2.weight", "again.weight", "*r.2.w*"):
        assert gradcut.compile(path, "mse", train=[pattern]).trainable == ("again.weight",)


# --- behind other operators ----------------------------------------------------------------------------------

W = torch.arange(1.0, 7.0).reshape(2, 3) / 7
X = torch.from_numpy(np.random.default_rng(5).standard_normal((4, 2)).astype(np.float32))
Form = tuple[str, Callable[[Tensor, Tensor], Tensor]]
#: What reads w [2, 3], and the same in torch.
BEHIND: dict[str, Form] = {
    "Transpose": (
        "t = Transpose <perm = [1, 0]> (w)  p = MatMul (x, w)  y = MatMul (p, t)",
        lambda x, w: x @ w @ w.T,
    ),
    "Reshape": (
        "s = Constant <value_ints = [3, 2]> ()  r = Reshape (w, s)  t = Transpose <perm = [1, 0]> (r)"
        "  p = MatMul (x, t)  q = MatMul (x, w)  m = Mul (p, q)  u = Transpose <perm = [1, 0]> (w)  y = MatMul (m, u)",
        lambda x, w: ((x @ w.reshape(3, 2).T) * (x @ w)) @ w.T,
    ),
    "Slice": (
        "zero = Constant <value_ints = [0]> ()  two = Constant <value_ints = [2]> ()"
        "  one = Constant <value_ints = [1]> ()  s = Slice (w, zero, two, one)  y = MatMul (x, s)",
        lambda x, w: x @ w[:, :2],
    ),
    "Concat": (
        "c = Concat <axis = 1> (w, w)  p = MatMul (x, c)  t = Transpose <perm = [1, 0]> (c)  y = MatMul (p, t)",
        lambda x, w: x @ torch.cat([w, w], 1) @ torch.cat([w, w], 1).T,
    ),
    "Unsqueeze and Squeeze": (
        "a = Constant <value_ints = [0]> ()  u = Unsqueeze (w, a)  s = Squeeze (u, a)  p = MatMul (x, s)"
        "  t = Transpose <perm = [1, 0]> (s)  y = MatMul (p, t)",
        lambda x, w: x @ w @ w.T,
    ),
    "Gemm both ways": (
        "p = Gemm (x, w)  y = Gemm <transB = 1> (p, w)",
        lambda x, w: x @ w @ w.T,
    ),
}


def shared(body: str, dtype: str = "float") -> onnx.ModelProto:
    numbers = ", ".join(str(float(number)) for number in W.flatten())
    return parse(f"g (float[n, 2] x) => (float[n, 2] y) <{dtype}[2, 3] w = {{{numbers}}}> {{ {body} }}")


@pytest.mark.parametrize("how", BEHIND)
def test_a_weight_behind(how: str) -> None:
    body, function = BEHIND[how]
    labels = torch.ones(4, 2)
    session = gradcut.TrainingSession(gradcut.compile(shared(body), "mse", train=["w"]), threads=1)
    weight = W.clone().requires_grad_()
    loss = F.mse_loss(function(X, weight), labels)
    loss.backward()
    feeds = {"x": X.numpy(), "labels": labels.numpy()}
    close(session.gradients(feeds)["w"], weight.grad.numpy(), how)
    assert session.evaluate(feeds).loss == pytest.approx(float(loss), rel=1e-5)


def test_a_weight_in_half_precision_behind_a_cast() -> None:
    """The parameter is what the file stores: float16, its gradient too; the optimizer's state is float32."""
    model = parse("""g (float[n, 2] x) => (float[n, 3] y) <float16[2, 3] w = {1, 2, 3, 4, 5, 6}> {
        c = Cast <to = 1> (w)  y = MatMul (x, c) }""")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(W.half().numpy(), "w"))
    artifacts = gradcut.compile(model, "mse", optimizer=gradcut.AdamW(lr=0.1))
    session = gradcut.TrainingSession(artifacts, threads=1)
    feeds = {"x": X.numpy(), "labels": np.ones((4, 3), np.float32)}
    weight = W.half().requires_grad_()
    F.mse_loss(X @ weight.float(), torch.ones(4, 3)).backward()
    assert session.gradients(feeds)["w"].dtype == np.float16
    np.testing.assert_array_equal(session.gradients(feeds)["w"], weight.grad.numpy())
    kinds = {p["name"]: p["dtype"] for p in session.manifest["graphs"]["step_model"]["inputs"] if p["role"] == "slot"}
    assert set(kinds.values()) == {"FLOAT"} and session.parameters()["w"].dtype == np.float16
    losses = [session.step(feeds).loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def test_a_half_precision_weight_is_written_back_as_it_was(tmp_path: Path) -> None:
    model = parse("""g (float[n, 2] x) => (float[n, 2] y) <float16[2, 2] w = {1, 2, 3, 4}> {
        c = Cast <to = 1> (w)  t = Transpose <perm = [1, 0]> (c)  y = MatMul (x, t) }""")
    session = gradcut.TrainingSession(gradcut.compile(model, "mse", optimizer="sgd:lr=0.1"), threads=1)
    session.step({"x": X.numpy(), "labels": X.numpy()})
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    assert [node.op_type for node in tuned.graph.node] == ["Cast", "Transpose", "MatMul"]
    assert tuned.graph.initializer[0].data_type == onnx.TensorProto.FLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(tuned.graph.initializer[0]), session.parameters()["w"])


# --- one or two ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_equal_weights_of_two_names_are_two_parameters(transposed: bool) -> None:
    """They are told, since one that was meant drifts apart."""
    w, x = torch.randn(8, 9, generator=torch.manual_seed(1)), torch.randn(5, 8, generator=torch.manual_seed(2))
    stored = (w, w.T if transposed else w, torch.ones(8, 9))
    model = parse(f"""g (float[n, 8] x) => (float[n, 9] y) {{
        p = MatMul (x, a)  q = Gemm <transB = {int(not transposed)}> (p, b)  y = MatMul (q, c) }}""")
    for name, tensor in zip("abc", stored, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(tensor), name))
    expected = (
        "the file holds a weight twice, as exporters write a tied one (a and b): trained, the two no longer agree; "
        'export with gradcut.torch.export(model, args, "model.onnx"), or freeze them'
    )
    with pytest.warns(GradcutWarning) as caught:
        artifacts = gradcut.compile(model, "mse")
    assert [str(one.message) for one in caught] == [expected] == artifacts.manifest["warnings"]
    feeds = {"x": x.numpy(), "labels": np.zeros((5, 9), np.float32)}
    found = gradcut.TrainingSession(artifacts, threads=1).gradients(feeds)
    a, b, c = (tensor.clone().requires_grad_() for tensor in stored)
    F.mse_loss(x @ a @ (b if transposed else b.T) @ c, torch.zeros(5, 9)).backward()
    for name, weight in {"a": a, "b": b, "c": c}.items():
        close(found[name], weight.grad.numpy(), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradcutWarning)
        gradcut.compile(model, "mse", train=["c"])


def test_a_mark_on_one_use_leaves_the_other() -> None:
    session = gradcut.TrainingSession(
        gradcut.compile(shared(BEHIND["Gemm both ways"][0]), "mse", stop_at=["w->Gemm_p"]), threads=1
    )
    weight = W.clone().requires_grad_()
    F.mse_loss(X @ weight.detach() @ weight.T, torch.ones(4, 2)).backward()
    found = session.gradients({"x": X.numpy(), "labels": np.ones((4, 2), np.float32)})
    close(found["w"], weight.grad.numpy(), "the use without a mark")


def test_a_weight_that_a_branch_reads_too(tmp_path: Path) -> None:
    """The branch is stopped; the weight trains by its other use, and the branch reads what it became."""
    model = shared("""p = Gemm (x, w)  c = Constant <value = bool {1}> ()
        q = If (c) < then_branch = one () => (float[n, 2] a) { a = Gemm <transB = 1> (p, w) },
                     else_branch = other () => (float[n, 2] b) { b = Identity (x) }>
        r = Gemm <transB = 1> (p, w)  y = Add (q, r)""")
    artifacts = gradcut.compile(model, "mse", train=["w"], stop_at=["q"], optimizer="sgd:lr=0.1")
    session = gradcut.TrainingSession(artifacts, threads=1)
    feeds = {"x": X.numpy(), "labels": np.ones((4, 2), np.float32)}
    weight = W.clone().requires_grad_()
    product = X @ weight @ weight.T
    F.mse_loss(product.detach() + product, torch.ones(4, 2)).backward()
    close(session.gradients(feeds)["w"], weight.grad.numpy(), "w")
    session.step(feeds)
    session.export(tmp_path / "tuned.onnx")
    moved = torch.from_numpy(session.parameters()["w"])
    (y,) = run(onnx.load(tmp_path / "tuned.onnx"), {"x": X.numpy()})
    np.testing.assert_allclose(y, (2 * X @ moved @ moved.T).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("also", ["input", "output", "both"])
def test_a_weight_that_is_an_input_or_an_output_of_the_graph_too(also: str, tmp_path: Path) -> None:
    """The given interface stays: as output it gives what it became."""
    model = shared("p = Gemm (x, w)  y = Gemm <transB = 1> (p, w)")
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 3])
    if also != "output":
        model.graph.input.append(info)
    if also != "input":
        model.graph.output.append(info)
    session = gradcut.TrainingSession(gradcut.compile(model, "mse:output=y", optimizer="sgd:lr=0.1"), threads=1)
    feeds = {"x": X.numpy(), "labels": np.ones((4, 2), np.float32)}
    weight = W.clone().requires_grad_()
    F.mse_loss(X @ weight @ weight.T, torch.ones(4, 2)).backward()
    close(session.gradients(feeds)["w"], weight.grad.numpy(), "w")
    session.step(feeds)
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    for side in ("input", "output"):
        assert [v.name for v in getattr(tuned.graph, side)] == [v.name for v in getattr(model.graph, side)]
    outputs = run(tuned, {"x": X.numpy()})
    moved = session.parameters()["w"]
    np.testing.assert_allclose(outputs[0], X.numpy() @ moved @ moved.T, rtol=1e-5, atol=1e-6)
    if also != "input":
        np.testing.assert_array_equal(outputs[1], moved)
        np.testing.assert_array_equal(session.evaluate(feeds).outputs["w"], moved)
