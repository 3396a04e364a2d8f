"""The command line: argument → function → print. Every command is a thin skin over a Python function."""

from __future__ import annotations

import io
import os
import sys

import typer

from embedsmith import __version__
from embedsmith.cli import cache, documents, inspection, job, measuring, mining, synthesis, training
from embedsmith.cli.console import app, console
from embedsmith.cli.endings import explain_ending
from embedsmith.cli.options import CheckedCommand
from embedsmith.devices import is_first_process

ORDER = (job, synthesis, documents, inspection, mining, training, measuring, cache)  # of the commands in the help
app.registered_commands.sort(key=lambda known: [home.__name__ for home in ORDER].index(known.callback.__module__))
for known in app.registered_commands:
    known.cls = CheckedCommand

__all__ = ["app", "cache", "documents", "inspection", "job", "main", "measuring", "mining", "synthesis", "training"]


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line; errors of the user's are printed without a traceback, with their exit code (`endings`)."""
    # Threads that spin for long on a core that another process wants cost three quarters of the speed; a short
    # spin costs nothing on a quiet machine (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not UTF-8 is printed with escapes
            stream.reconfigure(errors="backslashreplace")
    console.quiet = not is_first_process()
    with explain_ending():
        app(standalone_mode=True)
