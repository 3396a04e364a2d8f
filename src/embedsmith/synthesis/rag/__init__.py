"""The recipe `rag`: passages in; questions with the passages that answer them out, every lost one with its reason.

One call asks for the questions about a passage, another one for those that need several passages, a judge's call
(where one is wanted) whether passages answer. All else is filters: a changed filter costs no call. Between the steps
questions wait in a temporary file, so memory is bounded by the passages and what the filter of repeats has to know.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from embedsmith.artifacts import Spool
from embedsmith.documents import Passage
from embedsmith.encoder import Encoder
from embedsmith.errors import InputError
from embedsmith.examples import Example, Rejected
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.rag.asking import ask, render_targets
from embedsmith.synthesis.rag.candidates import candidate_from, read_evidence, to_examples
from embedsmith.synthesis.rag.checks import sum_up
from embedsmith.synthesis.rag.judging import judge_candidates
from embedsmith.synthesis.rag.placing import gather_repeats, place_candidates
from embedsmith.synthesis.rag.plan import RagPlan, choose_passages
from embedsmith.synthesis.rag.prompts import load_prompts
from embedsmith.synthesis.rag.search import PassageSearch, embed_passages

__all__ = [
    "PassageSearch",
    "RagPlan",
    "choose_passages",
    "embed_passages",
    "read_evidence",
    "render_targets",
    "synthesize_rag",
]


def synthesize_rag(
    plan: RagPlan,
    passages: Iterable[Passage],
    calls: Calls,
    *,
    encoder: Encoder | None = None,
    evaluation: Iterable[str] = (),
    judge_calls: Calls | None = None,
    cache: Path | str | None = None,
) -> Iterator[Example | Rejected]:
    """Yield a `PositivePair` for each question and passage that answers it, and a `Rejected` for all that is lost.

    A question with several positives gives one pair for each, in a row, with the same anchor and group: batches join
    them into one row. The group is the id of the (first) source passage. What the filters found is in
    `provenance.checks`: after the names of the filters `style=…`, `passage=…` (id of the positive), `positive=source`
    or why it is one, `span=…`, `rank.encoder=…`, `rank.bm25=…` (`read_evidence`); of questions over several passages
    also why these stand together: `together=neighbours`, or `together=bm25` across documents.

    Args:
        encoder: the base, for the round trip and for other passages that answer; None leaves it to BM25.
        evaluation: queries that must not be among the questions.
        judge_calls: a language model that says whether passages answer; None takes `calls` if `plan.judge`.
        cache: file for the vectors of the passages, e.g. `passages.npz` in the run folder.

    Raises:
        InputError: no passage, or two with the same id.
        LanguageModelError: a language model cannot be reached; finished calls stay in the journal.
    """
    known = _require_passages(passages)
    prompts = load_prompts(plan.prompts)
    judge = judge_calls or (calls if plan.judge else None)
    with Spool(candidate_from) as waiting, Spool(candidate_from) as judged:
        sums = array("Q")
        for item in ask(plan, known, prompts, calls, evaluation):
            if isinstance(item, Rejected):
                yield item
            else:
                waiting.add(item)
                sums.append(sum_up(item.question))
        if not sums:
            return
        repeats = gather_repeats(waiting, sums)
        for found in place_candidates(plan, known, waiting, sums, repeats, encoder, cache):
            if isinstance(found, Rejected):
                yield found
            elif judge is None:
                yield from to_examples(found, known, calls.sampling.seed)
            else:
                judged.add(found)
        if judge is not None:
            yield from judge_candidates(plan, known, prompts, judged, judge, calls.sampling.seed)


def _require_passages(passages: Iterable[Passage]) -> list[Passage]:
    known = list(passages)
    if not known:
        raise InputError("there is no passage to ask about", expected="at least one", action="look at the documents")
    ids: set[str] = set()
    for passage in known:
        if passage.id in ids:
            raise InputError(f"two passages have the id {passage.id!r}", expected="an id of its own for each passage")
        ids.add(passage.id)
    return known
