"""Retrieval figures: equal to scikit-learn's, honest about what is missing, the same in any order."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score
from typer.testing import CliRunner

from embedsmith.artifacts import plain
from embedsmith.cli import app
from embedsmith.encoder import Embeddings, Encoder, normalize
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError, ModelError
from embedsmith.examples import ScoredPair
from embedsmith.mteb_tasks import make_retrieval_task, make_sts_task, run_mteb
from embedsmith.report.retrieval import write_retrieval_report
from embedsmith.retrieval import (
    EncoderRanker,
    LexicalRanker,
    RetrievalTask,
    Run,
    RunRanker,
    judge_runs,
    measure_retrieval,
    rank_task,
    read_beir,
    read_qrels,
    read_run,
    score_grades,
    score_task,
    write_qrels,
    write_run,
)
from embedsmith.suites import ScoredSet, measure_suite
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
    texts = {name: name for name in "abcde"}
    found = EncoderRanker(Given({name: [1, 0] for name in texts})).rank({"q": "a"}, texts, depth=5)
    assert found.places.tolist() == [[0, 1, 2, 3, 4]]


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


def test_ids_of_a_float_column_are_those_of_the_judgements_and_a_gap_is_no_title(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", scores=[("7", "3", 1)])
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "corpus.jsonl").write_text('{"_id": 3.0, "title": NaN, "text": "freeze"}')
    (folder / "queries.jsonl").write_text('{"_id": 7.0, "text": "freeze my card"}')
    task = read_beir(folder)
    assert (task.documents, task.missing) == ({"3": "freeze"}, 0)
    assert task.queries == {"7": "freeze my card"}


def test_a_beir_folder_is_read_and_what_has_no_figure_is_named(tmp_path: Path) -> None:
    task = read_beir(write_beir(tmp_path / "beir", scores=[("q1", "d1", 2), ("q2", "d9", 1), ("q2", "d2", 0)]))
    assert task.documents == {"d1": "Cards freeze", "d2": "loans"}
    assert task.relevant == {"q1": {"d1": 2}, "q2": {"d9": 1}}
    assert task.missing == 1  # d9, which the corpus does not hold
    report = measure_retrieval({"fake": FakeEncoder()}, task, resamples=50)
    assert report.metrics["fake"]["recall@10"].value == 0.5  # q2 cannot find d9
    assert report.list_notes() == ("1 relevant documents are not in the corpus: they count as not found",)


def test_queries_without_a_figure_are_counted_by_the_reason(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", scores=[("q1", "d1", 1), ("q2", "d2", 0), ("q7", "d1", 1), ("q8", "d1", 0)])
    rows = (folder / "queries.jsonl").read_text() + '\n{"_id": "q3", "text": "of the training split"}\n'
    (folder / "queries.jsonl").write_text(rows)
    task = read_beir(folder)
    assert list(task.queries) == ["q1"]
    assert (task.left_out, task.unjudged, task.unknown) == (("q2",), 1, 1)
    notes = measure_retrieval({"fake": FakeEncoder()}, task, resamples=50).list_notes()
    assert notes == (
        "1 queries have no judgement (such as those of another split): left out",
        "1 judged queries have no relevant document: left out",
        "1 judged queries have no text: left out",
    )


def test_documents_missing_from_the_corpus_count_as_in_trec_eval(tmp_path: Path) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    task, encoder = random_task(3)
    folder = tmp_path / "beir"
    folder.mkdir()
    kept = {name: text for place, (name, text) in enumerate(task.documents.items()) if place % 3}
    for name, texts in (("corpus", kept), ("queries", task.queries)):
        rows = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    write_qrels(folder / "qrels.tsv", task.relevant)
    cut = read_beir(folder)
    assert cut.missing > 0
    found = EncoderRanker(encoder).rank(cut.queries, cut.documents, depth=100)
    run = read_run(write_run(tmp_path / "run", list(cut.queries), list(kept), *found, tag="t"))
    scores = {q: dict(zip(run.documents[q], run.scores[q], strict=True)) for q in cut.queries}
    names = {"ndcg_cut_10": "ndcg@10", "recall_10": "recall@10", "map": "map@100"}
    theirs = pytrec_eval.RelevanceEvaluator(task.relevant, {"ndcg_cut.10", "recall.10", "map"}).evaluate(scores)
    ours = score_task(encoder, cut)
    for measure, name in names.items():
        assert ours[name].tolist() == pytest.approx([theirs[q][measure] for q in task.queries], abs=1e-9)


def write_debate(folder: Path, judged: Sequence[tuple[str, str, int]]) -> Path:
    """A folder whose queries are documents of its corpus, with the same ids, as in ArguAna and Quora."""
    texts = {"a": "tax the rich", "b": "tax the rich more", "c": "cats sleep"}
    folder.mkdir()
    rows = "\n".join(json.dumps({"_id": key, "text": text}) for key, text in texts.items())
    (folder / "corpus.jsonl").write_text(rows)
    (folder / "queries.jsonl").write_text(rows)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels.tsv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("ranker", [FakeEncoder(64), LexicalRanker()])
def test_a_query_does_not_find_itself_unless_it_may(ranker: FakeEncoder | LexicalRanker, tmp_path: Path) -> None:
    folder = write_debate(tmp_path / "debate", [("a", "b", 1), ("b", "a", 1)])
    task = read_beir(folder)
    assert score_task(ranker, task, k=(1, 2))["mrr@2"].tolist() == [1.0, 1.0]
    report = measure_retrieval({"it": ranker}, task, k=(1, 3), dimensions=(), resamples=50)
    assert report.metrics["it"]["ndcg@1"].value == 1.0
    assert "2 queries have the id of a document, which is left out of what they find, as in BEIR" in report.list_notes()
    kept = read_beir(folder, keep_own=True)
    assert score_task(ranker, kept, k=(1, 2))["mrr@2"].tolist() == [0.5, 0.5]
    assert measure_retrieval({"it": ranker}, kept, resamples=50).own == 0


def test_cut_vectors_do_not_find_the_query_itself_either_and_the_depth_stays(tmp_path: Path) -> None:
    task = read_beir(write_debate(tmp_path / "debate", [("a", "b", 1), ("b", "a", 1)]))
    found = rank_task({"it": FakeEncoder(64)}, task, depth=2, dimensions=(16,))["it"]
    for ranked in (found.whole, *found.cut.values()):
        assert ranked.places.shape == (2, 2)
        assert (ranked.places != [[0], [1]]).all()
        assert np.isfinite(ranked.scores).all()


def test_ids_that_both_sides_number_for_themselves_drop_nothing(tmp_path: Path) -> None:
    task = read_beir(write_debate(tmp_path / "own", [("a", "a", 1), ("b", "b", 1)]))
    assert task.keep_own
    assert score_task(LexicalRanker(), task)["mrr@10"].tolist() == [1.0, 1.0]


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no corpus\.jsonl"):
        read_beir(tmp_path)
    with pytest.raises(InputError, match="no query with a relevant document"):
        read_beir(write_beir(tmp_path / "empty", scores=[("q1", "d9", 1)]))
    broken = write_beir(tmp_path / "broken", scores=[("q1", "d1", 1)])
    (broken / "queries.jsonl").write_text('{"id": "q1", "text": "x"}')
    with pytest.raises(InputError, match=r"queries\.jsonl, line 1: no _id"):
        read_beir(broken)
    (broken / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n' * 2)
    with pytest.raises(InputError, match=r"queries\.jsonl, line 2: the id 'q1' again"):
        read_beir(broken)


# --- figures, as trec_eval has them ---------------------------------------------------------------


def judged_runs(chance: np.random.Generator) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Return random judgements (grades −1 to 3) and runs, with equal scores, short runs and queries without any."""
    qrels, runs = {}, {}
    for query in (f"q{n}" for n in range(chance.integers(1, 12))):
        ids = [f"d{n}" for n in range(chance.integers(2, 150))]
        grades = dict(zip(ids, chance.integers(-1, 4, len(ids)).tolist(), strict=True))
        qrels[query] = grades | {ids[0]: 1}
        found = chance.permutation(["x1", "x2", *ids]).tolist()[: chance.integers(0, len(ids) + 2)]
        runs[query] = {document: float(chance.integers(0, 20)) / 7 for document in found}
    return qrels, runs


def write_lines(path: Path, rows: Iterable[Sequence[object]], *, between: str = " ") -> Path:
    path.write_text("".join(between.join(map(str, row)) + "\n" for row in rows))
    return path


def write_files(folder: Path, qrels: dict[str, dict[str, int]], runs: dict[str, dict[str, float]]) -> tuple[Path, Path]:
    lines = [(q, "Q0", d, 1, repr(score), "t") for q, found in runs.items() for d, score in found.items()]
    judged = [(q, 0, d, grade) for q, grades in qrels.items() for d, grade in grades.items()]
    return write_lines(folder / "run", lines), write_lines(folder / "qrels", judged)


@pytest.mark.parametrize("seed", range(25))
def test_figures_of_runs_are_those_of_trec_eval_ties_too(seed: int, tmp_path: Path) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, runs = judged_runs(np.random.default_rng(seed))
    run_file, qrels_file = write_files(tmp_path, qrels, runs)
    if not any(runs.values()):
        pytest.skip("nobody found anything")
    run = read_run(run_file)
    task = judge_runs(read_qrels(qrels_file), [run])
    ours = score_task(RunRanker(run), task, k=(1, 5, 10, 1000))
    names = {f"{metric}.1,5,10,1000": short for metric, short in (("ndcg_cut", "ndcg"), ("recall", "recall"))}
    names |= {"P.1,5,10,1000": "precision"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {*names, "map", "recip_rank"}).evaluate(runs)
    for row, query in enumerate(task.queries):
        found = theirs.get(query) or dict.fromkeys(["map", "recip_rank"], 0.0)
        for measure, short in names.items():
            for k in (1, 5, 10, 1000):
                expected = found.get(f"{measure.split('.')[0]}_{k}", 0.0)
                assert ours[f"{short}@{k}"][row] == pytest.approx(expected, abs=1e-9), (short, k, query)
        assert ours["map@1000"][row] == pytest.approx(found["map"], abs=1e-9)
        assert ours["mrr@1000"][row] == pytest.approx(found["recip_rank"], abs=1e-9)


def test_what_an_encoder_ranks_has_the_same_figures_in_trec_eval_through_a_run_file(tmp_path: Path) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    task, encoder = random_task(5)
    encoder.vectors |= {f"document {n}": encoder.vectors["document 0"] for n in range(1, 9)}  # equal cosines
    ranked = EncoderRanker(encoder).rank(task.queries, task.documents, depth=100)
    path = write_run(tmp_path / "run.gz", list(task.queries), list(task.documents), *ranked, tag="a model")
    again = read_run(path)
    assert again.tag == "a_model"
    assert RunRanker(again).rank(task.queries, task.documents, depth=100).places.tolist() == ranked.places.tolist()
    scores = {q: dict(zip(again.documents[q], again.scores[q], strict=True)) for q in task.queries}
    theirs = pytrec_eval.RelevanceEvaluator(task.relevant, {"ndcg_cut.10", "map"}).evaluate(scores)
    ours = score_task(encoder, task)
    assert ours["ndcg@10"].tolist() == pytest.approx([theirs[q]["ndcg_cut_10"] for q in task.queries], abs=1e-9)
    assert ours["map@100"].tolist() == pytest.approx([theirs[q]["map"] for q in task.queries], abs=1e-9)


def test_average_precision_of_two_of_three_found() -> None:
    found = score_grades(np.array([[1.0, 0, 2]]), [[1, 2, 1]], (3,), 3)
    assert found["map@3"].tolist() == pytest.approx([(1 + 2 / 3) / 3])
    assert found["recall@3"].tolist() == pytest.approx([2 / 3])
    assert found["precision@3"].tolist() == pytest.approx([2 / 3])


# --- TREC files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q1 Q0 d1 1 0.5", "line 2: 5 fields"),
        ("q1 Q0 d1 first 0.5 t", "line 2: the rank 'first'"),
        ("q1 Q0 d1 1 nan t", "line 2: the score 'nan'"),
        ("q1 Q0 d0 2 0.4 t", "line 2: document 'd0' for query 'q1' again"),
    ],
)
def test_bad_lines_of_a_run_are_named(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"q1 Q0 d0 1 0.9 t\n{line}\n")
    with pytest.raises(InputError, match=f"run, {words}"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q1 0 d1 1\nq1 0 d2\n", "line 2: 3 fields"),
        ("q1 0 d1 one\n", "line 1: the grade 'one'"),
        ("q1 0 d1 1\nq1 0 d1 0\n", "line 2: document 'd1' for query 'q1' again"),
        ("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\n", "line 3: 2 fields"),
        ("query-id\tcorpus-id\tscore\nq1\td1\t0.5\n", "line 2: the grade '0.5'"),
    ],
)
def test_bad_lines_of_judgements_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(text)
    with pytest.raises(InputError, match=f"qrels, {words}"):
        read_qrels(tmp_path / "qrels")


def test_judgements_are_written_and_read_again(tmp_path: Path) -> None:
    qrels = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    assert read_qrels(write_qrels(tmp_path / "qrels.gz", qrels)) == qrels


def test_ids_that_a_run_cannot_hold_and_runs_over_another_corpus(tmp_path: Path) -> None:
    places, scores = np.array([[0]]), np.array([[1.0]])
    with pytest.raises(InputError, match="the id 'a b' cannot stand"):
        write_run(tmp_path / "run", ["q"], ["a b"], places, scores, tag="t")
    task = RetrievalTask("t", {"a": "one"}, {"1": "q"}, {"1": {"a": 1}})
    with pytest.raises(InputError, match="names the document 'b'"):
        score_task(RunRanker(Run("t", {"1": ["b"]}, {"1": [1.0]})), task)


# --- rankers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 40])
def test_blocks_of_documents_change_nothing(block: int) -> None:
    task, encoder = random_task(2)
    encoder.vectors |= {f"document {n}": encoder.vectors["document 3"] for n in (11, 25, 38)}
    whole = EncoderRanker(encoder).rank(task.queries, task.documents, depth=9)
    seen: list[tuple[int, int]] = []
    ranker = EncoderRanker(encoder, lambda done, total: seen.append((done, total)), block)
    found = ranker.rank(task.queries, task.documents, depth=9)
    cosines = encoder.encode(list(task.queries.values())) @ encoder.encode(list(task.documents.values())).T
    assert found.places.tolist() == whole.places.tolist()
    np.testing.assert_allclose(found.scores, -np.sort(-cosines, axis=1)[:, :9], atol=1e-6)
    assert seen[-1] == (60, 60)


def test_documents_are_never_all_in_memory_as_vectors() -> None:
    """4,000 documents of 4 MB in vectors at 256 dimensions, ranked in blocks of 100: what is held is far less."""

    class Wide:
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            return normalize(np.array([np.random.default_rng(int(text)).normal(size=256) for text in texts]))

    documents = {f"d{n}": str(n) for n in range(4000)}
    tracemalloc.start()
    EncoderRanker(Wide(), block=100).rank({"q": "1"}, documents, depth=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5e6


def test_bm25_finds_only_what_shares_a_word() -> None:
    pytest.importorskip("bm25s")
    documents = {"a": "the boiler is cold", "b": "a tax on cars", "c": "boilers and pumps"}
    found = LexicalRanker().rank({"1": "boiler", "2": "unheard"}, documents, depth=10)
    assert found.places.tolist() == [[2, 0, -1], [-1, -1, -1]] or found.places.tolist() == [[0, 2, -1], [-1, -1, -1]]
    task = RetrievalTask("t", documents, {"1": "cars", "2": "unheard"}, {"1": {"b": 1}, "2": {"a": 1}})
    report = measure_retrieval({"BM25": LexicalRanker()}, task, resamples=20)
    assert report.metrics["BM25"]["ndcg@10"].value == 0.5
    assert report.unanswered == {"BM25": 1}


def test_vectors_that_are_not_finite_are_refused() -> None:
    class Broken:
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            return np.full((len(texts), 2), np.nan, dtype=np.float32)

    with pytest.raises(ModelError, match="not finite"):
        score_task(Broken(), random_task(0)[0])


# --- comparisons ----------------------------------------------------------------------------------


def test_a_table_by_dimension_is_what_cut_vectors_give() -> None:
    task, encoder = random_task(4)
    report = measure_retrieval({"base": encoder}, task, dimensions=(4, 2), resamples=50)
    assert [(row.encoder, row.dimension) for row in report.dimensions] == [("base", 8), ("base", 4), ("base", 2)]
    short = Given({text: vector[:2] for text, vector in encoder.vectors.items()})
    row = report.dimensions[2]
    expected = float(score_task(short, task)["ndcg@10"].mean())
    assert row.metrics["ndcg@10"].value == pytest.approx(expected)
    assert row.differences["ndcg@10"].value == pytest.approx(expected - report.metrics["base"]["ndcg@10"].value)
    assert not report.dimensions[0].differences
    with pytest.raises(ConfigurationError, match="cut to 9 numbers, where the longest has 8"):
        measure_retrieval({"base": encoder}, task, dimensions=(9,))


def test_p_values_are_corrected_over_the_systems() -> None:
    task, encoder = random_task(1, queries=8)
    perfect = {task.queries[query]: task.documents[next(iter(docs))] for query, docs in task.relevant.items()}
    better = Given(encoder.vectors | {query: encoder.vectors[text] for query, text in perfect.items()})
    report = measure_retrieval({"base": encoder, "one": better, "two": better}, task, resamples=50)
    raw = report.differences["one"]["mrr@10"].p_value
    assert raw == pytest.approx(2 / 2**7)  # seven queries gain, one stays: the two extreme patterns of 128
    assert report.holm["one"]["mrr@10"] == pytest.approx(2 * raw)
    assert report.primary == "ndcg@10"


# --- mteb -----------------------------------------------------------------------------------------

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is not installed")


@needs_mteb
def test_mteb_finds_on_a_local_task_what_we_find() -> None:
    task, encoder = random_task(3)
    made = make_retrieval_task(task)
    kept: dict[str, dict[str, float]] = {}  # mteb rounds means; its figures by query are whole
    made.task_specific_scores = lambda scores, *_, **__: kept.update(scores) or {}
    means = run_mteb(encoder, [made], name="./runs/a model")["random"]["test"][0]
    ours = score_task(encoder, task)
    by_query = [kept[query]["ndcg_cut_10"] for query in task.queries]
    assert ours["ndcg@10"].tolist() == pytest.approx(by_query, abs=1e-6)
    assert means["ndcg_at_10"] == pytest.approx(float(ours["ndcg@10"].mean()), abs=5.1e-6)
    assert means["mrr_at_10"] == pytest.approx(float(ours["mrr@10"].mean()), abs=1e-6)
    assert means["map_at_100"] == pytest.approx(float(ours["map@100"].mean()), abs=5.1e-6)


@needs_mteb
def test_mteb_reads_queries_and_documents_with_their_own_prompts() -> None:
    class Sided(Given):
        def sides(self) -> tuple[Encoder, Encoder]:
            return Given({"q": [1, 0]}), Given({"one": [1, 0], "two": [0, 1]})

    task = RetrievalTask("sides", {"a": "one", "b": "two"}, {"1": "q"}, {"1": {"a": 1}})
    assert run_mteb(Sided({}), [make_retrieval_task(task)])["sides"]["test"][0]["ndcg_at_10"] == 1.0


@needs_mteb
def test_local_graded_pairs_are_a_task_of_mteb() -> None:
    _, encoder = random_task(7)
    pairs = tuple(ScoredPair(a, b, float(n)) for n, (a, b) in enumerate(combinations(list(encoder.vectors)[:8], 2)))
    data = ScoredSet("own-sts", pairs)
    theirs = run_mteb(encoder, [make_sts_task(data)])["own-sts"]["test"][0]["cosine_spearman"]
    assert theirs == pytest.approx(measure_suite({"own": encoder}, [data], resamples=10).means["own"].value, abs=1e-6)


# --- the command line and the page ----------------------------------------------------------------


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    words = str(done.exception) if isinstance(done.exception, EmbedsmithError) else ""
    return done.exit_code, done.stdout, words


def test_a_model_bm25_and_a_run_on_one_folder(tmp_path: Path, tiny_model: Path) -> None:
    folder = write_beir(tmp_path / "beir", scores=[("q1", "d1", 2), ("q2", "d2", 1)])
    run = write_lines(tmp_path / "theirs.trec", [("q1", "Q0", "d2", 1, 0.9, "t"), ("q1", "Q0", "d1", 2, 0.5, "t")])
    out = tmp_path / "out"
    options = ("--bm25", "--run", run, "--matryoshka", "16,8", "--run-out", out, "--report", out / "r.html", "--json")
    code, printed, words = call("evaluate", tiny_model, "--retrieval", folder, *options)
    assert code == 0, words
    found = json.loads(printed)["retrieval"]
    assert list(found["metrics"]) == [str(tiny_model), "BM25", str(run)]
    assert found["metrics"][str(run)]["mrr@10"]["value"] == 0.25  # place 2, and nothing for q2
    assert found["unanswered"][str(run)] == 1
    assert [row["dimension"] for row in found["dimensions"]] == [32, 16, 8]
    assert (out / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "by dimension" in (out / "r.html").read_text()
    own = next(path for path in out.glob("*.trec") if path.name != "BM25.trec" and "theirs" not in path.name)
    code, printed, words = call("evaluate", "--run", own, "--run", run, "--qrels", folder / "qrels/test.tsv", "--json")
    assert code == 0, words
    again = json.loads(printed)["retrieval"]
    assert again["metrics"][str(own)]["ndcg@10"] == found["metrics"][str(tiny_model)]["ndcg@10"]
    code, printed, words = call("evaluate", tiny_model, "--retrieval", folder, "--bm25", "--matryoshka", "8")
    assert code == 0, words
    assert "by dimension" in printed
    assert "p (Holm)" in printed


def test_bm25_that_finds_nothing_for_most_queries_is_a_warning(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", scores=[("q1", "d1", 2), ("q2", "d2", 1)])
    asked = [{"_id": "q1", "text": "Karte sperren"}, {"_id": "q2", "text": "Geld leihen"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    run = write_lines(tmp_path / "theirs.trec", [("q1", "Q0", "d2", 1, 0.9, "t")])
    code, printed, words = call("evaluate", "--retrieval", folder, "--bm25", "--run", run, "--json")
    assert code == 0, words
    notes = json.loads(printed)["retrieval"]["notes"]
    assert [note for note in notes if note.startswith("BM25 finds nothing for 2 of 2 queries: they share no word")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run", "x.trec"), "--run without --retrieval or --qrels"),
        (("model", "--qrels", "q", "--run", "x"), "--qrels with MODEL"),
        (("--qrels", "q"), "--qrels without --run"),
        (("model", "--retrieval", ".", "--k", "0"), "--k '0'"),
        (("model", "--suite", "sts", "--matryoshka", "8"), "--matryoshka without --retrieval"),
        (("--retrieval", "."), "nothing ranks"),
        (("--suite", "sts"), "no model is named"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], words: str) -> None:
    code, _, said = call("evaluate", *arguments)
    assert code == 1  # the exit code is main's; here the error itself comes out
    assert words in said


def test_the_page_escapes_names_and_shows_a_picture(tmp_path: Path) -> None:
    task, encoder = random_task(6)
    report = measure_retrieval({"<b>$x$": encoder, "BM25": LexicalRanker()}, task, resamples=20)
    page, picture = write_retrieval_report(tmp_path / "r.html", plain(report))
    text = page.read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert picture.stat().st_size > 5000
