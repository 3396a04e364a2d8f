"""Commands that measure: evaluate, compare, calibrate."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
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
    LazyMapping,
    Seed,
    Separator,
    app,
    change,
    check_file,
    check_folder,
    draw_bar,
    print_comparison,
    print_json,
    print_table,
    read_pairs,
    say,
    spread,
    sure,
)
from embedsmith.cli.rankings import RetrievalOptions, evaluate_retrieval, parse_numbers, print_retrieval
from embedsmith.errors import CalibrationRefused, ConfigurationError

if TYPE_CHECKING:
    from embedsmith.cache.rules import Rules
    from embedsmith.calibration import Calibration, Conversations


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
    _require_something(pairs, suite, retrieval, qrels)
    if model is None and (pairs is not None or suite is not None):
        raise ConfigurationError("no model is named", expected="embedsmith evaluate MODEL …")
    found: dict[str, Any] = {}
    if ranked:
        models = (*(compare or []), *([model] if model else []))
        if not (models or run or bm25):
            raise ConfigurationError("nothing ranks", expected="MODEL, --run FILE or --bm25 with --retrieval")
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


def _require_something(pairs: Path | None, suite: str | None, retrieval: Path | None, qrels: Path | None) -> None:
    """Raise if there is nothing to evaluate on."""
    if pairs is None and suite is None and retrieval is None and qrels is None:
        raise ConfigurationError(
            "there is nothing to evaluate on",
            expected="labelled pairs, --suite, --retrieval, or several of them",
            action="embedsmith evaluate MODEL PAIRS.jsonl, or MODEL --suite sts --data DIR, or MODEL --retrieval DIR",
        )


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
    say(
        f"one query p50 {latency['p50_ms']:.1f} ms, p95 {latency['p95_ms']:.1f} ms; "
        f"{latency['texts_per_second']:,.0f} texts/s in bulk ({latency['threads']} threads)"
    )


def _evaluate_suite(
    suite: str, data: Path | None, models: Sequence[str], base_url: str | None, seed: int
) -> dict[str, Any]:
    """Return the report of the suite; the first of the models is the one before."""
    from importlib.util import find_spec

    from embedsmith.model import check_model, load_encoder
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
        say(f"warning: {warning}")
    if find_spec("transformers") is not None:  # else the first one loaded says what to install
        for model in models:  # before the first is measured for an hour
            if not model.startswith("openai:"):
                check_model(model)
    with draw_bar("texts") as advance:
        encoders = LazyMapping({model: partial(load_encoder, model, base_url=base_url) for model in models})
        report = measure_suite(encoders, found.sets, seed=seed, on_progress=advance)
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
        say(line)
    for why in dict.fromkeys(report["missing"].values()):
        names = ", ".join(missing for missing, reason in report["missing"].items() if reason == why)
        say(f"not measured: {names}: {why}")
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
            help="As the cache serves: the exported model, if any, behind the guard. Or, for those who have no cache: "
            "the model's cosines as they are, of the folder itself.",
        ),
    ] = True,
    guard: Annotated[
        bool, typer.Option(help="Whether the cache vetoes candidates that differ in a fact, as in serve.")
    ] = True,
    verifier: Annotated[
        Path | None, typer.Option(help="A verifier's folder, for a cache: switched on if it proves itself.")
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
    from embedsmith.cache.promises import calibrate_model
    from embedsmith.cache.settings import place_calibration, tell_shadow
    from embedsmith.calibration import write_calibration

    refuse_feedback(pairs)
    rows = read_pairs(pairs, separator)
    out = out if out is not None else place_calibration(model)
    require_place(out, folder=False)
    try:
        rules = calibrate_model(
            model,
            rows,
            guard=guard,
            verifier=verifier,
            cached=for_cache,
            base_url=base_url,
            delta=delta,
            alpha=alpha,
            duplicate_rate=duplicate_rate,
            traffic=traffic,
        )
    except CalibrationRefused as refusal:
        again = tell_shadow(model, guard=guard)
        raise refusal.advising(f"to gather judged pairs, serving nothing yet: {again}") from None
    write_calibration(out, rules.calibration)
    if as_json:
        chosen = {"verifier_gain": plain(rules.gain), "explained": rules.verifier, "sample": rules.sample}
        print_json(plain(rules.calibration) | chosen | {"out": str(out)})
        return
    _print_calibration(rules, out, cached=for_cache)
    if for_cache:
        say(f"next     {_tell_serve(model, rules.calibration, out, verifier)}")


def _print_calibration(rules: Rules, out: Path, *, cached: bool) -> None:
    from embedsmith.metrics import percent

    found = rules.calibration
    for line in filter(None, (rules.sample, rules.verifier)):
        say(line)
    of = "" if found.guard else ", without the guard" if cached else ", of the model by itself, without a cache"
    say(
        f"threshold {found.threshold:.4f}: at most {percent(found.delta)} of the answers served are wrong, with "
        f"confidence {percent(1 - found.alpha)}{tell_terms(found)}{of}\n"
        f"{found.hits} of {found.pairs} pairs served, {found.false_hits} wrong, "
        f"{found.recall:.0%} of the duplicates caught"
    )
    if found.pairs_for_reach is not None:
        say(
            f"with more labelled pairs more is served at this promise: about {found.hits_in_reach} of these "
            f"{found.pairs}; some {float(f'{found.pairs_for_reach:.2g}'):,.0f} in all would do for most of that"
        )
    if found.conversations is not None:
        say(_tell_conversations(found.conversations))
    say(f"written  {out}")


def tell_terms(found: Calibration) -> str:
    """Return for what traffic a promise was made, "" where it is that of the pairs, in the long run."""
    from embedsmith.metrics import percent

    rate = f", in traffic with {percent(found.duplicate_rate)} duplicates" if found.duplicate_rate is not None else ""
    return rate + (f", in the answers to the next {found.traffic:,} pairs" if found.traffic is not None else "")


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
