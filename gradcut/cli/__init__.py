"""The command line: one thin module a command; each parses, calls the API and prints."""

from __future__ import annotations


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its code."""
    from gradcut.cli.app import app

    app(prog_name="gradcut")
