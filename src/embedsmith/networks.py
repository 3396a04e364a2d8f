"""Networks in memory: tokenised texts in, one tensor of vectors out, in micro-batches of one length.

What a network reads of a text (its prompt, its longest input) and how a batch of texts runs through it. Where a
network comes from and how it is saved is `model`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedsmith.choices import Precision
from embedsmith.tokens import Index, Tokens, cut_microbatches, limit_of, tokenize

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

ENCODING_BUDGET = 4096  # padded tokens a forward pass; more does not pay on CPU
GPU_ENCODING_BUDGET = 16384  # fewer leave a large GPU waiting for the next launch


def default_prompt(network: SentenceTransformer) -> str:
    """Return the text that the model puts before every input, "" when it has none."""
    name = network.default_prompt_name
    return str(network.prompts.get(name, "")) if name else ""


def pools_prompts(network: SentenceTransformer) -> bool:
    """Say whether the tokens of a prompt take part in the pooling, as they do in most models."""
    return all(getattr(module, "include_prompt", True) for module in network)


def skipped_tokens(network: SentenceTransformer, prompt: str) -> int:
    """Return how many tokens at the beginning of a text the pooling leaves out: those of the prompt, or none.

    As sentence-transformers counts them: the prompt by itself, without the special token behind it.
    """
    if not prompt or pools_prompts(network):
        return 0
    ids = tokenize_for(network, [prompt], prompt="").ids
    return len(ids) - int(len(ids) > 0 and int(ids[-1]) in network.tokenizer.all_special_ids)


def tokenize_for(network: SentenceTransformer, texts: Sequence[str], *, prompt: str | None = None) -> Tokens:
    """Return the tokens of `texts` as `network` reads them (its prompt, its maximum length).

    Args:
        prompt: the text before each of them; None is the network's default prompt.
    """
    prompt = default_prompt(network) if prompt is None else prompt
    if prompt:
        texts = [prompt + text for text in texts]
    return tokenize(network.tokenizer, texts, max_length=max_length_of(network))


def max_length_of(network: SentenceTransformer | CrossEncoder) -> int | None:
    """Return the tokens that `network` reads of a text at most, None where it sets no limit."""
    return limit_of(network.max_seq_length)


def encoding_budget(device: str) -> int:
    """Return the padded tokens of a forward pass without gradients on a device: "cpu", "cuda", …"""
    return GPU_ENCODING_BUDGET if device == "cuda" else ENCODING_BUDGET


def embed(network: SentenceTransformer, tokens: Tokens, rows: Index, *, budget: int, skipped: int = 0) -> torch.Tensor:
    """Return the embeddings (len(rows), d) of texts `rows`, with gradients where they are on.

    The texts run in length-sorted micro-batches of at most `budget` padded tokens; the result is that
    of one padded batch, in the order of `rows`.

    Args:
        skipped: tokens at the beginning of each text that the pooling leaves out (`skipped_tokens`).
    """

    def prompt_length(block: Index, _: Index) -> dict[str, Index]:
        return {"prompt_length": np.full(len(block), skipped)}

    extra = prompt_length if skipped else None
    return run_microbatches(network, tokens, rows, "sentence_embedding", budget=budget, extra=extra)


def run_microbatches(
    network: Any,
    tokens: Tokens,
    rows: Index,
    output: str,
    *,
    budget: int,
    extra: Callable[[Index, Index], Mapping[str, Index]] | None = None,
) -> torch.Tensor:
    """Return what `network` puts out under the name `output` for sequences `rows`, in their order.

    Args:
        network: a SentenceTransformer or a CrossEncoder.
        extra: from (rows, mask) of a micro-batch to further inputs, each (n, length).
    """
    import torch

    blocks = cut_microbatches(tokens.lengths_of(rows), budget)
    parts = [run_block(network, tokens, rows[block], output, extra=extra) for block in blocks]
    return torch.cat(parts)[torch.from_numpy(invert(blocks)).to(network.device)]


def invert(blocks: Sequence[Index]) -> Index:
    """Return where each row of a batch is when its blocks stand one after the other."""
    order = np.concatenate(blocks)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    return back


def run_block(
    network: Any,
    tokens: Tokens,
    rows: Index,
    output: str,
    *,
    extra: Callable[[Index, Index], Mapping[str, Index]] | None = None,
) -> torch.Tensor:
    """Return what `network` puts out under the name `output` for sequences `rows`, padded to the longest of them."""
    import torch

    tokenizer: Any = network.tokenizer
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, mask = tokens.padded(rows, fill=fill, left=tokenizer.padding_side == "left")
    given = {"input_ids": ids, "attention_mask": mask, **(extra(rows, mask) if extra is not None else {})}
    found = network({name: torch.from_numpy(value).to(network.device) for name, value in given.items()})[output]
    assert isinstance(found, torch.Tensor)
    return found


def autocast(
    network: SentenceTransformer, precision: Precision, *, cache: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Return the context in which matrix products run in `precision`; weights and losses stay float32.

    Args:
        cache: rounded weights are kept until the context is left, for whoever uses them again.
    """
    import torch

    return torch.autocast(network.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)
