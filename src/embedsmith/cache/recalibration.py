"""Recalibration: judged pairs in, a threshold for each namespace that earns one out, with the reason for the others.

A namespace is given a threshold of its own by its samples alone: pairs drawn at random from its lookups. Pairs that
people marked because they noticed something are biased, in a direction that nobody knows: striking mistakes are seen,
plausible ones are not, and a right answer is hardly ever reported. Ten reports can be ten of ten mistakes or ten of a
thousand. So a reported mistake may only raise a threshold: it counts as one more false hit in every test of the
calibration and adds no hit to the sample (`calibrate(against=…)`), and a pair reported as the same counts for nothing.

Pairs are encoded anew with the model at hand. Pairs that were drawn with another model are no sample of what this one
serves (it would have proposed other neighbours); where such pairs are among them, the threshold may only rise above
the common one.

Only single questions choose a threshold: conversations are never served below their own one (`Policy.threshold_for`),
so below it their right answers would pay for wrong ones to single questions.

Each promise is kept with confidence 1 − α by itself: of many namespaces with a threshold of their own, expect up to a
share α of the promises to be broken. Dividing α among the namespaces would promise all of them at once, and hardly
any namespace would have enough pairs for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_json, write_json
from embedsmith.cache.feedback import Judged
from embedsmith.calibration import Calibration, calibrate, calibration_from
from embedsmith.conversation import is_conversation
from embedsmith.errors import CalibrationRefused, InputError

FILE = "calibration_namespaces.json"
MIN_PAIRS = 100
TOLERANCE = 1e-4  # between the cosines of two runtimes of one model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a namespace was given, and why.

    Attributes:
        threshold: from which on its answers are served: its own, or the common one (None where there is none).
        calibration: what its own threshold promises; None where it keeps the common one.
        samples: pairs drawn at random that could be used, of `judged` in all. reported: mistakes reported by people.
        common_hits, common_wrong: of the samples, at the common threshold.
        until: Unix seconds of the last verdict used; later ones can judge the threshold that these have chosen.
    """

    namespace: str
    threshold: float | None
    reason: str
    calibration: Calibration | None
    samples: int
    judged: int
    reported: int
    common_hits: int = 0
    common_wrong: int = 0
    until: float = 0.0

    @property
    def granted(self) -> bool:
        """Say whether the namespace has a threshold of its own."""
        return self.calibration is not None


@dataclass(frozen=True, slots=True)
class Recalibration:
    """The outcomes of all namespaces, for one model and one scale of similarities.

    Attributes:
        verifier, weight, precision, guard, guard_rules: what made the similarities, as in `Calibration`; `verifier` is
            None in a file of an older version, which does not tell.
    """

    model: str
    common: float | None
    delta: float
    alpha: float
    min_pairs: int
    outcomes: tuple[Outcome, ...]
    verifier: str | None = None
    weight: float = 0.0
    precision: str = ""
    guard: bool | None = None
    guard_rules: str = ""

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds by namespace, of those that have their own."""
        return {found.namespace: found.calibration.threshold for found in self.outcomes if found.calibration}

    @property
    def since(self) -> dict[str, float]:
        """The time of the last verdict that chose a threshold, by namespace."""
        return {found.namespace: found.until for found in self.outcomes if found.granted}


def recalibrate(
    rows: Sequence[Judged],
    similarities: Sequence[float] | NDArray[np.floating],
    *,
    model: str,
    common: float | None = None,
    delta: float = 0.05,
    alpha: float = 0.05,
    min_pairs: int = MIN_PAIRS,
    verifier: str = "",
    weight: float = 0.0,
    precision: str = "",
    guard: bool = True,
    guard_rules: str = "",
) -> Recalibration:
    """Return a threshold for each namespace with enough samples, and the reason for each of the others.

    Args:
        rows: judged pairs. similarities: (n,) their cosines by the model at hand, −1 where its guard vetoes.
        verifier, weight, precision, guard, guard_rules: what else made them, see `Calibration`; thresholds are for
            this scale only.
        model: fingerprint of that model. common: the threshold of all namespaces without one of their own.
        delta, alpha: the promise to each namespace, see `calibrate`. min_pairs: fewest samples of a namespace.

    Raises:
        ConfigurationError: delta or alpha outside (0, 1). InputError: not one similarity per row.
    """
    scores = np.asarray(similarities, dtype=np.float64)
    if scores.shape != (len(rows),):
        raise InputError(f"{len(rows)} rows, similarities of shape {scores.shape}", expected="one for each row")
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.namespace].append(place)
    scale = {"verifier": verifier, "weight": weight, "precision": precision, "cached": True}
    scale |= {"guard": guard, "guard_rules": guard_rules}
    terms = _Terms(model, common, delta, alpha, min_pairs, scale)
    found = (_decide(name, [rows[at] for at in ats], scores[ats], terms) for name, ats in sorted(places.items()))
    return Recalibration(
        model, common, delta, alpha, min_pairs, tuple(found), verifier, weight, precision, guard, guard_rules
    )


@dataclass(frozen=True, slots=True)
class _Terms:
    model: str
    common: float | None
    delta: float
    alpha: float
    min_pairs: int
    scale: Mapping[str, Any]


def _decide(namespace: str, rows: Sequence[Judged], scores: NDArray[np.float64], terms: _Terms) -> Outcome:
    labels = np.array([row.label for row in rows], dtype=np.int64)
    drawn = np.array([row.source == "sample" for row in rows])
    single = np.array([not is_conversation(row.sentence1) for row in rows])
    chosen, native = _choose(rows, scores, drawn & single, terms)
    reported = scores[~drawn & single & (labels == 0) & (scores > -1)]
    hit = chosen & (scores >= (terms.common if terms.common is not None else np.inf))

    def outcome(reason: str, found: Calibration | None = None) -> Outcome:
        return Outcome(
            namespace=namespace,
            threshold=found.threshold if found is not None else terms.common,
            reason=reason,
            calibration=found,
            samples=int(chosen.sum()),
            judged=int(drawn.sum()),
            reported=len(reported),
            common_hits=int(hit.sum()),
            common_wrong=int((labels[hit] == 0).sum()),
            until=max((row.marked for row, used in zip(rows, chosen, strict=True) if used), default=0.0),
        )

    if chosen.sum() < max(terms.min_pairs, 1):
        return outcome(f"too few: {int(chosen.sum())} samples can be used, {terms.min_pairs} are asked for")
    try:
        found, note = _calibrate(labels[chosen], scores[chosen], reported, terms)
    except CalibrationRefused as refusal:
        return outcome(f"refused: {refusal.found}; {refusal.expected}")
    if not native and (terms.common is None or found.threshold < terms.common):
        return outcome(
            f"refused: the samples were drawn with another model and would allow {found.threshold:.4f}; "
            "such samples can only raise the common threshold"
        )
    return outcome(f"granted: at most {terms.delta:.1%} wrong with confidence {1 - terms.alpha:.0%}{note}", found)


def _choose(
    rows: Sequence[Judged], scores: NDArray[np.float64], drawn: NDArray[np.bool_], terms: _Terms
) -> tuple[NDArray[np.bool_], bool]:
    """Return which rows are a sample of the answers served (mask), and whether this model drew them all.

    Below the highest sampling floor some pairs were never eligible, so rows there are a biased sample and left out.
    """
    own = drawn & np.array([row.model == terms.model for row in rows])
    floors = [row.floor for row, mine in zip(rows, own, strict=True) if mine and row.floor is not None]
    complete = (scores > -1) & (scores >= max(floors, default=-1.0) - TOLERANCE)
    native = int((own & complete).sum()) >= terms.min_pairs or bool((own == drawn).all())
    return (own if native else drawn) & complete, native


def _calibrate(
    labels: NDArray[np.int64], scores: NDArray[np.float64], reported: NDArray[np.float64], terms: _Terms
) -> tuple[Calibration, str]:
    """Return the calibration of the samples, raised by what people reported, and what to say of that.

    Both ways take their threshold from the same walks, and what passes with the reported mistakes passes
    without, so choosing between them costs nothing of α.

    Raises:
        CalibrationRefused: no threshold passes; or none does with the reported mistakes, and the samples alone
            would lower the threshold.
    """

    def test(against: NDArray[np.float64]) -> Calibration:
        promise: dict[str, Any] = {"delta": terms.delta, "alpha": terms.alpha, "model": terms.model}
        return calibrate(labels, scores, **promise, **terms.scale, against=against)

    alone = test(np.empty(0))
    if not len(reported):
        return alone, ""
    told = f"{len(reported)} {'mistake' if len(reported) == 1 else 'mistakes'} reported by people"
    try:
        found = test(reported)
    except CalibrationRefused:
        if terms.common is None or alone.threshold <= terms.common:
            raise CalibrationRefused(
                f"with {told} no threshold passes (the samples alone would allow {alone.threshold:.4f})",
                expected="more samples: they say how often such mistakes happen",
            ) from None
        return alone, f"; {told} would ask for more than any threshold gives"
    if found.threshold > alone.threshold:
        return found, f"; raised from {alone.threshold:.4f} by {told}"
    return found, ""


def write_recalibration(path: Path | str, found: Recalibration) -> Path:
    """Write `calibration_namespaces.json`."""
    return write_json(path, found)


def read_recalibration(path: Path | str, *, model: str | None = None) -> Recalibration:
    """Return what `recalibrate` has written.

    Args:
        model: fingerprint of the model in use; the thresholds of another one are refused.

    Raises:
        InputError: the file is no such thing, or belongs to another model.
    """
    try:
        read = read_json(path)
        outcomes = tuple(
            Outcome(**row | {"calibration": calibration_from(row["calibration"]) if row["calibration"] else None})
            for row in read.pop("outcomes")
        )
        found = Recalibration(**read, outcomes=outcomes)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} holds no thresholds ({error})", expected="what `recalibrate` wrote") from None
    if model is not None and found.model != model:
        raise InputError(
            f"{path} belongs to the model {found.model}, not to {model}",
            expected="thresholds of one and the same model",
            action="run `embedsmith recalibrate FEEDBACK --model MODEL` with this model, or remove the file",
        )
    return found
