"""Names by which the server is called: a web page that lets its own lead here gets nothing."""

from __future__ import annotations

import socket

import httpx
import pytest

from embedsmith.server.hosts import leads_here

from .conftest import TOKEN
from .test_origins import CHAT, QUESTION
from .test_proxy import Serve
from .test_wire import connect, read_all, status_of

OURS = frozenset({"127.0.0.1", "cache.example"})
PATHS = ("/v1/models", "/dashboard", "/admin/state", "/metrics", "/health", "/openapi.json", "/", "/nothing")


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8080", "LOCALHOST:8080", "localhost.:8080", "me.localhost", "cache.example"),
        *("cache.example:443", "Cache.Example.", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080", "[::1]"),
        *("10.1.2.3:8080", "[fd00::1]:8080"),  # a health check's, of a container; no page can be of this name
    ],
)
def test_localhost_addresses_and_given_names_lead_here(host: str) -> None:
    assert leads_here(host, OURS)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost"),
        *("evil.cache.example", "cache.example.evil", "127.0.0.1:8080@evil.example", "[::1]evil.example", "[evil]"),
        *("127.1", "evil.example\x00", "localhost evil.example", ":8080", "é.example"),
    ],
)
def test_no_other_name_does(host: str) -> None:
    assert not leads_here(host, OURS)


def test_a_page_that_lets_its_name_lead_here_reads_and_spends_nothing(serve: Serve) -> None:
    """To the browser page and server are one origin: `Sec-Fetch-Site` says so, and `Origin` is the host."""
    served = serve(app={"hosts": OURS, "upstream_key": "sk-operator"})
    page = {"host": "evil.example:8080", "origin": "http://evil.example:8080", "sec-fetch-site": "same-origin"}
    token = {"authorization": f"Bearer {TOKEN}"}
    asked = httpx.post(f"{served.url}/v1/chat/completions", json=QUESTION, headers=page)
    read = [httpx.get(served.url + path, headers=page | token) for path in PATHS]
    assert {answer.status_code for answer in (asked, *read)} == {421}
    assert served.upstream.calls == []
    error = asked.json()["error"]
    assert "'evil.example:8080'" in error["message"]
    assert "--allow-host NAME" in error["message"]
    assert asked.headers["x-request-id"]  # the log knows of it


def test_who_calls_it_by_its_name_is_answered(serve: Serve) -> None:
    served = serve(app={"hosts": OURS})
    for host in ("localhost:8080", "cache.example", "10.1.2.3"):
        assert httpx.get(f"{served.url}/health", headers={"host": host}).status_code == 200
    with connect(served) as client:  # a health check of HTTP/1.0, which needs no host
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert status_of(read_all(client)) == 200


def test_two_hosts_are_none(serve: Serve) -> None:
    """The first would be looked at, and a proxy may have looked at the second."""
    with connect(serve(app={"hosts": OURS})) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert status_of(read_all(client)) == 400


def test_a_page_that_may_read_answers_may_read_this_refusal_too(serve: Serve) -> None:
    url = serve(app={"hosts": OURS, "origins": [CHAT]}).url
    answer = httpx.get(f"{url}/v1/models", headers={"host": "chat.example", "origin": CHAT})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (421, CHAT)


def test_without_names_it_answers_to_all(serve: Serve) -> None:
    assert httpx.get(f"{serve().url}/health", headers={"host": "evil.example"}).status_code == 200
