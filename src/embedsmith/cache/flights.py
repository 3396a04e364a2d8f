"""Single flight in a program: of equal questions that miss at once, one caller computes, the others wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

# The flights that the code at hand computes for: it would wait for itself if it waited for one of them. Tasks and
# `asyncio.to_thread` inherit this; a thread of the user's own pool does not.
LED: ContextVar[tuple[Future[str], ...]] = ContextVar("LED", default=())


class Abandoned(Exception):
    """Whoever computed the answer was stopped before there was one; who waited can board again."""


@dataclass(frozen=True, slots=True)
class Errand(Generic[Result]):
    """What is done for a question that has missed.

    Attributes:
        id: of the question; equal ones have one.
        find: returns the answer that another flight has brought since, or None.
        compute: returns the answer, or what is awaited for it.
        keep: takes the answer for those who ask later.
    """

    id: str
    find: Callable[[], str | None]
    compute: Callable[[], Result]
    keep: Callable[[str], None]


class Flights:
    """The questions whose answers are on their way, by id. For threads and coroutines alike, which share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Future[str]] = {}
        # Its own, since threads of the loop may all wait, in `run`, for a coroutine that needs one of them to land.
        self._aside = ThreadPoolExecutor(thread_name_prefix="embedsmith-cache")

    def run(self, errand: Errand[str]) -> str:
        """Return the answer that is on its way; where none is, find or compute it for all who come meanwhile.

        When that fails, all of them get its error; when it is interrupted, one of them computes.
        """
        while (flight := self.board(errand.id)) is not None:
            if self.is_own(flight):
                return errand.compute()
            with suppress(Abandoned):
                return flight.result()
        with self.lead(errand.id) as land:
            answer = errand.find()
            if answer is None:
                answer = errand.compute()
                land(answer)
                errand.keep(answer)
            else:
                land(answer)
        return answer

    async def run_async(self, errand: Errand[Awaitable[str]]) -> str:
        """Return what `run` returns, without blocking the event loop."""
        while (flight := self.board(errand.id)) is not None:
            if self.is_own(flight):
                return await errand.compute()
            with suppress(Abandoned):
                return await asyncio.shield(asyncio.wrap_future(flight))  # whoever stops waiting stops nobody else
        with self.lead(errand.id) as land:
            answer = await self.aside(errand.find)
            if answer is None:
                answer = await errand.compute()
                land(answer)
                await self.aside(errand.keep, answer)
            else:
                land(answer)
        return answer

    async def aside(self, work: Callable[..., Result], *args: Any) -> Result:
        """Return what `asyncio.to_thread` does, from a thread that never waits for a flight."""
        run = partial(copy_context().run, work, *args)
        return await asyncio.get_running_loop().run_in_executor(self._aside, run)

    def board(self, id: str) -> Future[str] | None:
        """Return the flight to wait for; None when the caller leads, who must enter `lead` at once.

        The flight's result is the leader's answer, its error what the leader raised, or `Abandoned`.
        """
        with self._lock:
            flight = self._open.get(id)
            if flight is None:
                self._open[id] = Future()
            return flight

    @staticmethod
    def is_own(flight: Future[str]) -> bool:
        """Say whether the caller is itself part of computing this answer, as a function that calls itself is."""
        return flight in LED.get()

    @contextmanager
    def lead(self, id: str) -> Iterator[Callable[[str], None]]:
        """Give the caller a function that takes the answer; on leaving, however that happens, the flight lands."""
        answers: list[str] = []
        failure: Exception = Abandoned()  # a cancelled task, an interrupted program: no fault of the question
        led = LED.set((*LED.get(), self._open[id]))
        try:
            yield answers.append
        except Exception as error:
            failure = error
            raise
        finally:
            LED.reset(led)
            with self._lock:
                flight = self._open.pop(id)
            if answers:
                flight.set_result(answers[0])
            else:
                flight.set_exception(failure)
