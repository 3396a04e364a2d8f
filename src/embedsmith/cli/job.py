"""Commands of the main job: run, demo, synthesize, explain."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedsmith.artifacts import plain, write_jsonl
from embedsmith.cli.console import (
    Alpha,
    AsJson,
    Base,
    BaseUrl,
    Batch,
    Column,
    Concurrency,
    Delta,
    Distinct,
    Epochs,
    Guards,
    LearningRate,
    Llm,
    Log,
    Losses,
    MaxTokens,
    Out,
    Paraphrases,
    Precision,
    Prompts,
    Seed,
    Temperature,
    app,
    console,
    own_values,
    print_comparison,
    print_json,
    print_table,
    watch_run,
)
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from embedsmith.corpus import Deduplicated
    from embedsmith.llm import LanguageModel, Sampling
    from embedsmith.pipeline import RagJob
    from embedsmith.training import TrainingConfig


DEMO_QUESTIONS = (
    "what day does my fixed rate run out",
    "How do I submit an electricity meter reading online?",
    "which of your tariffs is best for an electric car?",
)


@app.command()
def run(
    sources: Annotated[
        list[str],
        typer.Argument(help="An unlabelled log of queries; for the recipe rag files, folders and globs of documents."),
    ],
    llm: Llm,
    base: Base,
    out: Out,
    recipe: Annotated[str, typer.Option(help="langcache: a model for a cache. rag: a model that finds passages.")] = (
        "langcache"
    ),
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Labelled pairs to judge by; for rag a BEIR folder of your own.")
    ] = None,
    base_url: BaseUrl = None,
    column: Column = None,
    guard: Guards = None,
    compare: Annotated[list[str] | None, typer.Option(help="A further model in the comparison; repeatable.")] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    prompts: Prompts = None,
    concurrency: Concurrency = 8,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 1024,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    losses: Losses = None,
    delta: Delta = 0.05,
    alpha: Alpha = 0.05,
    tokens: Annotated[int, typer.Option(help="rag: longest passage, in tokens of the base.")] = 256,
    quota: Annotated[int | None, typer.Option(help="rag: questions in all, spread evenly over the documents.")] = None,
    judge: Annotated[bool, typer.Option("--judge", help="rag: the language model says if passages answer.")] = False,
    tolerance: Annotated[float, typer.Option(help="rag: how far general ability may fall.")] = 0.02,
    force: Annotated[bool, typer.Option("--force", help="rag: keep a model that is below its base.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Read a log or documents, write examples, train, evaluate, write a report."""
    from embedsmith.llm import open_llm
    from embedsmith.pipeline import RAG_TRAINING, Job, RagJob
    from embedsmith.pipeline import run as run_job
    from embedsmith.synthesis.rag import RagPlan

    sampling = _sampling(temperature, max_tokens, seed)
    language_model = partial(open_llm, llm, base_url=base_url, concurrency=concurrency)
    if recipe == "rag":
        rag = RagJob(
            sources=tuple(sources),
            base=base,
            out=out,
            evaluation=evaluation,
            column=column,
            tokens=tokens,
            guards=tuple(guard or ()),
            plan=RagPlan(quota=quota, judge=judge, prompts=prompts, seed=seed),
            sampling=sampling,
            training=replace(RAG_TRAINING, **own_values(epochs, batch, learning_rate, precision, losses, seed)),
            tolerance=tolerance,
            force=force,
            seed=seed,
        )
        _run_rag(rag, language_model(), as_json=as_json)
        return
    if recipe != "langcache" or len(sources) != 1:
        raise ConfigurationError(
            f"--recipe {recipe} with {len(sources)} sources",
            expected="langcache with one log, or rag with any number of documents",
        )
    job = Job(
        log=Path(sources[0]),
        base=base,
        out=out,
        evaluation=evaluation,
        column=column,
        guards=tuple(guard or ()),
        peers=tuple(compare or ()),
        paraphrases=paraphrases,
        distinct=distinct,
        prompts=prompts,
        sampling=sampling,
        training=_training(epochs, batch, learning_rate, precision, losses, seed),
        delta=delta,
        alpha=alpha,
        seed=seed,
        base_url=base_url,
    )
    with watch_run() as watch:
        result = run_job(job, language_model(), watch)
    if as_json:
        print_json(result.summary)
        return
    print_comparison(result.summary["comparison"])
    console.print(f"\nmodel   {result.model}\nreport  {result.report}")
    console.print(f"next    open the report, or try the model: embedsmith evaluate {result.model} YOUR_PAIRS.jsonl")


def _run_rag(job: RagJob, llm: LanguageModel, *, as_json: bool) -> None:
    from embedsmith.cli.rankings import print_retrieval
    from embedsmith.pipeline import run_rag

    with watch_run() as watch:
        result = run_rag(job, llm, watch)
    if as_json:
        print_json(result.summary)
        return
    print_retrieval(result.summary["retrieval"])
    console.print(f"\nmodel   {result.model}\nreport  {result.report}")
    console.print(f"next    open the report, or serve the model: embedsmith serve --model {result.model}")


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = 0) -> None:
    """Run the main job on the example that ships with the project (a home-energy help desk)."""
    from embedsmith.model import DEMO_MODEL

    here = _example_folder()
    run(
        sources=[str(here / "queries.jsonl")],
        llm=f"recorded:{here / 'completions.jsonl'}",
        base=DEMO_MODEL,
        out=out,
        evaluation=here / "eval_pairs.jsonl",
        seed=seed,
    )
    _ask_cache(out, here / "answers.jsonl")


def _ask_cache(run_folder: Path, answers: Path) -> None:
    """Ask a cache with the tuned model three questions, and print what it decides and why."""
    from embedsmith.artifacts import read_json, read_jsonl
    from embedsmith.cache.semantic import SemanticCache

    promised = (run_folder / "calibration.json").is_file()
    chosen = read_json(run_folder / "evaluation.json")["comparison"]["reports"]["tuned"]["threshold"]
    cache = SemanticCache(run_folder / "model", threshold=None if promised else chosen)
    for _, row in read_jsonl(answers):
        cache.add(row["question"], row["answer"])
    rows = []
    for question in DEMO_QUESTIONS:
        found = cache.lookup(question)
        nearest = found.decision.nearest.text if found.decision.nearest is not None else ""
        similarity = f"{found.decision.similarity:.3f}" if found.decision.similarity is not None else ""
        rows.append([question, "hit" if found.hit else "miss", found.decision.told, similarity, nearest])
    source = "calibrated" if promised else "best F1 on the other half of the pairs, without a promise"
    title = f"A cache with {cache.store.count().entries} answers, threshold {cache.policy.threshold:.3f} ({source})"
    print_table(title, ["asked", "", "why", "cosine", "nearest stored question"], rows, texts=True)
    console.print("next    make serve-demo: the caching proxy and its dashboard, in front of a simulated LLM")


def _example_folder() -> Path:
    from embedsmith.errors import InputError

    for folder in (Path("examples/home_energy"), Path(__file__).resolve().parents[2] / "examples" / "home_energy"):
        if (folder / "queries.jsonl").is_file():
            return folder
    raise InputError(
        "the example data is not here", expected="examples/home_energy", action="run it in a clone of the project"
    )


@app.command()
def synthesize(
    log: Log,
    llm: Llm,
    out: Out,
    base_url: BaseUrl = None,
    column: Column = None,
    evaluation: Annotated[list[Path] | None, typer.Option("--eval", help="Data that must not leak in.")] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    prompts: Prompts = None,
    concurrency: Concurrency = 8,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 1024,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write labelled examples for a log with a language model; rejected candidates keep their reason."""
    from embedsmith.examples import read_examples, texts_of
    from embedsmith.llm import open_llm
    from embedsmith.synthesis import synthesize as synthesize_examples

    leaks = [text for path in evaluation or () for item in read_examples(path).examples for text in texts_of(item)]
    found = _read_log(log, column)
    write_jsonl(out / "queries_rejected.jsonl", [*found.rejected, *found.merged])
    with watch_run() as watch:
        result = synthesize_examples(
            found.kept,
            llm=open_llm(llm, base_url=base_url, concurrency=concurrency),
            paraphrases=paraphrases,
            distinct=distinct,
            prompts=prompts,
            sampling=_sampling(temperature, max_tokens, seed),
            evaluation=leaks,
            out=out,
            on_progress=watch.calls,
        )
    if as_json:
        about = {"counts": result.counts, "calls": plain(result.calls), "warnings": result.warnings}
        print_json({**about, "examples": str(out / "examples.jsonl")})
        return
    print_table(f"{len(found.kept)} queries", ["candidates", "count"], sorted(result.counts.items()))
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False)
    console.print(f"examples  {out / 'examples.jsonl'}\nrejected  {out / 'rejected.jsonl'}")


@app.command()
def explain(
    log: Log,
    column: Column = None,
    row: Annotated[list[str] | None, typer.Option(help="Id of a row to show; repeatable. Default: the first.")] = None,
    synthesis: Annotated[Path | None, typer.Option(help="Folder of a synthesis, to show what came of the row.")] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    prompts: Prompts = None,
    as_json: AsJson = False,
) -> None:
    """Show what is sent to the language model for a row, exactly, and what came of it."""
    from embedsmith.synthesis import explain as explain_queries
    from embedsmith.synthesis import read_synthesis

    queries = _read_log(log, column).kept
    wanted = [query for query in queries if query.id in row] if row else queries[:1]
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
        for prompt, completion in zip(item.prompts, item.completions, strict=True):
            console.rule(f"row {item.query.id}, {prompt.task}")
            console.print(f"[bold]system[/bold]\n{prompt.system}\n\n[bold]user[/bold]", highlight=False)
            console.print(prompt.user, markup=False, highlight=False)
            if completion is not None:
                console.print("\n[bold]completion[/bold]")
                console.print(completion, markup=False, highlight=False)
        for pair in item.kept:
            console.print(f"kept {pair.label}  {pair.sentence2}", markup=False, highlight=False)
        for lost in item.rejected:
            console.print(f"rejected ({lost.reason}: {lost.detail})  {lost.text}", markup=False, highlight=False)


def _read_log(log: Path, column: str | None) -> Deduplicated:
    from embedsmith.corpus import deduplicate, read_queries

    found = deduplicate(read_queries(log, column=column))
    if found.rejected:
        first = found.rejected[0]
        console.print(
            f"{log}: {len(found.rejected)} rows not used, e.g. line {first.line}: {first.detail}", markup=False
        )
    return found


def _sampling(temperature: float, max_tokens: int, seed: int) -> Sampling:
    from embedsmith.llm import Sampling

    return Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)


def _training(
    epochs: int | None,
    batch: int | None,
    learning_rate: float | None,
    precision: str | None,
    losses: str | None,
    seed: int,
) -> TrainingConfig:
    from embedsmith.training import config_from

    return config_from(own_values(epochs, batch, learning_rate, precision, losses, seed))
