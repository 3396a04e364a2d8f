"""Promises for a model by its name: from labelled pairs or from judged samples, on the similarities that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedsmith.cache.feedback import Judged
from embedsmith.cache.guard import record_guard
from embedsmith.cache.recalibration import FILE, MIN_PAIRS, Recalibration, recalibrate
from embedsmith.cache.rules import Rules, choose_rules, choose_uncached, served_similarities
from embedsmith.cache.settings import (
    adjustment_of,
    find_calibration,
    open_encoder,
    open_verifier,
    require_cosine,
    require_guard,
)
from embedsmith.calibration import read_calibration
from embedsmith.encoder import precision_of
from embedsmith.errors import ConfigurationError, require_share
from embedsmith.examples import LabelledPair
from embedsmith.model import model_inside
from embedsmith.verifier import OnnxVerifier, adjust, pairs_of


def calibrate_model(
    model: str,
    pairs: Sequence[LabelledPair],
    *,
    guard: bool = True,
    verifier: Path | str | None = None,
    cached: bool = True,
    base_url: str | None = None,
    delta: float = 0.05,
    alpha: float = 0.05,
    duplicate_rate: float | None = None,
    traffic: int | None = None,
) -> Rules:
    """Return the rules with which at most a share `delta` of the answers served is wrong, at confidence 1 − `alpha`.

    Args:
        model: a folder, a hub id, or openai:MODEL (at `base_url`, if given). pairs: labelled, not trained on.
        guard, verifier: as the cache will have them.
        cached: False for a model that is used without a cache: the cosines of the model itself, not of its export,
            with no guard, and with texts that it does not read whole, which a cache never serves.
        duplicate_rate, traffic: what the promise is made for; see `calibrate`.

    Raises:
        CalibrationRefused: no threshold can be promised. ConfigurationError: a verifier, and no cache.
    """
    from embedsmith.model import fingerprint_model, load_encoder

    mark = fingerprint_model(model)
    asked_for: dict[str, Any] = {"delta": delta, "alpha": alpha, "duplicate_rate": duplicate_rate, "traffic": traffic}
    if not cached:
        if verifier is not None:
            raise ConfigurationError("a verifier, and no cache", expected="a model by itself, or a cache")
        return choose_uncached(load_encoder(model, base_url=base_url), pairs, model=mark, **asked_for)
    second = OnnxVerifier(verifier) if verifier is not None else None
    hosted = model.startswith("openai:")
    encoder = load_encoder(model, base_url=base_url) if hosted else open_encoder(model)[0]
    return choose_rules(encoder, pairs, verifier=second, guard=guard, model=mark, **asked_for)


def recalibrate_model(
    model: str,
    rows: Sequence[Judged],
    *,
    calibration: Path | None = None,
    threshold: float | None = None,
    verifier: Path | str | None = None,
    guard: bool = True,
    delta: float = 0.05,
    alpha: float = 0.05,
    min_pairs: int = MIN_PAIRS,
) -> Recalibration:
    """Return a threshold for each namespace with enough samples in `rows`, and the reason for each of the others.

    Args:
        model: a folder or a hub id. rows: what `cache.feedback` read.
        calibration: of all namespaces; default is the file with the model. threshold: instead of one.
        verifier: that of the calibration; without one there, it is not asked. guard: whether the servers have it.
        delta, alpha, min_pairs: see `recalibrate`.

    Raises:
        ConfigurationError: guard or verifier are not those of the calibration, or a figure is none.
    """
    require_cosine(threshold)  # before the model is loaded
    for name, share in (("delta", delta), ("alpha", alpha)):
        require_share(name, share)
    encoder, mark = open_encoder(model)
    pairs = [LabelledPair(row.sentence1, row.sentence2, row.label) for row in rows]
    similarities = served_similarities(encoder, pairs, guard=guard)
    path = find_calibration(model, calibration) if threshold is None else None
    name, weight = "", 0.0
    if path is not None:
        common = read_calibration(path, model=mark)
        require_guard(path, common, guard, model)
        threshold = common.threshold
        if common.verifier:
            logits = open_verifier(common, verifier).score(pairs_of(pairs))
            similarities = adjust(similarities, logits, adjustment_of(common))
            name, weight = common.verifier, common.weight
    return recalibrate(
        rows,
        similarities,
        model=mark,
        common=threshold,
        delta=delta,
        alpha=alpha,
        min_pairs=min_pairs,
        verifier=name,
        weight=weight,
        precision=precision_of(encoder),
        **record_guard(guard),
    )


def place_recalibration(model: str, calibration: Path | None = None) -> Path:
    """Return where thresholds of namespaces are written, and looked for: beside the calibration, else the model."""
    path = find_calibration(model, calibration)
    return path.with_name(FILE) if path is not None else model_inside(Path(model)).parent / FILE
