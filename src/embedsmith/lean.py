"""Lean: parts of a network with fewer passes over memory, with gradients written by hand.

Three parts are run leaner than their libraries run them, with the same mathematics: root mean square norms (one kind of
numbers out, nothing kept that can be had again), adapters beside frozen matrices (dropout from 16 random bits a number,
no detour through float32), and the last layer's network after attention where only one token a text is pooled. A
part is taken over only if it is of the very form that is written here; all others run as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from embedsmith.sharding import layers_of

LEVELS = 2**16  # dropout rates are multiples of 1 / LEVELS


def working_kind(tensor: Tensor) -> torch.dtype:
    """Return the kind of numbers that matrix products of `tensor` run in here."""
    device = tensor.device.type
    rounded = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if rounded else tensor.dtype


def draw_kept(like: Tensor, rate: float, kind: torch.dtype) -> tuple[Tensor, float]:
    """Return ones with share 1 − `rate` and zeros, shaped as `like`, and what to multiply the kept by: 1 / (1 − rate).

    On a CPU torch's own Bernoulli numbers cost a double each; here four of them share 64 random bits. Other devices
    draw their own way.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=kind).bernoulli_(1 - rate), 1 / (1 - rate)
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    lost = min(max(round(rate * LEVELS), 0), LEVELS - 1)
    edge = lost - LEVELS // 2  # a number of 16 bits is below it with probability lost / LEVELS
    kept = bits.view(torch.int16)[:count].clamp_(edge - 1, edge).sub_(edge - 1) if lost else None
    if kept is None:
        return torch.ones_like(like, dtype=kind), 1.0
    return kept.to(kind).view(like.shape), LEVELS / (LEVELS - lost)


class _RootMeanSquare(torch.autograd.Function):
    """x / √(mean(x²) + ε) · w over the last dimension, in float32, returned as `kind`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        rate: Tensor = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, rate)
        return (hidden * rate).mul_(weight).to(kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rate = ctx.saved_tensors
        unit = hidden * rate
        gradient = gradient.float()
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * unit).flatten(0, -2).sum(dim=0)
        pull = gradient * weight
        along = torch.linalg.vecdot(pull, unit)[..., None].div_(hidden.shape[-1])
        return pull.sub_(unit.mul_(along)).mul_(rate), of_weight, None, None


def _normalize(module: Any, feeds: bool, hidden: Tensor) -> Tensor:
    if hidden.dtype != torch.float32:
        return _own(module)(hidden)
    given = (hidden, module.weight, module.variance_epsilon, working_kind(hidden) if feeds else hidden.dtype)
    found: Tensor = _RootMeanSquare.apply(*given)  # type: ignore[no-untyped-call]
    return found


def _is_plain_norm(module: Any) -> bool:
    """Say whether `module` is a root mean square norm of this form, by what it computes."""
    weight = getattr(module, "weight", None)
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    probe = torch.linspace(-2, 3, 2 * len(weight)).view(2, -1)
    with torch.no_grad():
        return torch.allclose(_normalize(module, False, probe), module(probe), atol=1e-5)


class _Adapted(torch.autograd.Function):
    """x Wᵀ + c + s (x ∘ m) Aᵀ Bᵀ with W and c frozen; m are ones and zeros, or nothing is dropped."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        frozen: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        kept: Tensor | None,
        scale: float,
    ) -> Tensor:
        seen = rows if kept is None else rows * kept
        narrow = seen @ down.T
        ctx.save_for_backward(rows, frozen, down, up, kept, narrow)
        ctx.scale = scale
        return torch.nn.functional.linear(rows, frozen, bias).addmm_(narrow, up.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, frozen, down, up, kept, narrow = ctx.saved_tensors
        pull = (gradient @ up).mul_(ctx.scale)
        of_up = (gradient.T @ narrow).mul_(ctx.scale)
        seen = rows if kept is None else rows * kept
        of_down = pull.T @ seen
        of_rows = None
        if ctx.needs_input_grad[0]:
            through = pull @ down
            of_rows = (gradient @ frozen).add_(through if kept is None else through.mul_(kept))
        return of_rows, None, None, of_down, of_up, None, None


def _adapt(layer: Any, name: str, rows: Tensor) -> Tensor:
    kind = working_kind(rows)
    flat = rows.to(kind).flatten(0, -2)
    rate = layer.lora_dropout[name].p if layer.training and hasattr(layer.lora_dropout[name], "p") else 0.0
    kept, more = draw_kept(flat, rate, kind) if rate else (None, 1.0)
    base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    bias = None if base.bias is None else base.bias.to(kind)
    scale = layer.scaling[name] * more
    given = (flat, base.weight.to(kind), bias, down.to(kind), up.to(kind), kept, scale)
    found: Tensor = _Adapted.apply(*given)  # type: ignore[no-untyped-call]
    return found.view(*rows.shape[:-1], -1)


def _plain_adapter(module: Any) -> str | None:
    """Return the name of the one adapter of `module`, None unless it is a plain one beside a frozen matrix."""
    names = list(getattr(module, "active_adapters", ()) or ())
    base = getattr(module, "base_layer", None)
    if len(names) != 1 or type(base) is not torch.nn.Linear or base.weight.requires_grad:
        return None
    (name,) = names
    plain = (
        name in module.lora_A
        and name not in getattr(module, "lora_variant", {})
        and not (module.merged or module.disable_adapters or getattr(module, "fan_in_fan_out", False))
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
        and (base.bias is None or not base.bias.requires_grad)
    )
    return name if plain else None


def _only(module: Any, rows: Tensor, hidden: Tensor) -> Tensor:
    """Return `module` of the chosen rows of (1, tokens, d), zeros in all others."""
    found: Tensor = module(hidden[:, rows])
    return found.new_zeros((1, hidden.shape[1], found.shape[2])).index_copy(1, rows, found)


def find_parts(model: Any) -> list[tuple[Any, Callable[..., Tensor]]]:
    """Return the modules of `model` that can be run leaner, each with its lean forward pass."""
    found: list[tuple[Any, Callable[..., Tensor]]] = []
    feeding = {id(norm) for layer in layers_of(model) for norm in _find_feeding(layer)}
    for module in model.modules():
        if _is_plain_norm(module):
            found.append((module, partial(_normalize, module, id(module) in feeding)))
        elif hasattr(module, "lora_A") and (name := _plain_adapter(module)) is not None:
            found.append((module, partial(_adapt, module, name)))
    return found


def _find_feeding(layer: Any) -> list[Any]:
    """Return the norms of a layer that only matrix products read, which would round what they get: Llama's two."""
    norms = {name: module for name, module in layer.named_children() if type(module).__name__.endswith("RMSNorm")}
    return list(norms.values()) if norms.keys() == {"input_layernorm", "post_attention_layernorm"} else []


def _own(module: Any) -> Callable[..., Tensor]:
    """Return the forward pass that the module's class has."""
    forward: Callable[..., Tensor] = type(module).forward.__get__(module)
    return forward


def find_last(model: Any) -> Any | None:
    """Return the last layer's network after attention, which looks at one token at a time; None where none is known."""
    layers = layers_of(model)
    return getattr(layers[-1], "mlp", None) if layers else None


@contextlib.contextmanager
def lean(
    parts: Sequence[tuple[Any, Callable[..., Tensor]]], last: Any | None = None, rows: Tensor | None = None
) -> Iterator[None]:
    """Run `parts` leaner as long as the context lasts, and `last` for `rows` only; outside of it nothing is changed."""
    changed = list(parts)
    if last is not None and rows is not None:
        changed.append((last, partial(_only, _own(last), rows)))
    for module, forward in changed:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward
