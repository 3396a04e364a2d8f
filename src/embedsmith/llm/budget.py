"""A budget of calls and money that is not exceeded, over all runs of a model that share a journal.

Before a call goes out, the most that it can cost is reserved: its prompt counted from above and a completion of
`max_tokens`. When it ends, the reservation becomes what the server says it used. An attempt that was cut, dropped or
answered with a server error may have been billed, and counts in full; one that was turned away (4xx) counts as a call
without tokens. A server that writes more than `max_tokens` is believed to do so again: from its first such answer on,
each call is reserved as much more. What was in flight until then, by rule the first call alone, can exceed the limit.

Reservations are on disk before a call leaves, a few calls at a time (a grant): if the process is killed, what was
granted counts as spent, since nobody can tell which of those calls were billed.
"""

from __future__ import annotations

import json
import math
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from embedsmith.errors import ConfigurationError
from embedsmith.llm import Prompt, Sampling

OVERHEAD = 128  # tokens that a chat template may add of its own
BLOCK = 8  # calls granted at once, at least
NANO = 10**9
DEAREST = 1e9  # US dollars for a million tokens; more is a mistake, and sums of it may be no number any more


@dataclass(frozen=True, slots=True)
class Usage:
    """Calls and tokens; they add up."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + other.times(-1)

    def times(self, factor: int) -> Usage:
        """Return as much `factor` times."""
        return Usage(self.calls * factor, self.prompt_tokens * factor, self.completion_tokens * factor)

    def covers(self, other: Usage) -> bool:
        """Say whether no part of `other` is larger."""
        return (
            self.calls >= other.calls
            and self.prompt_tokens >= other.prompt_tokens
            and self.completion_tokens >= other.completion_tokens
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is set aside for a call that is out.

    Attributes:
        most: that the call can use. excess: by which its bounds of prompt and completion tokens were multiplied.
    """

    most: Usage = Usage()
    excess: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens, as the user's contract says; there is no table here that could be out of date.

    >>> Price.parse("0.15,0.60").of(Usage(1, 2_000_000, 1_000_000))
    0.9
    """

    input_per_million: float
    output_per_million: float

    def __post_init__(self) -> None:
        given = self.input_per_million, self.output_per_million
        if not all(0 <= value <= DEAREST for value in given):
            raise _no_price(f"{given[0]},{given[1]}")

    @classmethod
    def parse(cls, text: str) -> Price:
        """Return the price in "INPUT,OUTPUT".

        Raises:
            ConfigurationError: not two numbers from 0 to `DEAREST`.
        """
        try:
            prompt, completion = map(float, text.split(","))
            return cls(prompt, completion)
        except (ValueError, ConfigurationError):
            raise _no_price(text) from None

    def of(self, usage: Usage) -> float:
        """Return the US dollars for `usage`."""
        return self._nano(usage) / NANO

    def _nano(self, usage: Usage) -> int:
        """Return billionths of a dollar, rounded up, so that sums are exact and never too low."""
        rates = (usage.prompt_tokens, self.input_per_million), (usage.completion_tokens, self.output_per_million)
        return sum(math.ceil(round(tokens * rate * 1000, 6)) for tokens, rate in rates)


def _no_price(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text!r} is no price",
        expected="US dollars for a million prompt tokens and a million completion tokens, such as 0.15,0.60",
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent, as plain values: the arguments of a `Budget`."""

    max_calls: int | None = None
    max_cost: float | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        self.open()  # limits that cannot be are an error now, not after the first stage

    def open(self) -> Budget:
        """Return a budget within these limits."""
        return Budget(max_calls=self.max_calls, max_cost=self.max_cost, price=self.price)


class Ledger(Protocol):
    """Where spending is kept: a journal, for one model. `write` is durable on return.

    The lock of the ledger is taken before the budget's own.
    """

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The lock of whoever writes."""
        ...

    def read(self) -> tuple[Usage, Usage]:
        """Return what was spent, and what was granted and has not come back."""
        ...

    def read_committed(self) -> Usage:
        """Return the most that calls which are out in batches can cost."""
        ...

    def write(self, spent: Usage, granted: Usage) -> None:
        """Keep both."""
        ...


def bound_tokens(prompt: Prompt) -> int:
    """Return a number of prompt tokens that no tokenizer of bytes exceeds: a token holds at least one byte.

    The schema counts too: some servers write it into the prompt.

    >>> bound_tokens(Prompt("", "hello", "1", "t", schema={}))
    135
    """
    texts = (prompt.system, prompt.user, json.dumps(dict(prompt.answer_schema), ensure_ascii=False))
    return OVERHEAD + sum(len(text.encode("utf-8", "replace")) for text in texts)


class Budget:
    """What may be spent, and what is.

    Without limits it only keeps the books. It may be used from several threads.

    Args:
        max_calls: attempts that leave for the server, over all runs of the model with the journal.
        max_cost: US dollars, over all runs of the model with the journal; needs `price`.

    Attributes:
        ended: a call could not be paid for, not even with all other calls settled; no call goes out any more.
        lost: what a killed run may have spent without saying so; it counts as spent.

    Raises:
        ConfigurationError: a cost without a price, or a negative limit.
    """

    def __init__(
        self, *, max_calls: int | None = None, max_cost: float | None = None, price: Price | None = None
    ) -> None:
        if max_cost is not None and price is None:
            raise ConfigurationError(
                "a limit of cost needs a price", expected="INPUT,OUTPUT in US dollars for a million tokens"
            )
        if (max_calls or 0) < 0 or not (max_cost or 0) >= 0:
            raise ConfigurationError("a limit of calls or of cost is negative", expected="0 or more")
        self.max_calls, self.max_cost, self.price = max_calls, max_cost, price
        self.ended = False
        self.lost = Usage()
        self.spent = Usage()
        self._reserved = Usage()
        self._cover = Usage()  # what the ledger says was spent or may be: never less than is spent and reserved
        self._committed = Usage()  # out in batches, kept by the ledger
        self._excess = (1.0, 1.0)  # largest ratio of used to expected tokens so far, of prompt and completion
        self._ledger: Ledger | None = None
        self._lock = threading.Lock()

    def bind(self, ledger: Ledger) -> None:
        """Go on from what the ledger says was spent."""
        if self._ledger is None:
            self._ledger = ledger
            spent, self.lost = ledger.read()
            self.spent = self._cover = spent + self.lost
            self._committed = ledger.read_committed()

    @property
    def cost(self) -> float | None:
        """US dollars spent so far, over all runs; None without a price."""
        with self._lock:
            return None if self.price is None else self.price.of(self.spent)

    def reserve(self, prompt: Prompt, sampling: Sampling, *, durable: bool = True) -> Reservation | None:
        """Return the most that a call can use, now set aside and on disk; None if there is no room for it.

        Args:
            durable: False for a call that cannot leave before something else is on disk.
        """
        with self._lock:
            tokens = bound_tokens(prompt) * self._excess[0], sampling.max_tokens * self._excess[1]
            worst = Usage(1, *map(math.ceil, tokens))
            if self.ended or not self._fits(worst):
                return None
            self._reserved += worst
            reservation = Reservation(worst, self._excess)
            covered = not durable or self._ledger is None or self._cover.covers(self.spent + self._reserved)
        if not covered:
            self._grant(worst)
        return reservation

    def settle(self, reservation: Reservation, used: Usage | None = None) -> None:
        """Turn a reservation into what was used; None: unknown, so all of it."""
        with self._lock:
            reserved = reservation.most
            used = used or reserved
            self._reserved -= reserved
            self.spent += used
            pairs = (used.prompt_tokens, reserved.prompt_tokens), (used.completion_tokens, reserved.completion_tokens)
            seen = (
                1.1 * factor * tokens / most if tokens > most > 0 else 1.0
                for factor, (tokens, most) in zip(reservation.excess, pairs, strict=True)
            )
            prompt, completion = map(max, self._excess, seen)
            self._excess = prompt, completion

    def commit(self, reserved: Usage) -> None:
        """Turn the reservation of a call that is in a batch file into one that the ledger keeps until it is read."""
        with self._lock:
            self._reserved -= reserved
            self._committed += reserved

    def end(self) -> bool:
        """Note that a call got no reservation; True (no call goes out then) if no other's end could make room."""
        with self._lock:
            self.ended = self.ended or not self._reserved.calls
            return self.ended

    def books(self) -> tuple[Usage, Usage]:
        """Return what was spent and what is granted; call it with the ledger's lock, and write both at once."""
        with self._lock:
            if not self._reserved.calls:
                self._cover = self.spent
            return self.spent, self._cover - self.spent

    def flush(self) -> None:
        """Write the books."""
        if self._ledger is not None:
            with self._ledger.lock:
                self._ledger.write(*self.books())

    def _fits(self, worst: Usage) -> bool:
        total = self.spent + self._committed + self._reserved + worst
        if self.max_calls is not None and total.calls > self.max_calls:
            return False
        return self.max_cost is None or self.price is None or self.price.of(total) <= self.max_cost

    def _grant(self, worst: Usage) -> None:
        """Put more on disk than is out, so that not every call waits for the disk."""
        ledger = self._ledger
        if ledger is None:
            return
        with ledger.lock:
            with self._lock:
                ahead = max(BLOCK, self._reserved.calls)
                while ahead and not self._fits(worst.times(ahead)):
                    ahead //= 2
                granted = self._reserved + worst.times(ahead)
                self._cover, spent = self.spent + granted, self.spent
            ledger.write(spent, granted)
