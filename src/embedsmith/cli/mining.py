"""The command that mines: hard negatives for examples out of a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedsmith.artifacts import plain
from embedsmith.choices import Output, Ruling, Sampling, Search, Storage
from embedsmith.cli.console import (
    AsJson,
    BaseUrl,
    Concurrency,
    Seed,
    Separator,
    app,
    check_file,
    open_bars,
    print_json,
    print_table,
    read_table,
    say,
    say_separator,
    tell_rejected,
)
from embedsmith.cli.options import naming
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from embedsmith.examples import Example
    from embedsmith.mining import Engine, Miner, MiningReport, MiningSettings
    from embedsmith.mining.miner import Progress

SHOWN = 5  # rows to read
WIDTH = 160  # characters of a text that are shown


@app.command()
def mine(
    examples: Annotated[Path, typer.Argument(help="Rows with anchor and positive (and negatives, which stay).")],
    encoder: Annotated[
        str, typer.Option(help="The model you are about to tune: a folder, a hub id, wheel:… or openai:MODEL.")
    ],
    corpus: Annotated[
        Path | None, typer.Option(help="Passages: a table with a column such as text, or txt; default: all positives.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the mined rows go (JSON lines).", callback=check_file)] = Path(
        "mined.jsonl"
    ),
    negatives: Annotated[int, typer.Option(min=1, help="Negatives for each row.")] = 4,
    window: Annotated[str, typer.Option(help="First and last rank; rank 1 is the nearest text.")] = "1:100",
    relative: Annotated[
        float | None, typer.Option(help="Drop from this share of the positive's similarity on; 0: no such rule.")
    ] = 0.95,
    margin: Annotated[float | None, typer.Option(help="Drop above the positive's similarity less this.")] = None,
    minimum: Annotated[float | None, typer.Option(help="Drop what is less similar.")] = None,
    maximum: Annotated[float | None, typer.Option(help="Drop what is more similar.")] = None,
    sampling: Annotated[Sampling, typer.Option(help="Which candidates within the window are taken.")] = "top",
    ruling: Annotated[Ruling, typer.Option(help="Of several positives: which similarity counts.")] = "lowest",
    output: Annotated[Output, typer.Option(help="pairs have label 1 and 0.")] = "triplets",
    scores: Annotated[bool, typer.Option("--scores", help="Write cosines into a column scores.")] = False,
    relabel: Annotated[
        str | None, typer.Option(help="cross-encoder:FOLDER_OR_ID, openai:MODEL, local:… or recorded:FILE.")
    ] = None,
    relabel_prompt: Annotated[Path | None, typer.Option(help="Your own prompt for a language model (TOML).")] = None,
    bounds: Annotated[str, typer.Option(help="Probabilities of a cross-encoder: no up to, yes from.")] = "0.3:0.9",
    judged: Annotated[int, typer.Option(min=0, help="Candidates of an anchor that are judged; 0: 2 × negatives.")] = 0,
    search: Annotated[Search, typer.Option(help="index is HNSW, approximate.")] = "auto",
    storage: Annotated[Storage, typer.Option(help="Numbers of the embeddings on disk.")] = "float16",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray is Ray Data; --address for a cluster.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Ray actors; default: one for each CPU.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; auto finds it.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of embeddings; default: OUT.work. Kept for reuse.")] = None,
    separator: Separator = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 8,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Add hard negatives to examples: near texts of a corpus that are no answer, with every dropped one counted."""
    from embedsmith.mining import Miner, MiningSettings, open_relabeller
    from embedsmith.mining.texts import Passages
    from embedsmith.model import fingerprint_model, load_encoder

    settings = MiningSettings(
        negatives=negatives,
        window=_read_window(window),
        relative=relative or None,
        margin=margin,
        minimum=minimum,
        maximum=maximum,
        seed=seed,
        scores=scores,
        judged=judged,
        sampling=sampling,
        ruling=ruling,
        output=output,
        search=search,
        storage=storage,
    )
    rows = _read_rows(examples, separator)
    if corpus is not None:
        say_separator(corpus, separator)
    folder = work or out.with_name(out.name + ".work")
    with ExitStack() as stack:
        progress = stack.enter_context(_draw_bars())
        relabeller = None
        if relabel is not None:
            opened = open_relabeller(
                relabel,
                folder / "judge.sqlite",
                base_url=base_url,
                concurrency=concurrency,
                prompt=relabel_prompt,
                bounds=_read_bounds(bounds),
            )
            with naming("--relabel"):
                relabeller = stack.enter_context(opened)
        passages = Passages(corpus, separator=separator) if corpus is not None else None
        miner = Miner(
            rows,
            passages,
            encoder=load_encoder(encoder, base_url=base_url),
            encoder_name=fingerprint_model(encoder),
            work=folder,
            settings=settings,
            engine=_open_engine(engine, workers, address, stack),
            relabeller=relabeller,
            on_progress=progress,
        )
        stack.callback(miner.close)
        if passages is not None and (remark := passages.describe()):
            say(remark)
        plan = miner.plan()
        say(f"search {plan.kind} ({plan.reason}), about {_duration(plan.seconds)} on one process")
        shown = _write(miner, out, settings)
    if as_json:
        found = {"report": plain(miner.report), "settings": plain(settings), "out": str(out), "work": str(folder)}
        print_json(found | {"rows_not_used": passages.unread if passages is not None else 0})
        return
    _print_report(miner.report, settings)
    _print_rows(shown)
    say(f"written  {out}\nkept     {folder} (other rules reuse it; delete it when you are done)")


def _read_rows(path: Path, separator: str | None) -> Sequence[Example]:
    found = read_table(path, separator)
    tell_rejected(path, found.rejected, len(found.examples) + len(found.rejected))
    return found.examples


def _read_window(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise ConfigurationError(f"--window {text!r}", expected="FIRST:LAST, such as 10:100") from None


def _read_bounds(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise ConfigurationError(f"--bounds {text!r}", expected="LOW:HIGH, such as 0.3:0.9") from None


def _open_engine(name: Literal["local", "ray"], workers: int | None, address: str | None, stack: ExitStack) -> Engine:
    from embedsmith.mining import LocalEngine, RayEngine

    if name == "ray":
        return stack.enter_context(RayEngine(workers=workers, address=address))
    return LocalEngine()


@contextmanager
def _draw_bars() -> Iterator[Progress]:
    """Yield what moves one bar a step, each with an estimate of the time left."""
    with open_bars() as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield advance


def _write(miner: Miner, out: Path, settings: MiningSettings) -> list[Example]:
    """Write the rows as they come, and return some of them; what the relabeller said goes beside them."""
    from embedsmith.artifacts import write_jsonl
    from embedsmith.examples import write_examples

    rows = miner.stream()
    shown = list(islice(rows, SHOWN * (1 + settings.negatives if settings.output == "pairs" else 1)))
    write_examples(out, chain(shown, rows))
    if miner.judged:
        write_jsonl(out.with_name(out.stem + ".judged.jsonl"), miner.judged)
    return shown[:SHOWN]


def _print_report(report: MiningReport, settings: MiningSettings) -> None:
    from embedsmith.mining import REASONS

    def share(count: int) -> str:
        return f"{100 * count / max(report.candidates, 1):.1f}%"

    rows: list[tuple[str, str, str]] = [
        (REASONS[reason], f"{count:,}", share(count)) for reason, count in report.dropped.items()
    ]
    rows += [("not needed", f"{report.left:,}", share(report.left))]
    rows += [("taken as negatives", f"{report.taken:,}", share(report.taken))]
    merged = f" ({report.repeats:,} repeats merged)" if report.repeats else ""
    title = f"{report.candidates:,} neighbours of {report.anchors:,} anchors among {report.corpus:,} texts{merged}"
    print_table(title, ["what became of them", "number", "share"], rows)
    both = (("positives", report.positives), ("negatives", report.negatives))
    headers = ["cosine with the anchor", *(f"p{name}" for name in report.positives)]
    print_table("similarities", headers, [[n, *(f"{value:.3f}" for value in found.values())] for n, found in both])
    print_table(
        "rows",
        ["", "number"],
        [
            ("rows", f"{report.rows:,}"),
            (f"with fewer than {settings.negatives} mined negatives", f"{report.short:,}"),
            ("of them without any (kept as they were)", f"{report.none:,}"),
            ("further positives, as rows of their own", f"{report.further_positives:,}"),
            ("teacher's scores left out (the mined negatives have none)", f"{report.teachers_dropped:,}"),
        ],
    )


def _print_rows(rows: Sequence[Example]) -> None:
    from embedsmith.examples import LabelledPair, texts_of

    for row in rows:
        names = ["sentence1", f"label {row.label}"] if isinstance(row, LabelledPair) else ["anchor", "positive"]
        for place, text in enumerate(texts_of(row)):
            name = names[place] if place < len(names) else "negative"
            flat = " ".join(text.split())
            say(f"{name:>9}  {flat[:WIDTH]}{'…' if len(flat) > WIDTH else ''}")
        say("")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
