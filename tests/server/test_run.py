"""The server as a process: what it refuses to start with, and a start that answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from embedsmith.errors import ConfigurationError
from embedsmith.server.run import read_secret

COMMAND = [sys.executable, "-m", "embedsmith", "serve", "--threshold", "0.8"]


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=120)


def test_wrong_addresses_are_errors_without_a_traceback(tiny_model: Path) -> None:
    model = ["--model", str(tiny_model)]
    done = serve("--upstream", "nonsense", *model)
    assert (done.returncode, "is no address" in done.stderr + done.stdout) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve("--upstream", "simulator:", *model, "--port", str(taken.getsockname()[1]))
    assert (done.returncode, "cannot be listened on" in done.stderr + done.stdout) == (2, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample", "0.1"], "no file for the verdicts"),
        (["--judge", "openai:x"], "nothing to judge"),
    ],
)
def test_sampling_that_cannot_be_is_refused_at_the_start(tiny_model: Path, options: list[str], words: str) -> None:
    done = serve("--upstream", "simulator:", "--model", str(tiny_model), *options)
    assert (done.returncode, words in " ".join((done.stderr + done.stdout).split())) == (2, True)


def test_the_help_says_that_the_judge_is_sent_the_questions() -> None:
    shown = subprocess.run([*COMMAND[:3], "serve", "--help"], capture_output=True, text=True, timeout=120).stdout
    assert "QUESTIONS OF YOUR USERS ARE SENT" in " ".join(shown.replace("│", " ").split())


def test_it_starts_answers_and_stops(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    store = f"sqlite:///{tmp_path}/cache.db"
    options = ["--upstream", "simulator:", "--model", str(tiny_model), "--port", str(port), "--store", store]
    process = subprocess.Popen([*COMMAND, *options], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(found.group(1) for line in process.stdout if (found := re.search(r"base_url=(\S+)", line)))
    body = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
    client = httpx.Client(transport=httpx.HTTPTransport(retries=5), timeout=30)
    outcomes = [client.post(f"{address}/chat/completions", json=body).headers["x-embedsmith-cache"] for _ in range(2)]
    assert outcomes == ["miss", "hit"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (tmp_path / "cache.db.secret").stat().st_mode & 0o777 == 0o600


def test_servers_that_share_a_store_must_share_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="EMBEDSMITH_SECRET is not set"):
        read_secret("redis://localhost")
    assert read_secret(f"sqlite:///{tmp_path}/c.db") == read_secret(f"sqlite:///{tmp_path}/c.db")
    monkeypatch.setenv("EMBEDSMITH_SECRET", "zz")
    with pytest.raises(ConfigurationError, match="not hex"):
        read_secret("memory://")
    monkeypatch.setenv("EMBEDSMITH_SECRET", "00ff")
    assert read_secret("redis://localhost") == bytes([0, 255])
    assert os.environ["EMBEDSMITH_SECRET"] == "00ff"
