"""When a server counts as dead, in simulated time."""

from __future__ import annotations

import pytest

from embedsmith.llm.health import ALIKE, FAULTS, FIRST_FAILURES, LONGEST, Health


def alive() -> Health:
    health = Health()
    health.answer()
    return health


def test_faults_in_a_row_slow_the_run_down_and_end_it_after_five_minutes() -> None:
    health, now, attempts = alive(), 0.0, 0
    while not (why := health.judge(now, untried=True)):
        now += health.delay(now) if health.is_down else 0.01
        health.fault(now)
        attempts += 1
    assert LONGEST < now < LONGEST + 31
    assert attempts < FAULTS + 35
    assert why == f"{attempts} attempts in a row failed, over {now - 0.01:.0f} s"


def test_an_answer_ends_an_outage() -> None:
    health = alive()
    for number in range(FAULTS):
        assert not health.is_down
        health.fault(float(number))
    assert health.is_down
    health.answer()
    assert not health.is_down
    health.fault(2 * LONGEST)
    assert health.judge(2 * LONGEST, untried=True) == ""


def test_faults_of_the_last_rows_end_nothing() -> None:
    health = alive()
    for number in range(10 * FAULTS):
        health.fault(float(number) * LONGEST)
    assert health.judge(10.0 * LONGEST, untried=False) == ""
    assert health.judge(10.0 * LONGEST, untried=True)


def test_refusals_end_a_run_only_in_the_same_words() -> None:
    health = alive()
    for number in range(5 * ALIKE):
        health.refuse(f"{number} tokens are too many")
        assert health.judge(0.0, untried=True) == ""
    for _ in range(ALIKE - 1):
        health.refuse("no credit")
    assert health.judge(0.0, untried=True) == ""
    health.refuse("no credit")
    assert health.judge(0.0, untried=True) == f"{ALIKE} calls in a row were refused in the same words"


@pytest.mark.parametrize("pushed_back", [True, False])
def test_calls_that_only_got_429_end_a_run(pushed_back: bool) -> None:
    health = alive()
    for _ in range(FIRST_FAILURES):
        assert health.judge(0.0, untried=True) == ""
        health.give_up(pushed_back=pushed_back)
    assert ("nothing but 429" in health.judge(0.0, untried=True)) == pushed_back


def test_first_calls_that_all_fail_end_a_run() -> None:
    health = Health()
    for _ in range(FIRST_FAILURES):
        assert health.judge(0.0, untried=True) == ""
        health.give_up(pushed_back=False)
    assert health.judge(0.0, untried=False) == f"the first {FIRST_FAILURES} calls all failed"
