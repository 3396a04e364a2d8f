"""The machine: what of it this process may use."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return the cores that this process may use; all, where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
