"""Documents: folders of files in, passages out that know their file and place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as long as an encoder reads and a question can be asked about.

    Attributes:
        id: stable while the file's text stays: the same passage of the same file has the same id in every run.
        document: path of the file, relative to the folder that was read; for a row of a table, file and row.
        start, end: characters of the document's text that it covers.
        headings: the headings above it, outermost first.
        page: number of its first page, from 1, where the format has pages.
        also: ids of near-duplicate passages that were merged into it.
    """

    id: str
    text: str
    document: str = ""
    start: int = 0
    end: int = 0
    headings: tuple[str, ...] = ()
    page: int | None = None
    also: tuple[str, ...] = ()
