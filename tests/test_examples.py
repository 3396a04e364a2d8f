"""Formats are found by column names; splits leak nothing; what is written comes back."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import (
    Example,
    LabelledPair,
    LabelledText,
    PositivePair,
    Provenance,
    ScoredPair,
    Triplet,
    connect,
    detect_format,
    draw_groups,
    read_examples,
    split,
    texts_of,
    write_examples,
)
from embedsmith.text import normalize


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))  # with NaN, as pandas writes it


KINDS: list[Example] = [
    PositivePair("a", "b"),
    Triplet("a", "b", ("c", "d")),
    ScoredPair("a", "b", 4.5),
    LabelledPair("a", "b", 1, group="7", provenance=Provenance("7", "abcd", "openai:m", 3, ("form", "leak"))),
    LabelledText("where is my card", "card_arrival"),
]


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("anchor positive", PositivePair),
        ("positive negative anchor", Triplet),
        ("query pos neg", Triplet),
        ("negative_2 negative_1 anchor positive", Triplet),
        ("label b a", LabelledPair),
        ("sentence1 sentence2 score", ScoredPair),
        ("question1 question2 is_duplicate", LabelledPair),
        ("text label", LabelledText),
    ],
)
def test_names_decide_and_their_order_does_not(columns: str, kind: type[Example]) -> None:
    names = columns.split()
    assert detect_format(names).kind is kind
    assert detect_format(reversed(names)).kind is kind


@pytest.mark.parametrize(
    ("header", "row", "kind"),
    [
        ("query,passage,label", "rates,Rates rose.,0", LabelledPair),
        ("question,answer,score", "rates,Rates rose.,2.5", ScoredPair),
        ("query,passage", "rates,Rates rose.", PositivePair),
    ],
)
def test_a_passage_with_a_label_or_a_score_is_not_taken_for_a_right_one(
    tmp_path: Path, header: str, row: str, kind: type[Example]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n{row}\n")
    found = read_examples(path)
    assert found.kind is kind
    assert getattr(found.examples[0], "label", 0) == 0
    assert found.lines == (2,)


def test_negatives_are_in_the_order_of_their_numbers_as_a_teachers_scores_are() -> None:
    names = [f"negative_{number}" for number in range(1, 12)]
    found = detect_format(["query", "positive", "scores", *names]).columns["negatives"]
    assert found == tuple(names)
    assert detect_format(["anchor", "positive", "neg_2", "negative"]).columns["negatives"] == ("negative", "neg_2")


def test_what_is_told_of_a_negative_is_no_negative_and_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("anchor,positive,negative_text,negative_id,neg_score,group\na,b,c,doc17,0.83,7\n")
    found = read_examples(path)
    assert found.examples == (Triplet("a", "b", ("c",), "7"),)
    assert found.unread == ("negative_id", "neg_score")


@pytest.mark.parametrize("own", [{"url": "x"}, {"source": 5, "prompt": "p", "model": "m"}, "handbook", 7])
def test_a_provenance_of_the_users_own_is_a_column_like_any_other(tmp_path: Path, own: object) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "b", "provenance": own}])
    found = read_examples(tmp_path / "rows.jsonl")
    assert found.examples == (PositivePair("a", "b"),)
    assert found.unread == ("provenance",)


def test_a_provenance_without_checks_is_one(tmp_path: Path) -> None:
    told = {"source": "1", "prompt": "p", "model": "m", "checks": None}
    write_rows(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "b", "provenance": told}])
    assert read_examples(tmp_path / "rows.jsonl").examples[0].provenance == Provenance("1", "p", "m")


def test_an_instruction_is_a_text_or_none_and_anything_else_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    given = ["find it", None, "", float("nan"), 5, ["find it"]]
    write_rows(path, [{"anchor": f"a{row}", "positive": "b", "task": task} for row, task in enumerate(given)])
    found = read_examples(path)
    told = [example.instruction for example in found.examples if isinstance(example, PositivePair)]
    assert told == ["find it", None, None, None]
    assert [row.detail for row in found.rejected] == ["task is 5, not a text", "task is ['find it'], not a text"]


def test_groups_and_classes_of_a_float_column_are_its_integers_and_gaps_are_none(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "pairs.jsonl",
        [{"anchor": "a", "positive": "b", "group": group} for group in (7, 7.0, float("nan"), 0, None)],
    )
    assert [row.group for row in read_examples(tmp_path / "pairs.jsonl").examples] == ["7", "7", None, "0", None]
    write_rows(tmp_path / "texts.jsonl", [{"text": "a", "label": label} for label in (7, 7.0, float("nan"))])
    found = read_examples(tmp_path / "texts.jsonl")
    assert found.examples == (LabelledText("a", "7"), LabelledText("a", "7"))
    assert [row.detail for row in found.rejected] == ["label has no class"]


@pytest.mark.parametrize("row", ['{"text": "a", "label": null}', '{"sentence1": "a", "sentence2": "b", "score": NaN}'])
def test_a_class_or_a_score_that_is_none_is_no_row(tmp_path: Path, row: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n")
    with pytest.raises(InputError, match="no usable row"):
        read_examples(path)


@pytest.mark.parametrize("columns", ["a b", "foo bar", "", "sentence1 sentence2 label score"])
def test_what_fits_no_layout_is_refused_with_the_layouts(columns: str) -> None:
    with pytest.raises(InputError):
        detect_format(columns.split())


@pytest.mark.parametrize("example", KINDS, ids=lambda example: type(example).__name__)
def test_what_is_written_comes_back(tmp_path: Path, example: Example) -> None:
    write_examples(tmp_path / "x.jsonl", [example])
    assert read_examples(tmp_path / "x.jsonl").examples == (example,)


def test_whole_groups_are_drawn_and_the_last_one_is_cut() -> None:
    groups = [*["large"] * 30_000, *map(str, range(40)), *map(str, range(40))]
    drawn = draw_groups(groups, 20)
    taken = Counter(groups[place] for place in drawn)
    assert len(drawn) == 20
    assert drawn == sorted(drawn)
    assert sum(count == 2 for name, count in taken.items() if name != "large") >= len(taken) - 2
    assert len(draw_groups(groups, 20_000)) == 20_000
    assert draw_groups(groups, 10**6) == list(range(len(groups)))
    assert Counter(groups[::-1][place] for place in draw_groups(groups[::-1], 20)) == taken, "rows in another order"


def test_bad_rows_keep_their_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\nx,y,1\nx,,1\nx,z,2\n")
    found = read_examples(path)
    assert found.examples == (LabelledPair("x", "y", 1),)
    assert [(row.line, row.reason) for row in found.rejected] == [(3, "bad-row"), (4, "bad-row")]
    with pytest.raises(InputError, match="LabelledPair rows"):
        read_examples(path, kind=Triplet)


PAIRS = st.lists(
    st.builds(
        LabelledPair,
        st.sampled_from("abcdefghijklmnop"),
        st.sampled_from("qrstuvwxyz"),
        st.integers(0, 1),
        st.sampled_from([None, "1", "2", "3"]),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_parts_share_no_group_and_no_text_and_do_not_depend_on_order(pairs: list[LabelledPair], chance, seed) -> None:  # type: ignore[no-untyped-def]
    fractions = {"train": 0.6, "test": 0.4}
    try:
        parts = split(pairs, fractions, seed=seed)
    except InputError:
        return  # everything hangs together: said in words, and tested below
    assert sum(map(len, parts.values())) == len(pairs)
    texts = [{normalize(text) for item in part for text in texts_of(item)} for part in parts.values()]
    groups = [{item.group for item in part} - {None} for part in parts.values()]
    assert not texts[0] & texts[1]
    assert not groups[0] & groups[1]
    shuffled = list(pairs)
    chance.shuffle(shuffled)
    again = split(shuffled, fractions, seed=seed)
    for name in fractions:
        assert sorted(map(repr, parts[name])) == sorted(map(repr, again[name]))


def split_greedily(pairs: list[LabelledPair], fractions: dict[str, float], seed: int) -> dict[str, list[LabelledPair]]:
    """The split as it was when it left parts of small sets empty: what recorded figures were measured with."""
    units = connect(pairs)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for unit in random.Random(seed).sample(sorted(units), len(units)):
        name = min(fractions, key=lambda part: (len(parts[part]) + len(units[unit]) / 2) / fractions[part])
        parts[name].extend(units[unit])
    return {name: [pairs[place] for place in sorted(places)] for name, places in parts.items()}


SHARES = ({"train": 0.6, "choose": 0.2, "judge": 0.2}, {"train": 0.8, "test": 0.2}, {"one": 0.5, "two": 0.5})
UNITS = st.lists(st.integers(1, 4), min_size=1, max_size=40)  # rows of each


@settings(max_examples=200, deadline=None)
@given(UNITS, st.sampled_from((*SHARES, {"train": 0.98, "choose": 0.01, "judge": 0.01})), st.integers(0, 9))
def test_every_part_gets_a_unit_and_larger_sets_are_split_as_ever(
    sizes: list[int], fractions: dict[str, float], seed: int
) -> None:
    pairs = [LabelledPair(f"a{u}-{n}", f"b{u}-{n}", 1, f"{u}") for u, size in enumerate(sizes) for n in range(size)]
    if len(sizes) < len(fractions):
        with pytest.raises(InputError):
            split(pairs, fractions, seed=seed)
        return
    parts, before = split(pairs, fractions, seed=seed), split_greedily(pairs, fractions, seed)
    assert all(parts.values())
    assert sum(map(len, parts.values())) == len(pairs)
    assert parts == before or not all(before.values())
    groups = [{pair.group for pair in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=20, max_size=60), st.sampled_from(SHARES), st.integers(0, 9))
def test_sets_of_twenty_units_and_more_are_split_as_ever(
    sizes: list[int], fractions: dict[str, float], seed: int
) -> None:
    pairs = [LabelledPair(f"a{u}-{n}", f"b{u}-{n}", 1, f"{u}") for u, size in enumerate(sizes) for n in range(size)]
    assert split(pairs, fractions, seed=seed) == split_greedily(pairs, fractions, seed)


def test_three_units_are_enough_for_three_parts() -> None:
    pairs = [LabelledPair(f"a{row}", f"b{row}", 1) for row in range(3)]
    for seed in range(20):
        assert [len(part) for part in split(pairs, SHARES[0], seed=seed).values()] == [1, 1, 1]


def test_a_set_that_hangs_together_cannot_be_split() -> None:
    pairs = [LabelledPair("a", "b", 1), LabelledPair("b", "c", 0)]
    with pytest.raises(InputError, match="1 unit"):
        split(pairs, {"train": 0.5, "test": 0.5})
    with pytest.raises(ConfigurationError, match="sum to 1"):
        split(pairs, {"train": 0.5, "test": 0.1})


def test_shares_are_met_on_many_small_units() -> None:
    pairs = [LabelledPair(f"a{row}", f"b{row}", row % 2) for row in range(1000)]
    parts = split(pairs, {"train": 0.8, "test": 0.2})
    assert len(parts["test"]) == pytest.approx(200, abs=2)


def test_columns_that_the_first_row_lacks_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"anchor": "a", "positive": "b"},
        {"anchor": "c", "positive": "d", "negative": ["e", "f"], "group": "1", "instruction": "find it"},
        {"sentence1": "x", "sentence2": "y", "label": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(path)
    assert found.kind is Triplet
    assert found.examples == (Triplet("a", "b", ()), Triplet("c", "d", ("e", "f"), "1", instruction="find it"))
    assert [(row.line, row.detail) for row in found.rejected] == [(3, "no column 'anchor'")]
