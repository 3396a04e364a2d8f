"""Doubles that are real enough to build on: an encoder, a language model, an OpenAI-compatible server.

They are deterministic, need no download, and are public, so that users can test their own programs.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from types import TracebackType
from typing import Any

import numpy as np

from embedsmith.conversation import Turn, read_turns, render
from embedsmith.encoder import Embeddings, hash_trigrams
from embedsmith.llm import Completion, Prompt, Sampling

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

    quick = True  # as that of an exported model

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, dimension) float32."""
        return hash_trigrams(texts, self.dimension)


def write_answer(prompt: str) -> str:
    """Return what an obedient model would answer to a prompt of the langcache recipe or of its judge, as JSON.

    The question is found by its "Question:" (or "Conversation:") line and the task by the key that the prompt asks
    for; the words of the question stay, so the texts are true paraphrases in form only. As judge it knows its own
    texts: a pair is of one answer if the second text has the words of the first in one of the forms of a paraphrase.
    """
    if '"same_answer"' in prompt:
        return _judge_pair(prompt)
    question = re.search(r"^(?:Question|Conversation): (.+)$", prompt, re.M)
    asked = re.search(r'\{"(\w+)": \[(\d+) strings\]\}', prompt)
    if not question or not asked:
        return json.dumps({"answer": "no question found"})
    task, count = asked.group(1), int(asked.group(2))
    forms = REWORDINGS if task == "paraphrases" else NEAR_MISSES
    text = _unquote(question.group(1).strip())
    return json.dumps({task: [_fill(form, text) for form in forms[:count]]})


def _fill(form: str, question: str) -> str:
    """Return a question in another form; of a conversation its last turn is."""
    *earlier, last = read_turns(question)
    return render([*earlier, Turn("user", form.format(last.content.strip().rstrip("?.! ")))])


def _unquote(text: str) -> str:
    """Return the text of a JSON string; anything else is the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _judge_pair(prompt: str) -> str:
    """Return a verdict on the texts in the lines "First text:" and "Second text:", JSON both."""
    one, other = (json.loads(text) for text in re.findall(r"^(?:First|Second) text: (.+)$", prompt, re.M))
    same = other in {_fill(form, one) for form in REWORDINGS}
    return json.dumps({"same_answer": "yes" if same else "no", "difference": "" if same else "what is asked"})


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
    "rate_limit",  # 429 with Retry-After: 0
    "rate_limit_silent",  # 429 that does not say for how long
    "server_error",  # 500
    "unavailable",  # 503
    "drop",  # the connection is closed without an answer
    "garbled",  # status 200, and a body whose JSON breaks off
    "null",  # content: null
    "empty",
    "truncated",  # the JSON of the content breaks off, finish_reason "length"
    "thinking",  # <think>…</think> before the JSON
    "fenced",  # prose and a code fence around the JSON
    "broken",  # trailing comma
    "refusal",
    "duplicate",  # what the first prompt was answered, once more
    "cut",  # the connection breaks off in the middle of a stream
    "hang",  # no answer for `hang` seconds
)
STATUS_FAULTS = {"rate_limit": 429, "rate_limit_silent": 429, "server_error": 500, "unavailable": 503}
REFUSAL = "As an AI language model I cannot do that"
ANSWERED = frozenset({None, "thinking", "fenced", "broken", "null", "empty", "truncated", "refusal", "duplicate"})
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


def spoil(fault: str | None, text: str, first: str) -> str | None:
    """Return an answer as a fault leaves it; whatever JSON object it is.

    Args:
        first: the answer to the first prompt.

    >>> spoil("broken", '{"a": [1], "b": "x"}', "")
    '{"a": [1], "b": "x",}'
    """
    changes: dict[str, Callable[[], str | None]] = {
        "null": lambda: None,
        "empty": lambda: "",
        "truncated": lambda: text[: len(text) * 2 // 3],
        "thinking": lambda: f"<think>They want a list. [1, 2]</think>\n{text}",
        "fenced": lambda: f"Sure! Here you are:\n```json\n{text}\n```\nAnything else?",
        "broken": lambda: re.sub(r"(\]?\})\s*\Z", r",\1", text),
        "refusal": lambda: _refuse(text),
        "duplicate": lambda: first,
    }
    return changes[fault]() if fault in changes else text


def _refuse(text: str) -> str:
    """Return the answer with a refusal in place of every text; in words where there is no JSON object."""
    whole = _object_in(text.encode())
    if not whole:
        return REFUSAL
    refused = {key: [REFUSAL] if isinstance(value, list) else value for key, value in whole.items()}
    return json.dumps({key: REFUSAL if isinstance(value, str) else value for key, value in refused.items()})


class Capacity:
    """What a server can take, which its clients have to find out. All attributes may change while it runs.

    Args:
        at_once: requests in service at once. rate: requests begun in a second, with `burst` saved up at most.
        refuses: answer what is too much with `status`, with Retry-After where `retry_after` says so; else it waits in
            line.

    Attributes:
        served: requests that got through. refused: those that did not.
    """

    def __init__(
        self,
        at_once: int | None = None,
        *,
        rate: float | None = None,
        burst: float | None = None,
        refuses: bool = False,
        retry_after: float | None = None,
        status: int = 429,
    ) -> None:
        self.at_once, self.rate, self.refuses, self.retry_after = at_once, rate, refuses, retry_after
        self.status = status
        self.burst = burst if burst is not None else max((rate or 0.0) / 10, 1.0)
        self.served = self.refused = 0
        self._busy = 0
        self._tokens, self._filled = self.burst, time.monotonic()
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Take a place, after a wait if need be; False: refused."""
        with self._changed:
            if self.refuses and not self._has_room():
                self.refused += 1
                return False
            while not self._has_room():
                self._changed.wait(self._until_room())
            self._busy += 1
            self._tokens -= self.rate is not None
            self.served += 1
            return True

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._busy -= 1
            self._changed.notify()

    def _has_room(self) -> bool:
        if self.rate is not None:
            now = time.monotonic()
            self._tokens = min(self._tokens + (now - self._filled) * self.rate, self.burst)
            self._filled = now
        return (self.at_once is None or self._busy < self.at_once) and (self.rate is None or self._tokens >= 1)

    def _until_room(self) -> float:
        return max((1 - self._tokens) / self.rate, 0.001) if self.rate is not None and self._tokens < 1 else 1.0


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


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 1024  # the default of 5 turns a crowd of clients away, which is no fault that was asked for
    allow_reuse_address = daemon_threads = True
    block_on_close = False

    @property
    def server_port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that went away; other errors are bugs, and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


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
        capacity: what chat completions the server can take; default is any number.
        count: from the text of a prompt and of its answer to the tokens that `usage` reports, or None for an answer
            without it; default is 100 and 50.
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
        capacity: Capacity | None = None,
        count: Callable[[str, str], tuple[int, int] | None] = lambda *_: (100, 50),
    ) -> None:
        unknown = set(faults or {}) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}; known: {FAULTS}")
        self.faults, self.seed, self.delay = dict(faults or {}), seed, delay
        self.pause, self.hang = pause, hang
        self.rejects_formats, self.rejects_parameters = tuple(rejects_formats), tuple(rejects_parameters)
        self.api_key, self.answer = api_key, answer
        self.capacity, self.count = capacity, count
        self._first: str | None = None
        self.embed = embed if embed is not None else FakeEncoder().encode
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
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
        chats = [call for call in self.calls if call.path.endswith("/chat/completions")]
        return [call.body["messages"][-1]["content"] for call in chats if call.fault in ANSWERED]

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
            fault = None
            if self.faults and path.endswith("/chat/completions"):
                draw = np.random.default_rng([self.seed, len(self.calls)]).random()
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
        whole = self.answer(str(body["messages"][-1]["content"]))
        self._first = whole if self._first is None else self._first
        content = spoil(fault, whole, self._first)
        prompt = "\n".join(str(message.get("content")) for message in body["messages"])
        used = self.count(prompt, content or "")
        usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)} if used else None
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
            **({"usage": usage} if usage else {}),
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

    def run_batch(self, lines: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the lines of the output file and of the error file for a batch file of chat completions.

        Faults are those of the server: what would have been a status is an error line, and what would have been
        silence (a dropped connection, a hang) is a line that is in neither file.
        """
        results, errors = [], []
        for number, line in enumerate(lines):
            asked = json.loads(line)
            fault = self.record(asked["url"], asked["body"], f"Bearer {self.api_key}")
            about = {"id": f"batch_req_{number}", "custom_id": asked["custom_id"]}
            if fault in STATUS_FAULTS:
                answer = {"status_code": STATUS_FAULTS[fault], "body": {"error": {"message": fault}}}
                errors.append(json.dumps({**about, "response": answer, "error": None}))
            elif fault in ANSWERED:
                answer = {"status_code": 200, "request_id": "r", "body": self.chat(asked["body"], fault)}
                results.append(json.dumps({**about, "response": answer, "error": None}))
        return results, errors

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


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    content: bytes
    lasting: bool  # the connection stays open

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


def _read_request(stream: BufferedIOBase) -> _Request | None:
    """Return the next request of a connection; None when it ends, also in the middle of a request."""
    start = stream.readline(65536).decode("latin-1").split()
    if len(start) != 3:
        return None
    headers = []
    while (line := stream.readline(65536)) not in (b"\r\n", b"\n"):
        if not line:
            return None
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    known = {name.lower(): value for name, value in headers}
    length = int(known.get("content-length", 0))
    content = stream.read(length) if length else b""
    if len(content) < length:  # the client died while it was sending: no call
        return None
    lasting = start[2] == "HTTP/1.1" and known.get("connection", "").lower() != "close"
    return _Request(start[0], start[1], tuple(headers), content, lasting)


def _handler(server: FaultyServer) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        """A thread for each connection, with a small parser of its own: http.server's takes longer than the answer."""

        disable_nagle_algorithm = True

        def handle(self) -> None:
            self._open = True
            with contextlib.suppress(ConnectionError):
                while self._open and (request := _read_request(self.rfile)) is not None:
                    self._open = request.lasting
                    self._head_only = request.method == "HEAD"
                    self._get(request) if request.method in {"GET", "HEAD"} else self._post(request)

        def _post(self, request: _Request) -> None:
            body = _object_in(request.content)
            fault = self._record(request, body or {})
            if fault is None or fault in FAULTS:
                self._serve(request, body, fault)
            else:
                time.sleep(server.delay)
                self._reply(request, body, fault)

        def _serve(self, request: _Request, body: Mapping[str, Any] | None, fault: str | None) -> None:
            """Answer within the capacity; a fault of the plan takes its place as an answer does."""
            limited = server.capacity if request.path.endswith("/chat/completions") else None
            if limited is not None and not limited.enter():
                wait = {"Retry-After": f"{limited.retry_after:g}"} if limited.retry_after is not None else {}
                self._send(limited.status, {"error": {"message": "too many requests"}}, wait)
                return
            try:
                time.sleep(server.hang if fault == "hang" else server.delay)
            finally:
                if limited is not None:
                    limited.leave()
            self._reply(request, body, fault)

        def _reply(self, request: _Request, body: Mapping[str, Any] | None, fault: str | None) -> None:
            if fault == "drop":
                self._open = False
            elif fault in STATUS_FAULTS:
                wait = {"Retry-After": "0"} if fault == "rate_limit" else {}
                self._send(STATUS_FAULTS[fault], {"error": {"message": fault}}, wait)
            elif fault == "rejected_format":
                self._send(400, {"error": {"message": "response_format is not supported"}})
            elif fault is not None and fault.startswith("rejected "):
                name = fault.removeprefix("rejected ")
                error = {"message": f"Unsupported parameter: '{name}' is not supported.", "param": name}
                self._send(400, {"error": error})
            elif fault == "wrong_key":
                self._send(401, {"error": {"message": "wrong API key"}})
            elif not request.path.endswith(ENDPOINTS):
                self._send(404, {"error": {"message": f"no {request.path}"}})
            elif body is None:
                self._send(400, {"error": {"message": "the body is no JSON object"}})
            else:
                self._answer(request.path, body, fault)

        def _record(self, request: _Request, body: Mapping[str, Any]) -> str | None:
            key = request.header("authorization")
            about = {"method": request.method, "headers": request.headers, "content": request.content}
            return server.record(request.path, body, key, **about)  # type: ignore[arg-type]

        def _answer(self, path: str, body: Mapping[str, Any], fault: str | None) -> None:
            right = isinstance(body.get("model"), str) and isinstance(body.get("input"), (str, list))
            if path.endswith("/embeddings") and not right:
                self._send(400, {"error": {"message": "model must be a text, input a text or a list"}})
            elif path.endswith("/embeddings"):
                self._send(200, server.embeddings(body))
            elif path.endswith("/responses") and body.get("stream") is True:
                self._stream(server.reply_events(body), whole=True)
            elif path.endswith("/responses"):
                self._send(200, server.reply(body))
            elif not path.endswith("/chat/completions") and body.get("stream") is True:
                self._stream(iter([json.dumps(server.completion(body)), "[DONE]"]), whole=True)
            elif not path.endswith("/chat/completions"):
                self._send(200, server.completion(body))
            elif not _has_user_message(body):
                self._send(400, {"error": {"message": "messages must be a list of objects with content"}})
            elif body.get("stream"):
                self._stream(server.stream(body, fault), whole=fault != "cut")
            else:
                self._send(200, server.chat(body, fault), garbled=fault == "garbled")

        def _send(
            self,
            status: int,
            body: Mapping[str, Any],
            headers: Mapping[str, str] | None = None,
            *,
            garbled: bool = False,
        ) -> None:
            content = json.dumps(body).encode()
            content = content[: len(content) // 2] if garbled else content
            about = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
            self.wfile.write(_write_head(status, about) + (b"" if self._head_only else content))

        def _stream(self, events: Iterator[str], *, whole: bool) -> None:
            self.wfile.write(_write_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
            with contextlib.suppress(ConnectionError):  # the client went away
                for event in events:
                    data = f"data: {event}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                if whole:
                    self.wfile.write(b"0\r\n\r\n")
            self._open = self._open and whole

        def _get(self, request: _Request) -> None:
            fault = self._record(request, {})
            models = {"object": "list", "data": [{"id": "simulator", "object": "model"}]}
            if fault == "wrong_key":
                self._send(401, {"error": {"message": "wrong API key"}})
            elif request.path.endswith("/models"):
                self._send(200, models)
            else:
                self._send(404, {"error": {"message": f"no {request.path}"}})

    return Handler


def _write_head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}", "Server: embedsmith-testing", _write_date()]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")


def _write_date() -> str:
    return f"Date: {email.utils.formatdate(usegmt=True)}"
