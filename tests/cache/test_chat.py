"""Which requests are questions, and what of a request must be equal."""

from __future__ import annotations

from typing import Any

import pytest

from embedsmith.cache.chat import HARMLESS, Allowances, Passed, Question, read_chat
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


@pytest.mark.parametrize("field", sorted(set(HARMLESS) - {"messages", "stream", "n", "metadata"}))
def test_what_cannot_change_the_answer_splits_nothing(field: str) -> None:
    assert read("hello", **{field: "one"}).scope == read("hello", **{field: "two"}).scope == read("hello").scope


@pytest.mark.parametrize(
    "field",
    [
        *("model", "temperature", "top_p", "seed", "stop", "max_tokens", "max_completion_tokens", "presence_penalty"),
        *("frequency_penalty", "logit_bias", "logprobs", "response_format", "reasoning_effort", "verbosity"),
        *("prediction", "tool_choice", "parallel_tool_calls", "tags", "guardrails", "fallbacks", "models", "provider"),
        *("litellm_metadata", "cache_salt", "session_id", "user_id", "unheard_of"),
    ],
)
def test_what_can_change_the_answer_must_be_equal(field: str) -> None:
    one, two = (read("hello", **{field: value}).scope for value in (0.1, 0.2))
    assert one != two


@pytest.mark.parametrize(
    "metadata",
    [
        {"team": "support", "run": 17},  # OpenAI's: labels of a call that is stored there
        {
            "trace_id": "t-1",
            "generation_name": "reply",
            "spend_logs_metadata": {"job": "214590"},
        },  # LiteLLM's, for logs
        {},
    ],
)
def test_labels_of_a_call_split_nothing(metadata: dict[str, Any]) -> None:
    assert read("hello", metadata=metadata).scope == read("hello").scope


@pytest.mark.parametrize(
    "directing",
    [
        {"tags": ["eu"]},  # LiteLLM takes another deployment, which may be another model
        {"guardrails": ["mask-names"]},  # and masks what the model reads
        {"guardrails": {"mask-names": False}},
        {"disable_global_guardrails": True},
        {"wandb.project": "support"},  # CoreWeave's routes
        ["eu"],
    ],
)
def test_what_directs_a_gateway_must_be_equal(directing: Any) -> None:
    asked = read("hello", metadata=directing)
    assert asked.scope != read("hello").scope
    if isinstance(directing, dict):
        assert asked == read("hello", metadata=directing | {"trace_id": "t-1"})


@pytest.mark.parametrize("stream", ["false", "no", 0, 1])
def test_what_a_stream_is_that_is_neither_true_nor_false_the_upstream_says(stream: object) -> None:
    """Some read "false" as false; a hit came as a stream, to a client that had not asked for one."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    assert read_chat(body) == Passed("stream is neither true nor false")


@pytest.mark.parametrize(("asked", "told"), [(1.5, "1.5"), (10**400, "1e+300"), (float("inf"), "1e+300")])
def test_a_high_temperature_passes_however_high(asked: float, told: str) -> None:
    """A number of 400 digits, which JSON may hold, was an error of the server."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": asked}
    assert read_chat(body) == Passed(f"temperature {told} asks for variety")


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "what is new"}]} | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"web_search_options": {}},
        {"search_parameters": {"mode": "auto"}},
        {"enable_search": True},
        {"plugins": [{"id": "file-parser"}, {"id": "web", "max_results": 3}]},
        {"model": "gpt-4o-mini-search-preview"},
        {"model": "maker/model:online"},
        {"tools": [{"type": "web_search"}]},
    ],
)
def test_answers_that_depend_on_the_day_pass_unless_they_are_allowed(fields: dict[str, Any]) -> None:
    assert isinstance(read_chat(ask(**fields)), Passed)
    assert isinstance(read_chat(ask(**fields), Allowances(tools=True)), Question)
    assert isinstance(read_chat(ask(**fields, modalities=["audio"]), Allowances(tools=True)), Passed)


IMAGES = Allowances(images=True)


def look(text: str, *urls: str, detail: str = "auto") -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url, "detail": detail}} for url in urls]
    return ask(messages=[{"role": "user", "content": [*images, part(text)]}])


def see(body: dict[str, Any], **options: Any) -> Question:
    question = read_chat(body, IMAGES, **options)
    assert isinstance(question, Question)
    return question


def test_images_pass_unless_they_are_allowed() -> None:
    assert isinstance(read_chat(look("what is this", "data:image/png;base64,AAAA")), Passed)
    assert see(look("what is this", "data:image/png;base64,AAAA")).text == "what is this"


@pytest.mark.parametrize("by_meaning", [False, True])
def test_a_text_is_compared_by_meaning_where_the_images_are_the_same_only(by_meaning: bool) -> None:
    one, two = "data:image/png;base64,AAAA", "data:image/png;base64,AAAB"
    scope = see(look("what is this", one), by_meaning=by_meaning).scope
    assert see(look("what do you see", one), by_meaning=by_meaning).scope == scope
    others = [
        look("what is this", two),
        look("what is this"),
        look("what is this", one, one),
        look("what is this", one, detail="high"),
        look("what is this", "https://example.org/one.png"),
        ask(messages=[{"role": "user", "content": [part("what is this"), look("", one)["messages"][0]["content"][0]]}]),
        ask(messages=[*look("before", one)["messages"], *look("what is this", one)["messages"]]),
    ]
    scopes = [see(body, by_meaning=by_meaning).scope for body in others]
    assert all(partition_of("t", other) != partition_of("t", scope) for other in scopes)
    assert len({partition_of("t", other) for other in scopes}) == len(others)
    assert "AAAA" not in str(scope)  # a digest, not the image


def test_images_of_earlier_turns_must_be_equal_too() -> None:
    later = {"role": "assistant", "content": "a cat"}, {"role": "user", "content": "which breed"}
    scopes = [
        see(ask(messages=[*look("what is this", url)["messages"], *later]), by_meaning=True).scope
        for url in ("data:,a", "data:,b")
    ]
    assert partition_of("t", scopes[0]) != partition_of("t", scopes[1])


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "image_url", "image_url": "data:,a"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": 3}},
        {"type": "input_audio", "input_audio": {}},
        "text",
    ],
)
def test_parts_that_are_no_image_we_know_pass(odd: Any) -> None:
    assert isinstance(read_chat(ask(messages=[{"role": "user", "content": [odd, part("x")]}]), IMAGES), Passed)
    assert isinstance(read_chat(look("", "data:,a"), IMAGES), Passed)  # nothing to compare by meaning


def test_several_answers_are_a_question_of_their_own_where_they_are_allowed() -> None:
    found = [read_chat(ask(n=n), Allowances(several=True)) for n in (None, 1, 2, 3)]
    questions = [question for question in found if isinstance(question, Question)]
    assert [question.several for question in questions] == [1, 1, 2, 3]
    assert questions[0].scope == questions[1].scope == read("what is new").scope
    assert len({partition_of("t", question.scope) for question in questions}) == 3
    for n in (0, -1, True, 2.0, "2", [2]):
        assert isinstance(read_chat(ask(n=n), Allowances(several=True)), Passed)


def test_a_model_with_another_name_is_asked_from_the_cache() -> None:
    assert isinstance(read_chat(ask(model="research-1", web_search_options=None)), Question)
    assert isinstance(read_chat(ask(enable_search=False, plugins=[{"id": "file-parser"}])), Question)


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
