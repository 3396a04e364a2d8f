"""The journal of calls: every finished call is on disk before anyone uses it.

One SQLite file in WAL mode with full synchronisation. The key of a call is a hash of all that decides
its answer: the messages, the model and the sampling parameters. Keys of users or servers are never in it.

One process works with a journal at a time: who writes holds a lock that ends with the process, however it ends. Reading
(`Journal(path, writable=False)`) needs none.

Beside the calls it keeps which ones failed for good (for the run in which they did) and what was spent (`Ledger`).
Many answers are committed together: a commit costs milliseconds however many it holds.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from embedsmith.artifacts import plain, take_lock, write_ahead
from embedsmith.errors import InputError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Usage

WAIT = 30.0  # seconds for another process to finish writing
VERSION = 1  # of the file; 0 kept the error of a server that said it with status 200 as an empty answer
SCHEMA = """
create table if not exists calls (
    key text primary key,
    prompt text not null,
    model text not null,
    text text,
    finish text not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    seconds real not null,
    answered_by text not null
) without rowid;
create table if not exists failures (
    key text primary key,
    run text not null,
    finish text not null,
    seconds real not null,
    answered_by text not null,
    detail text not null default ''
) without rowid;
create table if not exists spending (
    model text primary key,
    calls integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    granted_calls integer not null,
    granted_prompt_tokens integer not null,
    granted_completion_tokens integer not null
) without rowid;
create table if not exists batched (
    key text primary key,
    prompt text not null,
    model text not null,
    calls integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    batch integer not null
) without rowid;
create index if not exists batched_by_batch on batched (model, batch);
create table if not exists batches (number integer primary key autoincrement, calls integer not null);
"""
_WRITE = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
UNFINISHED = frozenset({"error", "missing"})  # not stored: tried again in the next run


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that has ended, as the journal takes it in."""

    key: str
    prompt: str  # its fingerprint
    model: str
    completion: Completion


@dataclass(frozen=True, slots=True)
class BatchedCall:
    """A call that is out in a batch file; `worst` is the most that it can cost."""

    key: str
    prompt: str  # its fingerprint
    model: str
    worst: Usage
    batch: int = 0


class Journal:
    """Finished calls by key. Use it as a context manager; one process writes, from any of its threads.

    Args:
        writable: False reads a journal that another process may be writing; a file that is not there is empty.

    Attributes:
        doubted: empty answers of an older version that may have been errors, now forgotten.

    Raises:
        InputError: the file is not a journal, or another process writes it.
    """

    def __init__(self, path: Path | str, *, writable: bool = True) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.doubted = 0
        shared = str(path) != ":memory:"
        expected = "one run at a time in a folder: two would spend its budget twice"
        held = take_lock(Path(path), Path(path), expected=expected) if shared and writable else None
        try:
            self._connection = _connect(path) if writable else _connect_to_read(path)
            self.doubted = _forget_doubted(self._connection) if writable else 0
        except sqlite3.DatabaseError as error:
            if held is not None:
                held.close()
            raise InputError(
                f"{path} is not a journal of calls ({error})",
                expected="a file that embedsmith wrote",
                action="name another file; a journal that is lost costs its calls again, nothing else",
            ) from None
        self._held = held

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if self._held is not None:
            self._held.close()

    def get(self, key: str) -> Completion | None:
        """Return the finished call `key`, or None."""
        with self.lock:
            row = self._connection.execute(
                "select text, finish, prompt_tokens, completion_tokens, seconds, answered_by from calls where key = ?",
                (key,),
            ).fetchone()
        return None if row is None else Completion(*row)

    def get_failure(self, key: str, run: str) -> Completion | None:
        """Return how the call `key` failed for good in this run, or None; other runs do not count."""
        with self.lock:
            row = self._connection.execute(
                "select finish, seconds, answered_by, detail from failures where key = ? and run = ?", (key, run)
            ).fetchone()
        return None if row is None else Completion(None, row[0], seconds=row[1], model=row[2], detail=row[3])

    def knows(self, key: str, run: str) -> bool:
        """Say whether the call is finished, or has failed for good in this run."""
        with self.lock:
            found = self._connection.execute(
                "select exists (select 1 from calls where key = ?) or "
                "exists (select 1 from failures where key = ? and run = ?)",
                (key, key, run),
            ).fetchone()
        return bool(found[0])

    def put_many(self, finished: Sequence[Finished], *, run: str = "", budget: Budget | None = None) -> None:
        """Store calls that have ended, and what is spent, in one commit; durable on return.

        Args:
            run: those that failed for good count for this run only. Without it they are not kept.
        """
        stored = [one for one in finished if one.completion.finish not in UNFINISHED]
        failed = [one for one in finished if run and one.completion.finish in UNFINISHED]
        with self.lock, self._connection:
            self._connection.executemany(
                "insert or replace into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_call_row, stored)
            )
            self._connection.executemany(
                "insert or replace into failures values (?, ?, ?, ?, ?, ?)", (_failure_row(one, run) for one in failed)
            )
            if budget is not None and finished:
                self._write_spending(finished[0].model, *budget.books())

    def ledger(self, model: str) -> JournalLedger:
        """Return what was spent on a model, to be kept here."""
        return JournalLedger(self, model)

    def read_spending(self, model: str) -> tuple[Usage, Usage]:
        """Return what was spent on the model, and what was granted to calls of which nothing is known."""
        with self.lock:
            row = self._connection.execute("select * from spending where model = ?", (model,)).fetchone()
            if row is None:  # a journal of a version that kept no books
                row = self._connection.execute(
                    "select ?, count(*), ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0), 0, 0, 0 "
                    "from calls where model = ?",
                    (model, model),
                ).fetchone()
        return Usage(*row[1:4]), Usage(*row[4:])

    def write_spending(self, model: str, spent: Usage, granted: Usage) -> None:
        """Keep what was spent and granted; durable on return."""
        with self.lock, self._connection:
            self._write_spending(model, spent, granted)

    def _write_spending(self, model: str, spent: Usage, granted: Usage) -> None:
        figures = (*_figures(spent), *_figures(granted))
        self._connection.execute("insert or replace into spending values (?, ?, ?, ?, ?, ?, ?)", (model, *figures))

    def read_committed(self, model: str) -> Usage:
        """Return the most that the calls which are out in batches can cost."""
        with self.lock:
            row = self._connection.execute(
                "select ifnull(sum(calls), 0), ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0) "
                "from batched where model = ?",
                (model,),
            ).fetchone()
        return Usage(*row)

    def last_batch(self) -> int:
        """Return the number of the batch file written last; 0: none."""
        with self.lock:
            return int(self._connection.execute("select ifnull(max(number), 0) from batches").fetchone()[0])

    def add_batch(self, calls: Sequence[BatchedCall]) -> None:
        """Note the calls of the next batch file as out; durable on return."""
        with self.lock, self._connection:
            number = self._connection.execute("insert into batches (calls) values (?)", (len(calls),)).lastrowid
            rows = ((one.key, one.prompt, one.model, *_figures(one.worst), number) for one in calls)
            self._connection.executemany("insert or replace into batched values (?, ?, ?, ?, ?, ?, ?)", rows)

    def find_batched(self, key: str) -> BatchedCall | None:
        """Return the call if it is out in a batch."""
        with self.lock:
            row = self._connection.execute("select * from batched where key = ?", (key,)).fetchone()
        return None if row is None else BatchedCall(row[0], row[1], row[2], Usage(*row[3:6]), row[6])

    def count_batched(self) -> int:
        """Return the number of calls that are out in batches."""
        with self.lock:
            return int(self._connection.execute("select count(*) from batched").fetchone()[0])

    def take_results(self, finished: Sequence[Finished], used: Sequence[tuple[BatchedCall, Usage]]) -> None:
        """Store answers of batches, take the calls off the list of those out, count what they cost, in one commit."""
        with self.lock, self._connection:
            for model in {
                call.model for call, _ in used
            }:  # before the answers count as calls of a journal without books
                spent, granted = self.read_spending(model)
                for call, usage in used:
                    spent += usage if call.model == model else Usage()
                self._write_spending(model, spent, granted)
            self._connection.executemany(
                "insert or replace into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_call_row, finished)
            )
            self._connection.executemany("delete from batched where key = ?", ((call.key,) for call, _ in used))

    def release_batch(self, model: str, batch: int) -> int:
        """Take all calls of a batch off the list of those out; return how many there were."""
        with self.lock, self._connection:
            gone = self._connection.execute("delete from batched where model = ? and batch = ?", (model, batch))
        return gone.rowcount

    def count(self) -> int:
        """Return the number of finished calls."""
        with self.lock:
            return int(self._connection.execute("select count(*) from calls").fetchone()[0])

    def texts(self) -> Mapping[str, str]:
        """Return the text of each answer by the fingerprint of its prompt (one of them, if several)."""
        with self.lock:
            rows = self._connection.execute("select prompt, text from calls where text is not null")
            return {str(prompt): str(text) for prompt, text in rows}


@dataclass(frozen=True, slots=True)
class JournalLedger:
    """The books of one model in a journal."""

    journal: Journal
    model: str

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The lock of the journal's writers."""
        return self.journal.lock

    def read(self) -> tuple[Usage, Usage]:
        """Return what was spent, and what was granted and has not come back."""
        return self.journal.read_spending(self.model)

    def read_committed(self) -> Usage:
        """Return the most that the calls which are out in batches can cost."""
        return self.journal.read_committed(self.model)

    def write(self, spent: Usage, granted: Usage) -> None:
        """Keep both; durable on return."""
        self.journal.write_spending(self.model, spent, granted)


def _connect(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
    write_ahead(connection, wait=WAIT)
    connection.execute("pragma synchronous = full")
    connection.executescript(SCHEMA)
    if "detail" not in {column[1] for column in connection.execute("pragma table_info(failures)")}:
        connection.execute("alter table failures add column detail text not null default ''")
    return connection


def _connect_to_read(path: Path | str) -> sqlite3.Connection:
    if not Path(path).exists():
        return _connect(":memory:")
    connection = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
    connection.execute("pragma query_only = on")
    connection.execute("select count(*) from calls")
    return connection


def _forget_doubted(connection: sqlite3.Connection) -> int:
    """Take out what an older version may have mistaken for an answer, once; what was spent on it stays in the books.

    It is empty, ended of itself, and no token was counted: an error with status 200, or the answer of a server that
    writes nothing and counts nothing, which is asked once more.
    """
    if connection.execute("pragma user_version").fetchone()[0] >= VERSION:
        return 0
    with connection:
        connection.execute(
            "insert or ignore into spending "
            "select model, count(*), sum(prompt_tokens), sum(completion_tokens), 0, 0, 0 from calls group by model"
        )
        gone = connection.execute(
            "delete from calls where text = '' and finish = 'stop' and prompt_tokens + completion_tokens = 0 "
            "and model like 'openai:%'"
        )
        connection.execute(f"pragma user_version = {VERSION}")
    return gone.rowcount


def _call_row(one: Finished) -> tuple[object, ...]:
    done = one.completion
    tokens = done.prompt_tokens, done.completion_tokens
    return (one.key, one.prompt, one.model, done.text, done.finish, *tokens, done.seconds, done.model)


def _failure_row(one: Finished, run: str) -> tuple[object, ...]:
    done = one.completion
    return one.key, run, done.finish, done.seconds, done.model, done.detail


def _figures(usage: Usage) -> tuple[int, int, int]:
    return usage.calls, usage.prompt_tokens, usage.completion_tokens


def call_key(prompt: Prompt, model: str, sampling: Sampling) -> str:
    """Return the key of a call: 16 hex digits of everything that decides its answer.

    Recorded answers belong to a row: two rows with the same words may have been answered differently.
    """
    # `fingerprint` of the four, with the sampling turned into JSON once: this is done twice for each of a million rows.
    canonical = _WRITE.encode([prompt.system, prompt.user, model, _plain(sampling)])
    key = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if not model.startswith("recorded:"):
        return key
    # A row's name may hold half a character, which no store takes.
    return f"{key}:{prompt.row}:{prompt.task}".encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=64)
def _plain(sampling: Sampling) -> Any:
    return plain(sampling)
