"""Token counts as an upstream tells them: servers write all sorts of things where a count belongs."""

from __future__ import annotations

MOST_TOKENS = 10**9  # of one answer; more is no count


def read_count(value: object) -> int | None:
    """Return a count of tokens; None for whatever is no whole number from 0 to `MOST_TOKENS`.

    >>> read_count(12), read_count(True), read_count("12"), read_count(-1)
    (12, None, None, None)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= MOST_TOKENS else None
