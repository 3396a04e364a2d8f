"""What is printed on every page: running headers, footers, page numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from embedsmith.documents.pdf.layout import Page
from embedsmith.documents.pdf.words import Line, in_margin

EDGE = 3  # lines at the top and at the bottom of a page that may be a header or a footer
REPEATED = 0.5  # share of the pages from which a line at the edge is one
FEWEST = 3  # pages; on fewer, a repeated line may well be text
NUMBER = re.compile(r"\W*(?:page|seite|p\.)?\s*(?:\d{1,5}|[ivxlc]{1,7})(?:\s*(?:of|/|von|de|\|)\s*\d{1,5})?\W*", re.I)


def drop_edges(pages: Iterable[Page]) -> list[Page]:
    """Return the pages without headers and footers.

    These are lines at an edge that, numbers aside, most pages have; that three pages near each other have in one place
    in the margin (the name of a chapter), or all of two pages; and those with the number of the page.
    """
    kept = list(pages)
    places: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for page in kept:
        for side, line in _find_edges(page):
            places[side, _shape(line)].setdefault(page.number, line.base)
    counted = _find_counted(kept)
    return [_clean(page, places, counted, len(kept)) for page in kept]


def _find_counted(pages: Iterable[Page]) -> set[int]:
    """Return the ids of lines with the number of the page, whatever else they say: "Chapter 2: Risks   31"."""
    found: dict[tuple[str, int, int], list[Line]] = defaultdict(list)
    for page in pages:
        for side, line in _find_edges(page, 1):
            ends = re.fullmatch(r"(\d{1,5})\s.*|.*\s(\d{1,5})", line.text)
            if ends:
                found[side, int(ends[1] or ends[2]) - page.number, round(line.base / 3)].append(line)
    return {id(line) for lines in found.values() if len(lines) >= FEWEST for line in lines}


def _clean(page: Page, places: dict[tuple[str, str], dict[int, float]], counted: set[int], pages: int) -> Page:
    dropped = set(counted)
    for side, line in _find_edges(page):
        found = places[side, _shape(line)]
        often = len(found) >= FEWEST and len(found) > REPEATED * pages
        if often or (
            in_margin(line, page.height) and (NUMBER.fullmatch(line.text) or _recurs(found, line, page, pages))
        ):
            dropped.add(id(line))
    parts = (replace(part, items=tuple(item for item in part.items if id(item) not in dropped)) for part in page.parts)
    return replace(page, parts=tuple(part for part in parts if part.items))


def _recurs(found: dict[int, float], line: Line, page: Page, pages: int) -> bool:
    """Say whether a line stands in one place on all of two pages, or on three of which none is far from the next."""
    near = sorted(number for number, base in found.items() if abs(base - line.base) <= 3)
    runs = sum(after - before <= 2 for before, after in pairwise(near))
    return (pages == 2 and len(near) == 2) or (len(near) >= FEWEST and 2 * runs >= len(near) and page.number in near)


def _shape(line: Line) -> str:
    return re.sub(r"[0-9]+", "#", line.text).casefold()


def _find_edges(page: Page, most: int = EDGE) -> Iterator[tuple[str, Line]]:
    """Yield (side, line) for the lines on the first and the last baselines of a page; on short pages both."""
    lines = [item for part in page.parts for item in part.items if isinstance(item, Line)]
    bases = sorted({round(line.base) for line in lines})
    for side, chosen in (("top", bases[:most]), ("bottom", bases[-most:])):
        yield from ((side, line) for line in lines if round(line.base) in chosen)
