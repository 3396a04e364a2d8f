"""LangChain's own models and chains behind our cache: what is served, what never is, and what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="pip install 'embedsmith[langchain]'")

from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from embedsmith.cache.chat import Allowances
from embedsmith.cache.decision import Policy
from embedsmith.cache.semantic import SemanticCache
from embedsmith.errors import ConfigurationError
from embedsmith.integrations.langchain import EmbedsmithCache, EmbedsmithEmbeddings, load_generation, read_request
from embedsmith.testing import FakeEncoder, FaultyServer

ASKED, ALIKE, TRAP = "How do I freeze my card?", "How do I freeze my cards?", "How do I unfreeze my card?"
ANSWERS = [f"answer {number}" for number in range(20)]


def make(**options: Any) -> EmbedsmithCache:
    return EmbedsmithCache(SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake"), **options)


def chat_model(cache: BaseCache, **options: Any) -> FakeListChatModel:
    """A model that answers "answer 0", "answer 1", ...: an answer that comes twice was served."""
    return FakeListChatModel(**{"responses": ANSWERS, "cache": cache} | options)


def said(model: Any, messages: Any) -> str:
    return str(model.invoke(messages).content)


def entries(cache: EmbedsmithCache) -> int:
    return cache.shelf.cache.store.count().entries


def test_a_question_in_other_words_is_a_hit_and_says_why() -> None:
    model = chat_model(make())
    assert said(model, ASKED) == "answer 0"
    hit = model.invoke(ALIKE)
    assert hit.content == "answer 0"
    told = hit.response_metadata["embedsmith"]
    assert (told["reason"], told["age"]) == ("similar", 0)
    assert 0.8 <= told["similarity"] < 1
    assert said(model, "What is the weather like?") == "answer 1"


def test_a_folder_is_no_cache_and_would_else_fail_at_every_request_in_silence() -> None:
    folder: Any = "runs/support/model"  # what EmbedsmithEmbeddings takes
    with pytest.raises(ConfigurationError, match="the cache is 'runs/support/model'") as refused:
        EmbedsmithCache(folder)
    assert refused.value.action == "pass SemanticCache('runs/support/model')"


def test_a_trap_is_vetoed_by_the_guard() -> None:
    model = chat_model(make())
    assert [said(model, ASKED), said(model, TRAP), said(model, ASKED)] == ["answer 0", "answer 1", "answer 0"]


def test_earlier_messages_and_the_system_prompt_must_be_equal() -> None:
    model = chat_model(make())
    brief, long = SystemMessage("Be brief."), SystemMessage("Be long.")
    turns = [HumanMessage("Hello"), AIMessage("Hi, how can I help?")]
    asked = [[brief], [long], [], [brief, *turns], [brief, *turns, ToolMessage("4", tool_call_id="a")]]
    first = [said(model, [*before, HumanMessage(ASKED)]) for before in asked]
    assert first == ANSWERS[:5]
    assert [said(model, [*before, HumanMessage(ALIKE)]) for before in asked] == first


def test_earlier_messages_are_compared_by_meaning_where_the_cache_does_so() -> None:
    policy = Policy(0.8, conversations=0.8)
    model = chat_model(EmbedsmithCache(SemanticCache(FakeEncoder(64), policy=policy, fingerprint="fake")))
    brief, answer = SystemMessage("Be brief."), AIMessage("Noted, a joint account.")
    first, again = (HumanMessage(text) for text in ("I have a joint account here.", "I have a joint account here!"))
    asked = HumanMessage("How do I close it?")
    assert said(model, [brief, first, answer, asked]) == "answer 0"
    assert said(model, [brief, again, AIMessage("Noted: a joint account."), asked]) == "answer 0"
    assert said(model, [brief, HumanMessage("My window is stuck."), AIMessage("Try oil."), asked]) == "answer 1"
    assert said(model, [again, answer, asked]) == "answer 2"


def test_what_a_message_carries_beside_its_text_must_be_equal_too() -> None:
    model = chat_model(make())
    asked = [{"name": "ann"}, {"name": "bob"}, {}, {"additional_kwargs": {"audience": "children"}}]
    assert [said(model, [HumanMessage(ASKED, **more)]) for more in asked] == ANSWERS[:4]
    assert said(model, [HumanMessage(ALIKE, name="bob", id="7")]) == "answer 1"


def test_a_conversation_can_go_on_after_a_hit() -> None:
    """Ids, usage and our own mark on a served answer are no part of the question that follows it."""
    model = chat_model(make())
    first = model.invoke(ASKED)
    served = model.invoke(ALIKE)
    assert served.response_metadata != first.response_metadata
    following = HumanMessage("And for my partner?")
    assert said(model, [HumanMessage(ASKED), first, following]) == "answer 1"
    assert said(model, [HumanMessage(ASKED), served, following]) == "answer 1"


def test_messages_that_are_served_twice_have_no_common_id() -> None:
    model = chat_model(make())
    ids = {model.invoke(ASKED).id for _ in range(3)}
    assert len(ids) == 3 or None in ids


def test_other_models_and_settings_never_share() -> None:
    cache = make()
    assert said(chat_model(cache), ASKED) == "answer 0"
    assert said(chat_model(cache, responses=["other model"]), ASKED) == "other model"
    assert said(chat_model(cache, responses=["x", *ANSWERS]).bind(stop=["."]), ASKED) == "x"


def test_tenants_and_narrower_scopes_never_share() -> None:
    core, tenant = make().shelf.cache, ContextVar("tenant", default="a")
    model = chat_model(EmbedsmithCache(core, namespace=tenant.get))
    assert said(model, ASKED) == "answer 0"
    tenant.set("b")
    assert said(model, ASKED) == "answer 1"
    tenant.set("a")
    assert said(model, ASKED) == "answer 0"
    assert said(chat_model(EmbedsmithCache(core, namespace="a", scope={"language": "de"})), ALIKE) == "answer 0"
    assert core.store.count().entries == 3


def test_clear_removes_what_langchain_stored_for_the_tenant_and_nothing_else() -> None:
    core = make().shelf.cache
    ours, theirs = EmbedsmithCache(core, namespace="a"), EmbedsmithCache(core, namespace="b")
    core.add("mine", "stays", namespace="a")
    for cache in (ours, theirs):
        said(chat_model(cache), ASKED)
    ours.clear()
    assert sorted(entry.namespace for entry in core.store.scan()) == ["a", "b"]
    asyncio.run(theirs.aclear())
    assert [entry.text for entry in core.store.scan()] == ["mine"]
    with pytest.raises(ConfigurationError, match="llm_string"):
        ours.clear(llm_string="x")


def test_async_calls_and_batches_share_with_sync_ones() -> None:
    cache = make()
    model = chat_model(cache)

    async def go() -> list[str]:
        first = await model.ainvoke(ASKED)
        others = await model.abatch([ALIKE, "What is the weather like?", ALIKE])
        return [str(message.content) for message in [first, *others]]

    assert asyncio.run(go()) == ["answer 0", "answer 0", "answer 1", "answer 0"]
    assert said(model, ALIKE) == "answer 0"


def test_a_chain_with_the_global_cache() -> None:
    prompt = ChatPromptTemplate([("system", "Answer from: {documents}"), ("user", "{question}")])
    chain = prompt | FakeListChatModel(responses=ANSWERS)
    set_llm_cache(make())
    try:
        first = chain.invoke({"documents": "the manual", "question": ASKED})
        same = chain.invoke({"documents": "the manual", "question": ALIKE})
        other = chain.invoke({"documents": "another manual", "question": ASKED})
    finally:
        set_llm_cache(None)
    assert [first.content, same.content, other.content] == ["answer 0", "answer 0", "answer 1"]


def test_a_prompt_of_one_line_is_a_question_and_a_longer_one_must_be_equal() -> None:
    model = FakeListLLM(responses=ANSWERS, cache=make())
    assert [model.invoke(text) for text in (ASKED, ALIKE, TRAP)] == ["answer 0", "answer 0", "answer 1"]
    template = "Use these documents.\n\nThe card is frozen in the app, under settings.\n\nQuestion: {}"
    asked = [template.format(text) for text in (ASKED, ALIKE, ASKED)]
    assert [model.invoke(text) for text in asked] == ["answer 2", "answer 3", "answer 2"]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Album(BaseModel):
    """An album."""

    title: str


PICTURE = [{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1", "type": "tool_call"}


class OwnMessage(HumanMessage):
    """A class that LangChain cannot write out."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return False


@pytest.mark.parametrize(
    ("asked", "bound", "reason"),
    [
        ([HumanMessage(PICTURE)], {}, "the last message holds an image"),
        ([HumanMessage(ASKED), AIMessage("", tool_calls=[CALL]), ToolMessage("3", tool_call_id="call_1")], {}, "user"),
        ([OwnMessage(ASKED)], {}, "none of LangChain's own"),
        ([HumanMessage(ASKED)], {"n": 2}, "more than one answer"),
        ([HumanMessage(ASKED)], {"temperature": 1.5}, "asks for variety"),
        ([HumanMessage(ASKED)], {"tools": [{"type": "function"}]}, "tools are offered"),
        ([HumanMessage(ASKED)], {"extra_body": {"tools": [{"type": "function"}]}}, "tools are offered"),
        ([HumanMessage(ASKED)], {"response_format": Album}, "no plain value"),
        ([HumanMessage("half \ud83d")], {}, "half characters"),
    ],
)
def test_what_the_proxy_passes_on_is_neither_looked_up_nor_stored(
    asked: list[BaseMessage], bound: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    model = chat_model(cache).bind(**bound)
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        assert [said(model, asked), said(model, asked)] == ["answer 0", "answer 1"]
    assert entries(cache) == 0
    assert all(reason in record.getMessage() for record in caplog.records)
    assert caplog.records
    assert "freeze" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (AIMessage("", tool_calls=[CALL]), "calls a tool"),
        (AIMessage("calling", additional_kwargs={"function_call": {"name": "add"}}), "function_call"),
        (AIMessage("half of it", response_metadata={"finish_reason": "length"}), "finish_reason is length"),
        (AIMessage("half of it", response_metadata={"stop_reason": "max_tokens"}), "stop_reason is max_tokens"),
        (AIMessage("half of it", response_metadata={"status": "incomplete"}), "status is incomplete"),
        (AIMessage("no", additional_kwargs={"refusal": "I must not"}), "refusal"),
        (AIMessage([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": "x"}]), "more than text"),
        (AIMessage(" "), "empty"),
        (AIMessage("ok", additional_kwargs={"odd": Album(title="x")}), "more than JSON"),
    ],
)
def test_an_answer_that_is_no_finished_text_is_not_stored(
    answer: AIMessage, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    model = FakeMessagesListChatModel(responses=[answer])  # shows its responses to the cache of a chain, so:
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        result = model._generate([HumanMessage(ASKED)])
        cache.update(ASKED, "[('model', 'm')]", result.generations)
    assert entries(cache) == 0
    (record,) = caplog.records
    assert reason in record.getMessage()


@pytest.mark.parametrize(
    "answer",
    [
        AIMessage("plain"),
        AIMessage([{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]),
        AIMessage("done", response_metadata={"finish_reason": "stop", "logprobs": None, "model_name": "m"}),
        AIMessage("done", response_metadata={"stop_reason": "end_turn"}, additional_kwargs={"refusal": None}),
        AIMessage("done", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        AIMessage("{'lc': 1, 'type': 'constructor'}", additional_kwargs={"lc": 1, "type": "secret", "id": ["HOME"]}),
    ],
)
def test_a_stored_message_comes_back_as_it_was(answer: AIMessage) -> None:
    cache, model = make(), "[('model', 'm')]"
    stored = ChatGeneration(message=answer, generation_info={"finish_reason": "stop"})
    cache.update(ASKED, model, [stored])
    served = cache.lookup(ASKED, model)
    assert served is not None
    (generation,) = served
    assert isinstance(generation, ChatGeneration)
    del generation.message.response_metadata["embedsmith"]
    assert generation == stored


def test_a_stored_answer_of_a_completion_model_comes_back_as_it_was() -> None:
    cache, model = make(), "[('model', 'm')]"
    cache.update(ASKED, model, [Generation(text="plain", generation_info={"finish_reason": "stop"})])
    (generation,) = cache.lookup(ASKED, model) or []
    assert type(generation) is Generation
    assert generation.generation_info is not None
    assert (generation.text, generation.generation_info["finish_reason"]) == ("plain", "stop")


def test_what_lies_in_a_store_can_only_become_text() -> None:
    """An entry that names classes or secrets, as LangChain's own loader would follow, is a miss or plain data."""
    evil = {"lc": 1, "type": "constructor", "id": ["langchain_core", "load", "loads"], "kwargs": {}}
    for answer in ('"text"', "[]", "{}", json.dumps(evil), json.dumps({"message": evil, "info": None})):
        cache = make()
        model = chat_model(cache)
        said(model, ASKED)
        (entry,) = cache.shelf.cache.store.scan()
        cache.shelf.cache.store.delete([entry.id])
        cache.shelf.cache.add(cache.shelf.cache.lookup(ASKED), "unused")
        object.__setattr__(entry, "answer", answer)
        cache.shelf.cache.store.put([entry])
        assert said(model, ASKED) == "answer 1"
    secret = {"message": {"content": [{"lc": 1, "type": "secret", "id": ["HOME"]}]}, "info": None}
    loaded = load_generation(json.dumps(secret))
    assert isinstance(loaded, ChatGeneration)
    assert loaded.message.content == [{"lc": 1, "type": "secret", "id": ["HOME"]}]


class BrokenEncoder(FakeEncoder):
    def encode(self, texts: Sequence[str], /) -> Any:
        raise RuntimeError(f"out of memory at {texts}")


def test_a_cache_that_fails_takes_nothing_away(caplog: pytest.LogCaptureFixture) -> None:
    cache = EmbedsmithCache(SemanticCache(BrokenEncoder(64), threshold=0.8, fingerprint="fake"))
    model = chat_model(cache)
    assert [said(model, ASKED), said(model, ASKED)] == ["answer 0", "answer 1"]
    assert "the cache failed, the model answers: RuntimeError" in caplog.text
    assert ASKED not in caplog.text  # which the error's own message quotes
    assert "could not be stored" in caplog.text


def test_time_to_live() -> None:
    now = [0.0]
    core = SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake", clock=lambda: now[0])
    model = chat_model(EmbedsmithCache(core, ttl=10))
    assert said(model, ASKED) == "answer 0"
    now[0] = 9
    assert said(model, ASKED) == "answer 0"
    now[0] = 10
    assert said(model, ASKED) == "answer 1"


@contextlib.contextmanager
def served() -> Iterator[tuple[FaultyServer, Any]]:
    """A real server on loopback, and how to make a `ChatOpenAI` for it."""
    openai = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    count = iter(range(100))
    with FaultyServer(answer=lambda _: f"answer {next(count)}") as server:

        def model(cache: EmbedsmithCache, **options: Any) -> Any:
            options = {"model": "m", "temperature": 0, "max_retries": 0} | options
            return openai.ChatOpenAI(base_url=server.base_url, api_key="sk-secret", cache=cache, **options)

        yield server, model


def test_chat_openai_over_http() -> None:
    cache = make()
    with served() as (server, model):
        assert said(model(cache, timeout=5.0), ASKED) == "answer 0"
        hit = model(cache, timeout=5.0).invoke([("user", [{"type": "text", "text": ALIKE}])])
        assert hit.content == "answer 0"
        assert hit.response_metadata["finish_reason"] == "stop"
        assert hit.usage_metadata["total_tokens"] == 150
        assert said(model(cache), TRAP) == "answer 1"
        assert said(model(cache, model="other"), ASKED) == "answer 2"
        assert said(model(cache, temperature=0.5), ASKED) == "answer 3"
        assert said(model(cache, model_kwargs={"top_p": 0.5}), ASKED) == "answer 4"
        assert len(server.calls) == 5
    assert not any("sk-secret" in str(entry) for entry in cache.shelf.cache.store.scan())


def test_chat_openai_with_tools_pictures_and_classes_goes_to_the_server_each_time() -> None:
    cache = make()
    with served() as (server, model):
        plain = model(cache)
        for ask in (
            lambda: plain.bind_tools([add]).invoke(ASKED),
            lambda: plain.invoke([HumanMessage(PICTURE)]),
            lambda: model(cache, n=2).invoke(ASKED),
            lambda: model(cache, temperature=1.7).invoke(ASKED),
        ):
            before = len(server.calls)
            ask()
            ask()
            assert len(server.calls) == before + 2
    assert entries(cache) == 0


def test_tools_can_be_allowed_and_are_part_of_the_scope() -> None:
    cache = make(allowed=Allowances(tools=True))
    with served() as (_, model):
        tooled = model(cache).bind_tools([add])
        assert [said(tooled, ASKED), said(tooled, ALIKE), said(model(cache), ASKED)] == [
            "answer 0",
            "answer 0",
            "answer 1",
        ]


def test_a_truncated_answer_from_the_server_is_not_stored() -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI

    cache = make()
    with FaultyServer(faults={"truncated": 1.0}, answer=lambda _: "a long answer") as server:
        model = ChatOpenAI(model="m", base_url=server.base_url, api_key="x", cache=cache)
        model.invoke(ASKED)
    assert entries(cache) == 0


def test_the_settings_and_messages_are_read_as_the_proxy_reads_them() -> None:
    prompt = json.dumps(
        [{"lc": 1, "type": "constructor", "id": ["x"], "kwargs": {"type": "ChatMessageChunk", "role": "user"}}]
    )
    body = read_request(prompt, "[('model', 'm'), ('n', 3), ('stop', None)]")
    assert (body["n"], body["messages"]) == (3, [{"role": "user", "content": None}])
    assert read_request("[1, 2]", "[('model', 'm')]")["messages"] == [{"role": "user", "content": "[1, 2]"}]


def test_embeddings_are_those_of_sentence_transformers_with_their_prompts(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(tiny_model))
    network.prompts = {"query": "find: ", "document": "text: "}
    network.save(str(tmp_path / "prompted"))
    texts = ["one apple", "the red car", ASKED]
    for folder in (tiny_model, tmp_path / "prompted"):
        peer, ours = SentenceTransformer(str(folder)), EmbedsmithEmbeddings(folder)
        np.testing.assert_allclose(ours.embed_query(ASKED), peer.encode_query(ASKED), atol=1e-5)
        np.testing.assert_allclose(ours.embed_documents(texts), peer.encode_document(texts), atol=1e-5)
        assert asyncio.run(ours.aembed_documents(texts)) == ours.embed_documents(texts)
        assert asyncio.run(ours.aembed_query(ASKED)) == ours.embed_query(ASKED)
    assert not np.allclose(ours.embed_query(ASKED), ours.embed_documents([ASKED])[0], atol=1e-3)


def test_a_life_that_no_answer_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ttl is 0"):
        make(ttl=0)
