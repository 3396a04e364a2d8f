"""What the bodies of requests hold, read without holding up the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from embedsmith.cache.chat import Allowances, Passed, Question, read_chat

LARGEST = 8 << 20  # bytes of a request that is read here
SMALL = 1 << 16  # bytes of a request that is read, and made a key of, in a few milliseconds; 8 MiB can take seconds
ENCODED = "the body is encoded"
TWICE = "a name stands twice in an object"  # of which the upstream may take the other one
Result = TypeVar("Result")


async def read_aside(raw: bytes, read: Callable[[bytes], Result]) -> Result:
    """Return what `read` makes of a body; in a thread where it is large."""
    return read(raw) if len(raw) <= SMALL else await asyncio.to_thread(read, raw)


def read_object(raw: bytes, pairs: Callable[[Sequence[tuple[str, Any]]], Any] | None = None) -> dict[str, Any]:
    """Return the object that a body is; `pairs` makes each object in it of its names and values.

    Raises:
        ValueError, RecursionError: the body is none.
    """
    body = json.loads(raw, object_pairs_hook=pairs)
    if not isinstance(body, dict):
        raise ValueError("the body must be an object")
    return body


class NameTwice(Exception):
    """An object of a request has a name twice."""


def read_question(raw: bytes, allowed: Allowances, *, by_meaning: bool) -> Question | Passed:
    """Return the question in the body of a chat request, or why it is none for the cache.

    Raises:
        ValueError, RecursionError: the body is no JSON object.
    """
    try:
        body = read_object(raw, pairs=_join_pairs)
    except NameTwice:
        return Passed(TWICE)
    try:
        return read_chat(body, allowed, by_meaning=by_meaning)
    except ValueError as error:
        return Passed(str(error))


def _join_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NameTwice
    return found


def is_encoded(request: Request) -> bool:
    """Say whether a request's body is compressed, or written in another way that only the upstream may know."""
    return any(value.strip().lower() not in ("", "identity") for value in request.headers.getlist("content-encoding"))
