"""How long many calls will take, foreseen from a few: the client's own throttle, run in simulated time.

What a server does with more calls at once than a pilot had is not known; what it did with those is. A line is fitted
to them: seconds = a + b · tokens of the answer + c · other calls in flight. Where c is not surely above 0, the server
is taken to keep up, and the upper bound is the time with as many calls at once as the pilot had. Where it is, each
further call makes all others slower, and no more than 1 / c answers come in a second however many are out.

Worked by hand: a server that takes 4 calls at once, 0.1 s each, answers 8 at once in 0.2 s and 16 in 0.4 s: c = 0.025,
so 40 answers a second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from embedsmith.llm.throttle import GOLDEN, START, Throttle
from embedsmith.llm.traffic import FIRST_WAIT, LONGEST_WAIT

CONFIDENCE, SURE = 0.95, 0.99  # of what is told; of a slope that is believed, since a busy machine makes some, too
FEWEST = 8  # calls from which on a line is fitted
SIMULATED = 4000  # calls of a step that are simulated; the others go on at the pace of the last half
QUICKEST = 0.5  # of the seconds that were seen, however few other calls are out


@dataclass(frozen=True, slots=True)
class Timed:
    """One call that was answered: when it ended and how long it took (its last attempt), in seconds."""

    ended: float
    seconds: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How a server answered the calls of one step.

    Attributes:
        seconds: of each call. crowds: other calls in flight when each went out.
        slope: seconds that one more call in flight adds to each, with the bounds of its interval: low, value, high.
        most: calls at once, at most.
        timed: whether crowds and `most` were seen.
    """

    seconds: tuple[float, ...]
    crowds: tuple[float, ...]
    slope: tuple[float, float, float] = (0.0, 0.0, 0.0)
    most: int = 1
    timed: bool = True

    @property
    def error(self) -> float:
        """Half the interval of the mean of `seconds`, as a share of it."""
        from scipy.stats import t

        if len(self.seconds) < 2 or not sum(self.seconds):
            return 0.0
        spread = float(np.std(self.seconds, ddof=1) / np.mean(self.seconds))
        return min(float(t.ppf(0.5 + CONFIDENCE / 2, len(self.seconds) - 1)) * spread / math.sqrt(len(self.seconds)), 1)


def measure_pace(calls: Sequence[Timed]) -> Pace:
    """Return how the server answered calls that were all sent by one client, nothing else being known of it."""
    ended = np.array([call.ended for call in calls])
    lives = np.array([max(call.seconds, 1e-9) for call in calls])
    began = ended - lives
    crowds = ((began < began[:, None]) & (began[:, None] < ended)).sum(axis=1).astype(np.float64)
    changes = sorted([*((moment, 1) for moment in began), *((moment, -1) for moment in ended)])
    most = max(accumulate(change for _, change in changes), default=1)
    tokens = np.array([call.tokens for call in calls], dtype=np.float64)
    return Pace(tuple(lives.tolist()), tuple(crowds.tolist()), _fit_slope(lives, tokens, crowds), most)


def recall_pace(seconds: Sequence[float]) -> Pace:
    """Return the pace of calls that an earlier run made: how many were out beside each is not known any more."""
    return Pace(tuple(seconds), (0.0,) * len(seconds), most=int(START), timed=False)


def _fit_slope(
    seconds: NDArray[np.float64], tokens: NDArray[np.float64], crowds: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return low, value and high of c by least squares, none below 0; the value is 0 where the low one is."""
    from scipy.stats import t

    known = np.column_stack([np.ones_like(seconds), tokens - tokens.mean() if len(tokens) else tokens])
    known = known[:, [True, bool(np.ptp(tokens) > 0)]] if len(tokens) else known
    free = len(seconds) - known.shape[1] - 1
    if len(seconds) < FEWEST:
        return 0.0, 0.0, 0.0

    def without(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(values - known @ np.linalg.lstsq(known, values, rcond=None)[0])

    crowd, rest = without(crowds), without(seconds)
    spread = float(crowd @ crowd)
    if spread < 1e-6 * len(seconds):
        return 0.0, 0.0, 0.0
    slope = float(crowd @ rest) / spread
    left = rest - slope * crowd
    margin = float(t.ppf(0.5 + SURE / 2, free)) * math.sqrt(float(left @ left) / free / spread)
    most = float(seconds.mean() / (crowds.mean() + 1))  # a queue and nothing else: as many answers a second as seen
    low, slope, high = (min(max(bound, 0.0), most) for bound in (slope - margin, slope, slope + margin))
    return low, slope if low else 0.0, high


@dataclass(frozen=True, slots=True)
class Ahead:
    """The calls of one step that are to be made, and the pace that is expected of them.

    Attributes:
        slope: seconds that one more call in flight adds. longer: factor on the seconds of a call.
        failing: share of attempts that fail and are made again, 0 to less than 1.
    """

    calls: int
    pace: Pace
    slope: float = 0.0
    longer: float = 1.0
    failing: float = 0.0

    def fails(self, number: int) -> bool:
        """Say whether attempt `number` fails: evenly spread over all, never the first."""
        return (number * GOLDEN) % 1 > 1 - self.failing

    def foresee(self, number: int, crowd: int) -> float:
        """Return the seconds of call `number` with `crowd` others in flight."""
        place = number % len(self.pace.seconds)
        seen = self.pace.seconds[place]
        return self.longer * max(seen + self.slope * (crowd - self.pace.crowds[place]), QUICKEST * seen)


def foresee_seconds(steps: Sequence[Ahead], *, ceiling: int) -> float:
    """Return the seconds of steps that follow one another, each after the end of the one before.

    Args:
        ceiling: most calls in flight.
    """
    throttle, now = Throttle(ceiling), 0.0
    for step in steps:
        now = _walk(step, throttle, now)
    return now


def _walk(step: Ahead, throttle: Throttle, start: float) -> float:
    """Return when the last call of a step ends; as `traffic` does it, the first one goes alone."""
    calls = min(step.calls, SIMULATED)
    now, fresh, ended, half, attempts = start, calls, 0, start, 0
    flying: list[tuple[float, float, int]] = []  # end, beginning, failures (of this attempt, too)
    again: list[tuple[float, int]] = []  # due, failures
    while ended < calls:
        delay = throttle.delay(now, len(flying)) if (fresh or again) and (ended or not flying) else None
        if delay is not None and not fresh:
            delay = max(delay, again[0][0] - now)
        if delay is not None and (not flying or now + delay < flying[0][0]):
            now += delay
            failures = heapq.heappop(again)[1] if again and again[0][0] <= now else 0
            fresh -= not failures
            throttle.send(now)
            end = now + step.foresee(attempts, len(flying))
            heapq.heappush(flying, (end, now, failures + 1 if step.fails(attempts) else 0))
            attempts += 1
            continue
        now, began, failures = heapq.heappop(flying)
        if failures:
            heapq.heappush(again, (now + min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT), failures))
            continue
        throttle.answer(now, began)
        ended += 1
        half = now if ended <= calls // 2 else half
    rate = (calls - calls // 2) / max(now - half, 1e-9) if calls else 1.0
    return now + (step.calls - calls) / rate
