"""The job for retrieval: documents in; a model that finds their passages, measured against its base and BM25, out.

Seven stages, each reading and writing files of the run directory: documents, synthesis, split, teaching, training,
evaluation, report. A stage whose inputs and configuration did not change is not run again.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from embedsmith.artifacts import (
    JsonLines,
    RunDirectory,
    fingerprint,
    fingerprint_file,
    plain,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from embedsmith.batches import INSTRUCTION
from embedsmith.cards import CardFacts
from embedsmith.documents import Passage, read_passages, read_passages_file, screen_passages, write_passages
from embedsmith.documents.files import find_files
from embedsmith.encoder import SIDES, Encoder, sides_of
from embedsmith.errors import InputError, ModelRefused
from embedsmith.examples import (
    Example,
    PositivePair,
    Rejected,
    Triplet,
    connect,
    read_examples,
    split,
    units_of,
    write_examples,
)
from embedsmith.guards import read_guards
from embedsmith.lexical import LexicalIndex, warn_of_silence
from embedsmith.llm import LanguageModel, Sampling
from embedsmith.llm.budget import Limits
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.model import TorchEncoder, check_model, describe_base, fingerprint_model, load_encoder
from embedsmith.personal import Screen
from embedsmith.pipeline.common import (
    PERSONAL,
    RunResult,
    Watcher,
    count_reasons,
    has_failed_calls,
    pick_examples,
    read_rows,
    require,
    say_counts,
    say_personal,
    write_counts,
)
from embedsmith.preparation import Preparation, prepare
from embedsmith.report.rag import write_rag_report
from embedsmith.retention import Retention
from embedsmith.retrieval import LexicalRanker, Ranker, RetrievalTask, measure_retrieval, read_beir
from embedsmith.runtime import load_token_counter
from embedsmith.synthesis.outcome import collect
from embedsmith.synthesis.rag import RagPlan, embed_passages, synthesize_rag
from embedsmith.teacher import Teaching, teach
from embedsmith.training import TrainingConfig, train

CHOOSING, JUDGING = 0.2, 0.2  # shares of the source passages whose questions choose the weights, and judge the model
DISTRACTORS = 1000  # passages that the choosing questions' own are ranked among
SLACK = 1.0  # standard errors: a few hundred written questions do not tell neighbouring weights apart
SHORT = (128, 64, 32)  # dimensions of the Matryoshka table below a quarter

# Chosen on the half of finance_retrieval's questions that benchmarks/rag_finance.py does not report; see docs/log.md.
RAG_VALUES: Mapping[str, Any] = {
    "losses": {"distill_kl": 1.0},
    "temperature": 0.05,
    "batch": 16,
    "epochs": 2,
    "learning_rate": 5e-5,
    "gradient_norm": 1.0,
}
RAG_TRAINING = TrainingConfig(**RAG_VALUES)
ASKING = "Given a question, find the passages that answer it"  # what a query's prompt asks for, where it has the place


@dataclass(frozen=True, slots=True)
class RagJob:
    """All that decides what a run produces, besides the LLM's answers.

    Attributes:
        sources: files, folders and globs of documents. base: the model to tune.
        evaluation: a BEIR folder of the user's with queries and qrels over a corpus of its own; without one the
            questions about a fifth of the passages judge (optimistic: the same language model wrote them).
        guards: the user's own files for general ability, besides the set that ships.
        limits: of calls and money, over all runs into the folder.
        column, separator: of sources that are tables; see `documents.read_passages`.
        mask: personal data in the passages becomes placeholders (`personal`).
        tokens: longest passage, in tokens of the base.
        preparation: how the base is made ready, as in `train`: pooling, adapters, prompts. The base itself is searched,
            graded and measured with the same pooling and prompts.
        instruction: stands for `{instruction}` in the prompt of queries.
        tolerance: how far a guard may fall below the base.
        force: a model that is below its base is written all the same.
    """

    sources: tuple[str, ...]
    base: str
    out: Path
    evaluation: Path | None = None
    column: str | None = None
    mask: bool = False
    tokens: int = 256
    guards: tuple[Path, ...] = ()
    plan: RagPlan = field(default_factory=RagPlan)
    teaching: Teaching = field(default_factory=Teaching)
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    training: TrainingConfig = RAG_TRAINING
    preparation: Preparation = field(default_factory=Preparation)
    instruction: str = ASKING
    tolerance: float = 0.02
    force: bool = False
    seed: int = 0
    separator: str | None = None

    @property
    def prepared(self) -> Preparation:
        """The preparation with the instruction in its place."""
        prompts = self.preparation.prompts
        if prompts is None:
            return self.preparation
        query = prompts.query.replace(INSTRUCTION, self.instruction)
        return replace(self.preparation, prompts=replace(prompts, query=query))

    @property
    def origin(self) -> dict[str, str]:
        """What decides the base's vectors, for the keys of stages."""
        found = {"base": fingerprint_model(self.base)}
        return found | ({"reading": fingerprint(self.reading)} if self.reading != Preparation() else {})

    @property
    def reading(self) -> Preparation:
        """What of the preparation counts before any training: all but adapters and memory."""
        return replace(self.prepared, lora=None, checkpointing=False, merge=True)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Question and passage pairs by what they are for; a passage's questions are all in one part."""

    train: tuple[PositivePair, ...]
    choose: tuple[PositivePair, ...]
    judge: tuple[PositivePair, ...]


def run_rag(job: RagJob, llm: LanguageModel, watch: Watcher | None = None) -> RunResult:
    """Return the finished run; stages that are up to date are not run again, a killed run goes on.

    Raises:
        ModelRefused: the tuned model is not above its base, on the choosing questions (nothing is written) or on the
            evaluation (the report is there, and says so), and nobody forces it.
        InputError and other `EmbedsmithError`s, each with what to do.
    """
    watch = watch or Watcher()
    folder = RunDirectory(job.out)
    with folder.hold():
        watch.say(f"base: looking at {job.base}")
        check_model(job.base)  # before the first call that costs money
        guards = read_guards(job.guards)
        for note in _describe(job):
            watch.say(f"base: {note}")
        task = read_beir(job.evaluation) if job.evaluation is not None else None
        passages = _documents(job, folder, watch)
        say_personal(folder, watch, [llm], "passages", masked=job.mask)
        require_passages(job, len(passages))  # before the first call as well
        base = cache(lambda: open_base(job.base, job.reading))  # loaded by the first stage that needs it, if any does
        pairs = _synthesis(job, llm, passages, base, task, folder, watch)
        parts = _split(job, pairs, held_out=task is None)
        taught, length = _teaching(job, parts.train, passages, base, folder, watch)
        dimensions = choose_dimensions(length)
        _training(job, taught, parts, guards, passages, dimensions, folder, watch)
        _evaluation(job, task or _make_task(parts.judge, passages), base, dimensions, folder, watch)
        result = _report(job, llm, task is None, folder)
        refuse_what_is_worse(job, result)
        return result


def _describe(job: RagJob) -> tuple[str, ...]:
    """Return what is chosen for a plain base; raise for what it cannot have, before anything is paid for."""
    own = job.reading
    return describe_base(
        job.base,
        pooling=own.pooling,
        padding=own.padding,
        bidirectional=own.bidirectional,
        max_length=own.max_length,
    )


def open_base(spec: str, reading: Preparation) -> Encoder:
    """Return the base as it is before the training: with the pooling, the length and the prompts of the run."""
    if reading == Preparation():
        return load_encoder(spec)
    prompts = reading.prompts
    network = prepare(spec, reading, precision="fp32", seed=0, own_prompts=prompts is not None).network
    if prompts is not None:
        network.prompts = dict(zip(SIDES, (prompts.query, prompts.document), strict=True))
    return TorchEncoder(network, name=spec)


def _documents(job: RagJob, folder: RunDirectory, watch: Watcher) -> list[Passage]:
    files = [file for file in find_files(job.sources, without=(job.out,)) if not isinstance(file, Rejected)]
    inputs = {f"file {file.name}": _fingerprint(file.path) for file in files}
    inputs |= {"base": fingerprint_model(job.base)}
    settings = {"column": job.column, "tokens": job.tokens, "mask": job.mask}
    settings |= {"separator": job.separator} if job.separator is not None else {}
    outputs = ["passages.jsonl", "passages_rejected.jsonl", PERSONAL]
    if not folder.is_fresh("documents", inputs, settings):
        watch.say(f"documents: reading {len(files)} files")
        with folder.stage("documents", inputs, settings, outputs), JsonLines(folder / outputs[1]) as rejected:
            count = load_token_counter(job.base)
            table: dict[str, Any] = {"column": job.column, "separator": job.separator}
            found = read_passages(job.sources, tokens=job.tokens, count=count, **table, without=(job.out,))
            screen = Screen(job.mask)
            write_passages(folder / outputs[0], _without_rejected(screen_passages(found, screen), rejected))
            write_jsonl(folder / PERSONAL, screen.rows)
    lost = count_reasons(row for _, row in read_rows(folder / outputs[1]))
    if not (folder / outputs[0]).stat().st_size:
        raise _refuse_documents(job, folder / outputs[1], lost)
    passages = list(read_passages_file(folder / outputs[0]))
    said = ", ".join(f"{count} × {reason}" for reason, count in lost.items())
    watch.say(f"documents: {len(passages)} passages of {len(files)} files{f'; not used: {said}' if said else ''}")
    return passages


def _fingerprint(path: Path) -> str:
    """Return the fingerprint of a document; one that cannot be opened is named where it is read."""
    try:
        return fingerprint_file(path)
    except OSError:
        return "unreadable"


def _refuse_documents(job: RagJob, path: Path, lost: Mapping[str, int]) -> InputError:
    """Return the error of documents without a passage, with each reason and the first file that it was found in."""
    first: dict[str, Mapping[str, Any]] = {}
    for _, row in read_rows(path):
        first.setdefault(row["reason"], row)
    said = [f"{count} × {name} ({first[name]['file']}: {first[name]['detail']})" for name, count in lost.items()]
    return InputError(
        f"there is no passage in {', '.join(job.sources)}; not used: {'; '.join(said) or 'nothing, there is no file'}",
        expected="a document with text",
        action=f"see {path}",
    )


def require_passages(job: RagJob, number: int) -> None:
    """Raise `InputError` if there are too few passages to grade a question's own against others."""
    own = job.plan.passages_per_multi if job.plan.multi_passage else 1
    if number <= job.teaching.negatives + own:
        raise InputError(
            f"the documents give {number} passages",
            expected=f"more than {job.teaching.negatives + own}: a question has up to {own} of its own, and is graded "
            f"beside {job.teaching.negatives} others",
            action="give more documents, or shorter passages (--tokens)",
        )


def _without_rejected(rows: Iterable[Passage | Rejected], rejected: JsonLines) -> Iterable[Passage]:
    for row in rows:
        if isinstance(row, Rejected):
            rejected.write(row)
        else:
            yield row


def _synthesis(
    job: RagJob,
    llm: LanguageModel,
    passages: Sequence[Passage],
    base: Callable[[], Encoder],
    task: RetrievalTask | None,
    folder: RunDirectory,
    watch: Watcher,
) -> list[PositivePair]:
    inputs = {"passages": fingerprint_file(folder / "passages.jsonl"), "llm": llm.name, **job.origin}
    inputs |= {"queries": fingerprint(sorted(task.queries.values()))} if task is not None else {}
    inputs |= {"prompts": fingerprint_file(require(Path(job.plan.prompts)))} if job.plan.prompts else {}
    settings = {"plan": plain(job.plan), "sampling": job.sampling}
    outputs = ["synthesis/examples.jsonl", "synthesis/rejected.jsonl", "synthesis/counts.json"]
    if not folder.is_fresh("synthesis", inputs, settings) or has_failed_calls(folder, llm):
        watch.say(f"synthesis: {llm.name} writes questions about {len(passages):,} passages")
        journal = Journal(folder / "synthesis/journal.sqlite")
        with folder.stage("synthesis", inputs, settings, outputs), journal as opened:
            calls = Calls(llm, opened, job.sampling, budget=job.limits.open(), on_progress=watch.calls)
            asked = tuple(task.queries.values()) if task is not None else ()
            rows = synthesize_rag(
                job.plan, passages, calls, encoder=base(), evaluation=asked, cache=folder / "vectors.npz"
            )
            result = collect(rows, calls, out=folder / "synthesis")
            write_counts(folder, result, llm)
    say_counts(folder, watch, kept="pairs")
    found = read_examples(folder / outputs[0], kind=PositivePair).examples
    return [pair for pair in found if isinstance(pair, PositivePair)]


def _split(job: RagJob, pairs: Sequence[PositivePair], *, held_out: bool) -> _Parts:
    shares = {"train": 1 - CHOOSING, "choose": CHOOSING}
    if held_out:
        shares = {"train": 1 - CHOOSING - JUDGING, "choose": CHOOSING, "judge": JUDGING}
    groups = len(connect(pairs))
    if groups < len(shares):
        raise InputError(
            f"{len(pairs)} questions are left, about {groups} passages or groups of passages that share questions",
            expected=f"questions about at least {len(shares)}: for {', '.join(shares)}",
            action="give more documents; synthesis/rejected.jsonl of the run says why questions were dropped",
        )
    parts: dict[str, Any] = {name: tuple(rows) for name, rows in split(pairs, shares, seed=job.seed).items()}
    return _Parts(parts["train"], parts["choose"], parts.get("judge", ()))


def _make_task(pairs: Sequence[PositivePair], passages: Sequence[Passage]) -> RetrievalTask:
    """Return the held-out questions as a retrieval task over all passages."""
    ids = {passage.text: passage.id for passage in reversed(passages)}
    queries = {question: f"q{place}" for place, question in enumerate(dict.fromkeys(pair.anchor for pair in pairs))}
    relevant: dict[str, dict[str, int]] = {}
    for pair in pairs:
        relevant.setdefault(queries[pair.anchor], {})[ids[pair.positive]] = 1
    documents = {passage.id: passage.text for passage in passages}
    asked = {key: text for text, key in queries.items()}
    groups = {queries[pair.anchor]: unit for pair, unit in zip(pairs, units_of(pairs), strict=True)}
    return RetrievalTask("questions held out", documents, asked, relevant, keep_own=True, groups=groups)


def _teaching(
    job: RagJob,
    pairs: Sequence[PositivePair],
    passages: Sequence[Passage],
    base: Callable[[], Encoder],
    folder: RunDirectory,
    watch: Watcher,
) -> tuple[list[Triplet], int]:
    """Return the graded examples, and the length of the base's vectors."""
    inputs = {"pairs": fingerprint(pairs), "passages": fingerprint_file(folder / "passages.jsonl"), **job.origin}
    outputs = ["teaching/examples.jsonl", "teaching.json"]
    if not folder.is_fresh("teaching", inputs, plain(job.teaching)):
        watch.say(f"teaching: the base and BM25 grade the passages of {len(pairs):,} pairs")
        with folder.stage("teaching", inputs, plain(job.teaching), outputs):
            texts = [passage.text for passage in passages]
            queries, documents = sides_of(base())
            vectors = embed_passages(texts, documents, cache=folder / "vectors.npz")
            pairs = _leave_out_ungradable(pairs, len(texts), job.teaching.negatives, watch)
            taught = teach(pairs, texts, vectors, queries.encode, teaching=job.teaching, lexical=LexicalIndex(texts))
            write_examples(folder / outputs[0], taught.examples)
            about = {"weight": taught.weight, "mrr@10": taught.reciprocal_ranks, "length": vectors.shape[1]}
            about |= {"silent": taught.silent, "questions": len({pair.anchor for pair in pairs})}
            write_json(folder / outputs[1], about)
    found = read_json(folder / outputs[1])
    ranks = {float(weight): value for weight, value in found["mrr@10"].items()}
    watch.say(
        f"teaching: {len(pairs)} pairs graded by the base and BM25 (weight {found['weight']:g}); MRR@10 of the "
        f"questions' own passages {ranks[0.0]:.3f} by the base, {ranks[found['weight']]:.3f} by both"
    )
    if warning := warn_of_silence(found.get("silent", 0), found.get("questions", 0)):
        watch.say(f"teaching: warning: {warning}")
    examples = read_examples(folder / outputs[0], kind=Triplet).examples
    length = found.get("length") or base().encode(["a vector"]).shape[1]  # runs of a version that did not tell
    return [example for example in examples if isinstance(example, Triplet)], int(length)


def _leave_out_ungradable(
    pairs: Sequence[PositivePair], passages: int, negatives: int, watch: Watcher
) -> Sequence[PositivePair]:
    """Return the pairs of questions that so few passages answer that enough others are left to be graded."""
    answers = Counter(pair.anchor for pair in pairs)
    kept = [pair for pair in pairs if passages > negatives + answers[pair.anchor]]
    if len(kept) == len(pairs):
        return pairs
    watch.say(f"teaching: {len(pairs) - len(kept)} pairs left out: nearly every passage answers their question")
    return kept


def _training(
    job: RagJob,
    taught: Sequence[Triplet],
    parts: _Parts,
    guards: Mapping[str, tuple[Example, ...]],
    passages: Sequence[Passage],
    dimensions: tuple[int, ...],
    folder: RunDirectory,
    watch: Watcher,
) -> None:
    config = replace(job.training, seed=job.seed, dimensions=job.training.dimensions or dimensions)
    inputs = {"examples": fingerprint(taught), "choose": fingerprint(parts.choose), "guards": fingerprint(guards)}
    inputs |= {"base": fingerprint_model(job.base)}
    settings = {"training": plain(config), "tolerance": job.tolerance, "force": job.force, "slack": SLACK}
    settings |= {"preparation": plain(job.prepared)} if job.prepared != Preparation() else {}
    if folder.is_fresh("training", inputs, settings):
        watch.say("training: up to date")
        return
    facts = CardFacts(
        base=job.base,
        examples=len(taught),
        source="questions that a language model wrote about passages, graded by the base and BM25 together.",
        configuration=plain(config) | ({"preparation": settings["preparation"]} if "preparation" in settings else {}),
    )
    own = {pair.positive for pair in parts.choose}
    others = [passage.text for passage in passages if passage.text not in own]
    drawn = sorted(others, key=lambda text: fingerprint([job.seed, text]))[:DISTRACTORS]
    kept = Retention(
        parts.choose, guards, job.tolerance, job.force, watch.under("training"), distractors=tuple(drawn), slack=SLACK
    )
    with folder.stage("training", inputs, settings, ["model", "training.json", "retention.json"]):
        out = folder / "model"
        result = train(
            taught,
            base=job.base,
            out=out,
            config=config,
            preparation=job.prepared,
            card=facts,
            on_progress=watch.steps,
            on_note=watch.under("training"),
            retention=kept,
        )
        write_json(folder / "training.json", result)
    watch.say(f"training: {result.steps} steps in {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s")


def _evaluation(
    job: RagJob,
    task: RetrievalTask,
    base: Callable[[], Encoder],
    dimensions: tuple[int, ...],
    folder: RunDirectory,
    watch: Watcher,
) -> None:
    inputs = {"task": fingerprint(task), "model": fingerprint_model(folder / "model")}
    settings = {**job.origin, "seed": job.seed}
    if folder.is_fresh("evaluation", inputs, settings):
        watch.say("evaluation: up to date")
        return
    with folder.stage("evaluation", inputs, settings, ["evaluation.json"]):
        watch.say(f"evaluation: {len(task.queries)} queries over {len(task.documents)} passages")
        tuned = load_encoder(folder / "model")
        rankers: dict[str, Encoder | Ranker] = {"base": base(), "tuned": tuned, "BM25": LexicalRanker()}
        found = measure_retrieval(rankers, task, baseline="base", dimensions=dimensions, seed=job.seed)
        write_json(folder / "evaluation.json", {**plain(found), "notes": found.list_notes()})
        for note in found.list_notes():
            watch.say(f"evaluation: {note}")


def choose_dimensions(whole: int) -> tuple[int, ...]:
    """Return the lengths that vectors are trained and measured at: the whole, its half and quarter, then 128, 64, 32.

    >>> choose_dimensions(384)
    (384, 192, 96, 64, 32)
    """
    parts = [whole, whole // 2, whole // 4]
    return tuple(size for size in (*parts, *(short for short in SHORT if short < parts[-1])) if size >= SHORT[-1])


def _report(job: RagJob, llm: LanguageModel, held_out: bool, folder: RunDirectory) -> RunResult:
    summary = summarize_rag(folder, job, llm.name, held_out=held_out)
    write_json(folder / "report.json", summary)
    write_rag_report(folder / "report.html", summary)
    return RunResult(folder.path, folder / "model", folder / "report.html", summary)


def summarize_rag(folder: RunDirectory, job: RagJob, llm: str, *, held_out: bool) -> dict[str, Any]:
    """Return everything the report shows, as plain JSON, from the files of the run directory."""
    rejected = [row for _, row in read_rows(folder / "synthesis/rejected.jsonl")]
    pairs = [row for _, row in read_jsonl(folder / "synthesis/examples.jsonl")]
    passages = [row for _, row in read_jsonl(folder / "passages.jsonl")]
    return {
        "sources": list(job.sources),
        "base": job.base,
        "llm": llm,
        "held_out": held_out,
        "evaluation_data": str(job.evaluation) if job.evaluation else None,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "embedsmith " + shlex.join(sys.argv[1:]),
        "documents": {
            "documents": len({row.get("document") for row in passages}),
            "passages": len(passages),
            "asked_about": len({row["group"] for row in pairs}),
            "not_used": count_reasons(row for _, row in read_rows(folder / "passages_rejected.jsonl")),
        },
        "synthesis": read_json(folder / "synthesis/counts.json"),
        "rejected_examples": pick_examples(rejected),
        "examples": pairs[:: max(len(pairs) // 8, 1)][:8],
        "teaching": read_json(folder / "teaching.json"),
        "training": read_json(folder / "training.json"),
        "retention": read_json(folder / "retention.json"),
        "configuration": plain(replace(job.training, seed=job.seed)),
        "preparation": plain(job.prepared),
        "retrieval": read_json(folder / "evaluation.json"),
        "seconds": {name: record.seconds for name, record in folder.stages.items()},
        "seed": job.seed,
    }


def refuse_what_is_worse(job: RagJob, result: RunResult) -> None:
    """Raise `ModelRefused` if the tuned model is below its base on the evaluation, unless it is forced."""
    report = result.summary["retrieval"]
    change = report["differences"]["tuned"][report["primary"]]
    if change["value"] >= 0 or job.force:
        return
    raise ModelRefused(
        f"the tuned model is below its base on {report['queries']} queries: {report['primary']} "
        f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]",
        expected="at least what the base has",
        action=f"do not deploy {result.model}; {result.report} shows the figures. More documents or questions help, or "
        "a base with more room; --force ends without this error",
    )
