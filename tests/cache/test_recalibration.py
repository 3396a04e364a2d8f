"""Thresholds of single tenants: granted on samples, raised but never lowered by what people report, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedsmith.artifacts import read_json, write_json
from embedsmith.cache.feedback import Feedback, Judged
from embedsmith.cache.recalibration import (
    FILE,
    Outcome,
    Recalibration,
    read_recalibration,
    recalibrate,
    write_recalibration,
)
from embedsmith.cache.samples import SampleRule
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.settings import read_promises
from embedsmith.calibration import Calibration, read_calibration, write_calibration
from embedsmith.conversation import Turn, render
from embedsmith.errors import InputError
from embedsmith.testing import FakeEncoder

COMMON = 0.9


def draw(
    namespace: str, count: int, *, wrong_below: float = 0.0, wrong: float = 0.0, floor: float = 0.8, seed: int = 0
) -> list[Judged]:
    """Return samples whose cosines are even above `floor`: wrong below `wrong_below`, elsewhere at the rate `wrong`."""
    generator = np.random.default_rng(seed)
    cosines = generator.uniform(floor, 1, count)
    right = (cosines >= wrong_below) & (generator.random(count) >= wrong)
    return [
        Judged(f"q{at}", f"s{at}", int(ok), float(cosine), namespace, "sample", "j", float(at), "m", COMMON, floor)
        for at, (cosine, ok) in enumerate(zip(cosines, right, strict=True))
    ]


def report(namespace: str, cosines: Sequence[float], label: int = 0) -> list[Judged]:
    return [Judged("asked", "stored", label, cosine, namespace) for cosine in cosines]


def settle(rows: Sequence[Judged], *, common: float | None = COMMON, model: str = "m") -> Recalibration:
    cosines = [row.cosine if row.cosine is not None else -1.0 for row in rows]
    return recalibrate(rows, cosines, model=model, common=common)


def only(rows: Sequence[Judged], **options: object) -> Outcome:
    (found,) = settle(rows, **options).outcomes  # type: ignore[arg-type]
    return found


def test_conversations_pay_for_no_single_question() -> None:
    """They have a threshold of their own, below which they are not served whatever the tenant's says."""
    singles = draw("t", 400, wrong=0.08)
    turns = Turn("user", "hello"), Turn("assistant", "yes?")
    spoken = [replace(row, sentence1=render([*turns, Turn("user", row.sentence1)])) for row in draw("t", 1200, seed=1)]
    assert not only(singles).granted
    found = only([*singles, *spoken])
    assert (found.granted, found.samples, found.judged) == (False, 400, 1600)
    noticed = [replace(row, label=0, source="person", floor=None) for row in spoken]
    assert only([*draw("t", 400), *noticed]).threshold == only(draw("t", 400)).threshold


def test_each_tenant_gets_what_its_own_samples_allow() -> None:
    easy, hard = draw("easy", 300), draw("hard", 1000, wrong_below=0.95)
    rows = [*easy, *hard, *draw("bad", 300, wrong=0.3), *draw("few", 40), *report("noticed", [0.95] * 300)]
    found = settle(rows)
    assert found.thresholds.keys() == {"easy", "hard"}
    assert found.thresholds["easy"] < 0.81
    assert 0.94 < found.thresholds["hard"] <= 0.96
    reasons = {item.namespace: item.reason for item in found.outcomes}
    assert "refused: no threshold keeps the false-hit rate" in reasons["bad"]
    assert reasons["few"] == "too few: 40 samples can be used, 100 are asked for"
    assert reasons["noticed"] == "too few: 0 samples can be used, 100 are asked for"
    assert {item.threshold for item in found.outcomes if not item.granted} == {COMMON}


def test_what_the_common_threshold_does_to_a_tenant_is_counted() -> None:
    found = only(draw("hard", 300, wrong_below=0.95))
    assert found.common_hits > 100
    assert 0.3 < found.common_wrong / found.common_hits < 0.7


def test_reported_mistakes_raise_a_threshold_and_reported_repeats_change_nothing() -> None:
    rows = draw("t", 400, wrong_below=0.86)
    alone = only(rows)
    raised = only([*rows, *report("t", [0.9] * 30)])
    assert alone.granted
    assert raised.granted
    assert alone.threshold is not None
    assert raised.threshold is not None
    assert alone.threshold < 0.9 < raised.threshold
    assert f"raised from {alone.threshold:.4f} by 30 mistakes" in raised.reason
    assert only([*rows, *report("t", [0.99] * 500, label=1)]).threshold == alone.threshold


def test_mistakes_that_no_threshold_survives_never_let_a_threshold_fall() -> None:
    hard, easy = draw("t", 1000, wrong_below=0.95), draw("t", 300)
    storm = report("t", [0.999] * 300)
    assert only([*hard, *storm]).threshold == only(hard).threshold  # above the common one: stays
    assert only([*easy, *storm]).threshold == COMMON  # below it: not granted
    assert "no threshold passes" in only([*easy, *storm]).reason


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 50),
    edge=st.floats(0.8, 0.97),
    cosines=st.lists(st.floats(0.5, 1.0), max_size=60),
    labels=st.sampled_from([0, 1]),
)
def test_what_people_mark_never_lowers_a_threshold(seed: int, edge: float, cosines: list[float], labels: int) -> None:
    rows = draw("t", 250, wrong_below=edge, seed=seed)
    before, after = only(rows), only([*rows, *report("t", cosines, labels)])
    if before.granted or after.granted:
        assert after.threshold is not None
        assert before.threshold is not None
        assert after.threshold >= before.threshold


def test_tenants_do_not_learn_from_each_other() -> None:
    quiet = only(draw("a", 200))
    crowd = settle([*draw("a", 200), *draw("b", 300, wrong=1.0), *report("b", [0.99] * 50)])
    assert crowd.outcomes[0] == quiet


def test_samples_of_another_model_may_only_raise() -> None:
    easy, hard = (
        [replace(row, model="old") for row in rows] for rows in (draw("t", 300), draw("t", 1000, wrong_below=0.95))
    )
    assert "drawn with another model" in only(easy).reason
    assert not only(easy).granted
    assert only(hard).granted
    assert not only(hard, common=None).granted
    assert only([*draw("t", 200), *hard]).threshold == only(draw("t", 200)).threshold  # enough of its own: those alone


def test_where_some_draws_did_not_look_no_threshold_is_set() -> None:
    """Low pairs were drawn only while the floor was low: they are too few there, and seem rarer than they are."""
    wide, narrow = draw("t", 100, floor=0.8, wrong_below=0.88), draw("t", 400, floor=0.9, seed=1)
    found = only([*wide, *narrow])
    assert found.threshold is not None
    assert found.threshold >= 0.8999
    assert found.samples < 500


def test_pairs_that_the_guard_vetoes_count_for_nothing() -> None:
    rows = draw("t", 200)
    vetoed = [replace(row, label=0, cosine=-1.0) for row in draw("t", 50)] + report("t", [-1.0] * 20)
    found = only([*rows, *vetoed])
    assert (found.threshold, found.samples, found.reported) == (only(rows).threshold, 200, 0)


def test_the_promise_is_kept_on_streams_with_a_margin() -> None:
    """Of 200 tenants whose mistakes are rare from .9 on, at most a share alpha gets too low a threshold."""
    generator = np.random.default_rng(0)
    broken = granted = 0
    for _ in range(200):
        cosines = generator.uniform(0.8, 1, 600)
        wrong = generator.random(600) < np.where(cosines < 0.9, 0.31, 0.01)
        rows = [
            Judged("a", "b", int(not bad), float(cosine), "t", "sample", "j", 1.0, "m", 0.9, 0.8)
            for cosine, bad in zip(cosines, wrong, strict=True)
        ]
        found = only(rows)
        if found.granted and found.threshold is not None:
            granted += 1
            broken += found.threshold < 0.8846  # there, .31 (.9 - t) + .01 * .1 is .05 (1 - t)
    assert granted > 150
    assert broken <= 0.05 * 200


def test_the_file_comes_back_and_belongs_to_one_model(tmp_path: Path) -> None:
    found = settle([*draw("easy", 300), *draw("few", 4)])
    path = write_recalibration(tmp_path / FILE, found)
    assert read_recalibration(path, model="m") == found
    with pytest.raises(InputError, match="belongs to the model m, not to other"):
        read_recalibration(path, model="other")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="holds no thresholds"):
        read_recalibration(tmp_path / "x.json")


ASKED, CLOSE = "How do I freeze my card?", "How do I freeze my cards?"


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    own = Calibration(0.5, 0.05, 0.05, 100, 0, 0.03, 0.5, 0.5, 200, "fake")
    write_calibration(tmp_path / "calibration.json", replace(own, threshold=0.999))
    outcome = Outcome("easy", 0.5, "granted", own, 200, 200, 0, until=10.0)
    write_recalibration(tmp_path / FILE, Recalibration("fake", 0.999, 0.05, 0.05, 100, (outcome,)))
    return tmp_path / "calibration.json"


def test_the_cache_serves_each_tenant_by_its_own_threshold(calibrated: Path) -> None:
    cache = SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake")
    for namespace in ("easy", "other"):
        cache.add(ASKED, "in the app", namespace=namespace)
    assert cache.lookup(CLOSE, namespace="easy").hit
    assert cache.lookup(CLOSE, namespace="other").decision.reason == "below threshold"


def test_a_threshold_by_hand_counts_for_all_unless_the_file_is_named(calibrated: Path) -> None:
    by_hand = SemanticCache(FakeEncoder(64), threshold=0.999, fingerprint="fake")
    assert not by_hand.policy.thresholds
    named = SemanticCache(FakeEncoder(64), threshold=0.999, namespaces=calibrated.with_name(FILE), fingerprint="fake")
    assert named.policy.thresholds == {"easy": 0.5}
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        SemanticCache(FakeEncoder(64), threshold=0.9, namespaces="none.json", fingerprint="fake")


def test_thresholds_of_another_model_are_refused(calibrated: Path) -> None:
    other = Calibration(0.9, 0.05, 0.05, 100, 0, 0.03, 0.5, 0.5, 200, "new")
    write_calibration(calibrated, other)
    with pytest.raises(InputError, match="belongs to the model fake, not to new"):
        SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="new")


def test_the_verdicts_that_chose_a_threshold_do_not_judge_it(calibrated: Path, tmp_path: Path) -> None:
    feedback = tmp_path / "feedback.jsonl"
    for marked in (9.0, 10.0, 11.0):
        row = Judged("a", "b", 1, 0.9, "easy", "sample", "j", marked, "fake", 0.6, 0.5)
        Feedback(feedback).append(row)
    cache = SemanticCache(
        FakeEncoder(64), calibration=calibrated, fingerprint="fake", feedback=feedback, sample=SampleRule(0.1)
    )
    assert cache.samples is not None
    assert cache.samples.estimate.judged == 1


class Agreeing:
    """A verifier that finds everything the same."""

    fingerprint = "agreeing"

    def score(self, pairs: Sequence[tuple[str, str]], /) -> NDArray[np.float64]:
        return np.full(len(pairs), 4.0)


def rewrite(calibrated: Path, **changes: Any) -> None:
    """Change the common calibration, as another `calibrate` would."""
    write_calibration(calibrated, replace(read_calibration(calibrated), **changes))


def rewrite_single(calibrated: Path, **changes: Any) -> None:
    path = calibrated.with_name(FILE)
    write_recalibration(path, replace(read_recalibration(path), **changes))


def test_thresholds_on_cosines_of_another_scale_are_refused(calibrated: Path) -> None:
    rewrite_single(calibrated, verifier="")
    rewrite(calibrated, verifier="agreeing", weight=0.02)
    with pytest.raises(
        InputError, match="was made without a verifier, and the calibration beside it with the verifier"
    ):
        SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake", verifier=Agreeing())
    rewrite_single(calibrated, verifier="agreeing", weight=0.01)
    with pytest.raises(InputError, match=r"at weight 0\.01, and the calibration beside it with the verifier"):
        SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake", verifier=Agreeing())
    rewrite_single(calibrated, weight=0.02)
    cache = SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake", verifier=Agreeing())
    assert cache.policy.thresholds == {"easy": 0.5}
    rewrite(calibrated, verifier="", weight=0.0)
    with pytest.raises(InputError, match="and the calibration beside it without a verifier"):
        SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake")


def test_a_file_that_does_not_tell_its_scale_counts_beside_its_own_calibration_only(calibrated: Path) -> None:
    path = calibrated.with_name(FILE)
    content = read_json(path)
    for name in ("verifier", "weight", "precision", "guard"):
        content.pop(name)
    write_json(path, content)
    assert SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake").policy.thresholds
    rewrite(calibrated, threshold=0.99)
    with pytest.raises(InputError, match="beside another calibration"):
        SemanticCache(FakeEncoder(64), calibration=calibrated, fingerprint="fake")


def test_a_recalibration_that_granted_nothing_promises_nothing(calibrated: Path) -> None:
    path = calibrated.with_name(FILE)
    refused = Outcome("easy", 0.999, "too few", None, 3, 3, 0)
    write_recalibration(path, Recalibration("fake", 0.999, 0.3, 0.05, 100, (refused,), "gone", 0.5))
    promised = read_promises(FakeEncoder(64), fingerprint="fake", calibration=calibrated)
    assert promised.delta == 0.05
    granted = Outcome("easy", 0.5, "granted", read_calibration(calibrated), 200, 200, 0)
    write_recalibration(path, Recalibration("fake", 0.999, 0.3, 0.05, 100, (granted,), ""))
    assert read_promises(FakeEncoder(64), fingerprint="fake", calibration=calibrated).delta == 0.3


def test_recalibrate_writes_down_what_made_the_similarities(tmp_path: Path) -> None:
    rows = [Judged("a", "b", 1, 0.9, "t", "sample", "j", 1.0, "m", 0.6, 0.5)] * 200
    scale = {"verifier": "v", "weight": 0.02, "precision": "int8", "guard": False}
    found = recalibrate(rows, [0.9] * 200, model="m", **scale)  # type: ignore[arg-type]
    read = read_recalibration(write_recalibration(tmp_path / FILE, found))
    own = read.outcomes[0].calibration
    assert own is not None
    for told in (read, own):
        assert (told.verifier, told.weight, told.precision, told.guard) == ("v", 0.02, "int8", False)
