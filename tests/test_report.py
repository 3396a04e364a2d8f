"""The sentence that a report begins with."""

from __future__ import annotations

from typing import Any

import pytest

from embedsmith.report import judge_pairs


def summary_of(low: float, high: float, holm: float, *, labelled: bool = True, warnings: tuple[str, ...] = ()) -> Any:
    change = {"value": (low + high) / 2, "low": low, "high": high}
    comparison = {
        "differences": {"tuned": {"average_precision": change}},
        "holm": {"tuned": {"average_precision": holm}},
    }
    return {
        "comparison": comparison,
        "evaluation_data": "pairs.jsonl" if labelled else None,
        "hardness": {"warnings": [{"text": text, "action": ""} for text in warnings]},
    }


@pytest.mark.parametrize(
    ("low", "high", "holm", "tone"),
    [
        (0.01, 0.03, 0.04, "better"),
        (0.001, 0.03, 0.42, "open"),
        (-0.01, 0.03, 0.3, "open"),
        (-0.03, -0.01, 0.04, "worse"),
    ],
)
def test_better_is_what_holds_after_the_correction(low: float, high: float, holm: float, tone: str) -> None:
    assert judge_pairs(summary_of(low, high, holm))["tone"] == tone


def test_a_gain_on_written_pairs_is_told_with_what_speaks_against_it() -> None:
    found = judge_pairs(summary_of(0.1, 0.3, 0.001, labelled=False, warnings=("words alone tell the label",)))
    assert found["tone"] == "open"
    assert "words alone tell the label. Label a few hundred real pairs and pass --eval" in found["text"]
