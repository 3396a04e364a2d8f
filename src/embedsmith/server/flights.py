"""Single flight: of equal and nearly equal questions that miss at once, one asks the upstream, the rest wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import Enum

from starlette.responses import Response

from embedsmith.cache.decision import Policy, decide
from embedsmith.cache.semantic import Lookup
from embedsmith.cache.stores import Entry
from embedsmith.cache.stores.ranking import score

LONG = 2000  # characters from which on a text is no longer compared here: the guard takes seconds for very long ones
OF_SENDER = frozenset({401, 404})  # statuses that speak of the key and the model, which all in a partition share
OF_REQUEST = frozenset({400, 403, 413, 422})  # and those that may speak of the rest of the request


class Landing(Enum):
    """How a flight ended, and so what those who waited do next."""

    STORED = "the answer is stored: look again"
    EMPTY = "an answer for nobody else (cut, a call of a tool), or not stored: everyone asks for an own one"


@dataclass(frozen=True, slots=True)
class Failure:
    """The upstream failed.

    Attributes:
        response: what the one who asked was told. reason: the same for the log; "" for an error of the upstream's own.
        final: it was gone or silent, and those who waited as long get this error; else one of them tries again,
            the rest wait on, and this is for who has no time left.
        sent: the request that failed.
    """

    response: Response
    reason: str = ""
    final: bool = False
    sent: bytes = b""

    def awaits(self, sent: bytes) -> bool:
        """Say whether the request `sent`, of the same partition, would get this error again."""
        status = self.response.status_code
        return self.final or status in OF_SENDER or (status in OF_REQUEST and sent == self.sent)


class Flight:
    """One question on its way to the upstream. Whoever leads it must land it, whatever happens."""

    def __init__(self, found: Lookup, flights: Flights) -> None:
        self.found = found
        self._flights, self._landed = flights, asyncio.Event()
        self._landing: Landing | Failure = Landing.EMPTY

    async def wait(self, seconds: float) -> Landing | Failure | None:
        """Return how the flight has landed; None when it has not within so many seconds."""
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._landed.wait()
        except TimeoutError:
            return None
        return self._landing

    def land(self, landing: Landing | Failure = Landing.EMPTY) -> None:
        """Let all who wait go on; a second call does nothing."""
        if not self._landed.is_set():
            self._landing = landing
            self._landed.set()
            self._flights.remove(self)


class Flights:
    """The questions on their way. For one event loop."""

    def __init__(self, policy: Policy) -> None:
        self._policy = without_verifier(policy)
        self._open: dict[str, list[Flight]] = {}  # by partition

    def board(self, found: Lookup) -> tuple[Flight, bool]:
        """Return the flight that will answer `found`, and whether the caller leads it."""
        known = self._find(found)
        if known is not None:
            return known, False
        flight = Flight(found, self)
        self._open.setdefault(found.partition, []).append(flight)
        return flight, True

    def remove(self, flight: Flight) -> None:
        """Forget a landed flight."""
        rest = [other for other in self._open.pop(flight.found.partition, ()) if other is not flight]
        if rest:
            self._open[flight.found.partition] = rest

    def _find(self, found: Lookup) -> Flight | None:
        by_id = {flight.found.id: flight for flight in self._open.get(found.partition, ())}
        if found.id in by_id or found.vector is None or len(found.text) >= LONG:
            return by_id.get(found.id)
        others = [flight.found for flight in by_id.values()]
        entries = [_as_entry(other) for other in others if other.vector is not None and len(other.text) < LONG]
        policy = self._policy.within(found.namespace, found.text)
        matches = score(found.vector, entries)[: policy.candidates]
        decision = decide(found.text, matches, policy)
        return by_id[decision.entry.id] if decision.entry is not None else None


def without_verifier(policy: Policy) -> Policy:
    """Return rules that serve only what `policy` serves whatever its verifier says.

    A verifier takes tens of milliseconds, and boarding is done on the event loop, which all other requests wait for.
    Whoever is not let on board by these rules looks again later, and may cost one call of the upstream more.
    """
    reach = policy.reach
    return replace(
        policy,
        verifier=None,
        threshold=policy.threshold + reach,
        thresholds={namespace: threshold + reach for namespace, threshold in policy.thresholds.items()},
        conversations=policy.conversations + reach if policy.conversations is not None else None,
    )


def _as_entry(found: Lookup) -> Entry:
    assert found.vector is not None
    return Entry(found.id, found.namespace, found.partition, found.text, "", found.vector, 0.0)
