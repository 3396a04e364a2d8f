"""Which loss takes which examples, what follows from the data, and parts that add up to the loss of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from embedsmith import losses, objectives
from embedsmith.batches import Source, collect_rows, contrast, localize
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.objectives import LOSSES, choose_losses, parts_of, read_source_spec, settle_losses
from embedsmith.optimization import TrainingConfig

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
    monkeypatch.setattr(objectives, "CHUNK", chunk)
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
    back = objectives._turn(contrast(rows))
    assert back.excluded.tolist() == [[0, 1], [1, 0]]
