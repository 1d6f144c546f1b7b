"""The description of a cut graph against the compiler's own answers, and its picture."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest

import gradcut
from gradcut.cost import ADJOINT
from gradcut.errors import SpecError
from gradcut.view import CutGraph, Node, describe, describe_model, draw, to_dot
from gradcut.view.collapse import collapse
from gradcut.view.draw import render
from tests.exported import exported, text


def view(name: str, **options: object) -> tuple[gradcut.TrainingArtifacts, CutGraph]:
    artifacts = gradcut.compile(exported(name), loss="cross_entropy", **options)  # type: ignore[arg-type]
    return artifacts, describe(artifacts, name)


def node(graph: CutGraph, name: str) -> Node:
    return next(one for one in graph.nodes if one.id == name)


def operands(found: Node, status: str) -> list[str]:
    return [one.operand for one in found.adjoints if one.status == status]


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
    cuts = [(edge.value, edge.target, edge.reason) for edge in graph.edges if edge.backward == "cut"]
    assert cuts == [("view", "node_linear", "not-trained")]
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


def test_a_loss_in_the_model_and_no_loss_at_all() -> None:
    scalar = text("""g (float[N,3] x) => (float[1] y, float[N,2] h) <float[3,2] w = {1,2,3,4,5,6}, int64[1] s = {1}>
    { h = MatMul (x, w)  m = ReduceMean<keepdims=0> (h)  y = Reshape (m, s) }""")
    own = describe(gradcut.compile(scalar))
    assert [one.id for one in own.nodes if one.kind == "output"] == ["output:y", "output:h"]
    assert not any(one.kind == "loss" for one in own.nodes)
    bare = describe(gradcut.compile(exported("mlp")))
    assert not any(one.kind == "loss" for one in bare.nodes)
    assert operands(node(bare, "node_linear"), "emitted") == ["B", "C"]


# --- fewer boxes ---------------------------------------------------------------------------------------------


def chain(length: int, scoped: bool) -> onnx.ModelProto:
    names = [f"part{i // 100}.layer{i // 10 % 10}/n{i}" if scoped else f"n{i}" for i in range(length)]
    nodes = [onnx.helper.make_node("Mul", [f"v{i}", "w"], [f"v{i + 1}"], name) for i, name in enumerate(names)]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 2]) for name in ("v0", f"v{length}")]
    weight = onnx.helper.make_tensor("w", 1, [2], [1.0, 2.0])
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("scoped", [True, False])
def test_collapsing_keeps_every_node_in_some_box(scoped: bool) -> None:
    graph = describe_model(chain(1200, scoped))
    small = collapse(graph, 130)
    assert len(small.nodes) <= 140
    assert sum(one.size for one in small.nodes if one.kind == "group") == 1200
    assert len(small.edges) == len(small.nodes) - 1
    assert Counter(edge.backward for edge in small.edges) == {"planned": len(small.edges) - 1, "cut": 1}
    assert collapse(graph, 10_000) is graph
    scopes = [one.scope for one in small.nodes if one.kind == "group"]
    assert scopes[0] == ("part0.layer0" if scoped else "nodes 1 to 10")
    assert len(collapse(graph, 20).nodes) <= 22


def test_groups_count_what_is_in_them() -> None:
    graph = describe_model(chain(100, scoped=True))
    group = next(one for one in collapse(graph, 20).nodes if one.kind == "group")
    assert group.op == "10 nodes: 10 Mul"
    assert [(one.name, one.status) for one in group.parameters] == [("10 parameters", "trained")]
    assert [(one.operand, one.reason) for one in group.adjoints] == [("1 operand", "data"), ("19 operands", "")]


# --- the picture ---------------------------------------------------------------------------------------------


def test_kinds_differ_in_colour_and_in_shape() -> None:
    dot = to_dot(view("mlp", stop_at=["relu"])[1])
    styles = {name: re.search(rf"{name} \[(.*?)label", dot).group(1) for name in ("l1", "l2", "l3", "l4")}  # type: ignore[union-attr]
    assert len({re.search(r' color="(.*?)"', style).group(1) for style in styles.values()}) == 4  # type: ignore[union-attr]
    assert 'style="rounded,filled"' in styles["l1"] and "penwidth=2.2" in styles["l2"]
    assert "shape=octagon" in styles["l3"] and "style=dashed" in styles["l4"]
    assert "StopGradient" in dot and "stop-at" in dot and "pruned: backward of Relu" in dot


def test_svg_and_png(tmp_path: Path) -> None:
    graph = view("digits", train=["head.*"])[1]
    draw(graph, tmp_path / "g.svg")
    picture = (tmp_path / "g.svg").read_text()
    for said in ("cut: not", "backward of Gemm", "pruned: backward of Conv", "head.weight: trained", "legend"):
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
