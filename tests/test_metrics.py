"""Metrics agree with scikit-learn and scipy, obey their laws at ties, and their intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import permutation_test, spearmanr
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from embedsmith import metrics
from embedsmith.metrics import (
    RankCorrelation,
    Ranking,
    Resamples,
    adjust_holm,
    bootstrap,
    compare_means,
    paired_bootstrap,
    randomization_p,
    resample_weights,
    spearman,
)

Rows = tuple[NDArray[np.int64], NDArray[np.float64]]
SOME = Ranking(np.array([1, 0, 1]), np.array([0.9, 0.8, 0.7]))


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Labels of both kinds and scores on a grid of five values, so that ties are the rule."""
    size = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=size - 2, max_size=size - 2))
    scores = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    return np.array([0, 1, *labels]), np.array(scores) / 4


def figures(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> list[float]:
    ranking = Ranking(labels, scores)
    best = ranking.best_f1()
    return [
        ranking.average_precision(),
        ranking.pchr_auc(),
        ranking.roc_auc(),
        ranking.recall_at_precision(0.8),
        best.f1,
        best.hit_rate,
        ranking.best_accuracy().accuracy,
    ]


# --- the references -------------------------------------------------------------------------------


@given(rows())
def test_average_precision_and_roc_auc_are_scikit_learns(drawn: Rows) -> None:
    labels, scores = drawn
    ranking = Ranking(labels, scores)

    assert ranking.average_precision() == pytest.approx(average_precision_score(labels, scores))
    assert ranking.roc_auc() == pytest.approx(roc_auc_score(labels, scores))


@given(rows(), st.sampled_from([-0.5, -0.1, 0.0, 0.25]))
def test_figures_at_a_threshold_are_scikit_learns(drawn: Rows, threshold: float) -> None:
    labels, scores = drawn
    found = Ranking(labels, scores).at(threshold)
    called = (scores >= threshold).astype(int)

    precision, recall, f1, _ = precision_recall_fscore_support(labels, called, average="binary", zero_division=1.0)
    assert found.precision == pytest.approx(precision)  # 1 where nothing is served
    assert found.recall == pytest.approx(recall)
    assert found.accuracy == pytest.approx(np.mean(called == labels))
    assert found.hit_rate == pytest.approx(np.mean(called))
    if called.any():
        assert found.f1 == pytest.approx(f1)


@given(rows(), st.integers(0, 2**32 - 1))
def test_spearman_is_scipys_with_ties_averaged(drawn: Rows, seed: int) -> None:
    _, scores = drawn
    other = np.random.default_rng(seed).integers(0, 4, len(scores)).astype(float)
    if len(set(scores)) == 1 or len(set(other)) == 1:
        assert np.isnan(spearman(scores, other))
    else:
        assert spearman(scores, other) == pytest.approx(spearmanr(scores, other).statistic)


def test_spearman_refuses_what_has_no_rank() -> None:
    with pytest.raises(ValueError, match="finite"):
        spearman([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0])


@given(rows(), st.integers(0, 1000))
def test_weighted_roc_auc_is_scikit_learns_on_the_resampled_rows(drawn: Rows, seed: int) -> None:
    labels, scores = drawn
    for weights in resample_weights(len(labels), resamples=5, seed=seed):
        chosen = np.repeat(np.arange(len(labels)), weights.astype(int))
        found = Ranking(labels, scores).roc_auc(weights)
        if len(set(labels[chosen])) < 2:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(roc_auc_score(labels[chosen], scores[chosen]))


@given(rows(), st.integers(0, 2**32 - 1))
def test_weighted_spearman_is_scipys_on_the_resampled_rows(drawn: Rows, seed: int) -> None:
    _, scores = drawn
    other = np.random.default_rng(seed).integers(0, 6, len(scores)).astype(float)
    weights = resample_weights(len(scores), resamples=5, seed=seed)
    found = RankCorrelation(scores, other).draws(weights, block=2)
    for row, value in zip(weights, found, strict=True):
        drawn_rows = np.repeat(np.arange(len(scores)), row.astype(int))
        left, right = scores[drawn_rows], other[drawn_rows]
        if len(set(left)) == 1 or len(set(right)) == 1:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(left, right).statistic, abs=1e-9)


def test_spearman_of_one_resample_can_be_counted_by_hand() -> None:
    correlation = RankCorrelation([3, 1, 1, 2], [1, 2, 3, 4])
    assert correlation() == pytest.approx(spearmanr([3, 1, 1, 2], [1, 2, 3, 4]).statistic)
    assert correlation(np.array([1.0, 2.0, 0.0, 0.0])) == pytest.approx(-1.0)  # 3, 1, 1 against 1, 2, 2


@pytest.mark.parametrize("left", [[1.0, float("nan")], [1.0], []])
def test_columns_that_have_no_ranks_are_refused(left: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite|must be"):
        RankCorrelation(left, [1.0, 2.0] if left else [])


# --- worked numbers -------------------------------------------------------------------------------


def test_the_numbers_of_the_docstrings() -> None:
    assert SOME.average_precision() == pytest.approx((1 + 2 / 3) / 2)
    assert SOME.pchr_auc() == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert SOME.recall_at_precision(0.95) == 0.5
    assert SOME.best_f1().f1 == pytest.approx(0.8)


def test_no_threshold_reaches_the_precision() -> None:
    assert Ranking(np.array([0, 1]), np.array([0.9, 0.8])).recall_at_precision(0.95) == 0.0


def test_one_label_only_has_no_ranking_figures() -> None:
    assert np.isnan(Ranking(np.array([0, 0]), np.array([0.9, 0.8])).average_precision())
    assert np.isnan(Ranking(np.array([1, 1]), np.array([0.9, 0.8])).roc_auc())


# --- laws -----------------------------------------------------------------------------------------


@given(rows(), st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters(drawn: Rows, random) -> None:
    labels, scores = drawn
    order = list(range(len(labels)))
    random.shuffle(order)

    assert figures(labels, scores) == pytest.approx(figures(labels[order], scores[order]))


@given(rows())
def test_a_rising_transform_of_the_scores_changes_nothing(drawn: Rows) -> None:
    labels, scores = drawn

    assert figures(labels, scores) == pytest.approx(figures(labels, np.exp(3 * scores) - 7))


@given(st.integers(1, 20), st.integers(1, 20))
def test_perfect_separation_gives_one(positives: int, negatives: int) -> None:
    labels = np.repeat([1, 0], [positives, negatives])
    ranking = Ranking(labels, labels + np.linspace(0, 0.5, len(labels)))

    assert ranking.average_precision() == pytest.approx(1)
    assert ranking.roc_auc() == pytest.approx(1)
    assert ranking.recall_at_precision(1.0) == ranking.best_f1().f1 == ranking.best_accuracy().accuracy == 1.0


@given(rows())
def test_all_scores_equal_is_the_share_of_duplicates(drawn: Rows) -> None:
    labels, _ = drawn
    ranking = Ranking(labels, np.zeros(len(labels)))

    assert ranking.average_precision() == pytest.approx(labels.mean())
    assert ranking.pchr_auc() == pytest.approx(labels.mean())
    assert ranking.roc_auc() == pytest.approx(0.5)


@given(rows())
def test_best_f1_is_the_best_of_all_thresholds(drawn: Rows) -> None:
    labels, scores = drawn
    ranking = Ranking(labels, scores)

    assert ranking.best_f1().f1 == pytest.approx(max(ranking.at(value).f1 for value in scores))


@given(rows(), st.data())
def test_weights_equal_repeated_rows(drawn: Rows, data: st.DataObject) -> None:
    labels, scores = drawn
    size = len(labels)
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    kept = np.repeat(np.arange(size), times)
    weighted, repeated = Ranking(labels, scores), Ranking(labels[kept], scores[kept])
    weights = times.astype(float)

    for name in ("average_precision", "pchr_auc"):
        assert getattr(weighted, name)(weights) == pytest.approx(getattr(repeated, name)(), nan_ok=True)
    assert weighted.recall_at_precision(0.8, weights) == pytest.approx(repeated.recall_at_precision(0.8), nan_ok=True)
    if len(kept):
        one, other = weighted.at(0.0, weights), repeated.at(0.0)
        assert (one.precision, one.accuracy) == pytest.approx((other.precision, other.accuracy))


def test_a_curve_is_thinned_and_keeps_both_ends() -> None:
    scores = np.linspace(1, 0, 5000)
    ranking = Ranking((np.arange(5000) % 3 == 0).astype(int), scores)
    curve = ranking.curve(points=400)

    assert 300 < len(curve["threshold"]) <= 400
    assert {len(column) for column in curve.values()} == {len(curve["threshold"])}
    assert curve["recall"][-1] == curve["hit_rate"][-1] == 1.0
    assert curve["threshold"][0] == 1.0
    assert np.all(np.diff(curve["recall"]) >= 0)


# --- what must be refused -------------------------------------------------------------------------


def test_lengths_and_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="must be"):
        Ranking(np.array([1, 0]), np.array([0.5]))
    with pytest.raises(ValueError, match="0 or 1"):
        Ranking(np.array([1, 2]), np.array([0.5, 0.4]))


def test_a_similarity_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Ranking(np.array([1, 0, 1]), np.array([0.5, np.nan, 0.4]))


def test_a_label_between_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        Ranking(np.array([0.7, 0.2]), np.array([0.5, 0.4]))


# --- resampling -----------------------------------------------------------------------------------


def test_groups_are_drawn_whole() -> None:
    weights = np.array(list(resample_weights(5, groups=["a", "a", "b", "b", "b"], resamples=50)))

    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()  # two groups drawn each time


def test_weights_depend_on_the_seed_only() -> None:
    first, again, other = (np.array(list(resample_weights(30, resamples=150, seed=seed))) for seed in (4, 4, 5))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("groups", [None, [row // 3 for row in range(9000)]])
def test_resamples_in_blocks_give_the_figures_of_those_that_are_kept(block: int, groups: list[int] | None) -> None:
    labels, scores = draw_rows(np.random.default_rng(3), 9000)
    ranking, other = Ranking(labels, scores), np.random.default_rng(4).normal(size=9000)
    kept = resample_weights(9000, groups=groups, resamples=101, seed=9)
    units = np.arange(9000) if groups is None else np.array(groups)
    drawn = Resamples(units, 101, 9, block=block)
    assert max(map(len, drawn.blocks())) <= block  # what is in memory
    np.testing.assert_array_equal(list(drawn), list(kept))
    assert bootstrap(ranking.average_precision, drawn) == bootstrap(ranking.average_precision, kept)
    assert compare_means(scores, other, drawn) == compare_means(scores, other, kept)
    correlation = RankCorrelation(scores, other)
    np.testing.assert_array_equal(correlation.draws(drawn), correlation.draws(kept))


def test_more_resamples_than_are_held_are_drawn_again_at_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list(resample_weights(40, resamples=60))
    monkeypatch.setattr(metrics, "HELD", 1000)
    monkeypatch.setattr(metrics, "BLOCK", 200)
    weights = resample_weights(40, resamples=60)
    assert [len(block) for block in weights.blocks()] == 12 * [5]
    for _ in range(2):
        np.testing.assert_array_equal(list(weights), kept)


def test_a_group_whose_name_looks_like_a_row_is_its_own_group() -> None:
    weights = np.array(list(resample_weights(2, groups=["row 1", None], resamples=50)))

    assert (weights.sum(axis=1) == 2).all()
    assert (weights[:, 0] != weights[:, 1]).any()


def test_a_bootstrap_of_the_mean_has_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(lambda weights: float(weights @ values / weights.sum()), resample_weights(400))
    half = 1.96 * values.std() / 20

    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.012)


@settings(max_examples=20, deadline=None)
@given(rows())
def test_a_model_compared_with_itself_does_not_differ(drawn: Rows) -> None:
    same = Ranking(*drawn).average_precision
    found = paired_bootstrap(same, same, resample_weights(len(drawn[0]), resamples=50))

    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_swapping_the_models_turns_the_difference_round() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 200)
    weak = Ranking(labels, labels + generator.normal(0, 1.5, 200)).average_precision
    strong = Ranking(labels, labels + generator.normal(0, 0.5, 200)).average_precision
    weights = resample_weights(200, resamples=400)
    there, back = paired_bootstrap(weak, strong, weights), paired_bootstrap(strong, weak, weights)

    assert there.low > 0
    assert there.p_value <= 0.01
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p_value == pytest.approx(there.p_value)


# --- simulations ----------------------------------------------------------------------------------


def draw_rows(generator: np.random.Generator, size: int, *, noise: float = 0.7) -> Rows:
    labels = (generator.random(size) < 0.5).astype(int)
    return labels, labels + generator.normal(0, noise, size)


def test_the_interval_of_average_precision_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth = Ranking(*draw_rows(generator, 400_000)).average_precision()
    covered = 0
    for draw in range(300):
        weights = resample_weights(200, resamples=200, seed=draw)
        found = bootstrap(Ranking(*draw_rows(generator, 200)).average_precision, weights)
        covered += found.low <= truth <= found.high

    assert 0.90 <= covered / 300 <= 0.985  # 95% nominal; three standard errors are 3.8 points


def test_grouped_intervals_cover_where_independent_ones_are_too_sure() -> None:
    generator = np.random.default_rng(0)
    covered = {"groups": 0, "rows": 0}
    groups = np.repeat(np.arange(50), 6).astype(str).tolist()
    for draw in range(200):
        values = np.repeat(generator.normal(size=50), 6) + generator.normal(0, 0.3, 300)
        for name, given_groups in (("groups", groups), ("rows", None)):
            weights = resample_weights(300, groups=given_groups, resamples=150, seed=draw)
            found = bootstrap(lambda row, v=values: float(row @ v / row.sum()), weights)
            covered[name] += found.low <= 0 <= found.high

    assert covered["groups"] / 200 > 0.88
    assert covered["rows"] / 200 < 0.70


def test_equal_models_differ_significantly_as_rarely_as_promised() -> None:
    generator = np.random.default_rng(0)
    false_alarms = 0
    for draw in range(250):
        labels, scores = draw_rows(generator, 150)
        other = labels + generator.normal(0, 0.7, 150)
        weights = resample_weights(150, resamples=200, seed=draw)
        found = paired_bootstrap(
            Ranking(labels, scores).average_precision, Ranking(labels, other).average_precision, weights
        )
        false_alarms += found.p_value < 0.05

    assert false_alarms / 250 <= 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5


# --- tests of means over rows ---------------------------------------------------------------------


def test_turning_signs_counts_every_pattern_of_few_rows_as_scipy_does() -> None:
    assert randomization_p(np.array([1.0, 1, 1])) == 0.25
    assert randomization_p(np.array([0.0, 0, 0])) == 1
    changes = np.random.default_rng(0).normal(0.4, 1, 9)
    reference = permutation_test((changes,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert randomization_p(changes) == pytest.approx(reference.pvalue)
    assert randomization_p(np.append(changes, np.zeros(50))) == pytest.approx(reference.pvalue)


def test_turning_signs_of_many_rows_is_near_scipys_and_the_same_each_time() -> None:
    changes = np.random.default_rng(1).normal(0.15, 1, 200)
    reference = permutation_test((changes,), np.sum, permutation_type="samples", n_resamples=20_000, rng=0)
    assert randomization_p(changes) == pytest.approx(reference.pvalue, abs=0.01)
    assert randomization_p(changes, seed=3) == randomization_p(changes, seed=3)
    assert randomization_p(np.ones(100)) == 1 / 10_001  # never 0


def test_without_a_difference_one_test_in_twenty_finds_one() -> None:
    chance = np.random.default_rng(2)
    found = [randomization_p(chance.normal(0, 1, 30), rounds=500, seed=run) <= 0.05 for run in range(400)]
    assert 0.02 < np.mean(found) < 0.085


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.9, 0.6]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_means_are_compared_on_the_same_rows() -> None:
    chance = np.random.default_rng(4)
    first = chance.normal(size=300)
    weights = resample_weights(300, resamples=500)
    found = compare_means(first, first + 0.1, weights)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.p_value == 1 / 10_001


def test_rows_of_one_group_turn_together() -> None:
    """Forty questions about ten passages, four each that all gain or all lose, are ten changes and not forty."""
    gains = np.repeat([1.0, 1, 1, 1, 1, 1, 1, -1, -1, -1], 4)
    passages = [f"passage {row // 4}" for row in range(40)]
    weights = resample_weights(40, groups=passages, resamples=500)
    alone = compare_means(np.zeros(40), gains, resample_weights(40, resamples=500))
    found = compare_means(np.zeros(40), gains, weights, groups=passages)
    assert found.value == alone.value
    assert found.p_value == 352 / 1024  # |sum| of ten signs is at least 4
    assert (alone.p_value < 0.05, found.low < alone.low, found.high > alone.high) == (True, True, True)
