"""teach: the base and BM25 together grade the passages of a question; no label is needed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from embedsmith.batches import Source
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import PositivePair, Triplet
from embedsmith.lexical import LexicalIndex
from embedsmith.objectives import REACH, settle_losses
from embedsmith.pipeline.rag_job import RAG_VALUES
from embedsmith.teacher import Teaching, teach
from embedsmith.testing import FakeEncoder

PASSAGES = [
    "The boiler of model KX-200 loses pressure when its valve is worn.",
    "The boiler of model KX-300 loses pressure when its seal is dry.",
    "Meters are read in the first week of each month.",
    "Bills are sent by post ten days after a reading.",
    "A smart meter sends its reading by itself.",
    "Customers may pay by card, by transfer or in a shop.",
    "The hotline is open from eight to six.",
]
PAIRS = [
    PositivePair("why does my KX-300 lose pressure", PASSAGES[1], group="1"),
    PositivePair("when is the meter read", PASSAGES[2], group="2"),
    PositivePair("when is the meter read", PASSAGES[4], group="2"),
]
ENCODER = FakeEncoder()
VECTORS = ENCODER.encode(PASSAGES)


def ask(pairs: list[PositivePair] = PAIRS, **settings: float) -> list[tuple[str, tuple[str, ...], tuple[float, ...]]]:
    teaching = Teaching(**{"negatives": 3, "depth": 5, **settings})  # type: ignore[arg-type]
    taught = teach(pairs, PASSAGES, VECTORS, ENCODER.encode, teaching=teaching)
    return [(example.positive, example.negatives, example.scores) for example in taught.examples]


def test_grades_are_the_cosine_and_the_weighed_share_of_the_best_bm25_score() -> None:
    words = LexicalIndex(PASSAGES).score(PAIRS[0].anchor)
    wanted = VECTORS @ ENCODER.encode([PAIRS[0].anchor])[0] + 0.3 * words / words.max()
    positive, negatives, scores = ask(weight=0.3, bonus=0.1)[0]
    places = [PASSAGES.index(text) for text in (positive, *negatives)]
    assert scores == pytest.approx((wanted[1] + 0.1, *wanted[places[1:]]), abs=1e-6)
    assert negatives[0] == PASSAGES[0]  # the teacher's best besides the positive


@pytest.mark.parametrize("weight", [None, 0.0, 0.3])
def test_bm25_is_asked_once_a_question(weight: float | None) -> None:
    class Counted(LexicalIndex):
        asked = 0

        def score(self, query: str) -> np.ndarray:
            Counted.asked += 1
            return super().score(query)

    teaching = Teaching(negatives=3, depth=5, weight=weight)
    taught = teach(PAIRS, PASSAGES, VECTORS, ENCODER.encode, teaching=teaching, lexical=Counted(PASSAGES))
    assert Counted.asked == len({pair.anchor for pair in PAIRS})
    again = teach(PAIRS, PASSAGES, VECTORS, ENCODER.encode, teaching=replace(teaching, weight=taught.weight))
    assert taught.examples == again.examples


def test_the_teachers_grades_are_learnt_at_the_temperature_of_the_cosines() -> None:
    """Chosen and measured so: its scale is no cross-encoder's, whatever the cosines and words say."""
    examples = teach(PAIRS, PASSAGES, VECTORS, ENCODER.encode, teaching=Teaching(negatives=3, depth=5)).examples
    assert max(score for example in examples for score in example.scores) > 1  # beyond what a cosine can be
    settled, notes = settle_losses([Source(examples)], RAG_VALUES["losses"], temperature=RAG_VALUES["temperature"])
    assert settled[0].examples == examples
    assert any("as cosines are" in note for note in notes)
    weight = Teaching().weight
    assert weight is not None
    widest = 2 + weight + Teaching().bonus  # a positive at cosine 1 with all words, a negative at −1 with none
    assert widest <= REACH
    edge = (Triplet("q", "p", ("n",), scores=(1 + weight + Teaching().bonus, -1.0)),)
    assert settle_losses([Source(edge)], {"distill_kl": 1.0})[0][0].examples == edge


def test_no_positive_of_an_anchor_is_a_negative_of_its_other_rows() -> None:
    for _, negatives, _ in ask()[1:]:
        assert not {PASSAGES[2], PASSAGES[4]} & set(negatives)
        assert len(set(negatives)) == 3


def test_the_order_of_the_pairs_changes_no_row() -> None:
    shuffled = list(PAIRS)
    Random(3).shuffle(shuffled)
    assert sorted(ask(shuffled)) == sorted(ask())


def test_the_weight_is_the_one_that_finds_the_own_passages_best() -> None:
    """An encoder that knows nothing leaves it to the words."""
    blind = np.full((len(PASSAGES), 4), 0.5, dtype=np.float32)
    taught = teach(PAIRS, PASSAGES, blind, lambda texts: blind[: len(texts)], teaching=Teaching(2, 4, weight=None))
    assert taught.weight > 0
    assert taught.reciprocal_ranks[taught.weight] > taught.reciprocal_ranks[0.0] == pytest.approx(1 / 7)


def test_what_cannot_be_taught_is_said() -> None:
    with pytest.raises(InputError, match="is no passage"):
        ask([PositivePair("why", "a text from elsewhere")])
    with pytest.raises(InputError, match="no question to teach"):
        ask([])
    with pytest.raises(InputError, match="7 passages"):
        ask(negatives=6, depth=9)
    with pytest.raises(ConfigurationError, match="9 negatives of 3"):
        Teaching(negatives=9, depth=3)


def test_questions_about_which_bm25_says_nothing_are_counted() -> None:
    pairs = [*PAIRS, PositivePair("wann wird abgelesen", PASSAGES[2])]
    taught = teach(pairs, PASSAGES, VECTORS, ENCODER.encode, teaching=Teaching(negatives=3, depth=5))
    assert taught.silent == 1
