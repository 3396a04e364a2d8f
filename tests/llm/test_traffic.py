"""Calls in flight, with a server that is a function: what is tried again, what is given up, what stops the run."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from embedsmith.errors import LanguageModelError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.health import FAULTS
from embedsmith.llm.throttle import Throttle
from embedsmith.llm.traffic import Attempt, RetryPolicy, Traffic

FAILED = Completion(None, "error")
ANSWER = Attempt("answer", Completion("x", "stop"))
LATER = Attempt("later", FAILED, 0.0, reason="429")
FAULT = Attempt("again", FAILED, 0.0, reason="503: the model is loaded")
UNREACHED = Attempt("again", FAILED, 0.0, error=LanguageModelError("cannot be reached"))  # tried again at once


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


def ask(
    server: Callable[[str, int], Attempt], *, rows: int = 10, concurrency: int = 1, outage: float = 300
) -> list[str]:
    """The finishes by row; `server` gets a row and the number of the attempt, over all rows."""
    sent = Counter[str]()

    async def send(prompt: Prompt, _: Sampling, __: float) -> Attempt:
        sent["all"] += 1
        return server(prompt.row, sent["all"])

    policy = RetryPolicy(concurrency, 6, 120, outage, lambda why, last: LanguageModelError(f"{why}: {last}"))
    traffic = Traffic(send, policy, Throttle(concurrency), Sampling(), None)
    prompts = (Prompt("", "", str(row), "t") for row in range(rows))
    arrived = dict(one for some in traffic.stream(prompts, nothing) for one in some)
    return [arrived[row].finish for row in range(rows)]


def test_a_refused_connection_after_many_429s_stops_nothing() -> None:
    script = iter([*[LATER] * 7, UNREACHED])
    assert ask(lambda row, _: next(script, ANSWER) if row == "5" else ANSWER) == ["stop"] * 10


@pytest.mark.parametrize("rows", [10, 3])
def test_a_server_that_is_started_again_costs_no_row(rows: int) -> None:
    """It is gone for twice as many attempts as a call has, also in the last row, then loads its model."""

    def serve(_: str, attempt: int) -> Attempt:
        return ANSWER if attempt < 3 or attempt > 19 else UNREACHED if attempt < 16 else FAULT

    assert ask(serve, rows=rows) == ["stop"] * rows


@pytest.mark.parametrize("concurrency", [1, 20])
def test_a_server_that_does_not_come_back_ends_the_run_after_the_outage(concurrency: int) -> None:
    sent = []

    def serve(row: str, attempt: int) -> Attempt:
        sent.append(row)
        return ANSWER if attempt < 3 else UNREACHED

    with pytest.raises(LanguageModelError, match="cannot be reached"):
        ask(serve, concurrency=concurrency, outage=0.0)
    assert FAULTS <= len(sent) <= FAULTS + 2 * concurrency + 2


def test_an_address_where_nobody_ever_was_ends_the_run_at_once() -> None:
    sent = []

    def serve(row: str, _: int) -> Attempt:
        sent.append(row)
        return UNREACHED

    with pytest.raises(LanguageModelError, match="cannot be reached"):
        ask(serve)
    assert sent == ["0"] * 7
