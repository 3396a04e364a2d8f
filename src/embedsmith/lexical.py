"""BM25: texts in, the texts nearest to a query by their words out; beside every encoder, and a filter of its own.

The counting is bm25s', with Porter's stemmer (snowball) and English stop words; Lucene's formula, k1 = 1.5, b = 0.75.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import InputError, MissingPartError
from embedsmith.metrics import top_places

K1, B = 1.5, 0.75


class LexicalIndex:
    """BM25 over texts; equal scores are ordered by place, so the same texts always give the same ranking.

    Raises:
        InputError: no text.
        MissingPartError: bm25s or PyStemmer is not installed.
    """

    def __init__(self, texts: Sequence[str], *, language: str = "english") -> None:
        if not texts:
            raise InputError("there is no text to search", expected="at least one")
        bm25s, stemmer = _load_parts(language)
        self._tokenize: Callable[[Sequence[str]], Any] = partial(
            bm25s.tokenize, stopwords="en" if language == "english" else [], stemmer=stemmer, show_progress=False
        )
        self._size = len(texts)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        self._index.index(self._tokenize(list(texts)), show_progress=False)

    def __len__(self) -> int:
        return self._size

    def search(self, queries: Sequence[str], *, k: int = 10) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the k best texts of each query, best first: places (queries, k) and BM25 scores (queries, k).

        A query without a word of any text has all scores 0 and the first texts.
        """
        k = min(k, self._size)
        places = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        for row, query in enumerate(queries):
            found = self.score(query)
            best = top_places(found, k)
            places[row], scores[row] = best, found[best]
        return places, scores

    def score(self, query: str) -> NDArray[np.float32]:
        """Return the BM25 score of every text, (texts,)."""
        tokens = self._tokenize([query])
        words = [word for word, _ in sorted(tokens.vocab.items(), key=lambda item: item[1])]
        asked = [words[number] for number in tokens.ids[0]]
        known = [word for word in asked if word in self._index.vocab_dict]
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        return np.asarray(self._index.get_scores(known), dtype=np.float32)


def _load_parts(language: str) -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ImportError:
        raise MissingPartError(
            "bm25s and PyStemmer are not installed", expected="them, for BM25", action="pip install 'embedsmith[rag]'"
        ) from None
    return bm25s, Stemmer.Stemmer("porter" if language == "english" else language)
