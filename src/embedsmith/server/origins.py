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
from embedsmith.server.headers import ANY, brings_key
from embedsmith.server.trail import query_of

FOREIGN = (
    "a web page of another origin asks, and brings no key: the operator's is lent to it if the server is started with "
    "--allow-origin ORIGIN"
)
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
        if ANY in self._allowed:
            return [(b"access-control-allow-origin", b"*"), exposed]
        varies = (b"vary", b"Origin")  # so that a cache on the way keeps one page's answer from another
        if origin not in self._allowed:
            return [varies]
        return [varies, (b"access-control-allow-origin", origin.encode()), exposed]


class Lending:
    """ASGI middleware that lends the operator's key to no foreign page.

    A browser sends what any page tells it to, without asking first where the request is a plain one; the page cannot
    read the answer, but the bill would be the operator's.

    Args:
        allowed: as of `Origins`; their pages may.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a page of an origin that is not named, unless it brings a key or only asks whether it may ask."""
        app = self._app
        if scope["type"] == "http" and scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS":
            headers, query = Headers(scope=scope), query_of(scope)
            named = not self._allowed.isdisjoint((headers.get("origin", ""), ANY))
            if _is_foreign(headers) and not named and not brings_key(headers, query):
                app = refuse(403, FOREIGN)
        await app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    """Say whether a web page of another origin asks; browsers say so by themselves, older ones only what it is."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    # The host is the server's own: `hosts` has refused those that lead here by a trick.
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _tell_wishes(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return that all is granted: a page that may ask at all may send what every other client may."""
    wished = headers.get("access-control-request-headers")  # "*" would not cover Authorization
    told = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", MAX_AGE)]
    told += [(b"access-control-allow-headers", wished.encode("latin-1"))] if wished else []
    local = "access-control-request-private-network" in headers  # a page from elsewhere, and this server at home
    return told + ([(b"access-control-allow-private-network", b"true")] if local else [])
