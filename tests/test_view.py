"""The description of a cut graph against the compiler's own answers, and its picture."""

from __future__ import annotations

import inspect
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from typer.testing import CliRunner

import gradcut
from gradcut.cli import visualize
from gradcut.cli.app import app
from gradcut.cost import ADJOINT
from gradcut.errors import SpecError
from gradcut.view import CutGraph, Node, describe, describe_model, draw, to_dot
from gradcut.view.collapse import LIMIT, collapse
from gradcut.view.draw import render
from tests.exported import exported, text


def view(name: str, **options: object) -> tuple[gradcut.TrainingArtifacts, CutGraph]:
    artifacts = gradcut.compile(exported(name), loss="cross_entropy", **options)  # type: ignore[arg-type]
    return artifacts, describe(artifacts, name)


def node(graph: CutGraph, name: str) -> Node:
    return next(one for one in graph.nodes if one.id == name)


def operands(found: Node, status: str) -> list[str]:
    return [one.operand for one in found.adjoints if one.status == status]


def cuts(graph: CutGraph) -> list[tuple[str, str, str]]:
    return [(edge.value, edge.target, edge.reason) for edge in graph.edges if edge.is_cut]


def octagons(dot: str) -> list[str]:
    """What the cuts of a picture say, without the legend."""
    return re.findall(r"^(?!  l3).*shape=octagon.*<b>cut: (.*?)</b>", dot, re.MULTILINE)


def boxes(graph: CutGraph) -> list[Node]:
    return [one for one in graph.nodes if one.kind in ("op", "mark", "group")]


# --- the description -----------------------------------------------------------------------------------------


def test_digits_head_only() -> None:
    artifacts, graph = view("digits", train=["head.*"])
    linear = node(graph, "node_linear")
    assert [(one.operand, one.status, one.ops) for one in linear.adjoints] == [
        ("A", "cut", ()),
        ("B", "emitted", ("Gemm",)),
        ("C", "emitted", ("ReduceSum",)),
    ]
    assert [(one.operand, one.name, one.status) for one in linear.parameters] == [
        ("B", "head.weight", "trained"),
        ("C", "head.bias", "trained"),
    ]
    assert linear.adjoints[0].reason == "not-trained"
    with_backward = [one.id for one in graph.nodes if one.has_backward]
    assert with_backward == ["node_linear", "loss"]
    assert operands(node(graph, "node_conv2d_1"), "pruned") == ["X", "W"]
    assert operands(node(graph, "node_conv2d"), "pruned") == ["W"]
    assert sum(one.op == "BatchNormalization" for one in graph.nodes) == 3
    assert not {"Shape", "Expand", "CastLike", "Constant"} & {one.op for one in graph.nodes}
    assert cuts(graph) == [("view", "node_linear", "not-trained")]
    assert graph.backward_nodes == artifacts.manifest["cost"]["backward_nodes"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {}),
        ("digits", {"train": ["*.bias"]}),
        ("mlp", {"stop_at": ["relu"]}),
        ("mlp", {"freeze": ["body.2.weight"]}),
        ("bert_tiny", {"train": ["bert.encoder.layer.1.*", "classifier"]}),
        ("resnet18_small", {"train": ["layer4", "fc"], "stop_at": ["layer2"]}),
    ],
)
def test_every_emitted_node_and_every_cut_is_in_the_description(name: str, options: dict[str, list[str]]) -> None:
    artifacts, graph = view(name, **options)
    tags = [one.metadata_props.get(ADJOINT) for one in artifacts.training_model.graph if one.op_type != "Constant"]
    described = Counter(op for one in graph.nodes for adjoint in one.adjoints for op in adjoint.ops)
    assert described.total() == sum(tag is not None for tag in tags)
    cut = {(edge["value"], edge["node"], edge["reason"]) for edge in artifacts.manifest["cut"] if edge["node"]}
    drawn = {
        (adjoint.value.removesuffix("_stopped"), one.id, adjoint.reason)
        for one in graph.nodes
        for adjoint in one.adjoints
        if adjoint.status == "cut"
    }
    assert drawn == cut


def test_full_training_prunes_nothing_and_a_stop_prunes_what_lies_before_it() -> None:
    _, full = view("mlp")
    assert not [one for node in full.nodes for one in node.adjoints if one.status == "pruned"]
    assert not any(one.kind == "mark" for one in full.nodes)
    _, stopped = view("mlp", stop_at=["relu"])
    assert [(one.op, one.reason) for one in stopped.nodes if one.kind == "mark"] == [("StopGradient", "stop-at")]
    assert operands(node(stopped, "node_relu"), "pruned") == ["X"]
    assert operands(node(stopped, "node_linear"), "pruned") == ["B", "C"]
    assert [(one.operand, one.reason) for one in node(stopped, "node_linear_1").adjoints if one.status == "cut"] == [
        ("A", "stop-at")
    ]
    assert stopped.status["body.0.weight"] == "unreached"


def test_a_mark_of_the_models_own_is_no_pruning() -> None:
    marked = gradcut.stop_gradient(exported("mlp"), "relu")
    graph = describe(gradcut.compile(marked, loss="cross_entropy"))
    assert not any(one.status == "pruned" for node in graph.nodes for one in node.adjoints)
    assert [one.reason for one in graph.nodes if one.kind == "mark"] == ["mark"]


def test_a_bare_model_shows_what_would_be() -> None:
    graph = describe_model(gradcut.freeze(exported("mlp"), "head.*"))
    assert not graph.compiled
    assert operands(node(graph, "node_linear_2"), "planned") == ["A"]
    assert {one.reason for one in node(graph, "node_linear_2").adjoints} == {"", "frozen"}
    assert describe_model(exported("digits")).status["encoder.bn1.running_mean"] == "state"


def test_a_bare_model_says_which_parameters_a_mark_cuts_off() -> None:
    status = describe_model(gradcut.stop_gradient(exported("mlp"), "relu")).status
    assert {name for name, kind in status.items() if kind == "unreached"} == {"body.0.weight", "body.0.bias"}


def test_a_loss_in_the_model_and_no_loss_at_all() -> None:
    scalar = text("""g (float[N,3] x) => (float[1] y, float[N,2] h) <float[3,2] w = {1,2,3,4,5,6}, int64[1] s = {1}>
    { h = MatMul (x, w)  m = ReduceMean<keepdims=0> (h)  y = Reshape (m, s) }""")
    own = describe(gradcut.compile(scalar))
    assert [one.id for one in own.nodes if one.kind == "output"] == ["output:y", "output:h"]
    assert not any(one.kind == "loss" for one in own.nodes)
    bare = describe(gradcut.compile(exported("mlp")))
    assert not any(one.kind == "loss" for one in bare.nodes)
    assert operands(node(bare, "node_linear"), "emitted") == ["B", "C"]


PAIR = """g (float[N,3] x) => (float[N,2] p, float[N,2] z) <float[3,2] w = {1,2,3,4,5,6}, float[3,2] u = {6,5,4,3,2,1}>
{ z = MatMul (x, w)  p = MatMul (x, u) }"""
DISTANCE = """l (float[N,2] p, float[N,2] z) => (float loss)
{ d = Sub (p, z)  e = Mul (d, d)  loss = ReduceMean<keepdims=0> (e) }"""


@pytest.mark.parametrize(("options", "reason"), [({"stop_at": ["z"]}, "stop-at"), ({"train": ["u"]}, "not-trained")])
def test_what_only_the_loss_reads_is_cut_at_the_loss(options: dict[str, list[str]], reason: str) -> None:
    artifacts = gradcut.compile(text(PAIR), loss=text(DISTANCE), **options)  # type: ignore[arg-type]
    assert ("z", reason) in {(one["value"], one["reason"]) for one in artifacts.manifest["cut"]}
    graph = describe(artifacts)
    assert cuts(graph) == [("z", "loss", reason)]
    assert operands(node(graph, "loss"), "cut") == ["scores"]


def test_a_mark_at_an_output_is_a_cut() -> None:
    marked = gradcut.stop_gradient(text(PAIR), "z")
    expected = [("z", "output:z", "mark")]
    assert cuts(describe(gradcut.compile(marked))) == cuts(describe_model(marked)) == expected


# --- fewer boxes ---------------------------------------------------------------------------------------------


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, list[int]], ends: list[str]) -> onnx.ModelProto:
    """A model from float [N,2] to float [N,2], weights all ones."""
    ports = [onnx.helper.make_tensor_value_info(name, 1, ["N", 2]) for name in ends]
    ones = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], ones)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def chain(length: int, scoped: bool, shared: bool = True) -> onnx.ModelProto:
    """Products by one weight, or by a weight each; ten to a layer, a hundred to a part."""
    names = [f"part{i // 100}.layer{i // 10 % 10}/n{i}" if scoped else f"n{i}" for i in range(length)]
    weights = ["w" if shared else f"w{i}" for i in range(length)]
    nodes = [onnx.helper.make_node("Mul", [f"v{i}", weights[i]], [f"v{i + 1}"], names[i]) for i in range(length)]
    return model_of(nodes, {name: [2] for name in weights}, ["v0", f"v{length}"])


BLOCK = """
ln1 LayerNormalization x ln1.weight -> a
attn.q MatMul a q.weight -> q
attn.k MatMul a k.weight -> k
attn.v MatMul a v.weight -> v
attn Transpose k -> kt
attn MatMul q kt -> s
attn Softmax s -> p
attn MatMul p v -> c
attn.out MatMul c out.weight -> o
. Add x o -> h
ln2 LayerNormalization h ln2.weight -> b
mlp.up MatMul b up.weight -> m
mlp.act Gelu m -> n
mlp.down MatMul n down.weight -> f
. Add h f -> y
"""


def transformer(blocks: int = 8) -> onnx.ModelProto:
    """Pre-norm blocks with residuals, whose nodes carry their module paths."""
    nodes, weights = [], {}
    for i in range(blocks):
        ends = {"x": f"x{i}", "y": f"x{i + 1}"}
        for number, line in enumerate(BLOCK.strip().splitlines()):
            scope, op, *reads, _, result = line.split()
            names = [ends.get(one, f"blocks.{i}.{one}") for one in [*reads, result]]
            scope = f"blocks.{i}" if scope == "." else f"blocks.{i}.{scope}"
            nodes.append(onnx.helper.make_node(op, names[:-1], names[-1:], f"{scope}/n{number}"))
            weights |= {one: [2] if "ln" in one else [2, 2] for one in names[:-1] if one.endswith("weight")}
    nodes.append(onnx.helper.make_node("MatMul", [f"x{blocks}", "head.weight"], ["logits"], "head/n"))
    return model_of(nodes, {**weights, "head.weight": [2, 2]}, ["x0", "logits"])


@pytest.mark.parametrize("scoped", [True, False])
def test_collapsing_keeps_every_node_in_some_box(scoped: bool) -> None:
    graph = describe_model(chain(1200, scoped))
    small = collapse(graph, 130)
    assert len(boxes(small)) <= 130
    assert sum(one.size for one in small.nodes if one.kind == "group") == 1200
    assert len(small.edges) == len(small.nodes) - 1
    assert Counter(edge.backward for edge in small.edges) == {"planned": len(small.edges) - 1, "cut": 1}
    assert collapse(graph, 10_000) is graph
    scopes = [one.scope for one in small.nodes if one.kind == "group"]
    assert scopes[0] == ("part0.layer0" if scoped else "nodes 1 to 10")
    assert len(boxes(collapse(graph, 20))) <= 20


@pytest.mark.parametrize(("shared", "parameters"), [(True, "1 parameter"), (False, "10 parameters")])
def test_groups_count_what_is_in_them(shared: bool, parameters: str) -> None:
    """A parameter that several nodes read is one."""
    graph = describe_model(chain(100, scoped=True, shared=shared))
    group = next(one for one in collapse(graph, 20).nodes if one.kind == "group")
    assert group.op == "10 nodes: 10 Mul"
    assert [(one.name, one.status) for one in group.parameters] == [(parameters, "trained")]
    assert [(one.operand, one.reason) for one in group.adjoints] == [("1 operand", "data"), ("19 operands", "")]


def test_scopes_go_together_from_the_finest_that_fits_to_coarser_ones_and_only_then_by_position() -> None:
    graph = describe_model(transformer())
    scopes = {limit: [one.scope for one in boxes(collapse(graph, limit))] for limit in (64, 24, 3, 1)}
    assert scopes[64][1:6] == ["blocks.0.attn", "blocks.0", "blocks.0.ln2", "blocks.0.mlp", "blocks.0"]
    assert scopes[24] == [*(f"blocks.{i}" for i in range(8)), "head"]
    assert scopes[3] == ["blocks", "head"]
    assert scopes[1] == ["nodes 1 to 121"]


@pytest.mark.parametrize("options", [{"stop_at": ["x2"]}, {"train": ["*.down.weight", "head"]}, {"freeze": ["*.ln1"]}])
def test_no_limit_loses_a_node_or_a_cut_or_makes_a_cycle(options: dict[str, list[str]]) -> None:
    graph = describe(gradcut.compile(transformer(3), **options))  # type: ignore[arg-type]
    every = {(edge.value, edge.reason) for edge in graph.edges if edge.is_cut}
    for limit in range(1, len(boxes(graph)) + 1):
        small = collapse(graph, limit)
        assert len(boxes(small)) <= limit and sum(one.size for one in boxes(small)) == len(boxes(graph))
        assert networkx.is_directed_acyclic_graph(networkx.DiGraph((one.source, one.target) for one in small.edges))
        between = {(edge.value, edge.reason) for edge in small.edges if edge.is_cut}
        inside = sum(count for one in small.nodes for _, count in one.cuts)
        assert len(between) <= len(every) <= len(between) + inside
        assert {reason for _, reason in every} <= {
            *(reason for _, reason in between),
            *(reason for one in small.nodes for reason, _ in one.cuts),
        }


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_is_not_positive_is_refused_in_one_line(limit: int, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^limit is {limit}: a picture has at least 1 box$"):
        draw(describe_model(chain(2, scoped=False)), tmp_path / "g.svg", limit=limit)
    said = CliRunner().invoke(
        app, ["visualize", str(exported("digits")), "-o", f"{tmp_path}/g.svg", f"--limit={limit}"]
    )
    assert said.exit_code == 2 and said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_has_the_limit_of_the_function() -> None:
    assert inspect.signature(visualize.command).parameters["limit"].default == LIMIT


# --- the picture ---------------------------------------------------------------------------------------------


def test_kinds_differ_in_colour_and_in_shape() -> None:
    dot = to_dot(view("mlp", stop_at=["relu"])[1])
    styles = {name: re.search(rf"{name} \[(.*?)label", dot).group(1) for name in ("l1", "l2", "l3", "l4")}  # type: ignore[union-attr]
    assert len({re.search(r' color="(.*?)"', style).group(1) for style in styles.values()}) == 4  # type: ignore[union-attr]
    assert 'style="rounded,filled"' in styles["l1"] and "penwidth=2.2" in styles["l2"]
    assert "shape=octagon" in styles["l3"] and "style=dashed" in styles["l4"]
    assert "pruned: backward of Relu" in dot


def test_the_legend_has_the_kinds_that_are_in_the_picture() -> None:
    dot = to_dot(describe_model(exported("mlp")))
    assert "l1 [" in dot and "l2 [" in dot and "l3 [" not in dot and "l4 [" not in dot


@pytest.mark.parametrize("limit", [100, 2, 1])
@pytest.mark.parametrize("reason", ["stop-at", "mark"])
def test_a_cut_at_a_mark_is_an_octagon_like_any_other(reason: str, limit: int) -> None:
    stop_at = ["relu"] if reason == "stop-at" else []
    model = exported("mlp") if stop_at else gradcut.stop_gradient(exported("mlp"), "relu")
    graph = describe(gradcut.compile(model, loss="cross_entropy", stop_at=stop_at))
    assert octagons(to_dot(collapse(graph, limit))) == [reason]


def test_what_is_pruned_goes_on_behind_a_mark_that_no_gradient_gets_to() -> None:
    graph = describe(gradcut.compile(transformer(2), train=["head"], stop_at=["x1"]))
    assert [one.reason for one in graph.nodes if one.kind == "mark"] == ["stop-at"]
    dot = to_dot(collapse(graph, 4))
    assert octagons(dot) == ["not trained"]
    assert re.search(r"^b1 -> b3 \[dir=back style=dashed", dot, re.MULTILINE)


def test_cuts_of_one_box_for_one_reason_share_an_octagon_that_counts_them() -> None:
    graph = describe(gradcut.compile(transformer(1), train=["head", "*.down.weight"]))
    assert octagons(to_dot(graph)) == ["not trained"] * 2
    assert octagons(to_dot(collapse(graph, 2))) == ["2 not trained"]
    assert collapse(graph, 2).nodes[1].cuts == (("not-trained", 2),)
    dot = to_dot(collapse(describe(gradcut.compile(transformer(2), train=["head", "*.1.*weight"])), 3))
    assert octagons(dot) == ["not trained"] and dot.count("-> b2 [dir=back arrowtail=tee") == 1


def test_one_is_no_plural_and_not_trained_is_two_words() -> None:
    one = text("""g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}, float[2,2] v = {1,2,3,4}>
    { h = MatMul (x, v)  y = MatMul (h, w) }""")
    dot = to_dot(describe(gradcut.compile(one, train=["w"])))
    assert "backward: 1 node emitted" in dot
    assert "not-trained" not in dot and "v: not trained" in dot and "cut: not trained" in dot


@pytest.mark.parametrize("name", ["transformer", "bert_mini", "resnet18"])
def test_a_picture_of_a_deep_model_fits_on_a_page(name: str, tmp_path: Path) -> None:
    graph = describe_model(transformer() if name == "transformer" else exported(name))
    draw(graph, tmp_path / "g.png")
    width, height = struct.unpack(">II", (tmp_path / "g.png").read_bytes()[16:24])
    assert 500 < width < 2000 and 500 < height < 2500


def test_svg_and_png(tmp_path: Path) -> None:
    graph = view("digits", train=["head.*"])[1]
    draw(graph, tmp_path / "g.svg")
    picture = (tmp_path / "g.svg").read_text()
    for said in ("cut: not trained", "backward of Gemm", "pruned: backward of Conv", "head.weight: trained", "legend"):
        assert said in picture, said
    draw(graph, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SpecError, match=r"a picture ends in \.svg or \.png"):
        draw(graph, tmp_path / "g.gif")


def test_the_same_graph_gives_the_same_bytes_whatever_the_hash_seed() -> None:
    code = (
        "import sys, gradcut; from gradcut.view import describe, to_dot;"
        f"art = gradcut.compile({str(exported('digits'))!r}, loss='cross_entropy', train=['*.bias']);"
        "sys.stdout.write(to_dot(describe(art, 'd')))"
    )
    texts = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1
    assert len({render(texts.copy().pop(), "svg") for _ in range(2)}) == 1


def test_names_that_graphviz_and_html_would_read(tmp_path: Path) -> None:
    odd = onnx.helper.make_node("Relu", ['<a&"b">'], ['c\\n->"d"'], name='n <b>&amp; "q" \\')
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 2]) for name in ('<a&"b">', 'c\\n->"d"')]
    graph = onnx.helper.make_graph([odd], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    draw(describe_model(model, 'a <i> "title" & more'), tmp_path / "g.svg")
    assert "n &lt;b&gt;" in (tmp_path / "g.svg").read_text()
