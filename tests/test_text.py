"""Normal form, facts, and near-duplicate search that finds exactly what comparing all pairs finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.signatures import NearTexts
from embedsmith.text import OwnNames, exact_form, jaccard, normalize, same_facts, trigrams
from near_texts import compare_all

QUESTIONS = st.text(alphabet="abc de", min_size=1, max_size=25)


def test_the_normal_form_drops_case_spaces_and_closing_marks() -> None:
    assert normalize("  How do I  FREEZE my card?? ") == normalize("how do i freeze my card")
    assert normalize("ﬁx it…") == "fix it"


@given(st.text(max_size=40))
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("in 30 days", "in 60 days", False),
        ("it works", "it doesn't work", False),
        ("it doesn’t work", "it does not work", True),
        ("pay 1,000.50 now", "now pay 1,000.50", True),
    ],
)
def test_numbers_and_negations_are_facts(left: str, right: str, same: bool) -> None:
    assert same_facts(left, right) is same


@given(QUESTIONS, QUESTIONS)
def test_jaccard_is_symmetric_and_one_for_the_same(left: str, right: str) -> None:
    assert jaccard(trigrams(left), trigrams(right)) == jaccard(trigrams(right), trigrams(left))
    assert jaccard(trigrams(left), trigrams(left)) == 1
    assert 0 <= jaccard(trigrams(left), trigrams(right)) <= 1


@settings(max_examples=150, deadline=None)
@given(st.lists(QUESTIONS, max_size=12), QUESTIONS, st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(texts: list[str], text: str, threshold: float) -> None:
    index = NearTexts(texts.__getitem__, threshold=threshold)
    for other in texts:
        index.add(other)
    assert index.find(text) == compare_all(texts, text, threshold)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How do I freeze my card?", "how do I freeze my card"),
        ("how do i freeze my card", "How do I freeze my card"),
        ("what is the purpose of life ?", "What is the purpose of life??"),
        ("  what’s the fee, in euros\n", "What's the fee, in euros?"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("\n    a()\n    b()\n", "    a()\n    b()"),
    ],
)
def test_the_exact_form_joins_what_asks_for_the_same_word_for_word(left: str, right: str) -> None:
    assert exact_form(left) == exact_form(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is 5!", "What is 5"),
        ("What is 10²?", "What is 102?"),
        ("What is the ASCII code of A?", "What is the ASCII code of a?"),
        ("?", "..."),
        ("for x in y:\n    a()\n    b()", "for x in y:\n    a()\nb()"),
        ("    a()\n    b()", "a()\n    b()"),
        ("what do i and j mean", "what do I and j mean"),
        ("what is the value of i", "what is the value of I"),
        ("WHO is in Geneva", "who is in Geneva"),
        ("you are coming?", "you are coming."),  # to be translated
        ("what matches [ab]?", "what matches [ab]"),
        ("import numpy as np\nnp.", "import numpy as np\nnp"),
        ("when is /s?", "when is /S?"),
        ("what are  two spaces", "what are two spaces"),
        ("Is?", "is"),
    ],
)
def test_the_exact_form_keeps_apart_what_may_ask_for_something_else(left: str, right: str) -> None:
    assert exact_form(left) != exact_form(right)


@given(st.text(max_size=40))
def test_the_exact_form_is_its_own_exact_form(text: str) -> None:
    assert exact_form(exact_form(text)) == exact_form(text)


@given(st.text(alphabet="HhWwiIsao ?.!’'\n2²", max_size=12), st.text(alphabet="HhWwiIsao ?.!’'\n2²", max_size=12))
def test_what_has_one_exact_form_has_one_normal_form(left: str, right: str) -> None:
    if exact_form(left) == exact_form(right):
        assert normalize(left) == normalize(right)


@given(st.lists(st.sampled_from(["7", "7~2", "7~3", "8"]), max_size=30))
def test_own_names_are_the_first_free_ones(asked: list[str]) -> None:
    names, taken = OwnNames(), list[str]()
    for name in asked:
        free = next(one for one in (name, *(f"{name}~{number}" for number in range(2, 99))) if one not in taken)
        assert names.give(name) == free
        taken.append(free)
