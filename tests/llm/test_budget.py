"""A budget: never exceeded, whatever fails, however often the run is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.errors import ConfigurationError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Price, Reservation, Usage, bound_tokens
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Finished, Journal
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.testing import FakeLLM, FaultyServer

SAMPLING = Sampling(max_tokens=50, seed=1)
PRICE = Price(10.0, 20.0)  # of the server's 100 and 50 tokens: 0.002 dollars a call


def write_prompts(count: int, *, length: int = 400) -> list[Prompt]:
    return [Prompt("system", f"question {n} {'x' * length}", str(n), "paraphrases") for n in range(count)]


def run(llm: object, prompts: list[Prompt], journal: Journal, budget: Budget) -> list[Completion]:
    calls = Calls(llm, journal, SAMPLING, budget=budget)  # type: ignore[arg-type]
    return [completion for _, completion in calls.complete(lambda: prompts)]


def connect(server: FaultyServer, **options: object) -> OpenAIChat:
    return OpenAIChat("m", base_url=server.base_url, **options)  # type: ignore[arg-type]


def test_no_more_calls_leave_than_allowed_over_all_runs(tmp_path: Path) -> None:
    """Retries count; rows without money have the finish "budget", and the next budget goes on with them."""
    prompts = write_prompts(30)
    with FaultyServer(faults={"rate_limit": 0.2, "drop": 0.1}, seed=5) as server:
        for allowed in (12, 12, 20):
            with Journal(tmp_path / "journal.sqlite") as journal:
                done = run(connect(server), prompts, journal, Budget(max_calls=allowed))
            assert len(server.calls) == allowed
            assert {one.finish for one in done} == {"stop", "budget"}
        with Journal(tmp_path / "journal.sqlite") as journal:
            done = run(connect(server), prompts, journal, Budget())
    assert {one.finish for one in done} == {"stop"}
    assert len(set(server.answered())) == len(server.answered()) == 30


def test_money_is_not_exceeded_and_almost_used_up() -> None:
    """The worst case of a call is far above what it costs; what it did not need pays for later calls."""
    with FaultyServer() as server, Journal(":memory:") as journal:
        budget = Budget(max_cost=0.1, price=PRICE)
        done = run(connect(server), write_prompts(100), journal, budget)
    worst = PRICE.of(Usage(1, bound_tokens(write_prompts(1)[0]) + 2, 50))
    assert len(server.calls) == sum(one.text is not None for one in done)
    assert budget.cost == pytest.approx(len(server.calls) * 0.002)
    assert 0.1 - worst <= budget.cost <= 0.1


@pytest.mark.parametrize("fault", ["drop", "server_error", "hang", "garbled"])
def test_attempts_that_may_have_been_billed_count_in_full(fault: str) -> None:
    with FaultyServer(faults={fault: 0.3}, seed=2, hang=1.0) as server, Journal(":memory:") as journal:
        budget = Budget(max_cost=0.2, price=PRICE)
        run(connect(server, timeout=0.3), write_prompts(60), journal, budget)
    good = sum(call.fault is None for call in server.calls)
    worst = min(PRICE.of(Usage(1, bound_tokens(prompt), 50)) for prompt in write_prompts(60))
    assert good * 0.002 + (len(server.calls) - good) * worst <= budget.cost <= 0.2


def test_answers_without_usage_count_in_full() -> None:
    with FaultyServer(count=lambda *_: None) as server, Journal(":memory:") as journal:
        budget = Budget(price=PRICE)
        run(connect(server), write_prompts(3), journal, budget)
    assert budget.spent == Usage(3, sum(map(bound_tokens, write_prompts(3))), 150)


def test_a_model_that_takes_lists_is_paid_for_too() -> None:
    llm = FakeLLM()  # reports 10 and 10 tokens
    with Journal(":memory:") as journal:
        budget = Budget(max_cost=0.1, price=PRICE)
        done = run(llm, write_prompts(500), journal, budget)
    made = len(llm.calls)
    assert budget.cost == pytest.approx(made * 0.0003)
    assert [one.finish for one in done] == ["stop"] * made + ["budget"] * (500 - made)
    assert 280 < made <= 333


def test_what_is_in_the_journal_needs_no_money() -> None:
    prompts = write_prompts(5)
    with Journal(":memory:") as journal:
        first = run(FakeLLM(), prompts, journal, Budget())
        assert run(FakeLLM(), prompts, journal, Budget(max_calls=0)) == first


def test_a_journal_of_a_version_without_books_counts_its_calls(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        for number, prompt in enumerate(write_prompts(4)):
            done = Completion("a", "stop", 100, 50)
            journal.put_many([Finished(str(number), prompt.fingerprint, "fake:llm", done)])
        budget = Budget(price=PRICE)
        Calls(FakeLLM(), journal, SAMPLING, budget=budget)
    assert budget.cost == pytest.approx(0.008)


CHILD = """
import json, sys
from embedsmith.llm import Prompt, Sampling
from embedsmith.llm.budget import Budget
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
with Journal(sys.argv[2]) as journal:
    llm = OpenAIChat("m", base_url=sys.argv[1], concurrency=8)
    calls = Calls(llm, journal, Sampling(max_tokens=50), budget=Budget(max_calls=60))
    prompts = [Prompt("s", f"question {n}", str(n), "t") for n in range(200)]
    print(json.dumps([done.finish for _, done in calls.complete(lambda: prompts)]))
"""


def test_killed_runs_together_stay_within_the_budget(tmp_path: Path) -> None:
    """What a killed run had in flight counts as spent: it may have been."""
    with FaultyServer(delay=0.02) as server:
        command = [sys.executable, "-c", CHILD, server.base_url, str(tmp_path / "journal.sqlite")]
        for _ in range(2):
            child, before = subprocess.Popen(command, stdout=subprocess.DEVNULL), len(server.calls)
            while len(server.calls) < before + 5:
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
            child.wait(timeout=30)
        finishes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert 30 <= len(server.calls) <= 60
    assert 20 <= finishes.count("stop") <= 60
    assert set(finishes) == {"stop", "budget"}


def test_a_grant_that_came_back_is_not_lost(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        run(FakeLLM(), write_prompts(10), journal, Budget())
        spent, granted = journal.read_spending("fake:llm")
    assert (spent, granted) == (Usage(10, 100, 100), Usage())


class Books:
    """A ledger that checks at each write that nothing has been reserved which it does not cover."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.covered = Usage()

    def read(self) -> tuple[Usage, Usage]:
        return Usage(), Usage()

    def read_committed(self) -> Usage:
        return Usage()

    def write(self, spent: Usage, granted: Usage) -> None:
        self.covered = spent + granted


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60), st.integers(0, 30))
def test_the_books_cover_all_that_is_out_at_any_time(steps: list[tuple[bool, int]], most: int) -> None:
    books, budget = Books(), Budget(max_calls=most)
    budget.bind(books)
    out: list[Reservation] = []
    for start, number in steps:
        if start:
            reserved = budget.reserve(Prompt("", "x" * number, "", ""), SAMPLING)
            out += [reserved] if reserved is not None else []
        elif out:
            budget.settle(out.pop(number % len(out)), Usage(1, number, number))
        if number % 7 == 0:
            budget.flush()
        at_most = budget.spent
        for reserved in out:
            at_most += reserved.most
        assert books.covered.covers(at_most)
        assert at_most.calls <= most


def test_a_call_waits_for_money_that_others_may_leave() -> None:
    """Room for one worst case at a time: calls go one after another, and all are made."""
    worst = PRICE.of(Usage(1, max(map(bound_tokens, write_prompts(8))), 50))
    with FaultyServer() as server, Journal(":memory:") as journal:
        done = run(connect(server), write_prompts(8), journal, Budget(max_cost=worst + 8 * 0.002, price=PRICE))
    assert {one.finish for one in done} == {"stop"}


@pytest.mark.parametrize("concurrency", [1, 256])
def test_a_server_that_writes_more_than_it_is_asked_for_is_paid_for_by_what_it_writes(concurrency: int) -> None:
    """Eighty times max_tokens, under any name of the limit: the first call finds out, and the next ones count so."""
    with FaultyServer(count=lambda *_: (100, 4_000)) as server, Journal(":memory:") as journal:
        budget = Budget(max_cost=1.0, price=PRICE)
        done = run(connect(server, concurrency=concurrency), write_prompts(60), journal, budget)
    assert budget.cost == pytest.approx(len(server.calls) * 0.081)
    assert 10 <= len(server.calls) <= 12
    assert budget.cost <= 1.0
    assert [one.finish for one in done].count("budget") == 60 - len(server.calls)


def test_answers_that_are_too_long_together_raise_the_worst_case_once() -> None:
    """Eight that were out at once are eight signs of the same factor, not its eighth power."""
    budget, prompt = Budget(), write_prompts(1)[0]
    out = [budget.reserve(prompt, SAMPLING) for _ in range(8)]
    for reserved in out:
        assert reserved is not None
        budget.settle(reserved, Usage(1, 100, 500))
    after = budget.reserve(prompt, SAMPLING)
    assert after is not None
    assert after.most.completion_tokens == 550


def test_a_reservation_is_judged_by_what_was_expected_when_it_was_made() -> None:
    """Late answers of two calls that were out before and after the server's habit was known: no factor of a factor."""
    budget, prompt = Budget(), write_prompts(1)[0]
    early, first = budget.reserve(prompt, SAMPLING), budget.reserve(prompt, SAMPLING)
    assert early is not None
    assert first is not None
    budget.settle(first, Usage(1, 100, 500))  # ten times what was asked for
    late = budget.reserve(prompt, SAMPLING)
    assert late is not None
    budget.settle(replace(late), Usage(1, 100, 600))  # a copy is as good as the reservation itself
    budget.settle(early, Usage(1, 100, 500))
    after = budget.reserve(prompt, SAMPLING)
    assert after is not None
    assert after.most.completion_tokens == 660


@pytest.mark.parametrize("text", ["", "1", "a,b", "1,2,3", "-1,2", "nan,1", "inf,1"])
def test_a_price_is_two_numbers(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no price"):
        Price.parse(text)


def test_a_price_that_is_made_of_numbers_is_held_to_the_same() -> None:
    with pytest.raises(ConfigurationError, match=r"'nan,1\.0' is no price"):
        Price(float("nan"), 1.0)


def test_a_cost_needs_a_price_and_limits_are_not_negative() -> None:
    with pytest.raises(ConfigurationError, match="price"):
        Budget(max_cost=1.0)
    for wrong in ({"max_calls": -1}, {"max_cost": -1.0, "price": PRICE}, {"max_cost": float("nan"), "price": PRICE}):
        with pytest.raises(ConfigurationError, match="negative"):
            Budget(**wrong)  # type: ignore[arg-type]


def test_the_bound_counts_bytes_and_the_schema() -> None:
    short = Prompt("", "hello", "1", "t", schema={})
    assert bound_tokens(Prompt("", "héllo", "1", "t", schema={})) == bound_tokens(short) + 1
    assert bound_tokens(Prompt("", "hello", "1", "t")) > bound_tokens(short)
