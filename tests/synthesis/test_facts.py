"""Facts: what was exchanged between two texts is named, and other words for the same are let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.synthesis.facts import Change, find_changes, read_facts, says_the_same

CHANGED = [
    ("How long do I bake 2 trays?", "What is the baking time for 3 trays?", "number"),
    ("Is $1.5 million enough?", "Would $15 million be enough?", "number"),
    ("Can it take 30 mg?", "Can it take 30 g?", "unit"),
    ("What if I pay 40 euros?", "What if I pay 40 dollars?", "unit"),
    ("Why is the pump running?", "Why is the pump not running?", "negation"),
    ("Is the fee refundable?", "Is the fee non-refundable?", "negation"),
    ("Does Renfe charge for bikes in Seville?", "Does Renfe charge for bikes in Toledo?", "entity"),
    ("What does error E24 mean?", "What is error E15 about?", "entity"),
    ("Is it open on Monday?", "Is it open on Friday?", "time"),
    ("Do trains run at 5 am?", "Are there trains at 5 pm?", "time"),
    ("Flights from Oslo to Rome", "flights from Rome to Oslo", "direction"),
    ("How do I upload a photo?", "How do I download a photo?", "direction"),
    ("Is honey safe for toddlers?", "Is honey safe for adults?", "population"),
]
SAME = [
    ("Can it take 0.5 g?", "Is 500 mg all right for it?"),
    ("What is a dozen worth?", "How much are 12 worth?"),
    ("half of the deposit", "50% of the deposit"),
    ("An hour and a half of rest?", "Is resting for 90 minutes right?"),
    ("I paid 48k last year", "last year I paid 48,000"),
    ("My phone won't turn on", "My phone refuses to switch on"),
    ("It is not uncommon, is it?", "It is common, right?"),
    ("Can't I freeze it?", "Can I freeze it?"),
    ("a loop in JavaScript", "how does a loop work in JS"),
    ("Is it part of the European Union?", "is it in the EU?"),
    ("Open at 9 pm?", "Is it open at 21:00?"),
    ("It began on 3 May 2020", "It started on May 3, 2020"),
    ("Open on Saturday and Sunday?", "Open at the weekend?"),
    ("Fly to Rome from Oslo", "Flights from Oslo to Rome"),
    ("the difference between a lease and a loan", "the difference between a loan and a lease"),
    ("The ban of 500 and 1000 rupee notes", "Why were the 500 and 1000 notes banned?"),
    ("I weigh 109 lbs", "at 109 pounds"),
    ("the 4th day of a cough", "coughing for four days"),
    ("My pressure is 140/88", "140 over 88 is my pressure"),
    ("I am twenty-one", "I'm 21"),
    ("16½ years old", "16.5 years old"),
    ("Is a titre of 1:160 high?", "is 1:160 a high titre"),
    ("Wie lange dauert die Lieferung?", "Lieferzeit?"),
    ("如何取消订阅", "取消订阅的方法"),
]


@pytest.mark.parametrize(("left", "right", "kind"), CHANGED)
def test_an_exchanged_fact_is_found_from_both_sides(left: str, right: str, kind: str) -> None:
    assert kind in {change.kind for change in find_changes(left, right)}
    assert kind in {change.kind for change in find_changes(right, left)}


@pytest.mark.parametrize(("left", "right"), SAME)
def test_other_words_for_the_same_fact_are_no_change(left: str, right: str) -> None:
    assert find_changes(left, right) == ()


def test_the_evidence_names_both_sides() -> None:
    assert find_changes("after 30 days", "after 60 days") == (Change("number", "2.592e+06 (time) / 5.184e+06 (time)"),)


def test_a_fact_that_is_left_out_is_no_exchange() -> None:
    assert find_changes("I am 34, can I still run with a bad knee?", "Is running possible with a bad knee?") == ()


def test_a_not_inside_a_story_does_not_decide() -> None:
    story = "I had a cold two weeks ago and it did not go away, now my ear aches and I feel tired all day, what is it?"
    assert find_changes(story, "What can cause an ache of the ear and tiredness after a cold of two weeks?") == ()


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("How do I cancel my gym membership?", "How can I cancel a gym membership?", True),
        ("What does a passport cost?", "How much does a passport cost?", True),
        ("How do I boil an egg?", "How do I poach an egg?", False),
        ("Why does it crack?", "Where does it crack?", False),
        ("What virus causes swelling of the brain?", "What is the treatment for swelling of the brain?", False),
        ("Pay after 30 days", "Pay after 60 days", False),
    ],
)
def test_two_texts_say_the_same_by_their_words(left: str, right: str, *, same: bool) -> None:
    assert says_the_same(left, right) is same


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_can_be_read_and_none_differs_from_itself(left: str, right: str) -> None:
    read_facts(left)
    find_changes(left, right)
    assert find_changes(left, left) == ()
