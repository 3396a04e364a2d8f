"""Logistic regression for tables of any width, sparse or dense; small, and the same on every run.

L-BFGS ends where a step lowers the loss by less than about 2e-9 of itself, or after `STEPS` of them: columns should be
of like scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 200

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logistic:
    """A fitted regression: weights by column, and the intercept."""

    weights: Vector
    intercept: float

    def predict(self, features: Any) -> Vector:
        """Return the probability of label 1 for each row, (n,)."""
        return np.asarray(_squash(np.asarray(features @ self.weights).ravel() + self.intercept))


def fit_logistic(features: Any, labels: NDArray[np.integer], *, penalty: float = 1.0) -> Logistic:
    """Return the weights that minimise Σ log(1 + e^(−y·(xw + b))) + penalty/2·|w|², y = ±1; b is free.

    With features that say nothing the answer is the share of ones: labels 1, 1, 1, 0 give b = log 3 = 1.0986.

    Args:
        features: (n, columns), numpy or scipy.sparse.
        labels: 0 or 1, (n,).
    """
    from scipy.optimize import minimize

    signs = 2.0 * np.asarray(labels) - 1.0
    columns = features.shape[1]

    def loss(values: Vector) -> tuple[float, Vector]:
        margins = signs * (np.asarray(features @ values[:-1]).ravel() + values[-1])
        pull = -signs * _squash(-margins)
        slope = np.append(np.asarray(features.T @ pull).ravel() + penalty * values[:-1], pull.sum())
        return float(np.logaddexp(0, -margins).sum() + penalty / 2 * values[:-1] @ values[:-1]), slope

    found = minimize(loss, np.zeros(columns + 1), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return Logistic(np.asarray(found.x[:-1], dtype=np.float64), float(found.x[-1]))


def cross_predict(
    features: Any, labels: NDArray[np.integer], groups: Sequence[str], *, folds: int = 5, penalty: float = 1.0
) -> Vector:
    """Return for each row the probability of label 1 from a fit on the other folds, (n,).

    Rows of one group are in one fold. Groups are dealt out in the order of a hash of their names, so the folds
    depend on the groups only. Where the other folds have one label only, the probability is its share.
    """
    order = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
    fold_of = {name: place % folds for place, name in enumerate(order)}
    fold = np.array([fold_of[name] for name in groups])
    labels = np.asarray(labels)
    found = np.full(len(labels), float(labels.mean()) if len(labels) else 0.5)
    for number in range(folds):
        held = fold == number
        if held.any() and (~held).any() and len(set(labels[~held].tolist())) == 2:
            found[held] = fit_logistic(features[~held], labels[~held], penalty=penalty).predict(features[held])
    return found


def _squash(values: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))
