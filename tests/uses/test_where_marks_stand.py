"""A mark may stand on any value, and on any single use of one: rules 5 and 6, against torch's detach at the same place.

Each model is written twice, as ONNX text and in torch, where `d("h", h)` detaches the value of that name, and
`d("h->n", h)` one use of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gradcut
from tests.uses.common import outputs
from tests.written import parse

Detach = Callable[[str, torch.Tensor], torch.Tensor]
X = np.float32([[0.5, -1.2, 0.8], [1.1, 0.3, -0.7]])
W = np.float32([0.9, -0.4, 1.3])
WEIGHT = "float[3] w = {0.9, -0.4, 1.3}"

PLAIN = (
    f"""g (float[2,3] x) => (float[2,3] y) <{WEIGHT}> {{
        [m] h = Mul (x, w)  [t] a = Tanh (h)  [p] b = Mul (a, h)  [q] y = Add (b, x) }}""",
    lambda x, w, d, n: _plain(x, w, d),
    "x w h a b x->m x->q w->m h->t h->p a->p b->q y".split(),
)


def _plain(x: torch.Tensor, w: torch.Tensor, d: Detach) -> torch.Tensor:
    x, w = d("x", x), d("w", w)
    h = d("h", d("x->m", x) * d("w->m", w))
    a = d("a", torch.tanh(d("h->t", h)))
    b = d("b", d("a->p", a) * d("h->p", h))
    return d("y", d("b->q", b) + d("x->q", x))


SPLIT = (
    f"""g (float[2,3] x) => (float[2,3] y) <{WEIGHT}> {{
        [c] both = Concat <axis = 0> (x, x)  [m] h = Mul (both, w)
        [s] one, other = Split <axis = 0, num_outputs = 2> (h)  [r] e = Exp (one)  [p] y = Mul (e, other) }}""",
    lambda x, w, d, n: _split(x, w, d),
    "both h one other e one->r other->p h->s x->c".split(),
)


def _split(x: torch.Tensor, w: torch.Tensor, d: Detach) -> torch.Tensor:
    both = d("both", torch.cat([d("x->c", d("x", x))] * 2))
    h = d("h", both * w)
    one, other = d("h->s", h).chunk(2)
    one, other = d("one", one), d("other", other)
    e = d("e", torch.exp(d("one->r", one)))
    return e * d("other->p", other)


IF = (
    f"""g (float[2,3] x, int64 n) => (float[2,3] y) <{WEIGHT}, int64 one = {{1}}> {{
        [m] h = Mul (x, w)  c = Greater (n, one)
        [i] z = If (c) <
            then_branch = a () => (float[2,3] p) {{ [u] k = Tanh (h)  [v] p = Mul (k, w) }},
            else_branch = b () => (float[2,3] q) {{ [r] l = Exp (h)  [s] q = Mul (l, h) }}>
        [o] y = Mul (z, h) }}""",
    lambda x, w, d, n: _if(x, w, d, n),
    "x w h z k p l q h->u h->r h->s h->o w->v w->m k->v z->o".split(),
)


def _if(x: torch.Tensor, w: torch.Tensor, d: Detach, n: int) -> torch.Tensor:
    x, w = d("x", x), d("w", w)
    h = d("h", x * d("w->m", w))
    if n > 1:
        k = d("k", torch.tanh(d("h->u", h)))
        z = d("p", d("k->v", k) * d("w->v", w))
    else:
        z = d("q", d("l", torch.exp(d("h->r", h))) * d("h->s", h))
    return d("z->o", d("z", z)) * d("h->o", h)


LOOP = (
    f"""g (float[2,3] x, int64 n) => (float[2,3] y) <{WEIGHT}, bool yes = {{1}}, int64[1] zero = {{0}}> {{
        [m] h = Mul (x, w)
        [l] last, all = Loop (n, yes, h) <body = body (int64 i, bool go, float[2,3] before) =>
            (bool on, float[2,3] after, float[2,3] out) {{
            on = Identity (go)  [p] k = Mul (before, w)  [t] t = Tanh (k)  [a] after = Add (t, h)
            [o] out = Mul (t, before) }}>
        [s] sum = ReduceSum <keepdims = 0> (all, zero)  [e] y = Add (sum, last) }}""",
    lambda x, w, d, n: _loop(x, w, d, n),
    (
        "x w h last all before k t after out sum h->l h->a w->m w->p before->p before->o t->a t->o last->e all->s"
    ).split(),
)


def _loop(x: torch.Tensor, w: torch.Tensor, d: Detach, n: int) -> torch.Tensor:
    x, w = d("x", x), d("w", w)
    h = d("h", x * d("w->m", w))
    last, every = d("h->l", h), [torch.zeros_like(x)]
    for _ in range(n):
        before = d("before", last)
        k = d("k", d("before->p", before) * d("w->p", w))
        t = d("t", torch.tanh(k))
        last = d("after", d("t->a", t) + d("h->a", h))
        every.append(d("out", d("t->o", t) * d("before->o", before)))
    total = d("sum", d("all->s", d("all", torch.stack(every))).sum(0))
    return total + d("last->e", d("last", last))


SCAN = (
    f"""g (float[2,3] x, float[n,3] xs) => (float[2,3] y) 
        <{WEIGHT}, int64[1] zero = {{0}}, float[3] none = {{0, 0, 0}}> {{
        [m] h = Mul (x, w)
        [c] seq = Concat <axis = 0> (xs, h)
        [l] last, all = Scan <num_scan_inputs = 1, body = body (float[3] state, float[3] row) =>
            (float[3] next, float[3] out) {{
            [p] k = Mul (state, w)  [t] t = Tanh (k)  [a] next = Add (t, row)  [o] out = Mul (row, next) }}> (none, seq)
        [s] sum = ReduceSum <keepdims = 0> (all, zero)  [f] g = Add (sum, last)  [e] y = Add (g, h) }}""",
    lambda x, w, d, n: _scan(x, w, d, n),
    (
        "x w h seq last all state row k t next out sum h->c h->e w->m w->p row->a row->o next->o state->p "
        "last->f all->s"
    ).split(),
)


def _scan(x: torch.Tensor, w: torch.Tensor, d: Detach, n: int) -> torch.Tensor:
    x, w = d("x", x), d("w", w)
    h = d("h", x * d("w->m", w))
    seq = d("seq", torch.cat([torch.ones(n, 3), d("h->c", h)]))
    state, every = torch.zeros(3), []
    for row in seq:
        row, before = d("row", row), d("state", state)
        t = d("t", torch.tanh(d("k", d("state->p", before) * d("w->p", w))))
        state = d("next", t + d("row->a", row))
        every.append(d("out", d("row->o", row) * d("next->o", state)))
    total = d("sum", d("all->s", d("all", torch.stack(every))).sum(0))
    return total + d("last->f", d("last", state)) + d("h->e", h)


MODELS = {"plain": PLAIN, "split": SPLIT, "if": IF, "loop": LOOP, "scan": SCAN}
TRIPS = {"plain": [0], "split": [0], "if": [1, 2], "loop": [0, 1, 3], "scan": [0, 2]}
CASES = [(name, place, n) for name, (_, _, places) in MODELS.items() for place in ["", *places] for n in TRIPS[name]]


def feeds(name: str, n: int) -> dict[str, object]:
    extra = {"if": {"n": n}, "loop": {"n": n}, "scan": {"xs": np.ones((n, 3), np.float32)}}
    return {"x": X, **extra.get(name, {})}


def expected(name: str, place: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w = torch.tensor(X, requires_grad=True), torch.tensor(W, requires_grad=True)
    y = MODELS[name][1](x, w, lambda at, value: value.detach() if at == place else value, n)
    if y.requires_grad:
        y.backward(torch.tensor(COTANGENT))
    gradients = (torch.zeros_like(t) if t.grad is None else t.grad for t in (x, w))
    return (y.detach().numpy(), *(g.numpy() for g in gradients))


COTANGENT = np.float32([[1, 0.5, -2], [0.3, 1, 1]])


def check(derived: onnx.ModelProto, name: str, place: str, n: int) -> None:
    found = outputs(derived, {**feeds(name, n), "y_grad": COTANGENT})
    for mine, theirs in zip(found.values(), expected(name, place, n), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "place", "n"), CASES)
def test_it_stops_there_what_detach_stops(name: str, place: str, n: int) -> None:
    check(gradcut.vjp(parse(MODELS[name][0]), ["x", "w"], ["y"], stop_at=[place] if place else []), name, place, n)


@pytest.mark.parametrize("name", MODELS)
def test_so_does_a_mark_in_the_file_binary_and_text(name: str) -> None:
    source, _, places = MODELS[name]
    for place in places:
        marked = ir.to_proto(gradcut.stop_gradient(parse(source), place))
        again = onnx.load_from_string(marked.SerializeToString())
        check(gradcut.vjp(again, ["x", "w"], ["y"]), name, place, TRIPS[name][-1])
        text = onnx.parser.parse_model(onnx.printer.to_text(marked))
        check(gradcut.vjp(text, ["x", "w"], ["y"]), name, place, TRIPS[name][-1])


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_is_the_same_bit_for_bit(name: str) -> None:
    source, _, places = MODELS[name]
    plain = outputs(parse(source), feeds(name, TRIPS[name][-1]))
    for place in places:
        marked = outputs(gradcut.stop_gradient(parse(source), place), feeds(name, TRIPS[name][-1]))
        assert marked.keys() == plain.keys()
        assert all(marked[one].tobytes() == array.tobytes() for one, array in plain.items())


@pytest.mark.parametrize("name", MODELS)
def test_all_marks_at_once_stop_everything(name: str) -> None:
    """Each pair of places too, by torch."""
    source, function, places = MODELS[name]
    n = TRIPS[name][-1]
    for first, second in itertools.pairwise(places):
        x, w = torch.tensor(X, requires_grad=True), torch.tensor(W, requires_grad=True)
        y = function(x, w, lambda at, value, two=(first, second): value.detach() if at in two else value, n)
        if y.requires_grad:
            y.backward(torch.tensor(COTANGENT))
        derived = gradcut.vjp(parse(source), ["x", "w"], ["y"], stop_at=[first, second])
        found = list(outputs(derived, {**feeds(name, n), "y_grad": COTANGENT}).values())
        for mine, theirs in zip(found[1:], (x, w), strict=True):
            want = np.zeros_like(mine) if theirs.grad is None else theirs.grad.numpy()
            np.testing.assert_allclose(mine, want, rtol=2e-5, atol=1e-6, err_msg=f"{first} and {second}")
    derived = gradcut.vjp(parse(source), ["x", "w"], ["y"], stop_at=places)
    _, dx, dw = outputs(derived, {**feeds(name, n), "y_grad": COTANGENT}).values()
    assert not dx.any() and not dw.any()


# --- at the second order ---------------------------------------------------------------------------------------

SECOND = np.float32([[0.4, -1, 0.7], [1, 0.2, -0.6]])


def second_in_torch(name: str, place: str, n: int) -> list[np.ndarray]:
    """Of <dy/dx, SECOND> by x, w and the cotangent of y."""
    x, w, v = (torch.tensor(array, requires_grad=True) for array in (X, W, COTANGENT))
    y = MODELS[name][1](x, w, lambda at, value: value.detach() if at == place else value, n)
    found: tuple[torch.Tensor | None, ...] = (None, None, None)
    if y.requires_grad:
        (dx,) = torch.autograd.grad(y, x, v, create_graph=True, allow_unused=True)
        if dx is not None and dx.requires_grad:
            found = torch.autograd.grad(dx, (x, w, v), torch.tensor(SECOND), allow_unused=True)
    return [np.zeros_like(t.detach()) if g is None else g.numpy() for g, t in zip(found, (x, w, v), strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_a_second_derivative_respects_it_too(name: str) -> None:
    source, _, places = MODELS[name]
    n = TRIPS[name][-1]
    for place in ["", *places]:
        once = gradcut.vjp(parse(source), ["x"], ["y"], stop_at=[place] if place else [])
        twice = gradcut.vjp(once, ["x", "w", "y_grad"], ["x_grad"])
        cotangent = twice.graph.input[-1].name
        given = {**feeds(name, n), "y_grad": COTANGENT, cotangent: SECOND}
        found = list(outputs(twice, given).values())[1:]
        for mine, theirs in zip(found, second_in_torch(name, place, n), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-6, err_msg=place)


# --- compiled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_what_is_compiled_stops_there_too(name: str) -> None:
    """With the cotangent of y as an input; where torch gives the weight no gradient, nothing is left to train."""
    source, _, places = MODELS[name]
    for place in ["", *places]:
        n = TRIPS[name][-1]
        _, _, dw = expected(name, place, n)
        reached = any(expected(name, place, other)[2].any() for other in TRIPS[name])
        options = {"train": ["w"], "stop_at": [place] if place else []}
        if not reached:
            with pytest.raises(gradcut.errors.NothingTrainsError, match="w: stop-at at"):
                gradcut.compile(parse(source), **options)
            continue
        session = gradcut.TrainingSession(gradcut.compile(parse(source), **options))
        found = session.gradients({**feeds(name, n), "y_grad": COTANGENT})
        np.testing.assert_allclose(found["w"], dw, rtol=2e-5, atol=1e-6, err_msg=place)
