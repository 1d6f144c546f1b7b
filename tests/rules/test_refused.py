"""What a rule does not cover it refuses, by node, operator, opset and reason; nothing is ever silently wrong."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import pytest

import gradcut
from gradcut.errors import NoGradientError
from gradcut.rules import REGISTRY
from tests.rules.sample import Sample, build, ints, normal, sample
from tests.rules.samples_control_flow import body

IMAGE = normal(1, 2, 5, 5)
WINDOW = {"kernel_shape": [2, 2], "strides": [2, 2]}

DRAWN = (
    "a graph inside it draws at random (Multinomial), and its backward would draw anew; put the draw before it, "
    "or take it out"
)
_DRAW = "m = Multinomial(h) r = Cast<to = 1>(m) n = Mul(h, r)"
TURN = f"b (int64 i, bool c, float[1, 3] h) => (bool d, float[1, 3] n) {{ d = Identity(c) {_DRAW} }}"
STEP = f"b (float[1, 2] h) => (float[1, 2] n) {{ {_DRAW} }}"
INDEX = ints(0, 1).reshape(2, 1)
MICROSOFT = "com.microsoft"

REFUSED: list[tuple[Sample, str, str]] = [
    (sample("Loop", "drawing", ints(3)[0], None, normal(1, 3), body=body(TURN)), "static", DRAWN),
    (sample("Scan", "drawing", normal(3, 1, 2), body=body(STEP), num_scan_inputs=1), "static", DRAWN),
    (
        sample("Col2Im", "line", normal(1, 4, 4), ints(6), ints(2), dilations=[2]),
        "static",
        "dilations of other than two axes, of which ONNX Runtime makes another image than ONNX says",
    ),
    (
        sample("DeformConv", "volume", normal(1, 2, 3, 3, 3), normal(2, 2, 1, 1, 1), normal(1, 3, 3, 3, 3)),
        "static",
        "X has 3 spatial axes, and only 2 are covered",
    ),
    (
        sample("Attention", "rotary", normal(2, 3, 4), normal(4, 12), domain=MICROSOFT, num_heads=2, do_rotary=1),
        "static",
        "do_rotary or past_present_share_buffer has no rule",
    ),
    (
        sample("Attention", "sizes", normal(2, 3, 4), normal(4, 10), domain=MICROSOFT, num_heads=2, outputs=2,
               qkv_hidden_sizes=[4, 4, 2]),
        "static",
        "its output present holds keys and values of different sizes, which ONNX Runtime does not lay out",
    ),
    (
        sample("FusedMatMul", "vector", normal(4, 3), normal(4), domain=MICROSOFT, transA=1),
        "static",
        "B is a vector and A transposed, and ONNX Runtime multiplies by another matrix there; unfuse it",
    ),
    (
        sample("GroupQueryAttention", "places", normal(1, 1, 32), normal(1, 1, 16), normal(1, 1, 16),
               normal(1, 2, 2, 8), normal(1, 2, 2, 8), ints(2).astype(np.int32), np.int32(3), None, None,
               ints(2).reshape(1, 1), domain=MICROSOFT, num_heads=4, kv_num_heads=2, outputs=3),
        "static",
        "position_ids beside past keys have no rule",
    ),
    (
        sample("MatMulNBits", "packed_before", normal(2, 16), np.zeros((3, 1, 8), np.uint8), normal(3, 1),
               domain=MICROSOFT, K=16, N=3, bits=4, block_size=16, weight_prepacked=1),
        "static",
        "g_idx or weight_prepacked has no rule",
    ),
    (
        sample("MultiHeadAttention", "beams", normal(2, 1, 4), normal(2, 1, 4), normal(2, 1, 4), *[None] * 6,
               np.zeros((2, 1, 1), np.int32), domain=MICROSOFT, num_heads=2),
        "static",
        "cache_indirection has no rule",
    ),
    (
        sample("RotaryEmbedding", "packed", normal(2, 3, 8), ints(0), normal(5, 2), normal(5, 2), domain=MICROSOFT,
               runtime="position_ids", is_packed_batching=1),
        "static",
        "is_packed_batching=1 has no rule",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "form", "reason"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_configuration_is_refused(sample: Sample, form: str, reason: str) -> None:
    built = build(sample, form)
    with pytest.raises(NoGradientError) as caught:
        gradcut.vjp(built.model, [sample.wanted[0]], list(built.of))
    assert str(caught.value) == f"node 'node' ({sample.op}, opset 21) has no gradient here: {reason}"


def test_what_is_refused_is_said_in_the_rules_docstring_for_the_readme() -> None:
    said = {rule.op_type for rule in REGISTRY if rule.limits}
    assert said == {row[0].op for row in REFUSED} | {"If"}  # which has no operand of its own, see tests.control_flow


@pytest.mark.parametrize(("outputs", "place"), [("h", "h"), (", h", "h"), ("'my h'", "'my h'")])
def test_an_operator_without_a_rule_says_where_to_stop(outputs: str, place: str) -> None:
    """By the first output that the file does not leave out, as the command line takes it."""
    node = onnx.helper.make_node("Own", ["x"], [name.strip(" '") for name in outputs.split(",")], "n", domain="own")
    name = node.output[-1]
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("Neg", [name], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        value_info=[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("own", 1)]
    with pytest.raises(NoGradientError) as caught:
        gradcut.vjp(onnx.helper.make_model(graph, opset_imports=opsets), ["x"], ["y"])
    assert str(caught.value) == (
        "node 'n' (own.Own, opset 1) has no gradient here: there is no derivative rule for this operator. Freeze what "
        f"lies before it, stop there with --stop-at {place} (stop_at), or give it a rule with gradcut.register_rule."
    )
