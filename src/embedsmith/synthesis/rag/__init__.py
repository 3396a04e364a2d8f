"""The recipe `rag`: passages in; questions with the passages that answer them out, every lost one with its reason.

One call asks for the questions about a passage, another one for those that need several passages, a judge's call
(where one is wanted) whether passages answer. All else is filters: a changed filter costs no call. Between the steps
questions wait in a temporary file, so memory is bounded by the passages and what the filter of repeats has to know.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType

import numpy as np

from embedsmith.artifacts import plain
from embedsmith.corpus import Query
from embedsmith.documents import Passage
from embedsmith.encoder import Encoder
from embedsmith.errors import InputError
from embedsmith.examples import Example, PositivePair, Provenance, Rejected
from embedsmith.llm import Completion, Prompt
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.filters import (
    Context,
    check_echo,
    check_form,
    check_leak,
    check_refusal,
    index_evaluation,
    index_prompt,
)
from embedsmith.synthesis.rag.answers import Asked, Unusable, read_questions, read_verdicts
from embedsmith.synthesis.rag.checks import (
    answers_alike,
    answers_too,
    find_reference,
    find_repeat,
    find_span,
    gives_answer_away,
    measure_copy,
    sum_up,
)
from embedsmith.synthesis.rag.plan import MULTI, RagPlan, choose_passages, choose_sets, count_documents
from embedsmith.synthesis.rag.prompts import (
    MULTI_QUESTIONS,
    QUESTIONS,
    VERDICTS,
    RagPrompts,
    in_judged_order,
    load_prompts,
    render_judge,
    render_multi,
    render_questions,
)
from embedsmith.synthesis.rag.search import Found, PassageSearch, embed_passages

__all__ = ["PassageSearch", "RagPlan", "choose_passages", "count_documents", "embed_passages", "synthesize_rag"]

CHECKS = ("form", "reference", "span", "copy", "repeat", "leak")
SURPLUS = 2  # times as many questions as asked for are read; a model that loops writes more
JUDGED = 4  # passages beside the sources that a judge is shown
SHOWN = 300  # characters of a passage in the evidence of a rejection


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question on its way through the filters; `sources` are places of passages, `answers` their spans."""

    question: str
    style: str
    sources: tuple[int, ...]
    answers: tuple[str, ...]
    prompt: str
    model: str
    positives: tuple[tuple[int, str], ...] = ()  # further ones: (place, why)
    asked: tuple[int, ...] = ()  # places that only a judge can tell of
    evidence: tuple[str, ...] = ()


class Spool:
    """Candidates in a temporary file, read as often as needed, in the order in which they came."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="embedsmith-")
        self._path = Path(self._folder.name) / "candidates.jsonl"
        self._file = self._path.open("w", encoding="utf-8")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._folder.cleanup()

    def add(self, candidate: Candidate) -> None:
        """Append a candidate."""
        self._file.write(json.dumps(asdict(candidate), ensure_ascii=False) + "\n")

    def __iter__(self) -> Iterator[Candidate]:
        self._file.flush()
        with self._path.open(encoding="utf-8") as lines:  # a handle of its own: two may read at once
            for line in lines:
                row = json.loads(line)
                positives = tuple((place, why) for place, why in row.pop("positives"))
                tuples = {key: tuple(row.pop(key)) for key in ("sources", "answers", "asked", "evidence")}
                yield Candidate(**row, **tuples, positives=positives)


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
    or why it is one, `span=…`, `rank.encoder=…`, `rank.bm25=…` (`read_evidence`).

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
    with Spool() as waiting, Spool() as judged:
        sums = array("Q")
        for item in _ask(plan, known, prompts, calls, evaluation):
            if isinstance(item, Rejected):
                yield item
            else:
                waiting.add(item)
                sums.append(sum_up(item.question))
        if not sums:
            return
        repeats = _gather_repeats(waiting, sums)
        for found in _search(plan, known, waiting, sums, repeats, encoder, cache):
            if isinstance(found, Rejected):
                yield found
            elif judge is None:
                yield from _to_examples(found, known, calls.sampling.seed)
            else:
                judged.add(found)
        if judge is not None:
            yield from _judge(plan, known, prompts, judged, judge, calls.sampling.seed)


def read_evidence(provenance: Provenance) -> dict[str, str]:
    """Return what the filters found of an example: style, passage, positive, span, ranks.

    >>> read_evidence(Provenance("d7", "abc", "llm", checks=("form", "style=keyword", "rank.bm25=2")))
    {'style': 'keyword', 'rank.bm25': '2'}
    """
    pairs = (check.partition("=") for check in provenance.checks if "=" in check)
    return {name: value for name, _, value in pairs}


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


# ── The first step: questions, and what can be said of each alone


def _ask(
    plan: RagPlan, passages: Sequence[Passage], prompts: RagPrompts, calls: Calls, evaluation: Iterable[str]
) -> Iterator[Candidate | Rejected]:
    chosen = choose_passages(plan, passages)
    sets = choose_sets(plan, passages, chosen)

    def render() -> Iterator[Prompt]:
        yield from (render_questions(prompts, plan, passages[place]) for place in chosen)
        yield from (render_multi(prompts, [passages[place] for place in places]) for places in sets)

    leaks, exact = index_evaluation(evaluation)
    words = {
        QUESTIONS: index_prompt(" ".join(prompts.messages["questions"]), "\0"),
        MULTI_QUESTIONS: index_prompt(" ".join(prompts.messages["multi"]), "\0"),
    }
    targets = chain(((place,) for place in chosen), sets)
    for places, (prompt, completion) in zip(targets, calls.complete(render), strict=True):
        own = [passages[place] for place in places]
        text = "\n".join(passage.text for passage in own)
        context = Context(Query(prompt.row, text), prompt.task, {}, {}, leaks, exact, words[prompt.task])
        yield from _read(plan, own, places, prompt, completion, context)


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
        reason = "no-completion" if completion.finish == "missing" else "no-answer"
        yield Rejected(reason, f"finish: {completion.finish}", source=prompt.row, context=about)
        return
    wanted = plan.per_passage if prompt.task == QUESTIONS else 1
    style = "unnamed" if prompt.task == QUESTIONS else MULTI
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
    spans = [find_span(answer, own.text, edits=plan.span_edits) for answer, own in zip(item.answers, passages, strict=True)]
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


# ── The second step: the question among all passages and all other questions


@dataclass(frozen=True, slots=True)
class Repeat:
    """A question whose telling words other questions have, too."""

    question: str
    sources: tuple[int, ...]
    answers: tuple[str, ...]


Repeats = Mapping[int, Sequence[Repeat]]


def _gather_repeats(waiting: Spool, sums: array[int]) -> Repeats:
    """Return the questions by their sum where a sum comes more than once."""
    values, counts = np.unique(np.asarray(sums, dtype=np.uint64), return_counts=True)
    often = set(values[counts > 1].tolist())
    found: dict[int, list[Repeat]] = {}
    for total, candidate in zip(sums, waiting, strict=True):
        if total in often:
            found.setdefault(total, []).append(Repeat(candidate.question, candidate.sources, candidate.answers))
    return found


def _search(
    plan: RagPlan,
    passages: Sequence[Passage],
    waiting: Spool,
    sums: array[int],
    repeats: Repeats,
    encoder: Encoder | None,
    cache: Path | str | None,
) -> Iterator[Candidate | Rejected]:
    search = PassageSearch([passage.text for passage in passages], encoder, cache=cache)
    pairs = zip(sums, waiting, strict=True)
    while block := list(islice(pairs, search.block)):
        found = [_settle_repeats(candidate, repeats.get(total, ()), passages) for total, candidate in block]
        rest = [item for item in found if isinstance(item, Candidate)]
        done = iter(_place(plan, passages, rest, search))
        for item in found:
            yield item if isinstance(item, Rejected) else next(done)


def _settle_repeats(candidate: Candidate, repeats: Sequence[Repeat], passages: Sequence[Passage]) -> Candidate | Rejected:
    """Return the candidate with the passages of the same question as positives, or why it cannot stay."""
    elsewhere = [repeat for repeat in repeats if not set(repeat.sources) & set(candidate.sources)]
    for other in elsewhere:
        if not _alike(candidate, other, passages):
            shown = f"“{other.question}” about {passages[other.sources[0]].id} has the answer “{other.answers[0][:SHOWN]}”"
            return _reject("ambiguous", shown, candidate, passages)
    if elsewhere and repeats[0].sources != candidate.sources and not set(repeats[0].sources) & set(candidate.sources):
        first = passages[repeats[0].sources[0]].id
        return _reject("duplicate-elsewhere", f"asked about {first}; both passages are its positives", candidate, passages)
    same = dict.fromkeys(place for other in elsewhere for place in other.sources)
    return replace(candidate, positives=tuple((place, "same question, same answer") for place in same))


def _alike(candidate: Candidate, other: Repeat, passages: Sequence[Passage]) -> bool:
    return answers_alike(
        candidate.answers[0], passages[candidate.sources[0]].text, other.answers[0], passages[other.sources[0]].text
    )


def _place(
    plan: RagPlan, passages: Sequence[Passage], candidates: Sequence[Candidate], search: PassageSearch
) -> Iterator[Candidate | Rejected]:
    """Yield each candidate with its ranks and further positives, or what the round trip says against it."""
    if not candidates:
        return
    questions = [candidate.question for candidate in candidates]
    sources = [candidate.sources for candidate in candidates]
    near = search.by_encoder(questions, sources, plan.k_further)
    worded = search.by_words(questions, sources, plan.k_further)
    for place, candidate in enumerate(candidates):
        own, lexical = near[place] if near else None, worded[place] if worded else None
        full = _find_further(plan, passages, candidate, own, lexical)
        yield _round_trip(plan, passages, full, own, lexical)


def _find_further(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, near: Found | None, worded: Found | None
) -> Candidate:
    """Return the candidate with the other passages that answer, and those about which a judge has to be asked."""
    known = {*candidate.sources, *(place for place, _ in candidate.positives)}
    top = dict.fromkeys([*(near.top if near else ()), *(worded.top if worded else ())])
    others = [place for place in top if place not in known]
    positives, asked = list(candidate.positives), []
    for place in others if plan.further and len(candidate.sources) == 1 else ():
        source = passages[candidate.sources[0]].text
        why = answers_too(candidate.question, candidate.answers[0], source, passages[place].text)
        if why is not None:
            positives.append((place, why))
        elif near and place in near.top and near.top_scores[near.top.index(place)] >= min(near.scores):
            asked.append(place)
    return replace(candidate, positives=tuple(positives), asked=tuple(asked))


def _round_trip(
    plan: RagPlan, passages: Sequence[Passage], candidate: Candidate, near: Found | None, worded: Found | None
) -> Candidate | Rejected:
    """Return the candidate, or a rejection if its passages do not come back.

    Other passages that answer as well do not count as being in the way. Of a question with several passages each
    has to come back, k times as far down as there are passages.
    """
    alike = {place for place, _ in candidate.positives}
    ranks = {"encoder": _worst_rank(near, alike), "bm25": _worst_rank(worded, alike)}
    evidence = tuple(f"rank.{name}={rank}" for name, rank in ranks.items() if rank is not None)
    candidate = replace(candidate, evidence=evidence)
    count = len(candidate.sources)
    came = [
        rank <= k * count
        for name, rank, k in (("encoder", ranks["encoder"], plan.k_encoder), ("lexical", ranks["bm25"], plan.k_lexical))
        if rank is not None and (plan.trip in ("either", "both") or plan.trip == name)
    ]
    good = plan.trip == "off" or not came or (all(came) if plan.trip == "both" else any(came))
    if good:
        return candidate
    best = near or worded
    above = passages[best.top[0]] if best and best.top else None
    shown = f"; first comes {above.id}: “{above.text[:SHOWN]}”" if above else ""
    return _reject("round-trip", f"{', '.join(evidence)}{shown}", candidate, passages)


def _worst_rank(found: Found | None, alike: set[int]) -> int | None:
    """Return the lowest rank of the sources, passages that answer as well left out of the count."""
    if found is None:
        return None
    worst = max(range(len(found.ranks)), key=lambda number: found.ranks[number])
    before = zip(found.top, found.top_scores, strict=True)
    better = sum(place in alike and score > found.scores[worst] for place, score in before)
    return found.ranks[worst] - better


# ── The third step, where a judge is asked: whether the passages answer


def _judge(
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
            yield from _to_examples(verdict, passages, seed)


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
            return _reject("not-judged", f"no verdict; finish: {completion.finish}", candidate, passages)
        told = verdicts[place]
        if told.verdict not in enough:
            return _reject("unanswerable", f"the judge says “{told.verdict}”", candidate, passages)
        if find_span(told.span, passages[place].text, edits=plan.span_edits) is None:
            detail = f"the judge's span “{told.span[:SHOWN]}” is not in the passage"
            return _reject("unanswerable", detail, candidate, passages)
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


# ── What comes out


def _to_examples(candidate: Candidate, passages: Sequence[Passage], seed: int | None) -> Iterator[PositivePair]:
    group = passages[candidate.sources[0]].id
    sources = [(place, "source", span) for place, span in zip(candidate.sources, candidate.answers, strict=True)]
    others = [(place, why, candidate.answers[0]) for place, why in candidate.positives]
    source = "+".join(passages[place].id for place in candidate.sources)
    trip = ("round-trip",) if candidate.evidence else ()
    for place, why, span in [*sources, *others]:
        found = (f"style={candidate.style}", f"passage={passages[place].id}", f"positive={why}", f"span={span}")
        checks = (*CHECKS, *trip, *found, *candidate.evidence)
        origin = Provenance(source, candidate.prompt, candidate.model, seed, checks)
        yield PositivePair(candidate.question, passages[place].text, group, origin)


def _reject(reason: str, detail: str, candidate: Candidate, passages: Sequence[Passage]) -> Rejected:
    own = passages[candidate.sources[0]]
    about = {"style": candidate.style, "answer": " | ".join(candidate.answers), "passage": own.text[:SHOWN]}
    source = "+".join(passages[place].id for place in candidate.sources)
    return Rejected(reason, detail, candidate.question, source=source, context=plain(about))
