"""Rules chosen from labelled pairs: the verifier has to prove itself, and the promise holds either way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsmith.cache.guard import Veto
from embedsmith.cache.independence import correlate_units, draw_sample
from embedsmith.cache.rules import (
    calibrate_pairs,
    choose_rules,
    part_units,
    serve_pairs,
    served_similarities,
)
from embedsmith.cache.semantic import SemanticCache
from embedsmith.calibration import write_calibration
from embedsmith.conversation import Turn, render
from embedsmith.encoder import Embeddings
from embedsmith.errors import CalibrationRefused, ConfigurationError
from embedsmith.examples import LabelledPair
from embedsmith.testing import FakeEncoder


class Noisy:
    """An encoder whose cosine of "left N" and "right N" is what a test says."""

    fingerprint = "noisy"

    def __init__(self, cosines: NDArray[np.float64]) -> None:
        self.cosines = cosines

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        rows = np.zeros((len(texts), 2), dtype=np.float32)
        for place, text in enumerate(texts):
            side, _, number = text.partition(" ")
            cosine = 1.0 if side == "left" or not number else self.cosines[int(number)]
            rows[place] = cosine, np.sqrt(1 - cosine**2)
        return rows


class Oracle:
    """A verifier that is right with a given probability."""

    fingerprint = "oracle"

    def __init__(self, labels: NDArray[np.int64], *, right: float) -> None:
        self.labels = labels
        self.correct = np.random.default_rng(5).random(len(labels)) < right

    def score(self, pairs: Sequence[tuple[str, str]], /) -> NDArray[np.float64]:
        places = [int(left.split()[1]) for left, _ in pairs]
        truth = np.where(self.correct, self.labels, 1 - self.labels)[places]
        return 6.0 * truth - 3.0


def world(size: int = 3000) -> tuple[Noisy, list[LabelledPair], NDArray[np.int64]]:
    generator = np.random.default_rng(1)
    labels = (generator.random(size) < 0.5).astype(np.int64)
    cosines = np.clip(0.4 + 0.25 * labels + 0.15 * generator.normal(size=size), -0.9, 0.99)
    pairs = [LabelledPair(f"left {row}", f"right {row}", int(label), str(row)) for row, label in enumerate(labels)]
    return Noisy(cosines), pairs, labels


@pytest.fixture(autouse=True)
def without_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard would read the numbers that tell these texts apart."""
    monkeypatch.setattr("embedsmith.cache.rules.find_veto", lambda *_: None)


def test_a_good_verifier_is_switched_on_and_more_is_served() -> None:
    encoder, pairs, labels = world()
    without = choose_rules(encoder, pairs, delta=0.2)
    found = choose_rules(encoder, pairs, verifier=Oracle(labels, right=0.9), delta=0.2)
    assert found.verifier.startswith("verifier on: precision")
    assert found.calibration.verifier == "oracle"
    assert found.calibration.hit_rate > without.calibration.hit_rate


def test_a_useless_verifier_stays_off_and_the_promise_is_that_of_the_cosine() -> None:
    encoder, pairs, labels = world()
    found = choose_rules(encoder, pairs, verifier=Oracle(labels, right=0.5), delta=0.2)
    assert found.verifier.startswith("verifier off")
    assert (found.calibration.verifier, found.calibration.weight) == ("", 0.0)


def test_too_few_pairs_prove_nothing() -> None:
    encoder, pairs, labels = world(400)
    found = choose_rules(encoder, pairs, verifier=Oracle(labels, right=0.9), delta=0.3, alpha=0.2)
    assert found.verifier == ("verifier off: too few pairs to weigh it by, or it tells nothing beyond the cosine")


def test_the_promise_holds_whatever_the_verifier_is() -> None:
    """The share of draws in which more than delta of the answers served are wrong, over all that could be asked."""
    broken = 0
    for draw in range(60):
        generator = np.random.default_rng(draw)
        encoder, pairs, labels = world(4000)
        oracle = Oracle(labels, right=0.8)
        chosen = generator.permutation(len(pairs))[:1500]
        found = choose_rules(
            encoder, [pairs[row] for row in chosen], verifier=oracle, delta=0.25, alpha=0.1
        ).calibration
        logits = np.clip(oracle.score([(pair.sentence1, "") for pair in pairs]), -4, 4)
        served = encoder.cosines + found.weight * logits >= found.threshold
        broken += float((labels[served] == 0).mean()) > 0.25
    assert broken <= 0.1 * 60


def test_the_parts_keep_units_together_and_lose_nothing() -> None:
    units = [str(row // 3) for row in range(300)]
    parts = part_units(units, (0.2, 0.3), seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    owners = [{units[place] for place in part} for part in parts]
    assert len(owners[0] | owners[1] | owners[2]) == sum(map(len, owners))
    assert [len(part) for part in parts] == [60, 90, 150]


def test_a_cache_refuses_rules_whose_verifier_is_not_there(tmp_path: Path) -> None:
    encoder, pairs, labels = world()
    oracle = Oracle(labels, right=0.9)
    found = choose_rules(encoder, pairs, verifier=oracle, delta=0.2, model="fake").calibration
    path = write_calibration(tmp_path / "calibration.json", found)
    with pytest.raises(ConfigurationError, match="calibration is for the verifier oracle, not for a cache without one"):
        SemanticCache(FakeEncoder(64), calibration=path, fingerprint="fake")
    with pytest.raises(ConfigurationError, match="together with a bare threshold"):
        SemanticCache(FakeEncoder(64), threshold=0.8, verifier=oracle, fingerprint="fake")
    cache = SemanticCache(FakeEncoder(64), calibration=path, verifier=oracle, fingerprint="fake")
    assert cache.policy.reach == pytest.approx(4 * found.weight)


def test_a_pair_that_stands_twice_counts_once_and_large_units_lend_one_pair() -> None:
    single = [LabelledPair(f"left {row}", f"right {row}", row % 2) for row in range(20)]
    assert draw_sample(single, FakeEncoder()) == (single, "")
    turned = [LabelledPair(pair.sentence2, pair.sentence1, pair.label) for pair in single[:5]]
    kept, told = draw_sample([*single, *turned], FakeEncoder())
    assert (kept, told) == (single, "5 pairs that stand twice count once")
    alike = [
        LabelledPair(f"{way} way to {row}", f"{way} road to {row}", 1, str(row)) for row in range(9) for way in "abcdef"
    ]
    kept, told = draw_sample(alike, FakeEncoder())
    assert {pair.group for pair in kept} == {pair.group for pair in alike}
    assert (len(kept), told) == (9, "one pair of each of 9 groups of alike pairs is counted, 54 in all")


def test_alike_pairs_do_not_carry_a_promise_that_their_groups_cannot() -> None:
    """40 questions asked in 50 ways each are 40 questions: 2,000 hits without a wrong one look like a proof."""
    pairs = [
        LabelledPair(f"left {row}{way}", f"right {row}{way}", 1, str(row)) for row in range(40) for way in range(50)
    ]
    with pytest.raises(CalibrationRefused):
        choose_rules(FakeEncoder(), pairs, delta=0.05)


def test_the_duplicates_that_the_guard_vetoes_are_counted_and_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pairs, labels = world()
    assert choose_rules(encoder, pairs, delta=0.2).sample == ""
    different, first, second = np.flatnonzero(labels == 0)[0], *np.flatnonzero(labels == 1)[:2]
    vetoed = {f"left {row}" for row in (different, first, second)}
    veto = Veto("word", "left / right")
    monkeypatch.setattr("embedsmith.cache.rules.find_veto", lambda one, _: veto if one in vetoed else None)
    assert choose_rules(encoder, pairs, delta=0.2).sample == (
        f"the guard vetoes 2 of {labels.sum()} duplicates, which no threshold serves, "
        f'such as "left {first}" and "right {first}" (word: left / right)'
    )


def test_pairs_of_large_units_all_count_where_they_are_not_alike() -> None:
    encoder, pairs, labels = world(400)
    groups = np.random.default_rng(2).integers(0, 50, size=len(pairs))
    pairs = [replace(pair, group=f"g{group}") for pair, group in zip(pairs, groups, strict=True)]
    assert draw_sample(pairs, encoder) == (pairs, "")
    assert correlate_units(labels, [f"g{group}" for group in groups]) < 0.1


def test_how_alike_the_values_of_a_unit_are() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert correlate_units(values, list("aabb")) == 1
    assert correlate_units(values, list("abab")) == 0
    assert correlate_units(values, list("abcd")) == 0
    assert correlate_units(np.ones(4), list("aabb")) == 1


def speak(text: str) -> str:
    return render([Turn("user", text), Turn("assistant", "I see."), Turn("user", "And now?")])


def test_conversations_choose_a_threshold_of_their_own() -> None:
    """Those of them are further apart: one threshold for both would serve none, or wrong ones."""
    encoder, pairs, _ = world()
    spoken = [LabelledPair(speak(pair.sentence1), speak(pair.sentence2), pair.label) for pair in pairs]
    scores = encoder.cosines - 0.3
    alone = calibrate_pairs(pairs, encoder.cosines, delta=0.2)
    found = calibrate_pairs([*pairs, *spoken], np.concatenate([encoder.cosines, scores]), delta=0.2)
    own = found.conversations
    assert own is not None
    assert own.threshold is not None
    assert replace(found, conversations=None) == alone
    assert (own.pairs, own.hits, own.threshold) == (len(pairs), alone.hits, pytest.approx(alone.threshold - 0.3))
    assert serve_pairs(found, [pairs[0], spoken[0]], np.array([own.threshold, own.threshold])).tolist() == [False, True]
    both = calibrate_pairs(spoken, scores, delta=0.2)
    assert both.conversations == replace(own, threshold=both.threshold)


def test_too_few_conversations_carry_no_promise_and_take_none_away() -> None:
    encoder, pairs, _ = world()
    few = [LabelledPair(speak(pair.sentence1), speak(pair.sentence2), pair.label) for pair in pairs[:20]]
    found = calibrate_pairs([*few, *pairs], np.concatenate([encoder.cosines[:20], encoder.cosines]), delta=0.2)
    own = found.conversations
    assert own is not None
    assert (own.pairs, own.threshold, "too few" in own.refused) == (20, None, True)
    assert not serve_pairs(found, few, np.ones(20)).any()
    assert calibrate_pairs(pairs, encoder.cosines, delta=0.2).conversations is None
    with pytest.raises(CalibrationRefused, match="20 of the pairs are conversations"):
        calibrate_pairs([*few, *pairs[:20]], np.concatenate([encoder.cosines[:20]] * 2), delta=0.2)


def test_texts_in_which_others_speak_never_meet() -> None:
    one, other = speak("a card"), render([Turn("user", "a card"), Turn("user", "And now?")])
    pairs = [LabelledPair(one, other, 1), LabelledPair(one, "a card", 1), LabelledPair(one, one, 1)]
    assert served_similarities(FakeEncoder(), pairs).round(4).tolist() == [-1.0, -1.0, 1.0]
