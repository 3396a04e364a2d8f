"""The caching proxy: an OpenAI-compatible front that answers what it knows and passes on all else untouched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from embedsmith.cache.chat import Allowances, Passed, Question
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.cache.stores import Entry
from embedsmith.encoder import Quick
from embedsmith.server.answers import (
    UNFIT,
    UNREADABLE,
    Answer,
    StreamReader,
    in_blocks,
    load_answer,
    parse,
    read_body,
    stream_events,
)
from embedsmith.server.bodies import ENCODED, LARGEST, SMALL, is_encoded, read_aside, read_question
from embedsmith.server.control import Control, describe, read_control
from embedsmith.server.edge import BODY_SECONDS, read_limited, read_pieces, refuse, require_json
from embedsmith.server.flights import Failure, Flight, Flights, Landing
from embedsmith.server.gate import SILENT, StoreSilent
from embedsmith.server.headers import ASKED, Asker, read_asker
from embedsmith.server.relay import Relay
from embedsmith.server.trail import Trail, query_of, trail_of
from embedsmith.server.upstream import Call, Upstream
from embedsmith.server.watch import LOOKING, STORING, Watch

LOG = logging.getLogger("embedsmith.server")
HELD = 1 << 20  # bytes of a request that is only passed on, up to which it goes on whole
GRACE = 1.0  # seconds beyond the upstream's timeout for which a waiting request waits for the one that asks
SHORT = 400  # characters that an encoder in this process reads in a few milliseconds
OF_ERRORS = ("content-type", "retry-after", "www-authenticate")  # headers of an error that those who waited get, too
NO_WEBSOCKETS = "websockets are not passed on; connect to the upstream itself for what needs them (/v1/realtime)"
Result = TypeVar("Result")
NOT_CACHED = "the answer is not in the cache, and only-if-cached was asked for"
ONCE = {"x-should-retry": "false"}  # OpenAI's libraries send any other 504 three times


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat request that the cache may answer."""

    request: Request
    raw: bytes
    question: Question
    control: Control
    asker: Asker

    @property
    def trail(self) -> Trail:
        """The request's trail."""
        return trail_of(self.request)

    def told(self, found: Lookup) -> dict[str, str]:
        """Return the headers of the answer that speak of the cache."""
        return describe(found, narrowed=self.asker.narrowed)


@dataclass(slots=True)
class Proxy:
    """The handlers of the proxy.

    Attributes:
        secret: key of the hash that makes tenants of API keys.
        shadow: answer everything from the upstream, and only say what would have been served.
        ignored: headers (in lower case) that the operator has declared harmless (`headers`).
    """

    cache: SemanticCache
    upstream: Upstream
    secret: bytes
    watch: Watch
    allowed: Allowances = field(default_factory=Allowances)
    largest: int = LARGEST
    body_seconds: float = BODY_SECONDS
    shadow: bool = False
    ignored: Collection[str] = ()
    flights: Flights = field(init=False)
    _quick: bool = field(init=False)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

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
        if is_encoded(request):
            return await self._pass(request, raw, ENCODED)
        reading = partial(read_question, allowed=self.allowed, by_meaning=self.cache.by_meaning)
        try:
            control = read_control(request.headers.getlist(ASKED))
            question = await read_aside(raw, reading)
        except (ValueError, RecursionError) as error:
            return refuse(400, str(error))
        if isinstance(question, Passed):
            return await self._pass(request, raw, question.reason)
        asker = read_asker(request.headers.raw, query_of(request.scope), self.secret, control.namespace, self.ignored)
        if asker.scope:
            question = replace(question, scope={**question.scope, "headers": asker.scope})
        return await self._answer(Ask(request, raw, question, control, asker))

    async def _pass(self, request: Request, raw: bytes, reason: str) -> Response:
        self.watch.passed(reason)
        trail_of(request).passed(reason)
        return await self.forward(request, raw, describe(None, reason))

    async def _answer(self, ask: Ask) -> Response:
        control = ask.control
        try:
            found, answer = self._open(ask, await self._look_up(ask))
        except Exception as error:  # noqa: BLE001  a cache that fails must not take the LLM away
            return await self._go_around(ask, error)
        entry = found.decision.entry
        if not control.read:
            found = missed(found, "no-cache was asked for")
        elif answer is not None and self.shadow:
            found = missed(found, f"shadow: {found.decision.told}")
            ask = replace(ask, control=replace(control, write=False))
        elif answer is not None:
            return self._serve(ask, found, answer)
        if control.only_cached:
            self._note(ask, found, served=entry)
            return refuse(504, NOT_CACHED, ask.told(found) | ONCE, kind="not_cached")
        if self.shadow or not control.read or not control.write:  # an own answer, for which nobody else can wait
            return await self._fetch(ask, found, served=entry)
        return await self._share(ask, found)

    def _open(self, ask: Ask, found: Lookup) -> tuple[Lookup, Answer | None]:
        """Return the stored answer, or the lookup as a miss where it is none for this request."""
        if found.answer is None:
            return found, None
        try:
            answer = load_answer(found.answer)
        except ValueError:  # of another program, or of a version that took what this one refuses
            self.watch.failed("a stored answer cannot be read")
            return missed(found, UNREADABLE), None
        lacking = answer.lacks(ask.question)
        return (missed(found, lacking), None) if lacking else (found, answer)

    async def _share(self, ask: Ask, found: Lookup) -> Response:
        """Answer a miss in company: of equal and nearly equal questions one asks the upstream, the rest wait for it.

        Nobody waits longer than the upstream may take, and a moment for the one who asked to say so.
        """
        now = asyncio.get_running_loop().time
        end = now() + self.upstream.timeout + GRACE
        failure: Failure | None = None
        while True:
            flight, leads = self.flights.board(found)
            if leads:
                return await self._lead(ask, found, flight)
            landing = await flight.wait(end - now())
            if isinstance(landing, Failure):
                failure = landing
            if failure is not None and (landing is None or failure.awaits(ask.raw)):
                return self._fail_too(ask, found, failure)
            if landing is Landing.STORED:
                try:
                    found, answer = await self._look_again(ask, found)
                except Exception as error:  # noqa: BLE001  as in `_answer`
                    return await self._go_around(ask, error)
                if answer is not None:
                    return self._serve(ask, found, answer)
            unfit = landing is Landing.STORED and found.decision.reason in UNFIT
            if not unfit and not isinstance(landing, Failure):
                return await self._fetch(ask, found)

    async def _lead(self, ask: Ask, found: Lookup, flight: Flight) -> Response:
        """Ask the upstream for all who wait, unless another has landed since the lookup."""
        answer = None
        try:
            if found.decision.reason not in UNFIT:
                found, answer = await self._look_again(ask, found)
        except Exception as error:  # noqa: BLE001  as in `_answer`
            flight.land()
            return await self._go_around(ask, error)
        except BaseException:
            flight.land()
            raise
        if answer is None:
            return await self._fetch(ask, found, flight)
        flight.land(Landing.STORED)
        return self._serve(ask, found, answer)

    async def _look_again(self, ask: Ask, found: Lookup) -> tuple[Lookup, Answer | None]:
        return self._open(ask, await self._in_thread(partial(self.cache.look_again, found)))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """Return what `work` in the cache returns; for so long only where it waits for another machine."""
        gate = self.watch.gate
        return await (asyncio.to_thread(work) if gate is None else gate.run(work))

    def _fail_too(self, ask: Ask, found: Lookup, failure: Failure) -> Response:
        """Return the error of the one who asked for all: whoever asks now would wait as long, for the same."""
        self._note(ask, found)
        ask.trail.failure = failure.reason
        error = failure.response
        kept = {name: error.headers[name] for name in OF_ERRORS if name in error.headers}
        return Response(error.body, error.status_code, kept | ask.told(found))

    async def _go_around(self, ask: Ask, error: Exception) -> Response:
        reason = SILENT if isinstance(error, StoreSilent) else LOOKING
        if reason is SILENT:  # the gate has said so, once
            self.watch.failed(reason)
        else:
            LOG.warning("%s", self.watch.cache_failed(reason, error))
        ask.trail.passed(reason)
        return await self.forward(ask.request, ask.raw, describe(None, reason))

    async def _look_up(self, ask: Ask) -> Lookup:
        span = ask.trail.span.child("embedsmith.lookup")
        text = ask.question.text
        try:
            look_up = partial(self.cache.lookup, text, namespace=ask.asker.tenant, scope=ask.question.scope)
            short = self._quick and len(text) <= SHORT and len(ask.raw) <= SMALL
            found = look_up() if short and self._is_alone(ask.request) else await self._in_thread(look_up)
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

    def _note(self, ask: Ask, found: Lookup, served: Entry | None = None) -> None:
        """Take note of a miss; `served` is the entry that would have been served."""
        self.watch.looked_up(found, served=served)
        ask.trail.looked_up(found)

    def _serve(self, ask: Ask, found: Lookup, answer: Answer) -> Response:
        ask.trail.looked_up(found)

        async def count() -> None:
            self.watch.looked_up(found, answer, served=found.decision.entry)

        told, then = ask.told(found), BackgroundTask(count)  # once the answer is sent: nobody waits for it
        if not ask.question.stream:
            return JSONResponse(answer.body, headers=told, background=then)
        events = in_blocks(stream_events(answer, usage=ask.question.usage))
        return StreamingResponse(events, headers=told, media_type="text/event-stream", background=then)

    async def _fetch(
        self, ask: Ask, found: Lookup, flight: Flight | None = None, *, served: Entry | None = None
    ) -> Response:
        """Return the upstream's answer and store it if it may be stored; lands the flight when that is done."""
        landing: Landing | Failure | None = Landing.EMPTY
        try:
            self._note(ask, found, served=served)
            call = await self.upstream.send(ask.request, ask.raw)
            if isinstance(call, Response):
                landing = Failure(call, ask.trail.failure, final=True)
                return call
            if ask.question.stream and call.status_code == 200:
                landing = None  # whoever reads the stream lands it
                return self._relay(ask, call, found, flight)
            content = await call.read(ask.told(found))
            if isinstance(content, Response):
                landing = Failure(content, ask.trail.failure, final=content.status_code == 504)
                return content
            if not isinstance(content, bytes):
                self.watch.failed("an answer is too long to be stored")
                return call.response(content, ask.told(found))
            kept = await self._keep(ask, call, found, content)
            response = call.response(content, ask.told(found))
            landing = Failure(response, ask.trail.failure, sent=ask.raw) if call.status_code >= 400 else kept
            return response
        finally:
            if flight is not None and landing is not None:
                flight.land(landing)

    async def _keep(self, ask: Ask, call: Call, found: Lookup, content: bytes) -> Landing:
        """Store a plain answer, if it may be stored."""
        reading = partial(read_answer, several=ask.question.several)
        answer = await read_aside(content, reading) if call.status_code == 200 else None
        call.answered(answer)
        return await self._store(ask, found, answer)

    def _relay(self, ask: Ask, call: Call, found: Lookup, flight: Flight | None) -> Response:
        """Return a stream as it comes, read by a task of its own."""
        reader = StreamReader(ask.question.usage, ask.question.several)

        def give_up() -> None:
            self.watch.failed("a stream is too long to be stored")
            if flight is not None:
                flight.land()

        patience, kept = self.upstream.timeout, ask.control.write
        relay = Relay(call.stream(reader), reader, patience=patience, kept=kept, given_up=give_up)
        self._keep_task(asyncio.create_task(self._read_stream(ask, found, relay, reader, flight)))
        return call.response(relay.parts(), ask.told(found), over=relay.leave)

    def _keep_task(self, task: asyncio.Task[Result]) -> asyncio.Task[Result]:
        """Hold a task while it runs: the event loop holds it weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _read_stream(
        self, ask: Ask, found: Lookup, relay: Relay, reader: StreamReader, flight: Flight | None
    ) -> None:
        landing: Landing | Failure = Landing.EMPTY
        try:
            if not await relay.read():
                reason = "the upstream broke off its answer"
                if relay.abandoned:
                    self.watch.failed("a stream that nobody took any more did not end")
                landing = Failure(refuse(502, reason), reason)
            else:
                landing = await self._store(ask, found, await asyncio.to_thread(reader.answer))
        finally:
            if flight is not None:
                flight.land(landing)

    async def _store(self, ask: Ask, found: Lookup, answer: Answer | None) -> Landing:
        """Store an answer, if it may be stored; what takes long goes on without those who wait for the answer."""
        if answer is None or not ask.control.write:
            return Landing.EMPTY
        if self.watch.gate is None:
            return await self._add(ask, found, answer)
        adding = self._keep_task(asyncio.create_task(self._add(ask, found, answer)))
        await asyncio.wait({adding}, timeout=self.watch.gate.seconds)
        return adding.result() if adding.done() else Landing.EMPTY

    async def _add(self, ask: Ask, found: Lookup, answer: Answer) -> Landing:
        span = ask.trail.span.child("embedsmith.store")
        life, tags = ask.control.life(self.cache.ttl), ask.control.tags
        try:
            await self._in_thread(lambda: self.cache.add(found, answer.dump(), ttl=life, tags=tags))
        except StoreSilent:
            self.watch.failed(STORING)
            span.fail(StoreSilent.__name__)
            return Landing.EMPTY
        except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
            LOG.warning("%s", self.watch.cache_failed(STORING, error))
            span.fail(type(error).__name__)
            return Landing.EMPTY
        finally:
            span.end()
        self.watch.stored(ask.trail.upstream)
        return Landing.STORED

    async def pass_on(self, request: Request) -> Response:
        """Answer a path that is none of ours: from the upstream, untouched."""
        return await self.forward(request)

    async def forward(
        self, request: Request, raw: bytes | None = None, told: Mapping[str, str] | None = None
    ) -> Response:
        """Pass a request on as it is, and its answer back as it comes."""
        barred = bar(request, told)
        if barred is not None:
            return barred
        content = raw if raw is not None else await self._take(request)
        call = await self.upstream.send(request, content)
        return call if isinstance(call, Response) else call.response(call.stream(), told)

    async def _take(self, request: Request) -> bytes | AsyncIterator[bytes]:
        """Return a body that is only passed on: whole where it is small, so that a slow client holds up no upstream."""
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or int(length) > HELD:
            return read_pieces(request, self.body_seconds)
        return await read_limited(request, HELD, self.body_seconds)


def read_answer(content: bytes, several: int) -> Answer | None:
    """Return the plain answer in a body, None where there is none that may be stored."""
    return read_body(parse(content), several)


def is_quick(cache: SemanticCache) -> bool:
    """Say whether a lookup is done within milliseconds, as nothing in it waits for a network or another model."""
    encoder = isinstance(cache.encoder, Quick) and cache.encoder.quick
    return encoder and cache.policy.verifier is None and cache.judge is None and cache.store.local


def bar(request: Request, told: Mapping[str, str] | None = None) -> Response | None:
    """Return the refusal of a request that must not reach the upstream, or cannot be passed on; None for all others."""
    if any(value.strip().lower() == "websocket" for value in request.headers.get("upgrade", "").split(",")):
        return refuse(501, NO_WEBSOCKETS, kind="not_implemented")
    try:
        control = read_control(request.headers.getlist(ASKED))
    except ValueError as error:
        return refuse(400, str(error))
    return refuse(504, NOT_CACHED, {**(told or {}), **ONCE}, kind="not_cached") if control.only_cached else None


def missed(found: Lookup, reason: str) -> Lookup:
    """Return the lookup as a miss for `reason`, whatever it found."""
    vetoed = () if found.hit else found.decision.vetoed  # what stood before a hit is not why this is a miss
    decision = replace(found.decision, entry=None, tier=None, reason=reason, vetoed=vetoed)
    return replace(found, decision=decision, age=None)
