"""Answers of an OpenAI-compatible upstream: what may be stored, and how a stored one is given again.

An answer that came as a stream is kept with the upstream's own chunks and replayed from them; one that
came whole is kept whole. Each form can be made from the other, so a stream can hit what a plain request
stored and the reverse. Anything but one finished text (cut at the length limit, filtered, a refusal, a
call of a tool, an error) is never stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Attributes:
        body: the `chat.completion` object. chunks: the data of each event of the stream, without the last
            "[DONE]"; empty for an answer that came whole.
    """

    body: Mapping[str, Any]
    chunks: tuple[str, ...] = ()

    def dump(self) -> str:
        """Return the form that a store keeps."""
        return json.dumps({"body": self.body, "chunks": self.chunks}, ensure_ascii=False, separators=(",", ":"))


def load_answer(text: str) -> Answer:
    """Return the answer that `dump` wrote."""
    stored = json.loads(text)
    return Answer(stored["body"], tuple(stored["chunks"]))


def read_body(body: object) -> Answer | None:
    """Return a plain answer, or None when it must not be stored."""
    if not isinstance(body, dict) or body.get("error") or not _is_one_text(body.get("choices")):
        return None
    return Answer(body)


def _is_one_text(choices: object) -> bool:
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    message = choices[0].get("message")
    return (
        choices[0].get("finish_reason") == "stop"
        and isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and bool(message["content"])
        and not (message.get("tool_calls") or message.get("function_call") or message.get("refusal"))
    )


@dataclass(slots=True)
class StreamReader:
    """Collects the events of a stream as its bytes pass by."""

    chunks: list[str] = field(default_factory=list)
    finished: bool = False
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip().decode("utf-8", "replace")
                if text == DONE:
                    self.finished = True
                else:
                    self.chunks.append(text)

    def answer(self) -> Answer | None:
        """Return the whole answer; None when the stream was cut or must not be stored."""
        if not self.finished:
            return None
        try:
            chunks = [json.loads(chunk) for chunk in self.chunks]
        except ValueError:
            return None
        whole = read_body(_join(chunks))
        return Answer(whole.body, tuple(self.chunks)) if whole is not None else None


def _join(chunks: Sequence[Any]) -> dict[str, Any] | None:
    """Return the completion that the chunks spell out; None when they hold more than one plain text."""
    content, finish, head, usage = "", None, None, None
    for chunk in chunks:
        if not isinstance(chunk, dict) or chunk.get("error"):
            return None
        head = head or chunk
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if (
                choice.get("index", 0) != 0
                or delta.get("tool_calls")
                or delta.get("function_call")
                or delta.get("refusal")
            ):
                return None
            content += delta.get("content") or ""
            finish = choice.get("finish_reason") or finish
    if head is None:
        return None
    message = {"role": "assistant", "content": content}
    about = {name: head[name] for name in ("id", "created", "model", "system_fingerprint") if name in head}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {**about, "object": "chat.completion", "choices": choices, **({"usage": usage} if usage else {})}


def stream_events(answer: Answer) -> Iterator[bytes]:
    """Yield the server-sent events of an answer: the upstream's own chunks, or two made from a plain answer."""
    for chunk in answer.chunks or _split(answer.body):
        yield f"data: {chunk}\n\n".encode()
    yield f"data: {DONE}\n\n".encode()


def _split(body: Mapping[str, Any]) -> list[str]:
    about = {name: body[name] for name in ("id", "created", "model", "system_fingerprint") if name in body}
    message = body["choices"][0]["message"]
    deltas = [({"role": "assistant", "content": message["content"]}, None), ({}, "stop")]
    return [
        json.dumps(
            {
                **about,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            },
            ensure_ascii=False,
        )
        for delta, finish in deltas
    ]
