"""What is asked again is not read again, and nobody learns by the clock what others asked."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.cache.recent import SHORT, Recent
from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import Embeddings
from embedsmith.testing import FakeEncoder


class Counting:
    """An encoder that knows what it has read."""

    def __init__(self, scale: float = 1.0) -> None:
        self.read: list[str] = []
        self._scale = np.float32(scale)
        self._rows = np.zeros((1, 16), dtype=np.float32)

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return rows in an array that is used again and again."""
        self.read += texts
        with np.errstate(invalid="ignore"):  # 0 times infinity
            self._rows[:] = FakeEncoder(16).encode(texts) * self._scale
        return self._rows


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text(max_size=3)), max_size=30), st.integers(1, 5))
def test_every_vector_is_that_of_its_text_whatever_was_asked_before(asked: list[tuple[str, str]], kept: int) -> None:
    recent = Recent(Counting(), kept)
    for namespace, text in asked:
        np.testing.assert_array_equal(recent.encode(namespace, text), FakeEncoder(16).encode([text])[0])


def test_a_question_is_read_once_while_it_is_among_the_last() -> None:
    encoder = Counting()
    recent = Recent(encoder, kept=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        recent.encode("a", text)
    assert encoder.read == ["one", "two", "three", "two"]


def test_a_tenant_does_not_learn_by_the_clock_what_another_asked() -> None:
    encoder = Counting()
    recent = Recent(encoder)
    recent.encode("a", "am I ill?")
    recent.encode("b", "am I ill?")
    assert encoder.read == ["am I ill?"] * 2


@pytest.mark.parametrize("scale", [0.0, 2.0, np.nan, np.inf])
def test_a_vector_that_is_wrong_is_computed_anew(scale: float) -> None:
    encoder = Counting(scale)
    recent = Recent(encoder)
    recent.encode("a", "one"), recent.encode("a", "one")
    assert len(encoder.read) == 2


def test_a_long_question_is_not_kept() -> None:
    encoder = Counting()
    recent = Recent(encoder)
    for text in ("x" * SHORT, "x" * SHORT, "x" * (SHORT + 1), "x" * (SHORT + 1)):
        recent.encode("a", text)
    assert len(encoder.read) == 3


def test_what_is_handed_out_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Recent(Counting()).encode("a", "one")[0] = 1.0


def test_a_cache_reads_a_question_in_other_words_once_and_forgets_it_with_its_tenant() -> None:
    encoder = Counting()
    cache = SemanticCache(encoder, threshold=0.8, fingerprint="fake", store="memory://")
    cache.add("How do I freeze my card?", "in the app")
    encoder.read.clear()
    for _ in range(3):
        assert cache.lookup("How do I freeze my cards?").hit
    assert encoder.read == ["How do I freeze my cards?"]
    cache.purge(namespace="another")
    assert cache.lookup("How do I freeze my cards?").hit
    cache.forget("another")
    assert cache.lookup("How do I freeze my cards?").hit
    assert len(encoder.read) == 3


def test_many_threads_get_the_vectors_of_their_texts() -> None:
    recent = Recent(FakeEncoder(16), kept=5)
    texts = [f"question {number % 20}" for number in range(2000)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: recent.encode("a", text), texts))
    np.testing.assert_array_equal(np.stack(found), FakeEncoder(16).encode(texts))
