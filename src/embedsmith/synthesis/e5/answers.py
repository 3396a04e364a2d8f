"""Answers as examples: the JSON keys of each group become the columns that training knows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedsmith.choices import StsForm
from embedsmith.examples import Example, PositivePair, Provenance, ScoredPair, Triplet
from embedsmith.llm import Completion, describe_finish, name_failure
from embedsmith.llm.structured import THINKING, parse_object, storable
from embedsmith.synthesis.e5.plan import TWO_STEPS
from embedsmith.synthesis.e5.prompting import KEYS, Request
from embedsmith.synthesis.refusals import find_refusal

MOST_BRACES = 50  # places in an answer where an object is looked for


@dataclass(frozen=True, slots=True)
class Answer:
    """The texts of an answer in the order of the group's keys; or why there are none.

    Attributes:
        reason: "" when all texts are there; else what `name_failure` says, "empty", "truncated", "refusal",
            "malformed" or "missing-key".
        notes: what had to be done to read it ("repaired", "thinking-removed").
    """

    texts: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    notes: tuple[str, ...] = ()


def explain_absence(completion: Completion) -> tuple[str, str] | None:
    """Return the reason and the detail where a call brought no text at all, else None."""
    if completion.text is None:
        return name_failure(completion), describe_finish(completion)
    if not completion.text.strip():
        return "empty", f"finish: {completion.finish}"
    return None


def read_answer(group: str, completion: Completion) -> Answer:
    """Return the texts of the answer to a call of the second step; never raises."""
    absence = explain_absence(completion)
    if absence is not None:
        return Answer((), *absence)
    text = completion.text or ""
    keys = KEYS[group]
    found, notes = parse_object(text, keys)
    found = found or _find_inside(text, keys)
    if found is None:
        if refused := find_refusal(text):
            return Answer((), "refusal", f"“{refused}”", notes)
        cut = completion.finish == "length" or "truncated" in notes
        return Answer((), "truncated" if cut else "malformed", f"finish: {completion.finish}", notes)
    texts = tuple(_text_of(found.get(key)) for key in keys)
    missing = [key for key, value in zip(keys, texts, strict=True) if not value]
    if missing:
        return Answer((), "missing-key", f"no text under {', '.join(missing)}", notes)
    return Answer(texts, notes=notes)


def _find_inside(text: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the first whole object with all keys: one inside another, one of several, one among braces of prose."""
    body = THINKING.sub("", text)
    decoder = json.JSONDecoder(strict=False)  # line breaks inside strings
    starts = [found.start() for found in re.finditer(r"\{", body)][:MOST_BRACES]
    for start in starts:
        try:
            value, _ = decoder.raw_decode(body, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and all(key in value for key in keys):
            return {key: storable(item) if isinstance(item, str) else item for key, item in value.items()}
    return None


def _text_of(value: Any) -> str:
    """Return the text of a value; a list of one text is that text, a number its digits."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) else ""


def make_examples(request: Request, texts: tuple[str, ...], origin: Provenance, sts_as: StsForm) -> tuple[Example, ...]:
    """Return the examples of one row; `group` is the task, so that a split never separates it.

    Where all rows of a group have the same instruction (sts, bitext) each row is a group of its own: rows of one
    group never meet in a batch.
    """
    row = request.row
    group = request.instruction if row.group in TWO_STEPS else row.id
    if row.group == "sts" and sts_as == "scored":
        scores = _scores(request.values)
        return tuple(
            ScoredPair(texts[0], other, score, group, origin) for other, score in zip(texts[1:], scores, strict=True)
        )
    if len(texts) == 2:
        return (PositivePair(*texts, group=group, provenance=origin, instruction=request.instruction),)
    anchor, positive, negative = texts
    return (Triplet(anchor, positive, (negative,), group=group, provenance=origin, instruction=request.instruction),)


def _scores(values: Mapping[str, str]) -> tuple[float, float]:
    return float(values["high_score"]), float(values["low_score"])
