"""The one-method protocol that everything hangs on.

Whoever has `encode` is an encoder: a trained folder, a hosted endpoint, a test double, your own class.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import ModelError
from embedsmith.text import trigrams

Embeddings: TypeAlias = NDArray[np.float32]
Side: TypeAlias = Literal["", "query", "document"]  # "": neither, read as `encode` reads it
SIDES: tuple[Side, Side] = ("query", "document")  # names of prompts
NO_SIDES: tuple[Side, Side] = ("", "")  # the sides of two texts that play the same part
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


def reader_of(encoder: Encoder, side: Side) -> Encoder:
    """Return the encoder of the texts on a side."""
    return dict(zip(SIDES, sides_of(encoder), strict=True))[side] if side else encoder


def encode_by_side(encoder: Encoder, texts: Sequence[tuple[Side, str]]) -> Embeddings:
    """Return the embeddings (n, d) of texts that say on which side they stand, in their order.

    A side without a text is not encoded: a hosted endpoint does not know its dimension before it has read one.
    """
    if not texts:
        return encoder.encode([])
    places = {side: [row for row, (own, _) in enumerate(texts) if own == side] for side in ("", *SIDES)}
    asked = {side: rows for side, rows in places.items() if rows}
    encoded = [reader_of(encoder, side).encode([texts[row][1] for row in rows]) for side, rows in asked.items()]
    order = np.argsort([row for rows in asked.values() for row in rows])
    return np.asarray(np.concatenate(encoded)[order], dtype=np.float32)


class Remembering:
    """An encoder that reads each text once; memory grows with the texts.

    Attributes:
        precision: that of the encoder (`precision_of`).
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}
        self.precision = precision_of(encoder)

    def sides(self) -> tuple[Encoder, Encoder]:
        """Return the encoder of queries and that of documents, which remember as well."""
        return self._sides

    @cached_property
    def _sides(self) -> tuple[Encoder, Encoder]:
        query, document = (self if own is self._encoder else Remembering(own) for own in sides_of(self._encoder))
        return query, document

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


def hash_trigrams(texts: Sequence[str], dimension: int = 512) -> Embeddings:
    """Return unit rows (n, dimension) of trigram counts: near texts have near vectors, without any model."""
    vectors = np.zeros((len(texts), dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        for gram in trigrams(text):
            vectors[row, zlib.crc32(gram.encode("utf-8", "replace")) % dimension] += 1
    return normalize(vectors)


def check_vectors(vectors: Embeddings, rows: int, *, name: str = "the encoder") -> Embeddings:
    """Return `vectors` if they are what an encoder owes for so many texts: (rows, d), finite, rows of length 1 or 0.

    Raises:
        ModelError: they are not; `name` is whose vectors they are.
    """
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ModelError(
            f"{name} gives an array of shape {vectors.shape} for {rows} texts",
            expected="one row a text",
            action="mend its `encode`",
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if bad := int((~np.isfinite(lengths)).sum()):
        raise ModelError(
            f"{name} gives {bad} of {rows} texts a vector that is not finite",
            expected="numbers",
            action="check whether its training diverged, or load it in float32",
        )
    if bad := int(((np.abs(lengths - 1) >= 1e-2) & (lengths > 0)).sum()):
        raise ModelError(
            f"{name} gives {bad} of {rows} texts a vector that is not of length 1",
            expected="unit rows, whose products are cosines",
            action="normalise the vectors in its `encode`",
        )
    return vectors


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


def dimension_of(encoder: Encoder) -> int:
    """Return the length of the vectors: what `encoder` tells by its `dimension`, else that of one word, encoded."""
    known = getattr(encoder, "dimension", None)
    return known if isinstance(known, int) and known > 0 else int(encoder.encode(["dimension"]).shape[1])


def precision_of(encoder: Encoder) -> str:
    """Return what `encoder` computes in, "fp32", "bf16" or "int8", as its `precision` tells; "" where it cannot tell.

    The vectors of one model differ between these, too little to mix up texts and enough to cross a threshold.
    """
    found = getattr(encoder, "precision", "")
    return found if isinstance(found, str) else ""


def surely_fits(text: str, max_length: int | None) -> bool:
    """Say without a tokenizer whether `text` has at most `max_length` tokens: a token takes at least one byte."""
    return max_length is None or len(text.encode("utf-8", "replace")) + SPECIAL <= max_length
