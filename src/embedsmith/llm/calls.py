"""Calls: prompts in, completions out in the order of the prompts; durable, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling
from embedsmith.llm.journal import Journal, complete_durably


@dataclass(slots=True)
class CallTally:
    """What was asked and what came back, so far.

    Attributes:
        calls: prompts; `sent` of them went out in this run, the others came from the journal.
        missing: prompts without a completion. cut: answers that the token limit ended.
    """

    calls: int = 0
    sent: int = 0
    missing: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finishes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)  # a recipe's own counts: answers repaired, cut, empty


class Calls:
    """A language model, its journal and its sampling as one thing that a recipe asks.

    A recipe asks once per step: all calls of the step are finished (or failed for good) before the first
    completion is handed on, and completions come in the order of the prompts, whatever order they arrived in.
    """

    def __init__(
        self,
        llm: LanguageModel,
        journal: Journal,
        sampling: Sampling | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.llm, self.journal = llm, journal
        self.sampling = sampling or Sampling()
        self.tally = CallTally()
        self._on_progress = on_progress

    def complete(self, prompts: Callable[[], Iterable[Prompt]]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield (prompt, completion) in the order of the prompts.

        Args:
            prompts: gives the same prompts in the same order each time it is called; it is called more than once,
                so that a million prompts need not be in memory.
        """
        asked = list(prompts())
        known = self.journal.count()
        done = complete_durably(self.llm, asked, self.sampling, self.journal, on_progress=self._on_progress)
        self.tally.sent += self.journal.count() - known
        for prompt, completion in zip(asked, done, strict=True):
            self._count(completion)
            yield prompt, completion

    def _count(self, completion: Completion) -> None:
        tally = self.tally
        tally.calls += 1
        tally.missing += completion.text is None
        tally.cut += completion.finish == "length"
        tally.prompt_tokens += completion.prompt_tokens
        tally.completion_tokens += completion.completion_tokens
        tally.seconds += completion.seconds
        tally.finishes[completion.finish] += 1
