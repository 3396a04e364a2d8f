"""Training recipes: the published systems as TOML, to be printed, changed and stored with the model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from embedsmith.errors import ConfigurationError, InputError
from embedsmith.optimization import TrainingConfig, config_from
from embedsmith.preparation import Preparation, preparation_from

TABLES = ("about", "training", "preparation", "small")


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How a base is trained.

    Attributes:
        text: the TOML it was read from, comments included.
        values: the table `training`, with that of a small machine over it where it was asked for.
    """

    name: str
    about: str
    text: str
    values: Mapping[str, Any]
    preparation: Preparation

    def configure(self, **own: Any) -> TrainingConfig:
        """Return the configuration with the user's `own` values over the recipe's."""
        return config_from({**self.values, **own})


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
    if unknown:
        raise ConfigurationError(f"{name}: unknown table {', '.join(unknown)}", expected=f"any of {', '.join(TABLES)}")
    if small and "small" not in values:
        raise ConfigurationError(f"{name} has no values for a small machine", expected="a table [small]")
    training = {**values.get("training", {}), **(values["small"] if small else {})}
    try:
        config_from(training)
        preparation = preparation_from(values.get("preparation", {}))
        config_from(values.get("small", {}))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error.found}", expected=error.expected, action=error.action) from None
    return TrainingRecipe(Path(name).stem, str(values.get("about", "")), text, training, preparation)


def _read(name: str | Path) -> str:
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"{path} does not exist", expected="a training recipe (TOML)")
        return path.read_text(encoding="utf-8")
    if str(name) not in recipe_names():
        raise ConfigurationError(
            f"there is no recipe {str(name)!r}", expected=f"{', '.join(recipe_names())}, or a file that ends in .toml"
        )
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return resources.files("embedsmith") / "data" / "recipes"
