"""What the three workers share: the vectors, and the clock. Prints one line of JSON. Needs only numpy."""

import json
import sys
import time

import numpy as np

WARM = 20


def load(arguments):  # type: ignore[no-untyped-def]
    """Return (vectors, queries) of the .npz file in the arguments."""
    held = np.load(arguments[1])
    return held["vectors"], held["queries"]


def measure(look_up, queries):  # type: ignore[no-untyped-def]
    """Return the milliseconds of each lookup but the first few."""
    times = []
    for place, query in enumerate(queries):
        began = time.perf_counter()
        found = look_up(query)
        if place >= WARM:
            times.append(1000 * (time.perf_counter() - began))
        assert found is not None, "nothing found"
    return times


def percentiles(times):  # type: ignore[no-untyped-def]
    """Return p50 and p99."""
    low, high = np.percentile(times, [50, 99])
    return {"p50": round(float(low), 4), "p99": round(float(high), 4)}


def write(figures) -> None:  # type: ignore[no-untyped-def]
    """Print the figures, and the memory of this process in MB."""
    with open("/proc/self/status") as handle:
        memory = next(int(line.split()[1]) / 1024 for line in handle if line.startswith("VmRSS"))
    json.dump({**figures, "memory_mb": round(memory)}, sys.stdout)
    print()
