"""Web pages that ask the server: what a browser lets them read."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .conftest import TOKEN
from .scripted import completion, upstream
from .test_proxy import ASKED, Serve

CHAT, SHOP = "https://chat.example", "https://shop.example"
WISHED = "authorization,content-type,x-stainless-os"  # as OpenAI's client for JavaScript sends
QUESTION = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}


def post(url: str, origin: str, path: str = "/v1/chat/completions", body: object = QUESTION) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, headers={"origin": origin})


def preflight(url: str, origin: str, path: str = "/v1/chat/completions") -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": WISHED}
    return httpx.options(f"{url}{path}", headers=headers)


def readable(answer: httpx.Response) -> str | None:
    """Return whose pages may read an answer, as its headers say once."""
    (allowed,) = answer.headers.get_list("access-control-allow-origin") or [None]
    return allowed


def test_a_page_that_is_named_may_read_misses_hits_embeddings_and_refusals(serve: Serve) -> None:
    url = serve(app={"origins": [CHAT]}).url
    answers = [
        post(url, CHAT),
        post(url, CHAT),
        post(url, CHAT, body=QUESTION | {"stream": True}),
        post(url, CHAT, "/v1/embeddings", {"model": "embedsmith", "input": "an egg"}),
        post(url, CHAT, "/v1/embeddings", {"model": "embedsmith", "input": 3}),
        httpx.get(f"{url}/v1/models", headers={"origin": CHAT, "x-large": "x" * 70_000}),  # refused before all else
    ]
    assert [answer.headers.get("x-embedsmith-cache") for answer in answers[:3]] == ["miss", "hit", "hit"]
    assert [answer.status_code for answer in answers[3:]] == [200, 400, 431]
    assert {readable(answer) for answer in answers} == {CHAT}
    assert all(answer.headers["vary"] == "Origin" for answer in answers)
    assert {answer.headers["access-control-expose-headers"] for answer in answers} == {"*"}  # X-Embedsmith-Cache


def test_a_browser_is_told_that_it_may_send_what_the_page_sends(serve: Serve) -> None:
    served = serve(app={"origins": [CHAT]})
    answer = preflight(served.url, CHAT)
    assert (answer.status_code, answer.content, readable(answer)) == (204, b"", CHAT)
    assert answer.headers["access-control-allow-headers"] == WISHED
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    assert served.upstream.calls == []


def test_no_page_is_told_what_another_may(serve: Serve) -> None:
    served = serve(app={"origins": [CHAT]})
    post(served.url, CHAT)
    hit = post(served.url, SHOP)
    assert (hit.headers["x-embedsmith-cache"], readable(hit), hit.headers["vary"]) == ("hit", None, "Origin")
    refused = preflight(served.url, SHOP)
    assert (refused.status_code, readable(refused)) == (403, None)


def test_all_pages_may_where_the_operator_says_so(serve: Serve) -> None:
    url = serve(app={"origins": ["*"]}).url
    assert {readable(answer) for answer in (post(url, CHAT), post(url, SHOP), preflight(url, SHOP))} == {"*"}


@pytest.mark.parametrize(
    "path", ["/dashboard", "/admin/state", "/admin/purge", "/health", "/metrics", "/openapi.json", "/v1x", "/v1"]
)
def test_no_page_reads_what_is_not_below_v1(serve: Serve, path: str) -> None:
    url = serve(app={"origins": ["*"]}).url
    headers = {"origin": CHAT, "authorization": f"Bearer {TOKEN}"}
    for answer in (httpx.get(url + path, headers=headers), preflight(url, CHAT, path)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_what_the_upstream_says_of_origins_is_passed_on_only_where_the_operator_says_nothing(serve: Serve) -> None:
    """Passed on beside the server's own, there would be two origins, and browsers take none."""

    async def answer(_: Request) -> Response:
        told = {"access-control-allow-origin": SHOP, "access-control-allow-credentials": "true", "vary": "Accept"}
        return JSONResponse(completion(), headers=told)

    with upstream(answer) as behind:
        named, silent = (serve(app={"upstream": behind, "origins": origins}).url for origins in ([CHAT], []))
        miss = post(named, CHAT)
        assert (readable(miss), miss.headers["vary"]) == (CHAT, "Accept, Origin")
        assert "access-control-allow-credentials" not in miss.headers
        assert [readable(post(silent, SHOP)) for _ in range(2)] == [SHOP, None]  # a miss, a hit


def test_no_foreign_page_spends_the_operators_key(serve: Serve) -> None:
    """A body without a type needs no preflight: any page could send it to a server of this machine, and so did."""
    served = serve(app={"upstream_key": "sk-operator", "origins": [CHAT]})

    def send(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{served.url}/v1/files", content=b"{}", headers=named).status_code

    assert send(origin=SHOP) == send(origin="null") == send(origin=SHOP, sec_fetch_site="cross-site") == 403
    assert send(sec_fetch_site="cross-site") == 403  # an image of the page, say
    assert served.upstream.calls == []
    passed = [
        {},  # a program
        {"origin": CHAT, "sec_fetch_site": "cross-site"},
        {"origin": served.url},
        {"origin": "https://behind.a.proxy", "sec_fetch_site": "same-origin"},
        {"origin": SHOP, "authorization": "Bearer sk-own"},
    ]
    assert [send(**headers) for headers in passed] == [404] * 5  # the upstream's own
    keys = [call.authorization for call in served.upstream.calls]
    assert keys == [*["Bearer sk-operator"] * 4, "Bearer sk-own"]


def test_a_page_with_a_key_of_its_own_asks_as_before_where_the_server_has_one_as_well(serve: Serve) -> None:
    served = serve(app={"upstream_key": "sk-operator"})
    headers = {"origin": SHOP, "sec-fetch-site": "cross-site"}
    asked = headers | {"access-control-request-method": "POST"}
    assert httpx.options(f"{served.url}/v1/chat/completions", headers=asked).status_code != 403  # the upstream's to say
    answer = httpx.post(
        f"{served.url}/v1/chat/completions", json=QUESTION, headers=headers | {"authorization": "Bearer sk-own"}
    )
    assert answer.status_code == 200
