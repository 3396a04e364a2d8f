"""The machine: what of it this process may use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Span = tuple[int, int]  # of addresses, the end excluded
HUGE_PAGE = 2 << 20  # bytes
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1: put these pages together now


def count_cores() -> int:
    """Return the cores that this process may use; all, where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
