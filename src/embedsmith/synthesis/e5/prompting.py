"""What is asked: templates from a TOML file, filled with what chance gives each row."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from embedsmith.errors import ConfigurationError
from embedsmith.llm import Prompt, object_schema
from embedsmith.llm.prompts import Slots, load_tables, read_text, require_keys, require_slots
from embedsmith.synthesis.e5.plan import GROUPS, TWO_STEPS, E5Plan, Row
from embedsmith.synthesis.e5.topics import Topics
from embedsmith.synthesis.languages import Language, known_languages

TASKS = "tasks"  # key of a brainstorm's answer
KEYS: Mapping[str, tuple[str, ...]] = {
    "short-long": ("user_query", "positive_document", "hard_negative_document"),
    "long-short": ("input_text", "label", "misleading_label"),
    "short-short": ("input", "positive_document"),
    "long-long": ("input", "positive_document"),
    "sts": ("S1", "S2", "S3"),
    "bitext": ("S1", "S2", "S3"),
}
IDEAS_SHOWN = 3
LISTS = ("guidelines", "sometimes", "ideas")
ALWAYS = frozenset({"topic", "reader", "angle", "guidelines", "language"})
OFFERED: Mapping[str, frozenset[str]] = {
    "brainstorm": ALWAYS - {"language"} | {"count", "ideas"},
    "task": ALWAYS | {"task"},
    "single": ALWAYS | {"source", "target"},
}


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of call.

    Attributes:
        guidelines: shown in another order each time. sometimes: among them half of the time.
        ideas: example tasks, a few of which are shown.
        instruction: what the example's anchor asks for, in groups without tasks.
        values: weights by value by placeholder.
    """

    user: str
    guidelines: tuple[str, ...] = ()
    sometimes: tuple[str, ...] = ()
    ideas: tuple[str, ...] = ()
    instruction: str = ""
    values: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Templates:
    """The templates of a prompts file by group."""

    system: str
    brainstorms: Mapping[str, Template]
    examples: Mapping[str, Template]


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance gave one row.

    Attributes:
        values: the placeholders of its group. languages: of the anchor's side and of the other one.
        chance: what decides which guidelines are shown, and in which order.
    """

    values: Mapping[str, str]
    languages: tuple[Language, Language]
    chance: random.Random


@dataclass(frozen=True, slots=True)
class Request:
    """A row, the call that is made for it, and what its answer is held against.

    Attributes:
        instruction: the task, or that of the group. anchored, answered: languages of the two sides.
    """

    row: Row
    prompt: Prompt
    instruction: str
    values: Mapping[str, str]
    anchored: Language
    answered: Language


@dataclass(frozen=True, slots=True)
class Asker:
    """Renders the prompts of a plan."""

    plan: E5Plan
    templates: Templates
    topics: Topics

    def brainstorm(self, call: Row) -> Prompt:
        """Return the prompt of a call of the first step."""
        template = self.templates.brainstorms[call.group]
        start = self.topics.start(self.plan.seed, call.group, call.number)
        chance = call.stream(self.plan.seed, "brainstorm")
        ideas = chance.sample(template.ideas, min(IDEAS_SHOWN, len(template.ideas)))
        filled = {
            "topic": start.topic,
            "reader": start.reader,
            "angle": start.angle,
            "count": str(self.plan.brainstorm),
            "ideas": "\n".join(f"- {idea}" for idea in ideas),
            "guidelines": _list_guidelines(template, chance, {}),
        }
        return Prompt(self.templates.system, template.user.format(**filled), f"{call.id}/tasks", TASKS)

    def example(self, row: Row, task: str = "") -> Request:
        """Return the call of a row; `task` is what the first step found for it."""
        template = self.templates.examples[row.group]
        draw = draw_row(self.plan, row, template)
        anchored, answered = draw.languages
        filled = {
            **draw.values,
            "task": task,
            "language": anchored.name,
            "source": anchored.name,
            "target": answered.name,
            **self._start(row),
        }
        instruction = task or template.instruction.format(**filled)
        filled["guidelines"] = _list_guidelines(template, draw.chance, filled)
        keys = object_schema({key: {"type": "string"} for key in KEYS[row.group]})
        prompt = Prompt(self.templates.system, template.user.format(**filled), row.id, row.group, schema=keys)
        return Request(row, prompt, instruction, draw.values, anchored, answered)

    def _start(self, row: Row) -> dict[str, str]:
        if row.group in TWO_STEPS:
            return {"topic": "", "reader": "", "angle": ""}
        start = self.topics.start(self.plan.seed, row.group, row.number)
        return {"topic": start.topic, "reader": start.reader, "angle": start.angle}


def draw_row(plan: E5Plan, row: Row, template: Template) -> Draw:
    """Return what chance gives a row; every placeholder has random numbers of its own, so a new one moves no other."""
    values = {
        name: choose(weights, row.draw(plan.seed, f"value/{name}")) for name, weights in (template.values or {}).items()
    }
    first = second = choose(plan.languages, row.draw(plan.seed, "language"))
    if row.group == "bitext":
        others = {code: share for code, share in plan.languages.items() if code != first}
        second = choose(others, row.draw(plan.seed, "other language"))
    known = known_languages()
    return Draw(values, (known[first], known[second]), row.stream(plan.seed, "guidelines"))


def choose(weights: Mapping[str, float], drawn: float) -> str:
    """Return the value at the share `drawn` (0 ≤ drawn < 1) of all weights.

    >>> choose({"a": 1, "b": 3}, 0.3)
    'b'
    """
    sums = list(accumulate(weights.values()))
    return list(weights)[min(bisect_right(sums, drawn * sums[-1]), len(sums) - 1)]


def _list_guidelines(template: Template, chance: random.Random, filled: Mapping[str, str]) -> str:
    """Return the guidelines, those of `sometimes` in half of the cases, in another order each time."""
    lines = [*template.guidelines, *(line for line in template.sometimes if chance.random() < 0.5)]
    chance.shuffle(lines)
    return "\n".join(line.format(**filled) if filled else line for line in lines)


# ── The prompts file


def load_templates(path: Path | str | None = None) -> Templates:
    """Return the templates of our prompts file, or of the user's.

    Raises:
        InputError: the file does not exist. ConfigurationError: a missing or unknown table, key or placeholder.
    """
    table, source = load_tables(resources.files("embedsmith.synthesis") / "prompts" / "e5.toml", path)
    require_keys(table, {"system", *GROUPS}, source)
    parts = {group: _parse_group(table[group], group, f"{source} [{group}]") for group in GROUPS}
    return Templates(
        read_text(table["system"], f"{source}: system"),
        {group: parts[group][0] for group in TWO_STEPS},
        {group: example for group, (_, example) in parts.items()},
    )


def _parse_group(table: Any, group: str, source: str) -> tuple[Template, Template]:
    two = group in TWO_STEPS
    table = require_keys(table, {"example", *(["brainstorm"] if two else [])}, source, also={"values"})
    values = {name: _parse_weights(value, f"{source} {name}") for name, value in table.get("values", {}).items()}
    taken = OFFERED["task" if two else "single"] | set(values)
    example = _parse_template(table["example"], values, taken, {"task"} if two else {"topic"}, f"{source} example")
    if not two:
        if not example.instruction:
            raise ConfigurationError(f"{source} example has no instruction", expected='instruction = "…"')
        return example, example
    wanted = {"topic", "count"}
    return _parse_template(table["brainstorm"], {}, OFFERED["brainstorm"], wanted, f"{source} brainstorm"), example


def _parse_template(
    table: Any, values: Mapping[str, Mapping[str, float]], offered: frozenset[str], wanted: set[str], source: str
) -> Template:
    table = require_keys(table, {"user"}, source, also={"instruction", *LISTS})
    lines = {name: tuple(read_text(line, f"{source}: {name}") for line in table.get(name, ())) for name in LISTS}
    user, instruction = read_text(table["user"], f"{source}: user"), str(table.get("instruction", ""))
    require_slots(user, Slots(offered, needed=wanted | {"guidelines"} if lines["guidelines"] else wanted), source)
    for text in (instruction, *lines["guidelines"], *lines["sometimes"]):
        require_slots(text, Slots(offered), source)
    return Template(user, **lines, instruction=instruction, values=values)


def _parse_weights(value: Any, source: str) -> dict[str, float]:
    weights = (
        value if isinstance(value, dict) else dict.fromkeys(map(str, value), 1.0) if isinstance(value, list) else {}
    )
    good = weights and all(isinstance(share, (int, float)) and share >= 0 for share in weights.values())
    if not good or not sum(weights.values()):
        raise ConfigurationError(f"{source} is {value!r}", expected="a list of values, or a table of weights")
    return {name: float(share) for name, share in weights.items()}
