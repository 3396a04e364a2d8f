"""The prompts of the recipe `rag`: read from TOML, rendered for passages; and the schemas of their answers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from embedsmith.artifacts import fingerprint
from embedsmith.documents import Passage
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.llm import Prompt, object_schema
from embedsmith.synthesis.rag.plan import STYLES, RagPlan

QUESTIONS, MULTI_QUESTIONS, VERDICTS = "questions", "multi_questions", "verdicts"  # tasks, and keys of the answers
# Table of the prompts file → the placeholders that its user prompt must have.
TABLES: Mapping[str, frozenset[str]] = {
    "questions": frozenset({"passage", "place", "styles", "count"}),
    "multi": frozenset({"passages", "place", "number"}),
    "judge": frozenset({"question", "passages"}),
}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "questions": ("passage", "styles"),
    "multi": ("passages",),
    "judge": ("question", "passages"),
}
_TEXT: dict[str, Any] = {"type": "string"}
_VERDICT = {"passage": {"type": "integer"}, "verdict": {"enum": ["yes", "partly", "no"]}, "span": _TEXT}


def _list_of(key: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return object_schema({key: {"type": "array", "items": object_schema(properties)}})


SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    QUESTIONS: _list_of(QUESTIONS, {"style": {"enum": list(STYLES)}, "question": _TEXT, "answer": _TEXT}),
    MULTI_QUESTIONS: _list_of(
        MULTI_QUESTIONS, {"question": _TEXT, "answers": {"type": "array", "items": {"type": "string"}}}
    ),
    VERDICTS: _list_of(VERDICTS, _VERDICT),
}


@dataclass(frozen=True, slots=True)
class RagPrompts:
    """The messages of the three calls, and the words for each style.

    Attributes:
        messages: (system, user) by table: "questions", "multi", "judge".
        styles: description by style, with the placeholder {count}.
    """

    messages: Mapping[str, tuple[str, str]]
    styles: Mapping[str, str]


def load_prompts(path: Path | str | None = None) -> RagPrompts:
    """Return the prompts of the recipe, or those of the user's own file.

    Raises:
        InputError: the file does not exist.
        ConfigurationError: it is not TOML, or a table, key or placeholder is wrong.
    """
    if path is not None and not Path(path).is_file():
        raise InputError(f"{path} does not exist", expected="a prompts file (TOML)")
    shipped = resources.files("embedsmith.synthesis") / "prompts" / "rag.toml"
    source = "rag.toml" if path is None else str(path)
    text = shipped.read_text(encoding="utf-8") if path is None else Path(path).read_text(encoding="utf-8")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not TOML: {error}", expected="the tables of rag.toml") from None
    wanted = {*TABLES, "styles"}
    if set(tables) != wanted:
        found = ", ".join(sorted(tables))
        raise ConfigurationError(f"{source} has the tables {found}", expected=f"exactly {', '.join(sorted(wanted))}")
    if set(tables["styles"]) != set(STYLES):
        raise ConfigurationError(
            f"{source} [styles] has {', '.join(sorted(tables['styles']))}", expected=", ".join(STYLES)
        )
    messages = {name: _read_table(tables[name], name, source) for name in TABLES}
    return RagPrompts(messages, {name: str(words) for name, words in tables["styles"].items()})


def _read_table(table: Mapping[str, Any], name: str, source: str) -> tuple[str, str]:
    if set(table) != {"system", "user"}:
        raise ConfigurationError(f"{source} [{name}] has {', '.join(sorted(table))}", expected="system and user")
    system, user = str(table["system"]).strip(), str(table["user"]).strip()
    marks = {key: f"\0{key}\0" for key in TABLES[name]}
    try:
        filled = user.format(**marks)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"{source} [{name}]: the user prompt has a wrong placeholder ({error})",
            expected=f"of {', '.join(sorted(TABLES[name]))}; {{{{ }}}} for literal braces",
        ) from None
    missing = [key for key in NEEDED[name] if marks[key] not in filled]
    if missing:
        raise ConfigurationError(f"{source} [{name}]: the user prompt never has {{{missing[0]}}}", expected="it there")
    return system, user


def render_questions(prompts: RagPrompts, plan: RagPlan, passage: Passage) -> Prompt:
    """Return the call that asks for the questions about one passage."""
    styles = "\n".join(
        f"- {prompts.styles[style].format(count=count)}" for style, count in plan.styles.items() if count
    )
    system, user = prompts.messages["questions"]
    user = user.format(passage=passage.text, place=describe_place(passage), styles=styles, count=plan.per_passage)
    return Prompt(system, user, passage.id, QUESTIONS, SCHEMAS[QUESTIONS])


def render_multi(prompts: RagPrompts, passages: Sequence[Passage]) -> Prompt:
    """Return the call that asks for a question which needs all `passages`; its row is their ids, joined by "+"."""
    system, user = prompts.messages["multi"]
    one = len({passage.document for passage in passages}) == 1
    place = describe_place(passages[0]) if one else ""  # passages of several documents have no place in common
    user = user.format(passages=number_passages(passages), place=place, number=len(passages))
    return Prompt(system, user, "+".join(passage.id for passage in passages), MULTI_QUESTIONS, SCHEMAS[MULTI_QUESTIONS])


def render_judge(prompts: RagPrompts, question: str, passages: Sequence[Passage]) -> Prompt:
    """Return the call that asks of each passage whether it answers the question.

    Its row is the id of the first passage and a hash of the question, so that recorded verdicts are found again.
    """
    system, user = prompts.messages["judge"]
    row = f"{passages[0].id}#{fingerprint(question)}"
    numbered = number_passages(in_judged_order(question, passages))
    return Prompt(system, user.format(question=question, passages=numbered), row, VERDICTS, SCHEMAS[VERDICTS])


def in_judged_order(question: str, passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages in the order in which a judge sees them: by hash, so that no place tells the source."""
    return sorted(passages, key=lambda passage: fingerprint([question, passage.id]))


def number_passages(passages: Sequence[Passage]) -> str:
    """Return the texts as numbered passages, from 1."""
    return "\n\n".join(
        f'<passage number="{number}">\n{passage.text}\n</passage>' for number, passage in enumerate(passages, start=1)
    )


def describe_place(passage: Passage) -> str:
    """Return a paragraph that says which document and section a passage is from; "" when nothing is known."""
    known = [("Document", Path(passage.document).stem.replace("_", " ")), ("Section", " > ".join(passage.headings))]
    lines = [f"{name}: {value}" for name, value in known if value.strip()]
    return "\n".join(lines) + "\n\n" if lines else ""
