"""Micro-batches hold every text once, under the budget; padded ids are the tokenizer's own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from embedsmith.model import DEMO_MODEL, load_network
from embedsmith.tokens import ASCII, BLOCK_PRICE, Tokens, Unknown, cut_microbatches, find_unknown, tokenize


def test_texts_of_like_length_share_a_microbatch() -> None:
    blocks = cut_microbatches(np.array([90, 30, 80, 20]), budget=180)
    assert [block.tolist() for block in blocks] == [[0, 2], [1, 3]]


@given(st.lists(st.integers(1, 50), max_size=9), st.integers(1, 200))
def test_no_other_cut_of_the_sorted_texts_is_cheaper(lengths: list[int], budget: int) -> None:
    widths = sorted(lengths, reverse=True)

    def price(cuts: tuple[int, ...]) -> float:
        total = 0.0
        for start, end in itertools.pairwise([0, *cuts, len(widths)]):
            padded = (end - start) * widths[start]
            total += np.inf if padded > budget and end - start > 1 else padded + BLOCK_PRICE
        return total

    blocks = cut_microbatches(np.array(lengths, dtype=np.int64), budget)
    ours = tuple(np.cumsum([len(block) for block in blocks])[:-1].tolist())
    inner = range(1, len(widths))
    every = (cuts for size in range(len(widths)) for cuts in itertools.combinations(inner, size))
    assert not widths or price(ours) == min(map(price, every))


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_every_text_is_in_one_microbatch_and_none_is_over_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    blocks = cut_microbatches(array, budget)
    assert sorted(place for block in blocks for place in block.tolist()) == list(range(len(lengths)))
    for block in blocks:
        assert len(block) == 1 or array[block].max() * len(block) <= budget


@pytest.mark.parametrize("left", [False, True])
def test_padded_ids_are_those_of_the_tokenizer(left: bool) -> None:
    tokenizer = load_network(DEMO_MODEL).tokenizer
    texts = ["short", "a somewhat longer question?", "", "one " * 40]
    tokens = tokenize(tokenizer, texts, max_length=16)
    side = "left" if left else "right"
    reference = tokenizer(texts, padding=True, truncation=True, max_length=16, padding_side=side, return_tensors="np")
    ids, mask = tokens.padded(np.arange(4), fill=tokenizer.pad_token_id, left=left)
    assert (ids == reference["input_ids"]).all()
    assert (mask == reference["attention_mask"]).all()
    assert tokens.truncated.tolist() == [False, False, False, True]


def test_a_block_reads_the_offsets_of_its_own_texts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step cuts and pads some texts of millions: what it does may not grow with all of them."""
    tokens = Tokens(np.arange(9, dtype=np.int32), np.array([0, 2, 2, 6, 9]), np.zeros(4, dtype=np.bool_))
    assert tokens.lengths.tolist() == [2, 0, 4, 3]
    monkeypatch.setattr(Tokens, "lengths", property(lambda _: pytest.fail("all lengths were made")))
    assert tokens.lengths_of(np.array([3, 0, 1])).tolist() == [3, 2, 0]
    ids, mask = tokens.padded(np.array([3, 0]), fill=-1)
    assert ids.tolist() == [[6, 7, 8], [0, 1, -1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_text_that_just_fits_is_not_called_truncated() -> None:
    tokenizer = load_network(DEMO_MODEL).tokenizer
    tokens = tokenize(tokenizer, ["one two three", "one two three four"], max_length=5)
    assert tokens.truncated.tolist() == [False, True]


def test_texts_that_hold_a_token_are_found() -> None:
    tokens = Tokens(np.array([7, 1, 1, 7, 7], np.int32), np.array([0, 2, 2, 3, 5]), np.zeros(4, np.bool_))
    assert tokens.holding(7).tolist() == [True, False, False, True]
    assert not tokens.holding(None).any()


def read(model: Any, *, prompt: str = "") -> Unknown:
    return find_unknown(Tokenizer(model), prompt)


def test_the_unknown_token_is_found_in_every_kind_of_tokenizer() -> None:
    letters = {letter: place for place, letter in enumerate(["?!", *ASCII])}
    assert read(models.BPE(letters, [], unk_token="?!")) == Unknown(0, 1 << 62)
    assert read(models.BPE(letters, [])) == Unknown(None, 0)
    assert read(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>")) == Unknown(0, 0)
    assert read(models.WordLevel({"<unk>": 0}, unk_token="<unk>"), prompt="é: ") == Unknown(None, 0)
    pieces = [('"unk_id": 7', -9.0), ("<unk>", 0.0), *((letter, -1.0) for letter in ASCII)]
    assert read(models.Unigram(pieces, 1, False)) == Unknown(1, 1 << 62)


def test_plain_words_need_no_tokenizer_and_others_do() -> None:
    unknown = Unknown(100, 5)
    assert all(unknown.surely_absent(text) for text in ("", "  ", "words of five", "five"))
    assert not any(unknown.surely_absent(text) for text in ("letters", "naïf", "a letters b"))
    assert Unknown(None, 0).surely_absent("怎么")
    assert not Unknown(3, 0).surely_absent("word")
