"""The caching proxy: an OpenAI-compatible front that answers what it knows and passes on all else untouched."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from embedsmith.cache.chat import Allowances, Passed, Question, read_chat
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.errors import describe_failure
from embedsmith.server.answers import Answer, StreamReader, load_answer, read_body, stream_events
from embedsmith.server.control import Control, describe, read_control, tenant_of
from embedsmith.server.edge import BODY_SECONDS, read_limited, refuse, require_json
from embedsmith.server.flights import Flight, Flights
from embedsmith.server.trail import Trail, trail_of
from embedsmith.server.upstream import Call, Upstream
from embedsmith.server.watch import Watch

LOG = logging.getLogger("embedsmith.server")
LARGEST = 8 << 20  # bytes of a request
SHORT = 400  # characters that an encoder in this process reads in a few milliseconds
LOCAL = ("memory:", "sqlite:")  # stores that no network lies before


@dataclass(slots=True)
class Proxy:
    """The handlers of the proxy.

    Attributes:
        secret: key of the hash that makes tenants of API keys.
        shadow: answer everything from the upstream, and only say what would have been served.
    """

    cache: SemanticCache
    upstream: Upstream
    secret: bytes
    watch: Watch
    allowed: Allowances = field(default_factory=Allowances)
    largest: int = LARGEST
    body_seconds: float = BODY_SECONDS
    shadow: bool = False
    flights: Flights = field(init=False)
    _quick: bool = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.flights = Flights(self.cache.policy)
        self._quick = is_quick(self.cache)

    async def read(self, request: Request) -> bytes:
        """Return the body of a request, within the limits."""
        return await read_limited(request, self.largest, self.body_seconds)

    async def chat(self, request: Request) -> Response:
        """Answer /v1/chat/completions from the cache, or from the upstream."""
        require_json(request)
        raw = await self.read(request)
        try:
            control = read_control(request.headers)
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise ValueError("the body must be an object")
        except (ValueError, RecursionError) as error:
            return refuse(400, str(error))
        try:
            question = read_chat(body, self.allowed)
        except ValueError as error:
            question = Passed(str(error))
        if isinstance(question, Passed):
            self.watch.passed(question.reason)
            trail_of(request).passed(question.reason)
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
            return self._serve(request, question, found)
        if control.only_cached:
            self._note(request, found)
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
        return self._serve(request, question, found)

    async def _go_around(self, request: Request, raw: bytes, error: Exception) -> Response:
        LOG.warning("the cache failed, the upstream answers: %s", describe_failure(error))
        self.watch.failed("the cache failed")
        trail_of(request).passed("the cache failed")
        return await self.forward(request, raw, describe(None, "the cache failed"))

    async def _look_up(self, request: Request, question: Question, control: Control) -> Lookup:
        tenant = tenant_of(request.headers, request.url.query, self.secret, control.namespace)
        span = trail_of(request).span.child("embedsmith.lookup")
        try:
            look_up = partial(self.cache.lookup, question.text, namespace=tenant, scope=question.scope)
            inline = self._quick and len(question.text) <= SHORT and self._is_alone(request)
            found = look_up() if inline else await asyncio.to_thread(look_up)
            span.note(
                {
                    "embedsmith.cache.outcome": "hit" if found.hit else "miss",
                    "embedsmith.cache.reason": found.decision.reason,
                    "embedsmith.cache.similarity": found.decision.similarity,
                    "embedsmith.cache.tier": found.decision.tier,
                    "embedsmith.cache.encode_ms": 1000 * found.encoding,
                    "embedsmith.cache.search_ms": 1000 * (found.seconds - found.encoding),
                }
            )
        except Exception as error:
            span.fail(type(error).__name__)
            raise
        finally:
            span.end()
        return found

    def _is_alone(self, request: Request) -> bool:
        """Say whether nobody else waits for the event loop; then a hop to a thread and back only costs time."""
        count = getattr(request.app.state, "count_requests", None)
        return count is not None and count() == 1 and not self._tasks

    def _note(self, request: Request, found: Lookup, answer: Answer | None = None) -> None:
        self.watch.looked_up(found, answer)
        trail_of(request).looked_up(found)

    def _serve(self, request: Request, question: Question, found: Lookup) -> Response:
        assert found.answer is not None
        answer = load_answer(found.answer)
        self._note(request, found, answer)
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
        self._note(request, found)
        handed_on = False
        try:
            call = await self.upstream.send(request, raw)
            if isinstance(call, Response):
                return call
            if question.stream and call.status_code == 200:
                handed_on = True
                return call.response(self._relay(call, control, found, flight), describe(found))
            content = await call.read(describe(found))
            if isinstance(content, Response):
                return content
            if call.status_code == 200:
                answer = read_body(parse(content))
                call.answered(answer)
                await self._store(found, control, answer, call.trail)
            return call.response(content, describe(found))
        finally:
            if flight is not None and not handed_on:
                flight.land()

    def _relay(self, call: Call, control: Control, found: Lookup, flight: Flight | None) -> AsyncIterator[bytes]:
        """Return the bytes of a stream as they come.

        A task of its own reads the upstream to the end, so that a client that goes away costs the others
        who wait for this answer nothing.
        """
        queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        task = asyncio.create_task(self._read_stream(call, control, found, flight, queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _drain(queue)

    async def _read_stream(
        self,
        call: Call,
        control: Control,
        found: Lookup,
        flight: Flight | None,
        queue: asyncio.Queue[bytes | Exception | None],
    ) -> None:
        reader = StreamReader()
        try:
            async for data in call.stream(reader):
                queue.put_nowait(data)
            await self._store(found, control, reader.answer(), call.trail)
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001  the client must see a broken stream, not a whole one
            queue.put_nowait(error)
        finally:
            if flight is not None:
                flight.land()

    async def _store(self, found: Lookup, control: Control, answer: Answer | None, trail: Trail) -> None:
        if answer is None or not control.write:
            return
        span = trail.span.child("embedsmith.store")
        try:
            await asyncio.to_thread(self.cache.add, found, answer.dump(), ttl=control.ttl)
        except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
            LOG.warning("an answer could not be stored: %s", describe_failure(error))
            self.watch.failed("an answer could not be stored")
            span.fail(type(error).__name__)
        else:
            self.watch.stored(trail.upstream)
        finally:
            span.end()

    async def pass_on(self, request: Request) -> Response:
        """Answer a path that is none of ours: from the upstream, untouched."""
        return await self.forward(request)

    async def forward(
        self, request: Request, raw: bytes | None = None, told: Mapping[str, str] | None = None
    ) -> Response:
        """Pass a request on as it is, and its answer back as it comes."""
        content = raw if raw is not None else await self.read(request)
        call = await self.upstream.send(request, content)
        return call if isinstance(call, Response) else call.response(call.stream(), told)


def is_quick(cache: SemanticCache) -> bool:
    """Say whether a lookup is done within milliseconds, as nothing in it waits for a network or another model."""
    encoder = getattr(cache.encoder, "quick", False) and cache.policy.verifier is None and cache.judge is None
    return bool(encoder) and cache.store.url.startswith(LOCAL)


async def _drain(queue: asyncio.Queue[bytes | Exception | None]) -> AsyncIterator[bytes]:
    while (data := await queue.get()) is not None:
        if isinstance(data, Exception):
            raise data
        yield data


def parse(content: bytes) -> Any:
    """Return the JSON value of `content`, None when it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def missed(found: Lookup, reason: str) -> Lookup:
    """Return the lookup as a miss for `reason`, whatever it found."""
    return replace(found, decision=replace(found.decision, entry=None, tier=None, reason=reason), age=None)
