"""Calls: prompts in, completions out in the order of the prompts; durable, counted, within a budget.

A pass over the prompts sends those that the journal does not know, a bounded number at a time; a second pass reads the
completions from the journal. So nothing is held in memory that grows with the prompts, and a killed run repeats no
call whose answer was committed: at most the calls in flight.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling
from embedsmith.llm.budget import Budget, Reservation, Usage
from embedsmith.llm.journal import Finished, Journal, call_key
from embedsmith.llm.structured import storable

CHUNK = 256  # prompts handed at once to a model that takes lists
OUT_OF_BUDGET, BATCHED = "budget", "batched"
NOT_MADE = frozenset({OUT_OF_BUDGET, BATCHED})  # nothing is stored: another run makes the call


@runtime_checkable
class StreamingModel(Protocol):
    """A language model that takes prompts as it has room for them, and pays for every attempt itself."""

    name: str

    def stream(
        self, prompts: Iterator[Prompt], sampling: Sampling, /, *, budget: Budget | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield what has arrived since the last time: (place of the prompt, completion)."""
        ...


@runtime_checkable
class RememberingModel(Protocol):
    """A language model that may have its answers already: `instant` says that they cost neither time nor money."""

    instant: bool


@runtime_checkable
class AdaptiveModel(Protocol):
    """A language model that finds out how many calls at once its server takes."""

    @property
    def refused_at(self) -> float | None:
        """Calls in flight at which the server said that there are too many; None where it has not."""
        ...


@dataclass(slots=True)
class CallTally:
    """What was asked and what came back, so far.

    Attributes:
        calls: prompts; `sent` of them went out in this run, the others came from the journal.
        missing: prompts without a completion (a recorded file lacks the row, or the call failed). cut: answers that
            the token limit ended. overlong: answers that went beyond it, as a server does that ignores it.
        seconds: sum over all answered calls. waited: wall-clock seconds with at least one call in flight.
        notes: a recipe's own counts: how often an answer was empty, truncated, repaired or stripped of its thinking.
    """

    calls: int = 0
    sent: int = 0
    missing: int = 0
    cut: int = 0
    overlong: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    finishes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass over prompts has come.

    Attributes:
        done: prompts with a completion, or a failure. total: all prompts of the pass; None if nobody knows yet.
        sent: calls that have ended in this pass. rate: those per second.
        cost: US dollars over all runs of the journal; None without a price.
    """

    done: int
    total: int | None
    sent: int
    rate: float
    cost: float | None


class Calls:
    """A language model, its journal and its sampling as one thing that a recipe asks.

    A recipe asks once per step: all calls of the step are finished (or failed for good) before the first
    completion is handed on, and completions come in the order of the prompts, whatever order they arrived in.

    Args:
        budget: what may be spent. A prompt that it does not pay for has the finish "budget"; nothing is stored
            of it, so another run with more money makes the call.
        on_progress: called at the start of a pass, and after each commit.

    Attributes:
        step: passes over prompts so far.
        on_answer: hears every pair that is handed on. on_arrival: every call that ends, with the time of
            `time.monotonic`.
    """

    def __init__(
        self,
        llm: LanguageModel,
        journal: Journal,
        sampling: Sampling | None = None,
        *,
        budget: Budget | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.llm, self.journal = llm, journal
        self.sampling = sampling or Sampling()
        self.budget = budget or Budget()
        self.budget.bind(journal.ledger(llm.name))
        self.tally = CallTally()
        self.on_answer: Callable[[Prompt, Completion], None] | None = None
        self.on_arrival: Callable[[float, Completion], None] | None = None
        self.step = 0
        self._on_progress = on_progress

    def complete(
        self, prompts: Callable[[], Iterable[Prompt]], *, total: int | None = None
    ) -> Iterator[tuple[Prompt, Completion]]:
        """Yield (prompt, completion) in the order of the prompts.

        Args:
            prompts: gives the same prompts in the same order each time it is called; it is called twice,
                so that a million prompts need not be in memory.
            total: how many there are, for the progress; found out for lists.

        Raises:
            LanguageModelError: the model cannot be reached or refuses the calls; what arrived is in the journal.
        """
        asked = prompts()
        if total is None and isinstance(asked, Sequence):
            total = len(asked)
        run, began = uuid.uuid4().hex, time.monotonic()
        self.step += 1
        self._send(asked, run, _Meter(total, self._on_progress, self.budget))
        self.tally.waited += time.monotonic() - began
        for prompt in prompts():
            completion = self._look_up(prompt, run)
            self._count(completion)
            if self.on_answer is not None:
                self.on_answer(prompt, completion)
            yield prompt, completion

    def _send(self, prompts: Iterable[Prompt], run: str, meter: _Meter) -> None:
        """Make the calls that the journal lacks; what arrives together is committed together."""
        out: dict[int, tuple[str, str]] = {}  # place: key, fingerprint
        waiting: dict[str, int] = {}  # key of a call that is out: prompts that wait for it
        meter.report()
        try:
            for arrived in self._stream(self._select(prompts, run, out, waiting, meter)):
                self._store([(*out.pop(place), completion) for place, completion in arrived], run, waiting, meter)
        finally:
            self.budget.flush()
        meter.finish()

    def _select(
        self,
        prompts: Iterable[Prompt],
        run: str,
        out: dict[int, tuple[str, str]],
        waiting: dict[str, int],
        meter: _Meter,
    ) -> Iterator[Prompt]:
        """Yield each prompt that has to be sent, once."""
        place = 0
        for prompt in prompts:
            key = call_key(prompt, self.llm.name, self.sampling)
            if key in waiting:
                waiting[key] += 1
            elif self.journal.knows(key, run):
                meter.done += 1
            else:
                out[place], waiting[key] = (key, prompt.fingerprint), 1
                place += 1
                yield prompt

    def _store(
        self, arrived: list[tuple[str, str, Completion]], run: str, waiting: dict[str, int], meter: _Meter
    ) -> None:
        now = time.monotonic()
        ended = [
            Finished(key, prompt, self.llm.name, _storable(completion))
            for key, prompt, completion in arrived
            if completion.finish not in NOT_MADE
        ]
        if ended:
            self.journal.put_many(ended, run=run, budget=self.budget)
        if self.on_arrival is not None:
            for one in ended:
                self.on_arrival(now, one.completion)
        meter.sent += len(ended)
        self.tally.sent += sum(one.completion.text is not None for one in ended)
        meter.done += sum(waiting.pop(key) for key, _, _ in arrived)
        meter.report()

    def _stream(self, prompts: Iterator[Prompt]) -> Iterator[list[tuple[int, Completion]]]:
        if isinstance(self.llm, StreamingModel):
            return self.llm.stream(prompts, self.sampling, budget=self.budget)
        return self._stream_chunks(prompts)

    def _stream_chunks(self, prompts: Iterator[Prompt]) -> Iterator[list[tuple[int, Completion]]]:
        """Hand the prompts to a model that takes lists, in lists that the budget pays for."""
        instant = isinstance(self.llm, RememberingModel) and self.llm.instant
        start = 0
        left: Prompt | None = next(prompts, None)
        while left is not None:
            chunk: list[Prompt] = []
            paid: list[Reservation] = []
            while left is not None and len(chunk) < CHUNK:
                reserved = Reservation() if instant else self.budget.reserve(left, self.sampling)
                if reserved is None:
                    break
                chunk.append(left)
                paid.append(reserved)
                left = next(prompts, None)
            if not chunk and self.budget.end():
                yield [(start, Completion(None, OUT_OF_BUDGET, model=self.llm.name))]
                start += 1
                left = next(prompts, None)
            yield from self._ask(start, chunk, paid, instant)
            start += len(chunk)

    def _ask(
        self, start: int, chunk: list[Prompt], paid: list[Reservation], instant: bool
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield the answers to a list: one by one as they come, or all at once where none has to be waited for."""
        arrived: list[tuple[int, Completion]] = []
        for index, completion in self.llm.complete(chunk, self.sampling) if chunk else ():
            self.budget.settle(paid[index], Usage() if instant else measure(completion))
            arrived.append((start + index, completion))
            if not instant:
                yield arrived
                arrived = []
        if arrived:
            yield arrived

    def _look_up(self, prompt: Prompt, run: str) -> Completion:
        key = call_key(prompt, self.llm.name, self.sampling)
        found = self.journal.get(key) or self.journal.get_failure(key, run)
        if found is not None:
            return found
        batched = self.journal.find_batched(key) is not None
        return Completion(None, BATCHED if batched else OUT_OF_BUDGET, model=self.llm.name)

    def _count(self, completion: Completion) -> None:
        tally = self.tally
        tally.calls += 1
        tally.missing += completion.text is None
        tally.cut += completion.finish == "length"
        tally.overlong += completion.completion_tokens > self.sampling.max_tokens
        tally.prompt_tokens += completion.prompt_tokens
        tally.completion_tokens += completion.completion_tokens
        tally.seconds += completion.seconds
        tally.finishes[completion.finish] += 1


class _Meter:
    """Counts a pass and reports it."""

    def __init__(self, total: int | None, report: Callable[[Progress], None] | None, budget: Budget) -> None:
        self._total, self._report, self._budget = total, report, budget
        self._began = time.monotonic()
        self._reported = -1
        self.done = self.sent = 0

    def report(self) -> None:
        if self._report is not None and self.done != self._reported:
            self._reported = self.done
            seconds = time.monotonic() - self._began
            rate = self.sent / seconds if self.sent else 0.0
            self._report(Progress(self.done, self._total, self.sent, rate, self._budget.cost))

    def finish(self) -> None:
        self._total = self.done if self._total is None else self._total
        self.report()


def measure(completion: Completion) -> Usage | None:
    """Return what a completion says it used; None where it does not say."""
    if completion.prompt_tokens or completion.completion_tokens:
        return Usage(1, completion.prompt_tokens, completion.completion_tokens)
    return None


def _storable(completion: Completion) -> Completion:
    """Return what later runs will find: only that is handed on."""
    return completion if completion.text is None else replace(completion, text=storable(completion.text))
