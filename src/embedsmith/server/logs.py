"""The log of the server: what a person must see, or one JSON line a request for programs. Never a user's text.

"text" (to stderr) writes what went wrong and, while there is traffic, one line a minute that sums it up: a line
for each of hundreds of requests a second is read by nobody and hides the few that matter. "json" (to stdout)
writes every request. "off" writes nothing; the metrics still count.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TextIO, get_args

from embedsmith.choices import LogMode
from embedsmith.errors import ConfigurationError, Repeats, describe_failure
from embedsmith.server.trail import Trail

TRUSTED = ("embedsmith", "uvicorn", "asyncio")  # loggers whose first line is constant
EVERY = 60.0  # seconds between two summaries
ECHO = "ASGI callable returned without"  # uvicorn on an answer that we cut off, and have said so


class RequestLog(Protocol):
    """Whoever hears of each finished request."""

    def finish(self, trail: Trail) -> None:
        """Take note of a request that has been answered, or broken off."""
        ...

    def close(self) -> None:
        """Say what is left to say."""
        ...


class JsonLog:
    """One JSON line a request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def finish(self, trail: Trail) -> None:
        """Write the line."""
        _write(self._stream, json.dumps({"time": _now(), "level": "info", "event": "request", **_facts(trail)}))

    def close(self) -> None:
        """Do nothing: all is written."""


def _facts(trail: Trail) -> dict[str, Any]:
    facts = {
        "id": trail.id,
        "method": trail.method,
        "path": trail.path,
        "status": trail.status,
        "outcome": trail.outcome,
        "reason": trail.reason,
        "similarity": round(trail.similarity, 4) if trail.similarity is not None else None,
        "ms": _milliseconds(trail.seconds),
        "lookup_ms": _milliseconds(trail.lookup),
        "upstream_ms": _milliseconds(trail.upstream),
        "tenant": trail.tenant,
        "failure": trail.failure,
    }
    return {name: value for name, value in facts.items() if value is not None and value != ""}


def _milliseconds(seconds: float | None) -> float | None:
    return round(1000 * seconds, 2) if seconds is not None else None


class TextLog:
    """Failures as they come, and a summary a minute while there are requests."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._seen: Counter[str] = Counter()
        self._lookups: list[float] = []
        self._since = clock()
        self._held = Repeats(clock)

    def finish(self, trail: Trail) -> None:
        """Count the request; write a line if it failed, and the summary if one is due."""
        self._seen.update(["requests", trail.outcome])
        if trail.lookup is not None:
            self._lookups.append(trail.lookup)
        if 400 <= trail.status < 500:
            self._seen["refused"] += 1
        if trail.failed:
            self._seen["failed"] += 1
            if self._held.is_new((trail.status, trail.failure)):
                told = f"{trail.status or 'no answer'} {trail.method} {trail.path}: {trail.failure or trail.reason}"
                _write(self._stream, f"{_now()} warning {told} (id {trail.id}, {1000 * trail.seconds:.0f} ms)")
        if self._clock() - self._since >= EVERY:
            self.summarise()

    def close(self) -> None:
        """Write the last summary."""
        self.summarise()

    def summarise(self) -> None:
        """Write the line that sums up the time since the last one, if there was a request."""
        if self._seen["requests"]:
            times = sorted(self._lookups)
            median = f", lookup p50 {1000 * times[len(times) // 2]:.1f} ms" if times else ""
            parts = [f"{self._seen[name]:,} {name}" for name in ("requests", "hit", "miss", "pass", "failed")]
            if self._seen["refused"]:  # all of them, when key or address of the upstream are wrong
                parts.append(f"{self._seen['refused']:,} refused (4xx)")
            _write(self._stream, f"{_now()} info {', '.join(parts)}{median} in {self._clock() - self._since:.0f} s")
        self._seen.clear()
        self._lookups.clear()
        self._since = self._clock()


class Records(logging.Handler):
    """Writes the records of Python's `logging` without what could quote a user.

    Of an exception only its type and place; of loggers that are not ours only who, where and how bad.
    """

    def __init__(self, stream: TextIO, mode: LogMode) -> None:
        super().__init__(logging.WARNING)
        self._stream, self._mode, self._held = stream, mode, Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a repeated one is left out."""
        try:
            told = describe_record(record)
            if ECHO in told or not self._held.is_new(told):
                return
            level = record.levelname.lower()
            if self._mode == "json":
                line = {"time": _now(), "level": level, "event": "record", "logger": record.name, "message": told}
                _write(self._stream, json.dumps(line))
            else:
                _write(self._stream, f"{_now()} {level} {told}")
        except Exception:  # noqa: BLE001  logging's own report of this would quote the record
            pass


def describe_record(record: logging.LogRecord) -> str:
    """Return what may be said of a log record."""
    known = record.name.split(".")[0] in TRUSTED
    told = record.getMessage().partition("\n")[0] if known else f"{record.name} at {record.module}:{record.lineno}"
    error = record.exc_info[1] if record.exc_info else None
    return f"{told} [{describe_failure(error)}]" if error is not None else told


def open_log(mode: str, stream: TextIO | None = None) -> tuple[RequestLog | None, logging.Handler]:
    """Return the log of requests (None for "off") and the handler for everything else that is logged.

    Raises:
        ConfigurationError: the mode is none of text, json and off.
    """
    if mode not in get_args(LogMode):
        raise ConfigurationError(f"the log mode {mode!r}", expected="text, json or off")
    if mode == "off":
        return None, logging.NullHandler()
    if mode == "json":
        stream = stream or sys.stdout
        return JsonLog(stream), Records(stream, "json")
    stream = stream or sys.stderr
    return TextLog(stream), Records(stream, "text")


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError, ValueError):  # a closed pipe or a full disk stops no request
        stream.write(line + "\n")
        stream.flush()


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
