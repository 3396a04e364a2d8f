"""Samples: drawn by chance alone, judged without anyone waiting, and whatever the judge does, nothing goes wrong."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsmith.cache.decision import Policy
from embedsmith.cache.feedback import Feedback, Judged, read_feedback
from embedsmith.cache.judge import Judge
from embedsmith.cache.samples import LONGEST, Sample, SampleRule, Samples
from embedsmith.cache.semantic import SemanticCache
from embedsmith.errors import ConfigurationError, LanguageModelError, SamplingRefused
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.testing import FakeEncoder, FakeLLM
from embedsmith.verifier import Adjustment

ASKED, CLOSE, FAR = "How do I freeze my card?", "How do I freeze my cards?", "how can I freeze a card"
NUMBERS = itertools.count()
SAMPLE = Sample(1, CLOSE, ASKED, "id", 0.9, 0.8, 0.75, "tenant", 0.0)


def make(tmp_path: Path, *, share: float = 1.0, rule: dict[str, Any] | None = None, **options: Any) -> SemanticCache:
    sample = SampleRule(share, **{"seed": 0} | (rule or {}))
    settings = {"threshold": 0.8, "fingerprint": "fake", "feedback": tmp_path / "feedback.jsonl", "sample": sample}
    cache = SemanticCache(FakeEncoder(64), **settings | options)
    cache.add(ASKED, "in the app")
    return cache


def samples_of(cache: SemanticCache) -> Samples:
    assert cache.samples is not None
    return cache.samples


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_is_drawn_unless_it_was_asked_for(tmp_path: Path) -> None:
    cache = make(tmp_path, sample=None)
    assert cache.lookup(CLOSE).hit
    assert cache.samples is None


def test_the_share_is_right_and_the_same_text_needs_no_judge(tmp_path: Path) -> None:
    cache = make(tmp_path, share=0.2, rule={"room": 10_000})
    for _ in range(2000):
        cache.lookup(CLOSE)
        cache.lookup(ASKED)
        cache.lookup("what is a standing charge?")
    assert samples_of(cache).counts.drawn == pytest.approx(400, abs=60)  # 3.3 standard deviations
    assert {sample.asked for sample in samples_of(cache).to_judge(9999, judged_by_model=False)} == {CLOSE}


def test_pairs_in_the_margin_are_drawn_and_tell_nothing_of_what_is_served(tmp_path: Path) -> None:
    cosine = float(FakeEncoder(64).encode([ASKED])[0] @ FakeEncoder(64).encode([FAR])[0])
    threshold = cosine + 0.01
    narrow = make(tmp_path, threshold=threshold, rule={"margin": 0.0})
    assert not narrow.lookup(FAR).hit
    assert samples_of(narrow).counts.drawn == 0
    wide = make(tmp_path, threshold=threshold, rule={"margin": 0.02})
    assert not wide.lookup(FAR).hit
    (sample,) = samples_of(wide).to_judge(9, judged_by_model=False)
    assert (sample.served, sample.floor) == (False, pytest.approx(threshold - 0.02))
    samples_of(wide).settle(sample.number, 0)
    assert samples_of(wide).estimate.judged == 0
    assert len(read_feedback(tmp_path / "feedback.jsonl")[0]) == 1


def test_what_the_guard_vetoes_is_never_served_and_never_drawn(tmp_path: Path) -> None:
    cache = make(tmp_path)
    assert cache.lookup("How do I unfreeze my card?").decision.reason.startswith("guard")
    assert samples_of(cache).counts.drawn == 0


def test_serving_a_lookup_draws_it_once(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.serve(CLOSE, lambda _: "computed")
    missed = cache.lookup(FAR)
    if not missed.hit:
        cache.look_again(missed)
    assert samples_of(cache).counts.drawn <= 2


def test_a_full_queue_and_long_texts_are_counted_and_cost_nothing_else(tmp_path: Path) -> None:
    cache = make(tmp_path, rule={"room": 3})
    for _ in range(5):
        assert cache.lookup(CLOSE).hit
    samples = samples_of(cache)
    assert (samples.waiting, samples.counts.dropped) == (3, 2)
    samples.settle(1, 1)
    samples.put(asked="x" * LONGEST, stored="y", stored_id="i", cosine=1.0, threshold=0.8, namespace="n")
    assert (samples.waiting, samples.counts.dropped) == (2, 3)


def test_what_is_left_for_people_who_never_come_takes_no_room_from_the_judge(tmp_path: Path) -> None:
    cache = make(tmp_path, rule={"room": 5})
    samples = samples_of(cache)
    for _ in range(2):
        for _ in range(5):
            cache.lookup(CLOSE)
        taken = samples.take(9)
        assert len(taken) == 5
        for sample in taken:
            samples.give_back(sample.number, for_people=True)
    assert (samples.left, samples.waiting, samples.counts.dropped) == (5, 5, 5)


def test_verdicts_are_counted_by_tenant_and_survive_the_process(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.add(ASKED, "x", namespace="b")
    cache.lookup(CLOSE)
    cache.lookup(CLOSE, namespace="b")
    samples = samples_of(cache)
    assert samples.settle(1, 1) is not None
    assert samples.settle(2, 0) is not None
    assert samples.settle(2, 1) is None  # the first verdict counts
    for found in (samples, samples_of(make(tmp_path))):
        assert (found.estimate.judged, found.estimate.wrong, found.estimate.rate) == (2, 1, 0.5)
        assert found.estimates["default"].rate == 0.0
        assert found.estimates["b"].rate == 1.0
    assert samples_of(make(tmp_path, fingerprint="another model")).estimate.judged == 0
    assert samples_of(make(tmp_path, threshold=0.99)).estimate.judged == 0  # such pairs are served no more
    rows = read_feedback(tmp_path / "feedback.jsonl")[0]
    assert [(row.source, row.judge, row.namespace) for row in rows] == [
        ("sample", "person", "default"),
        ("sample", "person", "b"),
    ]


def test_a_persons_mark_is_the_verdict_on_waiting_samples_of_its_pair(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for text in (CLOSE, CLOSE, "how do I freeze my card!"):
        cache.lookup(text)
    cache.mark_wrong(CLOSE, "id", ASKED)
    samples = samples_of(cache)
    (left,) = samples.to_judge(9, judged_by_model=False)
    assert left.asked == "how do I freeze my card!"
    assert (samples.waiting, samples.estimate.judged, samples.estimate.wrong) == (1, 2, 2)
    rows = read_feedback(tmp_path / "feedback.jsonl")[0]
    assert [(row.source, row.judge, row.label) for row in rows] == [
        ("person", "person", 0),
        ("sample", "person", 0),
        ("sample", "person", 0),
    ]


def test_a_marked_sample_is_counted_in_its_turn_and_not_before_what_nobody_noticed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.lookup("how do I freeze my card!")
    cache.lookup(CLOSE)
    cache.mark_wrong(CLOSE, "id", ASKED)
    samples = samples_of(cache)
    assert [sample.number for sample in samples.to_judge(9, judged_by_model=False)] == [1]
    assert (samples.waiting, samples.estimate.judged) == (2, 0)
    samples.settle(1, 1)
    assert (samples.waiting, samples.estimate.judged, samples.estimate.wrong) == (0, 2, 1)


def test_a_mark_counts_more_than_the_model_that_has_the_sample_in_its_hands(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.lookup(CLOSE)
    samples = samples_of(cache)
    (sample,) = samples.take(9)
    cache.mark_wrong(CLOSE, "id", ASKED)
    assert samples.estimate.judged == 0
    samples.settle(sample.number, 1, "openai:x")
    assert (samples.estimate.judged, samples.estimate.wrong) == (1, 1)


def test_a_tenant_that_is_forgotten_is_in_no_queue_and_no_file(tmp_path: Path) -> None:
    cache, file = make(tmp_path), tmp_path / "feedback.jsonl"
    samples = samples_of(cache)
    for name in ("acme", "acme/part", "other"):
        cache.add(ASKED, "in the app", namespace=name)
        for _ in range(2):
            cache.lookup(CLOSE, namespace=name)
    assert [cache.judge_sample(number, 1) for number in (1, 3, 5)] == [True] * 3
    (held, _, _) = samples.take(3)
    judged = file.read_text()
    assert cache.purge(namespace="acme") == 2
    assert file.read_text() == judged  # labels outlive answers that are out of date
    assert cache.forget("acme") == 2
    assert [json.loads(line)["namespace"] for line in file.read_text().split("\n") if line.strip()] == ["other"]
    assert samples.settle(held.number, 1, "openai:x") is None
    assert [left.namespace for left in samples.to_judge(9, judged_by_model=False)] == ["other"]
    cache.mark_same(ASKED, "another", namespace="other")
    assert cache.forget("other") == 2


def test_a_disk_that_is_full_keeps_the_sample(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.lookup(CLOSE)
    (tmp_path / "feedback.jsonl").mkdir()  # no file can be written there
    with pytest.raises(OSError, match="directory"):
        samples_of(cache).settle(1, 1)
    assert samples_of(cache).waiting == 1
    assert samples_of(cache).estimate.judged == 0
    samples_of(cache).give_back(1, for_people=True)
    with pytest.raises(OSError, match="directory"):
        samples_of(cache).settle(1, 1)
    assert samples_of(cache).left == 1


def test_a_disk_that_is_full_keeps_what_a_person_has_said_of_the_sample(tmp_path: Path) -> None:
    cache, file = make(tmp_path), tmp_path / "feedback.jsonl"
    cache.lookup("how do I freeze my card!")
    cache.lookup(CLOSE)
    cache.mark_wrong(CLOSE, "id", ASKED)  # the other one waits before it
    kept = file.rename(tmp_path / "kept.jsonl")
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        samples_of(cache).settle(2, 1, "a model")
    file.rmdir()
    kept.rename(file)
    samples_of(cache).settle(1, 1, "a model")
    assert [(row.judge, row.label) for row in read_feedback(file)[0][1:]] == [("a model", 1), ("person", 0)]


def test_samples_that_were_drawn_above_a_higher_floor_tell_nothing_of_a_lower_threshold(tmp_path: Path) -> None:
    file = Feedback(tmp_path / "feedback.jsonl")
    row = Judged(CLOSE, ASKED, 1, 0.95, source="sample", judge="a model", marked=1.0, model="fake", threshold=0.95)
    file.append(replace(row, floor=0.9))  # what lies from .8 to .9 was not drawn, and is wrong more often
    file.append(replace(row, floor=0.75))
    assert samples_of(make(tmp_path)).estimate.judged == 1


def draw_and_judge(cache: SemanticCache, labels: Sequence[int]) -> None:
    samples = samples_of(cache)
    for label in labels:
        asked = f"question {next(NUMBERS)}"  # each pair another one: a pair has one verdict
        samples.put(asked=asked, stored=ASKED, stored_id="id", cosine=0.9, threshold=0.8, namespace="default")
        (sample,) = samples.take(1)
        samples.settle(sample.number, label, "a model")


def test_replicas_count_each_others_verdicts_and_their_own_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each looked at the file at its start only: the alarm of a broken promise was late by the number of replicas."""
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    here, there = make(tmp_path, clock=lambda: 5.0), make(tmp_path, clock=lambda: 5.0)
    draw_and_judge(here, [1, 1, 0])
    draw_and_judge(there, [1])
    here.lookup("what is a standing charge?")
    for cache in (here, there, make(tmp_path)):
        assert (samples_of(cache).estimate.judged, samples_of(cache).estimate.wrong) == (4, 1)
        assert (samples_of(cache).promise.judged, samples_of(cache).promise.wrong) == (4, 1)
    draw_and_judge(here, [0] * 20)
    there.lookup("what is a standing charge?")
    assert samples_of(there).promise.alarm is not None
    assert samples_of(there).promise.evidence == samples_of(here).promise.evidence
    assert caplog.text.count("drift: more than") == 2  # one line of each


def test_verdicts_of_a_file_that_is_put_in_the_place_of_another_count_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As editors save: whole, under another inode. What is in both would else count twice."""
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    cache, file = make(tmp_path), tmp_path / "feedback.jsonl"
    draw_and_judge(cache, [0, 1, 0])
    kept = tmp_path / "kept"
    kept.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    kept.replace(file)
    cache.lookup("what is a standing charge?")
    assert (samples_of(cache).estimate.judged, samples_of(cache).promise.wrong) == (2, 1)
    draw_and_judge(cache, [1])
    assert samples_of(cache).promise.judged == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feedback": None}, "no file for the verdicts"),
        ({"sample": None, "judge": FakeLLM()}, "nothing to judge"),
    ],
)
def test_wrong_combinations_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(tmp_path, **options)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ConfigurationError, match="to sample"):
        SampleRule(share)


class Awkward:
    """A judge that behaves as told, call by call; then it says yes."""

    name = "awkward"

    def __init__(self, *acts: Any) -> None:
        self.acts, self.calls, self.open = list(acts), 0, threading.Event()

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        self.calls += 1
        act = self.acts.pop(0) if self.acts else "yes"
        if act == "hang":
            self.open.wait(200)
        if isinstance(act, Exception):
            raise act
        for place in range(len(prompts)):
            if act == "none":
                return
            yield place, Completion(None if act == "error" else act, "error" if act == "error" else "stop")


def judged_by(tmp_path: Path, llm: Any, lookups: int = 1) -> tuple[Samples, Judge]:
    samples = samples_of(make(tmp_path))
    for _ in range(lookups):
        samples.put(asked=CLOSE, stored=ASKED, stored_id="i", cosine=0.9, threshold=0.8, namespace="n")
    return samples, Judge(samples, llm, pauses=(0.01, 0.02))


def test_a_model_judges_in_the_background(tmp_path: Path) -> None:
    llm = FakeLLM(answer=lambda prompt: '{"same_answer": "no", "difference": "the card"}')
    cache = make(tmp_path, judge=llm)
    cache.lookup(CLOSE)
    wait_until(lambda: samples_of(cache).estimate.judged == 1)
    assert samples_of(cache).estimate.rate == 1.0
    (row,) = read_feedback(tmp_path / "feedback.jsonl")[0]
    assert (row.label, row.judge, row.source, row.threshold) == (0, "fake:llm", "sample", 0.8)
    assert cache.lookup(CLOSE).hit  # a model's verdict removes nothing
    cache.close()


@pytest.mark.parametrize(
    "act",
    [LanguageModelError("down"), ValueError("bug"), "error", "none"],
    ids=["down", "bug", "error", "no answer"],
)
def test_a_judge_that_fails_is_asked_again(tmp_path: Path, act: Any) -> None:
    samples, judge = judged_by(tmp_path, Awkward(act, act), lookups=3)
    wait_until(lambda: samples.estimate.judged == 3)
    judge.close()
    assert (samples.estimate.judged, samples.waiting, judge.trouble) == (3, 0, "")


@pytest.mark.parametrize("act", ["maybe", "", "unsure", '{"same_answer": ["yes", "no"]}'])
def test_what_a_judge_says_unreadably_is_left_for_people(tmp_path: Path, act: str) -> None:
    samples, judge = judged_by(tmp_path, Awkward(act), lookups=2)
    wait_until(lambda: judge.counts["unreadable"] == 2)
    judge.close()
    assert (samples.estimate.judged, samples.left) == (0, 2)
    assert [sample.number for sample in samples.to_judge(9, judged_by_model=True)] == [1, 2]
    samples.settle(1, 1)
    assert (samples.estimate.judged, samples.left) == (1, 1)


@pytest.mark.parametrize("act", ["error", RuntimeError("odd text")])
def test_a_sample_on_which_the_judge_always_fails_does_not_block_the_others(tmp_path: Path, act: Any) -> None:
    samples, judge = judged_by(tmp_path, Awkward(act, act, act))
    wait_until(lambda: samples.left == 1)
    samples.put(asked=CLOSE, stored=ASKED, stored_id="i", cosine=0.9, threshold=0.8, namespace="n")
    wait_until(lambda: samples.counts.judged == 1)
    judge.close()


def test_a_judge_that_hangs_delays_nobody_and_people_can_go_first(tmp_path: Path) -> None:
    llm = Awkward("hang")
    cache = make(tmp_path, judge=llm, rule={"room": 5})
    samples = samples_of(cache)
    cache.lookup(CLOSE)
    wait_until(lambda: llm.calls == 1)
    assert all(cache.lookup(CLOSE).hit for _ in range(100))
    assert (llm.calls, llm.open.is_set()) == (1, False)  # the judge has not come back meanwhile
    assert samples.settle(1, 0) is not None  # it is in the judge's hands, who is slower
    cache.close()
    llm.open.set()
    assert samples.estimate.judged == 1
    (row,) = read_feedback(tmp_path / "feedback.jsonl")[0]
    assert (row.label, row.judge) == (0, "person")


def test_the_log_says_once_that_the_judge_fails_and_never_what_was_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        llm = Awkward(*[LanguageModelError(f"the server said: {CLOSE}")] * 4)
        samples, judge = judged_by(tmp_path, llm)
        wait_until(lambda: samples.counts.judged == 1)
        judge.close()
    assert len(caplog.records) == 1
    assert "freeze" not in caplog.text


class Drawing(Awkward):
    """A judge that fails as it is told, and remembers at which temperatures it was asked."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__(*failures)
        self.temperatures: list[float] = []

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        self.temperatures.append(sampling.temperature)
        return super().complete(prompts, sampling)


@pytest.mark.parametrize(
    ("failure", "temperatures"),
    [
        (SamplingRefused("does not take temperature 0"), [0.0, 1.0]),
        (LanguageModelError("cannot be reached"), [0.0, 0.0]),  # which says nothing of how the model draws
    ],
)
def test_only_a_model_that_takes_no_temperature_is_asked_without(
    tmp_path: Path, failure: Exception, temperatures: list[float]
) -> None:
    llm = Drawing(failure)
    samples, judge = judged_by(tmp_path, llm)
    wait_until(lambda: samples.counts.judged == 1)
    judge.close()
    assert llm.temperatures == temperatures


def test_an_alarm_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = samples_of(make(tmp_path))
    with caplog.at_level(logging.WARNING):
        for number in range(1, 21):
            samples.put(asked=CLOSE, stored=ASKED, stored_id="i", cosine=0.9, threshold=0.8, namespace="n")
            samples.settle(number, 0)
    assert [record.message for record in caplog.records if "drift" in record.message] == [
        f"drift: {samples.promise.alarm.told}"  # type: ignore[union-attr]
    ]


def test_samples_are_what_the_verifier_lets_through(tmp_path: Path) -> None:
    """A candidate that the verifier holds back is a miss, and drawn as one; one that it lifts counts as served."""

    class Word:
        fingerprint = "word"

        def __init__(self, logit: float) -> None:
            self.logit = logit

        def score(self, pairs: Sequence[tuple[str, str]], /) -> NDArray[np.float64]:
            return np.full(len(pairs), self.logit)

    stored, asked = "how do I freeze my card", "how do I freeze my cards"
    cosine = float(np.dot(*FakeEncoder(64).encode([stored, asked])))
    for logit, threshold, served in ((-1.0, cosine - 0.01, False), (4.0, cosine + 0.02, True)):
        policy = Policy(threshold, guard=None, verifier=Word(logit), adjustment=Adjustment(0.02))
        cache = SemanticCache(
            FakeEncoder(64),
            policy=policy,
            fingerprint="fake",
            feedback=tmp_path / f"{served}.jsonl",
            sample=SampleRule(1.0),
        )
        cache.add(stored, "in the app")
        assert cache.lookup(asked).hit is served
        assert cache.samples is not None
        (sample,) = cache.samples.take(5)
        assert sample.served is served
        assert sample.cosine == pytest.approx(cosine + 0.02 * logit, abs=1e-5)
