"""Inspection: any set gets its figures, leaks are found, the page and the JSON hold the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embedsmith.artifacts import write_jsonl
from embedsmith.cli import app
from embedsmith.errors import InputError
from embedsmith.inspection import distinct_runs, evenness, gini, inspect, vendi_score
from embedsmith.leakage import LeakIndex
from embedsmith.report.inspection import write_inspection
from embedsmith.testing import FakeEncoder
from embedsmith.text import count_words, cut_words, words

PAIRS = [
    {"sentence1": "how do I renew a visa", "sentence2": "visa renewal", "label": 1, "group": "1"},
    {"sentence1": "how do I renew a visa", "sentence2": "how do I lose a visa", "label": 0, "group": "1"},
    {"sentence1": "can I pay after 30 days", "sentence2": "is paying after 60 days fine", "label": 1, "group": "2"},
    {
        "sentence1": "can I pay after 30 days",
        "sentence2": "what is <b>paying late</b>",
        "label": 0,
        "group": "2",
    },
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


def test_labelled_pairs_get_all_figures(pairs: Path) -> None:
    found = inspect(pairs, base=FakeEncoder())
    assert (found.kind, found.rows, found.counts) == ("LabelledPair", 4, {"positive": 2, "negative": 2})
    assert (found.diversity.texts, found.diversity.distinct, found.diversity.exact) == (8, 6, 2)
    assert set(found.overlaps) == {"positive", "negative"}
    assert found.coverage is not None
    assert (found.coverage.sources, found.coverage.gini) == (2, 0)
    assert found.label_reasons == {"changed-number": 1}
    assert found.hardness is not None
    assert found.hardness.average_precision is not None
    assert [row["row"] for row in found.rows_to_read] == [1, 2, 3, 4]


def test_rows_are_named_by_their_lines_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad row before them, and all but one group left out: the doubted label is still found where it stands."""
    other = [
        {"sentence1": f"way {row}", "sentence2": f"where {row}", "label": 1, "group": f"g{row}"} for row in range(30)
    ]
    write_jsonl(tmp_path / "rows.jsonl", [{"sentence1": "", "sentence2": "b", "label": 1}, *other, *PAIRS])
    monkeypatch.setattr("embedsmith.inspection.SCORED", len(PAIRS))
    monkeypatch.setattr("embedsmith.examples.draw_of", lambda name, seed=0: float(name.startswith("g")))
    found = inspect(tmp_path / "rows.jsonl", base=FakeEncoder())
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()

    assert found.labels
    for verdict, line in zip(found.labels, found.label_lines, strict=True):
        row = json.loads(lines[line - 1])
        assert (row["sentence1"], row["sentence2"]) == (verdict.pair.left, verdict.pair.right)
    for shown in found.rows_to_read:
        assert json.loads(lines[int(str(shown["row"])) - 1])["sentence1"] in shown.values()


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"anchor": "a b", "positive": "b a"}], "PositivePair"),
        ([{"anchor": "a b", "positive": "b a", "negative": ["c", "d"]}], "Triplet"),
        ([{"sentence1": "a b", "sentence2": "b a", "score": 0.5}], "ScoredPair"),
        ([{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}], "LabelledText"),
        ([{"id": 1, "text": "how are you"}, {"id": 2}], "text"),
    ],
)
def test_every_kind_of_file_can_be_inspected(tmp_path: Path, rows: list[dict[str, object]], kind: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = inspect(tmp_path / "rows.jsonl")
    assert found.kind == kind
    assert found.diversity.texts >= 1
    assert found.rows_to_read
    write_inspection(tmp_path / "out", found)
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["kind"] == kind


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])
    with pytest.raises(InputError, match="no row with a text"):
        inspect(tmp_path / "rows.jsonl")


def test_leaks_are_found_by_words_and_by_meaning(tmp_path: Path, pairs: Path) -> None:
    write_jsonl(
        tmp_path / "eval.jsonl",
        [{"text": "How do I renew a visa?"}, {"text": "renewal visa"}, {"text": "an oven for bread and cakes"}],
    )
    leak = inspect(pairs, against=[tmp_path / "eval.jsonl"], base=FakeEncoder()).leakage[0]
    assert leak.counts == {"exact": 1, "embedding": 1}
    assert leak.threshold is not None
    assert {item["text"] for item in leak.shown} == {"how do I renew a visa", "visa renewal"}


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("HOW can I appeal against a fine for parking here?", "exact"),
        ("How can I appeal, against a fine for parking here", "near"),
        ("I live in Hull. How can I appeal against a fine for parking here? Regards, Jo", "8-gram"),
        ("How can I appeal against a fine for speeding there?", None),
    ],
)
def test_each_way_to_leak(text: str, how: str | None) -> None:
    leak = LeakIndex(["How can I appeal against a fine for parking here?"]).find(text)
    assert (leak.how if leak else None) == how


def test_coverage_counts_the_rows_without_examples(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\nfour\n")
    coverage = inspect(pairs, log=tmp_path / "log.txt").coverage
    assert coverage is not None
    assert (coverage.sources, coverage.of, coverage.gini) == (2, 4, 0.5)


def test_texts_without_spaces_are_measured_in_words_of_two_signs(tmp_path: Path) -> None:
    rows = [
        {"anchor": "我想申请退款", "positive": "怎么申请退款"},
        {"anchor": "怎么取消我的订单呢请告诉我", "positive": "取消订单"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = inspect(tmp_path / "rows.jsonl")
    assert (found.lengths["anchor"].mean, found.lengths["positive"].mean) == ((3 + 6.5) / 2, 2.5)
    assert found.overlaps["positive"].mean == pytest.approx((4 / 8 + 4 / 12) / 2)
    assert found.diversity.distinct_2 > 0.9


def test_texts_with_spaces_are_measured_as_before() -> None:
    texts = ["How do I sort in C++?", "how do I sort in C#", "", "Wie geht's", "a b a b"]

    def before(length: int) -> float:
        found = [words(text) for text in texts]
        runs = [tuple(own[at : at + length]) for own in found for at in range(len(own) - length + 1)]
        return len(set(runs)) / len(runs)

    assert [distinct_runs(texts, length) for length in (1, 2, 3)] == [before(length) for length in (1, 2, 3)]
    assert [cut_words(text) for text in texts] == [words(text) for text in texts]
    assert [count_words(text) for text in texts] == [len(words(text)) for text in texts]


def test_worked_numbers() -> None:
    axes = np.eye(2, dtype=np.float32)
    assert vendi_score(axes[[0, 0, 1, 1]]) == pytest.approx(2)
    assert vendi_score(axes[[0, 0, 0]]) == pytest.approx(1)
    assert gini([1, 3]) == pytest.approx(0.25)
    assert evenness([5, 5]) == pytest.approx(1)
    assert distinct_runs(["a b a b"], 2) == pytest.approx(2 / 3)


def test_the_command_writes_a_page_that_quotes_texts_safely(tmp_path: Path, pairs: Path) -> None:
    write_jsonl(tmp_path / "rejected.jsonl", [{"reason": "duplicate"}, {"reason": "duplicate"}])
    out = tmp_path / "report"
    run = CliRunner().invoke(
        app, ["inspect", str(pairs), "--rejected", str(tmp_path / "rejected.jsonl"), "--out", str(out), "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["reasons"] == {"duplicate": 2}
    page = (out / "inspection.html").read_text()
    assert "&lt;b&gt;paying late" in page
    assert "<b>paying late" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_the_table_is_for_people(pairs: Path) -> None:
    run = CliRunner().invoke(app, ["inspect", str(pairs)])
    assert run.exit_code == 0, run.output
    for part in ("Vendi score", "changed-number", "rows to read", "labels in doubt"):
        assert part in run.output
