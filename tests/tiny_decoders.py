"""Decoders of two layers with random weights, one for each family, and a byte tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "gemma3": (
        "Gemma3Text",
        {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"num_key_value_heads": 2, "sliding_window": 8}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "minicpm3": (
        "MiniCPM3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def write_decoder(
    folder: Path, family: str = "llama", *, length: int = 96, intermediate_size: int = 48, **tokenizer: Any
) -> Path:
    """Write a plain transformers folder: configuration, random weights, tokenizer. Keywords go to `make_tokenizer`."""
    torch.manual_seed(0)
    made = make_tokenizer(**tokenizer)
    name, extra = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        **SIZES | extra | {"intermediate_size": intermediate_size},
        vocab_size=len(made), max_position_embeddings=length,
        pad_token_id=made.pad_token_id, bos_token_id=1, eos_token_id=made.eos_token_id,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # weights that make the vectors of two texts differ much, as trained ones do
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def make_tokenizer(
    *, start: bool = False, end: bool = False, pad: str | None = "<pad>", byte_level: bool = True
) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes; `start` and `end` say which special tokens it adds by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = SPECIAL if pad == "<pad>" else SPECIAL[:3]
    backend = Tokenizer(models.BPE({token: place for place, token in enumerate([*known, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(known)
    template = f"{'<s> ' if start else ''}$A{' </s>' if end else ''}"
    frame = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    offsets = processors.ByteLevel(trim_offsets=False)
    parts = ([offsets] if byte_level else []) + ([frame] if start or end else [])
    if parts:
        backend.post_processor = parts[0] if len(parts) == 1 else processors.Sequence(parts)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )
