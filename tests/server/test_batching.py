"""Texts that wait together are encoded together: same vectors, fewer calls, a queue with an end, nobody starved."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from embedsmith.encoder import Embeddings
from embedsmith.server import embeddings
from embedsmith.server.batching import Batcher, Busy
from embedsmith.server.bodies import SMALL
from embedsmith.server.embeddings import Wanted, read_request
from embedsmith.testing import FakeEncoder

from .test_proxy import Serve, connect


class SlowEncoder:
    """A real encoder that takes its time and remembers its calls; `gate` holds it back, `fails` breaks it."""

    def __init__(self, seconds: float = 0.0, fails: Callable[[str], bool] = lambda _: False) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._seconds, self._fails, self._inner = seconds, fails, FakeEncoder()

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        self.calls.append(list(texts))
        self.gate.wait(10)
        time.sleep(self._seconds)
        if any(map(self._fails, texts)):
            raise ValueError("this text cannot be encoded")
        return self._inner.encode(texts)


class CountingEncoder(SlowEncoder):
    """One that counts a token a word."""

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        return [len(text.split()) for text in texts]


def texts_of(count: int, name: str = "text") -> list[str]:
    return [f"{name} number {number}" for number in range(count)]


async def until(ready: Callable[[], object]) -> None:
    while not ready():
        await asyncio.sleep(0.005)


def test_whoever_waits_meanwhile_makes_up_the_next_call() -> None:
    encoder = SlowEncoder()
    encoder.gate.clear()

    async def go() -> list[Embeddings]:
        batcher = Batcher(encoder)
        tasks = [asyncio.create_task(batcher.encode([text])) for text in texts_of(20)]
        await until(lambda: encoder.calls)
        tasks += [asyncio.create_task(batcher.encode([text])) for text in texts_of(20, "late")]
        await asyncio.sleep(0.01)
        encoder.gate.set()
        return [(await task).vectors for task in tasks]

    vectors = np.concatenate(asyncio.run(go()))
    assert [len(call) for call in encoder.calls] == [20, 20]
    np.testing.assert_array_equal(vectors, FakeEncoder().encode(texts_of(20) + texts_of(20, "late")))


def test_a_call_has_its_most_texts_and_tokens_and_a_long_text_goes_alone() -> None:
    def calls_of(requests: list[list[str]], **limits: int) -> list[list[str]]:
        encoder = CountingEncoder()

        async def go() -> None:
            batcher = Batcher(encoder, **limits)
            await asyncio.gather(*(batcher.encode(texts) for texts in requests))

        asyncio.run(go())
        return encoder.calls

    assert [len(call) for call in calls_of([[text] for text in texts_of(10)], most_texts=4)] == [4, 4, 2]
    long = "word " * 50
    requests = [["a b"], [long], ["c d"], ["e"]]
    assert calls_of(requests, most_tokens=5) == [["a b"], [long], ["c d", "e"]]
    assert calls_of([["a b", long, "c"]], most_tokens=5) == [["a b"], [long], ["c"]]


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one() -> None:
    encoder = SlowEncoder()
    encoder.gate.clear()

    async def go() -> Embeddings:
        batcher = Batcher(encoder, most_texts=32)
        large = asyncio.create_task(batcher.encode(texts_of(1000)))
        await until(lambda: encoder.calls)
        small = asyncio.create_task(batcher.encode(["a small one"]))
        await asyncio.sleep(0.01)
        encoder.gate.set()
        await small
        return (await large).vectors

    np.testing.assert_array_equal(asyncio.run(go()), FakeEncoder().encode(texts_of(1000)))
    assert "a small one" in encoder.calls[1]


def test_a_full_queue_says_when_to_come_back_and_lets_a_large_one_in_when_empty() -> None:
    encoder = SlowEncoder()
    encoder.gate.clear()

    async def go() -> None:
        batcher = Batcher(encoder, room=10)
        waiting = [asyncio.create_task(batcher.encode([text])) for text in texts_of(10)]
        await until(lambda: encoder.calls)
        with pytest.raises(Busy) as busy:
            await batcher.encode(["one too many"])
        assert 1 <= busy.value.seconds <= 60
        encoder.gate.set()
        await asyncio.gather(*waiting)
        assert len((await batcher.encode(texts_of(500))).vectors) == 500

    asyncio.run(go())


def test_a_text_that_breaks_the_encoder_breaks_no_neighbour() -> None:
    encoder = SlowEncoder(fails=lambda text: text == "bad")

    async def go() -> list[object]:
        batcher = Batcher(encoder)
        return await asyncio.gather(
            *(batcher.encode([text]) for text in ("good", "bad", "also good")), return_exceptions=True
        )

    first, second, third = asyncio.run(go())
    assert isinstance(second, ValueError)
    for found, text in ((first, "good"), (third, "also good")):
        np.testing.assert_array_equal(found.vectors, FakeEncoder().encode([text]))  # type: ignore[attr-defined]


class Forgetful(FakeEncoder):
    """Gives one vector too few, as a broken server of hosted embeddings does."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return super().encode(texts)[1:]


def test_an_encoder_that_forgets_a_text_is_an_error_and_holds_nobody_up() -> None:
    async def both() -> list[object]:
        batcher = Batcher(Forgetful())
        waiting = asyncio.gather(batcher.encode(["a", "b"]), batcher.encode(["c"]), return_exceptions=True)
        return await asyncio.wait_for(waiting, 5)

    assert all(isinstance(got, ValueError) for got in asyncio.run(both()))


def test_whoever_leaves_frees_their_place() -> None:
    encoder = SlowEncoder()
    encoder.gate.clear()

    async def go() -> None:
        batcher = Batcher(encoder, calls=1, room=10)
        first = asyncio.create_task(batcher.encode(["first"]))
        await until(lambda: encoder.calls)
        gone = asyncio.create_task(batcher.encode(texts_of(9)))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        last = asyncio.create_task(batcher.encode(texts_of(9, "last")))
        await asyncio.sleep(0.01)
        encoder.gate.set()
        await first
        await last

    asyncio.run(go())
    assert encoder.calls == [["first"], texts_of(9, "last")]


def test_many_clients_of_openai_at_once_get_their_own_vectors(serve: Serve) -> None:
    encoder = SlowEncoder(seconds=0.005)
    served = serve(encoder=encoder)
    before = len(encoder.calls)
    texts = texts_of(200)

    async def go() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-a", max_retries=0) as client:
            done = await asyncio.gather(*(client.embeddings.create(model="embedsmith", input=text) for text in texts))
            return [one.data[0].embedding for one in done]

    np.testing.assert_allclose(asyncio.run(go()), FakeEncoder().encode(texts), rtol=1e-6)
    assert len(encoder.calls) - before < 150
    assert "embedsmith_embeddings_batch_texts_count" in httpx.get(f"{served.url}/metrics").text


def test_a_real_model_gives_a_batch_what_it_gives_single_texts_and_counts_its_tokens(
    serve: Serve, tiny_model: Path
) -> None:
    from embedsmith.model import load_encoder

    encoder = load_encoder(str(tiny_model))
    served = serve(encoder=encoder)
    texts = [f"{'a longer text ' * (number % 7)}number {number}" for number in range(40)]

    async def go() -> list[openai.types.CreateEmbeddingResponse]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-a") as client:
            return await asyncio.gather(*(client.embeddings.create(model="embedsmith", input=text) for text in texts))

    done = asyncio.run(go())
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose([one.data[0].embedding for one in done], alone, atol=1e-5)
    tokenizer = encoder.network.tokenizer  # type: ignore[attr-defined]
    limit = encoder.network.max_seq_length  # type: ignore[attr-defined]
    wanted = [min(len(tokenizer(text)["input_ids"]), limit) for text in texts]
    assert [one.usage.prompt_tokens for one in done] == wanted


def test_a_full_server_answers_429_and_the_client_comes_back_by_itself(serve: Serve) -> None:
    encoder = SlowEncoder()
    served = serve(encoder=encoder, app={"room": 4})
    encoder.gate.clear()
    url, body = f"{served.url}/v1/embeddings", {"model": "embedsmith", "input": ["a", "b", "c", "d"]}
    first = threading.Thread(target=lambda: httpx.post(url, json=body, timeout=20))
    first.start()
    while ["a", "b", "c", "d"] not in encoder.calls:
        time.sleep(0.01)
    refused = httpx.post(url, json=body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    threading.Timer(0.2, encoder.gate.set).start()
    patient = connect(served).with_options(max_retries=3)
    assert len(patient.embeddings.create(model="embedsmith", input=["e", "f"]).data) == 2
    first.join()


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_numbers_are_refused_with_the_way_out(serve: Serve, tokens: list[object]) -> None:
    answer = httpx.post(f"{serve().url}/v1/embeddings", json={"model": "embedsmith", "input": tokens})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


def test_an_encoder_that_fails_is_a_500_without_the_text(serve: Serve) -> None:
    served = serve(encoder=SlowEncoder(fails=lambda text: "bad" in text))
    answer = httpx.post(f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": "bad"})
    assert (answer.status_code, "bad" in answer.text) == (500, False)
    assert httpx.post(f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": "fine"}).status_code == 200


def test_a_large_request_for_embeddings_is_read_beside_the_event_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def note(*given: Any) -> Wanted:
        threads.append(threading.current_thread().name)
        return read_request(*given)

    monkeypatch.setattr(embeddings, "read_request", note)
    served = serve()
    for asked in ("small", ["large"] * 3000 + ["x" * SMALL]):
        httpx.post(f"{served.url}/v1/embeddings", json={"model": "embedsmith", "input": asked})
    small, large = threads
    assert (small, large != small) == ("server", True)


@pytest.mark.parametrize(
    "wrong", [{"input": "half \ud83d"}, {"encoding_format": "hex"}, {"encoding_format": ["float"]}]
)
def test_what_cannot_be_encoded_is_a_400(serve: Serve, wrong: dict[str, object]) -> None:
    content = json.dumps({"model": "embedsmith", "input": "x"} | wrong)
    answer = httpx.post(f"{serve().url}/v1/embeddings", content=content)
    assert answer.status_code == 400
