"""A store whose entries get vectors of another model, while it serves those of the old one until all are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from embedsmith.cache.stores import StoreError
from embedsmith.cache.stores.moving import Move, Pending, open_move
from embedsmith.choices import LARGEST_CALL
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.errors import ConfigurationError

BATCH = 256  # texts that are encoded and written at once; a kill costs at most these
LAST = 32  # most entries encoded while additions are blocked; doubled after each switch that failed for more
PROBE = "dimension"  # a text that every encoder can encode


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry whose text cannot be encoded, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reencoded:
    """A store that belongs to its new model.

    Attributes:
        url: without a password.
        old_model, old_dimension, model, dimension: fingerprints and sizes of vectors, before and after.
        entries: how many there are. encoded: how many of these this call encoded; 0 when there was nothing to do.
        dropped: entries that could not be encoded and were removed, as the caller allowed.
        seconds: all of it. held: of these, how long those who add entries waited at the end.
    """

    url: str
    old_model: str
    old_dimension: int
    model: str
    dimension: int
    entries: int
    encoded: int
    dropped: tuple[Failure, ...]
    seconds: float
    held: float


class EntriesNotEncoded(StoreError):
    """Some texts cannot be encoded. The store still belongs to its old model; what is encoded is kept."""

    def __init__(self, url: str, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        first = "; ".join(f"{one.id[:12]}: {one.reason}" for one in self.failures[:3])
        super().__init__(
            f"{len(self.failures)} entries of {url} cannot be encoded ({first}{'; …' if self.failures[3:] else ''})",
            expected="a vector for every entry; the store still serves the old model",
            action="remove these entries, or add --drop-failed (drop_failed=True) to let the command remove them",
            facts={"failed": self.failures},
        )


def reencode(
    url: str,
    encoder: Encoder,
    *,
    model: str,
    batch: int = BATCH,
    restart: bool = False,
    drop_failed: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Reencoded:
    """Return what was done to give every entry of the store at `url` a vector of `encoder`.

    All else of an entry stays, its uses and its expiry too. Until the end the store belongs to the old model and
    serves it; entries that are added or removed meanwhile are followed. Call it again after a kill: it goes on where
    it was. At the end, the last few entries are encoded while additions wait, then the store changes hands at once;
    servers with the old model get `ModelMismatch` from then on, when they look up or add.

    Args:
        url: as for `open_store`. model: fingerprint of `encoder`, as the servers with it will give it.
        batch: texts per call of the encoder, 1 to `choices.LARGEST_CALL`.
        restart: drop what an unfinished re-encoding has done, be it to this model or to another.
        drop_failed: remove entries whose text cannot be encoded; without it they are an error at the end.
        on_progress: called with (entries done, entries in all).

    Raises:
        EntriesNotEncoded: see `drop_failed`. ConfigurationError: the store needs none, or is on its way to another
        model. StoreError: it cannot be reached, or another re-encoding overtook this one. What the encoder raises
        when it cannot even encode a plain word.
    """
    if not 1 <= batch <= LARGEST_CALL:
        raise ConfigurationError(f"a batch of {batch} texts", expected=f"1 to {LARGEST_CALL:,}")
    began, dimension = time.perf_counter(), int(encoder.encode([PROBE]).shape[1])
    with closing(open_move(url, model=model, dimension=dimension, restart=restart)) as move:
        work = _Work(move, encoder, dimension, batch, drop_failed, on_progress)
        held = 0.0 if move.finished else work.run()
        move.clean()
        return Reencoded(
            *(move.url, move.about.model, move.about.dimension, model, dimension),
            entries=move.progress()[1],
            encoded=work.encoded,
            dropped=tuple(work.failures.values()),
            seconds=time.perf_counter() - began,
            held=held,
        )


class _Work:
    """One call of `reencode`."""

    def __init__(
        self,
        move: Move,
        encoder: Encoder,
        dimension: int,
        batch: int,
        drop_failed: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.move, self.encoder, self.dimension = move, encoder, dimension
        self.batch, self.drop_failed, self.on_progress = batch, drop_failed, on_progress
        self.encoded, self.last = 0, LAST
        self.failures: dict[Pending, Failure] = {}

    def run(self) -> float:
        """Encode until nothing is left, then switch; return how long additions waited."""
        while True:
            self._pass()
            self._refuse_failures()
            self.move.ready()
            began, done = time.perf_counter(), False
            with self.move.hold():
                done = self._finish()
            self.last *= 2
            if done:
                return time.perf_counter() - began

    def _pass(self) -> None:
        """Encode all that is pending, once; what comes meanwhile is met here or by the next pass."""
        done, total = self.move.progress()
        self._tell(done, total)
        after = ""
        while rows := self.move.pending(after, self.batch):
            after = rows[-1].id
            written = self._encode([row for row in rows if row not in self.failures])
            done += written
            if written:
                self._tell(done, max(done, total))

    def _finish(self) -> bool:
        """Encode the last few and switch, while nothing is added; False when they are more than a few."""
        left = self.move.pending("", self.last + 1 + len(self.failures))
        left = [row for row in left if row not in self.failures]
        if len(left) > self.last:
            return False
        for start in range(0, len(left), self.batch):
            self._encode(left[start : start + self.batch])
        self._refuse_failures()
        self.move.drop(list(self.failures))
        return self.move.switch()

    def _encode(self, rows: Sequence[Pending]) -> int:
        """Encode and write; return how many could be."""
        good = self._vectors(rows) if rows else []
        if good:
            self.move.write(good)
            self.encoded += len(good)
        return len(good)

    def _vectors(self, rows: Sequence[Pending]) -> list[tuple[Pending, Embeddings]]:
        try:
            return self._checked(rows)
        except Exception:  # noqa: BLE001 (an encoder may be anybody's, and raise anything)
            return self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[Pending]) -> list[tuple[Pending, Embeddings]]:
        """Find out which texts are to blame; when it is the encoder, its error goes on."""
        good: list[tuple[Pending, Embeddings]] = []
        failures = {}
        for row in rows:
            try:
                good += self._checked([row])
            except Exception as error:  # noqa: BLE001
                failures[row] = Failure(row.id, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        if not good:
            self.encoder.encode([PROBE])
        self.failures |= failures
        return good

    def _checked(self, rows: Sequence[Pending]) -> list[tuple[Pending, Embeddings]]:
        vectors = np.asarray(self.encoder.encode([row.text for row in rows]), dtype=np.float32)
        if vectors.shape != (len(rows), self.dimension):
            raise ValueError(f"vectors of shape {vectors.shape}, expected {(len(rows), self.dimension)}")
        if not np.isfinite(vectors).all():
            raise ValueError("the vector is not finite")
        return list(zip(rows, vectors, strict=True))

    def _refuse_failures(self) -> None:
        if self.failures and not self.drop_failed:
            raise EntriesNotEncoded(self.move.url, list(self.failures.values()))

    def _tell(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)
