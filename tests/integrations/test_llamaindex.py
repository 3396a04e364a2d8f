"""LlamaIndex's own LLMs, templates and query engine behind our cache, and one LLM over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="pip install 'embedsmith[llamaindex]'")

import openai
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLM, MockLLMWithChatMemoryOfLastCall
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.tools import FunctionTool
from pydantic import Field, PrivateAttr

from embedsmith.cache.chat import Allowances
from embedsmith.cache.semantic import SemanticCache
from embedsmith.errors import ConfigurationError
from embedsmith.integrations.llamaindex import CachedLLM, EmbedsmithEmbedding
from embedsmith.testing import FakeEncoder, FaultyServer

ASKED, ALIKE, TRAP = "How do I freeze my card?", "How do I freeze my cards?", "How do I unfreeze my card?"
OTHER = "What is the weather like?"


class CountingLLM(MockLLM):
    """LlamaIndex's mock, which says what it was asked, with a number: an answer that comes twice was served."""

    model: str = "m"
    ending: str | None = Field(default=None, exclude=True)
    asked: list[str] = Field(default_factory=list, exclude=True)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.asked.append(prompt)
        raw = {"choices": [{"finish_reason": self.ending}]} if self.ending else None
        return CompletionResponse(text=f"answer {len(self.asked)}", raw=raw)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        whole, so_far = self.complete(prompt), ""
        for piece in whole.text.partition(" "):
            so_far += piece
            yield CompletionResponse(text=so_far, delta=piece, raw=whole.raw)


def make_cache(**options: Any) -> SemanticCache:
    return SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake", **options)


def make(llm: Any = None, cache: SemanticCache | None = None, **options: Any) -> CachedLLM:
    return CachedLLM(llm or CountingLLM(is_chat_model=True), cache or make_cache(), **options)


def user(text: str, **more: Any) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text, **more)]


def said(llm: CachedLLM, messages: Sequence[ChatMessage] | str, **options: Any) -> str | None:
    return llm.chat(user(messages) if isinstance(messages, str) else messages, **options).message.content


def entries(llm: CachedLLM) -> int:
    return llm._shelf.cache.store.count().entries


def test_a_question_in_other_words_is_a_hit_and_says_why() -> None:
    llm = make()
    assert said(llm, ASKED) == "answer 1"
    hit = llm.chat(user(ALIKE))
    assert (hit.message.content, hit.message.role) == ("answer 1", MessageRole.ASSISTANT)
    assert hit.additional_kwargs["embedsmith"]["reason"] == "similar"
    assert [said(llm, TRAP), said(llm, OTHER), said(llm, TRAP)] == ["answer 2", "answer 3", "answer 2"]


def test_earlier_messages_and_the_system_prompt_must_be_equal() -> None:
    llm = make()
    brief, long = (ChatMessage(role="system", content=text) for text in ("Be brief.", "Be long."))
    turns = [ChatMessage(content="Hello"), ChatMessage(role="assistant", content="Hi, how can I help?")]
    thought = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Hi")])
    befores: list[list[ChatMessage]] = [[brief], [long], [], [brief, *turns], [brief, turns[0], thought]]
    first = [said(llm, [*before, *user(ASKED)]) for before in befores]
    assert first == [f"answer {number}" for number in range(1, 6)]
    assert [said(llm, [*before, *user(ALIKE)]) for before in befores] == first
    assert said(llm, user(ALIKE, additional_kwargs={"name": "ann"})) == "answer 6"


def test_other_models_and_settings_never_share() -> None:
    cache = make_cache()
    llms = [
        make(CountingLLM(is_chat_model=True), cache),
        make(CountingLLM(is_chat_model=True, system_prompt="Be brief."), cache),
        make(CountingLLM(is_chat_model=True, messages_to_prompt=lambda messages: str(messages)), cache),
        make(CountingLLM(is_chat_model=True), cache, scope={"language": "de"}),
        make(CountingLLM(is_chat_model=True), cache, namespace="another tenant"),
        make(MockLLM(is_chat_model=True), cache),
    ]
    llms[2].llm.model = "other"  # type: ignore[attr-defined]
    for llm in llms:
        before = entries(llm)
        said(llm, ASKED)
        said(llm, ALIKE)
        assert entries(llm) == before + 1
    assert said(llms[0], ASKED, temperature=0.5) == "answer 2"
    assert said(llms[0], ALIKE, temperature=0.5) == "answer 2"


def test_the_tenant_may_be_asked_for_at_each_request() -> None:
    tenant = ["a"]
    llm = make(namespace=lambda: tenant[0])
    assert said(llm, ASKED) == "answer 1"
    tenant[0] = "b"
    assert said(llm, ALIKE) == "answer 2"
    assert llm.clear() == 1
    tenant[0] = "a"
    assert said(llm, ALIKE) == "answer 1"


def test_a_prompt_of_one_line_is_a_question_and_a_longer_or_formatted_one_must_be_equal() -> None:
    llm = make(CountingLLM())
    assert [llm.complete(text).text for text in (ASKED, ALIKE, TRAP)] == ["answer 1", "answer 1", "answer 2"]
    long = "Use these documents.\n\nThe card is frozen in the app.\n\nQuestion: {}"
    assert [llm.complete(long.format(text)).text for text in (ASKED, ALIKE, ASKED)] == [
        "answer 3",
        "answer 4",
        "answer 3",
    ]
    answers = [llm.complete(text, formatted=True).text for text in (ASKED, ALIKE, ASKED)]
    assert answers == ["answer 5", "answer 6", "answer 5"]


def test_streams_are_stored_and_replayed_in_their_pieces_and_shared_with_whole_answers() -> None:
    llm = make()
    first = list(llm.stream_chat(user(ASKED)))
    again = list(llm.stream_chat(user(ALIKE)))
    assert [part.delta for part in first] == [part.delta for part in again] == ["answer", " ", "1"]
    assert [part.message.content for part in again] == ["answer", "answer ", "answer 1"]
    assert again[0].additional_kwargs["embedsmith"]["reason"] == "similar"
    assert said(llm, ASKED) == "answer 1"
    assert said(llm, TRAP) == "answer 2"
    assert [part.delta for part in llm.stream_chat(user(TRAP))] == ["answer 2"]
    assert [part.text for part in llm.stream_complete(OTHER)] == ["answer", "answer ", "answer 3"]
    assert [part.text for part in llm.stream_complete(OTHER)] == ["answer", "answer ", "answer 3"]


def test_a_stream_that_nobody_reads_to_its_end_or_that_breaks_is_not_stored() -> None:
    class BreakingLLM(CountingLLM):
        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
            yield CompletionResponse(text="half", delta="half")
            raise ConnectionError("cut")

    llm = make()
    next(llm.stream_chat(user(ASKED)))
    assert entries(llm) == 0
    broken = make(BreakingLLM(is_chat_model=True))
    with pytest.raises(ConnectionError):
        list(broken.stream_chat(user(ASKED)))
    assert entries(broken) == 0


def test_async_calls_and_streams_share_with_sync_ones() -> None:
    llm = make()

    async def collect(stream: AsyncIterator[Any]) -> list[str | None]:
        return [part.delta async for part in stream]

    async def go() -> None:
        assert (await llm.achat(user(ASKED))).message.content == "answer 1"
        assert (await llm.achat(user(ALIKE))).message.content == "answer 1"
        assert await collect(await llm.astream_chat(user(ALIKE))) == ["answer 1"]
        assert await collect(await llm.astream_chat(user(OTHER))) == ["answer", " ", "2"]
        assert await collect(await llm.astream_chat(user(OTHER))) == ["answer", " ", "2"]
        assert (await llm.acomplete(ASKED)).text == "answer 3"
        assert await collect(await llm.astream_complete(ALIKE)) == ["answer 3"]
        assert await collect(await llm.astream_complete(TRAP)) == ["answer", " ", "4"]
        assert (await llm.acomplete(TRAP)).text == "answer 4"

    asyncio.run(go())
    assert said(llm, OTHER) == "answer 2"


PICTURE = ChatMessage(blocks=[TextBlock(text=ASKED), ImageBlock(url="http://x/y.png")])
CALLED = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={})])


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        ([PICTURE], {}, "block of type image"),
        ([PICTURE, *user(ASKED)], {}, "block of type image"),
        ([*user(ASKED), CALLED, ChatMessage(role="tool", content="3")], {}, "not the user's"),
        (user(ASKED), {"n": 2}, "more than one answer"),
        (user(ASKED), {"temperature": 1.5}, "asks for variety"),
        (user(ASKED), {"tools": [{"type": "function"}]}, "tools are offered"),
        (user(ASKED), {"response_format": ChatMessage}, "cannot be read (TypeError)"),
        (user("half \ud83d"), {}, "half characters"),
    ],
)
def test_what_the_proxy_passes_on_is_neither_looked_up_nor_stored(
    messages: list[ChatMessage], options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    llm = make()
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        assert [said(llm, messages, **options), said(llm, messages, **options)] == ["answer 1", "answer 2"]
    assert entries(llm) == 0
    assert caplog.records
    assert all(reason in record.getMessage() for record in caplog.records)
    assert "freeze" not in caplog.text


def test_an_llm_with_settings_that_json_cannot_hold_is_never_cached(caplog: pytest.LogCaptureFixture) -> None:
    llm = make(MockFunctionCallingLLM(is_chat_model=True))  # one of its fields is a function
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        said(llm, ASKED)
    assert "cannot be read" in caplog.text
    assert entries(llm) == 0


@pytest.mark.parametrize("ending", ["length", "content_filter", "tool_calls"])
def test_an_answer_that_is_not_finished_is_not_stored(ending: str, caplog: pytest.LogCaptureFixture) -> None:
    llm = make(CountingLLM())
    llm.llm.ending = ending  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        llm.complete(ASKED)
        list(llm.stream_complete(ALIKE))
    assert entries(llm) == 0
    assert len(caplog.records) == 2
    assert all(f"finish_reason is {ending}" in record.getMessage() for record in caplog.records)


def test_a_stream_that_ends_without_saying_so_is_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    class FallingSilent(CountingLLM):
        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
            yield CompletionResponse(text="half", delta="half", raw={"choices": [{"finish_reason": None}]})

    llm = make(FallingSilent())
    with caplog.at_level(logging.INFO, "embedsmith.integrations"):
        list(llm.stream_complete(ASKED))
    assert entries(llm) == 0
    assert "never said" in caplog.text


class ToolLLM(MockFunctionCallingLLM):
    """LlamaIndex's mock that calls tools, with settings that JSON can hold."""

    blocks_to_content_callback: Any = Field(default=None, exclude=True)
    asked: int = Field(default=0, exclude=True)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        self.asked += 1
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"a": 1, "b": 2})
        blocks = [call] if kwargs.get("tools") else [TextBlock(text=f"answer {self.asked}")]
        return ChatResponse(message=ChatMessage(role="assistant", blocks=blocks))

    def _prepare_chat_with_tools(self, tools: Any, user_msg: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"messages": user(user_msg), "tools": [tool.metadata.to_openai_tool() for tool in tools]}

    def get_tool_calls_from_response(self, response: ChatResponse, *args: Any, **kwargs: Any) -> Any:
        return [block.tool_name for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize("allowed", [None, Allowances(tools=True)])
def test_tools_reach_the_llm_and_their_calls_are_never_stored(allowed: Allowances | None) -> None:
    llm, tool = make(ToolLLM(), allowed=allowed), FunctionTool.from_defaults(add)
    for asked in (1, 2):
        response = llm.chat_with_tools([tool], user_msg=ASKED)
        assert llm.get_tool_calls_from_response(response) == ["add"]
        assert llm.llm.asked == asked  # type: ignore[attr-defined]
    assert entries(llm) == 0
    assert said(llm, ASKED) == said(llm, ALIKE) == "answer 3"


def test_an_llm_without_tools_says_so() -> None:
    with pytest.raises(ConfigurationError, match="cannot call tools"):
        make().chat_with_tools([FunctionTool.from_defaults(add)], user_msg=ASKED)


TEMPLATE = PromptTemplate("Documents:\n{context_str}\nAnswer from them.\nQuestion: {query_str}\n")
CHAT = ChatPromptTemplate(
    [ChatMessage(role="system", content="Use {context_str}"), ChatMessage(content='"{query_str}", they say')]
)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("template", [TEMPLATE, CHAT, DEFAULT_TEXT_QA_PROMPT_SEL])
def test_in_a_template_the_query_is_the_question_and_all_else_must_be_equal(template: Any, chat: bool) -> None:
    llm = make(CountingLLM(is_chat_model=chat))

    def ask(query: str, context: str = "the manual", template: Any = template) -> str:
        return llm.predict(template, query_str=query, context_str=context)

    assert [ask(ASKED), ask(ALIKE), ask(TRAP), ask(ASKED)] == ["answer 1", "answer 1", "answer 2", "answer 1"]
    assert ask(ASKED, "another manual") == "answer 3"
    assert llm.predict(template.partial_format(query_str=ALIKE), context_str="the manual") == "answer 1"
    assert "".join(llm.stream(template, query_str=ALIKE, context_str="the manual")) == "answer 1"
    assert asyncio.run(llm.apredict(template, query_str=ALIKE, context_str="the manual")) == "answer 1"

    async def collect() -> str:
        stream = await llm.astream(template, query_str=ALIKE, context_str="the manual")
        return "".join([piece async for piece in stream])

    assert asyncio.run(collect()) == "answer 1"
    assert ask(ASKED, template=PromptTemplate("{context_str} {query_str}")) == "answer 4"


def test_a_question_with_quotes_and_newlines_in_a_template() -> None:
    llm = make()
    for query in ('How do I "freeze" my\ncard?', 'How do I "freeze" my\ncards?'):
        assert llm.predict(CHAT, query_str=query, context_str="x") == "answer 1"


def test_a_template_whose_other_parts_depend_on_the_question_must_be_equal_as_a_whole() -> None:
    template = PromptTemplate(
        "{context_str} {query_str}",
        function_mappings={"context_str": lambda **known: f"{len(known['query_str'])} letters"},
    )
    llm = make()
    answers = [llm.predict(template, query_str=text) for text in (ASKED, ALIKE, ASKED)]
    assert answers == ["answer 1", "answer 2", "answer 1"]


@pytest.mark.parametrize("chat", [True, False])
def test_a_template_without_a_question_must_be_equal_as_a_whole(chat: bool) -> None:
    llm = make(CountingLLM(is_chat_model=chat))
    template = PromptTemplate("Rewrite the question after this talk: {chat_history} {question}")
    answers = [llm.predict(template, chat_history="hello", question=text) for text in (ASKED, ALIKE, ASKED)]
    assert answers == ["answer 1", "answer 2", "answer 1"]


def test_a_query_engine_answers_paraphrases_that_find_the_same_documents() -> None:
    llm = make(MockLLMWithChatMemoryOfLastCall(is_chat_model=True))
    documents = [Document(text="The card is frozen in the app under settings."), Document(text="Tea is green.")]
    index = VectorStoreIndex.from_documents(documents, embed_model=EmbedsmithEmbedding(FakeEncoder(64)))
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    first, again, other = (str(engine.query(text)) for text in (ASKED, ALIKE, TRAP))
    assert "under settings" in first
    assert ASKED in first
    assert again == first
    assert TRAP in other
    assert llm.llm.last_called_chat_function == ["chat", "chat"]  # type: ignore[attr-defined]


class BrokenEncoder(FakeEncoder):
    def encode(self, texts: Sequence[str], /) -> Any:
        raise RuntimeError(f"out of memory at {texts}")


def test_a_cache_that_fails_takes_nothing_away(caplog: pytest.LogCaptureFixture) -> None:
    llm = make(cache=SemanticCache(BrokenEncoder(64), threshold=0.8, fingerprint="fake"))
    assert [said(llm, ASKED), said(llm, ASKED)] == ["answer 1", "answer 2"]
    assert [part.delta for part in llm.stream_chat(user(ASKED))] == ["answer", " ", "3"]
    assert "the cache failed, the model answers: RuntimeError" in caplog.text
    assert ASKED not in caplog.text  # which the error's own message quotes


def test_an_entry_that_is_no_answer_of_ours_is_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    llm = make()
    said(llm, ASKED)
    (entry,) = llm._shelf.cache.store.scan()
    object.__setattr__(entry, "answer", '{"text": "no pieces"}')
    llm._shelf.cache.store.put([entry])
    assert said(llm, ASKED) == "answer 2"
    assert "no answer of ours" in caplog.text


class ServerLLM(CustomLLM):
    """An LLM over HTTP, whose responses carry what the server said, as LlamaIndex's OpenAI class does."""

    model: str = "m"
    _client: openai.OpenAI = PrivateAttr()

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(**options)
        self._client = openai.OpenAI(base_url=base_url, api_key="sk-secret", max_retries=0)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, model_name=self.model)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        answer = self._client.chat.completions.create(model=self.model, messages=[{"role": "user", "content": prompt}])
        return CompletionResponse(text=answer.choices[0].message.content or "", raw=answer)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        messages: Any = [{"role": "user", "content": prompt}]
        so_far = ""
        for chunk in self._client.chat.completions.create(model=self.model, messages=messages, stream=True):
            piece = chunk.choices[0].delta.content or ""
            so_far += piece
            yield CompletionResponse(text=so_far, delta=piece, raw=chunk)


def read_stream(llm: CachedLLM, text: str) -> str:
    return "".join(part.delta or "" for part in llm.stream_complete(text))


def read_whole(llm: CachedLLM, text: str) -> str:
    return llm.complete(text).text


@pytest.mark.parametrize("read", [read_whole, read_stream])
def test_over_http(read: Callable[[CachedLLM, str], str]) -> None:
    with FaultyServer(answer=lambda text: f"an answer to {text}") as server:
        llm = make(ServerLLM(server.base_url))
        assert read(llm, ASKED) == read(llm, ALIKE) == f"an answer to {ASKED}"
        assert read(llm, TRAP) == f"an answer to {TRAP}"
        other = make(ServerLLM(server.base_url, model="other"), llm._shelf.cache)
        assert read(other, ALIKE) == f"an answer to {ALIKE}"
        assert len(server.calls) == 3
    assert not any("sk-secret" in str(entry) for entry in llm._shelf.cache.store.scan())


@pytest.mark.parametrize(
    ("fault", "read"), [("truncated", read_whole), ("truncated", read_stream), ("cut", read_stream)]
)
def test_a_faulty_answer_over_http_is_not_stored(fault: str, read: Callable[[CachedLLM, str], str]) -> None:
    with FaultyServer(faults={fault: 1.0}, answer=lambda _: "an answer of several words") as server:
        llm = make(ServerLLM(server.base_url))
        with pytest.raises(openai.APIConnectionError) if fault == "cut" else contextlib.nullcontext():
            read(llm, ASKED)
    assert entries(llm) == 0


def test_embeddings_are_those_of_sentence_transformers(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(tiny_model))
    network.prompts = {"query": "find: ", "document": "text: "}
    network.save(str(tmp_path))
    peer, ours = SentenceTransformer(str(tmp_path)), EmbedsmithEmbedding(tmp_path, embed_batch_size=2)
    texts = ["one apple", "the red car", ASKED]
    close = {"atol": 1e-5}
    np.testing.assert_allclose(ours.get_query_embedding(ASKED), peer.encode_query(ASKED), **close)
    np.testing.assert_allclose(ours.get_text_embedding(ASKED), peer.encode_document(ASKED), **close)
    np.testing.assert_allclose(ours.get_text_embedding_batch(texts), peer.encode_document(texts), **close)

    async def go() -> list[Any]:
        return [
            await ours.aget_query_embedding(ASKED),
            await ours.aget_text_embedding(ASKED),
            await ours.aget_text_embedding_batch(texts),
        ]

    query, text, batch = asyncio.run(go())
    np.testing.assert_allclose(query, ours.get_query_embedding(ASKED), **close)
    np.testing.assert_allclose([text, *batch], ours.get_text_embedding_batch([ASKED, *texts]), **close)
    assert ours.to_dict()["model_name"] == str(tmp_path)


def test_a_life_that_no_answer_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ttl is -1"):
        make(ttl=-1)
