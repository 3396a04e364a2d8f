"""Progress without a terminal: lines in a log."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from embedsmith.cli.bars import Lines
from embedsmith.cli.console import watch_run
from embedsmith.optimization import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(seconds: int, *, every: float = 30.0, note: str = "", total: int | None = 100) -> list[str]:
    """Return what a task of one step a second prints."""
    out, clock = io.StringIO(), Clock()
    with Lines(console=Console(file=out, width=40), every=every, clock=clock) as bars:
        task = bars.add_task("training", total=total, note="")
        for done in range(seconds + 1):
            clock.now = float(done)
            bars.update(task, completed=done, note=note)
    return out.getvalue().splitlines()


def test_a_line_every_thirty_seconds_says_what_is_done_and_what_is_left() -> None:
    lines = run(70, note="loss 0.612")

    assert lines == [
        "training 30/100, 0:00:30, about 0:01:10 left, loss 0.612",
        "training 60/100, 0:01:00, about 0:00:40 left, loss 0.612",
    ]


def test_what_is_over_soon_says_nothing() -> None:
    assert run(29) == []


def test_without_a_total_there_is_no_estimate() -> None:
    assert run(31, total=None) == ["training 30, 0:00:30"]


def test_what_does_not_move_is_told_until_it_is_finished() -> None:
    out, clock = io.StringIO(), Clock()
    with Lines(console=Console(file=out), clock=clock) as bars:
        task = bars.add_task("LLM calls", total=2)
        bars.update(task, completed=0)
        for clock.now in (20.0, 31.0, 62.0):
            bars.tell()
        bars.update(task, completed=2)
        clock.now = 200.0
        bars.tell()

    assert out.getvalue().splitlines() == ["LLM calls 0/2, 0:00:31", "LLM calls 0/2, 0:01:02"]


@pytest.mark.parametrize(("done", "shown"), [(1, True), (2, False)])
def test_a_finished_bar_goes_so_that_the_line_of_the_next_stage_is_the_last(
    monkeypatch: pytest.MonkeyPatch, done: int, shown: bool
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys.modules[watch_run.__module__], "console", Console(file=out, force_terminal=True, width=120))
    with watch_run() as watch:
        assert watch.steps is not None
        watch.steps(Progress(step=done, steps=2, loss=0.5, tokens_per_second=9.0, seconds_left=1.0))
        watch.say("evaluation: 12 labelled pairs")

    cleared = "\x1b[2K"  # a line of the screen; what comes behind the last one is left on it
    assert ("training" in out.getvalue().rpartition(cleared)[2]) == shown


def test_two_tasks_have_their_own_lines() -> None:
    out, clock = io.StringIO(), Clock()
    with Lines(console=Console(file=out), every=10, clock=clock) as bars:
        tasks = [bars.add_task(name, total=2) for name in ("calls", "training")]
        for now in (1.0, 12.0):
            clock.now = now
            for task in tasks:
                bars.update(task, advance=1)

    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["calls", "training"]
