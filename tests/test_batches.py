"""Batches: every row once an epoch, no source twice in a batch, no answer as a negative."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.batches import Row, assemble, collect_rows, count_batches, order_batches
from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, Triplet

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


def test_texts_with_classes_are_refused_with_what_would_do() -> None:
    with pytest.raises(InputError, match="LabelledText"):
        collect_rows([LabelledText("where is my card", "card_arrival")])


def test_a_contrast_never_has_another_positive_of_its_anchor_among_the_negatives() -> None:
    data = collect_rows(CARD)
    batch = assemble(data.rows)
    text = [data.texts[place] for place in batch.texts]
    assert len(batch.anchors) == 3
    assert [text[place] for place in batch.candidates] == [
        "block my debit card",
        "lock the card for now",
        "forgot my pin",
        "unfreeze my card",
    ]
    assert batch.excluded.tolist() == [
        [False, True, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]
    pairs = [(text[left], text[right]) for left, right in zip(batch.left, batch.right, strict=True)]
    labels = dict(zip(pairs, batch.labels.tolist(), strict=True))
    assert labels["freeze my card", "unfreeze my card"] == 0
    assert labels["block my debit card", "lock the card for now"] == 1  # both answer as the anchor does
    assert labels["block my debit card", "unfreeze my card"] == 0
    assert len(pairs) == 7


@given(groups=st.lists(st.integers(0, 6), max_size=40), size=st.integers(1, 8), seed=st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_no_group_twice_in_a_batch(groups: list[int], size: int, seed: int) -> None:
    rows = [Row(index, (), (), str(group)) for index, group in enumerate(groups)]
    batches = order_batches(rows, size=size, seed=seed, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert len(batches) == count_batches(rows, size=size)
    for batch in batches:
        assert len(batch) <= size
        assert len({rows[row].group for row in batch}) == len(batch)
    assert batches == order_batches(rows, size=size, seed=seed, epoch=0)
