"""How long one short query takes: sentence-transformers against the exported model, in turns, in one process.

    python benchmarks/encode_speed.py [--calls 300] [--threads 2]

Prints median, spread and ratio for fp32 and int8 beside the cosine to sentence-transformers, and writes
benchmarks/results/encode_speed.json. The load of the machine before and after is part of the result.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from common import data_folder, describe_machine, read_rows, write_result
from embedsmith.artifacts import plain
from embedsmith.export import export_model
from embedsmith.metrics import Ranking
from embedsmith.model import DEMO_MODEL, load_network
from embedsmith.runtime import OnnxEncoder, Precision

QUERY = "how do i reset my account password without the old phone number please"
WARM_UP = 30
TURNS = (1, 30)  # calls
QUIET = 0.1  # cores that others may keep busy before the times mean little


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cosine-pairs", type=int, default=1000)
    arguments = parser.parse_args()
    data_folder()  # before the minutes of export
    network = load_network(DEMO_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        precisions: tuple[Precision, ...] = ("fp32", "int8")
        for precision in precisions:
            report = export_model(DEMO_MODEL, Path(folder) / "model", precision=precision)
        encoders = {
            name: OnnxEncoder(Path(folder) / "model", precision=name, threads=arguments.threads) for name in precisions
        }
        load_before = os.getloadavg()
        rounds = {
            f"{name}, turns of {block}": race(network.encode, encoder.encode, arguments.calls, block)
            for name, encoder in encoders.items()
            for block in TURNS
        }
        load_after = os.getloadavg()
        closeness = measure_closeness(network, encoders, arguments.cosine_pairs)
    result = {
        "machine": describe_machine() | {"onnxruntime": metadata.version("onnxruntime")},
        "query": QUERY,
        "tokens": len(network.tokenizer(QUERY)["input_ids"]),
        "calls": arguments.calls,
        "load_before": load_before,
        "load_after": load_after,
        "explained": encoders["int8"].explained,
        "export": report.precisions,
        "rounds": rounds,
        "closeness": closeness,
    }
    for name, figures in rounds.items():
        ours, theirs = figures["onnx_ms"], figures["sentence_transformers_ms"]
        print(
            f"{name}: {ours['median']:.2f} ms [{ours['low']:.2f}, {ours['high']:.2f}] against {theirs['median']:.2f} "
            f"[{theirs['low']:.2f}, {theirs['high']:.2f}]: {figures['ratio']:.2f} times as fast"
            f"{'' if figures['cores_busy_with_others'] < QUIET else ' (not a measurement: the machine was busy)'}"
        )
    for name, found in closeness.items():
        print(f"{name}: cosine {found['mean_cosine']:.5f}, lowest {found['lowest_cosine']:.5f}")
    print(f"load average {load_before[0]:.2f} before, {load_after[0]:.2f} after, on {os.cpu_count()} cores")
    write_result("encode_speed", plain(result))


def race(theirs: Callable[[str], Any], ours: Callable[[list[str]], Any], calls: int, block: int) -> dict[str, Any]:
    """Return milliseconds of both for one query, in turns of `block` calls.

    low and high are the 10th and 90th percentile. In turns of one, each finds its weights pushed out of the
    cache by the other; in longer turns each finds its own, as in a server.
    """
    times: tuple[list[float], list[float]] = ([], [])
    both: tuple[Callable[[], object], ...] = (lambda: theirs(QUERY), lambda: ours([QUERY]))
    before, others_before = time.monotonic(), count_others_seconds()
    for turn in range((WARM_UP + calls) // block):
        for place, call in enumerate(both):
            for _ in range(block):
                started = time.perf_counter()
                call()
                if turn * block >= WARM_UP:
                    times[place].append((time.perf_counter() - started) * 1e3)
    others = (count_others_seconds() - others_before) / (time.monotonic() - before)
    spread = [dict(zip(("low", "median", "high"), np.quantile(part, [0.1, 0.5, 0.9]), strict=True)) for part in times]
    return {
        "sentence_transformers_ms": spread[0],
        "onnx_ms": spread[1],
        "calls": len(times[1]),
        "cores_busy_with_others": others,
        "ratio": spread[0]["median"] / spread[1]["median"],
    }


def count_others_seconds() -> float:
    """Return the seconds that all cores have worked for other processes than this one (Linux)."""
    user, nice, system, _, _, interrupts, soft = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    busy = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


def measure_closeness(network: Any, encoders: dict[Precision, OnnxEncoder], pairs: int) -> dict[str, Any]:
    """Return the cosines to sentence-transformers and the average precision of each, on labelled questions."""
    rows = read_rows(data_folder() / "duplicate_questions" / "validation.jsonl.gz")[:pairs]
    texts = [row["a"] for row in rows] + [row["b"] for row in rows]
    labels = np.array([row["label"] for row in rows])

    def rank(vectors: Any) -> float:
        return Ranking(labels, np.einsum("nd,nd->n", vectors[: len(rows)], vectors[len(rows) :])).average_precision()

    exact = network.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    found: dict[str, Any] = {}
    for name, encoder in encoders.items():
        vectors = encoder.encode(texts)
        cosines = np.einsum("nd,nd->n", exact, vectors, dtype=np.float64)
        found[name] = {
            "texts": len(texts),
            "mean_cosine": float(cosines.mean()),
            "lowest_cosine": float(cosines.min()),
            "average_precision": rank(vectors),
            "average_precision_of_sentence_transformers": rank(exact),
        }
    return found


if __name__ == "__main__":
    main()
