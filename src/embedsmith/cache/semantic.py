"""The semantic cache in a Python program: look up, add, serve; what the decision needs is gathered here."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

from embedsmith.artifacts import require_file
from embedsmith.cache.chat import read_messages
from embedsmith.cache.decision import Decision, Policy, decide, decide_exact, entry_id, partition_of
from embedsmith.cache.feedback import Feedback, Judged
from embedsmith.cache.flights import Abandoned, Flights
from embedsmith.cache.functions import Function, read_function
from embedsmith.cache.judge import Judge
from embedsmith.cache.recent import Recent
from embedsmith.cache.refusals import Refusals
from embedsmith.cache.samples import SampleRule, Samples
from embedsmith.cache.settings import Promised, count_taught, open_encoder, read_promises, require_cosine, settle_turns
from embedsmith.cache.stores import Entry, Match, Order, Store, mismatch, open_store, require_store
from embedsmith.choices import Turns
from embedsmith.conversation import ROLES
from embedsmith.encoder import TOO_LONG, UNKNOWN, Embeddings, Encoder, dimension_of, find_unread
from embedsmith.errors import ConfigurationError, InputError, describe_failure, require_share
from embedsmith.evaluation import similarities_of
from embedsmith.examples import LabelledPair
from embedsmith.llm import LanguageModel
from embedsmith.text import is_storable
from embedsmith.verifier import Verifier, read_report

LOG = logging.getLogger("embedsmith.cache")
Result = TypeVar("Result")
Asked = str | Sequence[Mapping[str, Any]]  # a question, or chat messages of which the last is the user's
HEARING = 1.0  # seconds between two looks at the feedback file, which other processes may add to
ENDLESS = 1 << 63  # of a limit: seconds, entries or bytes that no store counts to; nothing overflows below
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
        parts = {"threshold": threshold, "calibration": calibration, "namespaces": namespaces, "verifier": verifier}
        given = [name for name, part in parts.items() if part is not None]
        given += [name for name, changed in {"guard": not guard, "turns": turns != "auto"}.items() if changed]
        if policy is not None and given:
            raise ConfigurationError(
                f"a policy together with {', '.join(given)}",
                expected="a policy, or what one is made of",
                action="put it into the policy, or leave the policy out",
            )
        require_cosine(threshold)
        if delta is not None:
            require_share("delta", delta)
        for file in (calibration, namespaces):
            if file is not None:
                require_file(file)
        if isinstance(verifier, (str, Path)):
            read_report(Path(verifier))
        if isinstance(store, str):
            require_store(store)
        _require_room_for_verdicts(sample, feedback, judge)
        self._feedback = Feedback(feedback) if feedback is not None else None
        if self._feedback is not None:
            self._feedback.require_place()
        self.encoder, self.fingerprint = open_encoder(model, fingerprint)
        self._recent = Recent(self.encoder)
        self.name = str(model) if isinstance(model, (str, Path)) else type(model).__name__  # for people
        if policy is None:
            promise = read_promises(
                model,
                fingerprint=self.fingerprint,
                threshold=threshold,
                calibration=calibration,
                namespaces=namespaces,
                verifier=verifier,
                encoder=self.encoder,
                guard=guard,
            )
            taught = count_taught(model)
            policy, self.turns = settle_turns(
                promise.policy, turns, taught=taught, calibration=promise.calibration, model=model
            )
        else:
            promise = Promised(policy)
            by = "must be equal" if policy.conversations is None else "are compared by meaning"
            self.turns = f"earlier turns {by}, as the rules given say"
        self.calibration = promise.calibration
        self.policy = policy
        self._refusals, self._heard = Refusals(), time.monotonic()
        judged = self._feedback.read() if self._feedback is not None else []
        self._refusals.recall(judged, self.fingerprint)
        if self._feedback is not None:
            self._feedback.listen(lambda rows, _: self._refusals.recall(rows, self.fingerprint))
        promised = promise.delta if delta is None else delta
        self.samples = _open_samples(self, sample, self._feedback, judged, promised, promise.since, clock)
        if isinstance(store, str):
            store = open_store(store, dimension=dimension_of(self.encoder), model=self.fingerprint)
        _require_model(store, self.fingerprint)
        self.store = store
        self.ttl, self.max_entries, self.max_bytes, self.eviction = ttl, max_entries, max_bytes, eviction
        self._clock = clock
        self._lock = threading.Lock()
        self._flights = Flights()
        # Its own, since threads of the loop may all wait, in `serve`, for a coroutine that needs one of them to land.
        self._aside = ThreadPoolExecutor(thread_name_prefix="embedsmith-cache")
        self._added = 0
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
        _require_text(text, namespace)
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
            LOG.warning("a use of an entry could not be counted: %s", describe_failure(error))

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
            self._hear()
            refused = self._refusals.among(asked.text, matches, asked.namespace)
            decision = decide(asked.text, matches, policy, refused)
            # A hit is drawn when it is found, a miss when it is first looked up: each lookup has one chance.
            chance = decision.hit or asked.decision is UNDECIDED
            if chance and self.samples is not None and self.samples.draw():
                self._sample(self.samples, asked, matches, decision, refused)
        age = now - decision.entry.created if decision.entry is not None else None
        seconds = asked.seconds + time.perf_counter() - began
        about = asked.text, asked.namespace, asked.partition, asked.id  # a `replace` costs three times as much
        return Lookup(decision, *about, vector, age, seconds, encoding, self._probability(decision))

    def _hear(self) -> None:
        """Take the verdicts that other processes have added to the feedback file, looking at its size now and then."""
        now = time.monotonic()
        if self._feedback is None or now - self._heard < HEARING:
            return
        self._heard = now
        self._feedback.hear()

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

    def _sample(
        self, samples: Samples, asked: Lookup, matches: Sequence[Match], decision: Decision, refused: Collection[str]
    ) -> None:
        """Queue what is served for a drawn lookup, or would be were the threshold lower by the margin."""
        policy = self.policy.within(asked.namespace, asked.text)
        floor = policy.threshold - samples.rule.margin
        if not decision.hit:  # the nearest that the guard lets pass, as the verifier moves it
            lower = replace(policy, threshold=floor - policy.reach, verifier=None)
            decision = decide(asked.text, matches, lower, refused)
        entry, cosine = decision.entry, decision.moved if decision.moved is not None else decision.similarity
        if entry is None or cosine is None:
            return
        if decision.moved is None and policy.doubts(cosine):
            cosine = policy.move(asked.text, entry.text, cosine)
        if cosine >= floor:
            samples.put(
                asked=asked.text,
                stored=entry.text,
                stored_id=entry.id,
                cosine=cosine,
                threshold=policy.threshold,
                namespace=asked.namespace,
            )

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
        _require_text(answer)
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
        while (flight := self._flights.board(asked.id)) is not None:
            if self._flights.is_own(flight):
                return compute(text)
            with suppress(Abandoned):
                return flight.result()
        with self._flights.lead(asked.id) as land:
            answer = self._find_same(found)
            if answer is None:
                answer = compute(text)
                land(answer)
                self._keep(found, answer, ttl, tags)
            else:
                land(answer)
        return answer

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
        found = await self._run_aside(self._find, asked)
        if found is not None and found.answer is not None:
            return found.answer
        while (flight := self._flights.board(asked.id)) is not None:
            if self._flights.is_own(flight):
                return await compute(text)
            with suppress(Abandoned):
                return await asyncio.shield(asyncio.wrap_future(flight))  # whoever stops waiting stops nobody else
        with self._flights.lead(asked.id) as land:
            answer = await self._run_aside(self._find_same, found)
            if answer is None:
                answer = await compute(text)
                land(answer)
                await self._run_aside(self._keep, found, answer, ttl, tags)
            else:
                land(answer)
        return answer

    async def _run_aside(self, work: Callable[..., Result], *args: Any) -> Result:
        """Return what `asyncio.to_thread` does, from a thread that never waits for a flight."""
        run = partial(copy_context().run, work, *args)
        return await asyncio.get_running_loop().run_in_executor(self._aside, run)

    def _find(self, asked: Lookup) -> Lookup | None:
        """Return what a question finds; None when the cache failed."""
        try:
            found = self.look_again(asked)
        except Exception as error:  # noqa: BLE001  whatever the store or the encoder raises
            LOG.warning("the cache failed, the answer is computed: %s", describe_failure(error))
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
            LOG.warning("the cache failed, the answer is computed: %s", describe_failure(error))
            return None
        self._count_use(entry)
        return entry.answer if entry is not None else None

    def _keep(self, missed: Lookup | None, answer: str, ttl: float | None, tags: Sequence[str]) -> None:
        """Store an answer; where the lookup has failed already, the cache is not asked again."""
        if missed is None:
            return
        if not isinstance(answer, str):
            LOG.warning("an answer is not stored: it is a %s, and only texts (str) are", type(answer).__name__)
            return
        try:
            self.add(missed, answer, ttl=ttl, tags=tags)
        except Exception as error:  # noqa: BLE001  the answer is there, whatever the store says
            LOG.warning("an answer could not be stored: %s", describe_failure(error))

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
        options = {"namespace": namespace, "ttl": ttl, "tags": read_tags(tags)}
        told = scope is not None or namespace != "default"
        wrap = partial(self._wrap, scope=scope or {}, options=options, told=told)
        return wrap if function is None else wrap(function)

    def _wrap(
        self, function: Callable[..., Any], scope: Mapping[str, Any], options: Mapping[str, Any], told: bool
    ) -> Any:
        reader = read_function(function, told=told)
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def answer_async(*args: Any, **kwargs: Any) -> str:
                call = reader.read(args, kwargs, scope)
                return await self.serve_async(
                    call.text, lambda _: function(*call.args, **call.kwargs), scope=call.scope, **options
                )

            return answer_async

        @wraps(function)
        def answer(*args: Any, **kwargs: Any) -> str:
            call = reader.read(args, kwargs, scope)
            return self.serve(call.text, lambda _: function(*call.args, **call.kwargs), scope=call.scope, **options)

        return answer

    @property
    def keeps_marks(self) -> bool:
        """Say whether there is a file that marked pairs go into."""
        return self._feedback is not None

    def mark_wrong(self, asked: str, id: str, stored: str, *, namespace: str = "default") -> bool:
        """Say that entry `id`, for the question `stored`, did not answer `asked`: the entry goes.

        Neither question is served the other's answer again, in this namespace and with this model (`cache.refusals`).
        Returns whether the pair is kept, which is so with a feedback file; it is kept before the entry goes.
        """
        kept = self._remember(asked, stored, 0, namespace)
        self.store.delete([id])
        return kept

    def judge_sample(self, number: int, label: int) -> bool:
        """Record a person's verdict on a sample, 1 where one answer serves both questions, else 0.

        A wrong answer that was served goes, as in `mark_wrong`. Returns False where there is no such sample.

        Raises:
            OSError: the verdict cannot be written; the sample waits on.
        """
        sample = self.samples.settle(number, label) if self.samples is not None else None
        if sample is None:
            return False
        self._refusals.note(sample.asked, sample.stored, label, sample.namespace)
        if label == 0 and sample.served:
            self.store.delete([sample.stored_id])
        return True

    def mark_same(self, asked: str, stored: str, *, namespace: str = "default") -> bool:
        """Say that one answer serves both texts although the cache did not see it; return whether that is kept."""
        return self._remember(asked, stored, 1, namespace)

    def _remember(self, asked: str, stored: str, label: int, namespace: str) -> bool:
        _require_text(asked, stored, namespace)
        if self._feedback is None:
            self._refusals.note(asked, stored, label, namespace)
            return False
        (cosine,) = similarities_of(self.encoder, [LabelledPair(asked, stored, label)])
        vetoed = self.policy.guard is not None and self.policy.guard(asked, stored) is not None
        vetoed = vetoed or any(find_unread(self.encoder, text) for text in (asked, stored))
        self._feedback.append(
            Judged(
                sentence1=asked,
                sentence2=stored,
                label=label,
                cosine=-1.0 if vetoed else float(cosine),
                namespace=namespace,
                marked=self._clock(),
                model=self.fingerprint,
            )
        )
        self._refusals.note(asked, stored, label, namespace)
        if self.samples is not None:
            self.samples.decide(asked, stored, label, namespace)
        return True

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
        if self.samples is not None:
            self.samples.forget(namespace)
        return self._feedback.remove(namespace) if self._feedback is not None else 0

    def close(self) -> None:
        """Stop the judge and close the store."""
        if self.judge is not None:
            self.judge.close()
        self.store.close()


@lru_cache(maxsize=1024)
def _whole_of(namespace: str) -> str:
    """Return the partition of a namespace without a scope."""
    return partition_of(namespace, {})


def require_limits(**limits: float | None) -> None:
    """Raise `ConfigurationError` unless each limit is None (there is none) or a number above 0 and below `ENDLESS`."""
    for name, limit in limits.items():
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < ENDLESS):
            raise ConfigurationError(
                f"{name} is {limit!r:.80}",
                expected="a number above 0, and below 2 to the 63rd",
                action=f"leave {name} out for no limit; to keep nothing, do without the cache",
            )


def read_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of an entry, each once.

    Raises:
        InputError: they are one text, whose letters would be the tags, or one of them is none or empty.
    """
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise InputError(f"tags are {tags!r}", expected='a list of texts that are not empty, such as ["faq"]')
    _require_text(*tags)
    return tuple(dict.fromkeys(tags))


def _require_text(*texts: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{text!r:.80} is a {type(text).__name__}", expected="a text (str)")
        if not is_storable(text):
            raise InputError(f"{text[:80]!r} holds NUL or half a character", expected="text that UTF-8 can hold")


def _require_model(store: Store, fingerprint: str) -> None:
    """Raise `ModelMismatch` for a store that was opened for another model; one of the user's own need not tell."""
    found = getattr(store, "model", fingerprint)
    if found != fingerprint:
        dimension = getattr(store, "dimension", 0)
        raise mismatch(store.url, (found, dimension), (fingerprint, dimension))


def _require_room_for_verdicts(
    rule: SampleRule | None, feedback: Path | str | None, judge: LanguageModel | None
) -> None:
    """Raise `ConfigurationError` before a model is loaded, which takes seconds."""
    if rule is not None and feedback is None:
        raise ConfigurationError(
            "samples are drawn, and there is no file for the verdicts", expected="a feedback file (--feedback FILE)"
        )
    if judge is not None and rule is None:
        raise ConfigurationError("a judge, and nothing to judge", expected="a share of the lookups to sample")


def _open_samples(
    cache: SemanticCache,
    rule: SampleRule | None,
    feedback: Feedback | None,
    judged: Sequence[Judged],
    delta: float,
    since: Mapping[str, float],
    clock: Callable[[], float],
) -> Samples | None:
    if rule is None or feedback is None:
        return None
    return Samples(
        rule,
        feedback,
        judged,
        model=cache.fingerprint,
        threshold_for=cache.policy.threshold_for,
        delta=delta,
        since=since,
        clock=clock,
    )
