"""Every rule against finite differences: all subsets of operands, forms of shapes, opsets, dtypes, second uses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, combinations

import onnx
import pytest

import gradcut
from gradcut.dialect import DOMAIN
from gradcut.errors import NoGradientError
from gradcut.passes.differentiate import ADJOINT
from gradcut.rules import REGISTRY
from gradcut.rules.registry import is_variadic
from gradcut.runtime.check import check_gradients, imported, require
from gradcut.runtime.differences import Differences
from gradcut.runtime.widen import runtime
from tests.rules.sample import Built, Sample, build
from tests.rules.samples import SAMPLES

#: Up to so many names each subset is taken; of more, so many random ones, by this seed.
MOST, RANDOM, SEED = 4, 8, 20240607
DRAWS = [sample for sample in SAMPLES if sample.op == "Dropout" and len(sample.operands) > 2]
OTHERS = [sample for sample in SAMPLES if sample not in DRAWS]


def each(samples: list[Sample] | tuple[Sample, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("sample", samples, ids=str)


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All but the empty one; of more than four names: each alone, all, and a few at random."""
    if len(names) <= MOST:
        return chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))
    draw = random.Random(f"{SEED} {names}")
    some = [tuple(name for name in names if draw.random() < 0.5) for _ in range(RANDOM)]
    return iter(dict.fromkeys([*((name,) for name in names), names, *filter(None, some)]))


def check(built: Built, wrt: tuple[str, ...], of: tuple[str, ...] = (), differences: Differences | None = None) -> None:
    require(
        check_gradients(built.model, built.feeds, wrt, of or built.of, directions=2, seed=3, differences=differences)
    )


#: Rules of derivatives by operands: an If has them by what its branches capture (tests/control_flow), and those of the
#: dialect's own operators stand in for a derivative where there is none (StraightThrough, tests/passes).
DERIVATIVES = [rule for rule in REGISTRY if rule.vjp and rule.differentiable and rule.domain != DOMAIN]
#: Those of sequences, which no sample has among its operands: tests/rules/test_sequences.py.
SEQUENCES = frozenset(
    "SequenceConstruct SequenceAt SequenceInsert SequenceErase SplitToSequence ConcatFromSequence".split()
)


def test_every_rule_has_samples() -> None:
    sampled = {(sample.domain, sample.op) for sample in SAMPLES}
    without = {rule.op_type for rule in DERIVATIVES if (rule.domain, rule.op_type) not in sampled}
    assert without == SEQUENCES


def test_every_operand_that_has_a_derivative_is_wanted_in_some_sample() -> None:
    wanted: dict[tuple[str, str], set[str]] = {}
    for sample in SAMPLES:
        names = (sample.rule.operands[-1] if "_" in name and name not in sample.rule.operands else name
                 for name in sample.wanted)  # fmt: skip
        wanted.setdefault((sample.domain, sample.op), set()).update(names)
    missing = {r.op_type: r.differentiable - wanted.get((r.domain, r.op_type), set()) for r in DERIVATIVES}
    assert {op: names for op, names in missing.items() if names and op not in SEQUENCES} == {}


def test_names_of_samples_are_distinct() -> None:
    assert len(set(map(str, SAMPLES))) == len(SAMPLES)


@each(OTHERS)
def test_every_subset_of_operands(sample: Sample) -> None:
    built = build(sample)
    outputs = dict(zip((o.name for o in built.model.graph.output), runtime(built.model)(built.feeds), strict=True))
    like = [outputs[name] for name in built.of]
    differences = Differences(imported(built.model), built.feeds, built.of, sample.wanted, like=like, seed=3)
    for wrt in subsets(sample.wanted):
        check(built, wrt, differences=differences)


@each(DRAWS)
def test_every_subset_of_operands_of_what_draws(sample: Sample) -> None:
    for wrt in subsets(sample.wanted):
        check(build(sample), wrt)


@each(SAMPLES)
def test_one_operand_alone_leaves_nothing_of_the_others(sample: Sample) -> None:
    built = build(sample)
    sizes = {wrt: len(adjoints(built, wrt)) for wrt in ((name,) for name in sample.wanted)}
    everything = len(adjoints(built, sample.wanted))
    for (name,), size in sizes.items():
        served = {tag.split(":", 1)[1] for tag in adjoints(built, (name,))}
        assert served <= {label(sample, name)}
        assert size <= everything


def adjoints(built: Built, wrt: tuple[str, ...]) -> list[str]:
    """Which operand each backward node serves."""
    proto = gradcut.vjp(built.model, list(wrt), list(built.of))
    return [p.value for node in proto.graph.node for p in node.metadata_props if p.key == ADJOINT]


def label(sample: Sample, name: str) -> str:
    """The operand's name in the metadata: ``data_0[2]`` for one of many."""
    base, _, number = name.rpartition("_")
    if not is_variadic(sample.domain, sample.op):
        return name
    return f"{name}[0]" if name in sample.rule.operands else f"{base}[{number}]"


@each(SAMPLES)
def test_newest_opset(sample: Sample) -> None:
    check(build(sample, opset=26), sample.wanted)


@each(SAMPLES)
def test_symbolic_dimensions(sample: Sample) -> None:
    built = build(sample, "dynamic")
    for name in sample.wanted:
        check(built, (name,))
    check(built, sample.wanted)


@each(SAMPLES)
def test_unknown_shapes_are_right_or_refused(sample: Sample) -> None:
    built = build(sample, "unknown")
    if sample.needs_rank and "X" not in sample.known:
        with pytest.raises(NoGradientError, match=r"the rank of \w+ \(\w+\) is unknown"):
            gradcut.vjp(built.model, list(sample.wanted), list(built.of))
    else:
        check(built, sample.wanted)


@each(SAMPLES)
def test_second_use_of_every_operand_and_output(sample: Sample) -> None:
    check(build(sample, fan_out=True), sample.wanted)


@each([sample for sample in SAMPLES if len(build(sample).of) > 1])
def test_one_output_alone(sample: Sample) -> None:
    built = build(sample)
    for of in subsets(built.of):
        if of != built.of:
            check(built, sample.wanted, of)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@each(SAMPLES)
def test_dtypes(sample: Sample, dtype: str) -> None:
    if dtype in sample.dtypes:
        other = sample.with_dtype(dtype)
        check(build(other), other.wanted)


def takes_bfloat16(sample: Sample) -> bool:
    """Whether the newest definition of the operator does."""
    if sample.domain or "float16" not in sample.dtypes:
        return False
    return any(
        "tensor(bfloat16)" in one.allowed_type_strs for one in onnx.defs.get_schema(sample.op, 26, "").type_constraints
    )


@each([sample for sample in SAMPLES if takes_bfloat16(sample)])
def test_bfloat16(sample: Sample) -> None:
    """Gradients are of the model's type, and right where ONNX Runtime has a kernel in that type for the operator."""
    other = sample.with_dtype("bfloat16")
    built = build(other, opset=26)
    proto = gradcut.vjp(built.model, list(other.wanted), list(built.of))
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.output}
    assert {types[f"{name}_grad"] for name in other.wanted} == {onnx.TensorProto.BFLOAT16}
    if runs(built):
        check(built, other.wanted)


def runs(built: Built) -> bool:
    try:
        runtime(built.model)(built.feeds)
    except Exception:  # onnxruntime's own kinds: no kernel
        return False
    return True


def twice(op: str) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[2,2] x) => (float[2,2] y) {{ y = {op}(x, x) }}'
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "MatMul", "Gemm"])
def test_one_value_as_both_operands(op: str) -> None:
    require(check_gradients(twice(op)))
