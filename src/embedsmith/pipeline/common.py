"""What the jobs share: stages, who watches, what a run returns, and the rows of its files."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from embedsmith.artifacts import RunDirectory, fingerprint, plain, read_json, read_jsonl, write_json
from embedsmith.cards import CardFacts
from embedsmith.config import TrainingConfig
from embedsmith.errors import InputError
from embedsmith.examples import Example
from embedsmith.llm import LanguageModel, find_host
from embedsmith.llm.calls import Progress as CallProgress
from embedsmith.model import check_model, fingerprint_model
from embedsmith.optimization import Progress
from embedsmith.personal import describe_personal
from embedsmith.preparation import Preparation
from embedsmith.retention import Retention
from embedsmith.synthesis.outcome import Synthesis
from embedsmith.training import TrainingResult, train

PERSONAL = "personal.jsonl"  # ids of what has personal data, and of which kinds
EXAMPLES, REJECTED, COUNTS = "synthesis/examples.jsonl", "synthesis/rejected.jsonl", "synthesis/counts.json"
Made = TypeVar("Made")


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


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is under way: its folder, who watches, and the language model it asks."""

    folder: RunDirectory
    watch: Watcher
    llm: LanguageModel

    def once(
        self,
        name: str,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        outputs: Sequence[str],
        make: Callable[[], Made],
        *,
        begins: str = "",
        rests: str = "",
        is_whole: Callable[[], bool] = lambda: True,
    ) -> Made | None:
        """Return what `make` returns, which writes the outputs of the stage `name`; None where they are up to date.

        Args:
            inputs, settings, outputs: see `RunDirectory.stage`.
            begins: said before it is made. rests: said where it is up to date. is_whole: if not, it is made again.
        """
        fresh = self.folder.is_fresh(name, inputs, settings) and is_whole()
        if said := rests if fresh else begins:
            self.watch.say(f"{name}: {said}")
        if fresh:
            return None
        with self.folder.stage(name, inputs, settings, outputs):
            return make()

    def synthesize(
        self,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        make: Callable[[], Synthesis],
        *,
        begins: str,
        kept: str,
    ) -> None:
        """Have `make` write examples, again where calls failed; tell what came of it, `kept` being the rows' name."""

        def write() -> None:
            made = make()
            counts = {"counts": made.counts, "written_by": made.written_by, "calls": made.calls}
            write_json(self.folder / COUNTS, {**counts, "warnings": made.warnings, "llm": self.llm.name})

        def is_whole() -> bool:  # a call that failed may succeed now; a recorded file will not change its mind
            return self.llm.name.startswith("recorded:") or not read_json(self.folder / COUNTS)["calls"]["missing"]

        inputs, outputs = {**inputs, "llm": self.llm.name}, (EXAMPLES, REJECTED, COUNTS)
        self.once("synthesis", inputs, settings, outputs, write, begins=begins, is_whole=is_whole)
        written = read_json(self.folder / COUNTS)
        counts = written["counts"]
        lost = sum(count for reason, count in counts.items() if reason != "kept")
        writers = written.get("written_by", {})  # a run of a version that did not tell
        by = f" ({', '.join(f'{count} by {name}' for name, count in writers.items())})" if len(writers) > 1 else ""
        self.watch.say(f"synthesis: {counts['kept']} {kept} kept{by}, {lost} candidates rejected ({REJECTED})")
        for warning in written["warnings"]:
            self.watch.say(f"warning: {warning}")

    def train(
        self,
        taught: Sequence[Example],
        kept: Retention,
        inputs: Mapping[str, str],
        *,
        base: str,
        config: TrainingConfig,
        source: str,
        preparation: Preparation | None = None,
    ) -> TrainingResult | None:
        """Return what came of the training into the folder model; None where it is up to date."""
        inputs = {**inputs, "guards": fingerprint(kept.guards), "base": fingerprint_model(base)}
        prepared = {"preparation": plain(preparation)} if preparation not in (None, Preparation()) else {}
        settings = {"training": plain(config), "tolerance": kept.tolerance, "force": kept.force} | prepared
        settings |= {"slack": kept.slack} if kept.slack else {}

        def make() -> TrainingResult:
            made = train(
                taught,
                base=base,
                out=self.folder / "model",
                config=config,
                preparation=preparation,
                card=CardFacts(base, len(taught), source, plain(config) | prepared),
                on_progress=self.watch.steps,
                on_note=self.watch.under("training"),
                retention=replace(kept, say=self.watch.under("training")),
            )
            write_json(self.folder / "training.json", made)
            return made

        outputs = ("model", "training.json", "retention.json")
        return self.once("training", inputs, settings, outputs, make, rests="up to date")

    def report(self, summary: Mapping[str, Any], write: Callable[[Path, Mapping[str, Any]], Path]) -> RunResult:
        """Return the finished run, with its summary in report.json and on the page that `write` makes of it."""
        write_json(self.folder / "report.json", summary)
        page = write(self.folder / "report.html", summary)
        return RunResult(self.folder.path, self.folder / "model", page, summary)

    def say_personal(self, models: Sequence[object], what: str, *, masked: bool, file: str = PERSONAL) -> None:
        """Tell of the personal data that was found, before any of it is sent to `models`: what was written of it."""
        place = self.folder / file
        host = " and ".join(dict.fromkeys(filter(None, map(find_host, models)))) or None
        if told := describe_personal(read_rows(place), what, masked=masked, host=host, place=place):
            self.watch.say(told)


@contextlib.contextmanager
def begin(base: str, out: Path, llm: LanguageModel, watch: Watcher | None) -> Iterator[Session]:
    """Yield the session of a run into `out`, which no other run may enter, once `base` is known to be tunable."""
    session = Session(RunDirectory(out), watch or Watcher(), llm)
    with session.folder.hold():
        session.watch.say(f"base: looking at {base}")
        check_model(base)  # before the first call that costs money
        yield session


def require(path: Path) -> Path:
    """Return `path`; raise `InputError` unless it is a file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", expected="a file", action="check the path")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file that may be empty."""
    return [row for _, row in read_jsonl(path)] if path.stat().st_size else []


def count_reasons(rejected: Path) -> dict[str, int]:
    """Return how many rows of a file were rejected for each reason, in the order of their first appearance."""
    return dict(Counter(row["reason"] for row in read_rows(rejected)))


def pick_examples(rejected: Path, each: int = 3) -> dict[str, list[Mapping[str, Any]]]:
    """Return the first few rejected candidates of each reason in a file."""
    picked: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(rejected):
        own = picked.setdefault(row["reason"], [])
        if len(own) < each:
            own.append(row)
    return picked
