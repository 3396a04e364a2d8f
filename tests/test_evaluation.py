"""Reports are honest about thresholds, do not depend on row order, and say what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from embedsmith.artifacts import plain
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.evaluation import (
    PairReport,
    compare,
    evaluate,
    evaluate_general,
    evaluate_scored,
    halve,
    labels_of,
    measure_latency,
    similarities_of,
)
from embedsmith.examples import LabelledPair, LabelledText, ScoredPair, Triplet, read_examples, units_of
from embedsmith.metrics import Ranking, Weights, bootstrap, paired_bootstrap, resample_weights
from embedsmith.testing import FakeEncoder

METRICS = {
    "average_precision",
    "pchr_auc",
    "recall_at_precision_95",
    "precision",
    "recall",
    "f1",
    "accuracy",
}


class Scripted:
    """An encoder whose pair (left i, right i) has the cosine it was told."""

    def __init__(self, cosines: Mapping[str, float]) -> None:
        self.cosines = cosines

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        cosines = np.array([self.cosines.get(text, 1.0) for text in texts])
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)


def script(pairs: Sequence[LabelledPair], *, noise: float, seed: int = 0) -> Scripted:
    """Return an encoder that sees the labels through noise: less noise, better encoder."""
    generator = np.random.default_rng(seed)
    return Scripted(
        {
            pair.sentence2: float(np.clip(0.5 + 0.3 * pair.label + generator.normal(0, noise), 0, 0.999))
            for pair in pairs
        }
    )


def make_pairs(count: int, *, start: int = 0) -> list[LabelledPair]:
    """Return two pairs of each source question, one of each label."""
    return [
        LabelledPair(f"question {row // 2}", f"other {row}", row % 2, group=str(row // 2))
        for row in range(start, start + count)
    ]


PAIRS = make_pairs(200)
WEAK, STRONG = script(PAIRS, noise=0.3), script(PAIRS, noise=0.1)


@pytest.fixture(scope="module")
def report() -> PairReport:
    return evaluate(WEAK, PAIRS, name="weak", resamples=200)


# --- one model ------------------------------------------------------------------------------------


def test_half_of_the_pairs_choose_the_threshold_and_the_other_half_is_reported(report: PairReport) -> None:
    chosen, reported = halve(PAIRS)

    assert (report.validation_pairs, report.pairs) == (len(chosen), len(reported))
    assert len(chosen) + len(reported) == 200
    assert not {pair.group for pair in chosen} & {pair.group for pair in reported}
    ranking = Ranking(labels_of(chosen), similarities_of(WEAK, chosen))
    assert report.threshold == ranking.best_f1().threshold


def test_the_figures_are_those_of_the_reported_half(report: PairReport) -> None:
    _, reported = halve(PAIRS)
    ranking = Ranking(labels_of(reported), similarities_of(WEAK, reported))
    at = ranking.at(report.threshold)

    assert set(report.metrics) == METRICS
    assert report.metrics["average_precision"].value == pytest.approx(ranking.average_precision())
    assert report.metrics["f1"].value == pytest.approx(at.f1)
    assert report.metrics["accuracy"].value == pytest.approx(at.accuracy)
    for name, found in report.metrics.items():
        assert found.low <= found.high, name


def test_the_published_protocol_is_the_optimistic_one(report: PairReport) -> None:
    assert report.published.f1 >= report.metrics["f1"].value
    assert report.published_accuracy >= report.metrics["accuracy"].value


def test_given_validation_pairs_choose_and_all_others_are_reported() -> None:
    validation = make_pairs(60, start=1000)
    encoder = script([*PAIRS, *validation], noise=0.2)
    found = evaluate(encoder, PAIRS, validation=validation, resamples=50)

    assert (found.pairs, found.validation_pairs) == (200, 60)
    ranking = Ranking(labels_of(validation), similarities_of(encoder, validation))
    assert found.threshold == ranking.best_f1().threshold


def test_the_order_of_rows_changes_no_figure() -> None:
    shuffled = [PAIRS[place] for place in np.random.default_rng(3).permutation(len(PAIRS))]
    one, other = evaluate(WEAK, PAIRS, resamples=20), evaluate(WEAK, shuffled, resamples=20)

    assert one.threshold == other.threshold
    assert one.published == other.published
    assert (one.curve, one.histogram) == (other.curve, other.histogram)
    assert (one.false_hits, one.misses) == (other.false_hits, other.misses)
    for name in METRICS:
        assert one.metrics[name].value == pytest.approx(other.metrics[name].value), name


def test_the_same_seed_gives_the_same_report() -> None:
    assert evaluate(WEAK, PAIRS, seed=5, resamples=50) == evaluate(WEAK, PAIRS, seed=5, resamples=50)


def test_pairs_that_share_their_second_text_are_as_dependent_as_those_that_share_their_first() -> None:
    hubs = [
        LabelledPair(f"how do I reset device {hub}", f"device {hub} reset step {row}", int(hub % 3 > row % 2))
        for hub in range(20)
        for row in range(6)
    ]
    turned = [LabelledPair(pair.sentence2, pair.sentence1, pair.label) for pair in hubs]
    one = evaluate(FakeEncoder(), hubs, validation=hubs, resamples=300).metrics["average_precision"]
    other = evaluate(FakeEncoder(), turned, validation=turned, resamples=300).metrics["average_precision"]

    assert one.value == pytest.approx(other.value)
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.02)


def test_the_hardest_errors_come_first(report: PairReport) -> None:
    wrong = [error.similarity for error in report.false_hits]
    missed = [error.similarity for error in report.misses]

    assert 0 < len(wrong) <= 20
    assert 0 < len(missed) <= 20
    assert wrong == sorted(wrong, reverse=True)
    assert missed == sorted(missed)
    assert all(error.label == 0 and error.similarity >= report.threshold - 1e-4 for error in report.false_hits)
    assert all(error.label == 1 and error.similarity <= report.threshold + 1e-4 for error in report.misses)
    assert report.false_hits[0].sentence2.startswith("other ")


def test_the_histogram_counts_every_pair_once(report: PairReport) -> None:
    assert sum(report.histogram.positives) == report.positives
    assert sum(report.histogram.negatives) == report.pairs - report.positives
    assert len(report.histogram.edges) == len(report.histogram.positives) + 1


def test_a_report_is_json(report: PairReport) -> None:
    found = json.loads(json.dumps(plain(report), allow_nan=False))

    assert found["metrics"]["f1"]["value"] == report.metrics["f1"].value
    assert len(found["curve"]["recall"]) <= 400


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_only_is_refused(label: int) -> None:
    pairs = [LabelledPair(f"a {row}", f"b {row}", label) for row in range(10)]
    with pytest.raises(InputError, match="labels"):
        evaluate(FakeEncoder(), pairs)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(InputError):
        evaluate(FakeEncoder(), [])


# --- several models -------------------------------------------------------------------------------


def test_the_better_model_is_better_with_a_small_p_value() -> None:
    found = compare({"base": WEAK, "tuned": STRONG}, PAIRS, resamples=300)
    difference = found.differences["tuned"]["average_precision"]

    assert found.baseline == "base"
    assert set(found.differences) == {"tuned"}
    assert difference.low > 0
    assert difference.p_value <= 0.01
    values = [found.reports[name].metrics["average_precision"].value for name in ("base", "tuned")]
    assert difference.value == pytest.approx(values[1] - values[0])


def test_figures_are_those_of_a_bootstrap_for_each_metric_by_itself() -> None:
    chosen, reported = halve(PAIRS)
    found = compare({"base": WEAK, "tuned": STRONG}, reported, validation=chosen, resamples=60, seed=3)
    weights = resample_weights(len(reported), groups=units_of(reported), resamples=60, seed=3)

    def statistics(name: str, encoder: Encoder) -> dict[str, Callable[[Weights], float]]:
        ranking = Ranking(labels_of(reported), similarities_of(encoder, [*chosen, *reported])[len(chosen) :])
        threshold = found.reports[name].threshold
        return {
            "average_precision": ranking.average_precision,
            "pchr_auc": ranking.pchr_auc,
            "recall_at_precision_95": lambda row: ranking.recall_at_precision(0.95, row),
            "precision": lambda row: ranking.at(threshold, row).precision,
            "recall": lambda row: ranking.at(threshold, row).recall,
            "f1": lambda row: ranking.at(threshold, row).f1,
            "accuracy": lambda row: ranking.at(threshold, row).accuracy,
        }

    base, tuned = statistics("base", WEAK), statistics("tuned", STRONG)
    assert found.reports["base"].metrics == {metric: bootstrap(run, weights) for metric, run in base.items()}
    assert found.reports["tuned"].metrics == {metric: bootstrap(run, weights) for metric, run in tuned.items()}
    assert found.differences["tuned"] == {
        metric: paired_bootstrap(base[metric], tuned[metric], weights) for metric in base
    }


def test_the_baseline_can_be_any_of_them() -> None:
    found = compare({"base": WEAK, "tuned": STRONG}, PAIRS, baseline="tuned", resamples=50)

    assert set(found.differences) == {"base"}
    assert found.differences["base"]["average_precision"].value < 0


def test_a_model_compared_with_itself_does_not_differ() -> None:
    found = compare({"one": WEAK, "two": WEAK}, PAIRS, resamples=50).differences["two"]

    assert {metric.value for metric in found.values()} == {0.0}
    assert {metric.p_value for metric in found.values()} == {1.0}


def test_a_report_is_the_same_alone_and_beside_others() -> None:
    beside = compare({"weak": WEAK, "strong": STRONG}, PAIRS, resamples=50).reports["weak"]

    assert beside == evaluate(WEAK, PAIRS, name="weak", resamples=50)


def test_no_encoder_is_nothing_to_compare() -> None:
    with pytest.raises(ConfigurationError, match="nothing to compare"):
        compare({}, PAIRS)


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(ConfigurationError, match="nobody"):
        compare({"base": WEAK}, PAIRS, baseline="nobody", resamples=10)


def test_p_values_stand_beside_those_for_all_models_and_metrics_at_once() -> None:
    found = compare({"base": WEAK, "one": STRONG, "two": WEAK}, PAIRS, baseline="base", resamples=100)
    smallest = min(change.p_value for changes in found.differences.values() for change in changes.values())
    tests = sum(map(len, found.differences.values()))

    assert min(value for changes in found.holm.values() for value in changes.values()) == pytest.approx(
        min(1.0, tests * smallest)
    )


# --- graded pairs, general ability, latency -------------------------------------------------------


def test_graded_pairs_are_measured_by_rank_correlation() -> None:
    pairs = [ScoredPair("left", f"right {row}", float(row)) for row in range(60)]
    rising = Scripted({pair.sentence2: pair.score / 100 for pair in pairs})
    found = evaluate_scored(rising, pairs, resamples=100)

    assert found.value == pytest.approx(1.0)
    assert found.low == pytest.approx(1.0)


def test_the_shipped_guards_measure_general_ability() -> None:
    found = {score.data: score for score in evaluate_general(FakeEncoder(), resamples=30)}

    assert found["general_pairs"].metric == "average precision"
    assert found["general_sts"].metric == "Spearman"
    assert all(score.rows >= 50 for score in found.values())
    assert all(score.estimate.low <= score.estimate.value <= score.estimate.high for score in found.values())


def test_guards_of_every_kind_are_measured_as_training_measures_them() -> None:
    triplets = [Triplet(f"anchor {row}", f"right {row}", (f"wrong {row}",)) for row in range(12)]
    classes = [LabelledText(f"text {row}", f"label {row % 2}") for row in range(12)]
    found = evaluate_general(FakeEncoder(), {"triplets": triplets, "classes": classes}, resamples=30)

    assert [score.metric for score in found] == ["triplet accuracy", "nearest-neighbour accuracy"]
    assert all(0 <= score.estimate.value <= 1 for score in found)


class Sided:
    """An encoder whose documents are the negatives of its queries."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return FakeEncoder().encode(texts)

    def sides(self) -> tuple[Encoder, Encoder]:
        negative = Scaled(-1.0)
        return self, negative


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return np.asarray(self.factor * FakeEncoder().encode(texts), dtype=np.float32)


def test_queries_and_documents_of_a_guard_are_read_by_their_own_sides() -> None:
    """Each positive is its own anchor, word for word: nearest to it by one encoder, farthest by one of two sides."""
    triplets = [Triplet(f"question {row}", f"question {row}", ("something else",)) for row in range(12)]
    alike, opposite = (evaluate_general(one, {"t": triplets}, resamples=30)[0] for one in (FakeEncoder(), Sided()))

    assert (alike.estimate.value, opposite.estimate.value) == (1.0, 0.0)


class Counting:
    """Counts the calls and the texts of an encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.sizes: list[int] = []

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        self.sizes.append(len(texts))
        return self.encoder.encode(texts)


def test_latency_is_of_single_queries_after_a_warm_up_and_throughput_of_all_texts() -> None:
    encoder = Counting(FakeEncoder())
    found = measure_latency(encoder, [f"text {row}" for row in range(30)], queries=20)

    assert encoder.sizes == [1] * 30 + [30]  # ten of the single ones warm up
    assert found.queries == 20
    assert 0 < found.p50_ms <= found.p95_ms
    assert found.texts_per_second > 0
    assert found.threads >= 1


def test_a_slow_start_is_not_in_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still but for the encoder: 1 s for each of the first ten calls, 2 ms for others."""
    encoder, now = Counting(FakeEncoder()), [0.0]

    def tick(texts: Sequence[str], /) -> Embeddings:
        now[0] += 1.0 if len(encoder.sizes) < 10 else 0.002
        return Counting.encode(encoder, texts)

    monkeypatch.setattr(encoder, "encode", tick)
    monkeypatch.setattr("embedsmith.evaluation.time.perf_counter", lambda: now[0])
    found = measure_latency(encoder, ["one", "two"], queries=50)

    assert (found.p50_ms, found.p95_ms) == (2.0, 2.0)
    assert found.texts_per_second == 1000.0


def test_latency_of_no_texts_is_refused() -> None:
    with pytest.raises(InputError):
        measure_latency(FakeEncoder(), [])


# --- real pairs -----------------------------------------------------------------------------------


def test_real_pairs_give_a_whole_report(data: Path) -> None:
    rows = read_examples(data / "medical_pairs" / "validation.jsonl.gz").examples
    pairs = [row for row in rows if isinstance(row, LabelledPair)]
    found = evaluate(FakeEncoder(), pairs, resamples=50)

    assert found.pairs + found.validation_pairs == len(pairs) == 456
    assert 0.4 < found.metrics["average_precision"].value < 0.95
    assert found.metrics["average_precision"].low < found.metrics["average_precision"].high
