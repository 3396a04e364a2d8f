"""PDF as blocks: pages of lines become paragraphs, without what is printed on every page."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from embedsmith.documents.files import UnusableFile
from embedsmith.documents.structure import Builder, Document
from embedsmith.errors import MissingPartError

EDGE = 3  # lines at the top and at the bottom of a page that may be a header or a footer
REPEATED = 0.5  # share of the pages from which a line at the edge is one
FEWEST = 3  # pages; on fewer, a repeated line may well be text
NARROW = 0.8  # of the usual width of a line: a line that ends a sentence here ends the paragraph, too
HYPHEN = re.compile(r"(\w+)[-\u00ad\u2010]$")
BULLET = re.compile(r"[•▪◦‣·*–-]\s+\S|\(?(?:\d{1,2}|[a-z])[.)]\s+\S")


def parse_pdf(name: str, raw: bytes) -> tuple[Document, list[str]]:
    """Return a PDF as a document, and a remark for each page that could not be read.

    Raises:
        UnusableFile: encrypted, broken, or without text (scanned).
        MissingPartError: pypdf is not installed.
    """
    pages, broken = _read_pages(raw)
    if not any(line.strip() for lines in pages.values() for line in lines):
        raise UnusableFile("no-text", f"{len(pages) + len(broken)} pages without text; scanned pages are not read")
    builder = Builder(name)
    kept = _drop_edges(pages)
    for number, paragraph in _join_lines(kept):
        if not builder.pages or builder.pages[-1][1] != number:
            builder.begin_page(number)
        builder.add(paragraph)
    return builder.finish(), broken


def _read_pages(raw: bytes) -> tuple[dict[int, list[str]], list[str]]:
    """Return the lines by page number from 1, and what went wrong."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError:
        raise MissingPartError("reading pdf needs pypdf", action="pip install 'embedsmith[rag]'") from None
    pages, broken = {}, []
    with _silence("pypdf"):
        try:
            reader = PdfReader(io.BytesIO(raw), strict=False)
            if reader.is_encrypted:
                _unlock(reader)
            for number, page in enumerate(reader.pages, start=1):
                try:
                    pages[number] = page.extract_text().splitlines()
                except DependencyError:
                    raise
                except Exception as error:  # noqa: BLE001  a broken page may fail in any way; others can be read
                    broken.append(f"page {number}: {type(error).__name__}: {error}")
        except DependencyError as error:  # AES; not among our packages
            raise UnusableFile("encrypted", f"{error} (pip install cryptography)") from None
    return pages, broken


def _unlock(reader: Any) -> None:
    """Open a file that has no password for reading, only for printing or changing."""
    try:
        opened = bool(reader.decrypt(""))
    except Exception as error:  # noqa: BLE001  unknown ciphers, broken keys, cryptography not installed
        raise UnusableFile("encrypted", f"{type(error).__name__}: {error}") from None
    if not opened:
        raise UnusableFile("encrypted", "it needs a password")


@contextmanager
def _silence(name: str) -> Iterator[None]:
    """Keep a library's remarks on broken files off the screen; what matters is in the rejection."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _drop_edges(pages: Mapping[int, list[str]]) -> dict[int, list[str]]:
    """Return the pages without headers and footers: lines at the edge that most pages have, numbers aside."""
    edges = {number: _find_edges(lines) for number, lines in pages.items()}
    counts = Counter(shape for found in edges.values() for shape in set().union(*found.values()))
    common = {shape for shape, count in counts.items() if count >= FEWEST and count > REPEATED * len(pages)}
    return {
        number: [line for place, line in enumerate(lines) if common.isdisjoint(edges[number].get(place, ()))]
        for number, lines in pages.items()
    }


def _find_edges(lines: Sequence[str]) -> dict[int, set[str]]:
    """Return what the first and last lines of a page look like by place: "top:page # of #"; on short pages both."""
    places = [place for place, line in enumerate(lines) if line.strip()]
    found: dict[int, set[str]] = {}
    for side, chosen in (("top", places[:EDGE]), ("bottom", places[-EDGE:])):
        for place in chosen:
            shape = f"{side}:{re.sub(r'[0-9]+', '#', ' '.join(lines[place].split())).casefold()}"
            found.setdefault(place, set()).add(shape)
    return found


def _join_lines(pages: Mapping[int, list[str]]) -> Iterator[tuple[int, str]]:
    """Yield (page it begins on, paragraph): lines are joined until one ends it, also over the end of a page."""
    whole = " ".join(line for lines in pages.values() for line in lines)
    joined_words = set(re.findall(r"\w+-\w+", whole))
    lengths = sorted(len(line) for lines in pages.values() for line in lines if line.strip())
    usual = lengths[len(lengths) * 3 // 4]
    paragraph, begun = "", 0
    for number, lines in pages.items():
        for line in lines:
            text = " ".join(line.split())
            if paragraph and (not text or BULLET.match(text)) and not _goes_on(paragraph):
                yield begun, paragraph
                paragraph = ""
            if not text:
                continue
            begun = begun if paragraph else number
            paragraph = _append(paragraph, text, joined_words)
            if text[-1] in ".!?:" and len(text) < NARROW * usual:
                yield begun, paragraph
                paragraph = ""
    if paragraph:
        yield begun, paragraph


def _goes_on(paragraph: str) -> bool:
    """Say whether the text so far cannot be the end of a paragraph: a word is cut, or a comma stands last."""
    return paragraph.endswith(",") or HYPHEN.search(paragraph) is not None


def _append(paragraph: str, line: str, joined_words: Set[str]) -> str:
    """Return both with a space between; a word that was cut at the end of the line is put together.

    Where the text writes the word with its hyphen elsewhere ("long-term"), the hyphen stays.
    """
    cut = HYPHEN.search(paragraph)
    following = re.match(r"\w+", line)
    if not cut or not following or not line[0].islower():
        return f"{paragraph} {line}".strip()
    if f"{cut[1]}-{following[0]}" in joined_words:
        return paragraph[: cut.end(1)] + "-" + line
    return paragraph[: cut.end(1)] + line
