"""Commands of the whole jobs: run, demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedsmith.cli.console import (
    Across,
    Alpha,
    AsJson,
    Base,
    BaseUrl,
    Batch,
    Column,
    Concurrency,
    Conversations,
    Delta,
    Distinct,
    Edits,
    Epochs,
    Guards,
    Judge,
    LearningRate,
    Llm,
    Losses,
    Mask,
    MaxCalls,
    MaxCost,
    MaxTokens,
    Out,
    Paraphrases,
    Precision,
    PriceOption,
    Prompts,
    Seed,
    Separator,
    Temperature,
    app,
    make_sampling,
    open_model,
    own_values,
    print_comparison,
    print_json,
    print_table,
    read_price,
    say,
    watch_run,
)
from embedsmith.cli.options import naming
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from embedsmith.llm import LanguageModel
    from embedsmith.pipeline import RagJob
    from embedsmith.recipes import TrainingRecipe
    from embedsmith.training import TrainingConfig


DEMO_DELTA = 0.1  # 400 pairs full of near misses carry no promise of 5%
DEMO_QUESTIONS = (
    "when does my fixed rate tariff finish",
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
    recipe: Annotated[
        Literal["langcache", "rag"],
        typer.Option(help="langcache: a model for a cache. rag: a model that finds passages."),
    ] = "langcache",
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Labelled pairs to judge by; for rag a BEIR folder of your own.")
    ] = None,
    base_url: BaseUrl = None,
    column: Column = None,
    conversations: Conversations = False,
    separator: Separator = None,
    mask: Mask = False,
    guard: Guards = None,
    compare: Annotated[list[str] | None, typer.Option(help="A further model in the comparison; repeatable.")] = None,
    paraphrases: Paraphrases = 3,
    distinct: Distinct = 3,
    prompts: Prompts = None,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: PriceOption = None,
    concurrency: Concurrency = 256,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    losses: Losses = None,
    delta: Delta = 0.05,
    alpha: Alpha = 0.05,
    tokens: Annotated[int, typer.Option(help="rag: longest passage, in tokens of the base.")] = 256,
    quota: Annotated[int | None, typer.Option(help="rag: questions in all, spread evenly over the documents.")] = None,
    across: Across = 0.0,
    edits: Edits = 0,
    judge: Judge = False,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="rag: any value of the training, as in train: lora.rank=16; repeatable."),
    ] = None,
    training: Annotated[
        str | None, typer.Option(help="rag: a training recipe, or your own .toml, over the job's own values.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="rag: what {instruction} in the prompt of queries stands for.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="How far general ability may fall below the base; 0.01, for rag 0.02.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep a model that is below its base.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Read a log or documents, write examples, train, evaluate, write a report."""
    from embedsmith.llm.budget import Limits
    from embedsmith.pipeline import ASKING, Job, RagJob
    from embedsmith.pipeline import run as run_job
    from embedsmith.synthesis.rag import RagPlan

    sampling = make_sampling(temperature, max_tokens, seed)
    limits = Limits(max_calls, max_cost, read_price(price))
    language_model = partial(open_model, llm, base_url, concurrency)
    allowed: dict[str, Any] = {"tolerance": tolerance} if tolerance is not None else {}
    if recipe == "rag":
        chosen = _read_training(training, assign or [])
        rag = RagJob(
            sources=tuple(sources),
            base=base,
            out=out,
            evaluation=evaluation,
            column=column,
            separator=separator,
            mask=mask,
            tokens=tokens,
            guards=tuple(guard or ()),
            plan=RagPlan(quota=quota, across=across, judge=judge, prompts=prompts, seed=seed),
            sampling=sampling,
            limits=limits,
            training=chosen.configure(**own_values(epochs, batch, learning_rate, precision, losses, seed)),
            preparation=chosen.preparation,
            instruction=instruction or ASKING,
            force=force,
            seed=seed,
            **allowed,
        )
        _run_rag(rag, language_model(), as_json=as_json)
        return
    if len(sources) != 1:
        raise ConfigurationError(
            f"--recipe langcache with {len(sources)} sources",
            expected="langcache with one log, or rag with any number of documents",
            action="name one log, or --recipe rag",
        )
    job = Job(
        log=Path(sources[0]),
        base=base,
        out=out,
        evaluation=evaluation,
        column=column,
        conversations=conversations,
        mask=mask,
        separator=separator,
        guards=tuple(guard or ()),
        peers=tuple(compare or ()),
        paraphrases=paraphrases,
        distinct=distinct,
        edits=edits,
        judge=judge,
        prompts=prompts,
        sampling=sampling,
        limits=limits,
        training=_training(epochs, batch, learning_rate, precision, losses, seed),
        delta=delta,
        alpha=alpha,
        force=force,
        seed=seed,
        base_url=base_url,
        **allowed,
    )
    from embedsmith.cache.settings import tell_model, tell_shadow
    from embedsmith.report import judge_pairs

    with watch_run() as watch:
        result = run_job(job, language_model(), watch)
    if as_json:
        print_json(result.summary)
        return
    print_comparison(result.summary["comparison"])
    say(f"\n{judge_pairs(result.summary)['text']}")
    say(f"\nmodel   {result.model}\nreport  {result.report}")
    if (result.out / "calibration.json").is_file():
        _say_next(f"embedsmith serve --model {tell_model(result.model)} --upstream URL")
    else:
        _say_next(f"{tell_shadow(result.model)} (serves nothing, gathers pairs to judge)")


def _say_next(command: str) -> None:
    say(f"next    open the report, then: {command}")


def _read_training(name: str | None, assignments: Sequence[str]) -> TrainingRecipe:
    """Return the values of the retrieval job, with those of a training recipe and the user's own over them."""
    from embedsmith.pipeline import RAG_VALUES
    from embedsmith.recipes import PLAIN, change, read_recipe

    over = read_recipe(name) if name is not None else PLAIN
    with naming("--set"):
        return change(replace(over, training={**RAG_VALUES, **over.training}), assignments)


def _run_rag(job: RagJob, llm: LanguageModel, *, as_json: bool) -> None:
    from embedsmith.cli.rankings import print_retrieval
    from embedsmith.pipeline import run_rag
    from embedsmith.report.rag import judge_retrieval

    with watch_run() as watch:
        result = run_rag(job, llm, watch)
    if as_json:
        print_json(result.summary)
        return
    print_retrieval(result.summary["retrieval"])
    say(f"\n{judge_retrieval(result.summary)['text']}")
    say(f"\nmodel   {result.model}\nreport  {result.report}")
    _say_next(f"embedsmith evaluate {quote(str(result.model))} --retrieval BEIR_FOLDER (questions of your own)")


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
        delta=DEMO_DELTA,
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
    say("next    make serve-demo: the caching proxy and its dashboard, in front of a simulated LLM")


def _example_folder() -> Path:
    from embedsmith.errors import InputError

    for folder in (Path("examples/home_energy"), Path(__file__).resolve().parents[3] / "examples" / "home_energy"):
        if (folder / "queries.jsonl").is_file():
            return folder
    raise InputError(
        "the example data is not here", expected="examples/home_energy", action="run it in a clone of the project"
    )


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
