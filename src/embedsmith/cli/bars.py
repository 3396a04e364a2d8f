"""Progress where nobody watches a screen: a line now and then, in a log file, a CI job, a container."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task, TaskID

EVERY = 30.0  # seconds between two lines of one task


class Lines(Progress):
    """Bars that print a line per task at most every `EVERY` seconds, instead of drawing over one.

    What takes less than that prints nothing: a log is no place for bars of a second.
    """

    def __init__(self, *, console: Console, every: float = EVERY, clock: Callable[[], float] = time.monotonic):
        super().__init__(console=console, get_time=clock)
        self._every, self._clock = every, clock
        self._said: dict[TaskID, float] = {}
        self._ended = Event()

    def start(self) -> None:
        """Begin without a live display; what does not move for long is told all the same."""
        self._pulse = Thread(target=self._beat, daemon=True)
        self._pulse.start()

    def stop(self) -> None:
        """End without drawing the bars once more."""
        self._ended.set()

    def update(self, task_id: TaskID, **given: Any) -> None:
        """Move a task, and say where it is when the last line is old enough."""
        with self._lock:
            super().update(task_id, **given)
            self._say(task_id)

    def tell(self) -> None:
        """Say where the tasks are that are not finished and whose last line is old enough."""
        with self._lock:
            for task_id, task in self._tasks.items():
                if task_id in self._said and not task.finished:
                    self._say(task_id)

    def _beat(self) -> None:
        """A local model may need minutes for its first answer: until then nothing moves."""
        while not self._ended.wait(self._every):
            self.tell()

    def _say(self, task_id: TaskID) -> None:
        now = self._clock()
        if now - self._said.setdefault(task_id, now) >= self._every:
            self._said[task_id] = now
            self.console.print(describe(self._tasks[task_id]), markup=False, highlight=False, soft_wrap=True)


def describe(task: Task) -> str:
    """Return "training 120/1195, 0:03:10, about 0:28:20 left, loss 0.612": what is known of a task, in one line."""
    total = f"/{task.total:.0f}" if task.total is not None else ""
    parts = [f"{task.description} {task.completed:.0f}{total}"]
    if task.elapsed is not None:
        parts.append(str(timedelta(seconds=int(task.elapsed))))
    if task.time_remaining:
        parts.append(f"about {timedelta(seconds=int(task.time_remaining))} left")
    note = str(task.fields.get("note", ""))
    return ", ".join([*parts, *([note] if note else [])])
