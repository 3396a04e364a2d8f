"""The first step: an LLM writes questions; what can be said of each question and its passages alone is checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from embedsmith.corpus import Query
from embedsmith.documents import Passage
from embedsmith.examples import Rejected
from embedsmith.leakage import LeakIndex
from embedsmith.llm import Completion, Prompt, describe_finish, name_failure
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.filters import (
    Context,
    check_echo,
    check_form,
    check_leak,
    check_refusal,
    index_prompt,
)
from embedsmith.synthesis.rag.answers import Asked, Unusable, read_questions
from embedsmith.synthesis.rag.candidates import SHOWN, Candidate
from embedsmith.synthesis.rag.checks import find_reference, find_repeat, find_span, gives_answer_away, measure_copy
from embedsmith.synthesis.rag.plan import MULTI, RagPlan, choose_passages, choose_sets
from embedsmith.synthesis.rag.prompts import (
    MULTI_QUESTIONS,
    QUESTIONS,
    RagPrompts,
    load_prompts,
    render_multi,
    render_questions,
)

SURPLUS = 2  # times as many questions as asked for are read; a model that loops writes more


def render_targets(plan: RagPlan, passages: Sequence[Passage]) -> Iterator[tuple[list[Passage], Prompt]]:
    """Yield the prompts of the first step, as they are sent, each with the passages that it asks about."""
    prompts = load_prompts(plan.prompts)
    for places in _targets(plan, passages):
        own = [passages[place] for place in places]
        yield own, _render(prompts, plan, own)


def ask(
    plan: RagPlan, passages: Sequence[Passage], prompts: RagPrompts, calls: Calls, evaluation: Iterable[str]
) -> Iterator[Candidate | Rejected]:
    """Yield the questions that an LLM writes, those that pass what can be checked of each alone; and all others."""
    targets = _targets(plan, passages)
    leaks = LeakIndex(evaluation, same_kind=True)
    asked = ((QUESTIONS, prompts.templates["questions"]), (MULTI_QUESTIONS, prompts.templates["multi"]))
    words = {task: index_prompt(f"{template.system} {template.user}", "\0") for task, template in asked}

    def render() -> Iterator[Prompt]:
        return (_render(prompts, plan, [passages[place] for place in places]) for places in targets)

    for places, (prompt, completion) in zip(targets, calls.complete(render, total=len(targets)), strict=True):
        own = [passages[place] for place in places]
        text = "\n".join(passage.text for passage in own)
        context = Context(Query(prompt.row, text), prompt.task, {}, {}, leaks, words[prompt.task])
        yield from _read(plan, own, places, prompt, completion, context)


def _targets(plan: RagPlan, passages: Sequence[Passage]) -> list[tuple[int, ...]]:
    chosen = choose_passages(plan, passages)
    return [*((place,) for place in chosen), *choose_sets(plan, passages, chosen)]


def _render(prompts: RagPrompts, plan: RagPlan, passages: Sequence[Passage]) -> Prompt:
    return render_questions(prompts, plan, passages[0]) if len(passages) == 1 else render_multi(prompts, passages)


def _read(
    plan: RagPlan,
    passages: Sequence[Passage],
    places: tuple[int, ...],
    prompt: Prompt,
    completion: Completion,
    context: Context,
) -> Iterator[Candidate | Rejected]:
    """Yield what one answer gives: candidates, and a record of everything else."""
    about = {"task": prompt.task, "passage": context.query.text[:SHOWN]}
    if completion.text is None:
        reason = name_failure(completion)
        yield Rejected(reason, describe_finish(completion), source=prompt.row, context=about)
        return
    wanted = plan.per_passage if prompt.task == QUESTIONS else 1
    style = "" if prompt.task == QUESTIONS else MULTI
    items = list(read_questions(completion.text, prompt.task, passages=len(passages), style=style))
    accepted: list[str] = []
    for item in items[: SURPLUS * wanted]:
        if isinstance(item, Unusable):
            yield Rejected(item.reason, item.detail, item.text, source=prompt.row, context=about)
            continue
        checked = _check(item, plan, passages, context, accepted)
        if isinstance(checked, Rejected):
            yield checked
            continue
        accepted.append(item.question)
        kind = MULTI if prompt.task == MULTI_QUESTIONS else item.style
        yield Candidate(item.question, kind, places, checked, prompt.fingerprint, completion.model)
    yield from _miscount(len([item for item in items if isinstance(item, Asked)]), wanted, prompt, completion, about)


def _miscount(
    found: int, wanted: int, prompt: Prompt, completion: Completion, about: Mapping[str, str]
) -> Iterator[Rejected]:
    if 0 < found < wanted:
        detail = f"{found} of {wanted} questions; finish: {completion.finish}"
        yield Rejected("too-few", detail, source=prompt.row, context=about)
    if found > SURPLUS * wanted:
        detail = f"{found} questions where {wanted} were asked for; {found - SURPLUS * wanted} not read"
        yield Rejected("surplus", detail, source=prompt.row, context=about)


def _check(
    item: Asked, plan: RagPlan, passages: Sequence[Passage], context: Context, accepted: Sequence[str]
) -> tuple[str, ...] | Rejected:
    """Return the spans as the passages have them, or the first objection."""
    spans = [
        find_span(answer, own.text, edits=plan.span_edits) for answer, own in zip(item.answers, passages, strict=True)
    ]
    objection = _object(item, plan, [span is not None for span in spans], context, accepted)
    if objection is None:
        return tuple(span.text for span in spans if span is not None)
    reason, detail = objection
    about = {"task": context.task, "style": item.style, "answer": " | ".join(item.answers)}
    about["passage"] = context.query.text[:SHOWN]
    return Rejected(reason, detail, item.question, source=context.query.id, context=about)


def _object(
    item: Asked, plan: RagPlan, found: Sequence[bool], context: Context, accepted: Sequence[str]
) -> tuple[str, str] | None:
    for check in (check_echo, check_form, check_refusal):
        verdict = check(item.question, context)
        if verdict is not None:
            return verdict
    reference = find_reference(item.question)
    if reference is not None:
        return "refers-to-passage", f"“{reference}”"
    if not all(found):
        missing = item.answers[list(found).index(False)]
        return "span-not-in-passage", f"the passage has no “{missing[:SHOWN]}”"
    if any(gives_answer_away(item.question, answer) for answer in item.answers):
        return "answer-in-question", f"“{item.answers[0][:SHOWN]}” is in the question"
    run, share = measure_copy(item.question, context.query.text)
    if run >= plan.copied and share >= plan.copied_share:
        return "copies-passage", f"{run} words in a row are the passage's, {share:.0%} of the question"
    repeat = find_repeat(item.question, accepted)
    if repeat is not None:
        return "duplicate", f"also “{repeat}” about this passage"
    return check_leak(item.question, context)
