"""The dashboard: one page without outside parts, and the JSON that fills it."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Entry, Store
from embedsmith.errors import describe_failure
from embedsmith.server.oversight import read_answer
from embedsmith.server.watch import Seen, Trouble, Watch

FOUND, LONGEST = 100, 2000  # entries of a search, and characters of the answer of each
SEARCH = 5.0  # seconds that it may take
BINS = 40  # of the histogram of similarities, from 0 to 1


def page() -> str:
    """Return the HTML of the dashboard."""
    return (resources.files("embedsmith.server") / "dashboard.html").read_text(encoding="utf-8")


def state(
    cache: SemanticCache, watch: Watch, latest: Sequence[Seen], troubles: Sequence[Trouble] = ()
) -> dict[str, Any]:
    """Return everything the dashboard shows; the histogram is of the latest lookups.

    Args:
        latest, troubles: taken from the watch where they are written to, on the event loop; this may run in a thread.
    """
    times = sorted(seen.milliseconds for seen in latest)
    return {
        "threshold": cache.policy.threshold,
        "guard": cache.policy.guard is not None,
        "turns": cache.turns,
        "model": cache.fingerprint,
        "folder": cache.name,
        "store": cache.store.url,
        **_count(cache),
        "troubles": [asdict(trouble) for trouble in troubles],
        "lookups": watch.lookups,
        "hits": watch.hits,
        "saved_tokens": watch.savings.tokens,
        "saved_money": watch.savings.money,
        "saved_seconds": watch.savings.seconds,
        "median_milliseconds": times[len(times) // 2] if times else None,
        "reasons": _reasons(latest),
        "histogram": _histogram(latest),
        "keeps_marks": cache.keeps_marks,
        "latest": [asdict(seen) | {"marked": seen.number in watch.marked} for seen in reversed(latest)],
        **watch.oversight.state(),
    }


def _count(cache: SemanticCache) -> dict[str, Any]:
    """Return how much is stored; what else there is to show must not wait for a store that fails."""
    try:
        held = cache.store.count()
    except Exception as error:  # noqa: BLE001  whatever a store or its driver raises
        return {"entries": None, "bytes": None, "store_trouble": describe_failure(error)}
    return {"entries": held.entries, "bytes": held.bytes, "store_trouble": ""}


def _reasons(latest: Sequence[Seen]) -> dict[str, int]:
    """Return how often each reason was given; what the guard found in a pair, told in brackets, is no reason apart."""
    return dict(Counter(f"{seen.outcome}: {seen.reason.partition(' (')[0]}" for seen in latest).most_common())


def _histogram(latest: Sequence[Seen]) -> dict[str, list[int]]:
    bins = {"hit": [0] * BINS, "miss": [0] * BINS}
    for seen in latest:
        if seen.similarity is not None and math.isfinite(seen.similarity) and seen.reason != "same text":
            bins[seen.outcome][min(max(int(seen.similarity * BINS), 0), BINS - 1)] += 1
    return bins


def find_entries(store: Store, wanted: str, *, most: int = FOUND, seconds: float = SEARCH) -> dict[str, Any]:
    """Return the `most` newest entries whose question holds `wanted`, newest first.

    "found" is how many hold it; "whole" is false where it took longer than so many seconds, and older entries were not
    looked through.
    """
    latest: list[Entry] = []
    found, whole, until = 0, True, time.monotonic() + seconds
    for entry in store.scan(newest=True):
        if time.monotonic() > until:
            whole = False
            break
        if wanted in entry.text.casefold():
            found += 1
            if found <= most:
                latest.append(entry)
    return {"entries": [_describe(entry) for entry in latest], "found": found, "whole": whole}


def _describe(entry: Entry) -> dict[str, Any]:
    row = asdict(entry) | {"size": entry.size, "answer": read_answer(entry.answer, LONGEST)}
    del row["vector"]
    return row


def render(value: object) -> bytes:
    """Return JSON of whatever is stored: half a character as an escape, a number that is none as null."""
    return json.dumps(_finite(value), allow_nan=False).encode("ascii")


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
