"""`gradient_mask`: what is kept equals torch's gradient times the mask, and what is not is not computed."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.cost import flops, is_backward
from gradcut.errors import PatternError, SpecError
from gradcut.passes import verify
from gradcut.runtime.check import check_gradients
from tests.relatives.subjects import DTYPES, by_torch, check, feeds, gradients, net, operators
from tests.written import parse, session

LAST3 = [False, True, True, True]
MASKS = {
    "neighbours": (LAST3, 0),
    "others": ([True, False, True, True], 0),
    "channels": (LAST3, None),
    "a product": (np.outer([1, 0, 1, 1, 0], [0, 1, 1, 0]), None),
    "no product": (np.random.default_rng(5).random((5, 4)) < 0.4, None),
    "one element": (np.eye(5, 4)[::-1] * np.eye(5, 4, 1) + (np.arange(20).reshape(5, 4) == 7), None),
    "a row": (np.array([[True, False, False, True]]), None),
}
NET5 = """g ({d}[5, 3] x, {d}[3, 4] w, {d}[4, 2] v) => ({d}[5, 2] y) {{
    h = MatMul (x, w)  t = Tanh (h)  p = MatMul (t, v)  y = Sin (p) }}"""


def net5(dtype: str = "float") -> onnx.ModelProto:
    return parse(NET5.format(d=dtype))


@pytest.mark.parametrize(("name", "dtype"), itertools.product(MASKS, DTYPES))
def test_the_gradient_is_torchs_times_the_mask(name: str, dtype: str) -> None:
    mask, axis = MASKS[name]
    if axis == 0:
        mask = [*mask, True]  # type: ignore[misc]
    model = gradcut.gradient_mask(net5(dtype), "t", mask, axis)
    verify(model, "gradient_mask")
    array = np.asarray(mask, np.float64)
    laid = torch.tensor(array[:, None] if axis == 0 else array)
    check(gradients(model, feeds(dtype)), by_torch(feeds(dtype), lambda g: g * laid))


@pytest.mark.parametrize("name", MASKS)
def test_each_body_of_the_dialect_gives_what_is_lowered(name: str) -> None:
    mask, axis = MASKS[name]
    model = gradcut.gradient_mask(net5(), "t", [*mask, True] if axis == 0 else mask, axis)  # type: ignore[misc]
    plain = gradcut.Pipeline.parse("import,propagate{of=y wrt=[x,w]},differentiate,simplify")(model.clone()).model
    verify(plain, "simplify")
    assert any(node.op_type == "TakeKept" for node in plain.graph)
    for one, other in zip(
        session(ir.to_proto(plain)).run(None, feeds())[1:], gradients(model, feeds(), ("x", "w")), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


# --- what is not computed --------------------------------------------------------------------------------------------


def backward_flops(model: ir.Model, wrt: list[str], lowered: bool = True) -> Counter[str]:
    """FLOPs of the backward products, by operator."""
    text = f"import,propagate{{of=y wrt=[{','.join(wrt)}]}},differentiate,fold{{floats=false}},simplify"
    work = gradcut.Pipeline.parse(text + (",lower" if lowered else ""))(model.clone()).model
    found: Counter[str] = Counter()
    for node in work.graph:
        if is_backward(node):
            found[node.op_type] += flops(node)
    return Counter({op: n for op, n in found.items() if op in ("MatMul", "Gemm", "Conv", "ConvTranspose")})


GEMM = """g (float[8, 6] x) => (float[8, 4] y) { y = Gemm <{flags}> (x, w, b) }"""


def with_weights(text: str, **shapes: tuple[int, ...]) -> ir.Model:
    rng = np.random.default_rng(0)
    signature = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    head, _, tail = text.partition(") =>")
    model = parse(f"{head}, {signature}) =>{tail}")
    for _ in shapes:
        name = model.graph.input.pop().name
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shapes[name]).astype("f4"), name)
        )
    return ir.from_proto(model)


def compare(model: ir.Model, wrt: str, mask: np.ndarray, masked: ir.Model, x: np.ndarray) -> None:
    """The masked gradient is the whole one times the mask."""
    y = session(ir.to_proto(model)).run(None, {"x": x})[0]
    given = {"x": x, "y_grad": np.random.default_rng(2).standard_normal(y.shape).astype("f4")}
    whole, part = (session(gradcut.vjp(one, [wrt], ["y"])).run(None, given)[1] for one in (model, masked))
    np.testing.assert_allclose(part, whole * mask, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("trans", "rows"), itertools.product((0, 1), (True, False)))
def test_a_gemm_computes_what_is_kept(trans: int, rows: bool) -> None:
    """dW = X^T dY is 2 * 8 * in * out; of the mask's 3 of 6 inputs, or 1 of 4 outputs, only those."""
    shape = (4, 6) if trans else (6, 4)
    model = with_weights(GEMM.replace("{flags}", f"transB = {trans}"), w=shape, b=(4,))
    axis = (0 if rows else 1) if not trans else (1 if rows else 0)
    mask = np.isin(np.arange(shape[axis]), (1, 2, 5) if rows else (3,))
    masked = gradcut.gradient_mask(model.clone(), "w", mask, axis)
    assert sum(backward_flops(model, ["w"]).values()) == 2 * 8 * 6 * 4
    assert sum(backward_flops(masked, ["w"]).values()) == (2 * 8 * 3 * 4 if rows else 2 * 8 * 6 * 1)
    laid = mask[:, None] if axis == 0 else mask[None]
    compare(model, "w", laid, masked, np.random.default_rng(1).standard_normal((8, 6)).astype("f4"))


def test_a_mat_mul_of_batches_and_a_product_of_rows_and_columns() -> None:
    text = "g (float[2, 8, 6] x) => (float[2, 8, 4] y) { y = MatMul (x, w) }"
    model = with_weights(text, w=(6, 4))
    mask = np.outer([1, 0, 1, 0, 0, 0], [0, 1, 1, 0]).astype(bool)
    masked = gradcut.gradient_mask(model.clone(), "w", mask)
    for one, expected in ((model, (6, 4)), (masked, (2, 2))):
        proto = onnx.shape_inference.infer_shapes(gradcut.vjp(one, ["w"], ["y"]), data_prop=True)
        shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in proto.graph.value_info}
        shapes |= {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in proto.graph.output}
        (product,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
        assert shapes[product.output[0]] == expected
    compare(model, "w", mask, masked, np.random.default_rng(1).standard_normal((2, 8, 6)).astype("f4"))


CONV = "g (float[2, 4, 5, 5] x) => (float[2, 6, 5, 5] y) { y = Conv <pads = [1, 1, 1, 1], group = {group}> (x, w) }"


@pytest.mark.parametrize(("axis", "kept"), [(0, (1, 2)), (0, (0, 3, 5)), (1, (2,)), (1, (0, 3))])
def test_a_convolution_computes_the_channels_that_are_kept(axis: int, kept: tuple[int, ...]) -> None:
    """dW is 2 * batch * 25 positions * 9 taps for each pair of an output and an input channel."""
    model = with_weights(CONV.replace("{group}", "1"), w=(6, 4, 3, 3))
    mask = np.isin(np.arange((6, 4)[axis]), kept)
    masked = gradcut.gradient_mask(model.clone(), "w", mask, axis)
    pairs = len(kept) * (4, 6)[axis]
    adjoint = weight_grad(masked)
    assert flops(adjoint) * 24 == flops(weight_grad(model)) * pairs
    assert flops(weight_grad(model)) == 2 * 2 * 25 * 9 * 24
    laid = mask.reshape([-1 if at == axis else 1 for at in range(4)])
    compare(model, "w", laid, masked, np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype("f4"))


def weight_grad(model: ir.Model) -> ir.Node:
    text = "import,propagate{of=y wrt=w},differentiate,fold{floats=false},simplify"
    work = gradcut.Pipeline.parse(text)(model.clone()).model
    (adjoint,) = [node for node in work.graph if node.op_type == "ConvWeightGrad"]
    return adjoint


def test_a_depthwise_convolution_keeps_as_many_groups() -> None:
    text = CONV.replace("{group}", "4").replace("[2, 6, 5, 5] y", "[2, 4, 5, 5] y")
    model = with_weights(text, w=(4, 1, 3, 3))
    mask = np.array([True, False, False, True])
    masked = gradcut.gradient_mask(model.clone(), "w", mask)
    assert weight_grad(masked).attributes["group"].as_int() == 2
    assert flops(weight_grad(masked)) * 2 == flops(weight_grad(model))
    compare(
        model,
        "w",
        mask[:, None, None, None],
        masked,
        np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype("f4"),
    )


@pytest.mark.parametrize(("axis", "kept"), [(1, (0, 2)), (0, (1,))])
def test_the_gradient_of_an_image_is_taken_where_it_is_kept(axis: int, kept: tuple[int, ...]) -> None:
    model = with_weights(CONV.replace("{group}", "1"), w=(6, 4, 3, 3))
    mask = np.isin(np.arange((2, 4)[axis]), kept)
    masked = gradcut.gradient_mask(model.clone(), "x", mask, axis)
    whole, part = (sum(backward_flops(one, ["x"]).values()) for one in (model, masked))
    assert part * (2, 4)[axis] <= whole * len(kept) * 1.01 and part > 0
    laid = mask.reshape([-1 if at == axis else 1 for at in range(4)])
    compare(model, "x", laid, masked, np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype("f4"))


def test_a_bias_and_a_weight_share_what_is_taken() -> None:
    model = with_weights(CONV.replace("{group}", "1").replace("(x, w)", "(x, w, b)"), w=(6, 4, 3, 3), b=(6,))
    for name in ("w", "b"):
        gradcut.gradient_mask(model, name, [0, 1, 1, 0, 0, 0], 0)
    text = "import,propagate{of=y wrt=[w,b]},differentiate,fold{floats=false},simplify"
    work = gradcut.Pipeline.parse(text)(model).model
    assert Counter(node.op_type for node in work.graph)["TakeKept"] == 1


def test_a_table_that_is_looked_up_computes_the_columns_that_are_kept() -> None:
    text = "g (float[2] x, int64[3] i) => (float[3, 4] y) { y = Gather (w, i) }"
    model = with_weights(text, w=(5, 4))
    for mask, axis in ((np.array([1, 0, 0, 1, 1]), 0), (np.array([0, 1, 1, 0]), 1)):
        masked = gradcut.gradient_mask(model.clone(), "w", mask, axis)
        given = {"x": np.zeros(2, "f4"), "i": np.array([0, 1, 0]), "y_grad": np.arange(12, dtype="f4").reshape(3, 4)}
        whole, part = (session(gradcut.vjp(one, ["w"], ["y"])).run(None, given)[1] for one in (model, masked))
        np.testing.assert_array_equal(part, whole * (mask[:, None] if axis == 0 else mask))


def test_the_emitted_training_graph_has_hand_counted_nodes() -> None:
    """Gemm on one of four columns, a Slice of dY and a Pad: nothing else is put in."""
    text = "g (float[8, 6] x) => (float[8, 4] y) { y = MatMul (x, w) }"
    plain, masked = with_weights(text, w=(6, 4)), with_weights(text, w=(6, 4))
    gradcut.gradient_mask(masked, "w", [0, 1, 0, 0], 1)
    counts = []
    for model in (plain, masked):
        graph = gradcut.compile(model, loss="mse", train=["w"]).training_model
        counts.append(Counter(op for op in operators(graph)))
        products = [flops(node) for node in graph.graph if node.op_type in ("MatMul", "Gemm")]
        assert products == [2 * 8 * 6 * 4, 2 * 8 * 6 * (4 if model is plain else 1)]
    assert counts[1] - counts[0] == Counter({"Slice": 1, "Pad": 1}) and not counts[0] - counts[1]


# --- all, nothing, run time ------------------------------------------------------------------------------------------


def test_nothing_kept_is_the_mark_and_all_kept_is_nothing() -> None:
    text = onnx.printer.to_text
    stopped = gradcut.gradient_mask(net5(), "t", np.zeros((5, 4)))
    assert text(ir.to_proto(stopped)) == text(ir.to_proto(gradcut.stop_gradient(net5(), "t")))
    assert operators(gradcut.gradient_mask(net5(), "t", np.ones(4, int))) == ["MatMul", "Tanh", "MatMul", "Sin"]


def test_a_mask_of_nothing_in_a_file_is_a_mark() -> None:
    text = """g (float[2] x) => (float[2] y) { m = Constant <value = bool[2] {0, 0}> ()  s = Sqrt (x)
        h = gradcut.GradientMask (s, m)  y = Mul (h, x) }"""
    assert [edge.reason for edge in gradcut.analyze(parse(text), ["y"], ["x"]).cut] == ["mark"]


@pytest.mark.parametrize("axis", [None, 1, -2])
def test_a_mask_by_name_is_selected_in_each_run(axis: int | None) -> None:
    model = gradcut.gradient_mask(net(), "t", "kept", axis)
    verify(model, "gradient_mask")
    new = model.graph.inputs[-1]
    shape = {None: (5, 4), 1: (4,), -2: (5,)}[axis]
    assert (
        new.name == "kept" and new.dtype == ir.DataType.BOOL and new.shape is not None and len(new.shape) == len(shape)
    )
    proto = gradcut.vjp(model, ["x", "w", "v"], ["y"])
    for seed in range(3):
        mask = np.random.default_rng(seed).random(shape) < 0.5
        laid = torch.tensor(mask if axis != -2 else mask[:, None])
        actual = session(proto).run(None, {**feeds(), "kept": mask})[1:]
        check(actual, by_torch(feeds(), lambda g, m=laid: torch.where(m, g, torch.zeros_like(g))))


def test_a_nan_in_what_is_left_out_never_arrives() -> None:
    text = "g (float[3] x) => (float[3] y) { h = Neg (x)  y = Sqrt (h) }"
    for mask, more in ((np.array([True, False, True]), {}), ("m", {"m": np.array([True, False, True])})):
        proto = gradcut.vjp(gradcut.gradient_mask(parse(text), "h", mask), ["x"], ["y"])
        given = {"x": np.array([-1, 0, -4], "f4"), "y_grad": np.ones(3, "f4"), **more}
        np.testing.assert_array_equal(session(proto).run(["x_grad"], given)[0], [-0.5, 0, -0.25])


def test_a_second_derivative_is_masked_too() -> None:
    text = "g (double[3] x) => (double[3] y) { h = Sin (x)  y = Exp (h) }"
    mask = np.array([True, False, True])
    twice = gradcut.vjp(gradcut.vjp(gradcut.gradient_mask(parse(text), "h", mask), ["x"], ["y"]), ["x"], ["x_grad"])
    x, c, u = (np.random.default_rng(seed).standard_normal(3) for seed in range(3))
    t, m = torch.tensor(x, requires_grad=True), torch.tensor(mask)
    h = torch.sin(t)
    (first,) = torch.autograd.grad(torch.exp(torch.where(m, h, h.detach())), t, torch.tensor(c), create_graph=True)
    (second,) = torch.autograd.grad(first, t, torch.tensor(u))
    actual = session(twice).run(None, {"x": x, "y_grad": c, "x_grad_grad": u})
    np.testing.assert_allclose(actual[0], first.detach(), rtol=1e-12)
    np.testing.assert_allclose(actual[1], second, rtol=1e-12, atol=1e-14)


def test_in_the_body_of_a_loop() -> None:
    text = """g (int64 n, float[2] x) => (float[2] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = body (int64 i, bool go, float[2] a) => (bool still, float[2] b) {
        still = Identity (go)  s = Mul (a, a)  b = Sin (s) }> }"""
    proto = gradcut.vjp(gradcut.gradient_mask(parse(text), "s", "kept", 0), ["x"], ["y"])
    given = {
        "n": np.array(2),
        "x": np.array([0.5, 0.7], "f4"),
        "y_grad": np.ones(2, "f4"),
        "kept": np.array([True, False]),
    }
    t = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)
    torch.sin(torch.sin(t * t) ** 2).sum().backward()
    np.testing.assert_allclose(session(proto).run(["x_grad"], given)[0], t.grad.numpy() * [1, 0], rtol=1e-5)


def test_a_check_of_a_mask() -> None:
    report = check_gradients(gradcut.gradient_mask(net5("double"), "t", MASKS["no product"][0]))
    assert report.ok and all(value.decided for value in report.values), str(report)


@pytest.mark.parametrize("seed", range(20))
def test_random_masks_of_random_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = with_weights(
        """g (float[2, 3, 6, 6] x) => (float[2, 4] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)  p = GlobalAveragePool (r)  f = Flatten (p)
            q = Gemm <transB = 1> (f, u, d)  s = Softmax (q)  y = MatMul (s, v) }""",
        w=(5, 3, 3, 3), b=(5,), u=(4, 5), d=(4,), v=(4, 4),
    )  # fmt: skip
    shapes = {"x": (2, 3, 6, 6), "w": (5, 3, 3, 3), "b": (5,), "u": (4, 5), "d": (4,), "v": (4, 4)}
    for name, shape in shapes.items():
        mask = rng.random([size if rng.random() < 0.6 else 1 for size in shape]) < 0.6
        masked = gradcut.gradient_mask(model.clone(), name, mask)
        compare(model, name, mask, masked, rng.standard_normal((2, 3, 6, 6)).astype("f4"))


@pytest.mark.parametrize(
    ("at", "mask", "axis", "error", "message"),
    [
        ("nix", [1], None, PatternError, "'nix' matches no value"),
        (
            "h",
            [1, 0, 1],
            None,
            SpecError,
            r"a mask of shape \[1, 3\] does not fit 'h' \[n, 4\]: axis 1 is 4 long, and the mask's 3",
        ),
        ("h", np.ones((2, 4)), None, SpecError, "only a run tells how long axis 0 is; give the name of a BOOL input"),
        ("w", np.ones((4, 3)), None, SpecError, r"does not fit 'w' \[3, 4\]: axis 0 is 3 long, and the mask's 4"),
        ("w", np.ones((1, 3, 4)), None, SpecError, "it has more axes"),
        ("w", np.ones((3, 4)), 0, SpecError, r"along one axis \(0\) a mask has one axis"),
        ("w", [1, 0, 1], 2, SpecError, "axis is 2, and 'w' has 2 axes"),
        ("w", [1, 2, 0], 0, SpecError, "mask is an array of booleans, or of 0 and 1, or the name of a BOOL value"),
        ("w", None, 0, SpecError, "mask is an array of booleans"),
        ("w", "x", None, SpecError, "mask: 'x' is FLOAT; it takes BOOL"),
        ("w", "short", None, SpecError, r"mask: 'short' \[2\] does not broadcast to 'w' \[3, 4\]"),
        ("w", "", None, SpecError, "mask is empty"),
    ],
)
def test_bad_masks_change_nothing(
    at: str, mask: object, axis: int | None, error: type[Exception], message: str
) -> None:
    text = "g (float[n, 3] x, float[3, 4] w, bool[2] short) => (float[n, 4] y) { h = MatMul (x, w)  y = Tanh (h) }"
    model = ir.from_proto(parse(text))
    with pytest.raises(error, match=message):
        gradcut.gradient_mask(model, at, mask, axis)
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(parse(text)))
