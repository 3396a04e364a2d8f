"""What the stores behind a server share: their addresses, without passwords."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from embedsmith.errors import ConfigurationError

SECRETS = frozenset({"password", "sslpassword", "ssl_password"})  # options whose value is never shown


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

    def refuse(self, fault: object, expected: str) -> ConfigurationError:
        """Return the error for an address that no store can have."""
        return ConfigurationError(f"{self.shown} cannot be used: {self.censor(fault)}", expected=expected)

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
    if " " in url or not url.isprintable() or len(dict(options)) < len(options):  # the driver would take the last one
        raise _unreadable(kind)
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
    address = Address(_keep_slashes(target, url), _keep_slashes(shown, url), name, tuple(filter(None, secrets)))
    if fault := next(filter(None, map(_find_fault, host.split(","))), ""):
        raise address.refuse(fault, f"{kind}://USER:PASSWORD@HOST:PORT/NAME")
    return address


def _find_fault(place: str) -> str:
    """Return why HOST:PORT is no place of a server, "" where it is one."""
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{0,6}))?", place)
    if found is None or (found[2] and not 0 < int(found[2]) < 1 << 16):
        return "its host or port cannot be read; ports are numbers from 1 to 65535"
    name = unquote(found[1])
    try:
        if not name.startswith("/"):  # the folder of a socket
            name.encode("idna")
    except UnicodeError:
        return "a part of its host's name is empty or too long"
    return ""


def _keep_slashes(built: str, url: str) -> str:
    """Return `built` with "//" after the scheme, which urlunsplit drops where there is no host."""
    kind, _, rest = built.partition(":")
    return f"{kind}://{rest}" if "://" in url and not rest.startswith("//") else built


def _unreadable(kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"the {kind}:// URL of the store cannot be read (not shown: it may hold a password)",
        expected=f"{kind}://USER:PASSWORD@HOST:PORT/NAME",
        action="write special characters as %XX (@ is %40, / is %2F, # is %23, ? is %3F, a space %20), and each option "
        "once",
    )
