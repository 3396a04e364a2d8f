"""Controlled edits: one fact changes, the sentence stays; the same seed gives the same edits."""

from __future__ import annotations

import random

import pytest

from embedsmith.facts import find_changes
from embedsmith.synthesis.edits import collect_names, edit_queries, list_edits

QUERIES = [
    "Can I take 200 mg of ibuprofen before breakfast?",
    "How do I get from Oslo to Bergen without a car?",
    "Why is my dog limping on Monday?",
    "What should I do when I buy a used car?",
    "How long is a passport valid for children?",
]


def edits_of(query: str, kind: str) -> set[str]:
    found = list_edits(query, {}, random.Random(0))
    return {edit.text for edit in found if edit.kind == kind}


def test_each_kind_changes_one_thing() -> None:
    assert edits_of(QUERIES[0], "unit") == {"Can I take 200 g of ibuprofen before breakfast?"}
    assert edits_of(QUERIES[0], "time") == {"Can I take 200 mg of ibuprofen after breakfast?"}
    assert edits_of(QUERIES[0], "number") == {
        "Can I take 300 mg of ibuprofen before breakfast?",
        "Can I take 2000 mg of ibuprofen before breakfast?",
    }
    assert edits_of(QUERIES[1], "direction") == {"How do I get from Bergen to Oslo without a car?"}
    assert edits_of(QUERIES[1], "negation") == {"How do I get from Oslo to Bergen with a car?"}
    assert edits_of(QUERIES[2], "negation") == {"Why isn't my dog limping on Monday?"}
    assert edits_of(QUERIES[4], "population") == {"How long is a passport valid for adults?"}


def test_the_nearer_the_edit_the_higher_its_grade() -> None:
    grades = {edit.text: edit.grade for edit in list_edits("Is 30 g of salt too much?", {}, random.Random(0))}
    assert grades["Is 40 g of salt too much?"] > grades["Is 300 g of salt too much?"]


def test_an_article_fits_the_new_word() -> None:
    assert "Is an orange healthy?" in {
        edit.text for seed in range(9) for edit in list_edits("Is a banana healthy?", {}, random.Random(seed))
    }


def test_edits_are_the_same_for_a_seed_in_any_order_of_the_queries() -> None:
    forward = {edit.text for edit in edit_queries(QUERIES, seed=3)}
    assert forward == {edit.text for edit in edit_queries(QUERIES[::-1], seed=3)}
    assert all(find_changes(edit.query, edit.text) for edit in edit_queries(QUERIES))


def test_names_are_swapped_with_names_that_stand_behind_the_same_words() -> None:
    places = [f"we went {word} {name} then" for name in ("Leeds", "Hull") for word in ("to", "near", "from")]
    assert collect_names([*places, "we coded in Python then"]) == {"Leeds": ["Hull"], "Hull": ["Leeds"]}
    texts = {edit.text for edit in edit_queries([*places, "is rent high in Leeds?"], each=9)}
    assert "is rent high in Hull?" in texts


@pytest.mark.parametrize("query", ["", "Hallo, wie geht es dir?", "如何取消订阅", "What is love?"])
def test_where_nothing_can_be_changed_safely_nothing_is(query: str) -> None:
    assert list(edit_queries([query])) == []


def test_nobody_of_another_age_is_put_into_an_intimate_question() -> None:
    assert edits_of("Is sex painful for women at first?", "population") == set()
    assert edits_of("Is running painful for women at first?", "population") == {"Is running painful for men at first?"}
