"""Fresh places for stores of every kind, and entries to put there."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import ServerMissing

from embedsmith.cache.stores import Entry, Match, Store, open_store
from embedsmith.encoder import Embeddings

KINDS = ("memory", "sqlite", "redis", "postgres")


@dataclass(frozen=True)
class Place:
    """A fresh, empty place for one test, and how to open a store there."""

    kind: str
    url: str
    opened: ExitStack

    def open(self, dimension: int = 4, model: str = "model-a") -> Store:
        store = open_store(self.url, dimension=dimension, model=model)
        self.opened.callback(store.close)
        return store


def serve(server: AbstractContextManager[str]) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(server)
        except ServerMissing as error:
            pytest.skip(str(error))
        yield url


def find_place(kind: str, request: pytest.FixtureRequest, folder: Path, opened: ExitStack) -> Place:
    name = f"t{uuid.uuid4().hex[:12]}"
    if kind in {"redis", "postgres"}:
        pytest.importorskip({"redis": "redis", "postgres": "psycopg_pool"}[kind])
        server = request.getfixturevalue(f"{kind}_url")
        option = f"?prefix={name}" if kind == "redis" else f"&table={name}"
        return Place(kind, server + option, opened)
    try:
        importlib.import_module(f"embedsmith.cache.stores.{kind}")
    except ModuleNotFoundError:
        pytest.skip(f"there is no {kind} store")
    return Place(kind, {"memory": "memory://", "sqlite": f"sqlite:///{folder}/{name}.db"}[kind], opened)


def entry(id: str = "a", vector: Sequence[float] = (1, 0, 0, 0), **given: Any) -> Entry:
    values: dict[str, Any] = {
        "namespace": "n",
        "partition": "p",
        "text": "a question",
        "answer": '{"a": 1}',
        "created": 1.0,
    }
    return Entry(id=id, vector=np.array(vector, dtype=np.float32), **(values | given))


def units(count: int, dimension: int, seed: int = 0) -> Embeddings:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def ids(matches: Sequence[Match]) -> list[str]:
    return [match.entry.id for match in matches]


def same(one: Entry | None, two: Entry | None) -> bool:
    return describe(one) == describe(two)


def describe(one: Entry | None) -> tuple[Any, ...] | None:
    """Return what can be compared: numpy's == is no truth value."""
    if one is None:
        return None
    values = {each.name: getattr(one, each.name) for each in fields(one)}
    return tuple((values | {"vector": one.vector.tolist()}).values())
