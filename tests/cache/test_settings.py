"""What a calibration was made for is what is served: its guard, its precision; a mismatch is refused or said."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedsmith.artifacts import read_json, write_json
from embedsmith.cache.decision import Policy
from embedsmith.cache.feedback import Judged
from embedsmith.cache.guard import fingerprint_rules
from embedsmith.cache.recalibration import FILE, recalibrate, write_recalibration
from embedsmith.cache.rules import choose_rules
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.settings import TAUGHT, place_calibration, settle_turns
from embedsmith.calibration import Calibration, Conversations, read_calibration, write_calibration
from embedsmith.errors import ConfigurationError
from embedsmith.examples import LabelledPair
from embedsmith.export import export_model
from embedsmith.model import RECORD
from embedsmith.runtime import OnnxEncoder
from embedsmith.testing import FakeEncoder

MADE = Calibration(0.9, 0.05, 0.05, 100, 1, 0.04, 0.3, 0.6, 400, "fake", precision="fp32", guard=True)
MADE = replace(MADE, guard_rules=fingerprint_rules(), cached=True)
TOPICS = ["card", "tea", "dog", "train", "garden", "piano", "winter", "tax"]


class Rounded(FakeEncoder):
    """An encoder that says what it computes in."""

    precision = "int8"


def write(folder: Path, **changes: Any) -> Path:
    return write_calibration(folder / "calibration.json", replace(MADE, **changes))


def open_cache(calibration: Path, **options: Any) -> SemanticCache:
    return SemanticCache(Rounded(64), calibration=calibration, fingerprint="fake", **options)


def test_a_calibration_behind_the_guard_is_not_served_without_it(tmp_path: Path) -> None:
    path = write(tmp_path, precision="int8")
    assert open_cache(path).policy.guard is not None
    with pytest.raises(ConfigurationError, match="made behind the guard, and the guard is off"):
        open_cache(path, guard=False)
    assert open_cache(path, guard=False, threshold=0.9).policy.guard is None  # at one's own risk


def test_a_calibration_without_the_guard_is_not_served_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path, guard=False, precision="int8")
    with pytest.raises(ConfigurationError, match="made without the guard, and the guard is on"):
        open_cache(path)
    assert open_cache(path, guard=False).policy.guard is None


def test_a_calibration_of_a_model_without_a_cache_is_served_by_none(tmp_path: Path) -> None:
    path = write(tmp_path, guard=False, cached=False, guard_rules="", precision="int8")
    for guard in (True, False):
        with pytest.raises(ConfigurationError, match=r"of the model by itself, without a cache \(--model-only\)"):
            open_cache(path, guard=guard)
    assert open_cache(path, threshold=0.9).policy.threshold == 0.9  # at one's own risk


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"guard_rules": "0-words"}, "behind a guard of another version (0-words, here "),
        ({"guard_rules": ""}, "behind a guard of another version (not recorded, here "),
        ({"guard_rules": "", "guard": False}, ""),
    ],
)
def test_another_guard_than_the_calibrations_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], told: str
) -> None:
    path = write(tmp_path, precision="int8", **changes)
    assert open_cache(path, guard=changes.get("guard", True)).policy.threshold == 0.9
    assert len(caplog.messages) == bool(told)
    assert told in " ".join(caplog.messages)
    assert all("To do: embedsmith calibrate MODEL PAIRS --for-cache" in line for line in caplog.messages)


def test_thresholds_of_tenants_say_behind_which_guard_they_were_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Judged("lost card", "card lost", 1, namespace="shop", source="sample", model="fake")] * 90
    found = recalibrate(rows, [0.99] * 90, model="fake", delta=0.2, alpha=0.2, min_pairs=50, guard_rules="0-words")
    write_recalibration(tmp_path / FILE, found)
    assert open_cache(write(tmp_path, precision="int8")).policy.thresholds == {"shop": 0.99}
    (line,) = caplog.messages
    assert "another version (0-words" in line
    assert "To do: embedsmith recalibrate FEEDBACK" in line


@pytest.mark.parametrize(("precision", "warned"), [("fp32", True), ("int8", False), ("", False)])
def test_another_precision_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str, warned: bool
) -> None:
    cache = open_cache(write(tmp_path, precision=precision))
    assert cache.policy.threshold == 0.9
    told = " ".join(caplog.messages)
    assert ("made on fp32 vectors, and int8 ones are served" in told) == warned
    assert ("To do: embedsmith calibrate MODEL PAIRS --for-cache" in told) == warned


def test_an_older_calibration_is_read_and_said_to_be_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path)
    content = read_json(path)
    for name in ("precision", "guard", "guard_rules", "cached"):
        del content[name]
    write_json(path, content)
    assert read_calibration(path).guard is None
    assert open_cache(path).policy.threshold == 0.9
    assert "is of an older version and does not say" in " ".join(caplog.messages)


def test_rules_say_what_made_their_similarities() -> None:
    texts = [f"how do i pay for the {one} of the {other}" for one in TOPICS for other in TOPICS]
    pairs = [LabelledPair(text, f"{text} please", 1) for text in texts]
    found = choose_rules(Rounded(64), pairs, delta=0.2, alpha=0.2).calibration
    assert (found.precision, found.guard, found.guard_rules) == ("int8", True, fingerprint_rules())
    found = choose_rules(Rounded(64), pairs, delta=0.2, alpha=0.2, guard=False).calibration
    assert (found.guard, found.guard_rules, found.cached) == (False, "", True)


def test_an_export_is_served_at_once_and_its_warning_names_the_distance(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`run` calibrates in fp32, `export --precision int8`, `serve`: day one, without new labelled pairs."""
    folder = tmp_path / "model"
    report = export_model(tiny_model, folder, precision="int8", least_cosine=-1.0, max_loss=2.0)
    write(tmp_path, model=report.fingerprint)
    with caplog.at_level(logging.WARNING, logger="embedsmith.cache"):
        cache = SemanticCache(folder)
    assert cache.policy.threshold == 0.9
    close = report.precisions["int8"].mean_cosine
    assert f"int8 ones are served (mean cosine {close:.4f} to fp32)" in " ".join(caplog.messages)


def test_the_folder_of_a_run_is_served_as_the_model_in_it(tiny_model: Path, tmp_path: Path) -> None:
    """`--model runs/support` is what the hurried type: its export, its calibration, its conversations."""
    folder = tmp_path / "run" / "model"
    report = export_model(tiny_model, folder, precision="int8", least_cosine=-1.0, max_loss=2.0)
    (folder / RECORD).write_text(f"[[sources]]\nconversations = {TAUGHT}\n")
    write(folder.parent, model=report.fingerprint, precision="int8", conversations=PROVEN)
    caches = [SemanticCache(place) for place in (folder.parent, folder)]
    assert [type(cache.encoder) for cache in caches] == [OnnxEncoder] * 2
    assert caches[0].policy.conversations == caches[1].policy.conversations == PROVEN.threshold
    assert place_calibration(folder.parent) == place_calibration(folder) == folder / "calibration.json"


PROVEN = Conversations(400, 0.85, 90, 0)
REFUSED = Conversations(40, refused="too few")


class Taught(Rounded):
    """An encoder that was trained for conversations."""

    conversations = TAUGHT


def test_conversations_are_compared_by_meaning_where_model_and_calibration_carry_it(tmp_path: Path) -> None:
    path = write(tmp_path, precision="int8", conversations=PROVEN)
    cache = SemanticCache(Taught(64), calibration=path, fingerprint="fake")
    assert (cache.policy.threshold, cache.policy.conversations) == (0.9, 0.85)
    assert cache.turns == (
        f"conversations by meaning from 0.8500: trained on {TAUGHT} rows of them, 400 pairs of them carry the promise"
    )
    assert read_calibration(path).conversations == PROVEN
    kept = SemanticCache(Taught(64), calibration=path, fingerprint="fake", turns="fingerprint")
    assert (kept.by_meaning, kept.turns) == (False, "earlier turns must be equal, as asked")


@pytest.mark.parametrize(
    ("taught", "own", "words"),
    [
        (TAUGHT - 1, PROVEN, f"the model was trained on {TAUGHT - 1} rows of conversations, and it takes {TAUGHT}"),
        (TAUGHT, None, "none of the calibration's pairs is of conversations"),
        (TAUGHT, REFUSED, "its 40 pairs of conversations carry no promise (too few)"),
        (0, None, "the model was not trained on conversations"),
    ],
)
def test_what_is_missing_for_that_is_said_and_refused_where_it_was_asked_for(
    taught: int, own: Conversations | None, words: str
) -> None:
    made = replace(MADE, conversations=own)
    policy, told = settle_turns(Policy(0.9), "auto", taught=taught, calibration=made)
    assert policy.conversations is None
    assert told.startswith("earlier turns must be equal: ")
    assert words in told
    with pytest.raises(ConfigurationError) as refused:
        settle_turns(Policy(0.9), "meaning", taught=taught, calibration=made)
    assert words in str(refused.value)


def test_a_threshold_by_hand_compares_conversations_only_when_asked_to() -> None:
    policy, told = settle_turns(Policy(0.8), "auto", taught=TAUGHT)
    assert (policy.conversations, "a threshold given by hand promises nothing" in told) == (None, True)
    policy, told = settle_turns(Policy(0.8), "meaning", taught=TAUGHT)
    assert (policy.conversations, "without a promise" in told) == (0.8, True)
    with pytest.raises(ConfigurationError, match="auto or fingerprint or meaning"):
        settle_turns(Policy(0.8), "odd", taught=TAUGHT)  # type: ignore[arg-type]
