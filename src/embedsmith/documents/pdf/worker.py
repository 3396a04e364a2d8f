"""The pages of a PDF, read by a process of its own that may die without harm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedsmith.documents.files import UnusableFile
from embedsmith.documents.pdf import extraction
from embedsmith.errors import MissingPartError

PAGE_SECONDS = 20.0  # of the processor; an ordinary page takes .02
RESTARTS = 5  # pages of a file that may end the process; the pages after the last of them are not read


def read_pages(raw: bytes) -> Iterator[dict[str, Any]]:
    """Yield what `extraction` writes: a row with "pages" and "outline", then one a page, with "error" or its words.

    A page that takes longer than `PAGE_SECONDS` of the processor, more than `extraction.MEMORY`, or crashes
    the reader is a row with an error, too.

    Raises:
        UnusableFile: encrypted or broken.
        MissingPartError: pypdfium2 is not installed.
    """
    if find_spec("pypdfium2") is None:
        raise MissingPartError("reading pdf needs pypdfium2", action="pip install 'embedsmith[rag]'")
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        last, number = 0, 0
        for restart in range(RESTARTS + 1):
            file.seek(0)
            process = _start(file, number + 1)
            try:
                for row in _read_rows(process):
                    number = row.get("page", number)
                    last = row.get("pages", last)
                    if "page" in row or restart == 0:
                        yield row
            except BaseException:  # nobody reads on: it need not, either
                process.kill()
                raise
            finally:
                process.communicate()
            if process.returncode == 0:
                break
            if not last:
                raise UnusableFile("broken", f"the file {_explain(process.returncode)}")
            number += 1
            yield {"page": number, "error": f"it {_explain(process.returncode)}"}
        if number < last:
            yield {"page": number + 1, "error": f"this and the pages after it, to {last}, were not read"}


def _start(file: Any, first: int) -> subprocess.Popen[str]:
    # -P: the folder of the script is no place for imports.
    command = [sys.executable, "-P", str(Path(extraction.__file__)), str(first), str(PAGE_SECONDS)]
    return subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _read_rows(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if not line.endswith("\n"):
            return  # the process died while it wrote
        row: dict[str, Any] = json.loads(line)
        if "page" not in row and "error" in row:
            raise _as_unusable(row["error"])
        yield row


def _as_unusable(error: str) -> UnusableFile:
    if "password" in error.lower():
        return UnusableFile("encrypted", "it needs a password")
    if "security" in error.lower():
        return UnusableFile("encrypted", f"a cipher that is not known ({error})")
    return UnusableFile("broken", error)


def _explain(code: int) -> str:
    """Return how a process ended, in words."""
    if code == -getattr(signal, "SIGPROF", 0):
        return f"took more than {PAGE_SECONDS:g} s of the processor"
    if code in (-signal.SIGABRT, -getattr(signal, "SIGTRAP", 0), 1):
        return f"needed more than {extraction.MEMORY >> 30} GB, or made the reader give up"
    return f"crashed the reader (exit {code})"
