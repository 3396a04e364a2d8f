"""The passage, its file (JSON lines), and the counts of a run for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedsmith.artifacts import plain, read_jsonl, write_jsonl
from embedsmith.errors import InputError
from embedsmith.examples import Rejected
from embedsmith.personal import Screen

NEAR_DUPLICATE = "near-duplicate-passage"
OTHER_ENCODING = "read-as-other-encoding"  # a remark, no loss: the text of such a file is used


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


def screen_passages(rows: Iterable[Passage | Rejected], screen: Screen) -> Iterator[Passage | Rejected]:
    """Yield the rows with the passages' texts and headings as `screen` gives them back; a heading counts by itself."""
    for row in rows:
        if isinstance(row, Passage):
            headings = tuple(screen.read(row.id, heading) for heading in row.headings)
            row = replace(row, text=screen.read(row.id, row.text), headings=headings)
        yield row


def write_passages(path: Path | str, passages: Iterable[Passage]) -> int:
    """Write passages as JSON lines that `read_passages_file` gives back, atomically; return their number."""
    return write_jsonl(path, (_to_row(passage) for passage in passages))


def read_passages_file(path: Path | str) -> Iterator[Passage]:
    """Yield the passages of a file of `write_passages`, or of any JSON lines with id and text.

    Raises:
        InputError: the file cannot be read, a line is no passage, or an id comes twice.
    """
    seen: set[str] = set()
    for line, row in read_jsonl(path):
        passage = _from_row(row, f"{path}, line {line}")
        if passage.id in seen:
            raise InputError(
                f"{path}, line {line}: the id {passage.id!r} comes twice", expected="an id of its own a passage"
            )
        seen.add(passage.id)
        yield passage


def passage_from(row: Mapping[str, Any]) -> Passage:
    """Return the passage that `artifacts.plain` made the row of."""
    return Passage(**{**row, "headings": tuple(row["headings"]), "also": tuple(row["also"])})


def _to_row(passage: Passage) -> dict[str, Any]:
    """The fields that say something; start stays with end, so that a range is never half there."""
    row: dict[str, Any] = {key: value for key, value in plain(passage).items() if value not in ("", [], None, 0)}
    return row | {"start": passage.start} if passage.end else row


def _from_row(row: Mapping[str, Any], place: str) -> Passage:
    name, text = row.get("id", row.get("_id")), row.get("text")
    if name in (None, "") or not isinstance(text, str):
        raise InputError(f"{place}: no id or no text", expected='{"id": "…", "text": "…"}', action="mend the line")
    try:
        return Passage(
            str(name),
            text,
            str(row.get("document", "")),
            int(row.get("start", 0)),
            int(row.get("end", 0)),
            tuple(map(str, row.get("headings", ()))),
            None if row.get("page") is None else int(row["page"]),
            tuple(map(str, row.get("also", ()))),
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{place}: {error}", expected="start, end and page as numbers, headings and also as lists"
        ) from None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run over documents came to.

    Attributes:
        documents: files or rows that gave at least one passage.
        tokens_p50, tokens_p95, tokens_most: tokens of a passage: half and 95% have at most so many, none has more.
        merged: near-duplicate passages that were merged into others.
        rejected: files, pages and rows that were not used, by reason, most frequent first.
        remarks: files that were used, with what had to be assumed about them, by kind.
    """

    documents: int
    passages: int
    tokens_p50: int
    tokens_p95: int
    tokens_most: int
    merged: int
    rejected: Mapping[str, int]
    remarks: Mapping[str, int]


class Tally:
    """Counts what `read_passages` yields, row by row, so that nobody has to keep the rows."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._lengths: list[int] = []
        self._documents: set[str] = set()
        self._reasons: Counter[str] = Counter()

    def add(self, row: Passage | Rejected) -> None:
        if isinstance(row, Rejected):
            self._reasons[row.reason] += 1
        else:
            self._documents.add(row.document)
            self._lengths.append(self._count(row.text))

    def summarize(self) -> Summary:
        lengths = sorted(self._lengths)
        reasons = dict(self._reasons.most_common())
        merged, remarks = reasons.pop(NEAR_DUPLICATE, 0), reasons.pop(OTHER_ENCODING, 0)
        return Summary(
            len(self._documents),
            len(lengths),
            _quantile(lengths, 50),
            _quantile(lengths, 95),
            lengths[-1] if lengths else 0,
            merged,
            reasons,
            {OTHER_ENCODING: remarks} if remarks else {},
        )


def summarize(rows: Iterable[Passage | Rejected], *, count: Callable[[str], int]) -> Summary:
    """Return the counts of what `read_passages` yields; `count` is the counter the passages were cut with."""
    tally = Tally(count)
    for row in rows:
        tally.add(row)
    return tally.summarize()


def _quantile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of the values do not exceed; 0 of none."""
    return ordered[max(-(-percent * len(ordered) // 100) - 1, 0)] if ordered else 0
