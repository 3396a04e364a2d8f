r"""Does the promise hold? Thresholds calibrated on one half of labelled pairs, judged on the other, 200 times.

    .venv/bin/python benchmarks/calibration_promise.py \
        --duplicate-questions MODEL VERIFIER --medical-pairs MODEL VERIFIER

MODEL and VERIFIER (if any) are what `benchmarks/cache_models.py` trains. Halves never separate pairs that share a
question.
For each δ: in how many splits a threshold is granted, in how many of these the realised share of wrong answers
among those served is at most δ, and the hit rate as a share of the oracle's (the lowest threshold that keeps δ on
the judging half itself). Two promises: for the next answers (`traffic`: as many pairs as the judging half has),
which is what the realised rate tests; and for the long run, whose realised rate has the noise of its own half on
top: there, "over all pairs", the best estimate of what the traffic would see, is the fair judge.
Writes benchmarks/results/calibration_promise.json.
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
from embedsmith.cache.rules import choose_from_scores
from embedsmith.errors import CalibrationRefused
from embedsmith.evaluation import labels_of, similarities_of
from embedsmith.examples import LabelledPair, connect, read_examples, units_of
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.verifier import Adjustment, OnnxVerifier, adjust, pairs_of

DELTAS = (0.2, 0.15, 0.1, 0.05)
ALPHA = 0.05
SETS = ("duplicate_questions", "medical_pairs")
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]


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
        chosen, other = (np.concatenate([units[at] for at in part]) for part in (order[:cut], order[cut:]))
        yield chosen, other


def judge(
    pairs: list[LabelledPair], scores: Scores, logits: Scores | None, delta: float, splits: int, *, long_run: bool
) -> dict[str, Any]:
    labels, units = labels_of(pairs), units_of(pairs)
    realised, overall, shares, verified = [], [], [], 0
    for seed, (chosen, other) in enumerate(halves(pairs, splits)):
        try:
            found = choose_from_scores(
                labels[chosen],
                scores[chosen],
                logits[chosen] if logits is not None else None,
                [units[place] for place in chosen],
                promise={"delta": delta, "alpha": ALPHA, "traffic": None if long_run else len(other)},
                verifier="verifier",
                seed=seed,
            ).calibration
        except CalibrationRefused:
            continue
        moved = adjust(scores, logits, Adjustment(found.weight)) if logits is not None and found.verifier else scores
        verified += bool(found.verifier)
        realised.append(false_hit_rate(labels[other], moved[other], found.threshold))
        overall.append(false_hit_rate(labels, moved, found.threshold))
        best = oracle_hit_rate(labels[other], moved[other], delta)
        shares.append(float((moved[other] >= found.threshold).mean()) / best if best else 1.0)
    if not realised:
        return {"granted": 0}
    return {
        "granted": len(realised),
        "with_verifier": verified,
        "kept_on_the_other_half": round(float(np.mean(np.array(realised) <= delta)), 3),
        "kept_over_all_pairs": round(float(np.mean(np.array(overall) <= delta)), 3),
        "realised_mean": round(float(np.mean(realised)), 4),
        "hit_rate_of_oracle": round(float(np.median(shares)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The promise of the calibration")
    for data in SETS:
        told = f"MODEL, or MODEL VERIFIER, for {data}"
        parser.add_argument(f"--{data.replace('_', '-')}", nargs="+", metavar="FOLDER", help=told)
    parser.add_argument("--splits", type=int, default=200)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "splits": options.splits, "alpha": ALPHA, "systems": {}}
    for data in SETS:
        pairs = list(read_examples(data_folder() / data / "validation.jsonl.gz", kind=LabelledPair).examples)
        for name, scores, logits in systems(pairs, getattr(options, data)):
            for long_run in (False, True):
                key = f"{name}, {'long run' if long_run else 'next answers'}"
                found = {
                    f"{delta}": judge(pairs, scores, logits, delta, options.splits, long_run=long_run)
                    for delta in DELTAS
                }
                result["systems"].setdefault(data, {})[key] = found
                for delta, item in found.items():
                    print(f"{data} {key} δ={delta}: {item}", flush=True)
    write_result("calibration_promise", result)


def systems(pairs: list[LabelledPair], tuned: list[str] | None) -> Iterator[tuple[str, Scores, Scores | None]]:
    """Yield (name, cosines, logits) of the base, and of the tuned model without and with its verifier."""
    yield "base", similarities_of(load_encoder(DEMO_MODEL), pairs), None
    if tuned is None:
        return
    model, *verifiers = tuned
    scores = similarities_of(load_encoder(model), pairs)
    yield "tuned", scores, None
    for verifier in verifiers:
        yield "tuned with verifier", scores, OnnxVerifier(verifier).score(pairs_of(pairs))


if __name__ == "__main__":
    main()
