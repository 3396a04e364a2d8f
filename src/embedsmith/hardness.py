"""The hardness meter: what a set of examples can teach, measured before it is trained on.

A set on which the base model is right already teaches nothing; one whose labels contradict each other teaches noise;
one whose negatives are told by their length or their words alone teaches that. All three were seen in published recipes
(an open replica of LangCache's data had 99.4% triplet accuracy before training).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder, pair_similarities
from embedsmith.errors import InputError
from embedsmith.examples import Example, draw_groups
from embedsmith.logistic import cross_predict, fit_logistic
from embedsmith.metrics import Estimate, Ranking, bootstrap, resample_weights
from embedsmith.synthesis.labels import LabelVerdict, Pair, list_pairs
from embedsmith.text import count_words, cut_words, trigrams

SATURATED = 0.97  # triplet accuracy: at most 3 of 100 comparisons are left to learn from
SHORTCUT = 0.7  # AUC; .5 is chance. At .7 the candidate alone, without its anchor, decides 2 of 5 cases beyond chance
FLAGGED = 0.1  # share of doubted labels from which on a set is reported as mislabelled
RESAMPLES = 400
LARGEST = 20_000  # pairs that are measured; more change no figure in the second digit
RAREST = 2  # texts that must share a word or trigram for it to count


@dataclass(frozen=True, slots=True)
class Warn:
    """What is wrong with a set, and what to do about it. `name`: saturated, mislabelled or shortcut."""

    name: str
    text: str
    action: str


@dataclass(frozen=True, slots=True)
class Hardness:
    """What a set can teach.

    Attributes:
        pairs: measured; positives among them.
        average_precision, triplet_accuracy: of the base, None without one (or without both labels).
        triplets: anchors that have positives and negatives.
        length_auc: how well the length of the candidate, alone and against the anchor's, tells the label.
        words_auc: how well the words and trigrams of the candidate alone do, without its anchor; cross-validated.
        telling: the words that tell positives most, and those that tell negatives.
    """

    pairs: int
    positives: int
    triplets: int
    average_precision: Estimate | None
    triplet_accuracy: Estimate | None
    length_auc: Estimate | None
    words_auc: Estimate | None
    telling: dict[str, tuple[str, ...]]
    warnings: tuple[Warn, ...]


def measure_hardness(
    examples: Sequence[Example],
    encoder: Encoder | None = None,
    *,
    flagged: Sequence[LabelVerdict] = (),
    seed: int = 0,
) -> Hardness:
    """Return what the set can teach, with 95% intervals over whole groups (rows of one anchor).

    Args:
        encoder: the model that will be tuned.
        flagged: the labels that `check_labels` doubts.

    Raises:
        InputError: no example has a label: classes and graded scores cannot be measured this way.
    """
    pairs = list_pairs(examples)
    if len(pairs) > LARGEST:
        pairs = [pairs[place] for place in draw_groups([pair.group for pair in pairs], LARGEST)]
    if not pairs:
        raise InputError(
            "no example says which texts belong together",
            expected="labelled pairs, positive pairs or triplets",
        )
    labels = np.array([pair.label for pair in pairs], dtype=np.int64)
    groups = [pair.group for pair in pairs]
    both = 0 < labels.sum() < len(labels)
    weights = resample_weights(len(pairs), groups=groups, resamples=RESAMPLES, seed=seed)
    precision = accuracy = length = told = None
    telling: dict[str, tuple[str, ...]] = {}
    compared = _compare_anchors(pairs, labels)
    if encoder is not None and both:
        scores = pair_similarities(encoder, [pair.left for pair in pairs], [pair.right for pair in pairs])
        precision = bootstrap(Ranking(labels, scores).average_precision, weights)
        accuracy = _triplet_accuracy(pairs, scores, compared, seed)
    if both:
        length = bootstrap(Ranking(labels, cross_predict(_lengths(pairs), labels, groups)).roc_auc, weights)
        features, names = vectorize([pair.right for pair in pairs])
        told = bootstrap(Ranking(labels, cross_predict(features, labels, groups)).roc_auc, weights)
        telling = _find_telling(features, names, labels)
    found = Hardness(len(pairs), int(labels.sum()), len(compared), precision, accuracy, length, told, telling, ())
    return _with_warnings(found, len(flagged))


def vectorize(texts: Sequence[str]) -> tuple[object, list[str]]:
    """Return the TF-IDF of words and character trigrams, scipy CSR (n, columns) with rows of length 1, and their names.

    tf is 1 + log count and idf log((1 + n) / (1 + df)) + 1 (Salton's, smoothed): a word in 1 of 3 texts has
    log(4 / 2) + 1 = 1.693.
    """
    from scipy.sparse import csr_matrix

    counts = [Counter([*cut_words(text), *(f"~{gram}" for gram in trigrams(text))]) for text in texts]
    frequency = Counter(name for count in counts for name in count)
    names = sorted(name for name, number in frequency.items() if number >= RAREST)
    column = {name: place for place, name in enumerate(names)}
    idf = np.array([np.log((1 + len(texts)) / (1 + frequency[name])) + 1 for name in names])
    rows, columns, values = [], [], []
    for row, count in enumerate(counts):
        known = [(column[name], number) for name, number in count.items() if name in column]
        weighed = np.array([(1 + np.log(number)) * idf[place] for place, number in known])
        rows += [row] * len(known)
        columns += [place for place, _ in known]
        values += list(weighed / np.linalg.norm(weighed)) if len(known) else []
    return csr_matrix((values, (rows, columns)), shape=(len(texts), max(len(names), 1))), names


def _compare_anchors(pairs: Sequence[Pair], labels: NDArray[np.int64]) -> list[tuple[list[int], list[int]]]:
    """Return for each anchor that has both the places of its positives and of its negatives."""
    sides: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for place, pair in enumerate(pairs):
        sides[pair.left][1 - labels[place]].append(place)
    return [both for both in sides.values() if both[0] and both[1]]


def _triplet_accuracy(
    pairs: Sequence[Pair], scores: NDArray[np.float64], compared: Sequence[tuple[list[int], list[int]]], seed: int
) -> Estimate | None:
    """Return the mean over anchors of the share of (positive, negative) in the right order, ties half."""
    if not compared:
        return None
    shares = []
    for positives, negatives in compared:
        margin = scores[positives][:, None] - scores[negatives][None, :]
        shares.append(float(np.mean((margin > 0) + (margin == 0) / 2)))
    values = np.array(shares)
    groups = [pairs[positives[0]].group for positives, _ in compared]
    weights = resample_weights(len(values), groups=groups, resamples=RESAMPLES, seed=seed)
    return bootstrap(lambda row: float(row @ values / row.sum()) if row.sum() else float("nan"), weights)


def _lengths(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    rows = []
    for pair in pairs:
        here, there = np.log1p(len(pair.right)), np.log1p(len(pair.left))
        count = np.log1p(count_words(pair.right))
        rows.append([here, here**2, here - there, (here - there) ** 2, count])
    table = np.array(rows, dtype=np.float64)
    spread = table.std(axis=0)
    return np.asarray((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _find_telling(features: object, names: Sequence[str], labels: NDArray[np.int64]) -> dict[str, tuple[str, ...]]:
    weights = fit_logistic(features, labels).weights
    order = [place for place in np.argsort(weights) if place < len(names) and not names[place].startswith("~")]
    return {
        "positives": tuple(names[place] for place in reversed(order[-8:]) if weights[place] > 0),
        "negatives": tuple(names[place] for place in order[:8] if weights[place] < 0),
    }


def _with_warnings(found: Hardness, flagged: int) -> Hardness:
    checks: tuple[Callable[[], Warn | None], ...] = (
        lambda: _saturated(found),
        lambda: _mislabelled(found, flagged),
        lambda: _shortcut(found.length_auc, "length", "draw negatives of the same length as the positives"),
        lambda: _shortcut(
            found.words_auc,
            "words",
            f"look at what tells them: positives {', '.join(found.telling.get('positives', ())) or 'none'}; "
            f"negatives {', '.join(found.telling.get('negatives', ())) or 'none'}. Write both sides with one prompt, "
            "or use the same text as a positive here and as a negative there",
        ),
    )
    warnings = tuple(warning for check in checks if (warning := check()) is not None)
    return replace(found, warnings=warnings)


def _saturated(found: Hardness) -> Warn | None:
    accuracy = found.triplet_accuracy
    if accuracy is None or accuracy.value < SATURATED:
        return None
    text = (
        f"the base puts {accuracy.value:.1%} of the positives before the negatives already (95% interval "
        f"{accuracy.low:.1%} to {accuracy.high:.1%}): there is little left to learn"
    )
    return Warn("saturated", text, "mine harder negatives, or make them by controlled edits (synthesis.edits)")


def _mislabelled(found: Hardness, flagged: int) -> Warn | None:
    share, chance = flagged / found.pairs, found.positives / found.pairs
    precision = found.average_precision
    if precision is not None and precision.low <= chance:
        text = f"the base's average precision {precision.value:.3f} is no better than chance ({chance:.3f})"
    elif share > FLAGGED:
        text = f"{flagged:,} of {found.pairs:,} labels ({share:.0%}) are in doubt"
    else:
        return None
    return Warn("mislabelled", text, "read the flagged rows; drop them, or have them judged by a language model")


def _shortcut(auc: Estimate | None, what: str, action: str) -> Warn | None:
    if auc is None or auc.value < SHORTCUT or auc.low <= 0.5:
        return None
    verb = "tells" if what == "length" else "tell"
    text = (
        f"the {what} of the second text alone {verb} the label "
        f"(AUC {auc.value:.3f}, 95% interval {auc.low:.3f} to {auc.high:.3f}; .5 is chance)"
    )
    return Warn("shortcut", text, action)
