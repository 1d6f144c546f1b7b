"""The gradient checker: what it holds still, where it runs, what it reports, and the feeds it makes up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import gradcut
from gradcut.errors import FeedError, GradientCheckError, NoGradientError, SpecError
from gradcut.runtime import differences
from gradcut.runtime.budget import spread
from gradcut.runtime.check import CheckReport, ValueCheck, check_gradients, require
from gradcut.runtime.random_feeds import random_feeds
from gradcut.runtime.widen import Run, reference
from models import zoo


def model(body: str, inputs: str = "float[2,3] x", outputs: str = "float[2,3] y") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}')


def test_report_reads_like_this() -> None:
    value = ValueCheck("x", 1.0, 1.5, 0.001, ok=False, note="a kink")
    report = CheckReport((value,), ("y",), 0, 3, "float64 in onnxruntime", "onnxruntime", ("slow",))
    assert str(report).splitlines() == [
        "gradients of y; seed 0, 3 directions",
        "differences: float64 in onnxruntime; backward: onnxruntime",
        "note: slow",
        "FAIL x: analytic +1.000000e+00  numeric +1.500000e+00  error 5.0e-01 (tolerance 1.0e-03), a kink",
    ]
    assert not report.ok and report.failed == (value,)
    with pytest.raises(GradientCheckError, match=r"^1 of 1 gradients are wrong\n"):
        require(report)


def test_same_seed_gives_the_same_report_and_another_another() -> None:
    proto = model("y = Tanh(x)")
    assert str(check_gradients(proto, seed=1)) == str(check_gradients(proto, seed=1))
    assert check_gradients(proto, seed=1).values != check_gradients(proto, seed=2).values


def test_every_parameter_and_float_input_is_checked_by_default() -> None:
    report = require(check_gradients(zoo.MODELS / "digits.onnx", directions=1))
    assert {value.name for value in report.values} == {
        "image", *(f"encoder.conv{i}.weight" for i in (1, 2, 3)), *(f"encoder.bn{i}.weight" for i in (1, 2, 3)),
        *(f"encoder.bn{i}.bias" for i in (1, 2, 3)), "head.weight", "head.bias",
    }  # fmt: skip


def test_weights_that_lie_beside_the_model_are_read_from_there(tmp_path: Path) -> None:
    """As torch.onnx.export writes them."""
    proto = model("y = MatMul(x, w)", "float[2,16] x", "float[2,16] y")
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(16, dtype=np.float32), "w"))
    inside, path = check_gradients(proto), tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert require(check_gradients(path)).values == require(inside).values


def test_a_model_without_floats_on_either_side_is_refused_in_words() -> None:
    with pytest.raises(SpecError, match=r"no float output to take gradients of: 'y' \(INT64\)"):
        check_gradients(model("y = Cast<to = 7>(x)", outputs="int64[2,3] y"))
    with pytest.raises(SpecError, match="no parameter and no float input; name values"):
        check_gradients(model("y = Cast<to = 1>(x)", inputs="int64[2,3] x"))


def test_inner_values_and_outputs_can_be_asked_for() -> None:
    proto = model("h = Tanh(x) k = Mul(h, x) y = Exp(k)")
    require(check_gradients(proto, wrt=["h", "k", "x", "y"], of=["y", "k"]))


def test_marked_values_are_held_still() -> None:
    proto = model("s = Mul(x, x) y = Mul(s, x)")
    feeds = {"x": np.full((2, 3), 3.0, np.float32)}
    free = require(check_gradients(proto, feeds, ["x"], directions=1)).values[0]
    held = require(check_gradients(proto, feeds, ["x"], directions=1, stop_at="s")).values[0]
    assert free.numeric == pytest.approx(27.0 / 9.0 * held.numeric)
    marked = gradcut.stop_gradient(proto, "s")
    assert require(check_gradients(marked, feeds, ["x"], directions=1)).values == (held,)


def test_what_was_drawn_is_drawn_once() -> None:
    body = """ratio = Constant<value = float {0.5}>() train = Constant<value = bool {1}>()
        noise = RandomNormalLike(x) z = Mul(noise, x) y = Dropout(z, ratio, train)"""
    require(check_gradients(model(body)))


def test_gradient_at_a_kink_may_be_either_side_or_between() -> None:
    proto = model("y = Abs(x)")
    report = require(check_gradients(proto, {"x": np.zeros((2, 3), np.float32)}))
    assert report.values[0].note.startswith("a kink: slopes -")


def test_float32_is_taken_where_nothing_runs_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(proto: onnx.ModelProto) -> Run:
        raise NotImplementedError("it has no such operator")

    (name, kind, _, step), *others = differences._PLACES
    monkeypatch.setattr(differences, "_PLACES", ((name, kind, without, step), *others))
    weights = "float[4,3,2] w"
    proto = model("y = ConvTranspose<group = 2>(x, w)", f"float[1,4,3] x, {weights}", "float[1,6,4] y")
    report = require(check_gradients(proto, wrt=["x", "w"]))
    assert report.forward == "float32 in onnxruntime"
    assert len(report.notes) == 2


def test_a_model_that_rounds_coarsely_gets_a_wide_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(proto: onnx.ModelProto) -> Run:
        run = reference(proto)
        return lambda feeds: [output.astype(np.float32).astype(np.float64) for output in run(feeds)]

    monkeypatch.setattr(differences, "_PLACES", (("float64 rounded", ir.DataType.DOUBLE, rounded, 1e-5),))
    report = require(check_gradients(model("h = Sin(x) y = Exp(h)")))
    assert report.values[0].note == "the model rounds coarsely here"


def test_backward_in_float64_is_held_to_float64() -> None:
    report = require(check_gradients(model("h = Gelu(x) y = Softmax(h)"), backward="reference"))
    assert report.backward == "float64 in onnx's reference evaluator"
    assert report.values[0].tolerance < 1e-4


def test_what_vjp_refuses_is_refused() -> None:
    with pytest.raises(NoGradientError):
        check_gradients(
            onnx.parser.parse_model(
                '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[2] x) => (float[2] y) { y = own.Own(x) }'
            )
        )


# --- feeds ---------------------------------------------------------------------------------------------------


def feeds(body: str, inputs: str, outputs: str, **sizes: int) -> dict[str, np.ndarray]:
    return random_feeds(ir.from_proto(model(body, inputs, outputs)), seed=0, sizes=sizes)


def test_symbols_get_a_small_number_or_the_one_given() -> None:
    made = feeds("y = Add(a, b)", "float[n,3] a, float16[m] c, float[n,3] b", "float[n,3] y", n=5)
    assert {name: (array.shape, str(array.dtype)) for name, array in made.items()} == {
        "a": ((5, 3), "float32"),
        "c": ((2,), "float16"),
        "b": ((5, 3), "float32"),
    }


def test_indices_stay_in_the_smallest_table_they_reach() -> None:
    body = """t = Cast<to = 7>(i) y = Gather(w, t) axes = Constant<value = int64[1] {0}>()
        u = Unsqueeze(i, axes) z = Gather<axis = 1>(w, u)"""
    made = feeds(body, "float[50,3] w, int32[40] i", "float[40,3] y, float[50,1,40] z")
    assert made["i"].dtype == np.int32
    assert made["i"].min() >= 0 and made["i"].max() == 2


def test_labels_stay_below_the_number_of_classes() -> None:
    made = feeds("y = SoftmaxCrossEntropyLoss(s, l)", "float[30,4] s, int64[30] l", "float y")
    assert set(made["l"]) == {0, 1, 2, 3}


def test_a_mask_is_ones_and_booleans_are_drawn() -> None:
    made = feeds("f = Cast<to = 1>(mask) y = Where(c, f, f)", "int64[2,5] mask, bool[2,5] c", "float[2,5] y")
    assert (made["mask"] == 1).all() and made["c"].dtype == np.bool_


@pytest.mark.parametrize(("kind", "why"), [("float", "has no known shape"), ("string[2]", "is STRING")])
def test_inputs_that_cannot_be_made_up_are_named(kind: str, why: str) -> None:
    proto = model("y = Identity(x)", "float[2] x", "float[2] y")
    loaded = ir.from_proto(proto)
    if kind == "float":
        loaded.graph.inputs[0].shape = None
    else:
        loaded.graph.inputs[0].type = ir.TensorType(ir.DataType.STRING)
    with pytest.raises(FeedError, match=f"input 'x' {why}; give the arrays to check with"):
        random_feeds(loaded)


def test_open_edges_of_images_are_long_enough_to_pool() -> None:
    made = feeds("y = Relu(x) z = Relu(m)", "float[n,3,h,w] x, float[h,4] m", "float[n,3,h,w] y, float[h,4] z", w=5)
    assert made["x"].shape == (2, 3, 64, 5) and made["m"].shape == (64, 4)


def test_a_one_hot_that_is_written_out_is_fed_its_classes() -> None:
    body = "classes = Constant<value = int32[4] {0, 1, 2, 3}>() e = Equal(i, classes) y = Cast<to = 1>(e)"
    made = feeds(body, "int32[40,1] i", "float[40,4] y")
    assert set(made["i"].reshape(-1)) == {0, 1, 2, 3}


def test_made_up_inputs_that_do_not_run() -> None:
    """Two open dimensions that must be as one multiple of the other."""
    proto = model("s = Constant<value = int64[2] {3, -1}>() y = Reshape(x, s)", "float[n,5] x", "float[3,m] y")
    with pytest.raises(
        FeedError, match=r"does not run on made-up inputs \(x \[2, 5\]\): .*; give real ones with --data"
    ):
        check_gradients(proto)
    with pytest.raises(FeedError, match=r"does not run on these inputs \(x \[4, 5\]\): [^;]*$"):
        check_gradients(proto, {"x": np.ones((4, 5), np.float32)})


def test_the_largest_of_a_sequence_in_float64() -> None:
    """onnx's reference evaluator takes GlobalMaxPool for one of images."""
    proto = model("y = GlobalMaxPool(x)", "float[2,3,7] x", "float[2,3,1] y")
    report = require(check_gradients(proto))
    assert report.forward.startswith("float64 in onnx's reference evaluator")


def test_a_budget_that_is_spent_leaves_values_unseen() -> None:
    """One is looked at in any case; what is left is named, and judged together."""
    proto = model("y = Tanh(x)", "float[2,3] x, float[2,3] w, float[2,3] v", "float[2,3] y")
    report = require(check_gradients(proto, seconds=0.0))
    assert [value.name for value in report.values] == ["x"] and report.unseen == ("w", "v")
    assert "note: no time was left for w, v but together" in str(report).splitlines()
    assert report.together is not None and report.together.name == "2 others together"
    assert check_gradients(proto, seconds=600.0).unseen == check_gradients(proto).unseen == ()


@pytest.mark.parametrize("count", range(1, 20))
def test_every_beginning_of_the_order_is_spread_over_the_values(count: int) -> None:
    order = spread([str(i) for i in range(count)])
    assert sorted(order, key=int) == [str(i) for i in range(count)]
    for taken in range(1, count + 1):
        places = sorted(map(int, order[:taken]))
        gaps = [b - a for a, b in zip([*places], [*places[1:], count], strict=True)]
        assert max(gaps) <= 2 ** (count - 1).bit_length() / 2 ** (taken.bit_length() - 1)
