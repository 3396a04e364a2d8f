"""The threshold keeps its promise in simulation, is there when the data allow it, and is refused otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from embedsmith.calibration import (
    Calibration,
    _Counts,
    _starts,
    _tail_of_none,
    _walk,
    bound_rate,
    calibrate,
    fit_probabilities,
    hits_needed,
    measure_effects,
    read_calibration,
    shift_delta,
    tail,
    write_calibration,
)
from embedsmith.cli import app
from embedsmith.errors import CalibrationRefused, ConfigurationError, InputError

Floats = NDArray[np.float64]
Risk = Callable[[Floats], Floats]  # similarity → chance that the pair is no duplicate


def constant(similarity: Floats) -> Floats:
    return np.full_like(similarity, 0.0501)  # just above delta everywhere: every threshold breaks the promise


def falling(similarity: Floats) -> Floats:
    return 1 / (1 + np.exp(12 * (similarity - 0.6)))


def stepwise(similarity: Floats) -> Floats:
    return np.where(similarity > 0.5, 0.015, 0.97)


def trapped(similarity: Floats) -> Floats:
    return np.where(similarity > 0.93, 0.25, np.where(similarity > 0.4, 0.02, 0.9))  # near-copies that differ


def true_rate(risk: Risk, threshold: float) -> float:
    return float(risk(np.linspace(threshold, 1, 20_001)).mean())  # similarities are uniform below


def simulate(risk: Risk, *, size: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """Return (share of draws whose threshold breaks the promise, share that got a threshold)."""
    generator = np.random.default_rng(seed)
    broken = found = 0
    for _ in range(draws):
        scores = generator.random(size)
        labels = (generator.random(size) >= risk(scores)).astype(int)
        try:
            threshold = calibrate(labels, scores, delta=0.05, alpha=0.05).threshold
        except CalibrationRefused:
            continue
        found += 1
        broken += true_rate(risk, threshold) > 0.05
    return broken / draws, found / draws


@pytest.mark.parametrize("risk", [constant, falling, stepwise, trapped])
@pytest.mark.parametrize("size", [150, 600])
def test_the_promise_is_broken_in_at_most_alpha_of_the_draws(risk: Risk, size: int) -> None:
    broken, _ = simulate(risk, size=size, draws=400)

    assert broken <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_more_pairs_make_a_threshold_likelier() -> None:
    few, many = (simulate(stepwise, size=size, draws=60)[1] for size in (300, 2000))

    assert few > 0.2
    assert many > 0.95


def test_separable_pairs_are_served_nearly_all() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 0], 150)
    found = calibrate(labels, np.where(labels == 1, 0.8, 0.3) + generator.normal(0, 0.05, 300))

    assert found.recall > 0.99
    assert found.upper_bound <= 0.05
    assert 0.4 < found.threshold < 0.75


def test_the_numbers_fit_together() -> None:
    labels, scores = np.repeat([1, 0], 100), np.linspace(1, 0, 200)
    found = calibrate(labels, scores, delta=0.1, model="abc")
    served = scores >= found.threshold

    assert found.hits == served.sum()
    assert found.false_hits == (served & (labels == 0)).sum()
    assert found.hit_rate == pytest.approx(served.mean())
    assert found.recall == pytest.approx((served & (labels == 1)).sum() / 100)
    assert found.upper_bound == bound_rate(found.false_hits, found.hits, 0.05) <= 0.1
    assert (found.pairs, found.model, found.delta, found.alpha) == (200, "abc", 0.1, 0.05)


@given(st.integers(0, 60), st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_is_where_so_few_wrong_answers_are_as_rare_as_alpha(wrong: int, hits: int, alpha: float) -> None:
    from scipy.stats import binom

    wrong = min(wrong, hits)
    bound = bound_rate(wrong, hits, alpha)
    assert bound == 1 if wrong == hits else binom.cdf(wrong, hits, bound) == pytest.approx(alpha)


def test_59_hits_without_an_error_are_just_enough() -> None:
    assert hits_needed(0.05, 0.05) == 59
    assert bound_rate(0, 59, 0.05) == pytest.approx(0.0495, abs=1e-4)
    assert calibrate([1] * 59, np.linspace(0.5, 1, 59)).hits == 59
    with pytest.raises(CalibrationRefused):
        calibrate([1] * 58, np.linspace(0.5, 1, 58))


def test_a_mistake_that_is_known_counts_as_one_wrong_answer_more() -> None:
    one = np.array([1, 1])
    assert (tail(one, np.array([92, 93]), 0.05) <= 0.05).tolist() == [False, True]
    assert calibrate([1] * 92, [0.9] * 92, against=[0.95]).hits == 92
    with pytest.raises(CalibrationRefused):
        calibrate([1] * 91, [0.9] * 91, against=[0.95])
    assert calibrate([1] * 91, [0.9] * 91, against=[0.85]).hits == 91


def test_counts_over_a_design_effect_are_rounded_against_the_cache() -> None:
    one, zero = np.array([1]), np.array([0])
    counts = _Counts(np.array([0.9]), np.array([101]), one, np.array([2.0]), zero)
    assert counts.test(slice(0, 1), 0.05, None) == tail(one, np.array([50]), 0.05)


def test_the_promise_of_the_next_answers_has_half_of_alpha() -> None:
    for hits in range(20, 60):
        (chance,) = tail(np.array([0]), np.array([hits]), 0.1, 1.0)
        try:
            granted = calibrate([1] * hits, [0.9] * hits, delta=0.1, traffic=hits).hits == hits
        except CalibrationRefused:
            granted = False
        assert granted is bool(chance <= 0.025)


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters(random) -> None:
    labels = np.repeat([1, 0], [120, 60])
    scores = np.round(np.linspace(1, 0, 180), 2)  # with ties
    order = list(range(180))
    random.shuffle(order)

    assert calibrate(labels, scores) == calibrate(labels[order], scores[order])


def test_equal_similarities_are_served_together_or_not_at_all() -> None:
    labels = np.repeat([1, 0], [100, 100])
    scores = np.repeat([0.9, 0.5], [100, 100])

    assert calibrate(labels, scores).threshold == 0.9
    with pytest.raises(CalibrationRefused):
        calibrate(labels, np.full(200, 0.9))


def test_a_stricter_promise_serves_less() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(1500)
    labels = (generator.random(1500) >= falling(scores)).astype(int)

    hits = [calibrate(labels, scores, delta=delta).hits for delta in (0.1, 0.2, 0.3)]
    assert hits[0] < hits[1] < hits[2]


# --- refusals -------------------------------------------------------------------------------------


def test_a_model_that_cannot_separate_is_refused_without_asking_for_more_pairs() -> None:
    labels = np.tile([1, 0], 200)
    with pytest.raises(CalibrationRefused, match="false-hit rate") as refused:
        calibrate(labels, np.linspace(1, 0, 400))

    assert "more than now" not in str(refused.value)


def test_too_few_pairs_says_how_many_are_missing() -> None:
    with pytest.raises(CalibrationRefused, match=r"too few.*\n.*more than now"):
        calibrate([1] * 40, np.linspace(0.5, 1, 40))


def test_the_missing_pairs_are_not_overstated() -> None:
    with pytest.raises(CalibrationRefused) as refused:
        calibrate([1] * 40, np.linspace(0.5, 1, 40))

    missing = int(str(refused.value).split(" labelled pairs, ")[1].split(" more")[0])
    assert calibrate([1] * 59, np.linspace(0.5, 1, 59)).hits == 59
    assert missing <= 30  # 19 pairs like these do


@pytest.mark.parametrize(("delta", "alpha"), [(0, 0.05), (1, 0.05), (0.05, 0), (0.05, 1.5), (1e-320, 0.05)])
def test_delta_and_alpha_are_probabilities(delta: float, alpha: float) -> None:
    with pytest.raises(ConfigurationError):
        calibrate([1] * 100, np.linspace(0, 1, 100), delta=delta, alpha=alpha)


def test_nothing_to_calibrate_on() -> None:
    with pytest.raises(InputError):
        calibrate([], [])
    with pytest.raises(InputError):
        calibrate([1] * 100, [float("nan")] * 100)


@pytest.mark.parametrize("labels", [[1] * 100, [1, 0] * 50])
def test_pairs_that_are_all_vetoed_promise_no_threshold(labels: list[int]) -> None:
    with pytest.raises(CalibrationRefused, match="none of the 100 labelled pairs would be served at any threshold"):
        calibrate(labels, [-1.0] * 100)


def test_a_verifier_moves_no_threshold_to_where_the_vetoed_pairs_are() -> None:
    assert calibrate([1] * 300, [-1.2] + [-1.0] * 100 + [0.9] * 199).threshold == 0.9


def test_duplicates_alone_promise_nothing_for_traffic_with_fewer() -> None:
    similarities = np.linspace(0, 1, 100)
    with pytest.raises(CalibrationRefused, match=r"all 100 labelled pairs are duplicates, .* for traffic with 10%"):
        calibrate([1] * 100, similarities, duplicate_rate=0.1)
    assert calibrate([1] * 100, similarities).tested == 0.05  # traffic like the pairs: nothing but duplicates


def test_a_refusal_names_the_lowest_rate_that_the_pairs_carry() -> None:
    labels = np.array([1] * 97 + [0] * 3 + [0] * 300)
    similarities = np.concatenate([np.linspace(0.99, 0.6, 100), np.linspace(0.5, 0.0, 300)])
    with pytest.raises(CalibrationRefused, match=r"or allow --delta 0\.1, which these pairs carry"):
        calibrate(labels, similarities, delta=0.02)

    assert calibrate(labels, similarities, delta=0.1).hits > 90


def test_a_refusal_offers_nothing_that_would_be_refused_as_well() -> None:
    labels, similarities = np.array([1, 0] * 200), np.linspace(1, 0, 400)
    with pytest.raises(CalibrationRefused, match="allow a higher --delta, or train"):
        calibrate(labels, similarities)


def test_a_label_other_than_0_and_1_is_refused() -> None:
    with pytest.raises(InputError, match="label"):
        calibrate([2] * 100, np.linspace(0, 1, 100))


def test_labels_and_similarities_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="labels"):
        calibrate([1] * 100, np.linspace(0, 1, 200))


# --- the file -------------------------------------------------------------------------------------


@pytest.fixture
def calibration() -> Calibration:
    return calibrate([1] * 80, np.linspace(0.5, 1, 80), model="abc")


def test_the_file_gives_back_what_was_written(calibration: Calibration, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "calibration.json", calibration)

    assert read_calibration(path) == calibration
    assert read_calibration(path, model="abc") == calibration


def test_the_threshold_of_another_model_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "calibration.json", replace(calibration, model="other"))
    with pytest.raises(InputError, match="other, not to abc"):
        read_calibration(path, model="abc")


@pytest.mark.parametrize("content", ["[1]", '{"threshold": 0.8}', '{"unknown": 1}', "not json"])
def test_a_file_that_is_no_calibration_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(InputError):
        read_calibration(tmp_path / "calibration.json")


def test_probabilities_are_those_of_an_isotonic_regression() -> None:
    from sklearn.isotonic import IsotonicRegression

    generator = np.random.default_rng(4)
    scores = np.round(generator.random(3000), 2)
    labels = (generator.random(3000) < scores**2).astype(np.int64)
    knots = fit_probabilities(labels, scores)
    reference = IsotonicRegression().fit(scores, labels)
    found = Calibration(0.5, 0.1, 0.1, 1, 0, 0.1, 0.5, 0.5, 3000, "m", probabilities=knots)
    asked = np.unique(scores)[5:-5]
    fitted = [found.probability(float(at)) for at in asked]
    assert fitted == pytest.approx(reference.predict(asked), abs=0.02)  # half a pair of each label is added
    assert fitted == sorted(fitted)
    assert 0 < fitted[0] < fitted[-1] < 1
    assert replace(found, probabilities=()).probability(0.5) is None


def test_probabilities_survive_the_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(500) < 0.9).astype(np.int64)
    found = calibrate(labels, 0.5 + 0.5 * generator.random(500) * labels, delta=0.3, model="m")
    assert read_calibration(write_calibration(tmp_path / "c.json", found)) == found


def test_a_promise_for_rarer_duplicates_is_tested_harder() -> None:
    assert shift_delta(0.1, 0.5, 0.25) == pytest.approx(1 / 28)
    assert shift_delta(0.1, 0.5, 0.5) == pytest.approx(0.1)
    assert shift_delta(0.1, 0.5, None) == 0.1


def test_the_promise_holds_in_traffic_with_rarer_duplicates() -> None:
    """Pairs half of which are duplicates, traffic with a fifth of them: drawn 100 times, judged on the traffic."""
    generator = np.random.default_rng(8)

    def draw(size: int, share: float) -> tuple[NDArray[np.int64], Floats]:
        labels = (generator.random(size) < share).astype(np.int64)
        return labels, np.where(labels == 1, generator.beta(9, 2, size), generator.beta(2, 6, size))

    truth, scores = draw(200_000, 0.2)
    broken = {0.2: 0, None: 0}
    for _ in range(100):
        labels, similarities = draw(2000, 0.5)
        for rate in broken:
            threshold = calibrate(labels, similarities, delta=0.1, alpha=0.1, duplicate_rate=rate).threshold
            broken[rate] += float((truth[scores >= threshold] == 0).mean()) > 0.1
    assert broken[0.2] <= 10
    assert broken[None] > 90, "without the rate the promise is one for other traffic"


def test_few_pairs_are_told_how_many_would_serve_most() -> None:
    """So many do it in two of three draws at least."""
    generator = np.random.default_rng(0)

    def draw(size: int) -> Calibration:
        scores = generator.random(size)
        return calibrate((generator.random(size) >= falling(scores)).astype(int), scores, delta=0.2)

    few = [draw(300) for _ in range(30)]
    wanting = [found for found in few if found.pairs_for_reach is not None]
    assert len(wanting) > 10
    assert all(found.hits < 0.85 * (found.hits_in_reach or 0) for found in wanting)
    possible = np.median([(found.hits_in_reach or 0) / found.pairs for found in few])
    lowest = next(at for at in np.linspace(0, 1, 1001) if true_rate(falling, at) <= 0.2)
    assert possible == pytest.approx(1 - lowest, abs=0.03)
    wanted = int(np.median([found.pairs_for_reach or 0 for found in wanting]))
    assert 300 < wanted < 3000
    enough = [draw(wanted).hit_rate >= 0.85 * possible for _ in range(30)]
    assert np.mean(enough) > 2 / 3


def test_many_pairs_that_serve_most_ask_for_no_more() -> None:
    found = calibrate(np.repeat([1, 0], 300), np.linspace(1, 0, 600), delta=0.1)

    assert found.pairs_for_reach is None
    assert found.hits_in_reach == 333  # of which 33 are wrong
    assert 0.85 * 333 <= found.hits <= 333


def test_a_refusal_names_the_promise_that_was_asked_for() -> None:
    labels = np.array([1, 0] * 100)
    with pytest.raises(CalibrationRefused, match=r"10.0% \(1.2% of these pairs, for traffic with 10% duplicates\)"):
        calibrate(labels, np.linspace(0, 1, 200), delta=0.1, duplicate_rate=0.1)


def test_a_walk_hands_its_share_of_alpha_to_the_one_that_it_meets() -> None:
    """Without a wrong answer nothing stops, so the last threshold is tested at alpha; after one it starts anew."""
    hits = np.arange(1, 2001)

    def counted(false_hits: NDArray[np.int64]) -> _Counts:
        return _Counts(-hits / 2001, hits, false_hits, np.ones(2000), np.zeros_like(hits))

    starts = _starts(hits, hits.astype(np.float64), 0.1, 0.05, None)
    assert sum(start.level for start in starts) == pytest.approx(0.05)
    edge = int(np.flatnonzero(tail(np.arange(500), np.full(500, 2000), 0.1) <= 0.05)[-1])  # most wrong of 2,000
    late = np.zeros_like(hits)
    late[-1] = edge
    assert _walk(counted(late), 0.1, 0.05) == 1999
    late[-1] = edge + 1
    assert _walk(counted(late), 0.1, 0.05) == 1998
    broken = np.zeros_like(hits)
    broken[starts[-1].place :] = edge
    broken[starts[-1].place - 1] = starts[-1].place  # the last walk then has only its own share
    assert _walk(counted(broken), 0.1, 0.05) < starts[-1].place  # type: ignore[operator]


def test_the_design_effect_is_that_of_rao_and_scott() -> None:
    generator = np.random.default_rng(0)
    for alike in (1, 2, 5):
        units = np.repeat(np.arange(4000), alike)
        wrong = np.repeat((generator.random(4000) < 0.1).astype(np.int64), alike)
        order = generator.permutation(len(units))
        assert measure_effects(wrong[order], units[order])[-1] == pytest.approx(alike, rel=0.02)
    units, wrong = generator.integers(0, 300, 1000), (generator.random(1000) < 0.3).astype(np.int64)
    effects = measure_effects(wrong, units)
    for count in (200, 517, 1000):  # the sums that the running ones stand for
        held = np.bincount(units[:count], minlength=300)
        bad = np.bincount(units[:count], weights=wrong[:count], minlength=300)
        rate = bad.sum() / count
        plain = ((bad - rate * held) ** 2).sum() / (count * rate * (1 - rate))
        assert effects[count - 1] == pytest.approx(max(plain, 1.0))
    assert (
        effects[: int(np.searchsorted(np.cumsum(wrong), 30))] == effects[np.searchsorted(np.cumsum(wrong), 30)]
    ).all()
    assert measure_effects(np.zeros(9, dtype=np.int64), np.zeros(9, dtype=np.int64)).tolist() == [1.0] * 9


def test_pairs_that_share_a_question_keep_the_promise() -> None:
    """Three alike pairs a unit: the next answers hold in 95% of the draws, which they do not without the units."""
    generator = np.random.default_rng(4)
    units = np.repeat(np.arange(1500), 3).tolist()
    broken = {"told": 0, "untold": 0}
    draws = 150
    for _ in range(draws):
        scores = np.repeat(generator.random((2, 1500)), 3, axis=1)
        labels = (np.repeat(generator.random((2, 1500)), 3, axis=1) > falling(scores)).astype(np.int64)
        scores += 1e-9 * generator.random((2, 4500))
        for name in broken:
            own = units if name == "told" else None
            found = calibrate(labels[0], scores[0], delta=0.15, traffic=4500, units=own)
            broken[name] += float((labels[1][scores[1] >= found.threshold] == 0).mean()) > 0.15
            assert found.effect == pytest.approx(1 if own is None else 3, abs=0.3)
    assert broken["told"] <= 0.075 * draws
    assert broken["untold"] > 0.1 * draws


def test_the_tail_of_hits_to_come_is_that_of_an_urn() -> None:
    assert tail(np.array([0]), np.array([36]), 0.2, 1.0)[0] == pytest.approx(0.0025, abs=1e-4)
    hits = np.arange(1, 400)
    for to_come in (None, 0.3, 1.0, 2.5):
        assert _tail_of_none(hits, 0.1, to_come) == pytest.approx(tail(hits * 0, hits, 0.1, to_come), abs=1e-9)
    long_run = tail(np.array([40]), np.array([400]), 0.15)
    assert tail(np.array([40]), np.array([400]), 0.15, 2000.0)[0] == pytest.approx(long_run[0], rel=0.02)


def test_the_promise_for_the_next_answers_holds_on_the_next_answers() -> None:
    """Two draws of one size: the first chooses, the second must show at most delta wrong in 95% of the draws."""
    generator = np.random.default_rng(2)
    broken = {1500: 0, None: 0}
    draws = 200
    for _ in range(draws):
        scores = generator.random((2, 1500))
        labels = (generator.random((2, 1500)) > falling(scores)).astype(np.int64)
        for traffic in broken:
            threshold = calibrate(labels[0], scores[0], delta=0.15, traffic=traffic).threshold
            broken[traffic] += float((labels[1][scores[1] >= threshold] == 0).mean()) > 0.15
    assert broken[1500] <= 0.075 * draws  # .042 in 4,000 draws; .05 gives more than 15 of 200 in one draw of twenty
    assert broken[None] > broken[1500]
    for wrong in (0, 10**30):
        with pytest.raises(ConfigurationError, match=f"traffic {wrong}"):
            calibrate([1, 0], [0.1, 0.2], traffic=wrong)


def test_the_command_says_what_conversations_carry_by_themselves(tiny_model: Path, tmp_path: Path) -> None:
    def say(text: str) -> list[dict[str, str]]:
        roles = ("user", "assistant", "user")  # short, or the tiny model does not read them whole
        return [{"role": role, "content": said} for role, said in zip(roles, (text, "by card", "and now"), strict=True)]

    things = [f"{colour} {thing}" for colour in ("red", "old", "big") for thing in ("card", "tea", "dog", "train")]
    single = [(f"how do i pay for the {thing}", f"how do i pay for the {thing} please") for thing in things]
    rows: list[tuple[Any, Any]] = [*single, *((say(one), say(other)) for one, other in single)]
    pairs = tmp_path / "pairs.jsonl"
    written = (json.dumps({"sentence1": one, "sentence2": other, "label": 1}) for one, other in rows)
    pairs.write_text("\n".join(written))
    options = ["--delta", "0.3", "--alpha", "0.3", "--out", str(tmp_path / "calibration.json")]
    done = CliRunner().invoke(app, ["calibrate", str(tiny_model), str(pairs), *options])
    told = " ".join(done.output.split())
    assert "for conversations: the same promise for them alone, 12 of 12 pairs served, 0 wrong" in told
    found = read_calibration(tmp_path / "calibration.json")
    assert found.pairs == 12
    assert found.conversations is not None
    assert found.conversations.pairs == 12
