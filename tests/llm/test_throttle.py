"""The window of calls in flight, against simulated servers in simulated time: what share of the capacity it finds."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from embedsmith.llm.throttle import Throttle


@dataclass
class Server:
    """At most `at_once` calls in service, or `rate` calls begun a second; beyond it a queue or refusals.

    All three may be functions of the time. `latency` is a draw of seconds.
    """

    at_once: Callable[[float], float] = lambda now: 1e9
    rate: Callable[[float], float] = lambda now: 1e9
    refuses: bool = False
    retry_after: float | None = None
    latency: Callable[[random.Random], float] = lambda draw: draw.uniform(0.15, 0.25)
    fault: float = 0.0  # share of calls that are refused whatever the load
    busy: list[float] = field(default_factory=list)  # ends of the calls in service
    tokens: float = 1.0
    filled: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def call(self, now: float) -> tuple[str, float]:
        """What becomes of a call, and when."""
        while self.busy and self.busy[0] <= now:
            heapq.heappop(self.busy)
        rate = self.rate(now)
        self.tokens = min(self.tokens + (now - self.filled) * rate, max(rate / 10, 1.0))
        self.filled = now
        if self.draw.random() < self.fault:
            return "refused", now + 0.01
        full = len(self.busy) >= self.at_once(now) or self.tokens < 1
        if full and self.refuses:
            return "refused", now + 0.01
        self.tokens -= 1
        wait = max((self.tokens * -1) / rate, 0.0)
        ends = sorted(self.busy)
        if len(ends) >= self.at_once(now):
            wait = max(wait, ends[len(ends) - int(self.at_once(now))] - now)
        end = now + wait + self.latency(self.draw)
        heapq.heappush(self.busy, end)
        return "answered", end


def use(server: Server, throttle: Throttle, seconds: float, since: float) -> float:
    """Answers a second from `since` on, by a client with endless prompts."""
    now, answers, in_flight = 0.0, 0, 0
    events: list[tuple[float, str, float, int]] = []
    while now < seconds:
        delay = throttle.delay(now, in_flight)
        if delay == 0:
            throttle.send(now)
            in_flight += 1
            fate, end = server.call(now)
            heapq.heappush(events, (end, fate, now, in_flight))
            continue
        if delay is not None and (not events or now + delay < events[0][0]):
            now += delay
            continue
        now, fate, sent, crowd = heapq.heappop(events)
        in_flight -= 1
        if fate == "answered":
            throttle.answer(now, sent)
            answers += now >= since
        else:
            throttle.push_back(now, sent, crowd=crowd, retry_after=server.retry_after)
    return answers / (seconds - since)


STEADY = [
    ("queue of 5", Server(at_once=lambda now: 5), 25),
    ("queue of 40", Server(at_once=lambda now: 40), 200),
    ("queue of 200", Server(at_once=lambda now: 200), 1000),
    ("refuses above 10", Server(at_once=lambda now: 10, refuses=True), 50),
    ("refuses above 40", Server(at_once=lambda now: 40, refuses=True), 200),
    ("refuses above 40 for a second", Server(at_once=lambda now: 40, refuses=True, retry_after=1.0), 200),
    ("3 a second", Server(rate=lambda now: 3, refuses=True), 3),
    ("50 a second", Server(rate=lambda now: 50, refuses=True), 50),
    ("50 a second, else wait one", Server(rate=lambda now: 50, refuses=True, retry_after=1.0), 50),
    ("500 a second", Server(rate=lambda now: 500, refuses=True), 500),
    ("500 a second, in line", Server(rate=lambda now: 500), 500),
    ("heavy tails", Server(at_once=lambda now: 60, latency=lambda draw: draw.lognormvariate(-1.0, 1.0)), 60 / 0.6065),
    ("grows", Server(at_once=lambda now: 20 if now < 30 else 60, refuses=True), 300),
    ("shrinks", Server(at_once=lambda now: 60 if now < 30 else 20, refuses=True), 100),
    ("grows in line", Server(at_once=lambda now: 20 if now < 30 else 60), 300),
]


@pytest.mark.parametrize(("server", "ideal"), [row[1:] for row in STEADY], ids=[row[0] for row in STEADY])
def test_nine_tenths_of_a_hidden_capacity_are_found_in_half_a_minute(server: Server, ideal: float) -> None:
    """Those that change do so after 30 s, and are measured from 60 s on."""
    assert use(server, Throttle(256), 95, since=60) >= 0.9 * ideal


def test_the_ceiling_is_never_passed_and_one_call_is_always_possible() -> None:
    server = Server(at_once=lambda now: 1000)
    throttle = Throttle(16)
    assert use(server, throttle, 30, since=10) == pytest.approx(16 / 0.2, rel=0.05)
    assert throttle.window == 16
    assert throttle.delay(30.0, in_flight=16) is None
    assert Throttle(0).delay(0.0, in_flight=0) == 0


def test_a_server_that_refuses_a_fifth_of_the_calls_at_random_is_not_left_alone() -> None:
    """No window is small enough for it; one call at a time goes on, at least."""
    assert use(Server(fault=0.2), Throttle(64), 60, since=0) > 0.5 / 0.2


def test_the_window_is_halved_once_for_refusals_of_the_same_moment() -> None:
    throttle = Throttle(64, start=32)
    for _ in range(5):
        throttle.push_back(1.0, 0.5, crowd=32)
    assert throttle.window == 16
    throttle.push_back(3.0, 2.0, crowd=16)  # it went out afterwards
    assert throttle.window < 16


def test_a_timeout_halves_the_window_and_leaves_its_limit() -> None:
    throttle = Throttle(64, start=32)
    for call in range(40):
        throttle.answer(0.2 + call / 1000, call / 1000)
    throttle.time_out(1.0, 0.5)
    assert throttle.window == 16
    assert throttle.delay(5.0, in_flight=20) == 0.0  # it came back to near 32 by then


def test_all_calls_wait_as_long_as_the_server_asks() -> None:
    throttle = Throttle(64)
    throttle.push_back(10.0, 9.0, crowd=8, retry_after=4.0)
    assert throttle.delay(11.0, in_flight=0) == 3.0
    assert throttle.delay(14.0, in_flight=0) == 0.0


def test_patience_follows_what_calls_take_below_the_ceiling() -> None:
    throttle = Throttle(64)
    for call in range(19):
        throttle.answer(call + 2.0, call)
    assert throttle.patience(120.0) == 120.0  # too few answers to say
    throttle.answer(22.0, 20.0)
    assert throttle.patience(120.0) == 8.0
    assert throttle.patience(5.0) == 5.0
    for call in range(300):
        throttle.answer(call + 0.01, call)
    assert throttle.patience(120.0) == 3.0  # fast servers may still stumble
