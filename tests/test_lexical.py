"""LexicalIndex: BM25 beside the encoders; the same texts always give the same ranking."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from embedsmith.errors import InputError
from embedsmith.lexical import TOKEN, LexicalIndex, part_pairs, warn_of_silence

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


def test_chinese_japanese_and_thai_are_found_by_pairs_of_characters() -> None:
    texts = ["東京は日本の首都です。", "大阪は商業の街です。", "退款需要三十天。", "กรุงเทพเป็นเมืองหลวง", "iPhone用の猫"]
    index = LexicalIndex(texts)
    for place, query in enumerate(["東京の首都", "大阪の街", "三十天退款", "เมืองหลวง", "iphone"]):
        assert index.search([query], k=1)[0].item() == place
        assert index.score(query)[place] > 0
    assert index.score("猫が").tolist() == [0.0] * 5
    assert LexicalIndex(["a 猫 here", "a dog there"]).score("猫")[0] > 0  # alone, it is read alone


@pytest.mark.parametrize(
    ("query", "scores"),
    [
        ("boilers' pressures 2024", [1.5346322059631348, 0, 0, 0, 0, 0]),
        ("café VAT email", [0, 1.0230880975723267, 0, 0, 0, 0]),
        ("Haus Straßen", [0, 0, 0.7023791074752808, 0, 0, 0]),
        ("мир", [0, 0, 0, 0.7023791074752808, 0, 0]),
        ("x86 a_b c.de", [0, 0, 0, 0, 1.7758843898773193, 0]),
        ("텍스트 공백", [0, 0, 0, 0, 0, 1.5492476224899292]),
    ],
)
def test_scripts_with_spaces_have_the_scores_they_had_before_pairs_were_read(query: str, scores: list[float]) -> None:
    texts = [
        "The boiler lost pressure in 2024; re-light the pilot's flame.",
        "Naïve café owners don't pay £3.50 (VAT incl.)",
        "Häuser und Straßen in München",
        "Привет мир, как дела",
        "e-mail me at a_b@c.de: I/O, C++ & x86-64",
        "한국어 텍스트 는 공백",
    ]
    assert LexicalIndex(texts).score(query).tolist() == pytest.approx(scores, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(some.text(some.characters(max_codepoint=0xDFF)))
def test_no_character_of_a_script_with_spaces_is_parted(text: str) -> None:
    assert part_pairs(text) == text
    assert re.findall(TOKEN, text) == re.findall(r"(?u)\b\w\w+\b", text)


@pytest.mark.parametrize("texts", [["the of", "and"], ["?", "!!"], ["", " "]])
def test_texts_without_any_word_are_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match=f"none of {len(texts)} texts has a word"):
        LexicalIndex(texts)


def test_a_warning_comes_where_most_queries_share_no_word() -> None:
    assert warn_of_silence(5, 10) is None
    assert "nothing for 6 of 10 queries" in (warn_of_silence(6, 10) or "")


def test_no_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no text to search"):
        LexicalIndex([])
