"""The command that looks at a set before anything is trained on it: inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from embedsmith.artifacts import plain
from embedsmith.cli.console import (
    AsJson,
    BaseUrl,
    Seed,
    Separator,
    app,
    check_folder,
    print_json,
    print_table,
    say,
    say_separator,
)

Texts = Mapping[str, Any]


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Examples of any kind, a log of queries, or passages.")],
    separator: Separator = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="An evaluation file it must share no text with; repeatable.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that will be tuned: how hard is the set for it?")] = None,
    rejected: Annotated[Path | None, typer.Option(help="rejected.jsonl beside it: its reasons are counted.")] = None,
    log: Annotated[Path | None, typer.Option(help="What the examples were made from, for the coverage.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for inspection.html and inspection.json.", callback=check_folder)
    ] = None,
    base_url: BaseUrl = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say what a set is worth: repeats, shortcuts, doubtful labels, leaks into evaluation files, rows to read."""
    from embedsmith.inspection import inspect as inspect_set
    from embedsmith.model import load_encoder

    say_separator(file, separator)
    encoder = load_encoder(base, base_url=base_url) if base is not None else None
    found = plain(
        inspect_set(
            file,
            separator=separator,
            against=against or [],
            base=encoder,
            rejected=rejected,
            log=log,
            seed=seed,
            on_progress=lambda line: say(f"… {line}"),
        )
    )
    if out is not None:
        from embedsmith.report.inspection import write_inspection

        page = write_inspection(out, found)
    if as_json:
        print_json(found)
    else:
        _print_inspection(found)
    if out is not None:
        say(f"written  {page}")


def _print_inspection(found: Texts) -> None:
    from embedsmith.report.inspection import figures_of

    for section, rows in figures_of(found).items():
        print_table(section, ["", ""], rows)
    for warning in (found["hardness"] or {}).get("warnings", ()):
        line = f"{warning['name']}: {warning['text']}\n  to do: {warning['action']}"
        say(line)
    for verdict, number in zip(found["labels"], found["label_lines"], strict=True):
        pair = verdict["pair"]
        line = (
            f"line {number}, label {pair['label']}, {verdict['reason']} ({verdict['confidence']:.2f}): "
            f"{verdict['detail']}\n  {pair['left']}\n  {pair['right']}"
        )
        say(line)
    shown = [[row["row"], _join(row)] for row in found["rows_to_read"]]
    print_table(f"{len(shown)} rows to read", ["line", "text"], shown, texts=True)
    for note in found["notes"]:
        say(f"note: {note}")


def _join(row: Texts) -> str:
    return "\n".join(f"{name}: {value}" for name, value in row.items() if name != "row")
