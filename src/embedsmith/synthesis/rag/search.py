"""Where a passage comes among all passages for a question: by the base encoder and by BM25.

Both indexes are made once. The vectors of the passages can be kept in a file: passages that are in it are not encoded
again, and a file that another encoder wrote is noticed by a few passages that are encoded anew.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import fingerprint, replacing
from embedsmith.encoder import Embeddings, Encoder, sides_of
from embedsmith.lexical import LexicalIndex
from embedsmith.metrics import top_places

PROBES = 8  # passages of a cache that are encoded again to see that the encoder is the same
AGREES = 1e-3  # largest difference of a component there; another precision of the same model is within it
BLOCK = 512  # passages encoded at once
CELLS = 1 << 22  # similarities in memory at once: 16 MB
TIE = 1e-6  # cosines this close are the same: rounding must not move a rank


@dataclass(frozen=True, slots=True)
class Found:
    """What a search says of one question.

    Attributes:
        ranks: place of each source passage in the ranking, from 1; passages with the same score count as behind it.
        scores: of each source passage.
        top: places of the best passages, best first. top_scores: theirs.
    """

    ranks: tuple[int, ...]
    scores: tuple[float, ...]
    top: tuple[int, ...]
    top_scores: tuple[float, ...]


class PassageSearch:
    """All passages behind two searches: the base encoder (if there is one) and BM25. Memory: passages × d.

    Args:
        encoder: the base; one with `sides()` is asked for its encoder of queries and that of documents.
        cache: file for the vectors of the passages, e.g. `passages.npz` in the run folder; None keeps none.
        lexical: False leaves BM25 out.
    """

    def __init__(
        self,
        texts: Sequence[str],
        encoder: Encoder | None = None,
        *,
        cache: Path | str | None = None,
        lexical: bool = True,
    ) -> None:
        both: tuple[Encoder | None, Encoder | None] = (None, None) if encoder is None else sides_of(encoder)
        self._query, document = both
        self._vectors = None if document is None else embed_passages(texts, document, cache=cache)
        self._lexical = LexicalIndex(texts) if lexical else None

    @property
    def block(self) -> int:
        """Questions that are best searched for at once."""
        return BLOCK if self._vectors is None else int(np.clip(CELLS // len(self._vectors), 1, BLOCK))

    def by_encoder(self, questions: Sequence[str], sources: Sequence[Sequence[int]], k: int) -> list[Found] | None:
        """Return what the encoder finds for each question, or None without an encoder."""
        if self._query is None or self._vectors is None:
            return None
        scores = np.asarray(self._query.encode(list(questions)), dtype=np.float32) @ self._vectors.T
        return [_look(row, own, k, TIE) for row, own in zip(scores, sources, strict=True)]

    def by_words(self, questions: Sequence[str], sources: Sequence[Sequence[int]], k: int) -> list[Found] | None:
        """Return what BM25 finds for each question, or None without it; a passage of score 0 is not found at all."""
        if self._lexical is None:
            return None
        return [
            _look(self._lexical.score(question), own, k, 0.0, floor=0.0)
            for question, own in zip(questions, sources, strict=True)
        ]


def _look(scores: NDArray[np.float32], sources: Sequence[int], k: int, tie: float, floor: float = -np.inf) -> Found:
    ranks = tuple(
        int(np.count_nonzero(scores > scores[own] + tie)) + 1 if scores[own] > floor else len(scores) for own in sources
    )
    best = top_places(scores, k)
    best = best[scores[best] > floor]
    own_scores = tuple(round(float(scores[own]), 4) for own in sources)
    return Found(ranks, own_scores, tuple(best.tolist()), tuple(np.round(scores[best], 4).tolist()))


def embed_passages(texts: Sequence[str], encoder: Encoder, *, cache: Path | str | None = None) -> Embeddings:
    """Return the vectors of `texts` (n, d); those in the file `cache` are taken from it, and it is written anew.

    A cache that is damaged or was written with another encoder is not used.
    """
    keys = [int(fingerprint(text), 16) for text in texts]
    known = {} if cache is None else _read_cache(Path(cache), dict(zip(keys, texts, strict=True)), encoder)
    missing = list(dict.fromkeys(place for place, key in enumerate(keys) if key not in known))
    made = [encoder.encode([texts[place] for place in block]) for block in _cut(missing)]
    fresh = np.concatenate(made) if made else np.zeros((0, 0), dtype=np.float32)
    if not known:
        return _write_cache(cache, keys, np.asarray(fresh, dtype=np.float32))
    vectors = np.empty((len(texts), len(next(iter(known.values())))), dtype=np.float32)
    for place, key in enumerate(keys):
        if key in known:
            vectors[place] = known[key]
    vectors[missing] = fresh if made else vectors[missing]
    return _write_cache(cache, keys, vectors) if missing else vectors


def _cut(places: Sequence[int]) -> list[Sequence[int]]:
    return [places[start : start + BLOCK] for start in range(0, len(places), BLOCK)]


def _read_cache(path: Path, wanted: dict[int, str], encoder: Encoder) -> dict[int, NDArray[np.float32]]:
    """Return the cached vectors (rows of one matrix) of the wanted texts by key."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys, vectors = stored["keys"], stored["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if vectors.ndim != 2 or len(keys) != len(vectors):
        return {}
    known = {key: row for key, row in zip(keys.tolist(), vectors, strict=True) if key in wanted}
    probes = sorted(known)[:: max(len(known) // PROBES, 1)][:PROBES]
    if not probes:
        return {}
    again = np.asarray(encoder.encode([wanted[key] for key in probes]))
    before = np.stack([known[key] for key in probes])
    same = again.shape == before.shape and bool(np.abs(again - before).max() <= AGREES)
    return known if same else {}


def _write_cache(path: Path | str | None, keys: Sequence[int], vectors: Embeddings) -> Embeddings:
    if path is not None:
        with replacing(Path(path)) as new, new.open("wb") as handle:  # by its name, numpy would add ".npz"
            np.savez(handle, keys=np.asarray(keys, dtype=np.uint64), vectors=vectors)
    return vectors
