"""The protocol's helpers: texts on their sides, vectors that are numbers, what a wrapped encoder can still do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from embedsmith.encoder import (
    Embeddings,
    Encoder,
    Remembering,
    Side,
    check_vectors,
    encode_by_side,
    precision_of,
    reader_of,
    sides_of,
)
from embedsmith.errors import LanguageModelError, ModelError
from embedsmith.hosted import HostedEncoder
from embedsmith.testing import FakeEncoder, FaultyServer


class Sided(FakeEncoder):
    """Reads queries and documents with a word before each."""

    def __init__(self, before: str = "") -> None:
        super().__init__()
        self.before = before

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return super().encode([self.before + text for text in texts])

    def sides(self) -> tuple[Encoder, Encoder]:
        return Sided("query: "), Sided("passage: ")


def test_texts_are_read_on_their_sides_in_their_order() -> None:
    texts: list[tuple[Side, str]] = [("document", "a"), ("", "b"), ("query", "a"), ("", "c"), ("document", "d")]
    expected = FakeEncoder().encode(["passage: a", "b", "query: a", "c", "passage: d"])
    np.testing.assert_array_equal(encode_by_side(Sided(), texts), expected)
    assert encode_by_side(Sided(), []).shape == (0, expected.shape[1])


def test_an_encoder_without_sides_reads_all_texts_alike() -> None:
    plain = FakeEncoder()
    assert all(reader_of(plain, side) is plain for side in ("", "query", "document"))


def test_a_hosted_encoder_is_not_asked_for_a_side_without_texts() -> None:
    with FaultyServer() as server:
        hosted = HostedEncoder("m", base_url=server.base_url, api_key="x")
        assert encode_by_side(hosted, [("", "a"), ("", "b")]).shape == (2, 256)


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        ([[1.0, 0.0]], r"an array of shape \(1, 2\) for 2 texts"),
        ([1.0, 0.0], r"an array of shape \(2,\) for 2 texts"),
        ([[1.0, 0.0], [np.nan, 0.0]], "1 of 2 texts a vector that is not finite"),
        ([[1.0, 0.0], [2.0, 0.0]], "1 of 2 texts a vector that is not of length 1"),
    ],
)
def test_what_an_encoder_does_not_owe_is_refused_by_its_name(vectors: list[object], found: str) -> None:
    with pytest.raises(ModelError, match=f"^mine gives {found}"):
        check_vectors(np.array(vectors, dtype=np.float32), 2, name="mine")


def test_unit_rows_and_zero_rows_are_what_an_encoder_owes() -> None:
    owed = np.array([[0.6, 0.8], [0.0, 0.0]], dtype=np.float32)
    assert check_vectors(owed, 2) is owed


def test_an_endpoint_that_answers_too_few_texts_is_named() -> None:
    with FaultyServer(embed=lambda texts: FakeEncoder().encode(list(texts)[:1])) as server:
        hosted = HostedEncoder("m", base_url=server.base_url, api_key="x")
        with pytest.raises(LanguageModelError, match="answered 2 texts with 1 rows"):
            hosted.encode(["a", "b"])


def test_who_remembers_keeps_sides_and_precision() -> None:
    sided = Sided()
    sided.precision = "bf16"  # type: ignore[attr-defined]
    remembering = Remembering(sided)
    assert precision_of(remembering) == "bf16"
    query, document = sides_of(remembering)
    np.testing.assert_array_equal(query.encode(["a"]), FakeEncoder().encode(["query: a"]))
    assert (query, document) == sides_of(remembering), "the same ones, so they remember"
    alike = Remembering(FakeEncoder())
    assert sides_of(alike) == (alike, alike)
