"""The one-method protocol that everything hangs on.

Whoever has `encode` is an encoder: a trained folder, a hosted endpoint, a test double, your own class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Embeddings: TypeAlias = NDArray[np.float32]
SPECIAL = 4  # tokens that a model puts around a text
TOO_LONG = "longer than the model reads"
UNKNOWN = "holds what the model cannot read"


@runtime_checkable
class Encoder(Protocol):
    """Turns n texts into an (n, d) float32 matrix of unit rows, in the order of the texts."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return the embeddings of `texts`: shape (n, d), float32, each row of length 1."""
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """An encoder that can say how many tokens it reads of a text."""

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Return the tokens of each text as the model reads it: with prompt and special tokens, cut at its limit."""
        ...


@runtime_checkable
class Quick(Protocol):
    """An encoder that says whether it takes milliseconds for a short text, and waits for no network."""

    quick: bool


@runtime_checkable
class Prompted(Protocol):
    """An encoder that reads queries and documents with prompts of their own."""

    def sides(self) -> tuple[Encoder, Encoder]:
        """Return the encoder of queries and that of documents."""
        ...


def sides_of(encoder: Encoder) -> tuple[Encoder, Encoder]:
    """Return the encoder of queries and that of documents; one without sides is both."""
    return encoder.sides() if isinstance(encoder, Prompted) else (encoder, encoder)


class Remembering:
    """An encoder that reads each text once; memory grows with the texts."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, d) float32."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else self._encoder.encode(texts)

    def find_unread(self, text: str) -> str:
        """Return why the vector of `text` does not stand for all of it, "" where it does."""
        return find_unread(self._encoder, text)


def normalize(vectors: NDArray[np.floating]) -> Embeddings:
    """Return `vectors` (n, d) as float32 with rows of length 1; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), dtype=np.float32)


def encode_unique(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """Return the embeddings of `texts` (n, d), encoding each distinct text once."""
    distinct = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(distinct)}
    return encoder.encode(distinct)[[place[text] for text in texts]]


def pair_similarities(encoder: Encoder, left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
    """Return the cosine of each (left[i], right[i]), shape (n,), in [-1, 1]; higher is closer."""
    vectors = encode_unique(encoder, [*left, *right])
    products = np.einsum("nd,nd->n", vectors[: len(left)], vectors[len(left) :], dtype=np.float64)
    return np.asarray(products, dtype=np.float64)


def find_unread(encoder: Encoder, text: str) -> str:
    """Return why the vector of `text` does not stand for all of it, "" where it does or `encoder` cannot tell.

    Texts that differ only behind the model's end, or in characters that it does not know, have the same vector. An
    encoder tells by a method `find_unread(text)`, which returns `TOO_LONG`, `UNKNOWN`, another reason, or "".
    """
    tell = getattr(encoder, "find_unread", None)
    return "" if tell is None else str(tell(text))


def precision_of(encoder: Encoder) -> str:
    """Return what `encoder` computes in, "fp32", "bf16" or "int8", as its `precision` tells; "" where it cannot tell.

    The vectors of one model differ between these, too little to mix up texts and enough to cross a threshold.
    """
    found = getattr(encoder, "precision", "")
    return found if isinstance(found, str) else ""


def surely_fits(text: str, max_length: int | None) -> bool:
    """Say without a tokenizer whether `text` has at most `max_length` tokens: a token takes at least one byte."""
    return max_length is None or len(text.encode("utf-8", "replace")) + SPECIAL <= max_length
