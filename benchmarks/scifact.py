"""SciFact and the finance passages with the untuned MiniLM: does our evaluation give the public figure?

    .venv/bin/pip install -c constraints.txt -e '.[rag,mteb,bench,demo]'
    .venv/bin/python benchmarks/scifact.py     # 10 to 20 minutes on 2 cores; writes benchmarks/results/scifact.json

The public figure is mteb's: nDCG@10 of all-MiniLM-L6-v2 on SciFact is .645. Beside ours stands what mteb itself finds
with the same vectors, through `embedsmith.mteb_tasks`, offline, on the same files. BM25 is a ranker like the encoder;
the table by dimension cuts the vectors of a model that was not trained for it. Intervals: 95%, bootstrap over queries;
p: paired randomisation. Vectors are kept in the work folder, so a second run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, write_result
from embedsmith.artifacts import plain
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.mteb_tasks import make_retrieval_task, run_mteb
from embedsmith.report.retrieval import write_retrieval_report
from embedsmith.retrieval import LexicalRanker, RetrievalTask, measure_retrieval, read_beir, score_task

PUBLIC = {"scifact": 0.645}  # nDCG@10 of all-MiniLM-L6-v2 in mteb's results
DIMENSIONS = (192, 96, 64, 32)
NAME = "all-MiniLM-L6-v2"
CHUNK = 256


class Kept:
    """An encoder whose vectors are kept in a file, by the hash of the text."""

    def __init__(self, encoder: Encoder, path: Path) -> None:
        self.encoder, self.path = encoder, path
        self.known: dict[str, Embeddings] = {}
        if path.is_file():
            with np.load(path) as kept:
                self.known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}
        for start in range(0, len(new), CHUNK):
            part = dict(list(new.items())[start : start + CHUNK])
            self.known |= dict(zip(part, self.encoder.encode(list(part.values())), strict=True))
            print(f"\r{start + len(part)}/{len(new)} texts", end="", flush=True)
        if new:
            print()
            np.savez(self.path, keys=np.array(list(self.known)), vectors=np.stack(list(self.known.values())))
        return np.stack([self.known[key] for key in keys])


def measure(task: RetrievalTask, encoder: Encoder, work: Path) -> dict[str, Any]:
    report = plain(measure_retrieval({NAME: encoder, "BM25": LexicalRanker()}, task, dimensions=DIMENSIONS))
    write_retrieval_report(work / f"{task.name}.html", report)
    made, by_query = make_retrieval_task(task), {}  # mteb rounds means to five digits; its figures by query are whole
    made.task_specific_scores = lambda scores, *_, **__: by_query.update(scores) or {}
    theirs = run_mteb(encoder, [made], name=NAME)[task.name]["test"][0]
    own = score_task(encoder, task)["ndcg@10"]
    gap = max(abs(by_query[query]["ndcg_cut_10"] - value) for query, value in zip(task.queries, own, strict=True))
    names = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "recall_at_100", "map_at_100")
    mteb = {name: theirs[name] for name in names}
    print(task.name, {name: round(own["ndcg@10"]["value"], 4) for name, own in report["metrics"].items()}, mteb)
    return {"report": report, "mteb": mteb, "largest_gap_of_a_query": float(gap), "public": PUBLIC.get(task.name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/scifact"))
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    encoder = Kept(load_encoder(DEMO_MODEL), work / "vectors.npz")
    tasks = [read_beir(data_folder() / name) for name in ("scifact", "finance_retrieval")]
    found = {task.name: measure(task, encoder, work) for task in tasks}
    write_result("scifact", {"machine": describe_machine(), "model": DEMO_MODEL, "tasks": found})


if __name__ == "__main__":
    main()
