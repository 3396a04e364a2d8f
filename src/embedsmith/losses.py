"""Losses as pure functions: float32 unit rows (n, d) or cosines in, a scalar with its gradients out.

All work on cosine similarity, which for unit rows is the dot product. Nothing here knows of models,
batches or devices; `objectives` calls them with whatever rows a batch has. Each equals its namesake in
sentence-transformers, loss and gradient (tests hold them to 1e-5), and says where it departs from it.
A batch without anything to compare costs zero, with gradients of zero: never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from embedsmith.errors import ConfigurationError, InputError


def infonce(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.05,
    excluded: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return the cross-entropy of finding each anchor's positive among all candidates.

    ℓᵢ = −log( exp(aᵢ·c₊/τ) / Σⱼ exp(aᵢ·cⱼ/τ) ), the multiple-negatives-ranking loss with scale 1/τ
    (van den Oord et al. 2018, arXiv 1807.03748, eq. 4; Henderson et al. 2017, arXiv 1705.00652).
    With two candidates at cosine 1 and 0 and τ = 1 the loss is log(1 + e⁻¹) = 0.3133.

    A slice of the anchors, with their `positive` and their rows of `excluded`, is a part of the batch: the
    "sum" of all parts divided by B is the whole. The symmetric loss is a second call with the roles swapped,
    (infonce(anchors, candidates, positive) + infonce(candidates[positive], anchors, torch.arange(B))) / 2.

    Args:
        anchors: (B, d), unit rows.
        candidates: (C, d), unit rows: the positives of the batch and its hard negatives.
        positive: (B,) int64; row of `candidates` that is the positive of each anchor.
        temperature: τ > 0; the cosine is divided by it.
        excluded: (B, C) bool; candidates that must not count as negatives of an anchor (other texts
            with the same answer, or `false_negatives`). The positive itself is never excluded.
        reduction: "mean" over the anchors, or their "sum".

    Raises:
        ConfigurationError: a `reduction` of another name.
    """
    if reduction not in ("mean", "sum"):
        raise ConfigurationError(f"reduction {reduction!r}", expected="mean or sum")
    logits = anchors @ candidates.T / temperature
    if excluded is not None:
        logits = logits.masked_fill(_without_own(excluded, positive), float("-inf"))
    total = functional.cross_entropy(logits, positive, reduction="sum")
    return total if reduction == "sum" else total / max(len(positive), 1)


def false_negatives(similarities: Tensor, positive: Tensor, *, margin: float = 0.0, relative: bool = False) -> Tensor:
    """Return a (B, C) bool mask of the candidates too close to their anchor to be called its negatives.

    Those with similarity > s₊ − margin, or relative > s₊ − margin · |s₊|, where s₊ is that of the anchor's
    positive; never the positive itself. As `excluded` of `infonce` this is GISTEmbed (Solatorio 2024, arXiv
    2402.16829) without its anchor-anchor and positive-positive terms; relative .05 is the 95% rule of
    NV-Retriever (Moreira et al. 2024, arXiv 2407.15831). Similarities (.8, .85, .78, .5) with the positive
    first: margin 0 masks .85; margin .05, absolute or relative, masks .85 and .78.

    Args:
        similarities: (B, C) cosines of a guide model, or the model's own; no gradient flows through them.
        positive: (B,) int64; column of each anchor's positive.
        margin: ≥ 0, in cosine or, if relative, as a share of s₊.
        relative: whether the margin is a share.
    """
    known = similarities.gather(1, positive[:, None])
    slack = margin * known.abs() if relative else margin
    return _without_own(similarities > known - slack, positive)


def contrastive(similarities: Tensor, labels: Tensor, *, margin: float = 0.5) -> Tensor:
    """Return half the mean of D² over positives and max(0, margin − D)² over negatives, D = 1 − cosine.

    Hadsell et al. 2006 (Dimensionality reduction by learning an invariant mapping, eq. 4);
    sentence-transformers' ContrastiveLoss. A positive at cosine .8 and a negative at .9, margin .5:
    (.2² + .4²) / 2 / 2 = 0.05.

    Args:
        similarities: (P,) cosine of each pair.
        labels: (P,) 1 where one answer serves both texts, else 0.
        margin: in cosine distance, 0 to 2; a negative farther than this costs nothing.
    """
    _check_shapes(similarities, labels)
    distances, labels = 1 - similarities, labels.to(similarities.dtype)
    far, near = distances.square(), functional.relu(margin - distances).square()
    return _mean(labels * far + (1 - labels) * near) / 2


def cosine_similarity(similarities: Tensor, scores: Tensor) -> Tensor:
    """Return the mean squared error of the cosines against the scores they should have.

    Reimers & Gurevych 2019, arXiv 1908.10084, §3 (regression objective); sentence-transformers'
    CosineSimilarityLoss. Cosines (.8, .2) with scores (1, 0): (.2² + .2²) / 2 = 0.04.

    Args:
        similarities: (P,) cosine of each pair.
        scores: (P,) on the scale of the cosine: −1 to 1, usually 0 to 1.
    """
    return margin_mse(similarities, scores)


def margin_mse(student_margins: Tensor, teacher_margins: Tensor) -> Tensor:
    """Return the mean squared error of the student's margins against the teacher's.

    A margin is score(query, positive) − score(query, negative); one column for each negative, and the mean is
    over all of them (Hofstätter et al. 2020, arXiv 2010.02666; sentence-transformers' MarginMSELoss).
    Student (.5, .1), teacher (.3, .5): (.2² + .4²) / 2 = 0.1.

    Args:
        student_margins: (Q,) or (Q, N), differences of cosines; any shape, so that queries with different
            numbers of negatives can be given as one flat row.
        teacher_margins: same shape; scaled by the caller to what cosines can reach (−2 to 2).

    Raises:
        InputError: the shapes differ (broadcasting would compare all with all).
    """
    _check_shapes(student_margins, teacher_margins)
    return _mean((student_margins - teacher_margins.detach().to(student_margins.dtype)).square())


def triplet(positive: Tensor, negative: Tensor, *, margin: float = 0.5) -> Tensor:
    """Return the mean of max(0, D₊ − D₋ + margin), D = 1 − cosine: how far negatives are from being farther.

    Schroff et al. 2015, arXiv 1503.03832, §3.1, on cosine distance; sentence-transformers' TripletLoss with
    TripletDistanceMetric.COSINE. Positives at cosine (.6, .9), negatives at (.4, .1), margin .5:
    (.4 − .6 + .5, 0) on average 0.15.

    Args:
        positive: (T,) cosine (not distance) of each anchor with its positive.
        negative: (T,) cosine of each anchor with its negative.
        margin: in cosine distance, 0 to 2.
    """
    _check_shapes(positive, negative)
    return _mean(functional.relu(negative - positive + margin))


def batch_triplet(
    embeddings: Tensor,
    classes: Tensor,
    *,
    margin: float = 0.5,
    mining: Literal["hard", "semi_hard", "all"] = "hard",
) -> Tensor:
    """Return the triplet loss of the triplets that a batch of texts with classes holds, on cosine distance.

    - "hard": for each row its farthest mate and its nearest stranger, mean over the rows; a row alone in its
      class counts as its own mate at distance 0 (Hermans et al. 2017, arXiv 1703.07737).
    - "semi_hard": for each row and mate the nearest stranger farther than the mate, or the farthest of all
      if none is; mean over the pairs (Schroff et al. 2015, arXiv 1503.03832, §3.2).
    - "all": every triplet, mean over those that cost something. Memory: pairs of mates × n.

    These are sentence-transformers' BatchHardTripletLoss, BatchSemiHardTripletLoss and BatchAllTripletLoss with
    cosine distance, save that a batch without a triplet (one class only, or no two of a class) costs zero here
    under each of them. Rows (1, 0), (.8, .6) of class 0 and (0, 1) of class 1 are .2, 1 and .4 apart; with margin
    .5: hard (0 + .3 + .1) / 3 = 0.1333, semi-hard (0 + .3) / 2 = 0.15, all .3 / 1 = 0.3.

    Args:
        embeddings: (n, d), unit rows.
        classes: (n,) int64.
        margin: in cosine distance, 0 to 2.
        mining: which triplets count.

    Raises:
        ConfigurationError: a `mining` of another name.
    """
    if mining not in ("hard", "semi_hard", "all"):
        raise ConfigurationError(f"mining {mining!r}", expected="hard, semi_hard or all")
    same = classes[:, None] == classes[None, :]
    mates = same & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    if same.all() or not mates.any():
        return (embeddings * 0).sum()  # not a constant: backward() must work on every batch
    distances = 1 - embeddings @ embeddings.T
    match mining:
        case "hard":
            return _mean(functional.relu(_farthest(distances, mates) - _nearest(distances, ~same) + margin))
        case "semi_hard":
            return _mean(functional.relu(distances[mates] - _nearest_beyond(distances, mates, ~same) + margin))
        case "all":
            rows, columns = mates.nonzero(as_tuple=True)
            hinges = functional.relu(distances[rows, columns, None] - distances[rows] + margin)
            hinges = hinges.masked_fill(same[rows], 0)
            return hinges.sum() / hinges.count_nonzero().clamp(min=1)


def _farthest(distances: Tensor, mates: Tensor) -> Tensor:
    """Return (n,) the distance of each row's farthest mate, 0 where it has none."""
    return distances.masked_fill(~mates, 0).max(dim=1).values


def _nearest(distances: Tensor, strangers: Tensor) -> Tensor:
    """Return (n,) the distance of each row's nearest stranger."""
    return distances.masked_fill(~strangers, float("inf")).min(dim=1).values


def _nearest_beyond(distances: Tensor, mates: Tensor, strangers: Tensor) -> Tensor:
    """Return for each pair of mates the least distance of a stranger above theirs, else the greatest of all.

    Sorted once per row and searched, n² log n: a comparison of every pair with every stranger is n³.
    """
    ordered = distances.masked_fill(~strangers, float("inf")).sort(dim=1, stable=True).values
    beyond = torch.searchsorted(ordered.detach(), distances.detach(), right=True)
    last = strangers.sum(dim=1, keepdim=True) - 1
    return ordered.gather(1, torch.minimum(beyond, last))[mates]


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

    Sorted by score, the sum is Σⱼ exp(−sⱼ/τ) · Σ exp(sᵢ/τ) over the i of lower score, and the inner sums are one
    running sum: memory grows with P, time with P log P, and nothing is left out.

    Args:
        similarities: (P,) cosine of each pair.
        scores: (P,) any scale, higher is closer; 0/1 labels will do.
    """
    home = similarities
    if similarities.device.type == "mps":  # has no float64
        similarities, scores = similarities.cpu(), scores.cpu()
    order = scores.argsort(stable=True)
    # float64: the running sum of tens of thousands of terms loses the fifth digit in float32.
    ranked, scaled = scores[order], similarities[order].double() / temperature
    below = torch.searchsorted(ranked, ranked)  # how many pairs have a lower score
    last, higher = below[below > 0] - 1, scaled[below > 0]
    terms = torch.logcumsumexp(scaled, dim=0)[last] - higher
    return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0).to(home)


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
    total = (similarities * 0).sum()
    for wanted, sign in ((1, -1.0), (0, 1.0)):
        chosen = logits[labels == wanted]
        if len(chosen):
            total = total + functional.softplus(sign * chosen).mean()
    return total


def angle_similarity(left: Tensor, right: Tensor) -> Tensor:
    """Return (P,) |Re z + Im z| of each pair, z = left · conj(right), the halves of a row its real and imaginary parts.

    Left (1, 0) against right (.6, .8): |.6 − .8| = .2. Its ranking loss (`cosent`) is AnglE, which does not flatten
    where cosines do (Li & Li 2023, arXiv 2309.12871, in the form of sentence-transformers' AnglELoss). Unit rows need
    no division, so that a row of zeros has a gradient.

    Args:
        left, right: (P, d), unit rows, d even.

    Raises:
        ConfigurationError: d is odd.
    """
    dimension = left.shape[1]
    if dimension % 2:
        raise ConfigurationError(
            f"the angle loss on {dimension} dimensions",
            expected="an even number: the halves of a row are real and imaginary parts",
            action=f"truncate the embeddings to {dimension - 1} dimensions, or use cosent",
        )
    (real, imaginary), (other_real, other_imaginary) = left.chunk(2, dim=1), right.chunk(2, dim=1)
    sines = (imaginary * other_real - real * other_imaginary).sum(dim=1)
    return ((left * right).sum(dim=1) + sines).abs()


def distill_kl(scores: Tensor, teacher: Tensor, lists: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return T² · KL(softmax(teacher/T) ‖ softmax(scores/T)) over each query's candidates, mean over queries.

    Hinton et al. 2015, arXiv 1503.02531, §2, which has the T²: gradients keep their size as T grows;
    sentence-transformers' DistillKLDivLoss, here for lists of different lengths. Scores (0, 0), teacher
    (log 3, 0), T = 1: .75 · log(.75/.5) + .25 · log(.25/.5) = 0.1308.

    Args:
        scores: (Q, K) the student's score of each candidate; a place outside `lists` may hold anything.
        teacher: (Q, K) the teacher's, on the scale of `scores`; no gradient flows through them. Logits of another
            temperature T′ (a cross-encoder's: 1) are multiplied by T / T′ before, which `objectives` does.
        lists: (Q, K) bool; the candidates each query has. A query without any does not count.
        temperature: T > 0; both are divided by it.
    """
    _check_shapes(scores, teacher)
    # The least float, not −inf: a query without candidates is then two equal softmaxes, not NaN.
    least = torch.finfo(scores.dtype).min
    student = functional.log_softmax((scores / temperature).masked_fill(~lists, least), dim=1)
    wanted = functional.softmax((teacher.detach().to(scores.dtype) / temperature).masked_fill(~lists, least), dim=1)
    divergence = functional.kl_div(student, wanted, reduction="sum")
    return temperature**2 * divergence / lists.any(dim=1).sum().clamp(min=1)


def matryoshka(
    embeddings: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Return Σ weight · loss(first columns as unit rows) over `dimensions`, so that truncated embeddings serve.

    Kusupati et al. 2022, arXiv 2205.13147, eq. 1; sentence-transformers' MatryoshkaLoss. With the cosine of rows
    (.6, .8) and (.8, .6) as loss, dimensions (2, 1) and weights (1, .5): .96 + .5 · 1 = 1.46.

    Args:
        embeddings: (n, d).
        loss: what to minimise, of (n, k) unit rows; called once for each k.
        dimensions: 1 to d each; d itself only if it is listed.
        weights: one for each dimension; 1 each by default.

    Raises:
        ConfigurationError: no dimension, one outside 1 to d, or another number of weights.
    """
    width = embeddings.shape[1]
    if not dimensions or not all(0 < dimension <= width for dimension in dimensions):
        raise ConfigurationError(
            f"matryoshka dimensions {list(dimensions)}",
            expected=f"one or more from 1 to {width}, the length of the embeddings",
        )
    if weights is not None and len(weights) != len(dimensions):
        raise ConfigurationError(f"{len(weights)} matryoshka weights", expected=f"{len(dimensions)}, one a dimension")
    parts = [loss(_truncate(embeddings, dimension)) for dimension in dimensions]
    return torch.stack([part * weight for part, weight in zip(parts, weights or [1.0] * len(parts), strict=True)]).sum()


def _truncate(embeddings: Tensor, dimension: int) -> Tensor:
    """Return the first columns as unit rows; a row of zeros stays one, and its gradient finite and small."""
    rows = embeddings[:, :dimension]
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.masked_fill(lengths == 0, 1)


def _without_own(mask: Tensor, positive: Tensor) -> Tensor:
    """Return the mask with each row's own positive unset."""
    return mask.scatter(1, positive[:, None], value=False)


def _mean(values: Tensor) -> Tensor:
    """Return the mean, or zero with its graph where there is no value."""
    return values.sum() / max(values.numel(), 1)


def _check_shapes(left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        raise InputError(
            f"a loss of tensors with shapes {tuple(left.shape)} and {tuple(right.shape)}",
            expected="one shape: broadcasting would compare each value with all others",
        )
