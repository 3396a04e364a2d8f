"""What the stores share when their entries move to another model; `cache/reencoding.py` drives it.

The new vectors gather beside the old ones, under the number of a new generation, and serve nobody until `switch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from embedsmith.cache.stores import KINDS, About, StoreError, kind_of
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that has no vector of the new model."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a store moves to, and the generation that its vectors are."""

    model: str
    dimension: int
    generation: int


class Move(Protocol):
    """A store on its way to another model. All that `write` was given outlives a kill of the process."""

    url: str
    about: About  # as the store was when the move was opened
    finished: bool  # the store is already of the new model

    def progress(self) -> tuple[int, int]:
        """Return how many entries have a vector of the new model, and how many there are."""
        ...

    def pending(self, after: str, count: int) -> list[Pending]:
        """Return up to `count` entries without a vector of the new model whose id is above `after`, by id."""
        ...

    def write(self, rows: Sequence[tuple[Pending, Embeddings]]) -> None:
        """Add vectors; those of entries that are gone or have another text by now are left out."""
        ...

    def drop(self, rows: Sequence[Pending]) -> None:
        """Remove entries, unless they have another text by now."""
        ...

    def ready(self) -> None:
        """Do what takes long and must be done before the switch, while the store serves."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Let those who add entries wait, until the context is left; lookups go on."""
        ...

    def switch(self) -> bool:
        """Within `hold`: give the store to the new model; False when entries came meanwhile, and nothing happened."""
        ...

    def clean(self) -> None:
        """Remove what is left of the old model."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def require_movable(url: str) -> None:
    """Raise `ConfigurationError` for a store in memory, which has no entries for another process."""
    if kind_of(url) == "memory":
        raise ConfigurationError(
            f"{url!r} cannot be re-encoded",
            expected=f"{KINDS}; memory:// is gone with its process",
            action="start the server with the new model; such a store is empty at each start anyway",
        )


def open_move(url: str, *, model: str, dimension: int, restart: bool = False) -> Move:
    """Return the store at `url` on its way to a model.

    Raises:
        ConfigurationError: a store in memory, or none at all; or see `choose_target`. StoreError: it cannot be opened.
    """
    require_movable(url)
    kind = kind_of(url)
    if kind == "sqlite":
        from embedsmith.cache.stores.sqlite_move import SQLiteMove

        return SQLiteMove(url, model=model, dimension=dimension, restart=restart)
    if kind == "redis":
        from embedsmith.cache.stores.redis_move import RedisMove

        return RedisMove(url, model=model, dimension=dimension, restart=restart)
    from embedsmith.cache.stores.postgres_move import PostgresMove

    return PostgresMove(url, model=model, dimension=dimension, restart=restart)


def choose_target(
    url: str, about: About, coming: Target | None, model: str, dimension: int, *, restart: bool
) -> Target:
    """Return the unfinished target when it is the one that is asked for, else a new one.

    Raises:
        ConfigurationError: the store is on its way to another model, and `restart` does not say to drop that.
    """
    if coming is not None and not restart:
        if (coming.model, coming.dimension) == (model, dimension):
            return coming
        raise ConfigurationError(
            f"{url} has an unfinished re-encoding to model {coming.model} with {coming.dimension} dimensions",
            expected=f"a re-encoding to model {model or 'unknown'} with {dimension} dimensions",
            action="finish it with the other model, or add --restart (restart=True) to drop what it has done",
        )
    return Target(model, dimension, max(about.generation, coming.generation if coming else 0) + 1)


def overtaken(url: str) -> StoreError:
    """Return the error for a re-encoding that another one has dropped or finished."""
    return StoreError(
        f"{url} is not on its way to this model any more: another re-encoding finished it or started anew",
        action="run the command again to see how the store stands",
    )
