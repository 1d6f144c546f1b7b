"""``gradcut opt``: a model through a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from gradcut.cli.console import PassWatch, PrintAfter, TimePasses, VerifyEach


class OptCommand(TyperCommand):
    """Its help lists the passes; they are imported only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from gradcut.passes import PASSES

        super().format_help(ctx, formatter)
        with formatter.section("Passes"):
            formatter.write_dl([(one.usage(), one.summary()) for _, one in sorted(PASSES.items())])


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An .onnx file, or text (.onnxtxt, .textproto, .json).")
    ],
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", metavar="PIPELINE", help="import,propagate{wrt=w},differentiate,...")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help=".onnx or .onnxtxt; by default text on stdout."),
    ] = None,
    print_ir_after: PrintAfter = None,
    verify_each: VerifyEach = False,
    time_passes: TimePasses = False,
) -> None:
    """Run a pipeline of passes over MODEL."""
    import onnx_ir as ir

    from gradcut.errors import SpecError
    from gradcut.io import atomic_write, atomic_write_bytes
    from gradcut.passes import Pipeline
    from gradcut.source import TEXT_SUFFIXES, as_text, own, require_one_message, take_in

    binary = output is not None and output.suffix == ".onnx"
    if output is not None and not binary and output.suffix not in TEXT_SUFFIXES:
        raise SpecError(f"{output}: a model is written as .onnx, or as text: {', '.join(TEXT_SUFFIXES)}")
    parsed, watch = Pipeline.parse(pipeline), PassWatch(print_ir_after, time_passes)
    result = parsed.run(own(model), verify_each=verify_each, watch=watch.watch)
    watch.report()
    require_one_message(result, "what opt writes")
    take_in(result)  # what is written may lie, and what is printed be read, where the weights do not
    if binary and output is not None:
        atomic_write(output, lambda path: ir.save(result, path, format="protobuf"))
    elif output is not None:
        atomic_write_bytes(output, as_text(result, output.suffix))
    else:
        typer.echo(ir.to_onnx_text(result))
