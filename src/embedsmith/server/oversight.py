"""Is what the server serves right, and is it still asked what it was? Samples, estimates and alarms, for eyes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge

from embedsmith.cache.drift import Alarm, StreamWatch
from embedsmith.cache.samples import Estimate, Sample, Samples
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.encoder import Embeddings
from embedsmith.errors import describe_failure
from embedsmith.server.answers import load_answer
from embedsmith.server.gate import StoreSilent

LOG = logging.getLogger("embedsmith.server")
SHOWN = 5  # samples at once: the oldest, so that nobody picks the easy ones
NAMESPACES = 20  # in the list of estimates, those with the most verdicts
BEGINNING = 400  # characters of a stored answer
BY_SIMILARITY = frozenset({"similar", "verified"})  # reasons of hits in the semantic tier


class Oversight:
    """What the dashboard, /admin/state and /metrics say of the quality of the answers served."""

    def __init__(self, cache: SemanticCache, registry: CollectorRegistry, *, shadow: bool) -> None:
        self.stream = StreamWatch()
        self.by_similarity = 0  # answers served so; in shadow mode, those that would have been
        self._cache, self._shadow = cache, shadow
        self._measure(registry)

    def looked_up(self, found: Lookup) -> None:
        """Take note of a lookup."""
        decision = found.decision
        self.by_similarity += decision.reason.removeprefix("shadow: ") in BY_SIMILARITY
        if self.stream.see(found.id, vector_of(found)) and self.stream.alarm is not None:
            LOG.warning("drift: %s", self.stream.alarm.told)

    def judge(self, number: int, label: int) -> bool:
        """Record a person's verdict on a sample; False when there is no such sample. A wrong answer served goes."""
        return self._cache.judge_sample(number, label)

    def hear(self) -> None:
        """Take the verdicts of other servers: one that nobody asks would show, and alarm by, what it heard last."""
        self._cache.hear()

    def state(self) -> dict[str, Any]:
        """Return the part of /admin/state that speaks of quality."""
        self.hear()
        samples, judge = self._cache.samples, self._cache.judge
        return {
            "shadow": self._shadow,
            "by_similarity": self.by_similarity,
            "quality": None if samples is None else self._quality(samples),
            "judge": None
            if judge is None
            else {"name": judge.name, "trouble": judge.trouble, "unreadable": judge.counts["unreadable"]},
            "drift": {"promise": self._promise(), "stream": self._stream()},
        }

    def _quality(self, samples: Samples) -> dict[str, Any]:
        people = samples.to_judge(SHOWN, judged_by_model=self._cache.judge is not None)
        estimates = sorted(samples.estimates.items(), key=lambda item: -item[1].judged)[:NAMESPACES]
        thresholds = self._cache.policy
        return {
            "share": samples.rule.share,
            "margin": samples.rule.margin,
            "delta": samples.promise.delta,
            **asdict(samples.counts),
            "waiting": samples.waiting,
            "left": samples.left,
            "estimate": _told(samples.estimate),
            "namespaces": [
                {
                    "namespace": name,
                    "threshold": thresholds.threshold_for(name),
                    "own": name in thresholds.thresholds,
                    **_told(found),
                }
                for name, found in estimates
            ],
            "to_judge": [self._shown(sample) for sample in people],
        }

    def _shown(self, sample: Sample) -> dict[str, Any]:
        try:
            entry = self._cache.store.get(sample.stored_id, time.time())
        except Exception as error:  # noqa: BLE001  whatever a store or its driver raises
            answer = f"(cannot be read: {type(error).__name__})"
        else:
            answer = read_answer(entry.answer, BEGINNING) if entry is not None else "(no longer stored)"
        return asdict(sample) | {"answer": answer, "served": sample.served}

    def _promise(self) -> dict[str, Any] | None:
        samples = self._cache.samples
        if samples is None:
            return None
        watch = samples.promise
        return {
            "delta": watch.delta,
            "made": self._cache.calibration is not None,  # a threshold given by hand promises nothing
            "judged": watch.judged,
            "wrong": watch.wrong,
            "evidence": watch.evidence,
            "alarm_at": 1 / watch.alpha,
            "alarm": _alarm(watch.alarm),
        }

    def _stream(self) -> dict[str, Any]:
        watch = self.stream
        first, latest = watch.first, watch.latest  # another thread may begin anew meanwhile
        return {
            "reference": watch.reference,
            "size": watch.size,
            "missing": watch.missing,
            "windows": watch.windows,
            "first_median": float(np.median(first)) if first is not None else None,
            "latest_median": float(np.median(latest)) if latest is not None else None,
            "alarm": _alarm(watch.alarm),
        }

    def _measure(self, registry: CollectorRegistry) -> None:
        gauge = partial(measure, registry)
        stream, samples, judge = self.stream, self._cache.samples, self._cache.judge
        gauge(
            "hits_by_similarity",
            "Answers served by similarity since the start, or that would have been (shadow mode)",
            lambda: self.by_similarity,
        )
        gauge("drift_stream_alarm", "1 while the stream of questions has changed", lambda: stream.alarm is not None)
        gauge(
            "stream_median_first", "Median similarity to early questions, first window", lambda: _median(stream.first)
        )
        gauge(
            "stream_median_latest",
            "Median similarity to early questions, latest window",
            lambda: _median(stream.latest),
        )
        if samples is None:
            return
        gauge("samples_drawn", "Samples drawn since the start", lambda: samples.counts.drawn)
        gauge("samples_waiting", "Samples that wait for a verdict", lambda: samples.waiting)
        gauge("samples_dropped", "Samples for which there was no room", lambda: samples.counts.dropped)
        gauge("samples_judged", "Judged samples of answers served", lambda: samples.estimate.judged)
        gauge("samples_wrong", "Judged samples of answers served that are wrong", lambda: samples.estimate.wrong)
        gauge("false_hit_rate", "Share of the judged samples that is wrong", lambda: _number(samples.estimate.rate))
        gauge("false_hit_rate_bound", "Its one-sided 95% bound", lambda: samples.estimate.bound)
        gauge("drift_promise_evidence", "Evidence against the promise", lambda: samples.promise.evidence)
        gauge("drift_promise_alarm", "1 while the promise is broken", lambda: samples.promise.alarm is not None)
        if judge is not None:
            gauge("judge_failures", "Calls of the judge that failed", lambda: judge.counts["failed"])
            gauge("judge_unreadable", "Verdicts that could not be read", lambda: judge.counts["unreadable"])


def vector_of(found: Lookup) -> Embeddings | None:
    """Return the vector of the question; for an exact hit, which is not encoded, that of the stored entry.

    Without the exact hits the distribution of similarities would shift as the cache fills.
    """
    nearest = found.decision.nearest
    if found.vector is None and nearest is not None and nearest.id == found.id:
        return nearest.vector
    return found.vector


def _told(found: Estimate) -> dict[str, Any]:
    return {"judged": found.judged, "wrong": found.wrong, "rate": found.rate, "bound": found.bound}


def _alarm(found: Alarm | None) -> dict[str, Any] | None:
    return asdict(found) if found is not None else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _median(window: np.ndarray[Any, np.dtype[np.float64]] | None) -> float:
    return float("nan") if window is None else float(np.median(window))


def read_answer(answer: str, most: int) -> str:
    """Return the text of a stored answer, whoever stored it, cut behind `most` characters."""
    try:
        text = str(load_answer(answer).body["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        text = answer
    return text if len(text) <= most else f"{text[:most]} …"


def measure(registry: CollectorRegistry, name: str, text: str, read: Callable[[], float]) -> None:
    """Register a gauge that is read when it is asked for; NaN where that fails, so that the others are still told."""

    def careful() -> float:
        try:
            return float(read())
        except StoreSilent:  # which has been said when it began
            return float("nan")
        except Exception as error:  # noqa: BLE001  whatever a store or its driver raises
            LOG.warning("the metric embedsmith_%s cannot be read: %s", name, describe_failure(error))
            return float("nan")

    Gauge(f"embedsmith_{name}", text, registry=registry).set_function(careful)
