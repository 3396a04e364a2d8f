"""An upstream that answers what the test writes, on loopback."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .conftest import listen

Body = dict[str, Any]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@contextmanager
def upstream(handler: Callable[[Request], Awaitable[Response]]) -> Iterator[str]:
    """Yield the base URL of an upstream in which `handler` answers every path."""

    async def answer(request: Request) -> Response:  # starlette takes an object that can be called for an app
        return await handler(request)

    with listen(Starlette(routes=[Route("/v1/{path:path}", answer, methods=["GET", "POST"])])) as url:
        yield f"{url}/v1"


def completion(
    content: Any = "hi there", *, message: Body | None = None, choice: Body | None = None, **top: Any
) -> Body:
    """Return a plain answer; None takes a field out."""
    parts = {
        "index": 0,
        "message": {"role": "assistant", "content": content} | (message or {}),
        "finish_reason": "stop",
    }
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [parts | (choice or {})]}
    return {name: value for name, value in (body | {"usage": USAGE} | top).items() if value is not None}


def chunk(delta: Any, finish: str | None = None, *, choice: Body | None = None, **top: Any) -> Body:
    """Return one event of a stream."""
    parts = {"index": 0, "delta": delta, "finish_reason": finish} | (choice or {})
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [parts]} | top


def events(*chunks: Any, done: bool = True) -> bytes:
    """Return a stream."""
    told = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks)
    return (told + ("data: [DONE]\n\n" if done else "")).encode()
