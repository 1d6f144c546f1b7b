"""Pipelines: text -> passes -> text, and running them.

The text is a list of passes with options in braces::

    stop-gradient{at=encoder/*},propagate{of=loss wrt=[w,b]},differentiate,simplify,lower{target=onnx}

A value with blanks, commas, braces or brackets stands in single quotes. ``str(pipeline)`` parses back to an equal one.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import onnx_ir as ir

from gradcut.errors import PipelineError
from gradcut.passes.base import PASSES, Pass
from gradcut.passes.verify import verify

_TOKEN = re.compile(r"\s*(?:(?P<name>[^\s,{}\[\]='\"]+)|(?P<string>'(?:\\.|[^'\\])*')|(?P<mark>[,{}\[\]=]))")
Watch = Callable[[Pass, ir.Model, float], None]


@dataclass(frozen=True)
class Pipeline(ir.passes.InPlacePass):
    """Passes in order; a pass itself. Equal where its passes are equal."""

    passes: tuple[Pass, ...]
    name: ClassVar[str] = "pipeline"

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from its text; an error shows the place with a caret."""
        return cls(tuple(_Parser(text).pipeline()))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(self.run(model), modified=True)

    def run(self, model: ir.Model, *, verify_each: bool = False, watch: Watch | None = None) -> ir.Model:
        """Run the passes in place.

        Args:
            verify_each: check the model after every pass; a broken one is an error that names the pass.
            watch: called after each pass with it, the model and the seconds it took.
        """
        with collection_held():
            for one in self.passes:
                start = time.perf_counter()
                one(model)
                seconds = time.perf_counter() - start
                if verify_each:
                    verify(model, str(one))
                if watch is not None:
                    watch(one, model, seconds)
        return model


class collection_held:
    """The garbage collector rests while a model is compiled: it finds nothing, and costs a third of the time."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.token, self.kind, self.start = "", "", 0
        self._next()

    def pipeline(self) -> Iterator[Pass]:
        if not self.kind:
            self._fail("an empty pipeline")
        while True:
            yield self._pass()
            if not self.kind:
                return
            self._expect(",")

    def _pass(self) -> Pass:
        start = self.start
        name = self._word("a pass")
        if name not in PASSES:
            self._fail(f"there is no pass {name!r}; there are {', '.join(sorted(PASSES))}", start)
        options: dict[str, list[str]] = {}
        if self.token == "{" and self.kind == "mark":
            self._next()
            while not (self.token == "}" and self.kind == "mark"):
                at = self.start
                key = self._word("an option")
                if key in options:
                    self._fail(f"option {key!r} is given twice", at)
                self._expect("=")
                options[key] = self._values()
                self._check(PASSES[name], key, options[key], at)
            self._next()
        return PASSES[name].from_options(options)

    def _check(self, kind: type[Pass], key: str, values: list[str], at: int) -> None:
        try:
            kind.from_options({key: values})
        except PipelineError as error:
            self._fail(str(error), at)

    def _values(self) -> list[str]:
        if not (self.kind == "mark" and self.token == "["):
            return [self._word("a value")]
        self._next()
        values = []
        while not (self.kind == "mark" and self.token == "]"):
            values.append(self._word("a value"))
            if self.kind == "mark" and self.token == ",":
                self._next()
        self._next()
        return values

    def _word(self, what: str) -> str:
        if self.kind not in ("name", "string"):
            self._fail(f"{what} is expected here")
        token = self.token
        if self.kind == "string":
            token = re.sub(r"\\(.)", r"\1", token[1:-1])
        self._next()
        return token

    def _expect(self, mark: str) -> None:
        if self.kind != "mark" or self.token != mark:
            self._fail(f"{mark!r} is expected here")
        self._next()

    def _next(self) -> None:
        rest = self.text[self.at :]
        if not rest.strip():
            self.token, self.kind, self.start = "", "", len(self.text)
            return
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            self.start = self.at
            self._fail("this is not pipeline text")
        assert found.lastgroup is not None
        self.kind, self.token = found.lastgroup, found.group(found.lastgroup)
        self.start, self.at = found.start(found.lastgroup), found.end()

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self.start if at is None else at
        before, line = self.text[:place].rpartition("\n")[2], self.text[place:].partition("\n")[0]
        raise PipelineError(f"{what}\n  {before}{line}\n  {' ' * len(before)}^")
