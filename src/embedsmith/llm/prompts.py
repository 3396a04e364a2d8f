"""Prompts as data: templates in TOML files, ours or the user's, checked before anything is asked with them."""

from __future__ import annotations

import json
import string
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from embedsmith.errors import ConfigurationError, InputError
from embedsmith.llm import Prompt


@dataclass(frozen=True, slots=True)
class Slots:
    """The placeholders of a text.

    Attributes:
        offered: those that it may have. needed: those that it must have. either: those of which it must have one.
    """

    offered: Collection[str]
    needed: Collection[str] = ()
    either: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """The two messages of one kind of call; the user's message has placeholders."""

    system: str
    user: str

    def fill(self, row: str, task: str, schema: Mapping[str, Any] | None = None, /, **values: object) -> Prompt:
        """Return the call for a row, with `values` in the placeholders; texts of others go in as `quote` gives them."""
        return Prompt(self.system, self.user.format(**values), row, task, schema)


def quote(text: str) -> str:
    """Return a text as JSON, in which it is one line and cannot end its quotes."""
    return json.dumps(text, ensure_ascii=False)


def load_template(shipped: Traversable, slots: Slots, path: Path | str | None = None) -> Template:
    """Return the template of a file that holds one: the user's own at `path`, or the one that is shipped.

    Raises:
        InputError: `path` does not exist. ConfigurationError: not TOML, or a wrong key or placeholder.
    """
    table, source = load_tables(shipped, path)
    return read_template(table, slots, source)


def load_tables(shipped: Traversable, path: Path | str | None = None) -> tuple[dict[str, Any], str]:
    """Return the tables of the user's own file of prompts, or of the shipped one, and its name for errors.

    Raises:
        InputError: `path` does not exist. ConfigurationError: it is not TOML.
    """
    if path is not None and not Path(path).is_file():
        raise InputError(f"{path} does not exist", expected="a prompts file (TOML)")
    source = shipped if path is None else Path(path)
    try:
        return tomllib.loads(source.read_text(encoding="utf-8")), str(source)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = f"{source} is not TOML: {error}"
        raise ConfigurationError(found, expected="a prompts file", action=f"copy {shipped} and change it") from None


def read_template(table: Any, slots: Slots, source: str) -> Template:
    """Return the template in a table; its system message may be empty.

    Raises:
        ConfigurationError: it has not the texts system and user, or wrong placeholders.
    """
    table = require_keys(table, {"system", "user"}, source)
    user = read_text(table["user"], f"{source}: user")
    require_slots(user, slots, f"{source}: user")
    return Template(read_text(table["system"], f"{source}: system", empty=True), user)


def read_text(value: Any, source: str, *, empty: bool = False) -> str:
    """Return a text without the white space around it; `ConfigurationError` for another value, or without a word."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ConfigurationError(f"{source} is {value!r}", expected="a text")
    return value.strip()


def require_keys(table: Any, wanted: Collection[str], source: str, *, also: Collection[str] = ()) -> dict[str, Any]:
    """Return a table that has the keys `wanted` and none but those of `also` beside them; or raise."""
    found: dict[str, Any] = table if isinstance(table, dict) else {}
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - {*wanted, *also})
    if missing or unknown:
        what = [f"{verb} {', '.join(keys)}" for verb, keys in (("lacks", missing), ("has", unknown)) if keys]
        more = f"; {', '.join(sorted(also))} if you like" if also else ""
        raise ConfigurationError(
            f"{source} {' and '.join(what)}", expected=f"exactly {', '.join(sorted(wanted))}{more}"
        )
    return found


def require_slots(text: str, slots: Slots, source: str) -> None:
    """Raise `ConfigurationError` unless a text has the placeholders that it needs, and can be filled."""
    try:
        text.format(**dict.fromkeys(slots.offered, ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{source} has a wrong placeholder ({error})", expected=f"{_name(slots.offered)}; {{{{ }}}} for braces"
        ) from None
    found = {name for _, name, _, _ in string.Formatter().parse(text)}
    wanted = [{name} for name in slots.needed] + ([slots.either] if slots.either else [])
    for names in wanted:
        if found.isdisjoint(names):
            raise ConfigurationError(f"{source} never names {_name(names)}", expected="it there")


def _name(slots: Collection[str]) -> str:
    return " or ".join(f"{{{name}}}" for name in sorted(slots))
