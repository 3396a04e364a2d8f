"""The pictures of the report, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#8a94a6", "#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626")
WIDTH = 5.4  # inches: letters of 10 points can still be read where a phone makes it 360 pixels wide
POSITIVE, NEGATIVE = "#059669", "#dc2626"
INK, SOFT, FAINT = "#111827", "#6b7280", "#9ca3af"


def draw_histograms(reports: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return similarity histograms of duplicates and near misses, base above tuned."""
    names = [name for name in ("base", "tuned") if name in reports]
    figure = Figure(figsize=(WIDTH, 1.9 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        histogram = reports[name]["histogram"]
        edges = histogram["edges"]
        width = edges[1] - edges[0]
        for key, colour, label in (
            ("positives", POSITIVE, "duplicates"),
            ("negatives", NEGATIVE, "near misses"),
        ):
            axis.bar(edges[:-1], histogram[key], width, align="edge", color=colour, alpha=0.55, label=label)
        axis.axvline(
            reports[name]["threshold"],
            color=INK,
            linewidth=1,
            linestyle="--",
            label="threshold of best F1",
        )
        axis.set_ylabel(f"{name}\npairs")
    axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    axes[-1].set_xlabel("cosine similarity")
    return to_svg(figure, "Similarity histograms of duplicates and near misses before and after")


def draw_curves(reports: Mapping[str, Mapping[str, Any]], calibration: Mapping[str, Any] | None) -> Markup:
    """Return precision over recall, and precision over hit rate, for every model."""
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    recall, served = figure.subplots(2, 1)
    for (name, report), colour in zip(reports.items(), _cycle(len(reports)), strict=True):
        curve = report["curve"]
        recall.step(curve["recall"], curve["precision"], where="pre", color=colour, label=name)
        served.step(curve["hit_rate"], curve["precision"], where="pre", color=colour, label=name)
    if calibration:
        served.axhline(1 - calibration["delta"], color=INK, linewidth=1, linestyle=":", label="promise (1 − δ)")
    recall.set_xlabel("recall")
    served.set_xlabel("hit rate: share of pairs served")
    for axis in (recall, served):
        axis.set(ylabel="precision", xlim=(0, 1.01), ylim=(_floor(reports), 1.01))
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    return to_svg(figure, "Precision over recall and over hit rate")


def draw_general(general: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Return general ability before and after, with intervals."""
    rows = list(zip(general["base"], general["tuned"], strict=True))
    figure = Figure(figsize=(WIDTH, 0.55 * len(rows) + 0.9), layout="constrained")
    axis = figure.subplots()
    for place, (before, after) in enumerate(rows):
        for offset, score, colour, label in (
            (0.14, before, COLOURS[0], "base"),
            (-0.14, after, COLOURS[1], "tuned"),
        ):
            estimate = score["estimate"]
            errors = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
            axis.errorbar(
                estimate["value"],
                -place + offset,
                xerr=errors,
                fmt="o",
                color=colour,
                capsize=3,
                label=label if place == 0 else None,
            )
    axis.set_yticks([-place for place in range(len(rows))], [f"{row['data']}\n{row['metric']}" for row, _ in rows])
    axis.set_ylim(-len(rows) + 0.5, 0.5)
    axis.legend(frameon=False, fontsize=8)
    return to_svg(figure, "General ability before and after, with 95% intervals")


def _cycle(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _floor(reports: Mapping[str, Mapping[str, Any]]) -> float:
    lowest = float(min(min(report["curve"]["precision"]) for report in reports.values()))
    return max(0.0, round(lowest - 0.05, 1))


def to_png(figure: Figure) -> bytes:
    """Return the figure as a picture, the same bytes each time."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=160, metadata={"Software": None})
    return image.getvalue()


def to_svg(figure: Figure, title: str) -> Markup:
    """Return the figure as SVG that fits its page, the same bytes each time; `title` is what a screen reader says."""
    for axis in figure.axes:
        tidy(axis)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "embedsmith", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    # Labels are escaped by matplotlib; names of models are the only user text in a picture.
    body = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', body, count=1)
    return Markup(f'<figure role="img" aria-label="{title}">{body}</figure>')


def tidy(axis: Axes) -> None:
    """Leave an axis its lower and left border and a faint grid."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(True, axis="both", color="#e5e7eb", linewidth=0.6)
    axis.set_axisbelow(True)
