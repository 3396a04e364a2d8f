"""How the neighbours are found: exactly, or with an index; and how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.mining.settings import MiningSettings

EXACT_WORK = 2e14  # operations up to which "auto" stays exact: 2.5 h of one busy EPYC core at the pace measured
OVERHEAD = 1.9  # of an exact search over its matrix products alone: two blocks at 200,000 on a busy machine
ADDING, ASKING = 1.5e-3, 0.8e-3  # seconds to add and to ask a vector of 384 numbers in the index: a guess, not measured


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The choice: its kind, its reason in words, and the estimated seconds on one process."""

    kind: Literal["exact", "index"]
    reason: str
    seconds: float


def plan_search(queries: int, corpus: int, dimension: int, settings: MiningSettings) -> SearchPlan:
    """Return how to search; "auto" decides by the number of operations, never by the clock, so it is repeatable.

    200,000 × 200,000 × 384: 2·200,000²·384 = 3.1e13 operations, below 2e14: exact.

    Raises:
        MissingPartError: an index is asked for and usearch is not installed.
    """
    work = 2.0 * queries * corpus * dimension
    exact = OVERHEAD * work / measure_rate(dimension)
    index = (corpus * ADDING + queries * ASKING) * dimension / 384
    size = f"{queries:,} queries × {corpus:,} texts × {dimension} = {work:.1e} operations"
    if settings.search == "index":
        if find_spec("usearch") is None:
            raise MissingPartError("usearch is not installed", action="pip install 'embedsmith[index]'")
        return SearchPlan("index", f"as asked: HNSW, approximate; {size}", index)
    if settings.search == "exact" or work <= EXACT_WORK:
        why = "as asked" if settings.search == "exact" else f"at most {EXACT_WORK:.0e}"
        return SearchPlan("exact", f"{size}, {why}", exact)
    if find_spec("usearch") is None:
        return SearchPlan("exact", f"{size}, more than {EXACT_WORK:.0e}, but usearch is not installed", exact)
    return SearchPlan("index", f"{size}, more than {EXACT_WORK:.0e}: HNSW, approximate", index)


def measure_rate(dimension: int) -> float:
    """Return operations per second of a float32 matrix product, from a small one."""
    if dimension < 1:
        raise ConfigurationError(f"vectors of {dimension} dimensions", expected="at least 1")
    left, right = np.ones((512, dimension), dtype=np.float32), np.ones((2048, dimension), dtype=np.float32)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        np.matmul(left, right.T)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * 512 * 2048 * dimension / max(best, 1e-9)
