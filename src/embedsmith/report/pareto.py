"""The picture of a choice of weights: what the domain gained against what general ability lost."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from embedsmith.artifacts import read_json, write_bytes, write_text
from embedsmith.errors import InputError
from embedsmith.report.pages import render
from embedsmith.report.plots import COLOURS, FAINT, INK, NEGATIVE, POSITIVE, SOFT, tidy, to_png, to_svg

LINES = {"tuned": COLOURS[1], "average": COLOURS[4], "soup": COLOURS[2]}
ALT = "Change on validation against the change of the guard that fell most, for every candidate"


def write_pareto(record: Path | str) -> Path:
    """Write `pareto.png` and `pareto.html` beside the `retention.json` at `record`; return the page.

    Raises:
        InputError: the record has no validation rows: there is no choice to show.
    """
    record = Path(record)
    choice = read_json(record)
    if any(candidate["validation"] is None for candidate in choice["candidates"]):
        raise InputError(f"{record} has no validation figures", expected="a run with validation rows")
    write_bytes(record.with_name("pareto.png"), to_png(draw_pareto(choice)))
    taken = choice["candidates"][choice["chosen"]]
    page = render("pareto.html", choice=choice, picture=to_svg(draw_pareto(choice), ALT), taken=taken)
    return write_text(record.with_name("pareto.html"), page)


def draw_pareto(choice: Mapping[str, Any]) -> Figure:
    """Return the picture of a `retention.Choice` (as JSON): the paths of its candidates, and figures over the share."""
    figure = Figure(figsize=(6, 9.4), layout="constrained")
    left, right = figure.subplots(2, 1, height_ratios=(1.15, 1))
    _draw_paths(left, choice)
    _draw_shares(right, choice)
    for axis in (left, right):
        tidy(axis)
    return figure


def _draw_paths(axis: Axes, choice: Mapping[str, Any]) -> None:
    limit, taken = -100 * choice["tolerance"], choice["candidates"][choice["chosen"]]
    axis.axhline(0, color=FAINT, linewidth=0.8)
    axis.axvline(0, color=FAINT, linewidth=0.8)
    for end, group in groupby(sorted(choice["candidates"], key=_place), key=lambda candidate: candidate["end"]):
        path = list(group)
        points = [(0.0, 0.0), *map(_point, path)]
        axis.plot(
            *zip(*points, strict=True), "-o", color=LINES[end], markersize=4.5, linewidth=1.6, label=f"base → {end}"
        )
        if path[-1] != taken:
            _name(axis, path[-1], f"{path[-1]['share']:g}", SOFT)
    axis.plot(0, 0, "s", color=INK, markersize=7, zorder=4, label="base")
    axis.plot(*_point(taken), "*", color=POSITIVE, markersize=19, markeredgecolor="white", zorder=5, label="this model")
    _name(axis, taken, f"{taken['share']:g} · {taken['end']}", POSITIVE)
    axis.margins(0.2, 0.12)
    low, high = axis.get_ylim()
    low = min(low, 1.5 * limit)
    axis.axhspan(low, limit, color=NEGATIVE, alpha=0.05, linewidth=0)
    axis.axhline(limit, color=NEGATIVE, linewidth=1.1, linestyle="--", label=f"tolerance ({limit:+g})")
    axis.set_ylim(low, high)
    axis.set_xlabel("domain: change on validation, in points (0.01)")
    axis.set_ylabel("general: the guard that fell most, in points")
    axis.set_title("Gain against loss", loc="left", fontsize=11, fontweight="bold")
    _add_legend(axis, columns=3)


def _name(axis: Axes, candidate: Mapping[str, Any], text: str, colour: str) -> None:
    axis.annotate(text, _point(candidate), xytext=(9, 7), textcoords="offset points", fontsize=8.5, color=colour)


def _add_legend(axis: Axes, *, columns: int) -> None:
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=columns)


def _draw_shares(axis: Axes, choice: Mapping[str, Any]) -> None:
    taken = choice["candidates"][choice["chosen"]]
    path = sorted((item for item in choice["candidates"] if item["end"] == taken["end"]), key=_place)
    where = [0.0, *(item["share"] for item in path)]
    for place, name in enumerate(["validation", *(guard["data"] for guard in taken["general"])]):
        found = [item["validation"] if place == 0 else item["general"][place - 1] for item in path]
        values, low, high = ([0.0, *(100 * item["change"][key] for item in found)] for key in ("value", "low", "high"))
        colour = INK if place == 0 else COLOURS[place % len(COLOURS)]
        axis.plot(where, values, color=colour, linewidth=2.2 if place == 0 else 1.4, label=_label(name, found[0]))
        axis.fill_between(where, low, high, color=colour, alpha=0.12 if place == 0 else 0.07, linewidth=0)
    axis.axhline(0, color=FAINT, linewidth=0.8)
    axis.axhline(-100 * choice["tolerance"], color=NEGATIVE, linewidth=1.1, linestyle="--")
    axis.axvline(taken["share"], color=POSITIVE, linewidth=1.4, linestyle=":", label=f"this model ({taken['share']:g})")
    axis.set_xlim(0, 1.02)
    axis.set_xlabel(f"share of the {taken['end']} weights (the rest is the base)")
    axis.set_ylabel("change against the base, in points")
    axis.set_title("Every figure, with 95% intervals", loc="left", fontsize=11, fontweight="bold")
    _add_legend(axis, columns=2)


def _label(name: str, figure: Mapping[str, Any]) -> str:
    return f"{name}, {figure['metric']}"


def _place(candidate: Mapping[str, Any]) -> tuple[int, float]:
    return tuple(LINES).index(candidate["end"]), candidate["share"]


def _point(candidate: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * candidate["validation"]["change"]["value"], -100 * candidate["fall"]
