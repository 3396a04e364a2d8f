"""Does the promise hold? Thresholds calibrated on one half of labelled pairs, judged on the other, 200 times.

    .venv/bin/python benchmarks/calibration_promise.py [--model FOLDER ...]

Halves never separate pairs that share a question. For each δ: in how many splits a threshold is granted, in
how many of these the realised share of wrong answers among those served is at most δ, and the hit rate as a
share of the oracle's (the lowest threshold that keeps δ on the judging half itself). A realised rate has the
noise of its own half, which no promise can take away: beside it stands how often the rate over all pairs,
the best estimate of what the traffic would see, is at most δ. Writes benchmarks/results/calibration_promise.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, write_result
from embedsmith.calibration import calibrate
from embedsmith.errors import CalibrationRefused
from embedsmith.evaluation import labels_of, similarities_of
from embedsmith.examples import LabelledPair, connect, read_examples
from embedsmith.model import DEMO_MODEL, load_encoder

DELTAS = (0.2, 0.15, 0.1, 0.05)
ALPHA = 0.05
SETS = ("duplicate_questions", "medical_pairs")
Labels, Scores = NDArray[np.int64], NDArray[np.float64]


def false_hit_rate(labels: Labels, scores: Scores, threshold: float) -> float:
    served = scores >= threshold
    return float((labels[served] == 0).mean()) if served.any() else 0.0


def oracle_hit_rate(labels: Labels, scores: Scores, delta: float) -> float:
    """Return the share served at the lowest threshold that keeps `delta` on these very pairs."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    rates = (np.cumsum(labels[order] == 0) / np.arange(1, len(scores) + 1))[ends]
    fine = np.flatnonzero(rates <= delta)
    return float((ends[fine[-1]] + 1) / len(scores)) if len(fine) else 0.0


def halves(pairs: list[LabelledPair], splits: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    units = [np.array(places) for places in connect(pairs).values()]
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(units))
        cut = len(order) // 2
        yield tuple(np.concatenate([units[at] for at in part]) for part in (order[:cut], order[cut:]))  # type: ignore[misc]


def judge(pairs: list[LabelledPair], scores: Scores, delta: float, splits: int) -> dict[str, Any]:
    labels = labels_of(pairs)
    realised, overall, shares = [], [], []
    for chosen, other in halves(pairs, splits):
        try:
            threshold = calibrate(labels[chosen], scores[chosen], delta=delta, alpha=ALPHA).threshold
        except CalibrationRefused:
            continue
        realised.append(false_hit_rate(labels[other], scores[other], threshold))
        overall.append(false_hit_rate(labels, scores, threshold))
        best = oracle_hit_rate(labels[other], scores[other], delta)
        shares.append(float((scores[other] >= threshold).mean()) / best if best else 1.0)
    if not realised:
        return {"granted": 0}
    return {
        "granted": len(realised),
        "kept_on_the_other_half": round(float(np.mean(np.array(realised) <= delta)), 3),
        "kept_over_all_pairs": round(float(np.mean(np.array(overall) <= delta)), 3),
        "realised_mean": round(float(np.mean(realised)), 4),
        "hit_rate_of_oracle": round(float(np.median(shares)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The promise of the calibration")
    parser.add_argument("--model", action="append", default=[], help="a further model")
    parser.add_argument("--splits", type=int, default=200)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "splits": options.splits, "alpha": ALPHA, "models": {}}
    for name in (DEMO_MODEL, *options.model):
        encoder = load_encoder(name)
        for data in SETS:
            rows = read_examples(data_folder() / data / "validation.jsonl.gz").examples
            pairs = [row for row in rows if isinstance(row, LabelledPair)]
            scores = similarities_of(encoder, pairs)
            found = {f"{delta}": judge(pairs, scores, delta, options.splits) for delta in DELTAS}
            result["models"].setdefault(name, {})[data] = found
            for delta, item in found.items():
                print(f"{name} {data} δ={delta}: {item}", flush=True)
    write_result("calibration_promise", result)


if __name__ == "__main__":
    main()
