"""The alarms: seldom false however long one looks, and there when something is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from embedsmith.cache.drift import BLOCK, PromiseWatch, StreamWatch, collect_evidence, compare_windows
from embedsmith.errors import ConfigurationError

DELTA, ALPHA = 0.05, 0.05


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


def test_the_watch_counts_as_the_formula_says() -> None:
    wrong = np.random.default_rng(3).random(3 * BLOCK + 7) < 0.04
    watch, evidence = PromiseWatch(DELTA, alpha=1e-9), []
    for flag in wrong:
        watch.see(bool(flag))
        evidence.append(watch.evidence)
    np.testing.assert_allclose(evidence, collect_evidence(wrong, DELTA), rtol=1e-12)


def test_one_bet_by_hand() -> None:
    # One wrong answer at δ = .05: a stake s makes 1 + 19 s; stakes .02 .05 .1 .2 .4, mean 3.926; half of the money.
    assert collect_evidence([1], DELTA)[0] == pytest.approx(0.5 * 3.926 + 0.5)


def test_the_alarm_begins_once_stays_and_says_what_is_wrong() -> None:
    watch = PromiseWatch(DELTA, clock=lambda: 7.0)
    begins = [watch.see(True) for _ in range(6)]
    assert begins.count(True) == 1
    assert watch.alarm is not None
    assert (watch.alarm.since, "more than 5.0%" in watch.alarm.told) == (7.0, True)
    assert not any(watch.see(False) for _ in range(500))
    assert watch.alarm is not None


def test_evidence_stays_a_number_when_everything_is_wrong_for_long() -> None:
    assert np.isfinite(collect_evidence(np.ones(5000), 0.01)).all()


def run(watch: StreamWatch, values: np.ndarray) -> list[bool]:
    return [watch.see(float(value)) for value in values]


def test_a_stream_that_stays_as_it_is_raises_an_alarm_in_at_most_alpha_of_the_runs() -> None:
    generator = np.random.default_rng(1)
    raised = sum(any(run(StreamWatch(size=100), generator.beta(5, 3, 1000))) for _ in range(1000))
    assert raised <= ALPHA * 1000


def test_a_moved_stream_is_found_and_both_medians_are_named() -> None:
    generator = np.random.default_rng(2)
    watch = StreamWatch()
    assert not any(run(watch, generator.normal(0.80, 0.05, 3000)))
    assert sum(run(watch, generator.normal(0.75, 0.05, 1000))) == 1
    assert watch.alarm is not None
    assert watch.first is not None
    assert watch.latest is not None
    for window in (watch.first, watch.latest):
        assert f"{np.median(window):.3f}" in watch.alarm.told
    assert "other questions than before" in watch.alarm.told
    watch.accept()
    assert watch.alarm is None
    assert not any(run(watch, generator.normal(0.75, 0.05, 2000)))


def test_the_distance_by_hand() -> None:
    assert compare_windows(np.zeros(1000), np.r_[np.zeros(910), np.ones(90)]) == pytest.approx(0.000825, rel=1e-3)
    assert compare_windows([1.0, 2.0], [1.0, 2.0]) == 1.0
    with pytest.raises(ConfigurationError, match="2 and 1"):
        compare_windows([1.0, 2.0], [1.0])


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1])
def test_a_promise_must_be_a_share(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        PromiseWatch(delta)
