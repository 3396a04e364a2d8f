"""The dashboard: one page without outside parts, and the JSON that fills it."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import Any

from embedsmith.cache.semantic import SemanticCache
from embedsmith.server.watch import Watch

BINS = 40  # of the histogram of similarities, from 0 to 1


def page() -> str:
    """Return the HTML of the dashboard."""
    return (resources.files("embedsmith.server") / "dashboard.html").read_text(encoding="utf-8")


def state(cache: SemanticCache, watch: Watch) -> dict[str, Any]:
    """Return everything the dashboard shows, as plain JSON; the histogram is of the latest lookups."""
    latest = [asdict(seen) for seen in watch.latest]
    reasons: dict[str, int] = {}
    bins = {"hit": [0] * BINS, "miss": [0] * BINS}
    for seen in watch.latest:
        told = f"{seen.outcome}: {seen.reason}"
        reasons[told] = reasons.get(told, 0) + 1
        if seen.similarity is not None and seen.reason != "same text":
            bins[seen.outcome][min(max(int(seen.similarity * BINS), 0), BINS - 1)] += 1
    held = cache.store.count()
    times = sorted(seen.milliseconds for seen in watch.latest)
    return {
        "threshold": cache.policy.threshold,
        "guard": cache.policy.guard is not None,
        "model": cache.fingerprint,
        "store": cache.store.url,
        "entries": held.entries,
        "bytes": held.bytes,
        "lookups": watch.lookups,
        "hits": watch.hits,
        "saved_tokens": watch.savings.tokens,
        "saved_money": watch.savings.money,
        "saved_seconds": watch.savings.seconds,
        "median_milliseconds": times[len(times) // 2] if times else None,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
        "histogram": bins,
        "latest": latest[::-1],
        **watch.oversight.state(),
    }
