"""Samples: a random share of the lookups, queued to be judged; what the verdicts say of the answers served.

Drawn is what the cache serves or would serve by similarity (an equal text needs no judge), and what it would serve
were the threshold lower by a margin, so that a recalibration can lower it. Whether a lookup is drawn depends on
chance alone, and samples are judged in the order in which they were drawn: only so do the verdicts say how often the
cache is wrong. The queue is in memory and ends with the process; verdicts go into the feedback file.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from embedsmith.cache.decision import Decision, Policy, decide
from embedsmith.cache.drift import PromiseWatch
from embedsmith.cache.feedback import Feedback, Judged, settle_rows
from embedsmith.cache.stores import Match, is_within
from embedsmith.calibration import bound_rate
from embedsmith.errors import ConfigurationError
from embedsmith.settlement import PERSON, pair_of

LOG = logging.getLogger("embedsmith.cache")
ROOM = 1000  # samples that wait
LONGEST = 20_000  # characters of a pair; a longer one is not drawn
ALPHA = 0.05  # of the bound


@dataclass(frozen=True, slots=True)
class SampleRule:
    """What is drawn.

    Attributes:
        share: of the lookups, 0 to 1. margin: cosine below the threshold down to which pairs are drawn as well.
        room: samples that may wait, and as many that a judge has left for people; more are dropped, and counted.
        seed: of the draw; None for another one in every process.
    """

    share: float
    margin: float = 0.05
    room: int = ROOM
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigurationError(f"the share {self.share} to sample", expected="a number from 0 to 1")
        if not 0 <= self.margin <= 2:
            raise ConfigurationError(
                f"the margin {self.margin} to sample", expected="a difference of cosines, from 0 to 2"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair that was drawn and waits for its verdict.

    Attributes:
        threshold: from which on answers were served. floor: lowest cosine at which pairs were drawn.
        drawn: Unix seconds.
    """

    number: int
    asked: str
    stored: str
    stored_id: str
    cosine: float
    threshold: float
    floor: float
    namespace: str
    drawn: float

    @property
    def served(self) -> bool:
        """Say whether the cache serves such a pair (or would, in shadow mode)."""
        return self.cosine >= self.threshold


@dataclass(frozen=True, slots=True)
class Estimate:
    """How often the cache is wrong, from the judged samples of what it served."""

    judged: int
    wrong: int

    @property
    def rate(self) -> float | None:
        """Share of the judged that is wrong; None before the first."""
        return self.wrong / self.judged if self.judged else None

    @property
    def bound(self) -> float:
        """Upper end of the exact one-sided interval of the rate at confidence .95; 1 before the first verdict.

        It holds for one look at a time chosen beforehand. Whoever looks every day goes by the drift alarm.
        """
        return bound_rate(self.wrong, self.judged, ALPHA)


@dataclass(slots=True)
class Counts:
    """What became of the draws of this process."""

    drawn: int = 0
    judged: int = 0
    dropped: int = 0  # the queue (or that for people) was full, or the texts too long


class Samples:
    """The draw, the queue and the verdicts. Safe for threads; nothing here waits for a judge.

    Args:
        feedback: the file for verdicts, of those that others add as well. judged: the rows that were read of it; what
            is of this model at the thresholds of today counts.
        model: fingerprint. threshold_for: the threshold of a namespace, for a text.
        delta: most wrong answers among those served that is promised; the alarm watches it.
        since: Unix seconds by namespace; earlier verdicts chose the threshold of the namespace, and do not judge it.
    """

    def __init__(
        self,
        rule: SampleRule,
        feedback: Feedback,
        judged: Sequence[Judged],
        *,
        model: str,
        threshold_for: Callable[[str, str], float],
        delta: float = 0.05,
        since: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rule, self.promise, self.counts = rule, PromiseWatch(delta, clock=clock), Counts()
        self.arrived = threading.Event()
        self._feedback, self._model, self._clock = feedback, model, clock
        self._threshold_for, self._since = threshold_for, dict(since or {})
        self._random = random.Random(rule.seed)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Sample] = {}  # in the order of the draw
        self._judging: set[int] = set()
        self._for_people: set[int] = set()
        self._tally: dict[str, tuple[int, int]] = {}
        self._known: dict[int, int] = {}  # samples that wait for their turn, with the verdict of a person's mark
        self._hear(judged, False)
        feedback.listen(self._hear)

    def _hear(self, rows: Sequence[Judged], anew: bool) -> None:
        """Count the verdicts in rows of the file; those of this process come this way, too, so each counts once."""
        if anew:
            with self._lock:
                self._tally = {}
            self.promise = PromiseWatch(self.promise.delta, clock=self._clock)
        for row in settle_rows(rows):
            if self._counts(row):
                self._count(row)

    def _counts(self, row: Judged) -> bool:
        """Say whether a verdict tells of what this cache serves now."""
        threshold = self._threshold_for(row.namespace, row.sentence1)
        return (
            row.source == "sample"
            and row.model == self._model
            and row.cosine is not None
            and row.cosine >= threshold
            and (row.floor is None or row.floor <= threshold)
            and row.marked > self._since.get(row.namespace, float("-inf"))
        )

    def _count(self, row: Judged) -> None:
        wrong = row.label == 0
        with self._lock:
            judged, before = self._tally.get(row.namespace, (0, 0))
            self._tally[row.namespace] = judged + 1, before + wrong
        if self.promise.see(wrong) and self.promise.alarm is not None:
            LOG.warning("drift: %s", self.promise.alarm.told)

    def draw(self) -> bool:
        """Say whether the lookup at hand is drawn; by chance alone."""
        return self.rule.share > 0 and self._random.random() < self.rule.share

    def offer(
        self,
        asked: str,
        namespace: str,
        matches: Sequence[Match],
        decision: Decision,
        policy: Policy,
        refused: Collection[str],
    ) -> None:
        """Queue what is served for a drawn lookup, or would be were the threshold lower by the margin.

        Args:
            policy: the rules for the question in its namespace. decision: theirs on `matches`, closest first.
            refused: see `decide`.
        """
        floor = policy.threshold - self.rule.margin
        if not decision.hit:  # the nearest that the guard lets pass, as the verifier moves it
            lower = replace(policy, threshold=floor - policy.reach, verifier=None)
            decision = decide(asked, matches, lower, refused)
        entry, cosine = decision.entry, decision.moved if decision.moved is not None else decision.similarity
        if entry is None or cosine is None:
            return
        if decision.moved is None and policy.doubts(cosine):
            cosine = policy.move(asked, entry.text, cosine)
        if cosine >= floor:
            self.put(
                asked=asked,
                stored=entry.text,
                stored_id=entry.id,
                cosine=cosine,
                threshold=policy.threshold,
                namespace=namespace,
            )

    def put(self, *, asked: str, stored: str, stored_id: str, cosine: float, threshold: float, namespace: str) -> None:
        """Queue a drawn pair; it is dropped and counted when the queue is full or its texts are too long."""
        number, floor = next(self._numbers), threshold - self.rule.margin
        sample = Sample(number, asked, stored, stored_id, cosine, threshold, floor, namespace, self._clock())
        with self._lock:
            self.counts.drawn += 1
            # What is left for people has room of its own: where nobody comes, the judge goes on.
            if len(self._waiting) - len(self._for_people) >= self.rule.room or len(asked) + len(stored) > LONGEST:
                self.counts.dropped += 1
                return
            self._waiting[number] = sample
        self.arrived.set()

    def take(self, most: int) -> list[Sample]:
        """Return the oldest samples that wait for a judge who is no person; they are in its hands."""
        with self._lock:
            self.arrived.clear()
            free = (number for number in self._free() if number not in self._known)
            numbers = list(itertools.islice(free, most))
            self._judging.update(numbers)
            taken = [self._waiting[number] for number in numbers]
        self._settle_known()
        return taken

    def _free(self) -> list[int]:
        taken = self._judging | self._for_people
        return [number for number in self._waiting if number not in taken]

    def give_back(self, number: int, *, for_people: bool = False) -> None:
        """Take back a sample that the judge could not judge; it waits on, or is left for people while there is room."""
        with self._lock:
            self._judging.discard(number)
            if not for_people or number not in self._waiting:
                return
            if len(self._for_people) < self.rule.room or number in self._known:
                self._for_people.add(number)
            else:
                del self._waiting[number]
                self.counts.dropped += 1

    def decide(self, asked: str, stored: str, label: int, namespace: str) -> None:
        """Take note that a person has marked a pair: samples of it wait for no other verdict.

        Each is recorded in its turn, when none drawn before it waits: people mark what strikes them, so whatever is
        marked would come before the rest and make the cache look worse, or better, than it is.
        """
        pair = pair_of(asked, stored)
        with self._lock:
            alike = (own for own in self._waiting.values() if own.namespace == namespace)
            self._known |= {own.number: label for own in alike if pair_of(own.asked, own.stored) == pair}
        self._settle_known()

    def _settle_known(self) -> None:
        while (number := self._next_known()) is not None:
            try:
                self._settle(number, self._known[number], PERSON)
            except OSError as error:
                LOG.warning("a verdict could not be written, its sample waits on: %s", error.strerror or "")
                return

    def _next_known(self) -> int | None:
        """Return a sample whose verdict is known and whose turn it is: among the free, or those left for people."""
        with self._lock:
            if not self._known:
                return None
            heads = (self._free()[:1], [number for number in self._waiting if number in self._for_people][:1])
            return next((number for head in heads for number in head if number in self._known), None)

    def settle(self, number: int, label: int, judge: str = PERSON) -> Sample | None:
        """Record a verdict, durable on return; None where the sample has one already (the first counts).

        Raises:
            OSError: the feedback file cannot be written; the sample waits on.
        """
        sample = self._settle(number, label, judge)
        self._settle_known()
        return sample

    def _settle(self, number: int, label: int, judge: str) -> Sample | None:
        with self._lock:
            sample = self._waiting.pop(number, None)
            known = self._known.pop(number, None)
            self._judging.discard(number)
            left = number in self._for_people
            self._for_people.discard(number)
        if sample is None:
            return None
        if known is not None and judge != PERSON:  # marked while the judge thought
            label, judge = known, PERSON
        row = Judged(
            sentence1=sample.asked,
            sentence2=sample.stored,
            label=label,
            cosine=sample.cosine,
            namespace=sample.namespace,
            source="sample",
            judge=judge,
            marked=self._clock(),
            model=self._model,
            threshold=sample.threshold,
            floor=sample.floor,
        )
        try:
            self._feedback.append(row)
        except OSError:
            with self._lock:  # at its place in the order
                self._waiting = dict(sorted([*self._waiting.items(), (number, sample)]))
                self._for_people |= {number} if left else set()
                self._known |= {number: known} if known is not None else {}
            raise
        with self._lock:
            self.counts.judged += 1
        self._feedback.hear()
        return sample

    def forget(self, namespace: str) -> None:
        """Drop the samples of a namespace, and of all below it, that wait for a verdict."""
        with self._lock:
            for number in [own.number for own in self._waiting.values() if is_within(own.namespace, namespace)]:
                del self._waiting[number]
                self._judging.discard(number)
                self._for_people.discard(number)
                self._known.pop(number, None)
        self._settle_known()

    def to_judge(self, most: int, *, judged_by_model: bool) -> list[Sample]:
        """Return the oldest samples that a person should judge: those a model could not, or all without a model."""
        with self._lock:
            wanted = (self._for_people if judged_by_model else self._waiting.keys()) - self._known.keys()
            return [
                self._waiting[number] for number in itertools.islice((n for n in self._waiting if n in wanted), most)
            ]

    @property
    def waiting(self) -> int:
        """How many samples wait for a verdict."""
        return len(self._waiting)

    @property
    def left(self) -> int:
        """How many samples a model could not judge and left for people."""
        return len(self._for_people)

    @property
    def estimate(self) -> Estimate:
        """The estimate over all namespaces."""
        with self._lock:
            return Estimate(sum(judged for judged, _ in self._tally.values()), sum(w for _, w in self._tally.values()))

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each namespace with a judged sample."""
        with self._lock:
            return {namespace: Estimate(*counts) for namespace, counts in self._tally.items()}
