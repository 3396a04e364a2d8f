"""PDF as blocks: headings, paragraphs in the order of reading, lists and tables, without what is on every page.

`extraction` (a process of its own, with PDFium) gives words and straight lines, `worker` runs it; `words`, `columns`,
`tables` and `layout` make a page of them, `edges` drops headers and footers, `paragraphs` and `headings` read the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from embedsmith.documents.files import UnusableFile
from embedsmith.documents.pdf.edges import drop_edges
from embedsmith.documents.pdf.headings import find_headings
from embedsmith.documents.pdf.layout import Page, lay_out
from embedsmith.documents.pdf.paragraphs import group_lines, join_groups, join_lines, measure, simplify
from embedsmith.documents.pdf.tables import read_rows
from embedsmith.documents.pdf.worker import read_pages
from embedsmith.documents.structure import Builder, Document

LARGEST = 64 << 20  # characters of one document; a file can show one page a million times


def parse_pdf(name: str, raw: bytes) -> tuple[Document, list[str]]:
    """Return a PDF as a document, and a remark for each page that could not be read.

    Raises:
        UnusableFile: encrypted, broken, too large, or without text (scanned).
        MissingPartError: pypdfium2 is not installed.
    """
    pages, outline, broken = _read(raw)
    if not any(page.parts for page in pages):
        if broken and not pages:
            raise UnusableFile("broken", broken[0])
        raise UnusableFile("no-text", f"{len(pages) + len(broken)} pages without text; scanned pages are not read")
    builder = Builder(name)
    for number, text, level in _read_blocks(drop_edges(pages), outline):
        if not builder.pages or builder.pages[-1][1] < number:
            builder.begin_page(number)
        builder.add(text, level=level)
    return builder.finish(), broken


def _read(raw: bytes) -> tuple[list[Page], dict[tuple[int, str], int], list[str]]:
    """Return the pages that could be read, the outline (depths by page and title), and what went wrong."""
    pages: list[Page] = []
    outline: dict[tuple[int, str], int] = {}
    broken: list[str] = []
    size = 0
    for row in read_pages(raw):
        if "page" not in row:
            outline = {(int(page), simplify(title)): int(depth) for depth, title, page in row["outline"]}
        elif "error" in row:
            broken.append(f"page {row['page']}: {row['error']}")
        else:
            size += sum(len(word[0]) for word in row["words"])
            if size > LARGEST:
                raise UnusableFile("too-large", f"more than {LARGEST >> 20} million characters")
            try:
                pages.append(lay_out(row))
            except Exception as error:  # noqa: BLE001  whatever is odd about one page, the others can be read
                broken.append(f"page {row['page']}: {type(error).__name__}: {error}"[:500])
    return pages, outline, broken


def _read_blocks(pages: list[Page], outline: dict[tuple[int, str], int]) -> Iterator[tuple[int, str, int]]:
    """Yield (page it begins on, text, level of a heading or 0) of each block."""
    style = measure(pages)
    groups = list(group_lines(pages, style, outline.keys()))
    levels = find_headings(groups, style, outline)
    for group in join_groups(groups, levels.keys(), style):
        if group.tables:
            yield from ((group.pages[part], row, 0) for part, row in read_rows(group.tables))
        else:
            yield group.page, join_lines(group.lines, style.hyphenated), levels.get(id(group), 0)
