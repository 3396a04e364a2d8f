"""/v1/embeddings with the cache's own encoder, and /v1/models, which lists it beside the upstream's models."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from embedsmith.encoder import TOO_LONG, Embeddings, Encoder, find_unread, normalize
from embedsmith.errors import describe_failure
from embedsmith.server.answers import parse
from embedsmith.server.batching import Batcher, Busy, Encoded
from embedsmith.server.bodies import is_encoded, read_aside, read_object
from embedsmith.server.edge import refuse, require_json
from embedsmith.server.proxy import Proxy, bar
from embedsmith.server.trail import Trail, trail_of

MOST_TEXTS = 2048  # of one request
MOST_DIMENSIONS = 1 << 20  # that a request may name; spans hold no number above 64 bits
INLINE = 32 * 1024  # numbers that are written without a thread
QUICK = 4096  # characters that are looked through without a thread
Form = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request for embeddings.

    Attributes:
        dimensions: the first so many, of length 1 again; None for all.
        truncate: embed the beginning of a text that is longer than the model reads; else it is refused, as OpenAI does.
    """

    texts: Sequence[str]
    dimensions: int | None
    form: Form
    truncate: bool = False


class Embedder:
    """The endpoint: the cache's own encoder under its name, any other model from the upstream."""

    def __init__(self, encoder: Encoder, proxy: Proxy, served_model: str, *, room: int, truncate: bool) -> None:
        self._proxy, self._served, self._encoder, self._truncate = proxy, served_model, encoder, truncate
        self._batcher = Batcher(encoder, room=room, on_batch=proxy.watch.encoded)
        self._began = int(time.time())

    async def answer(self, request: Request) -> Response:
        """Answer POST /v1/embeddings."""
        require_json(request)
        raw = await self._proxy.read(request)
        if is_encoded(request):
            return await self._proxy.forward(request, raw)
        try:
            wanted = await read_aside(raw, self._read)
        except (ValueError, RecursionError) as error:
            return refuse(400, str(error))
        if wanted is None:
            return await self._proxy.forward(request, raw)
        return await self._encode(wanted, trail_of(request))

    def _read(self, raw: bytes) -> Wanted | None:
        """Return what a body asks for, None where it asks another model."""
        body = read_object(raw)
        return read_request(body, self._truncate) if body.get("model") == self._served else None

    async def _encode(self, wanted: Wanted, trail: Trail) -> Response:
        span = trail.span.child(f"embeddings {self._served}")
        span.note(
            {
                "gen_ai.operation.name": "embeddings",
                "gen_ai.request.model": self._served,
                "gen_ai.request.encoding_formats": [wanted.form],
                "gen_ai.embeddings.dimension.count": wanted.dimensions,
            }
        )
        try:
            cut = [] if wanted.truncate else await self._find_long(wanted.texts)
            if cut:
                span.fail("400")
                return refuse(400, self._describe_long(cut, len(wanted.texts)))
            done = await self._batcher.encode(wanted.texts)
        except Busy as busy:
            self._proxy.watch.failed("the embeddings queue is full")
            span.fail("429")
            return refuse(429, str(busy), {"retry-after": str(busy.seconds)})
        except Exception as error:  # noqa: BLE001  its message may quote a text
            trail.failure = describe_failure(error)
            span.fail(type(error).__name__)
            return refuse(500, "the encoder failed; the log says why under this request's id")
        else:
            span.note({"gen_ai.usage.input_tokens": done.tokens})
        finally:
            span.end()
        if wanted.dimensions is not None and wanted.dimensions > done.vectors.shape[1]:
            return refuse(400, f"dimensions {wanted.dimensions}: the model has {done.vectors.shape[1]}")
        if done.vectors.size <= INLINE:
            return Response(self._write(wanted, done), media_type="application/json")
        return Response(await run_in_threadpool(self._write, wanted, done), media_type="application/json")

    async def _find_long(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts that the model would read the beginning of only."""

        def find() -> list[int]:
            return [place for place, text in enumerate(texts) if find_unread(self._encoder, text) == TOO_LONG]

        return find() if sum(map(len, texts)) <= QUICK else await run_in_threadpool(find)

    def _describe_long(self, cut: Sequence[int], texts: int) -> str:
        limit = getattr(self._encoder, "max_length", None)
        told = f"is {limit} tokens" if isinstance(limit, int) else "is exceeded"
        return (
            f"This model's maximum context length {told}; input {cut[0]} is longer ({len(cut)} of {texts} are). Send "
            'it in parts, or send "truncate": true to embed its beginning'
        )

    def _write(self, wanted: Wanted, done: Encoded) -> bytes:
        vectors = done.vectors if wanted.dimensions is None else normalize(done.vectors[:, : wanted.dimensions])
        data = [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(write_vectors(vectors, wanted.form))
        ]
        tokens = done.tokens if done.tokens is not None else sum(len(text.split()) for text in wanted.texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "model": self._served, "data": data, "usage": usage}
        return json.dumps(body, separators=(",", ":")).encode()

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models: the upstream's list with the served model in it; a failure goes through as it is."""
        barred = bar(request)
        if barred is not None:
            return barred
        call = await self._proxy.upstream.send(request, await self._proxy.read(request))
        if isinstance(call, Response):
            return call
        content = await call.read()
        if isinstance(content, Response):
            return content
        body = parse(content) if isinstance(content, bytes) and call.status_code == 200 else None
        if isinstance(body, dict) and isinstance(body.get("data"), list) and not _holds(body["data"], self._served):
            body["data"].append(self._about())
            content = json.dumps(body, ensure_ascii=True).encode()
        return call.response(content)

    async def model(self, request: Request) -> Response:
        """Answer GET /v1/models/MODEL: the served one itself, any other from the upstream."""
        if request.path_params["model"] == self._served:
            return JSONResponse(self._about())
        return await self._proxy.forward(request)

    def _about(self) -> Mapping[str, Any]:
        return {"id": self._served, "object": "model", "created": self._began, "owned_by": "embedsmith"}


def _holds(models: Sequence[object], id: str) -> bool:
    return any(isinstance(model, dict) and model.get("id") == id for model in models)


def read_request(body: Mapping[str, Any], truncate: bool = False) -> Wanted:
    """Return what the body of a request asks for.

    Args:
        truncate: what counts where the request does not say.

    Raises:
        ValueError: it is not what the protocol says, or holds token numbers instead of texts.
    """
    form = body.get("encoding_format")
    if form is not None and form not in ("float", "base64"):
        raise ValueError("encoding_format must be float or base64")
    wish = body.get("truncate")
    if wish is not None and not isinstance(wish, bool):
        raise ValueError("truncate must be true or false")
    texts, dimensions = _read_texts(body.get("input")), _read_dimensions(body.get("dimensions"))
    return Wanted(texts, dimensions, form or "float", truncate if wish is None else wish)


def _read_texts(given: object) -> Sequence[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise ValueError("input must be a text or a list of texts")
    if all(_is_token(item) or (isinstance(item, list) and all(map(_is_token, item))) for item in texts):
        raise ValueError(
            "input holds token numbers, which are those of another model's tokenizer: send texts "
            "(LangChain: check_embedding_ctx_length=False)"
        )
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("input must be a text or a list of texts")
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{len(texts)} texts; at most {MOST_TEXTS} at once")
    if not all(map(_is_text, texts)):
        raise ValueError("input holds half characters (lone surrogates)")
    return texts


def _is_token(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_dimensions(given: object) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MOST_DIMENSIONS:
        raise ValueError(f"dimensions must be a whole number from 1 to {MOST_DIMENSIONS:,}")
    return given


def write_vectors(vectors: Embeddings, form: Form) -> list[list[float]] | list[str]:
    """Return each row as numbers, or as the base64 of its little-endian float32."""
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in vectors]
    rows: list[list[float]] = vectors.tolist()
    return rows
