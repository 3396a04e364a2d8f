"""What all rows will cost, from a few of them: calls, tokens, time and money, each with an interval.

The size of every row's prompt is known without a call, so the rows of a pilot are chosen over the whole range of sizes
(one at random from each of n parts of the rows sorted by size), and only what the answers add has to be extrapolated.
The estimate is the regression estimator of a total (W. G. Cochran, Sampling Techniques, 3rd ed. 1977, ch. 7):
N (ȳ + b (X̄ − x̄)), where x is the size of a row, known for all N rows, and y what it used, known for n.

Worked by hand: rows of sizes 1, 2, 3, 4, pilot rows (1, 10) and (3, 30): b = 10, ȳ = 20, x̄ = 2, X̄ = 2.5;
total 4 · (20 + 10 · 0.5) = 100.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from embedsmith.errors import InputError
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.pacing import Ahead, Pace, foresee_seconds

CONFIDENCE = 0.95
ROWS = 20


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and the bounds between which it lies with a confidence of 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PilotRow:
    """What one row of the pilot used.

    Attributes:
        size: of its prompts, in the unit in which the sizes of all rows are counted (characters, say).
        steps: calls of each step of the recipe, where time is to be foreseen.
    """

    size: int
    used: Usage
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Figures for all rows.

    Attributes:
        calls: attempts, as --max-calls counts them: as many for an answer as in the pilot.
        prompt_tokens, completion_tokens, cost: of the calls that are answered. A provider may bill others, too.
        seconds: in which calls are out; reading answers and searching passages comes on top. The value takes it that
            the server keeps up where the pilot does not tell otherwise; the upper bound that it gives no more answers
            in a second than with as many calls at once as the pilot had. None where nobody timed the pilot.
        at_once: most calls in flight during the pilot; None where that is not known.
        cost: US dollars; None without a price.
        unmetered: rows of the pilot whose answers say nothing of tokens; above 0, tokens and cost are too low.
    """

    rows: int
    calls: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    seconds: Interval | None
    cost: Interval | None
    unmetered: int
    at_once: int | None = None


def choose_rows(sizes: Sequence[int], count: int = ROWS, *, seed: int = 0) -> list[int]:
    """Return the places of `count` rows (all, if there are fewer), one from each part of the rows sorted by size.

    >>> sorted(choose_rows([5, 1, 9, 3], 4))
    [0, 1, 2, 3]
    """
    order = sorted(range(len(sizes)), key=lambda place: sizes[place])
    count = min(count, len(order))
    draw = random.Random(seed)
    bounds = [len(order) * part // count for part in range(count + 1)] if count else []
    return sorted(order[draw.randrange(low, high)] for low, high in pairwise(bounds))


def estimate(
    pilot: Sequence[PilotRow],
    sizes: Sequence[int],
    *,
    price: Price | None = None,
    paces: Sequence[Pace] = (),
    in_flight: int = 1,
    refused_at: float | None = None,
    attempts: int = 0,
    answers: int = 0,
) -> Estimate:
    """Return calls, tokens, time and money for all rows.

    Args:
        pilot: at least three rows, chosen by `choose_rows`.
        sizes: of all rows, those of the pilot among them.
        paces: of each step in the pilot, as many as its rows have.
        in_flight: most calls at once in the whole run.
        refused_at: calls at once that the server refused in the pilot.
        attempts, answers: of the calls that the pilot sent; 0 where it sent none.

    Raises:
        InputError: fewer than three rows, unless those are all rows.
    """
    if len(pilot) < 3 and len(pilot) < len(sizes):
        raise InputError(
            f"{len(pilot)} rows are too few to say what {len(sizes)} will cost", expected="a pilot of 3 rows or more"
        )

    def total(measure: Callable[[PilotRow], float]) -> Interval:
        return estimate_total([row.size for row in pilot], [measure(row) for row in pilot], sizes)

    failing = max(1 - answers / attempts, 0.0) if attempts and answers else 0.0
    counts = [total(lambda row, step=step: row.steps[step]) for step in range(len(paces))]  # type: ignore[misc]
    return Estimate(
        rows=len(sizes),
        calls=_add_attempts(total(lambda row: row.used.calls), failing, attempts),
        prompt_tokens=total(lambda row: row.used.prompt_tokens),
        completion_tokens=total(lambda row: row.used.completion_tokens),
        seconds=_foresee(counts, paces, (in_flight, refused_at), failing) if counts else None,
        cost=total(lambda row: price.of(row.used)) if price is not None else None,
        unmetered=sum(not row.used.prompt_tokens and not row.used.completion_tokens for row in pilot),
        at_once=max((pace.most for pace in paces if pace.timed), default=None),
    )


def _add_attempts(calls: Interval, failing: float, attempts: int) -> Interval:
    """Return attempts for calls, where a share `failing` of the pilot's attempts failed (normal approximation)."""
    margin = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(failing * (1 - failing) / max(attempts, 1))
    low, high = max(failing - margin, 0.0), min(failing + margin, 0.9)
    return Interval(calls.value / (1 - failing), calls.low / (1 - low), calls.high / (1 - high))


def _foresee(
    counts: Sequence[Interval], paces: Sequence[Pace], limits: tuple[int, float | None], failing: float
) -> Interval:
    """Return the time of all steps: if the server keeps up, at best (refusals were chance), and at worst."""
    steps = list(zip(counts, paces, strict=True))
    ceiling, refused_at = limits
    most = ceiling if refused_at is None else min(ceiling, max(int(refused_at), 1))

    def walk(calls: Callable[[Interval], float], bound: int, ceiling: int, sign: int) -> float:
        ahead = [
            Ahead(round(calls(count)), pace, pace.slope[bound], 1 + sign * pace.error, failing=failing)
            for count, pace in steps
        ]
        return foresee_seconds(ahead, ceiling=ceiling)

    value = walk(lambda count: count.value, 1, most, 0)
    low = walk(lambda count: count.low, 0, ceiling, -1)
    seen = min(most, max((pace.most for pace in paces), default=1))
    return Interval(value, min(low, value), max(walk(lambda count: count.high, 2, seen, 1), value))


def estimate_total(known_sizes: Sequence[float], known: Sequence[float], sizes: Sequence[float]) -> Interval:
    """Return the sum over all rows of what is known for some; see the head of this module.

    >>> estimate_total([1, 3, 2], [10, 30, 20], [1, 2, 3, 4])
    Interval(value=100.0, low=100.0, high=100.0)
    """
    from scipy.stats import t

    n, rows = len(known), len(sizes)
    if n == rows:
        return Interval(sum(known), sum(known), sum(known))
    x, y = sum(known_sizes) / n, sum(known) / n
    spread = sum((size - x) ** 2 for size in known_sizes)
    slope = sum((size - x) * (value - y) for size, value in zip(known_sizes, known, strict=True)) / (spread or 1.0)
    off = sum(sizes) / rows - x
    value = rows * (y + slope * off)
    pairs = zip(known_sizes, known, strict=True)
    rest = sum((found - y - slope * (size - x)) ** 2 for size, found in pairs) / max(n - 2, 1)
    error = rows * math.sqrt(rest * ((1 - n / rows) / n + off**2 / (spread or math.inf)))
    margin = float(t.ppf(0.5 + CONFIDENCE / 2, max(n - 2, 1))) * error
    return Interval(value, max(value - margin, sum(known)), value + margin)
