"""Which loss takes which examples, what follows from the data, and parts that add up to the loss of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedsmith import losses
from embedsmith.batches import Source, collect, collect_rows, contrast, list_up, localize
from embedsmith.config import TrainingConfig
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.objectives import (
    LOSSES,
    choose_losses,
    describe_rows,
    free_sources,
    read_source_spec,
    settle_losses,
)
from embedsmith.parts import _PARTS, _turn, parts_of

DOCS = Path(__file__).parents[1] / "docs" / "training.md"
PAIRS = [PositivePair("a", "b"), PositivePair("c", "d")]
LABELLED = [LabelledPair("a", "b", 1), LabelledPair("a", "c", 0)]


@pytest.mark.parametrize(
    ("examples", "loss"),
    [
        (PAIRS, "infonce"),
        ([Triplet("a", "b", ("c",))], "infonce"),
        (LABELLED, "logistic"),
        ([ScoredPair("a", "b", 3.5)], "cosent"),
        ([LabelledText("a", "x")], "batch_triplet"),
        ([Triplet("a", "b", ("c",), scores=(0.9, 0.1))], "margin_mse"),
    ],
)
def test_the_loss_follows_from_the_data(examples: Sequence[Example], loss: str) -> None:
    chosen, reason = choose_losses(examples)
    assert dict(chosen) == {loss: 1.0}
    assert reason


@pytest.mark.parametrize(
    ("examples", "loss", "fitting"),
    [
        (PAIRS, "logistic", "infonce"),  # without negatives it would draw everything to one point
        (PAIRS, "contrastive", "infonce"),
        ([ScoredPair("a", "b", 1.0)], "infonce", "cosent"),
        ([LabelledText("a", "x")], "triplet", "batch_triplet"),
        ([Triplet("a", "b", ("c",))], "distill_kl", "triplet"),
    ],
)
def test_a_loss_that_cannot_use_the_examples_says_which_ones_can(
    examples: Sequence[Example], loss: str, fitting: str
) -> None:
    with pytest.raises(InputError, match=f"the loss {loss} cannot use mine") as told:
        settle_losses([Source(tuple(examples), "mine")], {loss: 1.0})
    assert fitting in told.value.action


SCORED = [ScoredPair("e", "f", 3.0), ScoredPair("g", "h", 1.0), ScoredPair("i", "j", 2.0)]
TAUGHT = [Triplet(f"q{n}", f"p{n}", (f"n{n}", f"m{n}"), scores=(0.9, 0.6, 0.2 + n / 10)) for n in range(4)]


@pytest.mark.parametrize(
    ("examples", "loss", "found", "action"),
    [
        ([*LABELLED, *SCORED], "contrastive", "3 of its 5 rows are 3 scored pairs", "use cosine_similarity or cosent"),
        ([*LABELLED, *SCORED], "logistic", "3 of its 5 rows are 3 scored pairs", "FILE:LOSS"),
        ([*PAIRS, *SCORED], "infonce", "3 of its 5 rows are 3 scored pairs", "no losses"),
        ([*TAUGHT, Triplet("a", "b", ("c",))], "distill_kl", "1 of its 5 rows are 1 triplets", "use logistic"),
        ([*TAUGHT, Triplet("a", "b", ("c",))], "margin_mse", "1 of its 5 rows are 1 triplets", "use logistic"),
        ([*TAUGHT, Triplet("a", "b", (), scores=(0.9,))], "distill_kl", "1 of its 5 rows are 1 positive pairs", "use"),
        ([*LABELLED, LabelledText("a", "x")], "cosent", "1 of its 3 rows are 1 texts with classes", "FILE:LOSS"),
        ([LabelledText("a", "x"), *SCORED], "batch_triplet", "3 of its 4 rows are 3 scored pairs", "FILE:LOSS"),
    ],
)
def test_a_source_with_rows_that_its_loss_cannot_use_is_refused(
    examples: Sequence[Example], loss: str, found: str, action: str
) -> None:
    with pytest.raises(InputError, match=f"the loss {loss} cannot use mine: {found}") as told:
        settle_losses([Source(tuple(examples), "mine", {loss: 1.0})], {})
    assert action in told.value.action
    assert told.value.expected == LOSSES[loss].formats


def test_rows_of_several_kinds_are_parted_where_the_data_choose() -> None:
    settled, _ = settle_losses([Source((*TAUGHT, *SCORED, *PAIRS))], {})
    assert [(dict(part.losses), len(part.examples)) for part in settled] == [
        ({"margin_mse": 1.0}, 4),
        ({"cosent": 1.0}, 3),
        ({"infonce": 1.0}, 2),
    ]


def unit_rows(count: int, dimension: int = 8) -> torch.Tensor:
    drawn = torch.randn(count, dimension, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(drawn, dim=1).requires_grad_()


def loss_of(examples: Sequence[Example], loss: str, embeddings: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of all examples in one batch, of embeddings that depend on nothing but the number of the text."""
    settled, _ = settle_losses([Source(tuple(examples))], {loss: 1.0})
    texts, rows = localize(collect(settled).rows)
    rows_of_texts = unit_rows(len(texts)) if embeddings is None else embeddings
    parts = parts_of(rows, [part.losses for part in settled], TrainingConfig())
    return torch.stack([part(rows_of_texts) for part in parts]).sum()


@pytest.mark.parametrize("loss", ["logistic", "online_contrastive", "contrastive"])
def test_losses_of_labels_read_the_roles_of_a_triplet_whatever_its_teacher_says(loss: str) -> None:
    plain = [replace(triplet, scores=()) for triplet in TAUGHT]
    assert loss_of(TAUGHT, loss).item() == pytest.approx(loss_of(plain, loss).item(), abs=1e-6)
    assert loss_of(TAUGHT, loss).item() > 0.01


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_scores_beside_labels_are_brought_to_their_scale(loss: str) -> None:
    settled, notes = settle_losses([Source((*LABELLED, *SCORED), "mine")], {loss: 1.0})
    assert [example.score for example in settled[0].examples if isinstance(example, ScoredPair)] == [1, 0, 0.5]
    assert "scores of mine run from 1 to 3, cosines and labels to 1: brought to 0 … 1" in notes
    alone, _ = settle_losses([Source(tuple(SCORED), "mine")], {loss: 1.0})
    assert alone[0].examples == tuple(SCORED)  # the order is all that counts


@pytest.mark.parametrize("loss", ["cosent", "angle", "logistic", "triplet"])
def test_pairs_compared_in_slices_have_the_loss_and_the_gradient_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    rows: list[Example] = [LabelledPair("a", f"p{n}", int(n % 2)) for n in range(9)]
    whole_rows, cut_rows = unit_rows(10), unit_rows(10)
    whole = loss_of(rows, loss, whole_rows)
    monkeypatch.setattr("embedsmith.parts.CHUNK", 8 * 5)  # five pairs
    cut = loss_of(rows, loss, cut_rows)
    assert cut.item() == pytest.approx(whole.item(), abs=1e-6)
    whole.backward()  # type: ignore[no-untyped-call]
    cut.backward()  # type: ignore[no-untyped-call]
    assert whole_rows.grad is not None
    torch.testing.assert_close(cut_rows.grad, whole_rows.grad, atol=1e-6, rtol=0)


def test_one_anchor_with_hundreds_of_answers_keeps_a_step_small() -> None:
    answers: list[Example] = [LabelledPair("a", f"p{n}", 1) for n in range(200)]
    answers += [LabelledPair("a", f"n{n}", 0) for n in range(200)]
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    embeddings = unit_rows(401, 256)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(answers, "angle", embeddings)
    assert sum(held.values()) < 12 * 2**20  # 60,300 pairs: as rows twice 62 MB, as a square 14 GB
    loss.backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_what_the_losses_leave_out_of_the_rows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Example] = [LabelledPair("a", f"p{n}", n % 2) for n in range(20)]
    rows += [LabelledPair("b", "c", 1), LabelledPair("d", "e", 0), *LABELLED[:1]]
    data = collect([Source(tuple(rows)), Source(tuple(SCORED))])
    monkeypatch.setattr("embedsmith.objectives.PAIRS", 100)
    names = ["mine", "scores"]
    assert describe_rows(data.rows, [{"triplet": 1.0}, {"cosent": 1.0}], names) == (
        "mine: 1 rows have more than 100 pairs (up to 186); those of the anchor count, and a drawn part of the others",
        "mine: 2 of 3 anchors have no positive or no negative; triplet skips them",
    )
    assert describe_rows(data.rows, [{"infonce": 1.0}, {"cosent": 1.0}], names) == ()


def test_only_losses_with_negatives_from_the_batch_bind_its_rows() -> None:
    losses = [{"logistic": 1.0}, {"logistic": 1.0, "infonce": 0.5}, {"distill_kl": 1.0}, {"infonce": 1.0}]
    assert free_sources(losses) == {0, 2}


# A teacher's scores


def targets_of(scores: Sequence[tuple[float, ...]], temperature: float) -> tuple[np.ndarray, str]:
    """The shares that distill_kl asks for, and what is printed about them."""
    rows = tuple(Triplet(f"q{n}", "p", tuple("nmokl"[: len(own) - 1]), scores=own) for n, own in enumerate(scores))
    settled, notes = settle_losses([Source(rows, "mine")], {"distill_kl": 1.0}, temperature=temperature)
    given = list_up(collect(settled).rows).teacher / temperature
    shares = np.exp(given - given.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True), next(note for note in notes if note.startswith("teacher"))


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.05, 1.0])
def test_a_cross_encoders_logits_are_the_target_as_they_are(temperature: float) -> None:
    logits = [(10.0, 9.0, -10.0), (8.0, 7.5, 3.0), (2.0, 4.0, -9.0)]
    shares, note = targets_of(logits, temperature)
    expected = torch.tensor(logits).softmax(dim=1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert shares[0, 1] > 0.2  # at 1/20 of the temperature it would be e⁻²⁰
    assert note == "teacher of mine: lists 19.3 wide, wider than cosines: logits, at temperature 1"


def test_cosines_of_a_teacher_share_the_students_temperature() -> None:
    shares, note = targets_of([(0.9, 0.8, 0.1), (0.5, 0.6, 0.55)], 0.05)
    np.testing.assert_allclose(shares[0, 1] / shares[0, 0], np.exp(-0.1 / 0.05), rtol=1e-4)
    assert note == "teacher of mine: lists 0.765 wide, as cosines are: shares temperature 0.05"


def test_grades_that_would_be_one_hot_get_a_temperature_of_their_own_and_one_wild_list_does_not_decide() -> None:
    shares, note = targets_of([(100.0, 90.0, 0.0)] * 40 + [(1e6, 0.0, 0.0)], 0.05)
    np.testing.assert_allclose(shares[0, 1] / shares[0, 0], np.exp(-2), rtol=1e-4)
    assert note == "teacher of mine: lists 100 wide, wider than cosines: logits, at temperature 5"


def test_what_was_fitted_for_another_loss_is_on_the_scale_of_cosines() -> None:
    rows = (Triplet("q", "p", ("n",), scores=(10.0, -10.0)),)
    settled, notes = settle_losses([Source(rows, "mine")], {"distill_kl": 1.0, "margin_mse": 1.0})
    assert settled[0].examples == (Triplet("q", "p", ("n",), scores=(1.0, 0.0)),)
    assert any("as cosines are" in note for note in notes)


# Weights of parts


def test_the_weight_of_a_source_of_several_kinds_is_shared_by_their_rows() -> None:
    labelled = [LabelledPair("a", f"p{n}", n % 2) for n in range(6)]  # one anchor: one row
    texts = [LabelledText(f"t{n}", "xy"[n % 2]) for n in range(3)]
    settled, _ = settle_losses(
        [Source((*labelled, *texts), "A", weight=1.0), Source(tuple(SCORED), "B", weight=1.0)], {}
    )
    assert [(part.name, part.weight) for part in settled] == [("A (pairs)", 0.25), ("A (classes)", 0.75), ("B", 1.0)]


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, fact in LOSSES.items():
        assert f"| `{name}` | {fact.formats} | {fact.source} |" in text


@pytest.mark.parametrize(
    ("spec", "read"),
    [
        ("a.jsonl", ("a.jsonl", {}, 0.0)),
        ("a.jsonl:cosent", ("a.jsonl", {"cosent": 1.0}, 0.0)),
        ("a.jsonl:infonce:2.5", ("a.jsonl", {"infonce": 1.0}, 2.5)),
    ],
)
def test_sources_are_named_with_loss_and_weight(spec: str, read: tuple[str, dict[str, float], float]) -> None:
    assert read_source_spec(spec) == read


@pytest.mark.parametrize("spec", ["a.jsonl:cosnet", "a.jsonl:cosent:x", "a.jsonl:cosent:-1", "a:b:c:d"])
def test_what_names_no_loss_is_refused(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a file nor one with a loss"):
        read_source_spec(spec)


def test_a_file_with_colons_in_its_name_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a:infonce"
    file.touch()
    assert read_source_spec(str(file)) == (str(file), {}, 0.0)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("symmetric", [False, True])
def test_chunks_of_a_contrast_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int, symmetric: bool) -> None:
    examples = [Triplet(f"a{n}", f"b{n}", tuple(f"c{n}{m}" for m in range(n % 3))) for n in range(9)]
    texts, rows = localize(collect_rows(examples).rows)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(len(texts), 8, generator=generator), dim=1).requires_grad_()
    found = contrast(rows)
    anchors, candidates = embeddings[found.anchors], embeddings[found.candidates]
    whole = losses.infonce(anchors, candidates, torch.from_numpy(found.positive_of))
    if symmetric:
        back = losses.infonce(candidates[found.positive_of], anchors, torch.arange(9))
        whole = (whole + back) / 2
    monkeypatch.setattr("embedsmith.parts.CHUNK", chunk)
    parts = parts_of(rows, [{"infonce": 1.0}], TrainingConfig(symmetric=symmetric))
    assert len(parts) > 1 or chunk == 10_000
    total = torch.stack([part(embeddings) for part in parts]).sum()
    assert total.item() == pytest.approx(whole.item(), abs=1e-5)
    ours, reference = (torch.autograd.grad(value, embeddings, retain_graph=True)[0] for value in (total, whole))
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def test_two_anchors_with_one_positive_are_no_negatives_of_each_other_on_the_way_back() -> None:
    _, rows = localize(
        collect_rows([PositivePair("a", "same"), PositivePair("b", "same"), PositivePair("c", "d")]).rows
    )
    back = _turn(contrast(rows))
    assert back.excluded.tolist() == [[0, 1], [1, 0]]


def test_every_loss_that_is_known_can_be_computed() -> None:
    assert _PARTS.keys() == LOSSES.keys()
