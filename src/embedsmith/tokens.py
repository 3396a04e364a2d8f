"""Texts as token ids: tokenised once, stored flat, cut into micro-batches with almost no padding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_arrays, write_arrays

BLOCK = 4096  # texts tokenised at once
EXACT_CUT = 1024  # texts; beyond it the best cuts cost more time than they save
BLOCK_PRICE = 32  # padded tokens that one more block costs (measured on MiniLM, 2 cores)

ASCII = "".join(map(chr, range(33, 127)))

UNLIMITED = 1_000_000  # tokens; a longer "maximum" is a library's way to write that there is none

Ids = NDArray[np.int32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of n texts in one array: text i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: (sum of lengths,) int32.
        offsets: (n + 1,) int64, starting at 0.
        truncated: (n,) bool; texts that were longer than the model reads.
    """

    ids: Ids
    offsets: Index
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Index:
        """Tokens per text, (n,) int64."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: Index) -> Index:
        """Return the tokens of texts `rows`; reads their offsets only, where `lengths` reads all of them."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def holding(self, id: int | None) -> NDArray[np.bool_]:
        """Return which texts hold the token `id`, (n,) bool; none holds None."""
        before = np.concatenate([[0], np.cumsum(self.ids == id)]) if id is not None else np.zeros(len(self.ids) + 1)
        return np.asarray(before[self.offsets[1:]] > before[self.offsets[:-1]], dtype=np.bool_)

    def padded(self, rows: Index, *, fill: int, left: bool = False) -> tuple[Index, Index]:
        """Return (ids, mask) of texts `rows`, each (len(rows), longest) int64; mask is 1 on real tokens."""
        lengths = self.lengths_of(rows)
        width = int(lengths.max())
        columns = np.arange(width)
        starts = self.offsets[rows][:, None]
        if left:
            mask = columns >= (width - lengths)[:, None]
            places = starts + columns - (width - lengths)[:, None]
        else:
            mask = columns < lengths[:, None]
            places = starts + columns
        ids = np.where(mask, self.ids[np.where(mask, places, 0)], fill).astype(np.int64)
        return ids, mask.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Unknown:
    """What a tokenizer makes of characters that it does not know: one token for all of them.

    Attributes:
        id: of that token; None where there is none, as in tokenizers that read bytes.
        longest: words of ASCII letters up to this length are certainly known; 0 where that cannot be told.
    """

    id: int | None
    longest: int

    def surely_absent(self, text: str) -> bool:
        """Say without the tokenizer whether all of `text` is known."""
        if self.id is None:
            return True
        return text.isascii() and (len(text) <= self.longest or max(map(len, text.split()), default=0) <= self.longest)


def find_unknown(tokenizer: Any, prompt: str = "") -> Unknown:
    """Return the unknown token of a tokenizer of the package tokenizers, or of transformers where one is inside.

    Args:
        prompt: stands before every text; a token that it brings tells nothing of a text.
    """
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(tokenizer, "model"):  # one in Python: nothing is known of it
        return Unknown(None, 0)
    name = getattr(tokenizer.model, "unk_token", None)
    id = _find_unknown_id(tokenizer) if name is None else tokenizer.token_to_id(name)
    if id is None or id in tokenizer.encode(prompt).ids:
        return Unknown(None, 0)
    read = tokenizer.encode_batch([letter * 9 for letter in ASCII], add_special_tokens=False)
    known = not any(id in encoding.ids for encoding in read)
    return Unknown(id, getattr(tokenizer.model, "max_input_chars_per_word", 1 << 62) if known else 0)


def _find_unknown_id(tokenizer: Any) -> int | None:
    """Return the id that a Unigram model, which has no name for it, writes into its file."""
    found = re.search(r'(?<!\\)"unk_id":\s*(\d+)', tokenizer.to_str())
    return int(found[1]) if found else None


def limit_of(length: float | None) -> int | None:
    """Return a maximum length as a library writes it, None where that means none: transformers has 10³⁰, XLNet −1."""
    return int(length) if length is not None and 0 < length <= UNLIMITED else None


def tokenize(tokenizer: Callable[..., Any], texts: Sequence[str], *, max_length: int | None) -> Tokens:
    """Return the ids of `texts` as the model's own tokenizer makes them, special tokens included.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: longer texts are cut to it, and marked in `truncated`; None cuts nothing.
    """
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    parts = []
    for start in range(0, len(texts), BLOCK):
        block = list(texts[start : start + BLOCK])
        rows = tokenizer(block, padding=False, return_attention_mask=False, **limit)["input_ids"]
        longest = [] if max_length is None else [place for place, row in enumerate(rows) if len(row) >= max_length]
        whole = _lengths(tokenizer, [block[place] for place in longest])
        cut = {place for place, length in zip(longest, whole, strict=True) if length > (max_length or 0)}
        parts.append(_pack(rows, [place in cut for place in range(len(rows))]))
    return join_tokens(parts)


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Return the texts of all parts, one after the other."""
    ends = np.cumsum([len(part.ids) for part in parts], dtype=np.int64)
    starts = [0, *ends[:-1].tolist()] if len(ends) else []
    return Tokens(
        np.concatenate([np.zeros(0, dtype=np.int32), *(part.ids for part in parts)]),
        np.concatenate([np.zeros(1, dtype=np.int64), *(p.offsets[1:] + s for p, s in zip(parts, starts, strict=True))]),
        np.concatenate([np.zeros(0, dtype=np.bool_), *(part.truncated for part in parts)]),
    )


def write_tokens(folder: Path, tokens: Tokens, key: str) -> None:
    """Write tokens as arrays that other processes map into their memory; `key` says what they were made from."""
    write_arrays(folder, "tokens", key, ids=tokens.ids, offsets=tokens.offsets, truncated=tokens.truncated)


def read_tokens(folder: Path, key: str) -> Tokens | None:
    """Return the tokens in `folder`, mapped, or None where there are none or those of something else."""
    found = read_arrays(folder, "tokens", key, "ids", "offsets", "truncated")
    return Tokens(*found) if found else None


def tokenize_pairs(
    tokenizer: Callable[..., Any], pairs: Sequence[tuple[str, str]], *, max_length: int | None
) -> tuple[Tokens, Index]:
    """Return the ids of each pair as one sequence, and how many of its tokens are of the first segment (n,) int64.

    Args:
        max_length: the longer text of a pair is cut first; None cuts nothing.
    """
    rows: list[list[int]] = []
    firsts: list[int] = []
    truncated: list[bool] = []
    limit = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
    for start in range(0, len(pairs), BLOCK):
        left, right = zip(*pairs[start : start + BLOCK], strict=True)
        found = tokenizer(list(left), list(right), padding=False, return_token_type_ids=True, **limit)
        rows.extend(found["input_ids"])
        firsts.extend(len(kinds) - sum(kinds) for kinds in found["token_type_ids"])
        truncated.extend(max_length is not None and len(row) >= max_length for row in found["input_ids"])
    return _pack(rows, truncated), np.array(firsts, dtype=np.int64)


def _pack(rows: Sequence[Sequence[int]], truncated: Sequence[bool]) -> Tokens:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    return Tokens(ids, offsets, np.array(truncated, dtype=np.bool_))


def _lengths(tokenizer: Callable[..., Any], texts: Sequence[str]) -> list[int]:
    if not texts:
        return []
    return [len(row) for row in tokenizer(list(texts), padding=False, verbose=False)["input_ids"]]


def cut_microbatches(lengths: Index, budget: int) -> list[Index]:
    """Return positions into `lengths`, longest texts first, in blocks of at most `budget` padded tokens.

    A text longer than the budget gets a block of its own. The cuts minimise padded tokens plus a fixed
    price per block (what a forward and backward pass costs beside its tokens): lengths (90, 30, 80, 20)
    with budget 180 give [[0, 2], [1, 3]], 240 padded tokens for 220 real ones instead of 360.
    """
    order = np.argsort(-lengths, kind="stable")
    widths = np.maximum(lengths[order], 1)
    starts = _cut_greedily(widths, budget) if len(order) > EXACT_CUT else _cut_exactly(widths, budget)
    return [order[start:end] for start, end in pairwise([*starts, len(order)])]


def cut_packed(lengths: Index, budget: int) -> list[Index]:
    """Return positions into `lengths`, longest texts first, in blocks of about equal size and about `budget` tokens.

    There is no padding to save, so a text belongs where its middle lies when all stand in a row: lengths (90, 30, 80,
    20) with budget 180 give [[0], [2, 1, 3]], 90 and 130 tokens; with 220 one block.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    count = max(-(-int(ends[-1]) // budget), 1) if len(order) else 0
    block = np.minimum((ends - lengths[order] / 2) * count // max(int(ends[-1]) if len(order) else 1, 1), count - 1)
    return [order[block == number] for number in range(count) if (block == number).any()]


def _cut_greedily(widths: Index, budget: int) -> list[int]:
    starts = []
    start = 0
    while start < len(widths):
        starts.append(start)
        start += max(budget // int(widths[start]), 1)
    return starts


def _cut_exactly(widths: Index, budget: int) -> list[int]:
    """Shortest path over cut points: cost[end] is the least of cost[start] + padded tokens + price."""
    count = len(widths)
    cost = np.zeros(count + 1)
    came_from = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        sizes = end - np.arange(end)
        padded = sizes * widths[:end]
        price = cost[:end] + padded + BLOCK_PRICE
        price[(padded > budget) & (sizes > 1)] = np.inf
        came_from[end] = int(price.argmin())
        cost[end] = price[came_from[end]]
    starts: list[int] = []
    end = count
    while end > 0:
        end = int(came_from[end])
        starts.append(end)
    return starts[::-1]
