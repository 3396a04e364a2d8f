"""Commands of the cache: recalibrate, export, serve, reencode."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedsmith.artifacts import plain
from embedsmith.choices import LARGEST_CALL, Eviction, LogMode, ServedPrecision, Turns
from embedsmith.cli.console import (
    Alpha,
    AsJson,
    Delta,
    Separator,
    app,
    check_file,
    check_folder,
    draw_bar,
    print_json,
    print_table,
    read_pairs,
    say,
    tell_rejected,
)
from embedsmith.cli.options import naming

if TYPE_CHECKING:
    from embedsmith.cache.recalibration import Recalibration
    from embedsmith.cache.semantic import SemanticCache
    from embedsmith.llm import LanguageModel
    from embedsmith.runtime import Fidelity


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
    guard: Annotated[bool, typer.Option(help="Whether the servers veto candidates that differ in a fact.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: calibration_namespaces.json beside the calibration.", callback=check_file),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give each tenant with enough judged samples a threshold of its own; say why for each that gets none."""
    from embedsmith.cache.feedback import read_all_feedback
    from embedsmith.cache.promises import place_recalibration, recalibrate_model
    from embedsmith.cache.recalibration import write_recalibration
    from embedsmith.cache.settings import find_calibration

    rows, rejected = read_all_feedback(feedback)
    for file in feedback:
        tell_rejected(file, [bad for bad in rejected if bad.file == str(file)])
    found = recalibrate_model(
        model,
        rows,
        calibration=calibration,
        threshold=threshold,
        verifier=verifier,
        guard=guard,
        delta=delta,
        alpha=alpha,
        min_pairs=min_pairs,
    )
    if verifier is not None and not found.verifier:
        say("verifier off: the calibration does not use it")
    out = out if out is not None else place_recalibration(model, calibration)
    write_recalibration(out, found)
    if as_json:
        print_json({**plain(found), "out": str(out)})
        return
    _print_recalibration(found)
    say(f"written  {out}")
    if found.thresholds:  # a server reads them when it starts, and by itself only beside the calibration that it uses
        common = find_calibration(model, calibration) if threshold is None else None
        beside = common is not None and out == place_recalibration(model, calibration)
        say(f"next     start the servers again{'' if beside else f', with --namespaces {shlex.quote(str(out))}'}")


def _print_recalibration(found: Recalibration) -> None:
    common = "none" if found.common is None else f"{found.common:.4f}"
    rows = [
        [
            item.namespace,
            "" if item.threshold is None else f"{item.threshold:.4f}",
            f"{item.samples} of {item.judged}",
            item.reported,
            f"{item.common_wrong} of {item.common_hits}",
        ]
        for item in found.outcomes
    ]
    headers = ["namespace", "threshold", "samples used", "reported", "wrong at common"]
    many = "namespace" if len(rows) == 1 else "namespaces"
    print_table(f"{len(rows)} {many}; the common threshold is {common}", headers, rows)
    print_table("", ["namespace", "why"], [[item.namespace, item.reason] for item in found.outcomes], texts=True)
    granted = len(found.thresholds)
    if granted > 1:
        say(
            f"Each of the {granted} promises is kept with confidence {1 - found.alpha:.0%} by itself, not all of them "
            f"at once: expect up to {found.alpha * granted:.2g} of {granted} to be broken."
        )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="The model folder (or a hub id, with --out).")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to copy the model to first.", callback=check_folder)
    ] = None,
    precision: Annotated[
        ServedPrecision, typer.Option(help="int8 is faster, and refused when it is not close.")
    ] = "fp32",
    pairs: Annotated[Path | None, typer.Option(help="Labelled pairs to measure the loss on.")] = None,
    separator: Separator = None,
    as_json: AsJson = False,
) -> None:
    """Write the model as ONNX into its folder, so that serving it needs no torch."""
    from embedsmith.export import export_model

    labelled = read_pairs(pairs, separator) if pairs is not None else None
    report = export_model(model, out, precision=precision, pairs=labelled)
    if as_json:
        print_json(report)
        return
    rows = [
        [name, f"{found.size / 1e6:.1f} MB", f"{found.mean_cosine:.5f}", f"{found.lowest_cosine:.5f}", _loss(found)]
        for name, found in report.precisions.items()
    ]
    headers = ["precision", "size", "mean cosine", "lowest cosine", "lost average precision"]
    print_table(f"{report.model} as ONNX, against sentence-transformers in fp32", headers, rows)
    _say_promise(out if out is not None else Path(model), precision)


def _say_promise(model: Path, precision: str) -> None:
    """Say that the threshold beside the model was chosen on other vectors, before a server does."""
    from embedsmith.cache.settings import find_calibration, tell_calibrate
    from embedsmith.calibration import read_calibration

    path = find_calibration(model)
    made = read_calibration(path) if path is not None else None
    if path is not None and made is not None and made.precision not in ("", precision):
        again = tell_calibrate(model, path, guard=made.guard is not False)
        told = (
            f"{path} was made on {made.precision} vectors. `serve` uses its threshold as it is; for a promise on these"
        )
        say(f"{told}: {again}")


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
    store_timeout: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=3600,
            help="Seconds that Redis or PostgreSQL may hold a request up; then it goes around the cache, and so do all "
            "until the store answers again.",
        ),
    ] = 1.0,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine from which on answers are served; default: the calibration's.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Another calibration of this model; default: the file in or beside its folder.")
    ] = None,
    guard: Annotated[
        bool, typer.Option(help="Veto stored questions that differ in a fact: a number, a name, a negation, …")
    ] = True,
    turns: Annotated[
        Turns,
        typer.Option(
            help="Earlier turns: must be equal, are compared by meaning, or that where model and pairs carry it."
        ),
    ] = "auto",
    verifier: Annotated[Path | None, typer.Option(help="The verifier that the calibration was made with.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds an answer lives; default: for ever.")] = None,
    max_entries: Annotated[
        int | None, typer.Option(min=1, help="Most entries; --eviction says what goes; default: no limit.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most bytes of texts, answers and vectors; --eviction says what goes; default: no limit."
        ),
    ] = None,
    eviction: Annotated[
        Eviction, typer.Option(help="What goes first: the least recently used, the least often used, or the largest.")
    ] = "lru",
    feedback: Annotated[
        Path | None,
        typer.Option(help="File for judged pairs (marked on the dashboard, sampled); made if missing, else added to."),
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
    allow_tools: Annotated[bool, typer.Option(help="Answer requests that offer tools or search the web, too.")] = False,
    allow_images: Annotated[
        bool, typer.Option(help="Answer questions about images, too, where the images are the same.")
    ] = False,
    allow_several: Annotated[
        bool, typer.Option(help="Answer requests for several answers (n), too, all as stored.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Highest temperature at which an answer may be repeated.")] = 1.0,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate", help="/v1/embeddings: embed the beginning of texts that are too long; else that is a 400."
        ),
    ] = False,
    shadow: Annotated[bool, typer.Option(help="Serve nothing from the cache, only say what would be.")] = False,
    ignore_header: Annotated[
        list[str] | None,
        typer.Option(help="A request header that changes no answer; else unknown ones must be equal. Repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web pages of this origin (https://chat.example; * is all) may read what /v1 answers (CORS); this "
            "server then says so instead of the upstream. Repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name by which clients call this server (cache.example; * is any), such as that of a reverse proxy; "
            "localhost and addresses always do. Without the option it answers to no other name while it listens for "
            "this machine only, since a web page can let its own lead here, and to all else. Repeatable."
        ),
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="INPUT,OUTPUT: US dollars for a million tokens upstream, to count money saved.")
    ] = None,
    prompt_price: Annotated[float, typer.Option(min=0, hidden=True)] = 0.0,  # older names of the parts of --price
    completion_price: Annotated[float, typer.Option(min=0, hidden=True)] = 0.0,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    max_body: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            help="MiB of a request that is read here (chat, embeddings), since it is held in memory whole; all else is "
            "passed on as it comes, whatever its size.",
        ),
    ] = 8,
    grace: Annotated[
        int, typer.Option(min=1, max=86400, help="Seconds that a stop waits for answers on their way.")
    ] = 25,
    log: Annotated[
        LogMode, typer.Option(help="text: failures and a summary a minute; json: a line a request, to stdout; off.")
    ] = "text",
) -> None:
    """Serve the model: a caching proxy in front of an LLM, an embeddings endpoint, a dashboard.

    From the environment: EMBEDSMITH_ADMIN_TOKEN, the token of the dashboard and of /admin (else a new one is printed);
    EMBEDSMITH_UPSTREAM_KEY, sent upstream for clients that bring no key; EMBEDSMITH_SECRET, 64 hex digits that make
    tenants of API keys, the same on all servers that share a store.
    """
    from embedsmith.cache.chat import Allowances
    from embedsmith.cache.samples import SampleRule
    from embedsmith.cache.semantic import SemanticCache
    from embedsmith.cache.stores import require_store
    from embedsmith.llm.budget import Price
    from embedsmith.server.headers import read_hosts, read_ignored, read_origins
    from embedsmith.server.run import Service, listen, require_environment, require_port

    # First what is settled by the command line alone: loading a model takes seconds.
    with naming("--sample, --sample-margin"):
        rule = SampleRule(sample, sample_margin) if sample else None
    with naming("--price"):
        paid = Price.parse(price) if price is not None else Price(prompt_price, completion_price)
    with naming("--temperature"):
        allowed = Allowances(allow_tools, temperature, allow_images, allow_several)
    with naming("--ignore-header"):
        ignored = read_ignored(ignore_header or ())
    with naming("--allow-origin"):
        origins = read_origins(allow_origin or ())
    with naming("--allow-host"):
        hosts = read_hosts(allow_host or ())
    with naming("--store"):
        require_store(store)
    with naming("--upstream"):
        service = Service(
            upstream,
            store,
            host=host,
            port=port,
            allowed=allowed,
            shadow=shadow,
            log=log,
            prompt_price=paid.input_per_million,
            completion_price=paid.output_per_million,
            ignored_headers=tuple(ignored),
            origins=tuple(origins),
            hosts=tuple(hosts),
            store_timeout=store_timeout,
            max_body=max_body,
            grace=grace,
            truncate=truncate,
        )
    require_environment(store)
    require_port(service)
    cache = SemanticCache(
        model,
        store=store,
        threshold=threshold,
        calibration=calibration,
        guard=guard,
        turns=turns,
        verifier=verifier,
        ttl=ttl,
        max_entries=max_entries,
        max_bytes=max_bytes,
        eviction=eviction,
        feedback=feedback,
        namespaces=namespaces,
        sample=rule,
        judge=_open_judge(judge, judge_url) if judge is not None else None,
        delta=delta,
    )
    _say_sampling(cache)
    source = "given, without a promise" if threshold is not None else "from the calibration"
    if threshold is None and cache.calibration is not None and cache.calibration.written:
        source += ", whose pairs a language model wrote: calibrate on real ones before you rely on it"
    second = "on" if cache.policy.reach else "off: the calibration does not use it" if verifier is not None else "none"
    say(
        f"threshold {cache.policy.threshold:.4f} ({source}), guard {'on' if guard else 'off'}, verifier {second}, "
        f"store {cache.store.url}"
    )
    say(cache.turns)
    listen(cache, service, say=say)


def _open_judge(spec: str, base_url: str | None) -> LanguageModel:
    from embedsmith.cache.judge import RETRIES, TIMEOUT
    from embedsmith.llm import open_llm

    with naming("--judge, --judge-url" if base_url is not None else "--judge"):
        return open_llm(spec, base_url=base_url, timeout=TIMEOUT, retries=RETRIES)


def _say_sampling(cache: SemanticCache) -> None:
    if cache.policy.thresholds:
        own = len(cache.policy.thresholds)
        say("1 tenant has a threshold of its own" if own == 1 else f"{own} tenants have a threshold of their own")
    if cache.samples is not None:
        judge = f"{cache.judge.name}, which is sent both questions" if cache.judge else "people, on the dashboard"
        say(f"samples {cache.samples.rule.share:.1%} of the lookups, judged by {judge}")


@app.command()
def reencode(
    store: Annotated[str, typer.Argument(help="sqlite:///FILE, redis://… or postgresql://…")],
    model: Annotated[str, typer.Option(help="The new model: the folder that `serve` will be given.")],
    batch: Annotated[
        int, typer.Option(min=1, max=LARGEST_CALL, help="Texts at once; a kill costs at most these.")
    ] = 256,
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
    from embedsmith.cache.stores import require_store
    from embedsmith.cache.stores.moving import require_movable

    require_movable(store)  # first: loading a model takes seconds
    require_store(store)
    encoder, mark = open_encoder(model)
    try:
        with draw_bar("entries") as advance:
            done = reencode_store(
                store, encoder, model=mark, batch=batch, restart=restart, drop_failed=drop_failed, on_progress=advance
            )
    except EntriesNotEncoded as error:
        if not as_json:
            print_table("not encoded", ["entry", "reason"], [(one.id, one.reason) for one in error.failures])
        raise
    if as_json:
        print_json(done)
        return
    if done.dropped:
        print_table("removed", ["entry", "reason"], [(one.id, one.reason) for one in done.dropped])
    if done.old_model == done.model:
        line = f"{done.url} holds vectors of this model already: {done.entries} entries"
    else:
        line = (
            f"{done.url} belongs to the new model: {done.entries} entries, {done.encoded} encoded now, "
            f"{done.seconds:.1f} s; additions waited {done.held:.2f} s\n"
            "next    start the servers with the new model and a threshold of its own"
        )
    say(line)
