"""What the server writes down: enough to find a request, never a text, a key, a cookie or a query string."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from embedsmith.cache.stores import StoreError
from embedsmith.errors import ConfigurationError
from embedsmith.server.logs import TextLog, open_log
from embedsmith.server.trail import Trail, read_request_id

from .conftest import TOKEN, Served
from .test_proxy import ASKED, Serve, ask

SECRETS = {
    "question": "MYQUESTIONISSECRET",
    "answer": "MYANSWERISSECRET",
    "key": "sk-MYKEYISSECRET",
    "cookie": "MYCOOKIEISSECRET",
    "query": "MYQUERYISSECRET",
    "token": TOKEN,
}


@contextlib.contextmanager
def logged(mode: str) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield a log of requests and what is written to it; records of `logging` go there too, as in `serve`."""
    stream = io.StringIO()
    log, handler = open_log(mode, stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield log, stream
    finally:
        root.removeHandler(handler)


def lines_of(stream: io.StringIO, count: int) -> list[dict[str, Any]]:
    """Return the lines once there are so many: a client has its answer before the line is written."""
    until = time.monotonic() + 10
    while stream.getvalue().count("\n") < count and time.monotonic() < until:
        time.sleep(0.005)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def send(served: Served, text: str = ASKED, *, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    headers = {"authorization": f"Bearer {SECRETS['key']}", "cookie": f"session={SECRETS['cookie']}"}
    headers |= {"x-embedsmith-cache": f"namespace={SECRETS['query']}"}
    return httpx.post(f"{served.url}{path}?key={SECRETS['query']}", json=body, headers=headers, timeout=20)


def test_json_is_a_line_a_request_with_what_was_decided_and_what_it_took(serve: Serve) -> None:
    with logged("json") as (log, stream):
        served = serve(app={"log": log})
        for text in (ASKED, ASKED, "How do I unfreeze my card?"):
            ask(served, text)
        httpx.get(f"{served.url}/nothing", headers={"x-request-id": "mine-1"})
        first, second, third, last = lines_of(stream, 4)
    told = [(line["outcome"], line["reason"], line["status"]) for line in (first, second, third)]
    assert told == [("miss", "nothing stored", 200), ("hit", "same text", 200), ("miss", "guard: opposite", 200)]
    assert first["upstream_ms"] > 0
    assert "upstream_ms" not in second
    assert second["lookup_ms"] < second["ms"]
    assert 0.8 < third["similarity"] < 1
    assert len(first["tenant"]) == 8
    assert (first["method"], first["path"]) == ("POST", "/v1/chat/completions")
    assert (last["id"], last["path"], last["status"]) == ("mine-1", "/nothing", 404)
    assert len({line["id"] for line in (first, second, third)}) == 3


def test_text_is_a_summary_a_minute_and_every_kind_of_failure_once() -> None:
    now = [0.0]
    stream = io.StringIO()
    log = TextLog(stream, clock=lambda: now[0])
    for number in range(300):
        now[0] += 0.21
        failed = number % 3 == 0
        log.finish(Trail("id", "POST", "/v1/x", status=502 if failed else 200, outcome="miss", failure="gone" * failed))
    lines = stream.getvalue().splitlines()
    assert sum(" 502 POST /v1/x: gone (id id" in line for line in lines) == 7  # one in ten seconds
    (summary,) = [line for line in lines if "requests" in line]
    assert "286 requests, 0 hit, 286 miss, 0 pass, 96 failed in 60 s" in summary
    log.close()
    assert "14 requests" in stream.getvalue().splitlines()[-1]


def test_what_an_upstream_refuses_is_counted_or_a_wrong_key_would_look_like_a_quiet_day() -> None:
    stream = io.StringIO()
    log = TextLog(stream)
    for status in (401, 404, 200):
        log.finish(Trail("id", "POST", "/v1/x", status=status, outcome="miss"))
    log.close()
    assert "3 requests, 0 hit, 3 miss, 0 pass, 0 failed, 2 refused (4xx) in" in stream.getvalue()


def test_a_miss_that_only_if_cached_asked_for_is_no_failure(serve: Serve) -> None:
    stream = io.StringIO()
    log = TextLog(stream)
    served = serve(app={"log": log})
    body = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}
    headers = {"x-embedsmith-cache": "only-if-cached"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "not_cached")
    ask(served)  # the line of the first request was written before this one came
    log.close()
    (summary,) = stream.getvalue().splitlines()
    assert "1 miss" in summary or "2 miss" in summary
    assert "0 failed" in summary
    assert Trail("id", status=504, failure="the upstream did not answer in time").failed
    assert Trail("id", status=500).failed


def test_off_says_nothing(serve: Serve) -> None:
    with logged("off") as (log, stream):
        served = serve(app={"log": log, "upstream": "http://127.0.0.1:1/v1"})
        assert send(served).status_code == 502
    assert (log, stream.getvalue()) == (None, "")
    with pytest.raises(ConfigurationError, match="the log mode 'loud'"):
        open_log("loud")


def test_a_request_id_is_the_clients_when_well_formed_and_goes_all_the_way(serve: Serve) -> None:
    served = serve()
    for given, kept in {"abc-1.2:3_x": True, "": False, "a b": False, "x" * 129: False, "<script>": False}.items():
        answer = httpx.get(f"{served.url}/v1/models", headers={"x-request-id": given})
        told = answer.headers["x-request-id"]
        assert (told == given) is kept
        assert served.upstream.calls[-1].header("x-request-id") == told == read_request_id(told)
    assert len(httpx.get(f"{served.url}/health").headers["x-request-id"]) == 32


@pytest.mark.parametrize("mode", ["json", "text"])
def test_secrets_and_texts_are_in_no_log_whatever_fails(
    serve: Serve, mode: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    quoted = " ".join(SECRETS.values())

    def fail(*_: object, **__: object) -> None:
        try:
            raise ValueError(f"DETAIL: {quoted}")
        except ValueError as error:
            raise StoreError(f"the row {quoted} cannot be read") from error

    with logged(mode) as (log, stream):
        served = serve(answer=lambda text: SECRETS["answer"], app={"log": log, "timeout": 0.5}, hang=1.0, pause=0.01)
        question = SECRETS["question"]
        send(served, question)
        send(served, question)
        send(served, question + "S")
        send(served, question, n=2)
        send(served, question, temperature=1.9)
        send(served, question, messages=question)
        send(served, question, path="/v1/embeddings")
        httpx.post(f"{served.url}/v1/chat/completions", content=quoted.encode())
        for fault in ("server_error", "rate_limit", "drop", "cut", "hang", "null"):
            served.upstream.faults = {fault: 1.0}
            for stream_wanted in (False, True):
                with contextlib.suppress(httpx.HTTPError):
                    send(served, question + fault, stream=stream_wanted)
        served.upstream.faults = {}
        for broken in ("put", "search", "get", "touch"):
            with monkeypatch.context() as patch:
                patch.setattr(served.cache.store, broken, fail)
                send(served, question + broken)
        for target, name in ((served.cache, "lookup"), (served.cache.store, "scan"), (served.cache.store, "count")):
            with monkeypatch.context() as patch:
                patch.setattr(target, name, fail)
                send(served, question + name)
                for path in ("/admin/entries", "/admin/state", "/metrics"):
                    headers = {"authorization": f"Bearer {TOKEN}"}
                    httpx.get(f"{served.url}{path}?text={question}", headers=headers)
        with monkeypatch.context() as patch:
            patch.setattr(served.cache.encoder, "encode", fail)
            body = {"model": "embedsmith", "input": question}
            assert httpx.post(f"{served.url}/v1/embeddings", json=body).status_code == 500
        _leave_early(served, question)
        logging.getLogger("some.library").error("failed on %s", quoted)
        logging.getLogger("asyncio").error(
            "Task exception was never retrieved\n%s", quoted, exc_info=StoreError(quoted)
        )
        if log is not None:
            log.close()
    captured = capfd.readouterr()
    written = stream.getvalue() + captured.out + captured.err
    assert len(written) > 500
    assert [name for name, secret in SECRETS.items() if secret.lower() in written.lower()] == []
    assert "StoreError at" in written
    if mode == "json":
        assert all(json.loads(line) for line in stream.getvalue().splitlines())


def _leave_early(served: Served, question: str) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions?key={SECRETS['query']} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        client.sendall(head.encode() + question.encode())
    httpx.get(f"{served.url}/health")


def test_a_failure_that_nobody_foresaw_is_a_500_with_an_id_to_look_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged("json") as (log, stream):
        served = serve(app={"log": log})

        def fail() -> None:
            raise RuntimeError("with a secret text")

        assert served.watch is not None
        monkeypatch.setattr(served.watch.oversight, "state", fail)
        answer = httpx.get(f"{served.url}/admin/state", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    (line,) = lines_of(stream, 1)
    assert line["id"] == answer.headers["x-request-id"]
    assert line["failure"].startswith("RuntimeError at test_logs.py:")
