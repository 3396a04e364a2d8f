r"""What the verifier gains, and what it costs.

    .venv/bin/python benchmarks/verifier_gain.py --duplicate-questions MODEL VERIFIER --medical-pairs MODEL VERIFIER

MODEL and VERIFIER are what `benchmarks/cache_models.py` trains. A fifth of the labelled pairs (160 at least) weighs
the verifier's word, the others are reported: average precision, and precision when as many pairs are served as
without it, with intervals over questions; for the untuned MiniLM and for the tuned model. Latency: one pair at a
time, one thread, through onnxruntime; "asked" is the share of the pairs for which the verifier is asked at all, at
the threshold that serves half of the duplicates. Writes benchmarks/results/verifier_gain.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

from common import data_folder, describe_machine, write_result
from embedsmith.artifacts import plain
from embedsmith.cache.rules import part_units
from embedsmith.evaluation import labels_of, similarities_of
from embedsmith.examples import LabelledPair, read_examples, units_of
from embedsmith.metrics import Ranking, paired_bootstrap, resample_weights
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.verifier import OnnxVerifier, adjust, fit_adjustment, measure_gain, pairs_of

SETS = ("duplicate_questions", "medical_pairs")
RATES = (0.1, 0.2, 0.3, 0.4)  # shares of the pairs that are served
TIMED = 500


def measure(pairs: list[LabelledPair], model: str, logits: np.ndarray[Any, Any]) -> dict[str, Any]:
    labels, scores, units = labels_of(pairs), similarities_of(load_encoder(model), pairs), units_of(pairs)
    weighed, reported = part_units(units, (max(0.2, 160 / len(pairs)),), seed=0)
    adjustment = fit_adjustment(labels[weighed], scores[weighed], logits[weighed])
    if adjustment is None:
        return {"weight": None}
    moved = adjust(scores, logits, adjustment)
    truth, groups = labels[reported], [units[place] for place in reported]
    rankings = [Ranking(truth, found[reported]) for found in (scores, moved, logits)]
    draws = resample_weights(len(reported), groups=groups, resamples=1000)
    served = np.sort(scores[reported][truth == 1])[len(truth[truth == 1]) // 2]
    return {
        "weight": adjustment.weight,
        "reach": adjustment.reach,
        "average_precision": {
            name: ranking.average_precision()
            for name, ranking in zip(("cosine", "with verifier", "verifier alone"), rankings, strict=True)
        },
        "difference": plain(paired_bootstrap(rankings[0].average_precision, rankings[1].average_precision, draws)),
        "precision": [
            plain(measure_gain(truth, scores[reported], moved[reported], groups=groups, hit_rate=rate, resamples=1000))
            for rate in RATES
        ],
        "asked": float((np.abs(scores[reported] - served) <= adjustment.reach).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The verifier")
    for data in SETS:
        parser.add_argument(f"--{data.replace('_', '-')}", nargs=2, metavar=("MODEL", "VERIFIER"))
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "sets": {}}
    for data in SETS:
        if getattr(options, data) is None:
            continue
        model, folder = getattr(options, data)
        verifier = OnnxVerifier(folder)
        rows = read_examples(data_folder() / data / "validation.jsonl.gz").examples
        pairs = [row for row in rows if isinstance(row, LabelledPair)]
        logits = verifier.score(pairs_of(pairs))
        found = {name: measure(pairs, spec, logits) for name, spec in (("base", DEMO_MODEL), ("tuned", model))}
        seconds = []
        for pair in pairs_of(pairs)[:TIMED]:
            began = time.perf_counter()
            verifier.score([pair])
            seconds.append(time.perf_counter() - began)
        latency = {f"p{share}": round(1000 * float(np.percentile(seconds, share)), 2) for share in (50, 99)}
        result["sets"][data] = found | {"precision": verifier.precision, "milliseconds_a_pair": latency}
        for name, item in found.items():
            print(data, name, {key: item[key] for key in ("average_precision", "difference", "asked") if key in item})
            for gain in item.get("precision", []):
                change = gain["difference"]
                told = f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
                print(f"  {gain['hit_rate']:.0%} served: precision {gain['before']:.4f} -> {gain['after']:.4f} {told}")
        print(data, "milliseconds a pair, one thread:", latency)
    write_result("verifier_gain", result)


if __name__ == "__main__":
    main()
