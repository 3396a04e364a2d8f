"""Packed texts: the vectors and gradients of padded ones; networks that cannot be packed are padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedsmith.adapters import LoraConfig, add_lora
from embedsmith.decoders import BaseOptions, checkpoint_gradients
from embedsmith.lean import draw_kept
from embedsmith.model import load_network
from embedsmith.networks import run_block, tokenize_for
from embedsmith.packing import Packer, attend_packed, cut_segments, find_packer
from embedsmith.tokens import cut_packed
from tiny_decoders import write_decoder

TEXTS = ["a card", "how do I change my pin?", "no", "a loan at a fixed rate", "the code of my phone", "why"]
PACKED = ("llama", "phi", "qwen2", "qwen3")
WINDOWED = ("mistral", "phi3", "gemma2", "gemma3")  # they see 8 tokens far, texts are longer


def gradients_of(network: Any, encode: Any) -> dict[str, torch.Tensor]:
    network.zero_grad()
    vectors = encode()
    weight = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    (vectors.float() * weight).sum().backward()
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def assert_packed_is_padded(network: Any) -> Packer:
    tokens = tokenize_for(network, TEXTS)
    packer, reason = find_packer(network, tokens, "fp32")
    assert packer is not None, reason
    rows = np.array([3, 0, 5, 1, 4, 2])  # any order
    network.eval()  # adapters would drop out
    padded = gradients_of(network, lambda: run_block(network, tokens, rows, "sentence_embedding"))
    packed = gradients_of(network, lambda: packer.run(tokens, rows))
    assert packed.keys() == padded.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packer.run(tokens, rows), run_block(network, tokens, rows, "sentence_embedding"))
    return packer


def test_an_encoder(tiny_model: Path) -> None:
    assert_packed_is_padded(load_network(tiny_model, BaseOptions(attention="eager")))


@pytest.mark.parametrize("family", PACKED)
def test_decoders_with_and_without_adapters(tmp_path: Path, family: str) -> None:
    network = load_network(write_decoder(tmp_path / family, family), BaseOptions(attention="eager"))
    assert_packed_is_padded(network)
    add_lora(network, LoraConfig(targets="all-linear"))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ".lora_B." in name:  # zero before the first step, and its gradients would say nothing
                weight.normal_(std=0.02)
    packer = assert_packed_is_padded(network)
    assert len(packer.parts) >= 2 * 7 * (family != "phi")
    assert not any("forward" in module.__dict__ for module in network.modules())  # lean forms do not stay


def test_a_decoder_that_reads_both_ways_and_one_with_mean_pooling(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "llama", "llama")
    assert_packed_is_padded(load_network(folder, BaseOptions(attention="eager", bidirectional=True)))
    assert_packed_is_padded(load_network(folder, BaseOptions(attention="eager", pooling="mean")))


@pytest.mark.parametrize("family", WINDOWED)
def test_attention_that_does_not_see_whole_texts_is_left_padded(tmp_path: Path, family: str) -> None:
    network = load_network(write_decoder(tmp_path / family, family), BaseOptions(attention="eager"))
    packer, reason = find_packer(network, tokenize_for(network, TEXTS), "fp32")
    assert packer is None
    assert "texts are padded" in reason


def test_layers_that_run_twice_are_left_padded(tmp_path: Path) -> None:
    network = load_network(write_decoder(tmp_path / "llama", "llama"), BaseOptions(attention="eager"))
    checkpoint_gradients(network)
    packer, reason = find_packer(network, tokenize_for(network, TEXTS), "fp32")
    assert packer is None
    assert "run again for the gradients" in reason


def test_attention_with_dropout_has_the_gradients_of_its_own_forward_pass() -> None:
    """Against differences, in float64: the same seed drops the same probabilities."""
    segments = cut_segments(np.array([5, 5, 3, 2]), causal=True)
    parts = [torch.randn(1, heads, 15, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    module = torch.nn.Module()

    def attend(*given: torch.Tensor) -> torch.Tensor:
        from embedsmith.packing import _within

        torch.manual_seed(0)
        with _within(segments):
            return attend_packed(module, *given, None, dropout=0.3)[0]  # type: ignore[arg-type]

    # probabilities are taken in float32
    assert torch.autograd.gradcheck(attend, parts, eps=1e-3, atol=1e-2, rtol=1e-2)
    once, again = attend(*parts), attend(*parts)
    assert torch.equal(once, again)
    module.eval()
    assert not torch.allclose(attend(*parts), once)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropped_numbers_have_their_share_and_their_mean(rate: float) -> None:
    torch.manual_seed(0)
    like = torch.empty(999, 101)
    kept, more = draw_kept(like, rate, torch.float32)
    assert kept.shape == like.shape
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(1 - rate, abs=0.006)  # four standard errors
    assert float(kept.mean()) * more == pytest.approx(1, abs=0.06)
    for lane in range(4):  # each of the four numbers of one draw
        assert float(kept.flatten()[lane::4].mean()) == pytest.approx(1 - rate, abs=0.013)


def test_blocks_of_packed_texts_hold_all_texts_and_are_of_one_size() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    blocks = cut_packed(lengths, 512)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(200))
    sizes = [int(lengths[block].sum()) for block in blocks]
    assert len(blocks) == -(-int(lengths.sum()) // 512)
    assert max(sizes) - min(sizes) <= 120
    assert [block.tolist() for block in cut_packed(np.array([90, 30, 80, 20]), 180)] == [[0], [2, 1, 3]]
    assert len(cut_packed(np.array([700]), 512)) == 1
    assert cut_packed(np.array([], dtype=np.int64), 512) == []
