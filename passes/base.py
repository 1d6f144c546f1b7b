"""What a gradcut pass is: a frozen dataclass on onnx_ir's pass infrastructure whose fields are its text options."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any, ClassVar, TypeVar

import onnx_ir as ir

from gradcut.errors import PipelineError, SpecError
from gradcut.parameters import FROZEN as FROZEN  # one of those below: it is in files, torch's export writes it too
from gradcut.text import format_scalar, nearest, parse_scalar, quote

PASSES: dict[str, type[Pass]] = {}
P = TypeVar("P", bound="type[Pass]")

#: Operators that draw at random: equal calls are different draws, and none is constant.
DRAWING = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)

#: Model metadata that passes hand on; model-level metadata survives text.
TRAINABLE = "gradcut.trainable"
QUESTION = "gradcut.question"
GRADIENTS = "gradcut.gradients"
PIPELINE = "gradcut.pipeline"
LOSS = "gradcut.loss"
#: Initializers that something else than the step at hand moves: another step, or the update of a declared state.
HELD = "gradcut.held"
#: Key of `ir.Model.meta`, which no file holds: the `Activity` that `propagate` found.
ACTIVITY = "gradcut.activity"
#: Likewise: what each constant of the model is, as `stop-gradient` found it when it chose.
DECISIONS = "gradcut.decisions"
#: Likewise: the inputs that declared state has become, by name.
DECLARED = "gradcut.declared"


class Pass(ir.passes.InPlacePass):
    """Base of every pass; ``str(p)`` is its pipeline text."""

    name: ClassVar[str]

    def __str__(self) -> str:
        options = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != _default(field):
                options.append(f"{field.name.replace('_', '-')}={_format(value)}")
        return self.name + (f"{{{' '.join(options)}}}" if options else "")

    @classmethod
    def usage(cls) -> str:
        """The pass with the names of its options: ``lower{target}``."""
        options = " ".join(field.name.replace("_", "-") for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        return cls.name + (f"{{{options}}}" if options else "")

    @classmethod
    def summary(cls) -> str:
        """What the pass does, in a sentence."""
        return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")

    @classmethod
    def from_options(cls, options: dict[str, list[str]]) -> Pass:
        """The pass with options as pipeline text gives them."""
        fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values = {}
        for key, texts in options.items():
            if key not in fields:
                hint = nearest(key, fields) or sorted(fields)
                raise PipelineError(f"pass {cls.name!r} has no option {key!r}; it has {', '.join(hint) or 'none'}")
            values[fields[key].name] = _parse(cls.name, key, fields[key], texts)
        return cls(**values)


def register(cls: P) -> P:
    """Make a pass known to pipeline text."""
    PASSES[cls.name] = cls
    return cls


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_format(item) for item in value) + "]" if len(value) != 1 else _format(value[0])
    return quote(value) if isinstance(value, str) else format_scalar(value)


def _parse(pass_name: str, key: str, field: dataclasses.Field[Any], texts: list[str]) -> Any:
    kind = str(field.type)
    if kind.startswith("tuple"):
        return tuple(texts)
    if len(texts) != 1:
        raise PipelineError(f"option {key!r} of pass {pass_name!r} takes one value, not {len(texts)}")
    if kind.startswith("str"):
        return texts[0]
    value = parse_scalar(texts[0])
    kinds: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
    wanted = kinds[kind.split(" ")[0]]
    if not isinstance(value, wanted) or (kind.startswith("int") and isinstance(value, bool)):
        raise PipelineError(f"option {key!r} of pass {pass_name!r} is {kind}, not {texts[0]!r}")
    return value


# --- metadata ------------------------------------------------------------------------------------------------


def read_json(model: ir.Model, key: str) -> Any:
    """A metadata property as JSON, None where it is absent."""
    text = model.metadata_props.get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise SpecError(f"the model's metadata property {key} is no JSON ({error}): {text[:80]!r}") from error


def write_json(model: ir.Model, key: str, value: Any) -> None:
    model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
