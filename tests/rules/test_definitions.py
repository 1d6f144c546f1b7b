"""Every definition of every operator: those that the IR can hold, and older ones in files of their opset."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradcut.runtime.check import check_gradients, imported, require
from gradcut.runtime.widen import runtime
from tests.rules.old_forms import FIRST, NEWEST, OLDEST, at_opset, definitions, old_file
from tests.rules.sample import Built, Sample, build
from tests.rules.samples import SAMPLES

#: Forms that are valid, and that the runtime does not take: what it says.
NOT_RUN = {
    ("Clip-crossed", 9): "min_ <= max_ was false",
}
#: Forms that ONNX says nothing of, and that older kernels of the runtime take in another way than its newest.
OTHERWISE = {("AveragePool-less_than_a_window_pads", opset): "they divide by all of a window" for opset in (9, 10, 11)}
PLAIN = [s for s in SAMPLES if not s.domain]
#: Those at opset 21 and at the newest are in test_rules.
BETWEEN = [
    (sample, opset)
    for sample in PLAIN
    for opset in [*definitions(sample.op, FIRST, NEWEST)][:-1]
    if opset > max(FIRST, sample.opset)
]
OLD = [
    (old, sample)
    for sample in PLAIN
    for opset in definitions(sample.op, OLDEST, FIRST - 1)
    if (old := at_opset(sample, opset)) is not None and (str(sample), opset) not in {*NOT_RUN, *OTHERWISE}
]


def label(value: object) -> str:
    return f"{value}-{value.opset}" if isinstance(value, Sample) else str(value)


@pytest.mark.parametrize(("sample", "opset"), BETWEEN, ids=label)
def test_definition_between_the_first_and_the_newest(sample: Sample, opset: int) -> None:
    built = build(sample, opset=opset)
    require(check_gradients(built.model, built.feeds, sample.wanted, built.of, directions=2, seed=3))


@pytest.mark.parametrize(("old", "sample"), OLD, ids=label)
def test_file_of_an_older_definition(old: Sample, sample: Sample) -> None:
    """Import changes no output, and what it makes of the node has the right gradients."""
    given = old_file(old)
    model = imported(given.model)
    before, after = runtime(given.model)(given.feeds), runtime(ir.to_proto(model))(given.feeds)
    for output, mine, theirs in zip(given.model.graph.output, before, after, strict=True):
        if output.name in given.of and not _is_drawn(old, output.name):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-6)
    wanted = tuple(name for name in sample.wanted if name in given.feeds)
    if _nodes(model) != _nodes(imported(build(sample).model)):  # else it is what test_rules checks
        _check(given, wanted)


def _is_drawn(old: Sample, output: str) -> bool:
    """Each run draws anew; and before opset 12 a Dropout that did not train filled no mask."""
    return old.op == "Dropout" and (output == "y1" or len(old.operands) > 2)


def _check(built: Built, wanted: tuple[str, ...]) -> None:
    of = tuple(name for name in built.of if name == "y0" or len(built.of) == 1) or built.of
    require(check_gradients(built.model, built.feeds, wanted, of, directions=2, seed=3))


def _nodes(model: ir.Model) -> list[object]:
    """Operators and their attributes."""
    return [(node.op_type, sorted((a.name, str(a.value)) for a in node.attributes.values())) for node in model.graph]


@pytest.mark.parametrize(("name", "opset"), NOT_RUN)
def test_what_the_runtime_does_not_take(name: str, opset: int) -> None:
    with pytest.raises(Exception, match="Exception during initialization") as raised:
        runtime(given(name, opset).model)
    assert NOT_RUN[name, opset] in str(raised.value)


@pytest.mark.parametrize(("name", "opset"), OTHERWISE)
def test_what_older_kernels_compute_otherwise(name: str, opset: int) -> None:
    file = given(name, opset)
    before, after = (runtime(proto)(file.feeds)[0] for proto in (file.model, ir.to_proto(imported(file.model))))
    assert not np.allclose(before, after)


def given(name: str, opset: int) -> Built:
    """The file of a sample at an older opset."""
    (sample,) = [one for one in PLAIN if str(one) == name]
    old = at_opset(sample, opset)
    assert old is not None
    return old_file(old)
