"""Which headers of a request divide what is stored: all but those that are known to change no answer."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.cache.semantic import SemanticCache
from embedsmith.errors import ConfigurationError
from embedsmith.server.control import LONGEST_TOLD, describe
from embedsmith.server.headers import IDENTITY, Asker, is_harmless, read_asker, read_ignored
from embedsmith.testing import FakeEncoder

from .test_proxy import ASKED, Serve, ask

# What clients, SDKs, load balancers, gateways and tracers add, with a value that differs from request to request.
DIFFERENT = [
    *("Idempotency-Key", "X-Idempotency-Key", "X-Request-Id", "X-Client-Request-Id", "Request-Id"),
    *("X-Correlation-Id", "X-Trace-Id", "X-Amzn-Trace-Id", "X-Amzn-RequestId", "X-Amz-Cf-Id", "CF-Ray"),
    *("CF-Connecting-IP", "X-Azure-Ref", "x-ms-client-request-id", "X-ARR-Log-Id", "X-Cloud-Trace-Context"),
    *("X-Vercel-Id", "Fly-Request-Id", "X-Railway-Request-Id", "X-Kong-Request-Id", "X-Envoy-Attempt-Count"),
    *("X-Request-Start", "X-Forwarded-For", "X-Forwarded-Port", "X-Real-IP", "Forwarded", "Via", "Date"),
    *("Content-Length", "User-Agent", "Referer", "traceparent", "tracestate", "baggage", "b3", "X-B3-TraceId"),
    *("X-B3-SpanId", "sentry-trace", "newrelic", "X-NewRelic-Transaction", "x-datadog-trace-id"),
    *("x-datadog-parent-id", "uber-trace-id", "elastic-apm-traceparent", "sw8", "X-Instana-T", "X-Dynatrace"),
    *("langsmith-trace", "x-portkey-trace-id", "x-portkey-span-id", "x-litellm-trace-id", "x-litellm-call-id"),
    *("x-litellm-session-id", "x-litellm-spend-logs-metadata"),
    *("Helicone-Request-Id", "Helicone-Session-Id", "x-stainless-retry-count", "x-stainless-read-timeout"),
    *("x-stainless-timeout", "sec-fetch-id", "sec-ch-ua"),
]


def asker(*headers: tuple[str, str], query: str = "", **options: Any) -> Asker:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return read_asker(raw, query, b"secret", **options)


@pytest.mark.parametrize(
    "header", ["Ocp-Apim-Subscription-Key", "x-litellm-api-key", "x-portkey-api-key", "X-User-Id", "Helicone-Auth"]
)
def test_another_name_of_who_asks_is_another_tenant(serve: Serve, header: str) -> None:
    served = serve()
    ask(served, extra_headers={header: "one"})
    assert ask(served, extra_headers={header: "one"})[0] == "hit"
    assert ask(served, extra_headers={header: "two"})[0] == "miss"
    assert len({entry.namespace for entry in served.cache.store.scan()}) == 2


@pytest.mark.parametrize("header", ["OpenAI-Beta", "anthropic-beta", "Accept-Language", "X-Nobody-Heard-Of"])
def test_a_header_that_nobody_has_heard_of_narrows(serve: Serve, header: str) -> None:
    served = serve()
    ask(served, extra_headers={header: "one"})
    assert ask(served, extra_headers={header: "one"})[0] == "hit"
    assert ask(served, extra_headers={header: "two"})[0] == "miss"
    assert ask(served)[0] == "miss"
    assert len({entry.namespace for entry in served.cache.store.scan()}) == 1


def test_what_differs_from_request_to_request_divides_nothing(serve: Serve) -> None:
    one, two = ([(name, uuid.uuid4().hex) for name in DIFFERENT] for _ in range(2))
    assert asker(*one) == asker(*two) == asker()
    served = serve()
    said = [
        ask(served, extra_headers={name: uuid.uuid4().hex for name in DIFFERENT if name != "Content-Length"})
        for _ in range(2)
    ]
    assert [outcome for outcome, _, _ in said] == ["miss", "hit"]


NAMES = ["authorization", "api-key", "x-user-id", "cookie", "openai-beta", "x-new", "x-other"]
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), st.text("ab", min_size=1, max_size=2)), max_size=4)


@given(HEADERS, HEADERS)
def test_equal_keys_mean_equal_headers(one: list[tuple[str, str]], two: list[tuple[str, str]]) -> None:
    def canonical(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return sorted(headers, key=lambda header: header[0])

    assert (asker(*one) == asker(*two)) == (canonical(one) == canonical(two))


def test_no_name_of_who_asks_is_harmless() -> None:
    assert {name for name in IDENTITY if is_harmless(name)} == {"proxy-authorization"}  # of one connection, too
    assert asker(("Proxy-Authorization", "a")).tenant != asker(("Proxy-Authorization", "b")).tenant


def test_tenants_of_older_stores_stay_the_same() -> None:
    told = "\0".join(["Bearer sk-a", "", "", "", "org", "", "", "", "api-version=1"])
    old = hmac.new(b"secret", told.encode(), hashlib.sha256).hexdigest()[:32]
    headers = [("Authorization", "Bearer sk-a"), ("OpenAI-Organization", "org"), ("User-Agent", "x")]
    assert asker(*headers, query="api-version=1") == Asker(old)
    assert asker(*headers, query="api-version=1", namespace="team").tenant == f"{old}/team"


def test_cookies_of_load_balancers_say_nothing() -> None:
    def cookie(value: str) -> Asker:
        return asker(("cookie", value))

    assert cookie("session=1; AWSALB=x; __cf_bm=y") == cookie("session=1; AWSALB=z") == cookie("session=1")
    assert cookie("AWSALB=x") == asker()
    assert cookie("session=1; AWSALB=x") != cookie("session=2; AWSALB=x")


def test_what_an_answer_tells_fits_the_head_that_clients_take() -> None:
    """What the guard found in two long lists of numbers was told whole: Node's `fetch` refuses a head of 16 kB."""
    cache = SemanticCache(FakeEncoder(), threshold=-1, fingerprint="fake")
    cache.add(" ".join(f"pay {number}" for number in range(100)), "paid")
    found = cache.lookup(" ".join(f"pay {number}" for number in range(1000, 1100)))
    assert len(found.decision.told) > 700
    told = describe(found, narrowed=[f"x-{number}-{'long' * 100}" for number in range(20)])
    assert max(map(len, told.values())) <= LONGEST_TOLD + len(" ...")
    assert told["x-embedsmith-reason"].startswith("guard: number (")
    assert len(describe(None, "why " * 1000)["x-embedsmith-reason"]) <= LONGEST_TOLD + len(" ...")


def test_an_answer_is_never_younger_than_nothing() -> None:
    """The clock of the replica that stored it may run ahead of this one's."""
    now = [1000.0]
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake", clock=lambda: now[0])
    cache.add(ASKED, "so")
    now[0] -= 90
    assert describe(cache.lookup(ASKED))["x-embedsmith-age"] == "0"


def test_an_answer_tells_its_client_which_headers_narrowed_and_nobody_what_they_held(serve: Serve) -> None:
    served = serve()
    body = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}
    headers = {"X-Chat-Id": "hidden-1", "OpenAI-Beta": "hidden-2", "x-user-id": "hidden-3"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.headers["x-embedsmith-narrowed"] == "openai-beta, x-chat-id"
    sent = dict(served.upstream.calls[-1].headers)
    assert {name.lower() for name in headers} <= {name.lower() for name in sent}
    held = repr([(one.namespace, one.partition, one.answer) for one in served.cache.store.scan()])
    assert "hidden" not in held + httpx.get(f"{served.url}/metrics").text
    plain = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert "x-embedsmith-narrowed" not in plain.headers


def test_an_operator_can_say_that_a_header_changes_no_answer(serve: Serve) -> None:
    served = serve(app={"ignored_headers": ["X-Chat-Id"]})
    ask(served, extra_headers={"x-chat-id": "1"})
    assert ask(served, extra_headers={"x-chat-id": "2"})[0] == "hit"
    with pytest.raises(ConfigurationError, match="cookie says who asks"):
        read_ignored(["X-Chat-Id", "Cookie"])
