"""Samples in the form that an operator had at an older opset."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import onnx.defs
from onnx.defs import OpSchema

from tests.rules.sample import Array, Built, Sample, build

OLDEST, FIRST, NEWEST = 9, 21, 26
#: Attributes that had another name than the operand which came in their place.
_RENAMED = {"K": "k", "constant_value": "value"}
#: Modes of GridSample by the names they had before opset 20.
_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@functools.cache
def _history() -> dict[str, list[int]]:
    """Opsets at which operators were defined anew."""
    found = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name].add(schema.since_version)
    return {op: sorted(opsets) for op, opsets in found.items()}


def definitions(op: str, first: int, last: int) -> Iterator[int]:
    """An opset for each definition of an operator that is in force somewhere in a range: the first such opset.

    None for an operator that ONNX does not define (`SimplifiedLayerNormalization`, in ONNX's own domain).
    """
    ends = [*_history().get(op, []), last + 1]
    in_force = [max(one, first) for one, after in pairwise(ends) if after > first]
    return (opset for opset in in_force if opset <= last)


def at_opset(sample: Sample, opset: int) -> Sample | None:
    """The sample as a file of an older opset has it; None where that had no such form.

    What is an operand today and was an attribute then becomes one.
    """
    schema = onnx.defs.get_schema(sample.op, opset, "")
    if sample.op == "GroupNormalization":  # before opset 21 of other shapes: tests/passes/test_import.py
        return None
    old = _with_attributes(sample, schema, opset)
    if old is not None and sample.op == "GridSample" and opset < 20 and "mode" in old.attributes:
        old.attributes["mode"] = _MODES.get(old.attributes["mode"], old.attributes["mode"])
    if old is None or any(name not in schema.attributes for name in old.attributes):
        return None
    return old if sample.outputs <= schema.max_output and _valid(old) else None


def _with_attributes(sample: Sample, schema: OpSchema, opset: int) -> Sample | None:
    attributes, count = dict(sample.attributes), len(sample.operands) if _variadic(schema) else len(schema.inputs)
    for index, array in enumerate(sample.operands[count:], count):
        name = _RENAMED.get(sample.rule.operands[index], sample.rule.operands[index])
        if array is None:
            continue
        if not array.size or name not in schema.attributes or sample.operand(index) in sample.runtime:
            return None
        attributes[name] = _attribute(array, schema.attributes[name])
    return replace(sample, operands=sample.operands[:count], attributes=attributes, opset=opset)


def _valid(sample: Sample) -> bool:
    """Whether ONNX itself takes the file: a type, or an operand left out, may be of a later definition."""
    try:
        onnx.checker.check_model(old_file(sample).model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _variadic(schema: OpSchema) -> bool:
    return bool(schema.inputs) and schema.inputs[-1].option == OpSchema.FormalParameterOption.Variadic


def _attribute(array: Array, schema: OpSchema.Attribute) -> object:
    return array.reshape(-1).tolist() if schema.type.name.endswith("S") else np.asarray(array).reshape(-1)[0].item()


def old_file(sample: Sample) -> Built:
    """The model of a sample in its older form, at that opset."""
    return build(sample, opset=sample.opset)
