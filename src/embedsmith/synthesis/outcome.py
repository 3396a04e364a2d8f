"""What came of a synthesis: the stream of a recipe into files, counted, as it comes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from embedsmith.artifacts import JsonLines, read_jsonl
from embedsmith.errors import InputError
from embedsmith.examples import Example, Rejected, read_examples, to_row
from embedsmith.llm import FAILURES
from embedsmith.llm.calls import Calls, CallTally

MOSTLY, OFTEN = 0.5, 0.1  # shares from which on a warning is due
# Rows that no language model wrote for, and texts that nobody asked for: neither says how well it writes.
UNWRITTEN = frozenset(FAILURES.values()) | {"no-answer", "no-task", "surplus"}
EXAMPLES, REJECTED = "examples.jsonl", "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The examples of a log, and all that did not become one.

    Attributes:
        counts: rejected candidates and rows by reason, plus "kept".
        calls: what the language model was asked and what came back.
        written_by: examples by who wrote them: language models by name, "controlled-edits".
        folder: where examples and rejected rows are; None when they are held here.
    """

    counts: Mapping[str, int]
    calls: CallTally
    written_by: Mapping[str, int]
    folder: Path | None
    held: tuple[Example | Rejected, ...] = ()

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples, read from the file where there is one."""
        if self.folder is not None:
            return read_examples(self.folder / EXAMPLES).examples
        return tuple(row for row in self.held if not isinstance(row, Rejected))

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """The rejected candidates and rows, read from the file where there is one."""
        if self.folder is not None:
            return read_rejected(self.folder / REJECTED)
        return tuple(row for row in self.held if isinstance(row, Rejected))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each sign that the examples will not be worth much."""
        written = {reason: count for reason, count in self.counts.items() if reason not in UNWRITTEN}
        rejected = 1 - self.counts["kept"] / sum(written.values())
        said = []
        if rejected > MOSTLY:
            said.append(
                f"{rejected:.0%} of what the language model wrote was rejected. It is too weak for this job, or the "
                "prompts do not suit it; expect little of a model trained on the rest."
            )
        if self.calls.cut > OFTEN * self.calls.calls:
            said.append(
                f"{self.calls.cut} of {self.calls.calls} answers ended at the token limit (models that think need "
                "more of them): raise --max-tokens."
            )
        if self.calls.overlong:
            said.append(
                f"{self.calls.overlong} of {self.calls.calls} answers are longer than --max-tokens: the server "
                "ignores it or counts otherwise. Once that is seen, a budget reserves as much for each call."
            )
        if self.calls.missing > OFTEN * self.calls.calls:
            said.append(f"{self.calls.missing} of {self.calls.calls} calls have no answer.")
        return tuple(said)


def collect(
    rows: Iterable[Example | Rejected],
    calls: Calls,
    *,
    out: Path | str | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> Synthesis:
    """Return what came of a recipe; with `out`, its rows go to examples.jsonl and rejected.jsonl as they come.

    Both files appear whole, when the last row is there; nothing of them is held in memory.

    Args:
        on_row: called with (examples kept, candidates rejected) after each row.

    Raises:
        InputError: not one example came of it; the rejected rows are written.
    """
    counts: Counter[str] = Counter()
    writers: Counter[str] = Counter()
    kept, held = 0, []
    with ExitStack() as opened:
        files = (
            {name: opened.enter_context(JsonLines(Path(out) / name)) for name in (EXAMPLES, REJECTED)} if out else {}
        )
        for row in rows:
            if isinstance(row, Rejected):
                counts[row.reason] += 1
            else:
                kept += 1
                writers[row.provenance.model if row.provenance is not None else ""] += 1
            if out is None:
                held.append(row)
            elif isinstance(row, Rejected):
                files[REJECTED].write(row)
            else:
                files[EXAMPLES].write(to_row(row))
            if on_row is not None:
                on_row(kept, counts.total())
    if not kept:
        raise _nothing_usable(counts, out)
    folder = Path(out) if out is not None else None
    about = {"kept": kept, **dict(sorted(counts.items()))}
    return Synthesis(about, deepcopy(calls.tally), dict(sorted(writers.items())), folder, tuple(held))


def _nothing_usable(counts: Counter[str], out: Path | str | None) -> InputError:
    reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(counts.items()))
    shown = "look at what was sent and what came back: `embedsmith synthesize … --pilot 3`"
    if out is not None:
        place = shlex.quote(str(out))
        shown += f", or, for the queries of a log, `embedsmith explain LOG --synthesis {place}`; the reasons are in "
        shown += shlex.quote(str(Path(out) / REJECTED))
    return InputError(
        f"not one usable example came of it ({reasons or 'no answers'})",
        expected="answers in the form that the prompts ask for",
        action=f"{shown}. Or try another model",
    )


def read_rejected(path: Path | str) -> tuple[Rejected, ...]:
    """Return the rejected rows of a file; none when it is empty or missing."""
    path = Path(path)
    if not path.exists() or not path.stat().st_size:
        return ()
    return tuple(Rejected(**row) for _, row in read_jsonl(path))
