"""The verifier: a compact cross-encoder reads two questions together and moves their cosine; no torch here.

An embedding sees each question alone, so two that differ in one word lie close together. A cross-encoder
compares them word by word, for milliseconds a pair, so it is asked only where it can change the decision.
There is still one score and one threshold: the cosine, moved by what the verifier says,

    adjusted = cosine + weight · clip(logit, −SURE, SURE)

Since the move is bounded, candidates further than `reach` below the threshold miss and those further above
it hit without the verifier: the band in which it is asked follows from the threshold. A pair that it does not read to
the end is never moved up.
`embedsmith.cross_encoder` trains and exports what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import ModelError
from embedsmith.examples import LabelledPair
from embedsmith.logistic import fit_logistic
from embedsmith.metrics import Difference, paired_bootstrap, resample_weights
from embedsmith.runtime import FOLDER, TOKENIZER, Precision, load_session, load_tokenizer, open_report, read_text
from embedsmith.tokens import find_unknown

REPORT = "verifier.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SURE = 4.0  # logit beyond which the verifier's word counts no more: 98.2% sure
FEWEST = 100  # labelled pairs from which a weight is learnt
Logits = NDArray[np.float64]
Labels = NDArray[np.int64]


class Verifier(Protocol):
    """Whoever reads two texts together."""

    fingerprint: str

    def score(self, pairs: Sequence[tuple[str, str]], /) -> Logits:
        """Return (n,) logits that one answer serves both texts of a pair; of a pair not read whole, 0 at most."""
        ...


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close one exported file is to the model it was made from.

    Attributes:
        file: its name below the folder `onnx`. size: its bytes.
        mean_gap, largest_gap: between its probabilities and those of the model in fp32, 0 to 1.
        pairs: on how many pairs.
    """

    file: str
    size: int
    mean_gap: float
    largest_gap: float
    pairs: int


@dataclass(frozen=True, slots=True)
class VerifierReport:
    """What `onnx/verifier.json` says.

    Attributes:
        fingerprint: of the model folder. max_length: tokens that a pair is cut to (the longer text first).
        segments: the model is told which tokens are of the second text.
    """

    model: str
    fingerprint: str
    max_length: int | None
    segments: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[Precision, Fidelity] = field(default_factory=dict)


class OnnxVerifier:
    """An exported cross-encoder; `score` may be called from many threads at once.

    Attributes:
        fingerprint: of the model folder, 16 hex digits.
        precision: the file that is served, int8 where there is one.
    """

    def __init__(self, folder: str | Path, *, precision: Precision | None = None, threads: int = 1) -> None:
        """Load the export below a verifier's folder.

        Raises:
            ModelError: there is none, it is of other weights, or it is damaged.
        """
        path = Path(folder)
        self.report = read_report(path)
        self.fingerprint = self.report.fingerprint
        found = sorted(self.report.precisions, reverse=True)  # int8 before fp32
        chosen = precision or (found[0] if found else "int8")
        if chosen not in self.report.precisions:
            raise ModelError(f"{path} was not exported in {chosen}", expected=f"one of {', '.join(found) or 'nothing'}")
        self.precision: str = chosen
        self._scorer = PairGraph(path / FOLDER, self.report, self.report.precisions[chosen].file, threads=threads)

    def score(self, pairs: Sequence[tuple[str, str]], /) -> Logits:
        """Return (n,) logits that one answer serves both texts of a pair; 0 is even chances, the most if it was cut."""
        return self._scorer.score(pairs)


class PairGraph:
    """One exported file with its tokenizer: pairs of texts in, logits out. Nothing is asked about its origin."""

    def __init__(self, folder: Path, report: VerifierReport, file: str, *, threads: int) -> None:
        self.report = report
        self._tokenizer = load_tokenizer(folder / TOKENIZER, report.max_length)
        self._unknown = find_unknown(self._tokenizer)
        self._session = load_session(folder / file, threads=threads)
        self._names = [value.name for value in self._session.get_inputs()]

    def score(self, pairs: Sequence[tuple[str, str]], /) -> Logits:
        """Return (n,) logits; every pair runs by itself, so its neighbours never change it."""
        found = [self._run(left, right) for left, right in pairs]
        unread = np.array([cut for _, cut in found], dtype=np.bool_)
        return hold_back(np.array([logit for logit, _ in found], dtype=np.float64), unread)

    def _run(self, left: str, right: str) -> tuple[float, bool]:
        """Return the logit of a pair, and whether anything of it was cut off or is unknown to the model."""
        encoding = read_text(self._tokenizer, (left, right))
        ids = np.array([encoding.ids], dtype=np.int64)
        given = {INPUTS[0]: ids, INPUTS[1]: np.ones_like(ids), INPUTS[2]: np.array([encoding.type_ids], dtype=np.int64)}
        (logits,) = self._session.run(None, {name: given[name] for name in self._names})
        limit = self.report.max_length
        cut = limit is not None and len(encoding.ids) >= limit
        return float(np.asarray(logits).reshape(-1)[0]), cut or self._unknown.id in encoding.ids


def hold_back(logits: Logits, unread: NDArray[np.bool_]) -> Logits:
    """Return the logits (n,), capped at 0 for pairs that were cut or hold unknown tokens: the difference may lie there.

    A pair that just fits counts as cut; its tokens do not tell.
    """
    return np.where(unread, np.minimum(logits, 0.0), logits)


def read_report(folder: Path) -> VerifierReport:
    """Return the report of the verifier in `folder`.

    Raises:
        ModelError: there is none, it is damaged, or of other weights.
    """
    missing = ModelError(
        f"{folder} holds no verifier ({FOLDER}/{REPORT} is missing)",
        expected="a folder that `embedsmith train --verifier` wrote",
        action="embedsmith train EXAMPLES --verifier --base MODEL --out FOLDER",
    )
    return open_report(folder, REPORT, VerifierReport, Fidelity, missing)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """How far the verifier's word moves a cosine.

    Attributes:
        weight: cosine a logit.
    """

    weight: float

    @property
    def reach(self) -> float:
        """The largest move, up or down."""
        return self.weight * SURE

    @overload
    def move(self, logits: float) -> float: ...

    @overload
    def move(self, logits: Logits) -> Logits: ...

    def move(self, logits: Logits | float) -> Logits | float:
        """Return the cosine that logits add: weight .03 and logit −2 move by −.06, logit 9 by .12."""
        return self.weight * np.clip(logits, -SURE, SURE)


@dataclass(frozen=True, slots=True)
class Gain:
    """What the verifier does to precision when as many pairs are served as without it.

    Attributes:
        hit_rate: share of the pairs that are served, with and without.
        before, after: precision. difference: after − before, with interval and p-value.
        pairs: on which it was measured; none of them fitted the weight.
    """

    hit_rate: float
    before: float
    after: float
    difference: Difference
    pairs: int

    @property
    def proven(self) -> bool:
        """Say whether the interval of the gain lies above zero."""
        return self.difference.low > 0


def fit_adjustment(labels: Labels, similarities: Logits, logits: Logits) -> Adjustment | None:
    """Return the weight that a logistic regression on cosine and logit gives, None when it finds no use.

    P(same) = σ(a · cosine + b · clip(logit) + c), with a weak ridge on the scaled inputs; weight = b / a. The
    regression weighs both by what they tell beyond each other, so a verifier that repeats the cosine or
    contradicts the labels gets nothing.

    Args:
        labels, similarities, logits: (n,) of the same pairs.
    """
    served = similarities > -1  # the guard's vetoes are final, whatever the verifier says
    if served.sum() < FEWEST or len(np.unique(labels[served])) < 2:
        return None
    inputs = np.stack([similarities[served], np.clip(logits[served], -SURE, SURE)], axis=1)
    middle, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    found = fit_logistic((inputs - middle) / spread, labels[served]).weights / spread
    if found[0] <= 0 or found[1] <= 0:
        return None
    return Adjustment(float(found[1] / found[0]))


def adjust(similarities: Logits, logits: Logits, adjustment: Adjustment) -> Logits:
    """Return the cosines (n,) as the verifier moves them; what the guard vetoed (−1) stays vetoed."""
    return np.where(similarities > -1, similarities + adjustment.move(logits), -1.0)


def measure_gain(
    labels: Labels,
    before: Logits,
    after: Logits,
    *,
    groups: Sequence[str] | None = None,
    hit_rate: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Gain:
    """Return what `after` gains over `before` in precision at equal hit rate.

    Args:
        labels: (n,). before, after: (n,) scores of the same pairs; higher is served first.
        groups: (n,) pairs of a group are drawn together. hit_rate: default is half the share of duplicates,
            where a cache with a careful threshold works.
    """
    rate = hit_rate if hit_rate is not None else max(float(labels.mean()) / 2, 1 / len(labels))
    orders = [np.argsort(-scores, kind="stable") for scores in (before, after)]

    def precision(order: NDArray[np.intp]) -> Any:
        truth = labels[order].astype(np.float64)

        def at(weights: NDArray[np.float64] | None = None) -> float:
            drawn = np.ones(len(truth)) if weights is None else weights[order]
            reached = np.cumsum(drawn)
            end = int(np.searchsorted(reached, rate * reached[-1])) + 1
            return float((drawn[:end] @ truth[:end]) / max(drawn[:end].sum(), 1e-12))

        return at

    draws = resample_weights(len(labels), groups=groups, resamples=resamples, seed=seed)
    first, second = (precision(order) for order in orders)
    return Gain(rate, first(), second(), paired_bootstrap(first, second, draws), len(labels))


def pairs_of(pairs: Sequence[LabelledPair]) -> list[tuple[str, str]]:
    """Return the texts of labelled pairs."""
    return [(pair.sentence1, pair.sentence2) for pair in pairs]
