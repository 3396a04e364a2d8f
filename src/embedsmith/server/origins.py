"""Which web pages may read what /v1 answers (CORS): those of the origins that the operator names.

One answer for hits, misses, embeddings and refusals alike: what an upstream says of origins is left out, since a stored
answer could only repeat what was said to another page. Cookies are not let in (no `Access-Control-Allow-Credentials`),
and nothing beside /v1 is ever told to a page: not the dashboard, and not what the admin's token opens.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedsmith.server.edge import refuse
from embedsmith.server.headers import ANY_ORIGIN

MAX_AGE = b"600"  # seconds for which a browser need not ask again
METHODS = b"GET, POST, PUT, PATCH, DELETE, HEAD"


class Origins:
    """ASGI middleware around all else, so that refusals of the edge can be read as well.

    Args:
        allowed: what `headers.read_origins` made of the option.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a browser that asks whether it may ask; tell it with all other answers whether it may read them."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        told, app = self._tell(headers.get("origin", "")), self._app
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = len(told) > 1
            told += _tell_wishes(headers) if allowed else []
            app = Response(status_code=204) if allowed else refuse(403, "this origin is not among --allow-origin")

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [
                    pair for pair in message.get("headers", ()) if not pair[0].lower().startswith(b"access-control-")
                ]
                message["headers"] = own + told
            await send(message)

        await app(scope, receive, telling)

    def _tell(self, origin: str) -> list[tuple[bytes, bytes]]:
        exposed = (b"access-control-expose-headers", b"*")  # X-Embedsmith-Cache and its like
        if ANY_ORIGIN in self._allowed:
            return [(b"access-control-allow-origin", b"*"), exposed]
        varies = (b"vary", b"Origin")  # so that a cache on the way keeps one page's answer from another
        if origin not in self._allowed:
            return [varies]
        return [varies, (b"access-control-allow-origin", origin.encode()), exposed]


def _tell_wishes(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return that all is granted: a page that may ask at all may send what every other client may."""
    wished = headers.get("access-control-request-headers")  # "*" would not cover Authorization
    told = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", MAX_AGE)]
    told += [(b"access-control-allow-headers", wished.encode("latin-1"))] if wished else []
    local = "access-control-request-private-network" in headers  # a page from elsewhere, and this server at home
    return told + ([(b"access-control-allow-private-network", b"true")] if local else [])
