"""OpenAI chat requests as cache questions: the text that may vary, the scope that may not, or a reason to pass."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from embedsmith.artifacts import fingerprint
from embedsmith.conversation import CALLS, ROLES, Turn, render, text_of
from embedsmith.errors import require
from embedsmith.text import is_storable

LARGEST = 1e300  # number that can be written as one
DEEPEST = 100  # levels of a request; real ones have ten
HARMLESS = {  # of a request: what cannot change the answer, and why; every other field must be equal, heard of or not
    "messages": "read by itself: the last one is compared by meaning, those before it must be equal",
    "stream": "the form of the answer; where the stored one lacks something of it, that is a miss (`Answer.lacks`)",
    "stream_options": "as `stream`",
    "n": "part of the scope by itself where it is more than one",
    "metadata": "labels of the call in the provider's log; what directs a gateway must be equal (`_find_directives`)",
    "store": "whether the provider keeps a copy: it does of misses",
    "user": "who asks, told for the provider's watch over abuse; the tenant is told by the headers",
    "safety_identifier": "as `user`, whose successor it is",
    "prompt_cache_key": "where the provider looks for the beginning of the prompt: time and price",
    "prompt_cache_retention": "as `prompt_cache_key`",
    "service_tier": "how soon the same model answers, and at what price",
    "request_id": "of one request, for its log (vLLM, Zhipu)",
    "litellm_call_id": "as `request_id` (LiteLLM)",
    "litellm_trace_id": "which requests belong together in its log (LiteLLM)",
    "litellm_session_id": "as `litellm_trace_id`",
}
LOGGED = ("spend_logs_metadata", "trace_metadata")  # objects in LiteLLM's metadata that only its log takes
SEARCHING = ("web_search_options", "search_parameters", "enable_search")  # of OpenAI, xAI, Alibaba


@dataclass(frozen=True, slots=True)
class Question:
    """A request that the cache may answer.

    Attributes:
        text: what is compared by meaning: the last message of the user, or the whole conversation.
        scope: everything else that decides the answer, which must be equal.
        stream: whether the answer is wanted as a stream. usage: with its usage in a chunk of its own.
        logprobs: with those of its tokens. several: how many answers are asked for (`n`).
    """

    text: str
    scope: Mapping[str, Any]
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    several: int = 1


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that goes to the upstream untouched, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Allowances:
    """What else may be answered from the cache.

    Attributes:
        tools: requests that offer tools, or have the web searched, whose answers depend on the day; an answer that
            calls a tool is never stored.
        temperature: highest one at which an answer may be repeated; above, the user asks for variety.
        images: questions about images; the text is compared by meaning only where the images are the same, one by one
            and in the same places (a remote one by its address: what lies there may change).
        several: requests for more than one answer (`n`); the same ones are given again, all of them.
    """

    tools: bool = False
    temperature: float = 1.0
    images: bool = False
    several: bool = False

    def __post_init__(self) -> None:
        require(
            0 <= self.temperature < math.inf,
            f"the highest temperature is {self.temperature:g}",
            "a number from 0 on; 2 is the highest that OpenAI takes, so it allows all",
        )


def read_chat(
    body: Mapping[str, Any], allowed: Allowances | None = None, *, by_meaning: bool = False
) -> Question | Passed:
    """Return the question in a chat request, or why it is none for the cache.

    Args:
        by_meaning: whether earlier turns may be compared by meaning (`read_messages`).

    Raises:
        ValueError: `messages` is not what the protocol says.
    """
    allowed = allowed or Allowances()
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise ValueError("messages must be a list of objects")
    if _is_deep(body):
        return Passed("the request is nested too deep to compare")
    if not _is_storable(body):
        return Passed("half characters or NUL in the request")
    reason = _reason_to_pass(body, messages, allowed)
    if reason:
        return Passed(reason)
    images: list[tuple[int, str]] = []
    if allowed.images:
        messages, images = _take_images(messages)
    text, about = read_messages(messages, by_meaning=by_meaning)
    if not text:
        parts = messages[-1].get("content")
        image = isinstance(parts, list) and any(map(_is_image, parts))  # only where they are not allowed
        return Passed("the last message holds an image" if image else "the last message is not text")
    rest = {name: value for name, value in body.items() if name not in HARMLESS and value is not None}
    several = body.get("n") or 1
    scope: dict[str, Any] = {"rest": rest, "turns": [], **about}
    scope |= {"images": images} if images else {}
    scope |= {"n": several} if several > 1 else {}
    scope |= {"metadata": directives} if (directives := _find_directives(body.get("metadata"))) else {}
    stream, options = bool(body.get("stream")), body.get("stream_options")
    usage = stream and isinstance(options, dict) and bool(options.get("include_usage"))
    return Question(text, scope, stream, usage, bool(body.get("logprobs")), several)


def _find_directives(metadata: object) -> object:
    """Return what in `metadata` a gateway may act upon: all but texts and numbers, the labels of OpenAI's protocol.

    LiteLLM chooses the deployment by `tags` (a list), and switches `guardrails` (a list or an object), which may mask
    what the model reads; CoreWeave's proxy routes by names that begin with "wandb.".
    """
    if not isinstance(metadata, dict):
        return metadata
    return {name: value for name, value in metadata.items() if not _is_label(name, value)}


def _is_label(name: str, value: object) -> bool:
    plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
    return name in LOGGED or (plain and not name.startswith("wandb."))


def _take_images(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[tuple[int, str]]]:
    """Return the messages without the images of the last one, and of each its place and digest.

    The digest is of the whole part: a data URL holds the image itself, and beside it stands how closely to look.
    """
    *earlier, last = messages
    parts = last.get("content")
    if not isinstance(parts, list):
        return [*earlier, last], []
    places = [place for place, part in enumerate(parts) if _is_image(part)]
    rest = [part for place, part in enumerate(parts) if place not in places]
    return [*earlier, {**last, "content": rest}], [(place, fingerprint(parts[place], length=32)) for place in places]


def _is_image(part: object) -> bool:
    address = part.get("image_url") if isinstance(part, Mapping) and part.get("type") == "image_url" else None
    return isinstance(address, Mapping) and isinstance(address.get("url"), str)


def read_messages(messages: Sequence[Mapping[str, Any]], *, by_meaning: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the text of messages that is compared by meaning, "" for none, and what else of them must be equal.

    Without `by_meaning` the text is the last message, and what stands before it must be equal as it is. With it, what
    user and assistant said before is part of the text; who spoke in which place, names and other fields, and messages
    of anyone else (system, tools) must be equal still. An earlier turn that is not plain text is like nothing else, so
    then all of them must be equal.
    """
    last = messages[-1]
    text = text_of(last.get("content"))
    if text is None or not text.strip():
        return "", {}
    scope: dict[str, Any] = {}
    spoken = [_read_turn(item) for item in messages[:-1] if item.get("role") in ROLES] if by_meaning else []
    if spoken and all(spoken):
        text = render([*filter(None, spoken), Turn("user", text)])
        scope["turns"] = [_without_text(item) if item.get("role") in ROLES else _turn(item) for item in messages[:-1]]
    elif len(messages) > 1:
        scope["turns"] = [_turn(item) for item in messages[:-1]]  # as they are
    about = {name: value for name, value in last.items() if name not in {"role", "content"}}
    if about:  # who asks ("name"), and fields that nobody has heard of
        scope["about"] = about
    if any(beside := _beside(last.get("content"))):
        scope["parts"] = beside
    return text, scope


def _read_turn(message: Mapping[str, Any]) -> Turn | None:
    """Return an earlier turn of user or assistant; None for one that is not plain text, or calls a tool."""
    content = message.get("content")
    text = text_of(content)
    if text is None or not text.strip() or any(_beside(content)) or any(message.get(name) for name in CALLS):
        return None
    return Turn(message["role"], text)


def _without_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal of a turn whose text is compared by meaning; fields of None say nothing."""
    return {name: value for name, value in message.items() if name != "content" and value is not None}


def _is_deep(body: Mapping[str, Any]) -> bool:
    """Say whether something lies more than `DEEPEST` levels below `body`."""
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        inner = chain.from_iterable(item.values() if isinstance(item, Mapping) else item for item in level)
        level = [item for item in inner if isinstance(item, (dict, list))]  # `Mapping` would take ten times as long
        if not level:
            return False
    return True


def _is_storable(body: Mapping[str, Any]) -> bool:
    written = json.dumps(body, ensure_ascii=False)
    return "\\u0000" not in written and is_storable(written)  # JSON writes NUL as an escape


def _reason_to_pass(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], allowed: Allowances) -> str:
    if not messages or messages[-1].get("role") != "user":
        return "the last message is not the user's"
    several = body.get("n")
    if several is not None and (not isinstance(several, int) or isinstance(several, bool)):
        return "n is no whole number"  # what the upstream makes of it is its own affair
    if several not in (None, 1) and not (allowed.several and several > 1):
        return "more than one answer is asked for"
    if not isinstance(body.get("stream"), bool | None):
        return "stream is neither true nor false"  # some take "false", and 0
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)) and temperature > allowed.temperature:
        return f"temperature {min(temperature, LARGEST):g} asks for variety"  # JSON's numbers may be larger
    if (body.get("tools") or body.get("functions")) and not allowed.tools:
        return "tools are offered"
    if _searches(body) and not allowed.tools:
        return "the web is searched"
    if body.get("modalities") not in (None, ["text"]) or body.get("audio"):
        return "more than text is asked for"
    return ""


def _searches(body: Mapping[str, Any]) -> bool:
    """Say whether the web is searched for the answer: by a field, or by the model's name (gpt-4o-search-preview)."""
    model = body.get("model")
    named = isinstance(model, str) and ("-search-" in model or model.endswith(("-search", ":online")))
    plugins = body.get("plugins")  # of OpenRouter
    plugged = isinstance(plugins, list) and any(isinstance(one, dict) and one.get("id") == "web" for one in plugins)
    return named or plugged or any(body.get(name) not in (None, False) for name in SEARCHING)


def _beside(content: object) -> list[dict[str, Any]]:
    """Return what each part of a text has beside its text: fields that nobody has heard of."""
    parts = content if isinstance(content, list) else []
    return [{name: value for name, value in part.items() if name not in {"type", "text"}} for part in parts]


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    text = text_of(message.get("content"))
    if text is not None and any(_beside(message.get("content"))):
        return dict(message)
    return {**message, "content": text if text is not None else message.get("content")}
