"""What a client may ask of the cache for one request, and what the cache tells it: headers, both ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedsmith.cache.options import ENDLESS
from embedsmith.cache.semantic import Lookup
from embedsmith.server.headers import ASKED, MOST_TOLD

MOST_TAGS = 8  # of one request
LONGEST_TAG = 64  # characters
LONGEST_TOLD = 500  # characters of a header: what the guard found may be long, and Node's fetch takes 16 kB of a head
WISHES = "no-store, no-cache, only-if-cached, ttl=, namespace=, tag="


@dataclass(frozen=True, slots=True)
class Control:
    """The wishes of one request.

    Attributes:
        read: answer from the cache. write: store the answer. only_cached: never ask the upstream.
        ttl: seconds to live. namespace: a part of the tenant's own space (it never leads out of it).
        tags: of the entry that is stored, to purge it by; they decide nothing about which answer serves.
    """

    read: bool = True
    write: bool = True
    only_cached: bool = False
    ttl: float | None = None
    namespace: str = ""
    tags: tuple[str, ...] = ()

    def life(self, most: float | None) -> float | None:
        """Return the seconds that an answer may live, where the server lets it live `most`; None for ever."""
        return min((life for life in (self.ttl, most) if life is not None), default=None)


def read_control(headers: Iterable[str]) -> Control:
    """Return the wishes in the values of the request's X-Embedsmith-Cache headers; of two lives the shorter.

    Raises:
        ValueError: a word that is none of them, a ttl that is no positive number, two namespaces, or a tag that is
            too long, not printable ASCII (all that a header carries as it is), or one too many.
    """
    read, write, only, ttl, namespace = True, True, False, None, ""
    tags: dict[str, None] = {}
    for wish in filter(None, (part.strip() for value in headers for part in value.split(","))):
        name, _, value = wish.partition("=")
        match name.strip().lower(), value.strip():
            case "no-store", "":
                write = False
            case "no-cache", "":
                read = False
            case "only-if-cached", "":
                only = True
            case "ttl", seconds if seconds:
                life = _read_seconds(seconds)
                ttl = life if ttl is None else min(ttl, life)
            case "namespace", text if text:
                if namespace not in ("", text):  # a gateway may have added one to the client's
                    raise ValueError(f"{ASKED}: the namespaces {namespace!r} and {text!r}; at most one")
                namespace = text
            case "tag", text if text:
                tags[_read_tag(text)] = None
            case _:
                raise ValueError(f"{ASKED}: {wish!r} is none of {WISHES}")
    if len(tags) > MOST_TAGS:
        raise ValueError(f"{ASKED}: {len(tags)} tags; at most {MOST_TAGS}")
    return Control(read, write, only, ttl, namespace, tuple(tags))


def _read_tag(text: str) -> str:
    if len(text) > LONGEST_TAG or not (text.isascii() and text.isprintable()):
        raise ValueError(f"{ASKED}: a tag has at most {LONGEST_TAG} characters, all of them printable ASCII")
    return text


def _read_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < ENDLESS:
        raise ValueError(f"{ASKED}: ttl={text} is not a positive number of seconds")
    return seconds


def describe(found: Lookup | None, reason: str = "", narrowed: Sequence[str] = ()) -> dict[str, str]:
    """Return the headers that say what the cache did, and why.

    Args:
        narrowed: names of the request's headers that had to be equal, so that who never gets a hit can see why.
    """
    if found is None:
        return {ASKED: "pass", "x-embedsmith-reason": _ascii(reason)}
    decision = found.decision
    told = {ASKED: "hit" if found.hit else "miss", "x-embedsmith-reason": _ascii(decision.told)}
    if decision.similarity is not None:
        told["x-embedsmith-similarity"] = f"{decision.similarity:.4f}"
    if narrowed:
        told["x-embedsmith-narrowed"] = _ascii(", ".join(narrowed[:MOST_TOLD]))
    if found.probability is not None:
        told["x-embedsmith-probability"] = f"{found.probability:.3f}"
    if decision.entry is not None and found.age is not None:
        told |= {"x-embedsmith-entry": decision.entry.id, "x-embedsmith-age": str(max(int(found.age), 0))}
    return told


def _ascii(text: str) -> str:
    plain = text.encode("ascii", "replace").decode("ascii").replace("\n", " ")
    return plain if len(plain) <= LONGEST_TOLD else f"{plain[:LONGEST_TOLD]} ..."
