"""The protocol's helpers: texts on their sides, vectors that are numbers, what a wrapped encoder can still do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedsmith.encoder import Embeddings, Encoder, Side, encode_by_side, reader_of
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
