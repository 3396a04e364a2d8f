"""Files, folders and globs in, passages out; what cannot be used is said, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from embedsmith.documents.chunking import Size, chunk_document
from embedsmith.documents.files import File, UnusableFile, decode, find_files, read_bytes
from embedsmith.documents.merging import merge_near
from embedsmith.documents.passages import OTHER_ENCODING, Passage
from embedsmith.documents.rows import read_table
from embedsmith.documents.sentences import estimate_tokens
from embedsmith.documents.structure import Document, split_paragraphs
from embedsmith.errors import EmbedsmithError, InputError
from embedsmith.examples import Rejected
from embedsmith.text import OwnNames

TOKENS = 256
Advance = Callable[[int, int], None]  # (files done, files in all)


def read_passages(
    sources: Iterable[Path | str],
    *,
    tokens: int = TOKENS,
    overlap: int | None = None,
    count: Callable[[str], int] = estimate_tokens,
    column: str | None = None,
    separator: str | None = None,
    advance: Advance | None = None,
    without: Iterable[Path] = (),
) -> Iterator[Passage | Rejected]:
    """Yield the passages of all documents, near-duplicates merged; what is not used as `Rejected` with file and reason.

    Rejections come as they are found, passages after the last file. One document is in memory at a time; the passages
    wait on disk.

    Args:
        sources: files, folders, globs of txt, md, html, pdf, json, jsonl, csv, tsv, parquet; .gz too.
        tokens: most tokens of a passage.
        overlap: most tokens that a passage repeats from the one before, whole sentences; by default an eighth of
            `tokens`, 32 of 256.
        count: tokens of a text, without special tokens; by default 1.3 a word.
        column: text column of tables; by default one of the usual names.
        separator: of the columns of csv and tsv files; by default found by the first line.
        advance: told of every file that is done.
        without: results that are no documents, see `find_files`.

    Raises:
        InputError: a source names nothing. ConfigurationError: lengths that make no sense.
        MissingPartError: a parser that a file needs is not installed.
    """
    size = Size(tokens, tokens // 8 if overlap is None else overlap, count)
    documents = read_documents(sources, column=column, separator=separator, advance=advance, without=without)
    return merge_near(_number(_chunk(documents, size)))


def read_documents(
    sources: Iterable[Path | str],
    *,
    column: str | None = None,
    separator: str | None = None,
    advance: Advance | None = None,
    without: Iterable[Path] = (),
) -> Iterator[Document | Rejected]:
    """Yield every document of `sources` as text with its blocks, in order of the sources, sorted within folders."""
    found = list(find_files(sources, without=without))
    for done, file in enumerate(found, start=1):
        if isinstance(file, Rejected):
            yield file
        else:
            yield from read_file(file, column=column, separator=separator)
        if advance is not None:
            advance(done, len(found))


def read_file(file: File, *, column: str | None = None, separator: str | None = None) -> Iterator[Document | Rejected]:
    """Yield the documents of one file; whatever is wrong with its bytes ends as a `Rejected`."""
    try:
        yield from _parse(file, column, separator)
    except UnusableFile as problem:
        yield Rejected(problem.reason, problem.detail, file=str(file.path))
    except InputError as error:
        yield Rejected("broken", error.found, file=str(file.path))
    except OSError as error:
        yield Rejected("unreadable", f"{type(error).__name__}: {error.strerror or error}", file=str(file.path))
    except EmbedsmithError:
        raise  # a missing part, or a counter that cannot be used: the same for every file
    except Exception as error:  # noqa: BLE001  parsers fail in any way on broken bytes; the other files can be read
        yield Rejected("broken", f"{type(error).__name__}: {error}"[:500], file=str(file.path))


def _parse(file: File, column: str | None, separator: str | None) -> Iterator[Document | Rejected]:
    if file.format in ("table", "json"):
        yield from read_table(file, column=column, separator=separator)
        return
    raw = read_bytes(file.path)
    if file.format == "pdf":
        from embedsmith.documents.pdf import parse_pdf

        document, broken = parse_pdf(file.name, raw)
        yield from (Rejected("broken-page", detail, file=str(file.path)) for detail in broken)
    else:
        text, remark = decode(raw)
        if remark:
            yield Rejected(OTHER_ENCODING, remark, file=str(file.path))
        document = _parse_text(file, text)
    if document.blocks:
        yield document
    else:
        yield Rejected("empty", "no text is left of it", file=str(file.path))


def _parse_text(file: File, text: str) -> Document:
    if file.format == "markdown":
        from embedsmith.documents.markdown import parse_markdown

        return parse_markdown(file.name, text)
    if file.format == "html":
        from embedsmith.documents.html import parse_html

        return parse_html(file.name, text)
    return split_paragraphs(file.name, text)


def _chunk(documents: Iterable[Document | Rejected], size: Size) -> Iterator[Passage | Rejected]:
    for document in documents:
        if isinstance(document, Rejected):
            yield document
        else:
            yield from chunk_document(document, size)


def _number(rows: Iterable[Passage | Rejected]) -> Iterator[Passage | Rejected]:
    """Give passages whose id was there before another one: rows of two tables may both begin with 0."""
    ids = OwnNames()
    for row in rows:
        if isinstance(row, Passage):
            row = replace(row, id=ids.give(row.id, row.document))
        yield row
