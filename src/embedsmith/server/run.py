"""The server as a process: where it listens, what it needs from the environment, how it starts and stops."""

from __future__ import annotations

import errno
import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from embedsmith.artifacts import sync_folder
from embedsmith.cache.chat import Allowances
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Store, kind_of
from embedsmith.cache.stores.sqlite import path_of
from embedsmith.calibration import bound_rate
from embedsmith.choices import LogMode
from embedsmith.errors import ConfigurationError, MissingPartError, require_address
from embedsmith.hosted import HostedEncoder
from embedsmith.server.headers import ANY

SIMULATOR = "simulator:"
ADMIN_TOKEN, UPSTREAM_KEY, SECRET = "EMBEDSMITH_ADMIN_TOKEN", "EMBEDSMITH_UPSTREAM_KEY", "EMBEDSMITH_SECRET"
SECRET_BYTES = 32
GRACE = 25  # seconds: Kubernetes kills after 30


@dataclass(frozen=True, slots=True)
class Service:
    """Where the server listens and what it stands in front of.

    From the environment, never from the command line: EMBEDSMITH_ADMIN_TOKEN (else a new one is printed),
    EMBEDSMITH_SECRET (64 hex digits; makes tenants of API keys; needed where several servers share a store),
    EMBEDSMITH_UPSTREAM_KEY (for clients that bring no key), and OpenTelemetry's own OTEL_* (tracing is on with
    OTEL_EXPORTER_OTLP_ENDPOINT).

    Attributes:
        log: "text", "json" or "off"; see `logs`.
        ignored_headers: of requests, that need not be equal for a stored answer to serve (`server.headers`).
        origins: whose web pages may read what /v1 answers (`server.origins`).
        hosts: further names under which it may be called (`server.hosts`); "*" is all.
        prompt_price, completion_price: of a million tokens upstream, for the dashboard's money saved.
        store_timeout: seconds that a lookup, or storing an answer, may hold a request up in Redis or PostgreSQL.
        max_body: MiB of a request that is read here (chat, embeddings).
        truncate: embed the beginning of texts that are too long where a request does not say so itself.
        grace: seconds that a stop (SIGTERM, Ctrl-C) waits for answers on their way before it cuts them off.
    """

    upstream: str
    store: str
    host: str = "127.0.0.1"
    port: int = 8080
    allowed: Allowances = field(default_factory=Allowances)
    shadow: bool = False
    log: LogMode = "text"
    prompt_price: float = 0.0
    completion_price: float = 0.0
    ignored_headers: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    store_timeout: float = 1.0
    max_body: int = 8
    grace: int = GRACE
    truncate: bool = False

    def __post_init__(self) -> None:
        if self.upstream != SIMULATOR:
            require_address(self.upstream, "https://api.openai.com/v1, or simulator:")


def listen(cache: SemanticCache, service: Service, *, say: Callable[[str], None]) -> None:
    """Serve until the process is told to stop; the store is closed on the way out. For the main thread."""
    try:
        from embedsmith.server.app import SERVED_MODEL, create_app
        from embedsmith.server.logs import open_log
        from embedsmith.server.spans import spans_from_environment
        from embedsmith.server.watch import Prices
        from embedsmith.server.wire import make_server
    except ImportError:
        raise MissingPartError(
            "serving needs starlette and uvicorn", action="pip install 'embedsmith[serve]'"
        ) from None
    log, records = open_log(service.log)
    spans, flush = spans_from_environment()
    given = read_token(ADMIN_TOKEN)
    token = given or secrets.token_urlsafe(24)
    with _unwind_at_stop(), ExitStack() as stack:
        stack.callback(cache.close)
        stack.callback(flush)
        if log is not None:
            stack.callback(log.close)
        stack.enter_context(_handle_records(records))
        listener = stack.enter_context(_bind(service))
        upstream = service.upstream
        if upstream == SIMULATOR:
            from embedsmith.testing import FaultyServer

            upstream = stack.enter_context(FaultyServer(answer=_echo, delay=0.4, pause=0.03)).base_url
        if lost := describe_lost_secret(service.store, cache.store):
            say(lost)
        app = create_app(
            cache,
            upstream=upstream,
            admin_token=token,
            secret=read_secret(service.store),
            upstream_key=read_token(UPSTREAM_KEY),
            allowed=service.allowed,
            shadow=service.shadow,
            ignored_headers=service.ignored_headers,
            origins=service.origins,
            hosts=names_of(service, listener),
            store_seconds=service.store_timeout,
            largest=service.max_body << 20,
            truncate=service.truncate,
            prices=Prices(service.prompt_price, service.completion_price),
            log=log,
            spans=spans,
        )
        address = address_of(service.host, listener)
        say(f"upstream          {describe_upstream(service.upstream)}")
        say(f"OpenAI clients    base_url={address}/v1")
        say(f'embeddings        model="{SERVED_MODEL}" is this model; any other name goes to the upstream')
        # What is printed ends up in logs: a token that outlives the process does not belong there.
        asked = "   it asks for the token, that of EMBEDSMITH_ADMIN_TOKEN" if given else f"#{token}"
        say(f"dashboard         {address}/dashboard{asked}")
        warm_up(cache)
        gc.collect()
        gc.freeze()  # what is there now stays: no collection need look through it while requests wait
        make_server(app, graceful=service.grace).run(sockets=[listener])


def describe_upstream(url: str) -> str:
    """Return the base address as it is used; one without a path is the most common slip, and right for few servers."""
    bare = url != SIMULATOR and not urlsplit(url).path.strip("/")
    return f"{url} (it is asked for /chat/completions: most take /v1 at the end)" if bare else url


def warm_up(cache: SemanticCache) -> None:
    """Do what a lookup does, once: the first time takes many times as long, and nobody should wait for it.

    A hosted model is not called: its calls cost money, and there is nothing of it here.
    """
    if not isinstance(cache.encoder, HostedEncoder):
        cache.encoder.encode(["How do I change my address?"])
    if cache.policy.guard is not None:
        cache.policy.guard("How do I change my address?", "Where do I change my name?")
    if cache.samples is not None:
        bound_rate(0, 1, 0.05)  # what the dashboard asks for; it imports scipy


class _Stop(BaseException):
    """SIGTERM, as an exception: it goes up through everything that has something to close."""


@contextmanager
def _unwind_at_stop() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception does, and end the process by that signal only then.

    uvicorn finishes its answers and raises the signal again: by default that ends the process on the spot, and with
    it the store's last uses, the last spans and the log's last line. A second SIGTERM waits for nothing.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        raise _Stop

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Stop:
        signal.raise_signal(signal.SIGTERM)  # so that who has stopped the process sees that it obeyed
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _handle_records(handler: logging.Handler) -> Iterator[None]:
    """Let `handler` alone write what is logged in this process."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before


def require_port(service: Service) -> None:
    """Find out whether `listen` will get its port, and give it back: a model takes seconds to load, and this none.

    Raises:
        ConfigurationError: the port is taken, may not be used, or the host is none of this machine.
    """
    _bind(service).close()


def require_environment(store: str) -> None:
    """Find out whether `listen` can use what the environment holds, before a model is loaded; no key is made.

    Raises:
        ConfigurationError: a token that no header carries, or see `read_secret`.
    """
    for name in (ADMIN_TOKEN, UPSTREAM_KEY):
        read_token(name)
    if not _lacks_secret(store):
        read_secret(store)


def _bind(service: Service) -> socket.socket:
    if not service.host:  # which the system takes for all networks of this machine
        raise ConfigurationError(
            "the host to listen on is empty",
            expected="an address of this machine; 127.0.0.1 is for this machine only, 0.0.0.0 for all its networks",
            action="leave --host out, or say which",
        )
    try:
        family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
        return socket.create_server((service.host, service.port), family=family)
    except OSError as error:
        raise _refuse_port(service, error) from None


def _refuse_port(service: Service, error: OSError) -> ConfigurationError:
    where = f"{service.host}:{service.port}"
    told = f"{where} cannot be listened on"
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"{told}: another program has the port, maybe an `embedsmith serve` that still runs",
            expected="a free port",
            action=f"stop that one (`lsof -i :{service.port}` says which), or choose another --port",
        )
    if error.errno == errno.EACCES:
        return ConfigurationError(
            f"{told}: this user may not use it",
            expected="a port from 1024 on, as a rule",
            action="choose another --port",
        )
    return ConfigurationError(
        f"{told}: {error.strerror or error}",
        expected="an address of this machine, and a free port of it",
        action="choose another --host or --port",
    )


def address_of(host: str, listener: socket.socket) -> str:
    """Return the base URL of a server on `host`: an IPv6 address in brackets, and the port that it really got."""
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{listener.getsockname()[1]}"


def names_of(service: Service, listener: socket.socket) -> frozenset[str]:
    """Return the names under which alone the server answers, empty for all.

    On an address that only this machine reaches, a foreign name is a trick (`server.hosts`). Elsewhere names of the
    network lead to it that it cannot know, so there it asks only if it is told of some.
    """
    local = ip_address(listener.getsockname()[0]).is_loopback
    if ANY in service.hosts or not (local or service.hosts):
        return frozenset()
    return frozenset({service.host.lower(), *service.hosts})


def read_token(name: str) -> str | None:
    """Return a token of the environment, None where it is empty; secrets kept in files often end with a line break.

    Raises:
        ConfigurationError: no header can carry it.
    """
    token = os.environ.get(name, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise ConfigurationError(
            f"{name} holds a character that no header carries as it is (not shown)",
            expected="letters, digits and marks of ASCII, on one line",
            action=f"export {name}=... anew; where the file has several lines, only the one with the token",
        )
    return token or None


def read_secret(store: str) -> bytes:
    """Return the key that makes tenants of API keys, at least 32 bytes.

    EMBEDSMITH_SECRET (hex digits), else the file beside a SQLite store (made once, for its owner only), else
    a new one for a store that ends with the process.

    Raises:
        ConfigurationError: a store that several servers share, and no EMBEDSMITH_SECRET; or what is there is no
            key: with a short one, keys of clients could be guessed from their tenants.
    """
    given = os.environ.get(SECRET, "")
    if given:
        return _parse_secret(given, SECRET, "export EMBEDSMITH_SECRET=$(openssl rand -hex 32)")
    kind = kind_of(store)
    if kind == "memory":
        return secrets.token_bytes(SECRET_BYTES)
    if kind != "sqlite":
        raise ConfigurationError(
            "EMBEDSMITH_SECRET is not set",
            expected="the same 64 hex digits on every server that shares the store, so that tenants stay the same",
            action="export EMBEDSMITH_SECRET=$(openssl rand -hex 32)",
        )
    path = _secret_of(store)
    try:
        if not path.exists():
            _make_secret(path)
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be made or read: {error.strerror or error}",
            expected="a folder for the store and its key, which this user can write",
            action="mend that, or set EMBEDSMITH_SECRET (64 hex digits)",
        ) from None
    remedy = f"put the file back; or remove it for a new key: what is stored is then found no more. File: {path}"
    return _parse_secret(text, str(path), remedy)


def describe_lost_secret(url: str, store: Store) -> str:
    """Return what to say before `read_secret` makes a new key beside a SQLite store that has entries, "" else.

    With another key every client is another tenant: nothing that any of them has stored is found again.
    """
    if not _lacks_secret(url):
        return ""
    held = store.count().entries
    if not held:
        return ""
    return (
        f"warning  {_secret_of(url)} is missing, and {store.url} holds answers ({held:,}): with the new key that is "
        "made now, no tenant finds what it has stored. To do: stop, put the file back (or set EMBEDSMITH_SECRET to the "
        'key that was used) and start again; if the key is lost, remove the entries: /admin/purge with {"all": true}'
    )


def _lacks_secret(store: str) -> bool:
    """Say whether `read_secret` would make a new key beside a SQLite store."""
    return not os.environ.get(SECRET) and kind_of(store) == "sqlite" and not _secret_of(store).exists()


def _secret_of(store: str) -> Path:
    file = path_of(store)
    return file.with_name(f"{file.name}.secret")


def _parse_secret(text: str, where: str, action: str) -> bytes:
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        raise ConfigurationError(f"{where} is not hex", expected="64 hex digits", action=action) from None
    if len(secret) < SECRET_BYTES:
        raise ConfigurationError(
            f"{where} has {len(secret)} bytes", expected=f"at least {SECRET_BYTES}: 64 hex digits", action=action
        )
    return secret


def _make_secret(path: Path) -> None:
    """Write a new key so that it is there whole or not at all; of several servers that do so, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
            handle.write(secrets.token_hex(SECRET_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
        with suppress(FileExistsError):  # another server was faster: its key counts
            os.link(own, path)
        sync_folder(path.parent)
    finally:
        own.unlink(missing_ok=True)


def _echo(question: str) -> str:
    return f"This is the simulated upstream. You asked: “{question.strip()}”. A real model would answer here."
