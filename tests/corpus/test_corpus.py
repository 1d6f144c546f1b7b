"""Every operator case of the onnx package: right, or listed with the reason why it has no gradient. None is wrong."""

from __future__ import annotations

import pytest

from tests.corpus.cases import FLAT_HERE, NO_GRADIENT, Case, cases, judge, listed, share, subject
from tests.corpus.listed import FLAT, REFUSED

#: Of the cases that have a derivative and that the runtime runs, at least this part is right.
AT_LEAST = 0.95


@pytest.mark.parametrize("case", subject(), ids=str)
def test_case_is_right_or_listed(case: Case) -> None:
    found, why = judge(case)
    assert found == case.expected, f"{found}, where tests/corpus/listed.py says {case.expected}: {why}"
    if found == NO_GRADIENT:
        assert REFUSED[listed(case.name, REFUSED)] in why


@pytest.mark.parametrize(("kind", "patterns"), [(NO_GRADIENT, REFUSED), (FLAT_HERE, FLAT)], ids=["refused", "flat"])
def test_every_entry_of_a_list_is_needed(kind: str, patterns: dict[str, str]) -> None:
    """That a case on a list belongs there is what the test of the case says."""
    named = {pattern: [c for c in subject() if listed(c.name, {pattern: ""})] for pattern in patterns}
    assert [pattern for pattern, found in named.items() if not found] == []
    assert [c.name for found in named.values() for c in found if c.expected != kind] == []


def test_names_of_cases_are_distinct() -> None:
    assert len({case.name for case in cases()}) == len(cases())


def test_nearly_all_that_the_runtime_runs_is_right() -> None:
    assert share() >= AT_LEAST
