"""E5's data: what is asked follows the published weights, and every planned row ends as an example or with a reason."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedsmith.answers.e5 import common_words, write_e5_answer, write_text
from embedsmith.artifacts import write_jsonl
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import (
    Example,
    PositivePair,
    Rejected,
    ScoredPair,
    Triplet,
    as_triplet,
    read_examples,
    split,
    texts_of,
    write_examples,
)
from embedsmith.llm import Completion, Prompt, Sampling, open_llm
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.synthesis.e5 import (
    GROUPS,
    PUBLISHED,
    E5Plan,
    count_calls,
    open_asker,
    parse_groups,
    parse_languages,
    synthesize_e5,
)
from embedsmith.synthesis.e5.duplicates import SeenTexts
from embedsmith.synthesis.e5.plan import TWO_STEPS, Row
from embedsmith.synthesis.e5.prompting import KEYS, draw_row, load_templates
from embedsmith.synthesis.e5.topics import load_topics
from embedsmith.synthesis.languages import check_language, default_weights, known_languages, open_identifier
from embedsmith.synthesis.refusals import find_refusal
from embedsmith.testing import FakeLLM, FaultyServer

Outcome = Example | Rejected
ENGLISH = {"en": 1.0}
SHORT = ("short-short", "sts")


def obedient(name: str = "fake:llm") -> FakeLLM:
    return FakeLLM(answer=lambda prompt: write_e5_answer(prompt.user), name=name)


def run(plan: E5Plan, llm: Any = None, *, journal: Path | str = ":memory:", **more: Any) -> list[Outcome]:
    with Journal(journal) as opened:
        return list(synthesize_e5(plan, Calls(llm or obedient(), opened), **more))


def kept_of(outcomes: list[Outcome]) -> list[Example]:
    return [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]


def reasons_of(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Rejected))


def ended_rows(outcomes: list[Outcome]) -> list[str]:
    """The row of every outcome that ends one."""
    ids = [item.source if isinstance(item, Rejected) else item.provenance.source for item in outcomes]
    return [name for name in ids if not name.endswith("/tasks")]


def one_row(group: str, answer: dict[str, Any] | str, **settings: Any) -> Outcome:
    """What becomes of a single row that is answered with `answer`."""

    def reply(prompt: Prompt) -> str:
        if prompt.task == "tasks":
            return write_e5_answer(prompt.user)
        return answer if isinstance(answer, str) else json.dumps(answer)

    evaluation = settings.pop("evaluation", ())
    plan = E5Plan(tasks=1, groups={group: 1}, **{"languages": ENGLISH, **settings})
    (outcome,) = run(plan, FakeLLM(answer=reply), evaluation=evaluation)
    return outcome


# ── The plan


def test_the_published_proportions() -> None:
    assert count_calls(E5Plan(tasks=507)).rows == PUBLISHED
    planned = count_calls(E5Plan(tasks=500))
    assert planned.second == 500
    assert planned.first == sum(planned.rows[group] for group in TWO_STEPS)
    assert count_calls(E5Plan(tasks=500, used=5)).first == sum(
        math.ceil(planned.rows[group] / 5) for group in TWO_STEPS
    )


def test_a_larger_plan_begins_with_the_smaller_one() -> None:
    """A plan that grows asks all that it asked before, word for word."""
    for tasks, more in [(1, 2), (37, 38), (100, 150)]:
        small, large = E5Plan(tasks=tasks, seed=5), E5Plan(tasks=more, seed=5)
        assert list(large.rows())[:tasks] == list(small.rows())
        assert list(large.brainstorms())[: count_calls(small).first] == list(small.brainstorms())
    sent = []
    for plan in (small, large):
        llm = obedient()
        run(replace(plan, check_languages=False), llm)
        sent.append({prompt.fingerprint for prompt in llm.calls})
    assert sent[0] < sent[1]
    assert len(sent[1]) == count_calls(large).first + count_calls(large).second


def test_two_rows_more_cost_two_rows_more(tmp_path: Path) -> None:
    run(E5Plan(tasks=100, languages=ENGLISH, groups=dict(sts=1, **{"long-short": 1})), journal=tmp_path / "j.sqlite")
    llm = obedient()
    run(
        E5Plan(tasks=102, languages=ENGLISH, groups=dict(sts=1, **{"long-short": 1})),
        llm,
        journal=tmp_path / "j.sqlite",
    )
    assert len(llm.calls) == 3  # an STS row, and a row of long-short with its brainstorm


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": 0},
        {"brainstorm": 1},
        {"brainstorm": 10, "used": 11},
        {"sts_as": "pairs"},
        {"groups": {"sts": -1}},
        {"groups": {"short": 1}},
        {"groups": {"sts": 0}},
        {"languages": {"xx": 1}},
        {"languages": {}},
        {"languages": {"en": 0}},
        {"languages": {"en": 1}},  # bitext takes two
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        E5Plan(**wrong)


def test_what_the_command_line_reads() -> None:
    assert parse_groups("all") == PUBLISHED
    assert parse_languages("default") == default_weights()
    assert dict(parse_languages("en,de")) == {"en": 0.5, "de": 0.5}
    for wrong in ("en,en", "en=x", "", "klingon", "en=-1"):
        with pytest.raises(ConfigurationError):
            parse_languages(wrong)
    for wrong in ("sts,sts", "sts=x", "", "retrieval"):
        with pytest.raises(ConfigurationError):
            parse_groups(wrong)


# ── What chance gives


def draws(group: str, plan: E5Plan, count: int) -> Iterator[dict[str, str]]:
    template = load_templates().examples[group]
    for number in range(count):
        draw = draw_row(plan, Row(group, number), template)
        yield {**draw.values, "language": draw.languages[0].code, "other": draw.languages[1].code}


def within(found: int, share: float, count: int) -> bool:
    """Within 4.5 standard deviations: one in 150,000 of right shares fails."""
    return abs(found - share * count) <= 4.5 * math.sqrt(count * share * (1 - share)) + 1e-9


# REFERENCES §1: the placeholders of E5-mistral and their weights.
WEIGHTS = {
    "short-long": {
        "query_type": {"extremely long-tail": 0.4, "long-tail": 0.5, "common": 0.1},
        "query_length": {"less than 5 words": 0.4, "5 to 15 words": 0.4, "at least 10 words": 0.2},
        "clarity": {"clear": 0.6, "understandable with some effort": 0.2, "ambiguous": 0.2},
        "num_words": dict.fromkeys(("50", "100", "200", "300", "400", "500"), 1 / 6),
        "difficulty": dict.fromkeys(("high school", "college", "PhD"), 1 / 3),
    },
    "long-short": {
        "num_words": {
            "less than 10 words": 0.1,
            "at least 10 words": 0.3,
            "at least 50 words": 0.2,
            "at least 100 words": 0.2,
            "at least 200 words": 0.2,
        },
    },
    "sts": {
        "unit": {"sentence": 0.9, "phrase": 0.05, "passage": 0.05},
        "high_score": dict.fromkeys(("4", "4.5", "5"), 1 / 3),
        "low_score": dict.fromkeys(("2.5", "3", "3.5"), 1 / 3),
    },
}


@pytest.mark.parametrize("group", WEIGHTS)
def test_placeholders_come_as_often_as_published(group: str) -> None:
    count = 20_000
    rows = list(draws(group, E5Plan(), count))
    for name, weights in WEIGHTS[group].items():
        found = Counter(row[name] for row in rows)
        assert set(found) == set(weights)
        assert all(within(found[value], share, count) for value, share in weights.items()), (name, found)
    languages = Counter(row["language"] for row in rows)
    assert all(within(languages[code], share, count) for code, share in default_weights().items())


def test_languages_are_those_of_xlmr_in_the_published_shares() -> None:
    weights = default_weights()
    assert len(weights) == len(known_languages()) == 93
    assert weights["en"] == 0.43
    assert sum(share == 0.03 for share in weights.values()) == 13
    assert math.isclose(sum(weights.values()), 1)
    assert math.isclose(weights["xh"], 0.18 / 79)


def test_bitext_goes_from_one_language_to_another() -> None:
    plan = E5Plan(languages=parse_languages("en=2,de=1,fr=1"))
    pairs = Counter((row["language"], row["other"]) for row in draws("bitext", plan, 6000))
    assert len(pairs) == 6  # all ordered pairs of three, none with itself
    assert within(pairs["en", "de"], 1 / 4, 6000)


def test_the_difficulty_line_comes_half_of_the_time_and_guidelines_in_any_order() -> None:
    asker = open_asker(E5Plan(languages=ENGLISH, groups={"sts": 1}))
    prompts = [asker.example(Row("sts", number)).prompt.user for number in range(600)]
    assert within(sum("level to understand" in prompt for prompt in prompts), 0.5, 600)
    first = Counter(next(line for line in prompt.splitlines() if line.startswith("- ")) for prompt in prompts)
    assert sum(line.split(" takes a ")[0] != "" for line in first) >= 7


@pytest.mark.parametrize("group", GROUPS)
def test_a_prompt_is_whole_and_asks_for_the_keys_of_its_group(group: str) -> None:
    asker = open_asker(E5Plan())
    request = asker.example(Row(group, 3), "Given a bridge, find its builder." if group in TWO_STEPS else "")
    assert list(request.prompt.answer_schema["properties"]) == list(KEYS[group])
    assert all(f'"{key}"' in request.prompt.user for key in KEYS[group])
    assert request.anchored.name in request.prompt.user
    assert not any("{" in line and "string" not in line for line in request.prompt.user.splitlines())


# ── Topics


def test_no_start_comes_twice_before_all_have_been_used() -> None:
    topics = load_topics()
    assert len(topics) >= 150_000
    starts = [topics.start(0, "sts", number) for number in range(30_000)]
    assert len(set(starts)) == len(starts)
    assert len({start.topic for start in starts[: len(topics.topics)]}) == len(topics.topics)
    small = replace(topics, topics=("bread", "tea"), readers=("a cook", "a guest", "a child"), angles=("price", "law"))
    assert len({small.start(1, "sts", number) for number in range(12)}) == 12
    with pytest.raises(ConfigurationError, match="more than 12"):
        small.start(1, "sts", 12)


def test_topics_of_the_users_own(tmp_path: Path) -> None:
    file = write_jsonl_rows(
        tmp_path / "own.jsonl", [{"text": "pumps"}, {"text": ""}, {"text": "Pumps"}, {"text": "w " * 2000}]
    )
    outcomes = run(E5Plan(tasks=4, groups={"sts": 1}, languages=ENGLISH, topics=file))
    assert reasons_of(outcomes) == {"no-text": 1, "repeated-topic": 1}
    assert len(kept_of(outcomes)) == 4
    prompt = open_asker(E5Plan(groups={"sts": 1}, languages=ENGLISH, topics=file)).example(Row("sts", 0)).prompt.user
    assert "topic: pumps\n" in prompt or len(prompt) < 4000
    with pytest.raises(ConfigurationError, match="different starts"):
        open_asker(E5Plan(tasks=900, groups={"sts": 1}, languages=ENGLISH, topics=file))


def write_jsonl_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    write_jsonl(path, rows)
    return path


# ── The prompts file


def test_a_prompts_file_of_the_users_own(tmp_path: Path) -> None:
    import embedsmith.synthesis as synthesis

    ours = (Path(synthesis.__file__).parent / "prompts" / "e5.toml").read_text(encoding="utf-8")
    own = tmp_path / "own.toml"
    own.write_text(ours.replace("Think of what it means to", "See it with the eyes of"), encoding="utf-8")
    assert "See it with the eyes of" in open_asker(E5Plan(prompts=own)).brainstorm(Row("short-long", 0)).user
    for old, new, said in [
        ("{num_words}", "{words}", "wrong placeholder"),
        ("A matching task: {task}", "A matching task", "never names {task}"),
        ("[sts.values]", "[sts.choices]", "lacks|has"),
        ('unit = { "sentence" = 0.9', 'unit = { "sentence" = -1', "weights"),
        ("Reply with {{", "Reply with {", "wrong placeholder"),
        ("system =", "system = [", "not TOML"),
    ]:
        own.write_text(ours.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigurationError, match=said):
            load_templates(own)
    with pytest.raises(InputError):
        load_templates(tmp_path / "missing.toml")


# ── What becomes of the answers


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_against_an_obedient_model(group: str) -> None:
    plan = E5Plan(tasks=25, groups={group: 1}, seed=2)
    outcomes = run(plan)
    assert len(kept_of(outcomes)) == 25, reasons_of(outcomes)
    kind = PositivePair if group in {"short-short", "long-long"} else Triplet
    for row, example in zip(plan.rows(), kept_of(outcomes), strict=True):
        assert isinstance(example, kind)
        assert example.instruction
        assert example.provenance.source == row.id
        assert {"language", "leak", "repeat", "labels"} <= set(example.provenance.checks)
        assert example.group == (example.instruction if group in TWO_STEPS else row.id)


def test_keys_become_columns() -> None:
    long = " ".join(f"word{number}" for number in range(120))
    triplet = one_row(
        "long-short", {"input_text": f"A rather plain note. {long}", "label": "Praise", "misleading_label": "Blame"}
    )
    assert isinstance(triplet, Triplet)
    assert (triplet.positive, triplet.negatives) == ("Praise", ("Blame",))
    three = {"S1": "The shop opens at nine.", "S2": "From nine on you can buy there.", "S3": "The shop closes at nine."}
    example = one_row("sts", three)
    assert texts_of(example) == tuple(three.values())
    assert example.instruction == "Find the text that means the same."


def test_sts_as_scored_pairs_has_the_scores_that_were_asked_for() -> None:
    plan = E5Plan(tasks=20, groups={"sts": 1}, sts_as="scored")
    outcomes = run(plan)
    assert len(outcomes) == 40
    assert all(isinstance(pair, ScoredPair) for pair in outcomes)
    for high, low in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert high.sentence1 == low.sentence1
        assert high.score in {4, 4.5, 5}
        assert low.score in {2.5, 3, 3.5}


def test_bitext_names_both_languages_in_its_instruction() -> None:
    (example,) = run(E5Plan(tasks=1, groups={"bitext": 1}, languages=parse_languages("fi,sw")))
    assert example.instruction in {
        "Find the Swahili translation of the Finnish text.",
        "Find the Finnish translation of the Swahili text.",
    }


def test_one_file_of_all_groups_reads_back_as_triplets(tmp_path: Path) -> None:
    kept = kept_of(run(E5Plan(tasks=60)))
    write_examples(tmp_path / "examples.jsonl", kept)
    back = read_examples(tmp_path / "examples.jsonl", kind=Triplet)
    assert list(back.examples) == [as_triplet(example) for example in kept]
    parts = split(back.examples, {"train": 0.5, "test": 0.5})
    assert not {example.group for example in parts["train"]} & {example.group for example in parts["test"]}


SENTENCE = "The harbour master keeps the keys of the northern gate in a small wooden box near the door."
OTHER = "Visitors who arrive after dark are asked to ring twice and to wait in front of the office."
THIRD = "Nobody has seen the ferry since the storm tore down both of the old landing stages."
REJECTIONS = [
    ("sts", "", "empty"),
    ("sts", '{"S1": "The harbour is cl', "truncated"),
    ("sts", "Here are three texts about harbours.", "malformed"),
    ("sts", {"S1": SENTENCE, "S2": OTHER}, "missing-key"),
    ("sts", {"S1": SENTENCE, "S2": OTHER, "S3": None}, "missing-key"),
    ("sts", {"S1": SENTENCE, "S2": OTHER, "S3": ["a", "b"]}, "missing-key"),
    ("sts", "I'm sorry, but I can't help with that.", "refusal"),
    ("sts", {"S1": SENTENCE, "S2": OTHER, "S3": "As an AI language model I have no opinion."}, "refusal"),
    ("sts", {"S1": SENTENCE, "S2": "{language}", "S3": THIRD}, "placeholder"),
    ("sts", {"S1": SENTENCE, "S2": "string", "S3": THIRD}, "placeholder"),
    ("sts", {"S1": SENTENCE, "S2": "[insert a paraphrase here]", "S3": THIRD}, "placeholder"),
    ("sts", {"S1": "S1: the harbour is open, S2: it is closed.", "S2": OTHER, "S3": THIRD}, "placeholder"),
    ("short-short", {"input": "ring twice", "positive_document": "The positive_document says: ring."}, "placeholder"),
    ("sts", {"S1": SENTENCE, "S2": "12:30 — 14:45", "S3": THIRD}, "malformed"),
    ("sts", {"S1": SENTENCE, "S2": "the whole and " * 9, "S3": THIRD}, "repeats-itself"),
    (
        "sts",
        {"S1": SENTENCE, "S2": "S2 says what S1 says in another way: another structure", "S3": THIRD},
        "prompt-echo",
    ),
    ("sts", {"S1": SENTENCE, "S2": SENTENCE.upper(), "S3": THIRD}, "copy"),
    ("sts", {"S1": SENTENCE, "S2": SENTENCE.replace("small", "smaller"), "S3": THIRD}, "copy"),
    ("sts", {"S1": SENTENCE, "S2": OTHER, "S3": OTHER + "!"}, "positive-is-negative"),
    ("sts", {"S1": "Der Hafenmeister hat heute keine Zeit für die vielen Besucher aus der großen Stadt am Fluss.",
             "S2": OTHER, "S3": THIRD}, "wrong-language"),
    ("sts", {"S1": SENTENCE, "S2": "港の管理人は鍵を箱に入れています", "S3": THIRD}, "wrong-language"),
    ("sts", {"S1": SENTENCE, "S2": "Ring.", "S3": THIRD}, "too-short"),
    ("sts", {"S1": SENTENCE, "S2": " ".join([OTHER] * 12), "S3": THIRD}, "too-long"),
    ("long-short", {"input_text": f"{SENTENCE} {OTHER} {THIRD} {SENTENCE} {OTHER} {THIRD}", "label": "Harbour master",
                    "misleading_label": "Ferry"}, "label-in-text"),
    ("long-short", {"input_text": f"{SENTENCE} {OTHER} {THIRD} {SENTENCE} {OTHER} {THIRD}", "label": "Praise",
                    "misleading_label": "praise"}, "positive-is-negative"),
    ("short-short", {"input": "Keeper of the lighthouse", "positive_document": "keeper of the lighthouse."}, "copy"),
    ("long-long", {"input": SENTENCE, "positive_document": OTHER}, "too-short"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "answer", "reason"), REJECTIONS, ids=lambda value: str(value)[:30])
def test_what_is_no_example_has_its_reason(group: str, answer: Any, reason: str) -> None:
    outcome = one_row(group, answer)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason, outcome
    assert outcome.source == f"{group}/0"
    assert outcome.context["task"]


@pytest.mark.parametrize(
    "form",
    [
        '{{"example": {0}}}',
        "[{0}, {0}]",
        "Use {{braces}} like this: {0} and {{more}} after it.",
        '<think>{{"S1": 1}}</think>```json\n{0}\n```',
        "{0}\n\n{0}",
    ],
)
def test_an_example_is_found_in_whatever_is_around_it(form: str) -> None:
    three = json.dumps({"S1": SENTENCE, "S2": OTHER, "S3": THIRD})
    outcome = one_row("sts", form.format(three))
    assert isinstance(outcome, Triplet), outcome
    assert texts_of(outcome) == (SENTENCE, OTHER, THIRD)


def test_a_query_that_is_copied_into_its_document() -> None:
    filler = " ".join(f"The {word} of the old town was moved." for word in common_words()["en"][:24] * 3)
    query = "why was the ferry pier of Northam closed"
    answer = {"user_query": query, "positive_document": f"{filler} {query}. {filler}", "hard_negative_document": filler}
    assert one_row("short-long", answer, seed=3).reason == "copy"


@pytest.mark.parametrize(
    "text",
    [
        "I cannot come to the meeting on Monday, so please send me the minutes.",
        "I'm sorry to hear that your order was lost; we will provide another one.",
        "Unfortunately I can't find the form, could you help me?",
        "I can't help laughing when I read the city's answer.",
    ],
)
def test_people_may_be_sorry(text: str) -> None:
    assert not find_refusal(text)


def test_programs_may_have_braces_and_tags() -> None:
    text = "The template says <strong>{name}</strong> and {0}, so print(f'{user}') shows the name of whoever logs in."
    three = {"S1": text, "S2": SENTENCE, "S3": THIRD}
    assert isinstance(one_row("sts", three), Triplet)


def test_minimal_differences_are_no_copies() -> None:
    three = {
        "S1": "The tram to the hospital leaves at 7 every morning from platform 2.",
        "S2": "Every day at 7 a hospital tram starts out from the second platform.",
        "S3": "The tram to the hospital leaves at 9 every morning from platform 2.",
    }
    assert isinstance(one_row("sts", three), Triplet)


def test_evaluation_texts_never_become_examples() -> None:
    three = {"S1": SENTENCE, "S2": OTHER, "S3": THIRD}
    assert one_row("sts", three, evaluation=[OTHER.lower()]).reason == "evaluation-leak"
    assert one_row("sts", three, evaluation=[THIRD.replace("storm", "storms")]).reason == "evaluation-leak"
    assert isinstance(one_row("sts", three, evaluation=["Something else altogether."]), Triplet)


def test_a_model_that_always_says_the_same() -> None:
    """One row is kept, the others are duplicates; of brainstorms that are alike, one task each is found, then none."""
    three = json.dumps({"S1": SENTENCE, "S2": OTHER, "S3": THIRD})
    outcomes = run(E5Plan(tasks=5, groups={"sts": 1}, languages=ENGLISH), FakeLLM(answer=lambda _: three))
    assert len(kept_of(outcomes)) == 1
    assert reasons_of(outcomes) == {"duplicate": 4}
    ideas = json.dumps(
        {"tasks": ["Given a dish, find the region it is from.", "Given a region, find its oldest dish."]}
    )
    fake = FakeLLM(answer=lambda prompt: ideas if prompt.task == "tasks" else write_e5_answer(prompt.user))
    outcomes = run(E5Plan(tasks=5, groups={"short-short": 1}, languages=ENGLISH), fake)
    assert len(kept_of(outcomes)) == 2
    assert reasons_of(outcomes)["no-task"] == 3
    assert reasons_of(outcomes)["repeated-task"] >= 6  # both ideas of each of the last three answers
    assert sorted(ended_rows(outcomes)) == [f"short-short/{number}" for number in range(5)]


def test_ideas_that_are_none() -> None:
    def ideas(prompt: Prompt) -> str:
        if prompt.task != "tasks":
            return write_e5_answer(prompt.user)
        good = "3. Given a dish, find the region where it was invented."
        line = "Given a headline, find the slogan of those who would welcome the news."  # shown in some prompts
        return json.dumps(
            {"tasks": ["{task}", "short", "I'm sorry, but I can't do that.", "x" * 600, line, good, good]}
        )

    outcomes = run(E5Plan(tasks=1, groups={"short-short": 1}, languages=ENGLISH), FakeLLM(answer=ideas))
    (example,) = kept_of(outcomes)
    assert example.instruction == "Given a dish, find the region where it was invented."
    assert reasons_of(outcomes) == {"prompt-echo": 2, "malformed-task": 2, "refusal": 1, "repeated-task": 1}


def test_talk_about_the_request_is_no_idea() -> None:
    """As SmolLM2-135M answers: no JSON, and bullets that go on about the request."""
    said = (
        "Refinements can be applied.\n- Use your knowledge of each task you have been given.\n- {0}\n- Choose 4 topics."
    )
    good = "Given a dish, find the region where it was invented."
    fake = FakeLLM(answer=lambda prompt: said.format(good) if prompt.task == "tasks" else write_e5_answer(prompt.user))
    outcomes = run(E5Plan(tasks=1, groups={"short-short": 1}, languages=ENGLISH), fake)
    assert [example.instruction for example in kept_of(outcomes)] == [good]
    assert reasons_of(outcomes) == {"malformed-task": 2}


def test_five_tasks_of_a_brainstorm() -> None:
    plan = E5Plan(tasks=23, groups={"short-short": 1}, languages=ENGLISH, used=5)
    llm = obedient()
    assert len(kept_of(run(plan, llm))) == 23
    assert sum(prompt.task == "tasks" for prompt in llm.calls) == 5


# ── Languages


def test_every_language_passes_as_itself_and_few_as_english() -> None:
    """Of texts of 20 words that are not English, nine in ten are found when English was asked for; none is wronged."""
    identifier, known = open_identifier(), known_languages()
    found = 0
    for code in known:
        for number in range(3):
            text = write_text(code, 20, random.Random(f"{code}{number}"))
            assert check_language(text, known[code], identifier) == ""
            found += code != "en" and check_language(text, known["en"], identifier) != ""
    assert found >= 0.9 * 92 * 3


def test_similar_languages_and_short_texts_are_left_alone() -> None:
    identifier, known = open_identifier(), known_languages()
    danish = write_text("da", 30, random.Random(1))
    assert check_language(danish, known["no"], identifier) == ""
    assert check_language(danish, known["fr"], identifier) != ""
    assert check_language("Bonjour", known["en"], identifier) == ""
    assert check_language("Привет, как дела", known["en"], None) != ""  # the writing alone
    assert check_language("GPU 3090: bench 12", known["ja"], None) != ""


def test_words_are_counted_in_every_writing() -> None:
    known = known_languages()
    assert known["hi"].count_words("यह पानी है") == 3
    assert known["zh"].count_words("我们今天去 GitHub 学校") == 5


# ── Near repeats


def test_near_repeats_in_fixed_memory() -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(150)]
    seen = SeenTexts(150)
    for text in texts:
        assert seen.find(text) == ""
        seen.add(text)
    assert all(seen.find(text.upper() + "!") == "duplicate" for text in texts)
    changed = [text.replace(text.split()[30], "another", 1) for text in texts]
    assert sum(seen.find(text) == "near-duplicate" for text in changed) >= 0.95 * 150
    assert not any(seen.find(f"{text} 12") for text in texts)  # other numbers, another text
    tracemalloc.start()
    for number in range(750):  # five times as many as expected: the oldest are forgotten
        seen.add(f"{texts[number % 150]} {number}")
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 100_000


# ── Faults, order, interruptions

FAULTS = {
    "rate_limit": 0.05,
    "server_error": 0.05,
    "drop": 0.05,
    "null": 0.05,
    "empty": 0.05,
    "truncated": 0.08,
    "thinking": 0.1,
    "fenced": 0.1,
    "broken": 0.1,
    "refusal": 0.06,
}


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_over_http_with_ten_kinds_of_faults(group: str) -> None:
    """Every planned row ends once, as an example or with a reason; what can be repaired or tried again is kept."""
    plan = E5Plan(tasks=24, groups={group: 1}, languages=parse_languages("en,fr,ja,ru"), seed=4)
    with FaultyServer(faults=FAULTS, seed=11, answer=write_e5_answer) as server:
        llm = open_llm("openai:any", base_url=server.base_url, api_key="k", concurrency=8)
        outcomes = run(plan, llm)
        spoilt = sum(call.fault in {"null", "empty", "truncated", "refusal"} for call in server.calls)
    assert sorted(ended_rows(outcomes)) == sorted(row.id for row in plan.rows())
    assert len(kept_of(outcomes)) >= 24 - spoilt  # nothing is lost to faults that can be undone
    assert spoilt > 0
    assert set(reasons_of(outcomes)) <= {
        "empty",
        "truncated",
        "refusal",
        "malformed",
        "missing-key",
        "no-task",
        "no-tasks",
    }


def lines_of(outcomes: list[Outcome], folder: Path) -> bytes:
    folder.mkdir()
    write_jsonl(folder / "rejected.jsonl", [item for item in outcomes if isinstance(item, Rejected)])
    write_examples(folder / "examples.jsonl", kept_of(outcomes))
    return (folder / "rejected.jsonl").read_bytes() + (folder / "examples.jsonl").read_bytes()


class Unordered(FakeLLM):
    """Answers in an order of its own; stops with an error after `stop` answers of a step."""

    def __init__(self, order: int, stop: int | None = None) -> None:
        super().__init__(answer=self._spoil)
        self.order, self.stop = order, stop

    def _spoil(self, prompt: Prompt) -> str:
        answer = write_e5_answer(prompt.user)
        return answer[: len(answer) // 2] if int(prompt.fingerprint, 16) % 7 == 0 else answer

    def complete(self, prompts: Any, sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        places = random.Random(self.order).sample(range(len(prompts)), len(prompts))
        for done, place in enumerate(places):
            if done == self.stop:
                raise KeyboardInterrupt
            self.calls.append(prompts[place])
            yield place, Completion(self._spoil(prompts[place]), "stop", 10, 10, 0.0, self.name)


def test_the_order_of_answers_does_not_matter(tmp_path: Path) -> None:
    plan = E5Plan(tasks=60, languages=parse_languages("en,de,zh"))
    files = [lines_of(run(plan, Unordered(order)), tmp_path / str(order)) for order in range(3)]
    assert files[0] == files[1] == files[2]
    assert b"rejected" not in files[0]
    assert b"truncated" in files[0]


@pytest.mark.parametrize("stop", [0, 5, 17])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, stop: int) -> None:
    plan = E5Plan(tasks=60, languages=parse_languages("en,de,zh"))
    whole = Unordered(1)
    expected = lines_of(run(plan, whole), tmp_path / "whole")
    asked: list[str] = []
    for attempt in range(100):
        llm = Unordered(attempt, stop=stop + 9 if attempt else stop)
        try:
            outcomes = run(plan, llm, journal=tmp_path / "journal.sqlite")
        except KeyboardInterrupt:
            asked += [prompt.fingerprint for prompt in llm.calls]
            continue
        asked += [prompt.fingerprint for prompt in llm.calls]
        break
    assert lines_of(outcomes, tmp_path / "resumed") == expected
    assert len(asked) == len(set(asked))  # no call that was answered is made again
    assert set(asked) == {prompt.fingerprint for prompt in whole.calls}
