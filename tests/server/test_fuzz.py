"""Whatever is sent, the server answers with a proper status and lives: no 500, ever."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedsmith.cache.chat import HARMLESS, Question, read_chat
from embedsmith.cache.decision import partition_of

from .conftest import TOKEN
from .test_proxy import Serve

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = (
    "model",
    "messages",
    "input",
    "stream",
    "n",
    "temperature",
    "tools",
    "dimensions",
    "encoding_format",
    "number",
)
MESSAGE = st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "system"]) | JSON, "content": JSON})
BODIES = JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(MESSAGE, max_size=3), max_size=6)
PATHS = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/admin/mark",
    "/admin/purge",
    "/admin/tenant",
    "/admin/state",
    "/admin/entries?text=x",
)
HEADERS = st.sampled_from(["", "no-store", "ttl=5", "ttl=-1", "ttl=nan", "namespace=é", "namespace=", "x=y", ",,"])


def test_no_request_is_a_500(serve: Serve) -> None:
    served = serve(answer=lambda text: "an answer")
    with httpx.Client(base_url=served.url, timeout=10) as client:

        @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(PATHS), BODIES, HEADERS, st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]))
        def send(path: str, body: Any, wish: str, method: str) -> None:
            if path.endswith("embeddings") and isinstance(body, dict):
                body = body | {"model": "embedsmith"}
            headers = {"authorization": f"Bearer {TOKEN}", "x-embedsmith-cache": wish.encode()}
            content = json.dumps(body).encode()
            status = client.request(method, path, content=content, headers=headers).status_code  # type: ignore[arg-type]
            assert status != 500, (path, body, wish)

        send()
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("seed", range(4))
def test_equal_partitions_mean_equal_tenants_and_requests(seed: int) -> None:
    """25,000 random requests each: whatever shares a partition differs in nothing but its text and harmless fields."""
    draw = random.Random(seed)
    known: dict[str, str] = {}
    for _ in range(25_000):
        tenant, body = draw.choice(["a", "b", "a/b", ""]), _draw_request(draw)
        question = read_chat(body)
        assert isinstance(question, Question)
        rest = {name: value for name, value in body.items() if name not in HARMLESS}
        canonical = json.dumps([tenant, rest, body["messages"][:-1]], sort_keys=True)
        partition = partition_of(tenant, question.scope)
        assert known.setdefault(partition, canonical) == canonical
    assert len(set(known.values())) == len(known) > 1000


def _draw_request(draw: random.Random) -> dict[str, Any]:
    turns = [
        {"role": draw.choice(["system", "user", "assistant"]), "content": draw.choice(["a", "b", ""])}
        for _ in range(draw.randrange(3))
    ]
    body: dict[str, Any] = {"messages": [*turns, {"role": "user", "content": draw.choice(["x", "y"])}]}
    choices: dict[str, list[Any]] = {
        "model": ["m", "n", "a"],
        "temperature": [0, 0.5, 1],
        "max_tokens": [1, 2],
        "seed": [1, "1"],
        "response_format": [{"type": "text"}, {"type": "json_object"}],
        "stop": ["a", ["a"]],
        "user": ["u", "v"],
        "stream": [True, False],
        "turns": [[], ["a"]],
        "unheard_of": [1, 2],
    }
    return body | {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.4}
