"""Bodies that are only passed on: of any size, byte for byte, never held, and cut cleanly when their client leaves."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from embedsmith.server import edge
from embedsmith.server.proxy import HELD

from .conftest import Served
from .scripted import upstream
from .test_proxy import Serve, ask
from .test_wire import SHORT, connect, read_all, send_until_cut, status_of

MIB = 1 << 20
PIECE = bytes(range(256)) * 256  # 64 KiB


class Taking:
    """An upstream that reads what it is sent, and keeps its size and hash only."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.cut = 0

    async def __call__(self, request: Request) -> Response:
        seen, size = hashlib.sha256(), 0
        try:
            async for piece in request.stream():
                seen.update(piece)
                size += len(piece)
        except ClientDisconnect:
            self.cut += 1
            raise
        names = ("content-length", "transfer-encoding", "content-type")
        told = {name: request.headers[name] for name in names if name in request.headers}
        self.taken.append({"size": size, "hash": seen.hexdigest(), **told})
        return JSONResponse(self.taken[-1])


Start = Callable[..., tuple[Served, Taking]]


@pytest.fixture
def before(serve: Serve) -> Iterator[Start]:
    """Start a proxy in front of an upstream that takes everything."""
    with ExitStack() as stack:

        def start(handler: Any = None, **app: Any) -> tuple[Served, Taking]:
            taking = Taking()
            url = stack.enter_context(upstream(handler or taking))
            return serve(app={"upstream": url} | app, patience=SHORT), taking

        yield start


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield PIECE


def sent(size: int, count: int, **more: str) -> dict[str, Any]:
    seen = hashlib.sha256()
    for piece in pieces(count):
        seen.update(piece)
    return {"size": size, "hash": seen.hexdigest(), **more}


@pytest.mark.parametrize("chunked", [False, True])
def test_30_mib_pass_byte_for_byte_and_are_never_held(before: Start, chunked: bool) -> None:
    served, taking = before()
    count, size = 480, 30 * MIB
    headers = {"content-type": "multipart/form-data; boundary=x"} | ({} if chunked else {"content-length": str(size)})
    httpx.post(f"{served.url}/v1/files", content=pieces(1), headers={"content-type": "a/b"})  # what is made once
    tracemalloc.start()
    answer = httpx.post(f"{served.url}/v1/files", content=pieces(count), headers=headers, timeout=60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(size)}
    assert answer.json() == sent(size, count, **told, **{"content-type": headers["content-type"]})
    assert peak < 4 * MIB  # of client, proxy and upstream together
    assert len(taking.taken) == 2


@pytest.mark.parametrize("size", [0, 1, HELD, HELD + 1, 9 * MIB])
def test_a_body_arrives_as_it_was_whatever_its_size(before: Start, size: int) -> None:
    served, taking = before()
    httpx.post(f"{served.url}/v1/audio/transcriptions", content=b"x" * size, timeout=30)
    wanted = {"size": size, "hash": hashlib.sha256(b"x" * size).hexdigest(), "content-length": str(size)}
    assert taking.taken == [wanted]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("framing", [b"Content-Length: 31457280\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_client_that_leaves_half_way_leaves_nothing_behind(before: Start, framing: bytes) -> None:
    served, taking = before()
    with connect(served) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n")
        for piece in pieces(100):
            client.sendall(b"10000\r\n" + piece + b"\r\n" if b"chunked" in framing else piece)
    wait_until(lambda: taking.cut == 1)  # it does not take the half for the whole
    assert taking.taken == []
    assert httpx.post(f"{served.url}/v1/files", content=pieces(20)).json()["size"] == 20 * len(PIECE)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_a_client_that_trickles_is_cut_in_time_and_holds_no_upstream(
    before: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "SHARE", 4 * MIB)
    served, taking = before(body_seconds=0.6)
    with connect(served) as client:  # it is let go on while it keeps to a share in its time
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 31457280\r\n\r\n")
        began = time.monotonic()
        for _ in range(4):
            client.sendall(PIECE * 48)  # 3 MiB
            time.sleep(0.3)
        assert time.monotonic() - began > 1.0
        answer = read_all(client)
    assert status_of(answer) == 408
    assert b"slower than" in answer
    wait_until(lambda: taking.cut == 1)
    assert taking.taken == []


def test_a_client_that_trickles_steadily_is_cut_as_well(before: Start) -> None:
    served, taking = before(body_seconds=0.5)
    with connect(served) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_cut(client, b"1\r\nx\r\n", pause=0.1)
    wait_until(lambda: taking.cut == 1)


def test_the_time_of_an_upload_is_not_the_upstreams(before: Start) -> None:
    served, _ = before(timeout=0.5)

    def slowly() -> Iterator[bytes]:
        for piece in pieces(2):
            yield piece
            time.sleep(0.8)

    assert httpx.post(f"{served.url}/v1/files", content=slowly(), timeout=30).json()["size"] == 2 * len(PIECE)


def test_an_upstream_that_hangs_over_an_upload_is_a_timeout(before: Start) -> None:
    async def hang(request: Request) -> Response:
        async for _ in request.stream():
            pass
        await asyncio.sleep(2)
        return JSONResponse({})

    served, _ = before(hang, timeout=0.5)
    assert httpx.post(f"{served.url}/v1/files", content=pieces(4), timeout=30).status_code == 504


def test_an_upstream_that_refuses_at_once_is_heard(before: Start) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"error": "too large"}, 413, headers={"connection": "close"})

    served, _ = before(refuse)
    with connect(served) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 31457280\r\n\r\n" + PIECE * 40)
        client.settimeout(10)
        try:
            for piece in pieces(440):
                client.sendall(piece)
        except OSError:
            pass
        answer = read_all(client)
    assert status_of(answer) in (413, 502)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_what_the_cache_reads_keeps_its_limit(before: Start) -> None:
    served, taking = before(largest=1000)
    for path in ("chat/completions", "embeddings"):
        assert httpx.post(f"{served.url}/v1/{path}", json={"model": "m", "input": "x" * 1000}).status_code == 413
    assert httpx.post(f"{served.url}/v1/files", content=b"x" * 2000).json()["size"] == 2000
    assert len(taking.taken) == 1


def test_a_larger_limit_lets_a_large_question_in(serve: Serve) -> None:
    large = "why? " * (2 * MIB)
    assert ask(serve(app={"largest": 16 * MIB}), large)[0] == "miss"
