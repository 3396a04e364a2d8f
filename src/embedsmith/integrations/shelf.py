"""One library's shelf in a semantic cache: what may go on it, who may see it, and what happens when the cache fails.

Requests are read as the proxy reads them (`cache.chat`): a library turns its request into the body of a chat
request and gets the question or nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedsmith.cache.chat import Allowances, Passed, Question, read_chat
from embedsmith.cache.semantic import Lookup, SemanticCache
from embedsmith.errors import ConfigurationError, Repeats, describe_failure

LOG = logging.getLogger("embedsmith.integrations")
Namespace = str | Callable[[], str]
ENDINGS = ("finish_reason", "stop_reason", "stopReason", "done_reason")  # where models say why they stopped
FINISHED = frozenset({"stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"})
BROKEN = frozenset({"incomplete", "failed", "cancelled", "in_progress"})  # the `status` of a response
ASKED = ("n", "temperature", "tools", "functions", "modalities", "audio")  # what `read_chat` passes requests for
SPOILT = ("tool_calls", "function_call", "refusal", "audio", "parsed")  # an answer with one of these is no plain text


class Unreadable(Exception):
    """A request that cannot be read; the message says what of it, and holds no text of the user's."""


class Unstorable(Exception):
    """An answer that must not be stored; the message says why, and holds no text of the user's."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """A cache as one library uses it.

    Attributes:
        kind: the library's name. Its answers have a form of their own, so the name is part of the scope; it is
            also the tag of its entries.
        namespace: the tenant, or a function that is asked for it at every request (a context variable, say).
        scope: what else must be equal for an answer to serve.
        ttl: seconds an answer lives; None is the cache's own.
        allowed: what else may be answered from the cache.
    """

    cache: SemanticCache
    kind: str
    namespace: Namespace = "default"
    scope: Mapping[str, Any] = field(default_factory=dict)
    ttl: float | None = None
    allowed: Allowances = field(default_factory=Allowances)
    _told: Repeats = field(default_factory=Repeats, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.cache, (str, Path)):  # which the embeddings of the same library take
            raise ConfigurationError(
                f"the cache is {str(self.cache)!r}, a text",
                expected="a SemanticCache",
                action=f"pass SemanticCache({str(self.cache)!r})",
            )

    @property
    def tenant(self) -> str:
        """The namespace of the request at hand."""
        return self.namespace if isinstance(self.namespace, str) else self.namespace()

    def read(self, request: Callable[[], Mapping[str, Any]]) -> Question | None:
        """Return the question in the chat request that `request` builds; None when it is none for the cache."""
        try:
            # One text is what comes back from here, so a request for several, or with images, is none for the shelf.
            allowed = replace(self.allowed, images=False, several=False)
            question = read_chat(request(), allowed, by_meaning=self.cache.by_meaning)
        except Unreadable as error:
            question = Passed(str(error))
        except Exception as error:  # noqa: BLE001  its text may hold the user's; a cache takes nothing away
            question = Passed(f"the request cannot be read ({type(error).__name__})")
        if isinstance(question, Passed):
            LOG.info("%s: not for the cache: %s", self.kind, question.reason)
            return None
        return question

    def look_up(self, question: Question) -> Lookup | None:
        """Return hit or miss; None when the cache failed, which takes nothing away: the model answers."""
        try:
            return self.cache.lookup(question.text, namespace=self.tenant, scope=self._scope_of(question))
        except Exception as error:  # noqa: BLE001  whatever the store or the encoder raises
            self._warn("the cache failed, the model answers", error)
            return None

    def add(self, asked: Question | Lookup, answer: str) -> None:
        """Store the answer to a question, or to a lookup that missed."""
        try:
            if isinstance(asked, Lookup):
                self.cache.add(asked, answer, ttl=self.ttl, tags=[self.kind])
            else:
                scope = self._scope_of(asked)
                tags = [self.kind]
                self.cache.add(asked.text, answer, namespace=self.tenant, scope=scope, ttl=self.ttl, tags=tags)
        except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
            self._warn("an answer could not be stored", error)

    def _warn(self, told: str, error: Exception) -> None:
        line = f"{self.kind}: {told}: {describe_failure(error)}"
        if self._told.is_new(line):
            LOG.warning("%s", line)

    def _scope_of(self, question: Question) -> dict[str, Any]:
        return {"for": self.kind, "narrowed": dict(self.scope), **question.scope}

    def refuse(self, reason: str) -> None:
        """Say in the log why an answer is not stored."""
        LOG.info("%s: not stored: %s", self.kind, reason)

    def purge(self) -> int:
        """Remove the library's entries of the tenant at hand; return how many."""
        return self.cache.purge(namespace=self.tenant, tag=self.kind)


def pick_settings(*sources: object) -> dict[str, Any]:
    """Return the settings that decide whether a request is for the cache; a later source wins."""
    found: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, Mapping):
            found |= {name: source[name] for name in ASKED if source.get(name) is not None}
    return found


def plain_request(prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat request of a bare prompt.

    A prompt of one line is a question. In a longer one, instructions, documents and the question cannot be told
    apart, so all of it must be equal.
    """
    body = {**settings, "form": "prompt", "messages": [{"role": "user", "content": prompt}]}
    return {**body, "prompt": prompt} if "\n" in prompt.strip() else body


def describe(found: Lookup) -> dict[str, Any]:
    """Return what a hit tells its caller, as the headers of the proxy do."""
    similarity = found.decision.similarity
    return {
        "reason": found.decision.told,
        "similarity": round(similarity, 4) if similarity is not None else None,
        "age": round(found.age) if found.age is not None else None,
        "entry": found.decision.entry.id if found.decision.entry is not None else None,
    }


def require_finished(*told: object) -> None:
    """Raise `Unstorable` unless an answer with this metadata is one finished text; only mappings are looked at."""
    for facts in told:
        if not isinstance(facts, Mapping):
            continue
        for name in ENDINGS:
            ending = facts.get(name)
            if ending is not None and str(ending).rpartition(".")[2].lower() not in FINISHED:
                raise Unstorable(f"{name} is {ending}")
        if facts.get("status") in BROKEN:
            raise Unstorable(f"status is {facts['status']}")
        spoilt = next((name for name in SPOILT if facts.get(name)), None)
        if spoilt is not None:
            raise Unstorable(f"it has {spoilt}")
