"""An HNSW index (usearch) for corpora beyond exact search: approximate ranks, exact scores.

What the index proposes is scored again from the stored vectors, so a similarity means the same in both kinds of search;
what it misses is missed. Built by one thread, so that it is the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedsmith.artifacts import fingerprint, replacing
from embedsmith.mining.blocks import NeighbourFiles
from embedsmith.mining.search import Neighbours, score_pairs
from embedsmith.mining.store import VectorFile, describe_vectors

CONNECTIVITY, EXPANSION_ADD = 16, 128  # edges of a node; candidates looked at when one is added
ADDED = 4096  # vectors added at once


def build_index(folder: Path, corpus: VectorFile, *, on_progress: Callable[[int, int], None]) -> Path:
    """Return the file of an index of `corpus`: the one in `folder` if it is of these vectors, else a new one."""
    path = folder / f"index-{fingerprint(describe_vectors(corpus))}.usearch"
    if path.is_file():
        return path
    for old in folder.glob("index-*.usearch"):
        old.unlink()
    index = _open(corpus.dimension)
    for start in range(0, len(corpus), ADDED):
        stop = min(start + ADDED, len(corpus))
        index.add(np.arange(start, stop), corpus.read(start, stop), threads=1)
        on_progress(stop, len(corpus))
    with replacing(path) as new:
        index.save(str(new))
    return path


def _open(dimension: int, *, depth: int = 0) -> Any:
    from usearch.index import Index

    return Index(
        ndim=dimension,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=max(2 * depth, 64),
    )


@dataclass(frozen=True, slots=True)
class IndexBlock:
    """The work of one block of queries with an index; the file is mapped, so that processes share it."""

    files: NeighbourFiles
    queries: VectorFile
    corpus: VectorFile
    depth: int
    path: Path

    def __call__(self, number: int) -> None:
        """Search for block `number` of the queries."""
        start, stop = self.files.range_of(number)
        queries = self.queries.read(start, stop)
        index = _open(self.corpus.dimension, depth=self.depth)
        index.view(str(self.path))
        depth = min(self.depth, len(self.corpus))
        found = [index.search(query, depth, threads=1).keys for query in queries]
        self.files.write(number, order_found(queries, self.corpus, found, depth))


def order_found(queries: Any, corpus: VectorFile, found: list[Any], depth: int) -> Neighbours:
    """Return what an index found by exact score, then place; missing places are -1."""
    rows = np.repeat(np.arange(len(found)), [len(keys) for keys in found])
    flat = np.concatenate([np.asarray(keys, dtype=np.int64) for keys in found])
    scores = score_pairs(queries, rows, corpus, flat)
    order = np.lexsort((flat, -scores, rows))
    counts = np.bincount(rows, minlength=len(found))
    at = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.full((len(found), depth), -1, dtype=np.int64)
    best = np.full((len(found), depth), -np.inf, dtype=np.float32)
    places[rows, at], best[rows, at] = flat[order], scores[order]
    return Neighbours(places, best)
