"""Tables of any common kind as a stream of rows: JSON lines, CSV, TSV, Parquet, plain or gzip."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedsmith.artifacts import open_text, read_jsonl, require_file
from embedsmith.errors import InputError, MissingPartError

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
KINDS |= {".parquet": "parquet", ".pq": "parquet", ".txt": "txt", ".text": "txt", ".log": "txt"}


def detect_kind(path: Path | str) -> str:
    """Return jsonl, csv, tsv, parquet or txt, from the file's ending (a closing .gz does not count)."""
    path = Path(path)
    name = path.with_suffix("") if path.suffix == ".gz" else path
    kind = KINDS.get(name.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path} has the ending {name.suffix or '(none)'!r}",
            expected="one of " + ", ".join(sorted(KINDS)) + ", plain or .gz",
            action="rename the file to what it is",
        )
    return kind


def read_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number or row number from 1, row) of a table; one row in memory at a time.

    Raises:
        InputError: missing, empty, not UTF-8, unknown ending, broken.
    """
    kind = detect_kind(path)
    require_file(path)
    if kind == "jsonl":
        yield from read_jsonl(path)
    elif kind == "parquet":
        yield from _read_parquet(Path(path))
    elif kind == "txt":
        yield from ((number, {"text": line}) for number, line in read_lines(path))
    else:
        yield from _read_csv(path, "," if kind == "csv" else "\t")


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file, blank lines included."""
    with open_text(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):
                yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None


def _read_csv(path: Path | str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path) as handle:
        reader = csv.DictReader(handle, delimiter=delimiter)
        try:
            if not reader.fieldnames:
                raise InputError(f"{path} has no header", expected="column names in the first line")
            for row in reader:
                extra = row.pop(None, None)
                if extra:
                    raise InputError(
                        f"{path}, line {reader.line_num}: more fields than columns",
                        expected=f"{len(reader.fieldnames)} fields",
                        action="quote fields that hold the separator",
                    )
                yield reader.line_num, {key: value for key, value in row.items() if value is not None}
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}", expected="well-formed CSV") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingPartError("reading Parquet needs pyarrow", action="pip install pyarrow") from None
    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise InputError(f"{path} is not Parquet: {error}", expected="a Parquet file") from None
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _not_utf8(path: Path | str, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{path} is not UTF-8 (byte {error.object[error.start]:#04x})",
        expected="UTF-8 text",
        action=f"convert it, for example: iconv -f latin1 -t utf-8 {path}",
    )
