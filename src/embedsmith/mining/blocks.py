"""Search as numbered blocks whose results are files: done once, found again after a kill, by any process."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedsmith.artifacts import read_json, replacing, write_json
from embedsmith.errors import EmbedsmithError
from embedsmith.mining.search import CORPUS, QUERIES, Neighbours, search
from embedsmith.mining.store import VectorFile


@dataclass(frozen=True, slots=True)
class NeighbourFiles:
    """A folder with one file of neighbours a block of queries."""

    folder: Path
    queries: int
    block: int = QUERIES

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.queries // self.block)

    def range_of(self, number: int) -> tuple[int, int]:
        """Return the first query of a block and the one after its last."""
        return number * self.block, min((number + 1) * self.block, self.queries)

    def missing(self) -> list[int]:
        """Return the blocks without a file."""
        return [number for number in range(self.blocks) if not self._path(number).is_file()]

    def write(self, number: int, found: Neighbours) -> None:
        """Write a block's neighbours, whole or not at all."""
        with replacing(self._path(number)) as new:
            np.savez(new, places=found.places, scores=found.scores)

    def read(self, number: int) -> Neighbours:
        """Return a block's neighbours."""
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return Neighbours(arrays["places"], arrays["scores"])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def open_neighbours(folder: Path, queries: int, about: dict[str, Any], *, block: int = QUERIES) -> NeighbourFiles:
    """Return the folder's files if they are of the same vectors, depth and kind of search; else it is emptied."""
    known = {**about, "count": queries, "block": block}
    with contextlib.suppress(EmbedsmithError, OSError):
        if read_json(folder / "about.json") == known:
            return NeighbourFiles(folder, queries, block)
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "about.json", known)
    return NeighbourFiles(folder, queries, block)


@dataclass(frozen=True, slots=True)
class SearchBlock:
    """The work of one block: read its queries, search the corpus exactly, write what is found."""

    files: NeighbourFiles
    queries: VectorFile
    corpus: VectorFile
    depth: int
    corpus_block: int = CORPUS

    def __call__(self, number: int) -> None:
        """Search for block `number` of the queries."""
        start, stop = self.files.range_of(number)
        found = search(self.queries.read(start, stop), self.corpus, depth=self.depth, block=self.corpus_block)
        self.files.write(number, found)
