"""Drift: is the promise still kept, and is the traffic still what it was? Two alarms that may run for ever.

The promise, "at most a share δ of the answers served is wrong", is tested by betting (Waudby-Smith and Ramdas 2023,
arXiv 2010.09686): a gambler starts with 1 and stakes, before each judged answer, a fixed part s of what there is on
"wrong" at the odds of δ. A right answer leaves 1 − s of it, a wrong one makes it 1 + s(1 − δ)/δ. While the promise
holds, the capital cannot grow in expectation, so it ever reaches 1/α with probability at most α (Ville's inequality),
however long it runs and however often one looks. Worked: δ = .05, s = .25: one wrong answer makes 5.75 of 1, and the
16 right ones after it leave .058 of 1.

A capital that has shrunk for months reacts late to a change. So a new gambler starts every `BLOCK` answers, the k-th
with 1/(k(k + 1)) of the money (all shares together: 1), divided over several stakes. A mean of fair games is a fair
game. All who have started stake alike, so their money is one sum for each stake.

The traffic is compared by a number that each question brings along: its similarity to the nearest of a reference
sample, the first `REFERENCE` questions, which then stays as it is. (The similarity to the nearest *stored* question
would not do: it rises while the store fills and falls when entries go, with the same traffic.) Given the reference, the
numbers of a stream that does not change are draws from one distribution, whatever the cache does. Windows of n are
compared with the first n after the reference by the largest distance D of their distribution functions.
P(any D this large | same distribution) ≤ e·exp(−n D²), for every n (Wei and Dudley 2012, two-sample
Dvoretzky–Kiefer–Wolfowitz inequality with constant e). Worked: n = 1,000, D = .09: .00083. The k-th window may use
α/(k(k + 1)), so all together use at most α. It takes questions as independent of each other, and does not see a change
that leaves these similarities as they are.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, require_share

ALPHA = 0.05  # chance of ever a false alarm, of each of the two
BLOCK = 50  # judged answers between two starts
STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
REFERENCE = 500  # questions
WINDOW = 1000  # questions
ROOM = 10_000  # texts whose similarity is remembered
DIGITS = 3  # of a similarity: rounding errors of an equal vector must not look like another distribution
LARGEST = 1e300  # of a gambler's money, so that it stays a number


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm, from when on (Unix seconds), and what is the matter in plain words."""

    since: float
    told: str


class PromiseWatch:
    """The evidence against a promise, answer by answer: a few operations each, however many went before.

    Safe for threads.

    Attributes:
        judged, wrong: answers so far. evidence: all the money there is, from 0 up; 1 before the first answer.
    """

    def __init__(self, delta: float, *, alpha: float = ALPHA, clock: Callable[[], float] = time.time) -> None:
        require_share("delta", delta)
        require_share("alpha", alpha)
        self.delta, self.alpha = delta, alpha
        self.judged = self.wrong = 0
        self.evidence = 1.0
        self.alarm: Alarm | None = None
        self._clock = clock
        self._factors = 1 - STAKES, 1 + STAKES * (1 - delta) / delta  # what is left after a right and a wrong answer
        self._money = np.zeros(len(STAKES))  # of all who have started, by stake: they win and lose alike
        self._wrong_before: list[int] = []  # wrong answers before each start
        self._lock = threading.Lock()

    def see(self, wrong: bool) -> bool:
        """Take the verdict on one served answer; say whether the alarm begins with it."""
        with self._lock:
            if self.judged % BLOCK == 0:
                self._start()
            self.judged, self.wrong = self.judged + 1, self.wrong + wrong
            self._money = np.minimum(self._money * self._factors[wrong], LARGEST)
            waiting = 1 / (len(self._wrong_before) + 1)  # what the gamblers who have not started hold
            self.evidence = float(self._money.mean()) + waiting
            if self.alarm is not None or self.evidence < 1 / self.alpha:
                return False
            self.alarm = Alarm(self._clock(), self._tell())
            return True

    def _start(self) -> None:
        self._wrong_before.append(self.wrong)
        number = len(self._wrong_before)
        self._money = self._money + 1 / (number * (number + 1))

    def _tell(self) -> str:
        before = np.array(self._wrong_before)
        judged, wrong = self.judged - BLOCK * np.arange(len(before)), self.wrong - before
        right_factor, wrong_factor = np.log(self._factors)
        capital = (judged - wrong)[:, None] * right_factor + wrong[:, None] * wrong_factor
        worst = int(np.logaddexp.reduce(capital, axis=1).argmax())  # whoever won most says since when it goes wrong
        return (
            f"more than {self.delta:.1%} of the answers served are wrong: {wrong[worst]} of the last {judged[worst]} "
            f"that were judged (evidence {self.evidence:.3g}, the alarm is at {1 / self.alpha:g})"
        )


def compare_windows(first: ArrayLike, second: ArrayLike) -> float:
    """Return an upper bound of the p-value of "both windows (n,) have one distribution"; 1 at most."""
    left, right = np.sort(np.asarray(first, dtype=np.float64)), np.sort(np.asarray(second, dtype=np.float64))
    if len(left) != len(right) or not len(left):
        raise ConfigurationError(f"windows of {len(left)} and {len(right)} values", expected="equally many, not none")
    points = np.concatenate([left, right])
    shares = [np.searchsorted(side, points, side="right") / len(side) for side in (left, right)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    return min(1.0, math.exp(1 - len(left) * distance**2))


class StreamWatch:
    """Similarities to the nearest of the first `reference` questions, windows of `size` against the first window.

    For one thread.

    Attributes:
        first, latest: similarities of two windows, None until they are full. windows: comparisons so far.
    """

    def __init__(
        self,
        *,
        reference: int = REFERENCE,
        size: int = WINDOW,
        alpha: float = ALPHA,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_share("alpha", alpha)
        self.reference, self.size, self.alpha = reference, size, alpha
        self.windows = 0
        self._clock = clock
        self._learn()

    def _learn(self) -> None:
        self.first: NDArray[np.float64] | None = None
        self.latest: NDArray[np.float64] | None = None
        self.alarm: Alarm | None = None
        self._learnt = 0
        self._early: dict[str, Embeddings] = {}
        self._matrix: Embeddings | None = None
        self._known: dict[str, float | None] = {}  # the least recently asked first
        self._open: list[float] = []

    @property
    def missing(self) -> int:
        """How many questions the reference, or once that is there the window at hand, still lacks."""
        return self.reference - self._learnt + self.size - len(self._open)

    def see(self, key: str, vector: Embeddings | None) -> bool:
        """Take one question; say whether the alarm begins with it.

        Args:
            key: of its text; a text keeps the number that it had first, with whatever vector it comes again.
            vector: (d,) of length 1; None where the text has none, and then it does not count.
        """
        if self._matrix is None:
            self._add_early(key, vector)
            return False
        number = self._known.pop(key, None) if key in self._known else self._measure(vector)
        self._known[key] = number
        if len(self._known) > ROOM:
            del self._known[next(iter(self._known))]
        if number is None:
            return False
        self._open.append(number)
        if len(self._open) < self.size:
            return False
        window, self._open = np.array(self._open), []
        return self._compare(window)

    def _add_early(self, key: str, vector: Embeddings | None) -> None:
        if vector is None:
            return
        self._early.setdefault(key, vector)
        self._learnt += 1
        if self._learnt == self.reference:
            self._matrix, self._early = np.stack(list(self._early.values())), {}

    def _measure(self, vector: Embeddings | None) -> float | None:
        if vector is None or self._matrix is None:
            return None
        nearest = float((self._matrix @ vector).max())
        return round(nearest, DIGITS) if math.isfinite(nearest) else None

    def _compare(self, window: NDArray[np.float64]) -> bool:
        if self.first is None:
            self.first = window
            return False
        self.latest = window
        self.windows += 1
        due = self.alpha / (self.windows * (self.windows + 1))
        if self.alarm is not None or compare_windows(self.first, window) > due:
            return False
        self.alarm = Alarm(self._clock(), self._tell(self.first, window))
        return True

    def accept(self) -> None:
        """Learn anew from the next questions what is usual; the alarm ends. What of α is spent stays spent.

        The window that raised the alarm is no measure: it was picked for being unlike the others, and may hold the
        stream before the change as well.
        """
        self._learn()

    def _tell(self, first: NDArray[np.float64], window: NDArray[np.float64]) -> str:
        before, now = float(np.median(first)), float(np.median(window))
        why = "other questions than before" if now < before else "the early questions are asked more often"
        return (
            f"the stream has changed: the median similarity to the nearest of {self.reference:,} early questions was "
            f"{before:.3f} in the {self.size:,} after them and is {now:.3f} in the latest {self.size:,} ({why})"
        )
