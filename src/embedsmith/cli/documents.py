"""The command on documents: chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedsmith.artifacts import plain, write_jsonl
from embedsmith.cli.console import AsJson, Column, Separator, app, check_file, draw_bar, print_json, print_table, say
from embedsmith.errors import InputError

if TYPE_CHECKING:
    from embedsmith.documents import Passage, Summary, Tally
    from embedsmith.examples import Rejected

Sources = Annotated[
    list[str], typer.Argument(help="Files, folders, globs of txt, md, html, pdf, json, jsonl, csv, tsv, parquet; .gz.")
]
Counting = Annotated[str | None, typer.Option(help="Model whose tokenizer counts; by default 1.3 tokens a word.")]


@app.command()
def chunk(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="File for the passages (JSON lines).", callback=check_file)],
    tokens: Annotated[int, typer.Option(min=16, help="Most tokens of a passage, special tokens aside.")] = 256,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Most tokens repeated from the passage before; default: an eighth.")
    ] = None,
    base: Counting = None,
    column: Column = None,
    separator: Separator = None,
    as_json: AsJson = False,
) -> None:
    """Cut documents into passages that know their place; near-duplicates are merged, what cannot be used is named."""
    from embedsmith.documents import Tally, estimate_tokens, read_passages, write_passages
    from embedsmith.runtime import load_token_counter

    count = load_token_counter(base) if base else estimate_tokens
    tally = Tally(count)
    rejected: list[Rejected] = []
    lost = out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}_rejected.jsonl")
    with draw_bar("files") as advance:
        found = read_passages(
            sources,
            tokens=tokens,
            overlap=overlap,
            count=count,
            column=column,
            separator=separator,
            advance=advance,
            without=(out, lost),
        )
        try:
            write_passages(out, _take_passages(found, tally, rejected, f"in {', '.join(sources)}"))
        except InputError as error:
            if rejected:
                write_jsonl(lost, rejected)
                error.action = error.action or f"see {lost}"
            raise
    write_jsonl(lost, rejected)
    summary = tally.summarize()
    if as_json:
        print_json({**plain(summary), "out": out, "rejected_file": lost})
        return
    _print_summary(summary, rejected)
    say(f"passages  {out}\nrejected  {lost}")


def _take_passages(
    rows: Iterable[Passage | Rejected], tally: Tally, rejected: list[Rejected], where: str
) -> Iterator[Passage]:
    """Yield the passages; raise `InputError` after the last row where there is none, so that no empty file is left."""
    from embedsmith.documents import Passage

    found = False
    for row in rows:
        tally.add(row)
        if isinstance(row, Passage):
            found = True
            yield row
        else:
            rejected.append(row)
    if not found:
        raise InputError(f"there is no passage {where}", expected="a document with text")


def _print_summary(summary: Summary, rejected: Iterable[Rejected]) -> None:
    rows: list[tuple[str, object, str]] = [
        ("documents", summary.documents, ""),
        ("passages", summary.passages, ""),
        ("tokens of a passage", summary.tokens_p50, f"95% up to {summary.tokens_p95}, longest {summary.tokens_most}"),
        ("near-duplicates merged", summary.merged, ""),
    ]
    rows += [(f"used, {reason}", number, _first(rejected, reason)) for reason, number in summary.remarks.items()]
    rows += [(f"rejected, {reason}", number, _first(rejected, reason)) for reason, number in summary.rejected.items()]
    print_table("documents", ["", "number", ""], rows, texts=True)


def _first(rejected: Iterable[Rejected], reason: str) -> str:
    """The first of its kind, file and reason, never the text."""
    row = next(row for row in rejected if row.reason == reason)
    return f"e.g. {row.file}{'' if row.line is None else f', line {row.line}'}: {row.detail}"[:160]
