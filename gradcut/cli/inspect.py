"""``gradcut inspect``: what is in a model: parameters and why, state, scopes, outputs, what its exporter did."""

from __future__ import annotations

from typing import Annotated

import typer

from gradcut.cli.console import rows


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An .onnx file, or text (.onnxtxt, .textproto, .json).")
    ],
) -> None:
    """Show what MODEL holds, and what of it would train."""
    from gradcut.inspection import inspect

    found = inspect(model)
    rows(found.head())
    for title, table in found.tables():
        typer.echo(f"\n{typer.style(title, bold=True)}")
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if found.destroyed:
        typer.echo(f"\n{typer.style('lost by the exporter', bold=True)}")
    for one in found.destroyed:
        typer.echo(f"  {one}")
