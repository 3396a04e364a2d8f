"""Clients that are slow, broken or hostile, on real sockets: each gets its 4xx or is cut, and the server lives."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from embedsmith.server.wire import Patience, Protocol
from embedsmith.testing import FaultyServer

from .conftest import TOKEN, Served
from .scripted import completion, upstream
from .test_proxy import ASKED, Serve, ask

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SHORT = Patience(head=0.3, read=0.5, linger=0.3, spare=1 << 20)


@contextmanager
def connect(served: Served) -> Iterator[socket.socket]:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        yield client


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the server closes, or drops, the connection."""
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionError:
        pass
    return found


def send_until_cut(client: socket.socket, part: bytes, pause: float = 0.0) -> int:
    """Send `part` again and again; return the bytes that went before the server dropped the connection."""
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < 20:
        try:
            client.sendall(part)
        except ConnectionError:
            return sent
        sent += len(part)
        time.sleep(pause)
    raise AssertionError("the server took everything")


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def read_answer(client: socket.socket) -> bytes:
    """Return one whole answer of a connection that stays open."""
    found = client.recv(1 << 16)
    while (missing := found.partition(b"\r\n\r\n"))[1] == b"" or len(missing[2]) < _length_of(missing[0]):
        part = client.recv(1 << 16)
        assert part, "the connection has ended"
        found += part
    return found


def _length_of(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


def is_alive(served: Served) -> bool:
    return httpx.get(f"{served.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1, 2\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: x\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Connection: close\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        (HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n\xff\xfe", 400),
        (HEAD + b"Connection: close\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000, 400),
        (b"BREW /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"TRACE /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    ],
    ids=[
        *("negative length", "two lengths in one", "two lengths", "no number", "unknown coding", "twice chunked"),
        *(
            "broken chunk",
            "huge header",
            "huge path",
            "no host",
            "space in a name",
            "TLS",
            "HTTP/2",
            "not UTF-8",
            "deep",
        ),
        *("unknown method", "method of no route"),
    ],
)
def test_what_is_no_proper_request_gets_a_4xx(serve: Serve, sent: bytes, status: int) -> None:
    served = serve(patience=SHORT)
    with connect(served) as client:
        client.sendall(sent)
        answer = read_all(client)
    assert status_of(answer) == status
    assert b'{"error"' in answer
    assert is_alive(served)


def test_a_head_that_trickles_is_cut_after_its_time(serve: Serve) -> None:
    served = serve(patience=SHORT)
    began = time.monotonic()
    with connect(served) as client:
        client.settimeout(0.02)
        answer = b""
        for byte in HEAD * 20:  # it would go on for 30 seconds
            try:
                client.sendall(bytes([byte]))
                answer += client.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if answer:
                break
    assert status_of(answer) == 408
    assert time.monotonic() - began < 5


def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    with connect(serve(patience=SHORT)) as client:
        assert read_all(client) == b""


def test_the_second_head_on_a_connection_has_its_time_too(serve: Serve) -> None:
    with connect(serve(patience=SHORT)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(client.recv(1 << 16)) == 200
        client.sendall(b"GET /hea")
        assert status_of(read_all(client)) == 408


def test_a_second_head_that_came_with_the_first_has_its_time_too(serve: Serve) -> None:
    with connect(serve(patience=SHORT)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        found = read_all(client)
    assert [int(answer[:3]) for answer in found.split(b"HTTP/1.1 ")[1:]] == [200, 408]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_connection_is_closed_when_nothing_more_is_asked(serve: Serve, body: bytes) -> None:
    """The body that nobody read may have come behind the answer: its connection waited for ever."""
    with connect(serve(patience=Patience(idle=1))) as client:
        client.sendall(b"PUT /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert status_of(read_answer(client)) == 405
        client.sendall(body)
        client.settimeout(5)
        assert read_all(client) == b""


def test_the_time_for_a_body_that_nobody_reads_ends_with_that_body(serve: Serve) -> None:
    patience = Patience(head=5, read=5, linger=2, spare=1 << 20)
    with connect(serve(patience=patience)) as client:
        for _ in range(3):  # answered before their bodies come, which they do in time; all three together would not
            client.sendall(b"PUT /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            assert status_of(read_answer(client)) == 405
            time.sleep(0.75)
            client.sendall(b"{}")
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(read_answer(client)) == 200


def test_a_body_that_trickles_is_cut_after_its_time_and_holds_nobody_up(serve: Serve) -> None:
    served = serve(app={"body_seconds": 0.5}, patience=SHORT)
    with connect(served) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    client.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert ask(served)[0] == "miss"  # meanwhile others are served
        answer = read_all(client)
        stop.set()
        thread.join()
    assert status_of(answer) == 408


def test_a_body_of_50_mb_is_refused_without_reading_it(serve: Serve) -> None:
    served = serve(patience=SHORT)
    with connect(served) as client:
        client.sendall(HEAD + b"Content-Length: 52428800\r\n\r\n")
        sent = send_until_cut(client, b" " * 65536)
    assert sent < 20 << 20  # what fits into the buffers of the two sockets, and a spare megabyte
    with connect(served) as client:  # a client that reads while it sends
        client.sendall(HEAD + b"Content-Length: 52428800\r\n\r\n")
        assert status_of(read_all(client)) == 413
    assert httpx.post(f"{served.url}/v1/chat/completions", content=b" " * (50 << 20)).status_code == 413
    assert is_alive(served)


def test_a_body_of_50_mb_without_a_length_is_refused_when_it_turns_out(serve: Serve) -> None:
    served = serve(patience=SHORT)

    def parts() -> Iterator[bytes]:
        for _ in range(800):
            yield b" " * 65536

    assert httpx.post(f"{served.url}/v1/chat/completions", content=parts()).status_code == 413
    assert is_alive(served)


def test_whoever_asks_before_sending_sends_nothing_in_vain(serve: Serve) -> None:
    with connect(serve(patience=SHORT)) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 52428800\r\n\r\n")
        assert status_of(client.recv(1 << 16)) == 413


def test_a_client_that_does_not_read_its_answer_is_dropped(serve: Serve) -> None:
    served = serve(patience=SHORT)
    served.cache.add("long", "x" * 2000, namespace="t")
    for number in range(100):
        served.cache.add(f"long question {number}", "x" * 2000, namespace="t")
    with connect(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"GET /admin/entries?text=long HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        send_until_cut(client, head * 20, pause=0.02)
    assert is_alive(served)


def test_unknown_paths_and_methods_are_told_in_the_protocols_form(serve: Serve) -> None:
    served = serve()
    missing = httpx.get(f"{served.url}/nothing/here")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = httpx.delete(f"{served.url}/admin/purge")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "a/b/c", "é"]
)
def test_a_body_of_another_type_is_refused(serve: Serve, kind: str) -> None:
    served = serve()
    for path in ("/v1/chat/completions", "/v1/embeddings", "/admin/purge"):
        headers = {"content-type": kind.encode(), "authorization": f"Bearer {TOKEN}"}
        assert httpx.post(served.url + path, content=b"{}", headers=headers).status_code == 415  # type: ignore[arg-type]
    assert served.upstream.calls == []


def raw_call(served: Served, path: str, *headers: str) -> int:
    with connect(served) as client:
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2", *headers]
        client.sendall("\r\n".join([*lines, "", "{}"]).encode("latin-1"))
        return status_of(read_all(client))


def test_no_path_leads_to_another_server(serve: Serve) -> None:
    served = serve(app={"upstream_key": "sk-operator"})
    with FaultyServer() as other:
        assert raw_call(served, f"/v1/{other.base_url}/files") == 404
        assert raw_call(served, f"/v1//{other.base_url.removeprefix('http://')}/files") == 404
    assert other.calls == []
    assert all(call.path.startswith("/v1/") for call in served.upstream.calls)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/../admin", "/v1/%2e%2e/admin", "/v1/a/..%2F..%2Fadmin", "/v1/%2e/x", "/v1/..%5Cadmin", "/v1%2Fa/b"),
        *("/v1/..;/admin", "/v1/%2e%2e%3Bx=y/admin"),  # Tomcat and its like cut off what follows the semicolon
    ],
)
def test_no_path_leads_out_of_the_upstreams_own(serve: Serve, path: str) -> None:
    served = serve()
    assert raw_call(served, path) == 400
    assert served.upstream.calls == []


def test_a_body_in_chunks_goes_on_in_chunks_whatever_length_is_told_beside_them(serve: Serve) -> None:
    """Chunks count (RFC 9112, 6.3); the length was handed on, and what did not fit it was a 500."""
    served = serve()
    with connect(served) as client:
        lines = ["POST /v1/files HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 1"]
        head = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""])
        client.sendall(head.encode() + b"2\r\n{}\r\n0\r\n\r\n")
        assert status_of(read_all(client)) == 404
    (call,) = served.upstream.calls
    assert (call.header("transfer-encoding"), call.header("content-length")) == ("chunked", None)


def test_paths_queries_and_headers_arrive_byte_for_byte(serve: Serve) -> None:
    served = serve()
    assert raw_call(served, "/v1/files/a%2Fb%20c?x&y=%20+&z=1&z=2", "User-Agent: ünï", "X-Two: 1", "X-Two: 2") == 404
    (call,) = served.upstream.calls
    assert call.path == "/v1/files/a%2Fb%20c?x&y=%20+&z=1&z=2"
    assert call.header("user-agent") == "ünï"
    assert [value for name, value in call.headers if name.lower() == "x-two"] == ["1", "2"]
    assert call.header("connection") != "close"


def test_a_query_counts_to_its_end_whatever_marks_it_holds(serve: Serve) -> None:
    """A "#" ended it for the tenant, and not for whoever looks for a key in it."""

    async def answer(_: Request) -> Response:
        return JSONResponse(completion())

    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": ASKED}]}).encode()
    with upstream(answer) as behind:
        served = serve(app={"upstream": behind})
        url = f"{served.url}/v1/chat/completions?api-version=1"
        assert [httpx.post(url, content=body).headers["x-embedsmith-cache"] for _ in range(2)] == ["miss", "hit"]
        with connect(served) as client:
            line = b"POST /v1/chat/completions?api-version=1#&key=own HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            client.sendall(line + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert status_of(read_all(client)) == 400  # no hit: it would have to go on, and cannot


def test_headers_of_one_connection_stay_with_it(serve: Serve) -> None:
    served = serve()
    raw_call(served, "/v1/files", "Connection: x-hop", "X-Hop: 1", "X-Stays: 1", "Proxy-Authorization: secret")
    (call,) = served.upstream.calls
    assert (call.header("x-hop"), call.header("proxy-authorization"), call.header("x-stays")) == (None, None, "1")


def test_a_client_takes_nothing_away_that_a_proxy_has_said_of_it(serve: Serve) -> None:
    served = serve()
    names = "Connection: x-forwarded-user, authorization"
    raw_call(served, "/v1/files", names, "X-Forwarded-User: me", "Authorization: a")
    (call,) = served.upstream.calls
    assert (call.header("x-forwarded-user"), call.header("authorization")) == ("me", "a")


def test_an_answer_waits_for_no_acknowledgement(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nagle's algorithm is off: head and body are two writes, and the second waited 40 ms."""
    found: list[int] = []
    made = Protocol.connection_made

    def look(self: Protocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Protocol, "connection_made", look)
    assert httpx.get(f"{serve().url}/health").status_code == 200
    assert found
    assert all(found)
