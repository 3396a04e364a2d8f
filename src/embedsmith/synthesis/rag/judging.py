"""The third step, where a judge is asked: whether the passages answer the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from embedsmith.documents import Passage
from embedsmith.examples import Example, Rejected
from embedsmith.llm import Completion, Prompt
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.rag.answers import read_verdicts
from embedsmith.synthesis.rag.candidates import SHOWN, Candidate, Spool, reject, to_examples
from embedsmith.synthesis.rag.checks import find_span
from embedsmith.synthesis.rag.plan import RagPlan
from embedsmith.synthesis.rag.prompts import VERDICTS, RagPrompts, in_judged_order, render_judge

JUDGED = 4  # passages beside the sources that a judge is shown


def judge_candidates(
    plan: RagPlan, passages: Sequence[Passage], prompts: RagPrompts, waiting: Spool, judge: Calls, seed: int | None
) -> Iterator[Example | Rejected]:
    def render() -> Iterator[Prompt]:
        for candidate in waiting:
            yield render_judge(prompts, candidate.question, [passages[place] for place in _shown(candidate)])

    asked = judge.complete(render)
    for candidate, (_, completion) in zip(waiting, asked, strict=True):
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
    places = _shown(candidate)
    by_id = {passages[place].id: place for place in places}
    order = in_judged_order(candidate.question, [passages[place] for place in places])
    said = read_verdicts(completion.text, VERDICTS)
    verdicts = {by_id[passage.id]: said[number] for number, passage in enumerate(order, start=1) if number in said}
    enough = ("yes",) if len(candidate.sources) == 1 else ("yes", "partly")
    for place in candidate.sources:
        if place not in verdicts:
            return reject("not-judged", f"no verdict; finish: {completion.finish}", candidate, passages)
        told = verdicts[place]
        if told.verdict not in enough:
            return reject("unanswerable", f"the judge says “{told.verdict}”", candidate, passages)
        if find_span(told.span, passages[place].text, edits=plan.span_edits) is None:
            detail = f"the judge's span “{told.span[:SHOWN]}” is not in the passage"
            return reject("unanswerable", detail, candidate, passages)
    whys = dict(candidate.positives)
    confirmed = tuple(
        (place, f"{whys[place]}; confirmed by the judge" if place in whys else "the judge says yes")
        for place in places[len(candidate.sources) :]
        if place in verdicts
        and verdicts[place].verdict == "yes"
        and find_span(verdicts[place].span, passages[place].text, edits=plan.span_edits) is not None
    )
    evidence = (*candidate.evidence, f"judge={verdicts[candidate.sources[0]].verdict}")
    return replace(candidate, positives=confirmed, evidence=evidence)
