"""Batch files: calls written to files for a provider's batch API, and its answers read back into the journal.

1. `BatchWriter` stands in for the model: a recipe that asks it writes each call that the journal lacks into
   `batch-00001.jsonl`, … (one JSON object a line: custom_id, method, url, body) and gets the finish "batched" for it.
2. The user hands the files to the provider (OpenAI: upload with purpose "batch", endpoint /v1/chat/completions, half
   the price, within 24 hours), and downloads the output file and the error file of each.
3. `read_results` stores the answers under the keys of the calls. The recipe, run again with the model itself, finds
   them in the journal; what failed or is missing is sent as an ordinary call, or goes into the next batch.

A recipe of two steps takes two rounds: its second step asks nothing until the first has answers. The custom_id is the
key of the call, so nothing but the journal is needed to read answers, in any order, twice, or after a kill. Calls that
are out in a batch are written to no other file, and a budget counts them at their worst case until they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedsmith.artifacts import read_jsonl, replacing
from embedsmith.errors import InputError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Reservation, Usage
from embedsmith.llm.calls import BATCHED, OUT_OF_BUDGET
from embedsmith.llm.journal import BatchedCall, Finished, Journal, call_key
from embedsmith.llm.openai_chat import OpenAIChat, read_completion
from embedsmith.llm.structured import storable

MOST_CALLS, MOST_BYTES = 50_000, 190_000_000  # of one file; OpenAI takes 50,000 and 200 MB
TOGETHER = 500  # answers in one commit
URL = "/v1/chat/completions"


class BatchWriter:
    """A language model that answers nothing yet: prompts become lines of batch files.

    Its name is that of the model, so its calls have the model's keys. The terms are those that `chat` starts with
    (a JSON schema, max_completion_tokens), since no server is asked.

    Attributes:
        files: the files written, finished when `stream` ends.
    """

    def __init__(
        self, chat: OpenAIChat, folder: Path | str, journal: Journal, *, calls: int = MOST_CALLS, size: int = MOST_BYTES
    ) -> None:
        self.name = chat.name
        self.files: list[Path] = []
        self._chat, self._folder, self._journal = chat, Path(folder), journal
        self._most_calls, self._most_bytes = calls, size

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield the finish "batched" for each prompt, now in a file."""
        for arrived in self.stream(iter(prompts), sampling):
            yield from arrived

    def stream(
        self, prompts: Iterator[Prompt], sampling: Sampling, /, *, budget: Budget | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield the places whose prompts were written (or could not be paid for)."""
        shard = _Shard()
        try:
            for place, prompt in enumerate(prompts):
                finish = BATCHED
                key = call_key(prompt, self.name, sampling)
                if key not in shard.keys and self._journal.find_batched(key) is None:
                    line = self._write_line(key, prompt, sampling)
                    if self._is_full(shard, line):
                        shard = self._finish(shard, budget)
                    free = Reservation(Usage(1))
                    reserved = free if budget is None else budget.reserve(prompt, sampling, durable=False)
                    if reserved is not None:
                        shard.add(line, BatchedCall(key, prompt.fingerprint, self.name, reserved.most))
                    else:
                        finish = OUT_OF_BUDGET
                yield [(place, Completion(None, finish, model=self.name))]
            shard = self._finish(shard, budget)
        finally:
            if budget is not None:  # what is left went wrong, and is in no file
                for call in shard.calls:
                    budget.settle(Reservation(call.worst), Usage())

    def _is_full(self, shard: _Shard, line: bytes) -> bool:
        return bool(shard.calls) and (len(shard.calls) == self._most_calls or shard.size + len(line) > self._most_bytes)

    def _write_line(self, key: str, prompt: Prompt, sampling: Sampling) -> bytes:
        body = self._chat.write_body(prompt, sampling)
        line = {"custom_id": key, "method": "POST", "url": URL, "body": body}
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def _finish(self, shard: _Shard, budget: Budget | None) -> _Shard:
        """Put a file in its place, then into the journal: a kill in between writes the same file once more.

        Return the next one, empty.
        """
        if not shard.calls:
            return shard
        path = self._folder / f"batch-{self._journal.last_batch() + 1:05d}.jsonl"
        with replacing(path) as new, new.open("wb") as handle:
            handle.writelines(shard.lines)
        self._journal.add_batch(shard.calls)
        if budget is not None:
            for call in shard.calls:
                budget.commit(call.worst)
        self.files.append(path)
        return _Shard()


class _Shard:
    """The lines of a file to be."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.calls: list[BatchedCall] = []
        self.keys: set[str] = set()
        self.size = 0

    def add(self, line: bytes, call: BatchedCall) -> None:
        self.lines.append(line)
        self.calls.append(call)
        self.keys.add(call.key)
        self.size += len(line)


@dataclass(frozen=True, slots=True)
class BatchResults:
    """What result files brought.

    Attributes:
        stored: answers now in the journal. failed: calls that ended with an error. missing: calls of the same batches
            that are in no file. Both may be sent again. again: lines of calls that were read before.
        unreadable: lines that are no result, with the first of them. first_failed: the first error, and where it is.
    """

    stored: int
    failed: int
    missing: int
    again: int
    unreadable: int
    first_unreadable: str = ""
    first_failed: str = ""


def read_results(files: Iterable[Path | str], journal: Journal) -> BatchResults:
    """Store the answers of batches; hand over the output file and the error file of a batch together.

    Files may be read twice, and a killed run may be repeated: nothing counts double.

    Raises:
        InputError: a file that cannot be read, or none of whose lines belongs to a batch of this journal.
    """
    reader = _Reader(journal)
    for file in files:
        reader.read(Path(file))
    return reader.finish()


class _Reader:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._stored: list[tuple[BatchedCall, Completion]] = []
        self._failed: list[BatchedCall] = []
        self._taken: set[str] = set()  # since the last commit
        self._batches: set[tuple[str, int]] = set()
        self._counts = {"stored": 0, "failed": 0, "again": 0, "unreadable": 0}
        self._first = self._first_failed = ""

    def read(self, file: Path) -> None:
        before = dict(self._counts)
        for number, row in read_jsonl(file):
            self._take(row, f"{file}, line {number}")
            if len(self._stored) + len(self._failed) >= TOGETHER:
                self._commit()
        self._commit()
        found = {name: self._counts[name] - before[name] for name in before}
        if found["unreadable"] and not found["stored"] + found["failed"] + found["again"]:
            raise InputError(
                f"{file} has no answer to a batch of this journal (first: {self._first})",
                expected="the output file or the error file of a batch that embedsmith wrote",
                action="name the journal that the batch was written with",
            )

    def finish(self) -> BatchResults:
        missing = sum(self._journal.release_batch(*batch) for batch in sorted(self._batches))
        return BatchResults(
            **self._counts, missing=missing, first_unreadable=self._first, first_failed=self._first_failed
        )

    def _take(self, row: dict[str, Any], place: str) -> None:
        key = row.get("custom_id")
        call = self._journal.find_batched(key) if isinstance(key, str) else None
        if call is None or key in self._taken:
            known = (isinstance(key, str) and self._journal.get(key) is not None) or call is not None
            self._counts["again" if known else "unreadable"] += 1
            self._first = self._first if known or self._first else f"{place}: custom_id {key!r}"
            return
        self._batches.add((call.model, call.batch))
        self._taken.add(call.key)
        completion = _read_row(row, call.model.removeprefix("openai:"))
        if completion is None:
            self._failed.append(call)
            self._first_failed = self._first_failed or f"{place}: {_find_error(row)}"
        else:
            self._stored.append((call, completion))

    def _commit(self) -> None:
        """Take answers in, release their calls and pay for them, in one commit."""
        finished = [Finished(call.key, call.prompt, call.model, done) for call, done in self._stored]
        used = [(call, _measure(call, done)) for call, done in self._stored]
        used += [(call, Usage(1)) for call in self._failed]
        if used:
            self._journal.take_results(finished, used)
        self._counts["stored"] += len(finished)
        self._counts["failed"] += len(self._failed)
        self._stored, self._failed = [], []
        self._taken.clear()


def _measure(call: BatchedCall, completion: Completion) -> Usage:
    tokens = completion.prompt_tokens, completion.completion_tokens
    return Usage(1, *tokens) if any(tokens) else call.worst


def _read_row(row: dict[str, Any], model: str) -> Completion | None:
    """Return the completion of a result line, or None where the call failed."""
    response = row.get("response") or {}
    if row.get("error") or not isinstance(response, dict) or response.get("status_code") != 200:
        return None
    try:
        done = read_completion(response["body"], model, 0.0)
    except (ValueError, TypeError, AttributeError, LookupError):
        return None
    return Completion(
        storable(done.text or ""), done.finish, done.prompt_tokens, done.completion_tokens, 0.0, done.model
    )


def _find_error(row: dict[str, Any]) -> str:
    """Return what a result line says of a call that failed, short."""
    response = row["response"] if isinstance(row.get("response"), dict) else {}
    body = response["body"] if isinstance(response.get("body"), dict) else {}
    error = row.get("error") or body.get("error") or "no completion in it"
    said = error["message"] if isinstance(error, dict) and "message" in error else error
    return storable(f"status {response.get('status_code')}: {said}"[:300])
