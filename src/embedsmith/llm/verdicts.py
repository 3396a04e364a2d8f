"""Does one answer serve both texts? One question to a language model, and one way to read what it says.

Synthesis asks it about the pairs that it wrote, the cache about the answers that it served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

from embedsmith.llm import Prompt, object_schema
from embedsmith.llm.prompts import Slots, Template, load_tables, quote, read_template
from embedsmith.llm.structured import THINKING, parse_object

TASK = "same_answer"
Situation = Literal["training", "cache"]
# The cache's judge has to decide: what it left open would be missing from the estimate, and is no fair part of it.
VERDICTS: Mapping[Situation, Sequence[str]] = {"training": ("yes", "no", "unsure"), "cache": ("yes", "no")}


def ask(situation: Situation, pair: tuple[str, str], row: str) -> Prompt:
    """Return the prompt about a pair; the texts are quoted as JSON, so that they cannot end their quotes."""
    template, choices, schema = _load(situation)
    one, other = map(quote, pair)
    words = " or ".join(map(quote, VERDICTS[situation]))
    return template.fill(row, TASK, schema, one=one, other=other, choices=choices, words=words)


def read_verdict(text: str | None) -> tuple[str | None, str]:
    """Return the verdict of an answer, None where it holds none or several, and the difference it names.

    >>> read_verdict('{"same_answer": "No", "difference": "5 mg or 5 g"}'), read_verdict("<think>hm</think>Yes.")
    (('no', '5 mg or 5 g'), ('yes', ''))
    """
    found, _ = parse_object(text, [TASK])
    told = THINKING.sub("", text or "") if found is None else found.get(TASK)  # small models say the word alone
    told = told[0] if isinstance(told, list) and len(told) == 1 else told  # as recorded answers are written
    verdict = {True: "yes", False: "no"}.get(told) if isinstance(told, bool) else str(told).strip(" .\n").casefold()
    difference = (found or {}).get("difference")
    return (verdict if verdict in VERDICTS["training"] else None), difference if isinstance(difference, str) else ""


@cache
def _load(situation: Situation) -> tuple[Template, str, Mapping[str, Any]]:
    """Return the messages, the verdicts with their meanings, a line each, and the schema of the answer."""
    tables, source = load_tables(resources.files("embedsmith.llm") / "verdicts.toml")
    slots = ("one", "other", "choices", "words")
    messages = {"system": tables["systems"][situation], "user": tables["user"]}
    choices = "\n".join(f"- {word}: {tables['meanings'][word].strip()}" for word in VERDICTS[situation])
    verdict = {"type": "string", "enum": list(VERDICTS[situation])}
    schema = object_schema({TASK: verdict, "difference": {"type": "string"}})
    return read_template(messages, Slots(slots, needed=slots), source), choices, schema
