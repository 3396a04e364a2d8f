"""The alarms: seldom false however long one looks, and there when something is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsmith.cache.decision import Policy
from embedsmith.cache.drift import BLOCK, STAKES, PromiseWatch, StreamWatch, compare_windows
from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import Embeddings, normalize
from embedsmith.errors import ConfigurationError
from embedsmith.server.watch import Watch

DELTA, ALPHA = 0.05, 0.05


def collect_evidence(wrong: NDArray[np.bool_], delta: float) -> NDArray[np.float64]:
    """Return the evidence after each answer, (n,): the definition, each gambler's money by itself."""
    total = np.zeros(len(wrong))
    starts = range(0, len(wrong), BLOCK)
    for number, start in enumerate(starts, start=1):
        factors = np.where(wrong[start:, None], 1 + STAKES * (1 - delta) / delta, 1 - STAKES)
        total[start:] += np.cumprod(factors, axis=0).mean(axis=1) / (number * (number + 1))
    started = np.arange(len(wrong)) // BLOCK + 1
    return total + 1 / (started + 1)  # and that of those who have not started


def watch_evidence(wrong: NDArray[np.bool_], delta: float) -> NDArray[np.float64]:
    """Return what the watch says after each answer, (n,)."""
    watch, evidence = PromiseWatch(delta, alpha=1e-9), []
    for flag in wrong:
        watch.see(bool(flag))
        evidence.append(watch.evidence)
    return np.array(evidence)


def alarms_of(rate: np.ndarray | float, *, streams: int, length: int, seed: int = 0) -> list[int | None]:
    """Return for each simulated stream the number of verdicts until the alarm, None where there was none."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(streams):
        raised = np.flatnonzero(collect_evidence(generator.random(length) < rate, DELTA) >= 1 / ALPHA)
        found.append(int(raised[0]) + 1 if len(raised) else None)
    return found


@pytest.mark.parametrize("rate", [0.01, 0.05], ids=["kept easily", "just kept"])
def test_a_kept_promise_raises_an_alarm_in_at_most_alpha_of_the_streams(rate: float) -> None:
    raised = alarms_of(rate, streams=1000, length=1000)
    assert sum(at is not None for at in raised) <= ALPHA * 1000


def test_looking_only_once_with_a_fixed_test_each_time_would_not_do() -> None:
    """The ordinary test at every look breaks its level on the same streams: the betting is needed."""
    from scipy.stats import binom

    generator = np.random.default_rng(0)
    wrong = np.cumsum(generator.random((300, 1000)) < DELTA, axis=1)
    p_values = binom.sf(wrong - 1, np.arange(1, 1001)[None, :], DELTA)
    assert (p_values[:, 20:].min(axis=1) <= ALPHA).mean() > 3 * ALPHA


def test_three_times_the_promised_rate_is_found_within_a_few_hundred_verdicts() -> None:
    raised = alarms_of(3 * DELTA, streams=200, length=600)
    assert sum(at is not None and at <= 400 for at in raised) >= 0.95 * 200
    assert np.median([at for at in raised if at is not None]) < 150


def test_a_change_after_a_long_good_time_is_found_as_well() -> None:
    rate = np.where(np.arange(4000) < 3000, 0.01, 3 * DELTA)
    raised = alarms_of(rate, streams=50, length=4000)
    assert all(at is not None and 3000 < at < 3600 for at in raised)


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.3])
def test_the_watch_counts_as_the_definition_says(rate: float) -> None:
    wrong = np.random.default_rng(3).random(10 * BLOCK + 7) < rate
    np.testing.assert_allclose(watch_evidence(wrong, DELTA), collect_evidence(wrong, DELTA), rtol=1e-10)


def test_one_bet_by_hand() -> None:
    # One wrong answer at δ = .05: a stake s makes 1 + 19 s; stakes .02 .05 .1 .2 .4, mean 3.926; half of the money.
    assert watch_evidence(np.array([True]), DELTA)[0] == pytest.approx(0.5 * 3.926 + 0.5)


def test_a_verdict_costs_no_more_because_many_went_before() -> None:
    """A server that starts reads all verdicts of its file, 100,000 of them perhaps, before it answers."""
    watch, seconds = PromiseWatch(DELTA), []
    for _ in range(12):
        began = time.process_time()
        for number in range(5000):
            watch.see(number % 40 == 0)
        seconds.append(time.process_time() - began)
    assert seconds[-1] < 5 * seconds[0]


def test_the_alarm_begins_once_stays_and_says_what_is_wrong() -> None:
    watch = PromiseWatch(DELTA, clock=lambda: 7.0)
    begins = [watch.see(True) for _ in range(6)]
    assert begins.count(True) == 1
    assert watch.alarm is not None
    assert (watch.alarm.since, "more than 5.0%" in watch.alarm.told) == (7.0, True)
    assert not any(watch.see(False) for _ in range(500))
    assert watch.alarm is not None


def test_evidence_stays_a_number_when_everything_is_wrong_for_long() -> None:
    assert np.isfinite(watch_evidence(np.ones(5000, dtype=bool), 0.01)).all()


def test_the_alarm_names_the_stretch_that_went_wrong() -> None:
    watch = PromiseWatch(DELTA)
    for _ in range(20 * BLOCK):
        watch.see(False)
    while not watch.see(True):
        pass
    assert watch.alarm is not None
    assert f"wrong: {watch.wrong} of the last {watch.judged - 20 * BLOCK} that were judged" in watch.alarm.told


TOPICS, WIDTH = 600, 16
ZIPF = 1 / np.arange(1, TOPICS + 1)


def directions(generator: np.random.Generator, count: int) -> Embeddings:
    return normalize(generator.normal(size=(count, WIDTH)))


def ask(generator: np.random.Generator, topics: Embeddings, count: int) -> Iterator[tuple[str, Embeddings]]:
    """Yield questions on topics of Zipf popularity; half are word for word one of the topic's three wordings."""
    picks = generator.choice(len(topics), size=count, p=ZIPF / ZIPF.sum())
    wordings = generator.integers(3, size=count)
    same = generator.random(count) < 0.5
    noise = generator.normal(size=(count, WIDTH))
    known = np.random.default_rng(9).normal(size=(len(topics), 3, WIDTH))
    noise[same] = known[picks[same], wordings[same]]
    vectors = normalize(topics[picks] + 0.1 * noise)
    for at, vector in enumerate(vectors):
        yield (f"{picks[at]}, wording {wordings[at]}" if same[at] else f"question {generator.random()}"), vector


def run(watch: StreamWatch, questions: Iterable[tuple[str, Embeddings | None]]) -> list[bool]:
    return [watch.see(key, vector) for key, vector in questions]


def test_a_stream_that_stays_as_it_is_raises_an_alarm_in_at_most_alpha_of_the_runs() -> None:
    generator = np.random.default_rng(1)
    topics = directions(generator, TOPICS)
    raised = sum(any(run(StreamWatch(reference=50, size=100), ask(generator, topics, 1050))) for _ in range(300))
    assert raised <= ALPHA * 300


@dataclass(frozen=True)
class Written:
    """An encoder of texts whose vectors are known."""

    vectors: dict[str, Embeddings]
    fingerprint: str = "written"

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return np.stack([self.vectors[text] for text in texts])


def fill_a_fresh_cache(seed: int) -> tuple[StreamWatch, NDArray[np.float64]]:
    """Return the watch of a cache that starts empty, and the similarities of the nearest stored questions."""
    generator = np.random.default_rng(seed)
    stream = list(ask(generator, directions(generator, TOPICS), 1300))
    vectors = dict(stream)
    policy = Policy(0.95, guard=None)
    cache = SemanticCache(Written(vectors | {"dimension": vectors[next(iter(vectors))]}), policy=policy)
    watch = Watch(cache)
    watch.oversight.stream.reference, watch.oversight.stream.size = 100, 200
    nearest = []
    for text, _ in stream:
        found = cache.lookup(text)
        watch.looked_up(found)
        nearest.append(found.decision.similarity)
        if not found.hit:
            cache.add(found, "an answer")
    return watch.oversight.stream, np.array([one for one in nearest if one is not None])


def test_a_cache_that_fills_is_no_stream_that_changes() -> None:
    """What is nearest in the store changes as it fills, so it says nothing of the stream; the watch stays calm."""
    alarms = told = 0
    for seed in range(6):
        watch, nearest = fill_a_fresh_cache(seed)
        assert watch.windows == 5
        alarms += watch.alarm is not None
        told += compare_windows(nearest[:200], nearest[-200:]) < ALPHA / 2
    assert (alarms, told) == (0, 6)


def test_other_topics_are_found_and_both_medians_are_named() -> None:
    generator = np.random.default_rng(2)
    old, new = directions(generator, TOPICS), directions(generator, TOPICS)
    watch = StreamWatch(reference=200, size=500)
    assert not any(run(watch, ask(generator, old, 3200)))
    mixed = [pair for pairs in zip(ask(generator, old, 250), ask(generator, new, 250), strict=True) for pair in pairs]
    assert sum(run(watch, mixed)) == 1
    assert watch.alarm is not None
    assert watch.first is not None
    assert watch.latest is not None
    for window in (watch.first, watch.latest):
        assert f"{np.median(window):.3f}" in watch.alarm.told
    assert "other questions than before" in watch.alarm.told


def test_what_is_usual_now_is_learnt_from_what_comes_next() -> None:
    generator = np.random.default_rng(3)
    old, new = directions(generator, TOPICS), directions(generator, TOPICS)
    watch = StreamWatch(reference=100, size=300)
    run(watch, ask(generator, old, 1000))
    assert any(run(watch, ask(generator, new, 600)))
    watch.accept()
    assert (watch.alarm, watch.first, watch.missing) == (None, None, 400)
    spent = watch.windows
    assert not any(run(watch, ask(generator, new, 2500)))
    assert watch.windows == spent + 7  # of α, what was spent before stays spent


def test_a_text_keeps_its_number_whatever_vector_it_comes_with() -> None:
    """A repeat brings the vector of its stored equal, and a long text one only once it is stored."""
    axes = np.eye(4, dtype=np.float32)
    watch = StreamWatch(reference=2, size=4)
    run(watch, [("a", axes[0]), ("b", axes[1]), ("new", axes[2]), ("new", axes[0]), ("long", None), ("long", axes[0])])
    assert watch.missing == 2
    run(watch, [("a", axes[0]), ("a", axes[0] * np.float32(0.9999999))])
    assert watch.first is not None
    assert watch.first.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_the_distance_by_hand() -> None:
    assert compare_windows(np.zeros(1000), np.r_[np.zeros(910), np.ones(90)]) == pytest.approx(0.000825, rel=1e-3)
    assert compare_windows([1.0, 2.0], [1.0, 2.0]) == 1.0
    with pytest.raises(ConfigurationError, match="2 and 1"):
        compare_windows([1.0, 2.0], [1.0])


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1])
def test_a_promise_must_be_a_share(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        PromiseWatch(delta)
