"""Choosing the rules of a cache from labelled pairs: threshold, guard and verifier together, with one promise.

The pairs are seen as the cache serves them: by the encoder that serves, behind the guard if it has one. A verifier is
switched on only where it proves itself: it is weighed on a sixth of the pairs and measured on another sixth
(precision at equal hit rate); the threshold comes from the other two thirds, whatever the outcome, so its
promise knows nothing of that choice. Parts never separate pairs that share a question or a text.

Pairs of conversations choose a threshold of their own: how many of them a file has beside single questions says nothing
of the traffic, and one rate over both would let the one kind pay for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.cache.guard import find_veto, record_guard
from embedsmith.cache.independence import draw_sample
from embedsmith.calibration import Calibration, Conversations, calibrate
from embedsmith.conversation import roles_of
from embedsmith.encoder import Encoder, find_unread, precision_of
from embedsmith.errors import CalibrationRefused
from embedsmith.evaluation import labels_of, similarities_of
from embedsmith.examples import LabelledPair, has_conversations, units_of
from embedsmith.verifier import Adjustment, Gain, Logits, Verifier, adjust, fit_adjustment, measure_gain, pairs_of

WEIGHED, MEASURED = 1 / 6, 1 / 6  # shares of the units that fit the verifier's weight, and judge it
SHOWN = 100  # signs of a text that are shown as an example


@dataclass(frozen=True, slots=True)
class Rules:
    """What was chosen, and why.

    Attributes:
        calibration: the threshold and its promise, with the verifier it is for.
        verifier: one sentence on the verifier: on, or off and why. "" when there was none.
        gain: what the verifier did on pairs that did not fit it; None when it could not be measured.
        sample: what is to be known of the pairs, "" for nothing: those not counted, duplicates that the guard vetoes.
    """

    calibration: Calibration
    verifier: str = ""
    gain: Gain | None = None
    sample: str = ""


def choose_rules(
    encoder: Encoder,
    pairs: Sequence[LabelledPair],
    *,
    verifier: Verifier | None = None,
    guard: bool = True,
    delta: float = 0.05,
    alpha: float = 0.05,
    model: str = "",
    duplicate_rate: float | None = None,
    traffic: int | None = None,
    seed: int = 0,
) -> Rules:
    """Return the rules with which at most a share `delta` of the answers served is wrong, at confidence 1 − `alpha`.

    Args:
        encoder: the one that serves. pairs: labelled, not trained on. model: the encoder's fingerprint.
        guard: whether the cache has it.
        duplicate_rate, traffic: what the promise is made for; see `calibrate`.

    Raises:
        CalibrationRefused: no threshold can be promised.
    """
    vetoed = tell_vetoes(pairs) if guard else ""
    pairs, told = draw_sample(pairs, encoder, seed=seed)
    told = "; ".join(filter(None, (told, vetoed)))
    logits = np.asarray(verifier.score(pairs_of(pairs))) if verifier is not None else None
    similarities, singles = served_similarities(encoder, pairs, guard=guard), find_singles(pairs)
    promise = {
        "delta": delta,
        "alpha": alpha,
        "duplicate_rate": duplicate_rate,
        "traffic": traffic,
        "model": model,
        "precision": precision_of(encoder),
        "cached": True,
        **record_guard(guard),
    }
    try:
        rules = choose_from_scores(
            labels_of(pairs)[singles],
            similarities[singles],
            logits[singles] if logits is not None else None,
            list(compress(units_of(pairs), singles)),
            promise=promise,
            verifier=verifier.fingerprint if verifier is not None else "",
            seed=seed,
        )
    except CalibrationRefused as refusal:
        raise refusal.noting("; ".join(filter(None, (told, _tell_conversations(pairs))))) from None
    if logits is not None and rules.calibration.verifier:
        similarities = adjust(similarities, logits, Adjustment(rules.calibration.weight))
    made = _judge_conversations(rules.calibration, pairs, similarities, promise)
    return replace(rules, calibration=made, sample=told)


def calibrate_pairs(pairs: Sequence[LabelledPair], similarities: Logits, **promise: Any) -> Calibration:
    """Return what `calibrate` does of pairs with these similarities (n,), conversations by themselves.

    Raises:
        CalibrationRefused: no threshold can be promised for single questions (or for conversations, if all are such).
    """
    singles = find_singles(pairs)
    try:
        found = _calibrate_some(pairs, similarities, singles, promise)
    except CalibrationRefused as refusal:
        raise refusal.noting(_tell_conversations(pairs)) from None
    return _judge_conversations(found, pairs, similarities, promise)


def _calibrate_some(
    pairs: Sequence[LabelledPair], similarities: Logits, some: NDArray[np.bool_], promise: Mapping[str, Any]
) -> Calibration:
    units = list(compress(units_of(pairs), some))
    return calibrate(labels_of(pairs)[some], similarities[some], units=units, **promise)


def find_singles(pairs: Sequence[LabelledPair]) -> NDArray[np.bool_]:
    """Return which pairs (n,) choose the threshold of single questions: all but conversations, or all if all are."""
    spoken = find_conversations(pairs)
    return spoken if spoken.all() else ~spoken


def find_conversations(pairs: Sequence[LabelledPair]) -> NDArray[np.bool_]:
    """Return which pairs (n,) are of conversations."""
    return np.array([has_conversations(pair) for pair in pairs], dtype=bool)


def _judge_conversations(
    found: Calibration, pairs: Sequence[LabelledPair], similarities: Logits, promise: Mapping[str, Any]
) -> Calibration:
    """Return the calibration with what the conversations among the pairs carry by themselves."""
    spoken = find_conversations(pairs)
    if not spoken.any():
        return found
    try:
        made = found if spoken.all() else _calibrate_some(pairs, similarities, spoken, promise)
        own = Conversations(made.pairs, made.threshold, made.hits, made.false_hits)
    except CalibrationRefused as refusal:
        own = Conversations(int(spoken.sum()), refused=refusal.found)
    return replace(found, conversations=own)


def serve_pairs(found: Calibration, pairs: Sequence[LabelledPair], similarities: Logits) -> NDArray[np.bool_]:
    """Return which pairs (n,) of these similarities are served: conversations from the threshold of their own."""
    own = found.conversations.threshold if found.conversations is not None else None
    apart = own if own is not None else np.inf
    return np.asarray(similarities >= np.where(find_conversations(pairs), apart, found.threshold))


def _tell_conversations(pairs: Sequence[LabelledPair]) -> str:
    """Return that some pairs had no part in a threshold, "" where all or none are conversations."""
    count = int(find_conversations(pairs).sum())
    told = f"{count} of the pairs are conversations, which choose a threshold of their own"
    return told if 0 < count < len(pairs) else ""


def choose_uncached(
    encoder: Encoder,
    pairs: Sequence[LabelledPair],
    *,
    delta: float = 0.05,
    alpha: float = 0.05,
    model: str = "",
    duplicate_rate: float | None = None,
    traffic: int | None = None,
) -> Rules:
    """Return the rules for cosines as the model gives them, with no cache around it; as `choose_rules`.

    A cache without the guard is another thing: it serves no text that the model does not read whole.
    """
    counted, told = draw_sample(pairs, encoder)
    try:
        found = calibrate_pairs(
            counted,
            similarities_of(encoder, counted),
            delta=delta,
            alpha=alpha,
            model=model,
            duplicate_rate=duplicate_rate,
            traffic=traffic,
            precision=precision_of(encoder),
            cached=False,
            **record_guard(False),
        )
    except CalibrationRefused as refusal:
        raise refusal.noting(told) from None
    return Rules(found, sample=told)


def tell_vetoes(pairs: Sequence[LabelledPair]) -> str:
    """Return how many of the duplicates the guard would never let the cache serve, with one of them; "" for none."""
    found = [(pair, find_veto(pair.sentence1, pair.sentence2)) for pair in pairs if pair.label]
    vetoed = [(pair, veto) for pair, veto in found if veto is not None]
    if not vetoed:
        return ""
    pair, veto = vetoed[0]
    one, other = (shorten(text, SHOWN, placeholder="…") for text in (pair.sentence1, pair.sentence2))
    return (
        f"the guard vetoes {len(vetoed)} of {len(found)} duplicates, which no threshold serves, "
        f'such as "{one}" and "{other}" ({veto.kind}: {veto.detail})'
    )


def choose_from_scores(
    labels: NDArray[np.int64],
    similarities: Logits,
    logits: Logits | None,
    units: Sequence[str],
    *,
    promise: Mapping[str, Any],
    verifier: str = "",
    seed: int = 0,
) -> Rules:
    """Return what `choose_rules` does, from what encoder and verifier said of the pairs, (n,) each.

    Args:
        promise: what `calibrate` is asked for.
    """
    if logits is None:
        return Rules(calibrate(labels, similarities, units=units, **promise))
    weighed, measured, rest = part_units(units, (WEIGHED, MEASURED), seed=seed)
    names = [units[place] for place in measured]
    adjustment, gain = weigh(labels, similarities, logits, weighed, measured, names, promise["delta"])
    explained = explain(adjustment, gain)
    scores = similarities[rest]
    named: dict[str, Any] = {}
    if adjustment is not None and gain is not None and gain.proven:
        scores = adjust(scores, logits[rest], adjustment)
        named = {"verifier": verifier, "weight": adjustment.weight}
    try:
        own = [units[place] for place in rest]
        return Rules(calibrate(labels[rest], scores, units=own, **named, **promise), explained, gain)
    except CalibrationRefused as refusal:
        raise refusal.noting(explained) from None


def weigh(
    labels: NDArray[np.int64],
    similarities: Logits,
    logits: Logits,
    weighed: NDArray[np.int64],
    measured: NDArray[np.int64],
    units: Sequence[str],
    delta: float,
) -> tuple[Adjustment | None, Gain | None]:
    """Return the weight that the rows `weighed` give, and its gain on the rows `measured`.

    The gain is measured where the cache will work: at the hit rate that the cosine alone reaches with a share
    `delta` of wrong answers among the rows `weighed`.
    """
    found = fit_adjustment(labels[weighed], similarities[weighed], logits[weighed])
    if found is None or not 0 < labels[measured].sum() < len(measured):
        return found, None
    moved = adjust(similarities, logits, found)
    rate = reachable(labels[weighed], similarities[weighed], delta)
    return found, measure_gain(labels[measured], similarities[measured], moved[measured], groups=units, hit_rate=rate)


def reachable(labels: NDArray[np.int64], similarities: Logits, delta: float) -> float | None:
    """Return the largest share of these pairs that a threshold serves with at most `delta` wrong, None for nothing."""
    order = np.argsort(-similarities, kind="stable")
    wrong = np.cumsum(labels[order] == 0) / np.arange(1, len(labels) + 1)
    fine = np.flatnonzero((wrong <= delta) & (similarities[order] > -1))
    return float((fine[-1] + 1) / len(labels)) if len(fine) else None


def explain(adjustment: Adjustment | None, gain: Gain | None) -> str:
    """Return one sentence: whether the verifier is on, and why."""
    if adjustment is None:
        return "verifier off: too few pairs to weigh it by, or it tells nothing beyond the cosine"
    if gain is None:
        return "verifier off: too few pairs to measure it on"
    difference = gain.difference
    told = (
        f"precision {gain.before:.3f} -> {gain.after:.3f} when {gain.hit_rate:.0%} are served "
        f"({difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}], {gain.pairs} pairs)"
    )
    return f"verifier on: {told}" if gain.proven else f"verifier off, not proven: {told}"


def part_units(units: Sequence[str], shares: Sequence[float], *, seed: int) -> list[NDArray[np.int64]]:
    """Return the places of the rows of each part: whole units in about these shares, the rest last."""
    names = list(dict.fromkeys(units))
    order = np.random.default_rng(seed).permutation(len(names))
    bounds = np.round(np.cumsum(shares) * len(names)).astype(int)
    part = {names[place]: int(np.searchsorted(bounds, rank, side="right")) for rank, place in enumerate(order)}
    owner = np.array([part[unit] for unit in units])
    return [np.flatnonzero(owner == index) for index in range(len(shares) + 1)]


def served_similarities(encoder: Encoder, pairs: Sequence[LabelledPair], *, guard: bool = True) -> NDArray[np.float64]:
    """Return the cosine of each pair (n,) as the cache serves.

    That is −1 where the model does not read all of a text, where the guard, if on, would not serve the pair, and where
    others speak in the one text than in the other, as who speaks is part of the scope.
    """
    unread = {text for pair in pairs for text in (pair.sentence1, pair.sentence2) if find_unread(encoder, text)}
    lost = np.array([bool(unread & set(pair)) or apart(*pair) for pair in pairs_of(pairs)], dtype=bool)
    similarities = np.where(lost, -1.0, similarities_of(encoder, pairs))
    return veto_pairs(similarities, pairs_of(pairs)) if guard else similarities


def apart(one: str, other: str) -> bool:
    """Say whether two texts never meet in the cache: a question and a conversation, or other speakers."""
    return roles_of(one) != roles_of(other)


def veto_pairs(similarities: NDArray[np.float64], pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return `similarities` (n,) with −1 where the guard would not serve the pair, whatever the threshold.

    A threshold calibrated on these keeps its promise with the guard switched on. Without this, the guard may
    veto more right answers than wrong ones and so raise the share of wrong ones among those served.
    """
    vetoed = np.array([find_veto(*pair) is not None for pair in pairs], dtype=bool)
    return np.where(vetoed, -1.0, similarities)
