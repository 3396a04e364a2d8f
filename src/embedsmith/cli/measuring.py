"""Commands that measure: evaluate, compare, calibrate."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedsmith.artifacts import plain, require_place
from embedsmith.cli.console import (
    Alpha,
    AsJson,
    BaseUrl,
    Delta,
    Guards,
    Seed,
    Separator,
    app,
    change,
    check_file,
    check_folder,
    console,
    draw_bar,
    print_comparison,
    print_json,
    print_table,
    read_pairs,
    spread,
    sure,
)
from embedsmith.cli.rankings import RetrievalOptions, evaluate_retrieval, parse_numbers, print_retrieval
from embedsmith.errors import CalibrationRefused, ConfigurationError

if TYPE_CHECKING:
    from embedsmith.cache.rules import Rules
    from embedsmith.calibration import Calibration, Conversations
    from embedsmith.encoder import Encoder
    from embedsmith.examples import LabelledPair


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="A folder, a hub id, or openai:MODEL; may be left out with --run.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Argument(help="Labelled pairs; may be left out with --suite or --retrieval.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Pairs that choose the threshold; default: half.")] = None,
    guard: Guards = None,
    suite: Annotated[str | None, typer.Option(help="Public sets to measure on: sts (STS12–17, STSb, …).")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the suite's files; default: from the hub, through mteb.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Suite, retrieval: the model before; further ones are set against it, too. Repeatable."),
    ] = None,
    retrieval: Annotated[Path | None, typer.Option(help="A BEIR folder: corpus, queries, qrels.")] = None,
    k: Annotated[str, typer.Option("--k", help="Cutoffs of the ranking; nDCG at the first decides.")] = "10,100",
    bm25: Annotated[
        bool | None, typer.Option("--bm25/--no-bm25", help="BM25 beside the models; default: if installed.")
    ] = None,
    matryoshka: Annotated[
        str | None, typer.Option(help="Also with vectors cut to these lengths, such as 192,96,64,32.")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A TREC run file to score, too. Repeatable.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements for --run, TREC's or BEIR's, without texts.")] = None,
    run_out: Annotated[
        Path | None, typer.Option(help="Folder for TREC run files of what was ranked.", callback=check_folder)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page (and PNG) of the retrieval figures.", callback=check_file)
    ] = None,
    separator: Separator = None,
    base_url: BaseUrl = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure one model on labelled pairs (with general ability and latency), on a public suite, on retrieval."""
    ranked = retrieval is not None or qrels is not None
    _require_something(
        {"labelled pairs": pairs is not None, "--suite": suite is not None, "--retrieval": ranked},
        {
            "labelled pairs": {"--validation": validation, "--guard": guard, "--separator": separator},
            "--suite": {"--data": data},
            "--suite or --retrieval": {"--compare": compare},
            "--retrieval": {"--run": run, "--matryoshka": matryoshka, "--run-out": run_out, "--report": report},
        },
    )
    if model is None and (pairs is not None or suite is not None):
        raise ConfigurationError("no model is named", expected="embedsmith evaluate MODEL …")
    found: dict[str, Any] = {}
    if ranked:
        models = (*(compare or []), *([model] if model else []))
        _require_run_alone(models, retrieval, run, qrels, bm25, matryoshka)
        found["retrieval"] = evaluate_retrieval(
            RetrievalOptions(
                folder=retrieval,
                models=models,
                bm25=bm25,
                cutoffs=parse_numbers(k, "--k"),
                dimensions=parse_numbers(matryoshka, "--matryoshka") if matryoshka else (),
                runs=tuple(run or ()),
                qrels=qrels,
                run_out=run_out,
                report=report,
                base_url=base_url,
                seed=seed,
            )
        )
    if model is not None and pairs is not None:
        found |= _evaluate_pairs(model, pairs, validation, guard, base_url, separator, seed)
    if model is not None and suite is not None:
        found["suite"] = _evaluate_suite(suite, data, [*(compare or []), model], base_url, seed)
    if as_json:
        print_json(found)
        return
    if model is not None and pairs is not None:
        _print_evaluation(model, found)
    if suite is not None:
        _print_suite(suite, found["suite"])
    if ranked:
        print_retrieval(found["retrieval"])


def _require_something(given: Mapping[str, bool], options: Mapping[str, Mapping[str, object]]) -> None:
    """Raise where nothing is given to evaluate on, or an option is for something that is not."""
    if not any(given.values()):
        raise ConfigurationError(
            "there is nothing to evaluate on",
            expected="labelled pairs, --suite, --retrieval, or several of them",
            action="embedsmith evaluate MODEL PAIRS.jsonl, or MODEL --suite sts --data DIR, or MODEL --retrieval DIR",
        )
    for needed, own in options.items():
        useless = [name for name, value in own.items() if value]
        if useless and not any(given[one] for one in needed.split(" or ")):
            raise ConfigurationError(f"{useless[0]} without {needed}", expected=f"{needed} with it")


def _require_run_alone(
    models: Sequence[str],
    folder: Path | None,
    runs: list[Path] | None,
    qrels: Path | None,
    bm25: bool | None,
    matryoshka: str | None,
) -> None:
    """Raise where judgements alone meet what needs texts, or there is nobody who ranks."""
    if qrels is not None and (models or folder or bm25 or matryoshka):
        raise ConfigurationError(
            "--qrels has no texts for models or BM25 to rank",
            expected="--run FILE --qrels FILE alone, or MODEL --retrieval FOLDER (with or without --run)",
        )
    if qrels is not None and not runs:
        raise ConfigurationError("--qrels without --run", expected="a run file to score")
    if folder is not None and not (models or runs or bm25):
        raise ConfigurationError("nothing ranks", expected="MODEL, --run FILE or --bm25 with --retrieval")


def _evaluate_pairs(
    model: str,
    pairs: Path,
    validation: Path | None,
    guard: list[Path] | None,
    base_url: str | None,
    separator: str | None,
    seed: int,
) -> dict[str, Any]:
    from embedsmith.evaluation import evaluate as evaluate_model
    from embedsmith.evaluation import evaluate_general, measure_latency
    from embedsmith.guards import read_guards
    from embedsmith.model import load_encoder

    rows, chosen = read_pairs(pairs, separator), read_pairs(validation, separator) if validation else None
    encoder = load_encoder(model, base_url=base_url)
    report = evaluate_model(encoder, rows, validation=chosen, name=model, seed=seed)
    general = evaluate_general(encoder, read_guards(guard or []))
    latency = measure_latency(encoder, [row.sentence1 for row in rows][:500])
    return {"report": plain(report), "general": plain(general), "latency": plain(latency)}


def _print_evaluation(model: str, found: Mapping[str, Any]) -> None:
    print_comparison({"reports": {model: found["report"]}, "differences": {}})
    scores = [(item["data"], item["metric"], item["rows"], spread(item["estimate"])) for item in found["general"]]
    print_table("general ability", ["data", "metric", "rows", "value"], scores)
    latency = found["latency"]
    console.print(
        f"one query p50 {latency['p50_ms']:.1f} ms, p95 {latency['p95_ms']:.1f} ms; "
        f"{latency['texts_per_second']:,.0f} texts/s in bulk ({latency['threads']} threads)"
    )


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
        with draw_bar("sets from the hub") as advance:
            found = fetch_suite(suite, on_progress=advance)
    warnings = [warning for model in models if (warning := warn_of_overlap(model, found.sets))]
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if find_spec("transformers") is not None:  # else the first one loaded says what to install
        for model in models:  # before the first is measured for an hour
            if not model.startswith("openai:"):
                check_model(model)
    with draw_bar("texts") as advance:
        report = measure_suite(_Models(models, base_url), found.sets, seed=seed, on_progress=advance)
    return {**plain(report), "missing": dict(found.missing), "warnings": warnings}


def _print_suite(name: str, report: Mapping[str, Any]) -> None:
    """Print what was measured and on what, and a table for each model against the baseline.

    The mean is one test by itself; the sets are many, and their p-values are adjusted for it.
    """
    from embedsmith.metrics import adjust_holm

    for item in report["sets"]:
        lost = "".join(f"; {count} rows not used: {why}" for why, count in item["rejected"].items())
        notes = "".join(f"; {note}" for note in item["notes"])
        line = f"{item['name']}: {item['source']}, {item['choice']}{lost}{notes}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for why in dict.fromkeys(report["missing"].values()):
        names = ", ".join(missing for missing, reason in report["missing"].items() if reason == why)
        console.print(f"not measured: {names}: {why}", markup=False, highlight=False, soft_wrap=True)
    title = f"suite {name}, Spearman, 95% intervals, p adjusted over the sets"
    base, others = report["baseline"], list(report["mean_differences"])
    mean = f"mean of {len(report['sets'])}"
    if not others:
        rows = [[item["name"], f"{item['rows']:,}", spread(item["estimates"][base])] for item in report["sets"]]
        rows.append([mean, "", spread(report["means"][base])])
        print_table(f"{title}\n{base}", ["set", "pairs", "Spearman"], rows)
    for other in others:
        holm = adjust_holm([item["differences"][other]["p_value"] for item in report["sets"]])
        rows = [
            [item["name"], f"{item['rows']:,}", *_before_after(item["estimates"], item["differences"], base, other, p)]
            for item, p in zip(report["sets"], holm, strict=True)
        ]
        whole = report["mean_differences"]
        rows.append([mean, "", *_before_after(report["means"], whole, base, other, whole[other]["p_value"])])
        headers = ["set", "pairs", "before", "after", "difference", "p (Holm)"]
        print_table(f"{title}\nbefore  {base}\nafter   {other}", headers, rows)


def _before_after(
    estimates: Mapping[str, Any], differences: Mapping[str, Any], base: str, other: str, p_value: float
) -> tuple[str, str, str, str]:
    before, after = (f"{estimates[name]['value']:.3f}" for name in (base, other))
    return before, after, change(differences[other]), sure(p_value)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more models; the first is the baseline.")],
    pairs: Annotated[Path, typer.Option(help="Labelled pairs.")],
    validation: Annotated[Path | None, typer.Option(help="Pairs that choose the thresholds; default: half.")] = None,
    separator: Separator = None,
    base_url: BaseUrl = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put models side by side on the same labelled pairs, with intervals and paired tests."""
    from embedsmith.evaluation import compare as compare_models
    from embedsmith.model import load_encoder

    rows, chosen = read_pairs(pairs, separator), read_pairs(validation, separator) if validation else None
    encoders = {model: load_encoder(model, base_url=base_url) for model in models}
    comparison = plain(compare_models(encoders, rows, validation=chosen, seed=seed))
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or openai:MODEL.")],
    pairs: Annotated[Path, typer.Argument(help="Labelled pairs that were not trained on.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Default: calibration.json in the model's folder, where serve looks.", callback=check_file),
    ] = None,
    separator: Separator = None,
    delta: Delta = 0.05,
    alpha: Alpha = 0.05,
    base_url: BaseUrl = None,
    for_cache: Annotated[
        bool,
        typer.Option(
            "--for-cache/--model-only",
            help="As the cache serves, with its guard and the exported model if any; or the model by itself.",
        ),
    ] = True,
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
    from embedsmith.cache.feedback import refuse_feedback
    from embedsmith.cache.settings import place_calibration
    from embedsmith.calibration import write_calibration
    from embedsmith.model import fingerprint_model

    refuse_feedback(pairs)
    rows = read_pairs(pairs, separator)
    out = out if out is not None else place_calibration(model)
    require_place(out, folder=False)
    promise = {"delta": delta, "alpha": alpha, "model": fingerprint_model(model)}
    promise |= {"duplicate_rate": duplicate_rate, "traffic": traffic}
    try:
        if for_cache or verifier is not None:
            rules = _choose_for_cache(model, rows, verifier, base_url, promise)
        else:
            rules = _choose_alone(model, rows, base_url, promise)
    except CalibrationRefused as refusal:
        raise refusal.advising(f"to gather judged pairs, serving nothing yet: {_tell_shadow(model)}") from None
    write_calibration(out, rules.calibration)
    if as_json:
        chosen = {"verifier_gain": plain(rules.gain), "explained": rules.verifier, "sample": rules.sample}
        print_json(plain(rules.calibration) | chosen | {"out": str(out)})
        return
    _print_calibration(rules, out)
    _say(f"next     {_tell_serve(model, rules.calibration, out, verifier)}")


def _choose_for_cache(
    model: str, rows: Sequence[LabelledPair], verifier: Path | None, base_url: str | None, promise: Mapping[str, Any]
) -> Rules:
    from embedsmith.cache.rules import choose_rules
    from embedsmith.cache.settings import open_encoder
    from embedsmith.model import load_encoder
    from embedsmith.verifier import OnnxVerifier

    second = OnnxVerifier(verifier) if verifier is not None else None
    hosted = model.startswith("openai:")
    encoder = load_encoder(model, base_url=base_url) if hosted else open_encoder(model)[0]
    return choose_rules(encoder, rows, verifier=second, **promise)


def _choose_alone(model: str, rows: Sequence[LabelledPair], base_url: str | None, promise: Mapping[str, Any]) -> Rules:
    from embedsmith.cache.rules import Rules, calibrate_pairs, draw_sample
    from embedsmith.encoder import precision_of
    from embedsmith.evaluation import similarities_of
    from embedsmith.model import load_encoder

    encoder = load_encoder(model, base_url=base_url)
    made: Any = {"precision": precision_of(encoder), "guard": False, **promise}
    counted, told = draw_sample(rows, encoder)
    try:
        found = calibrate_pairs(counted, similarities_of(encoder, counted), **made)
    except CalibrationRefused as refusal:
        raise refusal.noting(told) from None
    return Rules(found, sample=told)


def _print_calibration(rules: Rules, out: Path) -> None:
    from embedsmith.metrics import percent

    found = rules.calibration
    for line in filter(None, (rules.sample, rules.verifier)):
        _say(line)
    _say(
        f"threshold {found.threshold:.4f}: at most {percent(found.delta)} of the answers served are wrong, with "
        f"confidence {percent(1 - found.alpha)}{'' if found.guard else ', of the model without the guard'}\n"
        f"{found.hits} of {found.pairs} pairs served, {found.false_hits} wrong, "
        f"{found.recall:.0%} of the duplicates caught"
    )
    if found.conversations is not None:
        _say(_tell_conversations(found.conversations))
    _say(f"written  {out}")


def _tell_conversations(own: Conversations) -> str:
    if own.threshold is None:
        return f"no threshold for conversations, of which {own.pairs} pairs are: {own.refused}"
    return (
        f"threshold {own.threshold:.4f} for conversations: the same promise for them alone, {own.hits} of {own.pairs} "
        f"pairs served, {own.false_hits} wrong"
    )


def _tell_serve(model: str, made: Calibration, out: Path, verifier: Path | None) -> str:
    """Return the command that serves with this very calibration; the address alone is left to the user."""
    from embedsmith.cache.settings import find_calibration, tell_model

    options = [f"--model {tell_model(model)}", "--upstream URL"]
    if find_calibration(model) != out:
        options.append(f"--calibration {shlex.quote(str(out))}")
    if made.verifier:
        options.append(f"--verifier {shlex.quote(str(verifier))}")
    if made.guard is False:
        options.append("--no-guard")
    return f"embedsmith serve {' '.join(options)}"


def _tell_shadow(model: str) -> str:
    from embedsmith.cache.settings import tell_model

    watched = "--threshold 0.9 --shadow --sample 0.05 --feedback feedback.jsonl"
    return f"embedsmith serve --model {tell_model(model)} --upstream URL {watched}"


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
