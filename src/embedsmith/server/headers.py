"""Request headers: who asks, what must be equal for a stored answer to serve, and what changes no answer.

Callers can only narrow, so nothing is left to a list of what matters. Every header is one of three:

1. It says who asks (`IDENTITY`): its value is part of the tenant.
2. It is known to change no answer (`HARMLESS`, `HARMLESS_BEGINNINGS`, `HARMLESS_ENDS`): of one connection, of the
   form of the body, of the client's program, of the way here, of tracing, or the id of one request. Most of these
   differ from request to request; with any of them in the key nothing would ever be found again. An upstream
   may still route by one (LiteLLM's `tag_regex` by User-Agent): its clients then need keys, or namespaces, apart.
3. Every other, heard of or not: its value must be equal (OpenAI-Beta, anthropic-beta, Accept-Language, a header of
   the user's own). The operator can declare one of these harmless (`serve --ignore-header NAME`), none of the first.

Of all values there is only a keyed hash; it is what stores and logs see.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl

from embedsmith.errors import ConfigurationError

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110, in small letters
HOPS = frozenset(  # headers that belong to one connection only
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "expect"),
    }
)
ASKED = (
    "x-embedsmith-cache"  # e.g. "no-store", "no-cache", "only-if-cached", "ttl=60", "namespace=team-a"; commas between
)
KEYS = ("authorization", "api-key", "x-api-key", "x-goog-api-key")  # a provider's key: OpenAI, Azure, Anthropic, Google
QUERY_KEYS = frozenset(  # where a provider or a gateway takes it in the query instead: Google, Azure's gateway, OAuth
    ("key", "api-key", "api_key", "apikey", "x-api-key", "x-goog-api-key", "subscription-key", "access_token")
)
FIRST_IDENTITY = (  # in this order the beginning of what is hashed, so that tenants of older stores stay the same
    *KEYS,
    *("openai-organization", "openai-project", "anthropic-version", "cookie"),
)
IDENTITY = frozenset(FIRST_IDENTITY) | {
    *("proxy-authorization", "x-authorization", "x-auth-token", "x-access-token", "x-amz-security-token"),
    # gateways before language models
    *("ocp-apim-subscription-key", "x-litellm-api-key", "x-litellm-key", "x-portkey-api-key", "helicone-auth"),
    *("helicone-user-id", "cf-aig-authorization", "x-goog-user-project", "x-bf-vk"),
    # proxies that log users in
    *("x-forwarded-user", "x-forwarded-email", "x-forwarded-groups", "x-forwarded-preferred-username"),
    *("x-forwarded-access-token", "x-forwarded-client-cert", "x-auth-request-user", "x-auth-request-email"),
    *("x-auth-request-groups", "x-auth-request-preferred-username", "x-auth-request-access-token"),
    *("remote-user", "x-remote-user", "x-authenticated-userid", "x-consumer-id", "x-consumer-username"),
    *("x-consumer-custom-id", "x-credential-identifier", "x-amzn-oidc-identity", "x-amzn-oidc-data"),
    *("x-amzn-oidc-accesstoken", "x-goog-authenticated-user-id", "x-goog-authenticated-user-email"),
    *("x-goog-iap-jwt-assertion", "cf-access-jwt-assertion", "cf-access-authenticated-user-email"),
    *("cf-access-client-id", "cf-access-client-secret", "x-ms-client-principal", "x-ms-client-principal-id"),
    # what applications call it
    *("x-tenant", "x-tenant-id", "x-user", "x-user-id", "x-org-id", "x-organization-id", "x-account-id"),
    *("x-customer-id", "x-workspace-id", "x-project-id", "x-team-id"),
}
HARMLESS = HOPS | {
    ASKED,
    # the form of the body and of the answer, which the body itself decides
    *("accept", "accept-encoding", "accept-charset", "content-type", "content-encoding", "content-digest"),
    *("content-md5", "digest", "date", "cache-control", "pragma", "priority", "max-forwards", "early-data"),
    # the client's program
    *("user-agent", "origin", "referer", "http-referer", "x-title", "dnt", "save-data", "x-requested-with"),
    *("upgrade-insecure-requests", "x-goog-api-client", "x-client-data", "x-ms-useragent"),
    # the way here
    *("via", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-server"),
    *("x-forwarded-scheme", "x-forwarded-ssl", "x-original-forwarded-for", "x-original-proto", "x-scheme"),
    *("x-real-ip", "x-real-port", "x-client-ip", "x-client-port", "x-cluster-client-ip", "client-ip"),
    *("true-client-ip", "cdn-loop", "x-request-start", "x-queue-start", "x-timer", "x-varnish"),
    *("x-amz-cf-id", "x-arr-log-id", "x-arr-ssl", "x-appservice-proto", "disguised-host", "was-default-hostname"),
    *("x-site-deployment-id", "cf-ray", "cf-connecting-ip", "cf-connecting-ipv6", "cf-ipcountry", "cf-visitor"),
    *("cf-ew-via", "cf-warp-tag-id", "cf-worker", "fastly-client-ip", "fastly-ff", "fastly-ssl", "fly-client-ip"),
    *("fly-region", "fly-forwarded-port", "fly-forwarded-proto", "fly-forwarded-ssl", "do-connecting-ip"),
    *("x-vercel-id", "x-vercel-forwarded-for", "x-vercel-proxied-for", "connect-time", "total-route-time"),
    *("rndr-id", "x-railway-edge", "akamai-origin-hop", "x-akamai-edgescape"),
    # tracing
    *("traceparent", "tracestate", "traceresponse", "baggage", "b3", "uber-trace-id", "jaeger-debug-id"),
    *("jaeger-baggage", "x-ot-span-context", "x-cloud-trace-context", "grpc-trace-bin", "newrelic", "sentry-trace"),
    *("elastic-apm-traceparent", "sw8", "sw8-x", "sw8-correlation", "x-dynatrace", "x-honeycomb-trace"),
    *("singularityheader", "adrum", "request-context", "langsmith-trace", "x-portkey-span-name"),
    *("helicone-session-id", "helicone-session-path", "helicone-session-name"),
    # one request among others, tried again, and how long its client waits
    *("idempotency-key", "request-id", "correlation-id", "trace-id", "span-id", "x-litellm-call-id"),
    *("x-litellm-session-id", "x-litellm-spend-logs-metadata"),
    *("x-azure-ref", "x-azure-requestchain", "x-azure-clientip"),
    *("x-azure-socketip", "amz-sdk-invocation-id", "amz-sdk-request", "x-amz-date"),
}
HARMLESS_BEGINNINGS = (
    *("x-stainless-", "sec-", "x-envoy-", "cloudfront-", "x-vercel-ip-"),  # clients and proxies
    *("x-b3-", "x-datadog-", "x-instana-", "x-newrelic-", "uberctx-", "ot-tracer-", "ot-baggage-", "pinpoint-"),
)
HARMLESS_ENDS = (  # x-request-id, x-client-request-id, x-amzn-trace-id, x-portkey-trace-id, …: one request each
    *("-request-id", "-requestid", "-trace-id", "-traceid", "-span-id", "-spanid", "-correlation-id"),
    *("-correlationid", "-idempotency-key"),
)
STICKY = frozenset(  # cookies of load balancers, some with a new value in every answer: none says who asks
    {
        *("awsalb", "awsalbcors", "awsalbtg", "awsalbtgcors", "awselb", "awselbcors", "gclb", "arraffinity"),
        *("arraffinitysamesite", "__cf_bm", "__cflb", "_cfuvid"),
    }
)
ANY = "*"  # origin, host
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[1-9][0-9]{0,4})?")
HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
UNSENT = re.compile(r"http://.*:80|https://.*:443")  # ports that browsers leave out
TENANT_DIGITS = 32
MOST_TOLD = 16  # names that an answer tells


@dataclass(frozen=True, slots=True)
class Asker:
    """What the headers of a request say to the cache.

    Attributes:
        tenant: the namespace: a keyed hash of all that says who asks.
        scope: a keyed hash of the other headers that must be equal; "" when there are none.
        narrowed: the names of the latter, for the client itself.
    """

    tenant: str
    scope: str = ""
    narrowed: tuple[str, ...] = ()


def read_asker(
    headers: Iterable[tuple[bytes, bytes]],
    query: str,
    secret: bytes,
    namespace: str = "",
    ignored: Collection[str] = (),
) -> Asker:
    """Return who sends these headers (as they came, repeated ones too), and what else must be equal.

    The query string is part of the tenant: some providers put a version or a key there.

    Args:
        secret: key of the hashes. namespace: a part of the tenant's own space (it never leads out of it).
        ignored: names in lower case that the operator has declared harmless.
    """
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    named = [(name, _without_sticky(value) if name == "cookie" else value) for name, value in pairs]
    tenant = _digest(secret, _tell_identity(named, query))
    others = sorted(  # by name only: repeated ones keep their order
        (pair for pair in pairs if pair[0] not in IDENTITY and not is_harmless(pair[0]) and pair[0] not in ignored),
        key=lambda pair: pair[0],
    )
    return Asker(
        f"{tenant}/{namespace}" if namespace else tenant,
        _digest(secret, json.dumps(others)) if others else "",
        tuple(dict.fromkeys(name for name, _ in others)),
    )


def brings_key(names: Collection[str], query: str) -> bool:
    """Say whether a request has a key of its own, so that the operator's must not stand beside it.

    Args:
        names: of its headers, in lower case, or anything that knows them. query: as it came.

    >>> brings_key(["accept"], "alt=sse&key=AIza")
    True
    """
    asked = (name.lower() for name, _ in parse_qsl(query, keep_blank_values=True))
    return any(name in names for name in KEYS) or not QUERY_KEYS.isdisjoint(asked)


def is_harmless(name: str) -> bool:
    """Say whether a header (its name in lower case) is known to change no answer."""
    return name in HARMLESS or name.startswith(HARMLESS_BEGINNINGS) or name.endswith(HARMLESS_ENDS)


def read_ignored(names: Iterable[str]) -> frozenset[str]:
    """Return the names of headers that the operator declares harmless.

    Raises:
        ConfigurationError: one of them says who asks, or is no name of a header.
    """
    ignored = frozenset(name.strip().lower() for name in names)
    if strange := sorted(name for name in ignored if not TOKEN.fullmatch(name)):
        raise ConfigurationError(
            f"{strange[0]!r} is no name of a header",
            expected="letters, digits and hyphens, such as x-request-source",
            action="name one header; the option can be given several times",
        )
    if found := sorted(ignored & IDENTITY):
        raise ConfigurationError(
            f"the header {found[0]} says who asks",
            expected="headers that change no answer",
            action="leave it out: without it one tenant would get another's answers",
        )
    return ignored


def read_origins(given: Iterable[str]) -> frozenset[str]:
    """Return the origins whose pages may read answers.

    Raises:
        ConfigurationError: one of them is no origin as browsers send it.
    """
    origins = frozenset(one.strip().lower() for one in given)
    for one in sorted(origins - {ANY}):
        if not ORIGIN.fullmatch(one) or UNSENT.fullmatch(one):
            raise ConfigurationError(
                f"{one!r} is no origin",
                expected="what browsers send: a scheme and a host, a port where it is not the usual one, and nothing "
                "behind them, such as https://chat.example or http://localhost:3000; or * for all pages",
                action="name one origin; the option can be given several times",
            )
    return origins


def read_hosts(given: Iterable[str]) -> frozenset[str]:
    """Return the names under which clients may call the server, in lower case.

    Raises:
        ConfigurationError: one of them is no name of a host.
    """
    hosts = frozenset(one.strip().lower().removesuffix(".") for one in given)
    for one in sorted(hosts - {ANY}):
        if not HOST_NAME.fullmatch(one):
            raise ConfigurationError(
                f"{one!r} is no name of a host",
                expected="a name as clients send it, without http:// and without a port, such as cache.example; or * "
                "for all names",
                action="name one host; the option can be given several times",
            )
    return hosts


def _tell_identity(pairs: list[tuple[str, str]], query: str) -> str:
    first: dict[str, str] = {}
    more: list[tuple[str, str]] = []
    for name, value in pairs:
        if name in FIRST_IDENTITY and name not in first:
            first[name] = value
        elif name in IDENTITY and value:
            more.append((name, value))
    rest = [text for pair in sorted(more, key=lambda pair: pair[0]) for text in pair]
    return "\0".join([*(first.get(name, "") for name in FIRST_IDENTITY), query, *rest])


def _without_sticky(cookies: str) -> str:
    parts = cookies.split(";")
    kept = [part for part in parts if part.partition("=")[0].strip().lower() not in STICKY]
    return cookies if len(kept) == len(parts) else ";".join(kept).strip()


def _digest(secret: bytes, told: str) -> str:
    return hmac.new(secret, told.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:TENANT_DIGITS]
