"""What the jobs share: who watches, what a run returns, and the rows of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedsmith.artifacts import RunDirectory, read_json, read_jsonl, write_json
from embedsmith.errors import InputError
from embedsmith.llm import LanguageModel, find_host
from embedsmith.llm.calls import Progress as CallProgress
from embedsmith.personal import describe_personal
from embedsmith.synthesis.outcome import Synthesis
from embedsmith.training import Progress

PERSONAL = "personal.jsonl"  # ids of what has personal data, and of which kinds


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where everything is, and the figures of the report as plain JSON."""

    out: Path
    model: Path
    report: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a caller wants to hear of: a line of text, calls that finished, training steps."""

    say: Callable[[str], None] = lambda _: None
    calls: Callable[[CallProgress], None] | None = None
    steps: Callable[[Progress], None] | None = None

    def under(self, stage: str) -> Callable[[str], None]:
        """Return what says lines with the stage's name before them."""
        return lambda line: self.say(f"{stage}: {line}")


def require(path: Path) -> Path:
    """Return `path`; raise `InputError` unless it is a file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", expected="a file", action="check the path")
    return path


def has_failed_calls(folder: RunDirectory, llm: LanguageModel) -> bool:
    """Say whether calls failed that may succeed now; a recorded file will not change its mind."""
    missing = read_json(folder / "synthesis/counts.json")["calls"]["missing"]
    return missing > 0 and not llm.name.startswith("recorded:")


def write_counts(folder: RunDirectory, result: Synthesis, llm: LanguageModel) -> None:
    """Write what came of a synthesis to synthesis/counts.json."""
    counts = {"counts": result.counts, "written_by": result.written_by, "calls": result.calls}
    write_json(folder / "synthesis/counts.json", {**counts, "warnings": result.warnings, "llm": llm.name})


def say_counts(folder: RunDirectory, watch: Watcher, *, kept: str) -> None:
    """Tell what came of the synthesis; `kept` names its rows."""
    written = read_json(folder / "synthesis/counts.json")
    counts = written["counts"]
    lost = sum(count for reason, count in counts.items() if reason != "kept")
    writers = written.get("written_by", {})  # a run of a version that did not tell
    by = f" ({', '.join(f'{count} by {name}' for name, count in writers.items())})" if len(writers) > 1 else ""
    watch.say(f"synthesis: {counts['kept']} {kept} kept{by}, {lost} candidates rejected (synthesis/rejected.jsonl)")
    for warning in written["warnings"]:
        watch.say(f"warning: {warning}")


def say_personal(
    folder: RunDirectory, watch: Watcher, models: Sequence[object], what: str, *, masked: bool, file: str = PERSONAL
) -> None:
    """Tell of the personal data that was found, before any of it is sent to `models`: what was written of it."""
    place = folder / file
    rows = [row for _, row in read_rows(place)]
    host = " and ".join(dict.fromkeys(filter(None, map(find_host, models)))) or None
    if told := describe_personal(rows, what, masked=masked, host=host, place=place):
        watch.say(told)


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a JSON-lines file that may be empty."""
    return list(read_jsonl(path)) if path.stat().st_size else []


def count_reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many rows were rejected for each reason, in the order of their first appearance."""
    return dict(Counter(row["reason"] for row in rows))


def pick_examples(rejected: Sequence[Mapping[str, Any]], each: int = 3) -> dict[str, list[Mapping[str, Any]]]:
    """Return the first few rejected candidates of each reason."""
    picked: dict[str, list[Mapping[str, Any]]] = {}
    for row in rejected:
        picked.setdefault(row["reason"], [])
        if len(picked[row["reason"]]) < each:
            picked[row["reason"]].append(row)
    return picked
