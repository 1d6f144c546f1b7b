"""Every lowering equals torch and the op's own body, for every shape that it says it is good for."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper

import gradcut
from gradcut.dialect import DIALECT
from gradcut.lowering import LOWERINGS, REWRITINGS, Call, Lowering, choose, rewrite
from gradcut.ops import Builder, Names
from tests.benchmarks.lowerings import Array, Case, Conv, average_pool, embedding, gelu, max_pool, normal, session

CONVOLUTIONS = [
    Conv(2, 3, 4, (7, 6)),
    Conv(3, 4, 6, (5, 5), pads=(0, 0)),
    Conv(2, 3, 4, (8, 9), stride=(2, 2)),
    Conv(2, 3, 4, (9, 8), (3, 2), (2, 3), (0, 1)),
    Conv(2, 3, 4, (7, 7), (2, 2), (3, 3), (0, 0)),  # strides over the kernel: places that no window reaches
    Conv(2, 3, 4, (9, 9), dilation=(2, 2)),
    Conv(2, 3, 4, (11, 9), (3, 2), (2, 1), (2, 1), (2, 3)),
    Conv(1, 5, 3, (4, 4), (1, 1), pads=(0, 0)),
    Conv(2, 5, 3, (5, 4), (1, 1), (2, 2), (0, 0)),
    Conv(2, 5, 3, (4, 4), (1, 1), pads=(1, 0)),
    Conv(2, 2, 3, (3, 3), (5, 5), pads=(2, 2)),
    Conv(2, 2, 3, (6, 6), (3, 3), pads=(3, 4)),  # pads over the kernel
    Conv(2, 4, 6, (7, 6), group=2),
    Conv(2, 4, 6, (7, 6), (3, 3), (2, 2), group=2),
    Conv(2, 20, 20, (6, 5), group=20),
    Conv(2, 20, 40, (6, 5), (3, 3), (2, 1), (1, 0), group=20),
    Conv(2, 12, 6, (5, 5), dilation=(2, 1), group=6),
    Conv(2, 3, 4, (9,), (3,), (1,), (1,), (1,)),
    Conv(2, 4, 4, (9,), (4,), (3,), (2,), (1,), group=2),
    Conv(2, 2, 3, (4, 5, 3), (3, 2, 1), (1, 2, 1), (1, 0, 0), (1, 1, 1)),
    Conv(3, 20, 20, (4, 4), stride=(2, 2), group=20),
    Conv(3, 8, 8, (5, 3), (5, 2), (2, 1), (2, 1), (1, 2), group=8),
    Conv(2, 6, 6, (5,), (3,), (2,), (1,), (1,), group=6),
    Conv(2, 4, 4, (3, 2, 2), (3, 2, 1), (1, 2, 1), (1, 0, 0), (1, 1, 1), group=4),
    Conv(4, 512, 512, (2, 2)),
    Conv(4, 32, 32, (16, 16)),
]


def cases() -> Iterator[Case]:
    for one in CONVOLUTIONS:
        yield from (one.weight_grad(), one.input_grad(), one.input_grad(frozen=True))
    for size, kernel, stride, pad in [
        (8, 2, 2, 0),
        (9, 2, 2, 0),
        (9, 2, 3, 0),
        (9, 3, 2, 1),
        (6, 3, 3, 1),
        (7, 2, 1, 0),
    ]:
        yield max_pool(2, 3, size, kernel, stride, pad)
        yield average_pool(2, 3, size, kernel, stride, pad)
    yield average_pool(2, 3, 9, 5, 1, 2)
    yield average_pool(2, 3, 9, 3, 3)
    yield from (embedding(11, 4, (2, 5)), embedding(7, 3, (6,)), embedding(2000, 3, (4, 1)))
    yield gelu(4, 33)
    yield from (gathered((4, 5, 3), 1, (2, 6)), gathered((4, 5, 3), 2, (7,)), gathered((3, 4), 0, ()))
    for axis, indices in [(0, [1, 2]), (1, [0, 3, 4]), (2, [2]), (1, [0, 1, 2, 3, 4, 5])]:
        yield from (taken((4, 6, 3), axis, indices), placed((4, 6, 3), axis, indices))


def gathered(shape: tuple[int, ...], axis: int, indices: tuple[int, ...]) -> Case:
    """Along any axis, with indices counted from the end."""
    chosen = np.random.default_rng(0).integers(-shape[axis], shape[axis], indices)
    result = (*shape[:axis], *indices, *shape[axis + 1 :])
    operands = {"dY": normal(*result), "indices": np.asarray(chosen), "shape": np.array(shape, np.int64)}

    def compute(given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        data = torch.zeros(shape, requires_grad=True)
        flat = given["indices"].reshape(-1) % shape[axis]
        torch.index_select(data, axis, flat).reshape(result).backward(given["dY"])
        assert data.grad is not None
        return data.grad

    title = f"Gather {shape} axis {axis} {indices}"
    batched = frozenset({"dY", "result"} if axis else {"dY", "indices"} if indices else ())
    return Case("GatherGrad", title, operands, {"axis": axis}, shape, compute, batched=batched)


def taken(shape: tuple[int, ...], axis: int, indices: list[int]) -> Case:
    """What a mask keeps, which is known beforehand."""
    operands = {"X": normal(*shape), "indices": np.asarray(indices)}
    result = (*shape[:axis], len(indices), *shape[axis + 1 :])
    compute = lambda given: torch.index_select(given["X"], axis, given["indices"])
    constants, batched = frozenset({"indices"}), frozenset({"X", "result"} if axis else ())
    return Case("TakeKept", f"take {indices} of {axis}", operands, {"axis": axis}, result, compute, constants, batched)


def placed(shape: tuple[int, ...], axis: int, indices: list[int]) -> Case:
    """Put back between zeros."""
    given = (*shape[:axis], len(indices), *shape[axis + 1 :])
    operands = {"X": normal(*given), "indices": np.asarray(indices)}
    compute = lambda given: torch.zeros(shape).index_copy(axis, given["indices"], given["X"])
    constants, batched = frozenset({"indices"}), frozenset({"X", "result"} if axis else ())
    attributes = {"axis": axis, "size": shape[axis]}
    return Case("PlaceKept", f"place {indices} of {axis}", operands, attributes, shape, compute, constants, batched)


def forms() -> Iterator[Case]:
    for case in cases():
        yield case
        yield replace(case.static(), title=f"{case.title} static")


def run(model: onnx.ModelProto, case: Case) -> Array:
    onnx.checker.check_model(model)
    taken = session(model)
    result: Array = taken.run(None, {value.name: case.operands[value.name] for value in taken.get_inputs()})[0]
    return result


@pytest.mark.parametrize("case", forms(), ids=lambda case: case.title)
def test_equal_torch_and_the_reference(case: Case) -> None:
    expected = case.torch(case.tensors()).numpy()
    lowerings: list[Lowering | None] = [None, *case.applicable()]
    for lowering in lowerings:
        actual = run(case.model(lowering), case)
        assert actual.shape == expected.shape, lowering
        np.testing.assert_allclose(
            actual, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max(), err_msg=str(lowering)
        )


@pytest.mark.parametrize("case", forms(), ids=lambda case: case.title)
def test_choice_is_the_cheapest_that_applies(case: Case) -> None:
    call, chosen = case.call(), choose(case.call())
    if chosen.name == "reference":
        assert not case.applicable()
    else:
        assert chosen in case.applicable()
        assert chosen.cost(call) == min(one.cost(call) for one in case.applicable())


def test_every_lowering_is_tried_and_is_of_the_dialect() -> None:
    tried = {(case.op, lowering.name) for case in cases() for lowering in case.applicable()}
    assert tried == {(op, one.name) for op, several in LOWERINGS.items() for one in several}
    assert LOWERINGS.keys() <= DIALECT.keys()


@pytest.mark.parametrize(
    "one", [Conv(2, 3, 4, (7, 6)), Conv(2, 64, 64, (4, 4)), Conv(2, 16, 16, (6, 6), group=16)], ids=str
)
def test_batch_of_another_size(one: Conv) -> None:
    larger = replace(one, n=5)
    for built, other in zip(
        (one.weight_grad(), one.input_grad()), (larger.weight_grad(), larger.input_grad()), strict=True
    ):
        expected = other.torch(other.tensors()).numpy()
        for lowering in built.applicable():
            np.testing.assert_allclose(run(built.model(lowering), other), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("one", [CONVOLUTIONS[0], CONVOLUTIONS[5]], ids=str)
def test_symbolic_images_need_no_reference_at_stride_1(one: Conv, frozen: bool) -> None:
    case = one.input_grad(frozen)
    call = case.call()
    for value in (call[0], call.output):
        value.shape = ir.Shape(["N", value.shape[1], "H", "W"])
    names = [lowering.name for lowering in LOWERINGS["ConvInputGrad"] if math.isfinite(lowering.cost(call))]
    assert names == ["transposed", "reversed_kernel"]


def test_symbolic_images_take_the_reference_otherwise() -> None:
    strided, weight = CONVOLUTIONS[2].input_grad().call(), CONVOLUTIONS[0].weight_grad().call()
    for value in (strided.output, weight[1]):
        value.shape = ir.Shape(["N", 3, "H", "W"])
    assert choose(strided).name == choose(weight).name == "reference"


def test_rows_of_a_table_are_added_in_one_thread() -> None:
    """ONNX Runtime's ScatterND with reduction=add loses updates of equal indices on several threads."""
    case = embedding(30522, 64, (4, 256))
    for one in (case, gathered((4, 5, 3), 1, (2, 6))):
        for lowering in one.applicable():
            assert "ScatterND" not in {node.op_type for node in one.model(lowering).graph.node}
    tokens = np.minimum(case.operands["indices"], 3)
    case = replace(case, operands={**case.operands, "indices": tokens})
    expected = case.torch(case.tensors()).numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 4
    taken = onnxruntime.InferenceSession(case.model(choose(case.call())).SerializeToString(), options)
    feeds = {value.name: case.operands[value.name] for value in taken.get_inputs()}
    for _ in range(10):
        np.testing.assert_allclose(taken.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)


# --- what is chosen where ----------------------------------------------------------------------------------------


def ops(case: Case) -> set[str]:
    return {node.op_type for node in case.model(choose(case.call())).graph.node}


def test_frozen_kernel_at_stride_1_is_a_plain_convolution() -> None:
    for one in (
        Conv(8, 64, 64, (16, 16)),
        Conv(8, 64, 64, (28, 28), group=64),
        Conv(8, 64, 64, (9, 9), pads=(2, 2), dilation=(2, 2)),
    ):
        assert "ConvTranspose" not in ops(one.input_grad(frozen=True))
        assert "Conv" in ops(one.input_grad(frozen=True))


def test_kernel_that_is_to_train_is_not_reversed_although_it_is_an_initializer_now() -> None:
    call = Conv(8, 64, 64, (16, 16)).input_grad(frozen=True).call()
    assert choose(call).name == "reversed_kernel"
    assert choose(replace(call, varying=frozenset({"W"}))).name == "transposed"


def test_frozen_kernel_is_reversed_when_the_session_loads() -> None:
    case = Conv(8, 64, 64, (16, 16)).input_grad(frozen=True)
    model = case.model(choose(case.call()))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    left = optimized(model, options)
    assert [node.op_type for node in left.graph.node] == ["Conv"]


def test_gather_indices_are_computed_when_the_session_loads() -> None:
    case = Conv(8, 64, 64, (8, 8)).weight_grad()
    model = case.model(choose(case.call()))
    assert model.ByteSize() < 10_000
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not {"Min", "Add"} & {node.op_type for node in optimized(model, options).graph.node}


def optimized(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnx.ModelProto:
    """What the runtime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Conv(8, 64, 64, (56, 56)).weight_grad(), "rows"),
        (Conv(8, 256, 256, (4, 4)).weight_grad(), "taps"),
        (Conv(8, 64, 128, (16, 16), stride=(2, 2)).weight_grad(), "taps"),
        (Conv(8, 256, 128, (28, 28), (1, 1), pads=(0, 0)).weight_grad(), "windows"),
        (Conv(8, 3, 64, (64, 64), (7, 7), (2, 2), (3, 3)).weight_grad(), "volume"),
        (Conv(8, 64, 64, (56, 56), group=64).weight_grad(), "rows"),
        (Conv(8, 64, 64, (56, 56), stride=(2, 2), group=64).weight_grad(), "windows"),
        (Conv(16, 384, 384, (4, 4), group=384).weight_grad(), "banded_weight"),
        (Conv(16, 384, 384, (4, 4), group=384).input_grad(), "banded_input"),
        (Conv(16, 144, 144, (16, 16), group=144).input_grad(), "reversed_kernel"),
        (Conv(8, 64, 64, (56, 56)).input_grad(), "transposed"),
        (Conv(8, 512, 512, (7, 7)).input_grad(), "gathered"),
        (Conv(8, 512, 512, (2, 2)).input_grad(), "scattered"),
        (Conv(8, 512, 512, (2, 2)).input_grad(frozen=True), "gathered"),
        (embedding(2, 256, (8, 128)), "compared"),
        (embedding(30522, 256, (8, 32)), "slotted"),
        (max_pool(8, 64, 32, 2, 2), "unpooled"),
        (max_pool(8, 64, 32, 3, 2, 1), "reference"),
        (average_pool(8, 64, 32, 2, 2), "resized"),
        (average_pool(8, 64, 32, 3, 1, 1), "averaged"),
        (average_pool(8, 64, 32, 3, 2, 1), "spread"),
    ],
    ids=lambda value: value.title if isinstance(value, Case) else value,
)
def test_measured_winner_is_chosen(case: Case, name: str) -> None:
    assert choose(case.call()).name == name


# --- rewritings of forward ops -----------------------------------------------------------------------------------


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with each node rewritten that a rewriting is registered for, wanted or not; and those wanted."""
    work = ir.from_proto(model)
    wanted = []
    for node in list(work.graph):
        call = Call(node)
        better = rewrite(call)
        wanted += [better.name] if better else []
        for one in REWRITINGS.get(node.op_type, ()):
            if not math.isfinite(one.cost(call)):
                continue
            b = Builder(Names.of(work))
            with b.arithmetic():
                results = one.build(b, call)
            work.graph.insert_before(node, b.nodes)
            for output, result in zip(node.outputs, results, strict=False):
                name = output.name
                ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
                output.name, result.name = f"{name}_old", name
                result.type, result.shape = output.type, output.shape
            work.graph.remove(node, safe=True)
            break
    return ir.to_proto(work), wanted


def both(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[str]:
    """Compare a model with its rewritten form; returns the rewritings that its costs ask for."""
    other, wanted = rewritten(model)
    onnx.checker.check_model(other)
    assert [n.op_type for n in model.graph.node] != [n.op_type for n in other.graph.node]
    for mine, theirs in zip(session(model).run(None, feeds), session(other).run(None, feeds), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(mine[np.isfinite(mine)]).max()))
    return wanted


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("one", [c for c in CONVOLUTIONS if c.group == 1 or c.group == c.c == c.m], ids=str)
def test_convolution_rewritten(one: Conv, bias: bool) -> None:
    attributes = one.attributes()
    weight = normal(one.m, one.c // one.group, *one.kernel)
    feeds = {"X": normal(one.n, one.c, *one.size), "W": weight, **({"B": normal(one.m)} if bias else {})}
    shapes = {**{name: list(array.shape) for name, array in feeds.items()}, "X": ["N", one.c, *one.size]}
    node = helper.make_node("Conv", list(feeds), ["Y"], name="conv", **attributes)
    wanted = both(one_node(node, shapes, {"Y": ["N", one.m, *one.outputs()]}), feeds)
    assert wanted == (["gathered"] if one.size == (2, 2) else wanted)
    if one.group > 1:
        assert set(wanted) <= {"banded"}
    elif one.size[0] > 4:
        assert not wanted


def test_a_channel_s_numbers_are_repeated_over_small_images_alone() -> None:
    for size, wanted in ((2, ["repeated"]), (16, [])):
        shapes = {"x": ["N", 64, size, size], "v": [64, 1, 1]}
        feeds = {"x": normal(16, 64, size, size), "v": normal(64, 1, 1)}
        for op in ("Add", "Sub", "Mul", "Div"):
            for operands in (["x", "v"], ["v", "x"]):
                node = helper.make_node(op, operands, ["y"], name="y")
                assert both(one_node(node, shapes, {"y": ["N", 64, size, size]}), feeds) == wanted


@pytest.mark.parametrize("options", itertools.product(["none", "sum", "mean"], [None, -1, 3], [False, True], [1, 2]))
def test_cross_entropy_rewritten(options: tuple[str, int | None, bool, int]) -> None:
    reduction, ignored, weighted, outputs = options
    labels = np.array([0, 3, 6, 3, 1], np.int64)
    if ignored == -1:
        labels[1] = -1
    scores = normal(5, 7)
    scores[1, 0] = -np.inf if ignored is not None and labels[1] == ignored else scores[1, 0]
    feeds = {"scores": scores, "labels": labels, **({"weights": np.abs(normal(7))} if weighted else {})}
    names = ["loss", "log_prob"][:outputs]
    extra = {} if ignored is None else {"ignore_index": ignored}
    node = helper.make_node("SoftmaxCrossEntropyLoss", list(feeds), names, name="loss", reduction=reduction, **extra)
    results = {"loss": ["N"] if reduction == "none" else [], "log_prob": ["N", 7]}
    shapes = {"scores": ["N", 7], "labels": ["N"], "weights": [7]}
    assert both(one_node(node, shapes, {name: results[name] for name in names}), feeds) == ["log_softmax"]


def one_node(
    node: onnx.NodeProto, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(n, 7 if n == "labels" else 1, inputs[n]) for n in node.input]
    made = [helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()]
    graph = helper.make_graph([node], "one", given, made)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_a_moving_convolution_is_rewritten_and_a_frozen_one_is_left_to_the_runtime(tmp_path: Path) -> None:
    """A frozen W is laid out once by the runtime, which also fuses its Relu: nothing of ours stands in the way."""
    import gradcut

    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((256, 256, 3, 3)).astype("f") / 48, n) for n in ("a", "b")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], name="second", pads=[1] * 4),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["N", 256, 2, 2]) for name in ("x", "r")]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    count = lambda train: sum(
        node.op_type == "Conv" and node.name in ("first", "second")
        for node in gradcut.compile(model, loss="mse", train=train).training_model.graph
    )
    assert count(["b"]) == 1
    assert count(["a", "b"]) == 0


def test_a_dilated_max_pool_is_not_unpooled() -> None:
    """MaxUnpool knows of no dilation: where dilated windows tile X it would give another shape."""
    import gradcut

    x = np.float32([9, 0, 1, 8, 0, 1, 7, 0, 1, 0, 0, 0]).reshape(1, 1, 2, 6)
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 2], strides=[1, 3], dilations=[1, 2])
    derived = gradcut.vjp(one_node(node, {"x": [1, 1, 2, 6]}, {"y": [1, 1, 2, 2]}), wrt=["x"], of=["y"])
    given = torch.tensor(x, requires_grad=True)
    torch.nn.functional.max_pool2d(given, (1, 2), (1, 3), 0, (1, 2)).sum().backward()
    _, dx = session(derived).run(None, {"x": x, "y_grad": np.ones((1, 1, 2, 2), np.float32)})
    assert given.grad is not None
    np.testing.assert_array_equal(dx, given.grad.numpy())


def test_a_prelu_of_float64_is_a_parameter_still() -> None:
    slope = np.array([0.25])
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "slope"], ["y"], name="y")],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [3])],
        [onnx.numpy_helper.from_array(slope, "slope")],
    )
    art = gradcut.compile(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]), "mse")
    x, labels = np.array([-2.0, -1.0, 3.0]), np.zeros(3)
    found = gradcut.TrainingSession(art, threads=1).gradients({"x": x, "labels": labels})
    np.testing.assert_allclose(found["slope"], [2 * 0.25 * (4 + 1) / 3])
