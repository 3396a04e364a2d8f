"""The caching proxy: an OpenAI-compatible front that answers what it knows and passes on all else untouched."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from embedsmith.cache.chat import Allowances, Passed, Question, read_chat
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.server.answers import Answer, StreamReader, load_answer, read_body, stream_events
from embedsmith.server.control import ASKED, Control, describe, read_control, tenant_of
from embedsmith.server.flights import Flight, Flights
from embedsmith.server.watch import Watch

LOG = logging.getLogger("embedsmith.server")
LARGEST = 8 << 20  # bytes of a request
HOPS = frozenset(  # headers that belong to one connection only
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length"),
    }
)


class TooLarge(Exception):
    """A request body above the limit."""


@dataclass(slots=True)
class Proxy:
    """The handlers of the proxy.

    Attributes:
        upstream: client whose base URL is the upstream's, e.g. https://api.openai.com/v1.
        secret: key of the hash that makes tenants of API keys.
        key: API key for the upstream when a client brings none.
        shadow: answer everything from the upstream, and only say what would have been served.
    """

    cache: SemanticCache
    upstream: httpx.AsyncClient
    secret: bytes
    watch: Watch
    allowed: Allowances = field(default_factory=Allowances)
    key: str | None = None
    largest: int = LARGEST
    shadow: bool = False
    flights: Flights = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.flights = Flights(self.cache.policy)

    async def chat(self, request: Request) -> Response:
        """Answer /v1/chat/completions from the cache, or from the upstream."""
        try:
            raw = await read_limited(request, self.largest)
            control = read_control(request.headers)
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise ValueError("the body must be an object")
        except TooLarge:
            return refuse(413, f"the request has more than {self.largest} bytes")
        except (ValueError, RecursionError) as error:
            return refuse(400, str(error))
        try:
            question = read_chat(body, self.allowed)
        except ValueError as error:
            question = Passed(str(error))
        if isinstance(question, Passed):
            self.watch.passed(question.reason)
            return await self.forward(request, raw, describe(None, question.reason))
        return await self._answer(request, raw, question, control)

    async def _answer(self, request: Request, raw: bytes, question: Question, control: Control) -> Response:
        try:
            found = await self._look_up(request, question, control)
        except Exception as error:  # noqa: BLE001  a cache that fails must not take the LLM away
            return await self._go_around(request, raw, error)
        if found.answer is not None and control.read and self.shadow:
            seen = missed(found, f"shadow: {found.decision.told}")
            return await self._fetch(request, raw, question, replace(control, write=False), seen)
        if found.answer is not None and control.read:
            return self._serve(question, found)
        if control.only_cached:
            self.watch.looked_up(found)
            return refuse(504, "the answer is not in the cache, and only-if-cached was asked for", describe(found))
        if not control.read:
            return await self._fetch(request, raw, question, control, missed(found, "no-cache was asked for"))
        if self.shadow:  # every caller gets an answer of its own
            return await self._fetch(request, raw, question, control, found)
        flight, leads = self.flights.board(found)
        if not leads:
            await flight.wait()
        try:
            found = await asyncio.to_thread(self.cache.look_again, found)  # another may have landed since
        except BaseException as error:
            if leads:
                flight.land()
            if not isinstance(error, Exception):
                raise
            return await self._go_around(request, raw, error)
        if found.answer is None:
            return await self._fetch(request, raw, question, control, found, flight if leads else None)
        if leads:
            flight.land()
        return self._serve(question, found)

    async def _go_around(self, request: Request, raw: bytes, error: Exception) -> Response:
        LOG.warning("the cache failed, the upstream answers: %s", error)
        self.watch.failed("the cache failed")
        return await self.forward(request, raw, describe(None, "the cache failed"))

    async def _look_up(self, request: Request, question: Question, control: Control) -> Lookup:
        tenant = tenant_of(request.headers, request.url.query, self.secret, control.namespace)
        return await asyncio.to_thread(self.cache.lookup, question.text, namespace=tenant, scope=question.scope)

    def _serve(self, question: Question, found: Lookup) -> Response:
        assert found.answer is not None
        answer = load_answer(found.answer)
        self.watch.looked_up(found, answer)
        if question.stream:
            return StreamingResponse(stream_events(answer), headers=describe(found), media_type="text/event-stream")
        return JSONResponse(answer.body, headers=describe(found))

    async def _fetch(
        self,
        request: Request,
        raw: bytes,
        question: Question,
        control: Control,
        found: Lookup,
        flight: Flight | None = None,
    ) -> Response:
        """Return the upstream's answer and store it if it may be stored; lands the flight when that is done."""
        self.watch.looked_up(found)
        handed_on = False
        try:
            answer = await self._send(request, raw)
            if isinstance(answer, Response):
                return answer
            headers = kept_headers(answer.headers) | describe(found)
            if question.stream and answer.status_code == 200:
                handed_on = True
                return StreamingResponse(self._relay(answer, control, found, flight), 200, headers)
            try:
                content = await answer.aread()
            except httpx.HTTPError:
                self.watch.failed("the upstream broke off its answer")
                return refuse(502, "the upstream broke off its answer", describe(found))
            if answer.status_code == 200:
                await self._store(found, control, read_body(parse(content)))
            return Response(content, answer.status_code, headers)
        finally:
            if flight is not None and not handed_on:
                flight.land()

    def _relay(
        self, answer: httpx.Response, control: Control, found: Lookup, flight: Flight | None
    ) -> AsyncIterator[bytes]:
        """Return the bytes of a stream as they come.

        A task of its own reads the upstream to the end, so that a client that goes away costs the others
        who wait for this answer nothing.
        """
        queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        task = asyncio.create_task(self._read_stream(answer, control, found, flight, queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _drain(queue)

    async def _read_stream(
        self,
        answer: httpx.Response,
        control: Control,
        found: Lookup,
        flight: Flight | None,
        queue: asyncio.Queue[bytes | Exception | None],
    ) -> None:
        reader = StreamReader()
        try:
            async for data in answer.aiter_raw():
                reader.feed(data)
                queue.put_nowait(data)
            await self._store(found, control, reader.answer())
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001  the client must see a broken stream, not a whole one
            self.watch.failed("the upstream cut a stream")
            queue.put_nowait(error)
        finally:
            await answer.aclose()
            if flight is not None:
                flight.land()

    async def _store(self, found: Lookup, control: Control, answer: Answer | None) -> None:
        if answer is not None and control.write:
            try:
                await asyncio.to_thread(self.cache.add, found, answer.dump(), ttl=control.ttl)
            except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
                LOG.warning("an answer could not be stored: %s", error)
                self.watch.failed("an answer could not be stored")
            else:
                self.watch.stored()

    async def forward(
        self, request: Request, raw: bytes | None = None, told: Mapping[str, str] | None = None
    ) -> Response:
        """Pass a request on as it is, and its answer back as it comes."""
        try:
            content = raw if raw is not None else await read_limited(request, self.largest)
        except TooLarge:
            return refuse(413, f"the request has more than {self.largest} bytes")
        answer = await self._send(request, content)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(_bytes_of(answer), answer.status_code, kept_headers(answer.headers) | dict(told or {}))

    async def _send(self, request: Request, raw: bytes) -> httpx.Response | Response:
        """Return the upstream's answer, its body unread, or the response that says why there is none."""
        headers = [(name, value) for name, value in request.headers.items() if name not in HOPS | {ASKED}]
        if self.key and "authorization" not in request.headers:
            headers.append(("authorization", f"Bearer {self.key}"))
        headers = [(name, value) for name, value in headers if name != "accept-encoding"]
        headers.append(("accept-encoding", "identity"))  # what is stored must be readable
        path = request.url.path.removeprefix("/v1").lstrip("/")
        sent = self.upstream.build_request(
            request.method, path, params=request.query_params, headers=headers, content=raw or None
        )
        try:
            return await self.upstream.send(sent, stream=True)
        except httpx.TimeoutException:
            self.watch.failed("the upstream did not answer in time")
            return refuse(504, "the upstream did not answer in time")
        except httpx.HTTPError as error:
            self.watch.failed("the upstream cannot be reached")
            return refuse(502, f"the upstream cannot be reached ({type(error).__name__})")


async def _drain(queue: asyncio.Queue[bytes | Exception | None]) -> AsyncIterator[bytes]:
    while (data := await queue.get()) is not None:
        if isinstance(data, Exception):
            raise data
        yield data


async def _bytes_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for data in answer.aiter_raw():
            yield data
    finally:
        await answer.aclose()


async def read_limited(request: Request, largest: int) -> bytes:
    """Return the body of a request; `TooLarge` as soon as there is more than `largest` bytes of it."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > largest:
        raise TooLarge
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > largest:
            raise TooLarge
    return bytes(body)


def kept_headers(headers: httpx.Headers) -> dict[str, str]:
    """Return an answer's headers without those of the connection and of the cache."""
    return {name: value for name, value in headers.items() if name not in HOPS and not name.startswith("x-embedsmith")}


def refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error in the protocol's form."""
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": None}}, status, headers)


def parse(content: bytes) -> Any:
    """Return the JSON value of `content`, None when it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def missed(found: Lookup, reason: str) -> Lookup:
    """Return the lookup as a miss for `reason`, whatever it found."""
    return replace(found, decision=replace(found.decision, entry=None, tier=None, reason=reason), age=None)
