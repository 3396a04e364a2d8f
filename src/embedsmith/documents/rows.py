"""Tables as documents: one a row, with the row's own id and title."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedsmith.artifacts import open_text, write_jsonl
from embedsmith.documents.files import File, UnusableFile, decode, read_bytes
from embedsmith.documents.passages import OTHER_ENCODING
from embedsmith.documents.structure import Document, make_storable, split_paragraphs
from embedsmith.errors import InputError
from embedsmith.examples import Rejected
from embedsmith.tables import detect_kind, read_id, read_rows

TEXTS = ("text", "passage", "content", "body", "document", "contents", "paragraph", "chunk", "answer", "abstract")
IDS = ("id", "_id", "passage_id", "doc_id", "docid", "document_id", "pid", "uid")
TITLES = ("title", "headline", "heading", "subject")


def read_table(file: File, *, column: str | None = None, separator: str | None = None) -> Iterator[Document | Rejected]:
    """Yield the rows of a table as documents; a row without text is yielded as `Rejected` with its line.

    Args:
        column: name of the text column; by default the first of the usual names (`TEXTS`) that the row has.
        separator: see `tables.read_rows`.
    """
    lines = missing = first = 0  # first of the rows without the column
    columns: dict[str, None] = {}
    with _as_utf8(file) as (path, remark):
        if remark:
            yield Rejected(OTHER_ENCODING, remark, file=str(file.path))
        try:
            for line, row in read_rows(path, separator=separator):
                lines = line
                columns.update(dict.fromkeys(row))
                found = _read_row(file, line, row, column)
                if found is None:
                    missing, first = missing + 1, first or line
                else:
                    yield found
        except InputError as error:
            detail = error.found.replace(str(path), file.name)
            after = f"; the rows up to line {lines} were read, those after it were not" if lines else ""
            yield Rejected("broken", detail + after, file=str(file.path))
        else:
            if not lines:
                yield Rejected("empty", "no row", file=str(file.path))
    if missing:
        yield _reject_columns(file, columns, column, missing, first)


def find_text(row: Mapping[str, Any]) -> str | None:
    """Return the text of a row, its title before it: of the first of the usual columns (`TEXTS`) that holds one.

    The title alone where no column holds a text, None where there is no title either.
    """
    known = {name.strip().lower(): value for name, value in row.items() if isinstance(value, str) and value.strip()}
    text = next((known[name] for name in TEXTS if name in known), "")
    return " ".join(part for part in (known.get("title", ""), text) if part) or None


def _read_row(file: File, line: int, row: Mapping[str, Any], column: str | None) -> Document | Rejected | None:
    """Return None for a row without the column: said once a file."""
    name = _find(row, (column,) if column else TEXTS)
    if name is None:
        return None
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        empty = text is None or isinstance(text, str)
        detail = f"{name} is {'empty' if empty else f'a {type(text).__name__}'}"
        return Rejected("no-text", detail, file=str(file.path), line=line)
    own, title = _value(row, IDS), _value(row, TITLES)
    whole = split_paragraphs(f"{file.name}#{own or line}", text)
    return Document(whole.name, whole.text, whole.blocks, headings=(title,) if title else (), id=own)


def _find(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    known = {name.strip().lower(): name for name in names}
    return next((known[name.lower()] for name in wanted if name.lower() in known), None)


def _value(row: Mapping[str, Any], wanted: Iterable[str]) -> str | None:
    name = _find(row, wanted)
    value = None if name is None else row[name]
    found = read_id(value) if isinstance(value, (str, int, float)) else None
    return " ".join(make_storable(found or "").split()) or None


def _reject_columns(file: File, columns: Iterable[str], column: str | None, number: int, line: int) -> Rejected:
    """One for all rows of the file without the column: a table of numbers may have a million of them."""
    wanted = f"no column {column!r}" if column else f"none of the columns {', '.join(TEXTS)}"
    detail = f"{number} rows, the first in line {line}, have {wanted}; columns: {', '.join(columns)} (--column)"
    return Rejected("no-text-column", detail, file=str(file.path), line=line)


@contextmanager
def _as_utf8(file: File) -> Iterator[tuple[Path, str | None]]:
    """Give a path that `read_rows` can read, and a remark: the file itself, or a UTF-8 copy while it is needed."""
    if file.path.stat().st_size == 0:
        raise UnusableFile("empty", "no bytes")
    if file.format == "json":
        text, remark = decode(read_bytes(file.path))
        rows = _parse_json(text)
        if rows is None and remark is None:
            yield file.path, None
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "rows.jsonl")
            _ = copy.write_text(text, encoding="utf-8") if rows is None else write_jsonl(copy, rows)
            yield copy, remark
    elif detect_kind(file.path) == "parquet" or _is_utf8(file.path):
        yield file.path, None
    else:
        text, remark = decode(read_bytes(file.path))
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, file.path.name.removesuffix(".gz"))
            copy.write_text(text, encoding="utf-8")
            yield copy, remark


def _parse_json(text: str) -> list[Any] | None:
    """Return the rows of one JSON value (a list of objects, or one object), or None for JSON lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UnusableFile("broken", "JSON, but neither an object nor a list of objects")
    return rows


def _is_utf8(path: Path) -> bool:
    """Say whether a file is UTF-8, reading it in pieces."""
    try:
        with open_text(path) as handle:
            while handle.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True
