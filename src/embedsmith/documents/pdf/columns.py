"""The order in which a page with columns is read."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

FEWEST = 3  # lines of a column
NARROWEST = 90.0  # points; two such columns side by side are still read one after the other
STRIPE = 0.6  # of the height of a line: a wider gap over both columns parts paragraphs
ACROSS = 30.0  # points that a level line must go on to either side to part what is above and below
NEAR = 15.0  # points between a line and the row below it
MOSTLY = 0.6  # of the characters of a column are in its lines; the others may be in tables and headings
MOST = 2_000  # lines of a page on which columns are looked for; a dense page has 300
CANDIDATES = 40  # places that are tried for the gap between two columns
DEPTH = 4  # columns within columns
SHORTEST = 15  # characters in a line of text; cells of tables have fewer


class Item(Protocol):
    """Anything with a place on the page: a line, a table."""

    @property
    def text(self) -> str: ...
    @property
    def x0(self) -> float: ...
    @property
    def x1(self) -> float: ...
    @property
    def top(self) -> float: ...
    @property
    def bottom(self) -> float: ...


T = TypeVar("T", bound=Item)
Rules = Sequence[tuple[float, float, float, float]]  # x0, y, x1, y of level lines


def split_columns(items: Sequence[T], rules: Rules = (), depth: int = 0) -> list[list[T]]:
    """Return the items of each part of the page in the order of reading: left column, right column, what is below both.

    A column is text side by side with other text; cells of a table are shorter, or level lines part its rows, and they
    stay in one part.
    """
    gutter = _find_gutter(items, rules) if depth < DEPTH else None
    if gutter is None:
        return [sorted(items, key=lambda item: (item.top, item.x0))]
    parts: list[list[T]] = []
    level: list[T] = []
    for band, apart in _split_bands(items, gutter, rules):
        if not apart:
            level += band
            continue
        parts += [level] if level else []
        level = []
        parts += split_columns([item for item in band if item.x1 <= gutter], rules, depth + 1)
        parts += split_columns([item for item in band if item.x1 > gutter], rules, depth + 1)
    return parts + ([level] if level else [])


def _find_gutter(items: Sequence[Item], rules: Rules) -> float | None:
    """Return the x that parts most lines into two columns, or None."""
    if not 2 * FEWEST <= len(items) <= MOST:
        return None
    ends = Counter(round(item.x1) for item in items)
    best, most = None, 0
    for end, _ in ends.most_common(CANDIDATES):
        lines = sum(_smaller_side(band, end + 1.0) for band, apart in _split_bands(items, end + 1.0, rules) if apart)
        if lines > most or (lines == most and best is not None and end + 1.0 > best):
            best, most = end + 1.0, lines
    return best if most else None


def _smaller_side(band: Sequence[Item], gutter: float) -> int:
    left = sum(item.x1 <= gutter for item in band)
    return min(left, len(band) - left)


def _split_bands(items: Sequence[T], gutter: float, rules: Rules) -> Iterator[tuple[list[T], bool]]:
    """Yield (items, whether they are two columns) from the top down; what crosses the gutter is a band of its own."""
    band: list[T] = []
    crossing = sorted(rule[1] for rule in rules if rule[0] < gutter - ACROSS and gutter + ACROSS < rule[2])
    above = 0  # lines above the band
    in_table = False  # the band above was a row
    for item in sorted(items, key=lambda item: (item.top, item.x0)):
        passed = bisect_right(crossing, (item.top + item.bottom) / 2)
        if item.x0 < gutter < item.x1:
            yield from _judge(band, gutter, closed=True)
            yield [item], False
            band, in_table = [], False
        elif band and passed > above:
            in_table = above > 0  # a row between two lines is one of a table
            if in_table:
                yield band, False
            else:
                yield from _judge(band, gutter, closed=True)
            band = [item]
        else:
            band.append(item)
        above = passed
    if in_table and band and band[0].top - crossing[above - 1] < NEAR:  # its last row, cut by the end of the page
        yield band, False
    else:
        yield from _judge(band, gutter, closed=False)


def _judge(band: list[T], gutter: float, *, closed: bool) -> Iterator[tuple[list[T], bool]]:
    """Yield what is above two columns, the columns, and what is below them; `closed`: text over both follows.

    Columns go from the first to the last stretch that looks like some, for what parts them may be a line of each.
    """
    pieces = _split_rows(band)
    columns = [place for place, piece in enumerate(pieces) if _are_columns(piece, gutter)]
    if not columns:
        if band:
            yield band, _are_columns(band, gutter)
        return
    first, last = columns[0], columns[-1] + 1
    while first and _is_half(pieces[first - 1], gutter):
        first -= 1
    while last < len(pieces) and _is_half(pieces[last], gutter):
        last += 1
    while last < len(pieces) and _is_rest(pieces[last], gutter) and not (closed and len(pieces[last]) <= 2):
        last += 1
    for part, apart in ((pieces[:first], False), (pieces[first:last], True), (pieces[last:], False)):
        if part:
            yield [item for piece in part for item in piece], apart


def _split_rows(band: Sequence[T]) -> list[list[T]]:
    """Return items, given from the top down, in stretches with an empty stripe over the whole width between them."""
    pieces: list[list[T]] = []
    lowest = 0.0
    for item in band:
        if not pieces or item.top - lowest > STRIPE * min(item.bottom - item.top, 20.0):
            pieces.append([])
            lowest = item.bottom
        pieces[-1].append(item)
        lowest = max(lowest, item.bottom)
    return pieces


def _are_columns(items: Sequence[Item], gutter: float) -> bool:
    left = [item for item in items if item.x1 <= gutter]
    right = [item for item in items if item.x1 > gutter]
    return _is_text(left) and _is_text(right) and _beside(left, right)


def _is_half(items: Sequence[Item], gutter: float) -> bool:
    """Say whether one of the columns is text here; the other may be a list, a table or a heading."""
    left = [item for item in items if item.x1 <= gutter]
    right = [item for item in items if item.x1 > gutter]
    return bool(left and right) and (_is_text(left) or _is_text(right))


def _is_rest(items: Sequence[Item], gutter: float) -> bool:
    """Say whether only one of the columns goes on here."""
    return len({item.x1 <= gutter for item in items}) == 1


def _is_text(items: Sequence[Item]) -> bool:
    """Say whether these lines fill a column, as text does and words in a table do not."""
    if len(items) < FEWEST:
        return False
    width = max(item.x1 for item in items) - min(item.x0 for item in items)
    lines = [item for item in items if item.x1 - item.x0 >= 0.5 * width and len(item.text) >= SHORTEST]
    written = sum(len(item.text) for item in lines)
    return width >= NARROWEST and len(lines) >= FEWEST and written >= MOSTLY * sum(len(item.text) for item in items)


def _beside(left: Sequence[Item], right: Sequence[Item]) -> bool:
    """Say whether the two stand next to each other, for at least half of the shorter one."""
    (top, bottom), (above, below) = _extent(left), _extent(right)
    return min(bottom, below) - max(top, above) >= 0.5 * min(bottom - top, below - above)


def _extent(items: Sequence[Item]) -> tuple[float, float]:
    return min(item.top for item in items), max(item.bottom for item in items)
