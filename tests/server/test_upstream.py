"""What is passed through arrives untouched, both ways, and nothing of one client reaches another."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from embedsmith.server import connections
from embedsmith.server.connections import EACH, KEPT, Connections
from embedsmith.server.headers import KEYS
from embedsmith.testing import FaultyServer

from .conftest import Served, listen
from .scripted import upstream
from .test_proxy import Serve, connect

STREAM = b'event: a\r\ndata: {"x": 1}\r\n\r\n: a comment\n\ndata: \xff\x00 raw bytes\n\ndata: [DONE]\n\n'
COOKIES = [b"a=1; Path=/", b"b=2; Path=/"]


async def answer_anything(request: Request) -> Response:
    """Answer as few upstreams do: odd bytes in odd pieces, two cookies, a status of its own."""
    if request.url.path.endswith("/echo"):
        return JSONResponse({"cookie": request.headers.get("cookie"), "agent": request.headers.get("user-agent")})

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(STREAM), 7):
            yield STREAM[start : start + 7]
            await asyncio.sleep(0.001)

    answer = StreamingResponse(pieces(), 207, media_type="text/event-stream")
    answer.raw_headers += [(b"set-cookie", cookie) for cookie in COOKIES]
    answer.raw_headers += [(b"x-request-id", b"theirs"), (b"x-embedsmith-cache", b"hit"), (b"x-odd", b"\xe9")]
    return answer


@pytest.fixture
def odd(serve: Serve) -> Any:
    """A proxy in front of an upstream that answers anything."""
    methods = ["GET", "POST", "PUT", "DELETE"]
    with listen(Starlette(routes=[Route("/base/v1/{path:path}", answer_anything, methods=methods)])) as url:
        yield serve(app={"upstream": f"{url}/base/v1"})


@pytest.mark.parametrize("path", ["completions", "responses", "images/generations", "audio/speech"])
def test_streams_pass_byte_for_byte(odd: Served, path: str) -> None:
    answer = httpx.post(f"{odd.url}/v1/{path}", json={"model": "m", "stream": True})
    assert answer.content == STREAM
    assert answer.status_code == 207
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2; Path=/"]
    assert answer.headers["x-upstream-request-id"] == "theirs"
    assert "x-embedsmith-cache" not in answer.headers
    assert dict(answer.headers.raw)[b"x-odd"] == b"\xe9"


def test_cookies_of_one_client_are_not_handed_to_another(odd: Served) -> None:
    httpx.post(f"{odd.url}/v1/files", headers={"authorization": "Bearer sk-a"})
    assert httpx.get(f"{odd.url}/v1/echo", headers={"authorization": "Bearer sk-b"}).json()["cookie"] is None
    assert httpx.get(f"{odd.url}/v1/echo", headers={"cookie": "own=1"}).json()["cookie"] == "own=1"


def test_nothing_is_added_to_a_request_that_names_no_agent(odd: Served) -> None:
    with httpx.Client() as client:
        del client.headers["user-agent"]
        assert client.get(f"{odd.url}/v1/echo").json()["agent"] is None


def test_completions_of_the_openai_client(serve: Serve) -> None:
    client = connect(serve(answer=lambda text: f"the answer to {text}"))
    whole = client.completions.create(model="m", prompt="a riddle")
    parts = list(client.completions.create(model="m", prompt="a riddle", stream=True))
    assert whole.choices[0].text == parts[0].choices[0].text == "the answer to a riddle"


def test_responses_of_the_openai_client(serve: Serve) -> None:
    served = serve(answer=lambda text: f"the answer to {text}")
    client = connect(served)
    assert client.responses.create(model="m", input="a riddle").output_text == "the answer to a riddle"
    events = list(client.responses.create(model="m", input="a riddle", stream=True))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == "the answer to a riddle"
    assert served.cache.store.count().entries == 0
    body = {"model": "m", "input": "x", "stream": True}
    through = httpx.post(f"{served.url}/v1/responses", json=body).content
    direct = httpx.post(f"{served.upstream.base_url}/responses", json=body).content
    number = str(len(served.upstream.calls)).encode()  # the simulated upstream counts its answers
    assert through == direct.replace(b"resp-" + number, b"resp-" + str(len(served.upstream.calls) - 1).encode())


def test_models_are_the_upstreams_and_the_served_one(serve: Serve) -> None:
    served = serve()
    client = connect(served)
    assert [model.id for model in client.models.list()] == ["simulator", "embedsmith"]
    assert client.models.retrieve("embedsmith").owned_by == "embedsmith"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    named = serve(app={"served_model": "simulator"})
    assert [model.id for model in connect(named).models.list()] == ["simulator"]


def test_an_upstream_that_has_no_models_says_so_itself(serve: Serve) -> None:
    served = serve(api_key="right")
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        connect(served, "wrong").models.list()
    assert connect(served, "right").models.list().data
    gone = serve(app={"upstream": "http://127.0.0.1:1/v1"})
    with pytest.raises(openai.InternalServerError, match="cannot be reached"):
        connect(gone).models.list()


def test_models_of_another_form_pass_untouched(odd: Served) -> None:
    assert httpx.get(f"{odd.url}/v1/models").content == STREAM


@pytest.mark.parametrize("path", ["completions", "responses", "models"])
def test_an_upstream_that_is_gone_is_a_502_everywhere(serve: Serve, path: str) -> None:
    with FaultyServer() as upstream:
        address = upstream.base_url
    served = serve(app={"upstream": address})
    method = "GET" if path == "models" else "POST"
    assert httpx.request(method, f"{served.url}/v1/{path}", json={}).status_code == 502


@pytest.mark.parametrize("path", ["chat/completions", "embeddings"])
def test_an_encoded_body_goes_on_as_it_is(serve: Serve, path: str) -> None:
    received = []

    async def keep(request: Request) -> Response:
        received.append((request.headers.get("content-encoding"), await request.body()))
        return JSONResponse({"taken": True})

    body = {"model": "m", "input": "x", "messages": [{"role": "user", "content": "hello"}]}
    packed = gzip.compress(json.dumps(body).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with upstream(keep) as url:
        served = serve(app={"upstream": url})
        answer = httpx.post(f"{served.url}/v1/{path}", content=packed, headers=headers)
    assert (answer.json(), received) == ({"taken": True}, [("gzip", packed)])
    if path == "chat/completions":
        told = [answer.headers[f"x-embedsmith-{name}"] for name in ("cache", "reason")]
        assert told == ["pass", "the body is encoded"]


class Denying(BaseHTTPRequestHandler):
    """Answers with a status that is none, as some do to programs that they do not like."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(999)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_status_that_is_none_is_a_502(serve: Serve, path: str) -> None:
    """uvicorn cannot send it: the client got a closed connection and no answer at all."""
    with HTTPServer(("127.0.0.1", 0), Denying) as denying:
        threading.Thread(target=denying.serve_forever, args=(0.01,), daemon=True).start()
        served = serve(app={"upstream": f"http://127.0.0.1:{denying.server_port}/v1"})
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        found = httpx.post(f"{served.url}/v1/{path}", json=body)
        denying.shutdown()
    assert found.status_code == 502
    assert "a status that is none (999)" in found.json()["error"]["message"]


def test_an_idle_connection_is_dropped_before_its_upstream_may_drop_it() -> None:
    """Both at the same moment break the request that is on its way; many upstreams run under uvicorn."""
    assert uvicorn.Config("none:app").timeout_keep_alive > KEPT


def test_connections_are_shared_out_and_go_when_a_burst_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go(url: str) -> None:
        held = Connections()
        burst = [await held.send(httpx.Request("GET", f"{url}/models")) for _ in range(2 * EACH + 1)]
        assert [pool.busy for pool in held.pools] == [EACH, EACH, 1]
        for answer in burst:
            await answer.aread()
        assert [pool.busy for pool in held.pools] == [0, 0, 0]
        monkeypatch.setattr(connections, "KEPT", 0.0)
        answer = await held.send(httpx.Request("GET", f"{url}/models"))
        assert [pool.busy for pool in held.pools] == [1]
        await answer.aclose()  # unread
        with pytest.raises(httpx.ConnectError):
            await held.send(httpx.Request("GET", "http://127.0.0.1:1/v1"))
        assert [pool.busy for pool in held.pools] == [0]
        await held.close()

    with FaultyServer() as simulated:
        asyncio.run(go(simulated.base_url))


@pytest.mark.parametrize("name", ["", "authorization", "api-key", "x-api-key", "x-goog-api-key"])
def test_the_operators_key_is_for_clients_that_bring_none(serve: Serve, name: str) -> None:
    served = serve(app={"upstream_key": "operators"})
    httpx.post(f"{served.url}/v1/completions", json={}, headers={name: "clients"} if name else {})
    (call,) = served.upstream.calls
    told = {key: call.header(key) for key in KEYS if call.header(key)}
    assert told == ({name: "clients"} if name else {"authorization": "Bearer operators"})


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("key=AIza-clients", None),
        ("alt=sse&KEY=clients", None),
        ("api%2Dversion=1&subscription%2Dkey=clients", None),
        ("access_token=", None),
        ("api-version=2024-06-01&keys=no", "Bearer operators"),
    ],
)
def test_the_operators_key_is_not_sent_beside_one_in_the_query(serve: Serve, query: str, key: str | None) -> None:
    served = serve(app={"upstream_key": "operators"})
    httpx.post(f"{served.url}/v1/completions?{query}", json={})
    (call,) = served.upstream.calls
    assert (call.header("authorization"), call.path) == (key, f"/v1/completions?{query}")
