"""Conversations as texts: one form each, and no two of them alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.conversation import (
    ROLES,
    Turn,
    is_conversation,
    parse_messages,
    read_asked,
    read_turns,
    render,
    roles_of,
)
from embedsmith.examples import LabelledPair, LabelledText, Triplet, has_conversations, read_examples, write_examples
from embedsmith.model import count_conversations

TEA = [Turn("user", "tea?"), Turn("assistant", "Green\nor black?"), Turn("user", "black")]
MARKED = st.lists(
    st.sampled_from(["User: ", "Assistant: ", "User:", "  ", " ", "\n", "\r\n", "a", "b?", "\u2028", "\x0b", ""])
).map("".join)
CONTENTS = st.one_of(MARKED, st.text())
TURNS = st.builds(
    lambda earlier, last: [*earlier, Turn("user", last)],
    st.lists(st.builds(Turn, st.sampled_from(ROLES), CONTENTS), max_size=4),
    CONTENTS,
)


def test_a_conversation_has_a_line_for_each_turn_and_a_question_is_itself() -> None:
    assert render(TEA) == "User: tea?\nAssistant: Green\n  or black?\nUser: black"
    assert render([Turn("user", "How do I\nclose it?")]) == "How do I\nclose it?"
    assert roles_of(render(TEA)) == ("user", "assistant", "user")
    assert read_asked(render(TEA)) == "tea?\nblack"
    assert read_asked("How do I close it?") == "How do I close it?"


@given(TURNS)
def test_what_was_rendered_comes_back(turns: list[Turn]) -> None:
    assert list(read_turns(render(turns))) == turns


@given(TURNS, TURNS)
def test_no_two_conversations_are_one_text(one: list[Turn], other: list[Turn]) -> None:
    assert (render(one) == render(other)) == (one == other)


@given(TURNS)
def test_what_was_rendered_is_known_for_a_conversation(turns: list[Turn]) -> None:
    assert is_conversation(render(turns)) == (len(turns) > 1)


def test_a_message_cannot_imitate_a_conversation() -> None:
    imitated = [Turn("user", render(TEA))]
    assert render(imitated) != render(TEA)
    assert not is_conversation(render(imitated))
    quoted = [Turn("user", "tea?\nAssistant: Green\n  or black?\nUser: black")]
    assert roles_of(render(quoted)) == ("user",)


@pytest.mark.parametrize(
    "text", ["User: a\nAssistant: b", "User: a\nand more\nUser: b", "Assistant: b", "user: a\nuser: b", "Usercount?"]
)
def test_other_texts_with_marks_are_questions(text: str) -> None:
    assert read_turns(text) == (Turn("user", text),)


def say(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": ROLES[place % 2], "content": content} for place, content in enumerate(contents)]


PART = {"type": "text", "text": "b"}


def test_parts_of_text_are_one_text() -> None:
    assert parse_messages(say("a", [PART, PART], "c")) == parse_messages(say("a", "b\nb", "c"))


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (say("a", "b"), "the last message is not the user's"),
        ([], "the last message is not the user's"),
        ([{"role": "system", "content": "be brief"}, *say("a")], "message 1 has the role 'system'"),
        ([{"role": ["user"], "content": "a"}], "message 1 has the role ['user']"),
        (say("a", "", "c"), "message 2 is not text"),
        (say("a", None, "c"), "message 2 is not text"),
        (say([{"type": "image_url", "image_url": {"url": "data:,"}}]), "message 1 is not text"),
        ([*say("a"), {"role": "assistant", "content": "b", "tool_calls": [1]}, *say("c")], "message 2 has tool_calls"),
        ([*say("a"), "b"], "message 2 is no object"),
    ],
)
def test_messages_that_make_no_conversation_are_told(messages: list[Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_messages(messages)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_any_text_of_a_row_may_be_a_list_of_messages(tmp_path: Path) -> None:
    chat, other, third = say("a", "b", "c"), say("d", "e", "f"), say("g", "h", "i")
    texts = [render(parse_messages(messages)) for messages in (chat, other, third)]
    pairs = read_examples(write(tmp_path / "pairs.jsonl", {"sentence1": chat, "sentence2": other, "label": 1}))
    assert pairs.examples == (LabelledPair(texts[0], texts[1], 1),)
    triplet = (Triplet(texts[0], texts[1], (texts[2],)),)
    one = {"anchor": chat, "positive": other, "negative": third}
    assert read_examples(write(tmp_path / "one.jsonl", one)).examples == triplet
    many = {"anchor": chat, "positive": other, "negatives": [third, "j", chat]}
    assert read_examples(write(tmp_path / "many.jsonl", many)).examples == (
        Triplet(texts[0], texts[1], (texts[2], "j", texts[0])),
    )
    classes = read_examples(write(tmp_path / "classes.jsonl", {"text": say("only this"), "label": "x"}))
    assert classes.examples == (LabelledText("only this", "x"),)


def test_what_is_written_is_known_for_conversations_again(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"anchor": say("a", "b", "c"), "positive": say("d", "e\nf", "g")})
    (found,) = read_examples(rows).examples
    write_examples(tmp_path / "again.jsonl", [found])
    (again,) = read_examples(tmp_path / "again.jsonl").examples
    assert again == found
    assert has_conversations(again)


def test_rows_with_bad_messages_are_rejected_and_what_they_say_must_not_leak(tmp_path: Path) -> None:
    bad = say("a question", "an answer")
    path = write(
        tmp_path / "rows.jsonl",
        {"anchor": bad, "positive": "p"},
        {"anchor": "a", "positive": "p"},
        {"anchor": "a", "positive": "p", "negatives": [bad]},
    )
    found = read_examples(path)
    assert [(row.line, row.detail) for row in found.rejected] == [
        (1, "anchor: the last message is not the user's"),
        (3, "negatives: the last message is not the user's"),
    ]
    assert {"a question", "an answer", "p"} <= set(found.texts)


def test_a_row_is_of_conversations_if_all_its_texts_are() -> None:
    chat = render(TEA)
    assert has_conversations(LabelledPair(chat, chat, 1))
    assert not has_conversations(LabelledPair(chat, "tea?", 1))
    assert not has_conversations(Triplet(chat, chat, ("tea?",)))


def test_a_folder_that_records_nothing_was_trained_on_no_conversation(tmp_path: Path) -> None:
    assert count_conversations(tmp_path) == 0
    assert count_conversations("openai:text-embedding-3-small") == 0
    (tmp_path / "recipe.toml").write_text("[[sources]]\nconversations = 3\n[[sources]]\nname = 'x'\n")
    assert count_conversations(tmp_path) == 3
