"""Judged pairs: what was asked, what is stored, and whether one answer serves both; one file that only grows.

The file is JSON lines that `read_examples` takes as labelled pairs, to train on. A pair was either noticed by a person
(`source` "person") or drawn at random from the lookups (`source` "sample"). Only the second kind says how often the
cache is wrong: people notice what is striking, so what they mark is no sample of anything. Thresholds are made of the
file by `cache.recalibration`, which knows the difference, and by nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from io import FileIO
from pathlib import Path
from typing import IO, Literal, get_args

from embedsmith.artifacts import require_file, require_place
from embedsmith.cache.stores import is_within
from embedsmith.errors import InputError
from embedsmith.examples import Rejected
from embedsmith.settlement import NOTED, PERSON, Verdict, pair_of, settle
from embedsmith.tables import read_rows

LOG = logging.getLogger("embedsmith.cache")
Source = Literal["person", "sample"]
UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError)  # what a line can be, as an error


@dataclass(frozen=True, slots=True)
class Judged:
    """One judged pair.

    Attributes:
        sentence1: what was asked. sentence2: the stored question.
        label: 1 where one answer serves both, else 0.
        cosine: of the two by `model`; −1 if the guard vetoed the pair, None in files older than this field. (A column
            named similarity would make the file one of scored pairs.)
        namespace: the tenant. source: "person" (noticed by somebody) or "sample" (drawn at random).
        judge: "person", or the name of the language model. marked: Unix seconds of the verdict.
        model: fingerprint of the model that the cosine is of.
        threshold: from which on answers were served when the pair was drawn. floor: the lowest cosine at which pairs
            were drawn then. None where nothing was drawn.
    """

    sentence1: str
    sentence2: str
    label: int
    cosine: float | None = None
    namespace: str = "default"
    source: Source = "person"
    judge: str = PERSON
    marked: float = 0.0
    model: str = ""
    threshold: float | None = None
    floor: float | None = None


Listener = Callable[[Sequence[Judged], bool], None]  # takes rows, and whether they replace all that it has heard
NAMES = tuple(part.name for part in fields(Judged))


class Feedback:
    """A file of judged pairs. Safe for threads, and for processes of one machine where files can be locked."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._reading = threading.RLock()
        self._seen = 0, 0  # which file was read, and how many bytes of it
        self._listeners: list[Listener] = []

    def require_place(self) -> None:
        """Raise `InputError` unless rows can be added; leaves nothing behind.

        A file that is there may lie in a folder that nothing new can be written into, as containers mount it.
        """
        try:
            if self.path.is_file():
                self.path.open("ab").close()
                return
        except OSError as error:
            raise InputError(
                f"nothing can be added to {self.path} ({error.strerror})",
                expected="a file that can be written to",
                action="check its rights, or name another one",
            ) from None
        require_place(self.path, folder=False)

    def append(self, row: Judged) -> None:
        """Add a row; it is on disk on return. What a kill left of an earlier row is cut off first.

        Raises:
            OSError: it cannot be written, and nothing of it is.
        """
        told = {name: value for name, value in asdict(row).items() if value is not None}
        line = json.dumps(told, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as handle, _locked(handle):
                lost = _mend(handle)
                _write_whole(handle, line)
        if lost:
            LOG.warning("%s: the last row was cut off by a kill, its %d bytes are removed", self.path, lost)

    def remove(self, namespace: str) -> int:
        """Remove the rows of a namespace and of all below it; they are gone from the disk on return. Tell how many.

        Their bytes become spaces: no other row moves, so that what other processes add meanwhile, or have read, stays
        as it is, and a kill leaves rows that are removed or not. A line that is no row goes where it names the
        namespace: it may be what a kill has left of one.
        """
        if not self.path.is_file():
            return 0
        with self._lock, self.path.open("rb+") as handle, _locked(handle):
            places, start = [], 0
            for line in handle:
                if _is_of(line, namespace):
                    places.append((start, len(line.rstrip(b"\n"))))
                start += len(line)
            for start, length in places:
                handle.seek(start)
                handle.write(b" " * length)
            handle.flush()
            os.fsync(handle.fileno())
        return len(places)

    def read(self) -> list[Judged]:
        """Return all rows that can be read; none where there is no file yet."""
        with self._reading:
            self._seen = 0, 0
            return self.read_new()[0]

    def read_new(self) -> tuple[list[Judged], bool]:
        """Return the rows that were added since the last reading, by whatever process, and whether it is another file.

        Of a file in the place of one that was read it is all rows. Where nothing was added, the file is not opened. A
        row that is there only in part waits for the next reading.
        """
        with self._reading:
            try:
                about = self.path.stat()
            except FileNotFoundError:
                return [], False
            file, before = self._seen
            seen = before if file == about.st_ino and about.st_size >= before else 0
            added = self._read_behind(seen) if about.st_size > seen else b""
            self._seen = about.st_ino, seen + len(added)
            rows, rejected = _read_lines(added, self.path)
            for bad in rejected:
                where = f"line {bad.line}" if not seen else "a new line"
                LOG.warning("%s, %s is not used: %s", self.path, where, bad.detail)
            return rows, seen < before

    def listen(self, listener: Listener) -> None:
        """Let `listener` be told by `hear`."""
        self._listeners.append(listener)

    def hear(self) -> None:
        """Tell those who listen what `read_new` returns, in the file's order, what this process has added as well.

        What cannot be read is told when it can be; the log says so.
        """
        with self._reading:
            try:
                rows, anew = self.read_new()
            except OSError as error:
                LOG.warning("%s: what was added is not heard of: %s", self.path, error.strerror or "")
                return
            for listener in self._listeners if rows or anew else ():
                listener(rows, anew)

    def _read_behind(self, seen: int) -> bytes:
        with self.path.open("rb") as handle:
            handle.seek(seen)
            added = handle.read()
        last = added.rpartition(b"\n")[2]
        return added if _is_row(last) else added.removesuffix(last)


def read_feedback(path: Path | str) -> tuple[list[Judged], list[Rejected]]:
    """Return the judged pairs of a file in order, and the lines that are none with their reason.

    Raises:
        InputError: the file is missing or empty.
    """
    require_file(path)
    return _read_lines(Path(path).read_bytes(), path)


def _read_lines(content: bytes, path: Path | str) -> tuple[list[Judged], list[Rejected]]:
    rows, rejected = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(json.loads(line)))
        except UNREADABLE as error:
            reason = "cut-line" if isinstance(error, json.JSONDecodeError) else "bad-row"
            rejected.append(Rejected(reason, str(error), file=str(path), line=number))
    return rows, rejected


def refuse_feedback(path: Path | str) -> None:
    """Raise unless the labelled pairs of a file can be a sample of the traffic.

    Raises:
        InputError: rows of it are what the cache wrote as feedback.
    """
    path = Path(path)
    if ".jsonl" not in path.name or not path.is_file():
        return
    rows = [row for _, row in read_rows(path) if row.keys() >= NOTED]
    if rows:
        raise InputError(
            f"{path}: {len(rows)} rows were marked by people or drawn near a threshold (`serve --feedback` wrote them)",
            expected="labelled pairs like the traffic: no other sample carries a promise",
            action=f"embedsmith recalibrate {path} --model MODEL; the file is good to train on",
        )


def read_all_feedback(paths: Sequence[Path]) -> tuple[list[Judged], list[Rejected]]:
    """Return the rows of several files (those of replicas), oldest verdict first.

    A pair has one verdict (`settle_rows`). What a person has marked again, in whatever file, counts once. Samples are
    draws, and count as often as drawn.

    Raises:
        InputError: a file is missing, or there is not one row in all.
    """
    read = [read_feedback(path) for path in paths]
    rows = sorted((row for found, _ in read for row in found), key=lambda row: row.marked)
    if not rows:
        raise InputError(
            f"{', '.join(map(str, paths))}: not one judged pair", expected="what the cache wrote as --feedback"
        )
    return _drop_repeated_marks(settle_rows(rows)), [bad for _, lost in read for bad in lost]


def settle_rows(rows: Sequence[Judged]) -> list[Judged]:
    """Return the rows with the label that counts for their pair in their namespace (`settlement`); tenants judge apart.

    Training, which knows no tenants, takes the verdict that counts among all of them (`examples.read_examples`).
    """
    pairs = [_pair_of(row) for row in rows]
    judged = zip(pairs, rows, strict=True)
    labels = settle(Verdict(pair, row.label, row.judge == PERSON, row.marked) for pair, row in judged)
    settled = (labels[pair] for pair in pairs)
    return [row if row.label == label else replace(row, label=label) for row, label in zip(rows, settled, strict=True)]


def _pair_of(row: Judged) -> tuple[str, ...]:
    return row.namespace, *pair_of(row.sentence1, row.sentence2)


def _drop_repeated_marks(rows: Sequence[Judged]) -> list[Judged]:
    marked: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        pair = _pair_of(row) if row.source == "person" else ()
        if pair not in marked:
            kept.append(row)
        if pair:
            marked.add(pair)
    return kept


def _parse(row: object) -> Judged:
    if not isinstance(row, Mapping):
        raise ValueError("not an object")
    told = {name: row[name] for name in NAMES if row.get(name) is not None}
    for name in ("sentence1", "sentence2"):
        if not isinstance(told.get(name), str) or not told[name].strip():
            raise ValueError(f"{name} has no text")
    if told.get("label") not in (0, 1):
        raise ValueError(f"label is {told.get('label')!r}, not 0 or 1")
    if told.get("source", PERSON) not in get_args(Source):
        raise ValueError(f"source is {told['source']!r}, not person or sample")
    for name in ("cosine", "marked", "threshold", "floor"):
        if name in told:
            told[name] = float(told[name])
            if not math.isfinite(told[name]):
                raise ValueError(f"{name} is {told[name]}")
    for name in ("namespace", "judge", "model"):
        if not isinstance(told.get(name, ""), str):
            raise ValueError(f"{name} is no text")
    return Judged(**told | {"label": int(told["label"])})


def _write_whole(handle: FileIO, line: bytes) -> None:
    """Append a line that is on disk on return; a disk that is full, or fails, leaves the file as it was."""
    end = handle.seek(0, os.SEEK_END)
    left = memoryview(line)
    try:
        while left:
            left = left[handle.write(left) :]
        os.fsync(handle.fileno())
    except OSError:
        handle.truncate(end)
        raise


@contextmanager
def _locked(handle: IO[bytes] | FileIO) -> Iterator[None]:
    """Keep other processes of this machine away; a no-op where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the file is closed
    yield


def _mend(handle: FileIO) -> int:
    """Make the file end with a whole line; return how many bytes of a cut one were removed.

    A row that is there only in part was never acknowledged. A whole one that lacks its line break is kept.
    """
    end = handle.seek(0, os.SEEK_END)
    if not end:
        return 0
    handle.seek(end - 1)
    if handle.read(1) == b"\n":
        return 0
    handle.seek(0)
    tail = handle.read().rpartition(b"\n")[2]
    if not _is_row(tail):
        handle.truncate(end - len(tail))
        return len(tail)
    handle.write(b"\n")
    return 0


def _is_of(line: bytes, namespace: str) -> bool:
    if not line.strip():
        return False
    try:
        return is_within(_parse(json.loads(line)).namespace, namespace)
    except UNREADABLE:
        return namespace.encode() in line


def _is_row(line: bytes) -> bool:
    try:
        _parse(json.loads(line))
    except UNREADABLE:
        return False
    return True
