"""parse_list: whatever a language model answers, texts come out, or a note says why none did."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedsmith.llm.structured import Parsed, parse_list, parse_object

KEY = "paraphrases"
NOTES = {"thinking-removed", "repaired", "truncated", "empty", "not-json"}
questions = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), max_size=6)


def answer(*texts: str) -> str:
    return json.dumps({KEY: texts}, ensure_ascii=False)


def test_a_clean_answer_needs_no_note() -> None:
    assert parse_list(answer("How long do I boil an egg?", "Egg: minutes?"), KEY) == Parsed(
        ("How long do I boil an egg?", "Egg: minutes?")
    )


@pytest.mark.parametrize(
    ("text", "items", "notes"),
    [
        ('<think>two of them</think>{"paraphrases": ["a b", "c d"]}', ("a b", "c d"), ("thinking-removed",)),
        ('<THINKING>\n["x"]\n</THINKING>\n{"paraphrases": ["a b"]}', ("a b",), ("thinking-removed",)),
        ('<think>I never come to an end {"paraphrases": ["a b"]}', (), ("thinking-removed", "empty")),
        ('```json\n{"paraphrases": ["a b", "c d"]}\n```', ("a b", "c d"), ()),
        ('Sure!\n```\n["a b", "c d"]\n```\nAnything else?', ("a b", "c d"), ()),
        ('Here you are: {"paraphrases": ["a b"]}', ("a b",), ("repaired",)),
        ('{"paraphrases": ["a b", "c d",]}', ("a b", "c d"), ("repaired",)),
        ('{"paraphrases": ["a\nb"]}', ("a b",), ("repaired",)),
        ("{'paraphrases': ['it\\'s one', 'two']}", ("it's one", "two"), ("repaired",)),
        ('{"paraphrases": ["a b", "c d", "e', ("a b", "c d"), ("truncated",)),
        ('{"paraphrases": ["say \\"hi\\" to x", "c', ('say "hi" to x',), ("truncated",)),
        ('{"paraphrases": [{"question": "a b"}, {"question": "c', ("a b",), ("truncated",)),
        ('{"paraphrases": [{"question": "a b"}, {"text": "c d"}]}', ("a b", "c d"), ()),
        ('{"questions": ["a b"]}', ("a b",), ()),  # another key, but only one list it can be
        ('{"error": "no", "alternatives": ["a b"]}', (), ()),  # a list of something else
        ('{"error": "no", "alternatives": ["a b", "c', (), ("not-json",)),
        ('{"paraphrases": ["a b"]}\n{"paraphrases": ["c d"]}', ("a b", "c d"), ("repaired",)),
        ('{"paraphrases": ["a b"]}, {"distinct": ["c d"]}', ("a b",), ("repaired",)),
        ('{"paraphrases": ["how does the </think> tag work", "c', ("how does the </think> tag work",), ("truncated",)),
        ('{"draft": 1} no.</think>\n{"paraphrases": ["a b"]}', ("a b",), ("thinking-removed",)),
        ('["a b"]', ("a b",), ()),
        ('{"paraphrases": "a b"}', ("a b",), ()),
        ('{"paraphrases": ["a b", 3, null, ["c"]]}', ("a b",), ()),
        ("1. a b\n2) c d\n- e f\n• g h", ("a b", "c d", "e f", "g h"), ("not-json",)),
        ("I am sorry, I cannot do that.", (), ("not-json",)),
        ("", (), ("empty",)),
        (" \n ", (), ("empty",)),
        (None, (), ("empty",)),
    ],
)
def test_what_models_really_answer(text: str | None, items: tuple[str, ...], notes: tuple[str, ...]) -> None:
    assert parse_list(text, KEY) == Parsed(items, notes)


@pytest.mark.parametrize(
    "texts",
    [
        ("Why does ```print(x``` fail?", "How do I close ```?"),
        ("Does ```x``` need a language?",),
        ("What does <think> do in R1?", "And </think>?"),
        ("<thinking>, what is it?",),
    ],
)
@pytest.mark.parametrize(
    "form", ["{}", "```json\n{}\n```", "<think>quote ```it```</think>\n```\n{}\n```", "Sure!\n```\n{}\n```"]
)
def test_fences_and_tags_inside_the_texts_are_texts(texts: tuple[str, ...], form: str) -> None:
    assert parse_list(form.replace("{}", answer(*texts)), KEY).items == texts
    assert parse_list(answer(*texts), KEY) == Parsed(texts)
    assert parse_object(answer(*texts), [KEY]) == ({KEY: list(texts)}, ())


def test_a_broken_answer_may_speak_of_fences_and_tags() -> None:
    assert parse_list('{"paraphrases": ["why does ```x``` fail", "what is <think>",]}', KEY).items == (
        "why does ```x``` fail",
        "what is <think>",
    )


@pytest.mark.parametrize("text", ['{"distinct": ["a b", "c d"]}', '{"distinct": ["a b", "c d", "e'])
def test_the_list_of_another_call_is_not_taken(text: str) -> None:
    assert parse_list(text, KEY, others=("paraphrases", "distinct")).items == ()
    assert parse_list(text, KEY).items == ("a b", "c d")


def test_the_list_that_was_asked_for_wins_over_other_lists() -> None:
    assert parse_list('{"distinct": ["no"], "paraphrases": ["yes"]}', KEY).items == ("yes",)


@given(questions)
def test_texts_survive_unchanged_with_any_decoration(texts: list[str]) -> None:
    clean = answer(*texts)
    assert parse_list(clean, KEY) == Parsed(tuple(texts))
    assert parse_list(f"<think>hm [1, 2]</think>\n{clean}", KEY) == Parsed(tuple(texts), ("thinking-removed",))


def test_a_text_of_a_cut_answer_may_be_a_word_that_names_texts_elsewhere() -> None:
    assert parse_list('{"paraphrases": ["price", "content", "why', KEY).items == ("price", "content")
    assert parse_list('{"paraphrases": [{"question": "price"}, {"question" : "content"}, {"que', KEY).items == (
        "price",
        "content",
    )


@given(questions, st.data())
def test_a_cut_answer_yields_a_prefix_of_the_list(texts: list[str], data: st.DataObject) -> None:
    """What is cut off is lost; what is kept is word for word what was written."""
    texts = [text.replace("]", "").replace("`", "").replace("<", "") for text in texts]
    clean = answer(*texts)
    opening = len(f'{{"{KEY}": [')
    cut = data.draw(st.integers(opening, len(clean)))
    items = parse_list(clean[:cut], KEY).items
    assert items == tuple(texts[: len(items)])


@given(st.text())
@example("{'a': ['x']}")
@example("[[[[")
def test_any_text_is_taken_without_an_error(text: str) -> None:
    parsed = parse_list(text, KEY)
    assert set(parsed.notes) <= NOTES
    assert len(set(parsed.notes)) == len(parsed.notes)
    assert all(isinstance(item, str) for item in parsed.items)


# Found in the first session; strict, so that a repair of the parser turns them into plain tests.


def test_a_list_in_bare_braces() -> None:
    assert parse_list('{["How is it done?", "How to do it?"]}', KEY).items == ("How is it done?", "How to do it?")


def test_a_model_that_loops_on_brackets() -> None:
    assert parse_list('{"paraphrases": ' + "[" * 100_000, KEY).items == ()


def test_brackets_in_the_texts_of_a_cut_answer() -> None:
    parsed = parse_list('{"paraphrases": ["Is [Lipitor] a statin?", "second one", "thi', KEY)
    assert parsed == Parsed(("Is [Lipitor] a statin?", "second one"), ("truncated",))


def test_a_missing_comma_does_not_glue_two_texts_together() -> None:
    assert parse_list('{"paraphrases": ["How is it done?" "How to do it?"]}', KEY).items == (
        "How is it done?",
        "How to do it?",
    )


def test_thoughts_without_an_opening_tag() -> None:
    text = 'Maybe {"paraphrases": ["a draft"]}? No.\n</think>\n{"paraphrases": ["the answer"]}'
    assert parse_list(text, KEY) == Parsed(("the answer",), ("thinking-removed",))


def test_texts_can_always_be_written_as_utf_8() -> None:
    for item in parse_list('{"paraphrases": ["is it bad \\ud83d"]}', KEY).items:
        item.encode("utf-8")
