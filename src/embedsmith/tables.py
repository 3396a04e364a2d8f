"""Tables of any common kind as a stream of rows: JSON lines, CSV, TSV, Parquet, plain or gzip."""

from __future__ import annotations

import csv
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from embedsmith.artifacts import iterate_lines, open_text, read_jsonl, require_file
from embedsmith.errors import ConfigurationError, InputError, MissingPartError

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
KINDS |= {".parquet": "parquet", ".pq": "parquet", ".txt": "txt", ".text": "txt", ".log": "txt"}

SEPARATORS = ",;\t|"  # of CSV; spreadsheets write the second where the comma is in numbers
NAMES = {";": "semicolons", "\t": "tabs", "|": "bars"}
LARGEST = 1 << 26  # characters of one field; csv itself stops at 131,072, which a chat or a document exceeds
FURTHEST = 1000  # lines that a quoted field of a TSV file runs over


def detect_kind(path: Path | str) -> str:
    """Return jsonl, csv, tsv, parquet or txt, from the file's ending (a closing .gz does not count)."""
    path = Path(path)
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    kind = KINDS.get(name.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path} has the ending {name.suffix or '(none)'!r}",
            expected="one of " + ", ".join(sorted(KINDS)) + ", plain or .gz",
            action="rename the file to what it is",
        )
    return kind


def read_rows(path: Path | str, *, separator: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number or row number from 1, row) of a table; one row in memory at a time.

    Args:
        separator: what stands between the fields of CSV and TSV files, by default `find_separator`'s and the tab;
            other kinds have none.

    Raises:
        InputError: missing, empty, not UTF-8, unknown ending, broken, cut off.
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
        yield from _read_csv(path, kind, separator)


def parse_separator(text: str) -> str:
    r"""Return the one character that a user means: itself, or "tab", which shells make hard to write.

    >>> parse_separator(";"), parse_separator("tab"), parse_separator(r"\t")
    (';', '\t', '\t')

    Raises:
        ConfigurationError: none or several characters, or one that ends lines or encloses fields.
    """
    found = "\t" if text.lower() in ("tab", r"\t") else text
    if len(found) != 1 or found in '"\r\n':
        raise ConfigurationError(f"the separator {text!r}", expected="one character, such as ';' or '|', or tab")
    return found


def find_separator(path: Path | str) -> str | None:
    """Return what is taken for the separator of a CSV file; None of other kinds, and where there is nothing to read."""
    if detect_kind(path) != "csv" or not Path(path).is_file() or not Path(path).stat().st_size:
        return None
    with open_text(path) as handle:
        return _guess_separator(next(iterate_lines(handle, path), ""))


def describe_separator(path: Path | str, separator: str | None = None) -> str:
    """Return a sentence on the separator that was chosen for a file, "" where it is the comma or the user's own."""
    found = find_separator(path) if separator is None else None
    if found in (None, ","):
        return ""
    return f"{path}: the columns are separated by {NAMES[str(found)]}, by the first line (--separator names another)"


def read_id(value: Any) -> str | None:
    """Return a row's own id as text, None where it has none; a whole float is its integer.

    A column of integers with a gap becomes one of floats, and nan where the gap is, in Parquet and pandas.

    >>> read_id(7), read_id(7.0), read_id(float("nan")), read_id("")
    ('7', '7', None, None)
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or value == "" else str(value)


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file, blank lines included."""
    with open_text(path) as handle:
        for number, line in enumerate(iterate_lines(handle, path), start=1):
            yield number, line.rstrip("\r\n")


def _read_csv(path: Path | str, kind: str, separator: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LARGEST)
    with open_text(path) as handle:
        lines = iterate_lines(handle, path)
        if separator is None and kind == "csv":
            first = next(lines, "")
            separator, lines = _guess_separator(first), chain([first], lines)
        separator = separator or "\t"
        records = _cut_tsv(lines, path) if (kind, separator) == ("tsv", "\t") else _cut_csv(lines, path, separator)
        _, header = next(records, (0, []))
        if not header:
            raise InputError(f"{path} has no header", expected="column names in the first line")
        _require_own_names(header, path)
        for number, fields in records:
            if len(fields) > len(header):
                raise InputError(
                    f"{path}, line {number}: more fields than columns",
                    expected=f"{len(header)} fields between {separator!r}, as in the first line",
                    action=f"quote fields that hold {separator!r}, or name what separates them: --separator",
                )
            if fields:
                yield number, dict(zip(header, fields, strict=False))


def _guess_separator(header: str) -> str:
    """Return which of `SEPARATORS` cuts the first line of a CSV file into most fields; the comma where they are one.

    `_guess_separator("id;text, as asked;channel")` is ";".
    """

    def count(separator: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=separator), []))
        except csv.Error:
            return 0

    return max(SEPARATORS, key=count)


def _require_own_names(columns: Iterable[str], path: Path | str) -> None:
    """Raise `InputError` if two columns have one name: of their values only one could be read."""
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name.strip()]
    if repeated:
        raise InputError(
            f"{path} has {' and '.join(repr(name) for name in repeated)} more than once among its columns",
            expected="a name of its own for each column",
            action="rename or remove the others",
        )


def _cut_csv(lines: Iterator[str], path: Path | str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the last line, fields) of each row; a quote that is never closed is an error."""
    ended = False

    def watch() -> Iterator[str]:
        nonlocal ended
        yield from lines
        ended = True

    reader = csv.reader(watch(), delimiter=separator)
    before = 0
    try:
        for fields in reader:
            if ended:
                raise _open_quote(path, before + 1)
            before = reader.line_num
            yield before, fields
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}", expected="well-formed CSV") from None


def _cut_tsv(lines: Iterator[str], path: Path | str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the last line, fields) of each row.

    Most writers of TSV quote nothing, and a quote is a character of the text; spreadsheets quote as in CSV. So a quote
    counts where it encloses a field: on one line, or over several if the lines are no rows by themselves.
    """
    ahead: deque[str] = deque()
    number = columns = 0
    while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
        number += 1
        plain = line.rstrip("\r\n").split("\t")
        fields = _parse_tsv([line]) if '"' in line else plain
        if fields is None and any(map(_opens_quote, plain)):
            fields, used = _join_lines(line, ahead, lines, columns)
            number += used
            if fields is None and len(plain) < columns:
                raise _open_quote(path, number)
        columns = columns or len(fields or plain)
        yield number, (fields or [_unquote(field) for field in plain]) if line.strip("\r\n") else []


def _join_lines(line: str, ahead: deque[str], lines: Iterator[str], columns: int) -> tuple[list[str] | None, int]:
    """Return the fields of a row that runs over `line` and lines after it, and how many; those are taken from `ahead`.

    None where that is no row: then what was read of `lines` waits in `ahead`.
    """
    is_row = line.count("\t") + 1 >= columns
    gathered = [line]
    for place in range(FURTHEST):
        if place == len(ahead):
            ahead.extend(islice(lines, 1))
        if place == len(ahead) or (is_row and ahead[place].count("\t") + 1 >= columns):
            break
        gathered.append(ahead[place])
        fields = _parse_tsv(gathered) if '"' in ahead[place] else None
        if fields is not None and len(fields) == columns:
            for _ in gathered[1:]:
                ahead.popleft()
            return fields, len(gathered) - 1
    return None, 0


def _parse_tsv(lines: Iterable[str]) -> list[str] | None:
    """Return the fields of one row whose quotes all enclose a field, or None."""
    try:
        return next(csv.reader(lines, delimiter="\t", strict=True), None)
    except csv.Error:
        return None


def _opens_quote(field: str) -> bool:
    return field.startswith('"') and not _is_quoted(field)


def _is_quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if _is_quoted(field) else field


def _open_quote(path: Path | str, number: int) -> InputError:
    return InputError(
        f"{path}, line {number}: a quote opens a field and is never closed",
        expected="a closing quote",
        action="close it, or write a quote that belongs to the text as two, inside quotes",
    )


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingPartError("reading Parquet needs pyarrow", action="pip install pyarrow") from None
    try:
        with ParquetFile(path) as file:
            _require_own_names(file.schema_arrow.names, path)
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=4096))
            yield from enumerate(chain.from_iterable(batches), start=1)
    except PermissionError:
        raise
    except (ArrowException, UnicodeDecodeError, OSError) as error:  # a damaged page is an OSError
        raise InputError(
            f"{path} is not Parquet, or damaged: {error}", expected="a Parquet file", action="write or copy it again"
        ) from None
