"""The semantic cache in a Python program: look up, add, serve; what the decision needs is gathered here."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, overload

from embedsmith.cache.decision import Decision, Policy, decide, decide_exact, entry_id, partition_of
from embedsmith.cache.functions import Function, read_function
from embedsmith.cache.stores import Entry, Order, Store, open_store
from embedsmith.calibration import Calibration, read_calibration
from embedsmith.encoder import Embeddings, Encoder, reads_whole
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.text import is_storable
from embedsmith.verifier import Adjustment, OnnxVerifier, Verifier

SHARE = 100  # the limits are checked after every hundredth part of `max_entries` additions


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
    vector: Embeddings | None
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
        store: see `open_store`.
        threshold: cosine from which on answers are served; default is that of the model's calibration.json.
        calibration: another calibration file; it must be of this very model.
        policy: other rules altogether; `threshold` and `guard` are then those of the policy.
        guard: False serves candidates that differ in a fact.
        verifier: the folder of a verifier, for a calibration that was made with it.
        ttl: seconds an answer lives, unless an addition says otherwise. A hit does not extend it.
        max_entries, max_bytes: limits of the store, all tenants together (checked after every hundredth).
        eviction: what goes first: "lru", "lfu" or "size".
        feedback: a file to which marked hits and misses are appended as labelled pairs, to train on.
        clock: Unix seconds.

    Raises:
        ConfigurationError: no threshold is known. InputError: the calibration is of another model.
        ModelMismatch: the store holds vectors of another model.
    """

    def __init__(
        self,
        model: Encoder | Path | str,
        *,
        store: Store | str = "memory://",
        threshold: float | None = None,
        calibration: Path | str | None = None,
        policy: Policy | None = None,
        guard: bool = True,
        verifier: Verifier | Path | str | None = None,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        eviction: Order = "lru",
        fingerprint: str | None = None,
        feedback: Path | str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.encoder, self.fingerprint = open_encoder(model, fingerprint)
        self.calibration = None if threshold is not None or policy is not None else self._calibrate(model, calibration)
        if policy is None:
            policy = _choose_policy(self.calibration, threshold, verifier)
            policy = policy if guard else replace(policy, guard=None)
        self.policy = policy
        dimension = int(self.encoder.encode(["dimension"]).shape[1])
        self.store = open_store(store, dimension=dimension, model=self.fingerprint) if isinstance(store, str) else store
        self.ttl, self.max_entries, self.max_bytes, self.eviction = ttl, max_entries, max_bytes, eviction
        self._feedback, self._clock = Path(feedback) if feedback is not None else None, clock
        self._lock = threading.Lock()
        self._flights: dict[str, Future[str]] = {}
        self._added = 0

    def _calibrate(self, model: Encoder | Path | str, calibration: Path | str | None) -> Calibration:
        path = Path(calibration) if calibration is not None else None
        if path is None and isinstance(model, (str, Path)):
            path = next((at for at in _calibrations(Path(model)) if at.is_file()), None)
        if path is None:
            raise ConfigurationError(
                "there is no threshold from which on answers may be served",
                expected="calibration.json beside the model, or a threshold",
                action="embedsmith calibrate MODEL PAIRS (labelled pairs), or pass a threshold at your own risk",
            )
        return read_calibration(path, model=self.fingerprint)

    def lookup(self, text: str, *, namespace: str = "default", scope: Mapping[str, Any] | None = None) -> Lookup:
        """Return hit or miss for `text`.

        Args:
            namespace: the tenant; no lookup sees another's entries.
            scope: all else that must be equal for an answer to serve (model, system prompt, language, ...).
        """
        _require_text(text, namespace)
        partition = partition_of(namespace, scope or {})
        asked = Lookup(UNDECIDED, text, namespace, partition, entry_id(partition, text), None, None, 0.0)
        found = self.look_again(asked)
        if found.decision.entry is not None:
            self.store.touch(found.decision.entry.id, self._clock())
        return found

    def look_again(self, asked: Lookup) -> Lookup:
        """Return what a question finds now; it is not encoded again, and its use not counted."""
        began, now = time.perf_counter(), self._clock()
        vector, encoding = asked.vector, asked.encoding
        decision = decide_exact(self.store.get(asked.id, now))
        if decision is None and not reads_whole(self.encoder, asked.text):
            decision = Decision(None, None, None, "longer than the model reads")
        elif decision is None:
            if vector is None:
                started = time.perf_counter()
                vector = self.encoder.encode([asked.text])[0]
                encoding += time.perf_counter() - started
            matches = self.store.search(asked.partition, vector, self.policy.candidates, now)
            matches = [match for match in matches if reads_whole(self.encoder, match.entry.text)]
            decision = decide(asked.text, matches, self.policy)
        age = now - decision.entry.created if decision.entry is not None else None
        seconds = asked.seconds + time.perf_counter() - began
        return replace(
            asked,
            decision=decision,
            vector=vector,
            age=age,
            seconds=seconds,
            encoding=encoding,
            probability=self._probability(decision),
        )

    def _probability(self, decision: Decision) -> float | None:
        if self.calibration is None or decision.similarity is None or decision.tier == "exact":
            return None
        if decision.vetoed and not decision.hit:
            return None  # what was learnt is for pairs that the guard lets pass
        return self.calibration.probability(decision.moved if decision.moved is not None else decision.similarity)

    def add(
        self,
        question: Lookup | str,
        answer: str,
        *,
        namespace: str = "default",
        scope: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        tags: Sequence[str] = (),
    ) -> Entry:
        """Store an answer and return its entry; the same question in the same scope is replaced.

        Args:
            question: the lookup that missed (its vector is used again), or a text with `namespace` and `scope`.
        """
        now = self._clock()
        if isinstance(question, str):
            _require_text(question, namespace)
            partition = partition_of(namespace, scope or {})
            text, id, vector = question, entry_id(partition, question), None
        else:
            text, id, vector = question.text, question.id, question.vector
            namespace, partition = question.namespace, question.partition
        vector = vector if vector is not None else self.encoder.encode([text])[0]
        life = ttl if ttl is not None else self.ttl
        expires = now + life if life is not None else None
        entry = Entry(id, namespace, partition, text, answer, vector, now, expires, tuple(dict.fromkeys(tags)))
        self.store.put([entry])
        self._keep_limits(now)
        return entry

    def _keep_limits(self, now: float) -> None:
        if self.max_entries is None and self.max_bytes is None:
            return
        with self._lock:
            self._added += 1
            due = self._added % max((self.max_entries or SHARE) // SHARE, 1) == 0
        if due:
            self.store.expire(now)
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
        all of them get its error, and nothing is stored.
        """
        found = self.lookup(text, namespace=namespace, scope=scope)
        if found.answer is not None:
            return found.answer
        flight, leads = self._board(found.id)
        if not leads:
            return flight.result()
        try:
            answer = compute(text)
            self.add(found, answer, ttl=ttl, tags=tags)
        except BaseException as error:
            self._land(found.id, error=error)
            raise
        self._land(found.id, answer)
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
        found = await asyncio.to_thread(self.lookup, text, namespace=namespace, scope=scope)
        if found.answer is not None:
            return found.answer
        flight, leads = self._board(found.id)
        if not leads:
            return await asyncio.shield(asyncio.wrap_future(flight))  # whoever stops waiting stops nobody else
        try:
            answer = await compute(text)
            await asyncio.to_thread(self.add, found, answer, ttl=ttl, tags=tags)
        except asyncio.CancelledError:
            self._land(found.id, error=RuntimeError("the caller that computed this answer was cancelled; ask again"))
            raise
        except BaseException as error:
            self._land(found.id, error=error)
            raise
        self._land(found.id, answer)
        return answer

    def _board(self, id: str) -> tuple[Future[str], bool]:
        """Return the flight of a question, and whether the caller leads it."""
        with self._lock:
            leads = id not in self._flights
            return self._flights.setdefault(id, Future()), leads

    def _land(self, id: str, answer: str = "", *, error: BaseException | None = None) -> None:
        with self._lock:
            flight = self._flights.pop(id)
        if error is not None:
            flight.set_exception(error)
        else:
            flight.set_result(answer)

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

        The function's first argument is the question; its name and all other arguments are part of the scope.
        What it takes from elsewhere (its object, a closure, a global) is not seen: name it in `scope` when it decides
        the answer.

        >>> @cache.cached(ttl=60)                                                     # doctest: +SKIP
        ... async def answer(question: str, language: str = "en") -> str: ...
        """
        options = {"namespace": namespace, "ttl": ttl, "tags": tags}
        wrap = partial(self._wrap, scope=scope or {}, options=options)
        return wrap if function is None else wrap(function)

    def _wrap(self, function: Callable[..., Any], scope: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        reader = read_function(function)
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

    def mark_wrong(self, asked: str, id: str, stored: str) -> None:
        """Say that entry `id`, for the question `stored`, did not answer `asked`: it goes, the pair is remembered."""
        self.store.delete([id])
        self._remember(asked, stored, 0)

    def mark_same(self, asked: str, stored: str) -> None:
        """Say that one answer serves both texts although the cache did not see it."""
        self._remember(asked, stored, 1)

    def _remember(self, asked: str, stored: str, label: int) -> None:
        if self._feedback is None:
            return
        row = {"sentence1": asked, "sentence2": stored, "label": label, "marked": self._clock()}
        with self._lock:
            self._feedback.parent.mkdir(parents=True, exist_ok=True)
            with self._feedback.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def purge(self, *, namespace: str | None = None, tag: str | None = None) -> int:
        """Remove what has this namespace and this tag (none given: all); return how many."""
        return self.store.purge(namespace=namespace, tag=tag)

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def _require_text(*texts: str) -> None:
    for text in texts:
        if not is_storable(text):
            raise InputError(f"{text[:80]!r} holds NUL or half a character", expected="text that UTF-8 can hold")


def open_encoder(model: Encoder | Path | str, fingerprint: str | None = None) -> tuple[Encoder, str]:
    """Return the encoder and its fingerprint; a model folder with an ONNX export runs without torch."""
    if not isinstance(model, (str, Path)):
        mark = fingerprint or getattr(model, "fingerprint", None)
        if not isinstance(mark, str) or not mark:
            raise ConfigurationError(
                f"{type(model).__name__} has no fingerprint",
                expected="one, so that a store never mixes the vectors of two models",
                action="pass fingerprint='any name you change when the vectors change'",
            )
        return model, mark
    from embedsmith.model import fingerprint_model, load_encoder
    from embedsmith.runtime import FOLDER, REPORT, OnnxEncoder

    if (Path(model) / FOLDER / REPORT).is_file():
        exported = OnnxEncoder(model)
        return exported, fingerprint or exported.fingerprint
    return load_encoder(model), fingerprint or fingerprint_model(model)


def _choose_policy(
    calibration: Calibration | None, threshold: float | None, verifier: Verifier | Path | str | None
) -> Policy:
    """Return the rules of a calibration, or those of a bare threshold."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigurationError(f"threshold {threshold}", expected="a cosine between -1 and 1, higher is closer")
    if threshold is not None and verifier is not None:
        raise ConfigurationError(
            "a verifier together with a bare threshold",
            expected="a calibration, which says how much the verifier's word weighs",
            action="embedsmith calibrate MODEL PAIRS --for-cache --verifier FOLDER",
        )
    if calibration is None or not calibration.verifier:
        given = threshold if calibration is None else calibration.threshold
        assert given is not None
        return Policy(given)
    found = OnnxVerifier(verifier) if isinstance(verifier, (str, Path)) else verifier
    if found is None or found.fingerprint != calibration.verifier:
        raise ConfigurationError(
            f"the calibration is for the verifier {calibration.verifier}, "
            f"not for {found.fingerprint if found is not None else 'a cache without one'}",
            expected="the verifier that it was made with",
            action="pass its folder (--verifier), or calibrate without one",
        )
    return Policy(
        calibration.threshold, verifier=found, adjustment=Adjustment(calibration.weight, calibration.verifier)
    )


def _calibrations(model: Path) -> tuple[Path, Path]:
    """Return where a calibration may lie: in the model folder, or beside it as `run` writes it."""
    return model / "calibration.json", model.parent / "calibration.json"
