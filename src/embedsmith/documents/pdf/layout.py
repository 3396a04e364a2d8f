"""A page as it is read: the lines and tables of each part, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedsmith.documents.pdf.columns import split_columns
from embedsmith.documents.pdf.tables import Table, find_aligned, find_ruled, join_level
from embedsmith.documents.pdf.tags import read_tagged
from embedsmith.documents.pdf.words import Line, Rule, add_dots, form_lines, in_margin, mark_raised, turn_upright

WIDE = 100.0  # points: shorter lines underline words


@dataclass(frozen=True, slots=True)
class Part:
    """A column, or what goes over the whole width; lines and tables from the top down."""

    items: tuple[Line | Table, ...]
    x0: float
    x1: float


@dataclass(frozen=True, slots=True)
class Page:
    """A page without its words.

    Attributes:
        height: in points, of the page as it is read.
    """

    number: int
    height: float
    parts: tuple[Part, ...]


def lay_out(row: Mapping[str, Any]) -> Page:
    """Return the page of a row of `extraction`; text that stands on its side comes after the rest."""
    parts: list[Part] = []
    height = row["size"][1]
    boxes: list[list[Rule]] = [[(a, b, c, d) for a, b, c, d in row[kind]] for kind in ("rules", "dots")]
    for words, (rules, dots), (_, tall) in turn_upright(row["words"], boxes, tuple(row["size"])):
        height = height if parts else tall
        words = mark_raised(words) if parts else add_dots(mark_raised(words), dots)
        if not parts:
            tagged, words = read_tagged(words, row["tags"], tall)
            parts += _part_of(tagged)
            words = [word for word in words if not (tagged and in_margin(word, tall))]
        tables, rest = find_ruled(words, rules)
        found: list[Line | Table] = [*tables, *form_lines(rest)]
        level = join_level(rules)
        for items in split_columns(found, [rule for rule in level if rule[2] - rule[0] > WIDE]):
            parts += _make_parts(items, level)
    return Page(row["page"], height, tuple(parts))


def _make_parts(items: list[Line | Table], rules: list[Rule]) -> list[Part]:
    """Return one part; lines above and below a table with lines are looked at apart from each other."""
    found: list[Line | Table] = []
    lines: list[Line] = []
    for item in items:
        if isinstance(item, Line):
            lines.append(item)
        else:
            found += [*find_aligned(lines, rules), item]
            lines = []
    return _part_of([*found, *find_aligned(lines, rules)])


def _part_of(found: list[Line | Table]) -> list[Part]:
    slim = tuple(replace(item, words=()) if isinstance(item, Line) else item for item in found)
    return [Part(slim, min(item.x0 for item in slim), max(item.x1 for item in slim))] if slim else []
