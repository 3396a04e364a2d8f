"""Calls: order, repeats, failures, progress, and memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from embedsmith.errors import LanguageModelError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Price
from embedsmith.llm.calls import Calls, Progress
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.testing import FakeLLM, FaultyServer


def write_prompts(*texts: str) -> list[Prompt]:
    return [Prompt("system", text, str(row), "paraphrases") for row, text in enumerate(texts)]


class Instant:
    """Answers at once and remembers only how often it was asked."""

    name, instant = "instant", True

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, prompts: Sequence[Prompt], _: Sampling, /) -> Iterator[tuple[int, Completion]]:
        self.asked += len(prompts)
        for place in reversed(range(len(prompts))):
            yield place, Completion(prompts[place].user.upper(), "stop", 1, 1, 0.0, "instant")


def test_completions_come_in_the_order_of_the_prompts_whatever_order_they_arrive_in() -> None:
    prompts = write_prompts(*(f"question {n}" for n in range(600)))  # more than a list that the model gets at once
    with FaultyServer(answer=lambda text: text[::-1], faults={"drop": 0.05}) as server, Journal(":memory:") as journal:
        calls = Calls(OpenAIChat("m", base_url=server.base_url), journal)
        for pairs in (list(calls.complete(lambda: prompts)), list(calls.complete(lambda: iter(prompts)))):
            assert [prompt.user for prompt, _ in pairs] == [prompt.user for prompt in prompts]
            assert [done.text for _, done in pairs] == [prompt.user[::-1] for prompt in prompts]
    assert len(server.answered()) == 600
    assert (calls.tally.calls, calls.tally.sent) == (1200, 600)


def test_two_steps_of_a_recipe_ask_one_after_the_other() -> None:
    llm = FakeLLM(answer=lambda prompt: prompt.user + "!")
    with Journal(":memory:") as journal:
        calls = Calls(llm, journal)
        first = calls.complete(lambda: write_prompts("a", "b"))
        second = write_prompts(*(str(done.text) for _, done in first))
        assert [done.text for _, done in calls.complete(lambda: second)] == ["a!!", "b!!"]
    assert calls.tally.sent == 4


def test_equal_prompts_are_sent_once_also_far_apart() -> None:
    llm = Instant()
    texts = [f"q{n % 700}" for n in range(5000)]
    with Journal(":memory:") as journal:
        done = [one.text for _, one in Calls(llm, journal).complete(lambda: write_prompts(*texts))]
    assert llm.asked == 700
    assert done == [text.upper() for text in texts]


def test_failures_are_known_for_one_pass_and_tried_again_in_the_next(tmp_path: Path) -> None:
    answers: dict[str, str | None] = {"a": "x", "b": None}
    llm = FakeLLM(answer=lambda prompt: answers[prompt.user])
    prompts = write_prompts("a", "b", "b")
    with Journal(tmp_path / "journal.sqlite") as journal:
        calls = Calls(llm, journal)
        assert [done.finish for _, done in calls.complete(lambda: prompts)] == ["stop", "error", "error"]
        assert [prompt.user for prompt in llm.calls] == ["b", "a"]
        answers["b"] = "y"
        assert [done.finish for _, done in calls.complete(lambda: prompts)] == ["stop", "stop", "stop"]
    assert [prompt.user for prompt in llm.calls] == ["b", "a", "b"]


def test_progress_says_how_far_how_fast_and_how_dear() -> None:
    seen: list[Progress] = []
    with FaultyServer() as server, Journal(":memory:") as journal:
        llm = OpenAIChat("m", base_url=server.base_url)
        calls = Calls(llm, journal, budget=Budget(price=Price(10, 20)), on_progress=seen.append)
        list(calls.complete(lambda: write_prompts("a", "b", "c", "a")))
        list(calls.complete(lambda: iter(write_prompts("a", "b"))))
    first = seen[: seen.index(next(one for one in seen if one.done == 4)) + 1]
    assert (first[0].done, first[0].total, first[-1].sent) == (0, 4, 3)
    assert first[-1].rate > 0
    assert first[-1].cost == pytest.approx(3 * 0.002)
    assert (seen[-1].done, seen[-1].total, seen[-1].sent) == (2, 2, 0)  # nobody knew the total before


def test_what_arrived_before_the_run_stopped_is_kept() -> None:
    with FaultyServer() as server, Journal(":memory:") as journal:
        llm = OpenAIChat("m", base_url=server.base_url, concurrency=1)

        def prompts() -> Iterator[Prompt]:
            yield from write_prompts("a", "b")
            server.api_key = "another"  # revoked while the third call is on its way
            yield Prompt("system", "c", "2", "t")

        with pytest.raises(LanguageModelError, match="401"):
            list(Calls(llm, journal).complete(prompts))
        assert journal.count() == len(server.answered()) == 2


def test_memory_does_not_grow_with_the_prompts(tmp_path: Path) -> None:
    """The highest level of Python's memory in a pass over 40,000 prompts is that of one over 4,000."""

    def walk(count: int) -> int:
        def prompts() -> Iterator[Prompt]:
            return (Prompt("s", f"{count} {n}", str(n), "t") for n in range(count))

        with Journal(tmp_path / f"{count}.sqlite") as journal:
            tracemalloc.start()
            assert sum(1 for _ in Calls(Instant(), journal).complete(prompts)) == count
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    small = walk(2_000)
    assert walk(12_000) < 1.1 * small
