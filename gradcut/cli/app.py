"""The application: its commands, and how every one of them ends.

Exit codes: 0, 1 for a fault of ours, 2 for a mistake of the user's, 130 for an interrupt. An error is one line on
stderr; ``--debug``, anywhere on the line, shows the traceback as well.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gradcut.cli import check, compile, explain, export, inspect, opt, recipe, train, train_options, visualize
from gradcut.errors import GradcutError

#: typer has click's exceptions, its own copy of them in newer versions.
_USAGE: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
_DEBUG = "--debug"


class _Interrupted(Exception):
    """Ctrl-C; typer has endings of its own for KeyboardInterrupt, which differ between its versions."""


class Commands(TyperGroup):
    """The group of commands; turns whatever a command raises into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Run one command and exit."""
        given = list(sys.argv[1:] if args is None else args)
        debug = _DEBUG in given
        options["standalone_mode"] = False
        logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # what it would print, `load` raises
        try:
            code = super().main([one for one in given if one != _DEBUG], *rest, **options)
        except BaseException as error:
            if debug and not isinstance(error, (typer.Exit, SystemExit)):
                traceback.print_exc()
            code = _ending(error)
        sys.exit(code if isinstance(code, int) else 0)


def _ending(error: BaseException) -> int:
    """Say what went wrong on one line; the exit code."""
    if isinstance(error, (typer.Exit, SystemExit)):
        code = getattr(error, "exit_code", getattr(error, "code", 0))
        return code if isinstance(code, int) else 1
    if isinstance(error, (_Interrupted, KeyboardInterrupt, typer.Abort)):
        return _say("interrupted", 130)
    if isinstance(error, _USAGE):
        return _say(error.format_message(), 2)
    if isinstance(error, GradcutError):
        return _say(str(error), 2 if error.user else 1)
    if isinstance(error, BrokenPipeError):
        return 0  # whoever reads us has enough
    if isinstance(error, OSError):
        return _say(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), 2)
    kind = type(error).__name__
    return _say(f"internal error: {kind}: {error}; run with {_DEBUG}", 1)


def _say(message: str, code: int) -> int:
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    typer.echo("error: " + "\n".join(lines), err=True)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        from gradcut.graphs import own_version

        typer.echo(f"gradcut {own_version()}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn an exported ONNX model into a training program, and cut where gradients go.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


app.command("compile")(compile.command)
app.command("train", cls=train_options.Grouped)(train.command)
app.command("recipe", cls=recipe.RecipeCommand)(recipe.command)
app.command("export")(export.command)
app.command("check")(check.command)
app.command("inspect")(inspect.command)
app.command("explain")(explain.command)
app.command("visualize")(visualize.command)
app.command("opt", cls=opt.OptCommand)(opt.command)
