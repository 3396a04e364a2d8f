"""LexicalIndex: BM25 beside the encoders; the same texts always give the same ranking."""

from __future__ import annotations

import numpy as np
import pytest

from embedsmith.errors import InputError
from embedsmith.lexical import LexicalIndex

TEXTS = ["The boiler lost pressure", "Reading the gas meter", "How boilers are serviced", "Reading the gas meter"]


def test_the_text_with_the_rarest_words_comes_first_and_words_are_stemmed() -> None:
    places, scores = LexicalIndex(TEXTS).search(["servicing a boiler"], k=2)
    assert places.tolist() == [[2, 0]]
    assert scores[0, 0] > scores[0, 1] > 0


def test_ties_keep_the_order_of_the_texts() -> None:
    places, scores = LexicalIndex(TEXTS).search(["gas meters"], k=4)
    assert places.tolist() == [[1, 3, 0, 2]]
    assert scores[0, 0] == scores[0, 1]


def test_a_query_without_a_known_word_finds_nothing() -> None:
    index = LexicalIndex(TEXTS)
    assert not index.score("zebra").any()
    assert not index.score("the of").any()
    assert index.search(["zebra", ""], k=99)[0].shape == (2, len(TEXTS))


def test_search_agrees_with_the_scores_of_every_text() -> None:
    index = LexicalIndex(TEXTS)
    places, scores = index.search(["reading pressure"], k=3)
    every = index.score("reading pressure")
    assert np.array_equal(scores[0], every[places[0]])
    assert scores[0].tolist() == sorted(every.tolist(), reverse=True)[:3]


def test_no_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no text to search"):
        LexicalIndex([])
