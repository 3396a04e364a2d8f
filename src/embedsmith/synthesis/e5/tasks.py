"""The first step: brainstormed tasks, chosen for rows, none twice; kept in files, not in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

from embedsmith.artifacts import Spool
from embedsmith.examples import Rejected
from embedsmith.llm import Completion
from embedsmith.llm.structured import parse_list
from embedsmith.synthesis.e5.answers import explain_absence
from embedsmith.synthesis.e5.filters import template_runs
from embedsmith.synthesis.e5.plan import TWO_STEPS, E5Plan, Row
from embedsmith.synthesis.e5.prompting import TASKS, Templates
from embedsmith.synthesis.refusals import find_declined, find_refusal
from embedsmith.text import normalize, runs_of, words

FEWEST_WORDS, FEWEST_LETTERS, MOST_CHARACTERS = 4, 12, 500
ECHOED = 0.8  # share of a task's runs of three words that are the prompt's; tasks begin alike, echoes go on alike
NUMBERED = re.compile(r"^\s*(?:task\s*)?\d+\s*[.):]\s*|^\s*[-*•]\s+", re.I)
# Small models talk about what they were asked ("Create a list of tasks"), with bullets that look like a list.
SPEAKS_OF_TASKS = re.compile(r"\b(?:tasks?|sentences?|topics?)\b", re.I)
PIECE = re.compile(r"\{\w+\}|\[[a-z_ ]+\]|^\W*(?:string|task|tasks)\W*\d*\W*$", re.I)


class TaskChooser:
    """Takes tasks out of brainstorms; each task once in a group, whatever topic it came from.

    What stays in memory is eight bytes of a hash for each task chosen.
    """

    def __init__(self, plan: E5Plan, templates: Templates) -> None:
        self._plan = plan
        self._chosen: dict[str, set[bytes]] = {group: set() for group in TWO_STEPS}
        self._runs = {group: template_runs(template) for group, template in templates.brainstorms.items()}

    def choose(self, call: Row, completion: Completion) -> tuple[list[str | None], list[Rejected]]:
        """Return a task or None for each row of the call, and what was not taken and why.

        Tasks are tried in an order that chance gives: the first ideas of a model are everybody's.
        """
        found, rejected = read_tasks(call, completion, self._runs[call.group])
        call.stream(self._plan.seed, "choice").shuffle(found)
        chosen: list[str | None] = []
        for task in found:
            if len(chosen) == self._plan.used:
                break
            mark = _mark(task)
            if mark in self._chosen[call.group]:
                rejected.append(_reject(call, "repeated-task", "an earlier call has it", task))
                continue
            self._chosen[call.group].add(mark)
            chosen.append(task)
        return chosen + [None] * (self._plan.used - len(chosen)), rejected


def read_tasks(
    call: Row, completion: Completion, shown: frozenset[str] = frozenset()
) -> tuple[list[str], list[Rejected]]:
    """Return the usable tasks of a brainstorm in the order of the answer, and the others with reasons.

    Args:
        shown: runs of three words of the prompt.
    """
    absence = explain_absence(completion)
    if absence is not None:
        return [], [_reject(call, *absence)]
    text = completion.text or ""
    parsed = parse_list(text, TASKS)
    declined = find_declined(text) if "not-json" in parsed.notes else ""
    if declined or not parsed.items:
        refused = declined or find_refusal(text)
        detail = f"“{refused}”" if refused else f"{', '.join(parsed.notes)}; finish: {completion.finish}"
        return [], [_reject(call, "refusal" if refused else "no-tasks", detail, text[:500])]
    kept: dict[bytes, str] = {}
    rejected = []
    for item in parsed.items:
        task = NUMBERED.sub("", " ".join(item.split())).strip()
        reason, detail = _object_to(task, shown)
        if not reason and "not-json" in parsed.notes and SPEAKS_OF_TASKS.search(task):
            reason, detail = "malformed-task", "speaks of tasks, in an answer without JSON"
        mark = _mark(task)
        if not reason and mark in kept:
            reason, detail = "repeated-task", "twice in one answer"
        if reason:
            rejected.append(_reject(call, reason, detail, item))
        else:
            kept[mark] = task
    return list(kept.values()), rejected


def _object_to(task: str, shown: frozenset[str]) -> tuple[str, str]:
    if len(task) > MOST_CHARACTERS:
        return "malformed-task", f"{len(task)} characters"
    if PIECE.search(task):
        return "prompt-echo", "a piece of the prompt"
    if len(words(task)) < FEWEST_WORDS and sum(map(str.isalpha, task)) < FEWEST_LETTERS:
        return "malformed-task", f"{len(words(task))} words"
    if refused := find_refusal(task):
        return "refusal", f"“{refused}”"
    runs = runs_of(task)
    shared = sum(run in shown for run in runs)
    if runs and shared > ECHOED * len(runs):
        return "prompt-echo", f"{shared} of {len(runs)} runs of three words are the prompt's"
    return "", ""


def _mark(task: str) -> bytes:
    """Return eight bytes that are the same for tasks of the same words, whatever their order."""
    found = sorted(set(words(task))) or [normalize(task)]
    return blake2b(" ".join(found).encode("utf-8", "replace"), digest_size=8).digest()


def _reject(call: Row, reason: str, detail: str, text: str = "") -> Rejected:
    about = {"step": "brainstorm", "group": call.group}
    return Rejected(reason, detail, text, source=f"{call.id}/tasks", context=about)


Tasks = Mapping[str, Spool[str | None]]  # by group, in the order of its rows; None where a row has none


def pair_tasks(rows: Iterable[Row], tasks: Tasks) -> Iterator[tuple[Row, str | None]]:
    """Yield each row with its task; "" in groups without tasks."""
    read = {group: iter(spool) for group, spool in tasks.items()}
    for row in rows:
        yield row, next(read[row.group]) if row.group in read else ""
