"""Tables on a page: those with lines around their cells, and those whose columns only stand under each other."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from embedsmith.documents.pdf.words import Line, Rule, Word, form_lines, make_line
from embedsmith.documents.structure import join_cells

SNAP = 3.0  # points: lines of a table that are nearer than this are one
MOST_RULES = 2_000  # after joining; a page with more is a drawing
MOST_TABLES = 50  # of a page
ROW = 60.0  # points: the highest row that is not shaded between two that are
MOST_EDGES = 100  # rows or columns of a table with lines; beyond it is squared paper
ATTEMPTS = 5  # rows in turn from which a table is looked for; then the run of rows is text
CELL_GAP = 0.5  # of the size: a narrower gap is a space within a cell
COVERED = 0.15  # of the rows may cross the gap between two columns: headings over several of them
MARKER = re.compile(r"[•▪◦‣·*–—-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]|\d+(?:\.\d+)+\.?")
NUMBER = re.compile(r"[(\[]?[-−+]?[$€£¥]?\s*\d[\d.,\s]*\s*[%)\]]*|[-–—]|n/?a", re.IGNORECASE)
YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    bold: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or the part of one that is on this page.

    Attributes:
        rows: cells by column, as many in each row.
        edges: x between the columns.
    """

    rows: tuple[tuple[Cell, ...], ...]
    edges: tuple[float, ...]
    x0: float
    x1: float
    top: float
    bottom: float

    @property
    def text(self) -> str:
        return " ".join(cell.text for row in self.rows for cell in row)


def read_rows(tables: Sequence[Table]) -> Iterator[tuple[int, str]]:
    """Yield (which of `tables`, row): the rows of a table over several pages, as the other readers give them.

    "Segment: Grid; 2031: 41"; the header is repeated in each, and rows without one are "Grid | 41".
    """
    header = find_header(tables[0])
    names = _merge_header(tables[0].rows[:header])
    texts = {tuple(cell.text for cell in row) for row in tables[0].rows[:header]}
    waiting: tuple[int, tuple[str, ...]] | None = None
    for number, table in enumerate(tables):
        for row in table.rows[header if number == 0 else 0 :]:
            cells = tuple(cell.text for cell in row)
            if cells in texts:  # the header, repeated on the next page
                continue
            if waiting and waiting[0] < number and _is_rest(cells):
                waiting = waiting[0], tuple(" ".join(both).strip() for both in zip(waiting[1], cells, strict=True))
                continue
            if waiting:
                yield waiting[0], join_cells(names, waiting[1])
            waiting = number, cells
    if waiting:
        yield waiting[0], join_cells(names, waiting[1])
    if header and header == sum(len(table.rows) for table in tables):
        yield 0, join_cells((), names)


def _is_rest(cells: Sequence[str]) -> bool:
    """Say whether the first row on a page is the end of one that the page before began: no name, and no numbers."""
    return not cells[0] and not any(NUMBER.fullmatch(cell) for cell in cells)


def find_header(table: Table) -> int:
    """Return how many of the first rows name the columns: bold ones above others, or words above numbers."""
    bold = [all(cell.bold for cell in row if cell.text) for row in table.rows]
    if bold[0] and not all(bold):
        return bold.index(False) if bold.index(False) <= 3 else 1
    first, *others = table.rows
    if not others or not all(cell.text for cell in first[1:]):
        return 0
    named = all(not NUMBER.fullmatch(cell.text) or YEAR.fullmatch(cell.text) for cell in first)
    figures = [cell.text for row in others for cell in row[1:] if cell.text]
    numbers = sum(NUMBER.fullmatch(text) is not None for text in figures)
    return int(named and numbers >= 0.6 * len(figures) and numbers > 0)


def _merge_header(rows: Sequence[Sequence[Cell]]) -> list[str]:
    return [" ".join(cell.text for cell in column if cell.text) for column in zip(*rows, strict=True)]


def continues(before: Table, after: Table) -> bool:
    """Say whether one table goes on with the other, on the next page: the same columns in the same places."""
    if len(before.edges) != len(after.edges):
        return False
    return all(abs(x - y) <= 12 for x, y in zip(before.edges, after.edges, strict=True))


# Tables with lines


def find_ruled(words: Sequence[Word], rules: Iterable[Rule]) -> tuple[list[Table], list[Word]]:
    """Return the tables whose cells are parted by lines, and the words outside of them."""
    tables = []
    rest = list(words)
    for level, upright, striped in _group_rules(rules):
        xs, ys = _snap(rule[0] for rule in upright), _snap(rule[1] for rule in level)
        if striped:
            level, upright, ys = _add_last(rest, xs, ys, level, upright)
        if not (2 < len(xs) <= MOST_EDGES and 2 <= len(ys) <= MOST_EDGES):
            continue
        inside = [word for word in rest if xs[0] <= _middle(word)[0] <= xs[-1] and ys[0] <= _middle(word)[1] <= ys[-1]]
        rows = _fill_grid(inside, xs, ys, level, upright)
        if rows and sum(any(row[column].text for row in rows) for column in range(len(xs) - 1)) >= 2:
            tables.append(Table(tuple(rows), tuple(xs[1:-1]), xs[0], xs[-1], ys[0], ys[-1]))
            taken = set(map(id, inside))
            rest = [word for word in rest if id(word) not in taken]
    return tables, rest


def _middle(word: Word) -> tuple[float, float]:
    return (word.x0 + word.x1) / 2, (word.top + word.bottom) / 2


def _add_last(
    words: Sequence[Word], xs: list[float], ys: list[float], level: list[Rule], upright: list[Rule]
) -> tuple[list[Rule], list[Rule], list[float]]:
    """Return the lines with those of a row more, where one follows that is not shaded and keeps to the columns."""
    bottom, lower = ys[-1], 2 * ys[-1] - ys[-2]
    row = [word for word in words if xs[0] <= _middle(word)[0] <= xs[-1] and bottom < _middle(word)[1] < lower]
    crossed = any(word.x0 < x < word.x1 for word in row for x in xs)
    if crossed or len({bisect_right(xs, word.x0) for word in row}) < 2:
        return level, upright, ys
    sides = [(x, bottom, x, lower) for x in xs]
    return [*level, (xs[0], lower, xs[-1], lower)], [*upright, *sides], [*ys, lower]


def _group_rules(rules: Iterable[Rule]) -> Iterator[tuple[list[Rule], list[Rule], bool]]:
    """Yield (level, upright, whether only some rows are shaded) of lines that touch each other."""
    lines = list(rules)
    level = join_level(lines)
    upright = _join_collinear((rule for rule in lines if rule[2] - rule[0] < rule[3] - rule[1]), 1)
    if len(level) + len(upright) > MOST_RULES:
        return
    root = list(range(len(level)))  # of each level line, one that it is connected with
    held: list[int] = []  # of each upright line, a level line that it touches
    for rule in upright:
        met = [_find_root(root, place) for place, other in enumerate(level) if _touch(rule, other)]
        for place in met:
            root[place] = met[0]
        held.append(met[0] if met else -1)
    groups: dict[int, tuple[list[Rule], list[Rule]]] = {}
    for place, rule in enumerate(level):
        groups.setdefault(_find_root(root, place), ([], []))[0].append(rule)
    for first, rule in zip(held, upright, strict=True):
        if first >= 0:
            groups[_find_root(root, first)][1].append(rule)
    found = sorted((group for group in groups.values() if len(group[1]) > 1), key=lambda group: -len(group[1]))
    yield from _stack(found[:MOST_TABLES])


def _stack(groups: Sequence[tuple[list[Rule], list[Rule]]]) -> list[tuple[list[Rule], list[Rule], bool]]:
    """Put groups of lines together that have the same columns, one closely below the other: every second row shaded."""
    stacked: list[tuple[list[Rule], list[Rule], bool]] = []
    for level, upright in sorted(groups, key=lambda group: min(rule[1] for rule in group[1])):
        xs, top = _snap(rule[0] for rule in upright), min(rule[1] for rule in upright)
        if stacked:
            before, bottom = stacked[-1], max(rule[3] for rule in stacked[-1][1])
            same = _stand_level(_snap(rule[0] for rule in before[1]), xs)
            if same and top - bottom <= ROW:
                joints = [(x, bottom, x, top) for x in xs]
                stacked[-1] = before[0] + level, before[1] + joints + upright, True
                continue
        stacked.append((level, upright, False))
    return stacked


def _find_root(root: list[int], place: int) -> int:
    while root[place] != place:
        root[place] = place = root[root[place]]
    return place


def join_level(rules: Iterable[Rule]) -> list[Rule]:
    """Return the level lines of a page, pieces put together; none of a page that is a drawing."""
    joined = _join_collinear((rule for rule in rules if rule[2] - rule[0] >= rule[3] - rule[1]), 0)
    return joined if len(joined) <= MOST_RULES else []


def _join_collinear(rules: Iterable[Rule], axis: int) -> list[Rule]:
    """Return lines along `axis` (0: x), pieces put together: borders are four lines each, cell by cell."""
    across = 1 - axis
    tracks: list[list[Rule]] = []
    for rule in sorted(rules, key=lambda rule: rule[across]):
        if tracks and rule[across] - tracks[-1][-1][across] <= 1.5:
            tracks[-1].append(rule)
        else:
            tracks.append([rule])
    joined = []
    for track in tracks:
        place = median(rule[across] for rule in track)
        spans: list[list[float]] = []
        for rule in sorted(track, key=lambda rule: rule[axis]):
            if spans and rule[axis] - spans[-1][1] <= SNAP:
                spans[-1][1] = max(spans[-1][1], rule[axis + 2])
            else:
                spans.append([rule[axis], rule[axis + 2]])
        joined += [(a, place, b, place) if axis == 0 else (place, a, place, b) for a, b in spans]
    return joined


def _touch(upright: Rule, level: Rule) -> bool:
    beside = level[0] - SNAP <= upright[0] <= level[2] + SNAP
    return beside and upright[1] - SNAP <= level[1] <= upright[3] + SNAP


def _snap(values: Iterable[float]) -> list[float]:
    """Return the values, those nearer than a border is wide put together."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > 2 * SNAP:
            found.append(value)
    return found


def _fill_grid(
    words: Sequence[Word], xs: list[float], ys: list[float], level: Sequence[Rule], upright: Sequence[Rule]
) -> list[tuple[Cell, ...]]:
    """Return the rows of cells; a cell over several columns or rows stands in the first of them."""
    cells: dict[tuple[int, int], list[Word]] = {}
    origins: dict[tuple[int, int], tuple[int, int]] = {}
    for word in words:
        x, y = _middle(word)
        place = min(bisect_right(ys, y), len(ys) - 1) - 1, min(bisect_right(xs, x), len(xs) - 1) - 1
        if place not in origins:
            origins[place] = _find_origin(*place, xs, ys, level, upright)
        cells.setdefault(origins[place], []).append(word)
    rows = []
    for row in range(len(ys) - 1):
        columns = [cells.get((row, column), []) for column in range(len(xs) - 1)]
        rows += [tuple(map(make_cell, part)) for part in _split_row(columns)]
    return [row for row in rows if any(cell.text for cell in row)]


def _find_origin(
    row: int, column: int, xs: list[float], ys: list[float], level: Sequence[Rule], upright: Sequence[Rule]
) -> tuple[int, int]:
    """Return the first place of the cell that reaches here: as far as no line parts it from what is before."""
    while column and not _has_edge(upright, 1, xs[column], (ys[row] + ys[row + 1]) / 2):
        column -= 1
    while row and not _has_edge(level, 0, ys[row], (xs[column] + xs[column + 1]) / 2):
        row -= 1
    return row, column


def _has_edge(rules: Sequence[Rule], axis: int, place: float, other: float) -> bool:
    """Say whether a line along `axis` passes `other` at `place`."""
    near = [rule for rule in rules if abs(rule[1 - axis] - place) <= 2 * SNAP]
    return any(rule[axis] - SNAP <= other <= rule[axis + 2] + SNAP for rule in near)


def _split_row(columns: Sequence[list[Word]]) -> Iterator[list[list[Word]]]:
    """Yield the rows between two level lines: many where only columns are ruled, one where text was wrapped."""
    bases = [_snap(word.base for word in column) for column in columns if column]
    lines = bases[0] if bases else []
    same = len(bases) > 1 and all(_stand_level(found, lines) for found in bases)
    if not same or len(lines) < 3:
        yield list(columns)
        return
    for line in lines:
        yield [[word for word in column if abs(word.base - line) <= 2 * SNAP] for column in columns]


def _stand_level(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(abs(x - y) <= SNAP for x, y in zip(one, other, strict=True))


def make_cell(words: Sequence[Word]) -> Cell:
    """Return the text of a cell, its lines joined."""
    lines = form_lines(words, apart=1e9)
    return Cell(" ".join(line.text for line in lines), bool(lines) and all(line.bold for line in lines))


# Tables without lines


def find_aligned(lines: Sequence[Line], rules: Sequence[Rule] = ()) -> Iterator[Line | Table]:
    """Yield lines of one part of a page in order, those that stand in columns as tables, those of one row joined.

    `rules`: level ones, which may part rows of several lines.
    """
    rows = _group_lines(lines)
    place = failed = lines_until = 0
    while place < len(rows):
        end = _find_end(rows, place) if place >= lines_until else place
        table = _align(rows[place:end], rules) if end > place else None
        if table is not None:
            yield table
            place, failed = end, 0
        else:
            failed = failed + 1 if end > place else 0
            lines_until = end if failed == ATTEMPTS else lines_until
            yield make_line([word for line in rows[place] for word in line.words])
            place += 1


def _group_lines(lines: Sequence[Line]) -> list[list[Line]]:
    """Return lines by baseline; a marker of a list and what follows it are one line."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.base, line.x0)):
        if rows and abs(line.base - rows[-1][0].base) <= 0.25 * line.size:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [_join_marker(_split_close(sorted(row, key=lambda line: line.x0))) for row in rows]


def _split_close(row: list[Line]) -> list[Line]:
    """Return a row with its cells apart where they are close, but numbers: "Home services  80.1  75.0"."""
    cells = [make_line(cell) for cell in _split_cells(row)]
    return cells if len(cells) > len(row) and all(NUMBER.fullmatch(cell.text) for cell in cells[1:]) else row


def _join_marker(row: list[Line]) -> list[Line]:
    if len(row) > 1 and MARKER.fullmatch(row[0].text):
        return [make_line([*row[0].words, *row[1].words]), *row[2:]]
    return row


def _find_end(rows: Sequence[Sequence[Line]], start: int) -> int:
    """Return where a run of rows with several cells ends that begins at `start`; single cells may be among them."""
    if len(rows[start]) < 2:
        return start
    end = start + 1
    for place in range(start + 1, len(rows)):
        if rows[place][0].base - rows[place - 1][0].base > 3 * rows[place][0].size:
            break
        if len(rows[place]) > 1:
            end = place + 1
        elif place - end >= 2:
            break
    return end


def _align(rows: Sequence[Sequence[Line]], rules: Sequence[Rule]) -> Table | None:
    """Return rows as a table, if their cells stand under each other in at least two columns."""
    full = [row for row in rows if len(row) > 1]
    edges = max(_find_edges(full, 0), _find_edges(full, int(COVERED * len(full))), key=len)
    if not edges or len(full) < (3 if len(edges) == 1 else 2):
        return None
    placed = [_place_cells(row, edges) for row in rows]
    if sum(sum(bool(cell) for cell in cells) > 1 for cells in placed) < 0.7 * len(full):
        return None
    lines = [line for row in rows for line in row]
    x0, x1 = min(line.x0 for line in lines), max(line.x1 for line in lines)
    ys = [rule[1] for rule in rules if min(rule[2], x1) - max(rule[0], x0) >= 0.5 * (x1 - x0)]
    cells = tuple(tuple(map(make_cell, row)) for row in _join_ruled(placed, ys) or _join_wrapped(placed))
    return Table(cells, tuple(edges), x0, x1, min(line.top for line in lines), max(line.bottom for line in lines))


def _find_edges(rows: Sequence[Sequence[Line]], allowed: int) -> list[float]:
    """Return the x between columns: where at most `allowed` rows have a word, over the width of a cell's gap."""
    words = [word for row in rows for line in row for word in line.words]
    least = CELL_GAP * median(word.size for word in words)
    marks = sorted(mark for row in rows for cell in _split_cells(row) for mark in ((cell[0].x0, 1), (cell[-1].x1, -1)))
    edges, open_cells = [], 0
    free: float | None = None
    begun = False
    for x, change in marks:
        if change == 1 and open_cells == allowed and free is not None:
            if begun and x - free >= least:
                edges.append((free + x) / 2)
            free = None
        open_cells += change
        begun = begun or open_cells > allowed
        if change == -1 and open_cells == allowed:
            free = x
    return edges


def _split_cells(row: Sequence[Line]) -> Iterator[list[Word]]:
    for line in row:
        cell = [line.words[0]]
        for before, word in pairwise(line.words):
            if word.x0 - before.x1 >= CELL_GAP * word.size:
                yield cell
                cell = []
            cell.append(word)
        yield cell


def _place_cells(row: Sequence[Line], edges: Sequence[float]) -> list[list[Word]]:
    """Return the words of each column; a cell over several columns goes where most of it is."""
    columns: list[list[Word]] = [[] for _ in range(len(edges) + 1)]
    for cell in _split_cells(row):
        columns[bisect_right(edges, (cell[0].x0 + cell[-1].x1) / 2)] += cell
    return columns


def _join_ruled(rows: Sequence[list[list[Word]]], ys: Sequence[float]) -> list[list[list[Word]]]:
    """Put the lines between two level rules together; [] where rules do not part the rows."""
    order = sorted(ys)
    bands: dict[int, list[list[list[Word]]]] = {}
    for row in rows:
        base = min(word.base for cell in row for word in cell)
        bands.setdefault(bisect_right(order, base), []).append(row)
    if len(bands) < 3 or any(sum(all(row) for row in band) > 1 and _evenly(band) for band in bands.values()):
        return []
    return [
        [[word for row in band for word in row[column]] for column in range(len(rows[0]))] for band in bands.values()
    ]


def _evenly(rows: Sequence[list[list[Word]]]) -> bool:
    """Say whether each of these lines is whole, and has a number: rows of their own, whatever is drawn around them."""
    return all(all(row) and any(NUMBER.fullmatch(make_cell(cell).text) for cell in row) for row in rows)


def _join_wrapped(rows: Sequence[list[list[Word]]]) -> list[list[list[Word]]]:
    """Put lines of one row together, where rows are visibly farther apart than the lines within them."""
    bases = [min(word.base for cell in row for word in cell) for row in rows]
    gaps = [after - before for before, after in pairwise(bases)]
    if not gaps or max(gaps) < 1.25 * min(gaps):
        return list(rows)
    limit = (max(gaps) + min(gaps)) / 2
    whole = [all(row) for row in rows]
    if any(gap < limit and above and below for gap, above, below in zip(gaps, whole[:-1], whole[1:], strict=True)):
        return list(rows)  # whole rows stand as near as these: the wider gaps only group them
    joined = [rows[0]]
    for row, gap in zip(rows[1:], gaps, strict=True):
        partial = any(not cell for cell in row) or any(not cell for cell in joined[-1])
        if gap < limit and partial:
            joined[-1] = [above + below for above, below in zip(joined[-1], row, strict=True)]
        else:
            joined.append(row)
    return joined
