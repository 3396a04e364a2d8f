"""Labels held against the texts: positives whose facts changed or that lie far apart, negatives that say the same.

Rules find what can be named. What they cannot name is found by comparing each label with what the rest of the set
says of such pairs (confident learning, Northcutt et al. 2021): a logistic regression on the closeness of the texts is
fitted on the other folds, so no threshold is brought from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder, pair_similarities
from embedsmith.examples import Example, LabelledPair, PositivePair, Triplet, texts_of
from embedsmith.facts import KINDS, find_changes, likeness, overlap, read_facts, says_the_same
from embedsmith.logistic import cross_predict
from embedsmith.text import jaccard, normalize, trigrams

FEWEST = 25  # pairs of each label from which on a regression has something to stand on
MOST = 0.75
DOUBT = 0.5  # from here on a label is more probably wrong than right
# Share of pairs that people labelled as different among those where a rule fires, on 10,000 balanced question pairs
# (benchmarks/planted_errors.py, duplicate_questions): what a rule is worth where the set itself cannot tell.
TRUST = {
    "number": 0.74,
    "unit": 0.5,
    "negation": 0.61,
    "entity": 0.81,
    "time": 0.76,
    "direction": 0.54,
    "population": 0.84,
}
FAR, PARAPHRASE = "far-positive", "paraphrase-as-negative"
SAID_THE_SAME = 0.81  # the same for pairs that say the same by their words
Judge = Callable[[Sequence[tuple[str, str]]], "Sequence[str]"]  # "yes", "no" or "unsure" for each pair


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of an example, and whether it says that they belong together.

    Attributes:
        place: of the example in its set. number: 0 for its positive, 1, 2, … for its negatives.
        group: of the example, else its first text. (Not what shares any text: a negative used for all rows joins all.)
    """

    place: int
    number: int
    left: str
    right: str
    label: int
    group: str


@dataclass(frozen=True, slots=True)
class LabelVerdict:
    """A label that is probably wrong.

    Attributes:
        reason: "changed-number" (and the other kinds of facts), "far-positive" or "paraphrase-as-negative".
        detail: the evidence.
        confidence: probability that the label is wrong, 0 to 1.
        similarity: cosine of the encoder, None without one.
        judged: what the judge said: "yes" (one answer serves both), "no", "unsure", or "" without one.
    """

    pair: Pair
    reason: str
    detail: str
    confidence: float
    similarity: float | None = None
    judged: str = ""


def check_labels(
    examples: Sequence[Example], encoder: Encoder | None = None, judge: Judge | None = None, *, wrong: float = 0.1
) -> list[LabelVerdict]:
    """Return the labels that are probably wrong, most probable first; examples without labels have none.

    A judge is asked about these only; what it contradicts is left out, what it confirms becomes certain.

    Args:
        encoder: the base model; without one, only words count.
        judge: see `synthesis.pair_judge.PairJudge`.
        wrong: share of wrong labels that is expected; the more, the sooner a label is doubted.
    """
    pairs = list_pairs(examples)
    similarities = _similarities(pairs, encoder)
    doubts = doubt_labels(pairs, similarities, wrong=wrong)
    outside = _find_outside(pairs, similarities, wrong)
    found = []
    for place, pair in enumerate(pairs):
        similarity = None if similarities is None else float(similarities[place])
        doubt = 0.0 if doubts is None else float(doubts[place])
        verdict = _decide(pair, doubt, bool(outside[place]), similarity)
        if verdict is not None:
            found.append(verdict)
    if judge is not None:
        found = _ask(found, judge)
    return sorted(found, key=lambda verdict: (-verdict.confidence, verdict.pair.place, verdict.pair.number))


def list_pairs(examples: Sequence[Example]) -> list[Pair]:
    """Return all pairs of texts whose label follows from an example; none of scored pairs and classes."""
    found = []
    for place, example in enumerate(examples):
        group = example.group or normalize(texts_of(example)[0])
        match example:
            case LabelledPair():
                found.append(Pair(place, 0, example.sentence1, example.sentence2, example.label, group))
            case PositivePair():
                found.append(Pair(place, 0, example.anchor, example.positive, 1, group))
            case Triplet():
                found.append(Pair(place, 0, example.anchor, example.positive, 1, group))
                found += [
                    Pair(place, number, example.anchor, text, 0, group)
                    for number, text in enumerate(example.negatives, 1)
                ]
            case _:
                continue
    return found


def doubt_labels(
    pairs: Sequence[Pair], similarities: NDArray[np.float64] | None, *, wrong: float = 0.1
) -> NDArray[np.float64] | None:
    """Return for each pair the probability that its label is wrong, (n,); None where the set is too small to say.

    With p the probability of label 1 that the other folds give, of which a share e of labels is wrong, the clean
    probability is q = (p − e) / (1 − 2e), and a label 1 is wrong with probability e(1 − q) / (e(1 − q) + (1 − e)q).
    For e = .1 and p = .18: q = .1, and (.1 · .9) / (.1 · .9 + .9 · .1) = .5.
    """
    labels = np.array([pair.label for pair in pairs], dtype=np.int64)
    if min(int(labels.sum()), int(len(labels) - labels.sum())) < FEWEST:
        return None
    features = describe_pairs(pairs, similarities)
    chance = cross_predict(features, labels, [pair.group for pair in pairs])
    clean = np.clip((chance - wrong) / (1 - 2 * wrong), 1e-3, 1 - 1e-3)
    against = np.where(labels == 1, 1 - clean, clean)
    return np.asarray(wrong * against / (wrong * against + (1 - wrong) * (1 - against)))


def describe_pairs(pairs: Sequence[Pair], similarities: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return what a regression sees of each pair, (n, columns), each column with mean 0 and deviation 1."""
    rows = []
    for pair in pairs:
        one, other = read_facts(pair.left), read_facts(pair.right)
        kinds = {change.kind for change in find_changes(pair.left, pair.right)}
        rows.append(
            [
                likeness(one, other),
                overlap(one, other),
                jaccard(trigrams(pair.left), trigrams(pair.right)),
                float(says_the_same(pair.left, pair.right)),
                *(float(kind in kinds) for kind in KINDS),
            ]
        )
    table = np.array(rows, dtype=np.float64)
    if similarities is not None:
        table = np.column_stack([table, similarities, similarities**2, similarities * table[:, 1]])
    spread = table.std(axis=0)
    return np.asarray((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _similarities(pairs: Sequence[Pair], encoder: Encoder | None) -> NDArray[np.float64] | None:
    if encoder is None or not pairs:
        return None
    return pair_similarities(encoder, [pair.left for pair in pairs], [pair.right for pair in pairs])


def _find_outside(pairs: Sequence[Pair], similarities: NDArray[np.float64] | None, wrong: float) -> NDArray[np.bool_]:
    """Say which pairs lie on the wrong end of their own label: the farthest positives, the closest negatives, (n,).

    As many of each as labels are expected to be wrong, and no nearer to their own label than a quarter of the other.
    Without this a set whose negatives are near by design would have its best rows doubted: there far means positive.
    """
    labels = np.array([pair.label for pair in pairs], dtype=np.int64)
    close = _closeness(pairs) if similarities is None else similarities
    positives, negatives = close[labels == 1], close[labels == 0]
    if not len(positives) or not len(negatives):
        return np.zeros(len(pairs), dtype=np.bool_)
    far = (close <= np.quantile(positives, wrong)) & (close < np.quantile(negatives, MOST))
    near = (close >= np.quantile(negatives, 1 - wrong)) & (close > np.quantile(positives, 1 - MOST))
    return np.asarray(np.where(labels == 1, far, near), dtype=np.bool_)


def _closeness(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    return np.array([overlap(read_facts(pair.left), read_facts(pair.right)) for pair in pairs], dtype=np.float64)


def _decide(pair: Pair, doubt: float, outside: bool, similarity: float | None) -> LabelVerdict | None:
    """Return what is wrong with a label, named by a rule or told by the set, or None."""
    shown = "" if similarity is None else f", cosine {similarity:.2f}"
    changes = find_changes(pair.left, pair.right)
    if pair.label == 1 and changes:
        detail = "; ".join(f"{change.kind} {change.evidence}" for change in changes) + shown
        kind = changes[0].kind
        return LabelVerdict(pair, f"changed-{kind}", detail, max(doubt, TRUST[kind]), similarity)
    if pair.label == 0 and says_the_same(pair.left, pair.right):
        detail = f"the same words but for small ones{shown}"
        return LabelVerdict(pair, PARAPHRASE, detail, max(doubt, SAID_THE_SAME), similarity)
    if doubt < DOUBT or not outside or (pair.label == 0 and changes):
        return None
    if pair.label == 1:
        return LabelVerdict(pair, FAR, f"no closer than most negatives{shown}", doubt, similarity)
    return LabelVerdict(pair, PARAPHRASE, f"no fact differs, as close as most positives{shown}", doubt, similarity)


def _ask(found: Sequence[LabelVerdict], judge: Judge) -> list[LabelVerdict]:
    """Return the verdicts that the judge does not contradict, with what it said."""
    answers = judge([(verdict.pair.left, verdict.pair.right) for verdict in found])
    wanted = {1: "no", 0: "yes"}  # what the judge says of a label that is wrong
    kept = []
    for verdict, answer in zip(found, answers, strict=True):
        if answer == wanted[verdict.pair.label]:
            kept.append(replace(verdict, judged=answer, confidence=max(verdict.confidence, 0.95)))
        elif answer not in {"yes", "no"}:
            kept.append(replace(verdict, judged="unsure"))
    return kept
