"""Where cached answers live: one protocol, four stores, one contract suite (tests/contracts/test_stores.py).

A store keeps entries and finds the nearest ones; it decides nothing. Time is always an argument (`now`,
Unix seconds), so that expiry can be tested and replayed. Similarity is cosine, higher is closer; a
distance exists only inside a store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from embedsmith.artifacts import require_place
from embedsmith.choices import Eviction
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError

Order = Eviction
Kind = Literal["memory", "sqlite", "redis", "postgres"]
KINDS = "sqlite:///FILE, redis://HOST or postgresql://HOST/DATABASE"
SCHEMES: dict[str, Kind] = {
    "memory": "memory",
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "postgresql": "postgres",
    "postgres": "postgres",
}
AHEAD = 60.0  # seconds that a use may lie in the future, as the clocks of replicas differ
SCHEMA = 2  # version of what is on disk; a newer one is refused, an older one migrated
LOG = logging.getLogger("embedsmith.stores")


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached answer.

    Attributes:
        id: fingerprint of the partition and the text in its exact form (the key of the exact tier).
        namespace: the tenant.
        partition: fingerprint of all that must be equal for an answer to serve (namespace, model, system
            prompt, ...). A search never leaves its partition.
        text: the question as it was asked.
        answer: what is served, as the caller wrote it (JSON in the proxy).
        vector: (d,) float32 of length 1.
        created: Unix seconds. expires: Unix seconds, absolute (a hit does not extend it), or None.
        tags: for purging; no empty ones.
    """

    id: str
    namespace: str
    partition: str
    text: str
    answer: str
    vector: Embeddings = field(repr=False)  # pages of numbers, to whoever prints a lookup
    created: float
    expires: float | None = None
    tags: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of text, answer and vector."""
        # half a character counts too: one bad entry must not make the whole store uncountable
        return sum(len(part.encode("utf-8", "surrogatepass")) for part in (self.text, self.answer)) + 4 * len(
            self.vector
        )

    def alive(self, now: float) -> bool:
        """Say whether the entry has not expired."""
        return self.expires is None or now < self.expires


def is_within(namespace: str, outer: str) -> bool:
    """Say whether a namespace is `outer` or below it ("OUTER/…")."""
    return namespace == outer or namespace.startswith(f"{outer}/")


@dataclass(frozen=True, slots=True)
class Match:
    """An entry and its cosine with the query, in [-1, 1]."""

    entry: Entry
    similarity: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a store holds, expired entries that are still there included."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class About:
    """What a store says of itself.

    Attributes:
        schema: version of what is on disk.
        model: fingerprint of the model whose vectors it serves. dimension: of these vectors.
        generation: 1 for the first model that the store has had, one more after each re-encoding.
        counted: dimension that the stored sizes assume, that of the first model; `surplus` corrects them, so a
            re-encoding need not rewrite them.
    """

    schema: int
    model: str
    dimension: int
    generation: int
    counted: int

    @property
    def surplus(self) -> int:
        """Bytes by which an entry is larger than its size on disk says; negative when it is smaller."""
        return 4 * (self.dimension - self.counted)

    def require(self, url: str, model: str, dimension: int) -> None:
        """Raise `ModelMismatch` when the vectors are not of this model and dimension."""
        if (self.model, self.dimension) != (model, dimension):
            raise mismatch(url, (self.model, self.dimension), (model, dimension))


class StoreError(EmbedsmithError):
    """A store cannot be reached, opened or read."""

    exit_code = 5


class NoStore(StoreError):
    """There is no store where one with entries was named: a wrong address, so an error of the input."""

    exit_code = InputError.exit_code

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} does not exist", expected="a store with entries", action=f"check the address: {KINDS}")


class ModelMismatch(StoreError):
    """The store holds vectors of another model, or of another dimension."""


class Store(Protocol):
    """Entries by id and by nearness. Safe to use from many threads at once.

    Attributes:
        url: where it is, without a password. local: no lookup waits for a network.
    """

    url: str
    local: bool

    def get(self, id: str, now: float) -> Entry | None:
        """Return the living entry `id`, or None."""
        ...

    def search(self, partition: str, vector: Embeddings, k: int, now: float, *, floor: float = -1.0) -> list[Match]:
        """Return up to `k` living entries of `partition`, closest first (equal similarities by id).

        Args:
            floor: similarity below which entries may be left out, but for the closest one; a store that can tell
                without fetching them does.
        """
        ...

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries, replacing those with the same id. On return they are found, and durable where the store is."""
        ...

    def touch(self, id: str, now: float) -> None:
        """Count a hit: last use and number of uses, which order eviction. Expiry does not move."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries, their vectors too; return how many there were."""
        ...

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        """Remove what has this namespace and this tag (of those given; none given: all); return how many.

        A namespace means itself and all below it ("NAMESPACE/…"): what a tenant has put apart goes with the tenant.
        """
        ...

    def expire(self, now: float) -> int:
        """Remove what has expired; return how many.

        Uses that lie more than `AHEAD` behind `now` are moved back, in their order, so that the last is of now: the
        clock has gone back, and whatever is added would be the least recently used, and the first to be evicted.
        """
        ...

    def evict(self, *, entries: int | None = None, bytes: int | None = None, order: Order = "lru") -> int:
        """Remove the least recently used (never used: by creation), least used or largest entries first until at
        most `entries` entries and `bytes` bytes (`Entry.size`) are left; return how many were removed."""
        ...

    def count(self, namespace: str | None = None) -> Counts:
        """Return how much there is, in all or of one namespace."""
        ...

    def scan(self, namespace: str | None = None, *, newest: bool = False) -> Iterator[Entry]:
        """Yield all entries in order of creation, then id (to re-encode, export or look at); `newest`: reversed."""
        ...

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        ...


def open_store(url: str, *, dimension: int, model: str) -> Store:
    """Return the store at `url`.

    Args:
        url: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://host:port/0?prefix=name`,
            `postgresql://user@host/database?table=name`.
        dimension: of the vectors. model: fingerprint of the model that makes them; kept in the store.

    Raises:
        ConfigurationError: another kind of URL, or one without a file. MissingPartError: the store's driver is not
            installed. ModelMismatch: the store holds vectors of another model. StoreError: it cannot be reached.
    """
    kind = kind_of(url)
    if kind == "memory":
        from embedsmith.cache.stores.memory import MemoryStore

        return MemoryStore(dimension=dimension, model=model)
    if kind == "sqlite":
        from embedsmith.cache.stores.sqlite import SQLiteStore

        return SQLiteStore(url, dimension=dimension, model=model)
    if kind == "redis":
        from embedsmith.cache.stores.redis import RedisStore

        return RedisStore(url, dimension=dimension, model=model)
    from embedsmith.cache.stores.postgres import PostgresStore

    return PostgresStore(url, dimension=dimension, model=model)


def require_store(url: str) -> None:
    """Raise what `open_store` would, as far as the URL and the place of a file tell; nothing is opened or made.

    Raises:
        ConfigurationError: a URL that names no store, or cannot be read. InputError: no file can be written there.
        MissingPartError: the store's driver is not installed.
    """
    kind = kind_of(url)
    if kind == "sqlite":
        from embedsmith.cache.stores.sqlite import path_of

        path = path_of(url)
        require_place(path, folder=False)
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a device or a pipe", expected="a file", action="name another place")
    elif kind == "redis":
        from embedsmith.cache.stores.redis import connect, read_url

        connect(read_url(url)).close()  # it sends nothing
    elif kind == "postgres":
        from embedsmith.cache.stores.postgres import check_target
        from embedsmith.cache.stores.postgres import read_url as read_target

        check_target(read_target(url))


def kind_of(url: str) -> Kind:
    """Return the kind of store that a URL names.

    Raises:
        ConfigurationError: none that there is.
    """
    scheme, _, rest = url.partition(":")
    kind = SCHEMES.get(scheme)
    whole = rest == "//" if kind == "memory" else rest.startswith("//") or kind == "sqlite"  # whose file is read apart
    if kind is None or not whole:
        told = "the address (not shown: it may hold a password)" if {"@", "?"} & set(url) else repr(url)
        raise ConfigurationError(f"{told} names no store", expected=f"memory://, {KINDS}, all in small letters")
    return kind


def mismatch(url: str, found: tuple[str, int], wanted: tuple[str, int]) -> ModelMismatch:
    """Return the error for a store whose (model, dimension) is not the one that is asked for."""
    return ModelMismatch(
        f"{url} holds vectors of model {found[0] or 'unknown'} with {found[1]} dimensions",
        expected=f"vectors of model {wanted[0] or 'unknown'} with {wanted[1]} dimensions",
        action=f"start with the model that the store belongs to, or give its entries vectors of the new one: "
        f"embedsmith reencode '{url}' --model MODEL",
    )


def refuse_schema(url: str, found: int) -> StoreError:
    """Return the error for a store that a later version of embedsmith wrote."""
    return StoreError(
        f"{url} has schema {found}",
        expected=f"at most {SCHEMA}, which this version of embedsmith knows",
        action="update embedsmith (pip install --upgrade embedsmith), or use another store; this one stays as it is",
    )


def check_vector(vector: Embeddings, dimension: int) -> Embeddings:
    """Return `vector` as (d,) float32; a `ValueError` when its shape or a value is wrong."""
    checked = np.ascontiguousarray(vector, dtype=np.float32)
    # One product tells in a third of the time that all numbers are finite; one that overflows tells nothing.
    if checked.shape != (dimension,) or not (math.isfinite(checked.dot(checked)) or np.isfinite(checked).all()):
        raise ValueError(f"a vector of shape {checked.shape}; expected ({dimension},) finite numbers")
    return checked
