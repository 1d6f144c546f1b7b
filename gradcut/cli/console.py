"""What several commands print: headed lines, warnings, the IR after a pass, times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import onnx_ir as ir

    from gradcut.passes import Pass
    from gradcut.passes.pipeline import Watch

PrintAfter = Annotated[
    list[str] | None,
    typer.Option("--print-ir-after", metavar="PASS|all", help="Print the model, without weights, after a pass."),
]
VerifyEach = Annotated[bool, typer.Option("--verify-each", help="Check the model after every pass.")]
TimePasses = Annotated[bool, typer.Option("--time-passes", help="Print how long each pass took.")]


def rows(lines: Iterable[tuple[str, str]], width: int = 12) -> None:
    """Print headings and sentences in two columns."""
    for heading, text in lines:
        typer.echo(typer.style(heading.ljust(width), bold=True) + text)


def warn(text: str) -> None:
    typer.echo(typer.style("warning: ", fg="yellow", bold=True) + text, err=True)


class PassWatch:
    """Prints the IR after the passes asked for, and remembers times; everything goes to stderr.

    Raises:
        SpecError: there is no pass of a name that was asked for.
    """

    def __init__(self, after: Iterable[str] | None, timed: bool) -> None:
        self.after, self.timed = set(after or ()), timed
        self.times: list[tuple[str, float]] = []
        self._check()

    def _check(self) -> None:
        from gradcut.errors import SpecError
        from gradcut.passes.base import PASSES

        for name in sorted(self.after - {"all", *PASSES}):
            raise SpecError(
                f"--print-ir-after: there is no pass {name!r}; there are {', '.join(sorted(PASSES))}, or all"
            )

    @property
    def watch(self) -> Watch | None:
        """For `Pipeline.run`; None where nothing was asked for."""
        return self._see if self.after or self.timed else None

    def _see(self, one: Pass, model: ir.Model, seconds: float) -> None:
        self.times.append((one.name, seconds))
        if "all" in self.after or one.name in self.after:
            import onnx_ir as ir

            typer.echo(f"// after {one}", err=True)
            typer.echo(ir.to_onnx_text(model, exclude_initializers=True), err=True)

    def report(self) -> None:
        """Print the times, where they were asked for."""
        if not self.timed:
            return
        for name, seconds in [*self.times, ("total", sum(seconds for _, seconds in self.times))]:
            typer.echo(f"{seconds * 1e3:10.1f} ms  {name}", err=True)
