"""Evaluation texts in other texts, held-out rows among training rows, and the search for near texts behind both."""

from __future__ import annotations

import random

import pytest

from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, Triplet
from embedsmith.leakage import LeakIndex, find_shared
from embedsmith.signatures import NearTexts
from near_texts import compare_all

ASKED = "How can I appeal against a fine for parking in the wrong bay?"


def vary(texts: list[str], count: int, longest: int) -> list[str]:
    """Return texts of 0 to `longest` words, most of them an earlier one with a word or two changed."""
    drawn = random.Random(longest)
    stock = ["valve", "grid", "not", "7", "12", "pump", "tariff", "notice", "a", "without", "month", "ü"]
    while len(texts) < count:
        fresh = drawn.choices(stock, k=drawn.randrange(longest + 1))
        words = fresh if not texts or drawn.random() < 0.3 else drawn.choice(texts).split()
        for _ in range(drawn.randrange(3) if words else 0):
            words[drawn.randrange(len(words))] = drawn.choice(stock)
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("longest", [4, 20, 150, 700], ids="up to {} words".format)
def test_near_texts_are_those_that_comparing_all_finds(longest: int) -> None:
    texts = vary([], 160, longest)
    held, asked = texts[:100], texts[60:]
    near = NearTexts(held.__getitem__)
    for text in held:
        near.add(text)
    expected = [compare_all(held, text) for text in asked]
    assert [near.find(text) for text in asked] == expected
    assert len({None if found is None else found[0] for found in expected[40:]}) > 5


def test_a_document_may_quote_a_question_where_only_questions_are_searched() -> None:
    question = f"Good morning, I am new here. {ASKED} Thanks"
    document = f"{'Some words of a long page about parking and fines. ' * 8} {ASKED}"
    elsewhere = ASKED.replace("bay", "zone")
    free, bound = LeakIndex([ASKED]), LeakIndex([ASKED], same_kind=True)
    assert [index.find(question) is not None for index in (free, bound)] == [True, True]
    assert [index.find(document) is not None for index in (free, bound)] == [True, False]
    assert [index.find(elsewhere) is not None for index in (free, bound)] == [True, False]


@pytest.mark.parametrize(
    ("asked", "longer", "other"),
    [
        ("如何在生产环境中回滚失败的数据库迁移？", "您好，请问如何在生产环境中回滚失败的数据库迁移？谢谢您", "失败"),
        ("失敗したデータベース移行を元に戻すには？", "こんにちは、失敗したデータベース移行を元に戻すには？", "移行"),
    ],
)
def test_a_question_without_spaces_is_found_in_a_longer_one(asked: str, longer: str, other: str) -> None:
    index = LeakIndex([asked], same_kind=True)
    assert str(index.find(longer)).startswith("has 100% of the runs of 8 words")
    assert index.find(longer.replace(other, "別個")) is None


def test_a_leak_says_what_was_found() -> None:
    index = LeakIndex([ASKED, "", " "])
    assert len(index) == 1
    assert str(index.find(ASKED.upper())) == f"the same text is in the evaluation set: “{ASKED}”"
    assert str(index.find(ASKED.replace("can I", "can, I"))) == f"Jaccard 1.00 with “{ASKED}”"
    assert str(index.find(f"Hello, all of you out there! {ASKED}")).startswith(
        "has 100% of the runs of 8 words of “How"
    )
    assert LeakIndex([]).find(ASKED) is None


@pytest.mark.parametrize(
    ("trained", "held", "same", "near"),
    [
        (LabelledPair("freeze my card", "block my card", 1), LabelledPair("BLOCK my card.", "freeze my card", 0), 1, 0),
        (PositivePair("freeze my card", "a page"), LabelledPair("freeze my card", "a page", 1), 1, 0),
        (Triplet("freeze my card", "a page", ("another",)), LabelledPair("freeze my card", "another", 0), 1, 0),
        (Triplet("freeze my card", "a page", ("another",)), LabelledPair("a page", "another", 0), 0, 0),
        (PositivePair("freeze, my card", "a page"), PositivePair("freeze my card", "a page"), 0, 1),
        (PositivePair("freeze my 2 cards", "a page"), PositivePair("freeze my 3 cards", "a page"), 0, 0),
        (PositivePair("freeze my card", "a page"), PositivePair("freeze my card", "another"), 0, 0),
        (LabelledText("freeze my card", "cards"), LabelledText("Freeze my card!", "accounts"), 1, 0),
    ],
)
def test_a_row_is_shared_when_a_pair_of_it_is(trained: Example, held: Example, same: int, near: int) -> None:
    shared = find_shared([trained], [LabelledText("nothing of the kind", "x"), held])
    assert (shared.same, shared.near) == ((2,) * same, (2,) * near)
