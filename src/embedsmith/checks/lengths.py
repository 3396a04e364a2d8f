"""Texts that are longer than what the model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from embedsmith.checks.findings import HEAVY, Finding, Outcome, share_of
from embedsmith.tokens import Tokens

NONE_LEFT = 0.9  # share at which nothing useful is left


def check_tokens(tokens: Tokens, limit: int | None) -> Iterator[Outcome]:
    """Yield texts that are cut, and texts that are the same once they are cut."""
    cut = np.flatnonzero(tokens.truncated)
    share = len(cut) / max(len(tokens), 1)
    if share <= HEAVY or not len(cut):
        return
    kept = Counter(_ids(tokens, place) for place in cut.tolist())
    equal = sum(count for count in kept.values() if count > 1)
    lost = share > NONE_LEFT and equal > len(cut) / 2
    same = f"; {equal} of them are then the same as another" if equal else ""
    yield Finding(
        "truncated-texts",
        "error" if lost else "warning",
        found=f"{share_of(len(cut), len(tokens))} texts are longer than the {limit} tokens that the model reads{same}",
        expected="texts that are read to their end",
        action="raise --set max_length=… as far as the model's positions go, or cut long texts into passages",
        place="configuration" if lost else "data",
    )


def _ids(tokens: Tokens, place: int) -> bytes:
    return bytes(tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]].tobytes())
