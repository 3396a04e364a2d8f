"""Retrieval figures: equal to scikit-learn's, honest about what is missing, the same in any order."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from embedsmith.encoder import Embeddings, Encoder, normalize
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.retrieval import RetrievalTask, measure_retrieval, rank, read_beir, score_task
from embedsmith.testing import FakeEncoder


class Given:
    """An encoder that looks vectors up."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self.vectors = vectors

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return normalize(np.array([self.vectors[text] for text in texts]))


def random_task(seed: int, *, queries: int = 20, documents: int = 40) -> tuple[RetrievalTask, Given]:
    chance = np.random.default_rng(seed)
    texts = {f"d{n}": f"document {n}" for n in range(documents)}
    asked = {f"q{n}": f"query {n}" for n in range(queries)}
    relevant = {
        query: {f"d{n}": int(chance.integers(1, 4)) for n in chance.permutation(documents)[:3].tolist()}
        for query in asked
    }
    vectors = {text: chance.normal(size=8).tolist() for text in (*texts.values(), *asked.values())}
    return RetrievalTask("random", texts, asked, relevant), Given(vectors)


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_equals_scikit_learns(seed: int) -> None:
    task, encoder = random_task(seed)
    truth = np.array([[task.relevant[q].get(d, 0) for d in task.documents] for q in task.queries])
    cosines = encoder.encode(list(task.queries.values())) @ encoder.encode(list(task.documents.values())).T
    reference = [ndcg_score(truth[[row]], cosines[[row]], k=10) for row in range(len(truth))]
    np.testing.assert_allclose(score_task(encoder, task)["ndcg@10"], reference, atol=1e-9)


def test_one_relevant_document_at_place_three() -> None:
    documents = {"a": "one", "b": "two", "c": "three"}
    encoder = Given({"q": [1, 0], "one": [1, 0], "two": [1, 0.1], "three": [1, 0.5]})
    found = score_task(encoder, RetrievalTask("t", documents, {"1": "q"}, {"1": {"c": 1}}))
    assert found["ndcg@10"].tolist() == [0.5]
    assert found["mrr@10"].tolist() == pytest.approx([1 / 3])
    assert found["recall@100"].tolist() == [1.0]


def test_ties_stay_in_the_order_of_the_documents() -> None:
    same = np.ones((5, 2), dtype=np.float32)
    assert rank(same[:1], same).tolist() == [[0, 1, 2, 3, 4]]


def test_a_model_against_itself_differs_by_nothing_and_a_better_one_by_its_gain() -> None:
    task, encoder = random_task(1)
    perfect = {task.queries[query]: task.documents[next(iter(docs))] for query, docs in task.relevant.items()}
    report = measure_retrieval({"one": encoder, "same": encoder}, task, resamples=200)
    assert report.differences["same"]["ndcg@10"].value == 0
    better = Given(encoder.vectors | {query: encoder.vectors[text] for query, text in perfect.items()})
    report = measure_retrieval({"base": encoder, "better": better}, task, resamples=200)
    assert report.differences["better"]["mrr@10"].low > 0
    with pytest.raises(ConfigurationError, match="'none' is not compared"):
        measure_retrieval({"base": encoder}, task, baseline="none")


def test_queries_and_documents_are_read_with_prompts_of_their_own() -> None:
    class Sided(Given):
        def sides(self) -> tuple[Encoder, Encoder]:
            return Given({"q": [1, 0]}), Given({"one": [1, 0], "two": [0, 1]})

    task = RetrievalTask("t", {"a": "one", "b": "two"}, {"1": "q"}, {"1": {"a": 1}})
    assert score_task(Sided({}), task)["ndcg@10"].tolist() == [1.0]


def write_beir(folder: Path, *, scores: Sequence[tuple[str, str, int]]) -> Path:
    folder.mkdir()
    rows = [{"_id": "d1", "title": "Cards", "text": "freeze"}, {"_id": "d2", "text": "loans"}]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as handle:
        handle.write("\n".join(map(json.dumps, rows)))
    asked = [{"_id": "q1", "text": "freeze my card"}, {"_id": "q2", "text": "lend me money"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in scores)]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return folder


def test_a_beir_folder_is_read_and_what_has_no_figure_is_named(tmp_path: Path) -> None:
    task = read_beir(write_beir(tmp_path / "beir", scores=[("q1", "d1", 2), ("q2", "d9", 1), ("q2", "d2", 0)]))
    assert task.documents == {"d1": "Cards freeze", "d2": "loans"}
    assert task.relevant == {"q1": {"d1": 2}}
    assert task.left_out == ("q2",)
    assert measure_retrieval({"fake": FakeEncoder()}, task, resamples=50).queries == 1


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no corpus\.jsonl"):
        read_beir(tmp_path)
    with pytest.raises(InputError, match="no query with a relevant document"):
        read_beir(write_beir(tmp_path / "empty", scores=[("q1", "d9", 1)]))
    broken = write_beir(tmp_path / "broken", scores=[("q1", "d1", 1)])
    (broken / "queries.jsonl").write_text('{"id": "q1", "text": "x"}')
    with pytest.raises(InputError, match=r"queries\.jsonl, line 1: no _id"):
        read_beir(broken)
