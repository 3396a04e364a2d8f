"""Training speed against sentence-transformers' Trainer: same data, base, batch and loss, in turn.

    .venv/bin/pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python benchmarks/training_speed.py            # writes benchmarks/results/training_speed.json

Real tokens per second (padding does not count) over `--steps` steps of 64 question pairs with online
contrastive loss, after warm-up steps. Peers: the Trainer as it is by default (fp32), and with bf16.
Ours runs twice: as it is by default (no dropout) and with the base's own dropout, as the peers train.
Every figure is the median over `--rounds` rounds in which all take turns; the ratio is taken within a
round. Beside it: the average precision that each trained model reaches on the same validation pairs, and
the matrix-product flop/s reached, as a share of the measured bf16 GEMM peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, read_rows, write_result
from embedsmith.examples import LabelledPair

BATCH = 64
WARM = 3
JUDGED = 2000  # validation pairs
FLOPS_PER_TOKEN = 6 * 10_617_216  # forward and backward of MiniLM-L6's matrices (embeddings are look-ups)


def load_pairs(count: int) -> list[LabelledPair]:
    rows = read_rows(data_folder() / "duplicate_questions/train.jsonl.gz")[:count]
    return [LabelledPair(row["a"], row["b"], row["label"], group=str(index)) for index, row in enumerate(rows)]


def count_tokens(pairs: Sequence[LabelledPair], steps: slice) -> int:
    from embedsmith.model import DEMO_MODEL, load_network, tokenize_for

    used = pairs[steps.start * BATCH : steps.stop * BATCH]
    texts = [text for pair in used for text in (pair.sentence1, pair.sentence2)]
    return int(tokenize_for(load_network(DEMO_MODEL), texts).lengths.sum())


@dataclass(frozen=True)
class Figures:
    """What one training run showed."""

    tokens_per_second: float
    average_precision: float


def judge(network: Any) -> float:
    """Return the average precision on validation pairs that no run trains on."""
    from embedsmith.metrics import Ranking

    rows = read_rows(data_folder() / "duplicate_questions/validation.jsonl.gz")[:JUDGED]
    left, right = (network.encode([row[side] for row in rows], normalize_embeddings=True) for side in "ab")
    return Ranking(np.array([row["label"] for row in rows]), (left * right).sum(axis=1)).average_precision()


def run_ours(steps: int, threads: int, *, dropout: float | None) -> Figures:
    """Return the figures of embedsmith.train."""
    import torch

    from embedsmith.model import DEMO_MODEL, load_network
    from embedsmith.training import Progress, TrainingConfig, train

    torch.set_num_threads(threads)
    stamps: list[float] = []

    def stamp(_: Progress) -> None:
        stamps.append(time.perf_counter())

    pairs = load_pairs((steps + WARM) * BATCH)
    losses = {"online_contrastive": 1.0}
    config = TrainingConfig(losses=losses, batch=BATCH, dropout=dropout, checkpoint_seconds=1e9)
    result = train(pairs, base=DEMO_MODEL, out="/tmp/embedsmith-speed/model", config=config, on_progress=stamp)
    share = (len(stamps) - WARM) / len(stamps)
    speed = result.tokens * share / (stamps[-1] - stamps[WARM - 1])
    return Figures(speed, judge(load_network(result.model)))


def run_peer(steps: int, threads: int, *, bf16: bool) -> Figures:
    """Return the figures of SentenceTransformerTrainer."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import OnlineContrastiveLoss
    from transformers import TrainerCallback

    from embedsmith.model import DEMO_MODEL, resolve_model

    torch.set_num_threads(threads)
    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    pairs = load_pairs((steps + WARM) * BATCH)
    columns = {
        "sentence1": [pair.sentence1 for pair in pairs],
        "sentence2": [pair.sentence2 for pair in pairs],
        "label": [pair.label for pair in pairs],
    }
    model = SentenceTransformer(resolve_model(DEMO_MODEL), device="cpu")
    arguments = Arguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        max_grad_norm=0.5,
        learning_rate=5e-5,
        bf16=bf16,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=OnlineContrastiveLoss(model),
        callbacks=[Clock()],
    ).train()
    share = (len(stamps) - WARM) / len(stamps)
    speed = count_tokens(pairs, slice(0, steps + WARM)) * share / (stamps[-1] - stamps[WARM - 1])
    return Figures(speed, judge(model))


def measure_gemm_peak(threads: int) -> float:
    """Return the best bf16 matrix-product rate of this machine in flop/s, on a shape that suits it."""
    import torch

    torch.set_num_threads(threads)
    size = 2048
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


RUNS: dict[str, Callable[[int, int], Figures]] = {
    "ours": lambda steps, threads: run_ours(steps, threads, dropout=0.0),
    "ours, base's dropout": lambda steps, threads: run_ours(steps, threads, dropout=None),
    "peer fp32": lambda steps, threads: run_peer(steps, threads, bf16=False),
    "peer bf16": lambda steps, threads: run_peer(steps, threads, bf16=True),
}


def _call(name: str, steps: int, threads: int) -> Any:
    return measure_gemm_peak(threads) if name == "gemm" else RUNS[name](steps, threads)


def in_process(name: str, steps: int, threads: int) -> Any:
    """Return the result of `name`, measured in a fresh process so that none inherits another's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, name, steps, threads).result()


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Return median, least and greatest of `values`."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    peak = in_process("gemm", 0, options.threads)
    rounds: list[dict[str, Figures]] = []
    for _ in range(options.rounds):
        rounds.append({name: in_process(name, options.steps, options.threads) for name in RUNS})
        print(json.dumps({name: asdict(item) for name, item in rounds[-1].items()}), flush=True)
    speeds = {name: [item[name].tokens_per_second for item in rounds] for name in RUNS}
    quality = {name: [item[name].average_precision for item in rounds] for name in RUNS}
    result: dict[str, Any] = {"machine": describe_machine(), "threads": options.threads, "batch_pairs": BATCH}
    result["steps"], result["rounds"] = options.steps, options.rounds
    result["tokens_per_second"] = {name: spread(values, 0) for name, values in speeds.items()}
    result["average_precision"] = {name: spread(values, 4) for name, values in quality.items()}
    result["ratios"] = {
        f"{name} / {peer}": spread([a / b for a, b in zip(speeds[name], speeds[peer], strict=True)], 2)
        for name in RUNS
        if name.startswith("ours")
        for peer in RUNS
        if peer.startswith("peer")
    }
    result["bf16_gemm_peak_tflops"] = round(peak / 1e12, 3)
    result["share_of_gemm_peak"] = {
        name: round(statistics.median(values) * FLOPS_PER_TOKEN / peak, 3) for name, values in speeds.items()
    }
    print(json.dumps(result, indent=2))
    write_result("training_speed", result)


if __name__ == "__main__":
    main()
