"""Wrong answers served on traps against true repeats served, with and without guard and verifier.

    .venv/bin/python benchmarks/cache_traps.py [--model FOLDER [--verifier FOLDER]]

The cache holds the second text of each pair; the first is asked. A trap (label 0) that is served is a wrong
answer, a paraphrase (label 1) that is served a true hit. Thresholds are chosen on the "dev" half (to serve
the asked share of its paraphrases), and so is how far the verifier moves a cosine; both are judged on the
"final" half, which chose nothing. Writes
benchmarks/results/cache_traps.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from common import ROOT, describe_machine, write_result
from embedsmith.cache.guard import find_veto, read_framing, read_marks, read_members, view_question
from embedsmith.encoder import pair_similarities
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.verifier import OnnxVerifier, adjust, fit_adjustment

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
Row = dict[str, Any]


def read_half(half: str) -> list[Row]:
    lines = (ROOT / "benchmarks" / "traps" / "traps.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["half"] == half]


def score(rows: list[Row], similarities: NDArray[np.float64], vetoed: NDArray[np.bool_], threshold: float) -> Row:
    served = (similarities >= threshold) & ~vetoed
    labels = np.array([row["label"] for row in rows], dtype=bool)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for row, hit in zip(rows, served.tolist(), strict=True):
        by_kind[f"{'paraphrase' if row['label'] else 'trap'}: {row['kind']}"].append(hit)
    return {
        "threshold": round(threshold, 4),
        "wrong_served": round(float(served[~labels].mean()), 4),
        "true_served": round(float(served[labels].mean()), 4),
        "by_kind": {kind: f"{sum(hits)}/{len(hits)}" for kind, hits in sorted(by_kind.items())},
    }


def choose_threshold(
    rows: list[Row], similarities: NDArray[np.float64], vetoed: NDArray[np.bool_], share: float
) -> float | None:
    """Return the highest threshold that serves `share` of the paraphrases, None where the guard leaves fewer."""
    labels = np.array([row["label"] for row in rows], dtype=bool)
    able = np.sort(similarities[labels & ~vetoed])[::-1]
    wanted = int(np.ceil(share * labels.sum()))
    return float(able[wanted - 1]) if wanted <= len(able) else None


def systems(
    halves: dict[str, list[Row]], cosines: dict[str, NDArray[np.float64]], verifier: OnnxVerifier | None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the scores of each half without a verifier, and as one moves them that is weighed on "dev"."""
    found = {"": cosines}
    if verifier is None:
        return found
    logits = {half: verifier.score([(row["text1"], row["text2"]) for row in rows]) for half, rows in halves.items()}
    labels = np.array([row["label"] for row in halves["dev"]], dtype=np.int64)
    adjustment = fit_adjustment(labels, cosines["dev"], logits["dev"])
    if adjustment is None:
        print("the verifier tells nothing beyond the cosine on the dev half")
        return found
    found[", verifier"] = {half: adjust(cosines[half], logits[half], adjustment) for half in halves}
    return found


def judge(
    halves: dict[str, list[Row]], scores: dict[str, NDArray[np.float64]], masks: dict[str, NDArray[np.bool_]], told: str
) -> Row:
    table: Row = {}
    for share in SHARES:
        threshold = choose_threshold(halves["dev"], scores["dev"], masks["dev"], share)
        if threshold is None:
            table[f"{share:.0%}"] = "the guard leaves fewer"
            continue
        scored = score(halves["final"], scores["final"], masks["final"], threshold)
        table[f"{share:.0%}"] = scored
        wrong, true = scored["wrong_served"], scored["true_served"]
        print(f"{told:50} {share:.0%} of dev: wrong {wrong:.1%}, true {true:.1%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Traps")
    parser.add_argument("--model", action="append", default=[], help="a further model")
    parser.add_argument("--verifier", help="the folder of a verifier, used with every model")
    options = parser.parse_args()
    halves = {half: read_half(half) for half in ("dev", "final")}
    vetoes = {half: [find_veto(row["text1"], row["text2"]) for row in rows] for half, rows in halves.items()}
    for cached in (view_question, read_members, read_framing, read_marks):
        cached.cache_clear()
    began = time.perf_counter()
    for row in halves["dev"]:
        find_veto(row["text1"], row["text2"])
    microseconds = 1e6 * (time.perf_counter() - began) / len(halves["dev"])
    result: Row = {
        "machine": describe_machine(),
        "pairs": {half: len(rows) for half, rows in halves.items()},
        "guard_microseconds": round(microseconds, 1),
        "models": {},
    }
    verifier = OnnxVerifier(options.verifier) if options.verifier else None
    for name in (DEMO_MODEL, *options.model):
        encoder = load_encoder(name)
        found = {
            half: pair_similarities(encoder, [row["text1"] for row in rows], [row["text2"] for row in rows])
            for half, rows in halves.items()
        }
        table: Row = {}
        for system, scores in systems(halves, found, verifier).items():
            for guard in (False, True):
                masks = {half: np.array([guard and veto is not None for veto in vetoes[half]]) for half in halves}
                rules = f"{'guard' if guard else 'no guard'}{system}"
                table[rules] = judge(halves, scores, masks, f"{name:28} {rules}")
        result["models"][name] = table
    print(f"guard: {result['guard_microseconds']} µs a pair, uncached")
    write_result("cache_traps", result)


if __name__ == "__main__":
    main()
