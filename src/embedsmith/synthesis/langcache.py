"""The recipe langcache: for each query paraphrases (label 1) and near-miss questions (label 0), each in one call.

A query may be a conversation; then whole conversations are written. Near misses by controlled edits need no call;
conversations have none, since an edit may hit what the assistant said. Where a judge is wanted, every pair that passed
the filters is judged in a second step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from embedsmith.conversation import is_conversation
from embedsmith.corpus import Query, require_own_ids
from embedsmith.examples import LabelledPair, Provenance, Rejected
from embedsmith.facts import raises_nouns
from embedsmith.leakage import LeakIndex
from embedsmith.llm import Completion, Prompt, describe_finish, name_failure
from embedsmith.llm.calls import Calls
from embedsmith.llm.structured import parse_list
from embedsmith.synthesis.edits import Edit, collect_names, draw_edits
from embedsmith.synthesis.filters import CHECKS, LABEL, LONGEST, Context, index_prompt, is_too_long, judge
from embedsmith.synthesis.pair_judge import judge_pairs
from embedsmith.synthesis.recipes import TASKS, Recipe, render
from embedsmith.synthesis.refusals import find_declined, find_refusal
from embedsmith.text import normalize

SHOWN = 500  # characters of an answer in a record
EDITED = "controlled-edits"  # in the place of the model's name: nobody was asked


def synthesize_langcache(
    recipe: Recipe, queries: Sequence[Query], calls: Calls, *, evaluation: Iterable[str] = ()
) -> Iterator[LabelledPair | Rejected]:
    """Yield labelled pairs (query, candidate, 1 or 0) in the order of the log, and what was rejected.

    Args:
        evaluation: texts that must not appear among the examples; a query that is one of them is not asked about, nor
            is one of more than 2,000 characters.
    """
    require_own_ids(queries)
    leaks = LeakIndex(evaluation, same_kind=True)
    usable: list[Query] = []
    for query in queries:
        objection = _find_objection(query, leaks)
        if objection is None:
            usable.append(query)
        else:
            yield objection
    found = _write(_Sieve(recipe, usable, leaks, calls))
    yield from judge_pairs(found, calls) if recipe.judge else found


def _write(sieve: _Sieve) -> Iterator[LabelledPair | Rejected]:
    """Yield what becomes of the answers about each query, then of its edits, in the order of the log."""
    recipe, queries = sieve.recipe, sieve.queries
    asked = [task for task in TASKS if recipe.counts[task]]
    names = collect_names(query.text for query in queries) if recipe.edits else {}
    prompts = partial(_render_all, recipe, queries)
    for prompt, completion in sieve.calls.complete(prompts, total=len(queries) * len(asked)):
        yield from sieve.read(prompt, completion)
        query = sieve.by_id[prompt.row]
        if recipe.edits and prompt.task == asked[-1] and not is_conversation(query.text):
            yield from sieve.take(query, draw_edits(query.text, names, seed=recipe.seed)[: recipe.edits])


def _render_all(recipe: Recipe, queries: Sequence[Query]) -> Iterator[Prompt]:
    return chain.from_iterable(render(recipe, query) for query in queries)


def _find_objection(query: Query, leaks: LeakIndex) -> Rejected | None:
    """Return why nothing is asked about a query."""
    if is_too_long(query.text):
        detail = f"{len(query.text)} characters, {LONGEST} at most: no paraphrase of it would pass"
        return Rejected("too-long", detail, query.text, source=query.id)
    found = leaks.find(query.text)
    if found is None:
        return None
    return Rejected("evaluation-leak", f"the query is in the evaluation set: {found}", query.text, source=query.id)


@dataclass(slots=True)
class _Sieve:
    """Reads the answers in the order of the log; what a filter has to know of other rows is kept here."""

    recipe: Recipe
    queries: Sequence[Query]
    leaks: LeakIndex
    calls: Calls
    by_id: dict[str, Query] = field(init=False)
    elsewhere: dict[str, str] = field(init=False)
    nouns_raised: bool = field(init=False)
    row: str | None = None
    accepted: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id = {query.id: query for query in self.queries}
        self.nouns_raised = raises_nouns(query.text for query in self.queries)
        self.elsewhere = {normalize(query.text): query.id for query in reversed(self.queries)}

    def read(self, prompt: Prompt, completion: Completion) -> Iterator[LabelledPair | Rejected]:
        query, task = self.by_id[prompt.row], prompt.task
        if prompt.row != self.row:
            self.row, self.accepted = prompt.row, {task: [] for task in TASKS}
        if completion.text is None:
            yield unanswered(query, task, completion)
            return
        parsed = parse_list(completion.text, task, others=TASKS)
        self.calls.tally.notes.update(parsed.notes)
        refused = find_declined(completion.text) if "not-json" in parsed.notes else ""
        if refused and not find_refusal(query.text):
            yield _note("refusal", f"“{refused}”", query, task, completion.text)
            return
        asked, found = self.recipe.counts[task], len(parsed.items)
        if found < asked:
            detail = f"{found} of {asked} texts; finish: {completion.finish}"
            yield _note("too-few", detail, query, task, completion.text)
        known = self._know(query, task, index_prompt(prompt.user, query.text))
        origin = Provenance(query.id, prompt.fingerprint, completion.model, self.calls.sampling.seed, CHECKS)
        for text in parsed.items[:asked]:
            objection = judge(text, known)
            yield objection if objection is not None else self._accept(text.strip(), query, task, origin)
        if found > asked:
            detail = f"{found} texts where {asked} were asked for; {found - asked} not read"
            yield _note("surplus", detail, query, task, "\n".join(parsed.items[asked:]))

    def take(self, query: Query, edits: Iterable[Edit]) -> Iterator[LabelledPair | Rejected]:
        """Yield what the same filters say of edits of the query whose answers were read last."""
        known = self._know(query, "distinct")
        for edit in edits:
            objection = judge(edit.text, known)
            found = (f"edit={edit.kind}", f"grade={edit.grade}", f"change={edit.detail}")
            if objection is not None:
                yield replace(objection, context={**objection.context, "written_by": EDITED, "edit": edit.detail})
                continue
            origin = Provenance(query.id, "", EDITED, self.recipe.seed, (*CHECKS, *found))
            yield self._accept(edit.text, query, "distinct", origin)

    def _know(self, query: Query, task: str, asked: frozenset[str] = frozenset()) -> Context:
        return Context(query, task, self.accepted, self.elsewhere, self.leaks, asked, self.nouns_raised)

    def _accept(self, text: str, query: Query, task: str, origin: Provenance) -> LabelledPair:
        self.accepted[task].append(text)
        self.elsewhere.setdefault(normalize(text), query.id)
        return LabelledPair(query.text, text, LABEL[task], group=query.id, provenance=origin)


def unanswered(query: Query, task: str, completion: Completion) -> Rejected:
    """Return the record of a call that has no answer."""
    reason = name_failure(completion)
    about = {"query": query.text, "task": task}
    return Rejected(reason, describe_finish(completion), source=query.id, context=about)


def _note(reason: str, detail: str, query: Query, task: str, text: str) -> Rejected:
    """Return a record about a whole answer, so that nothing of it is lost in silence."""
    return Rejected(reason, detail, text[:SHOWN], source=query.id, context={"query": query.text, "task": task})
