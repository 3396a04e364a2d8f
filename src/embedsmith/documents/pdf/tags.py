"""Pages of tagged files, which say themselves what is a heading, a table and an item of a list, and in what order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from embedsmith.documents.pdf.tables import Cell, Table
from embedsmith.documents.pdf.words import Line, Word, in_margin, make_line

ENOUGH = 0.8  # of the characters between the margins must be tagged, or the tags say too little
ROLES = """Document DocumentFragment Part Art Sect Div Aside BlockQuote Title FENote Sub H H1 H2 H3 H4 H5 H6 P L LI TOC
TOCI Table TR TH TD THead TBody TFoot Caption Index Figure Formula Form Note Code"""
BLOCKS = frozenset(ROLES.split())
HEADINGS = frozenset({"Title", *(f"H{level}" for level in range(1, 7))})
CELL = re.compile(r"T[HD](?::(\d{1,3}))?")
NUMBER = re.compile(r"\(?\w{1,4}[.)]")

EMPTY = Cell("", True)

Tag = tuple[int, list[str], list[int]]  # mark of its words, roles from the outermost, numbers of these


@dataclass(slots=True)
class Piece:
    """Words that follow each other in one element."""

    words: list[Word]
    roles: list[str]
    path: list[int]


def read_tagged(words: Sequence[Word], tags: Iterable[Tag], height: float) -> tuple[list[Line | Table], list[Word]]:
    """Return lines and tables in the order of the tags, and the words without one; no items where tags are too few."""
    by_mark: dict[int, list[Word]] = {}
    for word in words:
        by_mark.setdefault(word.mark, []).append(word)
    rest = by_mark.pop(-1, [])
    pieces = [Piece(by_mark.pop(mark, []), roles, path) for mark, roles, path in tags]
    rest += [word for left in by_mark.values() for word in left]
    if not pieces or _count_inner(rest, height) > (1 - ENOUGH) * _count_inner(words, height):
        return [], list(words)
    return list(_read_pieces(pieces)), rest


def _count_inner(words: Iterable[Word], height: float) -> int:
    """Return the characters between the margins: headers and footers have no tags, and are most of a short page."""
    return sum(len(word.text) for word in words if not in_margin(word, height))


def _read_pieces(pieces: Sequence[Piece]) -> Iterator[Line | Table]:
    layout = _find_layout(pieces)
    begun: set[int] = set()  # items of lists whose sign has been written
    place = 0
    while place < len(pieces):
        key, kind = _find_holder(pieces[place], layout)
        end = place
        while end < len(pieces) and _find_holder(pieces[end], layout) == (key, kind):
            end += 1
        if kind == "Table":
            yield from _read_table(pieces[place:end], key)
        else:
            yield from _read_block(pieces[place:end], key, kind, begun)
        place = end


def _find_layout(pieces: Sequence[Piece]) -> set[int]:
    """Return the numbers of tables that hold headings or other tables; they are there for the layout."""
    found = set()
    for piece in pieces:
        tables = [number for number, role in zip(piece.path, piece.roles, strict=True) if role == "Table"]
        found.update(tables if HEADINGS.intersection(piece.roles) else tables[:-1])
    return found


def _find_holder(piece: Piece, layout: set[int]) -> tuple[int, str]:
    """Return number and role of the table, or else of the innermost block, that a piece is in."""
    pairs = list(zip(piece.path, piece.roles, strict=True))
    for number, role in pairs:
        if role == "Table" and number not in layout and any(CELL.fullmatch(role) for role in piece.roles):
            return number, role
    inner = [(number, role) for number, role in pairs if role.partition(":")[0] in BLOCKS]
    return inner[-1] if inner else (-1, "P")


def _read_block(pieces: Sequence[Piece], number: int, role: str, begun: set[int]) -> Iterator[Line]:
    labels = [word for piece in pieces if "Lbl" in piece.roles for word in piece.words]
    lines = _flow([word for piece in pieces if "Lbl" not in piece.roles for word in piece.words])
    item = next((n for n, name in zip(pieces[0].path[::-1], pieces[0].roles[::-1], strict=True) if name == "LI"), -1)
    if item >= 0 and item not in begun and lines:
        begun.add(item)
        label = "".join(word.text for word in labels)
        sign = label if NUMBER.fullmatch(label) else "-"
        lines[0] = replace(lines[0], text=f"{sign} {lines[0].text}") if not _has_sign(lines[0]) else lines[0]
    yield from (replace(line, tag=(number, role)) for line in lines)


def _has_sign(line: Line) -> bool:
    return re.match(r"[•▪◦‣·●○■□–*-]\s|\(?\w{1,4}[.)]\s", line.text) is not None


def _flow(words: Iterable[Word]) -> list[Line]:
    """Return words in the order of reading as lines; where the baseline jumps, a line ends."""
    runs: list[list[Word]] = []
    for word in words:
        if runs and abs(word.base - runs[-1][-1].base) <= 0.25 * word.size:
            runs[-1].append(word)
        else:
            runs.append([word])
    return [make_line(sorted(run, key=lambda word: word.x0)) for run in runs]


def _read_table(pieces: Sequence[Piece], number: int) -> Iterator[Line | Table]:
    rows: dict[int, dict[int, Piece]] = {}
    for piece in pieces:
        depth = piece.path.index(number)
        row = next((at for at in range(depth, len(piece.path)) if piece.roles[at] == "TR"), None)
        cell = next((at for at in range(depth, len(piece.path)) if CELL.fullmatch(piece.roles[at])), None)
        if row is None or cell is None:  # the caption
            yield from (replace(line, tag=(piece.path[-1], "Caption")) for line in _flow(piece.words))
            continue
        cells = rows.setdefault(piece.path[row], {})
        held = cells.setdefault(piece.path[cell], Piece([], [piece.roles[cell]], []))
        held.words += piece.words
    words = [word for cells in rows.values() for cell in cells.values() for word in cell.words]
    if words:
        yield _make_table([list(cells.values()) for cells in rows.values()], words)


def _make_table(rows: Sequence[Sequence[Piece]], words: Sequence[Word]) -> Table:
    named = any(cell.roles[0].startswith("TH") for row in rows for cell in row)
    width = max(sum(map(_span, row)) for row in rows)
    extents = _find_extents(rows, width)
    full = []
    for row in rows:
        cells: list[Cell] = []
        for place, piece in enumerate(row):
            left = sum(map(_span, row[place:]))
            cells += [EMPTY] * (_find_column(piece, extents[len(cells) : width - left + 1]) if extents else 0)
            cells += _make_cells(piece, named=named)
        if any(cell.text for cell in cells):
            full.append(tuple(cells + [EMPTY] * (width - len(cells))))
    return Table(
        tuple(full),
        (0.0,) * (width - 1),
        min(word.x0 for word in words),
        max(word.x1 for word in words),
        min(word.top for word in words),
        max(word.bottom for word in words),
    )


def _find_extents(rows: Sequence[Sequence[Piece]], width: int) -> list[tuple[float, float]]:
    """Return from where to where each column goes, by the rows that have all cells; [] where none has."""
    whole = [row for row in rows if len(row) == width and all(piece.words for piece in row)]
    return [
        (
            min(word.x0 for piece in column for word in piece.words),
            max(word.x1 for piece in column for word in piece.words),
        )
        for column in zip(*whole, strict=True)
    ]


def _find_column(piece: Piece, extents: Sequence[tuple[float, float]]) -> int:
    """Return how many columns are skipped before a cell: some producers leave empty cells out."""
    if not piece.words:
        return 0
    x0, x1 = min(word.x0 for word in piece.words), max(word.x1 for word in piece.words)
    away = [max(start - x1, x0 - end, 0.0) for start, end in extents]
    return away.index(min(away)) if away else 0


def _span(piece: Piece) -> int:
    match = CELL.fullmatch(piece.roles[0])
    return min(int(match[1]), 100) if match and match[1] else 1


def _make_cells(piece: Piece, *, named: bool) -> list[Cell]:
    """Return a cell, and an empty one for each further column that it covers; bold is what names a column."""
    lines = _flow(piece.words)
    bold = piece.roles[0].startswith("TH") if named else all(line.bold for line in lines)
    return [Cell(" ".join(line.text for line in lines), bold), *[Cell("", bold)] * (_span(piece) - 1)]
