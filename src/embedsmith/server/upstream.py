"""The way to the upstream: a request goes on as it came, byte for byte, and its answer comes back so.

Nothing is kept between two requests but open connections: no cookies (they would be handed to other tenants), no
default headers, no redirects followed. A path cannot lead out of the upstream's own base address.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from embedsmith.server.answers import LARGEST, Answer, StreamReader
from embedsmith.server.connections import Connections
from embedsmith.server.edge import TooSlow, refuse
from embedsmith.server.headers import ASKED, HOPS, IDENTITY, brings_key
from embedsmith.server.spans import LONGEST, Span, describe_completion, name_call, name_provider
from embedsmith.server.trail import REQUEST_ID, Trail, query_of, trail_of
from embedsmith.server.watch import Watch

OWN = "x-embedsmith-"
HIGHEST = 599  # status that HTTP has, and that uvicorn can send
Headers = list[tuple[bytes, bytes]]


class Upstream:
    """The upstream of one server.

    Args:
        address: its base URL, with its /v1. key: API key for it, for clients that bring none.
        timeout: seconds it may take for the head of an answer, for a whole one, and between two parts of a stream.
    """

    def __init__(self, address: str, *, key: str | None, timeout: float, watch: Watch) -> None:
        self._base = httpx.URL(address.rstrip("/"))
        self._key, self._watch = key, watch
        self.timeout = timeout
        self._waits = httpx.Timeout(timeout, connect=min(timeout, 10.0)).as_dict()
        self._connections = Connections()

    async def close(self) -> None:
        """Close its connections."""
        await self._connections.close()

    async def send(self, request: Request, raw: bytes | AsyncIterable[bytes]) -> Call | Response:
        """Return the upstream's answer, its body unread, or the response that says why there is none.

        Args:
            raw: the request's body, whole or as it comes; then its time is the client's, and not the upstream's.

        Raises:
            ClientDisconnect, TooSlow: by whoever makes the pieces of `raw`; the upstream sees a broken connection.
        """
        trail = trail_of(request)
        below = path_below(request)
        try:
            url = self._address(below, request.scope.get("query_string", b"")) if below is not None else None
        except httpx.InvalidURL:
            url = None
        if below is None or url is None:
            return refuse(400, "this path cannot be passed on")
        span = self._open_span(trail, request.method, below, raw if isinstance(raw, bytes) else b"")
        call = Call(trail, span, self._watch, time.perf_counter(), self.timeout)
        headers, waits = self._headers(request, trail, call.span), {"timeout": self._waits}
        # Of both, chunks count.
        told = "content-length" in request.headers and "transfer-encoding" not in request.headers
        if told and not isinstance(raw, bytes):  # else it goes on in chunks
            headers.append((b"content-length", request.headers["content-length"].encode()))
        try:
            async with asyncio.timeout(self.timeout) as clock:  # httpx counts from one piece of the head to the next
                content = raw or None if isinstance(raw, bytes) else hand_on(raw, clock, self.timeout)
                sent = httpx.Request(request.method, url, headers=headers, content=content, extensions=waits)
                call.take(await self._connections.send(sent))
        except (httpx.TimeoutException, TimeoutError):
            return call.missing(504, "the upstream did not answer in time")
        except httpx.HTTPError as error:
            return call.missing(502, "the upstream cannot be reached", type(error).__name__)
        except (ClientDisconnect, TooSlow) as error:
            call.cut(error)
            raise
        if call.status_code > HIGHEST:
            await call.answer.aclose()
            return call.missing(502, "the upstream answered with a status that is none", str(call.status_code))
        return call

    def _address(self, below: str, query: bytes) -> httpx.URL:
        path = self._base.raw_path.rstrip(b"/") + b"/" + below.encode("ascii") + (b"?" + query if query else b"")
        return self._base.copy_with(raw_path=path)

    def _headers(self, request: Request, trail: Trail, span: Span) -> Headers:
        given = request.headers.raw
        fresh = {REQUEST_ID: trail.id, **span.headers(), "accept-encoding": "identity"}  # what is stored must be read
        headers = [(name, value) for name, value in end_to_end(given) if name.decode("latin-1") not in {ASKED, *fresh}]
        if self._key and not brings_key(request.headers, query_of(request.scope)):
            headers.append((b"authorization", b"Bearer " + self._key.encode()))
        return headers + [(name.encode(), value.encode()) for name, value in fresh.items()]

    def _open_span(self, trail: Trail, method: str, below: str, raw: bytes) -> Span:
        if not trail.span.recording:
            return trail.span.child("", "client")
        model = model_of(raw)
        name, operation = name_call(below, method, model)
        span = trail.span.child(name, "client")
        about = {"http.request.method": method, "server.address": self._base.host, "server.port": self._base.port}
        if operation is not None:
            about |= {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": name_provider(self._base.host),
                "gen_ai.request.model": model or None,
            }
        span.note(about)
        return span


class WatchedStream(StreamingResponse):
    """A stream that says when it is over, however it ends."""

    over: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.over()


@dataclass(slots=True)
class Call:
    """One request to the upstream, from its start to the end of the answer.

    Attributes:
        began: of the monotonic clock. patience: seconds that a whole answer may take.
    """

    trail: Trail
    span: Span
    watch: Watch
    began: float
    patience: float
    _answer: httpx.Response | None = None

    def take(self, answer: httpx.Response) -> None:
        """Take the head of the answer."""
        self._answer = answer
        self.trail.upstream = time.perf_counter() - self.began
        self.span.note({"http.response.status_code": answer.status_code})
        if answer.status_code >= 400:
            self.span.fail(str(answer.status_code))
        if answer.status_code >= 500:
            self.trail.failure = "the upstream failed"

    @property
    def answer(self) -> httpx.Response:
        """The upstream's answer."""
        assert self._answer is not None
        return self._answer

    @property
    def status_code(self) -> int:
        """The upstream's status."""
        return self.answer.status_code

    def missing(
        self, status: int, reason: str, kind: str = "timeout", told: Mapping[str, str] | None = None
    ) -> Response:
        """Return the answer for a call that failed, and end it."""
        self.watch.failed(reason)
        self.trail.failure = reason
        self.span.fail(kind)
        self._end()
        return refuse(status, reason if kind == "timeout" else f"{reason} ({kind})", told)

    def cut(self, error: Exception) -> None:
        """End a call whose request the client has not sent to its end."""
        self.span.fail(type(error).__name__)
        self._end()

    def answered(self, answer: Answer | None) -> None:
        """Note who answered and what it cost."""
        if self.span.recording and answer is not None:
            self.span.note(describe_completion(answer.body))

    async def read(self, told: Mapping[str, str] | None = None) -> bytes | AsyncGenerator[bytes] | Response:
        """Return the whole body as it was sent, or the response that says that it broke off.

        One that is too long to be stored goes on as it comes: nobody says how long it is.
        """
        left = self.patience - (time.perf_counter() - self.began)
        parts, size, source = list[bytes](), 0, self.answer.aiter_raw()
        try:
            async with asyncio.timeout(max(left, 0.0)):  # blank lines keep a connection alive, and tell nothing
                async for part in source:
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST:
                        return self.stream(begun=parts, source=source)
            return b"".join(parts)
        except (httpx.TimeoutException, TimeoutError):
            return self.missing(504, "the upstream did not end its answer in time", told=told)
        except httpx.HTTPError as error:
            return self.missing(502, "the upstream broke off its answer", type(error).__name__, told)
        finally:
            if size <= LARGEST:
                await self.answer.aclose()

    async def stream(
        self,
        reader: StreamReader | None = None,
        *,
        begun: Iterable[bytes] = (),
        source: AsyncIterator[bytes] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Yield the bytes of the answer as they come, let `reader` see them, and end the call.

        Args:
            begun, source: what has been read already, and where the rest comes from.
        """
        try:
            for data in begun:
                yield data
            async for data in source or self.answer.aiter_raw():
                if reader is not None:
                    reader.feed(data)
                yield data
            if reader is not None and self.span.recording:
                self.answered(await asyncio.to_thread(reader.answer))
        except httpx.HTTPError as error:
            self.watch.failed("the upstream cut a stream")
            self.trail.failure = "the upstream cut a stream"
            self.span.fail(type(error).__name__)
            raise
        finally:
            await self.answer.aclose()
            self._end()

    def response(
        self,
        content: bytes | AsyncIterator[bytes],
        told: Mapping[str, str] | None = None,
        *,
        over: Callable[[], None] = lambda: None,
    ) -> Response:
        """Return the answer with its status and headers, and what the cache has to say.

        Args:
            over: called when a stream was sent, or its client has gone.
        """
        made: Response
        if isinstance(content, bytes):
            made = Response(content, self.status_code)
            self._end()
        else:
            made = WatchedStream(content, self.status_code)
            made.over = over
        made.raw_headers += kept_headers(self.answer.headers.raw)
        made.raw_headers += [(name.encode(), value.encode("latin-1")) for name, value in (told or {}).items()]
        return made

    def _end(self) -> None:
        self.trail.upstream = time.perf_counter() - self.began
        self.span.end()


async def hand_on(pieces: AsyncIterable[bytes], clock: asyncio.Timeout, patience: float) -> AsyncIterator[bytes]:
    """Yield the pieces of a request; the clock of the upstream stands still while the client is waited for."""
    now = asyncio.get_running_loop().time
    clock.reschedule(None)
    async for piece in pieces:
        clock.reschedule(now() + patience)
        yield piece
        clock.reschedule(None)
    clock.reschedule(now() + patience)


def path_below(request: Request) -> str | None:
    """Return the request's path below /v1 as it was sent, percent signs and all; None where it must not go on.

    A segment "." or ".." (however it is written, and with the parameters that some servers cut off it: "..;x") would
    lead out of the upstream's base address; "v1%2Fa" is more than the segment that is taken off.
    """
    raw = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    parts = raw.split(b"/", 2)
    if len(parts) < 3 or b"/" in unquote_to_bytes(parts[1]):
        return None
    segments = unquote_to_bytes(parts[2]).replace(b"\\", b"/").split(b"/")
    if {b".", b".."} & {segment.partition(b";")[0] for segment in segments}:
        return None
    try:
        return str(parts[2], "ascii")
    except UnicodeDecodeError:
        return None


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers without those of one connection: the standard ones and those that `Connection` names.

    None of these says who asks: the client could take away what a proxy before this server has said of it.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    told = b",".join(value for name, value in pairs if name == b"connection").decode("latin-1")
    named = {part.strip().lower() for part in told.split(",")} - IDENTITY
    dropped = HOPS | named
    return [(name, value) for name, value in pairs if name.decode("latin-1") not in dropped]


def kept_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return an answer's headers without those of the connection and of a cache; its request id under another name."""
    kept = []
    for name, value in end_to_end(headers):
        if name == REQUEST_ID.encode():
            kept.append((b"x-upstream-request-id", value))
        elif not name.startswith(OWN.encode()):
            kept.append((name, value))
    return kept


def model_of(raw: bytes) -> str:
    """Return the model that a request names, "" when it names none."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    model = body.get("model") if isinstance(body, dict) else None
    return model[:LONGEST] if isinstance(model, str) else ""
