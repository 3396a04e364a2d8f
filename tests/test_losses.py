"""Losses equal the worked numbers of their docstrings and sentence-transformers' own, gradients included."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchHardTripletLossDistanceFunction,
    BatchSemiHardTripletLoss,
    CachedGISTEmbedLoss,
    ContrastiveLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    DistillKLDivLoss,
    GISTEmbedLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
    OnlineContrastiveLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from sentence_transformers.util import pairwise_cos_sim
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from embedsmith.errors import ConfigurationError, InputError
from embedsmith.losses import (
    angle_similarity,
    batch_triplet,
    contrastive,
    cosent,
    cosine_similarity,
    distill_kl,
    false_negatives,
    infonce,
    logistic,
    margin_mse,
    matryoshka,
    online_contrastive,
    triplet,
)

SEEDS = st.integers(0, 10_000)
LABELS = st.lists(st.integers(0, 1), min_size=1, max_size=12)
SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=10)
examples = partial(settings, deadline=None)


class Given(torch.nn.Sequential):
    """What sentence-transformers takes for a model: returns the rows that its features hold under `key`."""

    def __init__(self, key: str = "rows", dimension: int = 8) -> None:
        super().__init__(torch.nn.Identity())
        self.key, self.dimension, self.max_seq_length = key, dimension, 1
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}


def raw_rows(count: int, seed: int, dimension: int = 8) -> Tensor:
    """Rows of any length: sentence-transformers' losses divide by it, ours take unit rows."""
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def repeated_rows(distinct: int, count: int, seed: int) -> Tensor:
    """`count` rows of which many are equal: ties and distances of zero."""
    rows = raw_rows(distinct, seed).detach()
    return rows[torch.arange(count) % distinct].clone().requires_grad_()


def unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    return (unit(left) * unit(right)).sum(dim=1)


def angle(left: Tensor, right: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """The loss that `objectives` puts together from the two."""
    return cosent(angle_similarity(left, right), scores, temperature=temperature)


def gradient(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


def assert_equal(ours: Tensor, reference: Tensor, *inputs: Tensor) -> None:
    """Same loss and same gradient with respect to every input, to 1e-5."""
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradient(ours, *inputs), gradient(reference, *inputs), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def assert_free(loss: Tensor, *inputs: Tensor) -> None:
    """Zero, with gradients of zero."""
    assert loss.item() == 0
    assert all((row == 0).all() for row in gradient(loss, *inputs))


# In-batch negatives.


def test_infonce_of_two_candidates_at_cosine_one_and_zero() -> None:
    anchor, candidates = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    assert infonce(anchor, candidates, torch.tensor([0]), temperature=1).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("seed", range(3))
def test_infonce_equals_multiple_negatives_ranking(seed: int, rows: int, negatives: int) -> None:
    columns = [raw_rows(rows, seed * 10 + column) for column in range(2 + negatives)]
    reference = MultipleNegativesRankingLoss(model=None, scale=20.0).compute_loss_from_embeddings(columns, None)
    ours = infonce(unit(columns[0]), unit(torch.cat(columns[1:])), torch.arange(rows), temperature=1 / 20)
    assert_equal(ours, reference, *columns)


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_infonce_in_both_roles_equals_the_symmetric_loss(seed: int, negatives: int) -> None:
    columns = [raw_rows(6, seed * 10 + column) for column in range(2 + negatives)]
    anchors, candidates, positive = unit(columns[0]), unit(torch.cat(columns[1:])), torch.arange(6)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        symmetric = MultipleNegativesSymmetricRankingLoss(model=None, scale=20.0)
    forwards = infonce(anchors, candidates, positive)
    backwards = infonce(candidates[positive], anchors, torch.arange(6))
    reference = symmetric.compute_loss_from_embeddings(columns, None)
    assert_equal((forwards + backwards) / 2, reference, *columns)


def test_an_excluded_candidate_does_not_count_but_the_positive_always_does() -> None:
    anchors, candidates = unit(raw_rows(3, 1)), unit(raw_rows(5, 2))
    positive = torch.arange(3)
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[:, 4] = True
    excluded[0, 0] = True  # its own positive: stays
    assert infonce(anchors, candidates, positive, excluded=excluded).item() == pytest.approx(
        infonce(anchors, candidates[:4], positive).item(), abs=1e-6
    )


def test_infonce_is_zero_where_every_other_candidate_is_excluded_or_no_anchor_is_given() -> None:
    anchors, candidates = raw_rows(3, 1), raw_rows(3, 2)
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert_free(infonce(anchors, candidates, torch.arange(3), excluded=everything), anchors, candidates)
    assert_free(infonce(anchors[:0], candidates, torch.arange(0)), anchors, candidates)


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_parts_of_a_batch_add_up_to_the_whole(size: int) -> None:
    anchors, candidates = raw_rows(7, 1), raw_rows(9, 2)
    positive = torch.tensor([0, 1, 2, 2, 8, 5, 6])
    excluded = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) > 0.6
    whole = infonce(unit(anchors), unit(candidates), positive, excluded=excluded)
    parts = [
        infonce(
            unit(anchors[start : start + size]),
            unit(candidates),
            positive[start : start + size],
            excluded=excluded[start : start + size],
            reduction="sum",
        )
        for start in range(0, 7, size)
    ]
    assert_equal(torch.stack(parts).sum() / 7, whole, anchors, candidates)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="none"):
        infonce(torch.eye(2), torch.eye(2), torch.arange(2), reduction="none")


@pytest.mark.parametrize(
    ("margin", "relative", "masked"),
    [(0.0, False, [1]), (0.05, False, [1, 2]), (0.05, True, [1, 2]), (0.4, True, [1, 2, 3])],
)
def test_false_negatives_are_those_above_the_positive_less_the_margin(
    margin: float, relative: bool, masked: list[int]
) -> None:
    similarities = torch.tensor([[0.8, 0.85, 0.78, 0.5]])
    mask = false_negatives(similarities, torch.tensor([0]), margin=margin, relative=relative)
    assert mask.nonzero()[:, 1].tolist() == masked


def test_a_relative_margin_masks_more_below_zero_too() -> None:
    similarities = torch.tensor([[-0.5, -0.52, -0.6]])
    assert false_negatives(similarities, torch.tensor([0]), margin=0.1, relative=True).tolist() == [
        [False, True, False]
    ]


@examples(max_examples=40)
@given(
    seed=SEEDS,
    rows=st.integers(1, 6),
    negatives=st.integers(0, 2),
    margin=st.sampled_from([0.0, 0.05, 0.3]),
    relative=st.booleans(),
    repeated=st.booleans(),
)
def test_infonce_without_false_negatives_equals_gist(
    seed: int, rows: int, negatives: int, margin: float, relative: bool, repeated: bool
) -> None:
    make = partial(repeated_rows, 2) if repeated else raw_rows
    columns = [make(rows, seed * 10 + column) for column in range(2 + negatives)]
    guides = [make(rows, seed * 10 + column + 5).detach() for column in range(2 + negatives)]
    similarities = torch.cosine_similarity(guides[0][:, None], torch.cat(guides[1:])[None], dim=-1)
    excluded = false_negatives(similarities, torch.arange(rows), margin=margin, relative=relative)
    ours = infonce(unit(columns[0]), unit(torch.cat(columns[1:])), torch.arange(rows), excluded=excluded)
    options = {
        "temperature": 0.05,
        "margin": margin,
        "margin_strategy": "relative" if relative else "absolute",
        "contrast_anchors": False,
        "contrast_positives": False,
    }
    cached = CachedGISTEmbedLoss(Given(), Given("guide"), mini_batch_size=2, **options)
    assert_equal(ours, cached.calculate_loss([[row] for row in columns], [[row] for row in guides]), *columns)
    if negatives < 2:
        features = [{"rows": row, "guide": guide} for row, guide in zip(columns, guides, strict=True)]
        assert_equal(ours, GISTEmbedLoss(Given(), Given("guide"), **options)(features, None), *columns)


# Labelled pairs and scored pairs.


def test_contrastive_of_one_positive_and_one_negative() -> None:
    assert contrastive(torch.tensor([0.8, 0.9]), torch.tensor([1, 0])).item() == pytest.approx(0.05)


@examples(max_examples=40)
@given(seed=SEEDS, labels=LABELS, margin=st.sampled_from([0.2, 0.5, 1.5]))
def test_contrastive_equals_sentence_transformers(seed: int, labels: list[int], margin: float) -> None:
    left, right, target = raw_rows(len(labels), seed), raw_rows(len(labels), seed + 1), torch.tensor(labels)
    reference = ContrastiveLoss(model=None, margin=margin).compute_loss_from_embeddings([left, right], target)
    assert_equal(contrastive(cosines(left, right), target, margin=margin), reference, left, right)


def test_online_contrastive_counts_only_the_hard_pairs() -> None:
    similarities, labels = torch.tensor([0.9, 0.5, 0.7, 0.1]), torch.tensor([1, 1, 0, 0])
    assert online_contrastive(similarities, labels).item() == pytest.approx(0.29)


@examples(max_examples=60)
@given(seed=SEEDS, labels=LABELS)
def test_online_contrastive_equals_sentence_transformers(seed: int, labels: list[int]) -> None:
    left, right, target = raw_rows(len(labels), seed), raw_rows(len(labels), seed + 1), torch.tensor(labels)
    reference = OnlineContrastiveLoss(model=None, margin=0.5).compute_loss_from_embeddings([left, right], target)
    assert_equal(online_contrastive(cosines(left, right), target, margin=0.5), reference, left, right)


def test_cosent_of_one_wrong_order() -> None:
    loss = cosent(torch.tensor([0.8, 0.2]), torch.tensor([0, 1]), temperature=1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.6)))


@examples(max_examples=40)
@given(seed=SEEDS, scores=SCORES)
def test_cosent_equals_sentence_transformers(seed: int, scores: list[float]) -> None:
    left, right, target = raw_rows(len(scores), seed), raw_rows(len(scores), seed + 1), torch.tensor(scores)
    reference = CoSENTLoss(model=None, scale=20.0).compute_loss_from_embeddings([left, right], target)
    assert_equal(cosent(cosines(left, right), target, temperature=1 / 20), reference, left, right)


def plain_cosent(similarities: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """The formula as it is written, over all P² pairs of rows."""
    differences = (similarities[:, None] - similarities[None, :]) / temperature
    wrong = differences[scores[:, None] < scores[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)


@pytest.mark.parametrize("grades", [2, 7, 3000])
def test_cosent_of_thousands_of_pairs_is_the_plain_formula(grades: int) -> None:
    generator = torch.Generator().manual_seed(grades)
    similarities = (torch.rand(3000, generator=generator) * 2 - 1).requires_grad_()
    scores = torch.randint(grades, (3000,), generator=generator)
    assert_equal(cosent(similarities, scores), plain_cosent(similarities, scores, 0.05), similarities)


def test_cosent_of_the_pairs_of_one_large_row_takes_memory_that_grows_with_the_pairs() -> None:
    similarities = torch.linspace(-1, 1, 60_300, requires_grad=True)  # 200 positives and 200 negatives of one anchor
    labels = (torch.arange(60_300) % 3 == 0).float()
    widest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cosent(similarities, labels)
    (slopes,) = gradient(loss, similarities)
    assert widest <= 60_301
    # Far from the border all of the loss is one pair: the farthest positive against the nearest negative.
    alike, others = similarities[labels == 1], similarities[labels == 0]
    terms = torch.logsumexp(others.double() / 0.05, 0) + torch.logsumexp(-alike.double() / 0.05, 0)
    assert loss.item() == pytest.approx(terms.item(), abs=1e-4)
    assert slopes[labels == 1].sum().item() == pytest.approx(-20, abs=1e-4)


def test_cosine_similarity_is_the_mean_squared_error() -> None:
    assert cosine_similarity(torch.tensor([0.8, 0.2]), torch.tensor([1, 0])).item() == pytest.approx(0.04)


@examples(max_examples=30)
@given(seed=SEEDS, scores=SCORES)
def test_cosine_similarity_equals_sentence_transformers(seed: int, scores: list[float]) -> None:
    left, right, target = raw_rows(len(scores), seed), raw_rows(len(scores), seed + 1), torch.tensor(scores)
    reference = CosineSimilarityLoss(model=None).compute_loss_from_embeddings([left, right], target)
    assert_equal(cosine_similarity(cosines(left, right), target), reference, left, right)


def test_angle_of_one_wrong_order() -> None:
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    loss = angle(left, right, torch.tensor([0, 1]), temperature=1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.8)))


@examples(max_examples=40)
@given(seed=SEEDS, scores=SCORES, sign=st.sampled_from([None, 1, -1]))
def test_angle_equals_sentence_transformers(seed: int, scores: list[float], sign: int | None) -> None:
    left, target = raw_rows(len(scores), seed), torch.tensor(scores)
    right = raw_rows(len(scores), seed + 1) if sign is None else (sign * left.detach()).requires_grad_()
    reference = AnglELoss(model=None, scale=20.0).compute_loss_from_embeddings([left, right], target)
    assert_equal(angle(unit(left), unit(right), target, temperature=1 / 20), reference, left, right)


def test_angle_of_rows_of_zeros_has_finite_gradients() -> None:
    left, right = torch.zeros(2, 4, requires_grad=True), raw_rows(2, 1, 4)
    loss = angle(left, unit(right), torch.tensor([0, 1]))
    assert all(row.isfinite().all() for row in gradient(loss, left, right))


def test_angle_of_odd_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="7 dimensions"):
        angle(raw_rows(2, 1, 7), raw_rows(2, 2, 7), torch.tensor([0, 1]))


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


@pytest.mark.parametrize(
    "loss", [contrastive, online_contrastive, cosent, cosine_similarity, logistic, margin_mse, triplet]
)
def test_a_batch_without_pairs_is_free(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    similarities = torch.zeros(0, requires_grad=True)
    assert_free(loss(similarities, torch.zeros(0)), similarities)


@pytest.mark.parametrize("loss", [contrastive, cosine_similarity, margin_mse, triplet])
def test_a_column_against_a_row_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match=r"\(3,\) and \(3, 1\)"):
        loss(torch.zeros(3), torch.zeros(3, 1))


# Triplets.


def test_triplet_counts_what_is_within_the_margin() -> None:
    assert triplet(torch.tensor([0.6, 0.9]), torch.tensor([0.4, 0.1])).item() == pytest.approx(0.15)


@examples(max_examples=30)
@given(seed=SEEDS, rows=st.integers(1, 8), margin=st.sampled_from([0.1, 0.5, 1.5]))
def test_triplet_equals_sentence_transformers(seed: int, rows: int, margin: float) -> None:
    columns = [raw_rows(rows, seed + column) for column in range(3)]
    reference = TripletLoss(None, TripletDistanceMetric.COSINE, margin).compute_loss_from_embeddings(columns, None)
    ours = triplet(cosines(columns[0], columns[1]), cosines(columns[0], columns[2]), margin=margin)
    assert_equal(ours, reference, *columns)


BATCH_TRIPLETS = {"hard": BatchHardTripletLoss, "semi_hard": BatchSemiHardTripletLoss, "all": BatchAllTripletLoss}


@pytest.mark.parametrize(("mining", "expected"), [("hard", 0.4 / 3), ("semi_hard", 0.15), ("all", 0.3)])
def test_batch_triplet_of_two_mates_and_a_stranger(mining: str, expected: float) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    assert batch_triplet(rows, torch.tensor([0, 0, 1]), mining=mining).item() == pytest.approx(expected)


@pytest.mark.parametrize("mining", BATCH_TRIPLETS)
@examples(max_examples=60)
@given(
    seed=SEEDS,
    classes=st.lists(st.integers(0, 3), min_size=3, max_size=12).filter(lambda row: 1 < len(set(row)) < len(row)),
    margin=st.sampled_from([0.1, 0.5, 1.5]),
)
def test_batch_triplet_equals_sentence_transformers(mining: str, seed: int, classes: list[int], margin: float) -> None:
    rows, target = raw_rows(len(classes), seed), torch.tensor(classes)
    distance = BatchHardTripletLossDistanceFunction.cosine_distance
    reference = BATCH_TRIPLETS[mining](None, distance, margin).compute_loss_from_embeddings([rows], target)
    assert_equal(batch_triplet(unit(rows), target, margin=margin, mining=mining), reference, rows)


@pytest.mark.parametrize("mining", BATCH_TRIPLETS)
@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_batch_triplet_of_equal_rows_equals_sentence_transformers(mining: str, distinct: int) -> None:
    # Which of two equal rows takes the gradient is arbitrary: what counts is what reaches their common source.
    source, target = raw_rows(distinct, 5), torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    rows = source[torch.arange(8) % distinct]
    distance = BatchHardTripletLossDistanceFunction.cosine_distance
    reference = BATCH_TRIPLETS[mining](None, distance, 0.5).compute_loss_from_embeddings([rows], target)
    assert_equal(batch_triplet(unit(rows), target, margin=0.5, mining=mining), reference, source)


@pytest.mark.parametrize("mining", BATCH_TRIPLETS)
@pytest.mark.parametrize("classes", [[0, 0, 0], [0, 1, 2], [0], []])
def test_a_batch_without_a_triplet_is_free(mining: str, classes: list[int]) -> None:
    rows = raw_rows(len(classes), 1)
    target = torch.tensor(classes, dtype=torch.int64)
    assert_free(batch_triplet(unit(rows), target, margin=2, mining=mining), rows)


@pytest.mark.parametrize("mining", BATCH_TRIPLETS)
def test_a_batch_whose_classes_are_far_apart_is_free(mining: str) -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    assert_free(batch_triplet(rows, torch.tensor([0, 0, 1, 1]), mining=mining), rows)


def test_an_unknown_mining_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="soft"):
        batch_triplet(torch.eye(2), torch.tensor([0, 1]), mining="soft")


# Distillation.


def test_margin_mse_is_the_mean_squared_error_of_margins() -> None:
    assert margin_mse(torch.tensor([0.5, 0.1]), torch.tensor([0.3, 0.5])).item() == pytest.approx(0.1)


@pytest.mark.parametrize("negatives", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 5])
def test_margin_mse_equals_sentence_transformers(rows: int, negatives: int) -> None:
    columns = [raw_rows(rows, column) for column in range(2 + negatives)]
    teacher = raw_rows(rows, 99, negatives).detach()
    loss = MarginMSELoss(model=None, similarity_fct=pairwise_cos_sim)
    positive = cosines(columns[0], columns[1])
    margins = torch.stack([positive - cosines(columns[0], column) for column in columns[2:]], dim=1)
    assert_equal(margin_mse(margins, teacher), loss.compute_loss_from_embeddings(columns, teacher), *columns)


def test_distill_kl_of_two_candidates() -> None:
    teacher, lists = torch.tensor([[math.log(3), 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distill_kl(torch.zeros(1, 2), teacher, lists).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.1308, abs=5e-5)


@examples(max_examples=30)
@given(seed=SEEDS, rows=st.integers(1, 6), candidates=st.integers(2, 5), temperature=st.sampled_from([0.05, 0.5, 1, 2]))
def test_distill_kl_equals_sentence_transformers(seed: int, rows: int, candidates: int, temperature: float) -> None:
    columns = [raw_rows(rows, seed * 10 + column) for column in range(1 + candidates)]
    teacher = raw_rows(rows, seed + 1, candidates).detach()
    loss = DistillKLDivLoss(model=None, similarity_fct=pairwise_cos_sim, temperature=temperature)
    scores = torch.stack([cosines(columns[0], column) for column in columns[1:]], dim=1)
    ours = distill_kl(scores, teacher, torch.ones_like(scores, dtype=torch.bool), temperature=temperature)
    assert_equal(ours, loss.compute_loss_from_embeddings(columns, teacher), *columns)


def test_distill_kl_of_lists_of_different_lengths_is_the_mean_of_each_alone() -> None:
    scores, teacher, lengths = raw_rows(4, 1, 5), raw_rows(4, 2, 5).detach(), [5, 2, 1, 3]
    lists = torch.arange(5) < torch.tensor(lengths)[:, None]
    alone = [
        distill_kl(scores[row : row + 1, :length], teacher[row : row + 1, :length], lists[row : row + 1, :length])
        for row, length in enumerate(lengths)
    ]
    assert_equal(distill_kl(scores, teacher, lists), torch.stack(alone).mean(), scores)


def test_distill_kl_ignores_what_is_outside_the_lists() -> None:
    scores = torch.tensor([[0.1, 0.7, math.nan], [math.inf, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.3, -math.inf, math.nan], [math.nan, 0.0, 1.0]])
    loss = distill_kl(scores, teacher, torch.tensor([[True, True, False], [False, False, False]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.6)))  # all of the teacher's weight is on the first
    (slope,) = gradient(loss, scores)
    assert slope[0, 0] < 0 < slope[0, 1]
    assert slope[0, 2] == 0
    assert (slope[1] == 0).all()


def test_distill_kl_without_candidates_is_free() -> None:
    scores = raw_rows(2, 1, 3)
    assert_free(distill_kl(scores, torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)), scores)


def test_a_teacher_learns_nothing_from_its_student() -> None:
    student, teacher = raw_rows(3, 1, 4), raw_rows(3, 2, 4)
    lists = torch.ones(3, 4, dtype=torch.bool)
    (margin_mse(student, teacher) + distill_kl(student, teacher, lists)).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


# Matryoshka.


def first_two(rows: Tensor) -> Tensor:
    return (rows[0] * rows[1]).sum()


def test_matryoshka_of_the_cosine_of_two_rows() -> None:
    rows = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    assert matryoshka(rows, first_two, dimensions=(2, 1), weights=(1, 0.5)).item() == pytest.approx(1.46)


PAIR_SCORES = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.25])
INNER = {
    "multiple negatives": (
        lambda model: MultipleNegativesRankingLoss(model),
        lambda rows: infonce(rows[:6], rows[6:], torch.arange(6)),
    ),
    "cosent": (
        lambda model: CoSENTLoss(model),
        lambda rows: cosent((rows[:6] * rows[6:]).sum(dim=1), PAIR_SCORES),
    ),
    "angle": (lambda model: AnglELoss(model), lambda rows: angle(rows[:6], rows[6:], PAIR_SCORES)),
    "cosine similarity": (
        lambda model: CosineSimilarityLoss(model),
        lambda rows: cosine_similarity((rows[:6] * rows[6:]).sum(dim=1), PAIR_SCORES),
    ),
    "contrastive": (
        lambda model: ContrastiveLoss(model),
        lambda rows: contrastive((rows[:6] * rows[6:]).sum(dim=1), PAIR_SCORES),
    ),
}


@pytest.mark.filterwarnings("ignore:ContrastiveLoss expects binary labels")
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 0.25]])
def test_matryoshka_equals_sentence_transformers(inner: str, weights: list[float] | None) -> None:
    reference, ours = INNER[inner]
    left, right, model = raw_rows(6, 1), raw_rows(6, 2), Given()
    theirs = MatryoshkaLoss(model, reference(model), [8, 4, 2], weights)([{"rows": left}, {"rows": right}], PAIR_SCORES)
    mine = matryoshka(unit(torch.cat([left, right])), ours, dimensions=[8, 4, 2], weights=weights)
    assert_equal(mine, theirs, left, right)


def test_matryoshka_of_rows_that_start_with_zeros_keeps_gradients_small() -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    (slope,) = gradient(matryoshka(rows, first_two, dimensions=[1]), rows)
    assert slope.abs().max() <= 1


@pytest.mark.parametrize(
    ("dimensions", "weights", "named"),
    [([8, 9], None, "9"), ([0], None, "0"), ([], None, "dimensions"), ([8, 4], [1.0], "1 matryoshka weights")],
)
def test_matryoshka_refuses_what_the_rows_do_not_have(
    dimensions: list[int], weights: list[float] | None, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        matryoshka(raw_rows(2, 1), first_two, dimensions=dimensions, weights=weights)
