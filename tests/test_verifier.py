"""The verifier's word: how far it moves a cosine, when it counts, and that what is served is what was trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import expit
from sentence_transformers import CrossEncoder
from sklearn.linear_model import LogisticRegression

from embedsmith.cross_encoder import export_verifier, load_verifier, train_verifier
from embedsmith.errors import InputError, ModelError
from embedsmith.examples import Example, LabelledPair
from embedsmith.optimization import Progress, TrainingConfig
from embedsmith.verifier import (
    SURE,
    Adjustment,
    Logits,
    OnnxVerifier,
    adjust,
    fit_adjustment,
    hold_back,
    measure_gain,
)

CONFIG = TrainingConfig(batch=8, precision="fp32", learning_rate=1e-3, checkpoint_seconds=0.0)
WORDS = ["card", "pin", "loan", "rate", "fee", "limit"]
PAIRS = [("how do I freeze my card", "can I block my card"), ("where is the atm", "how do I pay by phone")]


def make_examples(count: int = 24) -> list[Example]:
    rows: list[Example] = []
    for row in range(count):
        word, other = WORDS[row % 6], WORDS[(row + 2) % 6]
        rows.append(LabelledPair(f"how do I change my {word} {row}", f"changing the {word} number {row}", 1, str(row)))
        rows.append(LabelledPair(f"how do I change my {word} {row}", f"how do I change my {other} {row}", 0, str(row)))
    return rows


@pytest.fixture(scope="module")
def verifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifier") / "verifier"
    result = train_verifier(make_examples(), base=tiny_model, out=folder, config=CONFIG)
    assert (result.pairs, result.steps) == (72, 9), "of each row: same, near miss, and paraphrase against near miss"
    return folder


def test_what_is_served_is_what_sentence_transformers_loads(verifier: Path) -> None:
    reference = CrossEncoder(str(verifier)).predict(PAIRS, activation_fn=torch.nn.Identity())
    assert load_verifier(verifier).score(PAIRS) == pytest.approx(reference, abs=1e-5)
    assert OnnxVerifier(verifier, precision="fp32").score(PAIRS) == pytest.approx(reference, abs=1e-4)
    served = OnnxVerifier(verifier)
    assert served.precision == "int8"
    assert served.score(PAIRS) == pytest.approx(reference, abs=0.05)
    assert served.score(PAIRS[:1])[0] == served.score(PAIRS)[0], "the neighbours of a pair change nothing"


def test_a_killed_training_ends_in_the_same_weights(tiny_model: Path, verifier: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise Killed

    with pytest.raises(Killed):
        train_verifier(make_examples(), base=tiny_model, out=tmp_path / "v", config=CONFIG, on_progress=kill)
    result = train_verifier(make_examples(), base=tiny_model, out=tmp_path / "v", config=CONFIG)
    assert result.resumed_from == 3
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (verifier, tmp_path / "v"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_one_label_teaches_nothing(tiny_model: Path, tmp_path: Path) -> None:
    only = [row for row in make_examples() if isinstance(row, LabelledPair) and row.label == 1]
    with pytest.raises(InputError, match="examples of both kinds"):
        train_verifier(only, base=tiny_model, out=tmp_path / "v", config=CONFIG)


def test_other_weights_are_refused(verifier: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(verifier, copy)
    changed = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(changed | {"layer_norm_eps": 0.1}))
    with pytest.raises(ModelError, match="the export is stale"):
        OnnxVerifier(copy)
    with pytest.raises(ModelError, match="holds no verifier"):
        OnnxVerifier(tmp_path)


def test_serving_a_verifier_needs_no_torch(verifier: Path) -> None:
    code = (
        "import sys; from embedsmith.verifier import OnnxVerifier; "
        f"OnnxVerifier({str(verifier)!r}).score([('a', 'b')]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Sample:
    labels: NDArray[np.int64]
    cosines: NDArray[np.float64]
    logits: NDArray[np.float64]


def sample(size: int, *, skill: float, seed: int = 0) -> Sample:
    """Labels that a cosine tells badly, and a verifier tells `skill` beyond it."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(size) < 0.5).astype(np.int64)
    cosines = 0.6 + 0.1 * labels + 0.12 * generator.normal(size=size)
    return Sample(labels, cosines, skill * (2 * labels - 1) + generator.normal(size=size))


def test_the_weight_is_that_of_a_logistic_regression() -> None:
    found = sample(4000, skill=1.0)
    fitted = fit_adjustment(found.labels, found.cosines, found.logits)
    inputs = np.stack([found.cosines, np.clip(found.logits, -SURE, SURE)], axis=1)
    slopes = LogisticRegression(C=1e6).fit(inputs, found.labels).coef_[0]
    assert fitted is not None
    assert fitted.weight == pytest.approx(slopes[1] / slopes[0], rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_weight_is_the_one_that_a_regression_of_its_own_gave(seed: int) -> None:
    found = sample(1000, skill=0.8, seed=seed)
    inputs = np.stack([found.cosines, np.clip(found.logits, -SURE, SURE)], axis=1)
    spread = inputs.std(axis=0) + 1e-9
    scaled = (inputs - inputs.mean(axis=0)) / spread

    def loss(parameters: Logits) -> tuple[float, Logits]:
        odds = scaled @ parameters[:2] + parameters[2]
        rest = expit(odds) - found.labels
        value = np.logaddexp(0, odds).sum() - found.labels @ odds + 0.5 * parameters[:2] @ parameters[:2]
        return float(value), np.append(scaled.T @ rest + parameters[:2], rest.sum())

    slopes = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B").x[:2] / spread
    fitted = fit_adjustment(found.labels, found.cosines, found.logits)
    assert fitted is not None
    assert fitted.weight == pytest.approx(slopes[1] / slopes[0], rel=1e-12)


def test_a_verifier_that_contradicts_the_labels_gets_no_weight() -> None:
    found = sample(2000, skill=-1.0)
    assert fit_adjustment(found.labels, found.cosines, found.logits) is None
    assert fit_adjustment(found.labels[:50], found.cosines[:50], found.logits[:50]) is None, "too few pairs"


def test_a_gain_is_proven_where_there_is_one_and_not_where_there_is_none() -> None:
    for skill, proven in ((1.5, True), (0.0, False)):
        found = sample(1500, skill=skill, seed=3)
        moved = adjust(found.cosines, found.logits, Adjustment(0.05))
        gain = measure_gain(found.labels, found.cosines, moved, hit_rate=0.3, resamples=500)
        assert gain.proven is proven, gain
        order = np.argsort(-found.cosines, kind="stable")[: int(0.3 * 1500) + 1]
        assert gain.before == pytest.approx(found.labels[order].mean(), abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.001, 0.2))
def test_a_move_is_bounded_and_keeps_the_order_of_logits(logits: list[float], weight: float) -> None:
    adjustment = Adjustment(weight)
    moves = adjustment.move(np.array(sorted(logits)))
    assert np.abs(moves).max() <= adjustment.reach + 1e-12
    assert (np.diff(moves) >= 0).all()


def test_what_the_guard_vetoed_stays_vetoed() -> None:
    moved = adjust(np.array([-1.0, 0.5]), np.array([9.0, 2.0]), Adjustment(0.1))
    assert moved.tolist() == [-1.0, pytest.approx(0.7)]


def test_a_pair_that_is_not_read_whole_is_never_moved_up(verifier: Path, tmp_path: Path) -> None:
    """The last words make the difference, and to this verifier all pairs look like one question."""
    folder = tmp_path / "trusting"
    shutil.copytree(verifier, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export_verifier(folder, PAIRS)
    beginning = "how do I change my card and my pin and my limit " * 8
    pairs = [(f"{beginning} today", f"{beginning} never"), ("怎么开通账户", "怎么关闭账户"), PAIRS[0]]
    raw = CrossEncoder(str(folder)).predict(pairs, activation_fn=torch.nn.Identity())
    assert raw.min() > 1
    for reader in (load_verifier(folder), OnnxVerifier(folder, precision="fp32")):
        assert reader.score(pairs) == pytest.approx([0.0, 0.0, raw[2]], abs=1e-4)
    assert hold_back(np.array([3.0, -3.0, 3.0]), np.array([True, True, False])).tolist() == [0.0, -3.0, 3.0]
