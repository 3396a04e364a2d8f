"""Objectives: which loss takes which examples, which one follows from the data, and the loss of a batch in parts.

A part is a function from the embeddings of a batch (n, d) to its share of the loss; the parts of a batch add up to
it. They bound memory (a contrast of 8,192 anchors with 16,384 candidates is never held as a whole) and are dealt
out to the devices of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.batches import (
    Contrasts,
    Numbers,
    Row,
    Source,
    classify,
    contrast,
    list_up,
    pair_up,
    triple_up,
)
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet

if TYPE_CHECKING:
    import torch

CHUNK = 2**22  # logits of a contrast that are held at once: 16 MB
Offer = Literal["positives", "negatives", "scores", "teacher", "classes"]
Mining = Literal["hard", "semi_hard", "all"]


@dataclass(frozen=True, slots=True)
class LossFact:
    """What a loss takes: any of these sets of what examples offer.

    Attributes:
        takes: alternatives; of one of them, all must be there.
        formats: the same in words, for people.
        source: who published it.
    """

    takes: tuple[frozenset[Offer], ...]
    formats: str
    source: str


def _needs(*alternatives: tuple[Offer, ...]) -> tuple[frozenset[Offer], ...]:
    return tuple(frozenset(alternative) for alternative in alternatives)


_LABELS: tuple[Offer, ...] = ("positives", "negatives")
_LABELLED = "labelled pairs; triplets; positive pairs together with either"
_GRADED = "scored pairs; also labelled pairs and triplets, as 1 and 0"
_TAUGHT = "triplets with a teacher's scores"
LOSSES: Mapping[str, LossFact] = {
    "logistic": LossFact(_needs(_LABELS), _LABELLED, "Zhai et al. 2023, arXiv 2303.15343"),
    "online_contrastive": LossFact(_needs(_LABELS), _LABELLED, "sentence-transformers; LangCache-Embed 2504.02268"),
    "contrastive": LossFact(_needs(_LABELS), _LABELLED, "Hadsell et al. 2006"),
    "infonce": LossFact(
        _needs(("positives",)), "positive pairs; triplets with any number of negatives; labelled pairs", "1807.03748"
    ),
    "triplet": LossFact(
        _needs(_LABELS), "triplets; labelled pairs whose anchors have both labels", "Schroff et al. 2015"
    ),
    "batch_triplet": LossFact(_needs(("classes",)), "texts with classes", "Hermans et al. 2017, arXiv 1703.07737"),
    "cosine_similarity": LossFact(_needs(("scores",), _LABELS), _GRADED, "Reimers & Gurevych 2019, arXiv 1908.10084"),
    "cosent": LossFact(_needs(("scores",), _LABELS), _GRADED, "Su 2022"),
    "angle": LossFact(_needs(("scores",), _LABELS), _GRADED, "Li & Li 2023, arXiv 2309.12871"),
    "margin_mse": LossFact(
        _needs(("teacher",)), "triplets with a teacher's scores", "Hofstätter et al. 2020, 2010.02666"
    ),
    "distill_kl": LossFact(_needs(("teacher",)), _TAUGHT, "Hinton et al. 2015, arXiv 1503.02531"),
}


class Options(Protocol):
    """What the losses can be told; `optimization.TrainingConfig` has all of it."""

    @property
    def temperature(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def logistic_scale(self) -> float: ...
    @property
    def logistic_bias(self) -> float: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def mining(self) -> Mining: ...
    @property
    def guide(self) -> str: ...
    @property
    def guide_margin(self) -> float: ...
    @property
    def guide_relative(self) -> bool: ...
    @property
    def dimensions(self) -> tuple[int, ...]: ...


Part: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the parts of a batch are made with, besides its rows."""

    options: Options
    guide: Numbers | None
    least: int


def offers_of(examples: Sequence[Example]) -> frozenset[Offer]:
    """Return what the examples have that a loss can use."""
    found: set[Offer] = set()
    for example in examples:
        match example:
            case PositivePair() | LabelledPair(label=1):
                found.add("positives")
            case LabelledPair():
                found.add("negatives")
            case Triplet():
                found |= {"positives", "negatives"} if example.negatives else {"positives"}
                found |= {"teacher"} if example.scores else set()
            case ScoredPair():
                found.add("scores")
            case LabelledText():
                found.add("classes")
    return frozenset(found)


def choose_losses(examples: Sequence[Example]) -> tuple[Mapping[str, float], str]:
    """Return the loss that follows from the kind of the examples, and the reason."""
    offers = offers_of(examples)
    if "classes" in offers:
        return {"batch_triplet": 1.0}, "texts with classes"
    if "teacher" in offers:
        return {"margin_mse": 1.0}, "triplets with a teacher's scores"
    if "scores" in offers:
        return {"cosent": 1.0}, "scored pairs: their order is what counts"
    if any(isinstance(example, LabelledPair) for example in examples) and "negatives" in offers:
        return {"logistic": 1.0}, "labelled pairs: one border for all of them"
    return {"infonce": 1.0}, "pairs or triplets without labels: every other row of a batch is a negative"


def settle_losses(sources: Sequence[Source], losses: Mapping[str, float]) -> tuple[list[Source], tuple[str, ...]]:
    """Return the sources with their losses settled, and a sentence on each choice.

    Sources of several kinds of examples that have no losses yet are parted by kind.

    Args:
        losses: for sources without losses of their own; {} lets the data choose.

    Raises:
        InputError: a loss cannot use the examples of a source. ConfigurationError: no such loss.
    """
    settled, notes = [], []
    if any(source.weight for source in sources):
        for source in sources:
            if not source.weight:
                raise ConfigurationError(
                    f"{source.name} has no weight", expected="a weight for all sources, or for none"
                )
    for source in sources:
        for part in _parts_by_kind(source) if not (source.losses or losses) else [source]:
            chosen, reason = part.losses or losses, "as asked"
            if not chosen:
                chosen, reason = choose_losses(part.examples)
            check_losses(chosen)
            _require(part, chosen)
            notes.append(f"loss of {part.name}: {' + '.join(chosen)} ({reason})")
            fitted, scale_notes = _fit_scores(part, chosen)
            settled.append(replace(part, examples=fitted, losses=dict(chosen)))
            notes += scale_notes
    return settled, tuple(notes)


def _fit_scores(source: Source, losses: Mapping[str, float]) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Return the examples with scores that cosines can reach, where a loss compares the two, and a note."""
    scores = [score for example in source.examples for score in _scores_of(example)]
    compared = {"cosine_similarity", "margin_mse"} & set(losses)
    if not compared or not scores or (min(scores) >= -1 and max(scores) <= 1):
        return source.examples, ()
    low, high = min(scores), max(scores)

    def fit(score: float) -> float:
        return (score - low) / (high - low) if high > low else 0.5

    fitted = tuple(_with_scores(example, fit) for example in source.examples)
    return fitted, (f"scores of {source.name} run from {low:g} to {high:g}, cosines to 1: brought to 0 … 1",)


def _scores_of(example: Example) -> tuple[float, ...]:
    if isinstance(example, ScoredPair):
        return (example.score,)
    return example.scores if isinstance(example, Triplet) else ()


def _with_scores(example: Example, fit: Callable[[float], float]) -> Example:
    if isinstance(example, ScoredPair):
        return replace(example, score=fit(example.score))
    if isinstance(example, Triplet):
        return replace(example, scores=tuple(map(fit, example.scores)))
    return example


def read_source_spec(spec: str) -> tuple[str, dict[str, float], float]:
    """Return (file, losses, weight) of "FILE", "FILE:LOSS" or "FILE:LOSS:WEIGHT".

    Raises:
        ConfigurationError: what follows the file is neither.
    """
    path, *rest = spec.split(":")
    if not rest or Path(spec).is_file():
        return spec, {}, 0.0
    try:
        weight = float(rest[1]) if len(rest) == 2 else 0.0
    except ValueError:
        weight = -1.0
    if len(rest) > 2 or weight < 0 or rest[0] not in LOSSES:
        raise ConfigurationError(
            f"{spec} is neither a file nor one with a loss",
            expected=f"FILE:LOSS or FILE:LOSS:WEIGHT with one of {', '.join(LOSSES)}",
        )
    return path, {rest[0]: 1.0}, weight


def check_losses(losses: Mapping[str, float]) -> None:
    """Raise `ConfigurationError` where a name is no loss."""
    unknown = sorted(set(losses) - set(LOSSES))
    if unknown:
        raise ConfigurationError(f"losses: {', '.join(unknown)}", expected=f"any of {', '.join(LOSSES)}")


def _parts_by_kind(source: Source) -> list[Source]:
    kinds: dict[str, list[Example]] = {}
    for example in source.examples:
        kinds.setdefault(_family(example), []).append(example)
    if len(kinds) == 1:
        return [source]
    return [replace(source, examples=tuple(rows), name=f"{source.name} ({kind})") for kind, rows in kinds.items()]


def _family(example: Example) -> str:
    match example:
        case ScoredPair():
            return "scored"
        case LabelledText():
            return "classes"
        case Triplet(scores=scores) if scores:
            return "taught"
        case _:
            return "pairs"


def _require(source: Source, losses: Mapping[str, float]) -> None:
    offers = offers_of(source.examples)
    for name in losses:
        if not any(need <= offers for need in LOSSES[name].takes):
            fitting = [other for other, fact in LOSSES.items() if any(need <= offers for need in fact.takes)]
            raise InputError(
                f"the loss {name} cannot use {source.name}: it has {', '.join(sorted(offers)) or 'nothing'}",
                expected=LOSSES[name].formats,
                action=f"use {' or '.join(fitting)}" if fitting else "give examples of that kind",
            )


def parts_of(
    rows: Sequence[Row],
    losses: Sequence[Mapping[str, float]],
    options: Options,
    *,
    guide: Numbers | None = None,
    least: int = 1,
) -> list[Part]:
    """Return functions of the embeddings (n, d), float32 unit rows, whose values add up to the loss of a batch.

    Rows of different sources are compared within their source only; a source counts by its share of the rows.

    Args:
        rows: with places in the batch's texts (`batches.localize`).
        losses: weight by name, for each source.
        guide: (n, g) unit rows of a guide model for the batch's texts, to tell false negatives.
        least: cut contrasts into at least so many parts, one for each device.
    """
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(row.source, []).append(row)
    parts: list[Part] = []
    terms = _Terms(options, guide, least)
    for source, own in members.items():
        for name, weight in losses[source].items():
            share = weight * len(own) / len(rows)
            parts += [_scale(part, share, options.dimensions) for part in _PARTS[name](own, terms)]
    return parts


def _scale(part: Part, weight: float, dimensions: Sequence[int]) -> Part:
    from embedsmith import losses

    if not dimensions:
        return lambda embeddings: weight * part(embeddings)
    return lambda embeddings: weight * losses.matryoshka(embeddings, part, dimensions=dimensions)


def _paired(name: str) -> Callable[[Sequence[Row], _Terms], list[Part]]:
    """Return the parts of a loss over the pairs of the rows: one."""

    def make(rows: Sequence[Row], terms: _Terms) -> list[Part]:
        from embedsmith import losses

        options = terms.options
        found = pair_up(rows)
        if not len(found.labels):
            return []

        def part(embeddings: torch.Tensor) -> torch.Tensor:
            left, right = embeddings[found.left], embeddings[found.right]
            labels = _tensor(found.labels, embeddings)
            if name == "angle":
                return losses.angle(left, right, labels, temperature=options.temperature)
            cosines = (left * right).sum(dim=1)
            if name == "online_contrastive":
                return losses.online_contrastive(cosines, labels, margin=options.margin) / len(labels)
            if name == "contrastive":
                return losses.contrastive(cosines, labels, margin=options.margin)
            if name == "logistic":
                return losses.logistic(cosines, labels, scale=options.logistic_scale, bias=options.logistic_bias)
            if name == "cosine_similarity":
                return losses.cosine_similarity(cosines, labels)
            return losses.cosent(cosines, labels, temperature=options.temperature)

        return [part]

    return make


def _infonce(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    found = contrast(rows)
    if not len(found.anchors):
        return []
    parts = [_contrast_part(found, piece, terms) for piece in _cut(found, terms.least)]
    if terms.options.symmetric:
        back = _turn(found)
        parts += [_contrast_part(back, piece, terms) for piece in _cut(back, terms.least)]
        parts = [_halve(part) for part in parts]
    return parts


def _halve(part: Part) -> Part:
    return lambda embeddings: part(embeddings) / 2


def _turn(found: Contrasts) -> Contrasts:
    """Return the other direction: each positive has to find its anchor among all anchors."""
    anchors = np.array(list(dict.fromkeys(found.anchors.tolist())), dtype=np.int64)
    column = {anchor: place for place, anchor in enumerate(anchors.tolist())}
    positives = found.candidates[found.positive_of]
    answered: dict[int, set[int]] = {}
    for anchor, positive in zip(found.anchors.tolist(), positives.tolist(), strict=True):
        answered.setdefault(positive, set()).add(anchor)
    excluded = [
        (place, column[other])
        for place, (anchor, positive) in enumerate(zip(found.anchors.tolist(), positives.tolist(), strict=True))
        for other in sorted(answered[positive] | ({positive} & column.keys()))
        if other != anchor
    ]
    own = np.array([column[anchor] for anchor in found.anchors.tolist()], dtype=np.int64)
    return Contrasts(positives, anchors, own, np.array(excluded, dtype=np.int64).reshape(-1, 2))


def _cut(found: Contrasts, least: int) -> list[tuple[int, int]]:
    """Return slices of the contrasts, each of at most `CHUNK` logits."""
    count = len(found.anchors)
    pieces = max(-(-count * len(found.candidates) // CHUNK), min(least, count))
    edges = np.linspace(0, count, pieces + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def _contrast_part(found: Contrasts, piece: tuple[int, int], terms: _Terms) -> Part:
    from embedsmith import losses

    options, guide = terms.options, terms.guide
    start, end = piece
    rows = slice(start, end)
    inside = found.excluded[(found.excluded[:, 0] >= start) & (found.excluded[:, 0] < end)]

    def part(embeddings: torch.Tensor) -> torch.Tensor:
        import torch

        anchors, candidates = embeddings[found.anchors[rows]], embeddings[found.candidates]
        positive = _tensor(found.positive_of[rows], embeddings)
        excluded = embeddings.new_zeros((end - start, len(found.candidates)), dtype=torch.bool)
        excluded[inside[:, 0] - start, inside[:, 1]] = True
        if options.guide:
            judge = embeddings.detach() if guide is None else _tensor(guide, embeddings)
            closeness = judge[found.anchors[rows]] @ judge[found.candidates].T
            excluded |= losses.false_negatives(
                closeness, positive, margin=options.guide_margin, relative=options.guide_relative
            )
        total = losses.infonce(
            anchors, candidates, positive, temperature=options.temperature, excluded=excluded, reduction="sum"
        )
        return total / len(found.anchors)

    return part


def _triplet(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    from embedsmith import losses

    options = terms.options
    found = triple_up(rows)
    if not len(found.anchors):
        return []

    def part(embeddings: torch.Tensor) -> torch.Tensor:
        anchors = embeddings[found.anchors]
        positive = (anchors * embeddings[found.positives]).sum(dim=1)
        negative = (anchors * embeddings[found.negatives]).sum(dim=1)
        return losses.triplet(positive, negative, margin=options.margin)

    return [part]


def _margin_mse(rows: Sequence[Row], _terms: _Terms) -> list[Part]:
    from embedsmith import losses

    found = triple_up(rows)

    def part(embeddings: torch.Tensor) -> torch.Tensor:
        anchors = embeddings[found.anchors]
        margins = (anchors * (embeddings[found.positives] - embeddings[found.negatives])).sum(dim=1)
        return losses.margin_mse(margins, _tensor(found.margins, embeddings))

    return [part]


def _distill_kl(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    from embedsmith import losses

    options = terms.options
    found = list_up(rows)

    def part(embeddings: torch.Tensor) -> torch.Tensor:
        scores = (embeddings[found.anchors][:, None] * embeddings[found.candidates]).sum(dim=2)
        teacher, mask = (_tensor(values, embeddings) for values in (found.teacher, found.mask))
        return losses.distill_kl(scores, teacher, mask, temperature=options.temperature)

    return [part]


def _batch_triplet(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    from embedsmith import losses

    options = terms.options
    found = classify(rows)

    def part(embeddings: torch.Tensor) -> torch.Tensor:
        classes = _tensor(found.classes, embeddings)
        return losses.batch_triplet(embeddings[found.texts], classes, margin=options.margin, mining=options.mining)

    return [part]


def _tensor(values: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)


_PARTS: Mapping[str, Callable[[Sequence[Row], _Terms], list[Part]]] = {
    **{
        name: _paired(name)
        for name in ("logistic", "online_contrastive", "contrastive", "cosine_similarity", "cosent", "angle")
    },
    "infonce": _infonce,
    "triplet": _triplet,
    "batch_triplet": _batch_triplet,
    "margin_mse": _margin_mse,
    "distill_kl": _distill_kl,
}
