"""The semantic cache in a Python program: look up, add, serve; what the decision needs is gathered here."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, get_args, overload

from embedsmith.cache.chat import read_messages
from embedsmith.cache.decision import Decision, Policy, decide, decide_exact, entry_id, partition_of
from embedsmith.cache.flights import Errand, Flights
from embedsmith.cache.functions import Function, wrap_function
from embedsmith.cache.judge import Judge
from embedsmith.cache.options import RuleOptions, read_tags, require_limits, require_text
from embedsmith.cache.recent import Recent
from embedsmith.cache.samples import SampleRule
from embedsmith.cache.settings import open_encoder
from embedsmith.cache.stores import Entry, Match, Order, Store, StoreError, mismatch, open_store, require_store
from embedsmith.cache.verdicts import Verdicts, open_feedback
from embedsmith.choices import Turns
from embedsmith.conversation import ROLES
from embedsmith.encoder import TOO_LONG, UNKNOWN, Embeddings, Encoder, dimension_of, find_unread
from embedsmith.errors import ConfigurationError, InputError, Repeats, describe_failure
from embedsmith.llm import LanguageModel
from embedsmith.verifier import Verifier

LOG = logging.getLogger("embedsmith.cache")
Asked = str | Sequence[Mapping[str, Any]]  # a question, or chat messages of which the last is the user's
SHARE = 100  # limits are checked after every hundredth part of `max_entries` additions; the dead go at every hundredth


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a lookup found.

    Attributes:
        decision: hit or miss, and why.
        text, namespace, partition, id: of the question that was asked.
        vector: its embedding, so that an addition need not encode it again; None after an exact hit.
        age: seconds since the answer was stored; None for a miss.
        probability: that one answer serves the question and the nearest one stored, as the calibration learnt it;
            None without a calibration, in the exact tier, and where nothing was stored.
        seconds: what the lookup took, encoding included. encoding: what of it the encoder took.
    """

    decision: Decision
    text: str
    namespace: str
    partition: str
    id: str
    vector: Embeddings | None = field(repr=False)
    age: float | None
    seconds: float
    encoding: float = 0.0
    probability: float | None = None

    @property
    def hit(self) -> bool:
        """Say whether there is an answer to serve."""
        return self.decision.hit

    @property
    def answer(self) -> str | None:
        """The stored answer, None for a miss."""
        return self.decision.entry.answer if self.decision.entry is not None else None


UNDECIDED = Decision(None, None, None, "not looked up")


class SemanticCache:
    """A cache that serves an answer to every question it answers, and to no other. Safe for many threads.

    >>> cache = SemanticCache("runs/support/model", store="sqlite:///cache.db")       # doctest: +SKIP
    >>> cache.serve("how do i freeze my card", ask_the_llm)                          # doctest: +SKIP

    Args:
        model: a folder that `embedsmith run` wrote, or anything with `encode` (then `fingerprint` names it).
        store: see `open_store`. For one that a URL names, an encoder that does not tell its `dimension` encodes a word.
            A server that says nothing is a `StoreError` of `lookup` and `add` within seconds
            (Redis 5; PostgreSQL 5, or 20 for `add`, and 5 for a connection); `serve` then computes the answer.
        threshold: cosine from which on answers are served; default is that of the model's calibration.json.
        calibration: another calibration file; it must be of this very model.
        namespaces: thresholds of single namespaces, as `recalibrate` writes them; default is the file beside the
            calibration, if there is one. A threshold given by hand counts for all, unless this file is named too.
        policy: other rules altogether, in the place of threshold, calibration, namespaces, guard, verifier and turns.
        guard: False serves candidates that differ in a fact.
        turns: what becomes of the earlier turns of conversations: "fingerprint" wants them equal, "meaning" compares
            them with the question, "auto" does so where model and calibration carry it (`settings.settle_turns`).
        verifier: the folder of a verifier, for a calibration that was made with it.
        ttl: seconds an answer lives, unless an addition says otherwise. A hit does not extend it.
        max_entries, max_bytes: limits of the store, all tenants together (checked after every hundredth).
        eviction: what goes first: "lru", "lfu" or "size".
        feedback: a file to which judged pairs are appended, to train and recalibrate on (`cache.feedback`).
        sample: draws a share of the lookups to be judged (`cache.samples`); needs `feedback`. None draws nothing.
        judge: a language model that judges the samples in the background. It is sent both questions of each.
        delta: most wrong answers among those served, for the drift alarm; default is what the calibration promises,
            .05 without one.
        clock: Unix seconds.

    Attributes:
        turns: what becomes of earlier turns, and why, in a sentence.

    Raises:
        ConfigurationError: no threshold is known, a policy comes with its parts, a limit is none, or turns cannot be
            compared by meaning.
        InputError: the calibration is of another model.
        ModelMismatch: the store holds vectors of another model.
    """

    def __init__(
        self,
        model: Encoder | Path | str,
        *,
        store: Store | str = "memory://",
        threshold: float | None = None,
        calibration: Path | str | None = None,
        namespaces: Path | str | None = None,
        policy: Policy | None = None,
        guard: bool = True,
        turns: Turns = "auto",
        verifier: Verifier | Path | str | None = None,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        eviction: Order = "lru",
        fingerprint: str | None = None,
        feedback: Path | str | None = None,
        sample: SampleRule | None = None,
        judge: LanguageModel | None = None,
        delta: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_limits(ttl=ttl, max_entries=max_entries, max_bytes=max_bytes)
        if eviction not in get_args(Order):
            raise ConfigurationError(f"eviction by {eviction!r}", expected=" or ".join(get_args(Order)))
        rules = RuleOptions(
            policy,
            threshold=threshold,
            calibration=calibration,
            namespaces=namespaces,
            verifier=verifier,
            guard=guard,
            turns=turns,
            delta=delta,
        )
        if isinstance(store, str):
            require_store(store)
        file = open_feedback(feedback, sample, judge)
        self.encoder, self.fingerprint = open_encoder(model, fingerprint)
        self.name = str(model) if isinstance(model, (str, Path)) else type(model).__name__  # for people
        promised, self.turns = rules.settle(model, self.encoder, self.fingerprint)
        self.policy, self.calibration = promised.policy, promised.calibration
        self._verdicts = Verdicts(file, sample, promised, encoder=self.encoder, model=self.fingerprint, clock=clock)
        self.samples = self._verdicts.samples
        if isinstance(store, str):
            store = open_store(store, dimension=dimension_of(self.encoder), model=self.fingerprint)
        _require_model(store, self.fingerprint)
        self.store = store
        self.ttl, self.max_entries, self.max_bytes, self.eviction = ttl, max_entries, max_bytes, eviction
        self._recent, self._flights = Recent(self.encoder), Flights()
        self._clock, self._lock, self._added, self._told = clock, threading.Lock(), 0, Repeats()
        self.judge = Judge(self.samples, judge) if judge is not None and self.samples is not None else None

    @property
    def by_meaning(self) -> bool:
        """Say whether conversations are compared by meaning, earlier turns included."""
        return self.policy.conversations is not None

    def lookup(self, question: Asked, *, namespace: str = "default", scope: Mapping[str, Any] | None = None) -> Lookup:
        """Return hit or miss for a question.

        Args:
            question: a text, or chat messages ({"role": …, "content": …}) that end with the user's, read as the proxy
                reads them.
            namespace: the tenant; no lookup sees another's entries.
            scope: all else that must be equal for an answer to serve (model, system prompt, language, ...).
        """
        found = self.look_again(self._ask(question, namespace, scope))
        self._count_use(found.decision.entry)
        return found

    def _ask(self, question: Asked, namespace: str, scope: Mapping[str, Any] | None) -> Lookup:
        if scope is not None and not isinstance(scope, Mapping):
            raise InputError(f"scope is a {type(scope).__name__}", expected="a dict of what must be equal, or None")
        text: Any = question
        if not isinstance(question, (str, Mapping)) and isinstance(question, Iterable):
            text, scope = self._read(question, scope)
        require_text(text, namespace)
        partition = partition_of(namespace, scope) if scope else _whole_of(namespace)
        return Lookup(UNDECIDED, text, namespace, partition, entry_id(partition, text), None, None, 0.0)

    def _read(
        self, messages: Sequence[Mapping[str, Any]], scope: Mapping[str, Any] | None
    ) -> tuple[str, Mapping[str, Any] | None]:
        """Return the text of messages, and the scope with what of them must be equal; the caller may use its name."""
        listed = list(messages)
        if not listed or not all(isinstance(item, Mapping) for item in listed) or listed[-1].get("role") != ROLES[0]:
            raise InputError("the messages do not end with one of the user", expected="a list of chat messages")
        text, about = read_messages(listed, by_meaning=self.by_meaning)
        if not text:
            raise InputError("the last message is not text", expected="a question")
        if not about:
            return text, scope
        own = {"narrowed": scope} if scope and "messages" in scope else scope or {}
        return text, {**own, "messages": about}

    def _count_use(self, entry: Entry | None) -> None:
        """Note that an entry is served; where that fails, it is served all the same."""
        if entry is None:
            return
        try:
            self.store.touch(entry.id, self._clock())
        except Exception as error:  # noqa: BLE001  whatever the store raises
            self._warn("a use of an entry could not be counted", error)

    def look_again(self, asked: Lookup) -> Lookup:
        """Return what a question finds now; it is not encoded again, and its use not counted."""
        began, now = time.perf_counter(), self._clock()
        vector, encoding = asked.vector, asked.encoding
        decision = decide_exact(self.store.get(asked.id, now))
        if decision is None and (unread := self._find_unread(asked)):
            decision = Decision(None, None, None, unread)
        elif decision is None:
            if vector is None:
                started = time.perf_counter()
                vector = self._recent.encode(asked.namespace, asked.text)
                encoding += time.perf_counter() - started
            policy = self.policy.within(asked.namespace, asked.text)
            matches = self._near(asked.partition, vector, policy, now)
            self.hear()
            refused = self._verdicts.refusals.among(asked.text, matches, asked.namespace)
            decision = decide(asked.text, matches, policy, refused)
            # A hit is drawn when it is found, a miss when it is first looked up: each lookup has one chance.
            chance = decision.hit or asked.decision is UNDECIDED
            if chance and self.samples is not None and self.samples.draw():
                self.samples.offer(asked.text, asked.namespace, matches, decision, policy, refused)
        age = max(now - decision.entry.created, 0.0) if decision.entry is not None else None
        seconds = asked.seconds + time.perf_counter() - began
        about = asked.text, asked.namespace, asked.partition, asked.id  # a `replace` costs three times as much
        return Lookup(decision, *about, vector, age, seconds, encoding, self._probability(decision))

    def hear(self) -> None:
        """Take the verdicts that other processes have added to the feedback file, looking at its size now and then.

        Lookups do that by themselves; who only shows what is known of the answers does it before.
        """
        self._verdicts.hear()

    def _find_unread(self, asked: Lookup) -> str:
        """Return why the question's vector says nothing, "" where it does; a question is read once for that."""
        if asked.vector is not None:
            return ""
        known = asked.decision.reason
        return known if known in {TOO_LONG, UNKNOWN} else find_unread(self.encoder, asked.text)

    def _near(self, partition: str, vector: Embeddings, policy: Policy, now: float) -> list[Match]:
        """Return the closest entry and all others that could be served or sampled, closest first."""
        floor = policy.floor - (self.samples.rule.margin if self.samples is not None else 0.0)
        found = self.store.search(partition, vector, policy.candidates, now, floor=floor)
        whole = [match for match in found if not find_unread(self.encoder, match.entry.text)]
        if len(whole) < len(found):  # the closest of the others may lie below the floor
            found = self.store.search(partition, vector, policy.candidates, now)
            whole = [match for match in found if not find_unread(self.encoder, match.entry.text)]
        return whole

    def _probability(self, decision: Decision) -> float | None:
        if self.calibration is None or decision.similarity is None or decision.tier == "exact":
            return None
        if decision.vetoed and not decision.hit:
            return None  # what was learnt is for pairs that the guard lets pass
        return self.calibration.probability(decision.moved if decision.moved is not None else decision.similarity)

    def add(
        self,
        question: Lookup | Asked,
        answer: str,
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> Entry:
        """Store an answer and return its entry; the same question in the same scope is replaced.

        Args:
            question: the lookup that missed (its vector is used again), or a text (or messages) with `namespace` and
                `scope`.
            ttl: seconds the answer lives, above 0; None is the cache's own.

        Raises:
            InputError: a text that not every store can hold (NUL, half a character).
        """
        require_limits(ttl=ttl)
        require_text(answer)
        tags = read_tags(tags)
        now = self._clock()
        if not isinstance(question, Lookup):
            question = self._ask(question, namespace, scope)
        vector = question.vector
        if vector is None:
            vector = self._recent.encode(question.namespace, question.text)
        life = ttl if ttl is not None else self.ttl
        expires = now + life if life is not None else None
        about = question.id, question.namespace, question.partition, question.text
        entry = Entry(*about, answer, vector, now, expires, tags)
        self.store.put([entry])
        self._keep_limits(now)
        return entry

    def _keep_limits(self, now: float) -> None:
        """Remove what is too much, and what has expired: that costs each search whose neighbour it is.

        The first addition removes both, too: a store whose processes are short would never be rid of them.
        """
        with self._lock:
            earlier, self._added = self._added, self._added + 1
        limited = self.max_entries is not None or self.max_bytes is not None
        due = limited and earlier % max((self.max_entries or SHARE) // SHARE, 1) == 0
        if due or earlier % SHARE == 0:
            self.store.expire(now)
        if due:
            self.store.evict(entries=self.max_entries, bytes=self.max_bytes, order=self.eviction)

    def serve(
        self,
        text: str,
        compute: Callable[[str], str],
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> str:
        """Return the stored answer, or that of `compute(text)`, which is stored.

        Single flight: while one caller computes, others with the same question wait for it. When it fails,
        all of them get its error, and nothing is stored; when it is interrupted, one of them computes. Where `compute`
        itself asks the same question again, that is computed: it would wait for itself.
        A cache that fails takes nothing away: what `compute` returns is returned, and the log says what failed.

        Raises:
            ConfigurationError: `compute` is an `async def`, whose answer there is only once it is awaited.
        """
        if inspect.iscoroutinefunction(compute):
            raise ConfigurationError(
                "compute is an async def, and serve awaits nothing",
                expected="a function that returns the answer, a str",
                action="await cache.serve_async(...)",
            )
        require_limits(ttl=ttl)
        tags = read_tags(tags)
        asked = self._ask(text, namespace, scope)
        found = self._find(asked)
        if found is not None and found.answer is not None:
            return found.answer
        keep = partial(self._keep, found, ttl=ttl, tags=tags)
        return self._flights.run(Errand(asked.id, partial(self._find_same, found), partial(compute, text), keep))

    async def serve_async(
        self,
        text: str,
        compute: Callable[[str], Awaitable[str]],
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> str:
        """Return what `serve` returns, without blocking the event loop; both share their flights."""
        require_limits(ttl=ttl)
        tags = read_tags(tags)
        asked = self._ask(text, namespace, scope)
        found = await self._flights.aside(self._find, asked)
        if found is not None and found.answer is not None:
            return found.answer
        keep = partial(self._keep, found, ttl=ttl, tags=tags)
        errand = Errand(asked.id, partial(self._find_same, found), partial(compute, text), keep)
        return await self._flights.run_async(errand)

    def _find(self, asked: Lookup) -> Lookup | None:
        """Return what a question finds; None when the cache failed."""
        try:
            found = self.look_again(asked)
        except Exception as error:  # noqa: BLE001  whatever the store or the encoder raises
            self._warn("the cache failed, the answer is computed", error)
            return None
        self._count_use(found.decision.entry)
        return found

    def _find_same(self, missed: Lookup | None) -> str | None:
        """Return the answer that another flight has stored since the lookup missed."""
        if missed is None:
            return None
        try:
            entry = self.store.get(missed.id, self._clock())
        except Exception as error:  # noqa: BLE001
            self._warn("the cache failed, the answer is computed", error)
            return None
        self._count_use(entry)
        return entry.answer if entry is not None else None

    def _keep(self, missed: Lookup | None, answer: str, *, ttl: float | None, tags: Sequence[str]) -> None:
        """Store an answer; where the lookup has failed already, the cache is not asked again."""
        if missed is None:
            return
        if not isinstance(answer, str):
            LOG.warning("an answer is not stored: it is a %s, and only texts (str) are", type(answer).__name__)
            return
        try:
            self.add(missed, answer, ttl=ttl, tags=tags)
        except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
            self._warn("an answer could not be stored", error)

    def _warn(self, told: str, error: Exception) -> None:
        """Log what failed; not once for each question of a busy hour with a full disk."""
        line = f"{told}: {describe_failure(error)}"
        if self._told.is_new(line):
            LOG.warning("%s", line)

    @overload
    def cached(self, function: Function, /) -> Function: ...

    @overload
    def cached(
        self,
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> Callable[[Function], Function]: ...

    def cached(
        self,
        function: Callable[..., Any] | None = None,
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> Any:
        """Return a `def` or `async def` behind the cache; a decorator, with or without the options of `serve`.

        The function's first argument is the question; its name and all other arguments are part of the scope (in a
        script its file too).
        What it takes from elsewhere (a closure, a global) is not seen: name it in `scope` when it decides the answer.
        A bound method wants `scope` or `namespace`, which tells its object from others; `scope={}` says that all of
        them answer alike.

        >>> @cache.cached(ttl=60)                                                     # doctest: +SKIP
        ... async def answer(question: str, language: str = "en") -> str: ...
        """
        require_limits(ttl=ttl)
        tags = read_tags(tags)
        wrap = partial(
            wrap_function,
            serve=partial(self.serve, namespace=namespace, ttl=ttl, tags=tags),
            serve_async=partial(self.serve_async, namespace=namespace, ttl=ttl, tags=tags),
            scope=scope or {},
            told=scope is not None or namespace != "default",
        )
        return wrap if function is None else wrap(function)

    @property
    def keeps_marks(self) -> bool:
        """Say whether there is a file that marked pairs go into."""
        return self._verdicts.kept

    def mark_wrong(self, asked: str, id: str, stored: str, *, namespace: str = "default") -> bool:
        """Say that entry `id`, for the question `stored`, did not answer `asked`: the entry goes.

        Neither question is served the other's answer again, in this namespace and with this model (`cache.refusals`).
        Returns whether the pair is kept, which is so with a feedback file; it is kept before the entry goes.
        """
        kept = self._verdicts.mark(asked, stored, 0, namespace)
        self.store.delete([id])
        return kept

    def judge_sample(self, number: int, label: int) -> bool:
        """Record a person's verdict on a sample, 1 where one answer serves both questions, else 0.

        A wrong answer that was served goes, as in `mark_wrong`. Returns False where there is no such sample.

        Raises:
            OSError: the verdict cannot be written; the sample waits on.
        """
        sample = self._verdicts.settle(number, label)
        if sample is not None and label == 0 and sample.served:
            self.store.delete([sample.stored_id])
        return sample is not None

    def mark_same(self, asked: str, stored: str, *, namespace: str = "default") -> bool:
        """Say that one answer serves both texts although the cache did not see it; return whether that is kept."""
        return self._verdicts.mark(asked, stored, 1, namespace)

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        """Remove the entries that have this namespace, or one below it ("NAMESPACE/…"), and this tag (none given: all).

        Returns how many. What people judged stays: labels outlive answers that are out of date (`forget` removes it).
        """
        gone = self.store.purge(namespace=namespace, tag=tag)
        self._recent.forget()
        return gone

    def forget(self, namespace: str) -> int:
        """Remove the judged pairs of a namespace, and of all below it, from the feedback file; return how many.

        With `purge` that is all that is kept of a tenant. Its samples that wait for a verdict go, too. What people
        marked is refused on until the process ends: of these pairs there are only hashes. Samples that wait in another
        process, and other files, are not reached from here.

        Raises:
            OSError: the file cannot be written.
        """
        self._recent.forget()
        return self._verdicts.forget(namespace)

    def __enter__(self) -> Self:
        """Return the cache; it is closed on leaving."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the judge and close the store; where its last uses cannot be written, the log says so."""
        if self.judge is not None:
            self.judge.close()
        try:
            self.store.close()
        except StoreError as error:
            self._warn("the store is closed without the last uses of its entries", error)


@lru_cache(maxsize=1024)
def _whole_of(namespace: str) -> str:
    """Return the partition of a namespace without a scope."""
    return partition_of(namespace, {})


def _require_model(store: Store, fingerprint: str) -> None:
    """Raise `ModelMismatch` for a store that was opened for another model; one of the user's own need not tell."""
    found = getattr(store, "model", fingerprint)
    if found != fingerprint:
        dimension = getattr(store, "dimension", 0)
        raise mismatch(store.url, (found, dimension), (fingerprint, dimension))
