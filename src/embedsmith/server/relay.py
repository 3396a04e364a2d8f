"""A stream on its way from the upstream to one client, read by a task of its own.

A client that goes away costs the others who wait for this answer nothing: the task reads on, to have the answer
stored. What nobody takes has its end, though: in time once the client is gone, and in bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from embedsmith.server.answers import StreamReader

LINGER = 1.0  # seconds for the end of a stream that nobody needs, so that its connection can be used again


class Relay:
    """One stream.

    Attributes:
        abandoned: it could have been stored, but did not end in time after its client had gone.

    Args:
        source: its bytes as they come. reader: sees them as they pass.
        patience: seconds that are read on without a client.
        kept: whether the answer may be stored; else next to nothing is read for nobody.
        given_up: called when the stream turns out too long to be stored.
    """

    def __init__(
        self,
        source: AsyncGenerator[bytes],
        reader: StreamReader,
        *,
        patience: float,
        kept: bool,
        given_up: Callable[[], None],
    ) -> None:
        self._source, self._reader, self._patience = source, reader, patience
        self._kept, self._given_up = kept, given_up
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._clock: asyncio.Timeout | None = None  # while it is read
        self._gone = False
        self.abandoned = False

    async def read(self) -> bool:
        """Read the stream, hand it to the client and end the client's part; say whether it came to its end."""
        try:
            async with asyncio.timeout(None) as self._clock, aclosing(self._source) as source:
                self._set_clock()
                async for data in source:
                    await self._hand_on(data)
        except TimeoutError:  # nobody takes it, and it does not end
            self.abandoned = self._kept
            return False
        except Exception as error:  # noqa: BLE001  the client must see a broken stream, not a whole one
            self._queue.put_nowait(error)
            return False
        finally:
            self._clock = None
        self._queue.put_nowait(None)
        return True

    async def _hand_on(self, data: bytes) -> None:
        if not self._gone:
            self._queue.put_nowait(data)
        if self._reader.full:
            if self._kept:
                self._kept = False
                self._given_up()
                self._set_clock()
            await self._queue.join()  # it is kept nowhere now: no more of it than the client takes

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the bytes for the client."""
        while (data := await self._queue.get()) is not None:
            self._queue.task_done()
            if isinstance(data, Exception):
                raise data
            yield data

    def leave(self) -> None:
        """Take note that the client has gone, or has everything."""
        self._gone = True
        while not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()
        self._set_clock()

    def _set_clock(self) -> None:
        if self._gone and self._clock is not None and not self._clock.expired():
            now = asyncio.get_running_loop().time()
            self._clock.reschedule(now + (self._patience if self._kept else LINGER))
