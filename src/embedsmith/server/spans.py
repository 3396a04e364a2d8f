"""Spans of a request for OpenTelemetry; nothing at all where it is not switched on.

opentelemetry is imported only by `open_spans`, which the server calls only when tracing is asked for. Without it
every span is `NO_SPAN`, whose methods do nothing. Names are those of the semantic conventions for HTTP and for
generative AI (`gen_ai.*`); what they do not know begins with `embedsmith.`. No text of a question or an answer is
ever an attribute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeAlias

from embedsmith import __version__
from embedsmith.errors import MissingPartError
from embedsmith.server.usage import read_count

Attribute: TypeAlias = str | bool | int | float | Sequence[str]
Kind = Literal["internal", "server", "client"]
LONGEST = 100  # characters of a model's name, which comes from the client
SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OPERATIONS = {  # path below /v1 → gen_ai.operation.name
    "chat/completions": "chat",
    "completions": "text_completion",
    "responses": "chat",
    "embeddings": "embeddings",
}


class Span(Protocol):
    """One measured step."""

    @property
    def recording(self) -> bool:
        """Say whether attributes are worth gathering."""
        ...

    def child(self, name: str, kind: Kind = "internal") -> Span:
        """Return a new span below this one."""
        ...

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        """Set attributes; those that are None are left out."""
        ...

    def rename(self, name: str) -> None:
        """Give it another name, once more is known."""
        ...

    def fail(self, kind: str) -> None:
        """Say that the step failed; `kind` is a type or a status, never a message."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers that hand this span on as a parent (W3C trace context)."""
        ...

    def current(self) -> AbstractContextManager[object]:
        """Make this the parent of whatever other libraries record meanwhile."""
        ...

    def end(self) -> None:
        """Stop the clock."""
        ...


class NoSpan:
    """A span of nobody's."""

    recording = False

    def child(self, name: str, kind: Kind = "internal") -> Span:  # noqa: ARG002
        """Return this."""
        return self

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        """Do nothing."""

    def rename(self, name: str) -> None:
        """Do nothing."""

    def fail(self, kind: str) -> None:
        """Do nothing."""

    def headers(self) -> dict[str, str]:
        """Return nothing: what the client sent goes on as it is."""
        return {}

    def current(self) -> AbstractContextManager[object]:
        """Return a context that changes nothing."""
        return nullcontext()

    def end(self) -> None:
        """Do nothing."""


NO_SPAN = NoSpan()
Spans: TypeAlias = Callable[[str, Mapping[str, str]], Span]  # (name, the client's headers) → span of a request


def open_spans(provider: Any = None) -> Spans:
    """Return what opens the span of a request, below the trace context of its headers if there is one.

    Args:
        provider: a TracerProvider; default is the process's own.

    Raises:
        MissingPartError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        raise _missing() from None
    propagator = TraceContextTextMapPropagator()
    tracer = trace.get_tracer("embedsmith", __version__, provider)
    kinds = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}

    class OtelSpan:
        __slots__ = ("_span",)

        def __init__(self, span: trace.Span) -> None:
            self._span = span

        @property
        def recording(self) -> bool:
            return self._span.is_recording()

        def child(self, name: str, kind: Kind = "internal") -> Span:
            return OtelSpan(tracer.start_span(name, trace.set_span_in_context(self._span), kinds[kind]))

        def note(self, attributes: Mapping[str, Attribute | None]) -> None:
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

        def rename(self, name: str) -> None:
            self._span.update_name(name)

        def fail(self, kind: str) -> None:
            self._span.set_attribute("error.type", kind)
            self._span.set_status(trace.StatusCode.ERROR)

        def headers(self) -> dict[str, str]:
            carrier: dict[str, str] = {}
            propagator.inject(carrier, trace.set_span_in_context(self._span))
            return carrier

        def current(self) -> AbstractContextManager[object]:
            return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

        def end(self) -> None:
            self._span.end()

    def begin(name: str, headers: Mapping[str, str]) -> Span:
        return OtelSpan(tracer.start_span(name, propagator.extract(headers), kinds["server"]))

    return begin


def spans_from_environment() -> tuple[Spans | None, Callable[[], None]]:
    """Return the spans that the standard OTEL_* variables ask for, and what flushes them; (None, nothing) without.

    An OTLP endpoint switches tracing on; OTEL_SDK_DISABLED=true switches it off again. All else
    (OTEL_SERVICE_NAME, sampling, headers) is the SDK's own.

    Raises:
        MissingPartError: tracing is asked for and the extra [otel] is not installed.
    """
    asked = any(os.environ.get(name) for name in SWITCHES)
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None, lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _missing() from None
    os.environ.setdefault("OTEL_SERVICE_NAME", "embedsmith")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return open_spans(provider), provider.shutdown


def _missing() -> MissingPartError:
    return MissingPartError(
        "tracing is asked for, and opentelemetry is not installed", action="pip install 'embedsmith[otel]'"
    )


def name_call(path: str, method: str, model: str) -> tuple[str, str | None]:
    """Return the name of a call's span and its gen_ai.operation.name, None where there is none."""
    operation = OPERATIONS.get(path) if method == "POST" else None
    return (f"{operation} {model}".strip(), operation) if operation is not None else (method, None)


def name_provider(host: str) -> str:
    """Return gen_ai.provider.name; whatever speaks OpenAI's protocol counts as openai."""
    return "azure.ai.openai" if host.endswith(".openai.azure.com") else "openai"


def describe_completion(body: Any) -> dict[str, Attribute | None]:
    """Return the gen_ai attributes of a chat completion: who answered, why it ended, what it cost."""
    if not isinstance(body, Mapping):
        return {}
    given, listed = body.get("usage"), body.get("choices")
    usage: Mapping[str, object] = given if isinstance(given, Mapping) else {}
    choices: list[object] = listed if isinstance(listed, list) else []
    ends = [
        str(choice["finish_reason"])
        for choice in choices
        if isinstance(choice, Mapping) and choice.get("finish_reason")
    ]
    return {
        "gen_ai.response.id": _text(body.get("id")),
        "gen_ai.response.model": _text(body.get("model")),
        "gen_ai.response.finish_reasons": ends or None,
        "gen_ai.usage.input_tokens": read_count(usage.get("prompt_tokens")),
        "gen_ai.usage.output_tokens": read_count(usage.get("completion_tokens")),
    }


def _text(value: object) -> str | None:
    return value[:LONGEST] if isinstance(value, str) else None
