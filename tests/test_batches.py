"""Batches: every row once an epoch, no source twice in a batch, no answer as a negative."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith import batches
from embedsmith.batches import (
    Mixing,
    Plan,
    Prompts,
    Row,
    Source,
    collect,
    collect_rows,
    contrast,
    count_batches,
    count_pairs,
    find_crowds,
    list_up,
    localize,
    order_batches,
    pair_up,
    pairs_of,
    prompt_alone,
    saved_prompts,
    triple_up,
)
from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet

CARD: list[Example] = [
    LabelledPair("freeze my card", "block my debit card", 1, group="7"),
    LabelledPair("freeze my card", "lock the card for now", 1, group="7"),
    LabelledPair("freeze my card", "unfreeze my card", 0, group="7"),
    LabelledPair("lost pin", "forgot my pin", 1, group="8"),
]


def test_rows_join_what_has_the_same_anchor_whatever_the_format() -> None:
    data = collect_rows(CARD)
    assert [(len(row.positives), len(row.negatives)) for row in data.rows] == [(2, 1), (1, 0)]
    triplet = collect_rows([Triplet("a", "b", ("c", "d")), PositivePair("a", "e")])
    assert [(len(row.positives), len(row.negatives)) for row in triplet.rows] == [(2, 2)]


def test_scores_classes_and_instructions_become_rows() -> None:
    scored = collect_rows([ScoredPair("a", "b", 4.5)])
    assert scored.rows[0].scores == (4.5,)
    classes = collect_rows([LabelledText("where is my card", "arrival"), LabelledText("card lost", "lost")])
    assert [row.label for row in classes.rows] == [0, 1]
    taught = collect_rows([Triplet("a", "b", ("c",), scores=(0.9, 0.2))])
    assert triple_up(taught.rows).margins.tolist() == pytest.approx([0.7])
    lists = list_up([*taught.rows, replace(taught.rows[0], negatives=(), scores=(0.5,))])
    assert lists.mask.tolist() == [[True, True], [True, False]]


def test_prompts_stand_before_queries_and_where_both_sides_are_alike_before_both() -> None:
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ", document="passage: ")
    asked = PositivePair("rates", "Rates rose.", instruction="find the passage")
    assert collect([Source((asked,))], prompts).texts == (
        "Instruct: find the passage\nQuery: rates",
        "passage: Rates rose.",
    )
    both = Source((ScoredPair("a", "b", 1.0),), prompts=Prompts(query="same? "))
    assert collect([both], prompts).texts == ("same? a", "same? b")
    assert collect([replace(both, symmetric=False)], prompts).texts == ("same? a", "b")


def test_a_contrast_never_has_another_positive_of_its_anchor_among_the_negatives() -> None:
    data = collect_rows(CARD)
    texts, rows = localize(data.rows)
    text = [data.texts[place] for place in texts]
    contrasts = contrast(rows)
    assert len(contrasts.anchors) == 3
    assert [text[place] for place in contrasts.candidates] == [
        "block my debit card",
        "lock the card for now",
        "forgot my pin",
        "unfreeze my card",
    ]
    assert contrasts.excluded.tolist() == [[0, 1], [1, 0]]
    pairs = pair_up(rows)
    both = [(text[left], text[right]) for left, right in zip(pairs.left, pairs.right, strict=True)]
    labels = dict(zip(both, pairs.labels.tolist(), strict=True))
    assert labels["freeze my card", "unfreeze my card"] == 0
    assert labels["block my debit card", "lock the card for now"] == 1  # both answer as the anchor does
    assert labels["block my debit card", "unfreeze my card"] == 0
    assert len(both) == 7


def test_an_answer_in_another_row_of_the_batch_is_no_negative_either() -> None:
    """Each row of a file may have a group of its own: rows with one anchor meet in a batch then."""
    rows = [Row(0, (1,), (3,), "g1"), Row(0, (2,), (1,), "g2"), Row(4, (5,), (), "g3")]
    found = contrast(rows)
    assert found.candidates.tolist() == [1, 2, 5, 3]
    assert found.excluded.tolist() == [[0, 1], [1, 0]]
    asked_back = contrast([Row(0, (1,), (), "g1"), Row(1, (0,), (), "g2")])  # an anchor is no negative of itself
    assert asked_back.excluded.tolist() == [[0, 1], [1, 0]]


def test_labels_follow_from_the_roles_and_grades_from_a_teacher() -> None:
    (row,) = collect_rows([Triplet("a", "b", ("c",), scores=(0.3, 0.2))]).rows
    assert [label for _, _, label in pairs_of(row)] == [1, 0, 0]
    assert pair_up([row]).labels.tolist() == [1, 0, 0]
    assert pair_up([row], graded=True).labels.tolist() == pytest.approx([0.3, 0.2])


@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4))
def test_pairs_in_arrays_are_those_of_the_list(rows: list[tuple[int, int]]) -> None:
    made = [Row(0, tuple(range(1, m + 1)), tuple(range(10, 10 + n)), "") for m, n in rows]
    found = pair_up(made)
    listed = [pair for row in made for pair in pairs_of(row)]
    assert list(zip(found.left.tolist(), found.right.tolist(), found.labels.tolist(), strict=True)) == listed
    assert len(listed) == sum(count_pairs(row) for row in made)
    triples = triple_up(made)
    assert len(triples.anchors) == sum(m * n for m, n in rows)


def test_of_a_row_with_too_many_pairs_the_anchors_own_count_and_a_drawn_part_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = Row(0, tuple(range(1, 101)), tuple(range(101, 301)), "")  # 5,050 + 20,200 pairs
    assert len(pair_up([row]).labels) == count_pairs(row) == 25_250
    monkeypatch.setattr(batches, "PAIRS", 5000)
    found = pair_up([row])
    pairs = list(zip(found.left.tolist(), found.right.tolist(), found.labels.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) <= 5300
    assert set(pairs) <= set(pairs_of(row))
    assert {right for left, right, _ in pairs if left == 0} == set(range(1, 301))
    drawn = [label for left, _, label in pairs if left]
    assert len(drawn) > 3000
    assert sum(drawn) / len(drawn) == pytest.approx(4950 / (4950 + 20_000), abs=0.02)  # positives keep their share
    assert np.array_equal(pair_up([row]).right, found.right)
    triples = triple_up([row])
    assert 4000 < len(triples.anchors) <= 5000
    assert set(triples.positives.tolist()) == set(row.positives)


@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=40), size=st.integers(1, 8), seed=st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_no_group_twice_in_a_batch(groups: list[int], size: int, seed: int) -> None:
    rows = [Row(index, (), (), str(group)) for index, group in enumerate(groups)]
    dealt = order_batches(rows, Plan(size), seed=seed, epoch=0)
    assert sorted(row for batch in dealt for row in batch) == list(range(len(rows)))
    assert len(dealt) == count_batches(rows, Plan(size))
    for batch in dealt:
        assert len(batch) <= size
        assert len({rows[row].group for row in batch}) == len(batch)
    assert dealt == order_batches(rows, Plan(size), seed=seed, epoch=0)


def mixture(*counts: int) -> list[Row]:
    return [Row(0, (), (), f"{source}:{row}", source=source) for source, n in enumerate(counts) for row in range(n)]


def test_batches_hold_one_source_each_or_all_in_their_shares() -> None:
    rows = mixture(40, 20)
    apart = order_batches(rows, Plan(10), seed=0, epoch=0)
    assert sorted(len({rows[row].source for row in batch}) for batch in apart) == [1] * 6
    mixed = order_batches(rows, Plan(12, mixing="mixed"), seed=0, epoch=0)
    assert [sum(rows[row].source for row in batch) for batch in mixed] == [4] * 5
    assert sorted(row for batch in mixed for row in batch) == list(range(60))


@given(counts=st.lists(st.integers(1, 12), min_size=2, max_size=12), size=st.integers(1, 20), seed=st.integers(0, 3))
def test_batches_of_all_sources_have_the_same_size_and_none_is_empty(counts: list[int], size: int, seed: int) -> None:
    """Sources with fewer rows than there are batches went into batches of their own choice: some were left empty."""
    dealt = order_batches(mixture(*counts), Plan(size, mixing="mixed"), seed=seed, epoch=0)
    sizes = [len(batch) for batch in dealt]
    assert sum(sizes) == sum(counts)
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= max(sizes) <= size


@given(weights=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=st.integers(0, 5), mixed=st.booleans())
def test_weighted_sources_take_their_share_and_go_on_where_they_stopped(
    weights: tuple[int, int], seed: int, mixed: bool
) -> None:
    rows = mixture(30, 10)
    plan = Plan(8, weights=weights, mixing="mixed" if mixed else "apart")
    seen: list[int] = []
    for epoch in range(4):
        dealt = order_batches(rows, plan, seed=seed, epoch=epoch)
        assert len(dealt) == count_batches(rows, plan)
        assert all(len(set(batch)) == len(batch) for batch in dealt)
        seen += [row for batch in dealt for row in batch if row >= 30]
    share = len(seen) / (4 * 40)
    assert share == pytest.approx(weights[1] / sum(weights), abs=0.02)
    counts = [seen.count(row) for row in range(30, 40)]
    assert max(counts) - min(counts) <= 1


CROWDED = [Row(place, (), (), "one" if place < 40 else str(place)) for place in range(100)]


def test_groups_are_kept_apart_only_where_rows_are_each_others_negatives() -> None:
    apart = order_batches(CROWDED, Plan(50), seed=0, epoch=0)
    assert [len({CROWDED[row].group for row in batch}) for batch in apart] == [len(batch) for batch in apart]
    assert len(apart) == 40
    free = Plan(50, free=frozenset({0}))
    together = order_batches(CROWDED, free, seed=0, epoch=0)
    assert [len(batch) for batch in together] == [50, 50]
    assert count_batches(CROWDED, free) == 2
    assert [sum(CROWDED[row].group == "one" for row in batch) for batch in together] == [20, 20]  # evenly, all the same
    assert sorted(row for batch in together for row in batch) == list(range(100))


@pytest.mark.parametrize("mixing", ["apart", "mixed"])
def test_a_free_source_that_repeats_has_no_row_twice_in_a_batch(mixing: Mixing) -> None:
    rows = [*mixture(200), *(Row(place, (), (), "one", source=1) for place in range(20))]
    plan = Plan(40, weights=(1.0, 1.0), mixing=mixing, free=frozenset({1}))
    dealt = order_batches(rows, plan, seed=0, epoch=0)
    assert len(dealt) == count_batches(rows, plan) == {"apart": 3 + 7, "mixed": 7}[mixing]  # a row comes up to 7 times
    assert all(len(set(batch)) == len(batch) for batch in dealt)
    assert sum(row >= 200 for batch in dealt for row in batch) == 110


def test_a_group_that_shrinks_the_batches_below_half_is_found() -> None:
    (crowd,) = find_crowds(CROWDED, Plan(50))
    assert (crowd.rows, crowd.most, crowd.size, crowd.planned) == (100, 40, 2.5, 50)
    assert find_crowds(CROWDED, Plan(50, free=frozenset({0}))) == []
    assert find_crowds(CROWDED, Plan(2)) == []
    both = [*CROWDED, *(replace(row, source=1, group=f"x{row.anchor}") for row in CROWDED)]
    (mixed,) = find_crowds(both, Plan(100, mixing="mixed"))
    assert (mixed.source, mixed.rows, mixed.size, mixed.planned) == (0, 200, 5.0, 100)
    assert [crowd.source for crowd in find_crowds(both, Plan(100))] == [0]


@given(rows=st.integers(1, 60), size=st.integers(1, 70))
def test_batches_of_rows_with_groups_of_their_own_are_never_below_half(rows: int, size: int) -> None:
    assert find_crowds(mixture(rows), Plan(size)) == []


def test_texts_of_a_class_come_together() -> None:
    rows = [Row(place, (), (), str(place), label=place % 7) for place in range(70)]
    dealt = order_batches(rows, Plan(16), seed=0, epoch=0)
    assert sorted(row for batch in dealt for row in batch) == list(range(70))
    for batch in dealt:
        labels = [rows[row].label for row in batch]
        assert any(labels.count(label) > 1 for label in labels)
        assert len(set(labels)) > 1


def test_the_most_frequent_instruction_is_saved_and_none_at_all_is_a_mistake() -> None:
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ")
    asked = [PositivePair(str(row), "x", instruction="find it" if row else "name it") for row in range(3)]
    saved, notes = saved_prompts([Source(tuple(asked))], prompts)
    assert saved.query == "Instruct: find it\nQuery: "
    assert notes == ("prompt for queries saved with the instruction 'find it', the most frequent of 2",)
    assert saved_prompts([Source(tuple(CARD))], Prompts("ask: ")) == (Prompts("ask: "), ())
    with pytest.raises(InputError, match="no example has one"):
        saved_prompts([Source(tuple(CARD))], prompts)


def test_a_text_by_itself_is_read_as_rows_with_equal_sides_were() -> None:
    prompts, asked = Prompts("query: ", "passage: "), PositivePair("rates", "Rates rose.")
    assert prompt_alone([Source((asked,))], prompts) == ""
    assert prompt_alone([Source((asked,)), Source(tuple(CARD))], prompts) == "query: "
    assert prompt_alone([Source((asked,), symmetric=True)], prompts) == "query: "
