"""The server put together: routes, the admin's token, start and stop."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from embedsmith.cache.chat import Allowances
from embedsmith.cache.semantic import SemanticCache
from embedsmith.server.batching import ROOM
from embedsmith.server.bodies import LARGEST, read_object
from embedsmith.server.dashboard import find_entries, page, render, state
from embedsmith.server.edge import BODY_SECONDS, REFUSALS, Edge, read_limited, refuse, require_json
from embedsmith.server.embeddings import Embedder
from embedsmith.server.gate import SECONDS, gated
from embedsmith.server.headers import read_asker, read_ignored, read_origins
from embedsmith.server.hosts import Hosts
from embedsmith.server.logs import RequestLog
from embedsmith.server.openapi import describe_api
from embedsmith.server.origins import Lending, Origins
from embedsmith.server.proxy import Proxy
from embedsmith.server.spans import Spans
from embedsmith.server.trail import trail_of
from embedsmith.server.upstream import Upstream
from embedsmith.server.watch import Prices, Seen, Watch, explain
from embedsmith.text import is_storable

SERVED_MODEL = "embedsmith"  # the name under which /v1/embeddings answers with the cache's own encoder
TIMEOUT = 600.0  # seconds the upstream may take for an answer
NO_PAIR = "there is nothing to mark: no two different questions; a wrong answer is removed by /admin/purge"
OF_PAGE = {  # nothing but what the page brings along, in no other page's frame
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
EVERYTHING = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    cache: SemanticCache,
    *,
    upstream: str,
    admin_token: str,
    secret: bytes,
    upstream_key: str | None = None,
    allowed: Allowances | None = None,
    served_model: str = SERVED_MODEL,
    largest: int = LARGEST,
    timeout: float = TIMEOUT,
    shadow: bool = False,
    prices: Prices | None = None,
    body_seconds: float = BODY_SECONDS,
    room: int = ROOM,
    truncate: bool = False,
    store_seconds: float = SECONDS,
    ignored_headers: Iterable[str] = (),
    origins: Iterable[str] = (),
    hosts: Collection[str] = (),
    log: RequestLog | None = None,
    spans: Spans | None = None,
) -> Starlette:
    """Return the ASGI application of the proxy, the embeddings endpoint and the dashboard.

    Args:
        upstream: base URL with its /v1. admin_token: needed for the dashboard and all that changes entries.
        secret: key of the hash that makes tenants of API keys; another secret, other tenants.
        shadow: serve nothing from the cache, only say in headers, metrics and dashboard what would have been.
        prices: of the upstream, for the money saved.
        served_model: the model name under which /v1/embeddings answers with the cache's own encoder.
        largest: bytes of a request that is read here (chat, embeddings); all else is passed on whatever its size.
        body_seconds: within which a body must have come, of what is passed on each `edge.SHARE` bytes.
        timeout: seconds that the upstream may take.
        store_seconds: that a lookup, or storing an answer, may hold a request up in a store on another machine.
        room: texts that may wait for the encoder before /v1/embeddings answers 429.
        truncate: embed the beginning of texts that are too long where a request does not say; else they are refused.
        ignored_headers: of requests, beyond those known (`headers`), that change no answer.
        origins: whose web pages may read what /v1 answers (`origins`).
        hosts: names under which alone the server answers (`hosts`), whatever the path; () is all.
        log: hears of every finished request (`logs.open_log`). spans: OpenTelemetry's (`spans.open_spans`).
    """
    cache = gated(cache, store_seconds)
    watch = Watch(cache, shadow=shadow, prices=prices)
    way = Upstream(upstream, key=upstream_key, timeout=timeout, watch=watch)
    ignored, pages = read_ignored(ignored_headers), read_origins(origins)
    proxy = Proxy(cache, way, secret, watch, allowed or Allowances(), largest, body_seconds, shadow, ignored)
    admin = Admin(cache, watch, admin_token, secret)
    embeddings = Embedder(cache.encoder, proxy, served_model, room=room, truncate=truncate)
    description = describe_api(served_model=served_model, largest=largest)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await way.close()
        if watch.gate is not None:
            watch.gate.close()

    async def health(_: Request) -> Response:
        failing = list(watch.troubles)  # the server answers all the same, so it is not to be restarted for this
        return JSONResponse({"status": "degraded", "failing": failing} if failing else {"status": "ok"})

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(watch.exposition), media_type="text/plain; version=0.0.4")

    async def openapi(_: Request) -> Response:
        return JSONResponse(description)

    told = [Middleware(Origins, allowed=pages)] if pages else []
    named = [Middleware(Hosts, allowed=hosts)] if hosts else []
    lent = [Middleware(Lending, allowed=pages)] if upstream_key else []
    app = Starlette(
        routes=[
            # First what is asked most: each path before the right one costs a search.
            Route("/v1/chat/completions", proxy.chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings.answer, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/", lambda _: RedirectResponse("dashboard")),
            Route("/dashboard", admin.dashboard),
            Route("/admin/state", admin.guarded(admin.state)),
            Route("/admin/entries", admin.guarded(admin.search)),
            Route("/admin/mark", admin.guarded(admin.mark), methods=["POST"]),
            Route("/admin/judge", admin.guarded(admin.judge), methods=["POST"]),
            Route("/admin/usual", admin.guarded(admin.usual), methods=["POST"]),
            Route("/admin/tenant", admin.guarded(admin.tenant), methods=["POST"]),
            Route("/admin/purge", admin.guarded(admin.purge), methods=["POST"]),
            Route("/v1/completions", proxy.pass_on, methods=["POST"]),
            Route("/v1/responses", proxy.pass_on, methods=["POST"]),
            Route("/v1/models", embeddings.models, methods=["GET"]),
            Route("/v1/models/{model}", embeddings.model, methods=["GET"]),
            Route("/v1/{path:path}", proxy.pass_on, methods=list(EVERYTHING)),
        ],
        middleware=[*told, Middleware(Edge, log=log, spans=spans), *named, *lent],
        exception_handlers=REFUSALS,
        lifespan=lifespan,
    )
    app.state.watch = watch
    return app


class Admin:
    """What only the holder of the token may see and do."""

    def __init__(self, cache: SemanticCache, watch: Watch, token: str, secret: bytes) -> None:
        self._cache, self._watch, self._token, self._secret = cache, watch, token, secret

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler behind the token: in the header `Authorization: Bearer TOKEN`."""

        async def checked(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
            right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token.encode())
            if not (right and self._token) or scheme.lower() != "bearer":  # the scheme in any case: RFC 9110
                return refuse(401, "the admin token is missing or wrong", {"www-authenticate": "Bearer"})
            return await handler(request)

        return checked

    async def dashboard(self, _: Request) -> Response:
        """Return the page; it holds no data, and asks for them with the token of its address (#TOKEN)."""
        return HTMLResponse(page(), headers=OF_PAGE)

    async def state(self, _: Request) -> Response:
        watch = self._watch
        # Taken here on the loop, where they grow: a thread could read them while they do.
        latest, troubles = tuple(watch.latest), tuple(watch.troubles.values())
        return await _show(lambda: state(self._cache, watch, latest, troubles))

    async def search(self, request: Request) -> Response:
        """Return the newest entries that hold a text, how many hold it, and whether all were looked through."""
        wanted = request.query_params.get("text", "").casefold()
        try:
            return await _show(lambda: find_entries(self._cache.store, wanted))
        except Exception as error:  # noqa: BLE001  whatever a store or its driver raises
            return _refuse_store(request, error)

    async def mark(self, request: Request) -> Response:
        """Mark lookup `number` as a wrong hit (verdict "wrong") or as a miss that was a duplicate ("same")."""
        body = await _small_object(request)
        number = _whole(body.get("number")) if body is not None else None
        seen = self._watch.find(number) if number is not None else None
        if body is None or seen is None or body.get("verdict") not in ("wrong", "same"):
            return refuse(400, "expected the number of a lookup that is still listed, and the verdict wrong or same")
        verdict = body["verdict"]
        if verdict != seen.mark:
            return refuse(400, f"lookup {seen.number} can be marked {seen.mark!r} only" if seen.mark else NO_PAIR)
        if verdict == "same" and not self._cache.keeps_marks:
            return refuse(409, "the pair cannot be kept: start the server with --feedback FILE")
        if seen.number in self._watch.marked:
            return refuse(409, "this lookup is marked already")
        return await self._mark(seen)

    async def _mark(self, seen: Seen) -> Response:
        if seen.mark == "same":
            mark = partial(self._cache.mark_same, seen.text, seen.nearest, namespace=seen.namespace)
        else:
            mark = partial(self._cache.mark_wrong, seen.text, seen.served_id, seen.served, namespace=seen.namespace)
        self._watch.marked.add(seen.number)  # before anything else happens, so that two at once count once
        try:
            kept = await run_in_threadpool(mark)
        except Exception as error:  # noqa: BLE001  the file, the encoder or the store, each with errors of its own
            self._watch.marked.discard(seen.number)
            return refuse(503, f"the mark could not be carried out whole ({_name(error)}); mark it again")
        return JSONResponse({"marked": seen.mark, "removed": seen.mark == "wrong", "kept": kept})

    async def judge(self, request: Request) -> Response:
        """Record a person's verdict ("same" or "different") on sample `number`; a wrong answer served goes."""
        body = await _small_object(request)
        number = _whole(body.get("number")) if body is not None else None
        if body is None or body.get("verdict") not in ("same", "different") or number is None:
            return refuse(400, "expected the number of a sample, and the verdict same or different")
        label = int(body["verdict"] == "same")
        try:
            known = await run_in_threadpool(self._watch.oversight.judge, number, label)
        except OSError as error:
            return refuse(503, f"the verdict could not be written, the sample waits on ({_name(error)})")
        except Exception as error:  # noqa: BLE001  whatever a store or its driver raises
            return refuse(503, f"the verdict is kept, but the wrong answer could not be removed ({_name(error)})")
        if not known:
            return refuse(409, "the sample has a verdict already, or there is no such sample")
        return JSONResponse({"judged": body["verdict"]})

    async def usual(self, _: Request) -> Response:
        """Take the questions from now on as the usual stream; its alarm ends."""
        self._watch.oversight.stream.accept()
        return JSONResponse({"usual": "the questions from now on"})

    async def tenant(self, request: Request) -> Response:
        """Return the namespace of who sends this API `key` as a bearer token, or these `headers` and `query`.

        It is what /admin/purge takes. The key comes in a body, since addresses are logged on their way; it is kept
        nowhere and is in no answer.
        """
        body = await _small_object(request)
        sender = _read_sender(body) if body is not None else None
        if sender is None:
            return refuse(400, 'expected {"key": text}, or {"headers": {name: value}, "query": text} as a client sends')
        headers, query = sender
        return JSONResponse({"namespace": read_asker(headers, query, self._secret).tenant})

    async def purge(self, request: Request) -> Response:
        """Remove entries by `id`, or by `namespace` (and all below it) and `tag`; {"all": true} removes all.

        A `namespace` with `"judged": true` is a tenant whose data are to go: its judged pairs leave the feedback file,
        too, first. Without it they stay: labels outlive answers that are out of date.
        """
        body = await _small_object(request) or {}
        rules = _read_purge(body)
        if rules is None:
            return refuse(
                400,
                'expected {"id": text}, {"namespace": text, "tag": text}, {"all": true}, or a "namespace" '
                'with "judged": true, and without a tag, to remove its judged pairs as well',
            )
        try:
            judged = await run_in_threadpool(self._cache.forget, rules["namespace"]) if body.get("judged") else 0
        except OSError as error:
            return refuse(503, f"nothing was removed: the feedback file cannot be written ({_name(error)})")
        try:
            if "id" in rules:
                gone = await run_in_threadpool(self._cache.store.delete, [rules["id"]])
            else:
                gone = await run_in_threadpool(lambda: self._cache.purge(**rules))
        except Exception as error:  # noqa: BLE001  as in `search`
            return _refuse_store(request, error)
        if rules.keys() == {"namespace"}:
            self._watch.forget(rules["namespace"])
        return JSONResponse({"removed": gone, "judged_removed": judged})


def _read_sender(body: dict[str, Any]) -> tuple[list[tuple[bytes, bytes]], str] | None:
    """Return headers and query of a client, None when they are not said beyond doubt."""
    key, headers, query = body.get("key"), body.get("headers"), body.get("query", "")
    if body.keys() - {"key", "headers", "query"} or (key is None) == (headers is None) or not isinstance(query, str):
        return None
    if headers is None:
        headers = {"authorization": f"Bearer {key.strip()}"} if isinstance(key, str) and key.strip() else None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        return None
    try:
        return [(name.encode("latin-1"), value.strip().encode("latin-1")) for name, value in headers.items()], query
    except UnicodeEncodeError:
        return None


def _read_purge(body: dict[str, Any]) -> dict[str, str] | None:
    """Return what to remove, empty for everything; None when that is not said beyond doubt."""
    rules = {name: value for name, value in body.items() if name in ("id", "namespace", "tag")}
    if not all(isinstance(value, str) and is_storable(value) for value in rules.values()):
        return None
    if body.keys() - rules.keys() - {"all", "judged"} or ("id" in rules and len(rules) > 1):
        return None
    if "judged" in body and not (isinstance(body["judged"], bool) and rules.keys() == {"namespace"}):
        return None
    if "all" in body:
        return rules if body["all"] is True and not rules else None
    return rules or None


def _whole(value: object) -> int | None:
    """Return a whole number as JSON writes it, 3 or 3.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


async def _show(read: Callable[[], dict[str, Any]]) -> Response:
    """Return as JSON what `read` finds in a thread."""
    return Response(await run_in_threadpool(lambda: render(read())), media_type="application/json")


def _refuse_store(request: Request, error: Exception) -> Response:
    trail_of(request).failure = explain(error)
    return refuse(503, f"the store failed ({_name(error)}); the log says more under this request's id")


def _name(error: Exception) -> str:
    """Return what went wrong without the message of a driver, which may quote rows and addresses."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


async def _small_object(request: Request) -> dict[str, Any] | None:
    require_json(request)
    try:
        return read_object(await read_limited(request, 1 << 16))
    except (ValueError, RecursionError):
        return None
