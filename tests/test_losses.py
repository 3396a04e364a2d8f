"""Losses equal the worked numbers of their docstrings and sentence-transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MultipleNegativesRankingLoss,
    OnlineContrastiveLoss,
)
from torch import Tensor
from torch.nn.functional import normalize

from embedsmith.losses import cosent, infonce, logistic, online_contrastive


def raw_rows(count: int, seed: int, dimension: int = 8) -> Tensor:
    """Rows of any length: sentence-transformers' losses divide by it, ours take unit rows."""
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1)


def gradient(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_infonce_of_two_candidates_at_cosine_one_and_zero() -> None:
    anchor, candidates = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    assert infonce(anchor, candidates, torch.tensor([0]), temperature=1).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_infonce_and_its_gradients_equal_multiple_negatives_ranking(seed: int, negatives: int) -> None:
    columns = [raw_rows(6, seed * 10 + column) for column in range(2 + negatives)]
    reference = MultipleNegativesRankingLoss(model=None, scale=20.0).compute_loss_from_embeddings(columns, None)
    ours = infonce(unit(columns[0]), unit(torch.cat(columns[1:])), torch.arange(6), temperature=1 / 20)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-5)
    for mine, theirs in zip(gradient(ours, *columns), gradient(reference, *columns), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_an_excluded_candidate_does_not_count_but_the_positive_always_does() -> None:
    anchors, candidates = unit(raw_rows(3, 1)), unit(raw_rows(5, 2))
    positive = torch.arange(3)
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[:, 4] = True
    excluded[0, 0] = True  # its own positive: stays
    assert infonce(anchors, candidates, positive, excluded=excluded).item() == pytest.approx(
        infonce(anchors, candidates[:4], positive).item(), abs=1e-6
    )


def test_online_contrastive_counts_only_the_hard_pairs() -> None:
    similarities, labels = torch.tensor([0.9, 0.5, 0.7, 0.1]), torch.tensor([1, 1, 0, 0])
    assert online_contrastive(similarities, labels).item() == pytest.approx(0.29)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), labels=st.lists(st.integers(0, 1), min_size=2, max_size=12))
def test_online_contrastive_equals_sentence_transformers(seed: int, labels: list[int]) -> None:
    left, right = raw_rows(len(labels), seed), raw_rows(len(labels), seed + 1)
    target = torch.tensor(labels)
    reference = OnlineContrastiveLoss(model=None, margin=0.5).compute_loss_from_embeddings([left, right], target)
    ours = online_contrastive((unit(left) * unit(right)).sum(dim=1), target, margin=0.5)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-5)
    for mine, theirs in zip(gradient(ours, left, right), gradient(reference, left, right), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_cosent_of_one_wrong_order() -> None:
    loss = cosent(torch.tensor([0.8, 0.2]), torch.tensor([0, 1]), temperature=1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.6)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=10))
def test_cosent_equals_sentence_transformers(seed: int, scores: list[float]) -> None:
    left, right = raw_rows(len(scores), seed), raw_rows(len(scores), seed + 1)
    target = torch.tensor(scores)
    reference = CoSENTLoss(model=None, scale=20.0).compute_loss_from_embeddings([left, right], target)
    ours = cosent((unit(left) * unit(right)).sum(dim=1), target, temperature=1 / 20)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-5)


def test_logistic_at_the_border_and_against_binary_cross_entropy() -> None:
    assert logistic(torch.tensor([0.65, 0.65]), torch.tensor([1, 0])).item() == pytest.approx(2 * math.log(2))
    similarities, labels = torch.tensor([0.9, 0.4, 0.8, 0.1, 0.3]), torch.tensor([1, 1, 0, 0, 0])
    weights = torch.where(labels == 1, 1 / 2, 1 / 3)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(
        15 * (similarities - 0.65), labels.float(), weight=weights, reduction="sum"
    )
    assert logistic(similarities, labels).item() == pytest.approx(reference.item(), abs=1e-6)


def test_logistic_of_one_label_only_is_finite() -> None:
    assert logistic(torch.tensor([0.9]), torch.tensor([1])).item() > 0
    assert logistic(torch.tensor([]), torch.tensor([])).item() == 0
