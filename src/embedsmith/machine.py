"""The machine: what of it this process may use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedsmith.choices import Precision

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]  # of addresses, the end excluded
HUGE_PAGE = 2 << 20  # bytes
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a control group
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1: put these pages together now


def count_cores() -> int:
    """Return the cores that this process may use; all, where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device() -> str:
    """Return where networks are trained here: "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def count_memory(device: torch.device, *, processes: int) -> int:
    """Return the bytes that one of so many processes on this machine can count on; a GPU is one process's own."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [file for file in map(Path, MEMORY_LIMITS) if file.is_file()]
    limits = [int(text) for file in files if (text := file.read_text(encoding="ascii").strip()).isdigit()]
    return min([whole, *limits]) // processes


def choose_precision(wanted: str, device: str) -> tuple[Precision, str]:
    """Return the precision of matrix products and the reason for it."""
    import torch

    if wanted == "bf16":
        return "bf16", "bf16 as asked"
    if wanted == "fp32":
        return "fp32", "fp32 as asked"
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16: this GPU multiplies it natively"
    if device == "cpu" and _has_bf16_instructions():
        return "bf16", "bf16: this processor has AMX or AVX512-BF16 instructions"
    return "fp32", f"fp32: no native bf16 on this {device}"


def _has_bf16_instructions() -> bool:
    import torch

    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # a build without it lacks the question
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    cpu = torch.cpu
    native = (cpu._is_avx512_bf16_supported(), cpu._is_amx_tile_supported())
    return capabilities.startswith("AVX512") and any(native)


def best_attention() -> str | None:
    """Return the attention to train with: eager is fastest on CPU (docs/log.md), transformers' choice elsewhere."""
    import torch

    return None if torch.cuda.is_available() or torch.backends.mps.is_available() else "eager"


def keep_memory() -> None:
    """Tell glibc to keep freed blocks; returning them to the system costs a page fault per page and step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks as well; M_MMAP_THRESHOLD takes no more than 32 MB
    except (OSError, AttributeError):
        return  # another libc has other habits; nothing is lost but speed


@contextmanager
def huge_pages() -> Iterator[None]:
    """Have what is allocated in the block put into huge pages, where Linux can and may; elsewhere nothing happens.

    Weights that are read whole for every text lie on thousands of pages of 4 kB, more than a core remembers the places
    of; in a virtual machine each of these look-ups is one in two tables.
    """
    before = _find_memory()
    yield
    for start, end in _without(_find_memory(), before):
        first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if first < last:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), COLLAPSE)


def _find_memory() -> list[Span]:
    """Return where this process has written memory that is no file's, in rising order; [] where that is not told."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for span, access, _, _, file, *name in map(str.split, lines):
        if access.startswith("rw-p") and file == "0" and name in ([], ["[heap]"]):
            start, end = span.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _without(spans: list[Span], known: list[Span]) -> Iterator[Span]:
    """Yield the parts of `spans` that are in none of `known`."""
    for start, end in spans:
        for first, last in known:
            if first < end and start < last:
                if start < first:
                    yield start, first
                start = last
        if start < end:
            yield start, end
