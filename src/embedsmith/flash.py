"""Flash: attention over texts one behind the other by a kernel of the GPU, and when such a kernel may be used.

Two kernels are known: torch's own for texts of any length (`torch.nn.attention.varlen`), and the package flash_attn
where it is installed, which can drop probabilities as well. Torch's comes first: it is there whenever torch is.

None of this has run on a GPU yet: it was written where there was none. Torch's kernel was called through torch's own
wrapper with plain operations in the kernel's place, and its shapes were checked by torch's own rules
(tests/test_flash.py); flash_attn was never called. So a run trusts neither: `packing` tries them beside padded texts
before the first step.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Window = tuple[int, int]  # tokens before and behind that a token sees, −1 for all
KINDS = (torch.bfloat16, torch.float16)
LARGEST, MULTIPLE = 256, 8  # sizes of a head that the kernels take
LEAST_CAPABILITY = (8, 0)  # Ampere


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for texts of unequal length.

    Attributes:
        drops: it can drop probabilities.
        run: (query, key, value, ends, longest, window, scale, dropout) → (tokens, heads, size), with gradients;
            ends (texts + 1,) int32 are the places where texts end, from 0.
    """

    name: str
    drops: bool
    run: Callable[[Tensor, Tensor, Tensor, Tensor, int, Window, float, float], Tensor]


def find_kernels(device: torch.device) -> tuple[Kernel, ...]:
    """Return the kernels that `device` has, the first choice first; () off CUDA and before Ampere."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return ()
    found = []
    if torch.backends.cuda.is_flash_attention_available() and _is_there("torch.nn.attention.varlen"):
        found.append(VARLEN)
    if _is_there("flash_attn"):
        found.append(FLASH_ATTN)
    return tuple(found)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def choose_kernel(kernels: Sequence[Kernel], parts: Sequence[Tensor], dropout: float) -> Kernel | None:
    """Return the first kernel that takes queries, keys and values of this form, None where all ask for another way.

    Args:
        parts: query, key, value; (tokens, heads or groups, size).
    """
    sizes = {part.shape[-1] for part in parts}
    size = max(sizes)
    if len(sizes) > 1 or size > LARGEST or size % MULTIPLE or any(part.dtype not in KINDS for part in parts):
        return None
    return next((kernel for kernel in kernels if kernel.drops or not dropout), None)


def window_of(reach: int | None, *, causal: bool) -> Window:
    """Return how far a token sees; `reach` counts the token itself, as transformers does, None is no limit.

    A reach of 8 is (7, 0) in a decoder, (7, 7) where tokens see both ways.
    """
    before = -1 if reach is None else reach - 1
    return before, 0 if causal else before


def _run_varlen(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, window: Window, scale: float, _dropout: float
) -> Tensor:
    varlen = importlib.import_module("torch.nn.attention.varlen")  # importing it registers operators
    shared = key.shape[1] != query.shape[1]
    parts = (query, key, value, ends, ends, longest, longest)
    found: Tensor = varlen.varlen_attn(*parts, scale=scale, window_size=window, enable_gqa=shared)
    _repeat_gradients(found)
    return found


def _repeat_gradients(found: Tensor) -> None:
    """Have the gradients of a kernel come out with the same bits each time, where a run asks for that.

    torch takes the repeatable way backward only where all else would be an error, and not where it would be a warning,
    as in `devices.repeatable`: so it is an error for as long as this one operation goes backward.
    """
    if found.grad_fn is None or not torch.is_deterministic_algorithms_warn_only_enabled():
        return
    found.grad_fn.register_prehook(lambda _: torch.use_deterministic_algorithms(True))
    found.grad_fn.register_hook(lambda *_: torch.use_deterministic_algorithms(True, warn_only=True))


def _run_flash_attn(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, window: Window, scale: float, dropout: float
) -> Tensor:
    package = importlib.import_module("flash_attn")
    found: Tensor = package.flash_attn_varlen_func(
        *(query, key, value, ends, ends, longest, longest),
        dropout_p=dropout,
        softmax_scale=scale,
        causal=window[1] == 0,
        window_size=window,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return found


VARLEN = Kernel("torch's flash attention", drops=False, run=_run_varlen)
FLASH_ATTN = Kernel("flash_attn", drops=True, run=_run_flash_attn)
