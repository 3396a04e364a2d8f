"""The page of an inspection: figures, pictures and rows to read, in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from embedsmith.artifacts import write_json, write_text
from embedsmith.hardness import Hardness
from embedsmith.inspection import Coverage, Diversity, Inspection, Leakage, Spread
from embedsmith.report.pages import render
from embedsmith.report.plots import COLOURS, INK, NEGATIVE, POSITIVE, WIDTH, to_svg

SIDES = {"positive": POSITIVE, "negative": NEGATIVE}
Figures = dict[str, list[tuple[str, str]]]


def write_inspection(folder: Path | str, found: Inspection) -> Path:
    """Write inspection.html and inspection.json; return the page."""
    folder = Path(folder)
    write_json(folder / "inspection.json", found)
    page = render(
        "inspection.html",
        found=found,
        sections=figures_of(found),
        lengths=draw_spreads(found.lengths, "words in a text", "Lengths of the texts"),
        overlaps=draw_spreads(found.overlaps, "Jaccard of the words of both texts", "Word overlap"),
    )
    return write_text(folder / "inspection.html", page)


def figures_of(found: Inspection) -> Figures:
    """Return the figures by section, ready to be printed or shown: (name, value)."""
    sections: Figures = {f"{found.kind}, {found.rows:,} rows": _rows(found.counts)}
    if found.reasons:
        sections["rejected, by reason"] = _rows(found.reasons)
    sections["diversity"] = _diversity(found.diversity)
    for title, spreads in (("length, words", found.lengths), ("overlap of words, Jaccard", found.overlaps)):
        if spreads:
            sections[title] = [(part, _spread(spread)) for part, spread in spreads.items()]
    if found.coverage:
        sections["coverage of the sources"] = _coverage(found.coverage)
    for leak in found.leakage:
        sections[f"shared with {leak.file} ({leak.evaluation:,} texts)"] = _leaks(leak)
    if found.hardness:
        sections["hardness, before training"] = _hardness(found.hardness)
    if found.label_reasons:
        sections["labels in doubt"] = _rows(found.label_reasons)
    return sections


def _rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    shown = [(name, f"{count:,}") for name, count in list(counts.items())[:12]]
    rest = list(counts.values())[12:]
    return [*shown, (f"{len(rest)} others", f"{sum(rest):,}")] if rest else shown


def _diversity(item: Diversity) -> list[tuple[str, str]]:
    return [
        ("texts", f"{item.texts:,}"),
        ("distinct", f"{item.distinct:,}"),
        ("repeated exactly", f"{item.exact:,}"),
        ("near an earlier one", f"{item.near:,}"),
        ("distinct-1 / -2 / -3", f"{item.distinct_1:.3f} / {item.distinct_2:.3f} / {item.distinct_3:.3f}"),
        ("Vendi score", f"{item.vendi:.1f} of {item.sampled:,} ({item.embedded})"),
    ]


def _spread(item: Spread) -> str:
    quantiles = item.quantiles
    low, middle, high = (quantiles[level] for level in ("0.05", "0.5", "0.95"))
    return f"{middle:g} ({low:g} to {high:g}), {item.count:,} texts"


def _coverage(item: Coverage) -> list[tuple[str, str]]:
    of = f" of {item.of:,}" if item.of is not None else ""
    return [
        ("sources with examples", f"{item.sources:,}{of}"),
        ("Gini (0 even, 1 uneven)", f"{item.gini:.3f}"),
        ("entropy of the largest", f"{item.entropy:.3f}"),
    ]


def _leaks(item: Leakage) -> list[tuple[str, str]]:
    names = {"exact": "the same text", "near": "nearly the same", "8-gram": "contained", "embedding": "by meaning"}
    rows = [(label, f"{item.counts.get(name, 0):,}") for name, label in names.items() if name != "embedding"]
    threshold = item.threshold
    meaning = "needs --base" if threshold is None else f"{item.counts.get('embedding', 0):,} (cosine ≥ {threshold})"
    return [*rows, (names["embedding"], meaning)]


def _hardness(item: Hardness) -> list[tuple[str, str]]:
    shown = {
        "base: average precision": item.average_precision,
        "base: triplet accuracy": item.triplet_accuracy,
        "label from the length alone, AUC": item.length_auc,
        "label from the second text alone, AUC": item.words_auc,
    }
    rows = [("pairs, positives", f"{item.pairs:,}, {item.positives:,}")]
    for label, found in shown.items():
        if found is not None:
            rows.append((label, f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"))
    return rows


def draw_spreads(spreads: Mapping[str, Spread], label: str, title: str) -> Markup | None:
    """Return the histograms of some distributions, one above the other on one axis; None where there are none."""
    if not spreads:
        return None
    figure = Figure(figsize=(WIDTH, 1.15 * len(spreads) + 0.7), layout="constrained")
    axes = figure.subplots(len(spreads), 1, squeeze=False, sharex=True)[:, 0]
    for place, (axis, (name, item)) in enumerate(zip(axes, spreads.items(), strict=True)):
        edges = item.edges
        widths = [high - low for low, high in pairwise(edges)]
        colour = SIDES.get(name, COLOURS[1 + place % (len(COLOURS) - 1)])
        axis.bar(edges[:-1], item.counts, widths, align="edge", color=colour, alpha=0.6)
        axis.axvline(item.quantiles["0.5"], color=INK, linewidth=1, linestyle="--")
        axis.set_ylabel(name)
    axes[-1].set_xlabel(f"{label} (dashed: the median)")
    return to_svg(figure, title)
