"""LangChain: `EmbedsmithCache`, a cache for its models, and `EmbedsmithEmbeddings`, a model folder as embeddings.

>>> set_llm_cache(EmbedsmithCache(SemanticCache("runs/support/model", store="sqlite:///cache.db")))  # doctest: +SKIP

LangChain hands a cache two strings: the messages (its own JSON), and the model with its settings. The last user
message is the question; everything else in both is scope. An answer is kept as the plain fields of its message;
no class name is read back, so a store can hold nothing but text.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from embedsmith.cache.chat import Allowances, Question
from embedsmith.cache.options import require_limits
from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.integrations.prompts import open_prompted
from embedsmith.integrations.shelf import (
    LOG,
    Namespace,
    Shelf,
    Unreadable,
    Unstorable,
    describe,
    pick_settings,
    plain_request,
    require_finished,
)

try:
    from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
    from langchain_core.embeddings import Embeddings
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, Generation
except ImportError:
    raise MissingPartError("langchain-core is not installed", action="pip install 'embedsmith[langchain]'") from None

KIND = "langchain"
KEY = "embedsmith"  # under which a hit tells what it rests on
ROLES = {"human": "user", "ai": "assistant", "HumanMessageChunk": "user", "AIMessageChunk": "assistant"}
UNASKED = frozenset({"content", "type", "role", "id", "response_metadata", "usage_metadata", "example"})
NESTED = ("model_kwargs", "extra_body")  # settings in which further settings of the request lie
CLIENT = frozenset({"request_timeout", "timeout", "http_client", "http_async_client", "http_socket_options"})


class EmbedsmithCache(BaseCache):
    """A semantic cache for all models of LangChain, or for one (`ChatOpenAI(cache=...)`).

    What is no plain question (tools, images, more than one answer, settings that cannot be read) is a miss and
    never stored, and so is every answer that is not one finished text. A cache that fails is a miss, too.
    LangChain asks no cache when a model streams (`stream`, `astream`).

    Args:
        cache: threshold, guard, store, limits and all that are its own.
        namespace: the tenant, or a function that returns the tenant of the request at hand.
        scope: what else must be equal for an answer to serve.
        ttl: seconds an answer lives; None is the cache's own.
        allowed: what else may be answered from the cache.
    """

    def __init__(
        self,
        cache: SemanticCache,
        *,
        namespace: Namespace = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        allowed: Allowances | None = None,
    ) -> None:
        require_limits(ttl=ttl)
        self.shelf = Shelf(cache, KIND, namespace, scope or {}, ttl, allowed or Allowances())

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the stored answer as a list of one generation, None for a miss.

        A hit says what it rests on: `response_metadata["embedsmith"]` of its message, for a completion model
        `generation_info["embedsmith"]`.
        """
        question = self._read(prompt, llm_string)
        found = self.shelf.look_up(question) if question is not None else None
        if found is None or found.answer is None:
            return None
        try:
            return [load_generation(found.answer, describe(found))]
        except (ValueError, KeyError, TypeError):
            LOG.warning("%s: entry %s is no answer of ours, a miss", KIND, found.id)
            return None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store an answer, if it is one finished text."""
        question = self._read(prompt, llm_string)
        if question is None:
            return
        try:
            answer = dump_generation(return_val)
        except Unstorable as error:
            self.shelf.refuse(str(error))
        else:
            self.shelf.add(question, answer)

    def clear(self, **kwargs: Any) -> None:
        """Remove what LangChain stored for the tenant at hand; other tenants and users of the store stay."""
        if kwargs:
            raise ConfigurationError(f"clear does not know {', '.join(kwargs)}", action="cache.purge has more choices")
        self.shelf.purge()

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return what `lookup` returns, without blocking the event loop."""
        return await asyncio.to_thread(self.lookup, prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what `update` does, without blocking the event loop."""
        await asyncio.to_thread(self.update, prompt, llm_string, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does, without blocking the event loop."""
        await asyncio.to_thread(partial(self.clear, **kwargs))

    def _read(self, prompt: str, llm_string: str) -> Question | None:
        return self.shelf.read(lambda: read_request(prompt, llm_string))


def read_request(prompt: str, llm_string: str) -> dict[str, Any]:
    """Return LangChain's two strings as the body of a chat request.

    Raises:
        Unreadable: a message or a setting.
    """
    settings = {"llm": llm_string, **read_settings(llm_string)}
    messages = read_messages(prompt)
    return plain_request(prompt, settings) if messages is None else {**settings, "messages": messages}


@lru_cache(maxsize=256)
def read_settings(llm_string: str) -> Mapping[str, Any]:
    """Return the settings that decide whether a request is for the cache, by their name in a chat request.

    `llm_string` is the model as LangChain's JSON and "---" and the call's parameters as Python writes them, or
    the parameters alone. What shows only its type there (a class, a function) may differ unseen, so it is refused.
    """
    model, end = json.JSONDecoder().raw_decode(llm_string) if llm_string.startswith("{") else ({}, 0)
    try:
        call = dict(ast.literal_eval(llm_string[end:].removeprefix("---")))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise Unreadable("a setting of the model is no plain value") from None
    kwargs = model.get("kwargs", {})
    if model.get("type", "constructor") != "constructor" or not all(
        name in CLIENT or _is_plain(value) for name, value in kwargs.items()
    ):
        raise Unreadable("a setting of the model is no plain value")
    sources = [[source, *(source.get(name) for name in NESTED)] for source in (kwargs, call)]
    return pick_settings(*sources[0], *sources[1])


def _is_plain(value: object) -> bool:
    """Say whether LangChain wrote `value` out in full."""
    if isinstance(value, dict):
        return value.get("type") != "not_implemented" and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else True


def read_messages(prompt: str) -> list[dict[str, Any]] | None:
    """Return the messages in the form of a chat request; None when `prompt` is that of a completion model."""
    try:
        items = json.loads(prompt)
    except ValueError:
        return None
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and "lc" in item for item in items):
        return None
    return [_read_message(item) for item in items]


def _read_message(item: Mapping[str, Any]) -> dict[str, Any]:
    told = item.get("kwargs")
    if item.get("type") != "constructor" or not isinstance(told, dict) or not _is_plain(told):
        raise Unreadable("a message is none of LangChain's own")
    kind = str(told.get("type"))
    content = told.get("content")
    if isinstance(content, list):
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    rest = {name: value for name, value in told.items() if name not in UNASKED and value}
    return {**rest, "role": told.get("role") or ROLES.get(kind, kind), "content": content}


def dump_generation(generations: RETURN_VAL_TYPE) -> str:
    """Return one finished text as a store keeps it.

    Raises:
        Unstorable: it is something else, or holds what JSON does not give back as it was.
    """
    if len(generations) != 1:
        raise Unstorable(f"{len(generations)} answers")
    generation = generations[0]
    message = generation.message if isinstance(generation, ChatGeneration) else None
    if type(generation) not in {Generation, ChatGeneration} or (message is not None and type(message) is not AIMessage):
        raise Unstorable(f"it is a {type(message or generation).__name__}")
    require_finished(generation.generation_info)
    if isinstance(message, AIMessage):
        _require_text(message)
    if not generation.text.strip():
        raise Unstorable("it is empty")
    stored = _without_id(generation)
    try:
        kept = stored.message.model_dump(mode="json") if isinstance(stored, ChatGeneration) else stored.text
        answer = json.dumps({"message": kept, "info": stored.generation_info}, ensure_ascii=False)
        same = load_generation(answer) == stored
    except (ValueError, TypeError):
        same = False
    if not same:
        raise Unstorable("it holds more than JSON can give back")
    return answer


def _require_text(message: AIMessage) -> None:
    parts = message.content if isinstance(message.content, list) else []
    if any(not isinstance(part, str) and part.get("type") != "text" for part in parts):
        raise Unstorable("it is more than text")
    if message.tool_calls or message.invalid_tool_calls:
        raise Unstorable("it calls a tool")
    require_finished(message.response_metadata, message.additional_kwargs)


def _without_id(generation: Generation) -> Generation:
    """Return the generation without its message's id: two messages with one id would replace each other in a chat."""
    if not isinstance(generation, ChatGeneration):
        return generation
    message = generation.message.model_copy(update={"id": None})
    return ChatGeneration(message=message, generation_info=generation.generation_info)


def load_generation(answer: str, told: Mapping[str, Any] | None = None) -> Generation:
    """Return what `dump_generation` wrote, with `told` in its metadata."""
    stored = json.loads(answer)
    kept, info = stored["message"], stored["info"]
    if isinstance(kept, str):
        return Generation(text=kept, generation_info={**(info or {}), KEY: told} if told else info)
    message = AIMessage.model_validate(kept)
    if told:
        message.response_metadata = {**message.response_metadata, KEY: told}
    return ChatGeneration(message=message, generation_info=info)


class EmbedsmithEmbeddings(Embeddings):
    """A model folder as LangChain embeddings, with the prompts that it keeps for queries and for documents.

    Args:
        model: a sentence-transformers folder (with an ONNX export it needs no torch), or anything with `encode`.
        query_prompt, text_prompt: instead of the folder's.
    """

    def __init__(
        self, model: Encoder | Path | str, *, query_prompt: str | None = None, text_prompt: str | None = None
    ) -> None:
        self.encoder = open_prompted(model, query_prompt=query_prompt, text_prompt=text_prompt)

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector of length 1 for each document."""
        vectors: list[list[float]] = self.encoder.encode_texts(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query, of length 1."""
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return what `embed_documents` returns, without blocking the event loop."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Return what `embed_query` returns, without blocking the event loop."""
        return await asyncio.to_thread(self.embed_query, text)
