"""Words as they stand on a page, turned upright, raised and lowered ones marked, and the lines they make."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

SPACE = 0.12  # of the size: a wider gap is a space; the narrowest that fonts have is .2
APART = 1.0  # of the size: a wider gap is no space, not even of justified text
SAME_LINE = 0.25  # of the size, between baselines
RAISED = str.maketrans("0123456789+-()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
LETTER = re.compile(r"[^\W\d_]")
MARGIN = 0.085  # of the height: an inch of text-free border is .09

Rule = tuple[float, float, float, float]  # x0, y0, x1, y1 of a straight line


@dataclass(frozen=True, slots=True)
class Word:
    """A word on a page; points from the upper left corner, y down.

    Attributes:
        base: y of the line it stands on.
        size: of its font.
        mark: what ties it to the structure of a tagged file, -1 without.
    """

    text: str
    x0: float
    top: float
    x1: float
    bottom: float
    base: float
    size: float
    bold: bool
    mark: int = -1


@dataclass(frozen=True, slots=True)
class Line:
    """Words on one baseline, nothing but spaces between them.

    Attributes:
        tag: number on the page and role of what it is part of, in a tagged file.
    """

    words: tuple[Word, ...]
    text: str
    x0: float
    x1: float
    top: float
    bottom: float
    base: float
    size: float
    bold: bool
    tag: tuple[int, str] | None = None


def in_margin(part: Word | Line, height: float) -> bool:
    """Say whether something stands in the upper or lower margin of a page of this height."""
    return part.bottom <= MARGIN * height or part.top >= (1 - MARGIN) * height


def turn_upright(
    rows: Iterable[Sequence[object]], boxes: Sequence[Sequence[Rule]], size: tuple[float, float]
) -> Iterator[tuple[list[Word], list[list[Rule]], tuple[float, float]]]:
    """Yield (words, boxes of each kind, page size) for each direction of writing, that with most text first.

    Text at an angle (a watermark) is none of the document's; a table that stands on its side is.
    """
    groups: dict[int, list[Sequence[object]]] = {}
    for row in rows:
        angle = round(_number(row[9]) / 90) % 4
        if abs((_number(row[9]) + 45) % 90 - 45) <= 5:
            groups.setdefault(angle, []).append(row)
    order = sorted(groups, key=lambda angle: -sum(len(str(row[0])) for row in groups[angle]))
    for angle in order:
        words = [_place(row, angle, size) for row in groups[angle]]
        turned = [[_turn(box, angle, size) for box in kind] if angle == order[0] else [] for kind in boxes]
        yield words, turned, size if angle % 2 == 0 else (size[1], size[0])


def _number(value: object) -> float:
    return float(value)  # type: ignore[arg-type]


def _place(row: Sequence[object], angle: int, size: tuple[float, float]) -> Word:
    text, (x0, top, x1, bottom, x, y, points) = str(row[0]), map(_number, row[1:8])
    x0, top, x1, bottom = _turn((x0, top, x1, bottom), angle, size)
    base = _turn((x, y, x, y), angle, size)[1]
    return Word(text, x0, top, x1, bottom, base, max(points, 1.0), bool(row[8]), int(_number(row[10])))


def _turn(box: Rule, angle: int, size: tuple[float, float]) -> Rule:
    """Return where a box lies on the page turned so that text at `angle` (quarters, counter-clockwise) is level."""
    x0, y0, x1, y1 = box
    width, height = size
    if angle == 1:
        return height - y1, x0, height - y0, x1
    if angle == 2:
        return width - x1, height - y1, width - x0, height - y0
    return (y0, width - x1, y1, width - x0) if angle == 3 else box


def mark_raised(words: Sequence[Word]) -> list[Word]:
    """Put small raised and lowered words on the line of their neighbour: 40 with a note becomes "40¹", not "401"."""
    hosts = sorted(words, key=lambda word: word.base)
    bases = [word.base for word in hosts]
    usual = median(word.size for word in words) if words else 0
    return [_raise(word, hosts, bases) if word.size < 0.85 * usual or len(word.text) < 4 else word for word in words]


def _raise(word: Word, hosts: Sequence[Word], bases: Sequence[float]) -> Word:
    reach = 0.7 * word.size
    first = bisect_left(bases, word.base - reach)
    last = bisect_left(bases, word.base + reach)
    for host in hosts[first : min(last, first + 100)]:
        beside = min(abs(word.x0 - host.x1), abs(host.x0 - word.x1)) <= 0.35 * host.size
        shift = host.base - word.base
        if beside and word.size <= 0.85 * host.size and 0.1 * host.size < abs(shift) < 0.6 * host.size:
            text = word.text.translate(RAISED) if shift > 0 else word.text
            return replace(word, text=text, base=host.base, size=host.size, top=host.top, bottom=host.bottom)
    return word


def add_dots(words: Sequence[Word], dots: Iterable[Rule]) -> list[Word]:
    """Return the words with a "•" for each dot that is drawn before a word, where an item of a list has its sign."""
    if not words:
        return []
    hosts = sorted(words, key=lambda word: word.base)
    bases = [word.base for word in hosts]
    reach = max(word.size for word in words)
    found: list[Word] = []
    for x0, y0, x1, y1 in dots:
        first, last = bisect_left(bases, y0), bisect_left(bases, y1 + reach)
        row = [word for word in hosts[first : min(last, first + 100)] if word.top < y0 and y1 < word.bottom]
        near = [word for word in row if 0 < word.x0 - x1 < 2.5 * word.size]
        if near and not any(word.x0 < x0 and x0 - word.x1 < 1.5 * word.size for word in row):
            host = min(near, key=lambda word: word.x0)
            found.append(replace(host, text="•", x0=x0, x1=x1))
    return [*found, *words]


def form_lines(words: Iterable[Word], *, apart: float = APART) -> list[Line]:
    """Return the lines, from the top down and from left to right; a gap wider than `apart` (of the size) ends one."""
    lines: list[Line] = []
    for row in _group_rows(words):
        run = [row[0]]
        for word in row[1:]:
            if word.x0 - max(before.x1 for before in run[-3:]) > apart * min(word.size, run[-1].size):
                lines.append(make_line(run))
                run = []
            run.append(word)
        lines.append(make_line(run))
    return lines


def _group_rows(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Yield the words of each baseline by x; twice the same word in one place (a shadow) counts once."""
    row: dict[tuple[object, ...], Word] = {}
    base = 0.0
    for word in sorted(words, key=lambda word: (word.base, word.x0)):
        if row and word.base - base > SAME_LINE * word.size:
            yield sorted(row.values(), key=lambda word: word.x0)
            row = {}
        if not row:
            base = word.base
        row.setdefault((word.text, round(word.x0 / 2)), word)
    if row:
        yield sorted(row.values(), key=lambda word: word.x0)


def make_line(words: Sequence[Word]) -> Line:
    """Return words of one baseline, given by x, as a line."""
    text = join_words(words)
    sizes, heavy = Counter[float](), 0
    for word in words:
        sizes[word.size] += len(word.text)
        heavy += len(word.text) if word.bold else 0
    return Line(
        tuple(words),
        text,
        min(word.x0 for word in words),
        max(word.x1 for word in words),
        min(word.top for word in words),
        max(word.bottom for word in words),
        words[0].base,
        sizes.most_common(1)[0][0],
        heavy >= 0.9 * sum(sizes.values()),
    )


def join_words(words: Sequence[Word]) -> str:
    """Return what a reader reads, who begins on the right where the script does."""
    parts: list[str] = []
    previous = None
    for word in words:
        if previous is not None:
            parts.append(" " if word.x0 - previous.x1 > SPACE * min(word.size, previous.size) else "")
        parts.append(word.text)
        previous = word
    text = "".join(parts)
    if not RIGHT_TO_LEFT.search(text) or 2 * len(RIGHT_TO_LEFT.findall(text)) < len(LETTER.findall(text)):
        return text
    return _read_from_right(parts)


def _read_from_right(parts: Sequence[str]) -> str:
    """Return the words from the right; numbers and foreign words keep their own order among themselves."""
    ordered: list[str] = []
    foreign: list[str] = []
    for part in reversed(parts):
        if RIGHT_TO_LEFT.search(part) or (part.isspace() and not foreign) or not part:
            ordered += _unturn(foreign)
            foreign = []
            ordered.append(part)
        else:
            foreign.append(part)
    return "".join(ordered + _unturn(foreign))


def _unturn(foreign: list[str]) -> list[str]:
    """Words of the other direction in their own order, the space behind them still behind them."""
    behind = [foreign.pop()] if foreign and foreign[-1].isspace() else []
    return foreign[::-1] + behind
