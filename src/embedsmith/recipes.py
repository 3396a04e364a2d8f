"""Training recipes: the published systems as TOML, to be printed, changed and stored with the model."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from embedsmith.artifacts import plain
from embedsmith.batches import Source
from embedsmith.config import KEPT, TrainingConfig, config_from
from embedsmith.errors import ConfigurationError, InputError, require
from embedsmith.examples import has_conversations
from embedsmith.preparation import Preparation, preparation_from

TABLES = ("about", "training", "preparation", "small", "sources")
PREPARING = frozenset(item.name for item in fields(Preparation))


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How a base is trained.

    Attributes:
        text: the TOML it was read from, comments included.
        training: the table of that name, overridden by that of a small machine where it was asked for.
        preparing: the table `preparation`.
    """

    name: str
    about: str
    text: str
    training: Mapping[str, Any]
    preparing: Mapping[str, Any]

    def configure(self, **own: Any) -> TrainingConfig:
        """Return the configuration with the user's `own` values over the recipe's."""
        return config_from({**self.training, **own})

    @property
    def preparation(self) -> Preparation:
        """What is done to the base."""
        return preparation_from(self.preparing)


PLAIN = TrainingRecipe("plain", "embedsmith's own choices", "", {}, {})


def change(recipe: TrainingRecipe, assignments: Sequence[str]) -> TrainingRecipe:
    """Return the recipe with values set as in `temperature=.02`, `lora.rank=16`, `preparation.pooling=mean`.

    Raises:
        ConfigurationError: no "=", or an unknown key.
    """
    training, preparing = dict(recipe.training), {**recipe.preparing}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        require(bool(separator), f"{assignment!r} sets no value", "key=value, as in temperature=0.02")
        table, _, name = key.strip().removeprefix("preparation.").rpartition(".")
        value = _read_text(text) if table == "prompts" else _read_value(text.strip())
        if table in {"lora", "prompts"}:
            preparing[table] = {**preparing.get(table, {}), name: value}
        elif key.strip().startswith("preparation.") or name in PREPARING:
            preparing[name] = value
        else:
            training[key.strip().removeprefix("training.")] = value
    changed = replace(recipe, training=training, preparing=preparing)
    changed.configure()
    _ = changed.preparation
    return changed


def _read_text(text: str) -> str:
    """Return a prompt as it was given, spaces included ("query: " and "query:" are different inputs), or unquoted."""
    value = _read_value(text.strip())
    return value if isinstance(value, str) and value != text.strip() else text


def _read_value(text: str) -> Any:
    """Return what TOML makes of `text`, or the text itself where it is no TOML value: .02, [64, 32], mean."""
    number = f"0{text}" if text.startswith(".") else text
    try:
        return tomllib.loads(f"value = {number}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def write_recipe(config: TrainingConfig, preparation: Preparation, sources: Sequence[Source] = ()) -> str:
    """Return the TOML of a run: `read_recipe` gives back the same configuration and preparation.

    Args:
        sources: what was trained on, with the losses that were chosen; a record, since a recipe names no files.
    """
    training = {name: KEPT if value is None else value for name, value in plain(config).items()}
    lines = ['about = "what this model was trained with"', *_table("training", training)]
    values = plain(preparation)
    nested = {name: values.pop(name) for name in ("lora", "prompts")}
    lines += _table("preparation", values)
    for name, table in nested.items():
        lines += _table(f"preparation.{name}", table) if table else []
    if sources:
        lines += ["", "# What it was trained on. This is not read again: name the files anew, FILE:LOSS:WEIGHT each."]
    for source in sources:
        lines += _table("[sources]", describe_source(source))
    return "\n".join(lines) + "\n"


def describe_source(source: Source) -> dict[str, Any]:
    """Return what a run took of a source: its rows, its losses and their weights, its share, its prompts."""
    own = {"prompts": plain(source.prompts), "symmetric": source.symmetric}
    spoken = sum(map(has_conversations, source.examples))
    found: dict[str, Any] = {"name": source.name, "examples": len(source.examples)}
    found |= ({"conversations": spoken} if spoken else {}) | {"losses": dict(source.losses)}
    return found | {"weight": source.weight} | {name: value for name, value in own.items() if value is not None}


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        said = [f"{key} = {_toml(item)}" for key, item in value.items() if item is not None]
        return f"{{ {', '.join(said)} }}" if said else "{}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf or nan, as TOML has them
    return json.dumps(value, ensure_ascii=False)  # strings, numbers, truth and lists are written as in JSON


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that ship."""
    return tuple(sorted(item.name.removesuffix(".toml") for item in _folder().iterdir() if item.name.endswith(".toml")))


def read_recipe(name: str | Path, *, small: bool = False) -> TrainingRecipe:
    """Return the recipe of that name, or the one in a file of the user's.

    Args:
        small: the values of its table `small` count: what a machine without a GPU can do.

    Raises:
        ConfigurationError: no such recipe, an unknown key, a value out of range. InputError: the file is no TOML.
    """
    text = _read(name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is no TOML: {error}", expected="a training recipe") from None
    unknown = sorted(set(values) - set(TABLES))
    require(not unknown, f"{name}: unknown table {', '.join(unknown)}", f"any of {', '.join(TABLES)}")
    if small and "small" not in values:
        raise ConfigurationError(
            f"{name} has no values for a small machine",
            expected="a table [small] in the recipe",
            action="leave --small out, or set values of your own with --batch and --set",
        )
    training = {**values.get("training", {}), **(values["small"] if small else {})}
    recipe = TrainingRecipe(
        Path(name).stem, str(values.get("about", "")), text, training, values.get("preparation", {})
    )
    try:
        recipe.configure()
        preparation_from(recipe.preparing)
        config_from(values.get("small", {}))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error.found}", expected=error.expected, action=error.action) from None
    return recipe


def _read(name: str | Path) -> str:
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"{path} does not exist", expected="a training recipe (TOML)")
        return path.read_text(encoding="utf-8")
    if str(name) not in recipe_names():
        raise ConfigurationError(
            f"there is no recipe {str(name)!r}",
            expected=f"{', '.join(recipe_names())}, or a file that ends in .toml",
            action=_tell_recipe(str(name)),
        )
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _tell_recipe(name: str) -> str:
    near = get_close_matches(name, recipe_names(), n=1)
    return f"did you mean {near[0]}?" if near else "embedsmith recipe: lists them with what they are for"


def _folder() -> Traversable:
    return resources.files("embedsmith") / "data" / "recipes"
