"""Connections to the upstream: kept open between requests, and shared out so that each pool of them stays small.

httpcore looks at every connection of a pool when a request begins and when it ends, and asks the system about each
idle one: in one pool 50 requests at once cost each of them five times the work, on the loop that hits wait for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import h11
import httpx

EACH = 8  # requests of one pool at a time
KEPT = 4.0  # seconds that an idle connection is kept: less than by uvicorn (vLLM) and Node, which close after 5
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=EACH, keepalive_expiry=KEPT)


class Pool:
    """One client of httpx.

    Attributes:
        busy: requests whose answers are not at their end. left: when the last one came to its end.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.busy, self.left = 0, 0.0

    def leave(self) -> None:
        """Take note that an answer is at its end."""
        self.busy, self.left = self.busy - 1, time.monotonic()


class Connections:
    """As many connections as there are requests, in pools that are filled one after the other.

    So a few requests at a time find their connections open, and pools opened for a burst become idle and are closed.

    Attributes:
        pools: those open now, the first of them for good.
    """

    def __init__(self) -> None:
        self._trusted = httpx.create_ssl_context()  # read once: it takes longer than a request
        self.pools = [self._open()]

    def _open(self) -> Pool:
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        return Pool(httpx.AsyncClient(cookies=jar, limits=LIMITS, verify=self._trusted))

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Return the answer, its body unread; until it is closed it counts among those in flight.

        Raises:
            httpx.HTTPError: there is none.
        """
        pool = self._enter()
        try:
            await self._close_idle()
            answer = await pool.client.send(request, stream=True)
        except BaseException:
            pool.leave()
            raise
        answer.stream = _Counted(answer, pool.leave)
        return answer

    def _enter(self) -> Pool:
        pool = next((pool for pool in self.pools if pool.busy < EACH), None)
        if pool is None:
            pool = self._open()
            self.pools.append(pool)
        pool.busy += 1
        return pool

    async def _close_idle(self) -> None:
        """Close the pools at the end that nobody has used while a connection is kept."""
        before = time.monotonic() - KEPT
        while len(self.pools) > 1 and not self.pools[-1].busy and self.pools[-1].left < before:
            await self.pools.pop().client.aclose()

    async def close(self) -> None:
        """Close them all."""
        for pool in self.pools:
            await pool.client.aclose()


class _Counted(httpx.AsyncByteStream):
    """The bytes of an answer; whoever closes it leaves its pool.

    A connection on which something came behind the answer is closed with it: h11 would take that for the answer to the
    next request, which is another client's.
    """

    def __init__(self, answer: httpx.Response, left: Callable[[], None]) -> None:
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        self._stream, self._left = answer.stream, left
        self._parser, self._wire = _parser_of(answer.stream), answer.extensions["network_stream"]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            if self._parser is None or self._parser.trailing_data[0]:
                await self._wire.aclose()
            await self._stream.aclose()
        finally:
            self._left()


def _parser_of(stream: object) -> h11.Connection | None:
    """Return what reads the answers of a connection, None where httpx is not built as we know it."""
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state"):
        stream = getattr(stream, name, None)
    return stream if isinstance(stream, h11.Connection) else None
