"""Recipes: what is asked of the LLM for one query. The prompts are data files that users may replace."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from embedsmith.conversation import is_conversation
from embedsmith.corpus import Query
from embedsmith.errors import ConfigurationError
from embedsmith.llm import Prompt
from embedsmith.llm.prompts import Slots, Template, load_tables, quote, read_template, require_keys

TASKS = ("paraphrases", "distinct")  # label 1, label 0
SPOKEN = {task: f"{task}_of_conversations" for task in TASKS}  # the same, asked about a conversation
SLOTS = Slots({"query", "quoted", "count"}, either={"query", "quoted"})


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
    templates = _load_templates() if prompts is None else _load_templates() | _load_templates(prompts)
    return Recipe(name, {"paraphrases": paraphrases, "distinct": distinct}, templates, edits, judge, seed)


def _load_templates(path: Path | str | None = None) -> dict[str, Template]:
    tables, source = load_tables(resources.files("embedsmith.synthesis") / "prompts" / "langcache.toml", path)
    tables = require_keys(tables, TASKS, source, also=SPOKEN.values())
    return {task: read_template(table, SLOTS, f"{source} [{task}]") for task, table in tables.items()}


def render(recipe: Recipe, query: Query) -> list[Prompt]:
    """Return the prompts that are sent for `query`, exactly as they are sent."""
    spoken = is_conversation(query.text)
    asked = {task: recipe.templates[SPOKEN[task] if spoken else task] for task in TASKS if recipe.counts[task]}
    quoted = quote(query.text)
    return [
        template.fill(query.id, task, query=query.text, quoted=quoted, count=recipe.counts[task])
        for task, template in asked.items()
    ]
