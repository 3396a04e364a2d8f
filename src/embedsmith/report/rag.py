"""The report of a retrieval job: one self-contained HTML page, from the summary of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedsmith.artifacts import write_text
from embedsmith.report.pages import SURE, render
from embedsmith.report.plots import to_svg
from embedsmith.report.retrieval import ALT, draw_retrieval

CEILING = 0.98  # of the deciding metric: from here on nothing is left to gain


def write_rag_report(path: Path | str, summary: Mapping[str, Any]) -> Path:
    """Write the page; every user text is escaped, nothing is loaded from elsewhere."""
    report = summary["retrieval"]
    page = render(
        "rag.html",
        summary=summary,
        report=report,
        metrics=list(report["metrics"][report["baseline"]]),
        verdict=judge_retrieval(summary),
        picture=to_svg(draw_retrieval(report), ALT),
    )
    return write_text(path, page)


def judge_retrieval(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the one sentence a reader wants first, and its tone: better, worse or open."""
    report = summary["retrieval"]
    change = report["differences"]["tuned"][report["primary"]]
    before = report["metrics"][report["baseline"]][report["primary"]]["value"]
    figures = (
        f"{report['primary']} {before:.3f} → {before + change['value']:.3f} "
        f"({change['value']:+.3f}, 95% interval {change['low']:+.3f} to {change['high']:+.3f})"
    )
    if change["low"] > 0 and report["holm"]["tuned"][report["primary"]] < SURE:
        if summary["held_out"]:
            doubt = "The language model that wrote the training data wrote these, too: pass real queries (--eval)"
            return {"tone": "open", "text": f"Finds more for questions it wrote itself: {figures}. {doubt}."}
        return {"tone": "better", "text": f"The tuned model finds more: {figures}."}
    if change["high"] < 0:
        return {"tone": "worse", "text": f"The tuned model finds less than its base: {figures}. Do not deploy it."}
    remedy = "More queries would narrow the interval"
    if min(before, before + change["value"]) >= CEILING:
        remedy = "These queries are too easy to tell: nearly every passage is found first. Harder ones would (--eval)"
    return {"tone": "open", "text": f"No difference is proven: {figures}. {remedy}."}
