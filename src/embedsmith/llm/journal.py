"""The journal of calls: every finished call is on disk before anyone uses it.

One SQLite file in WAL mode with full synchronisation. The key of a call is a hash of all that decides
its answer: the messages, the model and the sampling parameters. Keys of users or servers are never in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from embedsmith.artifacts import fingerprint, write_ahead
from embedsmith.errors import InputError
from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling
from embedsmith.llm.structured import storable

WAIT = 30.0  # seconds for another process to finish writing
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
) without rowid
"""
UNFINISHED = frozenset({"error", "missing"})  # not stored: tried again in the next run


class Journal:
    """Finished calls by key. Use it as a context manager; one process writes at a time.

    Raises:
        InputError: the file is not a journal.
    """

    def __init__(self, path: Path | str) -> None:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self._connection = sqlite3.connect(path, timeout=WAIT)
            write_ahead(self._connection, wait=WAIT)
            self._connection.execute("pragma synchronous = full")
            self._connection.execute(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{path} is not a journal of calls ({error})",
                expected="a file that embedsmith wrote",
                action="name another file; a journal that is lost costs its calls again, nothing else",
            ) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, key: str) -> Completion | None:
        """Return the finished call `key`, or None."""
        row = self._connection.execute(
            "select text, finish, prompt_tokens, completion_tokens, seconds, answered_by from calls where key = ?",
            (key,),
        ).fetchone()
        return None if row is None else Completion(*row)

    def put(self, key: str, prompt: Prompt, model: str, completion: Completion) -> None:
        """Store a finished call; durable on return."""
        with self._connection:
            self._connection.execute(
                "insert or replace into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    prompt.fingerprint,
                    model,
                    completion.text,
                    completion.finish,
                    completion.prompt_tokens,
                    completion.completion_tokens,
                    completion.seconds,
                    completion.model,
                ),
            )

    def count(self) -> int:
        """Return the number of finished calls."""
        return int(self._connection.execute("select count(*) from calls").fetchone()[0])

    def texts(self) -> Mapping[str, str]:
        """Return the text of each answer by the fingerprint of its prompt (one of them, if several)."""
        rows = self._connection.execute("select prompt, text from calls where text is not null")
        return {str(prompt): str(text) for prompt, text in rows}


def call_key(prompt: Prompt, model: str, sampling: Sampling) -> str:
    """Return the key of a call: 16 hex digits of everything that decides its answer."""
    return fingerprint([prompt.system, prompt.user, model, sampling])


def complete_durably(
    llm: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    journal: Journal,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Return the completion of each prompt; finished calls come from the journal, the rest are sent.

    Each answer is committed before it is handed on, so a killed run repeats no finished call: at most
    the calls that were in flight. Prompts with the same words are sent once, unless the model answers
    by row (recorded completions).

    Args:
        on_progress: called with (finished prompts, all prompts).
    """
    done: dict[int, Completion] = {}
    waiting: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        key = _key(prompt, llm, sampling)
        known = journal.get(key)
        if known is not None:
            done[place] = known
        else:
            waiting.setdefault(key, []).append(place)
    _report(on_progress, done, prompts)
    keys = list(waiting)
    for index, completion in llm.complete([prompts[waiting[key][0]] for key in keys], sampling):
        key = keys[index]
        if completion.text is not None:  # what is handed on now is what later runs will find
            completion = replace(completion, text=storable(completion.text))
        if completion.finish not in UNFINISHED:
            journal.put(key, prompts[waiting[key][0]], llm.name, completion)
        done.update(dict.fromkeys(waiting[key], completion))
        _report(on_progress, done, prompts)
    return [done[place] for place in range(len(prompts))]


def _key(prompt: Prompt, llm: LanguageModel, sampling: Sampling) -> str:
    key = call_key(prompt, llm.name, sampling)
    return f"{key}:{prompt.row}:{prompt.task}" if llm.name.startswith("recorded:") else key


def _report(
    on_progress: Callable[[int, int], None] | None, done: Mapping[int, Completion], prompts: Sequence[Prompt]
) -> None:
    if on_progress is not None:
        on_progress(len(done), len(prompts))
