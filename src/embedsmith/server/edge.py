"""The outermost part of the application: a trail, a span and a log line for every request, and no traceback ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedsmith.errors import describe_failure
from embedsmith.server.logs import RequestLog
from embedsmith.server.spans import NO_SPAN, Spans
from embedsmith.server.trail import REQUEST_ID, Trail, open_trail

BODY_SECONDS = 60.0  # for a whole request body that is read
SHARE = 8 << 20  # bytes of a body that is passed on for which a client has that time, again and again
LARGEST_HEAD = 1 << 16  # bytes of a request line with its headers


class TooLarge(Exception):
    """A request body above the limit."""


class TooSlow(Exception):
    """A request body that does not come to its end in time."""


class Edge:
    """ASGI middleware around the whole application.

    Args:
        log: hears of each request when it is done. spans: opens the span of a request.
    """

    def __init__(self, app: ASGIApp, *, log: RequestLog | None = None, spans: Spans | None = None) -> None:
        self._app, self._log, self._spans = app, log, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever fails becomes a status, or a broken connection once the answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trail = open_trail(scope)
        if self._spans is not None:
            trail.span = _begin(self._spans, scope, trail)
        identified = _identify(send, trail)
        try:
            with trail.span.current():
                app = self._app if _head_size(scope) <= LARGEST_HEAD else refuse(431, "the request's head is too large")
                await app(scope, receive, identified)
        except ClientDisconnect:
            trail.failure = "the client left"
        except asyncio.CancelledError:
            trail.failure = "the server stopped"
            raise
        except Exception as error:  # noqa: BLE001  the log says what, the client only that
            trail.failure = trail.failure or describe_failure(error)
            if not trail.status:
                await refuse(500, "the server failed; its log says why under this request's id")(
                    scope, receive, identified
                )
        finally:
            self._finish(trail, scope)

    def _finish(self, trail: Trail, scope: Scope) -> None:
        if trail.span is not NO_SPAN:
            _describe(trail, scope)
            trail.span.end()
        if self._log is not None:
            self._log.finish(trail)


def _head_size(scope: Scope) -> int:
    """Return the bytes of a request's head; what comes in one piece is not measured on the wire."""
    line = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    return line + sum(len(name) + len(value) for name, value in scope["headers"])


def _identify(send: Send, trail: Trail) -> Send:
    """Return a `send` that notes the status and puts the request id into the answer."""
    id = (REQUEST_ID.encode(), trail.id.encode())

    async def identified(message: Message) -> None:
        if message["type"] == "http.response.start":
            trail.status = message["status"]
            message["headers"] = [*message.get("headers", ()), id]
        await send(message)

    return identified


def _begin(spans: Spans, scope: Scope, trail: Trail) -> Any:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            key = name.decode()
            headers[key] = f"{headers[key]},{value.decode('latin-1')}" if key in headers else value.decode("latin-1")
    span = spans(trail.method, headers)
    span.note({"http.request.method": trail.method, "url.path": trail.path, "url.scheme": scope.get("scheme", "http")})
    return span


def _describe(trail: Trail, scope: Scope) -> None:
    route = getattr(scope.get("route"), "path", None)
    trail.span.note(
        {
            "http.route": route,
            "http.response.status_code": trail.status or None,
            "embedsmith.request.id": trail.id,
            "embedsmith.cache.outcome": trail.outcome or None,
            "embedsmith.cache.reason": trail.reason or None,
            "embedsmith.cache.similarity": trail.similarity,
            "embedsmith.tenant": trail.tenant or None,
        }
    )
    if route is not None:
        trail.span.rename(f"{trail.method} {route}")
    if trail.failed:
        trail.span.fail(trail.failure.partition(" at ")[0] or str(trail.status))


async def read_limited(request: Request, largest: int, seconds: float = BODY_SECONDS) -> bytes:
    """Return the body of a request.

    Raises:
        TooLarge: as soon as it says, or turns out, to have more than `largest` bytes.
        TooSlow: its end has not come after `seconds`, however steadily its bytes trickle.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > largest:
        raise TooLarge(f"the request has more than {largest} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > largest:
                    raise TooLarge(f"the request has more than {largest} bytes")
    except TimeoutError:
        raise TooSlow(f"the request did not end within {seconds:g} seconds") from None
    return bytes(body)


async def read_pieces(request: Request, seconds: float = BODY_SECONDS) -> AsyncIterator[bytes]:
    """Yield the body of a request as it comes, whatever its size.

    Raises:
        TooSlow: waiting for the client took `seconds` for each `SHARE` of bytes, begun ones counted as whole.
        ClientDisconnect: it left before the end.
    """
    source, received, waited = request.stream(), 0, 0.0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds * (1 + received // SHARE) - waited):
                part = await anext(source, None)
        except TimeoutError:
            raise TooSlow(f"the request came slower than {SHARE} bytes in {seconds:g} seconds") from None
        if part is None:
            return
        waited, received = waited + time.monotonic() - began, received + len(part)
        if part:
            yield part


def require_json(request: Request) -> None:
    """Raise 415 when the request says that its body is something else than JSON; saying nothing is allowed."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given and given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        raise HTTPException(415, "the body must be application/json", {"accept": "application/json"})


def refuse(status: int, message: str, headers: Mapping[str, str] | None = None, *, kind: str = "") -> JSONResponse:
    """Return an error in the protocol's form; its type is `kind`, by default what the status says."""
    return JSONResponse(error_body(status, message, kind), status, headers)


def error_body(status: int, message: str, kind: str = "") -> dict[str, Any]:
    """Return the body of an error in the protocol's form; see `refuse`."""
    return {"error": {"message": message, "type": kind or _kind_of(status), "code": None}}


def _kind_of(status: int) -> str:
    return "invalid_request_error" if status < 500 else "upstream_error" if status in (502, 504) else "server_error"


async def refuse_route(_: Request, error: Exception) -> Response:
    """Answer an unknown path, a method that a path does not have, and a type of body it does not take."""
    assert isinstance(error, HTTPException)
    nothing = "there is nothing at this path; what OpenAI clients take as base_url ends in /v1 here"
    told = {404: nothing, 405: "this path does not take this method"}
    return refuse(error.status_code, told.get(error.status_code, error.detail), error.headers)


async def refuse_large(_: Request, error: Exception) -> Response:
    """Answer a body above the limit."""
    return refuse(413, str(error))


async def refuse_slow(_: Request, error: Exception) -> Response:
    """Answer a body that trickles; the connection is of no more use."""
    return refuse(408, str(error), {"connection": "close"})


Refusal = Callable[[Request, Exception], Awaitable[Response]]
REFUSALS: Mapping[type[Exception], Refusal] = {
    HTTPException: refuse_route,
    TooLarge: refuse_large,
    TooSlow: refuse_slow,
}
