"""Recorded completions: answers written earlier, found by row and task; a run without an LLM.

One JSON object a line, plain or gzip: {"id": 7, "paraphrases": ["…"], "distinct": ["…"]}. Every key
with a list of texts is a task. A row and task with two different answers is an error: nothing says which row of the log
each belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedsmith.artifacts import fingerprint_file, read_jsonl
from embedsmith.errors import InputError
from embedsmith.llm import Completion, Prompt, Sampling


class Recorded:
    """A language model that remembers; a row it does not know has finish "missing"."""

    instant = True  # nothing is waited for: answers are committed many at once

    def __init__(self, path: Path | str) -> None:
        self._answers: dict[tuple[str, str], list[str]] = {}
        for line, row in read_jsonl(path):
            if "id" not in row:
                raise InputError(f"{path}, line {line}: no id", expected="the id of the row of the log")
            for task, texts in row.items():
                if isinstance(texts, list):
                    self._add(str(row["id"]), task, texts, f"{path}, line {line}")
        self.name = f"recorded:{Path(path).name}@{fingerprint_file(path)}"

    def _add(self, row: str, task: str, texts: list[str], place: str) -> None:
        if self._answers.setdefault((row, task), texts) != texts:
            raise InputError(
                f"{place}: another answer for the id {row!r} and {task!r}",
                expected="one answer for each row and task",
                action="give each row an id of its own; in the names of the log, the second row 7 is '7~2'",
            )

    def complete(self, prompts: Sequence[Prompt], _: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield the recorded answers in the order of the prompts."""
        for place, prompt in enumerate(prompts):
            texts = self._answers.get((prompt.row, prompt.task))
            if texts is None:
                yield place, Completion(None, "missing", model=self.name)
            else:
                answer = json.dumps({prompt.task: texts}, ensure_ascii=False)
                yield place, Completion(answer, "stop", model=self.name)
