"""Flash attention in packed texts: what torch's kernel is asked for, and what is left to the buckets.

Torch's kernel needs a GPU. Without one its wrapper runs here with plain operations in the kernel's place, and its
shapes are checked on devices without numbers. Only the tests marked gpu run the kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embedsmith import flash
from embedsmith.adapters import LoraConfig, add_lora
from embedsmith.decoders import BaseOptions
from embedsmith.devices import repeatable
from embedsmith.flash import FLASH_ATTN, VARLEN, Kernel, Window, choose_kernel, find_kernels, window_of
from embedsmith.model import load_network
from embedsmith.networks import run_block, tokenize_for
from embedsmith.packing import BUCKETS, Packer, find_by_trial, find_packer
from plain_kernels import Calls, plain_kernels
from tiny_decoders import write_decoder

TEXTS = ["a card", "how do I change my pin?", "no", "a loan at a fixed rate", "the code of my phone", "why"]
ROWS = np.array([3, 0, 5, 1, 4, 2])
EAGER = BaseOptions(attention="eager")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: the kernel itself does not run")


def make_parts(
    device: str,
    kind: torch.dtype = torch.bfloat16,
    *,
    heads: int = 4,
    groups: int = 2,
    size: int = 16,
    grad: bool = False,
) -> list[Tensor]:
    shapes = [(20, heads, size), (20, groups, size), (20, groups, size)]
    return [torch.empty(shape, dtype=kind, device=device, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize(
    ("reach", "causal", "window"),
    [(None, True, (-1, 0)), (None, False, (-1, -1)), (8, True, (7, 0)), (8, False, (7, 7))],
)
def test_how_far_a_token_sees(reach: int | None, causal: bool, window: Window) -> None:
    assert window_of(reach, causal=causal) == window


def test_a_kernel_is_taken_only_for_what_it_can() -> None:
    both = (VARLEN, FLASH_ATTN)
    assert choose_kernel(both, make_parts("meta"), 0.0) is VARLEN
    assert choose_kernel(both, make_parts("meta", torch.float16), 0.0) is VARLEN
    assert choose_kernel(both, make_parts("meta"), 0.1) is FLASH_ATTN
    assert choose_kernel([VARLEN], make_parts("meta"), 0.1) is None
    assert choose_kernel([], make_parts("meta"), 0.0) is None
    assert choose_kernel(both, make_parts("meta", torch.float32), 0.0) is None
    assert choose_kernel(both, make_parts("meta", size=12), 0.0) is None
    assert choose_kernel(both, make_parts("meta", size=264), 0.0) is None
    query, key, _ = make_parts("meta")
    assert choose_kernel(both, [query, key, key[..., :8]], 0.0) is None


def test_a_cpu_has_no_kernel() -> None:
    assert find_kernels(torch.device("cpu")) == ()


@pytest.mark.parametrize("window", [(-1, 0), (-1, -1), (7, 0), (7, 7)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_torch_takes_the_call_as_it_is_made(groups: int, window: Window) -> None:
    """By torch's own rules for the shapes of its kernels, forward and backward."""
    query, key, value = make_parts("meta", groups=groups, grad=True)
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    found = VARLEN.run(query, key, value, ends, 9, window, 0.25, 0.0)
    assert (found.shape, found.dtype) == (query.shape, query.dtype)
    found.sum().backward()
    assert [part.grad.shape for part in (query, key, value)] == [part.shape for part in (query, key, value)]
    with FakeTensorMode():  # on "cuda"; a build without CUDA has no gradients there
        ends = torch.empty(4, dtype=torch.int32, device="cuda")
        found = VARLEN.run(*make_parts("cuda", groups=groups), ends, 9, window, 0.25, 0.0)
        assert (found.device.type, found.shape) == ("cuda", query.shape)


def write_modernbert(folder: Path) -> Path:
    """Write an encoder whose first layer sees 4 tokens far to both sides."""
    write_decoder(folder, "llama", end=True)  # for its tokenizer
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        local_attention=8, layer_types=["sliding_attention", "full_attention"], pad_token_id=3, eos_token_id=2,
        bos_token_id=1, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    transformers.ModernBertModel(config).save_pretrained(folder)
    return folder


def load(folder: Path, family: str, **options: Any) -> Any:
    path = write_modernbert(folder) if family == "modernbert" else write_decoder(folder, family)
    return load_network(path, BaseOptions(attention="eager", **options))


def differentiate(network: Any, encode: Any) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    vectors = encode()
    (vectors * torch.linspace(-1, 1, vectors.numel(), device=vectors.device).view_as(vectors)).sum().backward()
    return vectors.detach(), {
        name: part.grad.clone() for name, part in network.named_parameters() if part.grad is not None
    }


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", {(-1, 0)}),
        ("qwen3", {(-1, 0)}),
        ("mistral", {(7, 0)}),
        ("phi3", {(7, 0)}),
        ("gemma3", {(7, 0), (-1, 0)}),
        ("modernbert", {(4, 4), (-1, -1)}),
    ],
)
def test_packed_texts_with_the_kernel_are_padded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, windows: set[Window]
) -> None:
    """In float32, which the plain operations take and the kernel would not, so that nothing is rounded away."""
    monkeypatch.setattr(flash, "KINDS", (torch.float32,))
    network = load(tmp_path / family, family)
    tokens = tokenize_for(network, TEXTS)
    with plain_kernels() as calls:
        packer, reason = find_by_trial(network, tokens, np.arange(6), "fp32", [VARLEN])
        assert packer is not None, reason
        assert "torch's flash attention: tried on 6" in reason
        assert set(calls.windows) == windows
        network.eval()
        padded, right = differentiate(network, lambda: run_block(network, tokens, ROWS, "sentence_embedding"))
        packed, found = differentiate(network, lambda: packer.run(tokens, ROWS))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)
    assert found.keys() == right.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )


def test_a_decoder_that_reads_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "KINDS", (torch.float32,))
    network = load(tmp_path / "llama", "llama", bidirectional=True)
    with plain_kernels() as calls:
        packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), np.arange(6), "fp32", [VARLEN])
    assert packer is not None, reason
    assert set(calls.windows) == {(-1, -1)}


def test_in_bf16_beside_frozen_weights(tmp_path: Path) -> None:
    network = load(tmp_path / "llama", "llama")
    add_lora(network, LoraConfig(targets="all-linear"))
    with plain_kernels() as calls:
        packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), np.arange(6), "bf16", [VARLEN])
    assert packer is not None, reason
    assert packer.used == {VARLEN.name}
    assert calls.strict


def test_in_float32_and_where_probabilities_are_dropped_the_buckets_attend(tmp_path: Path, tiny_model: Path) -> None:
    network = load(tmp_path / "llama", "llama")
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), np.arange(6), "fp32", [VARLEN])
    assert packer is not None, reason
    assert packer.used == {BUCKETS}
    network = load_network(tiny_model, EAGER)  # BERT's own attention drops a tenth
    with plain_kernels():
        packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), np.arange(6), "bf16", [VARLEN])
    assert packer is not None, reason
    assert packer.used == {BUCKETS, VARLEN.name}


def test_without_a_kernel_on_this_machine_the_trial_says_so_and_pads(tmp_path: Path) -> None:
    """Torch's real wrapper, which has no kernel on a CPU."""
    network = load(tmp_path / "llama", "llama")
    packer, reason = find_by_trial(network, tokenize_for(network, TEXTS), np.arange(6), "bf16", [VARLEN])
    assert packer is None
    assert reason.startswith(
        "texts are padded: packed on this cpu, 6 of them were not what padded ones are (NotImplemented"
    )


class OneDevice(TorchDispatchMode):
    """Finds operations on tensors of two devices; a single number may come from the processor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor) and part.ndim]
        devices = {part.device.type for part in given}
        if "_to_copy" not in str(func):
            assert len(devices) <= 1, f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert", "modernbert"])
@pytest.mark.parametrize(
    ("kernels", "kind", "form"), [([VARLEN], torch.bfloat16, VARLEN.name), ([], torch.float32, BUCKETS)]
)
def test_all_that_is_made_for_a_row_lies_where_the_network_is(
    tmp_path: Path, tiny_model: Path, family: str, kernels: list[Kernel], kind: torch.dtype, form: str
) -> None:
    """On torch's device without numbers, which is not the processor; with gradients and dropout."""
    network = load_network(tiny_model, EAGER) if family == "bert" else load(tmp_path / family, family)
    tokens = tokenize_for(network, TEXTS if kernels else ["no", "a", "why"])  # buckets see no windows
    find_by_trial(network, tokens, np.arange(3), "fp32", [])  # enters the attention in transformers' table
    network.to("meta", dtype=kind).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0 if kernels else 0.1
    packer = Packer(network, causal="bert" not in family, first=0, leaner=False, kernels=kernels)
    with OneDevice():
        found = packer.run(tokens, np.arange(3))
        found.sum().backward()
    assert (found.device.type, found.shape) == ("meta", (3, 32))
    assert packer.used == {form}
    assert all(weight.grad.device.type == "meta" for weight in network.parameters() if weight.grad is not None)


@pytest.mark.parametrize(("device", "strict"), [("cuda", True), ("cpu", False)])
def test_gradients_are_repeatable_where_a_run_asks_for_it(device: str, strict: bool) -> None:
    """Torch's kernel takes its repeatable way backward only under errors, not under warnings."""

    def go_back(calls: Calls) -> None:
        parts = [torch.randn_like(part, requires_grad=True) for part in make_parts("cpu")]
        VARLEN.run(*parts, torch.tensor([0, 9, 20], dtype=torch.int32), 11, (-1, 0), 0.25, 0.0).sum().backward()

    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with plain_kernels() as calls, repeatable(device):
        go_back(calls)
        inside = torch.is_deterministic_algorithms_warn_only_enabled()
    assert calls.strict == [strict]
    assert inside == strict  # warnings again for what comes after
    assert was == (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "modernbert"])
def test_on_a_gpu_the_kernel_gives_what_padded_texts_give(tmp_path: Path, family: str) -> None:
    network = load_network(
        write_modernbert(tmp_path / family) if family == "modernbert" else write_decoder(tmp_path / family, family)
    ).to("cuda")
    tokens = tokenize_for(network, TEXTS)
    packer, reason = find_packer(network, tokens, "bf16", first=np.arange(6))
    assert packer is not None, reason
    assert VARLEN.name in packer.used, reason
    with repeatable("cuda"), torch.autocast("cuda", torch.bfloat16):
        network.eval()
        once, first = differentiate(network, lambda: packer.run(tokens, ROWS).float())
        again, second = differentiate(network, lambda: packer.run(tokens, ROWS).float())
    assert torch.equal(once, again)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_float32_is_packed_in_buckets(tmp_path: Path) -> None:
    network = load_network(write_decoder(tmp_path / "llama", "llama")).to("cuda")
    packer, reason = find_packer(network, tokenize_for(network, TEXTS), "fp32")
    assert packer is not None, reason
    assert packer.used == {BUCKETS}
