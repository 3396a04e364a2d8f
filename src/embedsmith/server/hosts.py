"""By which names the server may be called: a web page whose name leads here by a trick is of no origin of ours.

Whoever owns a name can let it lead to 127.0.0.1 once his page is loaded (DNS rebinding). To the browser that page and
this server are then one origin: it may ask what it likes and read all answers, and to `origins` it is not foreign.
Only the Host header still tells that name. An IP address is nobody's to lead elsewhere, and localhost leads
nowhere else (RFC 6761), so both always pass, health checks of a container's address among them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from embedsmith.server.edge import refuse
from embedsmith.server.trail import header_of

HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # RFC 9110: a port may follow
LONGEST = 253  # characters of a name of DNS
REMEMBERED = 64  # hosts whose verdict is kept: clients send few, and whoever sends many must not fill the memory
UNKNOWN = (
    "this server does not go by the name {name!r}, but by localhost, any IP address and the names that it was started "
    "with; if that name is to lead here (a reverse proxy's, say), start it with --allow-host NAME"
)


class Hosts:
    """ASGI middleware that refuses what is sent to a name that is not the server's.

    The status is 421 (RFC 9110: not a server for this host), which no upstream's 403 is taken for. A request without
    a host (HTTP/1.0) passes: every browser sends one, and some health checks do not.

    Args:
        allowed: names, in lower case, that lead here, beside localhost and addresses.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        names = frozenset(allowed)
        self._app = app
        self._passes = lru_cache(maxsize=REMEMBERED)(lambda host: leads_here(host, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its host is one of the server's."""
        app = self._app
        host = header_of(scope["headers"], "host") if scope["type"] == "http" else ""
        if host and not self._passes(host):
            app = refuse(421, UNKNOWN.format(name=host[:LONGEST]))
        await app(scope, receive, send)


def leads_here(host: str, allowed: Collection[str]) -> bool:
    """Say whether a Host header names localhost, an address, or one of the `allowed` names, whatever its port.

    >>> leads_here("[::1]:8080", ()), leads_here("evil.example:8080", ())
    (True, False)
    """
    parts = HOST.fullmatch(host.strip().lower())
    name = parts[1].removesuffix(".") if parts else ""
    return name in allowed or name == "localhost" or name.endswith(".localhost") or _is_address(name.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
