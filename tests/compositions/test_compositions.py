"""Random graphs of many operators against torch: two hundred here, thousands by ``python -m tests.compositions``."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
import pytest

from gradcut.rules import REGISTRY, Adjoint, Cotangents
from tests.compositions.compare import verdict
from tests.compositions.generate import Case, generate, operators
from tests.compositions.makers import MAKERS
from tests.compositions.shrink import smallest
from tests.compositions.training import disagreement, training
from tests.compositions.widths import retyped
from tests.rules.test_planted import planted

BLOCKS, BLOCK = 10, 20
#: Operators with a derivative that no maker writes, and why.
ELSEWHERE = {
    "AffineGrid": "tests/rules: what torch has is of one rank at a time",
    "ConcatFromSequence": "tests/rules/test_sequences.py",
    "CumProd": "of opset 26, and torch's has neither reverse nor exclusive",
    "DFT": "tests/rules",
    "DeformConv": "not in torch itself",
    "DequantizeLinear": "tests/rules: its operand is an integer",
    "DynamicQuantizeLinear": "tests/rules: it gives integers",
    "GridSample": "tests/rules",
    "GRU": "tests/rules: against torch.nn",
    "If": "tests/test_vjp_random.py",
    "LSTM": "tests/rules: against torch.nn",
    "Loop": "tests/rules",
    "MaxRoiPool": "not in torch itself",
    "RNN": "tests/rules: against torch.nn",
    "Range": "tests/rules",
    "RoiAlign": "not in torch itself",
    "RotaryEmbedding": "not in torch",
    "STFT": "tests/rules",
    **dict.fromkeys(
        "SequenceAt SequenceConstruct SequenceErase SequenceInsert".split(), "tests/rules/test_sequences.py"
    ),
    "SimplifiedLayerNormalization": "ONNX Runtime's own",
    "Scan": "tests/rules",
    "SplitToSequence": "tests/rules/test_sequences.py",
    "SwiGLU": "not in torch",
    "Swish": "ONNX Runtime has no kernel",
    "TensorScatter": "not in torch",
    "Unique": "its shape depends on the data",
}
_KNOWN_LIMITS = ("the rank of ",)


def explained(seed: int) -> str:
    small = smallest(generate(seed))
    return f"seed {seed}; the smallest graph that still fails:\n{small}\n{verdict(small).text}"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_gradients_of_random_graphs_equal_torchs(block: int) -> None:
    """Refused is only what has no rank; kinks, and what ONNX Runtime cannot run, are few."""
    kinds = Counter[str]()
    for seed in range(BLOCK * block, BLOCK * (block + 1)):
        found = verdict(generate(seed))
        kinds[found.kind] += 1
        assert not found.failed, explained(seed)
        assert found.kind != "refused" or any(limit in found.text for limit in _KNOWN_LIMITS), found.text
    assert kinds["right"] >= 0.85 * BLOCK, kinds


def test_every_operator_is_in_the_first_two_hundred_graphs() -> None:
    """So the makers make something, and no operator with a derivative is forgotten."""
    seen = {op for seed in range(BLOCKS * BLOCK) for op in generate(seed).operators}
    assert set(operators()) <= seen
    derived = {rule.op_type for rule in REGISTRY if rule.vjp is not None and rule.domain == ""}
    assert derived - set(MAKERS) - set(ELSEWHERE) == set()


def test_the_same_seed_gives_the_same_case() -> None:
    assert str(generate(7)) == str(generate(7))
    assert str(generate(7)) != str(generate(8))


@pytest.mark.filterwarnings("ignore::gradcut.errors.GradcutWarning")
@pytest.mark.parametrize("block", range(4))
def test_a_step_of_sgd_on_a_random_graph_is_torchs(block: int) -> None:
    """Of random parameters, some of them frozen, through the marks that the graph has."""
    cases = [training(seed) for seed in range(12 * block, 12 * (block + 1))]
    told = [one for one in cases if one is not None]
    assert len(told) > 6
    for one in told:
        assert disagreement(one) is None, f"{one.train} {one.freeze} {one.output}\n{one.case}"


@pytest.mark.parametrize("width", ["float16", "float64"])
def test_gradients_in_the_model_s_own_width(width: str) -> None:
    """Of small graphs, as far as ONNX Runtime has kernels: it lacks more than half of float64's."""
    kinds = Counter[str]()
    for seed in range(40):
        found = verdict(retyped(generate(seed, 3, 8), width))
        kinds[found.kind] += 1
        assert not found.failed, f"seed {seed}: {found.text}"
    assert kinds["right"] >= {"float16": 30, "float64": 12}[width], kinds


# --- the shrinker --------------------------------------------------------------------------------------------


def twice_too_much(op: Adjoint) -> Cotangents:
    yield "input", op.dY * op.out() * 2.0


def without_mask(op: Adjoint) -> Cotangents:
    yield "X", op.dY


@pytest.mark.parametrize(("op", "wrong"), [("Exp", twice_too_much), ("Relu", without_mask)])
def test_a_planted_wrong_rule_is_found_and_left_alone(op: str, wrong: object) -> None:
    """Of thirty nodes the wrong one is left, over as few numbers as show it."""
    with planted(op, vjp=wrong):
        failing = (s for s in range(2000) if op in generate(s).operators and verdict(generate(s)).kind == "gradient")
        case = generate(next(failing))
        small = smallest(case)
        assert verdict(small).kind == "gradient"
    assert small.operators == [op] and len(case.operators) > 1
    assert len(small.of) == len(small.wrt) == 1 and not small.stop_at
    (leaf,) = [*small.feeds.values(), *map(onnx.numpy_helper.to_array, small.model.graph.initializer)]
    assert leaf.size == 1
    assert not verdict(small).failed, "by the right rule nothing is wrong with it"
    assert f"seed {case.seed}" in str(small) and ir.from_onnx_text(text_of(str(small))).graph.name == "composition"


def text_of(printed: str) -> str:
    """The graph in what a case prints, as ONNX text."""
    return printed.partition("\n")[2].rpartition("\nfed:")[0]


def wrong_slope(op: Adjoint) -> Cotangents:
    if op.wants("X"):
        yield "X", op.b.Where(op.b.Greater(op["X"], op.b.zeros_like(op["X"])), op.dY, op.dY * op["slope"])
    if op.wants("slope"):
        yield "slope", op.dY * op["X"]


def has_two_operands(case: Case, op: str) -> bool:
    return any(node.op_type == op and len(set(node.input)) == 2 for node in case.model.graph.node)


def test_of_two_operands_the_wrong_one_is_left() -> None:
    with planted("PRelu", vjp=wrong_slope):
        cases = (case for case in map(generate, range(2000)) if has_two_operands(case, "PRelu"))
        small = smallest(next(case for case in cases if verdict(case).failed))
    assert small.operators == ["PRelu"]
    assert small.wrt == (small.model.graph.node[0].input[1],)
