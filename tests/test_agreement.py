"""The trial before a run: packed texts are taken where they are what padded ones are, and padded everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedsmith import packing
from embedsmith.adapters import LoraConfig, add_lora
from embedsmith.agreement import compare
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig
from embedsmith.decoders import BaseOptions
from embedsmith.devices import Alone
from embedsmith.examples import PositivePair
from embedsmith.model import DEMO_MODEL, load_network
from embedsmith.networks import run_block, tokenize_for
from embedsmith.optimization import Progress
from embedsmith.packing import BUCKETS, Packer, find_by_trial
from embedsmith.readiness import agree_on_packer
from embedsmith.tokens import Tokens
from embedsmith.training import train
from tiny_decoders import write_decoder

TEXTS = ["a card", "how do I change my pin?", "no", "a loan at a fixed rate", "the code of my phone", "why"]
EVERY = np.arange(len(TEXTS))
Encode = Callable[[], Tensor]


@pytest.fixture
def network(tmp_path: Path) -> Any:
    return load_network(write_decoder(tmp_path / "llama", "llama"), BaseOptions(attention="eager"))


def make_padded(network: Any, tokens: Tokens) -> Encode:
    return lambda: run_block(network, tokens, EVERY, "sentence_embedding")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_demo_model_is_packed_in_either_precision(precision: Precision) -> None:
    """Six real layers, as they would be packed on a device without a kernel."""
    network = load_network(DEMO_MODEL, BaseOptions(attention="eager"))
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), EVERY, precision, [])
    assert packer is not None, reason
    assert packer.parts == []  # lean forms are a CPU's
    assert packer.last is None
    assert reason.startswith(f"texts are packed without padding, {BUCKETS}: tried on 6 of them, vectors ")


def test_the_trial_leaves_everything_as_it_was_and_answers_the_same_again(tiny_model: Path) -> None:
    network = load_network(tiny_model, BaseOptions(attention="eager"))
    add_lora(network, LoraConfig(targets="all-linear"))
    network.train()
    network[0].auto_model.embeddings.eval()  # a mode of its own
    tokens = tokenize_for(network, TEXTS)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    answers = [find_by_trial(network, tokens, EVERY, "fp32", [])[1] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].startswith("texts are packed")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


class Wrong(Packer):
    """Packs with a fault."""

    fault = ""

    def run(self, tokens: Tokens, rows: Any) -> Tensor:
        if self.fault == "raises":
            raise RuntimeError("no kernel image is available\nfor execution on this device")
        if self.fault == "raises with dropout" and self.network.training:
            raise torch.OutOfMemoryError("nothing left")
        if self.fault == "not finite with dropout" and self.network.training:
            return super().run(tokens, rows) * float("nan")
        if self.fault == "other order":
            return super().run(tokens, rows)[torch.arange(len(rows)).roll(1)]
        if self.fault == "sees ahead":
            self.causal = False
        if self.fault == "places moved":
            self.first = 3
        found = super().run(tokens, rows)
        if self.fault == "gradients lost":
            return found.detach() + 0.5 * (found - found.detach())
        return found * float("nan") if self.fault == "not finite" else found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("other order", "of what texts differ by"),
        ("sees ahead", "of what texts differ by"),
        ("gradients lost", "gradients 0.5"),
        ("not finite", "nan"),
        ("raises", "(RuntimeError: no kernel image is available)"),
        ("raises with dropout", "(OutOfMemoryError: nothing left)"),
        ("not finite with dropout", "with dropout, vectors or gradients are not finite"),
    ],
)
def test_a_packer_with_a_fault_is_not_used(
    network: Any, monkeypatch: pytest.MonkeyPatch, precision: Precision, fault: str, told: str
) -> None:
    monkeypatch.setattr(packing, "Packer", Wrong)
    monkeypatch.setattr(Wrong, "fault", fault)
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), EVERY, precision, [])
    assert packer is None
    assert reason.startswith("texts are padded: packed on this cpu, 6 of them were not what padded ones are")
    assert told in reason


def test_places_that_are_counted_wrong_are_found_where_places_are_learnt(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(tiny_model, BaseOptions(attention="eager"))
    monkeypatch.setattr(packing, "Packer", Wrong)
    monkeypatch.setattr(Wrong, "fault", "places moved")
    assert find_by_trial(network, tokenize_for(network, TEXTS), EVERY, "bf16", [])[0] is None


def test_the_fault_free_packer_of_these_tests_is_used(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "Packer", Wrong)
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), EVERY, "bf16", [])
    assert isinstance(packer, Wrong), reason


def test_vectors_that_all_lie_close_together_are_told_apart(network: Any) -> None:
    """As those of an untrained decoder do: another text's vector is at cosine .999, and still another's."""
    tokens = tokenize_for(network, TEXTS)
    padded = make_padded(network, tokens)
    unit = torch.nn.functional.normalize

    def near(encode: Encode) -> Encode:
        return lambda: unit(encode(), dim=1) + 60 * torch.nn.functional.one_hot(torch.tensor(0), 32)

    def exchange() -> Tensor:
        """Return the next text's vector with this text's gradients, so that only vectors can tell."""
        own = padded()
        return own + (own.roll(1, dims=0) - own).detach()

    cosines = (unit(near(exchange)(), dim=1) * unit(near(padded)(), dim=1)).sum(dim=1)
    assert cosines.min() > 0.999
    assert compare(network, near(padded), near(padded), "bf16").found
    assert not compare(network, near(exchange), near(padded), "bf16").found


def test_an_error_of_the_padded_way_is_not_hidden(network: Any) -> None:
    def fail() -> Tensor:
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        compare(network, make_padded(network, tokenize_for(network, TEXTS)), fail, "fp32")


class Two(Alone):
    """A process whose neighbour cannot pack: it adds nothing to what is summed."""

    size = 2


def test_texts_are_packed_only_where_every_process_can(network: Any) -> None:
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), EVERY, "fp32", [])
    assert agree_on_packer(packer, reason, Alone(), network.device) == (packer, reason)
    found, told = agree_on_packer(packer, reason, Two(), network.device)
    assert found is None
    assert told == "texts are padded: another process of this run cannot pack them"


PAIRS = [
    PositivePair(f"how do I change my {word}", f"{word}: another, please") for word in ("pin", "card", "app", "fee")
]
CONFIG = TrainingConfig(batch=2, epochs=3, dropout=0.2, learning_rate=1e-3, precision="fp32", checkpoint_seconds=0.0)


def kill(progress: Progress) -> None:
    if progress.step == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize("fault", ["", "raises"])
def test_a_run_that_was_killed_takes_the_same_way_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """With the trial on the CPU, as on any other device: packed, and padded because packing fails."""
    seen: list[Any] = []

    def try_here(network: Any, tokens: Tokens, precision: Precision, *, compiled: bool, first: Any) -> Any:
        seen.append(first.tolist())
        return find_by_trial(network, tokens, first, precision, [], compiled=compiled)

    monkeypatch.setattr(packing, "find_packer", try_here)
    monkeypatch.setattr(packing, "Packer", Wrong)
    monkeypatch.setattr(Wrong, "fault", fault)
    whole = train(PAIRS, base=tiny_model, out=tmp_path / "whole", config=CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train(PAIRS, base=tiny_model, out=tmp_path / "again", config=CONFIG, on_progress=kill)
    again = train(PAIRS, base=tiny_model, out=tmp_path / "again", config=CONFIG)
    assert again.resumed_from == 3
    notes = [next(note for note in run.notes if note.startswith("texts are")) for run in (whole, again)]
    assert notes[0] == notes[1]
    assert notes[0].startswith("texts are padded" if fault else "texts are packed without padding")
    assert seen == [seen[0]] * 3
    assert len(seen[0]) == 4  # all texts of the first batch: one block holds them
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
