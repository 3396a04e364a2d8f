"""Normal form, facts, and near-duplicate search that finds exactly what comparing all pairs finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.signatures import NearTexts
from embedsmith.text import (
    OwnNames,
    count_words,
    exact_form,
    jaccard,
    nearness,
    normalize,
    runs_of,
    same_facts,
    trigrams,
)
from near_texts import compare_all

QUESTIONS = st.text(alphabet="abc de", min_size=1, max_size=25)


def test_the_normal_form_drops_case_spaces_and_closing_marks() -> None:
    assert normalize("  How do I  FREEZE my card?? ") == normalize("how do i freeze my card")
    assert normalize("ﬁx it…") == "fix it"


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("ما هو الرصيد؟", "ما هو الرصيد"),
        ("\u200fما هو الرصيد؟\u200f", "ما هو الرصيد"),
        ("मेरा बैलेंस क्या है।", "मेरा बैलेंस क्या है"),
        ("Πώς πληρώνω\u037e", "Πώς πληρώνω"),
        ("Ինչպե՞ս վճարել", "Ինչպես վճարել"),
        ("¿Cómo pago?", "Cómo pago"),
        ("\ufeffHow do I pay\u200b?", "How do I pay"),
        ("pay\u00adment", "payment"),
        ("a\u200b\u0301", "á"),
    ],
)
def test_marks_of_other_writings_and_what_is_not_seen_are_no_difference(marked: str, plain: str) -> None:
    assert normalize(marked) == normalize(plain)


@pytest.mark.parametrize("telling", ["c++", "c#", "5%", "f(x)", "می\u200cخواهم", "👩\u200d💻"])
def test_signs_that_say_something_stay(telling: str) -> None:
    assert normalize(f"{telling}?") == telling


def test_two_signs_of_a_writing_without_spaces_are_a_word_of_a_run() -> None:
    assert runs_of("How do I pay?", 3) == ["how do i", "do i pay"]
    assert runs_of("申请退款", 2) == ["申 请 退 款"]
    assert runs_of("用 GPT-4 申请退款", 2) == ["用 gpt 4", "gpt 4", "4 申 请", "申 请 退 款"]
    assert [count_words(text) for text in ("How do I pay?", "我想申请退款", "ไทย now", "")] == [4, 3, 2.5, 0]


@given(st.text(alphabet="ab 申请退ก。", max_size=40), st.integers(1, 8))
def test_every_run_has_its_length_and_no_start_is_left_out(text: str, length: int) -> None:
    runs = runs_of(text, length)
    assert all(length <= count_words(run) < length + 1 for run in runs)
    assert bool(runs) == (count_words(text) >= length)


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


@given(st.text("abc 01", max_size=30), st.text("abc 01", max_size=30))
def test_near_is_a_jaccard_of_nine_tenths_with_the_same_facts(left: str, right: str) -> None:
    grams = trigrams(left), trigrams(right)
    closeness = jaccard(*grams)
    assert nearness(left, right, *grams) == (closeness if closeness >= 0.9 and same_facts(left, right) else 0.0)


def test_nine_trigrams_of_ten_are_near() -> None:
    ten = frozenset("abcdefghij")
    assert nearness("pay", "pay", ten, ten - {"j"}) == 0.9
    assert nearness("pay 1", "pay 2", ten, ten) == 0.0
