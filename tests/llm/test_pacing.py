"""The time that a pilot tells, against whole runs before servers whose latency decides; and the arithmetic of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from embedsmith.answers import write_e5_answer, write_rag_answer
from embedsmith.corpus import Query
from embedsmith.documents import Passage
from embedsmith.llm import Completion, Sampling
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.llm.pacing import Ahead, Timed, foresee_seconds, measure_pace, recall_pace
from embedsmith.llm.pilot import Estimate, Interval
from embedsmith.synthesis.e5 import E5Plan
from embedsmith.synthesis.orders import Order, order_e5, order_langcache, order_rag, try_order
from embedsmith.synthesis.rag import RagPlan
from embedsmith.synthesis.recipes import load_recipe
from embedsmith.testing import Capacity, FakeLLM, FaultyServer

PRICE = Price(0.15, 0.6)
AT_ONCE = 16  # few enough for the client to be idle most of the time: the server's latency decides


def questions(count: int) -> Order:
    queries = [Query(str(n), f"how do I change the {'very ' * (n % 7)}old card of account {n}") for n in range(count)]
    return order_langcache(load_recipe(), queries)


def foresee(order: Order, rows: int, **server: Any) -> tuple[Estimate, Calls]:
    """The estimate of a pilot, and the whole run that nobody had tried before."""
    with FaultyServer(**server) as opened, Journal(":memory:") as one, Journal(":memory:") as other:
        llm = OpenAIChat("m", base_url=opened.base_url, concurrency=AT_ONCE)
        tried = try_order(order, Calls(llm, one, Sampling(seed=1)), rows, price=PRICE, in_flight=AT_ONCE)
        whole = Calls(OpenAIChat("m", base_url=opened.base_url, concurrency=AT_ONCE), other, Sampling(seed=1))
        list(order.fill(whole))
    assert tried.estimate is not None
    return tried.estimate, whole


def agrees(found: Estimate, whole: Calls) -> bool:
    """Say whether calls and money are within 15%, and the time within what a busy machine adds to it."""
    assert found.cost is not None
    assert found.seconds is not None
    money = PRICE.of(Usage(0, whole.tally.prompt_tokens, whole.tally.completion_tokens))
    assert found.calls.value == pytest.approx(whole.budget.spent.calls, rel=0.15)
    assert found.cost.value == pytest.approx(money, rel=0.15)
    assert found.seconds.low <= found.seconds.value <= found.seconds.high
    return whole.tally.waited / 1.7 < found.seconds.value < 1.3 * whole.tally.waited


def test_the_time_of_a_server_that_keeps_up_is_its_latency_and_the_warming_up_of_the_window() -> None:
    found, whole = foresee(questions(40), 9, delay=0.3)
    assert agrees(found, whole)
    assert found.seconds is not None
    assert found.seconds.value > 1.2 * 80 * 0.3 / AT_ONCE  # which no window that begins with 8 calls reaches


def test_a_queue_that_the_pilot_meets_is_seen_in_its_answers() -> None:
    """Two at once, of 0.1 s: ten times the 0.5 s that the latency of the pilot's calls alone would give for 16."""
    found, whole = foresee(questions(25), 10, delay=0.1, capacity=Capacity(2))
    assert agrees(found, whole)


def test_a_server_that_takes_no_more_than_the_pilot_had_is_inside_the_interval() -> None:
    """Nobody can know it from 8 calls at once: the bound says what the time is if it is so."""
    found, whole = foresee(questions(40), 9, delay=0.2, capacity=Capacity(9))
    assert found.seconds is not None
    assert found.seconds.low < whole.tally.waited < 1.5 * found.seconds.high


def test_attempts_that_fail_are_part_of_calls_and_time() -> None:
    found, whole = foresee(questions(40), 15, delay=0.1, faults={"server_error": 0.15}, seed=3)
    assert found.seconds is not None
    assert found.calls.value == pytest.approx(whole.budget.spent.calls, rel=0.15)
    assert found.calls.value > 1.05 * whole.tally.calls
    assert found.calls.low < whole.budget.spent.calls < found.calls.high
    quick, _ = foresee(questions(40), 15, delay=0.1)
    assert quick.seconds is not None
    assert found.seconds.value > 1.2 * quick.seconds.value  # a failed call waits before it goes out again


def test_steps_that_wait_for_one_another_add_up() -> None:
    """E5 asks for tasks first, then for examples; the judge of rag comes after all questions."""
    plan_of_tasks = E5Plan(tasks=40, check_languages=False)
    with_tasks, whole = foresee(order_e5(plan_of_tasks), 20, delay=0.15, answer=write_e5_answer)
    assert agrees(with_tasks, whole)
    texts = [f"Section {n} of the Harbour Act sets a berth fee of {n}7 marks for Vessel{n} a day." for n in range(30)]
    passages = [Passage(f"p{n}", text, document=f"act{n // 8}") for n, text in enumerate(texts)]
    plan = RagPlan(judge=True, trip="off", further=False, multi_passage=0.5)
    judged, whole = foresee(order_rag(plan, passages), 12, delay=0.1, answer=write_rag_answer)
    assert agrees(judged, whole)
    assert whole.tally.calls > 1.5 * 30  # some of it verdicts


@pytest.mark.parametrize("form", ["a#{}", "a+{}", "b.jsonl#{}~2"])
def test_a_pilot_with_a_judge_takes_any_names_of_passages(form: str) -> None:
    texts = [f"Section {n} of the Harbour Act sets a berth fee of {n}7 marks for Vessel{n} a day." for n in range(12)]
    passages = [Passage(form.format(n), text, document=f"act{n // 4}") for n, text in enumerate(texts)]
    plan = RagPlan(judge=True, trip="off", further=False, multi_passage=0.5)
    llm = FakeLLM(answer=lambda prompt: write_rag_answer(prompt.user))
    with Journal(":memory:") as journal:
        tried = try_order(order_rag(plan, passages), Calls(llm, journal), 4)
    assert tried.kept
    assert tried.estimate is not None


def test_a_pilot_from_the_journal_says_what_the_seconds_of_then_allow() -> None:
    with FaultyServer(delay=0.05) as server, Journal(":memory:") as journal:
        order = questions(40)
        llm = OpenAIChat("m", base_url=server.base_url)
        first = try_order(order, Calls(llm, journal, Sampling(seed=1)), 5, in_flight=16).estimate
        asked = len(server.calls)
        again = try_order(order, Calls(llm, journal, Sampling(seed=1)), 5, in_flight=16).estimate
        assert len(server.calls) == asked
    assert first is not None
    assert again is not None
    assert again.at_once is None
    assert first.at_once is not None
    assert again.seconds is not None
    assert first.calls == again.calls


def test_a_model_in_this_process_answers_one_call_after_the_other() -> None:
    class Slow(FakeLLM):
        def complete(self, prompts: Any, sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
            for place, done in super().complete(prompts, sampling):
                yield place, replace(done, seconds=2.0)

    with Journal(":memory:") as journal:
        found = try_order(questions(50), Calls(Slow(), journal), 10, in_flight=256).estimate
    assert found is not None
    assert found.seconds == Interval(200, 200, 200)


def test_a_queue_worked_by_hand() -> None:
    """One call after the other, 25 ms each: the last of 8 calls at once waits for all others. 40 answers a second."""
    bursts = [(10.0 * turn, size) for turn, size in enumerate((8, 16, 12))]
    calls = [(start + 1e-6 * place, 0.025 * (place + 1)) for start, size in bursts for place in range(size)]
    pace = measure_pace([Timed(sent + seconds, seconds) for sent, seconds in calls])
    assert pace.most == 16
    assert pace.slope == pytest.approx((0.025, 0.025, 0.025), rel=1e-3)
    assert foresee_seconds([Ahead(2000, pace, pace.slope[1])], ceiling=64) == pytest.approx(2000 / 40, rel=0.1)


def test_no_calls_take_no_time_and_more_take_longer() -> None:
    pace = recall_pace([0.2, 0.3])
    times = [foresee_seconds([Ahead(count, pace)], ceiling=16) for count in (0, 1, 100, 10_000, 100_000)]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[4] == pytest.approx(100_000 * 0.25 / 16, rel=0.05)
