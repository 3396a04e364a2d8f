"""The server put together: routes, the admin's token, start and stop."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from embedsmith.cache.chat import Allowances
from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import normalize
from embedsmith.server.dashboard import page, state
from embedsmith.server.proxy import LARGEST, Proxy, TooLarge, read_limited, refuse
from embedsmith.server.watch import Watch

TIMEOUT = 600.0  # seconds the upstream may take for an answer
MOST_TEXTS = 2048  # of one embeddings request
Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    cache: SemanticCache,
    *,
    upstream: str,
    admin_token: str,
    secret: bytes,
    upstream_key: str | None = None,
    allowed: Allowances | None = None,
    served_model: str = "embedsmith",
    largest: int = LARGEST,
    timeout: float = TIMEOUT,
    shadow: bool = False,
) -> Starlette:
    """Return the ASGI application of the proxy, the embeddings endpoint and the dashboard.

    Args:
        upstream: base URL with its /v1. admin_token: needed for the dashboard and all that changes entries.
        secret: key of the hash that makes tenants of API keys; another secret, other tenants.
        shadow: serve nothing from the cache, only say in headers, metrics and dashboard what would have been.
        served_model: the model name under which /v1/embeddings answers with the cache's own encoder.
    """
    client = httpx.AsyncClient(base_url=upstream.rstrip("/") + "/", timeout=httpx.Timeout(timeout, connect=10.0))
    watch = Watch(cache, shadow=shadow)
    proxy = Proxy(cache, client, secret, watch, allowed or Allowances(), upstream_key, largest, shadow)
    admin = Admin(cache, watch, admin_token)
    embeddings = Embedder(cache, proxy, served_model)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(watch.exposition), media_type="text/plain; version=0.0.4")

    everything = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/dashboard", admin.dashboard),
            Route("/admin/state", admin.guarded(admin.state)),
            Route("/admin/entries", admin.guarded(admin.search)),
            Route("/admin/mark", admin.guarded(admin.mark), methods=["POST"]),
            Route("/admin/judge", admin.guarded(admin.judge), methods=["POST"]),
            Route("/admin/usual", admin.guarded(admin.usual), methods=["POST"]),
            Route("/admin/purge", admin.guarded(admin.purge), methods=["POST"]),
            Route("/v1/chat/completions", proxy.chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings.answer, methods=["POST"]),
            Route("/v1/{path:path}", proxy.forward, methods=everything),
        ],
        lifespan=lifespan,
    )
    app.state.watch = watch
    return app


class Embedder:
    """/v1/embeddings: the cache's own encoder under its name, any other model from the upstream."""

    def __init__(self, cache: SemanticCache, proxy: Proxy, served_model: str) -> None:
        self._cache, self._proxy, self._served = cache, proxy, served_model

    async def answer(self, request: Request) -> Response:
        try:
            raw = await read_limited(request, self._proxy.largest)
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise ValueError("the body must be an object")
            if body.get("model") != self._served:
                return await self._proxy.forward(request, raw)
            texts, dimensions = _read_texts(body), _read_dimensions(body)
        except TooLarge:
            return refuse(413, f"the request has more than {self._proxy.largest} bytes")
        except (ValueError, RecursionError) as error:
            return refuse(400, str(error))
        vectors = await run_in_threadpool(self._cache.encoder.encode, texts)
        if dimensions is not None:
            if dimensions > vectors.shape[1]:
                return refuse(400, f"dimensions {dimensions}: the model has {vectors.shape[1]}")
            vectors = normalize(vectors[:, :dimensions])
        rows = [_write_vector(row, body.get("encoding_format")) for row in vectors]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        words = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": words, "total_tokens": words}
        return JSONResponse({"object": "list", "model": self._served, "data": data, "usage": usage})


def _read_texts(body: dict[str, Any]) -> list[str]:
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("input must be a text or a list of texts")
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{len(texts)} texts; at most {MOST_TEXTS} at once")
    return texts


def _read_dimensions(body: dict[str, Any]) -> int | None:
    given = body.get("dimensions")
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError("dimensions must be a positive whole number")
    return given


def _write_vector(row: np.ndarray[Any, np.dtype[np.float32]], form: object) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in row]


class Admin:
    """What only the holder of the token may see and do."""

    def __init__(self, cache: SemanticCache, watch: Watch, token: str) -> None:
        self._cache, self._watch, self._token = cache, watch, token

    def guarded(self, handler: Handler) -> Handler:
        """Return the handler behind the token: in the header `Authorization: Bearer TOKEN`."""

        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
                return refuse(401, "the admin token is missing or wrong")
            return await handler(request)

        return checked

    async def dashboard(self, _: Request) -> Response:
        """Return the page; it holds no data, and asks for them with the token of its address (#TOKEN)."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page(), headers={"content-security-policy": policy, "referrer-policy": "no-referrer"})

    async def state(self, _: Request) -> Response:
        return JSONResponse(await run_in_threadpool(state, self._cache, self._watch))

    async def search(self, request: Request) -> Response:
        wanted = request.query_params.get("text", "").casefold()

        def find() -> list[dict[str, Any]]:
            found = []
            for entry in self._cache.store.scan():
                if wanted in entry.text.casefold():
                    row = asdict(entry) | {"size": entry.size, "tags": list(entry.tags), "answer": entry.answer[:2000]}
                    del row["vector"]
                    found.append(row)
                if len(found) == 100:
                    break
            return found

        return JSONResponse({"entries": await run_in_threadpool(find)})

    async def mark(self, request: Request) -> Response:
        """Mark lookup `number` as a wrong hit (verdict "wrong") or as a miss that was a duplicate ("same")."""
        body = await _small_object(request)
        seen = self._watch.find(body.get("number", 0)) if body is not None else None
        if body is None or seen is None or body.get("verdict") not in {"wrong", "same"} or not seen.nearest_id:
            return refuse(400, "expected the number of a lookup that is still listed, and the verdict wrong or same")
        if body["verdict"] == "same":
            mark = partial(self._cache.mark_same, seen.text, seen.nearest, namespace=seen.namespace)
        else:
            mark = partial(self._cache.mark_wrong, seen.text, seen.nearest_id, seen.nearest, namespace=seen.namespace)
        await run_in_threadpool(mark)
        return JSONResponse({"marked": body["verdict"]})

    async def judge(self, request: Request) -> Response:
        """Record a person's verdict ("same" or "different") on sample `number`; a wrong answer served goes."""
        body = await _small_object(request)
        number = body.get("number") if body is not None else None
        if body is None or body.get("verdict") not in {"same", "different"} or type(number) is not int:
            return refuse(400, "expected the number of a sample, and the verdict same or different")
        label = int(body["verdict"] == "same")
        try:
            known = await run_in_threadpool(self._watch.oversight.judge, number, label)
        except OSError as error:
            return refuse(503, f"the verdict could not be written, the sample waits on ({error.strerror})")
        if not known:
            return refuse(409, "the sample has a verdict already, or there is no such sample")
        return JSONResponse({"judged": body["verdict"]})

    async def usual(self, _: Request) -> Response:
        """Take the latest stream of questions as the usual one; its alarm ends."""
        self._watch.oversight.stream.accept()
        return JSONResponse({"usual": "the latest lookups"})

    async def purge(self, request: Request) -> Response:
        """Remove entries by `id`, or by `namespace` and `tag`; {"all": true} removes all."""
        body = await _small_object(request)
        if body is None or not (body.keys() & {"id", "namespace", "tag"} or body.get("all") is True):
            return refuse(400, 'expected "id", "namespace", "tag" or {"all": true}')
        if isinstance(body.get("id"), str):
            gone = await run_in_threadpool(self._cache.store.delete, [body["id"]])
        else:
            rules = {name: str(body[name]) for name in ("namespace", "tag") if body.get(name) is not None}
            gone = await run_in_threadpool(lambda: self._cache.purge(**rules))
        return JSONResponse({"removed": gone})


async def _small_object(request: Request) -> dict[str, Any] | None:
    try:
        body = json.loads(await read_limited(request, 1 << 16))
    except (ValueError, TooLarge, RecursionError):
        return None
    return body if isinstance(body, dict) else None
