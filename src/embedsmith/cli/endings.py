"""How a command ends that did not do what it was asked: words for people, JSON for programs, an exit code."""

from __future__ import annotations

import errno
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from embedsmith.cli.console import console, print_json, say
from embedsmith.errors import CalibrationRefused, EmbedsmithError, InputError, ModelRefused

STOPPED = 130  # what shells give a process that Ctrl-C ended
ROOM, RIGHTS = "make room on the disk, then run the same command again", "check the rights of the file and its folder"
FAULTS = {  # of the machine, not of ours: what the user can do
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EROFS: "name a folder that can be written to",
    errno.EISDIR: "name a file: this is a folder",
    errno.ENOTDIR: "name a place below a folder: this is a file",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOENT: "check the path",
}
SQLITE_FAULTS = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}
CALLS = "answers of the language model, finished stages and checkpoints of the training are kept"
KEPT = {  # by command, when it is stopped
    "run": CALLS,
    "demo": CALLS,
    "synthesize": "answers of the language model are kept",
    "train": "the training goes on at its last checkpoint, if there is one yet",
    "mine": "embeddings and judgements are kept",
    "reencode": "vectors that are done are kept, and the store still belongs to its old model",
}


@contextmanager
def explain_ending() -> Iterator[None]:
    """Run the body, the whole command line; print errors that the user can act on as words, without a traceback.

    With --json among the arguments, standard output holds one object: error, expected, action, exit_code, and what
    else the error knows.
    """
    try:
        yield
    except EmbedsmithError as error:
        _end(error, error.exit_code)
    except (OSError, sqlite3.OperationalError) as error:
        _end(_describe_fault(error), InputError.exit_code)
    except KeyboardInterrupt:
        _end(_describe_stop(), STOPPED)
    except SystemExit as ending:
        told = _read_ending(ending)
        if isinstance(told, KeyboardInterrupt):
            _end(_describe_stop(), STOPPED)
        elif told is not None:  # an option that is not known, say; typer has printed it
            _print_object(EmbedsmithError(told, action="--help lists what the command takes"), int(str(ending.code)))
        raise


def _read_ending(ending: SystemExit) -> KeyboardInterrupt | str | None:
    """Return why typer ended the process: Ctrl-C, words about the arguments, or None for neither.

    It turns both into an exit of its own, which keeps them as its context.
    """
    cause = ending.__context__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return cause
        if hasattr(cause, "format_message"):
            return str(cause.format_message())
        cause = cause.__cause__ or cause.__context__
    return None


def _end(error: EmbedsmithError, code: int) -> None:
    refused = isinstance(error, (CalibrationRefused, ModelRefused))
    console.quiet = console.quiet and (refused or code == STOPPED)  # an error of one process among many is told
    word = {STOPPED: ""}.get(code, "refused: " if refused else "error: ")
    say(f"{word}{error}")
    _print_object(error, code)
    sys.exit(code)


def _print_object(error: EmbedsmithError, code: int) -> None:
    if "--json" in sys.argv[1:]:
        told = {"error": error.found, "expected": error.expected, "action": error.action, "exit_code": code}
        print_json({**told, **error.facts})


def _describe_fault(error: OSError | sqlite3.OperationalError) -> EmbedsmithError:
    """Return what the machine refused, and what to do; raise what is none of its usual refusals: that is a bug."""
    if isinstance(error, sqlite3.OperationalError):
        number = SQLITE_FAULTS.get(getattr(error, "sqlite_errorname", "").removesuffix("_DIRECTORY"))
        found = f"a store cannot be used ({error})"
    else:
        number, found = error.errno, f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if number not in FAULTS:
        raise error
    return InputError(found, action=FAULTS[number])


def _describe_stop() -> EmbedsmithError:
    kept = KEPT.get(next(iter(sys.argv[1:]), ""))
    if kept is None:
        return EmbedsmithError("stopped")
    return EmbedsmithError(
        f"stopped; {kept}", action=f"to go on, the same command: embedsmith {shlex.join(sys.argv[1:])}"
    )
