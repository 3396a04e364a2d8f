"""Language models behind one protocol: a list of prompts in, completions out as they are ready."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from embedsmith.artifacts import fingerprint
from embedsmith.errors import ConfigurationError


@dataclass(frozen=True)
class Prompt:
    """One call: the two messages that are sent, and which row and task they are for.

    Attributes:
        row: id of the row of the log.
        task: name of the list that the answer holds, e.g. "paraphrases".
        schema: JSON schema of the answer, for servers that hold a model to one; by default an object
            with a list of texts under `task`. Not part of the fingerprint.
    """

    system: str
    user: str
    row: str
    task: str
    schema: Mapping[str, Any] | None = field(default=None, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what is sent; row and task do not count."""
        return fingerprint([self.system, self.user])

    @property
    def answer_schema(self) -> Mapping[str, Any]:
        """The JSON schema that the answer should follow."""
        if self.schema is not None:
            return self.schema
        return object_schema({self.task: {"type": "array", "items": {"type": "string"}}})

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat messages in OpenAI form."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with exactly these properties, all required.

    >>> object_schema({"answer": {"type": "string"}})["required"]
    ['answer']
    """
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the model draws its answer; part of the key of a call."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: None when there is none.
        finish: "stop", "length" (cut at max_tokens), "filtered", "missing" (a recorded file lacks the
            row), "error" (the call failed for good; it is tried again in the next run) or "budget" (it was
            not made, since it could not be paid for) or "batched" (it is in a batch file).
        seconds: wall time of the call.
        detail: why the call failed for good, in the server's words; "" where it did not, or nobody said.
    """

    text: str | None
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    model: str = ""
    detail: str = ""


FAILURES = {"missing": "no-completion", "budget": "no-budget", "batched": "waits-for-batch"}


def name_failure(completion: Completion) -> str:
    """Return the reason, to be counted, why a completion has no text."""
    return FAILURES.get(completion.finish, "no-answer")


def describe_finish(completion: Completion) -> str:
    """Return how a call ended, and why where it failed, for a record.

    >>> describe_finish(Completion(None, "error", detail="status 400: too long"))
    'finish: error (status 400: too long)'
    """
    return f"finish: {completion.finish}" + (f" ({completion.detail})" if completion.detail else "")


class LanguageModel(Protocol):
    """Answers prompts. `name` is part of the key of a call: another name, another call."""

    name: str

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield (place in `prompts`, completion) as each is ready, in any order."""
        ...


def find_host(model: object) -> str | None:
    """Return the host that a model, of language or of embeddings, sends texts to; None where they stay on this machine.

    A model that sends them has its address as `base_url`.
    """
    host = urlsplit(getattr(model, "base_url", "")).hostname
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return None
    with contextlib.suppress(ValueError):
        return None if ipaddress.ip_address(host).is_loopback else host
    return host


def open_llm(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 256,
    timeout: float | None = None,
    retries: int | None = None,
) -> LanguageModel:
    """Return the language model that `spec` names.

    Args:
        spec: `openai:MODEL` (any OpenAI-compatible server with `base_url`), `local:PATH_OR_HUB_ID` (in this
            process; a .gguf file too) or `recorded:FILE` (completions written earlier).
        concurrency: most calls in flight at once, for servers; fewer where the server does not keep up.
        timeout: seconds for one call. retries: of a call that fails. For servers; default is what suits a long run.

    Raises:
        ConfigurationError: a spec of another form.
    """
    kind, _, name = spec.partition(":")
    if kind == "openai" and name:
        from embedsmith.llm.openai_chat import OpenAIChat

        patience = {"timeout": timeout, "retries": retries}
        given: Any = {key: value for key, value in patience.items() if value is not None}
        return OpenAIChat(name, base_url=base_url, api_key=api_key, concurrency=concurrency, **given)
    if kind == "local" and name:
        from embedsmith.llm.local import LocalModel

        return LocalModel(name)
    if kind == "recorded" and name:
        from embedsmith.llm.recorded import Recorded

        return Recorded(name)
    raise ConfigurationError(
        f"{spec!r} names no language model",
        expected="openai:MODEL, local:PATH_OR_HUB_ID or recorded:FILE",
        action=_tell_spec(spec, base_url),
    )


def _tell_spec(spec: str, base_url: str | None) -> str:
    """Return what a name without a kind was most likely meant as."""
    if "://" in spec:
        return "name the model (openai:MODEL), and its server by the base URL"
    if Path(spec).exists() or spec.endswith(".gguf"):
        kind = "recorded" if spec.removesuffix(".gz").endswith(".jsonl") else "local"
    else:
        kind = "local" if "/" in spec and base_url is None else "openai"
    return f"did you mean {kind}:{spec.rpartition(':')[2]}?"
