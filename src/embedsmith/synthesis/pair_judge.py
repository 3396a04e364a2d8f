"""A language model as judge of pairs: does one answer serve both texts?"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources

from embedsmith.errors import ConfigurationError
from embedsmith.llm import Prompt, object_schema
from embedsmith.llm.calls import Calls
from embedsmith.llm.structured import parse_object

TASK = "same-answer"
VERDICTS = ("yes", "no", "unsure")
SCHEMA = object_schema({"same_answer": {"type": "string", "enum": list(VERDICTS)}, "difference": {"type": "string"}})


class PairJudge:
    """Judges pairs through the journal: what was judged once is asked no more.

    Attributes:
        counts: "yes", "no", "unsure", and "unreadable" (no verdict in the answer; counts as unsure).
        differences: what the judge said differs, by pair.
    """

    def __init__(self, calls: Calls) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: dict[tuple[str, str], str] = {}
        self._calls = calls

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Return "yes" (one answer serves both), "no" or "unsure" for each pair, in their order."""
        found = []
        answers = self._calls.complete(lambda: ask(pairs))
        for pair, (_, completion) in zip(pairs, answers, strict=True):
            verdict, difference = read_verdict(completion.text)
            self.counts[verdict or "unreadable"] += 1
            if difference:
                self.differences[pair] = difference
            found.append(verdict or "unsure")
        return found


def ask(pairs: Sequence[tuple[str, str]]) -> Iterator[Prompt]:
    """Yield the prompt about each pair; the texts are quoted as JSON, so that they cannot end their quotes."""
    template = _template()
    for row, (one, other) in enumerate(pairs):
        texts = {"one": json.dumps(one, ensure_ascii=False), "other": json.dumps(other, ensure_ascii=False)}
        user = template["user"].strip().format(**texts)
        yield Prompt(template["system"].strip(), user, str(row), TASK, schema=SCHEMA)


def read_verdict(text: str | None) -> tuple[str | None, str]:
    """Return the verdict of an answer, None where it holds none, and the difference it names.

    >>> read_verdict('{"same_answer": "No", "difference": "5 mg or 5 g"}')
    ('no', '5 mg or 5 g')
    """
    found, _ = parse_object(text, ["same_answer"])
    told = (found or {}).get("same_answer")
    verdict = {True: "yes", False: "no"}.get(told) if isinstance(told, bool) else str(told).strip(" .").casefold()
    difference = (found or {}).get("difference")
    return (verdict if verdict in VERDICTS else None), difference if isinstance(difference, str) else ""


@cache
def _template() -> dict[str, str]:
    file = resources.files("embedsmith.synthesis") / "pair_judge.toml"
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    if set(tables) != {"system", "user"}:
        raise ConfigurationError(f"{file} has {', '.join(tables)}", expected="system and user")
    return {name: str(value) for name, value in tables.items()}
