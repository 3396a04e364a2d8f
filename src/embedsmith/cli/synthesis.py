"""Commands of synthesis: synthesize with any recipe, its pilot, its batch files, and explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedsmith.artifacts import plain, write_jsonl
from embedsmith.choices import StsForm
from embedsmith.cli.console import (
    Across,
    AsJson,
    BaseUrl,
    Column,
    Concurrency,
    Conversations,
    Distinct,
    Edits,
    Judge,
    Llm,
    Log,
    Mask,
    MaxCalls,
    MaxCost,
    MaxTokens,
    Paraphrases,
    PriceOption,
    Prompts,
    Seed,
    Separator,
    Temperature,
    app,
    check_folder,
    console,
    make_sampling,
    open_model,
    print_json,
    print_table,
    read_price,
    say,
    say_separator,
    tell_rejected,
    watch_calls,
)
from embedsmith.cli.options import naming
from embedsmith.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from embedsmith.corpus import Deduplicated, Query
    from embedsmith.documents import Passage
    from embedsmith.examples import Example
    from embedsmith.llm import LanguageModel
    from embedsmith.llm.calls import Calls
    from embedsmith.llm.pilot import Estimate
    from embedsmith.personal import Screen
    from embedsmith.synthesis.orders import Order, Pilot
    from embedsmith.synthesis.outcome import Synthesis

SHOWN = 3  # rows of a pilot whose prompts and completions are printed whole
USAGES = {
    "langcache": "embedsmith synthesize LOG --llm …: name one log",
    "rag": "embedsmith synthesize FOLDER --recipe rag --llm …: name documents",
    "e5": "embedsmith synthesize --recipe e5 --tasks 500 --llm …: it makes up its own topics, and checks none",
}


@app.command()
def synthesize(
    llm: Llm,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="A log of queries (langcache), documents (rag), nothing (e5)."),
    ] = None,
    recipe: Annotated[
        Literal["langcache", "rag", "e5"],
        typer.Option(help="langcache: pairs for a cache. rag: questions about documents. e5: rows of many kinds."),
    ] = "langcache",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/RECIPE.", callback=check_folder)
    ] = None,
    base_url: BaseUrl = None,
    column: Column = None,
    conversations: Conversations = False,
    separator: Separator = None,
    mask: Mask = False,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="Data to judge by later: no text of it may leak in.")
    ] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    quota: Annotated[int | None, typer.Option(min=1, help="rag: questions in all, spread over the documents.")] = None,
    base: Annotated[str | None, typer.Option(help="rag: encoder of the round trip, beside BM25.")] = None,
    across: Across = 0.0,
    edits: Edits = 0,
    judge: Judge = False,
    tasks: Annotated[int, typer.Option(min=1, help="e5: rows in all, one example each.")] = 500,
    groups: Annotated[str, typer.Option(help="e5: all, sts,bitext or sts=2,bitext=1.")] = "all",
    languages: Annotated[str, typer.Option(help="e5: default, en,de or en=.5,de=.5.")] = "default",
    topics: Annotated[Path | None, typer.Option(help="e5: your own topics, one a line.")] = None,
    used: Annotated[int, typer.Option(min=1, help="e5: tasks of one brainstorm that become rows, 1 to 20.")] = 1,
    language_check: Annotated[
        bool, typer.Option(help="e5: know the language of texts by py3langid, not by their writing only.")
    ] = True,
    sts_as: Annotated[StsForm, typer.Option(help="e5: what sts rows become.")] = "triplet",
    prompts: Prompts = None,
    pilot: Annotated[
        int | None, typer.Option(min=3, help="Try so many rows: show what is sent, what comes of it, what all cost.")
    ] = None,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: PriceOption = None,
    batch_out: Annotated[
        Path | None, typer.Option(help="Write the calls as files for a provider's batch API instead of sending them.")
    ] = None,
    batch_in: Annotated[
        list[Path] | None, typer.Option(help="Read result files of a batch (and its error files); repeatable.")
    ] = None,
    concurrency: Concurrency = 256,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write examples with a language model; every candidate that is not used keeps its reason."""
    from embedsmith.llm.batches import BatchWriter, read_results
    from embedsmith.llm.budget import Budget
    from embedsmith.llm.calls import Calls
    from embedsmith.llm.journal import Journal
    from embedsmith.llm.openai_chat import OpenAIChat
    from embedsmith.model import load_encoder
    from embedsmith.personal import Screen
    from embedsmith.synthesis.e5 import E5Plan, parse_groups, parse_languages
    from embedsmith.synthesis.e5.plan import SAMPLING
    from embedsmith.synthesis.orders import order_e5, order_langcache, order_rag, try_order
    from embedsmith.synthesis.outcome import collect
    from embedsmith.synthesis.rag import RagPlan
    from embedsmith.synthesis.recipes import load_recipe

    out = out if out is not None else Path("runs") / recipe
    priced = read_price(price)
    budget = Budget(max_calls=max_calls, max_cost=max_cost, price=priced)
    leaks = _read_leaks(evaluation or [])
    screen = Screen(mask)
    if recipe == "langcache" and len(sources or []) == 1:
        counts: dict[str, Any] = {"paraphrases": paraphrases, "distinct": distinct, "edits": edits}
        asked = load_recipe(**counts, prompts=prompts, judge=judge, seed=seed)
        queries = _read_queries(Path((sources or [])[0]), column, separator, screen, out, conversations=conversations)
        order = order_langcache(asked, queries, evaluation=leaks)
    elif recipe == "rag" and sources:
        plan = RagPlan(quota=quota, across=across, judge=judge, prompts=prompts, seed=seed)
        encoder = load_encoder(base) if base else None
        passages = _read_passages(sources, column, separator, screen, out)
        order = order_rag(plan, passages, encoder=encoder, evaluation=leaks)
    elif recipe == "e5" and not sources:
        with naming("--groups"):
            shares = parse_groups(groups)
        with naming("--languages"):
            weights = parse_languages(languages)
        own: dict[str, Any] = {"used": used, "check_languages": language_check, "sts_as": sts_as}
        rows = E5Plan(tasks, shares, weights, seed, topics=topics, prompts=prompts, **own)
        order = order_e5(rows, evaluation=leaks)
    else:
        raise ConfigurationError(
            f"--recipe {recipe} with {len(sources or [])} sources",
            expected="langcache with one log, rag with documents, or e5 without sources",
            action=USAGES[recipe],
        )
    model = open_model(llm, base_url, concurrency)
    if recipe != "e5":
        _say_personal(screen, "queries" if recipe == "langcache" else "passages", model, out)
    longest = max_tokens or (SAMPLING.max_tokens if recipe == "e5" else None)
    sampling = make_sampling(temperature, longest, seed)
    with Journal(out / "journal.sqlite") as journal, watch_calls() as watch:
        if journal.doubted:
            say(f"journal: {journal.doubted:,} empty answers of an older version may be errors; asked again")
        for line in _describe_results(read_results(batch_in, journal)) if batch_in else ():
            say(line)
        writer = None
        if batch_out is not None:
            if not isinstance(model, OpenAIChat):
                raise ConfigurationError(f"--batch-out with {llm}", expected="openai:MODEL")
            model = writer = BatchWriter(model, batch_out, journal)
        elif journal.count_batched():
            say(
                f"warning: {journal.count_batched():,} calls are out in batches; those needed now are made again. "
                "To wait for them, stop it and give --batch-in when their results are there"
            )
        calls = Calls(model, journal, sampling, budget=budget, on_progress=watch.progress)
        if pilot is not None:
            in_flight = min(concurrency, len(order.sizes))
            tried = try_order(order, calls, pilot, price=priced, in_flight=in_flight)
            watch.stop()
            _print_pilot(order, tried, as_json=as_json)
            return
        if writer is not None:
            _write_batches(order, calls, writer)
            return
        result = collect(order.fill(calls), calls, out=out, on_row=watch.rows)
        cost = budget.cost
    _print_result(order, result, out, cost, as_json=as_json)


def _read_leaks(files: Sequence[Path]) -> list[str]:
    """Return every text of evaluation files: examples of any kind, bad rows too, or a BEIR folder's queries."""
    from embedsmith.examples import read_examples
    from embedsmith.retrieval import read_beir

    texts: list[str] = []
    for path in files:
        if path.is_dir():
            texts += read_beir(path).queries.values()
        else:
            texts += read_examples(path).texts
    return texts


def _read_queries(
    log: Path, column: str | None, separator: str | None, screen: Screen, out: Path, *, conversations: bool
) -> Sequence[Query]:
    """Return the distinct queries; what is not used is written beside the results."""
    found = read_log(log, column, separator, screen, conversations=conversations)
    write_jsonl(out / "queries_rejected.jsonl", [*found.rejected, *found.merged])
    return found.kept


def _read_passages(
    sources: Sequence[str], column: str | None, separator: str | None, screen: Screen, out: Path
) -> list[Passage]:
    """Return the passages; they and what of the documents is not used are written beside the results."""
    from embedsmith.documents import read_passages, screen_passages, write_passages
    from embedsmith.examples import Rejected

    read = read_passages(sources, column=column, separator=separator, without=(out,))
    rows = list(screen_passages(read, screen))
    write_jsonl(out / "passages_rejected.jsonl", [row for row in rows if isinstance(row, Rejected)])
    passages = [row for row in rows if not isinstance(row, Rejected)]
    write_passages(out / "passages.jsonl", passages)
    return passages


def _say_personal(screen: Screen, what: str, model: LanguageModel, out: Path) -> None:
    """Tell of the personal data that was found, before any of it is sent."""
    from embedsmith.llm import find_host
    from embedsmith.personal import describe_personal

    place = out / "personal.jsonl"
    write_jsonl(place, screen.rows)
    if told := describe_personal(screen.rows, what, masked=screen.masking, host=find_host(model), place=place):
        say(told)


def _describe_results(found: Any) -> list[str]:
    lines = [
        f"batch: {found.stored} answers stored, {found.failed} failed, {found.missing} missing, {found.again} again"
    ]
    if found.failed:
        lines.append(f"batch: the first that failed: {found.first_failed}")
    if found.unreadable:
        lines.append(f"batch: {found.unreadable} lines are no results, the first: {found.first_unreadable}")
    return lines


def _write_batches(order: Order, calls: Calls, writer: Any) -> None:
    """Write the calls that have no answer yet; those of a second step follow once the first one's answers are read."""
    from embedsmith.examples import Rejected
    from embedsmith.llm import FAILURES

    reason = FAILURES["batched"]
    rows = (row for row in order.fill(calls) if isinstance(row, Rejected) and row.reason == reason)
    waiting = len({row.source for row in rows})
    for file in writer.files:
        say(f"batch  {file}")
    if not writer.files:
        say("every call has its answer, or waits in a batch; to read answers: --batch-in RESULTS")
        return
    say(f"{waiting:,} rows wait. Send the files, then run the same command with --batch-in RESULTS.")
    say("If the recipe has a second step, add --batch-out again: its calls follow from the answers.")


def _print_pilot(order: Order, tried: Pilot, *, as_json: bool) -> None:
    counts = {"kept": len(tried.kept), **Counter(sorted(row.reason for row in tried.rejected))}
    if as_json:
        print_json({"recipe": order.recipe, "all_rows": len(order.sizes), "counts": counts, **plain(tried)})
        return
    for row in list(dict.fromkeys(order.row_of(prompt.row) for prompt, _ in tried.exchanges))[:SHOWN]:
        for prompt, completion in tried.exchanges:
            if order.row_of(prompt.row) == row:
                console.rule(f"row {prompt.row}, {prompt.task}")
                say(f"{prompt.system}\n\n{prompt.user}")
                console.print("[bold]completion[/bold]")
                say(completion.text or f"none ({completion.finish})")
    console.rule(f"{len(tried.kept)} examples of {tried.rows} rows")
    for example in tried.kept[:20]:
        say(f"kept ({_name_label(example)})  {_show(example)}")
    for lost in tried.rejected[:20]:
        say(f"rejected ({lost.reason}: {lost.detail})  {lost.text[:200]}")
    print_table(f"{tried.rows:,} rows of the pilot", ["candidates", "count"], list(counts.items()))
    if tried.estimate is not None:
        _print_estimate(tried.estimate)


def _show(example: Example) -> str:
    from embedsmith.examples import texts_of

    return "  |  ".join(text[:120] for text in texts_of(example))


def _name_label(example: Example) -> str:
    """Return what a row teaches: the kind of a pair, a score, or how the texts that follow are told apart."""
    from embedsmith.examples import LabelledPair, LabelledText, ScoredPair, Triplet

    match example:
        case LabelledPair():
            return "1, paraphrase" if example.label else "0, near miss"
        case ScoredPair():
            return f"score {example.score:g}"
        case LabelledText():
            return example.label
        case Triplet():
            return "anchor | positive | negatives"
        case _:
            return "anchor | positive"


def _print_estimate(found: Estimate) -> None:
    rows = [
        [name, f"{own.value:,.{digits}f}", f"{own.low:,.{digits}f} to {own.high:,.{digits}f}"]
        for name, own, digits in (
            ("calls", found.calls, 0),
            ("prompt tokens", found.prompt_tokens, 0),
            ("completion tokens", found.completion_tokens, 0),
            *((("seconds", found.seconds, 1),) if found.seconds is not None else ()),
            *((("US dollars", found.cost, 2),) if found.cost is not None else ()),
        )
    ]
    print_table(f"All {found.rows:,} rows will take", ["", "estimate", "95% interval"], rows)
    if found.seconds is not None and found.seconds.high > 1.5 * found.seconds.value:
        had = f"had {found.at_once} calls at once" if found.at_once else "is from the journal"
        say(f"seconds: if the server keeps up with --concurrency; the pilot {had}, the upper bound is its pace")
    if found.cost is None:
        say("give --price INPUT,OUTPUT (US dollars for a million tokens) to know what it costs")
    if found.unmetered:
        say(f"warning: {found.unmetered} rows came without token counts; tokens and cost are too low")


def _print_result(order: Order, result: Synthesis, out: Path, cost: float | None, *, as_json: bool) -> None:
    if as_json:
        about = {"counts": result.counts, "written_by": result.written_by, "calls": plain(result.calls)}
        about |= {"warnings": result.warnings, "cost": cost}
        print_json({**about, "examples": str(out / "examples.jsonl")})
        return
    print_table(f"{len(order.sizes):,} rows of {order.recipe}", ["candidates", "count"], sorted(result.counts.items()))
    for name, count in result.written_by.items() if len(result.written_by) > 1 else ():
        say(f"by        {name}: {count:,} of the kept")
    for warning in result.warnings:
        say(f"warning: {warning}")
    spent = f", at most {cost:.4f} US dollars over all runs" if cost is not None else ""
    say(f"calls     {result.calls.calls:,}, {result.calls.sent:,} of them sent now{spent}")
    say(f"examples  {out / 'examples.jsonl'}\nrejected  {out / 'rejected.jsonl'}")


@app.command()
def explain(
    log: Log,
    column: Column = None,
    conversations: Conversations = False,
    separator: Separator = None,
    mask: Mask = False,
    row: Annotated[list[str] | None, typer.Option(help="Id of a row to show; repeatable. Default: the first.")] = None,
    synthesis: Annotated[Path | None, typer.Option(help="Folder of a synthesis, to show what came of the row.")] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    prompts: Prompts = None,
    as_json: AsJson = False,
) -> None:
    """Show what is sent to the language model for a row, exactly, and what came of it."""
    from embedsmith.personal import Screen
    from embedsmith.synthesis import explain as explain_queries
    from embedsmith.synthesis import read_synthesis

    asked = read_log(log, column, separator, Screen(mask), conversations=conversations).kept
    wanted = _find_rows(log, asked, row or [])
    done = read_synthesis(synthesis) if synthesis else None
    shown = explain_queries(
        wanted,
        paraphrases=paraphrases,
        distinct=distinct,
        prompts=prompts,
        examples=done.examples if done else (),
        rejected=done.rejected if done else (),
        completions=done.completions if done else {},
    )
    if as_json:
        print_json(plain(shown))
        return
    for item in shown:
        said = None
        for prompt, completion in zip(item.prompts, item.completions, strict=True):
            console.rule(f"row {item.query.id}, {prompt.task}")
            if prompt.system != said:  # a judge's is the same for every pair
                console.print("[bold]system[/bold]")
                say(f"{prompt.system}\n")
            said = prompt.system
            console.print("[bold]user[/bold]")
            say(prompt.user)
            if completion is not None:
                console.print("\n[bold]completion[/bold]")
                say(completion)
        for pair in item.kept:
            say(f"kept {pair.label}  {pair.sentence2}")
        for lost in item.rejected:
            say(f"rejected ({lost.reason}: {lost.detail})  {lost.text}")


def _find_rows(log: Path, queries: Sequence[Query], ids: Sequence[str]) -> Sequence[Query]:
    """Return the queries with these ids; without ids the first."""
    known = {query.id for query in queries}
    merged = {name: query.id for query in queries for name in query.also}
    for name in ids:
        if name not in known:
            repeat = f": it repeats row {merged[name]!r}, which stands for both" if name in merged else ""
            raise InputError(
                f"{log} has no row {name!r}{repeat}",
                expected="the id of a row that is used",
                action=f"--row {merged[name]}" if name in merged else "look at the ids of the log; rows count from 0",
            )
    return [query for query in queries if query.id in ids] if ids else queries[:1]


def read_log(
    log: Path, column: str | None, separator: str | None, screen: Screen, *, conversations: bool = False
) -> Deduplicated:
    from embedsmith.corpus import deduplicate, describe_twice_encoded, read_queries, require_queries, screen_queries

    say_separator(log, separator)
    rows = read_queries(log, column=column, separator=separator, conversations=conversations)
    found = deduplicate(screen_queries(rows, screen))
    require_queries(found, log)
    if told := describe_twice_encoded(found.kept):
        say(f"warning: {told}")
    tell_rejected(log, found.rejected, len(found.kept) + len(found.merged) + len(found.rejected))
    return found
