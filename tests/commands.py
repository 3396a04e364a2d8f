"""Processes that need not import torch: forks of one that has imported it, and has done nothing else.

What such a command reads, prints and ends with is that of `python -m embedsmith`; its start is shorter, by seconds of
the processor.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sentence_transformers", "embedsmith.training", "embedsmith.model"])


def run_command(
    *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """Return what `python -m embedsmith` printed with these arguments, and its exit code."""
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        given = (words, str(cwd or Path.cwd()), dict(os.environ if env is None else env), *map(str, printed))
        process = FORKS.Process(target=_become, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["embedsmith", *words], timeout)
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in printed))


def _become(arguments: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for path, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["embedsmith", *arguments]
    from embedsmith.cli import main  # only now: the console reads the environment when it is made

    main()
