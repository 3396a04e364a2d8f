"""Who waits for whom, and that every wait has an end."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from embedsmith.cache.decision import Policy
from embedsmith.cache.semantic import UNDECIDED, Lookup
from embedsmith.server import relay as relays
from embedsmith.server.answers import StreamReader
from embedsmith.server.flights import LONG, Flights
from embedsmith.server.relay import Relay
from embedsmith.verifier import Adjustment

from .conftest import Served
from .scripted import chunk, completion, events, upstream
from .test_proxy import ASKED, Serve

Start = Callable[..., Served]


@pytest.fixture
def before(serve: Serve) -> Iterator[Start]:
    """Start a proxy in front of `handler`."""
    with ExitStack() as stack:

        def start(handler: Callable[[Request], Awaitable[Response]], **app: Any) -> Served:
            return serve(app={"upstream": stack.enter_context(upstream(handler))} | app)

        yield start


def send(served: Served, text: str = ASKED, *, cache: str = "", **options: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | options
    headers = {"x-embedsmith-cache": cache}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers, timeout=20)


def send_many(served: Served, count: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: send(served), range(count)))


class Counting:
    """An upstream that takes a moment, and whose first `failures` answers are errors."""

    def __init__(self, failures: int, *, status: int = 500, seconds: float = 0.05) -> None:
        self.failures, self.status, self.seconds = failures, status, seconds
        self.calls = self.open = self.most = 0

    async def __call__(self, _: Request) -> Response:
        self.calls, self.open = self.calls + 1, self.open + 1
        self.most = max(self.most, self.open)
        failed = self.calls <= self.failures
        await asyncio.sleep(self.seconds)
        self.open -= 1
        headers = {"retry-after": "7", "set-cookie": "a=1"}
        return JSONResponse({"error": self.calls}, self.status, headers) if failed else JSONResponse(completion())


def test_after_a_failure_one_of_those_who_wait_tries_again(before: Start) -> None:
    handler = Counting(failures=2)
    answers = send_many(before(handler), 12)
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [500] * 2
    assert (handler.calls, handler.most) == (3, 1)


def test_an_upstream_that_fails_is_never_asked_the_same_twice_at_once(before: Start) -> None:
    handler = Counting(failures=99, status=429)
    answers = send_many(before(handler), 8)
    assert [answer.status_code for answer in answers] == [429] * 8
    assert handler.most == 1


def test_who_has_no_time_left_gets_the_error_of_the_others(before: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedsmith.server.proxy.GRACE", 0.0)
    handler = Counting(failures=99, status=503, seconds=0.6)
    answers = send_many(before(handler, timeout=1.1), 12)
    assert [answer.status_code for answer in answers] == [503] * 12
    assert handler.calls < 6
    assert handler.most == 1
    assert {answer.headers["retry-after"] for answer in answers} == {"7"}
    assert sum("set-cookie" in answer.headers for answer in answers) == handler.calls  # handed to nobody else


def test_those_who_waited_for_a_silent_upstream_get_the_same_error(before: Start) -> None:
    calls = []

    async def hang(_: Request) -> Response:
        calls.append(1)
        await asyncio.sleep(1.0)
        return JSONResponse(completion())

    answers = send_many(before(hang, timeout=0.4), 6)
    assert [answer.status_code for answer in answers] == [504] * 6
    assert len(calls) == 1


def test_an_answer_for_nobody_else_lets_all_go_at_once(before: Start) -> None:
    """Each of them would have asked for itself without a cache; one behind the other the last would wait for all."""
    together = asyncio.Event()
    calls = []

    async def cut(_: Request) -> Response:
        calls.append(1)
        if len(calls) == 5:
            together.set()
        await (asyncio.sleep(0.4) if len(calls) == 1 else asyncio.wait_for(together.wait(), 10))
        return JSONResponse(completion(choice={"finish_reason": "length"}))

    assert [answer.status_code for answer in send_many(before(cut), 5)] == [200] * 5
    assert len(calls) == 5


def test_whoever_breaks_before_the_upstream_is_asked_lets_all_go(before: Start) -> None:
    """The flight stayed open, and all who asked the same waited for it as long as the upstream may take."""
    served = before(Counting(0))
    assert served.watch is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(served.watch.oversight), "looked_up", lambda *_: 1 / 0)
        assert send(served).status_code == 500
    assert send(served).status_code == 200


def test_nobody_waits_for_an_answer_that_will_not_be_stored(before: Start) -> None:
    both = threading.Barrier(2, timeout=10)

    async def handle(_: Request) -> Response:
        await asyncio.to_thread(both.wait)  # only two calls at once get on
        return JSONResponse(completion())

    served = before(handle)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(send, served, cache=cache) for cache in ("no-store", ""))
        assert (first.result().status_code, second.result().status_code) == (200, 200)


@pytest.mark.parametrize(("status", "field"), [(401, "user"), (404, "user"), (400, ""), (422, "")])
def test_what_the_upstream_will_not_take_it_is_asked_once_for_all_who_wait(
    before: Start, status: int, field: str
) -> None:
    handler = Counting(failures=99, status=status, seconds=0.5)
    served = before(handler)

    def ask(number: int) -> httpx.Response:
        return send(served, **({field: str(number)} if field else {}))

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    assert [answer.status_code for answer in answers] == [status] * 10
    assert handler.calls < 5  # once, but for those who come when the first has landed


def test_what_is_wrong_with_one_request_is_not_said_of_another(before: Start) -> None:
    arrived = threading.Event()

    async def judge(request: Request) -> Response:
        if "user" not in await request.json():
            return JSONResponse(completion())
        arrived.set()
        await asyncio.sleep(0.3)
        return JSONResponse({"error": "user"}, 400)

    served = before(judge)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(send, served, user="")
        assert arrived.wait(10)
        assert send(served).json() == completion()
        assert refused.result().status_code == 400


class Endless:
    """An upstream whose first stream sends comments for ever; all else it answers at once."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended = threading.Event()

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        if self.calls > 1:
            return JSONResponse(completion())

        async def comments() -> AsyncGenerator[bytes]:
            try:
                while True:
                    yield b": keep-alive\n\n"
                    await asyncio.sleep(0.02)
            finally:
                self.ended.set()

        return StreamingResponse(comments(), media_type="text/event-stream")


def leave_early(served: Served, cache: str = "") -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": ASKED}]}
    headers = {"x-embedsmith-cache": cache}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, headers=headers) as answer:
        next(answer.iter_bytes())


def test_a_stream_without_an_end_holds_nobody_up_once_its_client_has_gone(before: Start) -> None:
    handler = Endless()
    served = before(handler, timeout=0.4)
    leave_early(served)
    began = time.monotonic()
    assert send(served).json() == completion()
    assert time.monotonic() - began < 5
    assert handler.ended.wait(5)  # nor does it take the upstream's time for ever
    assert "a stream that nobody took any more did not end" in httpx.get(f"{served.url}/metrics").text


def test_those_who_wait_for_a_stream_without_an_end_ask_for_themselves(before: Start) -> None:
    handler = Endless()
    served = before(handler, timeout=0.3)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": ASKED}]}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer:
        parts = answer.iter_bytes()  # and this client stays: without its name the connection would be closed
        next(parts)
        assert send(served).json() == completion()
        assert not handler.ended.is_set()


def test_a_stream_that_will_not_be_stored_is_not_read_for_nobody(
    before: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "LINGER", 0.05)
    handler = Endless()
    leave_early(before(handler), "no-store")
    assert handler.ended.wait(5)  # long before the 600 s that the upstream may take


def test_an_answer_whose_client_left_before_its_head_came_is_let_go(before: Start) -> None:
    arrived, handler = threading.Event(), Endless()

    async def late(request: Request) -> Response:
        arrived.set()
        await asyncio.sleep(0.3)
        return await handler(request)

    served = before(late)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert arrived.wait(10)
    assert handler.ended.wait(10)


def test_a_plain_answer_that_trickles_has_a_time_limit(before: Start) -> None:
    async def trickle(_: Request) -> Response:
        async def blanks() -> AsyncGenerator[bytes]:
            while True:
                yield b"\n"
                await asyncio.sleep(0.02)

        return StreamingResponse(blanks(), media_type="application/json")

    answer = send(before(trickle, timeout=0.4))
    assert answer.status_code == 504
    assert "did not end its answer in time" in answer.text


def test_a_stream_too_long_to_be_kept_is_read_no_faster_than_its_client_takes_it() -> None:
    async def go() -> None:
        reader, sent, given_up = StreamReader(largest=1000), [], []
        piece = events(chunk({"content": "x" * 200}), done=False)

        async def source() -> AsyncGenerator[bytes]:
            for number in range(50):
                sent.append(number)
                reader.feed(piece)
                yield piece

        relay = Relay(source(), reader, patience=9, kept=True, given_up=lambda: given_up.append(1))
        task = asyncio.create_task(relay.read())
        parts = relay.parts()
        for _ in range(100):  # the client takes nothing
            await asyncio.sleep(0)
        assert len(sent) < 10
        assert given_up == [1]
        assert b"".join([part async for part in parts]) == piece * 50
        assert await task
        relay.leave()

    asyncio.run(go())


def test_a_hundred_requests_in_flight_hold_up_no_other(before: Start) -> None:
    count, arrived, together = 120, [], asyncio.Event()

    async def handle(_: Request) -> Response:
        arrived.append(1)
        if len(arrived) == count:
            together.set()
        await asyncio.wait_for(together.wait(), 20)  # nobody is answered before all are here
        return JSONResponse({"data": []})

    served = before(handle)

    async def go() -> list[int]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=30) as client:
            sent = [client.post(f"{served.url}/v1/completions", json={}) for _ in range(count)]
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    assert asyncio.run(go()) == [200] * count


class Verifier:
    """A verifier that finds every pair alike, and remembers that it was asked."""

    fingerprint = "alike"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.asked += pairs
        return np.full(len(pairs), 9.0)


def missed(text: str, cosine: float, namespace: str = "default") -> Lookup:
    """Return a lookup of `text` that has missed, at this cosine to the first axis."""
    vector = np.array([cosine, math.sqrt(1 - cosine**2)], dtype=np.float32)
    return Lookup(UNDECIDED, text, namespace, "one partition", text, vector, None, 0.0)


def test_who_boards_asks_no_verifier_for_the_event_loop_would_wait_for_it() -> None:
    verifier = Verifier()
    rules = Policy(
        0.8, guard=None, thresholds={"strict": 0.85}, verifier=verifier, adjustment=Adjustment(0.025)
    )  # it moves a cosine by .1 at most
    flights = Flights(rules)
    first, _ = flights.board(missed("first", 1.0))
    assert flights.board(missed("served whatever it says", 0.91)) == (first, False)
    assert flights.board(missed("served by its leave", 0.85))[1]
    assert flights.board(missed("served elsewhere", 0.91, "strict"))[0] is not first
    assert verifier.asked == []


def test_long_texts_board_only_where_they_are_the_same() -> None:
    """The guard compared them on the event loop: of two lists of 1,200 numbers for five seconds."""
    asked: list[str] = []

    def guard(text: str, _: str) -> None:
        asked.append(text)

    flights = Flights(Policy(0.8, guard=guard))
    long = "x" * LONG
    first, _ = flights.board(missed(long, 1.0))
    assert flights.board(missed(long, 1.0)) == (first, False)
    assert flights.board(missed(f"{long}y", 1.0))[1]
    short, leads = flights.board(missed("short", 1.0))
    assert (leads, asked) == (True, [])
    assert flights.board(missed("as short", 1.0)) == (short, False)
    assert asked == ["as short"]


def test_a_conversation_boards_only_where_no_verifier_could_turn_it_away_either() -> None:
    flights = Flights(
        Policy(0.8, guard=None, conversations=0.7, verifier=Verifier(), adjustment=Adjustment(0.025))
    )  # as above, it moves a cosine by .1 at most
    first, _ = flights.board(missed("User: tea?\nAssistant: Green?\nUser: black", 1.0))
    assert flights.board(missed("User: tea?\nAssistant: Green?\nUser: no, black", 0.81)) == (first, False)
    assert flights.board(missed("User: tea?\nAssistant: Green?\nUser: white", 0.75))[1]
