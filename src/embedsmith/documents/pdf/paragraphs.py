"""Lines as paragraphs: joined within a column, over its end and over the end of a page; cut words put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise

from embedsmith.documents.pdf.layout import Page, Part
from embedsmith.documents.pdf.tables import Table, continues
from embedsmith.documents.pdf.words import Line

NARROW = 0.8  # of the width of a column: a line that ends a sentence here ends the paragraph, too
FULL = 0.95  # of the width: a line that ends a sentence here more likely goes on in the next column than not
WIDER = 1.3  # times the usual distance between lines: a new paragraph
SAME_SIZE = 0.6  # points
INDENT = 0.8  # of the size
BULLETS = "•▪◦‣·●○■□–*-"
BULLET = re.compile(rf"[{BULLETS}]\s+\S|\(?(?:\d{{1,2}}|[a-z]|[ivx]{{1,4}})[.)]\s+\S")
SIGN = re.compile(r"[•▪◦‣·●○■□–*\uf0b7\uf0a7]\s+(?=\S)")
HYPHEN = re.compile(r"(\w+)[-\u00ad\u2010]$")
ENDED = re.compile(r"[.!?:;。！？؟][\"'”’)\]»⁰¹²³⁴⁵⁶⁷⁸⁹*†‡]*$")
LEADER = re.compile(r"(?:[.·…]\s?){4,}\s*\w*$")  # of a table of contents
NOTE = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹*†‡§]|\(?\d{1,2}[)\s]")
UNSPACED = re.compile("[\u3000-\u30ff\u3400-\u9fff\uff00-\uff60]")  # Chinese and Japanese


@dataclass(slots=True)
class Group:
    """Lines that belong together, or a table with its parts on further pages.

    Attributes:
        lines: of one style, from the top down; () of a table.
        pages: of each of the tables.
        apart: it stands farther from the text above than its own lines do from each other.
    """

    page: int
    part: Part
    lines: list[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    apart: bool = True
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Style:
    """What the text of the whole document looks like.

    Attributes:
        size: of most characters.
        leading: distance of baselines within a paragraph, in sizes.
        bold: most of the text is.
        hyphenated: words that stand with a hyphen within a line.
    """

    size: float
    leading: float
    bold: bool
    hyphenated: frozenset[str]


def simplify(text: str) -> str:
    """Return the letters and digits of a title, by which the outline and the page are compared."""
    return re.sub(r"[\W_]+", "", text).casefold()


def measure(pages: Iterable[Page]) -> Style:
    """Return the style of the text; of a document of tables alone, that of nothing."""
    sizes: dict[float, int] = {}
    heavy = total = 0
    ratios: list[float] = []
    hyphenated: set[str] = set()
    for part in (part for page in pages for part in page.parts):
        lines = [item for item in part.items if isinstance(item, Line)]
        for line in lines:
            sizes[round(line.size, 1)] = sizes.get(round(line.size, 1), 0) + len(line.text)
            heavy, total = heavy + len(line.text) * line.bold, total + len(line.text)
            hyphenated.update(re.findall(r"\w+-\w+", line.text))
        pairs = ((above.size, below.base - above.base) for above, below in pairwise(lines) if above.size == below.size)
        ratios += [gap / size for size, gap in pairs if 0.9 < gap / size < 2.6]
    leading = sorted(ratios)[len(ratios) // 4] if ratios else 1.2
    size = max(sizes, key=lambda size: (sizes[size], size)) if sizes else 10.0
    return Style(size, leading, 2 * heavy > total, frozenset(hyphenated))


def group_lines(pages: Iterable[Page], style: Style, titles: Set[tuple[int, str]]) -> Iterator[Group]:
    """Yield groups in the order of reading, not yet joined over the ends of columns and pages.

    A line whose (page, `simplify`-ed text) is among `titles` stays alone.
    """
    for page in pages:
        for part in page.parts:
            yield from _group_part(page.number, part, style, titles)


def _group_part(number: int, part: Part, style: Style, titles: Set[tuple[int, str]]) -> Iterator[Group]:
    group: Group | None = None
    alone = False
    for item in part.items:
        if isinstance(item, Table):
            if group:
                yield group
            yield Group(number, part, tables=[item], pages=[number])
            group = None
            continue
        before, alone = alone, bool(titles) and (number, simplify(item.text)) in titles
        if group is None or alone or before or _begins(group, item, style):
            apart = group is None or item.base - group.lines[-1].base > WIDER * style.leading * item.size
            if group:
                yield group
            group = Group(number, part, [item], apart=apart)
        else:
            group.lines.append(item)
    if group:
        yield group


def _begins(group: Group, line: Line, style: Style) -> bool:
    """Say whether a line begins a paragraph below the lines of a group."""
    if line.tag or group.lines[-1].tag:
        return line.tag != group.lines[-1].tag
    last, left, width = group.lines[-1], group.part.x0, group.part.x1 - group.part.x0
    if abs(last.size - line.size) > SAME_SIZE or line.base - last.base > WIDER * style.leading * line.size:
        return True
    if last.bold != line.bold and last.x1 < left + 0.9 * width:
        return True
    if goes_on(last.text):
        return False
    if BULLET.match(line.text) or LEADER.search(last.text):
        return True
    if not ENDED.search(last.text):
        return False
    first = group.lines[0]
    moved = INDENT * line.size
    indented = line.x0 > last.x0 + moved and not (BULLET.match(first.text) and len(group.lines) == 1)
    back = line.x0 < min(x.x0 for x in group.lines) - moved and (len(group.lines) > 1 or bool(BULLET.match(first.text)))
    out = bool(BULLET.match(first.text)) and line.x0 < first.x0 + 0.3 * line.size
    return last.x1 < left + NARROW * width or indented or back or out


def join_groups(groups: Iterable[Group], headings: Set[int], style: Style) -> Iterator[Group]:
    """Yield groups with those joined that a column or page ended; what is in `headings` (ids) stays alone.

    Footnotes between the two halves of a paragraph come after it.
    """
    waiting: Group | None = None
    notes: list[Group] = []
    for group in groups:
        if waiting is None:
            waiting = group
        elif _is_note(group, style) and not _is_note(waiting, style):
            notes.append(group)
        elif id(waiting) not in headings and id(group) not in headings and _joins(waiting, group):
            waiting = replace(
                waiting,
                part=group.part,
                lines=waiting.lines + group.lines,
                tables=waiting.tables + group.tables,
                pages=waiting.pages + group.pages,
            )
        else:
            yield from (waiting, *notes)
            waiting, notes = group, []
    yield from ((waiting,) if waiting else ())
    yield from notes


def _is_note(group: Group, style: Style) -> bool:
    return bool(group.lines) and group.lines[0].size <= 0.92 * style.size and bool(NOTE.match(group.lines[0].text))


def _joins(before: Group, after: Group) -> bool:
    if before.part is after.part:
        return False
    if before.tables or after.tables:
        return bool(before.tables and after.tables) and _goes_over(before.tables[-1], after.tables[0], before, after)
    last, first = before.lines[-1], after.lines[0]
    if abs(last.size - first.size) > SAME_SIZE:
        return False
    if goes_on(last.text):
        return True
    if BULLET.match(first.text):
        return False
    filled = (last.x1 - before.part.x0) / max(before.part.x1 - before.part.x0, 1.0)
    if ENDED.search(last.text):
        column = len(before.lines) > 1 and len(after.lines) > 1  # of one line nobody knows how wide it could be
        return column and filled >= FULL and first.x0 <= after.part.x0 + INDENT * first.size
    return first.text[0].islower() or filled >= 0.9


def _goes_over(last: Table, first: Table, before: Group, after: Group) -> bool:
    return after.page != before.page and continues(last, first)


def goes_on(text: str) -> bool:
    """Say whether text cannot be the end of a paragraph: a word is cut, or a comma stands last."""
    return text.endswith((",", "、")) or HYPHEN.search(text) is not None


def join_lines(lines: Sequence[Line], hyphenated: Set[str]) -> str:
    """Return the text of lines with cut words put together; signs of lists are "- ".

    Where the text writes the word with its hyphen elsewhere ("long-term"), the hyphen stays.
    """
    text = ""
    for line in lines:
        text = _append(text, line.text, hyphenated)
    return SIGN.sub("- ", text, count=1) if SIGN.match(text) else text


def _append(paragraph: str, line: str, hyphenated: Set[str]) -> str:
    cut = HYPHEN.search(paragraph)
    following = re.match(r"\w+", line)
    if not cut or not following or not line[0].islower():
        unspaced = paragraph and UNSPACED.match(paragraph[-1]) and UNSPACED.match(line)
        return paragraph + line if unspaced else f"{paragraph} {line}".strip()
    if f"{cut[1]}-{following[0]}" in hyphenated:
        return paragraph[: cut.end(1)] + "-" + line
    return paragraph[: cut.end(1)] + line
