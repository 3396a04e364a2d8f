"""A language model as judge of pairs: does one answer serve both texts?

`judge_pairs` asks about every pair of a stream and rejects those whose label the judge contradicts. `PairJudge` is
asked about some, for `labels.check_labels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedsmith.artifacts import Spool, fingerprint
from embedsmith.examples import LabelledPair, Rejected, provenance_from
from embedsmith.llm import Completion, Prompt, describe_finish, name_failure, verdicts
from embedsmith.llm.calls import Calls
from embedsmith.llm.verdicts import read_verdict

CONTRADICTIONS: dict[tuple[str | None, int], str] = {("no", 1): "judged-different", ("yes", 0): "judged-same"}


class PairJudge:
    """Judges pairs through the journal: what was judged once is asked no more.

    Attributes:
        counts: "yes", "no", "unsure", and "unreadable" (no verdict in the answer; counts as unsure).
        differences: what the judge said differs, by pair.
    """

    def __init__(self, calls: Calls) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: dict[tuple[str, str], str] = {}
        self._calls = calls

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Return "yes" (one answer serves both), "no" or "unsure" for each pair, in their order."""
        found = []
        answers = self._calls.complete(lambda: ask(pairs))
        for pair, (_, completion) in zip(pairs, answers, strict=True):
            verdict, difference = read_verdict(completion.text)
            self.counts[verdict or "unreadable"] += 1
            if difference:
                self.differences[pair] = difference
            found.append(verdict or "unsure")
        return found


def judge_pairs(pairs: Iterable[LabelledPair | Rejected], calls: Calls) -> Iterator[LabelledPair | Rejected]:
    """Yield the pairs whose label the judge does not contradict, in their order; the others rejected.

    A step of its own, after all pairs are there; until then they wait in a temporary file. "unsure" and an answer
    without a verdict contradict nothing: the pair is kept, and `provenance.checks` has what was said (`judge=…`). A
    pair without an answer is rejected for the reason that the answer is missing, so that another run judges it.
    """
    with Spool(_read_pair) as waiting:
        for pair in pairs:
            if isinstance(pair, Rejected):
                yield pair
            else:
                waiting.add(pair)
        if waiting:
            answers = calls.complete(lambda: map(_ask_about, waiting), total=len(waiting))
            for pair, (_, completion) in zip(waiting, answers, strict=True):
                yield _hear(pair, completion)


def _read_pair(row: Mapping[str, Any]) -> LabelledPair:
    return LabelledPair(**{**row, "provenance": provenance_from(row["provenance"])})


def ask_about(kept: Iterable[LabelledPair], rejected: Iterable[Rejected]) -> Iterator[Prompt]:
    """Yield the call about each pair that came before a judge: what was kept, and what the judge itself rejected."""
    for pair in kept:
        yield _ask_about(pair)
    for lost in rejected:
        if lost.context.get("step") == "judge":
            yield _ask_about(LabelledPair(lost.context["query"], lost.text, int(lost.context["label"]), lost.source))


def _ask_about(pair: LabelledPair) -> Prompt:
    """Return the call about a pair; its row is the pair's source and a hash, so that recorded verdicts are found."""
    texts = pair.sentence1, pair.sentence2
    return verdicts.ask("training", texts, f"{_source(pair)}#{fingerprint(texts)}")


def _source(pair: LabelledPair) -> str:
    return pair.provenance.source if pair.provenance is not None else pair.group or ""


def _hear(pair: LabelledPair, completion: Completion) -> LabelledPair | Rejected:
    verdict, difference = read_verdict(completion.text)
    about = {"query": pair.sentence1, "label": str(pair.label), "step": "judge"}
    if completion.text is None:
        detail = f"no verdict; {describe_finish(completion)}"
        return Rejected(name_failure(completion), detail, pair.sentence2, source=_source(pair), context=about)
    if (verdict, pair.label) in CONTRADICTIONS:
        reason = CONTRADICTIONS[verdict, pair.label]
        detail = f"the judge: {difference or verdict}"
        return Rejected(reason, detail, pair.sentence2, source=_source(pair), context=about)
    if pair.provenance is None:
        return pair
    said = (*pair.provenance.checks, f"judge={verdict or 'unreadable'}")
    return replace(pair, provenance=replace(pair.provenance, checks=said))


def ask(pairs: Sequence[tuple[str, str]]) -> Iterator[Prompt]:
    """Yield the prompt about each pair."""
    return (verdicts.ask("training", pair, str(row)) for row, pair in enumerate(pairs))
