"""Every loss of the table: values and every element's gradient against torch, at random and at the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradcut
from gradcut import losses
from gradcut.errors import FeedError, LossError, NotFiniteError, SpecError
from gradcut.losses import LOSSES, parse_loss
from tests.exported import text

Array = np.ndarray[Any, Any]
SEED = 7
Torch = Callable[[Tensor, Tensor], Tensor]


def shifted(*shape: int, kind: str = "float") -> onnx.ModelProto:
    """x + w with w of x's shape, to train w at 0: its gradient is that by the scores, element by element."""
    dims = ", ".join(map(str, shape))
    zeros = ", ".join("0.0" for _ in range(int(np.prod(shape))))
    return text(
        f"g ({kind}[{dims}] x) => ({kind}[{dims}] y) <{kind}[{dims}] w = {{{zeros}}}> {{ y = Add (x, w) }}",
    )


def ours(x: Array, labels: Array, loss: Any) -> tuple[float, Array]:
    kind = "double" if x.dtype == np.float64 else "float"
    session = gradcut.TrainingSession(gradcut.compile(shifted(*x.shape, kind=kind), loss, train=["w"]), threads=1)
    feeds = {"x": x, "labels": labels}
    value = session.evaluate(feeds).loss
    np.testing.assert_allclose(session.step(feeds, lr=0.0).loss, value, rtol=1e-6)
    return value, session.gradients(feeds)["w"]


def theirs(x: Array, labels: Array, loss: Torch) -> tuple[float, Array]:
    scores = torch.from_numpy(x.copy()).requires_grad_()
    value = loss(scores, torch.from_numpy(labels))
    value.backward()
    assert scores.grad is not None
    return value.item(), scores.grad.numpy()


def agree(x: Array, labels: Array, spec: Any, loss: Torch, rtol: float = 2e-5) -> None:
    value, gradient = ours(x, labels, spec)
    expected, slope = theirs(x, labels, loss)
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6, err_msg=f"seed {SEED}")
    np.testing.assert_allclose(gradient, slope, rtol=rtol, atol=2e-7 * max(1.0, float(np.abs(slope).max())))


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(SEED).normal(size=shape).astype(dtype) * 2


def classes(*shape: int, count: int) -> Array:
    return np.random.default_rng(SEED + 1).integers(0, count, shape)


def other(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(SEED + 2).normal(size=shape).astype(dtype) * 2


def probabilities(*shape: int) -> Array:
    return F.softmax(torch.from_numpy(other(*shape)), -1).numpy()


def log_probabilities(*shape: int) -> Array:
    return F.log_softmax(torch.from_numpy(normal(*shape)), -1).numpy()


# --- class numbers -------------------------------------------------------------------------------------------

WEIGHT = [1.0, 2.0, 0.5, 0.0]
REDUCTIONS = ["mean", "sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((3, 4, 5), 1), ((3, 5, 4), 2), ((2, 3, 4, 5), 2)])
def test_cross_entropy(shape: tuple[int, ...], axis: int, weighted: bool, smoothing: float, reduction: str) -> None:
    x, labels = normal(*shape), classes(*(d for i, d in enumerate(shape) if i != axis), count=4)
    labels.flat[0] = -100
    weight = torch.tensor(WEIGHT) if weighted else None
    spec = losses.CrossEntropy(
        axis=axis, weight=WEIGHT if weighted else (), label_smoothing=smoothing, reduction=reduction
    )
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    agree(x, labels, spec, lambda s, y: F.cross_entropy(s.movedim(axis, 1), y, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((3, 4, 5), 1), ((3, 5, 4), 2), ((2, 3, 4, 5), 2)])
def test_nll(shape: tuple[int, ...], axis: int, weighted: bool, reduction: str) -> None:
    x, labels = normal(*shape), classes(*(d for i, d in enumerate(shape) if i != axis), count=4)
    labels.flat[1] = 2
    spec = f"nll:axis={axis},ignore_index=2,reduction={reduction}" + (",weight=[1 2 0.5 0]" if weighted else "")
    options = {"weight": torch.tensor(WEIGHT) if weighted else None, "ignore_index": 2, "reduction": reduction}
    agree(x, labels, spec, lambda s, y: F.nll_loss(s.movedim(axis, 1).contiguous(), y, **options))


@pytest.mark.parametrize("loss", ["cross_entropy", "nll"])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_labels_ignored(loss: str, weighted: bool) -> None:
    """The mean over nothing is NaN, as torch's, and refused by a step; the sum is 0; no gradient is NaN."""
    x, labels = normal(3, 4), np.full(3, -100)
    weight = ",weight=[1 2 0.5 0]" if weighted else ""
    session = gradcut.TrainingSession(gradcut.compile(shifted(3, 4), f"{loss}:reduction=mean{weight}", train=["w"]))
    feeds = {"x": x, "labels": labels}
    assert np.isnan(session.evaluate(feeds).loss)
    with pytest.raises(gradcut.errors.NotFiniteError, match="every label is -100, the ignore_index"):
        session.step(feeds)
    assert not session.gradients(feeds)["w"].any()
    value, gradient = ours(x, labels, f"{loss}:reduction=sum{weight}")
    assert value == 0 and not gradient.any()


def test_labels_whose_classes_weigh_nothing_have_no_gradient() -> None:
    session = gradcut.TrainingSession(
        gradcut.compile(shifted(3, 4), "cross_entropy:weight=[1 2 0.5 0]", train=["w"]), threads=1
    )
    feeds = {"x": normal(3, 4), "labels": np.full(3, 3)}
    assert np.isnan(session.evaluate(feeds).loss)
    assert not session.gradients(feeds)["w"].any()
    with pytest.raises(NotFiniteError, match="labels whose classes all weigh 0 has no value"):
        session.step(feeds)


@pytest.mark.parametrize("options", ["", "weight=[1 2 0.5 0.1]", "reduction=sum"])
def test_cross_entropy_where_a_class_is_masked_out(options: str) -> None:
    """-inf at classes that are not the label: torch gives numbers, and so must this."""
    x, labels = normal(5, 4), np.array([0, 1, 0, 1, 0])
    x[:, 2] = -np.inf
    keywords: dict[str, Any] = {"reduction": "sum"} if "sum" in options else {}
    if "weight" in options:
        keywords["weight"] = torch.tensor([1, 2, 0.5, 0.1])
    agree(
        x,
        labels,
        f"cross_entropy:{options}" if options else "cross_entropy",
        lambda s, y: F.cross_entropy(s, y, **keywords),
    )


# --- elementwise ---------------------------------------------------------------------------------------------

ELEMENTWISE: list[tuple[str, Torch]] = [
    ("mse", F.mse_loss),
    ("mse:reduction=sum", lambda s, y: F.mse_loss(s, y, reduction="sum")),
    ("l1", F.l1_loss),
    ("l1:reduction=sum", lambda s, y: F.l1_loss(s, y, reduction="sum")),
    ("huber", F.huber_loss),
    ("huber:delta=0.3,reduction=sum", lambda s, y: F.huber_loss(s, y, delta=0.3, reduction="sum")),
    ("smooth_l1", F.smooth_l1_loss),
    ("smooth_l1:beta=0.3,reduction=sum", lambda s, y: F.smooth_l1_loss(s, y, beta=0.3, reduction="sum")),
    ("smooth_l1:beta=0", lambda s, y: F.smooth_l1_loss(s, y, beta=0.0)),
]


@pytest.mark.parametrize(("spec", "loss"), ELEMENTWISE)
@pytest.mark.parametrize("shape", [(5, 4), (6,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regression(spec: str, loss: Torch, shape: tuple[int, ...], dtype: Any) -> None:
    x, y = normal(*shape, dtype=dtype), other(*shape, dtype=dtype)
    x.flat[0] = y.flat[0]
    x.flat[1], y.flat[1] = 1.5, 0.5  # where huber's two sides meet
    agree(x, y, spec, loss)


@pytest.mark.parametrize(("spec", "loss"), ELEMENTWISE[2:])
def test_regression_far_off(spec: str, loss: Torch) -> None:
    x, y = normal(3, 4) * np.float32(1e30), other(3, 4)
    agree(x, y, spec, loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ("", {}),
        ("reduction=sum", {"reduction": "sum"}),
        ("pos_weight=3", {"pos_weight": 3.0}),
        ("pos_weight=[1 2 0.5 4]", {"pos_weight": [1, 2, 0.5, 4]}),
        ("weight=[1 2 0.5 0]", {"weight": [1, 2, 0.5, 0]}),
        (
            "weight=[1 2 0.5 0],pos_weight=[3 3 3 1],reduction=sum",
            {"weight": [1, 2, 0.5, 0], "pos_weight": [3, 3, 3, 1], "reduction": "sum"},
        ),
    ],
)
def test_bce_with_logits(options: str, keywords: dict[str, Any], dtype: Any) -> None:
    x = normal(6, 4, dtype=dtype)
    x[0] = [0.0, 1e4, -1e4, 100.0]
    x[1] = [0.0, -1e4, 1e4, -100.0]
    y = np.random.default_rng(SEED).uniform(size=(6, 4)).astype(dtype)
    y[0], y[1] = 1.0, 0.0
    given = {
        k: torch.tensor(v, dtype=torch.from_numpy(x).dtype) if k != "reduction" else v for k, v in keywords.items()
    }
    spec = "bce_with_logits" + (f":{options}" if options else "")
    agree(x, y, spec, lambda s, t: F.binary_cross_entropy_with_logits(s, t, **given))


def test_bce_with_logits_along_the_channels() -> None:
    x, y = normal(2, 3, 4), (other(2, 3, 4) > 0).astype(np.float32)
    weight = torch.tensor([1.0, 2.0, 0.5])[:, None]
    agree(
        x,
        y,
        losses.BCEWithLogits(pos_weight=[1, 2, 0.5], axis=1),
        lambda s, t: F.binary_cross_entropy_with_logits(s, t, pos_weight=weight),
    )


# --- distributions and directions ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_kl_div(shape: tuple[int, ...], log_target: bool, reduction: str) -> None:
    x, y = log_probabilities(*shape), probabilities(*shape)
    y[0, 0] = 0.0
    y = np.log(y + 1e-3) if log_target else y
    options = {"log_target": log_target, "reduction": reduction}
    agree(x, y, losses.KLDiv(**options), lambda s, t: F.kl_div(s, t, **options))


def test_kl_div_of_classes_that_neither_side_has() -> None:
    """0 log(0 / 0) is 0: torch gives NaN for the value, and the same gradient."""
    x, y = log_probabilities(3, 4), probabilities(3, 4)
    x[:, 1], y[:, 1] = -np.inf, 0.0
    value, gradient = ours(x, y, "kl_div:reduction=sum")
    kept = [0, 2, 3]
    expected, slope = theirs(x[:, kept], y[:, kept], lambda s, t: F.kl_div(s, t, reduction="sum"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, kept], slope, rtol=1e-5)
    assert not gradient[:, 1].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "axis"), [((5, 4), -1), ((5, 4), 0), ((2, 3, 4), 1), ((4,), 0)])
def test_cosine(shape: tuple[int, ...], axis: int, reduction: str) -> None:
    def loss(s: Tensor, y: Tensor) -> Tensor:
        each = 1 - F.cosine_similarity(s, y, dim=axis)
        return each.mean() if reduction == "mean" else each.sum()

    agree(normal(*shape), other(*shape), losses.Cosine(axis=axis, reduction=reduction), loss)


def test_cosine_is_torchs_embedding_loss_of_equal_pairs() -> None:
    x, y = normal(5, 4), other(5, 4)
    agree(x, y, "cosine", lambda s, t: F.cosine_embedding_loss(s, t, torch.ones(5)), rtol=1e-4)


@pytest.mark.parametrize("zero", ["output", "labels", "both"])
def test_cosine_of_zero_vectors(zero: str) -> None:
    x, y = normal(3, 4), other(3, 4)
    if zero != "labels":
        x[1] = 0
    if zero != "output":
        y[1] = 0
    agree(x, y, "cosine", lambda s, t: (1 - F.cosine_similarity(s, t, dim=-1)).mean())


# --- text and instances --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        losses.CrossEntropy(weight=np.array([1, 2, 0.5]), label_smoothing=0.1, axis=1, output="y", labels="t"),
        losses.NLL(ignore_index=0, reduction="sum"),
        losses.BCEWithLogits(pos_weight=3, weight=[1, 0.25]),
        losses.Huber(delta=0.1),
        losses.SmoothL1(beta=0),
        losses.KLDiv(log_target=True, reduction="batchmean"),
        losses.Cosine(axis=1, eps=1e-6),
        losses.MSE(),
        losses.L1(output="42"),
    ],
)
def test_a_loss_reads_its_own_text(loss: losses.Loss) -> None:
    assert parse_loss(loss.spec()) == loss


def test_every_loss_is_public_and_says_where_it_comes_from() -> None:
    for cls in LOSSES.values():
        assert getattr(losses, cls.__name__) is cls
        assert "torch.nn" in (cls.__doc__ or "")


def test_options_of_numpys_types_make_the_same_text() -> None:
    loss = losses.CrossEntropy(axis=np.int64(1), label_smoothing=np.float32(0.5), weight=np.ones(2, np.float16))
    assert loss.spec() == "cross_entropy:axis=1,weight=[1.0 1.0],label_smoothing=0.5"


def test_weights_of_many_classes() -> None:
    """Longer than a file name may be."""
    weight = np.random.default_rng(SEED).uniform(size=400)
    x, labels = normal(3, 400), classes(3, count=400)
    weights = torch.from_numpy(weight.astype(np.float32))
    agree(x, labels, losses.CrossEntropy(weight=weight), lambda s, y: F.cross_entropy(s, y, weight=weights))


def test_weights_take_commas_too() -> None:
    assert parse_loss("cross_entropy:weight=[1, 2,0.5],axis=1") == losses.CrossEntropy(weight=[1, 2, 0.5], axis=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_loss("mse:reduction=none"),
         "mse: reduction=none gives no objective, which is a scalar; it is mean or sum "
         "(gradcut.vjp takes a cotangent for every element instead)"),
        (lambda: parse_loss("cross_entropy:reduction=batchmean"),
         "cross_entropy: reduction is mean or sum, not 'batchmean'"),
        (lambda: losses.KLDiv(reduction="avg"), "kl_div: reduction is mean or sum or batchmean, not 'avg'"),
        (lambda: parse_loss("cross_entropy:weight=[1 two]"),
         "cross_entropy: weight is a list of numbers such as [1 2 0.5], not '[1 two]'"),
        (lambda: parse_loss("cross_entropy:weight=[]"),
         "cross_entropy: weight is a list of numbers such as [1 2 0.5], not '[]'"),
        (lambda: losses.CrossEntropy(weight=["a"]),
         "cross_entropy: weight is a list of numbers such as [1 2 0.5], not ['a']"),
        (lambda: losses.CrossEntropy(weight=[1, -2]),
         "cross_entropy: weight holds -2; weights are finite and at least 0"),
        (lambda: parse_loss("nll:weight=[nan 1]"), "nll: weight holds nan; weights are finite and at least 0"),
        (lambda: parse_loss("huber:delta=0"), "huber: delta is 0; it is above 0"),
        (lambda: parse_loss("smooth_l1:beta=-1"), "smooth_l1: beta is -1; it is at least 0"),
        (lambda: parse_loss("cosine:eps=0"), "cosine: eps is 0; it is above 0"),
        (lambda: parse_loss("kl_div:log_target=1"), "kl_div: log_target is bool, not 1"),
        (lambda: losses.CrossEntropy(axis="1"), "cross_entropy: axis is int, not '1'"),
        (lambda: losses.Huber(delta=None), "huber: delta is float, not None"),
        (lambda: parse_loss("huber:delta=big"), "huber: delta is float, not 'big'"),
    ],
)  # fmt: skip
def test_what_an_option_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((LossError, SpecError)) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((3, 4), "cross_entropy:weight=[1 2 0.5]",
         "cross_entropy: weight has 3 numbers, and 'y' is 4 along axis 1; give one each"),
        ((3, 4), "nll:weight=[1 2 0.5]", "nll: weight has 3 numbers, and 'y' is 4 along axis 1; give one each"),
        ((3, 4), "bce_with_logits:pos_weight=[1 2 0.5]",
         "bce_with_logits: pos_weight has 3 numbers, and 'y' is 4 along axis 1; give one each"),
        ((3, 4), "bce_with_logits:pos_weight=[1 2 0.5],axis=2",
         "bce_with_logits: axis=2 is no axis of 'y' (rank 2)"),
        ((3, 4), "cosine:axis=2", "cosine: axis=2 is no axis of 'y' (rank 2)"),
        ((3, 4, 2), "nll",
         "nll: 'y' has rank 3, so the class axis must be said: axis=1 as torch has it, axis=-1 for a language model"),
        ((3,), "nll", "nll: 'y' has rank 1; log-probabilities are [batch, classes, ...]"),
        ((3, 4), "mse:output=x_", "mse: the model has no value 'x_'. Nearest: x."),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_output(shape: tuple[int, ...], spec: str, message: str) -> None:
    with pytest.raises(LossError) as error:
        gradcut.compile(shifted(*shape), spec, train=["w"])
    assert str(error.value) == message


def ending_in(operator: str) -> onnx.ModelProto:
    return text(f"""
    g (float[n, 4] x) => (float[n, 4] p) <float[4] w = {{1.0, 1.0, 1.0, 1.0}}>
    {{
        z = Mul (x, w)
        [last] p = {operator} (z)
    }}""")


@pytest.mark.parametrize("loss", ["nll", "kl_div"])
@pytest.mark.parametrize(("operator", "instead"), [("Softmax", "cross_entropy"), ("Sigmoid", "bce_with_logits")])
def test_probabilities_where_their_logarithms_are_expected(loss: str, operator: str, instead: str) -> None:
    with pytest.raises(LossError) as error:
        gradcut.compile(ending_in(operator), loss)
    assert str(error.value) == (
        f"{loss} takes log-probabilities, and 'p' comes from {operator} (last); export the model with LogSoftmax, or "
        f"take --loss {instead}:output=z"
    )
    assert gradcut.compile(ending_in("LogSoftmax"), loss).trainable == ("w",)


def test_bce_wants_logits() -> None:
    with pytest.raises(LossError) as error:
        gradcut.compile(ending_in("Sigmoid"), "bce_with_logits")
    assert str(error.value) == (
        "bce_with_logits takes logits, and 'p' comes from Sigmoid (last); take what goes into it: "
        "--loss bce_with_logits:output=z"
    )


def test_cross_entropy_of_log_probabilities_is_the_same() -> None:
    x, labels = normal(5, 4), classes(5, count=4)
    session = gradcut.TrainingSession(gradcut.compile(ending_in("LogSoftmax"), "cross_entropy"), threads=1)
    value = session.evaluate({"x": x, "labels": labels}).loss
    assert value == pytest.approx(F.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels)).item(), rel=1e-5)


def test_labels_never_broadcast() -> None:
    """Where the file does not tie the output's size to an input's, the graph itself refuses what would broadcast."""
    model = text("""
    g (float[a, 4] x) => (float[b, c] y) <float[1] w = {1.0}>
    {
        places = NonZero (x)
        real = Cast <to = 1> (places)
        y = Mul (real, w)
    }""")
    session = gradcut.TrainingSession(gradcut.compile(model, "mse", train=["w"]), threads=1)
    x = np.ones((1, 4), np.float32)
    assert session.evaluate({"x": x, "labels": np.zeros((2, 4), np.float32)}).loss == pytest.approx(14 / 8)
    with pytest.raises(Exception, match=r"(?i)reshape"):
        session.evaluate({"x": x, "labels": np.zeros((2, 1), np.float32)})


# --- feeds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "nll:weight=[1 2 3 4]"])
def test_labels_as_floats_or_beyond_the_classes(loss: str) -> None:
    session = gradcut.TrainingSession(gradcut.compile(shifted(3, 4), loss, train=["w"]), threads=1)
    x = normal(3, 4)
    with pytest.raises(FeedError) as error:
        session.step({"x": x, "labels": np.array([0.0, 1.0, 2.0], np.float32)})
    assert str(error.value) == "feed 'labels' is float32; the graph takes int64: use .astype('int64')"
    with pytest.raises(FeedError) as error:
        session.step({"x": x, "labels": np.array([0, 1, 4])})
    assert str(error.value) == "feed 'labels' holds label 4 at row 2; the model has 4 classes, 0 to 3"
    assert session.steps == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_one_hot_rows_are_no_class_numbers(dtype: type) -> None:
    session = gradcut.TrainingSession(gradcut.compile(shifted(3, 4), "cross_entropy", train=["w"]), threads=1)
    with pytest.raises(FeedError) as error:
        session.step({"x": normal(3, 4), "labels": np.eye(3, 4, dtype=dtype)})
    assert str(error.value) == (
        "feed 'labels' has shape [3, 4]; cross_entropy takes class numbers, one for each row of 4: "
        "of one-hot rows use .argmax(1)"
    )
