"""What language models answer to the prompts of the recipe `rag`: read, with a reason for all that is no question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedsmith.llm.structured import THINKING, parse_object, storable

SHOWN = 500  # characters of an unusable answer that are kept as evidence


@dataclass(frozen=True, slots=True)
class Asked:
    """One question out of an answer, not checked yet; `answers` has a span for each passage of the call."""

    question: str
    answers: tuple[str, ...]
    style: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """An answer, or a piece of one, that is no question, and why."""

    reason: str
    detail: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one passage: "yes", "partly" or "no", and the words that answer."""

    verdict: str
    span: str = ""


def read_questions(text: str | None, key: str, *, passages: int, style: str) -> Iterator[Asked | Unusable]:
    """Yield the questions under `key` of an answer, and what is wrong with the rest; never nothing, never raises.

    A cut answer gives the questions that are whole.

    Args:
        passages: spans that every question needs. style: of a question that names none; "" tells by the question mark.
    """
    items, notes = _read_list(text, key)
    if items is None:
        yield Unusable(
            "unreadable", f"no {key} in the answer ({', '.join(notes) or 'other keys'})", (text or "")[:SHOWN]
        )
    elif not items:
        yield Unusable("no-question", "the answer has an empty list: nothing to ask about this passage")
    for item in items or ():
        yield _read_item(item, passages, style)


def read_verdicts(text: str | None, key: str) -> dict[int, Verdict]:
    """Return the verdicts of a judge by number of the passage, from 1; {} when there is none to be read."""
    items, _ = _read_list(text, key)
    found: dict[int, Verdict] = {}
    for item in items or ():
        if isinstance(item, Mapping):
            number, word = item.get("passage"), str(item.get("verdict", "")).strip().casefold()
            if str(number).isdecimal() and word in ("yes", "partly", "no"):
                found.setdefault(int(str(number)), Verdict(word, _as_text(item.get("span"))))
    return found


def _read_list(text: str | None, key: str) -> tuple[list[Any] | None, tuple[str, ...]]:
    found, notes = parse_object(text, [key])
    if found is not None and isinstance(found[key], list):
        return found[key], notes
    pieces = [
        piece for piece in _whole_objects(THINKING.sub("", text or "")) if "question" in piece or "verdict" in piece
    ]
    return pieces or None, notes


def _whole_objects(body: str) -> Iterator[dict[str, Any]]:
    """Yield the innermost JSON objects of a text that is cut or broken, those that are whole."""
    decoder = json.JSONDecoder()
    start = body.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(body, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                yield {key: _storable(item) for key, item in value.items()}
        start = body.find("{", end)


def _storable(value: Any) -> Any:
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return storable(value) if isinstance(value, str) else value


def _read_item(item: Any, passages: int, style: str) -> Asked | Unusable:
    shown = json.dumps(item, ensure_ascii=False, default=str)[:SHOWN]
    if not isinstance(item, Mapping) or not isinstance(item.get("question"), str):
        return Unusable("malformed", "no question", shown)
    question = " ".join(item["question"].split())
    answers = _spans(item)
    if len(answers) != passages or not all(answer.strip() for answer in answers):
        return Unusable("no-span", f"{len(answers)} answer span(s) where {passages} are needed", shown)
    named = item.get("style")
    style = style or ("natural" if question.endswith(("?", "？")) else "keyword")
    return Asked(question, tuple(answers), named if isinstance(named, str) and named.strip() else style)


def _spans(item: Mapping[str, Any]) -> Sequence[str]:
    found = item.get("answers", item.get("answer"))
    found = found if isinstance(found, list) else [found]
    return [_as_text(span) for span in found if span is not None]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
