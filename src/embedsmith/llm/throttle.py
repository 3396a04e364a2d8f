"""How many calls may be out at once: found by trying, since no server says what it can take.

Two signs decide. More calls at once that bring no more answers in the same time only stand in a queue, so growth stops
(the latency gradient of TCP Vegas, by Little's law: answers a second = window / latency). A 429 or a timeout halves the
window; it then comes back to just below the size at which the refusal came, stays there, and tries again later with
steps that grow with time (TCP CUBIC). Time is an argument everywhere: nothing here waits or reads a clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

START = 8.0  # calls at once before anything is known
PAYS = 0.3  # share of a larger window that must come back as answers a second, for growth to go on
ROUND = 0.25  # seconds over which answers are counted, at least
REST = 3.0  # seconds between two attempts to grow, where growth did not pay
BELOW = 0.97  # of the size that was refused: where the window rests
HOLD, LONGEST_HOLD = 5.0, 30.0  # seconds for which it rests there; twice as long each time that it was right
SHRINK = (0.92, 0.88, 0.7, 0.6)  # lower bounds of the new size, as shares of the old: 1st, 2nd, … refusal within SOON
SOON = 3.0  # seconds after recovery within which another refusal says that the size is wrong by more than a little
HARDLY_MORE = 1.05  # a limit that is found again grows by so much at most
SLOW = 0.98  # weight of the past in the mean time of an answer
GOLDEN = 0.6180339887  # turns of a window's fraction: 3.7 is 4 calls at once in 7 of 10 turns, evenly spread
LEAST, LEAST_REFUSED = 1.0, 0.02  # the smallest window; that of a server that refuses calls sent one at a time
EVEN = 0.75  # minimum spacing of calls, as a share of the mean interval, once the server has refused any
OFTEN = 0.25  # recent share of refused calls from which on the size may fall below one call at a time
SEEN, PATIENCE, SHORTEST = 200, 4.0, 3.0  # a call may take four times as long as the slowest of the last 200
KNOWN = 20  # answers before the timeout follows them


@dataclass(slots=True)
class _Round:
    """Answers counted at one size of the window."""

    began: float
    skip: int  # answers to calls of the former size
    answers: int = 0


class Throttle:
    """The window of calls in flight, between a fraction and `ceiling`.

    >>> throttle = Throttle(64)
    >>> throttle.delay(0.0, in_flight=0), throttle.delay(0.0, in_flight=8)
    (0.0, None)
    """

    def __init__(self, ceiling: int, *, start: float = START) -> None:
        self.ceiling = float(max(ceiling, 1))
        self.window = min(start, self.ceiling)
        self.latency = 0.0  # of answers, smoothed, in seconds
        self._limit: float | None = None  # size at which the server refused
        self._cut_at = self._resume_at = -math.inf
        self._since_cut = 0
        self._hold = HOLD
        self._soon = 0  # cuts of the window that followed one another soon
        self._refused = 0.0  # share of calls that came back as 429, smoothed
        self._round: _Round | None = None
        self._base: tuple[float, float] | None = None  # window and answers a second before the last growth
        self._rest_until = -math.inf
        self._last_sent = -math.inf
        self._slowest: deque[float] = deque(maxlen=SEEN)
        self._full = False
        self._turn = 0.0

    @property
    def refused_at(self) -> float | None:
        """The size of the window at which the server refused, None where it does not (any more)."""
        return self._limit

    def delay(self, now: float, in_flight: int) -> float | None:
        """Return seconds until the next call may go out (0: now), or None: when another one has ended."""
        if now < self._resume_at:
            return self._resume_at - now
        self._recover(now)
        if in_flight >= max(math.floor(self.window + self._turn), 1):
            self._full = True
            return None
        if self._limit is None:
            return 0.0
        interval = self.latency / self.window  # so many seconds between calls, on average
        return max(self._last_sent + (interval if self.window < 1 else EVEN * interval) - now, 0.0)

    def send(self, now: float) -> None:
        """Note that a call goes out."""
        credit = EVEN * self.latency / self.window if self.window >= 1 and self._limit is not None else 0.0
        self._last_sent = max(self._last_sent + credit, now - credit) if credit else now

    def answer(self, now: float, sent: float) -> None:
        """Note an answer to a call that went out at `sent`."""
        took = now - sent
        self._slowest.append(took)
        self.latency = took if not self.latency else SLOW * self.latency + (1 - SLOW) * took
        self._refused *= 0.98
        self._since_cut += sent >= max(self._cut_at, self._resume_at)
        self._turn = (self._turn + GOLDEN) % 1
        if self._limit is None:
            self._climb(now)

    def push_back(self, now: float, sent: float, *, crowd: int, retry_after: float | None = None) -> None:
        """Note a 429 to a call that went out at `sent` as one of `crowd` in flight; all calls wait `retry_after`."""
        self._refused = 0.98 * self._refused + 0.02
        if sent >= self._cut_at:  # else it left before the window was halved, and says nothing of its present size
            self._shrink(now, crowd)
        if retry_after:
            self._resume_at = max(self._resume_at, now + retry_after)

    def _shrink(self, now: float, crowd: int) -> None:
        size = min(self.window, max(crowd - 1, 1))
        if self._limit is not None:  # that fewer were in flight for a moment says little
            size = max(size, 0.9 * self.window)
        if self._limit is not None and now - self._recovered_at() < SOON:
            passed = self._since_cut / max(now - max(self._cut_at, self._resume_at), 1e-3) * (self.latency or 1.0)
            least = SHRINK[min(self._soon, len(SHRINK) - 1)] * size
            size, self._soon = min(max(passed, least), 0.95 * size), self._soon + 1
        else:
            self._soon = 0
        right = self._limit is not None and 0.8 < size / self._limit < 1.25
        if right and self._limit is not None:  # what a server has saved up flatters the attempt
            size = min(size, HARDLY_MORE * self._limit)
        self._hold = min(2 * self._hold, LONGEST_HOLD) if right else HOLD
        least = LEAST_REFUSED if self._refused >= OFTEN or (self._limit or 1.0) < 1 else LEAST
        self._cut(now, max(size, least), least)

    def time_out(self, now: float, sent: float) -> None:
        """Note a call that got no answer in time."""
        if sent >= self._cut_at:
            self._cut(now, max(self._limit or self.window, LEAST), LEAST)

    def patience(self, ceiling: float) -> float:
        """Return the seconds that a call may take: by what others took, at most `ceiling`."""
        if len(self._slowest) < KNOWN:
            return ceiling
        return min(ceiling, max(PATIENCE * max(self._slowest), SHORTEST))

    def _cut(self, now: float, limit: float, least: float) -> None:
        self._limit, self._cut_at, self._since_cut = min(limit, self.ceiling), now, 0
        self.window = max(self.window / 2, least) if self.window / 2 < limit else limit / 2
        self._round = self._base = None

    def _recovered_at(self) -> float:
        return max(self._cut_at, self._resume_at) + max(3 * self.latency, 0.5)

    def _recover(self, now: float) -> None:
        """Lead the window back to just below the size that was refused, and after a rest beyond it."""
        if self._limit is None:
            return
        target, back = BELOW * self._limit, self._recovered_at()
        if now < back:
            start = max(self._cut_at, self._resume_at)
            share = (now - start) / (back - start)
            self.window = max(self.window, target * (0.5 + 0.5 * share))
            return
        beyond = max(now - back - self._hold, 0.0)
        self.window = min(target * (1 + 0.02 * beyond + 0.005 * beyond**3), self.ceiling)
        if self.window > 1.5 * self._limit or (beyond and self.window == self.ceiling):
            self._limit = self._round = self._base = None

    def _climb(self, now: float) -> None:
        """Grow while a larger window brings more answers in the same time."""
        if self._round is None:
            self._round = _Round(now, skip=math.ceil(self.window))
            self._full = False
        current = self._round
        if current.skip:
            current.skip -= 1
            current.began = now
            return
        current.answers += 1
        if current.answers < max(self.window, 8) or now - current.began < ROUND:
            return
        speed = current.answers / (now - current.began)
        self._round = None
        if self._full:
            self._judge(now, speed)

    def _judge(self, now: float, speed: float) -> None:
        if self._base is not None:
            size, before = self._base
            self._base = None
            if speed < before * (1 + PAYS * (self.window / size - 1)):
                self.window, self._rest_until = size, now + REST
                return
        if now >= self._rest_until and self.window < self.ceiling:
            self._base = (self.window, speed)
            self.window = min(self.window * (2.0 if self._rest_until < 0 else 1.5), self.ceiling)
