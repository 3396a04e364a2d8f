"""Embeddings, metrics, and what the admin sees and does."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from embedsmith.server.watch import Prices
from embedsmith.testing import FakeEncoder

from .conftest import TOKEN, Served
from .test_proxy import ASKED, Serve, ask, connect

ADMIN = {"authorization": f"Bearer {TOKEN}"}


def test_embeddings_are_those_of_the_model(serve: Serve) -> None:
    client = connect(serve())
    texts = ["an egg", "rice"]
    plain = client.embeddings.create(model="embedsmith", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="embedsmith", input=texts)  # base64 on the wire
    wanted = FakeEncoder().encode(texts)
    np.testing.assert_allclose([row.embedding for row in plain.data], wanted, rtol=1e-6)
    np.testing.assert_allclose([row.embedding for row in packed.data], wanted, rtol=1e-6)


def test_fewer_dimensions_are_of_length_one_again(serve: Serve) -> None:
    client = connect(serve())
    (row,) = client.embeddings.create(model="embedsmith", input="an egg", dimensions=64).data
    assert len(row.embedding) == 64
    assert np.linalg.norm(row.embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": 3},
        {"input": []},
        {"input": [[1, 2]]},
        {"dimensions": 0},
        {"dimensions": 9999},
        {"input": ["x"] * 3000},
    ],
)
def test_wrong_embedding_requests_are_refused(serve: Serve, wrong: dict[str, Any]) -> None:
    body = {"model": "embedsmith", "input": "x"} | wrong
    assert httpx.post(f"{serve().url}/v1/embeddings", json=body).status_code == 400


def test_another_model_is_asked_of_the_upstream(serve: Serve) -> None:
    served = serve()
    connect(served).embeddings.create(model="other", input="x")
    assert served.upstream.calls[-1].body["model"] == "other"


def test_metrics_count_by_outcome_and_reason(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served)
    text = httpx.get(f"{served.url}/metrics").text
    assert 'embedsmith_lookups_total{outcome="hit",reason="same text"} 1.0' in text
    assert 'embedsmith_lookups_total{outcome="miss",reason="nothing stored"} 1.0' in text
    assert "embedsmith_entries 1.0" in text
    assert "embedsmith_saved_completion_tokens_total 50.0" in text


@pytest.mark.parametrize("path", ["/admin/state", "/admin/entries"])
def test_nothing_is_shown_without_the_token(serve: Serve, path: str) -> None:
    url = serve().url
    assert httpx.get(url + path).status_code == 401
    assert httpx.get(url + path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(url + path, headers=ADMIN).status_code == 200


def test_the_dashboard_page_holds_no_data(serve: Serve) -> None:
    served = serve()
    ask(served)
    page = httpx.get(f"{served.url}/dashboard")
    assert "freeze" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def post(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(served.url + path, json=body, headers=ADMIN)


def state(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/admin/state", headers=ADMIN).json()
    return found


def test_a_hit_marked_wrong_is_removed_and_kept_to_learn_from(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "How do I freeze my cards?")
    seen = state(served)["latest"][0]
    assert post(served, "/admin/mark", {"number": seen["number"], "verdict": "wrong"}).json() == {"marked": "wrong"}
    assert ask(served)[0] == "miss"
    row = json.loads(served.feedback.read_text())
    assert (row["sentence1"], row["sentence2"], row["label"]) == ("How do I freeze my cards?", ASKED, 0)


def test_a_miss_marked_as_the_same_becomes_a_duplicate_to_learn_from(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "put my card on ice")
    seen = state(served)["latest"][0]
    post(served, "/admin/mark", {"number": seen["number"], "verdict": "same"})
    assert json.loads(served.feedback.read_text())["label"] == 1


def test_feedback_is_an_examples_file(serve: Serve) -> None:
    from embedsmith.examples import LabelledPair, read_examples

    served = serve()
    served.cache.mark_same("one", "two")
    (pair,) = read_examples(served.feedback).examples
    assert isinstance(pair, LabelledPair)
    assert (pair.sentence1, pair.sentence2, pair.label) == ("one", "two", 1)


def test_entries_are_searched_and_purged(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "what is a standing charge?")
    found = httpx.get(f"{served.url}/admin/entries?text=FREEZE", headers=ADMIN).json()["entries"]
    assert [entry["text"] for entry in found] == [ASKED]
    assert post(served, "/admin/purge", {"id": found[0]["id"]}).json() == {"removed": 1}
    assert post(served, "/admin/purge", {"all": True}).json() == {"removed": 1}
    assert ask(served)[0] == "miss"


@pytest.mark.parametrize("body", [{}, {"number": 1}, {"number": "x", "verdict": "wrong"}, {"all": "yes"}])
@pytest.mark.parametrize("path", ["/admin/mark", "/admin/purge"])
def test_wrong_admin_requests_are_refused(serve: Serve, path: str, body: dict[str, Any]) -> None:
    assert post(serve(), path, body).status_code == 400


def test_bad_keys_do_not_disturb(serve: Serve) -> None:
    with pytest.raises(openai.APIStatusError):
        connect(serve(api_key="right"), "wrong").chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )


def test_the_dashboard_knows_what_hits_did_not_cost(serve: Serve) -> None:
    served = serve(app={"prices": Prices(prompt=1.0, completion=4.0)}, delay=0.2)
    ask(served)
    ask(served)
    state = httpx.get(f"{served.url}/admin/state", headers=ADMIN).json()
    (usage,) = [json.loads(entry.answer)["body"]["usage"] for entry in served.cache.store.scan()]
    expected = (usage["prompt_tokens"] * 1.0 + usage["completion_tokens"] * 4.0) / 1e6
    assert (state["saved_tokens"], state["saved_money"]) == (50, pytest.approx(expected))
    assert 0.1 < state["saved_seconds"] < 5
    assert f"embedsmith_saved_money {state['saved_money']}" in httpx.get(f"{served.url}/metrics").text
