"""`conditional_stop`: a scalar of a run opens and closes it; what lies only behind closed ones is not computed."""

from __future__ import annotations

import itertools
import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.dialect import DOMAIN
from gradcut.errors import PatternError, SpecError
from gradcut.passes import verify
from gradcut.runtime.check import check_gradients
from tests.relatives.subjects import DTYPES, by_torch, check, feeds, net, operators
from tests.written import parse, session

#: d Sqrt(x) at 0 is infinite, and 0 times it is NaN.
WILD = """g (float[2] x, float[2] w) => (float[2] y) {
    [inner] z = Mul (x, w)  s = Sqrt (z)  [outer] h = Sin (s)  y = Add (h, w) }"""
TWO_WAYS = """g (float[2] x, float[2] w) => (float[2] y) {
    z = Mul (x, w)  s = Sqrt (z)  [left] a = Sin (s)  [right] b = Exp (s)  c = Add (a, b)  y = Add (c, w) }"""
WRT = ["x", "w"]


def vjp(model: ir.Model, wrt: list[str] = WRT) -> onnx.ModelProto:
    work = gradcut.vjp(model, wrt, ["y"])
    onnx.checker.check_model(work, full_check=True)
    return work


def at(proto: onnx.ModelProto, x: object, **conditions: bool) -> list[np.ndarray]:
    given = {"x": np.array(x, "f4"), "w": np.ones(2, "f4"), "y_grad": np.ones(2, "f4")}
    return session(proto).run(None, {**given, **{name: np.array(value) for name, value in conditions.items()}})[1:]


@pytest.mark.parametrize(("closed", "dtype"), itertools.product((False, True), DTYPES))
def test_open_is_the_identity_and_closed_a_stop(closed: bool, dtype: str) -> None:
    model = gradcut.conditional_stop(net(dtype), "t", "closed")
    verify(model, "conditional_stop")
    value = model.graph.inputs[-1]
    assert (value.name, value.dtype, list(value.shape or ())) == ("closed", ir.DataType.BOOL, [])
    given = {**feeds(dtype), "closed": np.array(closed)}
    actual = session(gradcut.vjp(model, ["x", "w", "v"], ["y"])).run(None, given)[1:]
    check(actual, by_torch(given, lambda g: torch.zeros_like(g) if closed else g))


# --- rule 2: what only lies behind a closed one is not computed ------------------------------------------------------


@pytest.mark.parametrize("place", ["s", "s->outer", "h"])
def test_a_nan_behind_a_closed_stop_never_arrives(place: str) -> None:
    proto = vjp(gradcut.conditional_stop(parse(WILD), place, "closed"))
    dx, dw = at(proto, [0, 0], closed=True)
    np.testing.assert_array_equal(dx, [0, 0])
    np.testing.assert_array_equal(dw, [1, 1])
    assert not np.isfinite(at(proto, [0, 0], closed=False)[0]).any()
    dx, _ = at(proto, [0.25, 1], closed=False)
    np.testing.assert_allclose(dx, np.cos([0.5, 1]) / (2 * np.array([0.5, 1])), rtol=1e-6)


def test_the_same_condition_on_every_way_guards_a_region() -> None:
    proto = vjp(gradcut.conditional_stop(parse(TWO_WAYS), ["s->left", "s->right"], "closed"))
    np.testing.assert_array_equal(at(proto, [0, 0], closed=True), [[0, 0], [1, 1]])


@pytest.mark.parametrize(("left", "right"), itertools.product((False, True), repeat=2))
def test_two_conditions_run_a_region_where_one_is_open(left: bool, right: bool) -> None:
    model = gradcut.conditional_stop(parse(TWO_WAYS), "s->left", "no_left")
    proto = vjp(gradcut.conditional_stop(model, "s->right", "no_right"))
    wild = at(proto, [0, 0], no_left=left, no_right=right)
    assert np.isfinite(wild[0]).all() == (left and right)
    s = np.sqrt(np.array([0.3, 2.0]))
    dx, dw = at(proto, [0.3, 2.0], no_left=left, no_right=right)
    expected = ((not left) * np.cos(s) + (not right) * np.exp(s)) / (2 * s)
    np.testing.assert_allclose(dx, expected, rtol=1e-6)
    np.testing.assert_allclose(dw, 1 + expected * [0.3, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("first", "second"), itertools.product((False, True), repeat=2))
def test_one_behind_another(first: bool, second: bool) -> None:
    model = gradcut.conditional_stop(parse(WILD), "h", "first")
    proto = vjp(gradcut.conditional_stop(model, "z", "second"))
    dx, dw = at(proto, [1, 4], first=first, second=second)
    slope = (not (first or second)) * np.cos([1.0, 2.0]) / [2.0, 4.0]
    np.testing.assert_allclose(dx, slope, rtol=1e-6)
    np.testing.assert_allclose(dw, 1 + slope * [1, 4], rtol=1e-6)
    assert np.isfinite(at(proto, [0, 0], first=True, second=second)[0]).all()


def test_another_way_round_a_stop_is_computed_all_the_same() -> None:
    proto = vjp(gradcut.conditional_stop(parse(TWO_WAYS), "s->left", "closed"))
    dx, _ = at(proto, [0.3, 2.0], closed=True)
    np.testing.assert_allclose(dx, np.exp(np.sqrt([0.3, 2])) / (2 * np.sqrt([0.3, 2])), rtol=1e-6)


def test_what_is_behind_stands_in_one_if() -> None:
    """Two branches of a network, walked in turn in the order of the file, make one region."""
    text = """g (float[2] x, float[2] w) => (float[2] y) {
        a1 = Sin (x)  b1 = Cos (x)  a2 = Exp (a1)  b2 = Tanh (b1)  a3 = Mul (a2, w)  b3 = Mul (b2, w)
        c = Add (a3, b3)  y = Add (c, w) }"""
    proto = vjp(gradcut.conditional_stop(parse(text), "c", "closed"))
    backward = [op for op in operators(proto) if op in ("If", "Where", "Not")]
    assert backward == ["Where", "Not", "If"]


def test_a_wanted_value_behind_has_its_whole_cotangent() -> None:
    """s is used behind the stop and past it; both are in its gradient, and in that of what gives it."""
    text = """g (float[2] x, float[2] w) => (float[2] y) {
        s = Sqrt (x)  r = Mul (s, s)  [a] p = Sin (r)  y = Add (p, w) }"""
    model = gradcut.conditional_stop(parse(text), "r", "closed")
    for closed in (False, True):
        proto = vjp(model, ["s", "r", "x"])
        assert [value.name for value in proto.graph.output] == ["y", "s_grad", "r_grad", "x_grad"]
        ds, dr, dx = at(proto, [4, 9], closed=closed)
        slope = 0 if closed else np.cos([4.0, 9.0])
        np.testing.assert_allclose(dr, slope * np.ones(2), rtol=1e-5)
        np.testing.assert_allclose(ds, 2 * np.array([2, 3]) * slope, rtol=1e-5)
        np.testing.assert_allclose(dx, slope * np.ones(2), rtol=1e-5)


# --- where it may stand ----------------------------------------------------------------------------------------------


def test_on_inputs_initializers_and_outputs() -> None:
    text = "g (float[2] x, float[2] u) => (float[2] y) <float[2] w = {1, 1}> { h = Mul (x, w)  y = Sin (h) }"
    for place in ("x", "w", "y", "h"):
        proto = gradcut.vjp(gradcut.conditional_stop(parse(text), place, "c"), ["x", "w"], ["y"])
        for closed in (False, True):
            given = {
                "x": np.array([1, 2], "f4"),
                "u": np.ones(2, "f4"),
                "y_grad": np.ones(2, "f4"),
                "c": np.array(closed),
            }
            dx, dw = session(proto).run(None, given)[1:]
            slope = np.cos([1.0, 2.0])
            np.testing.assert_allclose(dx, slope * (not closed or place == "w"), rtol=1e-6)
            np.testing.assert_allclose(dw, [1, 2] * slope * (not closed or place == "x"), rtol=1e-6)


def test_a_condition_that_the_graph_computes() -> None:
    text = """g (float[2] x, float[2] w, float limit) => (float[2] y) {
        m = ReduceMax <keepdims = 0> (x)  late = Greater (m, limit)  s = Sqrt (x)  y = Mul (s, w) }"""
    proto = gradcut.vjp(gradcut.conditional_stop(parse(text), "s", "late"), ["x"], ["y"])
    for limit, expected in ((5, [0.5, 0.25]), (3, [0, 0])):
        given = {
            "x": np.array([1, 4], "f4"),
            "w": np.ones(2, "f4"),
            "y_grad": np.ones(2, "f4"),
            "limit": np.array(limit, "f4"),
        }
        np.testing.assert_array_equal(session(proto).run(["x_grad"], given)[0], expected)


@pytest.mark.parametrize("value", [0, 1])
def test_a_constant_condition_is_a_mark_or_nothing(value: int) -> None:
    text = f"""g (float[2] x) => (float[2] y) {{ c = Constant <value = bool {{{value}}}> ()
        s = Sqrt (x)  h = gradcut.ConditionalStop (s, c)  y = Mul (h, x) }}"""
    found = gradcut.analyze(parse(text), ["y"], ["x"])
    assert [edge.reason for edge in found.cut] == (["mark"] if value else [])


LOOP = """g (int64 n, float[1] x) => (float[1] y) <bool yes = {1}> {
    h = Sqrt (x)
    y = Loop (n, yes, h) <body = body (int64 i, bool go, float[1] a) => (bool still, float[1] b) {
        still = Identity (go)  r = Sqrt (a)  s = Mul (r, a)  b = Sin (s) }> }"""


def test_in_the_body_of_a_loop() -> None:
    proto = gradcut.vjp(gradcut.conditional_stop(parse(LOOP), "s", "closed"), ["x"], ["y"])
    for closed, n in itertools.product((False, True), (0, 1, 3)):
        x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        a = torch.sqrt(x)
        for _ in range(n):
            s = torch.sqrt(a) * a
            a = torch.sin(s.detach() if closed else s)
        a.backward() if a.requires_grad else None
        given = {"n": np.array(n), "x": np.array([0.7], "f4"), "y_grad": np.ones(1, "f4"), "closed": np.array(closed)}
        expected = 0.0 if x.grad is None else x.grad.numpy()
        np.testing.assert_allclose(session(proto).run(["x_grad"], given)[0], expected, rtol=1e-5)


def test_in_the_body_of_a_loop_a_nan_stays_behind_in_each_turn() -> None:
    text = LOOP.replace("h = Sqrt (x)", "h = Identity (x)")
    proto = gradcut.vjp(gradcut.conditional_stop(parse(text), "s", "closed"), ["x"], ["y"])
    given = {"n": np.array(2), "x": np.zeros(1, "f4"), "y_grad": np.ones(1, "f4"), "closed": np.array(True)}
    np.testing.assert_array_equal(session(proto).run(["x_grad"], given)[0], [0])


def test_what_a_loop_reads_from_outside_is_behind_too() -> None:
    text = """g (int64 n, float[1] x, float[1] u) => (float[1] y) <bool yes = {1}> {
        h = Sqrt (x)
        y = Loop (n, yes, u) <body = body (int64 i, bool go, float[1] a) => (bool still, float[1] b) {
            still = Identity (go)  r = Sin (h)  b = Mul (r, a) }> }"""
    proto = gradcut.vjp(gradcut.conditional_stop(parse(text), "r", "closed"), ["x", "u"], ["y"])
    given = {"n": np.array(2), "u": np.ones(1, "f4"), "y_grad": np.ones(1, "f4")}
    dx, du = session(proto).run(None, {**given, "x": np.zeros(1, "f4"), "closed": np.array(True)})[1:]
    assert (dx, du) == (0, 0)
    dx, du = session(proto).run(None, {**given, "x": np.full(1, 4, "f4"), "closed": np.array(True)})[1:]
    np.testing.assert_allclose([dx, du], [[0], [np.sin(2) ** 2]], rtol=1e-5)
    dx, _ = session(proto).run(None, {**given, "x": np.full(1, 4, "f4"), "closed": np.array(False)})[1:]
    np.testing.assert_allclose(dx, [2 * np.sin(2) * np.cos(2) / 4], rtol=1e-5)


def test_in_both_branches_of_an_if_what_they_capture_is_behind_too() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) { h = Sqrt (x)
        y = If (c) <then_branch = a () => (float[2] p) { [t] q = Sin (h)  p = Exp (q) }, else_branch = b () =>
            (float[2] r) { [e] u = Cos (h)  r = Exp (u) }> }"""
    proto = gradcut.vjp(gradcut.conditional_stop(parse(text), ["q", "u"], "closed"), ["x"], ["y"])
    for c in (False, True):
        given = {"c": np.array(c), "x": np.zeros(2, "f4"), "y_grad": np.ones(2, "f4"), "closed": np.array(True)}
        np.testing.assert_array_equal(session(proto).run(["x_grad"], given)[0], [0, 0])
        x = np.array([1.0, 4.0], "f4")
        h = np.sqrt(x)
        slope = np.exp(np.sin(h)) * np.cos(h) if c else -np.exp(np.cos(h)) * np.sin(h)
        dx = session(proto).run(["x_grad"], {**given, "x": x, "closed": np.array(False)})[0]
        np.testing.assert_allclose(dx, slope / (2 * h), rtol=1e-5)


def test_in_the_body_of_a_scan() -> None:
    text = """g (float[2] h, float[n, 2] x) => (float[2] y, float[n, 2] s) {
        y, s = Scan <num_scan_inputs = 1, body = body (float[2] a, float[2] b) => (float[2] c, float[2] d) {
            t = Mul (a, b)  c = Sin (t)  d = Sqrt (c) }> (h, x) }"""
    model = gradcut.gradient_scale(gradcut.conditional_stop(parse(text), "t", "closed"), "c", 0.5)
    proto = gradcut.vjp(model, ["h", "x"], ["y"])
    h, x = np.array([0.5, 0.9], "f4"), np.array([[0.7, 1.1], [0.4, 0.8], [1.2, 0.3]], "f4")
    for closed in (False, True):
        a, b = (torch.tensor(value.astype("f8"), requires_grad=True) for value in (h, x))
        state = a
        for row in b:
            t = state * row
            c = torch.sin(t.detach() if closed else t)
            state = c * 0.5 + (c * 0.5).detach()
        if state.requires_grad:
            state.sum().backward()
        given = {"h": h, "x": x, "y_grad": np.ones(2, "f4"), "closed": np.array(closed)}
        for actual, value in zip(session(proto).run(None, given)[1:], (a, b), strict=True):
            np.testing.assert_allclose(actual, 0 if value.grad is None else value.grad, rtol=1e-5, atol=1e-7)


BEHIND = {
    "loop": """g (float[2, 3] x, float[2, 3] w) => (float[2, 3] y) <int64 n = {3}, bool yes = {1}> {
        s = Mul (x, w)  l, all = Loop (n, yes, s) <body = body (int64 i, bool go, float[2, 3] a) =>
            (bool still, float[2, 3] b, float[2, 3] o) { still = Identity (go)  t = Mul (a, x)  b = Sin (t)
            o = Mul (b, b) }>
        m = ReduceSum <keepdims = 0> (all)  h = Mul (l, m)  y = Mul (h, w) }""",
    "if": """g (float[2, 3] x, float[2, 3] w) => (float[2, 3] y) {
        s = Mul (x, w)  m = ReduceMax <keepdims = 0> (s)  z = Constant <value = float {0}> ()  c = Greater (m, z)
        h = If (c) <then_branch = a () => (float[2, 3] t) { t = Mul (s, x) }, else_branch = b () => (float[2, 3] e) {
            e = Exp (s) }>
        y = Mul (h, w) }""",
    "layers": """g (float[2, 3] x, float[2, 3] w) => (float[2, 3] y) <int64[4] r = {1, 2, 3, 1}, int64[2] q = {2, 3},
        float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0}, float[2] v = {1, 1}> {
        p = Mul (x, w)  f = Reshape (p, r)  k = MaxPool <kernel_shape = [2, 1], pads = [1, 0, 0, 0]> (f)
        n = BatchNormalization (k, s, b, m, v)  t = Softmax <axis = 2> (n)  o = Split <num_outputs = 1, axis = 1> (t)
        h = Reshape (o, q)  y = Mul (h, w) }""",
}


@pytest.mark.parametrize("text", BEHIND.values(), ids=BEHIND)
def test_every_kind_of_node_may_lie_behind(text: str) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((2, 3)).astype("f4") for name in ("x", "w", "y_grad")}
    proto = vjp(gradcut.conditional_stop(parse(text), "h", "closed"))
    assert operators(proto).count("If") >= 1
    for closed in (False, True):
        plain = gradcut.vjp(gradcut.stop_gradient(parse(text), ["h"] if closed else []), WRT, ["y"])
        actual = session(proto).run(None, {**given, "closed": np.array(closed)})
        for one, other in zip(actual, session(plain).run(None, given), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


# --- life ------------------------------------------------------------------------------------------------------------


def test_a_second_derivative_respects_it() -> None:
    text = "g (double[2] x) => (double[2] y) { s = Sin (x)  h = Mul (s, x)  e = Exp (h)  y = Mul (e, x) }"
    once = gradcut.vjp(gradcut.conditional_stop(parse(text), "h", "closed"), ["x"], ["y"])
    twice = gradcut.vjp(once, ["x"], ["x_grad"])
    x, c, u = (np.random.default_rng(seed).standard_normal(2) for seed in range(3))
    for closed in (False, True):
        t = torch.tensor(x, requires_grad=True)
        h = torch.sin(t) * t
        y = torch.exp(h.detach() if closed else h) * t
        (first,) = torch.autograd.grad(y, t, torch.tensor(c), create_graph=True)
        (second,) = (
            torch.autograd.grad(first, t, torch.tensor(u), allow_unused=True) if first.requires_grad else (None,)
        )
        expected = np.zeros(2) if second is None else second.numpy()
        given = {"x": x, "y_grad": c, "x_grad_grad": u, "closed": np.array(closed)}
        actual = session(twice).run(None, given)
        np.testing.assert_allclose(actual[0], first.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(actual[1], expected, rtol=1e-12, atol=1e-14)


def test_a_check_looks_at_both_states() -> None:
    model = gradcut.conditional_stop(net("double"), "t", "closed")
    for closed in (False, True):
        given = {name: array for name, array in feeds("double").items() if name != "y_grad"}
        report = check_gradients(model, {**given, "closed": np.array(closed)})
        assert report.ok and all(value.decided for value in report.values), str(report)


def test_training_takes_the_condition_and_evaluation_does_not() -> None:
    text = """g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
        h = MatMul (x, w)  t = Tanh (h)  y = Add (t, b) }"""
    artifacts = gradcut.compile(
        gradcut.conditional_stop(parse(text), "t", "closed"),
        loss="mse",
        train=["w", "b"],
        optimizer=gradcut.SGD(lr=0.1),
    )
    inputs = {name: [v.name for v in artifacts.models[name].graph.inputs] for name in ("training_model", "eval_model")}
    assert "closed" in inputs["training_model"] and "closed" not in inputs["eval_model"]
    session_ = gradcut.TrainingSession(artifacts)
    given = {"x": np.ones((4, 3), "f4") * 0.1, "labels": np.zeros((4, 2), "f4"), "closed": np.array(True)}
    before = session_.parameters()
    session_.step(given)
    np.testing.assert_array_equal(session_.parameters()["w"], before["w"])
    assert (session_.parameters()["b"] != before["b"]).all()
    session_.step({**given, "closed": np.array(False)})
    assert (session_.parameters()["w"] != before["w"]).all()
    assert session_.evaluate(given).loss == session_.evaluate({k: v for k, v in given.items() if k != "closed"}).loss
    for name in ("training_model", "eval_model", "step_model"):
        graphs = artifacts.models[name].graphs()
        assert not [node for graph in graphs for node in graph if node.domain == DOMAIN]


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_with_random_stops(seed: int) -> None:
    """Every setting of three conditions gives what marks in the place of those that are closed give."""
    rng, values, lines = random.Random(seed), ["x", "w"], []
    for number in range(12):
        operands = [rng.choice(values[-5:]) for _ in range(2)]
        op = rng.choice(["Mul", "Add", "Sin", "Tanh", "Sub", "Cos"])
        lines.append(f"[n{number}] v{number} = {op} ({', '.join(operands[: 2 if op in ('Mul', 'Add', 'Sub') else 1])})")
        values.append(f"v{number}")
    text = f"g (float[2] x, float[2] w) => (float[2] y) {{ {' '.join(lines)} y = Add ({values[-1]}, {values[-2]}) }}"
    places = {name: rng.sample(values[2:-1], 2) for name in ("c1", "c2", "c3")}
    model = ir.from_proto(parse(text))
    for name, chosen in places.items():
        gradcut.conditional_stop(model, chosen, name)
    proto = vjp(model)
    for states in itertools.product((False, True), repeat=3):
        closed = [place for name, state in zip(places, states, strict=True) if state for place in places[name]]
        expected = at(gradcut.vjp(gradcut.stop_gradient(parse(text), closed), WRT, ["y"]), [0.3, -0.8])
        actual = at(proto, [0.3, -0.8], **dict(zip(places, states, strict=True)))
        np.testing.assert_allclose(
            actual, expected, rtol=2e-5, atol=1e-6, err_msg=f"seed {seed}\n{text}\n{places} {states}"
        )


def test_too_many_ways_are_refused_and_one_condition_is_one_way() -> None:
    stages = range(10)
    nodes = " ".join(f"[a{i}] p{i} = Sin (u{i}) [b{i}] q{i} = Cos (u{i}) u{i + 1} = Add (p{i}, q{i})" for i in stages)
    for same in (True, False):
        model = ir.from_proto(parse(f"g (float[2] u0, float[2] w) => (float[2] y) {{ {nodes} y = Mul (u10, w) }}"))
        for i in stages:
            gradcut.conditional_stop(model, f"u{i}->a{i}", "c" if same else f"c{i}")
            gradcut.conditional_stop(model, f"u{i}->b{i}", "c" if same else f"d{i}")
        if same:
            assert [op for op in operators(gradcut.vjp(model, ["u0"], ["y"])) if op == "If"] == ["If"]
            continue
        with pytest.raises(SpecError, match="more than 256 combinations of conditional stops decide whether node"):
            gradcut.vjp(model, ["u0"], ["y"])


@pytest.mark.parametrize(
    ("place", "condition", "error", "message"),
    [
        ("nix", "c", PatternError, "'nix' matches no value"),
        ("h", "x", SpecError, "condition: 'x' is FLOAT; it takes a BOOL scalar"),
        ("h", "m", SpecError, r"condition: 'm' has the shape \[2\]"),
        ("h", "", SpecError, "condition is empty"),
        ("h", True, SpecError, "condition is the name of a BOOL scalar, not True"),
        ("x", "late", SpecError, "'late' is computed from 'x'"),
    ],
)
def test_bad_input_changes_nothing(place: str, condition: str, error: type[Exception], message: str) -> None:
    text = """g (float[2] x, bool[2] m) => (float[2] y, bool late) {
        h = Mul (x, x)  y = Mul (h, x)  k = ReduceMax <keepdims = 0> (x)  z = Constant <value = float {0}> ()
        late = Greater (k, z) }"""
    model = ir.from_proto(parse(text))
    with pytest.raises(error, match=message):
        gradcut.conditional_stop(model, place, condition)
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(parse(text)))
