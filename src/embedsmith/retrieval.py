"""Retrieval: a BEIR folder and encoders in; nDCG@k, MRR@k and recall@k with intervals and paired differences out.

What it does not do yet: TREC run files, MAP, BM25 beside the encoders, Matryoshka tables (issue 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings, Encoder
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.metrics import Difference, Estimate, difference, estimate, resample_weights
from embedsmith.tables import read_rows

DEPTH = 100  # documents of a ranking that are looked at
BLOCK = 256  # queries compared with the corpus at once
RESAMPLES = 2000

Index = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and what is relevant.

    Attributes:
        documents, queries: text by id; a document's title stands before its text.
        relevant: by query: grade by document id, higher is better, 0 is not relevant.
        left_out: queries without a relevant document in the corpus; they have no figure.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """Encoders side by side on one task; metrics by encoder and name, such as ndcg@10."""

    task: str
    queries: int
    documents: int
    baseline: str
    metrics: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Difference]]


@runtime_checkable
class Prompted(Protocol):
    """An encoder that reads queries and documents with prompts of their own."""

    def sides(self) -> tuple[Encoder, Encoder]:
        """Return the encoder of queries and that of documents."""
        ...


def read_beir(folder: Path | str, *, split: str = "test") -> RetrievalTask:
    """Return the task of a BEIR folder: corpus and queries (.jsonl), qrels/SPLIT.tsv or qrels.tsv; .gz too.

    Raises:
        InputError: a file is missing or has other columns, or no query has a relevant document.
    """
    folder = Path(folder)
    documents = {
        str(row["_id"]): " ".join(part for part in (row.get("title") or "", row["text"]) if part)
        for row in _rows(folder, ("corpus.jsonl",), ("_id", "text"))
    }
    queries = {str(row["_id"]): str(row["text"]) for row in _rows(folder, ("queries.jsonl",), ("_id", "text"))}
    relevant: dict[str, dict[str, int]] = {}
    places = (f"qrels/{split}.tsv", "qrels.tsv")
    for row in _rows(folder, places, ("query-id", "corpus-id", "score")):
        if int(row["score"]) > 0 and str(row["corpus-id"]) in documents:
            relevant.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    asked = {query: text for query, text in queries.items() if query in relevant}
    if not asked:
        raise InputError(f"{folder} has no query with a relevant document", expected="qrels that fit the corpus")
    left_out = tuple(sorted(queries.keys() - asked.keys()))
    return RetrievalTask(folder.name, documents, asked, {query: relevant[query] for query in asked}, left_out)


def _rows(folder: Path, names: Sequence[str], columns: Sequence[str]) -> list[Mapping[str, str]]:
    found = [folder / f"{name}{end}" for name in names for end in ("", ".gz") if (folder / f"{name}{end}").is_file()]
    if not found:
        raise InputError(f"{folder} has no {' or '.join(names)}", expected="a BEIR folder", action="check the path")
    rows: list[Mapping[str, str]] = []
    for line, row in read_rows(found[0]):
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise InputError(f"{found[0]}, line {line}: no {', '.join(missing)}", expected=", ".join(columns))
        rows.append(row)
    return rows


def measure_retrieval(
    encoders: Mapping[str, Encoder],
    task: RetrievalTask,
    *,
    baseline: str | None = None,
    k: int = 10,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RetrievalReport:
    """Return nDCG@k, MRR@k and recall@DEPTH of each encoder, means over queries; intervals resample queries.

    An encoder that has prompts for queries and documents reads both with their own.

    Raises:
        ConfigurationError: the baseline is none of the encoders.
    """
    base = baseline if baseline is not None else next(iter(encoders))
    if base not in encoders:
        raise ConfigurationError(f"the baseline {base!r} is not compared", expected=f"one of {', '.join(encoders)}")
    values = {name: score_task(encoder, task, k=k) for name, encoder in encoders.items()}
    weights = resample_weights(len(task.queries), resamples=resamples, seed=seed)
    draws = {name: {metric: _means(own, weights) for metric, own in found.items()} for name, found in values.items()}
    metrics = {
        name: {metric: estimate(float(own.mean()), draws[name][metric]) for metric, own in found.items()}
        for name, found in values.items()
    }
    differences = {
        name: {
            metric: difference(
                metrics[name][metric].value - metrics[base][metric].value, draws[name][metric] - draws[base][metric]
            )
            for metric in metrics[name]
        }
        for name in encoders
        if name != base
    }
    return RetrievalReport(task.name, len(task.queries), len(task.documents), base, metrics, differences)


def _means(values: Values, weights: NDArray[np.float64]) -> Values:
    return np.asarray(weights @ values / weights.sum(axis=1), dtype=np.float64)


def score_task(encoder: Encoder, task: RetrievalTask, *, k: int = 10) -> dict[str, Values]:
    """Return each metric's value for each query, (queries,), by name."""
    for_queries, for_documents = encoder.sides() if isinstance(encoder, Prompted) else (encoder, encoder)
    ids = list(task.documents)
    order = rank(for_queries.encode(list(task.queries.values())), for_documents.encode(list(task.documents.values())))
    grades = np.zeros(order.shape)
    ideal: list[Sequence[int]] = []
    for place, query in enumerate(task.queries):
        known = task.relevant[query]
        grades[place] = [known.get(ids[document], 0) for document in order[place].tolist()]
        ideal.append(sorted(known.values(), reverse=True))
    return {
        f"ndcg@{k}": _ndcg(grades, ideal, k),
        f"mrr@{k}": _mrr(grades, k),
        f"recall@{DEPTH}": (grades > 0).sum(axis=1) / np.array([len(own) for own in ideal]),
    }


def rank(queries: Embeddings, documents: Embeddings, *, depth: int = DEPTH) -> Index:
    """Return the documents nearest to each query, (queries, min(depth, documents)), nearest first; ties by place."""
    depth = min(depth, len(documents))
    found = np.empty((len(queries), depth), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ documents.T
        found[start : start + BLOCK] = np.argsort(-cosines, axis=1, kind="stable")[:, :depth]
    return found


def _ndcg(grades: Values, ideal: Sequence[Sequence[int]], k: int) -> Values:
    """Return nDCG@k as trec_eval has it: Σ grade / log₂(place + 1), over the same sum of the best order.

    One relevant document at place 3: (1 / log₂ 4) / (1 / log₂ 2) = 0.5 (Järvelin & Kekäläinen 2002).
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gained = grades[:, :k] @ discounts[: grades[:, :k].shape[1]]
    best = np.array([float(np.dot(own[:k], discounts[: len(own[:k])])) for own in ideal])
    return np.asarray(gained / best, dtype=np.float64)


def _mrr(grades: Values, k: int) -> Values:
    """Return 1 / place of the first relevant document among k, 0 where there is none."""
    hits = grades[:, :k] > 0
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)
