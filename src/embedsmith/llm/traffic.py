"""Calls in flight: sent as the server has room, tried again, paid for, handed over as they arrive.

One thread runs an event loop for as long as there is something to send; the reader stays where it is. No more prompts
are taken than the reader has room for, so that a reader that commits what it gets loses few answers to a kill.
"""

from __future__ import annotations

import asyncio
import heapq
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from embedsmith.errors import LanguageModelError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Reservation, Usage
from embedsmith.llm.health import Health
from embedsmith.llm.throttle import Throttle

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds before another try, doubled each time
LONGEST_ASKED = 300.0  # seconds of Retry-After that are waited for
REFUSALS = 5  # times as many 429s as other failures are put up with: they say "later", not "no"


Outcome = Literal["answer", "failed", "again", "later", "late", "simpler", "stop"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one request.

    Attributes:
        kind: "answer"; "failed" (for good); "again" (a fault that may pass); "later" (429); "late" (no answer in
            time); "simpler" (at once again, in other terms); "stop" (the run cannot go on).
        retry_after: seconds that the server asked for.
        used: what the server says it used; None: unknown, and it may have been billed.
        error: of "stop"; or of "again" where there was no server at the address, which is no fault of the call.
        overloaded: the server said that it has too much to do, and all calls wait, as after a 429.
        reason: in words.
    """

    kind: Outcome
    completion: Completion | None = None
    retry_after: float | None = None
    used: Usage | None = None
    error: LanguageModelError | None = None
    overloaded: bool = False
    reason: str = ""


Session = Callable[[], AbstractAsyncContextManager[object]]
Send = Callable[[Prompt, Sampling, float], Awaitable[Attempt]]  # the last: seconds after which it is "late"


@dataclass(slots=True)
class _Call:
    place: int
    prompt: Prompt
    began: float = 0.0
    failures: int = 0
    refusals: int = 0
    unreached: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How calls are made.

    Attributes:
        concurrency: most in flight. retries: of a call, after the first try.
        timeout: seconds of a try. outage: seconds for which the server may fail.
        explain: from why it counts as dead, and how the last call failed, to the error that ends the run.
    """

    concurrency: int
    retries: int
    timeout: float
    outage: float
    explain: Callable[[str, str], LanguageModelError]


@dataclass(slots=True)
class _Inbox:
    """What the loop's thread hands to the reader, and whether the reader may have more for it."""

    arrived: queue.SimpleQueue[tuple[int, Completion] | None] = field(default_factory=queue.SimpleQueue)
    stop: BaseException | None = None
    more: bool = True


class Traffic:
    """One stream of calls. It belongs to the thread of its loop; `stream` is the reader's end."""

    def __init__(
        self, send: Send, policy: RetryPolicy, throttle: Throttle, sampling: Sampling, budget: Budget | None
    ) -> None:
        self._send, self._policy, self._throttle = send, policy, throttle
        self._sampling, self._budget = sampling, budget
        self._inbox = _Inbox()
        self._fresh: deque[_Call] = deque()
        self._again: list[tuple[float, int, _Call]] = []  # heap: not before, tie, call
        self._ties = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last = ""  # how the last attempt failed that did
        self._first: _Call | None = None  # the first call goes alone: it finds out what the server takes
        self._health = Health(policy.outage)

    def stream(self, prompts: Iterator[Prompt], session: Session) -> Iterator[list[tuple[int, Completion]]]:
        """Yield what arrived since the last time; what was yielded makes room when the reader comes back.

        Args:
            session: entered in the loop's thread before the first call, left after the last.

        Raises:
            LanguageModelError: the run cannot go on. What arrived until then has been yielded.
        """
        first = next(prompts, None)
        if first is None:
            return
        ready: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event] | BaseException] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, args=(session, ready), name="embedsmith-calls", daemon=True)
        thread.start()
        started = ready.get()
        if isinstance(started, BaseException):
            raise started
        loop, end = started
        try:
            yield from self._read(first, prompts, loop)
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()
        if self._inbox.stop is not None:
            raise self._inbox.stop

    def _run(
        self,
        session: Session,
        ready: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event] | BaseException],
    ) -> None:
        async def serve() -> None:
            end = asyncio.Event()
            async with session():
                ready.put((asyncio.get_running_loop(), end))
                await end.wait()
                tasks = list(self._tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  the reader waits, and must learn of it
            self._inbox.stop = self._inbox.stop or error
            ready.put(error)
            self._inbox.arrived.put(None)

    def _read(
        self, first: Prompt, prompts: Iterator[Prompt], loop: asyncio.AbstractEventLoop
    ) -> Iterator[list[tuple[int, Completion]]]:
        out, place = 1, 1
        batch = [_Call(0, first)]
        while True:
            while self._inbox.more and out < self._policy.concurrency and self._inbox.stop is None:
                prompt = next(prompts, None)
                self._inbox.more = prompt is not None
                if prompt is not None:
                    batch.append(_Call(place, prompt))
                    out, place = out + 1, place + 1
            loop.call_soon_threadsafe(self._take, batch)
            batch = []
            if not out:
                return
            arrived, ended = self._wait()
            if arrived:
                yield arrived
            if ended:
                return
            out -= len(arrived)

    def _wait(self) -> tuple[list[tuple[int, Completion]], bool]:
        """Return all that has arrived, at least one thing, and whether nothing more will."""
        arrived: list[tuple[int, Completion]] = []
        one = self._inbox.arrived.get()
        while one is not None:
            arrived.append(one)
            try:
                one = self._inbox.arrived.get_nowait()
            except queue.Empty:
                return arrived, False
        return arrived, True

    # What follows runs in the thread of the loop.

    def _take(self, calls: list[_Call]) -> None:
        if self._first is None and calls and not self._health.succeeded and not self._health.failed:
            self._first = calls[0]
        self._fresh.extend(calls)
        self._pump()

    def _pump(self) -> None:
        """Send what may go out now, and come back when the next may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._inbox.stop is None and (self._again or self._fresh):
            now = time.monotonic()
            delay = self._until_next(now)
            if delay is None:
                return
            if delay > 0:
                self._timer = asyncio.get_running_loop().call_later(delay, self._pump)
                return
            if not self._start(now):
                return
        if self._inbox.stop is not None and not self._tasks:
            self._inbox.arrived.put(None)

    def _until_next(self, now: float) -> float | None:
        """Return seconds until a call may go out; None: not before another one has ended."""
        if self._first is not None and self._tasks:
            return None
        delay = self._throttle.delay(now, len(self._tasks))
        if delay is None:
            return None
        if self._again and (self._first is not None or not self._fresh):
            delay = max(delay, self._again[0][0] - now)
        if self._health.is_down and self._untried():
            return None if self._tasks else max(delay, self._health.delay(now))
        return delay

    def _untried(self) -> bool:
        return bool(self._fresh) or self._inbox.more

    def _start(self, now: float) -> bool:
        """Send the next call; say whether there was one that could be paid for."""
        due = self._again and self._again[0][0] <= now
        call = self._again[0][2] if due else self._fresh[0]
        reserved = Reservation() if self._budget is None else self._budget.reserve(call.prompt, self._sampling)
        if reserved is None and self._budget is not None:
            if self._budget.end():
                self._drop()
            elif not self._tasks:  # another stream holds what is left
                self._timer = asyncio.get_running_loop().call_later(0.1, self._pump)
            return False  # or the end of another call may make room
        if due:
            heapq.heappop(self._again)
        else:
            self._fresh.popleft()
        call.began = call.began or now
        self._throttle.send(now)
        task = asyncio.get_running_loop().create_task(self._try(call, reserved or Reservation(), len(self._tasks) + 1))
        self._tasks.add(task)
        task.add_done_callback(self._leave)
        return True

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    def _drop(self) -> None:
        """Hand back all that waits: there is no money for it."""
        for call in [*self._fresh, *(call for _, _, call in self._again)]:
            self._inbox.arrived.put((call.place, Completion(None, "budget")))
        self._fresh.clear()
        self._again.clear()
        self._first = None

    async def _try(self, call: _Call, reserved: Reservation, crowd: int) -> None:
        sent = time.monotonic()
        patience = min(self._throttle.patience(self._policy.timeout) * 2**call.failures, self._policy.timeout)
        attempt: Attempt | None = None
        try:
            attempt = await self._send(call.prompt, self._sampling, patience)
        except Exception as error:  # noqa: BLE001  the reader waits, and must learn of it
            self._inbox.stop = self._inbox.stop or error
        finally:
            if self._budget is not None:  # of a call that was given up nobody knows whether it was billed
                self._budget.settle(reserved, attempt.used if attempt is not None else None)
        if attempt is not None:
            self._settle(call, attempt, sent, crowd)

    def _settle(self, call: _Call, attempt: Attempt, sent: float, crowd: int) -> None:
        now = time.monotonic()
        self._last = attempt.reason or self._last
        if attempt.kind == "answer":
            self._throttle.answer(now, sent)
            self._health.answer()
            self._deliver(call, attempt.completion)
        elif attempt.kind == "simpler":
            heapq.heappush(self._again, (now, next(self._ties), call))
        elif attempt.kind == "stop":
            self._inbox.stop = self._inbox.stop or attempt.error
            self._first = None
        elif attempt.kind == "failed":
            self._health.refuse(attempt.reason)
            self._give_up(call, attempt)
        else:
            self._delay(call, attempt, now, sent, crowd)
        self._check(now)

    def _delay(self, call: _Call, attempt: Attempt, now: float, sent: float, crowd: int) -> None:
        """Put a call off that was refused or failed, unless it was often enough."""
        asked = min(attempt.retry_after, LONGEST_ASKED) if attempt.retry_after is not None else None
        if attempt.kind == "later" or attempt.overloaded:
            self._throttle.push_back(now, sent, crowd=crowd, retry_after=asked)
        if attempt.kind == "later":
            call.refusals += 1
        elif attempt.error is not None:
            call.unreached += 1
            self._health.fault(now)
        else:
            call.failures += 1
            self._health.fault(now)
            if attempt.kind == "late":
                self._throttle.time_out(now, sent)
        tries = call.failures + call.refusals + call.unreached
        if attempt.error is not None and self._is_unreachable(call, now):
            self._inbox.stop = self._inbox.stop or attempt.error
        elif call.failures > self._policy.retries or call.refusals > REFUSALS * self._policy.retries:
            self._give_up(call, attempt)
        else:
            wait = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.75, 1.0)
            due = now + (wait if asked is None else asked)
            heapq.heappush(self._again, (due, next(self._ties), call))

    def _is_unreachable(self, call: _Call, now: float) -> bool:
        """Say whether the run should stop since nobody is there; one who has answered may be started again."""
        if self._health.succeeded:
            return self._health.is_gone(now)
        return call.unreached > self._policy.retries

    def _give_up(self, call: _Call, attempt: Attempt) -> None:
        self._health.give_up(pushed_back=attempt.kind == "later")
        self._deliver(call, attempt.completion)

    def _deliver(self, call: _Call, completion: Completion | None) -> None:
        self._first = None
        self._inbox.arrived.put((call.place, completion or Completion(None, "error")))

    def _check(self, now: float) -> None:
        """Stop where the server counts as dead."""
        why = self._health.judge(now, untried=self._untried())
        if why:
            self._inbox.stop = self._inbox.stop or self._policy.explain(why, self._last)
