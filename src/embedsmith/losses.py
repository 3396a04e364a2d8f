"""Losses as pure functions of embeddings: (n, d) matrices of unit rows in, a scalar out.

All work on cosine similarity, which for unit rows is the dot product. Nothing here knows of models,
batches or devices; `training` calls them with whatever rows a batch has. Each equals its namesake in
sentence-transformers on the same embeddings (tests hold them to 1e-5); masks go beyond it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def infonce(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.05,
    excluded: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of finding each anchor's positive among all candidates.

    ℓᵢ = −log( exp(aᵢ·c₊/τ) / Σⱼ exp(aᵢ·cⱼ/τ) ), the multiple-negatives-ranking loss with scale 1/τ
    (van den Oord et al. 2018, arXiv 1807.03748, eq. 4; Henderson et al. 2017, arXiv 1705.00652).
    With two candidates at cosine 1 and 0 and τ = 1 the loss is log(1 + e⁻¹) = 0.3133.

    Args:
        anchors: (B, d), unit rows.
        candidates: (C, d), unit rows: the positives of the batch and its hard negatives.
        positive: (B,) int64; row of `candidates` that is the positive of each anchor.
        temperature: τ > 0; the cosine is divided by it.
        excluded: (B, C) bool; candidates that must not count as negatives of an anchor (other texts
            with the same answer). The positive itself is never excluded.
    """
    logits = anchors @ candidates.T / temperature
    if excluded is not None:
        own = torch.zeros_like(excluded)
        own[torch.arange(len(positive)), positive] = True
        logits = logits.masked_fill(excluded & ~own, float("-inf"))
    return functional.cross_entropy(logits, positive)


def online_contrastive(similarities: Tensor, labels: Tensor, *, margin: float = 0.5) -> Tensor:
    """Return the contrastive loss of the hard pairs of a batch, summed.

    With distance D = 1 − cosine: Σ D² over positives farther than the nearest negative, plus
    Σ max(0, margin − D)² over negatives nearer than the farthest positive (Hadsell et al. 2006, with
    the selection of sentence-transformers' OnlineContrastiveLoss). Positives at cosine .9 and .5,
    negatives at .7 and .1, margin .5: the positive at .5 and the negative at .7 are hard, so
    .5² + (.5 − .3)² = 0.29.

    Args:
        similarities: (P,) cosine of each pair.
        labels: (P,) 1 where one answer serves both texts, else 0.
        margin: in cosine distance, 0 to 2.
    """
    distances = 1 - similarities
    positives, negatives = distances[labels == 1], distances[labels == 0]
    hard_positives, hard_negatives = positives, negatives
    if len(positives) and len(negatives):
        hard_positives = positives[positives > negatives.min()]
        hard_negatives = negatives[negatives < positives.max()]
    elif len(positives):
        hard_positives = positives[positives > positives.mean()]
    elif len(negatives):
        hard_negatives = negatives[negatives < negatives.mean()]
    return hard_positives.square().sum() + functional.relu(margin - hard_negatives).square().sum()


def cosent(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Return log(1 + Σ exp((sᵢ − sⱼ)/τ)) over all pairs i, j of rows with score i below score j.

    One global ranking of all pairs of the batch: no row that should be closer may be farther
    (Su 2022, CoSENT; sentence-transformers' CoSENTLoss with scale 1/τ). Similarities (.8, .2) with
    scores (0, 1) and τ = 1: log(1 + e^.6) = 1.0375.

    Args:
        similarities: (P,) cosine of each pair.
        scores: (P,) any scale, higher is closer; 0/1 labels will do.
    """
    scaled = similarities / temperature
    differences = scaled[:, None] - scaled[None, :]
    wrong_order = scores[:, None] < scores[None, :]
    masked = differences.masked_fill(~wrong_order, float("-inf")).flatten()
    return torch.logsumexp(torch.cat([masked.new_zeros(1), masked]), dim=0)


def logistic(similarities: Tensor, labels: Tensor, *, scale: float = 15.0, bias: float = 0.65) -> Tensor:
    """Return how badly the cosine separates the labels as a probability: one global threshold for all pairs.

    Mean over positives of log(1 + e^(−k(s − b))) plus mean over negatives of log(1 + e^(k(s − b))): logistic
    regression on the cosine, both labels with equal weight (the sigmoid loss of Zhai et al. 2023, arXiv
    2303.15343, on labelled pairs). A positive and a negative both at s = b cost 2 · log 2 = 1.3863.

    Args:
        similarities: (P,) cosine of each pair.
        labels: (P,) 1 where one answer serves both texts, else 0.
        scale: k; how sharp the border is.
        bias: b; the cosine where the border lies, which keeps the model's scores on the scale they had.
    """
    logits = scale * (similarities - bias)
    total = similarities.new_zeros(())
    for wanted, sign in ((1, -1.0), (0, 1.0)):
        chosen = logits[labels == wanted]
        if len(chosen):
            total = total + functional.softplus(sign * chosen).mean()
    return total
