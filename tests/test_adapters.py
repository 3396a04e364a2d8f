"""LoRA: only adapters train, merged weights give the same vectors, adapter folders load wherever their base is."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedsmith.adapters import (
    LoraConfig,
    add_lora,
    has_lora,
    is_lowered,
    linear_names,
    lower_frozen,
    merge_lora,
    restore_frozen,
)
from embedsmith.decoders import BaseOptions
from embedsmith.errors import ConfigurationError, ModelError
from embedsmith.model import TorchEncoder, fingerprint_model, load_encoder, load_network, save_network
from embedsmith.networks import autocast, embed, tokenize_for
from tiny_decoders import FAMILIES, write_decoder

TEXTS = ["a", "How do I freeze my card?", "", "word " * 60, "freeze it"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("base"))


def vectors(network: SentenceTransformer) -> np.ndarray:
    return TorchEncoder(network, name="").encode(TEXTS)


def trained(network: SentenceTransformer) -> SentenceTransformer:
    """Adapters as training would leave them: B is no longer zero."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_only_adapter_weights_train_and_the_start_is_the_base(base: Path) -> None:
    network = load_network(base)
    before = vectors(network)
    add_lora(network, LoraConfig(rank=4))
    np.testing.assert_allclose(vectors(network), before, atol=1e-6)
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 2  # layers, targets, matrices
    assert all(".lora_" in name and ("q_proj" in name or "v_proj" in name) for name in names)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 2 * (4 * (32 + 32) + 4 * (32 + 16))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_merged_and_unmerged_vectors_are_equal(tmp_path: Path, family: str) -> None:
    network = load_network(write_decoder(tmp_path, family))
    before = vectors(network)
    keys = set(network.state_dict())
    trained(add_lora(network, LoraConfig(targets="all-linear")))
    with_adapters = vectors(network)
    assert np.abs(with_adapters - before).max() > 0.01
    merge_lora(network)
    assert not has_lora(network)
    assert set(network.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in network.parameters())
    np.testing.assert_allclose(vectors(network), with_adapters, atol=1e-5)


def test_a_merged_network_is_saved_as_a_plain_folder(base: Path, tmp_path: Path) -> None:
    network = merge_lora(trained(add_lora(load_network(base))))
    save_network(network, tmp_path / "merged", card="")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    theirs = SentenceTransformer(str(tmp_path / "merged")).encode(TEXTS)
    np.testing.assert_allclose(theirs, vectors(network), atol=1e-5)


def test_whoever_may_read_a_model_folder_may_read_its_weights(base: Path, tmp_path: Path) -> None:
    """safetensors writes files that their owner alone may read; a server often runs as another user."""
    save_network(load_network(base), tmp_path / "model", card="")
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "model").iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_an_adapter_folder_loads_in_both_libraries_and_names_its_base(base: Path, tmp_path: Path) -> None:
    network = trained(add_lora(load_network(base)))
    save_network(network, tmp_path / "adapter", card="")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == base.resolve()
    np.testing.assert_allclose(load_encoder(tmp_path / "adapter").encode(TEXTS), vectors(network), atol=1e-6)
    theirs = SentenceTransformer(str(tmp_path / "adapter")).encode(TEXTS)
    np.testing.assert_allclose(theirs, vectors(network), atol=1e-6)
    again = merge_lora(load_network(tmp_path / "adapter"))
    np.testing.assert_allclose(vectors(again), vectors(network), atol=1e-5)


def test_an_adapter_without_its_base_says_which_one_is_missing(tmp_path: Path) -> None:
    base = write_decoder(tmp_path / "base")
    save_network(add_lora(load_network(base)), tmp_path / "adapter", card="")
    whole = fingerprint_model(tmp_path / "adapter")
    (base / "config.json").write_text((base / "config.json").read_text().replace("rms_norm_eps", "rms_norm_eps "))
    assert fingerprint_model(tmp_path / "adapter") != whole  # another base, other vectors
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="does not exist here"):
        load_network(tmp_path / "adapter")


def test_the_seed_alone_decides_the_first_weights(base: Path) -> None:
    def first(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        network = add_lora(load_network(base), seed=seed)
        after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(after, torch.rand(1))  # the caller's random numbers go on as if nothing had been drawn
        return torch.cat([p.flatten() for n, p in network.named_parameters() if "lora_A" in n])

    assert torch.equal(first(3, 1), first(3, 2))
    assert not torch.equal(first(3, 1), first(4, 1))


def test_an_unknown_target_gets_the_list_of_those_there_are(base: Path) -> None:
    with pytest.raises(ConfigurationError, match="called qkv") as caught:
        add_lora(load_network(base), LoraConfig(targets=("q_proj", "qkv")))
    for name in ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"):
        assert name in caught.value.expected
    network = add_lora(load_network(base))
    with pytest.raises(ConfigurationError, match="adapters already"):
        add_lora(network)
    with pytest.raises(ConfigurationError, match="no adapters"):
        merge_lora(load_network(base))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": "q_proj"}, {"targets": ()}])
def test_a_configuration_outside_its_ranges_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="LoRA"):
        LoraConfig(**wrong)


def test_an_encoder_takes_adapters_too_but_not_in_its_pooler(tiny_model: Path) -> None:
    network = load_network(tiny_model)
    assert any("pooler" in name for name in linear_names(network))
    trained(add_lora(network, LoraConfig(targets="all-linear")))
    assert not any("pooler" in name for name, p in network.named_parameters() if p.requires_grad)
    with_adapters = vectors(network)
    np.testing.assert_allclose(vectors(merge_lora(network)), with_adapters, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "qwen3"])
def test_lowered_weights_give_what_autocast_gives_bit_for_bit(tmp_path: Path, family: str) -> None:
    def step(lower: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        network = trained(add_lora(load_network(folder), LoraConfig(dropout=0, targets="all-linear")))
        if lower:
            assert lower_frozen(network) > 0
            assert is_lowered(network)
        with autocast(network, "bf16"):
            rows = embed(network, tokenize_for(network, TEXTS), np.arange(len(TEXTS)), budget=200)
        rows[:, 0].sum().backward()
        return rows.detach(), [p.grad for p in network.parameters() if p.requires_grad]

    folder = write_decoder(tmp_path, family)
    (one, grads), (other, lowered) = step(False), step(True)
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(grads, lowered, strict=True))


def test_lowered_weights_come_back_before_merging(base: Path) -> None:
    plain = merge_lora(trained(add_lora(load_network(base))))
    network = trained(add_lora(load_network(base)))
    lower_frozen(network)
    kinds = {name: p.dtype for name, p in network.named_parameters()}
    assert all(kinds[name] == torch.float32 for name in kinds if "lora_" in name or "norm" in name or "embed" in name)
    merge_lora(network)
    for (name, one), (_, other) in zip(plain.named_parameters(), network.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_an_output_layer_of_the_base_is_not_reported_when_it_is_read_again(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = load_network(base)
    lower_frozen(add_lora(network))
    logging.getLogger("transformers").propagate = True
    try:
        restore_frozen(network)
        assert "LOAD REPORT" not in caplog.text
    finally:
        logging.getLogger("transformers").propagate = False


def test_weights_that_the_base_does_not_hold_are_not_restored(base: Path) -> None:
    network = load_network(base)
    with torch.no_grad():
        network[0].auto_model.layers[0].mlp.up_proj.weight.add_(1)
    lower_frozen(add_lora(network))
    with pytest.raises(ModelError, match="not those of its base"):
        restore_frozen(network)


def test_attention_in_both_directions_survives_in_an_adapter_folder(tmp_path: Path) -> None:
    base = write_decoder(tmp_path / "base", "gemma3")
    network = trained(add_lora(load_network(base, BaseOptions(bidirectional=True))))
    save_network(network, tmp_path / "adapter", card="")
    theirs = SentenceTransformer(str(tmp_path / "adapter")).encode(TEXTS)
    np.testing.assert_allclose(theirs, vectors(network), atol=1e-6)


def test_an_adapter_folder_that_would_lose_the_direction_of_attention_is_not_written(
    base: Path, tmp_path: Path
) -> None:
    network = add_lora(load_network(base, BaseOptions(bidirectional=True)))
    with pytest.raises(ConfigurationError, match="both directions"):
        save_network(network, tmp_path / "adapter", card="")
    assert list(tmp_path.iterdir()) == []
    save_network(merge_lora(network), tmp_path / "whole", card="")
    np.testing.assert_allclose(load_encoder(tmp_path / "whole").encode(TEXTS), vectors(network), atol=1e-5)
