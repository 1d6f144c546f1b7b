"""Both forms of every optimizer over 50 steps with the same gradients, against torch.optim; LARS and LAMB, which torch
has not, against their papers' formulas in double precision."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from gradcut.errors import FeedError, SpecError
from gradcut.ops import Builder, Names
from gradcut.optimizers import (
    LAMB,
    LARS,
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    UpdatePlan,
    parse_optimizer,
)
from gradcut.runtime.host_optimizer import HostOptimizer, cut

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
State = dict[str, Arrays]

STEPS = 50
SHAPES = {"w": (7, 5), "b": (5,), "scalar": (), "nothing": (0, 3)}
DTYPES = [np.float32, np.float64]
CASES = [
    SGD(lr=0.05),
    SGD(lr=0.05, weight_decay=0.1),
    SGD(lr=0.05, maximize=True),
    SGD(lr=0.05, momentum=0.9),
    SGD(lr=0.05, momentum=0.9, dampening=0.3),
    SGD(lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    SGD(lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
    SGD(lr=0.05, momentum=0.9, nesterov=True, maximize=True),
    AdamW(lr=0.01),
    AdamW(lr=0.01, weight_decay=0.0),
    AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    AdamW(lr=0.01, betas=(0.0, 0.9)),
    AdamW(lr=0.01, maximize=True),
    AdamW(lr=0.01, amsgrad=True),
    AdamW(lr=0.01, betas=(0.8, 0.9), weight_decay=0.2, amsgrad=True, maximize=True),
    Adam(lr=0.01),
    Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
    Adam(lr=0.01, amsgrad=True),
    Adam(lr=0.01, weight_decay=0.1, amsgrad=True, maximize=True),
    Adam(lr=0.01, maximize=True),
    RMSprop(),
    RMSprop(lr=0.05, alpha=0.9, eps=1e-6, weight_decay=0.1),
    RMSprop(momentum=0.9),
    RMSprop(centered=True),
    RMSprop(alpha=0.9, weight_decay=0.1, momentum=0.5, centered=True),
    RMSprop(weight_decay=0.1, maximize=True),
    RMSprop(momentum=0.9, centered=True, maximize=True),
    Adagrad(),
    Adagrad(lr=0.1, lr_decay=0.05),
    Adagrad(lr=0.1, weight_decay=0.1, initial_accumulator_value=0.3, eps=1e-3),
    Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.1, maximize=True),
    LARS(lr=2.0),
    LARS(lr=2.0, weight_decay=0.1),
    LARS(lr=2.0, momentum=0.0, trust_coefficient=0.02, weight_decay=0.01, eps=0.0),
    LARS(lr=0.05, momentum=0.5, trust_coefficient=0.0, weight_decay=0.1),
    LAMB(lr=0.05),
    LAMB(lr=0.05, weight_decay=0.0),
    LAMB(lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
]
each_case = pytest.mark.parametrize("optimizer", CASES, ids=lambda optimizer: optimizer.spec())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def start(dtype: Any) -> Arrays:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype).reshape(shape) for name, shape in SHAPES.items()}


def gradients(dtype: Any) -> Iterator[tuple[float, Arrays]]:
    """A learning rate factor and gradients per step: of many sizes, shrinking, sometimes zero."""
    random = np.random.default_rng(1)
    for step in range(STEPS):
        size = 0.0 if step == 7 else 3.0 * 0.9**step
        fed = {name: np.asarray(size * random.normal(size=shape), dtype) for name, shape in SHAPES.items()}
        yield (0.0 if step == 5 else 1.0 / (1 + step)), fed


def begin(optimizer: Optimizer, parameters: Arrays) -> State:
    return {
        name: {slot: np.full_like(array, optimizer.initial(slot)) for slot in optimizer.slots}
        for name, array in parameters.items()
    }


def expected(optimizer: Optimizer, dtype: Any) -> tuple[Arrays, State]:
    """Parameters and state after all steps, by others."""
    return paper_run(optimizer, dtype) if isinstance(optimizer, (LARS, LAMB)) else torch_run(optimizer, dtype)


def torch_run(optimizer: Optimizer, dtype: Any) -> tuple[Arrays, State]:
    parameters = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start(dtype).items()}
    kind = getattr(torch.optim, type(optimizer).__name__)
    stepper = kind(list(parameters.values()), **dataclasses.asdict(optimizer))
    for factor, fed in gradients(dtype):
        stepper.param_groups[0]["lr"] = optimizer.lr * factor
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(fed[name])
        stepper.step()
    state = {
        name: {slot: stepper.state[parameter][slot].numpy() for slot in optimizer.slots}
        for name, parameter in parameters.items()
    }
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}, state


def paper_run(optimizer: LARS | LAMB, dtype: Any) -> tuple[Arrays, State]:
    weights = {name: array.astype(np.float64) for name, array in start(dtype).items()}
    state = begin(optimizer, weights)
    formula = lars_formula if isinstance(optimizer, LARS) else lamb_formula
    for t, (factor, fed) in enumerate(gradients(dtype), start=1):
        for name, w in weights.items():
            g = fed[name].astype(np.float64)
            weights[name], state[name] = formula(optimizer, w, g, state[name], optimizer.lr * factor, t)
    return weights, state


def lars_formula(o: Any, w: Array, g: Array, state: Arrays, gamma: float, t: int) -> tuple[Array, Arrays]:
    """You, Gitman, Ginsburg 2017 (arXiv:1708.03888): the local rate of eq. 6, then algorithm 1."""
    size_w, size_g = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
    local = 1.0
    if size_w > 0 and size_g > 0 and o.trust_coefficient:
        local = o.trust_coefficient * size_w / (size_g + o.weight_decay * size_w + o.eps)
    v = o.momentum * state.get("momentum_buffer", np.zeros_like(w)) + gamma * local * (g + o.weight_decay * w)
    return w - v, ({"momentum_buffer": v} if o.momentum else {})


def lamb_formula(o: Any, x: Array, g: Array, state: Arrays, eta: float, t: int) -> tuple[Array, Arrays]:
    """You et al. 2019 (arXiv:1904.00962), algorithm 2, with phi(z) = z."""
    beta1, beta2 = o.betas
    m = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g**2
    r = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + o.eps)
    update = r + o.weight_decay * x
    size_x, size_update = np.linalg.norm(x.ravel()), np.linalg.norm(update.ravel())
    trust = size_x / size_update if size_x > 0 and size_update > 0 else 1.0
    return x - eta * trust * update, {"exp_avg": m, "exp_avg_sq": v}


def assert_close(actual: tuple[Arrays, State], expected: tuple[Arrays, State], tolerance: float) -> None:
    for name, array in expected[0].items():
        np.testing.assert_allclose(actual[0][name], array, rtol=tolerance, atol=tolerance, err_msg=name)
        for slot, value in expected[1][name].items():
            np.testing.assert_allclose(
                actual[1][name][slot], value, rtol=tolerance, atol=tolerance * 0.1, err_msg=f"{slot} of {name}"
            )


def tolerance(dtype: Any) -> float:
    return 1e-5 if dtype == np.float32 else 1e-12


# --- in place, on the host ---------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_host_is_what_it_should_be(optimizer: Optimizer, dtype: Any) -> None:
    parameters = start(dtype)
    state = begin(optimizer, parameters)
    host = HostOptimizer(optimizer, parameters, state)
    for step, (factor, fed) in enumerate(gradients(dtype)):
        host.step(fed, optimizer.lr * factor, step)
    assert_close((parameters, state), expected(optimizer, dtype), tolerance(dtype))


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(momentum=0.9),
        AdamW(amsgrad=True),
        LARS(weight_decay=0.1),
        LAMB(),
        UpdatePlan(RMSprop(), {"b": RMSprop(lr=0.1)}, clip_norm=0.5, clip_value=0.7, ema=0.9),
    ],
    ids=["sgd", "adamw", "lars", "lamb", "plan"],
)
def test_threads_do_not_change_the_result(optimizer: Optimizer | UpdatePlan) -> None:
    """700,001 elements are above the threshold of parallel work, and no multiple of a part."""
    random = np.random.default_rng(2)
    first = {"a": random.normal(size=700_001), "b": random.normal(size=(3, 5)), "c": random.normal(size=90_000)}
    results = []
    for threads in (1, 2, 3):
        parameters = {name: array.astype(np.float32) for name, array in first.items()}
        plan = optimizer if isinstance(optimizer, UpdatePlan) else UpdatePlan(optimizer)
        slots = {
            name: {slot: plan.initial(name, slot, array, np.float32) for slot in plan.slots(name)}
            for name, array in parameters.items()
        }
        host = HostOptimizer(optimizer, parameters, slots, threads=threads)
        for step in range(3):
            host.step({name: np.cos(array) for name, array in parameters.items()}, 0.1, step)
        results.append(parameters)
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(other[name], array)


def test_host_updates_in_place() -> None:
    optimizer = AdamW(amsgrad=True)
    parameters = start(np.float32)
    state = begin(optimizer, parameters)
    arrays = [*parameters.values(), *(array for slots in state.values() for array in slots.values())]
    before = [array.ctypes.data for array in arrays]
    views = {name: array.view() for name, array in parameters.items()}
    host = HostOptimizer(optimizer, parameters, state)
    host.step({name: np.ones_like(array) for name, array in parameters.items()}, 0.1, 0)
    assert [array.ctypes.data for array in arrays] == before
    assert not np.array_equal(views["w"], start(np.float32)["w"])


def test_host_leaves_gradients_alone_and_takes_any_layout() -> None:
    parameters = {"w": np.zeros((4, 6), np.float32)}
    host = HostOptimizer(SGD(), parameters, {})
    gradient = np.arange(24, dtype=np.float32).reshape(6, 4)
    kept = gradient.copy()
    host.step({"w": gradient.T, "not a parameter": gradient}, 1.0, 0)
    np.testing.assert_array_equal(gradient, kept)
    np.testing.assert_array_equal(parameters["w"], -kept.T)


def test_host_takes_both_dtypes_at_once() -> None:
    parameters = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float64)}
    host = HostOptimizer(SGD(), parameters, {})
    host.step({name: np.ones_like(array) for name, array in parameters.items()}, 0.25, 0)
    assert parameters["a"].tolist() == parameters["b"].tolist() == [0.75] * 3


def test_a_bad_gradient_changes_nothing() -> None:
    parameters = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    host = HostOptimizer(SGD(), parameters, {})
    good = np.ones(3, np.float32)
    with pytest.raises(FeedError, match="no gradient for 'b'"):
        host.step({"a": good}, 0.1, 0)
    with pytest.raises(FeedError, match=r"'b' is float32\[2\]; wanted is float32\[3\]"):
        host.step({"a": good, "b": good[:2]}, 0.1, 0)
    with pytest.raises(FeedError, match="'b' is float64"):
        host.step({"a": good, "b": good.astype(np.float64)}, 0.1, 0)
    assert parameters["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("parameter", "state", "message"),
    [
        (np.ones(4, np.float16), None, "'w' is float16.*optimizer_backend='graph'"),
        (np.ones((4, 4), np.float32).T[::2], None, "contiguous and writable"),
        (np.ones(4, np.float32), {}, "sgd wants state 'momentum_buffer' for 'w'"),
        (np.ones(4, np.float32), {"momentum_buffer": np.ones(3, np.float32)}, r"float32\[3\]"),
    ],
)
def test_host_refuses_arrays(parameter: Array, state: Arrays | None, message: str) -> None:
    slots = {"momentum_buffer": np.zeros_like(parameter)} if state is None else state
    with pytest.raises(SpecError, match=message):
        HostOptimizer(SGD(momentum=0.9), {"w": parameter}, {"w": slots})


def test_read_only_parameters_are_refused() -> None:
    parameter = np.ones(4, np.float32)
    parameter.flags.writeable = False
    with pytest.raises(SpecError, match="contiguous and writable"):
        HostOptimizer(SGD(), {"w": parameter}, {})


def test_without_numba_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from gradcut.errors import MissingExtraError\n"
        "try: import gradcut.runtime.host_optimizer\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the host optimizer" in done.stdout and "gradcut[cpu]" in done.stdout


@pytest.mark.parametrize("sizes", [[10], [1, 0, 3, 100, 2], [0], [], [1, 1]])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_cut_covers_every_element_once(sizes: list[int], parts: int) -> None:
    segments, ranges = cut(sizes, parts)
    seen = [np.zeros(size, int) for size in sizes]
    lengths = []
    for first, last in ranges:
        lengths.append(sum(segments[first:last, 2]))
        for tensor, begin, count in segments[first:last]:
            seen[tensor][begin : begin + count] += 1
    assert all((array == 1).all() for array in seen)
    assert max(lengths, default=0) <= -(-sum(sizes) // parts)


# --- as a graph --------------------------------------------------------------------------------------------------


def optimizer_model(optimizer: Optimizer, shapes: dict[str, tuple[int, ...]], dtype: ir.DataType) -> ir.Model:
    """parameters, gradients, slots, learning_rate, step -> what each of the first and third becomes."""
    b = Builder(Names())
    rate = ir.Value(name="learning_rate", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    step = ir.Value(name="step", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    prepared = optimizer.prepare(b, rate, step)
    inputs, outputs = [rate, step], []
    for name, shape in shapes.items():
        names = [name, f"{name}_grad", *(f"{name}.{slot}" for slot in optimizer.slots)]
        own = [ir.Value(name=each, type=ir.TensorType(dtype), shape=ir.Shape(shape)) for each in names]
        slots = dict(zip(optimizer.slots, own[2:], strict=True))
        value, state = optimizer.update(b, prepared, own[0], own[1], slots)
        for source, result in [(own[0], value), *((slots[slot], state[slot]) for slot in optimizer.slots)]:
            result.name = f"{source.name}_next"
            outputs.append(result)
        inputs += own
    graph = ir.Graph(inputs, outputs, nodes=b.nodes, opset_imports={"": 21}, name="optimizer")
    return ir.Model(graph, ir_version=10)


def runner(model: ir.Model) -> Callable[[Arrays], Arrays]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


@each_dtype
@each_case
def test_graph_is_what_it_should_be(optimizer: Optimizer, dtype: Any) -> None:
    parameters = start(dtype)
    state = begin(optimizer, parameters)
    run = runner(optimizer_model(optimizer, SHAPES, ir.DataType.from_numpy(np.dtype(dtype))))
    for step, (factor, fed) in enumerate(gradients(dtype)):
        feeds = {"learning_rate": np.float32(optimizer.lr * factor), "step": np.int64(step)}
        feeds |= parameters | {f"{name}_grad": fed[name] for name in parameters}
        feeds |= {f"{name}.{slot}": array for name, slots in state.items() for slot, array in slots.items()}
        after = run({key: np.asarray(value) for key, value in feeds.items()})
        parameters = {name: after[f"{name}_next"] for name in parameters}
        state = {name: {slot: after[f"{name}.{slot}_next"] for slot in slots} for name, slots in state.items()}
    # the graph takes its learning rate in single precision: 3e-8 off, 50 times
    assert_close((parameters, state), expected(optimizer, dtype), max(tolerance(dtype), 2e-7))


@pytest.mark.parametrize(
    ("optimizer", "full_size"),
    [
        (SGD(), 2),
        (SGD(momentum=0.9), 4),
        (SGD(momentum=0.9, nesterov=True), 6),
        (AdamW(weight_decay=0.0), 12),
        (AdamW(), 13),
        (AdamW(amsgrad=True), 14),
        (AdamW(maximize=True), 13),
        (Adam(), 12),
        (Adam(weight_decay=0.1), 14),
        (Adam(weight_decay=0.1, maximize=True), 14),
        (RMSprop(), 9),
        (RMSprop(centered=True), 14),
        (RMSprop(momentum=0.9), 11),
        (Adagrad(), 7),
    ],
    ids=lambda value: value.spec() if isinstance(value, Optimizer) else None,
)
def test_graph_has_the_fewest_full_size_operators(optimizer: Optimizer, full_size: int) -> None:
    """A second parameter costs its own arithmetic, and no scalar operator."""
    one, two = (
        optimizer_model(optimizer, dict.fromkeys("ab"[:count], (7, 5)), ir.DataType.FLOAT).graph for count in (1, 2)
    )
    assert sum(len(value.shape or ()) == 2 for node in one for value in node.outputs) == full_size
    assert len(two) - len(one) == full_size


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=["float16", "bfloat16"])
def test_half_precision_is_updated_in_single(half: ir.DataType) -> None:
    """In float16 itself 1e-8 is 0 and so is the square of 1e-4, and the first step would divide by 0."""
    reference = ReferenceEvaluator(ir.to_proto(optimizer_model(AdamW(), {"w": (3,)}, half)))
    feeds = {"w": np.ones(3), "w_grad": np.full(3, 0.01), "w.exp_avg": np.zeros(3), "w.exp_avg_sq": np.zeros(3)}
    feeds = {name: array.astype(half.numpy()) for name, array in feeds.items()}
    scalars = {"learning_rate": np.asarray(0.25, np.float32), "step": np.asarray(0, np.int64)}
    after = dict(zip(reference.output_names, reference.run(None, feeds | scalars), strict=True))
    assert all(array.dtype == half.numpy() for array in after.values())
    np.testing.assert_allclose(after["w_next"].astype(float), 0.7475, rtol=5e-3)


@pytest.mark.parametrize(
    "optimizer", [LARS(lr=0.5, momentum=0.0), LAMB(lr=0.5, weight_decay=0.0)], ids=["lars", "lamb"]
)
@pytest.mark.parametrize("form", ["host", "graph"])
def test_trust_ratios_of_nothing_are_one(optimizer: Optimizer, form: str) -> None:
    """Weights of zeros move at the base rate; a gradient of zeros moves nothing; nothing is NaN."""
    parameters = {"zeros": np.zeros(4, np.float32), "still": np.full(4, 2.0, np.float32)}
    fed = {"zeros": np.full(4, 0.25, np.float32), "still": np.zeros(4, np.float32)}
    if form == "host":
        HostOptimizer(optimizer, parameters, begin(optimizer, parameters)).step(fed, optimizer.lr, 0)
    else:
        run = runner(optimizer_model(optimizer, {"zeros": (4,), "still": (4,)}, ir.DataType.FLOAT))
        feeds = {"learning_rate": np.asarray(optimizer.lr, np.float32), "step": np.asarray(0, np.int64)}
        feeds |= parameters | {f"{name}_grad": array for name, array in fed.items()}
        state = begin(optimizer, parameters)
        feeds |= {f"{name}.{slot}": array for name, slots in state.items() for slot, array in slots.items()}
        after = run(feeds)
        parameters = {name: after[f"{name}_next"] for name in parameters}
    moved = -0.5 * 0.25 if isinstance(optimizer, LARS) else -0.5  # LAMB's first update is g / |g| by element
    np.testing.assert_allclose(parameters["zeros"], moved, rtol=1e-5)
    np.testing.assert_array_equal(parameters["still"], 2.0)


# --- as text, and what it takes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "full_size", "scalar"),
    [(LARS(), 4, 12), (LARS(weight_decay=0.1), 6, 14), (LARS(momentum=0.0), 2, 12), (LAMB(), 15, 10)],
    ids=lambda value: value.spec() if isinstance(value, Optimizer) else None,
)
def test_layerwise_graphs_have_the_fewest_full_size_operators(
    optimizer: Optimizer, full_size: int, scalar: int
) -> None:
    """A second parameter costs its own arithmetic and the scalars of its own norms."""
    one, two = (
        optimizer_model(optimizer, dict.fromkeys("ab"[:count], (7, 5)), ir.DataType.FLOAT).graph for count in (1, 2)
    )
    assert sum(len(value.shape or ()) == 2 for node in one for value in node.outputs) == full_size
    assert len(two) - len(one) == full_size + scalar


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS.values() if hasattr(torch.optim, kind.__name__)])
def test_arguments_are_torchs(kind: type[Optimizer]) -> None:
    theirs = inspect.signature(getattr(torch.optim, kind.__name__)).parameters
    for field in dataclasses.fields(kind):
        assert field.default == theirs[field.name].default, field.name


def test_registry_has_every_optimizer() -> None:
    assert {name: kind.name for name, kind in OPTIMIZERS.items()} == {name: name for name in OPTIMIZERS}
    open_, known = [Optimizer], set()
    while open_:
        kinds = open_.pop().__subclasses__()
        open_ += kinds
        known |= {kind for kind in kinds if not inspect.isabstract(kind) and hasattr(kind, "name")}
    assert set(OPTIMIZERS.values()) == known
    assert {kind.__name__ for kind in known} == {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "LARS", "LAMB"}


@each_case
def test_spec_round_trip(optimizer: Optimizer) -> None:
    assert parse_optimizer(optimizer.spec()) == optimizer


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (AdamW(), "adamw"),
        (AdamW(lr=1e-5, betas=(0.8, 0.999), amsgrad=True), "adamw:lr=1e-05,beta1=0.8,amsgrad=true"),
        (SGD(lr=1, momentum=0.9), "sgd:lr=1.0,momentum=0.9"),
    ],
)
def test_spec(optimizer: Optimizer, text: str) -> None:
    assert optimizer.spec() == text
    assert parse_optimizer(text) == optimizer


def test_parse_takes_integers_for_floats() -> None:
    assert parse_optimizer("sgd:lr=1,momentum=0") == SGD(lr=1.0)


def test_slots() -> None:
    assert SGD().slots == ()
    assert SGD(momentum=0.9).slots == ("momentum_buffer",)
    assert AdamW().slots == ("exp_avg", "exp_avg_sq")
    assert AdamW(amsgrad=True).slots == ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert RMSprop(momentum=0.9, centered=True).slots == ("square_avg", "grad_avg", "momentum_buffer")
    assert Adagrad(initial_accumulator_value=0.5).initial("sum") == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adan", "'adan' is no optimizer. Nearest: adam. There are sgd, adamw, adam, rmsprop, adagrad, lars, lamb."),
        (
            "adamw:beta=0.8",
            "'beta' is no option of adamw. Nearest: beta2. There are lr, beta1, beta2, "
            "eps, weight_decay, amsgrad, maximize.",
        ),
        ("sgd:lr=fast", "sgd: lr is a finite number, not 'fast'"),
        ("sgd:lr=nan", "sgd: lr is a finite number, not nan"),
        ("sgd:momentum=true", "sgd: momentum is a finite number, not True"),
        ("sgd:nesterov=1", "sgd: nesterov is true or false, not 1"),
        ("sgd:lr=-1", "sgd: lr must be at least 0, and is -1.0"),
        ("sgd:momentum=-0.1", "sgd: momentum must be at least 0, and is -0.1"),
        ("sgd:weight_decay=-0.1", "sgd: weight_decay must be at least 0, and is -0.1"),
        ("sgd:nesterov=true", "sgd: nesterov=true needs momentum above 0 and dampening=0"),
        ("sgd:nesterov=true,momentum=0.9,dampening=0.1", "sgd: nesterov=true needs momentum above 0 and dampening=0"),
        ("adamw:eps=-1", "adamw: eps must be at least 0, and is -1.0"),
        ("rmsprop:alpha=1", "rmsprop: alpha must be from 0 to below 1, and is 1.0"),
        ("rmsprop:momentum=-1", "rmsprop: momentum must be at least 0, and is -1.0"),
        ("adagrad:lr_decay=-1", "adagrad: lr_decay must be at least 0, and is -1.0"),
        (
            "adagrad:initial_accumulator_value=-1",
            "adagrad: initial_accumulator_value must be at least 0, and is -1.0",
        ),
        ("adam:weight_decay=-1", "adam: weight_decay must be at least 0, and is -1.0"),
        ("lars:trust_coefficient=-1", "lars: trust_coefficient must be at least 0, and is -1.0"),
        ("lamb:lr=-1", "lamb: lr must be at least 0, and is -1.0"),
        ("lamb:beta1=1", "lamb: betas must be from 0 to below 1, and is (1.0, 0.999)"),
        ("adamw:beta2=1", "adamw: betas must be from 0 to below 1, and is (0.9, 1.0)"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_optimizer(text)
    assert str(caught.value) == message


def test_betas_are_a_pair() -> None:
    with pytest.raises(SpecError, match="betas is 2 numbers"):
        AdamW(betas=(0.9,))  # type: ignore[arg-type]
