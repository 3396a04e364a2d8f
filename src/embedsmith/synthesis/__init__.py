"""Synthesis: queries in, labelled pairs out; every candidate that is not used is kept with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedsmith.corpus import Query
from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, Rejected, read_examples
from embedsmith.llm import LanguageModel, Prompt, Sampling
from embedsmith.llm.budget import Budget
from embedsmith.llm.calls import Calls, Progress
from embedsmith.llm.journal import Journal
from embedsmith.synthesis.langcache import synthesize_langcache
from embedsmith.synthesis.outcome import EXAMPLES, REJECTED, Synthesis, collect, read_rejected
from embedsmith.synthesis.pair_judge import ask_about
from embedsmith.synthesis.recipes import load_recipe, render

__all__ = [
    "Explanation",
    "StoredSynthesis",
    "Synthesis",
    "explain",
    "read_synthesis",
    "synthesize",
]


def synthesize(
    queries: Sequence[Query],
    *,
    llm: LanguageModel,
    recipe: str = "langcache",
    paraphrases: int = 3,
    distinct: int = 3,
    edits: int = 0,
    judge: bool = False,
    prompts: Path | str | None = None,
    sampling: Sampling | None = None,
    budget: Budget | None = None,
    evaluation: Iterable[str] = (),
    out: Path | str | None = None,
    journal: Path | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Synthesis:
    """Return labelled pairs (query, candidate, 1 or 0) that an LLM wrote for the queries.

    Every finished call is durable before it is used: a killed run repeats none of them, and the same
    completions give byte-identical files.

    Args:
        edits: near misses a query, at most, that are the query with one fact changed; no call is made for them.
        judge: the language model says of each pair if one answer serves both; pairs with a wrong label are rejected.
        prompts: a prompts file of your own; see `synthesis/prompts/langcache.toml`.
        budget: what may be spent, over all runs with this journal.
        evaluation: texts that must not appear among the examples.
        out: folder for examples.jsonl, rejected.jsonl and, unless named by `journal`, journal.sqlite.
        on_progress: called as calls end.

    Raises:
        InputError: no query, or not one usable candidate.
        LanguageModelError: the LLM cannot be reached; finished calls stay in the journal.
    """
    if not queries:
        raise InputError("there is no query to write examples for", expected="at least one query")
    seed = (sampling or Sampling()).seed or 0
    counts = {"paraphrases": paraphrases, "distinct": distinct, "edits": edits}
    asked = load_recipe(recipe, **counts, prompts=prompts, judge=judge, seed=seed)
    store = journal if journal is not None else (Path(out) / "journal.sqlite" if out is not None else ":memory:")
    with Journal(store) as opened:
        calls = Calls(llm, opened, sampling, budget=budget, on_progress=on_progress)
        return collect(synthesize_langcache(asked, queries, calls, evaluation=evaluation), calls, out=out)


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
    paraphrases: int = 3,
    distinct: int = 3,
    prompts: Path | str | None = None,
    examples: Sequence[Example] = (),
    rejected: Sequence[Rejected] = (),
    completions: Mapping[str, str] | None = None,
) -> list[Explanation]:
    """Return, for each query, the prompts exactly as they are sent and what they led to.

    Where a judge was asked about its pairs, these prompts and verdicts follow.

    Args:
        examples, rejected: of a finished synthesis; examples of other recipes belong to no query, and are passed over.
        completions: text of the completion by prompt fingerprint (`Journal.texts`).
    """
    asked = load_recipe(paraphrases=paraphrases, distinct=distinct, prompts=prompts)
    shown = []
    for query in queries:
        rendered = tuple(render(asked, query))
        kept = tuple(one for one in examples if isinstance(one, LabelledPair) and one.group == query.id)
        lost = tuple(item for item in rejected if item.source == query.id)
        rendered += tuple(prompt for prompt in ask_about(kept, lost) if prompt.fingerprint in (completions or {}))
        texts = tuple((completions or {}).get(prompt.fingerprint) for prompt in rendered)
        shown.append(Explanation(query, rendered, texts, kept, lost))
    return shown


@dataclass(frozen=True, slots=True)
class StoredSynthesis:
    """What a finished synthesis left on disk."""

    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    completions: Mapping[str, str]


def read_synthesis(folder: Path | str) -> StoredSynthesis:
    """Return the examples, the rejected candidates and the completions of the synthesis in `folder`, of any recipe.

    A synthesis of which nothing could be used has no examples; another run may be writing its journal.

    Raises:
        InputError: the folder holds no synthesis.
    """
    folder = Path(folder)
    written = folder / EXAMPLES
    empty = written.is_file() and not written.stat().st_size
    examples = () if empty else read_examples(written).examples
    with Journal(folder / "journal.sqlite", writable=False) as journal:
        texts = journal.texts()
    return StoredSynthesis(tuple(examples), read_rejected(folder / REJECTED), texts)
