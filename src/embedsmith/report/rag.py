"""The report of a retrieval job: one self-contained HTML page, from the summary of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedsmith.artifacts import write_text
from embedsmith.report.pages import judge, render
from embedsmith.report.plots import to_svg
from embedsmith.report.retrieval import ALT, draw_retrieval

WRITTEN = "The language model that wrote the training data wrote these, too: pass real queries (--eval)"
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
    """Return the verdict on a retrieval task; see `pages.judge`."""
    report, written = summary["retrieval"], summary["held_out"]
    primary, change = report["primary"], report["differences"]["tuned"][report["primary"]]
    before = report["metrics"][report["baseline"]][primary]["value"]
    after = before + change["value"]
    interval = "{value:+.3f}, 95% interval {low:+.3f} to {high:+.3f}".format_map(change)
    easy = "These queries are too easy to tell: nearly every passage is found first. Harder ones would (--eval)"
    return judge(
        change,
        report["holm"]["tuned"][primary],
        f"{primary} {before:.3f} → {after:.3f} ({interval})",
        better="Finds more for questions it wrote itself" if written else "The tuned model finds more",
        worse="finds less than",
        remedy=easy if min(before, after) >= CEILING else "More queries would narrow the interval",
        doubt=WRITTEN if written else "",
    )
