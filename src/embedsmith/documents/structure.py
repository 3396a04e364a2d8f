"""A document as text with blocks: what every format becomes before it is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

SURROGATES = re.compile("[\ud800-\udfff\0]")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document that belongs together: a heading, a paragraph, an item of a list, a row of a table.

    Attributes:
        start, end: characters of the document's text; blocks follow each other and do not overlap.
        level: 1 to 6 of a heading; 0 of all else.
    """

    start: int
    end: int
    level: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one file, or of one row of a table, and its blocks.

    Attributes:
        name: path below the folder that was read; for a row, file and row ("faq.jsonl#17").
        blocks: cover all of `text` but white space, in order.
        headings: those above the whole text (the title of a row).
        pages: (start, page number) where each page begins, in order; () where the format has none.
        id: the row's own id.
    """

    name: str
    text: str
    blocks: tuple[Block, ...]
    headings: tuple[str, ...] = ()
    pages: tuple[tuple[int, int], ...] = ()
    id: str | None = None


@dataclass(slots=True)
class Builder:
    """Puts blocks one after the other, an empty line between them, and gives the document."""

    name: str
    parts: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    pages: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0

    def add(self, text: str, *, level: int = 0) -> None:
        """Append one block; white space at its ends is dropped, and a block of nothing else is none."""
        text = make_storable(text).strip()
        if not text:
            return
        self.length += 2 if self.parts else 0
        self.blocks.append(Block(self.length, self.length + len(text), level))
        self.parts.append(text)
        self.length += len(text)

    def begin_page(self, number: int) -> None:
        """Say that what comes next is on page `number`."""
        self.pages.append((self.length + 2 if self.parts else 0, number))

    def finish(self) -> Document:
        return Document(self.name, "\n\n".join(self.parts), tuple(self.blocks), pages=tuple(self.pages))


def make_storable(text: str) -> str:
    """Return `text` with a replacement character for what no UTF-8 file and no store can hold."""
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def split_paragraphs(name: str, text: str) -> Document:
    """Return plain text as a document: paragraphs are what empty lines part, blanks in them or not.

    The text stays as it is but for its line ends, which become \\n.
    """
    text = make_storable(text).replace("\r\n", "\n").replace("\r", "\n")
    found = re.finditer(r"\S(?:.*\S)?(?:[^\S\n]*\n[^\S\n]*\S(?:.*\S)?)*", text)
    return Document(name, text, tuple(Block(match.start(), match.end()) for match in found))


def join_cells(header: Iterable[str], cells: Iterable[str]) -> str:
    """Return a row of a table as text that can be read without the table: "Segment: Storage; Revenue: 41".

    Without a header, cells are parted by " | ".
    """
    names, values = list(header), [" ".join(cell.split()) for cell in cells]
    if not any(names):
        return " | ".join(value for value in values if value)
    names += [""] * (len(values) - len(names))
    named = zip(names, values, strict=False)
    return "; ".join(f"{name}: {value}" if name else value for name, value in named if value)
