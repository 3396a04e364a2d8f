"""Answers of an OpenAI-compatible upstream: what may be stored, and how a stored one is given again.

An answer that came as a stream is kept with the upstream's own chunks and replayed from them; one that
came whole is kept whole. Each form can be made from the other, so a stream can hit what a plain request
stored and the reverse, but only where nothing that was asked for is missing (`Answer.lacks`). Anything but
one finished text (cut at the length limit, filtered, a refusal, a call of a tool, an error), and anything
that could not be written out again (NaN, half characters), is never stored.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedsmith.cache.chat import Question
from embedsmith.server.usage import read_count
from embedsmith.text import is_storable

DONE = "[DONE]"
SPOILT = ""  # in the place of a chunk: what is no part of an answer, so that there is none
GOING_ON = (None, "", "null")  # how a choice ends that has not ended
LARGEST = 8 << 20  # bytes of an answer that is kept
BLOCK = 1 << 16  # bytes of a replayed stream that are sent together
OWN = frozenset({"object", "choices", "usage", "obfuscation"})  # of a chunk, or of an answer: not the same in the other
STREAMED, NO_USAGE, NO_LOGPROBS = "stored as a stream only", "stored without usage", "stored without logprobs"
UNREADABLE = "stored, but no answer of an upstream"
UNFIT = frozenset({STREAMED, NO_USAGE, NO_LOGPROBS, UNREADABLE})  # why what is stored is a miss all the same


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Attributes:
        body: the `chat.completion` object. chunks: the data of each event of the stream, without the last
            "[DONE]"; empty for an answer that came whole.
        asked: it came as a stream whose usage was asked for (so an upstream that gave none has none to give).
        partial: the chunks hold more than the body could take over, so it is given as a stream only.
    """

    body: Mapping[str, Any]
    chunks: tuple[str, ...] = ()
    asked: bool = False
    partial: bool = False

    def dump(self) -> str:
        """Return the form that a store keeps."""
        told = {"body": self.body, "chunks": self.chunks, "asked": self.asked, "partial": self.partial}
        return json.dumps(told, ensure_ascii=False, separators=(",", ":"))

    def lacks(self, question: Question) -> str:
        """Return what `question` asks for that this answer cannot give in its form; "" when nothing is missing."""
        if not self.chunks:
            return ""  # a plain answer has all that its upstream tells: who asked again would get the same, for ever
        if question.stream:
            return NO_USAGE if question.usage and not self.asked and not self.body.get("usage") else ""
        if self.partial:
            return STREAMED
        if not self.body.get("usage"):
            return NO_USAGE
        told = all(choice.get("logprobs") for choice in self.body["choices"])
        return NO_LOGPROBS if question.logprobs and not told else ""


def load_answer(text: str) -> Answer:
    """Return the answer that `dump` wrote.

    Raises:
        ValueError: it is something else, or an answer that `read_body` would refuse.
    """
    stored = parse(text)
    try:
        answer = Answer(stored["body"], tuple(stored["chunks"]), *map(bool, map(stored.get, ("asked", "partial"))))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no answer of an upstream") from error
    if read_body(answer.body, count_choices(answer.body)) is None or not all(
        isinstance(chunk, str) for chunk in answer.chunks
    ):
        raise ValueError("an answer that cannot be given again")
    return answer


def parse(content: bytes | str) -> Any:
    """Return the JSON value of `content`, None when it is none; NaN and Infinity are no JSON."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def count_choices(body: object) -> int:
    """Return how many answers a body holds, at least 1."""
    choices = body.get("choices") if isinstance(body, dict) else None
    return max(len(choices), 1) if isinstance(choices, list) else 1


def read_body(body: object, several: int = 1) -> Answer | None:
    """Return a plain answer with as many choices as were asked for, or None when it must not be stored."""
    if not isinstance(body, dict) or body.get("error") or not _are_texts(body.get("choices"), several):
        return None
    return Answer(body) if _is_usage(body.get("usage")) and _is_writable(body) else None


def _are_texts(choices: object, several: int) -> bool:
    if not isinstance(choices, list) or len(choices) != several or not all(map(_is_text, choices)):
        return False
    return several == 1 or sorted(str(choice.get("index")) for choice in choices) == sorted(map(str, range(several)))


def _is_text(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    message = choice.get("message")
    return (
        choice.get("finish_reason") == "stop"
        and isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and bool(message["content"])
        and not (message.get("tool_calls") or message.get("function_call") or message.get("refusal"))
    )


def _is_usage(usage: object) -> bool:
    """Say whether this is how usage is told: nothing, or counts of tokens (more fields do no harm)."""
    if usage is None:
        return True
    return isinstance(usage, dict) and all(
        count is None or read_count(count) is not None
        for count in (usage.get(f"{part}_tokens") for part in ("prompt", "completion", "total"))
    )


def _is_writable(body: Mapping[str, Any]) -> bool:
    """Say whether the body can be sent and stored again: a number may be infinite (1e999), a text half a character."""
    try:
        return is_storable(json.dumps(body, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):
        return False


@dataclass(slots=True)
class StreamReader:
    """Collects the events of a stream as its bytes pass by.

    Attributes:
        asked: whether the stream was asked to tell its usage.
        several: how many answers were asked for.
        largest: bytes of a stream that is kept; of a longer one nothing is.
    """

    asked: bool = False
    several: int = 1
    largest: int = LARGEST
    chunks: list[str] = field(default_factory=list)
    finished: bool = False
    _read: int = 0
    _rest: bytearray = field(default_factory=bytearray)  # a line whose end has not come

    @property
    def full(self) -> bool:
        """Say whether the stream is too long to be kept."""
        return self._read > self.largest

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        self._read += len(data)
        if self.full:
            self.chunks.clear()
            self._rest.clear()
            return
        ends, _, rest = data.rpartition(b"\n")
        if len(rest) == len(data):
            self._rest += data
            return
        self._rest += ends
        lines, self._rest = self._rest.split(b"\n"), bytearray(rest)
        for line in lines:
            name, _, value = line.removeprefix(codecs.BOM_UTF8).partition(b":")  # one may stand before the first
            if name == b"data":
                self._take(value.strip())
            elif name == b"event" and value.strip() == b"error":
                self.chunks.append(SPOILT)

    def _take(self, data: bytearray) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:  # cut in the middle of a character, or of none
            text = SPOILT
        if text == DONE:
            self.finished = True
        else:
            self.chunks.append(SPOILT if self.finished else text)  # clients read no further than the end

    def answer(self) -> Answer | None:
        """Return the whole answer; None when the stream was cut, is of no known form or must not be stored."""
        if not self.finished or self.full:
            return None
        joined = _Joined(self.several)
        if not all(joined.add(parse(chunk)) for chunk in self.chunks):
            return None
        whole = read_body(joined.body(), self.several)
        return Answer(whole.body, tuple(self.chunks), self.asked, joined.partial) if whole is not None else None


@dataclass(slots=True)
class _Joined:
    """The completion that the chunks of a stream spell out, as the same upstream would have given it whole.

    Of what stands beside the choices the last word counts.
    """

    several: int = 1
    about: dict[str, Any] = field(default_factory=dict)
    choices: dict[int, _JoinedChoice] = field(default_factory=dict)
    usage: Any = None

    @property
    def partial(self) -> bool:
        """Say whether the chunks hold more than the whole could take over."""
        return any(choice.partial for choice in self.choices.values())

    def add(self, chunk: object) -> bool:
        """Take the next chunk; False when it is not a part of one plain text."""
        if not isinstance(chunk, dict) or chunk.get("error") or chunk.get("object") == "error":
            return False
        self.usage = chunk.get("usage") or self.usage
        self.about |= {name: value for name, value in chunk.items() if name not in OWN and value not in (None, "")}
        choices = chunk.get("choices") or []
        return isinstance(choices, list) and all(map(self._add_choice, choices))

    def _add_choice(self, choice: object) -> bool:
        if not isinstance(choice, dict) or choice.get("index", 0) not in range(self.several):
            return False
        return self.choices.setdefault(int(choice.get("index", 0)), _JoinedChoice()).add(choice)

    def body(self) -> dict[str, Any]:
        """Return the `chat.completion` object."""
        choices = [{"index": place} | self.choices[place].whole() for place in sorted(self.choices)]
        told = {**self.about, "object": "chat.completion", "choices": choices}
        return told | ({"usage": self.usage} if self.usage else {})


@dataclass(slots=True)
class _JoinedChoice:
    """One answer among those of a stream.

    Texts that come in pieces (the answer, its reasoning) are joined and so are lists of logprobs; of what
    stands beside them the last word counts.
    """

    role: str = "assistant"
    texts: dict[str, list[str]] = field(default_factory=lambda: {"content": []})
    beside: dict[str, Any] = field(default_factory=dict)
    partial: bool = False

    def add(self, choice: Mapping[str, Any]) -> bool:
        """Take what the next chunk says of it; False when that is not a part of one plain text."""
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict) or not isinstance(delta.get("content") or "", str):
            return False
        if delta.get("tool_calls") or delta.get("function_call") or delta.get("refusal"):
            return False
        if choice.get("finish_reason") not in (*GOING_ON, "stop"):
            return False
        for name, value in delta.items():
            self._add_field(name, value)
        for name, value in choice.items():
            if name == "logprobs" and value is not None:
                self._add_logprobs(value)
            elif name not in ("index", "delta", "message") and value is not None:
                self.beside[name] = value
        return True

    def _add_field(self, name: str, value: object) -> None:
        if name == "role" and isinstance(value, str):
            self.role = value or "assistant"
        elif isinstance(value, str):
            if value:
                self.texts.setdefault(name, []).append(value)
        elif value:  # how its pieces make a whole is the upstream's secret
            self.partial = True

    def _add_logprobs(self, value: object) -> None:
        known = self.beside.setdefault("logprobs", {})
        if not isinstance(value, dict) or not all(isinstance(part, list | None) for part in value.values()):
            self.partial = True
            return
        for name, part in value.items():
            if known.get(name) is None:
                known[name] = part
            else:
                known[name] += part or ()

    def whole(self) -> dict[str, Any]:
        """Return the choice, but for its index."""
        message = {"role": self.role} | {name: "".join(parts) for name, parts in self.texts.items()}
        return {"message": message, "finish_reason": None} | self.beside


def stream_events(answer: Answer, *, usage: bool) -> Iterator[bytes]:
    """Yield the server-sent events of an answer: the upstream's own chunks, or those made from a plain answer.

    Args:
        usage: whether it was asked for; else the chunk that holds nothing but usage, which clients that did not
            ask do not expect, is left out.
    """
    for chunk in answer.chunks or _split(answer.body, usage=usage):
        if usage or not _is_usage_alone(chunk):
            yield f"data: {chunk}\n\n".encode()
    yield f"data: {DONE}\n\n".encode()


async def in_blocks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield `parts` joined into blocks, and let others have their turn after each: one by one they take far longer."""
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
            await asyncio.sleep(0)
    if block:
        yield bytes(block)


def _is_usage_alone(chunk: str) -> bool:
    if '"usage"' not in chunk:
        return False
    read = parse(chunk)
    return isinstance(read, dict) and bool(read.get("usage")) and not read.get("choices")


def _split(body: Mapping[str, Any], *, usage: bool) -> Sequence[str]:
    about = {name: value for name, value in body.items() if name not in OWN} | {"object": "chat.completion.chunk"}
    beside = {"usage": None} if usage else {}
    parts: list[dict[str, Any]] = []
    for place, given in enumerate(body["choices"]):
        choice = dict(given)
        index = place if len(body["choices"]) == 1 else choice["index"]
        delta = {name: value for name, value in choice.pop("message").items() if value is not None}
        logprobs = choice.pop("logprobs", None)
        parts += [
            {"index": index, "delta": {"role": "assistant"} | delta, "logprobs": logprobs, "finish_reason": None},
            {**choice, "index": index, "delta": {}},
        ]
    chunks = [{**about, "choices": [part], **beside} for part in parts]
    if usage and body.get("usage"):
        chunks.append({**about, "choices": [], "usage": body["usage"]})
    return [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
