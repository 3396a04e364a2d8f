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
