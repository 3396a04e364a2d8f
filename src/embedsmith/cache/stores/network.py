"""What the stores behind a server share: their addresses without passwords, and exact ranking."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import numpy as np

from embedsmith.cache.stores import Entry, Match
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError

SECRETS = frozenset({"password", "sslpassword", "ssl_password"})  # options whose value is never shown
SPARE = 4  # candidates asked for beyond k
MOST = 2048  # candidates at most: more entries that are equally close are not put in order
ROUNDING = 1e-5  # a server computes in float32, and may order closer similarities than this wrongly


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        target: for the driver, with the password and without our own option.
        shown: for people, without the password.
        name: the value of our own option.
        secrets: what must not be printed.
    """

    target: str
    shown: str
    name: str
    secrets: tuple[str, ...]

    def censor(self, text: object) -> str:
        """Return `text` as one line without the password."""
        line = " ".join(str(text).split())
        for secret in self.secrets:
            line = line.replace(secret, "***")
        return line


def read_address(url: str, *, option: str, default: str, pattern: str) -> Address:
    """Return the parts of `url`; the value of `option` must match `pattern`.

    Raises:
        ConfigurationError: the URL cannot be parsed, or the name is not allowed. It never shows the URL's password.
    """
    kind = url.partition(":")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _unreadable(kind) from None
    # A password with a raw "/", "?" or "#" would end up in the path, and then in messages.
    if parts.fragment or "@" in parts.path + parts.query or parts.netloc.count("@") > 1:
        raise _unreadable(kind)
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    options = parse_qsl(parts.query, keep_blank_values=True)
    name = dict(options).get(option, default)
    if not re.fullmatch(pattern, name):
        raise ConfigurationError(f"{option}={name!r} is no name for a store", expected=f"a match of {pattern}")
    rest = [(key, value) for key, value in options if key != option]
    secrets = [value for key, value in rest if key in SECRETS]
    host = parts.netloc.rpartition("@")[2]
    target = urlunsplit(parts._replace(query=urlencode(rest, quote_via=quote)))
    public = urlencode([(key, value) for key, value in options if key not in SECRETS], quote_via=quote, safe="/")
    shown = urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host, query=public))
    if colon:
        secrets += [password, unquote(password)]
    return Address(_keep_slashes(target, url), _keep_slashes(shown, url), name, tuple(filter(None, secrets)))


def _keep_slashes(built: str, url: str) -> str:
    """Return `built` with "//" after the scheme, which urlunsplit drops where there is no host."""
    kind, _, rest = built.partition(":")
    return f"{kind}://{rest}" if "://" in url and not rest.startswith("//") else built


def _unreadable(kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"the {kind}:// URL of the store cannot be read (not shown: it may hold a password)",
        expected=f"{kind}://USER:PASSWORD@HOST:PORT/NAME",
        action="write special characters of the password as %XX (@ is %40, / is %2F, # is %23, ? is %3F)",
    )


def rank(vector: Embeddings, k: int, now: float, near: Callable[[int], Sequence[Entry]]) -> list[Match]:
    """Return the `k` closest living entries, closest first, ties by id, with cosines computed in float64.

    Args:
        near: from a number to that many entries, the closest by the server's reckoning, or all there are.
    """
    wanted = k + SPARE
    while True:
        found = near(wanted)
        matches = score(vector, [entry for entry in found if entry.alive(now)])
        # What was not fetched cannot belong to the first k once the last one fetched is clearly farther.
        settled = len(matches) > k and matches[k - 1].similarity - matches[-1].similarity > ROUNDING
        if settled or len(found) < wanted or wanted >= MOST:
            return matches[:k]
        wanted = min(4 * wanted, MOST)


def score(vector: Embeddings, entries: Sequence[Entry]) -> list[Match]:
    """Return a match for each entry, closest first, ties by id; vectors of length 0 match nothing (0.0)."""
    if not entries:
        return []
    rows = np.stack([entry.vector for entry in entries]).astype(np.float64)
    query = vector.astype(np.float64)
    # A sum per row, not a matrix product: BLAS may round equal rows differently, and ties would break.
    products = (rows * query).sum(axis=1)
    lengths = np.sqrt((rows * rows).sum(axis=1) * (query * query).sum())
    cosines = np.clip(products / np.where(lengths == 0, 1, lengths), -1, 1)
    matches = [Match(entry, float(cosine)) for entry, cosine in zip(entries, cosines, strict=True)]
    return sorted(matches, key=lambda match: (-match.similarity, match.entry.id))
