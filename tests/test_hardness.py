"""The hardness meter: saturation, wrong labels and shortcuts are seen before training."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from embedsmith.errors import InputError
from embedsmith.examples import LabelledPair, LabelledText, Triplet
from embedsmith.hardness import measure_hardness, vectorize
from embedsmith.logistic import cross_predict, fit_logistic
from embedsmith.testing import FakeEncoder

WORDS = ["visa", "loan", "oven", "tyre", "lease", "cactus", "router", "boiler", "ticket", "invoice", "parcel", "piano"]


def triplets(*, easy: bool) -> list[Triplet]:
    rows = []
    for place in range(60):
        name = f"{WORDS[place % 12]} {WORDS[place * 5 % 12]} {WORDS[place * 7 // 12 % 12]} {place}"
        near, far = f"{name} soon", f"{WORDS[(place + 1) % 12]} {WORDS[(place + 4) % 12]} {1000 + place}"
        rows.append(Triplet(name, near, (far,)) if easy else Triplet(name, far, (near,)))
    return rows


def names(examples: list[Triplet], **options: object) -> set[str]:
    return {warning.name for warning in measure_hardness(examples, FakeEncoder(), **options).warnings}  # type: ignore[arg-type]


def test_a_set_that_the_base_has_solved_is_saturated() -> None:
    found = measure_hardness(triplets(easy=True), FakeEncoder())
    assert found.triplet_accuracy is not None
    assert found.triplet_accuracy.value > 0.97
    assert "saturated" in {warning.name for warning in found.warnings}


def test_labels_that_stand_on_their_head_are_named() -> None:
    assert "mislabelled" in names(triplets(easy=False))


def test_a_length_that_tells_the_label_is_a_shortcut() -> None:
    rows = [
        LabelledPair(f"the {WORDS[place % 12]} {place}", "some words " * (2 + 4 * (place % 2)), place % 2)
        for place in range(100)
    ]
    found = measure_hardness(rows)
    assert found.length_auc is not None
    assert found.length_auc.value > 0.99
    assert any(warning.name == "shortcut" and "length" in warning.text for warning in found.warnings)


def test_texts_that_are_positive_here_and_negative_there_are_no_shortcut() -> None:
    rows = []
    for place in range(144):
        left, right = WORDS[place % 12], WORDS[place // 12]
        rows.append(LabelledPair(f"a {left} {place}", f"the {right}", int((place % 12 + place // 12) % 2), str(place)))
    found = measure_hardness(rows)
    assert found.words_auc is not None
    assert found.words_auc.low < 0.6
    assert not found.warnings


def test_one_label_only_has_no_classifier() -> None:
    found = measure_hardness([LabelledPair("a b", "b a", 1)], FakeEncoder())
    assert (found.average_precision, found.length_auc, found.warnings) == (None, None, ())


def test_classes_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="which texts belong together"):
        measure_hardness([LabelledText("a", "b")])


def test_tf_idf_against_a_worked_number() -> None:
    table, columns = vectorize(["red apple", "red pear", "green apple"])
    assert isinstance(table, csr_matrix)
    np.testing.assert_allclose(np.sqrt(np.asarray(table.power(2).sum(axis=1)).ravel()), 1)
    assert "red" in columns
    assert "green" not in columns  # one text only: it tells nothing of another


def test_logistic_regression_is_at_its_optimum() -> None:
    flat = fit_logistic(np.zeros((4, 1)), np.array([1, 1, 1, 0]))
    assert flat.intercept == pytest.approx(np.log(3), abs=1e-4)
    generator = np.random.default_rng(0)
    table = generator.normal(size=(200, 3))
    labels = (table[:, 0] + 0.3 * generator.normal(size=200) > 0).astype(int)
    fitted = fit_logistic(table, labels, penalty=2.0)
    slope = table.T @ (fitted.predict(table) - labels) + 2.0 * fitted.weights
    np.testing.assert_allclose(slope, 0, atol=1e-2)
    np.testing.assert_allclose(fit_logistic(csr_matrix(table), labels, penalty=2.0).weights, fitted.weights, atol=1e-4)


def test_rows_of_one_group_are_never_predicted_from_each_other() -> None:
    """Each group has a column of its own: whoever learns from its own group would predict it perfectly."""
    groups = [str(place // 10) for place in range(200)]
    table = np.array([[float(group == str(name)) for name in range(20)] for group in groups])
    labels = np.array([int(group) % 2 for group in groups])
    assert fit_logistic(table, labels, penalty=0.1).predict(table)[labels == 1].min() > 0.5
    held = cross_predict(table, labels, groups)
    assert all(len(set(held[labels == label].round(6))) <= 5 for label in (0, 1))
