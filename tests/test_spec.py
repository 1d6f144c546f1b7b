"""Patterns: exact first, only * and ? special; parameters, values, scopes, single uses; errors with nearest names."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.places import match_values
from gradcut.spec import as_patterns, match, match_parameters, node_scope, scopes
from tests.written import parse

NAMES = ["w", "a.b", "a.b.c", "a/b", "a[0]", "a[1]", "*", "a*", "a?b", "line\nbreak", "A.b"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("w", ["w"]),
        ("a.b", ["a.b"]),  # exact: not a.b.c, and the dot is a dot
        ("a.*", ["a.b", "a.b.c"]),
        ("a?b", ["a?b"]),  # there is such a name
        ("a?b.c", ["a.b.c"]),
        ("*b", ["a.b", "a/b", "a?b", "A.b"]),  # crosses separators
        ("a[?]", ["a[0]", "a[1]"]),
        ("a[01]", []),
        ("*", ["*"]),
        ("a*", ["a*"]),
        ("**", NAMES),
        ("line*", ["line\nbreak"]),
        ("", []),
        ("W", []),
    ],
)
def test_a_pattern(pattern: str, found: list[str]) -> None:
    assert match(pattern, NAMES) == found


def test_one_pattern_or_several() -> None:
    assert as_patterns("w") == ("w",)
    assert as_patterns(["w", "v"]) == ("w", "v")
    assert as_patterns(None) == as_patterns([]) == ()
    for wrong in ([""], [None], [1]):
        with pytest.raises(gradcut.errors.SpecError, match="is not a pattern; give names such as"):
            as_patterns(wrong)


# --- scopes --------------------------------------------------------------------------------------------------


def node(name: str | None = None, scope: str | None = None) -> ir.Node:
    made = ir.Node("", "Relu", [None], name=name)
    if scope is not None:
        made.metadata_props["pkg.torch.onnx.name_scopes"] = scope
    return made


@pytest.mark.parametrize(
    ("made", "scope"),
    [
        (node("/encoder/layer.0/MatMul"), "encoder/layer.0"),
        (node("MatMul_3"), ""),
        (node(None), ""),
        (node("x", "['', 'encoder', 'encoder.layer.0', 'linear']"), "encoder.layer.0"),
        (node("x", "['', 'linear']"), ""),
        (node("x", "['', '_empty_nn_module_stack_from_metadata_hook', 'shape']"), ""),
        (node("/a/b", "not a list"), ""),
    ],
)
def test_the_scope_of_a_node(made: ir.Node, scope: str) -> None:
    assert node_scope(made) == scope


TWO_LAYERS = """g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w1 = {1, 2, 3, 4}, float[2,2] w2 = {1, 2, 3, 4}, float[2,2] head.w = {1, 2, 3, 4}> {
    ["/enc/l.1/MatMul"] a = MatMul (x, w1)
    ["/enc/l.1/Relu"] b = Relu (a)
    ["/enc/l.2/MatMul"] c = MatMul (b, w2)
    ["/head/MatMul"] y = MatMul (c, "head.w")
}""".replace("head.w =", '"head.w" =')


def model() -> ir.Model:
    return ir.from_proto(parse(TWO_LAYERS))


def test_scopes_hold_the_nodes_of_inner_ones() -> None:
    found = {scope: len(nodes) for scope, nodes in scopes(model().graph).items()}
    assert found == {"enc": 3, "enc/l": 3, "enc/l.1": 2, "enc/l.2": 1, "head": 1}


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["w1"], ["w1"]),
        (["w?"], ["w1", "w2"]),
        (["enc"], ["w1", "w2"]),
        (["enc/l.2"], ["w2"]),
        (["head"], ["head.w"]),
        (["head", "w1"], ["w1", "head.w"]),  # in the order of the model
        (["*"], ["w1", "w2", "head.w"]),
        (["scale"], ["scale"]),  # a constant, only by its exact name
        ([], []),
    ],
)
def test_parameters_by_name_and_by_scope(patterns: list[str], found: list[str]) -> None:
    assert match_parameters(patterns, model().graph, ["w1", "w2", "head.w"], ["scale"]) == found


def test_a_marked_parameter_belongs_to_the_scope_that_reads_it() -> None:
    marked = gradcut.stop_gradient(model(), "w2")
    assert match_parameters(["enc/l.2"], marked.graph, ["w1", "w2", "head.w"]) == ["w2"]


def test_a_pattern_for_no_parameter_names_the_nearest() -> None:
    with pytest.raises(gradcut.errors.PatternError) as raised:
        match_parameters(["head.v"], model().graph, ["w1", "w2", "head.w"])
    assert str(raised.value) == "'head.v' matches no parameter and no module scope. Nearest: head.w, head."
    assert raised.value.nearest == ("head.w", "head")
    with pytest.raises(gradcut.errors.PatternError, match=r"'scal\*' matches no parameter"):
        match_parameters(["scal*"], model().graph, ["w1"], ["scale"])


# --- values and uses -----------------------------------------------------------------------------------------


def stopped(pattern: str, graph: ir.Graph | None = None) -> list[tuple[str, list[str] | None]]:
    places = match_values([pattern], graph if graph is not None else model().graph)
    return [(p.value.name, None if p.whole else [f"{n.name}:{i}" for n, i in p.uses]) for p in places]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a", [("a", None)]),
        ("?", [("x", None), ("a", None), ("b", None), ("c", None), ("y", None)]),
        ("w1", [("w1", None)]),
        ("enc/l.1", [("b", None)]),  # what leaves the scope
        ("enc", [("c", None)]),
        ("head", [("y", None)]),  # an output of the graph leaves every scope
        ("enc/*", [("c", None), ("b", None)]),  # enc/l, enc/l.1 and enc/l.2
        ("b->/enc/l.2/MatMul", [("b", ["/enc/l.2/MatMul:0"])]),
        ("enc->head", [("c", ["/head/MatMul:0"])]),  # what leaves one scope into another
        ("enc/l.1->/enc/l.2/MatMul", [("b", ["/enc/l.2/MatMul:0"])]),
        ("b->enc/l.?", [("b", ["/enc/l.2/MatMul:0"])]),
        ("*->head", [("c", ["/head/MatMul:0"])]),  # what enters it: its weights are no part of that,
        ("head.w->head", [("head.w", ["/head/MatMul:1"])]),  # unless one is named
        ("*->/enc/l.2/*", [("w2", ["/enc/l.2/MatMul:1"]), ("b", ["/enc/l.2/MatMul:0"])]),
    ],
)
def test_values_scopes_and_uses(pattern: str, found: list[tuple[str, list[str] | None]]) -> None:
    assert stopped(pattern) == found


def test_a_name_given_twice_is_one_place() -> None:
    assert len(match_values(["a", "a", "?"], model().graph)) == 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nix", "'nix' matches no value and no module scope."),
        ("ench", "'ench' matches no value and no module scope. Nearest: enc"),
        ("bb->/head/MatMul", "'bb' matches no value and no module scope."),
        ("b->/haed/MatMul", "'/haed/MatMul' matches no node and no module scope. Nearest: /head/MatMul"),
        ("a->/head/MatMul", "'a->/head/MatMul': a is no operand of /head/MatMul"),
        ("a->head", "'a->head': nothing goes from a into head; what goes into head: c"),
        ("head->enc", "'head->enc': nothing goes from head into enc; what goes into enc: x"),
        ("enc/l.1->haed", "'haed' matches no node and no module scope. Nearest: head"),
    ],
)
def test_what_matches_nothing_is_an_error(pattern: str, message: str) -> None:
    with pytest.raises(gradcut.errors.SpecError) as raised:
        match_values([pattern], model().graph)
    assert str(raised.value).startswith(message)


def test_a_value_with_an_arrow_in_its_name() -> None:
    text = 'g (float[1] "a->b") => (float[1] y) { [n] y = Relu ("a->b") }'
    graph = ir.from_proto(parse(text)).graph
    assert stopped("a->b", graph) == [("a->b", None)]
    assert stopped("a->b->n", graph) == [("a->b", ["n:0"])]


def test_every_value_of_a_name_that_branches_share() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] o) { t = Relu (x) o = Neg (t) },
                    else_branch = b () => (float[2] o) { t = Exp (x) o = Neg (t) }> }"""
    assert stopped("t", ir.from_proto(parse(text)).graph) == [("t", None), ("t", None)]


# --- freeze and unfreeze -------------------------------------------------------------------------------------


def frozen(model: ir.Model) -> str | None:
    return model.metadata_props.get("gradcut.frozen")


def test_freezes_add_up_and_can_be_taken_back() -> None:
    given = model()
    assert gradcut.freeze(given, "enc") is given
    assert frozen(given) == '["w1", "w2"]'
    assert frozen(gradcut.freeze(given, ["head.*"])) == '["head.w", "w1", "w2"]'
    assert frozen(gradcut.unfreeze(given, "w?")) == '["head.w"]'
    assert frozen(gradcut.unfreeze(given, "*")) is None


def test_freezes_survive_binary_and_text(tmp_path) -> None:
    proto = ir.to_proto(gradcut.freeze(model(), "w1"))
    assert frozen(ir.from_proto(proto)) == '["w1"]'
    assert frozen(ir.from_onnx_text(onnx.printer.to_text(proto))) == '["w1"]'


def test_what_cannot_be_frozen_is_an_error() -> None:
    with pytest.raises(gradcut.errors.PatternError, match=r"'w9' matches no parameter and no module scope. Nearest: "):
        gradcut.freeze(model(), "w9")
    with pytest.raises(gradcut.errors.PatternError):
        gradcut.unfreeze(model(), "x")


def test_weights_that_a_function_reads_are_parameters_too() -> None:
    text = """g (float[2,2] x) => (float[2,2] y) <float[2,2] fc.w = {1, 2, 3, 4}> { y = my.Linear (x, "fc.w") }
        <domain: "my", opset_import: ["" : 21]>
        Linear (X, W) => (Y) { Y = MatMul (X, W) }""".replace("fc.w =", '"fc.w" =')
    assert frozen(gradcut.freeze(parse(text, also=', "my" : 1'), "fc.*")) == '["fc.w"]'
