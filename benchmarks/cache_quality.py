r"""The cache on streams of requests: right answers served against wrong ones, beside GPTCache and redisvl.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install redisvl gptcache faiss-cpu sqlalchemy
    .venv/bin/python benchmarks/cache_quality.py --questions MODEL VERIFIER --medical MODEL VERIFIER \
        --peers /tmp/peers/bin/python

MODEL and VERIFIER are what `benchmarks/cache_models.py` trains (no VERIFIER: its rows are left out).
A request finds what earlier ones left: a miss is stored, a hit is not. Streams (benchmarks/streams.py):

- questions: clusters of `duplicate_questions/validation`, without all that is connected to a question of the
  training split, on which the tuned model was trained. Two requests in three have a labelled near miss.
- training questions: a sample of `duplicate_questions/train`; the untuned model only.
- medical: the questions of `medical_pairs/validation` are stored, their paraphrases and near misses asked.
- medical completions: the same with the recorded completions of the patient questions, which the tuned medical
  model was trained on; the untuned model only.
- traps: benchmarks/traps, the second texts stored, the first asked.

An answer is right when the stored question is of the same cluster. A wrong one is "labelled" when a label says so,
else nobody compared the two questions: the truth lies between the labelled and all wrong answers. Thresholds, and the
weight of the verifier's word, are chosen on one half of the connected questions, figures are those of the other half,
intervals resample connected questions. The quoted rows are replays through the real caches (ours on SQLite, GPTCache
on SQLite and FAISS, redisvl on a Redis that this script starts); curves, and the choice of thresholds, take the pure
decision over the same vectors, and the result says how often both agree. Both peers get the untuned MiniLM's vectors.
Writes benchmarks/results/cache_quality.json and .png, and, for reading only, runs/cache_quality_unlabelled.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests" / "contracts"))

from servers import start_redis  # the contract tests' own

from common import ROOT, data_folder, describe_machine, read_rows, write_result
from embedsmith.artifacts import plain
from embedsmith.cache.decision import Policy
from embedsmith.cache.guard import find_veto
from embedsmith.cache.rules import veto_pairs
from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.metrics import Resamples, bootstrap, paired_bootstrap, resample_weights
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.verifier import Adjustment, OnnxVerifier, Verifier, fit_adjustment
from streams import (
    Neighbours,
    Outcome,
    Pair,
    Served,
    Stream,
    build_streams,
    drive,
    find_neighbours,
    judge,
    replay,
)

Rule = Callable[[Mapping[float, Outcome], float], float | None]  # the threshold of a sweep for a level

GRID = np.round(np.arange(0.4, 1.0, 0.01), 2)
ENOUGH = 0.5  # wrong answers of all requests at which a curve ends
WRONG = (0.01, 0.02, 0.05)  # wrong answers of all requests, for which thresholds are chosen
RESAMPLES = 1000
REQUESTS = 3000  # in each half of the training questions
SAMPLES = 20
PEERS = {"GPTCache": ("gptcache", 0.6), "redisvl": ("redisvl", 0.9)}  # worker, its own threshold as a cosine
RIVAL = "redisvl"
CURVE = "threshold, right of requests, wrong of requests, labelled wrong of requests, right of repeats"
COLOURS = {"base": "#8a94a6", "tuned": "#2563eb", "GPTCache": "#dc2626", "redisvl": "#d97706"}
STYLES = {"": "--", "guard": "-", "verifier": ":", "guard + verifier": "-."}
remembered = lru_cache(maxsize=None)(find_veto)


@dataclass(frozen=True, slots=True)
class System:
    """A cache of ours: whose vectors ("base" or "tuned"), and what looks at a candidate besides the cosine."""

    model: str
    guard: bool = False
    verifier: bool = False

    def policy(self, threshold: float, second: SecondLook | None) -> Policy:
        """Return its rules at a threshold."""
        policy = Policy(threshold, guard=remembered if self.guard else None)
        return replace(policy, verifier=second.verifier, adjustment=second.adjustment) if second is not None else policy


@dataclass(frozen=True, slots=True)
class SecondLook:
    """A verifier and the weight of its word."""

    verifier: Verifier
    adjustment: Adjustment


SYSTEMS = {
    "base": System("base"),
    "base + guard": System("base", guard=True),
    "tuned": System("tuned"),
    "tuned + guard": System("tuned", guard=True),
    "tuned + verifier": System("tuned", verifier=True),
    "tuned + guard + verifier": System("tuned", guard=True, verifier=True),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of stream: its halves, the option that names its tuned model, the points to quote.

    Attributes:
        wrong: shares of wrong answers, of all requests. served: shares of the repeats that are served.
    """

    title: str
    pairs: Sequence[Pair]
    streams: Mapping[str, Stream]
    tuned: str | None
    wrong: tuple[float, ...] = WRONG
    served: tuple[float, ...] = ()


def read_tasks() -> dict[str, Task]:
    """Return the streams by name."""
    folder = data_folder()
    train, validation = (_pairs(read_rows(folder / f"duplicate_questions/{name}.jsonl.gz")) for name in SPLITS)
    trained_on = [text for left, right, _ in train for text in (left, right)]
    medical = _pairs(read_rows(folder / "medical_pairs/validation.jsonl.gz"))
    completions = _completions(folder / "medical_queries")
    lines = (ROOT / "benchmarks/traps/traps.jsonl").read_text(encoding="utf-8").splitlines()
    traps = [json.loads(line) for line in lines]
    turned = [(row["text2"], row["text1"], row["label"]) for row in traps]
    dealt = {text: {"dev": "chosen", "final": "reported"}[row["half"]] for row in traps for text in _texts(row)}
    trap_streams = build_streams(turned, first=_lefts(turned), halves=dealt)
    return {
        "questions": Task("general questions", validation, build_streams(validation, without=trained_on), "questions"),
        "training questions": Task("training questions", train, build_streams(train, requests=REQUESTS), None),
        "medical": Task("medical questions", medical, build_streams(medical, first=_lefts(medical)), "medical"),
        "medical completions": Task(
            "medical completions", completions, build_streams(completions, first=_lefts(completions)), None
        ),
        "traps": Task("hand-written traps", turned, trap_streams, "questions", wrong=(), served=(0.8, 0.9)),
    }


def _texts(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["text1"], row["text2"]


def _lefts(pairs: Sequence[Pair]) -> list[str]:
    return [left for left, _, _ in pairs]


SPLITS = ("train", "validation")


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    return [(row["a"], row["b"], row["label"]) for row in rows]


def _completions(folder: Path) -> list[Pair]:
    texts = {row["id"]: row["text"] for row in read_rows(folder / "queries.jsonl.gz")}
    return [
        (texts[row["id"]], text, label)
        for row in read_rows(folder / "completions.jsonl.gz")
        for kind, label in (("paraphrases", 1), ("distinct", 0))
        for text in row[kind]
    ]


@dataclass(frozen=True, slots=True)
class Run:
    """One replay to make and quote: a system at a point.

    Attributes:
        point: "own", "1% wrong", "as redisvl", ... threshold: cosine, None where the peer's own is used.
    """

    system: str
    point: str
    threshold: float | None
    limit: int | None = None


@dataclass(slots=True)
class Bench:
    """What the tasks share: models, their vectors, the peers' python and the Redis."""

    models: Mapping[str, Encoder]
    verifiers: Mapping[str, Verifier]
    python: str | None
    redis: str
    folder: Path
    vectors: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)

    def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Return the vectors of `texts`; each text is encoded once in a run."""
        new = [text for text in dict.fromkeys(texts) if (model, text) not in self.vectors]
        if new:
            for text, vector in zip(new, self.models[model].encode(new), strict=True):
                self.vectors[model, text] = vector
        return np.stack([self.vectors[model, text] for text in texts])


class Recalled:
    """An encoder that knows the vectors of a stream already."""

    fingerprint = "stream"

    def __init__(self, texts: Sequence[str], vectors: Embeddings) -> None:
        self._rows = dict(zip(texts, vectors, strict=True))
        self._blank = np.zeros_like(vectors[0])

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return np.stack([self._rows.get(text, self._blank) for text in texts])


class Remembering:
    """A verifier that reads each pair once in a run."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier, self.fingerprint = verifier, verifier.fingerprint
        self._known: dict[tuple[str, str], float] = {}

    def score(self, pairs: Sequence[tuple[str, str]], /) -> NDArray[np.float64]:
        new = [pair for pair in pairs if pair not in self._known]
        self._known |= dict(zip(new, self._verifier.score(new).tolist(), strict=True)) if new else {}
        return np.array([self._known[pair] for pair in pairs])


def rate_wrong(outcome: Outcome) -> float:
    return float(outcome.wrong.mean())


def rate_repeats(outcome: Outcome) -> float:
    return float(outcome.right.sum() / max(int(outcome.repeats.sum()), 1))


def choose_wrong(sweep: Mapping[float, Outcome], most: float) -> float | None:
    """Return the lowest threshold that, with all above it, serves at most this share of wrong answers."""
    found = None
    for threshold in sorted(sweep, reverse=True):
        if rate_wrong(sweep[threshold]) > most:
            break
        found = threshold
    return found


def choose_served(sweep: Mapping[float, Outcome], least: float) -> float | None:
    """Return the highest threshold that serves this share of the repeats rightly."""
    return next((at for at in sorted(sweep, reverse=True) if rate_repeats(sweep[at]) >= least), None)


def sweep_thresholds(stream: Stream, neighbours: Neighbours, at: Callable[[float], Policy]) -> dict[float, Outcome]:
    """Return the outcome by threshold, from the highest down to where half of the requests are answered wrongly."""
    found: dict[float, Outcome] = {}
    for threshold in GRID[::-1].tolist():
        found[threshold] = judge(stream, replay(stream, neighbours, at(threshold)))
        if rate_wrong(found[threshold]) > ENOUGH:
            break
    return found


def weigh_verifier(
    task: Task, bench: Bench, system: System, vectors: Mapping[tuple[str, str], Embeddings]
) -> SecondLook | None:
    """Return the verifier with the weight that the labelled pairs of the chosen half give its word; None: no use."""
    verifier = bench.verifiers[str(task.tuned)]
    rows = dict(zip(task.streams["chosen"].texts, vectors["chosen", system.model], strict=True))
    pairs = [pair for pair in task.pairs if pair[0] in rows and pair[1] in rows]
    texts = [(left, right) for left, right, _ in pairs]
    similarities = np.array([rows[left] @ rows[right] for left, right in texts], dtype=np.float64)
    if system.guard:
        similarities = veto_pairs(similarities, texts)
    labels = np.array([label for _, _, label in pairs], dtype=np.int64)
    adjustment = fit_adjustment(labels, similarities, verifier.score(texts))
    return SecondLook(verifier, adjustment) if adjustment is not None else None


def open_systems(
    task: Task, bench: Bench, vectors: Mapping[tuple[str, str], Embeddings]
) -> dict[str, tuple[str, Callable[[float], Policy]]]:
    """Return, for each system that this task has, whose vectors it searches and its policy by threshold."""
    found: dict[str, tuple[str, Callable[[float], Policy]]] = {}
    for name, system in SYSTEMS.items():
        if ("chosen", system.model) not in vectors or (system.verifier and task.tuned not in bench.verifiers):
            continue
        second = weigh_verifier(task, bench, system, vectors) if system.verifier else None
        if system.verifier and second is None:
            print(f"{task.title}: the verifier tells nothing beyond the cosine", file=sys.stderr)
            continue
        found[name] = system.model, partial(system.policy, second=second)
    return found


def plan_runs(sweeps: Mapping[str, Mapping[float, Outcome]], task: Task, *, peers: bool) -> list[Run]:
    """Return the replays to quote, with thresholds from the chosen half."""
    runs = []
    rules: dict[str, tuple[Rule, float]] = {f"{most:.0%} wrong": (choose_wrong, most) for most in task.wrong}
    rules |= {f"{least:.0%} served": (choose_served, least) for least in task.served}
    matched: dict[str, tuple[Rule, float]] = {
        f"as {peer}": (choose_wrong, rate_wrong(sweeps["base"][own])) for peer, (_, own) in PEERS.items() if task.wrong
    }
    for system, sweep in sweeps.items():
        for point, (rule, level) in (rules | matched).items():
            runs.append(Run(system, point, rule(sweep, level)))
    for peer in PEERS if peers else ():
        runs.append(Run(peer, "own", None))
        runs += [Run(peer, point, rule(sweeps["base"], level)) for point, (rule, level) in rules.items()]
    if peers and len(task.streams["reported"].texts) > 5000:
        runs.append(Run("GPTCache", "own, its limit of 1,000 entries", None, 1000))
    return [run for run in runs if run.threshold is not None or run.point.startswith("own")]


def run_ours(bench: Bench, stream: Stream, vectors: Embeddings, policy: Policy) -> Served:
    """Return what the real cache serves, on SQLite."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        cache = SemanticCache(Recalled(stream.texts, vectors), store=f"sqlite:///{folder}/cache.db", policy=policy)
        served = drive(stream, lambda text: cache.lookup(text).answer, cache.add)
        cache.close()
    return served


def run_peer(bench: Bench, peer: str, stream: Stream, vectors: Embeddings, runs: Sequence[Run]) -> list[Served]:
    """Return what a peer serves in each run, from its own process."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        job = Path(folder) / "job.npz"
        planned = [(str(place), run.threshold, run.limit) for place, run in enumerate(runs)]
        np.savez(job, texts=json.dumps(stream.texts), vectors=vectors, stored=stream.stored, runs=json.dumps(planned))
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PIP_NO_INDEX"), "1")
        environment = {**os.environ, "REDIS_URL": bench.redis, **single}
        command = [str(bench.python), str(HERE / "peers" / f"{PEERS[peer][0]}_stream.py"), str(job), folder]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return [np.array(found[name], dtype=np.int64) for name, _, _ in planned]


def report(outcome: Outcome, weights: Resamples) -> dict[str, Any]:
    """Return the figures of one replay with their intervals."""
    right, wrong, repeats = (part.astype(np.float64) for part in (outcome.right, outcome.wrong, outcome.repeats))
    served = right + wrong
    shares = {
        "right_of_requests": (right, np.ones_like(right)),
        "wrong_of_requests": (wrong, np.ones_like(right)),
        "labelled_wrong_of_requests": (outcome.labelled.astype(np.float64), np.ones_like(right)),
        "wrong_of_served": (wrong, served),
        "right_of_repeats": (right, repeats),
        "wrong_of_new": (wrong * (1 - repeats), 1 - repeats),
    }
    return {
        "served": int(served.sum()),
        "right": int(right.sum()),
        "wrong_labelled": int(outcome.labelled.sum()),
        "wrong_unlabelled": int(outcome.unlabelled.sum()),
        **{
            name: _round(bootstrap(partial(_share, part=part, whole=whole), weights))
            for name, (part, whole) in shares.items()
        },
    }


def _share(weights: NDArray[np.float64], part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    total = float(weights @ whole)
    return float(weights @ part) / total if total else 0.0


def _round(estimate: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in plain(estimate).items() if name != "level"}


def compare(outcome: Outcome, rival: Outcome, weights: Resamples) -> dict[str, Any]:
    """Return ours − the rival's on the same resamples."""
    found = {}
    for name in ("right", "wrong"):
        ours, theirs = (getattr(item, name).astype(np.float64) for item in (outcome, rival))
        whole = outcome.repeats.astype(np.float64) if name == "right" else np.ones_like(ours)
        found[f"{name}_of_{'repeats' if name == 'right' else 'requests'}"] = _round(
            paired_bootstrap(
                partial(_share, part=theirs, whole=whole), partial(_share, part=ours, whole=whole), weights
            )
        )
    return found


def measure(bench: Bench, task: Task) -> dict[str, Any]:
    """Return curves and rows of one task."""
    models = {"base": "base"}
    if task.tuned is not None and task.tuned in bench.models:
        models["tuned"] = task.tuned
    vectors = {
        (half, model): bench.embed(source, stream.texts)
        for half, stream in task.streams.items()
        for model, source in models.items()
    }
    near = {key: find_neighbours(task.streams[key[0]], rows) for key, rows in vectors.items()}
    systems = open_systems(task, bench, vectors)
    sweeps = {
        half: {name: sweep_thresholds(stream, near[half, model], at) for name, (model, at) in systems.items()}
        for half, stream in task.streams.items()
    }
    runs = plan_runs(sweeps["chosen"], task, peers=bench.python is not None)
    stream = task.streams["reported"]
    pure = {run: replay_pure(run, stream, near, systems) for run in runs}
    real = replay_real(bench, runs, stream, vectors, systems)
    outcomes = {run: judge(stream, served) for run, served in real.items()}
    units = stream.units[stream.asked].tolist()
    weights = resample_weights(len(units), groups=units, resamples=RESAMPLES)
    rivals = {run.point: outcome for run, outcome in outcomes.items() if run.system == RIVAL}
    rows = []
    for run, outcome in outcomes.items():
        rival = rivals.get({f"as {RIVAL}": "own"}.get(run.point, run.point))
        rows.append(
            {
                "system": run.system,
                "point": run.point,
                "threshold": run.threshold if run.threshold is not None else PEERS[run.system][1],
                **report(outcome, weights),
                "against_redisvl": compare(outcome, rival, weights) if rival and run.system not in PEERS else None,
                "agrees_with_curve": round(float((real[run] == pure[run]).mean()), 5) if run.limit is None else None,
            }
        )
    write_samples(task, {run: real[run] for run in runs if run.point in {"2% wrong", "own"}})
    return {
        "title": task.title,
        "requests": {half: int(item.asked.sum()) for half, item in task.streams.items()},
        "stored_before": {half: item.stored for half, item in task.streams.items()},
        "repeats": {half: int(item.repeats.sum()) for half, item in task.streams.items()},
        "rows": rows,
        "curves": {name: _curve(sweep) for name, sweep in sweeps["reported"].items()},
    }


def replay_pure(
    run: Run,
    stream: Stream,
    near: Mapping[tuple[str, str], Neighbours],
    systems: Mapping[str, tuple[str, Callable[[float], Policy]]],
) -> Served:
    """Return the replay by the decision alone; a peer serves the nearest entry from its threshold on."""
    model, at = systems.get(run.system, systems["base"])
    threshold = run.threshold if run.threshold is not None else PEERS[run.system][1]
    return replay(stream, near["reported", model], at(threshold))


def replay_real(
    bench: Bench,
    runs: Sequence[Run],
    stream: Stream,
    vectors: Mapping[tuple[str, str], Embeddings],
    systems: Mapping[str, tuple[str, Callable[[float], Policy]]],
) -> dict[Run, Served]:
    """Return the replays through the real caches; each peer in a process of its own, meanwhile ours."""
    found: dict[Run, Served] = {}
    with ThreadPoolExecutor(len(PEERS)) as pool:
        waiting = {}
        for peer in PEERS if bench.python is not None else ():
            theirs = [run for run in runs if run.system == peer]
            waiting[peer] = theirs, pool.submit(run_peer, bench, peer, stream, vectors["reported", "base"], theirs)
        for run in runs:
            if run.system in systems and run.threshold is not None:
                model, at = systems[run.system]
                found[run] = run_ours(bench, stream, vectors["reported", model], at(run.threshold))
        for theirs, future in waiting.values():
            found |= dict(zip(theirs, future.result(), strict=True))
    return {run: found[run] for run in runs}


def _curve(sweep: Mapping[float, Outcome]) -> list[str]:
    """Return, a line a threshold, what CURVE names; as text, so that the result stays short enough to read."""
    return [
        " ".join(
            f"{value:.4f}"
            for value in (
                threshold,
                *(float(part.mean()) for part in (outcome.right, outcome.wrong, outcome.labelled)),
                rate_repeats(outcome),
            )
        )
        for threshold, outcome in sweep.items()
    ]


def write_samples(task: Task, served: Mapping[Run, Served]) -> None:
    """Write wrong answers that nobody labelled, for a person to read; general questions only (see the data's notes)."""
    if task.tuned != "questions" or not task.wrong:
        return
    stream, draw = task.streams["reported"], np.random.default_rng(0)
    path = ROOT / "runs" / "cache_quality_unlabelled.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        for run, answers in served.items():
            places = np.flatnonzero(stream.asked)[judge(stream, answers).unlabelled]
            for place in draw.permutation(places)[:SAMPLES]:
                pair = {"asked": stream.texts[place], "stored": stream.texts[answers[place]]}
                handle.write(json.dumps({"system": run.system, "point": run.point, **pair}) + "\n")


def show(result: Mapping[str, Any]) -> None:
    """Print one table a stream."""
    for stream in result["streams"].values():
        counts = f"{stream['requests']['reported']} requests, {stream['repeats']['reported']} repeats"
        table = Table(title=f"{stream['title']}: {counts}, {stream['stored_before']['reported']} stored before")
        for column in ("point", "system", "cosine", "repeats served rightly", "wrong of requests", "wrong of served"):
            table.add_column(column, justify="left" if column in {"point", "system"} else "right")
        table.add_column("wrong: labelled + not", justify="right")
        for row in sorted(stream["rows"], key=lambda item: item["point"]):
            cells = (_percent(row[name]) for name in ("right_of_repeats", "wrong_of_requests", "wrong_of_served"))
            wrong = f"{row['wrong_labelled']} + {row['wrong_unlabelled']}"
            table.add_row(row["point"], row["system"], f"{row['threshold']:.3f}", *cells, wrong)
        Console(width=150).print(table)


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture: repeats served rightly over wrong answers, a line a system, the peers as points."""
    streams = list(result["streams"].values())
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, (len(streams) + 2) // 2, squeeze=False).ravel()
    for axis, stream in zip(axes, streams, strict=False):
        draw_stream(axis, stream)
    shown = dict(pair for axis in axes for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for axis in axes[len(streams) :]:
        axis.axis("off")
    axes[len(streams)].legend(shown.values(), shown.keys(), frameon=False, loc="center")
    figure.savefig(path, dpi=110)


def draw_stream(axis: Axes, stream: Mapping[str, Any]) -> None:
    """Draw one stream."""
    for name, curve in stream["curves"].items():
        model, *more = name.split(" + ")
        points, style = 100 * np.array([line.split() for line in curve], dtype=np.float64), STYLES[" + ".join(more)]
        axis.plot(points[:, 2], points[:, 4], color=COLOURS[model], linestyle=style, label=name, linewidth=1.3)
    for row in stream["rows"]:
        if row["system"] in PEERS and "limit" not in row["point"]:
            own = row["point"] == "own"
            axis.plot(
                100 * row["wrong_of_requests"]["value"],
                100 * row["right_of_repeats"]["value"],
                {"GPTCache": "o", "redisvl": "s"}[row["system"]],
                color=COLOURS[row["system"]],
                markersize=9 if own else 4,
                fillstyle="full" if own else "none",
                label=f"{row['system']}, {'own threshold' if own else 'chosen thresholds'}",
                linestyle="",
            )
    axis.set(xlabel="wrong answers served, % of requests", ylabel="repeats served rightly, %", ylim=(0, 101))
    axis.set_title(f"{stream['title']} ({stream['requests']['reported']:,} requests)", fontsize=10)
    axis.set_xscale("log")
    axis.set_xlim(0.3, 60)
    ticks = (0.5, 1, 2, 5, 10, 20, 50)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def read_versions(python: str) -> dict[str, str]:
    names = ("gptcache", "redisvl", "faiss-cpu")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of the cache on streams")
    add_tuned = partial(parser.add_argument, nargs="+", metavar=("MODEL", "VERIFIER"), default=[])
    add_tuned("--questions", help="tuned on duplicate_questions/train")
    add_tuned("--medical", help="tuned on the medical log")
    parser.add_argument("--peers", help="a python that has redisvl and gptcache")
    parser.add_argument("--stream", action="append", help="only these streams; then nothing is written")
    options = parser.parse_args()
    given = {"questions": options.questions, "medical": options.medical}
    models = {name: load_encoder(paths[0]) for name, paths in given.items() if paths}
    verifiers = {name: Remembering(OnnxVerifier(paths[1])) for name, paths in given.items() if paths[1:]}
    result: dict[str, Any] = {"machine": describe_machine(), "peers": {}, "curve": CURVE, "streams": {}}
    if options.peers:
        result["peers"] = read_versions(options.peers)
    memory = Path("/dev/shm")  # GPTCache writes its index to a file at every 20th addition
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder, start_redis() as redis:
        bench = Bench({"base": load_encoder(DEMO_MODEL), **models}, verifiers, options.peers, redis, Path(folder))
        for name, task in read_tasks().items():
            if not options.stream or name in options.stream:
                result["streams"][name] = measure(bench, task)
                print(f"{name}: done", file=sys.stderr, flush=True)
    show(result)
    if not options.stream:
        write_result("cache_quality", result)
        draw(result, ROOT / "benchmarks" / "results" / "cache_quality.png")


if __name__ == "__main__":
    main()
