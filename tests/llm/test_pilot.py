"""Estimates from a pilot: within 15% of what the whole run then uses."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.errors import InputError
from embedsmith.llm import Prompt, Sampling
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.llm.pilot import Interval, PilotRow, choose_rows, estimate, estimate_total
from embedsmith.testing import FaultyServer

PRICE = Price(0.15, 0.6)


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 20), st.integers(0, 5))
def test_rows_are_chosen_over_the_whole_range_of_sizes(sizes: list[int], count: int, seed: int) -> None:
    chosen = choose_rows(sizes, count, seed=seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(sizes))
    assert chosen == choose_rows(sizes, count, seed=seed)
    ranked = sorted(sizes)
    for part, size in enumerate(sorted(sizes[place] for place in chosen)):
        low, high = (len(sizes) * (part + step) // len(chosen) for step in (0, 1))
        assert ranked[low] <= size <= ranked[high - 1]


def test_the_example_worked_by_hand() -> None:
    """Rows of sizes 1, 2, 3, 4, the pilot (1, 10), (3, 30), (2, 20): all on the line y = 10 x."""
    assert estimate_total([1, 3, 2], [10, 30, 20], [1, 2, 3, 4]) == Interval(100, 100, 100)


def test_a_pilot_of_all_rows_is_no_estimate() -> None:
    assert estimate_total([5, 1], [3, 4], [5, 1]) == Interval(7, 7, 7)


def test_two_rows_are_too_few() -> None:
    with pytest.raises(InputError, match="too few"):
        estimate([PilotRow(1, Usage(1, 1, 1))] * 2, [1] * 10)


@pytest.mark.parametrize("answer", [lambda draw, size: size / 3, lambda draw, size: draw.gammavariate(6, 30)])
def test_the_interval_holds_the_truth_as_often_as_it_says(answer: Callable[[random.Random, int], float]) -> None:
    """400 pilots of 20 among 2,000 rows; 95% said, at least 91% held (the binomial's 1e-4 quantile is .908)."""
    held = 0
    for seed in range(400):
        draw = random.Random(seed)
        sizes = [int(draw.lognormvariate(6, 0.5)) for _ in range(2000)]
        used = [answer(draw, size) for size in sizes]
        rows = choose_rows(sizes, 20, seed=seed)
        found = estimate_total([sizes[row] for row in rows], [used[row] for row in rows], sizes)
        held += found.low - 1e-6 <= sum(used) <= found.high + 1e-6
    assert held >= 0.908 * 400


def ask(server: FaultyServer, prompts: list[Prompt]) -> list[Usage]:
    with Journal(":memory:") as journal:
        calls = Calls(OpenAIChat("m", base_url=server.base_url), journal, Sampling(seed=1))
        done = [one for _, one in calls.complete(lambda: prompts)]
    return [Usage(1, one.prompt_tokens, one.completion_tokens) for one in done]


@pytest.mark.parametrize("seed", range(3))
def test_a_pilot_against_a_server_says_what_the_run_will_use(seed: int) -> None:
    """Prompts of 10 to 400 words; answers of a random length that hangs on the prompt in part."""
    draw = random.Random(seed)
    prompts = [Prompt("s", "word " * draw.randint(10, 400), str(n), "t") for n in range(400)]
    prompts = [Prompt("s", f"{n} {prompt.user}", str(n), "t") for n, prompt in enumerate(prompts)]

    def write(text: str) -> str:
        return "so " * int(random.Random(text).gammavariate(8, 8) + text.count(" ") / 4)

    def count(prompt: str, text: str) -> tuple[int, int]:
        return len(prompt) // 4, len(text) // 3

    with FaultyServer(answer=write, count=count) as server:
        sizes = [len(prompt.user) for prompt in prompts]
        rows = choose_rows(sizes, 20, seed=seed)
        pilot = ask(server, [prompts[row] for row in rows])
        whole = ask(server, prompts)
    found = estimate([PilotRow(sizes[row], used) for row, used in zip(rows, pilot, strict=True)], sizes, price=PRICE)
    total = sum(whole, Usage())
    assert found.calls.value == total.calls == 400
    assert found.prompt_tokens.value == pytest.approx(total.prompt_tokens, rel=0.01)
    assert found.completion_tokens.value == pytest.approx(total.completion_tokens, rel=0.15)
    assert found.cost is not None
    assert found.cost.value == pytest.approx(PRICE.of(total), rel=0.15)
    assert found.unmetered == 0


def test_real_passages_and_answers_are_estimated_within_15_percent(data: Path) -> None:
    """640 passages with recorded answers; 200 pilots of 20; tokens are words and marks here. All within 15%."""

    def read(name: str) -> list[dict[str, object]]:
        with gzip.open(data / "finance_passages" / name, "rt", encoding="utf-8") as handle:
            return [json.loads(line) for line in handle]

    texts = {row["id"]: str(row["text"]) for row in read("passages.jsonl.gz")}
    answers = {row["id"]: json.dumps(row["questions"]) for row in read("completions.jsonl.gz")}
    sizes = [len(texts[row]) for row in answers]
    used = [Usage(1, len(texts[row].split()) * 4 // 3 + 200, len(answers[row].split()) * 4 // 3) for row in answers]
    total, errors = PRICE.of(sum(used, Usage())), []
    for seed in range(200):
        rows = choose_rows(sizes, 20, seed=seed)
        found = estimate([PilotRow(sizes[row], used[row]) for row in rows], sizes, price=PRICE)
        assert found.cost is not None
        errors.append(abs(found.cost.value / total - 1))
    assert max(errors) < 0.15
