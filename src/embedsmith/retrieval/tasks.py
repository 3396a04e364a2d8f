"""What is asked, what is searched, and what is relevant: BEIR folders, or TREC judgements alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedsmith.errors import InputError
from embedsmith.retrieval.trec import Qrels, Run, read_qrels
from embedsmith.tables import read_id, read_rows


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries, documents and what is relevant.

    Attributes:
        documents, queries: text by id; a document's title stands before its text. "" where only ids are known.
        relevant: by query: grade by document id, higher is better; 0 and below is not relevant.
            Those that the corpus lacks are among them: nobody finds them, and they count as in trec_eval.
        left_out: queries that are judged, but have no relevant document; they have no figure.
        missing: documents in `relevant`, over all queries, that the corpus does not hold.
        unjudged: queries without any judgement, such as those of another split; they have no figure.
        unknown: queries with a relevant document whose text is nowhere; they have no figure.
        keep_own: whether a query finds the document of its own id. BEIR leaves it out: in ArguAna and Quora the
            queries are documents of the corpus. Set where a document is judged relevant to the query of its own id:
            then the ids were given to both sides independently.
        groups: by query: what it shares with others, such as the passage that all of them were written for. Whole
            groups are resampled then, and turn their signs together. Empty: queries are independent.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevant: Qrels
    left_out: tuple[str, ...] = ()
    missing: int = 0
    unjudged: int = 0
    unknown: int = 0
    keep_own: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> list[str]:
        """The group of each query; its own id where it has none."""
        return [self.groups.get(query, f"query {query}") for query in self.queries]


def read_beir(folder: Path | str, *, split: str = "test", keep_own: bool = False) -> RetrievalTask:
    """Return the task of a BEIR folder: corpus and queries (.jsonl), qrels/SPLIT.tsv or qrels.tsv; .gz too.

    Args:
        keep_own: let a query find the document of its own id (see `RetrievalTask`).

    Raises:
        InputError: a file is missing, a row has other columns or an id for the second time, or no query has a
            relevant document.
    """
    folder = Path(folder)
    documents = _read_texts(_find(folder, ("corpus.jsonl",)))
    queries = _read_texts(_find(folder, ("queries.jsonl",)))
    judged = read_qrels(_find(folder, (f"qrels/{split}.tsv", "qrels.tsv")))
    relevant = _keep_relevant(judged)
    asked = {query: text for query, text in queries.items() if query in relevant}
    ordered = {query: relevant[query] for query in asked}
    if not any(documents.keys() & grades.keys() for grades in ordered.values()):
        raise InputError(
            f"{folder} has no query with a relevant document in the corpus", expected="qrels that fit the corpus"
        )
    return RetrievalTask(
        folder.resolve().name,
        documents,
        asked,
        ordered,
        left_out=tuple(sorted(query for query in queries if query in judged and query not in relevant)),
        missing=sum(len(grades.keys() - documents.keys()) for grades in ordered.values()),
        unjudged=sum(query not in judged for query in queries),
        unknown=sum(query not in queries for query in relevant),
        keep_own=keep_own or any(query in grades for query, grades in ordered.items()),
    )


def _keep_relevant(judged: Qrels) -> dict[str, dict[str, int]]:
    """Return the relevant documents of each query that has any."""
    good = {query: {name: grade for name, grade in grades.items() if grade > 0} for query, grades in judged.items()}
    return {query: grades for query, grades in good.items() if grades}


def judge_runs(qrels: Qrels, runs: Iterable[Run], *, name: str = "qrels") -> RetrievalTask:
    """Return the task that judgements alone make: the documents are those of the judgements and of the runs.

    As in trec_eval, nothing of a run is left out, not even a document with the id of its query.

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
    return RetrievalTask(name, dict.fromkeys(ids, ""), dict.fromkeys(relevant, ""), relevant, left_out, keep_own=True)


def _find(folder: Path, names: Sequence[str]) -> Path:
    found = [folder / f"{name}{end}" for name in names for end in ("", ".gz") if (folder / f"{name}{end}").is_file()]
    if not found:
        raise InputError(f"{folder} has no {' or '.join(names)}", expected="a BEIR folder", action="check the path")
    return found[0]


def _read_texts(path: Path) -> dict[str, str]:
    """Return text by id; a title stands before its text."""
    texts: dict[str, str] = {}
    for line, row in read_rows(path):
        key, text = read_id(row.get("_id")), row.get("text")
        if key is None or text is None:
            missing = [name for name, value in (("_id", key), ("text", text)) if value is None]
            raise InputError(f"{path}, line {line}: no {', '.join(missing)}", expected="_id, text")
        if key in texts:
            raise InputError(f"{path}, line {line}: the id {key!r} again", expected="each id once")
        texts[key] = " ".join(part for part in (read_id(row.get("title")), str(text)) if part)
    return texts
