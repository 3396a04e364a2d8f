"""The prompts of the recipe `rag`: read from TOML, rendered for passages; and the schemas of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from embedsmith.artifacts import fingerprint
from embedsmith.documents import Passage
from embedsmith.llm import Prompt, object_schema
from embedsmith.llm.prompts import Slots, Template, load_tables, read_template, require_keys
from embedsmith.synthesis.rag.plan import STYLES, RagPlan

QUESTIONS, MULTI_QUESTIONS, VERDICTS = "questions", "multi_questions", "verdicts"  # tasks, and keys of the answers
# Table of the prompts file → the placeholders of its user prompt.
TABLES: Mapping[str, Slots] = {
    "questions": Slots({"passage", "place", "styles", "count"}, needed=("passage", "styles")),
    "multi": Slots({"passages", "place", "number"}, needed=("passages",)),
    "judge": Slots({"question", "passages"}, needed=("question", "passages")),
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
        templates: by table: "questions", "multi", "judge".
        styles: description by style, with the placeholder {count}.
    """

    templates: Mapping[str, Template]
    styles: Mapping[str, str]


def load_prompts(path: Path | str | None = None) -> RagPrompts:
    """Return the prompts of the recipe, or those of the user's own file.

    Raises:
        InputError: the file does not exist.
        ConfigurationError: it is not TOML, or a table, key or placeholder is wrong.
    """
    tables, source = load_tables(resources.files("embedsmith.synthesis") / "prompts" / "rag.toml", path)
    require_keys(tables, {*TABLES, "styles"}, source)
    styles = require_keys(tables["styles"], STYLES, f"{source} [styles]")
    templates = {name: read_template(tables[name], slots, f"{source} [{name}]") for name, slots in TABLES.items()}
    return RagPrompts(templates, {name: str(words) for name, words in styles.items()})


def render_questions(prompts: RagPrompts, plan: RagPlan, passage: Passage) -> Prompt:
    """Return the call that asks for the questions about one passage."""
    styles = "\n".join(
        f"- {prompts.styles[style].format(count=count)}" for style, count in plan.styles.items() if count
    )
    filled = {"passage": passage.text, "place": describe_place(passage), "styles": styles, "count": plan.per_passage}
    return prompts.templates["questions"].fill(passage.id, QUESTIONS, SCHEMAS[QUESTIONS], **filled)


def render_multi(prompts: RagPrompts, passages: Sequence[Passage]) -> Prompt:
    """Return the call that asks for a question which needs all `passages`; its row is their ids, joined by "+"."""
    one = len({passage.document for passage in passages}) == 1
    place = describe_place(passages[0]) if one else ""  # passages of several documents have no place in common
    filled = {"passages": number_passages(passages), "place": place, "number": len(passages)}
    row = "+".join(passage.id for passage in passages)
    return prompts.templates["multi"].fill(row, MULTI_QUESTIONS, SCHEMAS[MULTI_QUESTIONS], **filled)


def render_judge(prompts: RagPrompts, question: str, passages: Sequence[Passage]) -> Prompt:
    """Return the call that asks of each passage whether it answers the question.

    Its row is the id of the first passage and a hash of the question, so that recorded verdicts are found again.
    """
    row = f"{passages[0].id}#{fingerprint(question)}"
    numbered = number_passages(in_judged_order(question, passages))
    return prompts.templates["judge"].fill(row, VERDICTS, SCHEMAS[VERDICTS], question=question, passages=numbered)


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
