"""When a server counts as dead: a run that nobody answers stops, instead of spending its rows and its money.

Three signs, each after calls that succeeded, and ended by any answer:

1. Attempts that fail through the server (5xx, no answer in time, a connection that breaks) in a row. From `FAULTS` of
   them on, one call at a time finds out whether it is back; after `LONGEST` seconds the run stops. Where nobody listens
   at the address no row is at fault: its calls are put off until then, the last ones, too.
2. Calls that are refused in the same words (4xx: "your credit is used up") in a row: `ALIKE` of them.
3. Calls that were given up after nothing but 429s, in a row: `FIRST_FAILURES` of them.

And where nothing has succeeded yet: `FIRST_FAILURES` calls that failed, of whatever kind. Time is an argument
everywhere: nothing here waits or reads a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_FAILURES = 5  # calls that fail before any succeeds
FAULTS = 20  # attempts; of a server that fails one in two, once in a million
LONGEST = 300.0  # seconds: a server of one's own that is started again, with its model, is back by then
PROBE, SHORTEST_WAIT, LONGEST_WAIT = 0.25, 0.5, 30.0  # wait before a probe: this share of the outage so far, in seconds
ALIKE = 50  # a message about a prompt mostly holds a number, and prompts of one kind seldom come in such a row


@dataclass(slots=True)
class Health:
    """What the last calls say of a server.

    Attributes:
        longest: seconds for which a server may fail.
    """

    longest: float = LONGEST
    succeeded: bool = False
    failed: int = 0  # calls
    _faults: int = 0
    _since: float = 0.0
    _probe_at: float = -math.inf
    _alike: int = 0
    _reason: str = ""
    _unserved: int = 0

    @property
    def is_down(self) -> bool:
        """Say whether one call at a time should find out if the server is back."""
        return self.succeeded and self._faults >= FAULTS

    def is_gone(self, now: float) -> bool:
        """Say whether a server is down for longer than it may be."""
        return self.is_down and now - self._since > self.longest

    def delay(self, now: float) -> float:
        """Return seconds until the next call may find out whether a server that is down is back."""
        return max(self._probe_at - now, 0.0)

    def answer(self) -> None:
        """Note an answer."""
        self.succeeded = True
        self._faults = self._alike = self._unserved = 0

    def fault(self, now: float) -> None:
        """Note an attempt that failed through the server."""
        self._since = self._since if self._faults else now
        self._faults += 1
        self._probe_at = now + min(max(PROBE * (now - self._since), SHORTEST_WAIT), LONGEST_WAIT)

    def refuse(self, reason: str) -> None:
        """Note a call that was refused for good: the server is there, and may refuse all."""
        self._faults = 0
        self._alike = self._alike + 1 if reason == self._reason else 1
        self._reason = reason

    def give_up(self, *, pushed_back: bool) -> None:
        """Note a call that failed for good; `pushed_back`: its last attempt was a 429."""
        self.failed += 1
        self._unserved += pushed_back

    def judge(self, now: float, *, untried: bool) -> str:
        """Return why the run should stop, "" if it should go on.

        Args:
            untried: there are calls that never went out. Without them the last ones are tried as often as any call:
                all that is left may be the few that a server cannot answer.
        """
        if not self.succeeded:
            return f"the first {self.failed} calls all failed" if self.failed >= FIRST_FAILURES else ""
        if untried and self.is_gone(now):
            return f"{self._faults} attempts in a row failed, over {now - self._since:.0f} s"
        if self._alike >= ALIKE:
            return f"{self._alike} calls in a row were refused in the same words"
        if self._unserved >= FIRST_FAILURES:
            return f"{self._unserved} calls in a row got nothing but 429, until they were given up"
        return ""
