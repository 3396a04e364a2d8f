"""Controlled edits: one fact changes, the sentence stays; the same seed gives the same edits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.facts import find_changes
from embedsmith.synthesis.edits import OTHERS, Edit, collect_names, draw_edits, list_edits

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


def edit_queries(queries: Sequence[str], *, each: int = 2, seed: int = 0) -> list[Edit]:
    names = collect_names(queries)
    return [edit for query in queries for edit in draw_edits(query, names, seed=seed)[:each]]


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


def write_names(count: int) -> list[str]:
    return ["".join(letters).title() for letters in islice(product("bdfgkl", "aeiou", "mnprst", "aeiou", "xz"), count)]


@given(
    st.lists(
        st.frozensets(st.sampled_from(["to", "near", "from", "in", "at", "by"]), min_size=1), min_size=2, max_size=12
    )
)
def test_no_name_of_a_kind_is_missed_and_no_other_is_found(words: list[frozenset[str]]) -> None:
    before = {name: own for name, own in zip(write_names(12), words, strict=False) if len(own) >= 3}
    texts = [f"we went {word} {name} then" for name, own in before.items() for word in own]
    kinds = {
        name: sorted(
            other
            for other, more in before.items()
            if other != name and len(own & more) >= 3 and 2 * len(own & more) >= len(own | more)
        )
        for name, own in before.items()
    }
    assert collect_names(texts) == kinds


def test_of_many_names_each_gets_some_the_same_in_any_order() -> None:
    texts = [f"we went {word} {name} then" for name in write_names(500) for word in ("to", "near", "from")]
    found = collect_names(texts)
    assert {len(others) for others in found.values()} == {OTHERS}
    assert all(name not in others for name, others in found.items())
    assert found == collect_names(texts[::-1])


@pytest.mark.parametrize("query", ["", "Hallo, wie geht es dir?", "如何取消订阅", "What is love?"])
def test_where_nothing_can_be_changed_safely_nothing_is(query: str) -> None:
    assert edit_queries([query]) == []


def test_nobody_of_another_age_is_put_into_an_intimate_question() -> None:
    assert edits_of("Is sex painful for women at first?", "population") == set()
    assert edits_of("Is running painful for women at first?", "population") == {"Is running painful for men at first?"}
