"""Whoever ranks documents for queries: encoders, BM25 and the runs of others, behind one method.

Memory of an encoder's ranking: one block of document vectors, all query vectors, and `depth` places for each query.
Never all documents' vectors, and never queries × documents. The texts themselves are held by the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings, Encoder, check_vectors, normalize, sides_of
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.lexical import LexicalIndex
from embedsmith.retrieval.trec import Run

DEPTH = 100  # documents of a ranking that are looked at
BLOCK = 256  # queries compared with a block of documents at once
DOCUMENTS = 2048  # documents encoded at once

Index = NDArray[np.int64]
Texts: TypeAlias = Mapping[str, str]
Progress: TypeAlias = Callable[[int, int], None]


class Ranked(NamedTuple):
    """What each query found, best first.

    Attributes:
        places: (queries, depth) into the documents; -1 where nothing stands.
        scores: (queries, depth) float32, higher is better; -inf where nothing stands.
    """

    places: Index
    scores: NDArray[np.float32]


@runtime_checkable
class Ranker(Protocol):
    """Orders documents for queries; both are texts by id, and the order of the ids says who is who."""

    def rank(self, queries: Texts, documents: Texts, /, *, depth: int) -> Ranked:
        """Return the best `depth` documents of each query (or all, where there are fewer)."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderRanker:
    """An encoder as a ranker: by cosine, documents encoded in blocks; equal cosines in the order of the documents."""

    encoder: Encoder
    on_progress: Progress | None = None  # texts encoded, texts to encode
    block: int = DOCUMENTS

    def rank(self, queries: Texts, documents: Texts, /, *, depth: int) -> Ranked:
        """Return the best documents of each query (see `Ranker.rank`)."""
        return self.rank_cut(queries, documents, depth=depth)[0]

    def rank_cut(
        self, queries: Texts, documents: Texts, /, *, depth: int, dimensions: Sequence[int] = ()
    ) -> tuple[Ranked, dict[int, Ranked]]:
        """Return the ranking with whole vectors, and with those cut to their first d numbers, for each smaller d.

        Every text is encoded once, whatever the number of dimensions. The whole dimension is among the keys.

        Raises:
            ModelError: a vector that is not finite, or not of length 1.
        """
        for_queries, for_documents = sides_of(self.encoder)
        asked = check_vectors(for_queries.encode(list(queries.values())), len(queries))
        self._advance(len(queries), queries, documents)
        whole = asked.shape[1]
        sizes = [whole, *sorted({size for size in dimensions if size < whole}, reverse=True)]
        best = {size: NearestPlaces(cut(asked, size), min(depth, len(documents))) for size in sizes}
        for start, texts in _blocks(documents, self.block):
            vectors = check_vectors(for_documents.encode(texts), len(texts))
            for size, nearest in best.items():
                nearest.add(cut(vectors, size), start)
            self._advance(len(queries) + start + len(texts), queries, documents)
        found = {size: nearest.ranked() for size, nearest in best.items()}
        return found[whole], found

    def _advance(self, done: int, queries: Texts, documents: Texts) -> None:
        if self.on_progress is not None:
            self.on_progress(done, len(queries) + len(documents))


def _blocks(documents: Texts, size: int) -> Iterator[tuple[int, list[str]]]:
    texts, start = iter(documents.values()), 0
    while block := list(islice(texts, size)):
        yield start, block
        start += len(block)


def cut(vectors: Embeddings, dimension: int) -> Embeddings:
    """Return the first `dimension` numbers of each row, at length 1 again (Kusupati et al. 2022)."""
    return vectors if dimension >= vectors.shape[1] else normalize(vectors[:, :dimension])


class NearestPlaces:
    """The nearest documents of each query, block after block; equal cosines in the order in which they came."""

    def __init__(self, queries: Embeddings, depth: int) -> None:
        self._queries = queries
        self._places = np.full((len(queries), depth), -1, dtype=np.int64)
        self._scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)

    def add(self, vectors: Embeddings, start: int) -> None:
        """Take in documents (n, d) that stand from place `start` on."""
        for at in range(0, len(self._queries), BLOCK):
            cosines = np.asarray(self._queries[at : at + BLOCK] @ vectors.T, dtype=np.float32)
            better = cosines > self._scores[at : at + BLOCK, -1:]  # an equal one loses to those before it
            for row in np.flatnonzero(better.any(axis=1)).tolist():
                new = np.flatnonzero(better[row])
                self._merge(at + row, new + start, cosines[row, new])

    def _merge(self, row: int, places: Index, scores: NDArray[np.float32]) -> None:
        both = np.concatenate([self._scores[row], scores])
        order = np.argsort(-both, kind="stable")[: self._scores.shape[1]]
        self._places[row] = np.concatenate([self._places[row], places])[order]
        self._scores[row] = both[order]

    def ranked(self) -> Ranked:
        """Return what was found so far."""
        return Ranked(self._places, self._scores)


@dataclass(frozen=True, slots=True)
class LexicalRanker:
    """BM25 as a ranker. A document without a word of the query is not found."""

    language: str = "english"

    def rank(self, queries: Texts, documents: Texts, /, *, depth: int) -> Ranked:
        """Return the best documents of each query (see `Ranker.rank`)."""
        index = LexicalIndex(list(documents.values()), language=self.language)
        places, scores = index.search(list(queries.values()), k=depth)
        found = scores > 0
        return Ranked(np.where(found, places, -1), np.where(found, scores, np.float32(-np.inf)))


@dataclass(frozen=True, slots=True)
class RunRanker:
    """Somebody's run as a ranker: it looks up what was found. A query that is not in it found nothing."""

    run: Run

    def rank(self, queries: Texts, documents: Texts, /, *, depth: int) -> Ranked:
        """Return the best documents of each query (see `Ranker.rank`).

        Raises:
            InputError: the run names a document that is not among `documents`.
        """
        place = {document: at for at, document in enumerate(documents)}
        depth = min(depth, max((len(self.run.documents.get(query, ())) for query in queries), default=0))
        places = np.full((len(queries), depth), -1, dtype=np.int64)
        scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
        for row, query in enumerate(queries):
            found = self.run.documents.get(query, ())[:depth]
            unknown = next((document for document in found if document not in place), None)
            if unknown is not None:
                raise InputError(
                    f"the run {self.run.tag} names the document {unknown!r}, which the corpus does not hold",
                    expected="a run over the same documents",
                    action="score it with --qrels alone, where unknown documents are allowed",
                )
            places[row, : len(found)] = [place[document] for document in found]
            scores[row, : len(found)] = self.run.scores.get(query, ())[:depth]
        return Ranked(places, scores)


def find_own(queries: Texts, documents: Texts) -> Index:
    """Return the place of the document that has the id of each query, (queries,); -2 where there is none."""
    shared = queries.keys() & documents.keys()
    if not shared:
        return np.full(len(queries), -2, dtype=np.int64)
    place = {name: at for at, name in enumerate(documents) if name in shared}
    return np.array([place.get(query, -2) for query in queries], dtype=np.int64)


def drop_own(ranked: Ranked, own: Index, depth: int) -> Ranked:
    """Return the first `depth` places of each ranking without the document at `own` (see `find_own`)."""
    dropped = ranked.places == own[:, None]
    order = np.argsort(dropped, axis=1, kind="stable")
    places = np.take_along_axis(np.where(dropped, -1, ranked.places), order, axis=1)
    scores = np.take_along_axis(np.where(dropped, np.float32(-np.inf), ranked.scores), order, axis=1)
    return Ranked(places[:, :depth], scores[:, :depth])


def as_ranker(source: Encoder | Ranker) -> Ranker:
    """Return the ranker that `source` is, or that its encoder makes."""
    if isinstance(source, Ranker):
        return source
    if isinstance(source, Encoder):
        return EncoderRanker(source)
    raise ConfigurationError(f"{type(source).__name__} ranks nothing", expected="an encoder or a ranker")
