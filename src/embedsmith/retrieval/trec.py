"""TREC's two files: runs (qid Q0 docid rank score tag) and judgements (qid iter docid grade), read and written.

A run is ordered as trec_eval orders it: by score, highest first, compared as 32-bit floats; equal scores by document
id, last in the alphabet first. The rank column has to be a whole number and counts for nothing. What is written here
has scores that fall from line to line, so every tool that reads it finds our order.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import require_file, write_bytes
from embedsmith.errors import InputError
from embedsmith.tables import read_lines

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]

RUN_LINE = "qid Q0 docid rank score tag"
QRELS_LINE = "qid iter docid grade"
BEIR_COLUMNS = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True)
class Run:
    """What somebody's search found: by query, documents and their scores, best first."""

    tag: str
    documents: Mapping[str, Sequence[str]]
    scores: Mapping[str, Sequence[float]]


def read_run(path: Path | str) -> Run:
    """Return the run of a TREC run file, plain or .gz; its tag is that of the first line.

    Raises:
        InputError: a line of other than six fields, a rank or score that is no number, or a document twice for a query.
    """
    found: dict[str, dict[str, float]] = {}
    tag = ""
    for number, (query, _, document, rank, score, own) in _read_fields(path, 6, RUN_LINE):
        tag = tag or own
        _parse_whole(rank, path, number, "rank")
        known = found.setdefault(query, {})
        if document in known:
            raise _bad_line(path, number, f"document {document!r} for query {query!r} again", "each document once")
        known[document] = _parse_score(score, path, number)
    ordered = {query: _order(known) for query, known in found.items()}
    documents = {query: [document for document, _ in pairs] for query, pairs in ordered.items()}
    return Run(tag, documents, {query: [score for _, score in pairs] for query, pairs in ordered.items()})


def _order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    by_name = sorted(scores.items(), key=lambda pair: pair[0], reverse=True)
    return sorted(by_name, key=lambda pair: float(np.float32(pair[1])), reverse=True)


def write_run(
    path: Path | str,
    queries: Sequence[str],
    documents: Sequence[str],
    places: NDArray[np.int64],
    scores: NDArray[np.floating],
    *,
    tag: str,
) -> Path:
    """Write what each query found, best first, as a TREC run file; gzip by the ending .gz.

    Args:
        queries, documents: ids. places: (queries, depth), -1 where nothing was found. scores: the same shape.
        tag: name of the run; blanks become underscores. Where two scores are equal, or rise, the lower place gets the
            next smaller 32-bit float.

    Raises:
        InputError: an id that is empty or has a blank in it, which the format cannot hold.
    """
    known = np.unique(places[places >= 0]).tolist()
    for name in (*queries, *(documents[place] for place in known)):
        if len(name.split()) != 1 or name != name.strip():
            raise InputError(f"the id {name!r} cannot stand in a TREC file", expected="ids without blanks")
    label = "_".join(tag.split()) or "embedsmith"
    lines = [
        f"{query} Q0 {documents[place]} {rank} {float(score)!r} {label}\n"
        for row, query in enumerate(queries)
        for rank, (place, score) in enumerate(_falling(places[row], scores[row]), start=1)
    ]
    return _write(path, "".join(lines))


def _falling(places: NDArray[np.int64], scores: NDArray[np.floating]) -> Iterator[tuple[int, np.float32]]:
    """Yield (place, score) of what was found, with 32-bit scores that fall strictly."""
    last = np.float32(np.inf)
    for place, score in zip(places.tolist(), scores.astype(np.float32), strict=True):
        if place >= 0:
            last = min(score, np.nextafter(last, np.float32(-np.inf)))
            yield place, last


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """Return grade by query and document of a TREC judgement file, or of BEIR's (a header, tabs); plain or .gz.

    Raises:
        InputError: a line with other fields, a grade that is no whole number, or a document judged twice for a query.
    """
    first = next((line for _, line in read_lines(_required(path)) if line.strip()), "")
    columns = first.split("\t")
    rows = _read_beir_fields(path, columns) if set(BEIR_COLUMNS) <= set(columns) else _read_trec_judgements(path)
    found: dict[str, dict[str, int]] = {}
    for number, query, document, grade in rows:
        known = found.setdefault(query, {})
        if document in known:
            raise _bad_line(path, number, f"document {document!r} for query {query!r} again", "each judgement once")
        known[document] = _parse_whole(grade, path, number, "grade")
    return found


def _read_trec_judgements(path: Path | str) -> Iterator[tuple[int, str, str, str]]:
    for number, (query, _, document, grade) in _read_fields(path, 4, f"{QRELS_LINE}, or BEIR's header"):
        yield number, query, document, grade


def _read_beir_fields(path: Path | str, columns: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    query, document, grade = (columns.index(name) for name in BEIR_COLUMNS)
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    next(lines)
    for number, line in lines:
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != len(columns):
            raise _bad_line(path, number, f"{len(fields)} fields", f"{len(columns)}, with tabs: {', '.join(columns)}")
        yield number, fields[query], fields[document], fields[grade]


def write_qrels(path: Path | str, qrels: Qrels) -> Path:
    """Write judgements as TREC has them; gzip by the ending .gz."""
    rows = ((query, document, grade) for query, grades in qrels.items() for document, grade in grades.items())
    return _write(path, "".join(f"{query} 0 {document} {grade}\n" for query, document, grade in rows))


def _write(path: Path | str, text: str) -> Path:
    content = text.encode("utf-8")
    return write_bytes(path, gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


def _read_fields(path: Path | str, count: int, form: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(_required(path)):
        fields = line.split()
        if fields and len(fields) != count:
            raise _bad_line(path, number, f"{len(fields)} fields", form)
        if fields:
            yield number, fields


def _required(path: Path | str) -> Path | str:
    require_file(path)
    return path


def _parse_whole(text: str, path: Path | str, number: int, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _bad_line(path, number, f"the {what} {text!r}", "a whole number") from None


def _parse_score(text: str, path: Path | str, number: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise _bad_line(path, number, f"the score {text!r}", "a finite number")
    return score


def _bad_line(path: Path | str, number: int, found: str, expected: str) -> InputError:
    return InputError(f"{path}, line {number}: {found}", expected=expected, action="mend or remove the line")
