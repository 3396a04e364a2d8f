"""Guards: which rows they are, and that they are known to be usable before any work is done on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedsmith.errors import InputError
from embedsmith.examples import LabelledPair
from embedsmith.guards import Numbering, bare, make_measure, read_guards

SCORED = '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "c", "sentence2": "d", "score": 2}\n'


def write(path: Path, content: str = SCORED) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def test_own_guards_stand_beside_the_shipped_ones(tmp_path: Path) -> None:
    assert set(read_guards([write(tmp_path / "mine.jsonl")])) == {"general_pairs", "general_sts", "mine"}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    own = [write(tmp_path / folder / "dev.jsonl") for folder in ("a", "b")]

    assert list(read_guards(own))[2:] == ["dev", "b/dev"]


@pytest.mark.parametrize("name", ["validation", "general_sts"])
def test_no_guard_takes_the_place_of_validation_or_of_a_shipped_one(tmp_path: Path, name: str) -> None:
    assert f"own/{name}" in read_guards([write(tmp_path / "own" / f"{name}.jsonl")])


def test_one_guard_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.jsonl")
    with pytest.raises(InputError, match="as another one is"):
        read_guards([path, path, path])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n', "one score only"),
        ('{"sentence1": "a", "sentence2": "b", "label": 1}\n', "label 1 only"),
        ('{"text": "a", "label": "x"}\n', "one class only"),
    ],
)
def test_rows_that_give_no_figure_are_refused_when_they_are_read(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_guards([write(tmp_path / "mine.jsonl", content)])


def test_of_a_large_guard_a_sample_is_looked_at() -> None:
    rows = [LabelledPair(f"left {row}", f"right {row}", row % 2) for row in range(50)]
    measure = make_measure("many", rows, Numbering(bare).place, most=20, resamples=2)

    assert measure.rows == 20
