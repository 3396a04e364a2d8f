"""A teacher for retrieval that needs no labels: the base's cosine and BM25, added up.

A general encoder misses names, codes and rare words; BM25 misses all else. Their sum ranks better than either, so
its scores are worth learning from: `distill_kl` on its grades of a question's passages moves the encoder towards it.
On SciFact, nDCG@10 of all-MiniLM-L6-v2 is .645, of BM25 .687, of both .735 to .739 for weights of BM25 from .3 to .7.
The default weight is .4 for that; written questions avoid the words of their passages, so they would choose too little.
Distilling a stronger ranker: Hofstätter et al. 2020, arXiv 2010.02666; adding lexical scores: Luan et al. 2021,
arXiv 2005.00181, §5.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings
from embedsmith.errors import InputError, require
from embedsmith.examples import PositivePair, Triplet
from embedsmith.lexical import LexicalIndex
from embedsmith.metrics import top_places

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # of BM25 that are tried
CUTOFF = 10  # places that count for the choice of the weight

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Teaching:
    """How passages are picked and graded for a question.

    Attributes:
        negatives: passages graded beside the positive; half are the teacher's best, half are drawn from its first
            `depth` and the encoder's first `depth` / 2.
        weight: of BM25 (its best passage counts 1); None chooses the one of `WEIGHTS` that ranks the questions' own
            passages best.
        bonus: added to the grade of the positive, because it is known to answer: in cosine.
    """

    negatives: int = 4
    depth: int = 30
    weight: float | None = 0.4
    bonus: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.negatives <= self.depth, f"{self.negatives} negatives of {self.depth}", "1 to the depth")
        low = self.bonus < 0 or (self.weight is not None and self.weight < 0)
        require(not low, f"weight {self.weight}, bonus {self.bonus}", "0 or more")


@dataclass(frozen=True, slots=True)
class Taught:
    """Questions with graded passages.

    Attributes:
        weight: of BM25, as it was chosen or given.
        reciprocal_ranks: MRR@10 of the questions' own passages among all, by weight tried; 0 is the encoder alone.
        silent: questions that share no word with any passage: BM25 says nothing about them.
    """

    examples: tuple[Triplet, ...]
    weight: float
    reciprocal_ranks: Mapping[float, float]
    silent: int = 0


def teach(
    pairs: Sequence[PositivePair],
    passages: Sequence[str],
    vectors: Embeddings,
    encode: Callable[[Sequence[str]], Embeddings],
    *,
    teaching: Teaching | None = None,
    lexical: LexicalIndex | None = None,
) -> Taught:
    """Return each pair with `negatives` passages and the teacher's grades of all, in the order of the pairs.

    Pairs that share an anchor share its positives: none is another's negative. Near copies of a positive are graded
    like any other passage, which is why nothing has to be declared wrong here.

    Args:
        passages: all passages; each positive must be one of them. vectors: (passages, d) unit rows, the base's.
        encode: the base's encoder of questions.
        lexical: BM25 over the passages, where there is one already.

    Raises:
        InputError: no pair, a positive that is no passage, fewer passages than are to be graded.
    """
    teaching = teaching or Teaching()
    places = {text: place for place, text in reversed(list(enumerate(passages)))}
    right = _find_positives(pairs, places)
    if len(passages) <= teaching.negatives + max(len(own) for own in right.values()):
        raise InputError(
            f"{len(passages)} passages",
            expected=f"more than {teaching.negatives} besides the positives of a question",
            action="give more passages, or grade fewer negatives",
        )
    questions = list(right)
    rankers = _Rankers(vectors, encode(questions), questions, lexical or LexicalIndex(passages))
    weights = WEIGHTS if teaching.weight is None else (0.0, teaching.weight)
    tried, graded, silent = _walk(rankers, right, dict.fromkeys(weights), teaching)
    weight = teaching.weight if teaching.weight is not None else max(tried, key=lambda own: (tried[own], -own))
    examples = tuple(_write(pair, places[pair.positive], graded[pair.anchor][weight], passages) for pair in pairs)
    return Taught(examples, weight, tried, silent)


def _find_positives(pairs: Sequence[PositivePair], places: Mapping[str, int]) -> dict[str, list[int]]:
    if not pairs:
        raise InputError("there is no question to teach", expected="at least one pair")
    right: dict[str, list[int]] = {}
    for pair in pairs:
        if pair.positive not in places:
            raise InputError(
                f"the positive of {pair.anchor[:80]!r} is no passage", expected="the passages that the pairs come from"
            )
        right.setdefault(pair.anchor, []).append(places[pair.positive])
    return right


@dataclass(frozen=True, slots=True)
class _Rankers:
    """Both rankers of all questions; what they say of one question is in memory at a time."""

    vectors: Embeddings
    queries: Embeddings
    questions: Sequence[str]
    lexical: LexicalIndex

    def walk(self) -> Iterator[tuple[str, Scores, Scores]]:
        """Yield each question with its cosines and its BM25 scores, the best of them 1: (passages,) both."""
        for question, vector in zip(self.questions, self.queries, strict=True):
            words = self.lexical.score(question)
            yield question, self.vectors @ vector, words / max(float(words.max()), 1e-9)


@dataclass(frozen=True, slots=True)
class _Graded:
    """The passages picked for one question and their grades; `own` are the grades of its positives by place."""

    own: Mapping[int, float]
    negatives: tuple[int, ...]
    grades: tuple[float, ...]


def _walk(
    rankers: _Rankers, right: Mapping[str, Sequence[int]], weights: Iterable[float], teaching: Teaching
) -> tuple[dict[float, float], dict[str, dict[float, _Graded]], int]:
    """Return MRR@10 of the own passages by weight, the grades of each question by weight, and how many BM25 left out.

    Ties count against the question's own passage. BM25 is the costly part, so while a weight is being chosen all
    weights are graded in one pass; otherwise the given one alone.
    """
    sums = dict.fromkeys(weights, 0.0)
    graded: dict[str, dict[float, _Graded]] = {}
    silent = 0
    for question, cosines, words in rankers.walk():
        silent += not words.any()
        graded[question] = {}
        for weight in sums:
            scores = cosines + np.float32(weight) * words
            rank = int((scores >= scores[right[question]].max()).sum())
            sums[weight] += 1 / rank if rank <= CUTOFF else 0.0
            if teaching.weight in (None, weight):
                graded[question][weight] = _grade(question, cosines, scores, right[question], teaching)
    return {weight: total / len(right) for weight, total in sums.items()}, graded, silent


def _grade(question: str, cosines: Scores, scores: Scores, right: Sequence[int], teaching: Teaching) -> _Graded:
    """Pick the teacher's best half and draw the rest, by a generator of the question's own."""
    pool = np.union1d(top_places(scores, teaching.depth + len(right)), top_places(cosines, teaching.depth // 2))
    pool = pool[~np.isin(pool, right)]
    pool = pool[np.lexsort((pool, -scores[pool]))]
    sure = min(teaching.negatives // 2, len(pool))
    chance = np.random.default_rng([teaching.seed, zlib.crc32(question.encode())])
    drawn = chance.choice(len(pool) - sure, min(teaching.negatives, len(pool)) - sure, replace=False) + sure
    picked = [*pool[:sure].tolist(), *pool[np.sort(drawn)].tolist()]
    own = {place: float(scores[place]) + teaching.bonus for place in right}
    return _Graded(own, tuple(picked), tuple(float(scores[place]) for place in picked))


def _write(pair: PositivePair, place: int, graded: _Graded, passages: Sequence[str]) -> Triplet:
    return Triplet(
        pair.anchor,
        pair.positive,
        tuple(passages[other] for other in graded.negatives),
        group=pair.group,
        provenance=pair.provenance,
        scores=(graded.own[place], *graded.grades),
        instruction=pair.instruction,
    )
