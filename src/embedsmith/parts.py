"""Parts: the loss of a batch as functions from its embeddings (n, d) that add up to it.

They bound memory (a contrast of 8,192 anchors with 16,384 candidates is never held as a whole) and are dealt out to
the devices of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedsmith import losses
from embedsmith.batches import Contrasts, Index, Numbers, Row, classify, contrast, list_up, pair_up, triple_up
from embedsmith.config import TrainingConfig
from embedsmith.objectives import GRADED

CHUNK = 2**22  # logits of a contrast that are held at once: 16 MB
Part: TypeAlias = Callable[[Tensor], Tensor]
Similarity: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of two (P, d), one number a pair


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the parts of a batch are made with, besides its rows."""

    config: TrainingConfig
    guide: Numbers | None
    least: int


Make: TypeAlias = Callable[[Sequence[Row], _Terms], list[Part]]
Compute: TypeAlias = Callable[[Tensor, Tensor, TrainingConfig], Tensor]  # similarities, labels: the loss


def parts_of(
    rows: Sequence[Row],
    weights: Sequence[Mapping[str, float]],
    config: TrainingConfig,
    *,
    guide: Numbers | None = None,
    least: int = 1,
) -> list[Part]:
    """Return functions of the embeddings (n, d), float32 unit rows, whose values add up to the loss of a batch.

    Rows of different sources are compared within their source only; a source counts by its share of the rows.

    Args:
        rows: with places in the batch's texts (`batches.localize`).
        weights: of the losses by name, for each source.
        guide: (n, g) unit rows of a guide model for the batch's texts, to tell false negatives.
        least: cut contrasts into at least so many parts, one for each device.
    """
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(row.source, []).append(row)
    parts: list[Part] = []
    terms = _Terms(config, guide, least)
    for source, own in members.items():
        for name, weight in weights[source].items():
            share = weight * len(own) / len(rows)
            parts += [_scale(part, share, config.dimensions) for part in _PARTS[name](own, terms)]
    return parts


def _scale(part: Part, weight: float, dimensions: Sequence[int]) -> Part:
    if not dimensions:
        return lambda embeddings: weight * part(embeddings)
    return lambda embeddings: weight * losses.matryoshka(embeddings, part, dimensions=dimensions)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=1)


def _paired(name: str, compute: Compute, similarity: Similarity = _dot) -> Make:
    """Return what makes the one part of a loss over the pairs of the rows."""

    def make(rows: Sequence[Row], terms: _Terms) -> list[Part]:
        found = pair_up(rows, graded=name in GRADED)
        if not len(found.labels):
            return []

        def part(embeddings: Tensor) -> Tensor:
            likeness = _compare(embeddings, found.left, found.right, similarity)
            return compute(likeness, _tensor(found.labels, embeddings), terms.config)

        return [part]

    return make


def _compare(embeddings: Tensor, left: Index, right: Index, similarity: Similarity = _dot) -> Tensor:
    """Return the similarity of pairs (P,); many are gathered in slices of `CHUNK` numbers, again for the gradient.

    Pairs outgrow texts (200 positives and 200 negatives of one anchor make 60,300), so P × d is never held.
    """
    size = max(CHUNK // embeddings.shape[1], 1)
    if len(left) <= size:
        return similarity(embeddings[left], embeddings[right])

    def compare(rows: Tensor, start: int) -> Tensor:
        piece = slice(start, start + size)
        return similarity(rows[left[piece]], rows[right[piece]])

    slices = [
        checkpoint(compare, embeddings, start, use_reentrant=False, preserve_rng_state=False)
        for start in range(0, len(left), size)
    ]
    return torch.cat(slices)


def _infonce(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    found = contrast(rows)
    if not len(found.anchors):
        return []
    parts = [_contrast_part(found, piece, terms) for piece in _cut(found, terms.least)]
    if terms.config.symmetric:
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
    config, guide = terms.config, terms.guide
    start, end = piece
    rows = slice(start, end)
    inside = found.excluded[(found.excluded[:, 0] >= start) & (found.excluded[:, 0] < end)]

    def part(embeddings: Tensor) -> Tensor:
        anchors, candidates = embeddings[found.anchors[rows]], embeddings[found.candidates]
        positive = _tensor(found.positive_of[rows], embeddings)
        excluded = embeddings.new_zeros((end - start, len(found.candidates)), dtype=torch.bool)
        excluded[inside[:, 0] - start, inside[:, 1]] = True
        if config.guide:
            judge = embeddings.detach() if guide is None else _tensor(guide, embeddings)
            closeness = judge[found.anchors[rows]] @ judge[found.candidates].T
            excluded |= losses.false_negatives(
                closeness, positive, margin=config.guide_margin, relative=config.guide_relative
            )
        total = losses.infonce(
            anchors, candidates, positive, temperature=config.temperature, excluded=excluded, reduction="sum"
        )
        return total / len(found.anchors)

    return part


def _triplet(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    found = triple_up(rows)
    if not len(found.anchors):
        return []

    def part(embeddings: Tensor) -> Tensor:
        positive = _compare(embeddings, found.anchors, found.positives)
        negative = _compare(embeddings, found.anchors, found.negatives)
        return losses.triplet(positive, negative, margin=terms.config.margin)

    return [part]


def _margin_mse(rows: Sequence[Row], _terms: _Terms) -> list[Part]:
    found = triple_up(rows)

    def part(embeddings: Tensor) -> Tensor:
        positive = _compare(embeddings, found.anchors, found.positives)
        negative = _compare(embeddings, found.anchors, found.negatives)
        return losses.margin_mse(positive - negative, _tensor(found.margins, embeddings))

    return [part]


def _distill_kl(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    found = list_up(rows)

    def part(embeddings: Tensor) -> Tensor:
        scores = (embeddings[found.anchors][:, None] * embeddings[found.candidates]).sum(dim=2)
        teacher, mask = (_tensor(values, embeddings) for values in (found.teacher, found.mask))
        return losses.distill_kl(scores, teacher, mask, temperature=terms.config.temperature)

    return [part]


def _batch_triplet(rows: Sequence[Row], terms: _Terms) -> list[Part]:
    config = terms.config
    found = classify(rows)

    def part(embeddings: Tensor) -> Tensor:
        classes = _tensor(found.classes, embeddings)
        return losses.batch_triplet(embeddings[found.texts], classes, margin=config.margin, mining=config.mining)

    return [part]


def _tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)


def _cosent(similarities: Tensor, scores: Tensor, config: TrainingConfig) -> Tensor:
    return losses.cosent(similarities, scores, temperature=config.temperature)


_PAIRED: Mapping[str, Compute] = {
    "logistic": lambda cosines, labels, config: losses.logistic(
        cosines, labels, scale=config.logistic_scale, bias=config.logistic_bias
    ),
    "online_contrastive": lambda cosines, labels, config: (
        losses.online_contrastive(cosines, labels, margin=config.margin) / len(labels)
    ),
    "contrastive": lambda cosines, labels, config: losses.contrastive(cosines, labels, margin=config.margin),
    "cosine_similarity": lambda cosines, scores, _: losses.cosine_similarity(cosines, scores),
    "cosent": _cosent,
}
_PARTS: Mapping[str, Make] = {
    **{name: _paired(name, compute) for name, compute in _PAIRED.items()},
    "angle": _paired("angle", _cosent, losses.angle_similarity),
    "infonce": _infonce,
    "triplet": _triplet,
    "batch_triplet": _batch_triplet,
    "margin_mse": _margin_mse,
    "distill_kl": _distill_kl,
}
