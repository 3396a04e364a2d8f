"""The report: one self-contained HTML page with pictures, from the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedsmith.artifacts import write_text
from embedsmith.report.pages import SURE, judge, render
from embedsmith.report.pareto import ALT, draw_pareto
from embedsmith.report.plots import draw_curves, draw_general, draw_histograms, to_svg

METRICS = {
    "average_precision": "Average precision",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "pchr_auc": "P-CHR AUC",
    "recall_at_precision_95": "Recall at precision .95",
}
REASONS = {
    "repeat": "the same question again",
    "near-repeat": "nearly the same question again",
    "no-text": "a row without text",
    "no-text-column": "a row without the text column",
    "malformed": "no question (empty, no letters, too long)",
    "refusal": "a refusal of the model",
    "repeats-itself": "the same words over and over",
    "prompt-echo": "a piece of the prompt",
    "copy-of-query": "a copy of the query",
    "label-conflict": "among paraphrases and distinct questions both",
    "duplicate": "the same text twice in a row",
    "near-duplicate": "nearly the same text twice in a row",
    "duplicate-elsewhere": "the same text in another row",
    "evaluation-leak": "in the evaluation set",
    "paraphrase-as-negative": "written as another question, but it says the same",
    "changed-number": "a paraphrase with another number",
    "changed-unit": "a paraphrase with another unit",
    "changed-negation": "a paraphrase that says the opposite",
    "changed-entity": "a paraphrase about something else",
    "changed-time": "a paraphrase about another time",
    "changed-direction": "a paraphrase in the other direction",
    "changed-population": "a paraphrase about other people",
    "too-few": "an answer with fewer texts than asked for",
    "surplus": "an answer with more texts than asked for",
    "no-completion": "no recorded completion for this row",
    "no-answer": "a call that failed",
    "no-budget": "a call that the budget does not pay for",
    "waits-for-batch": "a call that is in a batch file",
}


def write_report(path: Path | str, summary: Mapping[str, Any]) -> Path:
    """Write the page; every user text is escaped, nothing is loaded from elsewhere."""
    comparison = summary["comparison"]
    reports, choice = comparison["reports"], summary["retention"]
    page = render(
        "page.html",
        summary=summary,
        reports=reports,
        differences=comparison["differences"],
        holm=comparison["holm"],
        metrics=METRICS,
        reasons=REASONS,
        verdict=judge_pairs(summary),
        sure=SURE,
        histograms=draw_histograms(reports),
        curves=draw_curves(reports, summary["calibration"].get("calibration")),
        general_plot=draw_general(summary["general"]),
        weights_plot=to_svg(draw_pareto(choice), ALT) if choice["searched"] else "",
    )
    return write_text(path, page)


def judge_pairs(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict on labelled pairs; see `pages.judge`."""
    comparison = summary["comparison"]
    change = comparison["differences"]["tuned"]["average_precision"]
    written = not summary["evaluation_data"]
    return judge(
        change,
        comparison["holm"]["tuned"]["average_precision"],
        "average precision {value:+.3f} (95% interval {low:+.3f} to {high:+.3f})".format_map(change),
        better="Ahead of its base on written pairs" if written else "The tuned model is better than its base",
        worse="is worse than",
        remedy="More labelled pairs would narrow the interval",
        doubt=_doubt(summary) if written else "",
    )


def _doubt(summary: Mapping[str, Any]) -> str:
    """Return why a gain on held-out written pairs proves little."""
    found = next((warning["text"] + ". " for warning in summary["hardness"]["warnings"]), "")
    return (
        f"The language model that wrote the training data wrote these, too. {found}Label a few hundred real pairs and "
        "pass --eval before you believe it"
    )
