"""Recipes: what is asked of the LLM for one query. The prompts are data files that users may replace."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from embedsmith.conversation import is_conversation
from embedsmith.corpus import Query
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.llm import Prompt

TASKS = ("paraphrases", "distinct")  # label 1, label 0
SPOKEN = {task: f"{task}_of_conversations" for task in TASKS}  # the same, asked about a conversation


@dataclass(frozen=True, slots=True)
class Template:
    """The two messages of one call, with the placeholders {quoted} (or {query}) and {count}."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How many texts of which kind are asked for each query, and in which words.

    Attributes:
        counts: number of texts by task; a task with 0 is not called.
        templates: the messages by task, and by those of `SPOKEN`.
        edits: near-miss questions a query that no model writes: the query with one fact changed (`edits`), at most.
        judge: whether the language model says of every pair if one answer serves both, in a call of its own.
        seed: of the edits.
    """

    name: str
    counts: dict[str, int]
    templates: dict[str, Template]
    edits: int = 0
    judge: bool = False
    seed: int = 0


def load_recipe(
    name: str = "langcache",
    *,
    paraphrases: int = 3,
    distinct: int = 3,
    prompts: Path | str | None = None,
    edits: int = 0,
    judge: bool = False,
    seed: int = 0,
) -> Recipe:
    """Return the recipe `name`, with the user's own `prompts` file when one is given; see `Recipe`.

    Raises:
        ConfigurationError: unknown recipe, negative counts, a prompts file with a wrong key or placeholder.
    """
    if name != "langcache":
        raise ConfigurationError(f"the recipe {name!r} does not write about queries", expected="langcache")
    if min(paraphrases, distinct, edits) < 0 or paraphrases + distinct == 0:
        raise ConfigurationError(
            f"{paraphrases} paraphrases, {distinct} distinct questions and {edits} edits",
            expected="none below 0, and at least one that the language model writes",
        )
    if prompts is not None and not Path(prompts).is_file():
        raise InputError(f"{prompts} does not exist", expected="a prompts file (TOML)")
    source = Path(prompts) if prompts is not None else _shipped() / f"{name}.toml"
    templates = _parse_templates(source.read_text(encoding="utf-8"), str(source))
    if prompts is not None:
        shipped = _shipped() / f"{name}.toml"
        templates = _parse_templates(shipped.read_text(encoding="utf-8"), str(shipped)) | templates
    return Recipe(name, {"paraphrases": paraphrases, "distinct": distinct}, templates, edits, judge, seed)


def _shipped() -> Traversable:
    return resources.files("embedsmith.synthesis") / "prompts"


def _parse_templates(text: str, source: str) -> dict[str, Template]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not TOML: {error}", expected="[paraphrases] and [distinct]") from None
    if not set(TASKS) <= set(tables) <= {*TASKS, *SPOKEN.values()}:
        raise ConfigurationError(
            f"{source} has the tables {', '.join(sorted(tables))}",
            expected=f"exactly {' and '.join(TASKS)}, and {' and '.join(SPOKEN.values())} if you like",
        )
    return {task: _parse_template(table, f"{source} [{task}]") for task, table in tables.items()}


def _parse_template(table: dict[str, str], source: str) -> Template:
    if set(table) != {"system", "user"}:
        raise ConfigurationError(f"{source} has the keys {', '.join(sorted(table))}", expected="system and user")
    template = Template(table["system"].strip(), table["user"].strip())
    try:
        filled = template.user.format(query="\0", quoted="\0", count=1)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"{source}: the user prompt has a wrong placeholder ({error})",
            expected="{quoted} (or {query}) and {count}, and {{ }} for literal braces",
        ) from None
    if "\0" not in filled:
        raise ConfigurationError(
            f"{source}: the user prompt never names the question", expected="{quoted} or {query} in it"
        )
    return template


def quote(text: str) -> str:
    """Return a text as JSON, in which it is one line and cannot end its quotes."""
    return json.dumps(text, ensure_ascii=False)


def render(recipe: Recipe, query: Query) -> list[Prompt]:
    """Return the prompts that are sent for `query`, exactly as they are sent."""
    spoken = is_conversation(query.text)
    asked = {task: recipe.templates[SPOKEN[task] if spoken else task] for task in TASKS if recipe.counts[task]}
    return [
        Prompt(
            system=template.system,
            user=template.user.format(query=query.text, quoted=quote(query.text), count=recipe.counts[task]),
            row=query.id,
            task=task,
        )
        for task, template in asked.items()
    ]
