"""The page of a retrieval evaluation: figures with intervals, and the metric by dimension as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from embedsmith.artifacts import write_bytes, write_text
from embedsmith.report.pages import render
from embedsmith.report.plots import COLOURS, INK, tidy, to_png, to_svg

MARKS = "osD^vP"
ALT = "The deciding metric by ranker, and by dimension of the vectors where they were cut, with 95% intervals"


def write_retrieval_report(path: Path | str, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write the page at `path` and the picture beside it (.png); return both.

    Args:
        report: a `RetrievalReport` as plain data (`artifacts.plain`); `notes`, where it has them, stand on the page.
    """
    path = Path(path)
    picture = write_bytes(path.with_suffix(".png"), to_png(draw_retrieval(report)))
    page = render(
        "retrieval.html",
        report=report,
        metrics=list(report["metrics"][report["baseline"]]),
        notes=report.get("notes", []),
        picture=to_svg(draw_retrieval(report), ALT),
    )
    return write_text(path, page), picture


def draw_retrieval(report: Mapping[str, Any]) -> Figure:
    """Return the picture: the deciding metric over the dimension where vectors were cut, else one point a ranker."""
    height = 4.6 if report["dimensions"] else 1.0 + 0.6 * len(report["metrics"])
    figure = Figure(figsize=(6, height), layout="constrained")
    axis = figure.subplots()
    if report["dimensions"]:
        _draw_dimensions(axis, report)
    else:
        _draw_points(axis, report)
    tidy(axis)
    return figure


def _draw_dimensions(axis: Axes, report: Mapping[str, Any]) -> None:
    primary = report["primary"]
    cut = list(dict.fromkeys(row["encoder"] for row in report["dimensions"]))
    for place, name in enumerate(cut):
        rows = sorted((row for row in report["dimensions"] if row["encoder"] == name), key=lambda row: row["dimension"])
        where = [row["dimension"] for row in rows]
        values, low, high = ([row["metrics"][primary][key] for row in rows] for key in ("value", "low", "high"))
        colour = COLOURS[place % len(COLOURS)]
        mark = MARKS[place % len(MARKS)]
        axis.plot(where, values, marker=mark, color=colour, linewidth=1.8, markersize=5.5, label=_shorten(name))
        axis.fill_between(where, low, high, color=colour, alpha=0.13, linewidth=0)
    for place, name in enumerate(name for name in report["metrics"] if name not in cut):
        value = report["metrics"][name][primary]["value"]
        style = ("--", ":", "-.")[place % 3]
        axis.axhline(value, color=INK, linewidth=1.2, linestyle=style, label=f"{_shorten(name)} ({value:.3f})")
    whole = _whole_value(report)
    if whole is not None:
        colour = COLOURS[cut.index(report["baseline"]) % len(COLOURS)]
        label = f"{_shorten(report['baseline'])}, whole ({whole:.3f})"
        axis.axhline(whole, color=colour, linewidth=1.0, linestyle=(0, (1, 1)), label=label)
    sizes = sorted({row["dimension"] for row in report["dimensions"]})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("dimensions kept (the first ones, at length 1 again)")
    axis.set_ylabel(f"{primary}, band: 95% interval")
    axis.set_title(f"{report['task']}: {primary} by dimension", loc="left", fontsize=11, fontweight="bold")
    axis.legend(frameon=False, fontsize=8.5, loc="lower right")


def _whole_value(report: Mapping[str, Any]) -> float | None:
    """Return the baseline's figure with whole vectors, if the baseline has any."""
    has_vectors = any(row["encoder"] == report["baseline"] for row in report["dimensions"])
    return report["metrics"][report["baseline"]][report["primary"]]["value"] if has_vectors else None


def _draw_points(axis: Axes, report: Mapping[str, Any]) -> None:
    primary, names = report["primary"], list(report["metrics"])
    for place, name in enumerate(names):
        own = report["metrics"][name][primary]
        errors = [[own["value"] - own["low"]], [own["high"] - own["value"]]]
        axis.errorbar(own["value"], -place, xerr=errors, fmt="o", color=COLOURS[place % len(COLOURS)], capsize=3)
        label = f"{own['value']:.3f}"
        axis.annotate(label, (own["value"], -place), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axis.set_yticks([-place for place in range(len(names))], [_shorten(name) for name in names])
    axis.set_ylim(-len(names) + 0.4, 0.6)
    axis.set_xlabel(f"{primary}, 95% interval")
    axis.set_title(report["task"], loc="left", fontsize=11, fontweight="bold")


def _shorten(name: str, length: int = 40) -> str:
    """Return a name that fits the picture; no part of it is read as a formula."""
    kept = name if len(name) <= length else f"…{name[1 - length :]}"
    return kept.replace("$", r"\$")
