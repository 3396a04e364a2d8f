"""Retrieval on the command line: what `evaluate --retrieval` and `evaluate --run --qrels` do and print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedsmith.artifacts import plain
from embedsmith.cli.console import LazyMapping, change, draw_bar, print_table, say, spread, sure
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from embedsmith.retrieval import Ranker, Rankings, RetrievalTask

BM25 = "BM25"


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """What the user asked for.

    Attributes:
        models: the one before first, the one that is measured last.
        bm25: None puts BM25 beside the models where its parts are installed.
        runs, qrels: foreign runs; with `qrels` instead of a folder they are scored by themselves.
    """

    folder: Path | None
    models: tuple[str, ...]
    bm25: bool | None
    cutoffs: tuple[int, ...]
    dimensions: tuple[int, ...]
    runs: tuple[Path, ...]
    qrels: Path | None
    run_out: Path | None
    report: Path | None
    base_url: str | None
    seed: int


def evaluate_retrieval(options: RetrievalOptions) -> dict[str, Any]:
    """Return the report as plain data, with notes and the files written."""
    from embedsmith.lexical import warn_of_silence
    from embedsmith.retrieval import compare_rankings, rank_task

    task, notes = _read_task(options)
    makers = _list_rankers(options, notes)
    with draw_bar("texts") if options.models else nullcontext(lambda *_: None) as advance:
        rankers = LazyMapping({name: partial(make, advance) for name, make in makers.items()})
        rankings = rank_task(rankers, task, depth=max(options.cutoffs), dimensions=options.dimensions)
    report = compare_rankings(rankings, task, k=options.cutoffs, seed=options.seed)
    notes += report.list_notes()
    if warning := warn_of_silence(report.unanswered.get(BM25, 0), report.queries):
        notes.append(warning)
    found = {**plain(report), "notes": notes, "files": _write_runs(options.run_out, task, rankings)}
    if options.report is not None:
        from embedsmith.report.retrieval import write_retrieval_report

        found["files"] += [str(path) for path in write_retrieval_report(options.report, found)]
    return found


def _read_task(options: RetrievalOptions) -> tuple[RetrievalTask, list[str]]:
    from embedsmith.retrieval import judge_runs, read_beir, read_qrels, read_run

    if options.qrels is not None:
        runs = [read_run(path) for path in options.runs]
        return judge_runs(read_qrels(options.qrels), runs, name=options.qrels.name), []
    if options.folder is None:
        raise ConfigurationError("there is nothing to retrieve from", expected="--retrieval FOLDER or --qrels FILE")
    return read_beir(options.folder), []


def _list_rankers(options: RetrievalOptions, notes: list[str]) -> dict[str, Callable[[Any], Ranker]]:
    """Return what makes each ranker, by name, given what moves the progress bar."""
    from importlib.util import find_spec

    from embedsmith.model import check_model, load_encoder
    from embedsmith.retrieval import EncoderRanker, LexicalRanker, RunRanker, read_run

    makers: dict[str, Callable[[Any], Ranker]] = {}
    for model in options.models:
        if not model.startswith("openai:") and find_spec("transformers") is not None:
            check_model(model)  # before the first is measured for an hour

        def load(advance: Any, model: str = model) -> Ranker:
            return EncoderRanker(load_encoder(model, base_url=options.base_url), advance)

        makers |= _once(makers, model, load)
    parts = all(find_spec(name) is not None for name in ("bm25s", "Stemmer"))
    if options.folder is not None and options.bm25 is not False:
        if options.bm25 or parts:
            makers |= _once(makers, BM25, lambda _: LexicalRanker())
        else:
            notes.append("BM25 is not beside the models: pip install 'embedsmith[rag]'")
    for path in options.runs:
        makers |= _once(makers, str(path), lambda _, path=path: RunRanker(read_run(path)))  # type: ignore[misc]
    return makers


def _once(makers: Mapping[str, object], name: str, make: Callable[[Any], Ranker]) -> dict[str, Callable[[Any], Ranker]]:
    if name in makers:
        raise ConfigurationError(f"{name} is named twice", expected="each model and run once")
    return {name: make}


def _write_runs(folder: Path | None, task: RetrievalTask, rankings: Mapping[str, Rankings]) -> list[str]:
    from embedsmith.retrieval import write_run

    if folder is None:
        return []
    ids = list(task.queries), list(task.documents)
    files = {_file_name(name): (name, own) for name, own in rankings.items()}
    if len(files) < len(rankings):
        raise ConfigurationError(f"two of {', '.join(rankings)} have one file name", expected="names that differ")
    return [str(write_run(folder / f"{file}.trec", *ids, *own.whole, tag=name)) for file, (name, own) in files.items()]


def _file_name(name: str) -> str:
    kept = "".join(sign if sign.isalnum() or sign in ".-_" else "_" for sign in name)
    return kept.strip("._") or "run"


def print_retrieval(found: Mapping[str, Any]) -> None:
    """Print the figures, the differences to the baseline, and the table by dimension."""
    names, base, primary = list(found["metrics"]), found["baseline"], found["primary"]
    for note in found.get("notes", ()):
        say(note)
    title = f"{found['task']}: {found['queries']:,} queries, {found['documents']:,} documents; 95% intervals"
    metrics = _figures(found)
    rows = [[metric, *(spread(found["metrics"][name][metric]) for name in names)] for metric in metrics]
    print_table(title, ["metric", *names], rows)
    if found["differences"]:
        rows = [_difference_row(found, name, metric) for name in found["differences"] for metric in _figures(found)]
        print_table(f"against {base}; {primary} decides", ["", "metric", "difference", "p", "p (Holm)"], rows)
    if found["dimensions"]:
        against = f"{primary} by dimension, against {base} with whole vectors"
        rows = [_dimension_row(row, primary) for row in found["dimensions"]]
        print_table(against, ["", "dimensions", primary, "difference", "p (Holm)"], rows)
    if found["differences"] or found["dimensions"]:
        say(found["tests"])
    for path in found.get("files", ()):
        say(f"written  {path}")


def _figures(found: Mapping[str, Any]) -> list[str]:
    """Return the metrics that are printed, the deciding one first; all are in the JSON and on the page."""
    first, depth = found["primary"].rpartition("@")[2], found["depth"]
    return list(dict.fromkeys([found["primary"], f"mrr@{first}", f"recall@{first}", f"recall@{depth}", f"map@{depth}"]))


def _difference_row(found: Mapping[str, Any], name: str, metric: str) -> list[str]:
    own = found["differences"][name][metric]
    label = name if metric == found["primary"] else ""
    return [label, metric, change(own), sure(own["p_value"]), sure(found["holm"][name][metric])]


def _dimension_row(row: Mapping[str, Any], primary: str) -> list[str]:
    tested = [change(row["differences"][primary]), sure(row["holm"][primary])] if row["differences"] else ["–", "–"]
    return [row["encoder"], f"{row['dimension']}", spread(row["metrics"][primary]), *tested]


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the whole numbers of "10,100", each once, in their order."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigurationError(f"{option} {text!r}", expected="whole numbers from 1 with commas, such as 10,100")
    return numbers
