"""Packing: the texts of a block one behind the other in one row, without padding.

The row is in the form that sentence-transformers makes for flash attention (`cu_seq_lens_q`, `seq_idx`), so its own
modules pool it, and a kernel for rows of that form can take the place of the attention here.

Every layer but attention looks at one token at a time, so it may see all tokens of many texts as one long row: large
matrix products and nothing that is thrown away. Only attention has to know where a text ends. On a GPU a kernel does
it (`flash`) where there is one for what is asked; everywhere else it runs on buckets of texts of similar length, with
gradients written by hand, in plain torch operations. Whether a network can be packed is found by running it both ways,
not by a list of names: on a CPU by vectors, on any other device, where nothing of this has been run by those who wrote
it, by vectors and gradients (`agreement`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsmith.agreement import Agreement, compare
from embedsmith.choices import Precision
from embedsmith.decoders import is_decoder
from embedsmith.flash import Kernel, choose_kernel, find_kernels, window_of
from embedsmith.lean import draw_kept, find_last, find_parts, lean, working_kind
from embedsmith.networks import autocast, invert, run_block
from embedsmith.tokens import Index, Tokens, cut_microbatches

NAME = "embedsmith_packed"  # of the attention, in transformers' table
BUCKETS = "attention in buckets"
ATTENTION_BUDGET = 16384  # padded tokens of a bucket
PROBED = 6  # texts that are encoded both ways
PADDED_BUDGET = 2048  # padded tokens of a block that packed texts are compared with
NEAR: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-2}  # how far unit vectors of both ways may lie apart


class Unpackable(Exception):
    """Why a network cannot be packed; never leaves this module."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Texts next to each other in a row, and their places in a padded block.

    Attributes:
        start, end: tokens of the row, from and to.
        texts, width: the padded block's shape.
        places: (end − start,) where each token is in the flattened padded block; None where the block has no padding.
        hidden: (texts, 1, 1, 1, width) bool, True on padding; None without any.
    """

    start: int
    end: int
    texts: int
    width: int
    places: Tensor | None
    hidden: Tensor | None


class Segments:
    """Where the texts of a row begin and end, longest first, on the device that the row is on.

    Attributes:
        longest: tokens of the first text.
        causal: a token sees only what stands before it.
        ends: (texts + 1,) int32, where texts end, from 0; None where no kernel reads it.
        kernels: what may attend in place of the buckets.
        used: names of the forms of attention that were used.
    """

    def __init__(
        self,
        lengths: Index,
        *,
        causal: bool,
        device: torch.device,
        ends: Tensor | None = None,
        kernels: Sequence[Kernel] = (),
    ) -> None:
        self.lengths, self.longest, self.causal, self.device = lengths, int(lengths[0]), causal, device
        self.ends, self.kernels = ends, kernels if ends is not None else ()
        self.used: set[str] = set()

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Made when they are first asked for: a kernel needs none."""
        found, start = [], 0
        for block in cut_microbatches(self.lengths, ATTENTION_BUDGET):
            bucket = _make_bucket(self.lengths[block], start, self.device)
            found.append(bucket)
            start = bucket.end
        return tuple(found)


def cut_segments(
    lengths: Index,
    *,
    causal: bool,
    device: torch.device | None = None,
    ends: Tensor | None = None,
    kernels: Sequence[Kernel] = (),
) -> Segments:
    """Return the segments of a row of texts with these `lengths`, which do not rise."""
    return Segments(lengths, causal=causal, device=device or torch.device("cpu"), ends=ends, kernels=kernels)


def _make_bucket(sizes: Index, start: int, device: torch.device) -> Bucket:
    count, width, end = len(sizes), int(sizes[0]), start + int(sizes.sum())
    if int(sizes[-1]) == width:
        return Bucket(start, end, count, width, None, None)
    real: NDArray[np.bool_] = np.arange(width) < sizes[:, None]
    hidden = torch.from_numpy(~real)[:, None, None, None, :].to(device)
    return Bucket(start, end, count, width, torch.from_numpy(np.flatnonzero(real)).to(device), hidden)


_segments: ContextVar[Segments | None] = ContextVar("segments", default=None)


def attend_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention within each text of a packed row, (1, tokens, heads, size), as transformers asks for it.

    Args:
        query: (1, heads, tokens, size). key, value: (1, groups, tokens, size), heads a multiple of groups.
    """
    segments = _segments.get()
    window = options.get("sliding_window")
    if segments is None or any(options.get(name) is not None for name in ("softcap", "s_aux", "head_mask")):
        raise Unpackable(f"{type(module).__name__} asks for an attention that is not offered packed")
    kind = working_kind(query)
    rows = [part[0].transpose(0, 1).to(kind) for part in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropped = dropout if module.training else 0.0
    reach = window if window is not None and segments.longest > window else None
    kernel = choose_kernel(segments.kernels, rows, dropped)
    segments.used.add(kernel.name if kernel is not None else BUCKETS)
    if kernel is not None and segments.ends is not None:
        seen = window_of(reach, causal=segments.causal)
        out = kernel.run(rows[0], rows[1], rows[2], segments.ends, segments.longest, seen, scale, dropped)
        return out[None], None
    if reach is not None:
        raise Unpackable(f"it looks {window} tokens far, and the longest text has {segments.longest}")
    found: Tensor = _Attention.apply(*rows, segments, scale, dropped)  # type: ignore[no-untyped-call]
    return found[None], None


class _Attention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V within each text; inputs (tokens, heads or groups, size), any floating kind.

    Probabilities are taken in float32. Heads that share a key are rows of one product, so keys are never repeated.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, dropout: float
    ) -> Tensor:
        groups = key.shape[1]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        saved: list[Tensor | None] = []
        for bucket in segments.buckets:
            q, k, v = (_pad(rows, bucket, groups) for rows in (query, key, value))
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
            _hide(scores, bucket, groups, causal=segments.causal)
            chances = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            kept, more = draw_kept(chances, dropout, q.dtype) if dropout else (None, 1.0)
            seen = chances if kept is None else kept.mul_(more) * chances
            _unpad(torch.bmm(seen, v), bucket, out)
            saved += [q, k, v, chances, kept]
        ctx.save_for_backward(*saved)
        ctx.segments, ctx.scale, ctx.shapes = segments, scale, (query.shape, key.shape)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_query, of_keys = ctx.shapes
        found = [gradient.new_empty(shape) for shape in (of_query, of_keys, of_keys)]
        for place, bucket in enumerate(ctx.segments.buckets):
            q, k, v, chances, kept = ctx.saved_tensors[5 * place : 5 * place + 5]
            out = _pad(gradient, bucket, of_keys[1])
            seen = chances if kept is None else chances * kept
            pull = torch.bmm(out, v.transpose(1, 2)).float()
            if kept is not None:
                pull.mul_(kept)
            slope = torch._softmax_backward_data(pull, chances.float(), -1, torch.float32).mul_(ctx.scale).to(q.dtype)
            parts = (torch.bmm(slope, k), torch.bmm(slope.transpose(1, 2), q), torch.bmm(seen.transpose(1, 2), out))
            for part, rows in zip(parts, found, strict=True):
                _unpad(part, bucket, rows)
        return (*found, None, None, None)


def _pad(rows: Tensor, bucket: Bucket, groups: int) -> Tensor:
    """Return a bucket's rows as (texts · groups, heads of a group · width, size), zero on padding."""
    heads, size = rows.shape[1:]
    part = rows[bucket.start : bucket.end]
    if bucket.places is not None:
        block = part.new_zeros((bucket.texts * bucket.width, heads, size))
        part = block.index_copy_(0, bucket.places, part)
    shaped = part.reshape(bucket.texts, bucket.width, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    return shaped.reshape(bucket.texts * groups, -1, size)


def _unpad(block: Tensor, bucket: Bucket, out: Tensor) -> None:
    """Put a padded block's tokens into their places of `out` (tokens, heads, size)."""
    heads, size = out.shape[1:]
    groups = len(block) // bucket.texts
    shaped = block.view(bucket.texts, groups, heads // groups, bucket.width, size).permute(0, 3, 1, 2, 4)
    into = out[bucket.start : bucket.end]
    if bucket.places is None:
        into.view(bucket.texts, bucket.width, groups, heads // groups, size).copy_(shaped)
    else:
        torch.index_select(shaped.reshape(-1, heads, size), 0, bucket.places, out=into)


def _hide(scores: Tensor, bucket: Bucket, groups: int, *, causal: bool) -> None:
    """Set the scores of what a token must not see to −∞, in place."""
    shaped = scores.view(bucket.texts, groups, -1, bucket.width, bucket.width)
    if causal:
        ahead = torch.ones(bucket.width, bucket.width, dtype=torch.bool, device=scores.device).triu_(1)
        shaped.masked_fill_(ahead, float("-inf"))
    elif bucket.hidden is not None:  # what stands behind a text is ahead of all its tokens
        shaped.masked_fill_(bucket.hidden, float("-inf"))


class Packer:
    """Runs a sentence-transformers network on packed texts; made by `find_packer`.

    Attributes:
        used: names of the forms of attention that ran.
    """

    def __init__(
        self, network: Any, *, causal: bool, first: int, leaner: bool = True, kernels: Sequence[Kernel] = ()
    ) -> None:
        self.network, self.causal, self.first, self.kernels = network, causal, first, kernels
        model = network[0].auto_model
        self.parts = find_parts(model) if leaner else []
        self.last = find_last(model) if leaner and network[1].pooling_mode == "lasttoken" else None
        self.used: set[str] = set()

    def run(self, tokens: Tokens, rows: Index) -> Tensor:
        """Return the embeddings (len(rows), d) of texts `rows`, with gradients where they are on."""
        lengths = tokens.lengths_of(rows)
        order = np.argsort(-lengths, kind="stable")
        ids, places = _join(tokens, rows[order], self.first)
        device = self.network.device
        ends = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int32)
        owner = np.repeat(np.arange(len(order)), lengths[order])
        numbers = {"input_ids": ids[None], "position_ids": places[None], "seq_idx": owner[None].astype(np.int32)}
        numbers |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends)
        features: dict[str, Any] = {name: torch.from_numpy(value).to(device) for name, value in numbers.items()}
        where = {"device": device, "ends": features["cu_seq_lens_q"], "kernels": self.kernels}
        segments = cut_segments(lengths[order], causal=self.causal, **where)
        features |= dict.fromkeys(("max_length_q", "max_length_k"), segments.longest)
        pooled = torch.from_numpy(ends[1:].astype(np.int64) - 1).to(device)
        with _attention(self.network[0].auto_model), _within(segments), lean(self.parts, self.last, pooled):
            found: Tensor = self.network(features)["sentence_embedding"]
        self.used |= segments.used
        return found[torch.from_numpy(invert([order])).to(device)]


def _join(tokens: Tokens, rows: Index, first: int) -> tuple[Index, Index]:
    """Return the ids of texts `rows` one behind the other, and each token's place in its text, counted from `first`."""
    lengths = tokens.lengths[rows]
    starts = np.cumsum(lengths) - lengths
    places = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    ids = tokens.ids[np.repeat(tokens.offsets[rows], lengths) + places]
    return ids.astype(np.int64), places + first


@contextlib.contextmanager
def _attention(model: Any) -> Iterator[None]:
    """Let `model` attend within packed texts as long as the context lasts; padded batches are run in between."""
    config, was = model.config, model.config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = was


@contextlib.contextmanager
def _within(segments: Segments) -> Iterator[None]:
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


def find_packer(
    network: Any,
    tokens: Tokens,
    precision: Precision,
    *,
    compiled: bool = False,
    first: Index | None = None,
) -> tuple[Packer | None, str]:
    """Return what runs `network` packed, or None, and the reason.

    It is tried on a few of the texts, the longest among them, beside the padded way; the network stays as it was. Off
    the CPU more is tried, and compared more strictly (`find_by_trial`).

    Args:
        compiled: leave out `lean` (a compiler does the same by itself), and keep attention out of the compiled graph,
            since its shapes change with every block.
        first: texts of the first micro-batch, tried besides where the network is not on the CPU.
    """
    if network.device.type != "cpu":
        rows = _choose_probe(tokens.lengths) if first is None else np.union1d(_choose_probe(tokens.lengths), first)
        return find_by_trial(network, tokens, rows, precision, find_kernels(network.device), compiled=compiled)
    _register(compiled=compiled)
    try:
        model = _require_plain(network)
        rows = _choose_probe(tokens.lengths)
        causal = is_decoder(model.config)
        for place in _first_places(model):
            packer = Packer(network, causal=causal, first=place, leaner=not compiled)
            if _difference(packer, tokens, rows, precision) <= NEAR[precision]:
                return packer, f"texts are packed without padding: the same vectors as padded ones ({len(rows)} tried)"
    except (Unpackable, TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        return None, f"texts are padded: this network cannot be packed ({error})"
    return None, "texts are padded: packed they have other vectors in this network"


def find_by_trial(
    network: Any,
    tokens: Tokens,
    rows: Index,
    precision: Precision,
    kernels: Sequence[Kernel],
    *,
    compiled: bool = False,
) -> tuple[Packer | None, str]:
    """Return what runs `network` packed on a device that packing was not measured on, or None, and the reason.

    Packed texts `rows` must have the vectors and the gradients of padded ones and come through a pass with dropout
    (`agreement.compare`). The answer hangs on the weights, the texts and the machine, so a resumed run gets the same.
    The forms of `lean` stay out: they were made for a CPU.

    Args:
        kernels: what may attend in place of the buckets, the first choice first.
    """
    _register(compiled=compiled)
    try:
        model = _require_plain(network)
        causal = is_decoder(model.config)
        ways = [
            Packer(network, causal=causal, first=place, leaner=False, kernels=kernels) for place in _first_places(model)
        ]
    except (Unpackable, AttributeError, TypeError) as error:
        return None, f"texts are padded: this network cannot be packed ({error})"
    tried: list[Agreement] = []
    for packer in ways:
        tried.append(_try(packer, tokens, rows, precision))
        if tried[-1].found:
            how = " and ".join(sorted(packer.used))
            return packer, f"texts are packed without padding, {how}: tried on {len(rows)} of them, {tried[-1].told}"
    where = f"on this {network.device.type}, {len(rows)} of them were not what padded ones are"
    return None, f"texts are padded: packed {where} ({tried[0].told})"


def _try(packer: Packer, tokens: Tokens, rows: Index, precision: Precision) -> Agreement:
    """Return whether `packer` encodes texts `rows` as they are padded."""
    network = packer.network
    blocks = cut_microbatches(tokens.lengths_of(rows), PADDED_BUDGET)
    back = torch.from_numpy(invert(blocks)).to(network.device)

    def encode_padded() -> Tensor:
        return torch.cat([run_block(network, tokens, rows[block], "sentence_embedding") for block in blocks])[back]

    return compare(network, lambda: packer.run(tokens, rows), encode_padded, precision)


def _register(*, compiled: bool) -> None:
    """Put attention over packed texts into transformers' table."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _keep_whole(attend_packed) if compiled else attend_packed)


def _first_places(model: Any) -> tuple[int, int]:
    """Return what positions may be counted from: RoBERTa's family counts from behind the pad token."""
    return 0, (getattr(model.config, "pad_token_id", None) or 0) + 1


def _keep_whole(function: Any) -> Any:
    return torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def _require_plain(network: Any) -> Any:
    """Return the transformer of `network` if its tokens are pooled and its layers run once."""
    if len(network) < 2 or not hasattr(network[1], "pooling_mode"):
        raise Unpackable("its tokens are not pooled")
    model = network[0].auto_model
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules()):
        raise Unpackable("its layers are run again for the gradients")
    return model


def _choose_probe(lengths: Index) -> Index:
    order = np.argsort(lengths, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, PROBED).round().astype(np.int64))]


def _difference(packer: Packer, tokens: Tokens, rows: Index, precision: Precision) -> float:
    """Return how far unit vectors of packed texts lie from those of padded ones."""
    network, was = packer.network, packer.network.training
    network.eval()
    try:
        with torch.no_grad(), autocast(network, precision):
            packed = packer.run(tokens, rows)
            padded = run_block(network, tokens, rows, "sentence_embedding")
    finally:
        network.train(was)
    unit = torch.nn.functional.normalize
    return float((unit(packed.float(), dim=1) - unit(padded.float(), dim=1)).abs().max())
