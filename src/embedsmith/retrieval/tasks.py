"""What is asked, what is searched, and what is relevant: BEIR folders, or TREC judgements alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedsmith.errors import InputError
from embedsmith.retrieval.trec import Qrels, Run, read_qrels
from embedsmith.tables import read_rows


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and what is relevant.

    Attributes:
        documents, queries: text by id; a document's title stands before its text. "" where only ids are known.
        relevant: by query: grade by document id, higher is better; 0 and below is not relevant.
        left_out: queries without a relevant document in the corpus; they have no figure.
        missing: judgements "relevant" of documents that the corpus does not hold; they count nowhere.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevant: Qrels
    left_out: tuple[str, ...] = ()
    missing: int = 0


def read_beir(folder: Path | str, *, split: str = "test") -> RetrievalTask:
    """Return the task of a BEIR folder: corpus and queries (.jsonl), qrels/SPLIT.tsv or qrels.tsv; .gz too.

    Raises:
        InputError: a file is missing, a row has other columns or an id for the second time, or no query has a
            relevant document.
    """
    folder = Path(folder)
    documents = _read_texts(_find(folder, ("corpus.jsonl",)))
    queries = _read_texts(_find(folder, ("queries.jsonl",)))
    judged = read_qrels(_find(folder, (f"qrels/{split}.tsv", "qrels.tsv")))
    relevant, missing = _keep_known(judged, queries, documents)
    if not relevant:
        raise InputError(f"{folder} has no query with a relevant document", expected="qrels that fit the corpus")
    asked = {query: text for query, text in queries.items() if query in relevant}
    left_out = tuple(sorted(queries.keys() - asked.keys()))
    ordered = {query: relevant[query] for query in asked}
    return RetrievalTask(folder.resolve().name, documents, asked, ordered, left_out, missing)


def _keep_known(
    judged: Qrels, queries: Mapping[str, str], documents: Mapping[str, str]
) -> tuple[dict[str, dict[str, int]], int]:
    """Return the relevant documents of each query that both sides know, and how many the corpus does not hold."""
    relevant: dict[str, dict[str, int]] = {}
    missing = 0
    for query, grades in judged.items():
        good = {document: grade for document, grade in grades.items() if grade > 0}
        known = {document: grade for document, grade in good.items() if document in documents}
        missing += len(good) - len(known)
        if known and query in queries:
            relevant[query] = known
    return relevant, missing


def judge_runs(qrels: Qrels, runs: Iterable[Run], *, name: str = "qrels") -> RetrievalTask:
    """Return the task that judgements alone make: the documents are those of the judgements and of the runs.

    Raises:
        InputError: no query has a relevant document.
    """
    relevant = {query: dict(grades) for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    if not relevant:
        raise InputError(f"{name} has no query with a relevant document", expected="a grade above 0")
    ids = dict.fromkeys(document for grades in qrels.values() for document in grades)
    for run in runs:
        ids |= dict.fromkeys(document for found in run.documents.values() for document in found)
    left_out = tuple(sorted(qrels.keys() - relevant.keys()))
    return RetrievalTask(name, dict.fromkeys(ids, ""), dict.fromkeys(relevant, ""), relevant, left_out)


def _find(folder: Path, names: Sequence[str]) -> Path:
    found = [folder / f"{name}{end}" for name in names for end in ("", ".gz") if (folder / f"{name}{end}").is_file()]
    if not found:
        raise InputError(f"{folder} has no {' or '.join(names)}", expected="a BEIR folder", action="check the path")
    return found[0]


def _read_texts(path: Path) -> dict[str, str]:
    """Return text by id; a title stands before its text."""
    texts: dict[str, str] = {}
    for line, row in read_rows(path):
        missing = [column for column in ("_id", "text") if row.get(column) is None]
        if missing:
            raise InputError(f"{path}, line {line}: no {', '.join(missing)}", expected="_id, text")
        key = str(row["_id"])
        if key in texts:
            raise InputError(f"{path}, line {line}: the id {key!r} again", expected="each id once")
        texts[key] = " ".join(part for part in (str(row.get("title") or ""), str(row["text"])) if part)
    return texts
