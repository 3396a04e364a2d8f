"""A SQLite store on its way to another model: a second table of vectors; the switch is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from embedsmith.cache.stores import NoStore, StoreError
from embedsmith.cache.stores.moving import Pending, Target, choose_target, overtaken
from embedsmith.cache.stores.sqlite import connect, path_of
from embedsmith.cache.stores.sqlite_schema import (
    drop_vectors,
    find_vectors,
    make_vectors,
    prepare,
    transaction,
    write_meta,
)
from embedsmith.encoder import Embeddings

REMOVED_AT_ONCE = 2000  # vectors
COMING = ("next_model", "next_dimension", "next_generation")
# A row number is never used again and its text never changes: whoever has a vector has the right one.
PENDING = """
select id, text from entries
where id > ? and not exists (select 1 from vectors_{generation} as next where next.number = entries.number)
order by id limit ?
"""
WRITE = "insert or ignore into vectors_{generation} select number, ? from entries where id = ? and text = ?"


class SQLiteMove:
    """See `Move`."""

    def __init__(self, url: str, *, model: str, dimension: int, restart: bool) -> None:
        self.url = url
        if not path_of(url).is_file():
            raise NoStore(url)
        with self._calls():
            self._connection = connect(path_of(url))
        try:
            with self._transaction():
                self.about = prepare(self._connection, url, model, dimension)
                self.finished = (self.about.model, self.about.dimension) == (model, dimension)
                self._target = self._begin(model, dimension, restart)
        except BaseException:
            self.close()
            raise

    def _begin(self, model: str, dimension: int, restart: bool) -> Target:
        coming = self._coming()
        if coming is not None and restart:
            drop_vectors(self._connection, coming.generation)
            self._forget_coming()
        if self.finished:
            return Target(model, dimension, self.about.generation)
        target = choose_target(self.url, self.about, coming, model, dimension, restart=restart)
        if target != coming:
            make_vectors(self._connection, target.generation)
            values = zip(COMING, (target.model, target.dimension, target.generation), strict=True)
            write_meta(self._connection, **dict(values))
        return target

    def _forget_coming(self) -> None:
        self._connection.executemany("delete from meta where name = ?", [(name,) for name in COMING])

    def _coming(self) -> Target | None:
        marks = ",".join("?" * len(COMING))
        found = dict(self._connection.execute(f"select name, value from meta where name in ({marks})", COMING))
        if not found:
            return None
        return Target(found["next_model"], int(found["next_dimension"]), int(found["next_generation"]))

    def progress(self) -> tuple[int, int]:
        with self._calls():
            (done,) = self._connection.execute(self._sql("select count(*) from vectors_{generation}")).fetchone()
            (total,) = self._connection.execute("select coalesce(sum(entries), 0) from counts").fetchone()
            return done, total

    def pending(self, after: str, count: int) -> list[Pending]:
        with self._calls():
            return [Pending(*row) for row in self._connection.execute(self._sql(PENDING), (after, count))]

    def write(self, rows: Sequence[tuple[Pending, Embeddings]]) -> None:
        values = [(vector.astype("<f4").tobytes(), row.id, row.text) for row, vector in rows]
        with self._transaction():
            self._connection.executemany(self._sql(WRITE), values)

    def drop(self, rows: Sequence[Pending]) -> None:
        with self._transaction():
            values = [(row.id, row.text) for row in rows]
            self._connection.executemany("delete from entries where id = ? and text = ?", values)

    def ready(self) -> None:
        """There is nothing to do."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        with self._transaction():
            yield

    def switch(self) -> bool:
        if self.pending("", 1):
            return False
        with self._transaction():
            if self._coming() != self._target:
                raise overtaken(self.url)
            about = self._target
            write_meta(self._connection, model=about.model, dimension=about.dimension, generation=about.generation)
            self._forget_coming()
        return True

    def clean(self) -> None:
        """Remove the old vectors, some at a time, so that nobody waits long."""
        with self._calls():
            for generation in find_vectors(self._connection):
                if generation < self._target.generation:
                    self._remove_vectors(generation)

    def _remove_vectors(self, generation: int) -> None:
        few = f"select number from vectors_{generation} limit {REMOVED_AT_ONCE}"
        while self._connection.execute(f"delete from vectors_{generation} where number in ({few})").rowcount:
            pass
        with self._transaction():
            drop_vectors(self._connection, generation)

    def close(self) -> None:
        self._connection.close()

    def _sql(self, text: str) -> str:
        return text.format(generation=self._target.generation)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._calls(), transaction(self._connection):
            yield

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            if "no such table: vectors_" in str(error):
                raise overtaken(self.url) from None
            raise StoreError(f"{self.url} cannot be re-encoded: {error}", expected="a store") from None
