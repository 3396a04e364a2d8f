"""Dynamic batching: texts that wait together are encoded together, and a queue that is full says so.

Nothing waits for company: what comes while batches are being encoded makes up the next one. Two are encoded at
once, since with one the encoder would be idle while answers are written. Each waiting request gives a share of
its texts in turn, so that a small one does not wait for the whole of a large one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedsmith.encoder import Embeddings, Encoder, TokenCounter

MOST_TEXTS = 64  # of one call of the encoder
MOST_TOKENS = 16_384  # of one call, padding not counted
ROOM = 4096  # texts that may wait or be encoded at once
SHARE = 16  # texts that one request gives at a time
CALLS = 2  # of the encoder at once
INLINE = 4096  # characters that are counted at once, without a thread
LONGEST_WAIT = 60  # seconds that a client is told to stay away, at most


class Busy(Exception):
    """The queue is full; `seconds` says when there may be room."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"the embeddings queue is full; try again in {seconds} s")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Embeddings (n, d) float32 of unit length, and the tokens that the model read; None where it cannot say."""

    vectors: Embeddings
    tokens: int | None


@dataclass(slots=True, eq=False)
class _Request:
    texts: Sequence[str]
    costs: Sequence[int]  # tokens of each text
    future: asyncio.Future[Embeddings]
    taken: int = 0
    parts: dict[int, Embeddings] = field(default_factory=dict)  # by the place of the first text


@dataclass(frozen=True, slots=True)
class _Piece:
    request: _Request
    start: int
    stop: int

    @property
    def texts(self) -> Sequence[str]:
        return self.request.texts[self.start : self.stop]


class Batcher:
    """Encodes the texts of many requests in few calls. For one event loop.

    Args:
        most_texts, most_tokens: of one call of the encoder; a text that is longer by itself goes alone.
        calls: of the encoder at once.
        room: texts that may be held; one request is always let in while nothing is held.
        on_batch: told the texts of each call.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        most_texts: int = MOST_TEXTS,
        most_tokens: int = MOST_TOKENS,
        calls: int = CALLS,
        room: int = ROOM,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._encoder, self._most_texts, self._most_tokens = encoder, most_texts, most_tokens
        self._calls, self._room = calls, room
        self._queue: deque[_Request] = deque()
        self._held = 0
        self._rate = 100.0  # texts a second of one call, as lately seen
        self._on_batch = on_batch
        self._workers: set[asyncio.Task[None]] = set()  # so that none is collected while it runs
        self._running = 0

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the embeddings of `texts`, in their order.

        Raises:
            Busy: too many texts wait already.
        """
        if self._held and self._held + len(texts) > self._room:
            raise Busy(min(max(math.ceil(self._held / self._rate / self._calls), 1), LONGEST_WAIT))
        self._held += len(texts)
        try:
            counts = await self._count(texts)
            request = _Request(texts, counts or [1] * len(texts), asyncio.get_running_loop().create_future())
            self._queue.append(request)
            if self._running < self._calls:
                self._running += 1  # by hand: a worker that is finishing is still in `_workers`
                worker = asyncio.create_task(self._work())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
            vectors = await request.future
        finally:
            self._held -= len(texts)
        return Encoded(vectors, sum(counts) if counts is not None else None)

    async def _count(self, texts: Sequence[str]) -> list[int] | None:
        if not isinstance(self._encoder, TokenCounter):
            return None
        if sum(map(len, texts)) <= INLINE:
            return self._encoder.count_tokens(texts)
        return await asyncio.to_thread(self._encoder.count_tokens, texts)

    async def _work(self) -> None:
        try:
            while pieces := self._take():
                await self._encode(pieces)
        finally:
            self._running -= 1

    async def _encode(self, pieces: Sequence[_Piece]) -> None:
        began = time.perf_counter()
        texts = [text for piece in pieces for text in piece.texts]
        try:
            vectors = await asyncio.to_thread(self._call, texts)
        except Exception as error:  # noqa: BLE001  goes to whoever asked
            await self._encode_apart(pieces, error)
            return
        self._on_batch(len(texts))
        self._rate = 0.8 * self._rate + 0.2 * len(texts) / max(time.perf_counter() - began, 1e-6)
        for piece, part in zip(pieces, _cut(vectors, pieces), strict=True):
            _hand_out(piece, part)

    def _call(self, texts: Sequence[str]) -> Embeddings:
        """Return the encoder's vectors; one too few, and somebody would wait for it for ever."""
        vectors = self._encoder.encode(texts)
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} vectors of {len(texts)} texts")
        return vectors

    async def _encode_apart(self, pieces: Sequence[_Piece], error: Exception) -> None:
        """Encode every piece by itself, so that a text the encoder fails on fails nobody else."""
        for piece in pieces:
            try:
                part = await asyncio.to_thread(self._call, piece.texts) if len(pieces) > 1 else None
            except Exception as own:  # noqa: BLE001  goes to whoever asked
                _fail(piece, own)
            else:
                if part is None:
                    _fail(piece, error)
                else:
                    _hand_out(piece, part)

    def _take(self) -> list[_Piece]:
        """Return the pieces of the next call: a share of each request in turn, until the call is full."""
        pieces: list[_Piece] = []
        texts, tokens = self._most_texts, self._most_tokens
        while self._queue and texts > 0:
            request = self._queue.popleft()
            if request.future.done():  # whoever asked is gone, or has its error
                continue
            start = stop = request.taken
            while stop < min(start + SHARE, len(request.texts)) and stop - start < texts:
                if request.costs[stop] > tokens and (pieces or stop > start):
                    break
                tokens -= request.costs[stop]
                stop += 1
            if stop == start:  # full: it is the first of the next call
                self._queue.appendleft(request)
                break
            request.taken, texts = stop, texts - (stop - start)
            pieces.append(_Piece(request, start, stop))
            if stop < len(request.texts):
                self._queue.append(request)
        return pieces


def _cut(vectors: Embeddings, pieces: Sequence[_Piece]) -> list[Embeddings]:
    ends = np.cumsum([len(piece.texts) for piece in pieces])[:-1]
    return list(np.split(vectors, ends))


def _hand_out(piece: _Piece, part: Embeddings) -> None:
    request = piece.request
    request.parts[piece.start] = part
    if sum(map(len, request.parts.values())) == len(request.texts) and not request.future.done():
        request.future.set_result(np.concatenate([request.parts[start] for start in sorted(request.parts)]))


def _fail(piece: _Piece, error: Exception) -> None:
    if not piece.request.future.done():
        piece.request.future.set_exception(error)
