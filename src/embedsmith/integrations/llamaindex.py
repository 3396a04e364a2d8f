"""LlamaIndex: `CachedLLM`, an LLM behind the semantic cache, and `EmbedsmithEmbedding`, a model folder as embeddings.

>>> Settings.llm = CachedLLM(OpenAI("gpt-5-mini"), SemanticCache("runs/support/model"))  # doctest: +SKIP

LlamaIndex has no interface for caching answers, so the cache stands before an LLM and is one. In a chat the last
user message is the question, as in the proxy. Where a query engine fills a template, the question is the template's
`query_str`, and the template with all else that is in it (the documents found) must be equal: a paraphrase that finds
the same documents is a hit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from embedsmith.cache.chat import Allowances
from embedsmith.cache.options import require_limits
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.integrations.prompts import PromptedEncoder, open_prompted
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
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseAsyncGen,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseAsyncGen,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
        TextBlock,
    )
    from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.llms.llm import LLM, ToolSelection, default_completion_to_prompt
    from llama_index.core.prompts import BasePromptTemplate
    from llama_index.core.types import TokenAsyncGen, TokenGen
except ImportError:
    raise MissingPartError("llama-index-core is not installed", action="pip install 'embedsmith[llamaindex]'") from None

KIND = "llamaindex"
KEY = "embedsmith"  # in `additional_kwargs` of a response: what a hit rests on
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the question in a template
WRITTEN_OUT = frozenset({"text", "thinking", "tool_call", "cache"})  # blocks whose fields are all there is to them
EMBED_BATCH = 64

Response = TypeVar("Response", ChatResponse, CompletionResponse)


@dataclass(frozen=True, slots=True)
class Template:
    """A filled template.

    Attributes:
        question: what stands in the place of the question; None when it has no such place.
        frame: role and texts of the messages, with `MARK` in that place.
    """

    question: str | None = None
    frame: Sequence[Sequence[str]] = ()


FILLED: ContextVar[Template | None] = ContextVar("the template whose messages are under way", default=None)


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished text, with the pieces in which it came."""

    text: str
    pieces: tuple[str, ...] = ()

    def dump(self) -> str:
        """Return the form that a store keeps."""
        return json.dumps({"text": self.text, "pieces": self.pieces}, ensure_ascii=False)


def load_answer(answer: str) -> Answer:
    """Return the answer that `dump` wrote."""
    stored = json.loads(answer)
    return Answer(str(stored["text"]), tuple(map(str, stored["pieces"])))


class CachedLLM(FunctionCallingLLM):
    """An LLM that answers from the cache what it knows, and asks `llm` everything else.

    Sync, async, whole and as a stream; a stream can hit what came whole, and the reverse. What is no plain question
    (tools, images, more than one answer, settings that JSON cannot hold) goes to `llm` and is never stored, and so is
    every answer that is not one finished text. A cache that fails takes nothing away.

    Args:
        llm: whose fields are part of what must be equal. What it keeps elsewhere is not seen: name it in `scope`.
        cache: threshold, guard, store, limits and all that are its own.
        namespace: the tenant, or a function that returns the tenant of the request at hand.
        scope: what else must be equal for an answer to serve.
        ttl: seconds an answer lives; None is the cache's own.
        allowed: what else may be answered from the cache.
        question_key: the variable of templates that holds the question.
    """

    llm: LLM = Field(description="The LLM behind the cache.")
    question_key: str = Field(default="query_str", description="The variable of templates that holds the question.")
    _shelf: Shelf = PrivateAttr()

    def __init__(
        self,
        llm: LLM,
        cache: SemanticCache,
        *,
        namespace: Namespace = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        allowed: Allowances | None = None,
        question_key: str = "query_str",
    ) -> None:
        require_limits(ttl=ttl)
        super().__init__(
            llm=llm,
            question_key=question_key,
            callback_manager=llm.callback_manager,
            system_prompt=llm.system_prompt,
            messages_to_prompt=llm.messages_to_prompt,
            completion_to_prompt=llm.completion_to_prompt,
            output_parser=llm.output_parser,
            pydantic_program_mode=llm.pydantic_program_mode,
            query_wrapper_prompt=llm.query_wrapper_prompt,
        )
        self._shelf = Shelf(cache, KIND, namespace, scope or {}, ttl, allowed or Allowances())

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "EmbedsmithCachedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Return what the LLM behind the cache says of itself."""
        return self.llm.metadata

    def clear(self) -> int:
        """Remove what LlamaIndex stored for the tenant at hand; return how many."""
        return self._shelf.purge()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the stored answer, or that of the LLM."""
        found, answer = self._look_up_chat(messages, kwargs)
        if answer is not None:
            return write_chat(answer, told=found)
        return self._keep(found, self.llm.chat(messages, **kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the stored answer, or that of the LLM."""
        found, answer = self._look_up_prompt(prompt, formatted, kwargs)
        if answer is not None:
            return write_completion(answer, told=found)
        return self._keep(found, self.llm.complete(prompt, formatted=formatted, **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Return the pieces of the stored answer, or those of the LLM."""
        found, answer = self._look_up_chat(messages, kwargs)
        if answer is not None:
            return (write_chat(part, piece, told=found) for part, piece in replay(answer))
        return self._relay(found, self.llm.stream_chat(messages, **kwargs))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Return the pieces of the stored answer, or those of the LLM."""
        found, answer = self._look_up_prompt(prompt, formatted, kwargs)
        if answer is not None:
            return (write_completion(part, piece, told=found) for part, piece in replay(answer))
        return self._relay(found, self.llm.stream_complete(prompt, formatted=formatted, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return what `chat` returns, without blocking the event loop."""
        found, answer = await asyncio.to_thread(self._look_up_chat, messages, kwargs)
        if answer is not None:
            return write_chat(answer, told=found)
        response = await self.llm.achat(messages, **kwargs)
        return await asyncio.to_thread(self._keep, found, response)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return what `complete` returns, without blocking the event loop."""
        found, answer = await asyncio.to_thread(self._look_up_prompt, prompt, formatted, kwargs)
        if answer is not None:
            return write_completion(answer, told=found)
        response = await self.llm.acomplete(prompt, formatted=formatted, **kwargs)
        return await asyncio.to_thread(self._keep, found, response)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Return what `stream_chat` returns, without blocking the event loop."""
        found, answer = await asyncio.to_thread(self._look_up_chat, messages, kwargs)
        if answer is not None:
            return _go_async(write_chat(part, piece, told=found) for part, piece in replay(answer))
        return self._relay_async(found, await self.llm.astream_chat(messages, **kwargs))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Return what `stream_complete` returns, without blocking the event loop."""
        found, answer = await asyncio.to_thread(self._look_up_prompt, prompt, formatted, kwargs)
        if answer is not None:
            return _go_async(write_completion(part, piece, told=found) for part, piece in replay(answer))
        return self._relay_async(found, await self.llm.astream_complete(prompt, formatted=formatted, **kwargs))

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill the template and return the answer, stored or not."""
        with self._fill(prompt, prompt_args):
            return super().predict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Fill the template and return the pieces of the answer, stored or not."""
        with self._fill(prompt, prompt_args):
            return super().stream(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill the template and return the answer, stored or not."""
        with self._fill(prompt, prompt_args):
            return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """Fill the template and return the pieces of the answer, stored or not."""
        with self._fill(prompt, prompt_args):
            return await super().astream(prompt, **prompt_args)

    def get_tool_calls_from_response(self, response: ChatResponse, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        """Return the calls of tools in a response of the LLM behind the cache."""
        return self._caller().get_tool_calls_from_response(response, *args, **kwargs)

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._caller()._prepare_chat_with_tools(*args, **kwargs)

    def _prepare_chat_with_tools_compat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._caller()._prepare_chat_with_tools_compat(*args, **kwargs)

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        return self._caller()._validate_chat_with_tools_response(*args, **kwargs)

    def _caller(self) -> FunctionCallingLLM:
        if not isinstance(self.llm, FunctionCallingLLM):
            raise ConfigurationError(f"{self.llm.class_name()} cannot call tools", expected="an LLM that can")
        return self.llm

    @contextmanager
    def _fill(self, prompt: BasePromptTemplate, args: Mapping[str, Any]) -> Iterator[None]:
        """Tell the lookup that follows what of its messages is the question."""
        token = FILLED.set(self._read_template(prompt, args))
        try:
            yield
        finally:
            FILLED.reset(token)

    def _read_template(self, prompt: BasePromptTemplate, args: Mapping[str, Any]) -> Template:
        question = {**prompt.kwargs, **args}.get(self.question_key)
        if isinstance(question, str) and question.strip():
            whole = self._render(prompt, args)
            frame = self._render(prompt, {**args, self.question_key: MARK})
            # A template may compute its other variables from the question: then it is no frame around it.
            filled = [[part.replace(MARK, question) for part in parts] for parts in frame]
            if frame != whole and filled == whole:
                return Template(question, frame)
        return Template()

    def _render(self, prompt: BasePromptTemplate, args: Mapping[str, Any]) -> list[list[str]]:
        """Return the role and the texts of each message; nothing when there is more to one of them."""
        if not self.metadata.is_chat_model:
            return [["prompt", self._get_prompt(prompt, **args)]]
        messages = self._get_messages(prompt, **args)
        texts = [[block.text for block in message.blocks if isinstance(block, TextBlock)] for message in messages]
        if any(
            len(text) < len(message.blocks) or message.additional_kwargs
            for text, message in zip(texts, messages, strict=True)
        ):
            return []
        return [[message.role.value, *text] for text, message in zip(texts, messages, strict=True)]

    def _look_up_chat(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> tuple[Lookup | None, Answer | None]:
        def request() -> Mapping[str, Any]:
            settings = self._read_settings(kwargs)
            read = [_read_message(message) for message in messages]
            wrap = self.llm.messages_to_prompt
            if wrap is not None and wrap is not generic_messages_to_prompt:  # two LLMs may differ in nothing else
                blank = [*messages[:-1], ChatMessage(role=messages[-1].role, content=MARK)]
                settings["wrapped"] = wrap(blank)
            template = FILLED.get()
            return {**settings, "messages": read} if template is None else _frame(template, settings, read)

        return self._look_up(request)

    def _look_up_prompt(
        self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]
    ) -> tuple[Lookup | None, Answer | None]:
        def request() -> Mapping[str, Any]:
            settings = self._read_settings(kwargs)
            wrap = self.llm.completion_to_prompt
            if not formatted and wrap is not None and wrap is not default_completion_to_prompt:
                settings["wrapped"] = wrap(MARK)
            template = FILLED.get()
            body = plain_request(prompt, {**settings, "formatted": formatted})
            if template is not None:
                return _frame(template, {**settings, "form": "prompt"}, body["messages"])
            return {**body, "prompt": prompt} if formatted else body

        return self._look_up(request)

    def _look_up(self, request: Any) -> tuple[Lookup | None, Answer | None]:
        question = self._shelf.read(request)
        found = self._shelf.look_up(question) if question is not None else None
        if found is None or found.answer is None:
            return found, None
        try:
            return found, load_answer(found.answer)
        except (ValueError, KeyError, TypeError):
            LOG.warning("%s: entry %s is no answer of ours, a miss", KIND, found.id)
            return found, None

    def _read_settings(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the LLM's fields and the call's, and among them those that decide whether it is for the cache."""
        llm, call = self.llm.to_dict(), dict(kwargs)
        return {"llm": llm, "call": call, **pick_settings(llm, llm.get("additional_kwargs"), call)}

    def _keep(self, found: Lookup | None, response: Response) -> Response:
        if found is not None:
            record: Record[Response] = Record()
            record.feed(response)
            self._store(found, record)
        return response

    def _store(self, found: Lookup, record: Record[Response]) -> None:
        try:
            self._shelf.add(found, record.answer().dump())
        except Unstorable as error:
            self._shelf.refuse(str(error))

    def _relay(self, found: Lookup | None, stream: Iterator[Response]) -> Generator[Response, None, None]:
        """Yield the stream; one that was read to its end is stored, a broken or abandoned one is not."""
        record: Record[Response] = Record(streamed=True)
        for response in stream:
            record.feed(response)
            yield response
        if found is not None:
            self._store(found, record)

    async def _relay_async(
        self, found: Lookup | None, stream: AsyncIterator[Response]
    ) -> AsyncGenerator[Response, None]:
        record: Record[Response] = Record(streamed=True)
        async for response in stream:
            record.feed(response)
            yield response
        if found is not None:
            await asyncio.to_thread(self._store, found, record)


def _frame(template: Template, settings: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the request of a filled template: its question alone, or all of it word for word."""
    if template.question is None:
        return {**settings, "frame": messages, "messages": messages}
    return {**settings, "frame": template.frame, "messages": [{"role": "user", "content": template.question}]}


def _read_message(message: ChatMessage) -> dict[str, Any]:
    read = {"role": message.role.value, "content": _read_content(message)}
    return {**read, "more": message.additional_kwargs} if message.additional_kwargs else read


def _read_content(message: ChatMessage) -> list[dict[str, Any]]:
    parts = []
    for block in message.blocks:
        if block.block_type not in WRITTEN_OUT:
            raise Unreadable(f"a message holds a block of type {block.block_type}")
        parts.append({"type": block.block_type, **block.model_dump(mode="json")})
    return parts


@dataclass(slots=True)
class Record(Generic[Response]):
    """An answer as it passes by, whole or in pieces."""

    streamed: bool = False
    pieces: list[str] = field(default_factory=list)
    text: str = ""
    flaw: str = ""
    endings: set[bool] = field(default_factory=set)  # for each piece that has a place for it: whether it is the last

    def feed(self, response: Response) -> None:
        """Take the answer, or the next piece of it."""
        told = _read_raw(response.raw)
        self.endings |= {facts["finish_reason"] is not None for facts in told if "finish_reason" in facts}
        try:
            require_finished(response.additional_kwargs, *told)
            if isinstance(response, ChatResponse):
                require_finished(response.message.additional_kwargs)
                if not all(isinstance(block, TextBlock) for block in response.message.blocks):
                    raise Unstorable("it is more than text")
        except Unstorable as error:
            self.flaw = self.flaw or str(error)
        self.text = (response.message.content if isinstance(response, ChatResponse) else response.text) or ""
        if self.streamed:
            self.pieces.append(response.delta or "")

    def answer(self) -> Answer:
        """Return the whole answer.

        Raises:
            Unstorable: it is not one finished text.
        """
        if self.flaw:
            raise Unstorable(self.flaw)
        if not self.text.strip():
            raise Unstorable("it is empty")
        if self.endings == {False}:
            raise Unstorable("it never said that it was finished")
        if self.streamed and "".join(self.pieces) != self.text:
            raise Unstorable("its pieces do not make up its text")
        return Answer(self.text, tuple(piece for piece in self.pieces if piece))


def _read_raw(raw: object) -> list[Mapping[str, Any]]:
    """Return what the model itself told with its answer: the response, its first choice and that one's message."""
    told = raw.model_dump() if isinstance(raw, BaseModel) else raw
    if not isinstance(told, Mapping):
        return []
    choices = told.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice.model_dump() if isinstance(choice, BaseModel) else choice
    if not isinstance(choice, Mapping):
        return [told]
    return [told, choice, *(choice[name] for name in ("message", "delta") if isinstance(choice.get(name), Mapping))]


def replay(answer: Answer) -> Iterator[tuple[Answer, str]]:
    """Yield (the text so far, the next piece), in the pieces in which the answer came."""
    so_far = ""
    for piece in answer.pieces or (answer.text,):
        so_far += piece
        yield Answer(so_far), piece


def write_chat(answer: Answer, piece: str | None = None, *, told: Lookup | None = None) -> ChatResponse:
    """Return an answer as LlamaIndex's response to a chat; `told` is what it rests on."""
    more = {KEY: describe(told)} if told is not None else {}
    message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
    return ChatResponse(message=message, delta=piece, additional_kwargs=more)


def write_completion(answer: Answer, piece: str | None = None, *, told: Lookup | None = None) -> CompletionResponse:
    """Return an answer as LlamaIndex's response to a prompt; `told` is what it rests on."""
    more = {KEY: describe(told)} if told is not None else {}
    return CompletionResponse(text=answer.text, delta=piece, additional_kwargs=more)


async def _go_async(responses: Iterator[Response]) -> AsyncGenerator[Response, None]:
    for response in responses:
        yield response


class EmbedsmithEmbedding(BaseEmbedding):
    """A model folder as LlamaIndex embedding, with the prompts that it keeps for queries and for texts.

    Args:
        model: a sentence-transformers folder (with an ONNX export it needs no torch), or anything with `encode`.
        query_prompt, text_prompt: instead of the folder's.
        options: those of `BaseEmbedding`.
    """

    _encoder: PromptedEncoder = PrivateAttr()

    def __init__(
        self,
        model: Encoder | Path | str,
        *,
        query_prompt: str | None = None,
        text_prompt: str | None = None,
        embed_batch_size: int = EMBED_BATCH,
        **options: Any,
    ) -> None:
        name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
        super().__init__(**{"model_name": name, "embed_batch_size": embed_batch_size, **options})
        self._encoder = open_prompted(model, query_prompt=query_prompt, text_prompt=text_prompt)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "EmbedsmithEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._encoder.encode_queries([query])[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._encoder.encode_texts(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
