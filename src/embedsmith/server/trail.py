"""What is known of one request while it is answered: its id, what the cache said, what took how long.

Nothing in it is the user's text: reasons are words of ours (the guard's details, which quote the question, are
left out), the tenant is the beginning of a keyed hash, the path has no query string.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedsmith.server.spans import NO_SPAN, Span

if TYPE_CHECKING:
    from starlette.requests import Request

    from embedsmith.cache.semantic import Lookup

KEY = "embedsmith.trail"  # in the ASGI scope
REQUEST_ID = "x-request-id"
REQUEST_ID_FORM = "[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
WELL_FORMED = re.compile(rf"{REQUEST_ID_FORM}\Z")
TENANT_DIGITS = 8  # of the hash, enough to tell tenants apart in a log
LONGEST_PATH = 200


@dataclass(slots=True)
class Trail:
    """One request on its way through the server.

    Attributes:
        id: from the client when well formed, else made. path: without the query.
        began: of the monotonic clock. status: of the answer, 0 while there is none.
        outcome: "hit", "miss" or "pass"; "" where the cache has no say. similarity: of the nearest entry.
        lookup, upstream: seconds each took; None where there was none.
        tenant: first digits of the keyed hash. failure: what went wrong, in words of ours.
    """

    id: str
    method: str = ""
    path: str = ""
    began: float = field(default_factory=time.perf_counter)
    span: Span = NO_SPAN
    status: int = 0
    outcome: str = ""
    reason: str = ""
    similarity: float | None = None
    lookup: float | None = None
    upstream: float | None = None
    tenant: str = ""
    failure: str = ""

    def looked_up(self, found: Lookup) -> None:
        """Take over what the cache decided."""
        self.outcome, self.reason = "hit" if found.hit else "miss", found.decision.reason
        self.similarity, self.lookup = found.decision.similarity, found.seconds
        self.tenant = found.namespace[:TENANT_DIGITS]

    def passed(self, reason: str) -> None:
        """Take over why the cache was not asked."""
        self.outcome, self.reason = "pass", reason

    @property
    def failed(self) -> bool:
        """Say whether something went wrong; a 504 of ours without a failure is what only-if-cached asks for."""
        return bool(self.failure) or (self.status >= 500 and self.status != 504)

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.began


def read_request_id(given: str | None) -> str:
    """Return the client's request id when it is well formed, else a new one (32 hex digits)."""
    return given if given is not None and WELL_FORMED.match(given) else secrets.token_hex(16)


def open_trail(scope: Any) -> Trail:
    """Return the trail of a new request and put it into its ASGI scope."""
    path = bytes(scope.get("raw_path") or b"").decode("ascii", "replace") or scope["path"]
    trail = Trail(read_request_id(header_of(scope["headers"], REQUEST_ID)), scope["method"], path[:LONGEST_PATH])
    scope[KEY] = trail
    return trail


def trail_of(request: Request) -> Trail:
    """Return the trail of a request."""
    trail = request.scope[KEY]
    assert isinstance(trail, Trail)
    return trail


def query_of(scope: Any) -> str:
    """Return the query of an ASGI scope, every character behind the first "?" as it came.

    `Request.url` is a guess from the Host header and all, and ends at a "#", which the upstream is sent as well.
    """
    return bytes(scope.get("query_string", b"")).decode("latin-1")


def header_of(headers: Iterable[tuple[bytes, bytes]], name: str) -> str | None:
    """Return the first header of this name in an ASGI scope."""
    wanted = name.encode("ascii")
    return next((value.decode("latin-1") for key, value in headers if key == wanted), None)
