"""Normal form, facts, and near-duplicate search that finds exactly what comparing all pairs finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.signatures import NearTexts
from embedsmith.text import jaccard, normalize, same_facts, trigrams
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
