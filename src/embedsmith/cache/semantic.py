"""The semantic cache in a Python program: look up, add, serve; what the decision needs is gathered here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.cache.decision import Decision, Policy, decide, decide_exact, entry_id, partition_of
from embedsmith.cache.feedback import Feedback, Judged
from embedsmith.cache.guard import find_veto
from embedsmith.cache.judge import Judge
from embedsmith.cache.recalibration import FILE, read_recalibration
from embedsmith.cache.samples import SampleRule, Samples
from embedsmith.cache.stores import Entry, Match, Order, Store, open_store
from embedsmith.calibration import read_calibration
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.evaluation import similarities_of
from embedsmith.examples import LabelledPair
from embedsmith.llm import LanguageModel
from embedsmith.text import is_storable

SHARE = 100  # the limits are checked after every hundredth part of `max_entries` additions


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a lookup found.

    Attributes:
        decision: hit or miss, and why.
        text, namespace, partition, id: of the question that was asked.
        vector: its embedding, so that an addition need not encode it again; None after an exact hit.
        age: seconds since the answer was stored; None for a miss.
        seconds: what the lookup took, encoding included.
    """

    decision: Decision
    text: str
    namespace: str
    partition: str
    id: str
    vector: Embeddings | None
    age: float | None
    seconds: float

    @property
    def hit(self) -> bool:
        """Say whether there is an answer to serve."""
        return self.decision.hit

    @property
    def answer(self) -> str | None:
        """The stored answer, None for a miss."""
        return self.decision.entry.answer if self.decision.entry is not None else None


UNDECIDED = Decision(None, None, None, "not looked up")


class SemanticCache:
    """A cache that serves an answer to every question it answers, and to no other. Safe for many threads.

    >>> cache = SemanticCache("runs/support/model", store="sqlite:///cache.db")       # doctest: +SKIP
    >>> cache.serve("how do i freeze my card", ask_the_llm)                          # doctest: +SKIP

    Args:
        model: a folder that `embedsmith run` wrote, or anything with `encode` (then `fingerprint` names it).
        store: see `open_store`.
        threshold: cosine from which on answers are served; default is that of the model's calibration.json.
        calibration: another calibration file; it must be of this very model.
        namespaces: thresholds of single namespaces, as `recalibrate` writes them; default is the file beside the
            calibration, if there is one. A threshold given by hand counts for all, unless this file is named too.
        policy: other rules altogether; `threshold` and `guard` are then those of the policy.
        guard: False serves candidates that differ in a fact.
        ttl: seconds an answer lives, unless an addition says otherwise. A hit does not extend it.
        max_entries, max_bytes: limits of the store, all tenants together (checked after every hundredth).
        eviction: what goes first: "lru", "lfu" or "size".
        feedback: a file to which judged pairs are appended, to train and recalibrate on (`cache.feedback`).
        sample: draws a share of the lookups to be judged (`cache.samples`); needs `feedback`. None draws nothing.
        judge: a language model that judges the samples in the background. It is sent both questions of each.
        delta: most wrong answers among those served, for the drift alarm; default is what the calibration promises,
            .05 without one.
        clock: Unix seconds.

    Raises:
        ConfigurationError: no threshold is known. InputError: the calibration is of another model.
        ModelMismatch: the store holds vectors of another model.
    """

    def __init__(
        self,
        model: Encoder | Path | str,
        *,
        store: Store | str = "memory://",
        threshold: float | None = None,
        calibration: Path | str | None = None,
        namespaces: Path | str | None = None,
        policy: Policy | None = None,
        guard: bool = True,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        eviction: Order = "lru",
        fingerprint: str | None = None,
        feedback: Path | str | None = None,
        sample: SampleRule | None = None,
        judge: LanguageModel | None = None,
        delta: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.encoder, self.fingerprint = open_encoder(model, fingerprint)
        promise = Promised()
        if policy is None:
            promise = _promised(model, threshold, calibration, namespaces, self.fingerprint)
            policy = Policy(promise.threshold, thresholds=promise.thresholds)
            policy = policy if guard else replace(policy, guard=None)
        self.policy = policy
        self._feedback = Feedback(feedback) if feedback is not None else None
        promised = promise.delta if delta is None else delta
        self.samples = _open_samples(self, sample, self._feedback, promised, promise.since, clock)
        if judge is not None and self.samples is None:
            raise ConfigurationError("a judge, and nothing to judge", expected="a share of the lookups to sample")
        dimension = int(self.encoder.encode(["dimension"]).shape[1])
        self.store = open_store(store, dimension=dimension, model=self.fingerprint) if isinstance(store, str) else store
        self.ttl, self.max_entries, self.max_bytes, self.eviction = ttl, max_entries, max_bytes, eviction
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[str, Future[str]] = {}
        self._added = 0
        self.judge = Judge(self.samples, judge) if judge is not None and self.samples is not None else None

    def lookup(self, text: str, *, namespace: str = "default", scope: Mapping[str, Any] | None = None) -> Lookup:
        """Return hit or miss for `text`.

        Args:
            namespace: the tenant; no lookup sees another's entries.
            scope: all else that must be equal for an answer to serve (model, system prompt, language, ...).
        """
        _require_text(text, namespace)
        partition = partition_of(namespace, scope or {})
        asked = Lookup(UNDECIDED, text, namespace, partition, entry_id(partition, text), None, None, 0.0)
        found = self.look_again(asked)
        if found.decision.entry is not None:
            self.store.touch(found.decision.entry.id, self._clock())
        return found

    def look_again(self, asked: Lookup) -> Lookup:
        """Return what a question finds now; it is not encoded again, and its use not counted."""
        began, now = time.perf_counter(), self._clock()
        vector = asked.vector
        decision = decide_exact(self.store.get(asked.id, now))
        if decision is None:
            vector = vector if vector is not None else self.encoder.encode([asked.text])[0]
            matches = self.store.search(asked.partition, vector, self.policy.candidates, now)
            decision = decide(asked.text, matches, self.policy.within(asked.namespace))
            # A hit is drawn when it is found, a miss when it is first looked up: each lookup has one chance.
            chance = decision.hit or asked.decision is UNDECIDED
            if chance and self.samples is not None and self.samples.draw():
                self._sample(self.samples, asked, matches)
        age = now - decision.entry.created if decision.entry is not None else None
        seconds = asked.seconds + time.perf_counter() - began
        return replace(asked, decision=decision, vector=vector, age=age, seconds=seconds)

    def _sample(self, samples: Samples, asked: Lookup, matches: Sequence[Match]) -> None:
        """Queue what is served for a drawn lookup, or would be were the threshold lower by the margin."""
        policy = self.policy.within(asked.namespace)
        found = decide(asked.text, matches, replace(policy, threshold=policy.threshold - samples.rule.margin))
        if found.entry is not None and found.similarity is not None:
            samples.put(
                asked=asked.text,
                stored=found.entry.text,
                stored_id=found.entry.id,
                cosine=found.similarity,
                threshold=policy.threshold,
                namespace=asked.namespace,
            )

    def add(
        self,
        question: Lookup | str,
        answer: str,
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> Entry:
        """Store an answer and return its entry; the same question in the same scope is replaced.

        Args:
            question: the lookup that missed (its vector is used again), or a text with `namespace` and `scope`.
        """
        now = self._clock()
        if isinstance(question, str):
            _require_text(question, namespace)
            partition = partition_of(namespace, scope or {})
            text, id, vector = question, entry_id(partition, question), None
        else:
            text, id, vector = question.text, question.id, question.vector
            namespace, partition = question.namespace, question.partition
        vector = vector if vector is not None else self.encoder.encode([text])[0]
        life = ttl if ttl is not None else self.ttl
        expires = now + life if life is not None else None
        entry = Entry(id, namespace, partition, text, answer, vector, now, expires, tuple(dict.fromkeys(tags)))
        self.store.put([entry])
        self._keep_limits(now)
        return entry

    def _keep_limits(self, now: float) -> None:
        if self.max_entries is None and self.max_bytes is None:
            return
        with self._lock:
            self._added += 1
            due = self._added % max((self.max_entries or SHARE) // SHARE, 1) == 0
        if due:
            self.store.expire(now)
            self.store.evict(entries=self.max_entries, bytes=self.max_bytes, order=self.eviction)

    def serve(
        self,
        text: str,
        compute: Callable[[str], str],
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> str:
        """Return the stored answer, or that of `compute(text)`, which is stored.

        Single flight: while one caller computes, others with the same question wait for it. When it fails,
        all of them get its error, and nothing is stored.
        """
        found = self.lookup(text, namespace=namespace, scope=scope)
        if found.answer is not None:
            return found.answer
        flight, leads = self._board(found.id)
        if not leads:
            return flight.result()
        try:
            answer = compute(text)
            self.add(found, answer, ttl=ttl, tags=tags)
        except BaseException as error:
            self._land(found.id, error=error)
            raise
        self._land(found.id, answer)
        return answer

    async def serve_async(
        self,
        text: str,
        compute: Callable[[str], Awaitable[str]],
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> str:
        """Return what `serve` returns, without blocking the event loop; both share their flights."""
        found = await asyncio.to_thread(self.lookup, text, namespace=namespace, scope=scope)
        if found.answer is not None:
            return found.answer
        flight, leads = self._board(found.id)
        if not leads:
            return await asyncio.shield(asyncio.wrap_future(flight))  # whoever stops waiting stops nobody else
        try:
            answer = await compute(text)
            await asyncio.to_thread(self.add, found, answer, ttl=ttl, tags=tags)
        except asyncio.CancelledError:
            self._land(found.id, error=RuntimeError("the caller that computed this answer was cancelled; ask again"))
            raise
        except BaseException as error:
            self._land(found.id, error=error)
            raise
        self._land(found.id, answer)
        return answer

    def _board(self, id: str) -> tuple[Future[str], bool]:
        """Return the flight of a question, and whether the caller leads it."""
        with self._lock:
            leads = id not in self._flights
            return self._flights.setdefault(id, Future()), leads

    def _land(self, id: str, answer: str = "", *, error: BaseException | None = None) -> None:
        with self._lock:
            flight = self._flights.pop(id)
        if error is not None:
            flight.set_exception(error)
        else:
            flight.set_result(answer)

    def cached(self, function: Callable[[str], str], **options: Any) -> Callable[[str], str]:
        """Return `function` behind the cache; usable as a decorator. `options` are those of `serve`."""

        def cached_function(text: str) -> str:
            return self.serve(text, function, **options)

        return cached_function

    def mark_wrong(self, asked: str, id: str, stored: str, *, namespace: str = "default") -> None:
        """Say that entry `id`, for the question `stored`, did not answer `asked`: it goes, the pair is remembered."""
        self.store.delete([id])
        self._remember(asked, stored, 0, namespace)

    def mark_same(self, asked: str, stored: str, *, namespace: str = "default") -> None:
        """Say that one answer serves both texts although the cache did not see it."""
        self._remember(asked, stored, 1, namespace)

    def _remember(self, asked: str, stored: str, label: int, namespace: str) -> None:
        if self._feedback is None:
            return
        (cosine,) = similarities_of(self.encoder, [LabelledPair(asked, stored, label)])
        vetoed = self.policy.guard is not None and self.policy.guard(asked, stored) is not None
        self._feedback.append(
            Judged(
                sentence1=asked,
                sentence2=stored,
                label=label,
                cosine=-1.0 if vetoed else float(cosine),
                namespace=namespace,
                marked=self._clock(),
                model=self.fingerprint,
            )
        )

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        """Remove what has this namespace and this tag (none given: all); return how many."""
        return self.store.purge(namespace=namespace, tag=tag)

    def close(self) -> None:
        """Stop the judge and close the store."""
        if self.judge is not None:
            self.judge.close()
        self.store.close()


def served_similarities(encoder: Encoder, pairs: Sequence[LabelledPair]) -> NDArray[np.float64]:
    """Return the cosine of each pair (n,) as the cache serves: −1 where its guard would not serve the pair."""
    return veto_pairs(similarities_of(encoder, pairs), [(pair.sentence1, pair.sentence2) for pair in pairs])


def veto_pairs(similarities: NDArray[np.float64], pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return `similarities` (n,) with −1 where the guard would not serve the pair, whatever the threshold.

    A threshold calibrated on these keeps its promise with the guard switched on. Without this, the guard may
    veto more right answers than wrong ones and so raise the share of wrong ones among those served.
    """
    vetoed = np.array([find_veto(*pair) is not None for pair in pairs], dtype=bool)
    return np.where(vetoed, -1.0, similarities)


def _require_text(*texts: str) -> None:
    for text in texts:
        if not is_storable(text):
            raise InputError(f"{text[:80]!r} holds NUL or half a character", expected="text that UTF-8 can hold")


def open_encoder(model: Encoder | Path | str, fingerprint: str | None = None) -> tuple[Encoder, str]:
    """Return the encoder and its fingerprint; a model folder with an ONNX export runs without torch."""
    if not isinstance(model, (str, Path)):
        mark = fingerprint or getattr(model, "fingerprint", None)
        if not isinstance(mark, str) or not mark:
            raise ConfigurationError(
                f"{type(model).__name__} has no fingerprint",
                expected="one, so that a store never mixes the vectors of two models",
                action="pass fingerprint='any name you change when the vectors change'",
            )
        return model, mark
    from embedsmith.model import fingerprint_model, load_encoder
    from embedsmith.runtime import FOLDER, REPORT, OnnxEncoder

    if (Path(model) / FOLDER / REPORT).is_file():
        exported = OnnxEncoder(model)
        return exported, fingerprint or exported.fingerprint
    return load_encoder(model), fingerprint or fingerprint_model(model)


def _open_samples(
    cache: SemanticCache,
    rule: SampleRule | None,
    feedback: Feedback | None,
    delta: float,
    since: Mapping[str, float],
    clock: Callable[[], float],
) -> Samples | None:
    if rule is None:
        return None
    if feedback is None:
        raise ConfigurationError(
            "samples are drawn, and there is no file for the verdicts", expected="a feedback file (--feedback FILE)"
        )
    return Samples(
        rule,
        feedback,
        model=cache.fingerprint,
        threshold_for=cache.policy.threshold_for,
        delta=delta,
        since=since,
        clock=clock,
    )


@dataclass(frozen=True, slots=True)
class Promised:
    """What the calibrations of a model say.

    Attributes:
        delta: the most wrong answers among those served that is promised to anyone.
        thresholds: by namespace. since: by namespace, Unix seconds of the last verdict that chose its threshold.
    """

    threshold: float = 1.0
    delta: float = 0.05
    thresholds: Mapping[str, float] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)


def _promised(
    model: Encoder | Path | str,
    threshold: float | None,
    calibration: Path | str | None,
    namespaces: Path | str | None,
    fingerprint: str,
) -> Promised:
    path = None if threshold is not None else find_calibration(model, calibration)
    beside = path.with_name(FILE) if path is not None and path.with_name(FILE).is_file() else None
    own = Path(namespaces) if namespaces is not None else beside
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigurationError(f"threshold {threshold}", expected="a cosine between -1 and 1, higher is closer")
    if threshold is None and path is None:
        raise ConfigurationError(
            "there is no threshold from which on answers may be served",
            expected="calibration.json beside the model, or a threshold",
            action="embedsmith calibrate MODEL PAIRS (labelled pairs), or pass a threshold at your own risk",
        )
    found = read_calibration(path, model=fingerprint) if path is not None else None
    single = read_recalibration(own, model=fingerprint) if own is not None else None
    deltas = [item.delta for item in (found, single) if item is not None]
    return Promised(
        threshold=found.threshold if found is not None else threshold or 0.0,
        delta=max(deltas, default=0.05),
        thresholds=single.thresholds if single is not None else {},
        since=single.since if single is not None else {},
    )


def find_calibration(model: Encoder | Path | str, calibration: Path | str | None = None) -> Path | None:
    """Return the calibration file that counts for a model: the one named, or the one with the model, if any."""
    if calibration is not None:
        return Path(calibration)
    if not isinstance(model, (str, Path)):
        return None
    return next((at for at in _calibrations(Path(model)) if at.is_file()), None)


def _calibrations(model: Path) -> tuple[Path, Path]:
    """Return where a calibration may lie: in the model folder, or beside it as `run` writes it."""
    return model / "calibration.json", model.parent / "calibration.json"
