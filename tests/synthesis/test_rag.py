"""The recipe rag: passages become questions with positives, or a reason; coverage is even; growth is cheap."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.answers import write_rag_answer
from embedsmith.artifacts import Spool
from embedsmith.batches import collect_rows
from embedsmith.documents import Passage
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example, PositivePair, Rejected, read_examples, write_examples
from embedsmith.llm import LanguageModel, Prompt, open_llm
from embedsmith.llm.budget import Budget
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.synthesis.rag import (
    RagPlan,
    choose_passages,
    embed_passages,
    read_evidence,
    render_targets,
    synthesize_rag,
)
from embedsmith.synthesis.rag.answers import Asked, read_questions, read_verdicts
from embedsmith.synthesis.rag.candidates import Candidate, candidate_from
from embedsmith.synthesis.rag.checks import (
    answers_too,
    find_reference,
    find_repeat,
    find_span,
    gives_answer_away,
    measure_copy,
    sum_up,
)
from embedsmith.synthesis.rag.plan import choose_sets, name_set, spread
from embedsmith.synthesis.rag.prompts import load_prompts, render_multi, render_questions
from embedsmith.testing import FakeEncoder, FakeLLM, FaultyServer

GOODS = ("turbines", "umbrellas", "sweaters", "harpsichords", "tractors", "lanterns", "microscopes", "kayaks")
TOWNS = ("Antwerp", "Bergamo", "Coimbra", "Dresden", "Esbjerg", "Fribourg", "Ghent", "Haarlem", "Innsbruck", "Jerez")
FIRMS = ("Ardmore", "Bellwether", "Cinderford", "Dunmarsh", "Elderwick", "Foxglove", "Greywater", "Hollowell")
REASONS = (
    "despite scarce copper wire",
    "after hiring forty apprentices",
    "because exports to Norway doubled",
    "while its foundry stood idle",
    "although insurers raised premiums",
)
SMALL = RagPlan(keyword=1, natural=1, conversational=1, multi_passage=0.0)
ONE = RagPlan(keyword=1, natural=0, conversational=0, multi_passage=0.0)


def make_passages(documents: int = 4, each: int = 5) -> list[Passage]:
    """Filings of firms that each sold something somewhere; no two passages say the same."""
    passages = []
    for number in range(documents):
        firm = FIRMS[number % len(FIRMS)] + chr(97 + number // len(FIRMS))
        for turn in range(each):
            good, town = GOODS[(number + 3 * turn) % len(GOODS)], TOWNS[(number * 7 + turn) % len(TOWNS)]
            sold = 1000 + 37 * number + 411 * turn
            text = f"{firm} of {town} assembled {sold} {good} {REASONS[(number + turn) % len(REASONS)]}."
            passages.append(Passage(f"{firm}-{turn}", text, document=f"{firm}.txt", headings=(firm, "Operations")))
    return passages


def run(
    passages: Sequence[Passage],
    llm: LanguageModel,
    plan: RagPlan = SMALL,
    journal: Path | str = ":memory:",
    **settings: Any,
) -> list[Example | Rejected]:
    with Journal(journal) as opened:
        return list(synthesize_rag(plan, passages, Calls(llm, opened), **settings))


def obedient() -> FakeLLM:
    return FakeLLM(answer=lambda prompt: write_rag_answer(prompt.user))


def answering(questions: dict[str, list[dict[str, Any]]]) -> FakeLLM:
    return FakeLLM(answer=lambda prompt: json.dumps({prompt.task: questions[prompt.row]}))


def pairs_of(events: Sequence[Example | Rejected]) -> list[PositivePair]:
    return [event for event in events if isinstance(event, PositivePair)]


def reasons_of(events: Sequence[Example | Rejected]) -> Counter[str]:
    return Counter(event.reason for event in events if isinstance(event, Rejected))


def evidence_of(pair: PositivePair) -> dict[str, str]:
    assert pair.provenance is not None
    return read_evidence(pair.provenance)


# ── The plan


def test_a_plan_says_what_is_wrong_with_it() -> None:
    for wrong in ({"keyword": -1}, {"quota": 0}, {"multi_passage": 1.5}, {"trip": "maybe"}, {"k_encoder": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong)).split("_")[0]):
            RagPlan(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        RagPlan(keyword=0, natural=0, conversational=0)


@given(st.integers(1, 300))
def test_a_document_is_spread_out_evenly(count: int) -> None:
    order = list(spread(count))
    assert sorted(order) == list(range(count))
    for taken in range(2, count + 1):  # no gap is more than about twice what it could be
        gaps = np.diff(sorted([*order[:taken], count]))
        assert gaps.max(initial=0) <= 4 * count / taken + 1


documents = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@settings(deadline=None)
@given(documents, st.integers(1, 200), st.integers(0, 5))
def test_the_quota_covers_documents_evenly(sizes: list[int], quota: int, seed: int) -> None:
    passages = [Passage(f"{d}-{n}", "text", document=str(d)) for d, size in enumerate(sizes) for n in range(size)]
    plan = replace(SMALL, quota=quota, seed=seed)
    chosen = choose_passages(plan, passages)
    assert len(set(chosen)) == len(chosen) == min(-(-quota // plan.per_passage), len(passages))
    counts = Counter(passages[place].document for place in chosen)
    most = max(counts.values())
    assert all(counts[str(d)] >= min(size, most - 1) for d, size in enumerate(sizes))


@settings(deadline=None)
@given(documents, st.integers(1, 100), st.integers(1, 30), st.randoms(use_true_random=False))
def test_a_larger_quota_keeps_what_was_chosen_in_any_order_of_files(
    sizes: list[int], quota: int, more: int, shuffled: random.Random
) -> None:
    files = [[Passage(f"{d}-{n}", "t", document=str(d)) for n in range(size)] for d, size in enumerate(sizes)]
    passages = [passage for file in files for passage in file]
    shuffled.shuffle(files)
    again = [passage for file in files for passage in file]
    before = [passages[place].id for place in choose_passages(replace(SMALL, quota=quota), passages)]
    after = [again[place].id for place in choose_passages(replace(SMALL, quota=quota + more), again)]
    assert after[: len(before)] == before


def test_one_percent_more_documents_and_quota_cost_one_percent_more_calls() -> None:
    def prompts(documents: int, quota: int) -> set[str]:
        passages = make_passages(documents, 12)
        plan = replace(SMALL, quota=quota, multi_passage=0.2)
        return {prompt.fingerprint for _, prompt in render_targets(plan, passages)}

    before, after = prompts(200, 3000), prompts(202, 3030)
    assert 0 < len(after - before) <= 0.02 * len(before)
    assert not prompts(200, 3000) - prompts(200, 3030)


def test_multi_passage_sets_are_neighbours_of_one_document() -> None:
    passages = [*make_passages(3, 4), Passage("alone", "A single passage.", document="alone.txt")]
    plan = replace(SMALL, multi_passage=1.0, passages_per_multi=3)
    sets = choose_sets(plan, passages, choose_passages(plan, passages))
    assert len(sets) == len(set(sets)) == 6
    for places in sets:
        assert len({passages[place].document for place in places}) == 1
        assert list(places) == list(range(places[0], places[0] + 3))


def test_sets_across_documents_are_the_nearest_of_other_documents_and_name_no_single_place() -> None:
    passages = [
        *make_passages(4, 3),
        Passage("fee", "The berth fee of Antwerp is nine marks.", document="fees.txt", headings=("Fees",)),
        Passage("due", "A berth fee is due before noon in Antwerp.", document="rules.txt", headings=("Rules",)),
    ]
    plan = replace(SMALL, multi_passage=1.0, across=1.0)
    sets = choose_sets(plan, passages, choose_passages(plan, passages))
    assert all(passages[one].document != passages[other].document for one, other in sets)
    assert len({frozenset(places) for places in sets}) == len(sets)
    assert sum(set(places) == {12, 13} for places in sets) == 1
    assert "Document:" not in render_multi(load_prompts(), [passages[12], passages[13]]).user
    events = run(passages, obedient(), replace(plan, trip="off", further=False))
    found = {evidence_of(pair).get("together") for pair in pairs_of(events)}
    assert found == {None, "bm25"}
    some = choose_sets(replace(plan, across=0.5), passages, choose_passages(plan, passages))
    assert {name_set(passages, places) for places in some} == {"neighbours", "bm25"}


# ── Prompts and answers


def test_a_prompt_has_the_passage_its_place_and_the_styles_and_a_schema() -> None:
    passage = Passage("1", "Net {sales} rose.", document="filings/acme_2023.html", headings=("Item 7", "Sales"))
    prompt = render_questions(load_prompts(), RagPlan(keyword=2, natural=0, conversational=1), passage)
    assert "Net {sales} rose." in prompt.user
    assert "Document: acme 2023\nSection: Item 7 > Sales" in prompt.user
    assert "Write 3 questions" in prompt.user
    assert '2 in the style "keyword"' in prompt.user
    assert '"natural"' not in prompt.user
    assert prompt.answer_schema["properties"]["questions"]["items"]["required"] == ["style", "question", "answer"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[judge]", "[referee]", "exactly"),
        ("{styles}", "{stiles}", "placeholder"),
        ("{passage}\n", "\n", "never names {passage}"),
        ("keyword =", "kezword =", "kezword"),
        ("[questions]", "[questions", "not TOML"),
    ],
)
def test_a_prompts_file_of_ones_own_is_checked(tmp_path: Path, old: str, new: str, said: str) -> None:
    import embedsmith.synthesis

    shipped = Path(embedsmith.synthesis.__file__).parent / "prompts" / "rag.toml"
    own = tmp_path / "own.toml"
    own.write_text(shipped.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_prompts(own)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_prompts(tmp_path / "none.toml")


def test_a_cut_answer_gives_its_whole_questions() -> None:
    text = '<think>{"question": "no"}</think>{"questions": [{"question": "One?", "answer": "a b"}, {"question": "Tw'
    assert list(read_questions(text, "questions", passages=1, style="natural")) == [Asked("One?", ("a b",), "natural")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unreadable"),
        ("I cannot help with that.", "unreadable"),
        ('{"paraphrases": ["As an AI language model I cannot do that"]}', "unreadable"),
        ('{"questions": []}', "no-question"),
        ('{"questions": ["What is it?"]}', "malformed"),
        ('{"questions": [{"question": null, "answer": "a"}]}', "malformed"),
        ('{"questions": [{"question": "What is it?"}]}', "no-span"),
        ('{"questions": [{"question": "What is it?", "answer": "  "}]}', "no-span"),
    ],
)
def test_an_answer_that_holds_no_question_says_why(text: str, reason: str) -> None:
    (found,) = read_questions(text, "questions", passages=1, style="")
    assert getattr(found, "reason", None) == reason


@given(
    st.text(max_size=80) | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps)
)
def test_no_answer_breaks_the_reader(text: str) -> None:
    assert list(read_questions(text, "questions", passages=1, style=""))
    read_verdicts(text, "verdicts")


# ── Filters, one by one


SALES = "Net sales rose to $ | 8,313.5 | million (up 5.30%) in fiscal 2023; they didn’t fall in “Europe”."


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("net sales rose", "Net sales rose"),
        ("$8313.5 million", "$ | 8,313.5 | million"),
        ("up 5.30 %", "up 5.30%"),
        ("didn't fall in 'Europe'", "didn’t fall in “Europe"),
        ("Net sales rose … in fiscal 2023", "Net sales rose to $ | 8,313.5 | million (up 5.30%) in fiscal 2023"),
        ("in fiscal 2023 ... net sales rose", None),  # the wrong order
        ("sales … 2023", None),  # pieces of one word say nothing
        ("$8,313.6 million", None),
        ("fiscal 2022", None),
        ("they fall in Europe", None),
        ("", None),
        ("?!", None),
    ],
)
def test_an_answer_span_is_found_whatever_its_spaces_quotes_and_separators(answer: str, found: str | None) -> None:
    span = find_span(answer, SALES)
    assert (span.text if span else None) == found


@pytest.mark.parametrize(
    ("answer", "passage", "found"),
    [
        ("北京市海淀区", "公司总部位于北京市海淀区。", "北京市海淀区"),
        ("東京都 港区", "本社は東京都港区にあります。", "東京都港区"),
        ("วันที่ 3 มีนาคม", "ประชุมจัดขึ้นในวันที่ 3 มีนาคม ที่กรุงเทพ", "วันที่ 3 มีนาคม"),
        ("3億円", "売上高は3億円でした。", "3億円"),
        ("मुख्य कार्यालय", "कंपनी का मुख्य कार्यालय दिल्ली में है।", "मुख्य कार्यालय"),
        ("上海市", "公司总部位于北京市海淀区。", None),
        ("4億円", "売上高は3億円でした。", None),
        ("公司…海淀", "公司总部位于北京市海淀区。", None),  # pieces of one word say nothing
    ],
)
def test_an_answer_span_is_found_in_every_writing(answer: str, passage: str, found: str | None) -> None:
    span = find_span(answer, passage, edits=8)
    assert (span.text if span else None) == found


def test_questions_in_writings_without_spaces_are_judged_by_their_signs() -> None:
    passage = "公司总部位于北京市海淀区，成立于二零零三年，主要生产工业机器人和自动化设备。"
    assert measure_copy("公司总部位于北京市海淀区，成立于二零零三年吗？", passage) == (10, 20 / 21)
    assert measure_copy("这家企业在哪里办公？", passage)[0] <= 1
    assert gives_answer_away("公司总部在北京市吗？", "北京市")
    assert sum_up("公司总部在哪里？") == sum_up("公司总部在哪里") != sum_up("总部公司在哪里？")
    source = "该公司2023年在上海销售了300台工业机器人。"
    question = "该公司2023年在上海销售了多少台工业机器人？"
    assert answers_too(question, "300台", source, "2023年该公司在上海共销售了300台工业机器人。")
    assert answers_too(question, "300台", source, "仓库里有300台旧电脑，等待出售给学校。") is None


def test_a_chinese_question_about_a_chinese_passage_is_kept() -> None:
    passage = Passage("zh", "公司总部位于北京市海淀区，成立于二零零三年。")
    asked = {"zh": [{"question": "这家企业在哪里办公？", "answer": "北京市海淀区"}]}
    (pair,) = pairs_of(run([passage], answering(asked), ONE))
    assert evidence_of(pair)["span"] == "北京市海淀区"


LONG = "The committee approved the dividend of 12 cents a share, which is not due before the first of March"


@pytest.mark.parametrize(
    ("answer", "edits"),
    [
        (LONG.replace("the dividend", "a dividend"), 1),
        (LONG.replace("which is", "is"), 1),
        (LONG.replace("12", "15"), None),  # numbers never differ
        (LONG.replace("is not", "is"), None),  # nor negations
        (LONG.replace("committee approved the", "board had refused a"), None),
    ],
)
def test_a_long_span_may_differ_in_a_word_but_not_in_a_fact(answer: str, edits: int | None) -> None:
    assert find_span(answer, f"Before. {LONG}. After.") is None
    span = find_span(answer, f"Before. {LONG}. After.", edits=8)
    assert (span.edits if span else None) == edits
    assert span is None or span.text == LONG


@pytest.mark.parametrize(
    ("question", "refers"),
    [
        ("What does the passage say about Delta?", True),
        ("According to the text, who owns Delta?", True),
        ("What are the four segments as described in the text?", True),
        ("Which risks are mentioned above?", True),
        ("What do both passages say of Delta?", True),
        ("Which text of the statute did Delta break?", False),
        ("What does the annual report say about Delta?", False),
        ("How does Delta earn money in this context of rising rates?", False),
        ("What changed with the passage of the Inflation Reduction Act?", False),
        ("When is right of passage granted?", False),
    ],
)
def test_a_question_must_not_speak_of_its_passage(question: str, refers: bool) -> None:
    assert (find_reference(question) is not None) == refers


def test_a_copied_question_shares_a_long_run_with_its_passage() -> None:
    passage = "The effective tax rate for the fiscal year ended October 1, 2023, was 23.6%."
    run_, share = measure_copy("What was the effective tax rate for the fiscal year ended October 1, 2023?", passage)
    assert (run_, round(share, 2)) == (12, 0.86)
    assert measure_copy("How much of its profit went to the tax office in FY23?", passage)[0] <= 2


def test_small_checks() -> None:
    assert gives_answer_away("Why did sales fall by 5% in 2023?", "5 %")
    assert not gives_answer_away("Why did sales fall in 2023?", "5 %")
    assert find_repeat("what was it in 2023", ["What was it in 2023?"])
    assert find_repeat("What was it in 2022?", ["What was it in 2023?"]) is None
    assert sum_up("Nike's revenue in 2023") == sum_up("2023 revenue of NIKE?") != sum_up("Nike's revenue in 2022")


SOURCE = "Visa provisioned more than 7.5 billion network tokens by the end of fiscal year 2023."


@pytest.mark.parametrize(
    ("question", "answer", "other", "answers"),
    [
        (
            "How many tokens had Visa provisioned in 2023?",
            "more than 7.5 billion",
            "At the end of fiscal year 2023 Visa had provisioned more than 7.5 billion network tokens, it said.",
            True,
        ),
        (
            "How many tokens had Visa provisioned in 2023?",
            "more than 7.5 billion",
            "In fiscal year 2023, Visa Direct processed more than 7.5 billion transactions in 2,800 programs.",
            False,
        ),
        (
            "How many tokens had Visa provisioned in 2023?",
            "more than 7.5 billion",
            "Mastercard provisioned more than 7.5 billion network tokens by the end of fiscal year 2023.",
            False,
        ),
        (
            "How many tokens had Visa provisioned in 2023?",
            "more than 7.5 billion",
            "Visa provisioned more than 9 billion network tokens by the end of fiscal year 2024.",
            False,
        ),
        (
            "When did Visa reach 7.5 billion network tokens?",
            "2023",
            "Visa closed its office in Lima in 2023 and sold network tokens to its guests.",
            False,
        ),
    ],
)
def test_another_passage_answers_only_with_the_same_span_names_and_numbers(
    question: str, answer: str, other: str, answers: bool
) -> None:
    assert (answers_too(question, answer, SOURCE, other) is not None) == answers


# ── The recipe


def test_every_question_becomes_a_pair_that_says_where_it_comes_from() -> None:
    passages = make_passages()
    llm = obedient()
    events = run(passages, llm, encoder=FakeEncoder())
    pairs = pairs_of(events)
    assert len(llm.calls) == len(passages)
    assert not reasons_of(events)
    assert {pair.group for pair in pairs} == {passage.id for passage in passages}
    texts = {passage.id: passage.text for passage in passages}
    for pair in pairs:
        found = evidence_of(pair)
        assert pair.positive == texts[found["passage"]]
        assert found["span"] in pair.positive
        assert int(found["rank.encoder"]) >= 1
        assert found["style"] in ("keyword", "natural", "conversational")
    assert Counter(evidence_of(pair)["style"] for pair in pairs)["keyword"] == len(passages)


def test_pairs_survive_their_file(tmp_path: Path) -> None:
    pairs = pairs_of(run(make_passages(2, 2), obedient()))
    write_examples(tmp_path / "examples.jsonl", pairs)
    assert list(read_examples(tmp_path / "examples.jsonl").examples) == pairs


SPAN = "1000 turbines despite scarce"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Ardmorea turbines output Antwerp", SPAN, None),
        ("???", SPAN, "malformed"),
        ("As an AI I cannot ask this, Ardmorea", SPAN, "refusal"),
        ("what people would ask a search engine when this passage is what they need", SPAN, "prompt-echo"),
        ("How many turbines did Ardmorea build according to the passage?", SPAN, "refers-to-passage"),
        ("How many turbines did Ardmorea build?", "1001 turbines", "span-not-in-passage"),
        ("Ardmorea: 1000 turbines despite scarce what?", SPAN, "answer-in-question"),
        ("Ardmorea of Antwerp assembled how many turbines?", SPAN, "copies-passage"),
        ("How many kayaks does Hollowella of Jerez make", SPAN, "evaluation-leak"),
        ("zzz qqq xxx", SPAN, "round-trip"),
    ],
)
def test_each_filter_rejects_with_reason_and_evidence(question: str, answer: str, reason: str | None) -> None:
    passages = make_passages(6, 6)
    plan = replace(ONE, k_encoder=3, k_lexical=3, copied=4, copied_share=0.5)
    asked: dict[str, list[dict[str, Any]]] = {passage.id: [] for passage in passages}
    asked[passages[0].id] = [{"question": question, "answer": answer}]
    leaked = "How many kayaks does Hollowella of Jerez make?"
    events = run(passages, answering(asked), plan, encoder=FakeEncoder(), evaluation=[leaked])
    told = [event for event in events if not (isinstance(event, Rejected) and event.reason == "no-question")]
    assert len(told) == 1
    if reason is None:
        assert isinstance(told[0], PositivePair)
    else:
        assert isinstance(told[0], Rejected)
        assert (told[0].reason, told[0].text, told[0].source) == (reason, question, passages[0].id)
        assert told[0].detail


def test_the_same_question_with_the_same_answer_has_both_passages_as_positives() -> None:
    twin = Passage("twin", "Workers at Ardmore in Antwerp assembled 1000 turbines although copper was short.")
    other = Passage("other", "Ardmore of Antwerp stopped assembling turbines and made 12 kayaks.")
    first = Passage("first", "In Antwerp, Ardmore assembled 1000 turbines.")
    question = "How many turbines did Ardmore assemble in Antwerp?"
    asked = {
        "first": [{"question": question, "answer": "1000 turbines"}],
        "twin": [{"question": question + "?", "answer": "assembled 1000 turbines"}],
        "other": [{"question": "Ardmore kayak count", "answer": "12 kayaks"}],
    }
    plan = ONE
    events = run([first, twin, other], answering(asked), plan)
    assert reasons_of(events) == Counter({"duplicate-elsewhere": 1})
    rows = collect_rows(pairs_of(events))
    (row,) = [row for row in rows.rows if rows.texts[row.anchor] == question]
    assert {rows.texts[place] for place in row.positives} == {first.text, twin.text}  # joined into one row

    asked["other"] = [{"question": question, "answer": "stopped assembling turbines"}]
    assert reasons_of(run([first, twin, other], answering(asked), plan)) == Counter({"ambiguous": 3})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What must be done before surgery?", "What must be done after surgery?"),
        ("Who may fly from Leeds to Bonn for free?", "Who may fly from Bonn to Leeds for free?"),
    ],
)
def test_questions_of_the_same_words_in_another_direction_are_two(one: str, other: str) -> None:
    passages = [
        Passage("first", "Patients fast for eight hours before surgery. Members fly from Leeds to Bonn."),
        Passage("second", "Patients rest for two days after surgery. Children fly from Bonn to Leeds."),
    ]
    answers = ("eight hours", "two days") if "surgery" in one else ("Members", "Children")
    asked = {
        passage.id: [{"question": question, "answer": answer}]
        for passage, question, answer in zip(passages, (one, other), answers, strict=True)
    }
    assert not reasons_of(run(passages, answering(asked), ONE))


def test_other_passages_that_answer_become_positives_and_do_not_stand_in_the_way() -> None:
    first = Passage("first", "Ardmore of Antwerp paid a dividend of $1.25 per share in March 2023.")
    again = Passage("again", "In March 2023 Ardmore of Antwerp paid a dividend of $1.25 per share to its owners.")
    later = Passage("later", "Ardmore of Antwerp paid a dividend of $1.25 per share in March 2024.")
    asked: dict[str, list[dict[str, Any]]] = {passage.id: [] for passage in (first, again, later)}
    asked["first"] = [{"question": "Ardmore dividend for March 2023 to its owners", "answer": "$1.25 per share"}]
    plan = replace(ONE, k_encoder=1, k_lexical=1)
    pairs = pairs_of(run([later, again, first], answering(asked), plan, encoder=FakeEncoder()))
    assert [evidence_of(pair)["passage"] for pair in pairs] == ["first", "again"]
    assert evidence_of(pairs[0])["rank.bm25"] == "1"  # the passage before it answers, too
    assert len({(pair.anchor, pair.group) for pair in pairs}) == 1
    without = replace(plan, further=False)
    events = run([later, again, first], answering(asked), without, encoder=FakeEncoder())
    assert not pairs_of(events)
    assert reasons_of(events)["round-trip"] == 1


def test_a_passage_comes_back_by_either_search_by_both_or_by_none() -> None:
    passages = make_passages(6, 6)
    asked: dict[str, list[dict[str, Any]]] = {passage.id: [] for passage in passages}
    asked["Ardmorea-0"] = [{"question": "Ardmoreaque turbinesk Antwerpish", "answer": SPAN}]  # no word of it
    for trip, kept in (("either", 1), ("encoder", 1), ("lexical", 0), ("both", 0), ("off", 1)):
        plan = replace(ONE, trip=trip, k_encoder=3, k_lexical=3)  # type: ignore[arg-type]
        events = run(passages, answering(asked), plan, encoder=FakeEncoder())
        assert len(pairs_of(events)) == kept, trip
        assert reasons_of(events)["round-trip"] == 1 - kept
    llm, blind = answering(asked), CountingEncoder(FakeEncoder().encode)
    run(passages, llm, replace(ONE, trip="lexical", further=False), encoder=blind)
    assert blind.texts == 0  # an encoder without a say is not asked


def test_multi_passage_questions_have_every_passage_as_positive() -> None:
    passages = make_passages(3, 4)
    plan = replace(SMALL, multi_passage=1.0, k_encoder=50, k_lexical=50)
    events = run(passages, obedient(), plan, encoder=FakeEncoder())
    multi = [pair for pair in pairs_of(events) if evidence_of(pair)["style"] == "multi-passage"]
    rows = collect_rows(multi).rows
    assert rows
    assert all(len(row.positives) == 2 for row in rows)
    for pair in multi:
        assert evidence_of(pair)["span"] in pair.positive


def test_candidates_come_back_from_disk_as_they_were() -> None:
    bare = Candidate("what is \ud83d\ude00?", "keyword", (0,), ("half \udc00",), "prompt", "llm")
    told = replace(bare, sources=(1, 2), positives=((3, "twin"),), asked=(4, 5), evidence=("rank.bm25=2",))
    with Spool(candidate_from) as waiting:
        for candidate in (bare, told):
            waiting.add(candidate)
        assert list(waiting) == [bare, told]


def test_a_judge_keeps_what_is_answered_and_finds_further_positives() -> None:
    passages = make_passages(4, 4)
    judge, llm = obedient(), obedient()
    with Journal(":memory:") as journal, Journal(":memory:") as other:
        plain = list(synthesize_rag(SMALL, passages, Calls(llm, journal), encoder=FakeEncoder()))
        judged = list(
            synthesize_rag(SMALL, passages, Calls(llm, journal), encoder=FakeEncoder(), judge_calls=Calls(judge, other))
        )
    assert len(judge.calls) == len({(pair.anchor, pair.group) for pair in pairs_of(plain)})
    kept = {pair.anchor for pair in pairs_of(judged)}
    assert kept
    assert kept <= {pair.anchor for pair in pairs_of(plain)}
    assert all(evidence_of(pair)["judge"] == "yes" for pair in pairs_of(judged))
    assert "the judge says yes" in {evidence_of(pair)["positive"] for pair in pairs_of(_judged_twins())}
    no = FakeLLM(answer=lambda prompt: '{"verdicts": [{"passage": 1, "verdict": "no", "span": ""}]}')
    with Journal(":memory:") as other:
        denied = run(passages[:1], obedient(), SMALL, judge_calls=Calls(no, other))
    assert set(reasons_of(denied)) == {"unanswerable"}
    mute = FakeLLM(answer=lambda prompt: None)
    with Journal(":memory:") as other:
        unheard = run(passages[:1], obedient(), SMALL, judge_calls=Calls(mute, other))
    assert set(reasons_of(unheard)) == {"no-answer"}
    with Journal(":memory:") as other:
        unsaid = run(passages[:1], obedient(), SMALL, judge_calls=Calls(FakeLLM(answer=lambda _: "{}"), other))
    assert set(reasons_of(unsaid)) == {"not-judged"}
    with Journal(":memory:") as other:
        unpaid = run(passages[:1], obedient(), SMALL, judge_calls=Calls(judge, other, budget=Budget(max_calls=0)))
    assert set(reasons_of(unpaid)) == {"no-budget"}


def _judged_twins() -> list[Example | Rejected]:
    """A passage that answers in other words, which only a judge can tell."""
    first = Passage("first", "Ardmore pays a dividend of $1.25 per share.")
    twin = Passage("twin", "Ardmore dividend: five quarters.")
    asked: dict[str, list[dict[str, Any]]] = {
        "first": [{"question": "Ardmore dividend", "answer": "$1.25"}],
        "twin": [],
    }
    with Journal(":memory:") as journal:
        judge = Calls(obedient(), journal)
        return run([first, twin], answering(asked), ONE, encoder=FakeEncoder(), judge_calls=judge)


def test_the_order_of_the_answers_does_not_matter() -> None:
    class Shuffled(FakeLLM):
        def complete(self, prompts: Sequence[Prompt], sampling: Any, /) -> Any:
            order = random.Random(5).sample(range(len(prompts)), len(prompts))
            for place in order:
                yield place, next(iter(super().complete([prompts[place]], sampling)))[1]

    passages = make_passages(5, 4)
    plan = replace(SMALL, multi_passage=0.5)
    left = run(passages, obedient(), plan, encoder=FakeEncoder())
    right = run(passages, Shuffled(lambda prompt: write_rag_answer(prompt.user)), plan, encoder=FakeEncoder())
    assert left == right


def test_a_changed_filter_costs_no_call_and_a_grown_corpus_only_what_is_new(tmp_path: Path) -> None:
    passages, journal = make_passages(6, 5), tmp_path / "journal.sqlite"
    first = obedient()
    run(passages, first, SMALL, journal, encoder=FakeEncoder())
    assert len(first.calls) == 30
    second = obedient()
    strict = replace(SMALL, trip="both", k_encoder=1, k_lexical=1, copied=3, copied_share=0.1, further=False)
    run(passages, second, strict, journal, evaluation=["kayaks"])
    assert not second.calls
    third = obedient()
    run(make_passages(7, 5), third, SMALL, journal, encoder=FakeEncoder())
    assert len(third.calls) == 5


FAULTS = (
    "rate_limit", "server_error", "drop", "null", "empty", "truncated", "thinking", "fenced", "broken", "refusal"
)  # fmt: skip


def test_against_a_faulty_server_every_call_ends_as_questions_or_as_a_reason(tmp_path: Path) -> None:
    passages = make_passages(6, 5)
    plan = replace(SMALL, multi_passage=0.3)
    with FaultyServer(faults=dict.fromkeys(FAULTS, 0.07), seed=1, answer=write_rag_answer) as server:
        llm = open_llm("openai:any", base_url=server.base_url)
        events = run(passages, llm, plan, tmp_path / "journal.sqlite", encoder=FakeEncoder())
        faults = {call.fault for call in server.calls}
        sent = len(server.calls)
        assert run(passages, llm, plan, tmp_path / "journal.sqlite", encoder=FakeEncoder()) == events
        assert len(server.calls) == sent
    assert len(faults & set(FAULTS)) >= 8
    planned = {prompt.row for _, prompt in render_targets(plan, passages)}
    ended = {event.source for event in events if isinstance(event, Rejected)}
    ended |= {pair.provenance.source for pair in pairs_of(events) if pair.provenance is not None}
    assert ended == planned
    assert reasons_of(events)["unreadable"] > 0
    assert len(pairs_of(events)) > 2 * len(passages)


def test_passages_must_be_there_and_have_ids_of_their_own() -> None:
    with pytest.raises(InputError, match="no passage"):
        run([], obedient())
    with pytest.raises(InputError, match="the id 'a'"):
        run([Passage("a", "One."), Passage("a", "Two.")], obedient())


# ── The cache of the vectors


class CountingEncoder:
    def __init__(self, encode: Callable[[Sequence[str]], Embeddings]) -> None:
        self._encode, self.texts = encode, 0

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        self.texts += len(texts)
        return self._encode(texts)


def test_vectors_are_made_once_and_a_grown_corpus_only_adds(tmp_path: Path) -> None:
    texts = [passage.text for passage in make_passages(8, 10)]
    cache = tmp_path / "passages.npz"
    encoder = CountingEncoder(FakeEncoder().encode)
    first = embed_passages(texts, encoder, cache=cache)
    assert encoder.texts == 80
    grown = [*texts[:10], "A new passage.", *texts[10:]]
    again = embed_passages(grown, encoder, cache=cache)
    assert encoder.texts == 80 + 8 + 1  # eight probes and the new one
    assert np.array_equal(np.delete(again, 10, axis=0), first)
    assert np.array_equal(again[10], FakeEncoder().encode(["A new passage."])[0])


def test_a_cache_of_another_encoder_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    texts = [passage.text for passage in make_passages(2, 5)]
    cache = tmp_path / "passages.npz"
    embed_passages(texts, FakeEncoder(256), cache=cache)
    turned = CountingEncoder(lambda texts: -FakeEncoder(256).encode(texts))
    assert np.array_equal(embed_passages(texts, turned, cache=cache), -FakeEncoder(256).encode(texts))
    assert embed_passages(texts, FakeEncoder(64), cache=cache).shape == (10, 64)
    cache.write_bytes(cache.read_bytes()[:200])
    assert np.array_equal(embed_passages(texts, FakeEncoder(64), cache=cache), FakeEncoder(64).encode(texts))


# ── Recorded completions of a large model on real filings


def test_recorded_finance_questions_are_kept_or_lost_for_a_reason(data: Path) -> None:
    folder = data / "finance_passages"
    with gzip.open(folder / "passages.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = {row["id"]: row["text"] for row in map(json.loads, lines)}
    with gzip.open(folder / "completions.jsonl.gz", "rt", encoding="utf-8") as lines:
        answered = {row["id"]: len(row["questions"]) for row in map(json.loads, lines)}
    passages = [Passage(name, texts[name], document=name) for name in answered]
    plan = RagPlan(conversational=0, multi_passage=0.0)
    llm = open_llm(f"recorded:{folder / 'completions.jsonl.gz'}")
    events = run(passages, llm, plan)
    sources = [pair for pair in pairs_of(events) if evidence_of(pair)["positive"] == "source"]
    lost = reasons_of(events)
    assert len(sources) + lost.total() == sum(answered.values()) + sum(not count for count in answered.values())
    assert lost["no-question"] == sum(not count for count in answered.values())
    assert lost["span-not-in-passage"] == 0  # the model copied well
    assert len(sources) > 0.7 * sum(answered.values())  # BM25 alone loses questions in other words
