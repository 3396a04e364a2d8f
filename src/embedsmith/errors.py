"""The tree of exceptions. Each says what was found, what was expected, and what to do.

The command line prints `str(error)` and exits with `error.exit_code`; a traceback is a bug of ours.
"""

from __future__ import annotations

import errno
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

SMALLEST = 1e-9  # share that something is promised for
AGAIN = 10.0  # seconds before the same failure is told again


class EmbedsmithError(Exception):
    """Base of all errors a caller may want to catch.

    Args:
        found: what was found, in one sentence that names the file, row, option or model.
        expected: what would have been right.
        action: what the user can do now.
        facts: what of it a program may want, under names of its own; part of what `--json` prints.
    """

    exit_code = 1

    def __init__(
        self, found: str, *, expected: str = "", action: str = "", facts: dict[str, object] | None = None
    ) -> None:
        self.found = found
        self.expected = expected
        self.action = action
        self.facts = dict(facts or {})
        super().__init__(found)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"Expected: {self.expected}")
        if self.action:
            lines.append(f"To do: {self.action}")
        return "\n".join(lines)


class InputError(EmbedsmithError):
    """A file or a row of the user's cannot be used (missing, empty, wrong encoding, wrong column)."""

    exit_code = 2


class ConfigurationError(EmbedsmithError):
    """An option, a recipe key or a combination of options is wrong."""

    exit_code = 2


class MissingPartError(EmbedsmithError):
    """An optional part is not installed; `action` holds the exact install line."""

    exit_code = 2


class ModelError(EmbedsmithError):
    """A model cannot be loaded, or is not what its folder says."""

    exit_code = 2


class LanguageModelError(EmbedsmithError):
    """An LLM cannot be reached or refuses the calls (after retries). Finished calls stay in the journal."""

    exit_code = 3


class SamplingRefused(LanguageModelError):
    """The model draws its answers in its own way only: it takes no such temperature or top_p."""


class CalibrationRefused(EmbedsmithError):
    """No threshold keeps the promise on the labelled pairs given; `found` says how many are missing.

    `facts`: pairs (that counted), pairs_needed (None where more would not help) and delta_carried (the lowest rate of
    wrong answers that they carry, None where there is none).
    """

    exit_code = 4

    def noting(self, note: str) -> CalibrationRefused:
        """Return the same refusal with what else is known of the pairs, "" for nothing."""
        found = f"{self.found} ({note})" if note else self.found
        return CalibrationRefused(found, expected=self.expected, action=self.action, facts=self.facts)

    def advising(self, action: str) -> CalibrationRefused:
        """Return the same refusal with one thing more to do."""
        return CalibrationRefused(
            self.found, expected=self.expected, action=f"{self.action}; {action}", facts=self.facts
        )


class ModelRefused(EmbedsmithError):
    """A tuned model is not better than its base on the validation rows, and is not written unless it is asked for."""

    exit_code = 4


def describe_failure(error: BaseException) -> str:
    """Return the type of an error, where it was raised, and the code of what the system or SQLite refused.

    Its message stays out: those of stores and clients quote rows, addresses and texts.

    >>> describe_failure(OSError(28, "No space left on device", "/home/ann/cache.db"))
    'OSError ENOSPC'
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    cause = error.__cause__ or error.__context__
    return f"{_name(error)}{place}" + (f", from {_name(cause)}" if cause is not None else "")


def _name(error: BaseException) -> str:
    """Return the type of an error, with its code where that is one of a list: a full disk, a locked file."""
    code = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    code = code or getattr(error, "sqlite_errorname", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


class Repeats:
    """Remembers what was told a moment ago, so that a failure that goes on fills no log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, dict[object, float]()

    def is_new(self, told: object) -> bool:
        """Say whether this was not told within the last seconds (`AGAIN`)."""
        now = self._clock()
        if now - self._last.get(told, -AGAIN) < AGAIN:
            return False
        self._last = {key: at for key, at in self._last.items() if now - at < AGAIN} | {told: now}
        return True


def require(right: bool, found: str, expected: str, action: str = "") -> None:
    """Raise `ConfigurationError` unless a setting is `right`."""
    if not right:
        raise ConfigurationError(found, expected=expected, action=action)


def require_address(url: str, expected: str = "http:// or https://, a host, and its path, /v1 as a rule") -> None:
    """Raise unless `url` is the base address of a server: http or https, a host, no spaces, nothing behind the path.

    Raises:
        ConfigurationError: says what is wrong with the address, and shows no password.
    """
    if fault := _find_fault(url):
        shown = re.sub(r"//[^/]*@", "//***@", url)
        action = "write the base address alone, as in http://localhost:8000/v1; a key goes into the environment "
        action += "(OPENAI_API_KEY, for the upstream of `serve` EMBEDSMITH_UPSTREAM_KEY)"
        raise ConfigurationError(f"{shown!r} is no address: {fault}", expected=expected, action=action)


def _find_fault(url: str) -> str:
    """Return why a URL is no base address, "" where it is one."""
    if not url.startswith(("http://", "https://")):
        return "it does not begin with http:// or https://"
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return "it has a space, or a character that cannot be seen"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # fails where a part of the name is empty or too long
    except ValueError:
        return "its host or port cannot be read"
    if not host or port == 0:
        return "it names no host" if not host else "no server listens on port 0"
    if "@" in parts.netloc:
        return "it holds a user or a password, which would not be sent"
    return "something follows its path (? or #)" if parts.query or parts.fragment else ""


def require_share(name: str, value: float) -> None:
    """Raise `ConfigurationError` unless a setting lies between 0 and 1, where the odds against it are still numbers."""
    if not SMALLEST <= value < 1:
        raise ConfigurationError(f"{name} {value}", expected=f"a share between 0 and 1, from {SMALLEST:g} on")


def require_kinds(settings: Any, *, prefix: str = "") -> None:
    """Raise where a field of a dataclass of settings is not what its annotation says: bool, int, float, str, ints.

    A file or `--set` gives whatever was written: `symmetric=False` is a text in TOML, and a text counts as true.

    Args:
        prefix: of the names in the message: "lora.".

    Raises:
        ConfigurationError: names the field, its value and what would be right.
    """
    for item in fields(settings):
        value, (kind, _, optional) = getattr(settings, item.name), str(item.type).partition(" | ")
        if kind in _KINDS and not (value is None and optional == "None") and not _is_kind(value, kind):
            raise ConfigurationError(f"{prefix}{item.name} is {value!r}", expected=_KINDS[kind])


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "tuple[int, ...]": "a list of whole numbers, such as [256, 64]",
}


def _is_kind(value: object, kind: str) -> bool:
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "tuple[int, ...]":
        return isinstance(value, (tuple, list)) and all(_is_kind(item, "int") for item in value)
    if kind == "float":
        return isinstance(value, (int, float))
    return isinstance(value, int if kind == "int" else str)
