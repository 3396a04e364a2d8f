"""Plain operations in the place of torch's flash kernels on the CPU, so that torch's own wrapper can be called there.

They compute what torch documents for its kernels: tokens of each text see each other, `left` before and `right` behind
(−1: all), heads share keys and values in groups. What torch does around them (shapes, gradients) is torch's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass
class Calls:
    """What the kernels were asked for.

    Attributes:
        windows: (left, right) of each call.
        strict: whether each call backward had to take the repeatable way.
    """

    windows: list[tuple[int, int]] = field(default_factory=list)
    strict: list[bool] = field(default_factory=list)


@contextlib.contextmanager
def plain_kernels() -> Iterator[Calls]:
    """Have torch's flash attention run on the CPU as long as the context lasts."""
    calls = Calls()
    library = torch.library.Library("aten", "IMPL")

    def forward(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, _ends: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, ...]:
        *_, causal, _mask = rest
        window = (options["window_size_left"], options["window_size_right"])
        assert causal == (window == (-1, 0))
        calls.windows.append(window)
        out, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
        for text in _texts(ends):
            scores = _scores(query[text], key[text], options["scale"], window)
            sums[:, text] = scores.logsumexp(dim=-1).float()
            out[text] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _repeat(value[text], query)).to(out.dtype)
        nothing = torch.empty(0)
        return out, sums, torch.zeros(2, dtype=torch.uint64), nothing, nothing

    def backward(
        pull: Tensor, query: Tensor, key: Tensor, value: Tensor, _out: Tensor, _sums: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        enabled, lenient = (
            torch.are_deterministic_algorithms_enabled,
            torch.is_deterministic_algorithms_warn_only_enabled,
        )
        calls.strict.append(enabled() and not lenient())
        window = (options["window_size_left"], options["window_size_right"])
        found = tuple(torch.zeros_like(part) for part in (query, key, value))
        groups, shared = key.shape[1], query.shape[1] // key.shape[1]
        for text in _texts(rest[0]):
            chances = _scores(query[text], key[text], options["scale"], window).softmax(-1)
            given = pull[text].to(chances.dtype)
            of_chances = torch.einsum("qhd,khd->hqk", given, _repeat(value[text], query))
            slope = chances * (of_chances - (of_chances * chances).sum(-1, keepdim=True)) * options["scale"]
            parts = (
                torch.einsum("hqk,khd->qhd", slope, _repeat(key[text], query)),
                torch.einsum("hqk,qhd->khd", slope, query[text].to(slope.dtype)).unflatten(1, (groups, shared)).sum(2),
                torch.einsum("hqk,qhd->khd", chances, given).unflatten(1, (groups, shared)).sum(2),
            )
            for into, part in zip(found, parts, strict=True):
                into[text] = part.to(into.dtype)
        return found

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _texts(ends: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(ends.tolist())]


def _repeat(part: Tensor, query: Tensor) -> Tensor:
    return part.to(torch.promote_types(part.dtype, torch.float32)).repeat_interleave(query.shape[1] // part.shape[1], 1)


def _scores(query: Tensor, key: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """Return (heads, queries, keys), −∞ where a token does not look."""
    keys = _repeat(key, query)
    scores = torch.einsum("qhd,khd->hqk", query.to(keys.dtype), keys) * scale
    place = torch.arange(len(query))
    ahead = place[None, :] - place[:, None]
    left, right = window
    hidden = ((ahead < -left) & (left >= 0)) | ((ahead > right) & (right >= 0))
    return scores.masked_fill(hidden, float("-inf"))
