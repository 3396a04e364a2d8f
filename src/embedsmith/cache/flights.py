"""Single flight in a program: of equal questions that miss at once, one caller computes, the others wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar

# The flights that the code at hand computes for: it would wait for itself if it waited for one of them. Tasks and
# `asyncio.to_thread` inherit this; a thread of the user's own pool does not.
LED: ContextVar[tuple[Future[str], ...]] = ContextVar("LED", default=())


class Abandoned(Exception):
    """Whoever computed the answer was stopped before there was one; who waited can board again."""


class Flights:
    """The questions whose answers are on their way, by id. For threads and coroutines alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Future[str]] = {}

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
