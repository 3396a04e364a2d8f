"""Doubles that are real enough to build on: an encoder, a language model, an OpenAI-compatible server.

They are deterministic, need no download, and are public, so that users can test their own programs.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from embedsmith.encoder import Embeddings, normalize
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.text import trigrams

REWORDINGS = (
    "what is the way to {}",
    "{}, please advise",
    "i was wondering about this: {}",
    "could someone tell me {}",
    "need help with {}",
    "looking for an answer: {}",
)
NEAR_MISSES = (
    "why should nobody {}",
    "what does it cost to {}",
    "who decided that people {}",
    "what happened in 1998 when {}",
    "is it forbidden to {}",
    "what comes after {}",
)


class FakeEncoder:
    """Hashed character trigrams as unit vectors: texts with common words are close, always the same."""

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, dimension) float32."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for gram in trigrams(text):
                vectors[row, zlib.crc32(gram.encode()) % self.dimension] += 1
        return normalize(vectors)


def write_answer(prompt: str) -> str:
    """Return what an obedient model would answer to a prompt of the langcache recipe, as JSON.

    The question is found by its "Question:" line and the task by the key that the prompt asks for; the
    words of the question stay, so the texts are true paraphrases in form only.
    """
    question = re.search(r"^Question: (.+)$", prompt, re.M)
    asked = re.search(r'\{"(\w+)": \[(\d+) strings\]\}', prompt)
    if not question or not asked:
        return json.dumps({"answer": "no question found"})
    task, count = asked.group(1), int(asked.group(2))
    forms = REWORDINGS if task == "paraphrases" else NEAR_MISSES
    body = question.group(1).strip().rstrip("?.! ")
    return json.dumps({task: [form.format(body) for form in forms[:count]]})


@dataclass
class FakeLLM:
    """A language model in memory; `answer` maps a prompt to a text, `calls` remembers the prompts."""

    answer: Callable[[Prompt], str | None] = lambda prompt: write_answer(prompt.user)
    name: str = "fake:llm"
    calls: list[Prompt] = field(default_factory=list)

    def complete(self, prompts: Sequence[Prompt], _: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield answers in the reverse order of the prompts, as a slow server might."""
        for place in reversed(range(len(prompts))):
            self.calls.append(prompts[place])
            text = self.answer(prompts[place])
            yield place, Completion(text, "stop" if text is not None else "error", 10, 10, 0.0, self.name)


FAULTS = (
    "rate_limit",  # 429 with Retry-After
    "server_error",  # 500
    "drop",  # the connection is closed without an answer
    "null",  # content: null
    "empty",
    "truncated",  # the JSON breaks off, finish_reason "length"
    "thinking",  # <think>…</think> before the JSON
    "fenced",  # prose and a code fence around the JSON
    "broken",  # trailing comma
    "refusal",
    "cut",  # the connection breaks off in the middle of a stream
    "hang",  # no answer for `hang` seconds
)
STATUS_FAULTS = {"rate_limit": 429, "server_error": 500}


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the server."""

    path: str
    body: Mapping[str, Any]
    fault: str | None
    authorization: str | None = None
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the first header of this name."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class FaultyServer:
    """An OpenAI-compatible HTTP server on loopback that misbehaves on a seeded plan.

    >>> with FaultyServer(faults={"rate_limit": 0.2, "thinking": 0.3}) as server:   # doctest: +SKIP
    ...     open_llm("openai:any", base_url=server.base_url)

    Args:
        faults: probability of each fault, drawn per request from `seed` and the request's number.
        delay: seconds before each answer. pause: seconds between the chunks of a stream. hang: of that fault.
        rejects_formats: response_format types that are answered with status 400.
        rejects_parameters: parameters that are answered with status 400, as reasoning models do.
        api_key: when given, other keys are answered with status 401.
        answer: from the user's message to the content; default `write_answer`.
        embed: from texts to vectors, for /v1/embeddings; default `FakeEncoder`.
    """

    def __init__(
        self,
        *,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        delay: float = 0.0,
        pause: float = 0.0,
        hang: float = 60.0,
        rejects_formats: Sequence[str] = (),
        rejects_parameters: Sequence[str] = (),
        api_key: str | None = None,
        answer: Callable[[str], str] = write_answer,
        embed: Callable[[Sequence[str]], Embeddings] | None = None,
    ) -> None:
        unknown = set(faults or {}) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}; known: {FAULTS}")
        self.faults, self.seed, self.delay = dict(faults or {}), seed, delay
        self.pause, self.hang = pause, hang
        self.rejects_formats, self.rejects_parameters = tuple(rejects_formats), tuple(rejects_parameters)
        self.api_key, self.answer = api_key, answer
        self.embed = embed if embed is not None else FakeEncoder().encode
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def base_url(self) -> str:
        """The address for a client's `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answered(self) -> list[str]:
        """Return the user messages that got a whole, usable answer, in order."""
        good = {None, "thinking", "fenced", "broken", "null", "empty", "truncated", "refusal"}
        chats = [call for call in self.calls if call.path.endswith("/chat/completions")]
        return [call.body["messages"][-1]["content"] for call in chats if call.fault in good]

    def record(
        self,
        path: str,
        body: Mapping[str, Any],
        authorization: str | None,
        *,
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
        content: bytes = b"",
    ) -> str | None:
        """Remember a request and return the fault that is due, if any."""
        with self._lock:
            draw = np.random.default_rng([self.seed, len(self.calls)]).random()
            fault = None
            if path.endswith("/chat/completions"):
                total = 0.0
                for name, share in self.faults.items():
                    total += share
                    if draw < total:
                        fault = name
                        break
            form = body.get("response_format")
            refused = isinstance(form, dict) and form.get("type") in self.rejects_formats
            fault = "rejected_format" if refused else fault
            fault = next((f"rejected {name}" for name in self.rejects_parameters if name in body), fault)
            if self.api_key is not None and authorization != f"Bearer {self.api_key}":
                fault = "wrong_key"
            self.calls.append(Call(path, body, fault, authorization, method, tuple(headers), content))
            return fault

    def chat(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        """Return the body of a chat completion, spoilt by `fault`."""
        content: str | None = self.answer(str(body["messages"][-1]["content"]))
        spoil: dict[str, Callable[[str], str | None]] = {
            "null": lambda _: None,
            "empty": lambda _: "",
            "truncated": lambda text: text[: len(text) * 2 // 3],
            "thinking": lambda text: f"<think>They want a list. [1, 2]</think>\n{text}",
            "fenced": lambda text: f"Sure! Here you are:\n```json\n{text}\n```\nAnything else?",
            "broken": lambda text: text.replace("]}", ",]}"),
            "refusal": lambda _: '{"paraphrases": ["As an AI language model I cannot do that"]}',
        }
        if fault in spoil and content is not None:
            content = spoil[fault](content)
        return {
            "id": f"chat-{len(self.calls)}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", ""),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content},
                    "finish_reason": "length" if fault == "truncated" else "stop",
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }

    def stream(self, body: Mapping[str, Any], fault: str | None) -> Iterator[str]:
        """Yield the data of the events of a stream: a word each, and "[DONE]"; a cut one ends half way."""
        whole = self.chat(body, fault)
        (choice,) = whole["choices"]
        words = re.findall(r"\S+\s*", choice["message"]["content"] or "")
        deltas: list[tuple[dict[str, str], str | None]] = [({"content": word}, None) for word in words]
        deltas = [({"role": "assistant"}, None), *deltas, ({}, choice["finish_reason"])]
        for delta, finish in deltas[: len(deltas) // 2 if fault == "cut" else None]:
            part = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = {name: whole[name] for name in ("id", "created", "model")}
            yield json.dumps(chunk | {"object": "chat.completion.chunk", "choices": [part]})
            time.sleep(self.pause)
        if fault != "cut":
            yield "[DONE]"

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a (legacy) text completion."""
        choice = {"index": 0, "text": self.answer(str(body.get("prompt", ""))), "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        about = {"id": f"cmpl-{len(self.calls)}", "object": "text_completion", "created": 0}
        return {**about, "model": body.get("model", ""), "choices": [choice], "usage": usage}

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of an answer of the Responses API."""
        part = {"type": "output_text", "text": self.answer(str(body.get("input", ""))), "annotations": []}
        message = {"id": "msg-1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
        about = {"id": f"resp-{len(self.calls)}", "object": "response", "created_at": 0, "status": "completed"}
        settings = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return {**about, **settings, "model": body.get("model", ""), "output": [message], "usage": usage}

    def reply_events(self, body: Mapping[str, Any]) -> Iterator[str]:
        """Yield the data of the events of a streamed answer of the Responses API."""
        whole = self.reply(body)
        events: list[dict[str, Any]] = [{"type": "response.created", "response": {**whole, "output": []}}]
        for word in re.findall(r"\S+\s*", whole["output"][0]["content"][0]["text"]):
            place = {"item_id": "msg-1", "output_index": 0, "content_index": 0}
            events.append({"type": "response.output_text.delta", "delta": word, "logprobs": [], **place})
        events.append({"type": "response.completed", "response": whole})
        for number, event in enumerate(events):
            yield json.dumps({**event, "sequence_number": number})
            time.sleep(self.pause)

    def embeddings(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of an embeddings answer."""
        texts = [body["input"]] if isinstance(body["input"], str) else [str(text) for text in body["input"]]
        rows = self.embed(texts)
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "data": data, "model": body.get("model", ""), "usage": usage}


ENDPOINTS = ("/chat/completions", "/completions", "/responses", "/embeddings")


def _object_in(content: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _has_user_message(body: object) -> bool:
    messages = body.get("messages") if isinstance(body, dict) else None
    return (
        isinstance(messages, list) and bool(messages) and isinstance(messages[-1], dict) and "content" in messages[-1]
    )


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            if len(content) < length:  # the client died while it was sending: no call
                self.close_connection = True
                return
            body = _object_in(content)
            fault = self._record(body or {}, content)
            time.sleep(server.hang if fault == "hang" else server.delay)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
            elif fault in STATUS_FAULTS:
                self._send(STATUS_FAULTS[fault], {"error": {"message": fault}}, {"Retry-After": "0"})
            elif fault == "rejected_format":
                self._send(400, {"error": {"message": "response_format is not supported"}})
            elif fault is not None and fault.startswith("rejected "):
                name = fault.removeprefix("rejected ")
                error = {"message": f"Unsupported parameter: '{name}' is not supported.", "param": name}
                self._send(400, {"error": error})
            elif fault == "wrong_key":
                self._send(401, {"error": {"message": "wrong API key"}})
            elif not self.path.endswith(ENDPOINTS):
                self._send(404, {"error": {"message": f"no {self.path}"}})
            elif body is None:
                self._send(400, {"error": {"message": "the body is no JSON object"}})
            else:
                self._answer(body, fault)

        def _record(self, body: Mapping[str, Any], content: bytes) -> str | None:
            key, headers = self.headers.get("Authorization"), tuple(self.headers.items())
            return server.record(self.path, body, key, method=self.command, headers=headers, content=content)

        def _answer(self, body: Mapping[str, Any], fault: str | None) -> None:
            right = isinstance(body.get("model"), str) and isinstance(body.get("input"), (str, list))
            if self.path.endswith("/embeddings") and not right:
                self._send(400, {"error": {"message": "model must be a text, input a text or a list"}})
            elif self.path.endswith("/embeddings"):
                self._send(200, server.embeddings(body))
            elif self.path.endswith("/responses") and body.get("stream") is True:
                self._stream(server.reply_events(body), whole=True)
            elif self.path.endswith("/responses"):
                self._send(200, server.reply(body))
            elif not self.path.endswith("/chat/completions") and body.get("stream") is True:
                self._stream(iter([json.dumps(server.completion(body)), "[DONE]"]), whole=True)
            elif not self.path.endswith("/chat/completions"):
                self._send(200, server.completion(body))
            elif not _has_user_message(body):
                self._send(400, {"error": {"message": "messages must be a list of objects with content"}})
            elif body.get("stream"):
                self._stream(server.stream(body, fault), whole=fault != "cut")
            else:
                self._send(200, server.chat(body, fault))

        def _send(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _stream(self, events: Iterator[str], *, whole: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client went away
                for event in events:
                    data = f"data: {event}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                if whole:
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = self.close_connection or not whole

        do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            fault = self._record({}, self.rfile.read(length))
            models = {"object": "list", "data": [{"id": "simulator", "object": "model"}]}
            if fault == "wrong_key":
                self._send(401, {"error": {"message": "wrong API key"}})
            elif self.path.endswith("/models"):
                self._send(200, models)
            else:
                self._send(404, {"error": {"message": f"no {self.path}"}})

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Keep quiet; `calls` is the log."""

    return Handler
