"""Spans with the real OpenTelemetry SDK: what is recorded, under which parent, and nothing where it is off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from embedsmith.cache.stores import StoreError
from embedsmith.errors import MissingPartError
from embedsmith.server.spans import open_spans, spans_from_environment

from .test_proxy import ASKED, Serve, ask

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Recorder(SpanProcessor):
    """A tracer provider whose spans can be looked at."""

    def __init__(self) -> None:
        self._exporter, self._begun = InMemorySpanExporter(), 0
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        provider.add_span_processor(self)
        self.app = {"spans": open_spans(provider)}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Count the spans that must end."""
        self._begun += 1

    def spans(self, least: int = 0) -> Sequence[ReadableSpan]:
        """Return all spans, sorted by their start; a client has its answer before the last one ends, or begins."""
        until = time.monotonic() + 10
        while len(self._exporter.get_finished_spans()) < max(self._begun, least) and time.monotonic() < until:
            time.sleep(0.005)
        assert len(self._exporter.get_finished_spans()) == self._begun
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (found,) = [span for span in self.spans() if span.name == name]
        return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_miss_is_a_request_a_lookup_a_call_and_a_store(serve: Serve, stream: bool) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app)
    ask(served, stream=stream)
    names = [span.name for span in recorder.spans(4)]
    assert names == ["POST /v1/chat/completions", "embedsmith.lookup", "chat m", "embedsmith.store"]
    request, lookup, call, store = recorder.spans()
    assert [span.kind for span in (request, call)] == [SpanKind.SERVER, SpanKind.CLIENT]
    assert request.context is not None
    for child in (lookup, call, store):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
    told = attributes(lookup)
    assert (told["embedsmith.cache.outcome"], told["embedsmith.cache.reason"]) == ("miss", "nothing stored")
    assert told["embedsmith.cache.encode_ms"] > 0
    assert told["embedsmith.cache.search_ms"] > 0
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["http.route"] == "/v1/chat/completions"
    made = attributes(call)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "server.address": "127.0.0.1",
        "http.response.status_code": 200,
    }
    assert {name: made[name] for name in expected} == expected
    assert stream or (made["gen_ai.usage.input_tokens"], made["gen_ai.usage.output_tokens"]) == (100, 50)


def test_a_hit_has_no_call_and_says_why_it_is_one(serve: Serve) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app)
    ask(served)
    before = len(recorder.spans())
    ask(served, "How do I freeze my cards?")
    request, lookup = recorder.spans()[before:]
    told = attributes(lookup)
    assert (told["embedsmith.cache.outcome"], told["embedsmith.cache.tier"]) == ("hit", "semantic")
    assert told["embedsmith.cache.similarity"] == attributes(request)["embedsmith.cache.similarity"] >= 0.8


def test_the_trace_of_the_client_goes_through_to_the_upstream(serve: Serve) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app)
    ask(served, extra_headers=CONTEXT)
    request, call = recorder.named("POST /v1/chat/completions"), recorder.named("chat m")
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert call.context is not None
    sent = served.upstream.calls[-1]
    assert sent.header("traceparent") == f"00-{TRACE}-{call.context.span_id:016x}-01"
    assert sent.header("tracestate") == "vendor=1"


def test_without_tracing_the_clients_trace_context_is_passed_on_as_it_is(serve: Serve) -> None:
    served = serve()
    ask(served, extra_headers=CONTEXT)
    assert {name: served.upstream.calls[-1].header(name) for name in CONTEXT} == CONTEXT


@pytest.mark.parametrize("wrong", ["", "00-0-0-00", "x" * 500, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_broken_trace_context_begins_a_new_trace(serve: Serve, wrong: str) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app)
    ask(served, extra_headers={"traceparent": wrong})
    assert recorder.named("POST /v1/chat/completions").parent is None


def test_failures_are_marked_without_their_messages(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app, faults={"server_error": 1.0})

    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"the row {ASKED} is broken")

    monkeypatch.setattr(served.cache.store, "search", fail)
    body = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 500
    request, lookup, call = recorder.spans()
    assert [span.status.status_code for span in (request, lookup, call)] == [StatusCode.ERROR] * 3
    assert attributes(lookup)["error.type"] == "StoreError"
    assert attributes(call)["error.type"] == "500"
    everything = "".join(span.to_json() for span in recorder.spans())
    assert "freeze" not in everything


def test_texts_keys_and_queries_are_in_no_span(serve: Serve) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app, answer=lambda text: "MYANSWER")
    for text in ("MYQUESTION is this", "MYQUESTION is this", "MYQUESTION is that"):
        ask(served, text, key="sk-MYKEY")
    httpx.post(f"{served.url}/v1/responses?api-key=MYQUERY", json={"model": "m", "input": "MYQUESTION"})
    httpx.post(f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": "MYQUESTION"})
    everything = "".join(span.to_json() for span in recorder.spans())
    assert not [secret for secret in ("MYQUESTION", "MYANSWER", "MYKEY", "MYQUERY") if secret in everything]


def test_embeddings_and_responses_have_their_own_names(serve: Serve) -> None:
    recorder = Recorder()
    served = serve(app=recorder.app)
    httpx.post(f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": "a b", "dimensions": 8})
    told = attributes(recorder.named("embeddings embedsmith"))
    assert (told["gen_ai.operation.name"], told["gen_ai.embeddings.dimension.count"]) == ("embeddings", 8)
    httpx.post(f"{served.url}/v1/responses", json={"model": "r", "input": "x"})
    assert attributes(recorder.named("chat r"))["gen_ai.operation.name"] == "chat"
    httpx.get(f"{served.url}/v1/files")
    assert attributes(recorder.named("GET"))["server.address"] == "127.0.0.1"


def test_the_environment_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert spans_from_environment()[0] is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert spans_from_environment()[0] is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    spans, flush = spans_from_environment()
    assert spans is not None
    span = spans("GET", {})
    assert span.headers()["traceparent"].startswith("00-")
    flush()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingPartError, match="tracing is asked for"):
        spans_from_environment()


def test_where_it_is_off_nothing_of_it_is_loaded() -> None:
    code = """
import sys
from starlette.testclient import TestClient
from embedsmith.cache.semantic import SemanticCache
from embedsmith.server.app import create_app
from embedsmith.testing import FakeEncoder, FaultyServer
cache = SemanticCache(FakeEncoder(), threshold=.8, fingerprint="f")
with FaultyServer() as upstream:
    app = create_app(cache, upstream=upstream.base_url, admin_token="t", secret=b"s")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with TestClient(app) as client:
        assert [client.post("/v1/chat/completions", json=body).status_code for _ in range(2)] == [200, 200]
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
