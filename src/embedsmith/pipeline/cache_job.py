"""The main job: an unlabelled log in; a tuned, evaluated, calibrated model and a report out.

Seven stages, each reading and writing files of the run directory: corpus, synthesis, hardness, training,
evaluation, calibration, report. A stage whose inputs and configuration did not change is not run again.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedsmith.artifacts import fingerprint, fingerprint_file, plain, read_json, read_jsonl, write_json, write_jsonl
from embedsmith.cache.feedback import refuse_feedback
from embedsmith.cache.guard import record_guard
from embedsmith.cache.independence import draw_sample
from embedsmith.cache.rules import calibrate_pairs, serve_pairs, served_similarities
from embedsmith.calibration import Calibration, write_calibration
from embedsmith.config import TrainingConfig
from embedsmith.corpus import Query, deduplicate, describe_twice_encoded, read_queries, require_queries, screen_queries
from embedsmith.encoder import Encoder, Remembering, precision_of
from embedsmith.errors import CalibrationRefused, InputError
from embedsmith.evaluation import compare, evaluate_general, halve, labels_of, measure_latency, require_both_labels
from embedsmith.examples import Example, ExampleSet, LabelledPair, read_examples, split
from embedsmith.guards import read_guards
from embedsmith.hardness import measure_hardness
from embedsmith.llm import LanguageModel, Sampling, find_host
from embedsmith.llm.budget import Limits
from embedsmith.metrics import percent
from embedsmith.model import fingerprint_model, load_encoder
from embedsmith.personal import Screen, mask
from embedsmith.pipeline.common import (
    EXAMPLES,
    PERSONAL,
    REJECTED,
    RunResult,
    Session,
    Watcher,
    begin,
    count_reasons,
    pick_examples,
    read_rows,
    require,
)
from embedsmith.report import write_report
from embedsmith.retention import Retention
from embedsmith.synthesis import synthesize
from embedsmith.synthesis.labels import check_labels
from embedsmith.synthesis.outcome import Synthesis
from embedsmith.synthesis.recipes import load_recipe
from embedsmith.tables import describe_separator

HELD_OUT = 0.2  # share of the synthetic sources that judge the model when there are no labelled pairs
CHOOSING = 0.1  # share of the others that choose how much of the tuning the weights keep
FEWEST_QUERIES = 10  # of a log without labelled pairs
FEWEST = 10  # such sources; fewer choose nothing
TOLERANCE = 0.01  # how far a guard may fall below the base, in its metric
PERSONAL_PAIRS = "personal_pairs.jsonl"  # as PERSONAL, of the labelled pairs


@dataclass(frozen=True, slots=True)
class Job:
    """All that decides what a run produces, besides the LLM's answers.

    Attributes:
        log: the unlabelled queries. base: the model to tune.
        evaluation: labelled pairs of the user; half of them (whole groups) choose thresholds, half report.
        column: of the log. separator: of the columns of log and labelled pairs where they are csv or tsv.
        mask: personal data in the log becomes placeholders (`personal`), and in labelled pairs that hosted peers read.
        guards: the user's own files for general ability, besides the set that ships.
        limits: of calls and money, over all runs into the folder.
        paraphrases, distinct, edits, judge, prompts: see `synthesis.synthesize`.
        peers: further models for the comparison (folders, hub ids, openai:MODEL).
        conversations: chats of the log are asked about as a whole; see `corpus.read_queries`.
        delta, alpha: the promise of the threshold; see `calibration`.
        tolerance: how far a guard may fall. force: keep a model that is below its base.
    """

    log: Path
    base: str
    out: Path
    evaluation: Path | None = None
    column: str | None = None
    conversations: bool = False
    mask: bool = False
    separator: str | None = None
    guards: tuple[Path, ...] = ()
    peers: tuple[str, ...] = ()
    paraphrases: int = 3
    distinct: int = 3
    edits: int = 0
    judge: bool = False
    prompts: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    delta: float = 0.05
    alpha: float = 0.05
    tolerance: float = TOLERANCE
    force: bool = False
    seed: int = 0
    base_url: str | None = None


def run(job: Job, llm: LanguageModel, watch: Watcher | None = None) -> RunResult:
    """Return the finished run; stages that are up to date are not run again, a killed run goes on.

    Raises:
        ModelRefused: the tuned model is below its base on the rows that choose its weights.
        InputError and other `EmbedsmithError`s, each with what to do.
    """
    with begin(job.base, job.out, llm, watch) as session:
        guards = read_guards(job.guards)
        labelled = _read_pairs(job, job.evaluation, session.watch) if job.evaluation else None
        peers = _open_hosted(job)
        if labelled is not None and peers:
            _say_pairs(job, labelled, peers, session)
        queries = _corpus(job, session)
        readers = [llm, *peers] if labelled is None else [llm]  # without pairs of the user's, those of the queries go
        session.say_personal(readers, "queries", masked=job.mask)
        _require_judges(job, queries, labelled)
        examples, judged = _synthesis(job, queries, labelled, session)
        _hardness(job, examples, session)
        _training(job, examples, guards, session)
        _evaluation(job, _mask_pairs(judged) if job.mask and peers else judged, guards, session)
        _calibration(job, judged, session)
        return session.report(summarize(session, job, labelled), write_report)


def _open_hosted(job: Job) -> list[Encoder]:
    """Return the models of the comparison that texts leave this machine for."""
    opened = [load_encoder(peer, base_url=job.base_url) for peer in job.peers if peer.startswith("openai:")]
    return [model for model in opened if find_host(model) is not None]


def _say_pairs(job: Job, labelled: ExampleSet[LabelledPair], peers: Sequence[Encoder], session: Session) -> None:
    """Tell of the personal data in the user's labelled pairs, hours before they are sent."""
    screen = Screen(job.mask)
    for number, pair in enumerate(labelled.examples, start=1):
        for text in (pair.sentence1, pair.sentence2):
            screen.read(f"pair {number}", text)
    write_jsonl(session.folder / PERSONAL_PAIRS, screen.rows)
    session.say_personal(peers, "labelled pairs", masked=job.mask, file=PERSONAL_PAIRS)


def _mask_pairs(pairs: Sequence[LabelledPair]) -> list[LabelledPair]:
    """Return the pairs as all models of a comparison read them, if some of these are hosted.

    The threshold is chosen on the pairs as they are: nobody else sees them there, and the traffic has no placeholders.
    """
    return [replace(pair, sentence1=mask(pair.sentence1), sentence2=mask(pair.sentence2)) for pair in pairs]


def _require_judges(job: Job, queries: Sequence[Query], labelled: ExampleSet[LabelledPair] | None) -> None:
    """Raise `InputError` where there is too little to judge the model by, before the first call."""
    if labelled is not None:
        for half in halve(labelled.examples, seed=job.seed):
            require_both_labels(half, "evaluation (half of --eval)")
    elif len(queries) < FEWEST_QUERIES:
        raise InputError(
            f"{len(queries)} distinct queries in {job.log} are too few to judge a model by",
            expected=f"at least {FEWEST_QUERIES}: a fifth of them is held out, in two halves",
            action="give a longer log, or labelled pairs of your own (--eval PAIRS)",
        )


def _corpus(job: Job, session: Session) -> list[Query]:
    folder, watch = session.folder, session.watch
    inputs = {"log": fingerprint_file(require(job.log))}
    settings = {"column": job.column, "mask": job.mask, "separator": job.separator}
    settings |= {"conversations": True} if job.conversations else {}
    outputs = ("queries.jsonl", "queries_rejected.jsonl", PERSONAL)
    if told := describe_separator(job.log, job.separator):
        watch.say(told)

    def make() -> None:
        screen = Screen(job.mask)
        rows = read_queries(job.log, column=job.column, separator=job.separator, conversations=job.conversations)
        distinct = deduplicate(screen_queries(rows, screen))
        require_queries(distinct, job.log)
        write_jsonl(folder / outputs[0], distinct.kept)
        write_jsonl(folder / outputs[1], [*distinct.rejected, *distinct.merged])
        write_jsonl(folder / PERSONAL, screen.rows)

    session.once("corpus", inputs, settings, outputs, make)
    queries = [Query(**{**row, "also": tuple(row["also"])}) for _, row in read_jsonl(folder / outputs[0])]
    rows_read = sum(query.frequency for query in queries)
    lost = sum("merged_into" not in row["context"] for row in read_rows(folder / outputs[1]))
    said = f", {lost} rows not used (queries_rejected.jsonl)" if lost else ""
    watch.say(f"corpus: {len(queries)} distinct queries of {rows_read} in {job.log.name}{said}")
    if told := describe_twice_encoded(queries):
        watch.say(f"warning: {told}")
    return queries


def _synthesis(
    job: Job, queries: Sequence[Query], labelled: ExampleSet[LabelledPair] | None, session: Session
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Return (examples to train on, labelled pairs to judge by)."""
    asked: dict[str, Any] = {"paraphrases": job.paraphrases, "distinct": job.distinct, "edits": job.edits}
    asked |= {"judge": job.judge, "prompts": job.prompts}
    inputs = {"queries": fingerprint_file(session.folder / "queries.jsonl")}
    inputs |= {"evaluation": fingerprint_file(job.evaluation)} if job.evaluation else {}
    settings = {"recipe": load_recipe(**asked, seed=job.sampling.seed or 0), "sampling": job.sampling}

    def make() -> Synthesis:
        return synthesize(
            queries,
            llm=session.llm,
            **asked,
            sampling=job.sampling,
            budget=job.limits.open(),
            evaluation=labelled.texts if labelled is not None else (),
            out=session.folder / "synthesis",
            on_progress=session.watch.calls,
        )

    session.synthesize(inputs, settings, make, begins=f"{session.llm.name} writes", kept="examples")
    examples = list(read_examples(session.folder / EXAMPLES, kind=LabelledPair).examples)
    if labelled is not None:
        return examples, list(labelled.examples)
    parts = split(examples, {"train": 1 - HELD_OUT, "judge": HELD_OUT}, seed=job.seed)
    session.watch.say(f"no --eval: {HELD_OUT:.0%} of the synthetic sources are held out to judge by (optimistic)")
    return parts["train"], parts["judge"]


def _read_pairs(job: Job, path: Path, watch: Watcher) -> ExampleSet[LabelledPair]:
    """Return the user's labelled pairs; rows that are none are told of."""
    refuse_feedback(require(path))
    if told := describe_separator(path, job.separator):
        watch.say(told)
    found = read_examples(path, kind=LabelledPair, separator=job.separator)
    if lost := found.describe_rejected():
        watch.say(f"warning: {path}: {lost}")
    return found


def _hardness(job: Job, examples: Sequence[LabelledPair], session: Session) -> None:
    """Measure what the examples can teach this base, before it is trained; doubted labels are listed, not dropped.

    Where nobody judges the doubted ones, dropping them loses more right labels than wrong ones (docs/log.md).
    """
    folder, say = session.folder, session.watch.say
    inputs = {"examples": fingerprint(examples), "base": fingerprint_model(job.base)}
    outputs = ("synthesis/hardness.json", "synthesis/doubts.jsonl")

    def make() -> None:
        encoder = Remembering(load_encoder(job.base))
        doubts = check_labels(examples, encoder)
        write_json(folder / outputs[0], measure_hardness(examples, encoder, flagged=doubts, seed=job.seed))
        write_jsonl(folder / outputs[1], doubts)

    begins = f"{job.base} reads {len(examples):,} examples"
    session.once("hardness", inputs, {"seed": job.seed}, outputs, make, begins=begins)
    found = read_json(folder / outputs[0])
    if found["average_precision"] is not None and found["triplet_accuracy"] is not None:
        say(
            f"hardness: the base has average precision {found['average_precision']['value']:.3f} and triplet accuracy "
            f"{found['triplet_accuracy']['value']:.3f} on the {found['pairs']:,} pairs it will learn from"
        )
    for warning in found["warnings"]:
        say(f"warning: {warning['text']}. To do: {warning['action']}")


def _training(
    job: Job, examples: Sequence[LabelledPair], guards: Mapping[str, tuple[Example, ...]], session: Session
) -> None:
    """Train on most of the examples; the others, with the guards, choose how much of it the weights keep.

    The user's labelled pairs have no say here, so they can choose the threshold and judge.
    """
    taught, choosing = set_apart(examples, seed=job.seed)
    result = session.train(
        taught,
        Retention(choosing, guards, job.tolerance, job.force),
        {"examples": fingerprint(examples)},
        base=job.base,
        config=replace(job.training, seed=job.seed),
        source=f"paraphrases and near-miss questions that a language model wrote for {job.log.name}.",
    )
    if result is not None:
        resumed = f" (resumed at step {result.resumed_from})" if result.resumed_from else ""
        session.watch.say(
            f"training: {result.steps} steps on {result.rows} queries and {result.pairs} pairs in "
            f"{result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s{resumed}"
        )


def set_apart(examples: Sequence[LabelledPair], *, seed: int) -> tuple[list[LabelledPair], tuple[LabelledPair, ...]]:
    """Return (rows to train on, labelled pairs of other queries that choose the weights, () where they are few)."""
    parts = split(examples, {"train": 1 - CHOOSING, "choose": CHOOSING}, seed=seed)
    pairs = parts["choose"]
    if len({pair.group for pair in pairs}) < FEWEST or len({pair.label for pair in pairs}) < 2:
        return list(examples), ()
    return parts["train"], tuple(pairs)


def _evaluation(
    job: Job, judged: Sequence[LabelledPair], guards: Mapping[str, tuple[Example, ...]], session: Session
) -> None:
    folder, say = session.folder, session.watch.under("evaluation")
    inputs = {"pairs": fingerprint(judged), "model": fingerprint_model(folder / "model")}
    inputs |= {f"guard {path}": fingerprint_file(require(path)) for path in job.guards}
    settings = {"base": fingerprint_model(job.base), "peers": job.peers, "seed": job.seed}
    names = {"base": job.base, "tuned": str(folder / "model")} | {peer: peer for peer in job.peers}

    def make() -> None:
        encoders = {name: load_encoder(spec, base_url=job.base_url) for name, spec in names.items()}
        comparison = compare(encoders, judged, baseline="base", seed=job.seed)
        say(f"general ability, with {', '.join(guards)}" if guards else "general ability")
        general = {name: evaluate_general(encoders[name], guards, seed=job.seed) for name in ("base", "tuned")}
        texts = [pair.sentence1 for pair in judged][:500]
        latency = {name: measure_latency(encoder, texts) for name, encoder in encoders.items()}
        write_json(folder / "evaluation.json", {"comparison": comparison, "general": general, "latency": latency})

    begins = f"{len(judged)} labelled pairs, {len(names)} models"
    session.once("evaluation", inputs, settings, ["evaluation.json"], make, begins=begins, rests="up to date")


def _calibration(job: Job, judged: Sequence[LabelledPair], session: Session) -> None:
    """Choose the threshold on the validation half; check it on the half that the figures are reported on.

    Both as the cache serves: what its guard vetoes is not served at any threshold.
    """
    folder, say = session.folder, session.watch.under("threshold")
    inputs = {"pairs": fingerprint(judged), "model": fingerprint_model(folder / "model")}
    settings: dict[str, Any] = {"delta": job.delta, "alpha": job.alpha, "seed": job.seed}
    settings |= {"precision": "fp32"}  # that of load_encoder
    settings |= record_guard(True)  # another version of the guard makes another calibration
    outputs = ["calibration_check.json"]

    def make() -> None:
        (folder / "calibration.json").unlink(missing_ok=True)
        chosen, reported = halve(judged, seed=job.seed)
        say(f"chosen on {len(chosen)} pairs, checked on {len(reported)} others")
        encoder = load_encoder(folder / "model")
        check: dict[str, Any] = {"delta": job.delta, "alpha": job.alpha, "refused": None}
        chosen, told = draw_sample(chosen, encoder, seed=job.seed)
        if told:
            say(told)
        try:
            found = _choose_threshold(job, chosen, encoder, inputs["model"])
            hit = serve_pairs(found, reported, served_similarities(encoder, reported))
            hits, wrong = int(hit.sum()), int((hit & (labels_of(reported) == 0)).sum())
            check |= {"calibration": found, "reported_hits": hits, "reported_false_hits": wrong}
            write_calibration(folder / "calibration.json", found)
            outputs.append("calibration.json")  # only there where a threshold keeps the promise
            say(
                f"{found.threshold:.3f} (false hits ≤ {percent(job.delta)} with {percent(1 - job.alpha)}; "
                f"of the pairs that chose nothing it serves {hits}, {wrong} of them wrong)"
            )
        except CalibrationRefused as refusal:
            check["refused"] = str(refusal)
            say(f"refused. {refusal.found}. To do: {refusal.action}")
        write_json(folder / "calibration_check.json", check)

    session.once("calibration", inputs, settings, outputs, make)


def _choose_threshold(job: Job, chosen: Sequence[LabelledPair], encoder: Encoder, model: str) -> Calibration:
    return calibrate_pairs(
        chosen,
        served_similarities(encoder, chosen),
        delta=job.delta,
        alpha=job.alpha,
        model=model,
        precision=precision_of(encoder),
        cached=True,
        **record_guard(True),
        written=job.evaluation is None,
    )


def summarize(session: Session, job: Job, labelled: ExampleSet[LabelledPair] | None) -> dict[str, Any]:
    """Return everything the report shows, as plain JSON, from the files of the run directory."""
    folder = session.folder
    queries = read_rows(folder / "queries.jsonl")
    return {
        "log": str(job.log),
        "base": job.base,
        "llm": session.llm.name,
        "evaluation_data": str(job.evaluation) if job.evaluation else None,
        "evaluation_not_used": labelled.describe_rejected() if labelled is not None else "",
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "embedsmith " + shlex.join(sys.argv[1:]),
        "corpus": {
            "queries": len(queries),
            "rows": sum(row["frequency"] for row in queries),
            "not_used": count_reasons(folder / "queries_rejected.jsonl"),
        },
        "synthesis": read_json(folder / "synthesis/counts.json"),
        "hardness": read_json(folder / "synthesis/hardness.json"),
        "rejected_examples": pick_examples(folder / REJECTED),
        "training": read_json(folder / "training.json"),
        "retention": read_json(folder / "retention.json"),
        "configuration": plain(replace(job.training, seed=job.seed)),
        **read_json(folder / "evaluation.json"),
        "calibration": read_json(folder / "calibration_check.json"),
        "seconds": {name: record.seconds for name, record in folder.stages.items()},
        "seed": job.seed,
    }
