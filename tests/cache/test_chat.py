"""Which requests are questions, and what of a request must be equal."""

from __future__ import annotations

from typing import Any

import pytest

from embedsmith.cache.chat import Allowances, Passed, Question, read_chat
from embedsmith.cache.decision import partition_of


def read(content: Any, *earlier: dict[str, Any], **fields: Any) -> Question:
    question = read_chat({"model": "m", "messages": [*earlier, {"role": "user", "content": content}], **fields})
    assert isinstance(question, Question)
    return question


def part(text: str, **beside: Any) -> dict[str, Any]:
    return {"type": "text", "text": text} | beside


def test_parts_of_text_are_one_text() -> None:
    assert read([part("a"), part("b")]) == read("a\nb")


def test_what_a_part_has_beside_its_text_narrows() -> None:
    plain, german, french = (read([part("hello", **beside)]) for beside in ({}, {"lang": "de"}, {"lang": "fr"}))
    assert plain.text == german.text == french.text == "hello"
    assert german.scope != french.scope != plain.scope != german.scope
    assert read([part("a", x=1), part("b")]).scope != read([part("a"), part("b", x=1)]).scope


def test_what_a_part_of_an_earlier_turn_has_narrows_too() -> None:
    asked = [
        read("more", {"role": "user", "content": content})
        for content in ("hello", [part("hello")], [part("hello", lang="de")], [part("hello", lang="fr")])
    ]
    scopes = [question.scope for question in asked]
    assert scopes[0] == scopes[1]
    assert scopes[1] != scopes[2] != scopes[3] != scopes[1]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, (False, False)),
        ({"stream": True}, (True, False)),
        ({"stream": True, "stream_options": {"include_usage": True}}, (True, True)),
        ({"stream": True, "stream_options": {"include_usage": False}}, (True, False)),
        ({"stream": True, "stream_options": "odd"}, (True, False)),
        ({"stream_options": {"include_usage": True}}, (False, False)),
    ],
)
def test_a_stream_tells_its_usage_when_asked(fields: dict[str, Any], wanted: tuple[bool, bool]) -> None:
    question = read("hello", **fields)
    assert (question.stream, question.usage) == wanted
    assert question.scope == read("hello").scope


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "what is new"}]} | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"web_search_options": {}},
        {"model": "gpt-4o-mini-search-preview"},
        {"model": "maker/model:online"},
        {"tools": [{"type": "web_search"}]},
    ],
)
def test_answers_that_depend_on_the_day_pass_unless_they_are_allowed(fields: dict[str, Any]) -> None:
    assert isinstance(read_chat(ask(**fields)), Passed)
    assert isinstance(read_chat(ask(**fields), Allowances(tools=True)), Question)
    assert isinstance(read_chat(ask(**fields, modalities=["audio"]), Allowances(tools=True)), Passed)


def test_a_model_with_another_name_is_asked_from_the_cache() -> None:
    assert isinstance(read_chat(ask(model="research-1", web_search_options=None)), Question)


@pytest.mark.parametrize(("levels", "passed"), [(50, False), (99, False), (100, True), (900, True), (100_000, True)])
def test_what_is_nested_too_deep_to_compare_passes(levels: int, passed: bool) -> None:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    found = read_chat(ask(odd=inner))
    if passed:
        assert found == Passed("the request is nested too deep to compare")
    else:
        assert isinstance(found, Question)
        assert partition_of("n", found.scope)


EARLIER = [{"role": "user", "content": "I have a joint account."}, {"role": "assistant", "content": "Noted."}]
REWORDED = [{"role": "user", "content": "My wife and I share one."}, {"role": "assistant", "content": "I see."}]
SYSTEM = {"role": "system", "content": "be brief"}


def read_spoken(*earlier: dict[str, Any], last: str = "How do I close it?") -> Question:
    body = {"model": "m", "messages": [*earlier, {"role": "user", "content": last}]}
    question = read_chat(body, by_meaning=True)
    assert isinstance(question, Question)
    return question


def test_by_meaning_the_conversation_is_the_text_and_who_speaks_is_the_scope() -> None:
    one, other = read_spoken(*EARLIER), read_spoken(*REWORDED)
    assert one.text == "User: I have a joint account.\nAssistant: Noted.\nUser: How do I close it?"
    assert one.scope == other.scope == {"rest": {"model": "m"}, "turns": [{"role": "user"}, {"role": "assistant"}]}
    assert read("How do I close it?", *EARLIER).scope != read("How do I close it?", *REWORDED).scope


@pytest.mark.parametrize("earlier", [[], [SYSTEM], [{"role": "developer", "content": "x"}, SYSTEM]])
def test_a_question_without_earlier_turns_is_read_in_one_way(earlier: list[dict[str, Any]]) -> None:
    assert read_spoken(*earlier, last="How?") == read("How?", *earlier)
    imitated = "User: a\nAssistant: b\nUser: c"
    assert read_spoken(last=imitated).text == imitated
    assert read_spoken(last=imitated).scope != read_spoken(*EARLIER).scope


@pytest.mark.parametrize(
    "earlier",
    [
        [SYSTEM, *EARLIER],
        [*EARLIER, SYSTEM],
        [SYSTEM | {"content": "be long"}, *EARLIER],
        [EARLIER[0] | {"name": "Ada"}, EARLIER[1]],
        [EARLIER[0], EARLIER[1] | {"odd": 1}],
        [*EARLIER, {"role": "tool", "tool_call_id": "1", "content": "3"}],
        [EARLIER[0]],
        [EARLIER[0], EARLIER[0]],
        [EARLIER[1], EARLIER[0]],
    ],
)
def test_what_else_a_conversation_has_must_be_equal(earlier: list[dict[str, Any]]) -> None:
    partitions = [
        partition_of("n", found.scope) for found in (read_spoken(*earlier), read_spoken(*EARLIER), read_spoken())
    ]
    assert len(set(partitions)) == 3
    assert "Noted." not in str(read_spoken(*earlier).scope)


@pytest.mark.parametrize(
    "odd",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": "looking it up", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "user", "content": [part("hello", lang="de")]},
    ],
)
def test_a_turn_that_is_no_plain_text_leaves_all_turns_to_the_fingerprint(odd: dict[str, Any]) -> None:
    assert read_spoken(*EARLIER, odd) == read("How do I close it?", *EARLIER, odd)


def test_fields_of_none_that_clients_echo_say_nothing() -> None:
    echoed = [EARLIER[0], EARLIER[1] | {"refusal": None, "tool_calls": None}]
    assert read_spoken(*echoed) == read_spoken(*EARLIER)
