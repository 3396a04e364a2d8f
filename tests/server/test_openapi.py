"""The description of the API is true: of every route, and of every answer that schemathesis can provoke.

`make fuzz` runs the same with many more examples (EMBEDSMITH_FUZZ).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from starlette.routing import Route

pytest.importorskip("schemathesis")

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from embedsmith.cache.semantic import SemanticCache
from embedsmith.calibration import Calibration
from embedsmith.server.app import create_app
from embedsmith.server.openapi import describe_api
from embedsmith.testing import FakeEncoder, FaultyServer

from .conftest import TOKEN, Served, listen

EXAMPLES = int(os.environ.get("EMBEDSMITH_FUZZ", "12"))
DESCRIPTION = describe_api()
SCHEMA = schemathesis.openapi.from_dict(DESCRIPTION)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all examples, in front of an upstream that refuses what is wrong and never fails."""
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    cache.calibration = Calibration(0.8, 0.05, 0.05, 100, 1, 0.05, 0.5, 0.5, 200, "fake", probabilities=((0.0, 0.9),))
    with FaultyServer(answer=lambda text: f"the answer to {text}") as upstream:
        app = create_app(cache, upstream=upstream.base_url, admin_token=TOKEN, secret=b"secret")
        with listen(app) as url:
            yield Served(url, cache, upstream, Path(os.devnull))
    cache.close()


def test_every_route_is_described_and_the_reverse() -> None:
    cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")
    app = create_app(cache, upstream="http://localhost:1/v1", admin_token=TOKEN, secret=b"s")
    routes = {
        (route.path.replace(":path", ""), method)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set())
        if method != "HEAD" or "{path" in route.path  # whoever answers GET answers HEAD
    }
    described = {(path, method.upper()) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert routes == described


def test_the_description_is_served_and_knows_every_header_that_the_cache_sends(served: Served) -> None:
    assert httpx.get(f"{served.url}/openapi.json").json() == DESCRIPTION
    told = {
        name.title()
        for text in ("what is a standing charge?", "what is a standing charges?")
        for name in httpx.post(
            f"{served.url}/v1/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": text}]},
            headers={"OpenAI-Beta": "x"},
        ).headers
        if name.startswith("x-embedsmith")
    }
    answers = DESCRIPTION["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert told == {name for name in answers["200"]["headers"] if name.startswith("X-Embedsmith")}


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_500_and_every_answer_is_as_described(case: Any, served: Served) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"} if case.path.startswith("/admin") else None
    answer = case.call_and_validate(
        base_url=served.url, headers=headers, excluded_checks=left_to_others(case), timeout=20
    )
    assert answer.status_code < 500 or (answer.status_code == 504 and is_barred(case))


def is_barred(case: Any) -> bool:
    """Say whether the request forbade the upstream: 504 is then its answer, as RFC 9111 wants it."""
    return "only-if-cached" in str((case.headers or {}).get("X-Embedsmith-Cache"))


def left_to_others(case: Any) -> list[Any]:
    """Return the checks that would judge the upstream, or that have their own test."""
    checks = [missing_required_header, ignored_auth]
    if case.path.startswith("/v1"):  # what is wrong there is the upstream's to say; other methods go to it
        checks += [unsupported_method, positive_data_acceptance, negative_data_rejection]
    if is_barred(case):
        checks.append(not_a_server_error)
    if case.path == "/admin/entries":  # it takes any text, and parameters it does not know do no harm
        checks.append(negative_data_rejection)
    if case.path in (
        "/admin/mark",
        "/admin/purge",
        "/admin/tenant",
    ):  # a number that no lookup has is refused, and so is half a character
        checks.append(positive_data_acceptance)
    return checks
