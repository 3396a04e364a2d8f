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
                for place, piece in enumerate(hostile.pieces):
                    time.sleep(hostile.pause if place else 0.0)
                    self.wfile.write(piece)
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
    upstream.pieces, upstream.hangs_up = [sent], becomes in (502, FINE[:CUT])
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


BEGIN, END = chunk({"role": "assistant", "content": "in the app"}), chunk({}, "stop")
ENDED = chunk({}, "length")
BROKEN = events(BEGIN, END).replace(b"the app", b"the app \xe2\x80")
STREAMS: dict[str, tuple[bytes, bool]] = {  # what is sent, and whether the client sees an end of it
    "no end": (chunked(events(BEGIN, END, done=False)), True),
    "no chunk at the end": (chunked(events(BEGIN, END), end=b""), False),
    "cut in an event": (chunked(STREAM[:40]), True),
    "an error in the middle": (chunked(events(BEGIN, {"error": {"message": "no"}}, END)), True),
    "an event of error": (chunked(b'event: error\ndata: {"message": "no"}\n\n' + events(BEGIN, END)), True),
    "an object of error": (chunked(events(BEGIN, {"object": "error", "message": "no"}, END)), True),
    "half a character": (chunked(BROKEN), True),
    "more behind the end": (chunked(events(BEGIN, END) + events(chunk({"content": ", or not"}))), True),
    "an error behind the end": (chunked(events(BEGIN, END) + events({"error": {"message": "no"}})), True),
    "two ends": (chunked(events(BEGIN, ENDED, END)), True),
    "two other ends": (chunked(events(BEGIN, END, ENDED)), True),
    "filtered": (chunked(events(BEGIN, chunk({}, "content_filter"))), True),
    "no reason": (chunked(events(BEGIN)), True),
    "no choices": (chunked(events(chunk({}, choices=[]))), True),
    "another choice": (chunked(events(BEGIN, chunk({"content": "x"}, choice={"index": 1}), END)), True),
    "gzip": (chunked(gzip.compress(events(BEGIN, END)), headers="Content-Encoding: gzip\r\n"), True),
    "a plain answer": (chunked(FINE), True),
    "too short a length": (answer(STREAM, length=len(STREAM) - 20), True),
    "too long a length": (answer(STREAM, length=len(STREAM) + 20), False),
    "a line without an end": (chunked(b"data: " + b"x" * 100_000), True),
}


@pytest.mark.parametrize(("sent", "ends"), STREAMS.values(), ids=STREAMS)
def test_a_spoilt_stream_is_passed_on_and_never_stored(
    hostile: tuple[Hostile, Served], sent: bytes, ends: bool
) -> None:
    upstream, served = hostile
    upstream.pieces, upstream.hangs_up = [sent], not ends
    for _ in range(2):
        found = send(served, stream=True)
        assert isinstance(found, httpx.Response) == ends
    assert upstream.requests == 2
    assert served.cache.store.count().entries == 0
    heals(upstream, served)


WHOLE: dict[str, bytes] = {
    "with trailers": chunked(STREAM, end=b"0\r\nX-Sum: 1\r\n\r\n"),
    "after early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + chunked(STREAM),
    "after continue": b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(STREAM),
    "byte by byte": chunked(*(STREAM[place : place + 1] for place in range(len(STREAM)))),
    "with comments": chunked(b": alive\n\n" + STREAM.replace(b"\n\n", b"\n\n: alive\n\n")),
    "with other ends of lines": chunked(STREAM.replace(b"\n", b"\r\n")),
    "with two ids": chunked(events(BEGIN, chunk({}, "stop", id="2"))),  # llama.cpp named each chunk for itself
}


@pytest.mark.parametrize("sent", WHOLE.values(), ids=WHOLE)
def test_a_whole_stream_is_stored_however_it_comes(hostile: tuple[Hostile, Served], sent: bytes) -> None:
    upstream, served = hostile
    upstream.pieces = [sent]
    for outcome in ("miss", "hit"):
        found = send(served, stream=True)
        assert isinstance(found, httpx.Response)
        assert found.headers["x-embedsmith-cache"] == outcome
        assert b"the app" in found.content
    assert upstream.requests == 1


@pytest.mark.parametrize("status", ["200 OK", "500 Oh No"])
def test_an_answer_that_is_too_long_to_be_stored_goes_on_as_it_comes(
    hostile: tuple[Hostile, Served], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.server.upstream.LARGEST", 10_000)
    upstream, served = hostile
    fitting, long = (json.dumps(completion("x" * size)).encode() for size in (9_000, 20_000))
    upstream.pieces, upstream.hangs_up = [answer(long, length=len(long) + 1)], True
    assert isinstance(send(served, stream=False), httpx.RemoteProtocolError)  # as broken as it came
    sent, upstream.hangs_up = answer(long, status=status), False
    upstream.pieces, upstream.pause = [sent[:15_000], sent[15_000:]], 0.1
    found = send(served, stream=False)
    assert isinstance(found, httpx.Response)
    assert (found.status_code, found.content) == (int(status[:3]), long)
    assert served.cache.store.count().entries == 0
    upstream.pieces = [answer(fitting)]
    told = [send(served, stream=False) for _ in range(2)]
    assert [found.headers["x-embedsmith-cache"] for found in told if isinstance(found, httpx.Response)] == [
        "miss",
        "hit",
    ]


def test_an_answer_that_drips_has_its_end(hostile: tuple[Hostile, Served]) -> None:
    upstream, served = hostile
    upstream.pieces, upstream.pause = [answer(b"", length=len(FINE)), *(b"%c" % byte for byte in FINE)], 0.2
    began = time.monotonic()
    found = send(served, stream=False)
    assert isinstance(found, httpx.Response)
    assert (found.status_code, served.cache.store.count().entries) == (504, 0)
    assert time.monotonic() - began < 10
    heals(upstream, served)
