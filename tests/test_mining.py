"""Mining: what becomes a negative, what must not, and that nothing about blocks, order or a kill changes it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings, normalize
from embedsmith.errors import ConfigurationError, InputError, ModelError
from embedsmith.examples import (
    Example,
    LabelledPair,
    LabelledText,
    PositivePair,
    Triplet,
    read_examples,
    write_examples,
)
from embedsmith.mining import Miner, MiningResult, MiningSettings, RayEngine, Verdict, mine
from embedsmith.mining.planning import plan_search
from embedsmith.mining.relabelling import CrossEncoderRelabeller, load_cross_encoder, open_relabeller, read_verdict
from embedsmith.mining.search import Neighbours, search
from embedsmith.mining.selection import draw_order
from embedsmith.mining.store import FillBlock, open_vectors
from embedsmith.mining.texts import spool
from embedsmith.model import DEMO_MODEL, resolve_model
from embedsmith.testing import FakeEncoder, FaultyServer
from embedsmith.text import normalize as normal_form

QUESTION = "when does the shop open"
ANSWER = "the shop opens at nine in the morning"
CORPUS = [
    ANSWER,
    "The shop opens at nine in the morning.",  # the answer again
    "the shop closes at six in the evening",
    "the shop on the corner sells bread",
    "opening a bank account takes a week",
    "when the rain stops we go out",
    "trains to the north leave every hour",
]
ALL = MiningSettings(negatives=3, window=(1, 7), relative=None)


class Table:
    """An encoder of texts whose cosine with "q" is written beside them."""

    def __init__(self, cosines: dict[str, float]) -> None:
        self.cosines = {"q": 1.0, **cosines}

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        near = np.array([self.cosines[text] for text in texts])
        return np.stack([near, np.sqrt(1 - near**2)], axis=1).astype(np.float32)


class Says:
    """A relabeller that knows the verdicts."""

    name, prompt = "says", "0123"

    def __init__(self, verdicts: dict[str, str]) -> None:
        self.verdicts, self.asked = verdicts, list[tuple[str, str]]()

    def judge(self, pairs: Sequence[tuple[str, str]], /) -> list[Verdict]:
        self.asked += pairs
        return [Verdict(self.verdicts.get(text, "no")) for _, text in pairs]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ArrayVectors:
    """Vectors that are in memory already."""

    rows: Embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Embeddings:
        return self.rows[start:stop]

    def gather(self, places: NDArray[np.int64]) -> Embeddings:
        return self.rows[places]


def negatives_of(result: MiningResult) -> list[tuple[str, ...]]:
    return [row.negatives if isinstance(row, Triplet) else () for row in result.examples]


def mine_table(cosines: dict[str, float], rules: MiningSettings, positive: str = "p") -> MiningResult:
    corpus = [text for text in cosines if text != positive]
    return mine([PositivePair("q", positive)], corpus, encoder=Table(cosines), settings=rules)


# ---- what becomes a negative


def test_the_nearest_texts_that_are_no_answer_become_negatives() -> None:
    result = mine([PositivePair(QUESTION, ANSWER)], CORPUS, encoder=FakeEncoder(), settings=ALL)
    (negatives,) = negatives_of(result)
    assert {"the shop on the corner sells bread", "the shop closes at six in the evening"} < set(negatives)
    assert len(negatives) == 3
    assert not {ANSWER, CORPUS[1]} & set(negatives)
    assert result.report.repeats == 1  # the second wording of the answer is the answer


def test_every_candidate_ends_under_exactly_one_heading() -> None:
    cosines = {"p": 0.8, "near": 0.78, "much": 0.7, "some": 0.5, "more": 0.4, "far": 0.1}
    rules = MiningSettings(negatives=1, window=(2, 5), margin=0.2, minimum=0.2, sampling="top")
    report = mine_table(cosines, rules).report
    assert dict(report.dropped) == {"before-window": 1, "margin": 1, "below-minimum": 1}
    assert (report.candidates, report.taken, report.left) == (5, 1, 1)
    assert report.candidates == report.taken + report.left + sum(report.dropped.values())


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (MiningSettings(relative=0.95), ("at75", "at70", "at40")),  # .80 × .95 = .76
        (MiningSettings(relative=None, margin=0.05), ("at75", "at70", "at40")),  # .80 − .05 = .75
        (MiningSettings(relative=0.9, margin=0.05), ("at70", "at40")),  # the stricter of .72 and .75
        (MiningSettings(relative=None), ("at90", "at77", "at75", "at70")),
        (MiningSettings(relative=None, maximum=0.75, minimum=0.5), ("at75", "at70")),
        (MiningSettings(relative=None, window=(3, 6)), ("at75", "at70", "at40")),
    ],
)
def test_the_rules_of_nv_retriever_and_the_bounds(rules: MiningSettings, kept: tuple[str, ...]) -> None:
    cosines = {"p": 0.8, "at90": 0.9, "at77": 0.77, "at75": 0.748, "at70": 0.7, "at40": 0.4}
    assert negatives_of(mine_table(cosines, rules)) == [kept]


def test_below_zero_the_limit_stays_below_the_positive() -> None:
    assert MiningSettings(relative=0.9).limit(-0.2) == pytest.approx(-0.22)
    assert negatives_of(mine_table({"p": -0.2, "a": -0.19, "b": -0.21, "c": -0.5}, MiningSettings(relative=0.9))) == [
        ("c",)
    ]


def test_of_several_positives_the_lowest_rules_or_the_mean() -> None:
    cosines = {"p1": 0.9, "p2": 0.6, "x": 0.65, "y": 0.5}
    rows: list[Example] = [PositivePair("q", "p1", "g"), PositivePair("q", "p2", "g")]
    found = {
        ruling: negatives_of(
            mine(rows, ["x", "y"], encoder=Table(cosines), settings=MiningSettings(ruling=ruling))  # type: ignore[arg-type]
        )
        for ruling in ("lowest", "mean")
    }
    assert found == {"lowest": [("y",), ("y",)], "mean": [("x", "y"), ("x", "y")]}  # limits .57 and .7125


def test_neither_the_anchor_nor_its_group_nor_a_near_duplicate_of_its_answer_becomes_a_negative() -> None:
    long = "the card can be frozen in the app under settings and cards with one touch of the blue button below"
    corpus = [
        "How do I freeze my card?",
        long + " now",
        "the card can be ordered in the app",
        "what to do when a card is lost",
        "freeze a card, how is that done",
    ]
    rows: list[Example] = [
        PositivePair("how do i freeze my card", long, "freeze"),
        PositivePair("what to do when a card is lost", "call us", "freeze"),
        PositivePair("freezing the card, please", "freeze a card, how is that done", "other"),
    ]
    result = mine(
        rows, corpus, encoder=FakeEncoder(), settings=MiningSettings(negatives=4, window=(1, 5), relative=None)
    )
    assert set(negatives_of(result)[0]) == {"the card can be ordered in the app", "freeze a card, how is that done"}
    assert {"anchor", "near-positive", "same-group", "positive"} <= set(result.report.dropped)


def test_a_text_that_differs_in_a_number_stays_a_hard_negative() -> None:
    answer = "revenue of the whole company was 120 million dollars in the last quarter of the year"
    result = mine(
        [PositivePair("what was the revenue", answer)],
        [answer, answer.replace("120", "130")],
        encoder=FakeEncoder(),
        settings=MiningSettings(negatives=1, window=(1, 2), relative=None),
    )
    assert negatives_of(result) == [(answer.replace("120", "130"),)]


def test_two_near_duplicates_are_not_both_taken() -> None:
    one = "shipping to islands takes two weeks and costs more than shipping to any other place in the country"
    result = mine(
        [PositivePair("shipping to islands", "by boat")],
        [one, one + "s", "shipping to towns"],
        encoder=FakeEncoder(),
        settings=MiningSettings(negatives=3, window=(1, 3), relative=None),
    )
    assert len(negatives_of(result)[0]) == 2
    assert result.report.dropped == {"near-negative": 1}


def test_a_row_without_any_negative_stays_a_pair_and_is_said() -> None:
    result = mine_table({"p": 0.5, "a": 0.9, "b": 0.8}, MiningSettings())
    assert result.examples == (PositivePair("q", "p"),)
    assert (result.report.short, result.report.none) == (1, 1)


def test_negatives_that_a_row_has_stay_in_front() -> None:
    cosines = {"p": 0.8, "own": 0.6, "a": 0.5, "b": 0.4}
    row = Triplet("q", "p", ("own",), scores=(9.0, 1.0), instruction="find")
    rules = MiningSettings(negatives=2, scores=True)
    result = mine([row], ["own", "a", "b"], encoder=Table(cosines), settings=rules)
    (mined,) = result.examples
    assert isinstance(mined, Triplet)
    assert (mined.negatives, mined.instruction) == (("own", "a", "b"), "find")
    assert mined.scores == pytest.approx((0.8, 0.6, 0.5, 0.4), abs=1e-3)  # float16
    assert result.report.dropped == {"own-negative": 1}


def test_labelled_pairs_when_asked() -> None:
    rules = MiningSettings(negatives=1, output="pairs")
    assert mine_table({"p": 0.8, "a": 0.5}, rules).examples == (
        LabelledPair("q", "p", 1),
        LabelledPair("q", "a", 0),
    )


def test_without_a_corpus_the_positives_are_it() -> None:
    rows: list[Example] = [PositivePair(f"how is the {word} made", f"the {word} is made so") for word in ("tea", "ink")]
    result = mine(rows, encoder=FakeEncoder(), settings=MiningSettings(negatives=1, window=(1, 2), relative=None))
    assert negatives_of(result) == [("the ink is made so",), ("the tea is made so",)]


def test_queries_and_documents_are_read_with_their_own_side() -> None:
    class Sided(Table):
        def sides(self) -> tuple[Table, Table]:
            return Table({}), Table({"p": 0.8, "a": 0.3, "b": 0.2})  # queries know "q" only, documents all but "q"

    result = mine([PositivePair("q", "p")], ["a", "b"], encoder=Sided({}), settings=MiningSettings(negatives=2))
    assert negatives_of(result) == [("a", "b")]


# ---- draws


def test_draws_follow_from_seed_and_anchor() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    for sampling in ("uniform", "weighted"):
        rules = MiningSettings(sampling=sampling)  # type: ignore[arg-type]
        first = draw_order(scores, "Why?", rules)
        assert first == draw_order(scores, "why", rules)
        assert sorted(first) == list(range(5))
        others = {tuple(draw_order(scores, f"anchor {n}", rules)) for n in range(50)}
        assert len(others) > 5


def test_weighted_draws_prefer_the_near_by_their_weights() -> None:
    rules = MiningSettings(sampling="weighted", temperature=0.1)
    first = [draw_order([0.9, 0.8], f"anchor {n}", rules)[0] for n in range(4000)]
    assert first.count(0) / 4000 == pytest.approx(np.e / (1 + np.e), abs=0.025)  # exp(9) : exp(8)


WORDS = ("tea", "ink", "card", "shop", "rain", "bank", "opens", "closes", "at nine", "at six")
TEXTS = some.lists(some.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
ROWS = some.lists(some.tuples(TEXTS, TEXTS, some.sampled_from([None, "g", "h"])), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None)
@given(ROWS, some.lists(TEXTS, min_size=1, max_size=12), some.sampled_from(["top", "uniform", "weighted"]))
def test_no_positive_becomes_a_negative_and_the_order_of_rows_does_not_matter(
    rows: list[tuple[str, str, str | None]], corpus: list[str], sampling: str
) -> None:
    examples: list[Example] = [PositivePair(*row) for row in rows]
    rules = MiningSettings(negatives=2, window=(1, 9), relative=None, sampling=sampling)  # type: ignore[arg-type]
    result = mine(examples, corpus, encoder=FakeEncoder(32), settings=rules)
    positives: dict[str, set[str]] = {}
    for anchor, positive, _ in rows:
        positives.setdefault(normal_form(anchor), set()).add(normal_form(positive))
    for row, negatives in zip(examples, negatives_of(result), strict=True):
        assert isinstance(row, PositivePair)
        forbidden = positives[normal_form(row.anchor)] | {normal_form(row.anchor)}
        assert not forbidden & {normal_form(text) for text in negatives}
    turned = mine(examples[::-1], corpus, encoder=FakeEncoder(32), settings=rules)
    assert negatives_of(turned) == negatives_of(result)[::-1]
    assert turned.report == result.report
    report = result.report
    assert report.candidates == report.taken + report.left + sum(report.dropped.values())


# ---- the search is exact, whatever the blocks


def search_plainly(queries: Embeddings, rows: Embeddings, depth: int) -> Neighbours:
    scores = (queries.astype(np.float64)[:, None, :] * rows.astype(np.float64)[None]).sum(axis=2).astype(np.float32)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return Neighbours(places, np.take_along_axis(scores, places, axis=1))


@settings(max_examples=60, deadline=None)
@given(
    some.integers(0, 2**32),
    some.integers(1, 12),
    some.integers(1, 300),
    some.integers(1, 40),
    some.integers(1, 90),
    some.integers(1, 13),
    some.sampled_from(["spread", "few", "equal", "close"]),
)
def test_any_block_size_gives_what_the_whole_matrix_gives(
    seed: int, queries: int, count: int, depth: int, block: int, query_block: int, kind: str
) -> None:
    drawn = np.random.default_rng(seed)
    rows = drawn.standard_normal((count, 16), dtype=np.float32)
    if kind == "few":
        rows = rows[drawn.integers(0, min(3, count), count)]  # many exact ties
    if kind == "equal":
        rows[:] = rows[0]
    if kind == "close":
        rows = rows[:1] + 1e-7 * rows  # closer than float32 products can tell
    rows, asked = normalize(rows), normalize(drawn.standard_normal((queries, 16), dtype=np.float32))
    found = search(asked, ArrayVectors(rows), depth=depth, block=block, query_block=query_block)
    expected = search_plainly(asked, rows, depth)
    assert np.array_equal(found.places, expected.places)
    assert np.array_equal(found.scores, expected.scores)


def test_rows_in_rising_order_of_similarity_are_the_worst_case_and_still_right() -> None:
    angles = np.linspace(1.5, 0.0, 5000)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = search(np.array([[1, 0]], dtype=np.float32), ArrayVectors(rows), depth=10, block=512)
    assert found.places.tolist() == [list(range(4999, 4989, -1))]


def test_memory_follows_from_blocks_and_not_from_the_corpus() -> None:
    """2,000 × 60,000 scores would be 480 MB."""

    class Drawn:
        def __len__(self) -> int:
            return 60_000

        def read(self, start: int, stop: int) -> Embeddings:
            return normalize(np.random.default_rng(start).standard_normal((min(stop, 60_000) - start, 16)))

        def gather(self, places: np.ndarray) -> Embeddings:
            raise AssertionError("no ties here")

    queries = normalize(np.random.default_rng(1).standard_normal((2000, 16)))
    tracemalloc.start()
    try:
        found = search(queries, Drawn(), depth=20, block=1000, query_block=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.places.shape == (2000, 20)
    assert peak < 20e6


def test_the_index_finds_nearly_what_exact_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    corpus = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in ("bread", "paper", "water")]
    rows: list[Example] = [PositivePair(f"the {word} of bread", f"{word} and bread") for word in WORDS]
    rules = MiningSettings(negatives=4, window=(1, 20), relative=None, search="exact")
    exact = mine(rows, corpus, encoder=FakeEncoder(64), settings=rules)
    index = mine(
        rows,
        corpus,
        encoder=FakeEncoder(64),
        settings=MiningSettings(negatives=4, window=(1, 20), relative=None, search="index"),
        work=tmp_path,
    )
    same = [set(a) & set(b) for a, b in zip(negatives_of(exact), negatives_of(index), strict=True)]
    assert sum(map(len, same)) >= 0.8 * 40
    assert "approximate" in index.report.search


def test_the_choice_follows_from_the_size_and_says_why() -> None:
    small, large = (plan_search(*size, 384, MiningSettings()) for size in ((200_000, 200_000), (1_000_000, 10_000_000)))
    assert small.kind == "exact"
    assert "3.1e+13 operations" in small.reason
    assert large.kind == ("index" if importlib.util.find_spec("usearch") else "exact")
    assert plan_search(1_000_000, 10_000_000, 384, MiningSettings(search="exact")).seconds > small.seconds > 0


# ---- what is on disk


def test_a_corpus_on_disk_reads_like_a_list(tmp_path: Path) -> None:
    texts = ["Eins", "zwei — ok", "eins.", "", "drei\nvier"]
    found = spool(iter(texts), tmp_path)
    kept = ["Eins", "zwei — ok", "", "drei\nvier"]
    assert list(found) == kept
    assert found[-1] == "drei\nvier"
    assert found[1:3] == kept[1:3]
    assert found.find(["EINS!", "five"]) == [0, None]
    assert (found.read, len(found)) == (5, 4)
    with pytest.raises(IndexError):
        found[4]


class Counting(FakeEncoder):
    """Counts what it encodes, and fails when it is told to."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__(64)
        self.calls, self.fail_at = list[int](), fail_at

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(len(texts))
        return super().encode(texts)


def test_a_stopped_run_goes_on_where_it_was_and_other_rules_encode_nothing_again(tmp_path: Path) -> None:
    corpus = [f"text number {n}" for n in range(3000)]
    rows: list[Example] = [PositivePair("text number", "text number 5"), PositivePair("number of text", "none")]
    rules = MiningSettings(negatives=2, window=(1, 50), relative=None)
    with pytest.raises(KeyboardInterrupt):
        mine(rows, corpus, encoder=Counting(fail_at=4), settings=rules, work=tmp_path)  # probes, probes, 2 blocks of 3
    again = Counting()
    result = mine(rows, corpus, encoder=again, settings=rules, work=tmp_path)
    assert sum(again.calls) < 1024 + 100  # the third block, the anchors, probes
    assert result == mine(rows, corpus, encoder=FakeEncoder(64), settings=rules)
    third = Counting()
    mine(rows, corpus, encoder=third, settings=MiningSettings(negatives=1, window=(5, 50)), work=tmp_path)
    assert max(third.calls) <= 3  # probes only
    other = Counting()
    mine(rows, corpus[1:], encoder=other, settings=rules, work=tmp_path)
    assert sum(other.calls) > 2999  # another corpus is encoded anew


def test_another_encoder_never_meets_the_vectors_of_the_first(tmp_path: Path) -> None:
    texts = spool([f"text {n}" for n in range(5)], tmp_path / "texts")
    for encoder in (FakeEncoder(64), FakeEncoder(32), Turned(32)):
        file = open_vectors(tmp_path / "v", texts, encoder, fingerprint=texts.fingerprint, storage="float32")
        assert file.missing() == [0]
        FillBlock(file, texts, encoder)(0)
        assert np.allclose(file.read(0, 5), encoder.encode(list(texts)))
    assert (
        open_vectors(tmp_path / "v", texts, Turned(32), fingerprint=texts.fingerprint, storage="float32").missing()
        == []
    )


class Turned(FakeEncoder):
    """The same size, other vectors."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return np.roll(super().encode(texts), 1, axis=1)


KILLED = """
import sys, time
from embedsmith.examples import PositivePair
from embedsmith.mining import MiningSettings, mine
from embedsmith.testing import FakeEncoder
class Slow(FakeEncoder):
    def encode(self, texts, /):
        time.sleep(0.05)
        return super().encode(texts)
corpus = [f"text number {n} of many" for n in range(20000)]
mine([PositivePair("text number", "text number 5 of many")], corpus, encoder=Slow(64), work=sys.argv[1],
     settings=MiningSettings(relative=None), on_progress=lambda *seen: print(*seen, flush=True))
"""


def test_a_killed_run_leaves_nothing_half_written(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("embedding corpus 4"):
            break
    time.sleep(0.03)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    corpus = [f"text number {n} of many" for n in range(20000)]
    row = PositivePair("text number", "text number 5 of many")
    rules = MiningSettings(relative=None)
    encoder = Counting()
    result = mine([row], corpus, encoder=encoder, work=tmp_path, settings=rules)
    assert sum(encoder.calls) < 20000 - 4 * 1024 + 100
    assert result.examples == mine([row], corpus, encoder=FakeEncoder(64), settings=rules).examples


# ---- a second opinion


def test_what_the_relabeller_calls_an_answer_becomes_a_positive_and_the_rest_is_sorted() -> None:
    cosines = {"p": 0.8, "a": 0.85, "b": 0.79, "c": 0.6, "d": 0.5, "e": 0.4, "f": 0.1}
    judge = Says({"a": "yes", "b": "no", "c": "unclear"})
    result = mine(
        [PositivePair("q", "p", "g1")],
        list(cosines)[1:],
        encoder=Table(cosines),
        settings=MiningSettings(negatives=2, judged=5),
        relabeller=judge,
    )
    first, further = result.examples
    assert first == Triplet("q", "p", ("b", "d"), "g1")  # b scores 99% of the positive, and is none
    assert isinstance(further, Triplet)
    assert (further.positive, further.negatives) == ("a", ("b", "d"))
    assert further.provenance is not None
    assert (further.provenance.model, further.provenance.checks) == ("says", ("relabelled",))
    assert [text for _, text in judge.asked] == ["a", "b", "c", "d", "e"]  # five are shown, f is not
    assert dict(result.report.dropped) == {"judged-positive": 1, "judged-unclear": 1}
    assert result.report.further_positives == 1
    assert [(item.text, item.rank, item.verdict.answers) for item in result.judged][:2] == [
        ("a", 1, "yes"),
        ("b", 2, "no"),
    ]


def test_a_verdict_needs_evidence_from_the_text() -> None:
    text = "The shop opens at 9 and closes at 18."
    assert read_verdict('{"verdict": "yes", "evidence": "opens at 9"}', text).answers == "yes"
    assert read_verdict('<think>..</think>{"verdict": "No", "evidence": ""}', text).answers == "no"
    for answer in (None, "", "maybe", '{"verdict": "yes"}', '{"verdict": "yes", "evidence": "opens at 8"}'):
        assert read_verdict(answer, text).answers == "unclear"


def test_a_language_model_judges_over_http(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        fits = "opens at nine" in prompt.split("Text: ")[1]
        return '{"verdict": "yes", "evidence": "opens at nine"}' if fits else '{"verdict": "no", "evidence": ""}'

    corpus = ["our shop opens at nine", "the shop is red", "the shop is old and red"]
    row, rules = PositivePair(QUESTION, ANSWER), MiningSettings(negatives=2, window=(1, 3), judged=3)
    with (
        FaultyServer(answer=answer) as server,
        open_relabeller("openai:any", tmp_path / "judge.sqlite", base_url=server.base_url) as judge,
    ):
        result = mine([row], corpus, encoder=FakeEncoder(), settings=rules, relabeller=judge)
    assert set(negatives_of(result)[0]) == set(corpus[1:])
    assert [row.positive for row in result.examples if isinstance(row, Triplet)] == [ANSWER, corpus[0]]
    assert [item.verdict.evidence for item in result.judged if item.verdict.answers == "yes"] == ["opens at nine"]


def test_a_cross_encoder_judges_by_its_probability(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        initializer_range=1.0,  # so that its probabilities differ
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_model(DEMO_MODEL)).save_pretrained(tmp_path)
    pairs = [("when", text) for text in CORPUS]
    loaded = load_cross_encoder(str(tmp_path))
    scores = [verdict.score or 0.0 for verdict in loaded.judge(pairs)]
    low, high = sorted(scores)[2], sorted(scores)[5]
    judge = CrossEncoderRelabeller(loaded.network, name="tiny", low=low, high=high)
    expected = ["yes" if s >= high else "no" if s <= low else "unclear" for s in scores]
    assert [verdict.answers for verdict in judge.judge(pairs)] == expected
    assert set(expected) == {"yes", "no", "unclear"}


# ---- engines


BY_RAY = """
import pytest
from embedsmith.errors import InputError
from embedsmith.examples import PositivePair
from embedsmith.mining import MiningSettings, RayEngine, mine
from embedsmith.testing import FakeEncoder
words = ("tea", "ink", "card", "shop", "rain", "bank")
corpus = [f"passage {n} about {words[n % 6]} and {words[n * 7 % 5]}" for n in range(2500)]
rows = [PositivePair(f"what about {words[n % 6]} {n}", corpus[n]) for n in range(0, 2500, 25)]
rules = MiningSettings(scores=True, sampling="weighted")
here = mine(rows, corpus, encoder=FakeEncoder(64), settings=rules)
assert here.report.taken == 400
def fail(number):
    raise InputError("as it was raised", action="do this")
with RayEngine(workers=2) as engine:
    assert mine(rows, corpus, encoder=FakeEncoder(64), settings=rules, engine=engine) == here
    with pytest.raises(InputError, match="as it was raised") as caught:
        list(engine.run(fail, [3]))
    assert caught.value.action == "do this"
"""


def test_ray_gives_the_same_bit_for_bit_and_its_errors_arrive_as_they_were_raised() -> None:
    pytest.importorskip("ray", reason="the cluster engine needs pip install 'embedsmith[ray]'")
    run = subprocess.run([sys.executable, "-c", BY_RAY], capture_output=True, text=True)  # usearch may be loaded here
    assert run.returncode == 0, run.stderr


def test_ray_is_refused_where_it_would_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, "usearch", ray)
    with pytest.raises(ConfigurationError, match="usearch was imported before"):
        RayEngine()


class Late(FakeEncoder):
    """Right vectors for the few texts of a probe, wrong ones for a block."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return super().encode(texts) * (1 if len(texts) <= 3 else 2)


# ---- files and mistakes


def test_rows_are_written_as_they_come_and_read_back(tmp_path: Path) -> None:
    miner = Miner([PositivePair(QUESTION, ANSWER)], CORPUS, encoder=FakeEncoder(), work=tmp_path / "w", settings=ALL)
    for name in ("mined.jsonl", "mined.jsonl.gz"):
        assert write_examples(tmp_path / name, miner.stream()) == 1
        assert read_examples(tmp_path / name).examples == tuple(miner.stream())
    miner.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"negatives": 0},
        {"window": (0, 5)},
        {"window": (5, 4)},
        {"window": (3, 5), "negatives": 4},
        {"relative": 1.5},
        {"margin": -0.1},
        {"minimum": 0.5, "maximum": 0.4},
        {"sampling": "best"},
        {"temperature": 0.0},
        {"scores": True, "output": "pairs"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        MiningSettings(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_mined_is_refused() -> None:
    with pytest.raises(InputError, match="LabelledText"):
        mine([LabelledText("a", "b")], CORPUS, encoder=FakeEncoder())
    with pytest.raises(InputError, match="no text"):
        mine([PositivePair("q", "p")], [], encoder=FakeEncoder())
    with pytest.raises(ModelError, match="length 1"):
        mine([PositivePair("q", "p")], ["a", "b", "c", "d"], encoder=Late())


def test_the_command_writes_rows_and_says_what_became_of_every_candidate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedsmith.cli import app

    (tmp_path / "rows.jsonl").write_text(f'{{"query": "{QUESTION}", "positive": "{ANSWER}"}}\n')
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    out = tmp_path / "mined.jsonl"
    options = f"{tmp_path}/rows.jsonl --corpus {tmp_path}/corpus.txt --encoder {DEMO_MODEL} --out {out} --negatives 2"
    app(["mine", *options.split(), "--window", "1:7"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "a positive of the anchor" in said
    assert "7 texts" not in said  # the answer's second wording was merged
    (row,) = read_examples(out).examples
    assert isinstance(row, Triplet)
    assert row.negatives[0] == "the shop closes at six in the evening"
    with pytest.raises(ConfigurationError, match="window"):
        app(["mine", *options.split(), "--window", "ten"], standalone_mode=False)


def test_the_separator_of_rows_and_corpus_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from embedsmith.cli import app

    (tmp_path / "rows.csv").write_text(f"query~positive\n{QUESTION}~{ANSWER}\n")
    (tmp_path / "corpus.csv").write_text("\n".join(["text~n", *(f"{text}~7" for text in CORPUS)]))
    options = f"{tmp_path}/rows.csv --corpus {tmp_path}/corpus.csv --encoder {DEMO_MODEL} --negatives 1 --separator ~"
    app(["mine", *options.split(), "--out", f"{tmp_path}/mined.jsonl"], standalone_mode=False)
    (row,) = read_examples(tmp_path / "mined.jsonl").examples
    assert isinstance(row, Triplet)
    assert row.anchor == QUESTION
    assert row.negatives[0] in CORPUS
    assert "the columns are separated by" not in capsys.readouterr().err


def test_the_corpus_of_mine_is_read_in_the_columns_of_chunk_and_rows_without_text_are_counted(tmp_path: Path) -> None:
    from embedsmith.mining.texts import Passages

    (tmp_path / "c.jsonl").write_text(
        '{"document": "a.pdf", "content": "the shop opens"}\n'
        '{"_id": "1", "title": "Only a title", "text": ""}\n'
        '{"_id": "2", "title": "", "text": ""}\n'
        '{"_id": "3", "title": "Trains", "text": "leave every hour"}\n'
        '{"n": 7}\n'
    )
    corpus = Passages(tmp_path / "c.jsonl")
    assert list(corpus) == ["the shop opens", "Only a title", "Trains leave every hour"]
    assert corpus.describe() == f"{tmp_path}/c.jsonl: 2 rows without a text not used, the first in line 3"
    (tmp_path / "n.jsonl").write_text('{"n": 7}\n')
    with pytest.raises(InputError, match="no row with a text"):
        list(Passages(tmp_path / "n.jsonl"))


def test_mine_prints_how_many_rows_of_the_corpus_were_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedsmith.cli import app

    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": QUESTION, "positive": ANSWER}) + "\n")
    rows = [*({"body": text} for text in CORPUS), {"body": ""}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"{tmp_path}/rows.jsonl --corpus {tmp_path}/corpus.jsonl --encoder {DEMO_MODEL} --negatives 1"
    app(["mine", *options.split(), "--out", f"{tmp_path}/mined.jsonl", "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert "1 rows without a text not used" in " ".join(said.err.split())
    assert json.loads(said.out)["rows_not_used"] == 1
