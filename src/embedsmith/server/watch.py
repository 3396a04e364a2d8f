"""What the server has seen: counts for Prometheus, and the latest decisions for the dashboard."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.cache.stores import Entry, ModelMismatch, is_within
from embedsmith.errors import describe_failure
from embedsmith.server.answers import Answer
from embedsmith.server.gate import SILENT, Gate
from embedsmith.server.oversight import Oversight, measure
from embedsmith.server.usage import read_count

LATEST = 500
HELD = 4 << 20  # characters of the latest lookups: a text may be as long as a request, whoever sends it
LOOKING, STORING = "the cache failed", "an answer could not be stored"  # what may fail in the cache
RESTART = (
    "the store belongs to another model now, as after embedsmith reencode; to do: restart this server with "
    "that model, until then everything is asked of the upstream"
)
SIMILARITIES = tuple(step / 20 for step in range(21))


@dataclass(frozen=True, slots=True)
class Seen:
    """One lookup, as the dashboard shows it.

    Attributes:
        number: for marking it. nearest: the closest stored question, whether or not it was served.
        served, served_id: the question whose answer was served, or would have been (shadow mode), and its entry's id.
        mark: the verdict that a person may give: "wrong" of what was served, "same" of the nearest of a miss; ""
            where the texts are equal, since that says nothing of a pair.
    """

    number: int
    at: float
    text: str
    outcome: str
    reason: str
    similarity: float | None
    nearest: str
    served: str
    served_id: str
    mark: str
    namespace: str
    milliseconds: float

    @property
    def size(self) -> int:
        """Characters of its texts."""
        return len(self.text) + len(self.nearest) + len(self.served)


@dataclass(frozen=True, slots=True)
class Prices:
    """What the upstream asks for a million tokens, US dollars."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What fails in the cache, from its first failure (seconds since 1970) until it has worked again."""

    since: float
    told: str


@dataclass(slots=True)
class Savings:
    """What hits did not cost.

    Attributes:
        tokens: completion tokens. money: of all tokens, at the prices given.
        seconds: that users did not wait: the mean time of the upstream for what this process has stored, less
            the lookup. 0 until something was stored.
    """

    prices: Prices
    tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    _answers: int = 0
    _waited: float = 0.0

    def answered(self, seconds: float) -> None:
        """Take note of how long the upstream took."""
        self._answers, self._waited = self._answers + 1, self._waited + seconds

    def served(self, answer: Answer, lookup: float) -> int:
        """Count a hit whose lookup took so many seconds; return its completion tokens."""
        usage = answer.body.get("usage")
        prompt, completion = (_tokens(usage, part) for part in ("prompt", "completion"))
        self.tokens += completion
        self.money += (prompt * self.prices.prompt + completion * self.prices.completion) / 1e6
        if self._answers:
            self.seconds += max(self._waited / self._answers - lookup, 0.0)
        return completion


def _tokens(usage: object, part: str) -> int:
    """Return a count of tokens as an upstream has told it, 0 where it has not."""
    return (read_count(usage.get(f"{part}_tokens")) or 0) if isinstance(usage, Mapping) else 0


class Watch:
    """Counts and the latest lookups of one server."""

    def __init__(self, cache: SemanticCache, *, shadow: bool = False, prices: Prices | None = None) -> None:
        self.registry = CollectorRegistry()
        self.oversight = Oversight(cache, self.registry, shadow=shadow)
        self.gate = cache.store if isinstance(cache.store, Gate) else None
        self.latest: deque[Seen] = deque()  # of the event loop alone; a thread gets a tuple of it
        self._held = 0  # characters in there
        self.marked: set[int] = set()
        self._troubles: dict[str, Trouble] = {}
        self.lookups = self.hits = 0
        self.savings = Savings(prices or Prices())
        self._numbers = itertools.count(1)
        self._lookups = self._count("lookups", "Lookups by outcome", ("outcome", "reason"))
        self._passed = self._count("passed", "Requests that are none for the cache", ("reason",))
        self._failures = self._count("failures", "What failed: the upstream, or the cache itself", ("reason",))
        self._stored = self._count("stored", "Answers stored")
        self._saved = self._count("saved_completion_tokens", "Completion tokens that hits did not cost")
        self._seconds = Histogram(
            "embedsmith_lookup_seconds",
            "Time of a lookup, encoding included",
            registry=self.registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
        )
        self._similarity = Histogram(
            "embedsmith_similarity", "Cosine of the nearest entry", registry=self.registry, buckets=SIMILARITIES
        )
        self._batches = Histogram(
            "embedsmith_embeddings_batch_texts",
            "Texts that one call of the encoder took for /v1/embeddings",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        for name, text, read in (
            ("saved_money", "What hits did not cost, in US dollars", lambda: self.savings.money),
            ("saved_seconds", "What users did not wait for the upstream", lambda: self.savings.seconds),
            ("entries", "Entries in the store", lambda: cache.store.count().entries),
            ("store_silent", "1 while the store does not answer and is left alone", self._is_silent),
        ):
            measure(self.registry, name, text, read)

    def _count(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"embedsmith_{name}", text, tuple(labels), registry=self.registry)

    def looked_up(self, found: Lookup, answer: Answer | None = None, *, served: Entry | None = None) -> None:
        """Count a lookup whose answer is on its way.

        Args:
            served: where a hit has become a miss (shadow mode, no-cache), the entry that would have been served.
        """
        decision = found.decision
        self._troubles.pop(LOOKING, None)
        self.lookups += 1
        self.hits += found.hit
        self._lookups.labels(_outcome(found), decision.reason).inc()
        self._seconds.observe(found.seconds)
        if decision.similarity is not None:
            self._similarity.observe(decision.similarity)
        self.oversight.looked_up(found)
        if answer is not None:
            self._saved.inc(self.savings.served(answer, found.seconds))
        self._list(_see(next(self._numbers), found, decision.entry or served))

    def _list(self, seen: Seen) -> None:
        """Put a lookup among the latest; what is too much goes, oldest first."""
        self.latest.append(seen)
        self._held += seen.size
        while len(self.latest) > LATEST or (self._held > HELD and len(self.latest) > 1):
            self._held -= self.latest.popleft().size

    def forget(self, namespace: str) -> None:
        """Take the lookups of a namespace, and of all below it, from the latest."""
        kept = [seen for seen in self.latest if not is_within(seen.namespace, namespace)]
        self.latest.clear()
        self._held = 0
        for seen in kept:
            self._list(seen)

    def passed(self, reason: str) -> None:
        """Count a request that the cache leaves alone."""
        self._passed.labels(reason.partition(" ")[0] if reason.startswith("temperature") else reason).inc()

    def failed(self, reason: str) -> None:
        """Count a failure of the upstream, or of the cache."""
        self._failures.labels(reason).inc()

    def cache_failed(self, what: str, error: Exception) -> str:
        """Count a failure of the cache and keep it in sight; return it as it may be told.

        Args:
            what: LOOKING or STORING; the next lookup, or addition, that works ends the trouble.
        """
        self.failed(what)
        told = f"{what}: {explain(error)}"
        known = self._troubles.get(what)
        self._troubles[what] = Trouble(known.since if known is not None else time.time(), told)
        return told

    def _is_silent(self) -> bool:
        return self.gate is not None and self.gate.since is not None

    @property
    def troubles(self) -> dict[str, Trouble]:
        """What fails in the cache now. For the event loop, on which it changes."""
        since = self.gate.since if self.gate is not None else None
        if self.gate is None or since is None:
            return dict(self._troubles)
        return {SILENT: Trouble(since, self.gate.told), **self._troubles}

    def stored(self, seconds: float | None = None) -> None:
        """Count an answer that was stored, for which the upstream took `seconds`."""
        self._stored.inc()
        self._troubles.pop(STORING, None)
        if seconds is not None:
            self.savings.answered(seconds)

    def encoded(self, texts: int) -> None:
        """Count a batch of texts that were encoded together."""
        self._batches.observe(texts)

    def find(self, number: int) -> Seen | None:
        """Return one of the latest lookups."""
        return next((seen for seen in self.latest if seen.number == number), None)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        self.oversight.hear()
        return generate_latest(self.registry)


def explain(error: Exception) -> str:
    """Return what failed and where, and what to do where we know it; no text of the error, which may quote rows."""
    told = describe_failure(error)
    return f"{RESTART} ({told})" if isinstance(error, ModelMismatch) else told


def _outcome(found: Lookup) -> str:
    return "hit" if found.hit else "miss"


def _see(number: int, found: Lookup, served: Entry | None) -> Seen:
    nearest = found.decision.nearest
    spoken_of = served or nearest
    equal = spoken_of is None or spoken_of.id == found.id
    return Seen(
        number=number,
        at=time.time(),
        text=found.text,
        outcome=_outcome(found),
        reason=found.decision.told if served is None else found.decision.reason,  # no veto explains what was served
        similarity=found.decision.similarity,
        nearest=nearest.text if nearest is not None else "",
        served=served.text if served is not None else "",
        served_id=served.id if served is not None else "",
        mark="" if equal else "wrong" if served is not None else "same",
        namespace=found.namespace,
        milliseconds=1000 * found.seconds,
    )
