"""The decision with a verifier: asked only where it can change something, bounded, explained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedsmith.artifacts import fingerprint
from embedsmith.cache.decision import Policy, decide, partition_of
from embedsmith.cache.guard import Veto
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Entry, Match
from embedsmith.testing import FakeEncoder
from embedsmith.text import normalize
from embedsmith.verifier import Adjustment


class Scripted:
    """A verifier that knows its answers, and remembers what it was asked."""

    fingerprint = "scripted"

    def __init__(self, **logits: float) -> None:
        self.logits = logits
        self.asked: list[str] = []

    def score(self, pairs: Sequence[tuple[str, str]], /) -> NDArray[np.float64]:
        self.asked += [stored for _, stored in pairs]
        return np.array([self.logits.get(stored, 0.0) for _, stored in pairs])


def matches(**similarities: float) -> list[Match]:
    found = [
        Match(Entry(text, "n", "p", text, f"answer {text}", np.ones(1, dtype=np.float32), 0.0), similarity)
        for text, similarity in similarities.items()
    ]
    return sorted(found, key=lambda match: -match.similarity)


def rules(verifier: Scripted, **options: int) -> Policy:
    """Threshold .8, reach .1: the verifier is asked from .7 to .9."""
    return Policy(0.8, guard=None, verifier=verifier, adjustment=Adjustment(0.025), **options)


def test_it_is_asked_only_in_the_band() -> None:
    verifier = Scripted()
    assert decide("q", matches(far=0.65), rules(verifier)).reason == "below threshold"
    assert decide("q", matches(close=0.95), rules(verifier)).reason == "similar"
    assert verifier.asked == []


def test_it_can_lift_a_candidate_over_the_threshold() -> None:
    decision = decide("q", matches(paraphrase=0.75), rules(Scripted(paraphrase=3.0)))
    assert (decision.hit, decision.reason, decision.similarity) == (True, "verified", 0.75)
    assert decision.moved == pytest.approx(0.825)


def test_it_can_hold_one_back_and_the_next_is_served() -> None:
    decision = decide("q", matches(trap=0.88, paraphrase=0.85), rules(Scripted(trap=-9.0, paraphrase=1.0)))
    assert decision.entry is not None
    assert decision.entry.text == "paraphrase"
    assert decision.vetoed[0].veto.detail == "cosine 0.880 moved to 0.780"
    alone = decide("q", matches(trap=0.88), rules(Scripted(trap=-9.0)))
    assert (alone.hit, alone.told) == (False, "verifier (cosine 0.880 moved to 0.780)")


def test_a_miss_tells_how_far_the_nearest_was_moved_which_is_what_its_probability_was_learnt_on() -> None:
    missed = decide("q", matches(near=0.79, next=0.76), rules(Scripted(near=-1.0, next=-2.0)))
    assert (missed.reason, missed.similarity, missed.moved) == ("below threshold", 0.79, pytest.approx(0.765))
    assert decide("q", matches(far=0.5), rules(Scripted())).moved is None


def test_what_it_did_not_read_is_not_served() -> None:
    verifier = Scripted(a=-9.0, b=-9.0, c=9.0)
    decision = decide("q", matches(a=0.88, b=0.87, c=0.86), rules(verifier, verified=2))
    assert (decision.hit, verifier.asked) == (False, ["a", "b"])


@given(st.floats(-1, 1), st.floats(-9, 9))
def test_a_candidate_is_served_exactly_when_its_moved_cosine_reaches_the_threshold(cosine: float, logit: float) -> None:
    policy = rules(Scripted(a=logit))
    moved = cosine + policy.adjustment.move(logit)  # type: ignore[union-attr]
    assert decide("q", matches(a=cosine), policy).hit == (moved >= policy.threshold) or abs(moved - 0.8) < 1e-12


def veto_twins(asked: str, stored: str) -> Veto | None:
    return Veto("opposite", f"{asked} / {stored}") if stored.startswith("twin") else None


@given(
    kinds=st.lists(st.tuples(st.sampled_from(["twin", "other"]), st.sampled_from([0.65, 0.75, 0.8, 0.85, 0.95]))),
    asked=st.booleans(),
)
def test_twins_that_the_guard_refuses_neither_hide_nor_change_what_is_served_wherever_they_stand(
    kinds: list[tuple[str, float]], asked: bool
) -> None:
    found = matches(**{f"{kind}{at}": similarity for at, (kind, similarity) in enumerate(kinds)})
    verifier = Scripted(other0=3.0, other1=-3.0) if asked else None
    policy = Policy(0.8, veto_twins, verifier=verifier, adjustment=Adjustment(0.025))
    served = decide("q", found, policy)
    alone = decide("q", [match for match in found if not match.entry.id.startswith("twin")], policy)
    assert (served.entry, served.tier) == (alone.entry, alone.tier)


def test_an_entry_under_an_older_key_is_left_to_the_semantic_tier() -> None:
    """Older versions joined "What is 5!" and "What is 5" under one key; such entries still lie in stores."""
    cache = SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake")
    partition = partition_of("default", {})
    vector = FakeEncoder(64).encode(["What is 5!"])[0]
    old = fingerprint([partition, normalize("What is 5!")], length=32)
    cache.store.put([Entry(old, "default", partition, "What is 5!", "120", vector, 0.0)])
    assert cache.lookup("What is 5").answer is None
    found = cache.lookup("What is 5!")
    assert (found.answer, found.decision.tier) == ("120", "semantic")


class Blind:
    """An encoder to which all texts are one, as an uncased one takes "A" and "a"."""

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        return np.ones((len(texts), 1), dtype=np.float32)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("What is 5!", "What is 5"),
        ("10²?", "102"),
        ("ASCII code of A", "ASCII code of a"),
        ("?", "..."),
        ("for x in y:\n    a()\n    b()", "for x in y:\n    a()\nb()"),
    ],
)
def test_no_tier_takes_one_text_for_another_that_only_looks_like_it(stored: str, asked: str) -> None:
    cache = SemanticCache(Blind(), threshold=0.8, fingerprint="blind")
    cache.add(stored, "of the stored text")
    assert cache.lookup(stored).decision.tier == "exact"
    assert not cache.lookup(asked).hit
