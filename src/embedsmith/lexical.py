"""BM25: texts in, the texts nearest to a query by their words out; beside every encoder, and a filter of its own.

The counting is bm25s', with Porter's stemmer (snowball) and English stop words; Lucene's formula, k1 = 1.5, b = 0.75.
Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are read as pairs of neighbouring
characters, as Lucene's CJK analyser does: 東京都 as 東京 and 京都. That is no segmentation, but it finds shared words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import InputError, MissingPartError
from embedsmith.metrics import top_places

K1, B = 1.5, 0.75
# Letters and their marks: Han, kana, Thai, Lao, Burmese, Khmer. Hangul is not among them: Korean has spaces.
UNSPACED = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf\u1000-\u103f\u1050-\u109f\u1780-\u17d3"
)
RUN = re.compile(f"[{UNSPACED}]+")
# A pair (a single character where it stands alone), or a word of two letters and more: bm25s' own pattern.
TOKEN = rf"(?u)[{UNSPACED}]{{1,2}}|\b\w\w+\b"


class LexicalIndex:
    """BM25 over texts; equal scores are ordered by place, so the same texts always give the same ranking.

    Raises:
        InputError: no text, or no word in any.
        MissingPartError: bm25s or PyStemmer is not installed.
    """

    def __init__(self, texts: Sequence[str], *, language: str = "english") -> None:
        if not texts:
            raise InputError("there is no text to search", expected="at least one")
        bm25s, stemmer = _load_parts(language)
        self._tokenize: Callable[[Sequence[str]], Any] = partial(
            bm25s.tokenize,
            stopwords="en" if language == "english" else [],
            stemmer=stemmer,
            show_progress=False,
            token_pattern=TOKEN,
        )
        self._size = len(texts)
        tokens = self._tokenize([part_pairs(text) for text in texts])
        if not tokens.vocab:
            raise InputError(
                f"none of {len(texts)} texts has a word to search by",
                expected="words of two letters or more besides English stop words",
            )
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        self._index.index(tokens, show_progress=False)

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
        tokens = self._tokenize([part_pairs(query)])
        words = [word for word, _ in sorted(tokens.vocab.items(), key=lambda item: item[1])]
        asked = [words[number] for number in tokens.ids[0]]
        known = [word for word in asked if word in self._index.vocab_dict]
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        return np.asarray(self._index.get_scores(known), dtype=np.float32)


def warn_of_silence(silent: int, queries: int) -> str | None:
    """Return a warning if most of the queries share no word with any text, which other texts or languages explain."""
    if 2 * silent <= queries:
        return None
    return (
        f"BM25 finds nothing for {silent:,} of {queries:,} queries: they share no word with any text. It compares "
        "words as written, but for English endings; are queries and texts in one language?"
    )


def part_pairs(text: str) -> str:
    """Return the text with each run of a script without spaces as its pairs of characters, parted by spaces.

    >>> part_pairs("in 東京都 today")
    'in  東京 京都  today'
    """
    return RUN.sub(_list_pairs, text)


def _list_pairs(run: re.Match[str]) -> str:
    signs = run[0]
    pairs = [signs[place : place + 2] for place in range(len(signs) - 1)] or [signs]
    return f" {' '.join(pairs)} "


def _load_parts(language: str) -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ImportError:
        raise MissingPartError(
            "bm25s and PyStemmer are not installed", expected="them, for BM25", action="pip install 'embedsmith[rag]'"
        ) from None
    return bm25s, Stemmer.Stemmer("porter" if language == "english" else language)
