"""Synthesis: queries in, labelled pairs out; every candidate that is not used is kept with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedsmith.artifacts import read_jsonl, write_jsonl
from embedsmith.corpus import Query
from embedsmith.errors import InputError
from embedsmith.examples import LabelledPair, Provenance, Rejected, read_examples, write_examples
from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling
from embedsmith.llm.journal import Journal, complete_durably
from embedsmith.llm.structured import parse_list
from embedsmith.synthesis.filters import CHECKS, LABEL, Context, index_evaluation, index_prompt, judge
from embedsmith.synthesis.recipes import TASKS, Recipe, load_recipe, render
from embedsmith.text import NearIndex, normalize

MOSTLY, OFTEN = 0.5, 0.1  # shares from which on a warning is due


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What the LLM was asked for and what came back.

    Attributes:
        calls: prompts of this run; `sent` of them went out now, the others came from the journal.
        missing: prompts without a completion (a recorded file lacks the row, or the call failed).
        cut: answers that the token limit ended.
        notes: how often an answer was empty, truncated, repaired or stripped of its thinking.
    """

    calls: int
    sent: int
    missing: int
    cut: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    notes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The examples of a log, and all that did not become one.

    Attributes:
        counts: rejected candidates and rows by reason, plus "kept".
        warnings: what the counts say of the language model, in whole sentences.
    """

    examples: tuple[LabelledPair, ...]
    rejected: tuple[Rejected, ...]
    counts: Mapping[str, int]
    calls: CallCounts

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each sign that the examples will not be worth much."""
        rejected = 1 - self.counts["kept"] / sum(self.counts.values())
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
        if self.calls.missing > OFTEN * self.calls.calls:
            said.append(f"{self.calls.missing} of {self.calls.calls} calls have no answer.")
        return tuple(said)


def synthesize(
    queries: Sequence[Query],
    *,
    llm: LanguageModel,
    recipe: str = "langcache",
    paraphrases: int = 3,
    distinct: int = 3,
    prompts: Path | str | None = None,
    sampling: Sampling | None = None,
    evaluation: Iterable[str] = (),
    out: Path | str | None = None,
    journal: Path | str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Synthesis:
    """Return labelled pairs (query, candidate, 1 or 0) that an LLM wrote for the queries.

    Every finished call is durable before it is used: a killed run repeats none of them, and the same
    completions give byte-identical files.

    Args:
        prompts: a prompts file of your own; see `synthesis/prompts/langcache.toml`.
        evaluation: texts that must not appear among the examples.
        out: folder for examples.jsonl, rejected.jsonl and, unless named by `journal`, journal.sqlite.
        on_progress: called with (finished calls, all calls).

    Raises:
        InputError: no query, or not one usable candidate.
        LanguageModelError: the LLM cannot be reached; finished calls stay in the journal.
    """
    if not queries:
        raise InputError("there is no query to write examples for", expected="at least one query")
    asked = load_recipe(recipe, paraphrases=paraphrases, distinct=distinct, prompts=prompts)
    sampling = sampling or Sampling()
    leaks, exact = index_evaluation(evaluation)
    usable, leaking = _drop_leaks(queries, leaks, exact)
    all_prompts = [prompt for query in usable for prompt in render(asked, query)]
    store = journal if journal is not None else (Path(out) / "journal.sqlite" if out is not None else ":memory:")
    with Journal(store) as opened:
        known = opened.count()
        completions = complete_durably(llm, all_prompts, sampling, opened, on_progress=on_progress)
        sent = opened.count() - known
    examples, rejected, notes = _sift(usable, asked, all_prompts, completions, sampling, leaks, exact)
    rejected = leaking + rejected
    if not examples:
        raise _nothing_usable(usable, rejected)
    result = Synthesis(
        tuple(examples),
        tuple(rejected),
        {"kept": len(examples), **_tally(rejected)},
        _count_calls(completions, sent, notes),
    )
    if out is not None:
        write_examples(Path(out) / "examples.jsonl", result.examples)
        write_jsonl(Path(out) / "rejected.jsonl", result.rejected)
    return result


def _nothing_usable(queries: Sequence[Query], rejected: Sequence[Rejected]) -> InputError:
    reasons = ", ".join(f"{count} × {reason}" for reason, count in _tally(rejected).items())
    return InputError(
        f"not one usable example came of {len(queries)} queries ({reasons or 'no answers'})",
        expected="answers with JSON lists of questions",
        action="look at rejected prompts with `embedsmith explain`; try another model",
    )


def _drop_leaks(
    queries: Sequence[Query], leaks: NearIndex, exact: frozenset[str]
) -> tuple[list[Query], list[Rejected]]:
    kept, dropped = [], []
    for query in queries:
        near = leaks.find(query.text)
        found = query.text if normalize(query.text) in exact else near[1] if near else None
        if found is None:
            kept.append(query)
        else:
            detail = f"the query is in the evaluation set: “{found}”"
            dropped.append(Rejected("evaluation-leak", detail, query.text, source=query.id))
    return kept, dropped


def _sift(
    queries: Sequence[Query],
    recipe: Recipe,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    sampling: Sampling,
    leaks: NearIndex,
    exact: frozenset[str],
) -> tuple[list[LabelledPair], list[Rejected], Counter[str]]:
    answers = {(prompt.row, prompt.task): (prompt, done) for prompt, done in zip(prompts, completions, strict=True)}
    elsewhere = {normalize(query.text): query.id for query in reversed(queries)}
    examples: list[LabelledPair] = []
    rejected: list[Rejected] = []
    notes: Counter[str] = Counter()
    for query in queries:
        accepted: dict[str, list[str]] = {task: [] for task in TASKS}
        for task in TASKS:
            if (query.id, task) not in answers:
                continue
            prompt, completion = answers[query.id, task]
            asked = index_prompt(prompt.user, query.text)
            context = Context(query, task, accepted, elsewhere, leaks, exact, asked)
            if completion.text is None:
                rejected.append(_unanswered(query, task, completion))
                continue
            parsed = parse_list(completion.text, task)
            notes.update(parsed.notes)
            rejected.extend(_shortfall(query, task, len(parsed.items), recipe, completion))
            for text in parsed.items[: recipe.counts[task]]:
                objection = judge(text, context)
                if objection is not None:
                    rejected.append(objection)
                    continue
                accepted[task].append(text.strip())
                elsewhere.setdefault(normalize(text), query.id)
                examples.append(_example(query, task, text.strip(), prompt, completion, sampling))
    return examples, rejected, notes


def _example(
    query: Query, task: str, text: str, prompt: Prompt, completion: Completion, sampling: Sampling
) -> LabelledPair:
    origin = Provenance(query.id, prompt.fingerprint, completion.model, sampling.seed, CHECKS)
    return LabelledPair(query.text, text, LABEL[task], group=query.id, provenance=origin)


def _unanswered(query: Query, task: str, completion: Completion) -> Rejected:
    reason = "no-completion" if completion.finish == "missing" else "no-answer"
    about = {"query": query.text, "task": task}
    return Rejected(reason, f"finish: {completion.finish}", source=query.id, context=about)


def _shortfall(query: Query, task: str, found: int, recipe: Recipe, completion: Completion) -> Iterator[Rejected]:
    """Yield a record when the answer held fewer texts than asked for, so that the gap is not silent."""
    asked = recipe.counts[task]
    if found < asked:
        about = {"query": query.text, "task": task}
        detail = f"{found} of {asked} texts; finish: {completion.finish}"
        yield Rejected("too-few", detail, (completion.text or "")[:500], source=query.id, context=about)


def _tally(rejected: Sequence[Rejected]) -> dict[str, int]:
    return dict(sorted(Counter(item.reason for item in rejected).items()))


def _count_calls(completions: Sequence[Completion], sent: int, notes: Counter[str]) -> CallCounts:
    return CallCounts(
        calls=len(completions),
        sent=sent,
        missing=sum(completion.text is None for completion in completions),
        cut=sum(completion.finish == "length" for completion in completions),
        prompt_tokens=sum(completion.prompt_tokens for completion in completions),
        completion_tokens=sum(completion.completion_tokens for completion in completions),
        seconds=round(sum(completion.seconds for completion in completions), 3),
        notes=dict(sorted(notes.items())),
    )


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is sent for one query, what came back, and what became of it."""

    query: Query
    prompts: tuple[Prompt, ...]
    completions: tuple[str | None, ...]
    kept: tuple[LabelledPair, ...]
    rejected: tuple[Rejected, ...]


def explain(
    queries: Sequence[Query],
    *,
    recipe: str = "langcache",
    paraphrases: int = 3,
    distinct: int = 3,
    prompts: Path | str | None = None,
    examples: Sequence[LabelledPair] = (),
    rejected: Sequence[Rejected] = (),
    completions: Mapping[str, str] | None = None,
) -> list[Explanation]:
    """Return, for each query, the prompts exactly as they are sent and what they led to.

    Args:
        examples, rejected: of a finished synthesis.
        completions: text of the completion by prompt fingerprint (`Journal.texts`).
    """
    asked = load_recipe(recipe, paraphrases=paraphrases, distinct=distinct, prompts=prompts)
    shown = []
    for query in queries:
        rendered = tuple(render(asked, query))
        kept = tuple(pair for pair in examples if pair.group == query.id)
        lost = tuple(item for item in rejected if item.source == query.id)
        texts = tuple((completions or {}).get(prompt.fingerprint) for prompt in rendered)
        shown.append(Explanation(query, rendered, texts, kept, lost))
    return shown


@dataclass(frozen=True, slots=True)
class StoredSynthesis:
    """What a finished synthesis left on disk."""

    examples: tuple[LabelledPair, ...]
    rejected: tuple[Rejected, ...]
    completions: Mapping[str, str]


def read_synthesis(folder: Path | str) -> StoredSynthesis:
    """Return the examples, the rejected candidates and the completions of the synthesis in `folder`."""
    folder = Path(folder)
    pairs = read_examples(folder / "examples.jsonl", kind=LabelledPair).examples
    lost = folder / "rejected.jsonl"
    rows = [Rejected(**row) for _, row in read_jsonl(lost)] if lost.exists() and lost.stat().st_size else []
    with Journal(folder / "journal.sqlite") as journal:
        texts = journal.texts()
    return StoredSynthesis(tuple(pair for pair in pairs if isinstance(pair, LabelledPair)), tuple(rows), texts)
