"""An upstream that speaks HTTP as nobody should: its client sees what it sent, and only whole answers are stored."""

from __future__ import annotations

import gzip
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from .conftest import Served
from .scripted import chunk, completion, events
from .test_proxy import ASKED, Serve

FINE = json.dumps(completion("in the app — here ✓"), ensure_ascii=False).encode()
STREAM = events(chunk({"role": "assistant", "content": "in "}), chunk({"content": "the app"}), chunk({}, "stop"))


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an answer with a content-length; below zero without one."""
    given = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {given}"] if given >= 0 else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n", headers: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


@dataclass
class Hostile:
    """What is sent in answer to each request, byte for byte, piece by piece."""

    pieces: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    hangs_up: bool = False
    connections: int = 0
    requests: int = 0


class Speaker(socketserver.StreamRequestHandler):
    """One connection to the upstream."""

    timeout = 20

    def handle(self) -> None:
        hostile: Hostile = self.server.hostile  # type: ignore[attr-defined]
        hostile.connections += 1
        with suppress(OSError):
            while self._read_request():
                hostile.requests += 1
                for piece in hostile.pieces:
                    self.wfile.write(piece)
                    time.sleep(hostile.pause)
                if hostile.hangs_up:
                    return

    def _read_request(self) -> bool:
        head = [*iter(self.rfile.readline, b"\r\n")] if self.connection.recv(1, socket.MSG_PEEK) else []
        lengths = [line for line in head if line.lower().startswith(b"content-length:")]
        return bool(lengths) and bool(self.rfile.read(int(lengths[0].split(b":")[1])))


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close, allow_reuse_address = True, False, True


@pytest.fixture
def hostile(serve: Serve) -> Iterator[tuple[Hostile, Served]]:
    upstream = Hostile()
    with Listener(("127.0.0.1", 0), Speaker) as listener:
        listener.hostile = upstream  # type: ignore[attr-defined]
        threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield upstream, serve(app={"upstream": f"http://127.0.0.1:{listener.server_address[1]}/v1", "timeout": 2.0})
        finally:
            listener.shutdown()


def send(served: Served, stream: bool, text: str = ASKED) -> httpx.Response | httpx.HTTPError:
    """Return the answer, its body as it was sent, or how it broke off."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    try:
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=20) as found:
            found._content = b"".join(found.iter_raw())
            return found
    except httpx.HTTPError as error:
        return error


def whole(body: bytes | dict[str, Any], *headers: str) -> tuple[bytes, bytes]:
    """Return an answer with such a body, and the body."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answer(body, *headers), body


CUT = FINE.index("—".encode()) + 1  # in the middle of a character
GZIP = gzip.compress(FINE)
# What is sent, and what becomes of it: the body that the client gets, or the status of the proxy's own answer.
PLAIN: dict[str, tuple[bytes, bytes | int]] = {
    "cut in the middle of a character": (answer(FINE[:CUT], length=len(FINE)), 502),
    "too short a length": (answer(FINE, length=CUT), FINE[:CUT]),
    "no length, cut": (answer(FINE[:CUT], length=-1), FINE[:CUT]),
    "gzip that nobody asked for": whole(GZIP, "Content-Encoding: gzip"),
    "gzip that ends early": whole(GZIP[:-20], "Content-Encoding: gzip"),
    "chunks of garbage": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n" + FINE, 502),
    "chunks without an end": (chunked(FINE, end=b""), 502),
    "an error as an answer": whole({"error": {"message": "no"}}),
    "an answer and an error": whole(completion(error={"message": "no"})),
    "no choices": whole(completion(choices=[])),
    "two choices": whole(completion(choices=2 * completion()["choices"])),
    **{
        f"ended by {reason!r}": whole(completion(choice={"finish_reason": reason}))
        for reason in ("length", "content_filter", "tool_calls", "error", None, "", "STOP", 1)
    },
    "nothing": whole(b""),
    "no content": (answer(b"", status="204 No Content", length=-1), b""),
    "a redirect": (answer(FINE, "Location: /elsewhere", status="302 Found"), FINE),
    "a part of it": (answer(FINE, "Content-Range: bytes 0-9/10", status="206 Partial Content"), FINE),
    "a page": whole(b"<html>busy</html>", "Content-Type: text/html"),
    "a stream": whole(STREAM, "Content-Type: text/event-stream"),
    "two bodies in one": whole(FINE + FINE),
    "no HTTP": (b"\x16\x03\x01\x02\x00" + FINE, 502),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", 502),
    "another protocol": (answer(b"", status="101 Switching Protocols", length=-1), 502),
}


@pytest.mark.parametrize(("sent", "becomes"), PLAIN.values(), ids=PLAIN)
def test_a_spoilt_answer_is_passed_on_and_never_stored(
    hostile: tuple[Hostile, Served], sent: bytes, becomes: bytes | int
) -> None:
    upstream, served = hostile
    upstream.pieces, upstream.hangs_up = [sent], True
    for _ in range(2):
        found = send(served, stream=False)
        assert isinstance(found, httpx.Response)
        assert becomes in (found.content, found.status_code)
    assert upstream.requests == 2
    assert served.cache.store.count().entries == 0
    heals(upstream, served)


@pytest.mark.parametrize("behind", [answer(json.dumps(completion("another's")).encode()), b"garbage", FINE[CUT:]])
def test_what_comes_behind_an_answer_is_nobodys(hostile: tuple[Hostile, Served], behind: bytes) -> None:
    """An answer too many, or one that is longer than its length says: the next request on the connection got it."""
    upstream, served = hostile
    upstream.pieces = [answer(FINE) + behind]
    for text in ("what is tea", "who sells bread", "where are my shoes", "when does it rain"):
        found = send(served, stream=False, text=text)
        assert isinstance(found, httpx.Response)
        assert (found.status_code, found.content) == (200, FINE)
    assert upstream.connections == 4
    heals(upstream, served)
    for text in ("how tall is it", "why not"):
        send(served, stream=False, text=text)
    assert upstream.connections == 5  # where nothing is behind, they are kept


def heals(upstream: Hostile, served: Served) -> None:
    """See to it that a whole answer is stored, and served, after whatever came before."""
    upstream.pieces, upstream.pause, upstream.hangs_up = [answer(FINE)], 0.0, False
    for outcome in ("miss", "hit"):
        found = send(served, stream=False)
        assert isinstance(found, httpx.Response)
        assert (found.headers["x-embedsmith-cache"], found.json()) == (outcome, json.loads(FINE))
