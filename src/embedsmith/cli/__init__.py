"""The command line: argument → function → print. Every command is a thin skin over a Python function."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import sys

import typer

from embedsmith import __version__
from embedsmith.cli import cache, documents, inspection, job, measuring, mining, synthesis, training
from embedsmith.cli.console import app, console
from embedsmith.errors import CalibrationRefused, EmbedsmithError, ModelRefused

ORDER = (job, synthesis, documents, inspection, mining, training, measuring, cache)  # of the commands in the help
app.registered_commands.sort(key=lambda known: [home.__name__ for home in ORDER].index(known.callback.__module__))

__all__ = ["app", "cache", "documents", "inspection", "job", "main", "measuring", "mining", "synthesis", "training"]


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


FAULTS = {  # of the machine, not of ours: what the user can do
    errno.ENOSPC: "make room on the disk, then run the same command again",
    errno.EDQUOT: "make room on the disk, then run the same command again",
    errno.EACCES: "check the rights of the file and of its folder",
    errno.EPERM: "check the rights of the file and of its folder",
    errno.EROFS: "name a folder that can be written to",
}


def _describe_fault(error: OSError | sqlite3.OperationalError) -> str:
    """Return what the machine refused, and what to do; raise what is none of its usual refusals: that is a bug."""
    if isinstance(error, sqlite3.OperationalError):
        number = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}.get(
            getattr(error, "sqlite_errorname", "").removesuffix("_DIRECTORY")
        )
        found = f"a store cannot be used ({error})"
    else:
        number, found = error.errno, f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if number not in FAULTS:
        raise error
    return f"{found}\nTo do: {FAULTS[number]}"


def main() -> None:
    """Run the command line; errors of the user's are printed without a traceback, with their exit code."""
    # Threads that spin for long on a core that another process wants cost three quarters of the speed; a short
    # spin costs nothing on a quiet machine (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is not UTF-8 is printed with escapes
            stream.reconfigure(errors="backslashreplace")
    console.quiet = os.environ.get("RANK", "0") != "0"  # of many processes, the first one speaks
    try:
        app(standalone_mode=True)
    except (CalibrationRefused, ModelRefused) as refusal:
        console.print(f"refused: {refusal}", markup=False, highlight=False)
        sys.exit(refusal.exit_code)
    except EmbedsmithError as error:
        console.quiet = False
        console.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except (OSError, sqlite3.OperationalError) as error:
        console.quiet = False
        console.print(f"error: {_describe_fault(error)}", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nstopped; finished calls and checkpoints are kept: run the same command again to go on")
        sys.exit(130)
