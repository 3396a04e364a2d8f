"""The public doubles: what users of embedsmith.testing may rely on."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.corpus import Query
from embedsmith.llm import Prompt, Sampling
from embedsmith.llm.structured import parse_list, parse_object
from embedsmith.synthesis import load_recipe, render
from embedsmith.testing import FAULTS, Capacity, FakeEncoder, FakeLLM, FaultyServer, spoil, write_answer

USER = 'Question: how do i cook rice?\nReply with {"paraphrases": [3 strings]}'


@given(st.lists(st.text(), max_size=6))
def test_fake_embeddings_are_unit_rows_and_depend_on_the_text_alone(texts: list[str]) -> None:
    encoder = FakeEncoder(32)
    rows = encoder.encode(texts)
    assert (rows.shape, rows.dtype) == ((len(texts), 32), np.float32)
    lengths = np.linalg.norm(rows, axis=1)
    assert np.all(np.isclose(lengths, 1, atol=1e-5) | (lengths == 0))  # no trigram, no direction
    for text, row in zip(texts, rows, strict=True):
        assert np.array_equal(FakeEncoder(32).encode([text])[0], row)


def test_texts_with_common_words_are_closer() -> None:
    a, near, far = FakeEncoder().encode(["boil an egg", "how to boil an egg", "train to Paris"])
    assert a @ near > 0.5 > a @ far


@pytest.mark.parametrize("task", ["paraphrases", "distinct"])
def test_answers_fit_the_prompts_that_the_recipe_sends(task: str) -> None:
    """If the shipped prompts change their form, the double must follow."""
    prompts = render(load_recipe(paraphrases=3, distinct=2), Query("0", "how do i cook rice?"))
    (prompt,) = [prompt for prompt in prompts if prompt.task == task]
    parsed = parse_list(write_answer(prompt.user), task)
    assert parsed.notes == ()
    assert len(set(parsed.items)) == {"paraphrases": 3, "distinct": 2}[task]
    assert all("cook rice" in item for item in parsed.items)


def test_paraphrases_and_distinct_questions_never_coincide() -> None:
    paraphrases = set(parse_list(write_answer(USER.replace("3", "6")), "paraphrases").items)
    distinct = set(
        parse_list(write_answer(USER.replace("3", "6").replace("paraphrases", "distinct")), "distinct").items
    )
    assert (len(paraphrases), len(distinct)) == (6, 6)
    assert paraphrases.isdisjoint(distinct)


def test_another_prompt_gets_json_too() -> None:
    assert "answer" in json.loads(write_answer("Tell me a joke"))


def test_the_fake_model_remembers_its_prompts_and_answers_out_of_order() -> None:
    prompts = [Prompt("", f"p{n}", str(n), "paraphrases") for n in range(3)]
    llm = FakeLLM(answer=lambda prompt: None if prompt.user == "p1" else prompt.user.upper())
    pairs = list(llm.complete(prompts, Sampling()))
    assert [(place, one.text, one.finish) for place, one in pairs] == [
        (2, "P2", "stop"),
        (1, None, "error"),
        (0, "P0", "stop"),
    ]
    assert Counter(prompt.user for prompt in llm.calls) == Counter(["p0", "p1", "p2"])


def post(server: FaultyServer, user: str = USER, **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": user}], **fields}
    return httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=10)


def read(response: httpx.Response) -> tuple[str | None, str]:
    choice = response.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def test_a_server_without_faults_answers_in_openais_form() -> None:
    with FaultyServer() as server:
        response = post(server)
    assert read(response) == (write_answer(USER), "stop")
    assert response.json()["usage"]["total_tokens"] == 150
    assert server.answered() == [USER]
    assert (server.calls[0].path, server.calls[0].fault) == ("/v1/chat/completions", None)


def test_each_fault_is_what_its_name_says() -> None:
    """One server for each fault, one request to each."""
    answers: dict[str, httpx.Response] = {}
    for fault in FAULTS:
        with FaultyServer(faults={fault: 1.0}, hang=0.0) as server:
            if fault == "drop":
                with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                    post(server)
            else:
                answers[fault] = post(server)
            assert [call.fault for call in server.calls] == [fault]
    assert answers["rate_limit"].status_code == 429
    assert answers["rate_limit"].headers["retry-after"] == "0"
    assert "retry-after" not in answers["rate_limit_silent"].headers
    statuses = [answers[name].status_code for name in ("rate_limit_silent", "server_error", "unavailable")]
    assert statuses == [429, 500, 503]
    assert answers["garbled"].status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
        answers["garbled"].json()
    assert read(answers["null"])[0] is None
    assert read(answers["empty"])[0] == ""
    assert read(answers["truncated"])[1] == "length"
    assert len(parse_list(read(answers["truncated"])[0], "paraphrases").items) < 3
    notes = {name: parse_list(read(answers[name])[0], "paraphrases").notes for name in ("thinking", "broken", "fenced")}
    assert notes == {"thinking": ("thinking-removed",), "broken": ("repaired",), "fenced": ()}
    assert "As an AI" in str(read(answers["refusal"])[0])


def test_the_plan_follows_the_seed_and_the_shares() -> None:
    def plan(seed: int) -> list[str | None]:
        server = FaultyServer(faults={"null": 0.3, "drop": 0.2}, seed=seed)
        try:
            return [server.record("/v1/chat/completions", {}, None) for _ in range(400)]
        finally:
            server._server.server_close()

    first = plan(1)
    assert first == plan(1) != plan(2)
    shares = {fault: count / 400 for fault, count in Counter(first).items()}
    assert shares == pytest.approx({"null": 0.3, "drop": 0.2, None: 0.5}, abs=0.1)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown faults"):
        FaultyServer(faults={"earthquake": 1.0})


def test_formats_and_keys_can_be_refused() -> None:
    with FaultyServer(rejects_formats=["json_schema"]) as server:
        assert post(server, response_format={"type": "json_schema"}).status_code == 400
        assert post(server, response_format={"type": "json_object"}).status_code == 200
    with FaultyServer(api_key="right") as server:
        assert post(server).status_code == 401
        headers = {"Authorization": "Bearer right"}
        body = {"messages": [{"role": "user", "content": USER}]}
        assert httpx.post(f"{server.base_url}/chat/completions", json=body, headers=headers).status_code == 200


def test_embeddings_come_from_the_given_function() -> None:
    with FaultyServer(embed=FakeEncoder(8).encode) as server:
        response = httpx.post(f"{server.base_url}/embeddings", json={"model": "m", "input": ["an egg", "rice"]})
        single = httpx.post(f"{server.base_url}/embeddings", json={"model": "m", "input": "an egg"})
    rows = [item["embedding"] for item in response.json()["data"]]
    np.testing.assert_allclose(rows, FakeEncoder(8).encode(["an egg", "rice"]), rtol=1e-6)
    assert single.json()["data"][0]["embedding"] == rows[0]


def test_an_unknown_path_is_a_404() -> None:
    with FaultyServer() as server:
        assert httpx.post(f"{server.base_url}/images", json={}).status_code == 404


def test_one_connection_serves_many_calls() -> None:
    """Clients keep connections open; a fault on one call must not spoil the next."""
    with FaultyServer(faults={"server_error": 0.5}, seed=3) as server, httpx.Client(timeout=10) as client:
        body = {"messages": [{"role": "user", "content": USER}]}
        statuses = [client.post(f"{server.base_url}/chat/completions", json=body).status_code for _ in range(10)]
    assert set(statuses) == {200, 500}
    assert [500 if call.fault else 200 for call in server.calls] == statuses


def test_a_request_that_was_cut_off_is_no_call() -> None:
    """What a killed client leaves: the headers of a request, and nothing behind them."""
    with FaultyServer() as server:
        address = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((address[0], int(address[1]))) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        probe = http.client.HTTPConnection(*address)  # a whole call behind it, as a sign that the half one was seen
        time.sleep(0.2)
        probe.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"content": USER}]}))
        assert probe.getresponse().status == 200
        probe.close()
    assert server.answered() == [USER]


@pytest.mark.parametrize("answer", ['{"a": "x", "b": [1, {"c": "]}"}], "n": 3}', '{"label": "yes"}', '{"items": []}'])
def test_faults_spoil_any_json_object_and_can_be_read_as_what_they_are(answer: str) -> None:
    keys = list(json.loads(answer))
    found = {name: parse_object(spoil(name, answer, "first"), keys) for name in FAULTS}
    for name in ("thinking", "fenced", "broken"):
        assert found[name][0] == json.loads(answer)
    assert found["broken"][1] == ("repaired",)
    for name in ("null", "empty", "truncated"):
        assert found[name][0] is None
    assert spoil("duplicate", answer, "first") == "first"
    assert list(json.loads(str(spoil("refusal", answer, "")))) == keys
    assert spoil(None, answer, "") == answer


def test_a_refusal_of_an_answer_without_json_is_words() -> None:
    assert "As an AI" in str(spoil("refusal", "just text", ""))


def test_a_capacity_refuses_or_lets_wait() -> None:
    """Three at once where one has room: two are refused, or all are answered one after another."""

    def crowd(capacity: Capacity) -> tuple[list[int], int]:
        with FaultyServer(capacity=capacity, delay=0.2) as server, ThreadPoolExecutor(3) as pool:
            statuses = [response.status_code for response in pool.map(lambda _: post(server), range(3))]
        return sorted(statuses), len(server.calls)

    refusing = Capacity(1, refuses=True, retry_after=2)
    assert crowd(refusing) == ([200, 429, 429], 3)
    assert (refusing.served, refusing.refused) == (1, 2)
    waiting = Capacity(1)
    assert crowd(waiting) == ([200, 200, 200], 3)


def test_a_rate_refuses_what_comes_too_soon() -> None:
    with FaultyServer(capacity=Capacity(rate=0.001, burst=2, refuses=True, retry_after=7)) as server:
        responses = [post(server) for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 429, 429]
    assert responses[2].headers["retry-after"] == "7"


def test_usage_is_what_the_count_says() -> None:
    with FaultyServer(count=lambda prompt, answer: (len(prompt), len(answer))) as server:
        usage = post(server).json()["usage"]
    assert usage == {
        "prompt_tokens": len(USER),
        "completion_tokens": len(write_answer(USER)),
        "total_tokens": len(USER) + len(write_answer(USER)),
    }
    with FaultyServer(count=lambda *_: None) as server:
        assert "usage" not in post(server).json()
