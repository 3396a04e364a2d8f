"""What a client may ask of the cache for one request, and what the cache tells it: headers, both ways."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from embedsmith.cache.semantic import Lookup

ASKED = (
    "x-embedsmith-cache"  # e.g. "no-store", "no-cache", "only-if-cached", "ttl=60", "namespace=team-a"; commas between
)
IDENTITY = (  # headers that say who asks
    *("authorization", "api-key", "x-api-key", "x-goog-api-key"),
    *("openai-organization", "openai-project", "anthropic-version", "cookie"),
)
TENANT_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Control:
    """The wishes of one request.

    Attributes:
        read: answer from the cache. write: store the answer. only_cached: never ask the upstream.
        ttl: seconds to live. namespace: a part of the tenant's own space (it never leads out of it).
    """

    read: bool = True
    write: bool = True
    only_cached: bool = False
    ttl: float | None = None
    namespace: str = ""


def read_control(headers: Mapping[str, str]) -> Control:
    """Return the wishes in the request's headers.

    Raises:
        ValueError: a word that is none of them, or a ttl that is no positive number.
    """
    read, write, only, ttl, namespace = True, True, False, None, ""
    for wish in filter(None, (part.strip() for part in headers.get(ASKED, "").split(","))):
        name, _, value = wish.partition("=")
        match name.strip().lower(), value.strip():
            case "no-store", "":
                write = False
            case "no-cache", "":
                read = False
            case "only-if-cached", "":
                only = True
            case "ttl", seconds if seconds:
                ttl = float(seconds)
                if not 0 < ttl < float("inf"):
                    raise ValueError(f"{ASKED}: ttl {seconds} is not a positive number of seconds")
            case "namespace", text if text:
                namespace = text
            case _:
                raise ValueError(f"{ASKED}: {wish!r} is none of no-store, no-cache, only-if-cached, ttl=, namespace=")
    return Control(read, write, only, ttl, namespace)


def tenant_of(headers: Mapping[str, str], query: str, secret: bytes, namespace: str = "") -> str:
    """Return the namespace of whoever sends these headers: a keyed hash of all that says who it is.

    Neither keys nor names are kept. The query string counts too: some providers put a version or a key there.
    """
    who = [headers.get(name, "") for name in IDENTITY] + [query]
    told = "\0".join(who).encode("utf-8", "surrogateescape")
    tenant = hmac.new(secret, told, hashlib.sha256).hexdigest()[:TENANT_DIGITS]
    return f"{tenant}/{namespace}" if namespace else tenant


def describe(found: Lookup | None, reason: str = "") -> dict[str, str]:
    """Return the headers that say what the cache did, and why."""
    if found is None:
        return {ASKED: "pass", "x-embedsmith-reason": _ascii(reason)}
    decision = found.decision
    told = {ASKED: "hit" if found.hit else "miss", "x-embedsmith-reason": _ascii(decision.told)}
    if decision.similarity is not None:
        told["x-embedsmith-similarity"] = f"{decision.similarity:.4f}"
    if found.probability is not None:
        told["x-embedsmith-probability"] = f"{found.probability:.3f}"
    if decision.entry is not None and found.age is not None:
        told |= {"x-embedsmith-entry": decision.entry.id, "x-embedsmith-age": str(int(found.age))}
    return told


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii").replace("\n", " ")
