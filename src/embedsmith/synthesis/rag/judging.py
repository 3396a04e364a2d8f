"""The third step, where a judge is asked: whether the passages answer the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from embedsmith.artifacts import Spool
from embedsmith.documents import Passage
from embedsmith.examples import Example, Rejected
from embedsmith.llm import Completion, Prompt, describe_finish, name_failure
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.rag.answers import Verdict, read_verdicts
from embedsmith.synthesis.rag.candidates import SHOWN, Candidate, reject, to_examples
from embedsmith.synthesis.rag.checks import find_span
from embedsmith.synthesis.rag.plan import RagPlan
from embedsmith.synthesis.rag.prompts import VERDICTS, RagPrompts, in_judged_order, render_judge

JUDGED = 4  # passages beside the sources that a judge is shown


def judge_candidates(
    plan: RagPlan,
    passages: Sequence[Passage],
    prompts: RagPrompts,
    waiting: Spool[Candidate],
    judge: Calls,
    seed: int | None,
) -> Iterator[Example | Rejected]:
    """Yield the examples of each candidate whose passages the judge finds to answer, or a rejection; in order."""

    def render() -> Iterator[Prompt]:
        for candidate in waiting:
            yield render_judge(prompts, candidate.question, [passages[place] for place in _shown(candidate)])

    for candidate, (_, completion) in zip(waiting, judge.complete(render), strict=True):
        verdict = _hear(plan, passages, candidate, completion)
        if isinstance(verdict, Rejected):
            yield verdict
        else:
            yield from to_examples(verdict, passages, seed)


def _shown(candidate: Candidate) -> list[int]:
    """Return the places of the passages that a judge is shown: the sources first, then those in question."""
    others = [*(place for place, _ in candidate.positives), *candidate.asked]
    return [*candidate.sources, *others[:JUDGED]]


def _hear(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, completion: Completion
) -> Candidate | Rejected:
    """Return the candidate with the positives that the judge confirms, or why it is not one."""
    if completion.text is None:
        return reject(name_failure(completion), f"no verdict; {describe_finish(completion)}", candidate, passages)
    verdicts = _assign(candidate, passages, completion)
    enough = ("yes",) if len(candidate.sources) == 1 else ("yes", "partly")
    for place in candidate.sources:
        if place not in verdicts:
            return reject("not-judged", f"no verdict; finish: {completion.finish}", candidate, passages)
        if verdicts[place].verdict not in enough:
            return reject("unanswerable", f"the judge says “{verdicts[place].verdict}”", candidate, passages)
        if not _quotes(verdicts[place], passages[place], plan):
            detail = f"the judge's span “{verdicts[place].span[:SHOWN]}” is not in the passage"
            return reject("unanswerable", detail, candidate, passages)
    evidence = (*candidate.evidence, f"judge={verdicts[candidate.sources[0]].verdict}")
    return replace(candidate, positives=_confirm(plan, passages, candidate, verdicts), evidence=evidence)


def _assign(candidate: Candidate, passages: Sequence[Passage], completion: Completion) -> dict[int, Verdict]:
    """Return the verdicts by place of the passage."""
    places = {passages[place].id: place for place in _shown(candidate)}
    order = in_judged_order(candidate.question, [passages[place] for place in places.values()])
    said = read_verdicts(completion.text, VERDICTS)
    return {places[passage.id]: said[number] for number, passage in enumerate(order, start=1) if number in said}


def _confirm(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, verdicts: Mapping[int, Verdict]
) -> tuple[tuple[int, str], ...]:
    """Return the further positives: those found before, unless the judge denies them, and those that it names."""
    kept = []
    for place, why in candidate.positives:
        if place not in verdicts:
            kept.append((place, why))
        elif verdicts[place].verdict == "yes":
            kept.append((place, f"{why}; the judge says yes"))
    named = (place for place in candidate.asked if place in verdicts and verdicts[place].verdict == "yes")
    kept += [(place, "the judge says yes") for place in named if _quotes(verdicts[place], passages[place], plan)]
    return tuple(kept)


def _quotes(verdict: Verdict, passage: Passage, plan: RagPlan) -> bool:
    return find_span(verdict.span, passage.text, edits=plan.span_edits) is not None
