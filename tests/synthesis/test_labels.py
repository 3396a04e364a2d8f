"""Labels against texts: flipped labels come to light, a judge has the last word, near misses are left alone."""

from __future__ import annotations

import json

from embedsmith.examples import LabelledPair, PositivePair, ScoredPair, Triplet
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.synthesis.labels import check_labels, list_pairs
from embedsmith.synthesis.pair_judge import PairJudge
from embedsmith.testing import FakeEncoder, FakeLLM

THINGS = ["visa", "loan", "oven", "tyre", "lease", "cactus", "router", "boiler", "ticket", "invoice"]
ACTS = ["renew", "cancel", "repair", "return", "insure", "replace"]


def labelled() -> list[LabelledPair]:
    """60 paraphrases and 60 near misses; the first of each has the wrong label."""
    pairs = []
    for place, thing in enumerate(THINGS):
        for number, act in enumerate(ACTS):
            group = f"{thing} {act}"
            left = f"how do I {act} the {thing} in town number {group}"
            other = ACTS[(number + 1) % len(ACTS)]
            wrong = place == number == 0
            pairs.append(LabelledPair(left, f"please tell me {left}", 1 - wrong, group))
            pairs.append(LabelledPair(left, f"who would {other} shoes and bread for a friend", int(wrong), group))
    return pairs


def test_flipped_labels_are_the_first_in_doubt() -> None:
    found = check_labels(labelled(), FakeEncoder())
    assert {(verdict.pair.place, verdict.reason) for verdict in found[:2]} == {
        (0, "paraphrase-as-negative"),
        (1, "far-positive"),
    }


def test_a_small_set_is_judged_by_rules_alone() -> None:
    found = check_labels(
        [
            PositivePair("pay after 30 days", "pay after 60 days"),
            Triplet("how do I boil an egg", "egg boiling time", ("how can I boil an egg", "how do I poach an egg")),
            ScoredPair("one", "two", 0.3),
        ]
    )
    assert [(verdict.pair.place, verdict.pair.number, verdict.reason) for verdict in found] == [
        (1, 1, "paraphrase-as-negative"),
        (0, 0, "changed-number"),
    ]


def test_what_the_judge_contradicts_is_no_longer_in_doubt() -> None:
    examples = [PositivePair("pay after 30 days", "pay after 60 days"), PositivePair("in May 2020", "in May 2021")]
    answers = iter(["no", "yes"])
    found = check_labels(examples, judge=lambda pairs: [next(answers) for _ in pairs])
    assert [(verdict.judged, verdict.confidence) for verdict in found] == [("no", 0.95)]


def test_the_judge_asks_once_and_reads_what_models_answer() -> None:
    llm = FakeLLM(answer=lambda prompt: json.dumps({"same_answer": "no", "difference": "the number"}))
    with Journal(":memory:") as journal:
        judge = PairJudge(Calls(llm, journal))
        pairs = [("after 30 days", "after 60 days"), ('quote " and {brace}', "b")]
        assert judge(pairs) == ["no", "no"]
        assert judge(pairs) == ["no", "no"]
        assert journal.count() == 2
    assert judge.differences[pairs[0]] == "the number"


def test_all_pairs_of_a_triplet_are_in_one_group() -> None:
    pairs = list_pairs([Triplet("a", "b", ("c", "d"), group="g")])
    assert [pair.label for pair in pairs] == [1, 0, 0]
    assert len({pair.group for pair in pairs}) == 1
