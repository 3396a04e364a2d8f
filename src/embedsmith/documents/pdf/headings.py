"""Which lines are headings, and of what level: from the outline of the file, the fonts and the numbers before them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedsmith.documents.pdf.paragraphs import BULLETS, LEADER, Group, Style, join_lines, simplify

LARGER = 1.12  # times the size of the text
LONGEST = 200  # characters
LINES = 3
NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,5})\.?\s+\S")
NAMED = re.compile(
    r"(?:item|article|section|chapter|part|appendix|schedule|annex|exhibit)\s+(?:\d+|[ivxlc]+|[a-z])\b", re.I
)
LETTERS = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Heading:
    """Lines that are a heading; `marked` is their depth in the outline, 0 when they are not in it."""

    group: Group
    text: str
    size: float
    bold: bool
    marked: int


def find_headings(groups: Sequence[Group], style: Style, marks: Mapping[tuple[int, str], int]) -> dict[int, int]:
    """Return the level, 1 to 6, of each group that is a heading, by the id of the group.

    `marks`: depth from 1 of what the outline names, by page and `simplify`-ed title.
    """
    tagged = {id(group): level for group in groups if group.lines and (level := _find_tag(group))}
    if tagged:
        return tagged
    found = []
    for place, group in enumerate(groups):
        if not group.lines or len(group.lines) > LINES:
            continue
        text = join_lines(group.lines, style.hyphenated)
        marked = marks.get((group.page, simplify(text)), 0)
        followed = place + 1 < len(groups) and groups[place + 1].page - group.page <= 1
        if marked or (len(text) <= LONGEST and _looks(group, text, style, followed=followed)):
            found.append(Heading(group, text, group.lines[0].size, group.lines[0].bold, marked))
    return _rank(found)


def _find_tag(group: Group) -> int:
    """Return the level that a tagged file says, or 0."""
    role = group.lines[0].tag[1] if group.lines[0].tag else ""
    return 1 if role == "Title" else int(role[1]) if re.fullmatch("H[1-6]", role) else 0


def _looks(group: Group, text: str, style: Style, *, followed: bool) -> bool:
    """Say whether lines look like a heading: larger, or bold, or numbered or in capitals and by themselves."""
    letters = LETTERS.findall(text)
    if len(letters) < 2 or text[0] in BULLETS or LEADER.search(text):
        return False
    line = group.lines[0]
    ends = text[-1] in ".,;:。"
    if line.size >= LARGER * style.size:
        return not (ends and len(text) > 80)
    if ends or not followed or line.size < 0.95 * style.size or len(group.lines) > 2:
        return False
    if line.bold and not style.bold:
        return len(text) <= 120 and all(line.bold for line in group.lines)
    if len(group.lines) > 1 or len(text) > 80 or not group.apart or line.x1 > group.part.x0 + 0.85 * _width(group):
        return False
    number = NUMBERED.match(text)
    capitals = len(letters) >= 6 and "".join(letters).isupper() and (text[-1].isalnum() or text[-1] == ")")
    numbered = number is not None and "." in number[1] and LETTERS.findall(text)[0].isupper()
    return capitals or numbered or NAMED.match(text) is not None


def _width(group: Group) -> float:
    return max(group.part.x1 - group.part.x0, 200.0)


def _rank(headings: Sequence[Heading]) -> dict[int, int]:
    """Return levels: larger before smaller, bold before plain, 2 before 2.1; the outline's where it has them."""
    steps = _merge_sizes(heading.size for heading in headings)
    look = {id(heading): (-steps[heading.size], not heading.bold) for heading in headings}
    depths = _find_depths(headings, look)
    keys = {id(heading): (*look[id(heading)], depths[id(heading)]) for heading in headings}
    order = {key: min(level, 6) for level, key in enumerate(sorted(set(keys.values())), start=1)}
    if any(heading.marked for heading in headings):
        return _follow_outline(headings, keys)
    return {id(heading.group): order[keys[id(heading)]] for heading in headings}


def _merge_sizes(sizes: Iterable[float]) -> dict[float, float]:
    """Return for each size the one that stands for it: half a point is rounding, not a level."""
    found: dict[float, float] = {}
    top = 1e9
    for size in sorted(set(sizes), reverse=True):
        top = size if top - size > 0.5 else top
        found[size] = top
    return found


def _find_depths(headings: Sequence[Heading], look: Mapping[int, tuple[float, bool]]) -> dict[int, int]:
    """Return how deep the number before each heading goes; those without one count as the least deep of their look."""
    numbered = {id(h): match[1].count(".") + 1 for h in headings if (match := NUMBERED.match(h.text))}
    least: dict[tuple[float, bool], int] = {}
    for heading in headings:
        depth = numbered.get(id(heading))
        if depth:
            least[look[id(heading)]] = min(depth, least.get(look[id(heading)], depth))
    return {id(heading): numbered.get(id(heading), least.get(look[id(heading)], 1)) for heading in headings}


def _follow_outline(headings: Sequence[Heading], keys: Mapping[int, tuple[float, bool, int]]) -> dict[int, int]:
    """Return levels by the outline; one step lower where a larger heading, the title, is not in it.

    Headings that the outline leaves out are on the level of those that look alike, or below the larger ones.
    """
    levels: dict[tuple[float, bool, int], Counter[int]] = defaultdict(Counter)
    for heading in headings:
        if heading.marked:
            levels[keys[id(heading)]][heading.marked] += 1
    known = {key: counts.most_common(1)[0][0] for key, counts in levels.items()}
    first = next(place for place, heading in enumerate(headings) if heading.marked)
    shift = int(any(keys[id(heading)] < min(known) for heading in headings[:first]))
    result = {}
    for heading in headings:
        key = keys[id(heading)]
        larger = [level for other, level in known.items() if other < key]
        level = heading.marked or known.get(key) or (1 + max(larger) if larger else 1 - shift)
        result[id(heading.group)] = max(1, min(level + shift, 6))
    return result
