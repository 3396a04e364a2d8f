"""What is promised for a model by its name is promised for the similarities that a cache with it serves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from embedsmith.cache.promises import calibrate_model, place_recalibration, recalibrate_model
from embedsmith.cache.rules import served_similarities
from embedsmith.cache.settings import open_encoder
from embedsmith.errors import CalibrationRefused, ConfigurationError
from embedsmith.examples import LabelledPair
from embedsmith.export import export_model
from embedsmith.runtime import OnnxEncoder

LONG = "my card is lost " * 200  # more than a model reads: behind the same beginning, any two have cosine 1
SAME = [LabelledPair(f"lost card {at}", f"lost card {at}", 1) for at in range(90)]
CUT = [LabelledPair(f"{LONG} {at} in Spain", f"{LONG} {at} in Peru", 0) for at in range(30)]
EXCHANGED = [LabelledPair(f"send {at} usd", f"send {at} eur", 1) for at in range(100, 110)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("promises") / "model")
    export_model(folder, precision="int8", texts=[pair.sentence1 for pair in SAME], max_loss=1)
    return folder


@pytest.mark.parametrize("guard", [True, False])
def test_a_cache_is_calibrated_as_it_serves_with_the_guard_or_without(exported: Path, guard: bool) -> None:
    made = calibrate_model(str(exported), [*SAME, *CUT, *EXCHANGED], guard=guard).calibration
    assert (made.precision, made.guard) == ("int8", guard)
    encoder, _ = open_encoder(exported)
    assert isinstance(encoder, OnnxEncoder)
    similarities = served_similarities(encoder, [*SAME, *CUT, *EXCHANGED], guard=guard)
    assert np.sum(similarities >= made.threshold) == made.hits == 90 + (0 if guard else 10)


def test_a_model_without_a_cache_is_taken_by_its_cosines(exported: Path) -> None:
    """Two long texts that begin alike are served by nobody but by who has only the cosines."""
    with pytest.raises(CalibrationRefused):
        calibrate_model(str(exported), [*SAME, *CUT], cached=False)
    made = calibrate_model(str(exported), SAME, cached=False).calibration
    assert (made.precision, made.guard, made.cached) == ("fp32", False, False)
    with pytest.raises(ConfigurationError, match="a verifier, and no cache"):
        calibrate_model(str(exported), SAME, cached=False, verifier="folder")


def test_thresholds_of_tenants_lie_beside_the_calibration_or_the_model(tmp_path: Path) -> None:
    assert place_recalibration("runs/model").parts[:-1] == ("runs",)
    beside = place_recalibration("runs/model", tmp_path / "other.json")
    assert beside == tmp_path / "calibration_namespaces.json"


def test_samples_are_compared_on_the_scale_of_the_common_calibration(exported: Path) -> None:
    found = recalibrate_model(str(exported), [], threshold=0.9, guard=False)
    assert (found.common, found.precision, found.guard, found.verifier) == (0.9, "int8", False, "")


@pytest.mark.parametrize("wrong", [{"threshold": float("nan")}, {"threshold": 2.0}, {"delta": 0.0}, {"alpha": 1e-320}])
def test_figures_that_are_none_are_refused_before_the_model_is_loaded(wrong: dict[str, float]) -> None:
    """A threshold of NaN was written into the file, and a δ of 1e-320 ended in a division by zero."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        recalibrate_model("no such model", [], **{"threshold": 0.8} | wrong)  # type: ignore[arg-type]
