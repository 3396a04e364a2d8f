"""The decision, pure: what was asked, what is stored, the rules → hit or miss, with the reason.

What must be equal for one answer to serve two requests is never left to similarity: it is the *scope*
(model, system prompt, tools, sampling, …; earlier turns, too, unless the model was trained to compare them),
and with the tenant it makes the partition in which a search stays. Callers can only narrow it. Within a
partition the exact tier (same text, `exact_form`) goes before the semantic one, and a candidate above the
threshold can still be vetoed by the guard. A verifier, when there is one, moves the cosine of candidates near
the threshold before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from embedsmith.artifacts import fingerprint
from embedsmith.cache.guard import Veto, find_veto
from embedsmith.cache.stores import Entry, Match
from embedsmith.conversation import is_conversation
from embedsmith.errors import InputError
from embedsmith.text import exact_form
from embedsmith.verifier import Adjustment, Verifier

Tier = Literal["exact", "semantic"]
Guard = Callable[[str, str], Veto | None]
MARKED = "marked wrong"
FORM = "exact-1"  # another name whenever `exact_form` joins other texts than before


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a cache.

    Attributes:
        threshold: cosine from which on an answer may be served (from a calibration of this model).
        guard: the veto on candidates that differ in a fact; None serves them.
        candidates: how many of the nearest entries are looked at; a vetoed one does not hide the next.
        thresholds: by namespace, where one has a threshold of its own (from a recalibration).
        verifier, adjustment: a second look at candidates within `adjustment.reach` of the threshold, and how far
            it moves their cosine; the threshold is then one for moved cosines.
        verified: how many candidates of a lookup the verifier reads at most.
        conversations: threshold of conversations of more than one turn, which are then compared by meaning; None
            leaves earlier turns to the scope.
    """

    threshold: float
    guard: Guard | None = find_veto
    candidates: int = 5
    thresholds: Mapping[str, float] = field(default_factory=dict)
    verifier: Verifier | None = None
    adjustment: Adjustment | None = None
    verified: int = 3
    conversations: float | None = None

    @property
    def reach(self) -> float:
        """How far from the threshold a candidate's cosine may be moved."""
        return self.adjustment.reach if self.verifier is not None and self.adjustment is not None else 0.0

    @property
    def floor(self) -> float:
        """The cosine below which nothing is served, whatever the verifier says."""
        return self.threshold - self.reach

    def doubts(self, similarity: float) -> bool:
        """Say whether the verifier could change what this cosine decides."""
        return self.reach > 0 and abs(similarity - self.threshold) <= self.reach

    def move(self, asked: str, stored: str, similarity: float) -> float:
        """Return the cosine as the verifier moves it."""
        if self.verifier is None or self.adjustment is None:
            return similarity
        return similarity + float(self.adjustment.move(self.verifier.score([(asked, stored)])[0]))

    def threshold_for(self, namespace: str, text: str = "") -> float:
        """Return the threshold of a namespace for a text; its own one counts for conversations where it is higher."""
        own = self.thresholds.get(namespace)
        if self.conversations is not None and is_conversation(text):
            return self.conversations if own is None else max(own, self.conversations)
        return self.threshold if own is None else own

    def within(self, namespace: str, text: str = "") -> Policy:
        """Return the rules as they are in a namespace, for a text."""
        threshold = self.threshold_for(namespace, text)
        return replace(self, threshold=threshold) if threshold != self.threshold else self


@dataclass(frozen=True, slots=True)
class Vetoed:
    """A stored question that was near enough, and why it was not served.

    The verifier speaks as the guard does: its veto has the kind "verifier"; so do people, with the kind `MARKED`.
    """

    entry: Entry
    similarity: float
    veto: Veto


@dataclass(frozen=True, slots=True)
class Decision:
    """Hit or miss, and why.

    Attributes:
        entry: what is served; None for a miss.
        tier: which tier found it.
        similarity: of the entry served, or of the nearest one that was not; 1 in the exact tier, None
            where there was nothing.
        reason: "same text", "similar", "verified" (the verifier was asked), "nothing stored", "below threshold",
            "verifier", `MARKED`, "guard: KIND", or one of `encoder`: `TOO_LONG`, `UNKNOWN`.
        moved: the cosine that decided, where a verifier moved it; of a miss, that of the nearest entry.
        nearest: the closest entry that was looked at, served or not.
    """

    entry: Entry | None
    tier: Tier | None
    similarity: float | None
    reason: str
    nearest: Entry | None = None
    vetoed: tuple[Vetoed, ...] = ()
    moved: float | None = None

    @property
    def told(self) -> str:
        """The reason, with what the guard found."""
        return f"{self.reason} ({self.vetoed[0].veto.detail})" if self.vetoed and not self.hit else self.reason

    @property
    def hit(self) -> bool:
        """Say whether there is an answer to serve."""
        return self.entry is not None


def partition_of(namespace: str, scope: Mapping[str, Any]) -> str:
    """Return the fingerprint of all that must be equal: the tenant and the scope.

    Raises:
        InputError: the scope holds what JSON cannot.
    """
    try:
        return fingerprint([namespace, dict(scope)], length=32)
    except (TypeError, ValueError, RecursionError):
        raise InputError(
            f"the scope with {', '.join(map(str, scope))} cannot be compared", expected="values that JSON can hold"
        ) from None


def entry_id(partition: str, text: str) -> str:
    """Return the key of the exact tier: 32 hex digits of the partition and the text (`exact_form`).

    The form is named in the key, so an entry that was stored under another form (the first one joined "5!" and "5")
    is left to the semantic tier and its guard.
    """
    return fingerprint([partition, FORM, exact_form(text)], length=32)


def decide_exact(entry: Entry | None) -> Decision | None:
    """Return the hit of the exact tier, or None: then the semantic tier decides."""
    return Decision(entry, "exact", 1.0, "same text", entry) if entry is not None else None


def decide(text: str, matches: Sequence[Match], policy: Policy, refused: Collection[str] = ()) -> Decision:
    """Return the decision of the semantic tier on `matches`, closest first.

    Args:
        refused: ids of entries of which a person has said that they do not answer `text`.
    """
    if not matches:
        return Decision(None, None, None, "nothing stored")
    nearest, nearest_moved = matches[0], None
    vetoed: list[Vetoed] = []
    asked = 0
    for match in matches:
        similarity = moved = match.similarity
        doubtful = policy.doubts(similarity)
        if similarity < policy.floor or (doubtful and asked == policy.verified):
            break
        if match.entry.id in refused:
            veto: Veto | None = Veto(MARKED, "by a person")
        else:
            veto = policy.guard(text, match.entry.text) if policy.guard is not None else None
        if veto is None:
            if doubtful:
                moved, asked = policy.move(text, match.entry.text, similarity), asked + 1
                nearest_moved = moved if match is nearest else nearest_moved
            if moved >= policy.threshold:
                reason, told = ("verified", moved) if doubtful else ("similar", None)
                return Decision(match.entry, "semantic", similarity, reason, nearest.entry, tuple(vetoed), told)
            veto = Veto("verifier", f"cosine {similarity:.3f} moved to {moved:.3f}")
        if similarity >= policy.threshold:
            vetoed.append(Vetoed(match.entry, similarity, veto))
    return Decision(None, None, nearest.similarity, _reason(vetoed), nearest.entry, tuple(vetoed), nearest_moved)


def _reason(vetoed: Sequence[Vetoed]) -> str:
    if not vetoed:
        return "below threshold"
    kind = vetoed[0].veto.kind
    return kind if kind in ("verifier", MARKED) else f"guard: {kind}"
