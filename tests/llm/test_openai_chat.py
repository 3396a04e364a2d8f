"""OpenAIChat against a real HTTP server that misbehaves."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from embedsmith.errors import ConfigurationError, LanguageModelError, SamplingRefused
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.openai_chat import OpenAIChat, read_wait
from embedsmith.llm.structured import parse_list
from embedsmith.testing import STATUS_FAULTS, Capacity, FaultyServer, write_answer

SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_tokens=99, seed=3)


class ScriptedServer(FaultyServer):
    """Says of single requests what becomes of them: `script` maps a body to a fault or None."""

    def __init__(self, script: Any, **options: Any) -> None:
        super().__init__(**options)
        self._script = script

    def record(self, path: str, body: Mapping[str, Any], authorization: str | None, **request: Any) -> str | None:
        fault = super().record(path, body, authorization, **request)
        return self._script(body) or fault


def write_prompts(count: int) -> list[Prompt]:
    asked = 'Reply with {"paraphrases": [2 strings]}'
    return [
        Prompt("be brief", f"Question: how do i cook {n} eggs?\n{asked}", str(n), "paraphrases") for n in range(count)
    ]


def connect(server: FaultyServer, **options: Any) -> OpenAIChat:
    return OpenAIChat("tiny", base_url=server.base_url, **{"api_key": "secret-key", "concurrency": 4, **options})


def complete(llm: OpenAIChat, prompts: list[Prompt], sampling: Sampling = SAMPLING) -> list[Completion]:
    """All completions by place; each place must come exactly once."""
    pairs = list(llm.complete(prompts, sampling))
    assert sorted(place for place, _ in pairs) == list(range(len(prompts)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


def test_each_prompt_gets_its_own_answer_and_the_server_what_was_asked() -> None:
    prompts = write_prompts(9)
    with FaultyServer() as server:
        done = complete(connect(server), prompts)
    assert [one.text for one in done] == [write_answer(prompt.user) for prompt in prompts]
    assert {(one.finish, one.prompt_tokens, one.completion_tokens, one.model) for one in done} == {
        ("stop", 100, 50, "tiny")
    }
    body = server.calls[0].body
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": prompts[0].user},
    ]
    assert (body["model"], body["temperature"], body["top_p"], body["seed"]) == ("tiny", 0.5, 0.9, 3)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["paraphrases"]
    assert server.calls[0].authorization == "Bearer secret-key"


def test_without_prompts_nothing_is_sent() -> None:
    with FaultyServer() as server:
        assert complete(connect(server), []) == []
    assert server.calls == []


def test_calls_are_in_flight_together() -> None:
    """Counted at the server: more than one at once, and never more than `concurrency`."""
    lock, now, most = threading.Lock(), [0], [0]

    def answer(user: str) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return write_answer(user)

    with FaultyServer(answer=answer) as server:
        complete(connect(server, concurrency=3), write_prompts(12))
    assert most[0] == 3


@pytest.mark.parametrize("fault", ["rate_limit", "rate_limit_silent", "server_error", "unavailable", "drop", "garbled"])
def test_passing_faults_are_tried_again(fault: str) -> None:
    failed: set[str] = set()

    def fail_once(body: Mapping[str, Any]) -> str | None:
        text = body["messages"][-1]["content"]
        first = text not in failed
        failed.add(text)
        return fault if first else None

    prompts = write_prompts(3)
    with ScriptedServer(fail_once) as server:
        done = complete(connect(server), prompts)
    assert [one.text for one in done] == [write_answer(prompt.user) for prompt in prompts]
    assert len(server.calls) == 2 * len(prompts)


def test_a_server_that_hangs_is_left_after_the_timeout() -> None:
    hung: list[int] = []

    def hang_once(user: str) -> str:
        if not hung:
            hung.append(1)
            time.sleep(1)
        return write_answer(user)

    with FaultyServer(answer=hang_once) as server:
        (done,) = complete(connect(server, timeout=0.2, retries=1), write_prompts(1))
    assert done.finish == "stop"
    assert len(server.calls) == 2


def test_a_call_that_fails_for_good_is_an_error_and_the_others_go_on() -> None:
    with ScriptedServer(lambda body: "server_error" if " 2 eggs" in str(body) else None) as server:
        done = complete(connect(server, retries=0), write_prompts(5))
    assert [one.finish for one in done] == ["stop", "stop", "error", "stop", "stop"]
    assert done[2].text is None


@pytest.mark.parametrize(
    ("fault", "finish", "items"),
    [
        ("null", "stop", 0),
        ("empty", "stop", 0),
        ("truncated", "length", 1),
        ("thinking", "stop", 2),
        ("fenced", "stop", 2),
        ("broken", "stop", 2),
    ],
)
def test_spoilt_answers_are_answers(fault: str, finish: str, items: int) -> None:
    """They are handed on as they came; `parse_list` makes of them what it can."""
    with FaultyServer(faults={fault: 1.0}) as server:
        (done,) = complete(connect(server), write_prompts(1))
    assert done.finish == finish
    assert done.text is not None
    assert len(parse_list(done.text, "paraphrases").items) == items


@pytest.mark.parametrize(
    ("rejected", "taken"),
    [(["json_schema"], "json_object"), (["json_schema", "json_object"], None)],
)
def test_a_server_without_structured_output_is_asked_in_simpler_terms(rejected: list[str], taken: str | None) -> None:
    """Each form is refused once at most: what the first call learned holds for the rest."""
    with FaultyServer(rejects_formats=rejected) as server:
        done = complete(connect(server), write_prompts(6))
    assert {one.finish for one in done} == {"stop"}
    assert server.calls[-1].body.get("response_format", {}).get("type") == taken
    assert len(server.calls) == 6 + len(rejected)


def test_a_prompt_that_is_refused_leaves_the_form_of_the_others_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A content filter and a prompt that is too long, the first before anything has succeeded."""
    monkeypatch.setitem(STATUS_FAULTS, "this prompt breaks our rules", 400)
    monkeypatch.setitem(STATUS_FAULTS, "this prompt is too long", 422)

    def refuse(body: Mapping[str, Any]) -> str | None:
        filtered = "this prompt breaks our rules" if " 0 eggs" in str(body) else None
        return "this prompt is too long" if " 7 eggs" in str(body) else filtered

    with ScriptedServer(refuse) as server:
        done = complete(connect(server), write_prompts(20))
    assert [place for place, one in enumerate(done) if one.finish == "error"] == [0, 7]
    others = [call.body for call in server.calls if not refuse(call.body)]
    assert {body["response_format"]["type"] for body in others} == {"json_schema"}
    assert len(server.calls) == 18 + 3 + 1  # the first is tried in three forms, since no form had worked yet


def test_a_schema_that_is_refused_once_costs_that_row_its_schema_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Invalid schema for response_format 'paraphrases'"
    monkeypatch.setitem(STATUS_FAULTS, said, 400)

    def refuse(body: Mapping[str, Any]) -> str | None:
        return said if " 7 eggs" in str(body) and "json_schema" in str(body) else None

    with ScriptedServer(refuse) as server:
        done = complete(connect(server), write_prompts(20))
    assert {one.finish for one in done} == {"stop"}
    simpler = [call.body for call in server.calls if call.body["response_format"]["type"] == "json_object"]
    assert [" 7 eggs" in str(body) for body in simpler] == [True]


class BehindAGateway(FaultyServer):
    """Answers with status 200 whatever happens behind it; `bodies` are sent in place of the first answers."""

    def __init__(self, *bodies: Any, **options: Any) -> None:
        super().__init__(**options)
        self._bodies = list(bodies)

    def chat(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        whole = super().chat(body, fault)
        return self._bodies.pop(0) if self._bodies else whole


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 502, "message": "Provider returned error"}},
        {"error": {"code": "429", "message": "rate-limited upstream"}},
        {"error": "the model has crashed"},
        {"choices": [{"message": {"role": "assistant", "content": "as fa"}, "finish_reason": "error"}]},
        {"choices": [{"error": {"code": 503}, "message": {"role": "assistant", "content": ""}}]},
        {"choices": [{"finish_reason": "stop", "index": 0}]},
        {"choices": []},
        {"detail": "Not Found"},
        ["a list"],
    ],
)
def test_an_error_with_status_200_is_no_answer(body: Any) -> None:
    with BehindAGateway(body) as server:
        (done,) = complete(connect(server), write_prompts(1))
        assert (done.text, done.finish) == (write_answer(write_prompts(1)[0].user), "stop")
    with BehindAGateway(*[body] * 31) as server:
        (done,) = complete(connect(server, retries=0), write_prompts(1))
        assert (done.text, done.finish) == (None, "error")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway", "the address"),
        ({"code": 402, "message": "Insufficient credits"}, "credit"),
        ({"code": 401, "message": "No auth credentials found"}, "the API key"),
        ({"code": "insufficient_quota", "message": "You exceeded your current quota"}, "quota is used up"),
    ],
)
def test_an_error_with_status_200_that_no_try_mends_stops_the_run(error: Any, said: str) -> None:
    server = BehindAGateway(*[{"error": error}] * 40)
    with server, pytest.raises(LanguageModelError, match=said):
        complete(connect(server), write_prompts(20))
    assert len(server.calls) == 1


def test_an_answer_that_a_filter_or_the_limit_ended_before_it_began_is_an_answer() -> None:
    """Some servers leave its message out; it was billed, and the next try would end the same."""
    cut, filtered = ({"choices": [{"finish_reason": finish}]} for finish in ("length", "content_filter"))
    with BehindAGateway(cut, filtered) as server:
        done = complete(connect(server, concurrency=1), write_prompts(2))
    assert [(one.text, one.finish) for one in done] == [("", "length"), ("", "filtered")]


class WordyServer(FaultyServer):
    """Knows the token limit by its older name only, as Ollama does, and ends at its own limit else."""

    def __init__(self, **options: Any) -> None:
        super().__init__(count=lambda *_: None, **options)

    def chat(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        usage = {"prompt_tokens": 100, "completion_tokens": min(body.get("max_tokens", 800), 800)}
        return {**super().chat(body, fault), "usage": usage}


def test_a_server_that_ignores_the_token_limit_gets_it_under_its_older_name() -> None:
    with WordyServer() as server:
        done = complete(connect(server), write_prompts(6))
    assert [one.completion_tokens for one in done] == [800, *[99] * 5]


def test_a_server_that_counts_otherwise_and_knows_the_newer_name_only_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    monkeypatch.setitem(STATUS_FAULTS, said, 400)
    with ScriptedServer(lambda body: said if "max_tokens" in body else None, count=lambda *_: (100, 800)) as server:
        done = complete(connect(server, concurrency=1), write_prompts(6))
    assert {one.finish for one in done} == {"stop"}
    assert len(server.calls) == 7  # one refusal, and no other try of the older name


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refused_key_stops_the_run_and_is_not_shown(concurrency: int) -> None:
    with FaultyServer(api_key="the right one") as server:
        llm = connect(server, concurrency=concurrency)
        with pytest.raises(LanguageModelError, match="401 to the API key") as caught:
            complete(llm, write_prompts(20))
    assert server.base_url in str(caught.value)
    assert "secret-key" not in str(caught.value)
    assert len(server.calls) == 1  # the first call goes alone
    assert "secret-key" not in llm.name


def test_a_wrong_address_stops_the_run_and_is_named() -> None:
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(LanguageModelError, match="cannot be reached") as caught:
            complete(OpenAIChat("tiny", base_url=address, retries=0), write_prompts(3))
    assert address in str(caught.value)


def test_a_model_that_the_server_lacks_stops_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS_FAULTS, "no such model", 404)
    server = ScriptedServer(lambda body: "no such model")
    with server, pytest.raises(LanguageModelError, match="404 to the model 'tiny'"):
        complete(connect(server), write_prompts(5))
    assert len(server.calls) == 1


def test_an_older_server_gets_max_tokens_under_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The structured form is kept: only what was refused is changed."""
    monkeypatch.setitem(STATUS_FAULTS, "unknown field max_completion_tokens", 400)
    refuse = {True: "unknown field max_completion_tokens", False: None}
    with ScriptedServer(lambda body: refuse["max_completion_tokens" in body]) as server:
        done = complete(connect(server), write_prompts(4))
    assert {one.finish for one in done} == {"stop"}
    assert [call.body.get("max_tokens") for call in server.calls] == [None, 99, 99, 99, 99]
    assert {call.body["response_format"]["type"] for call in server.calls} == {"json_schema"}


def test_a_reasoning_model_is_spared_what_it_refuses_and_the_call_can_do_without() -> None:
    with FaultyServer(rejects_parameters=["top_p", "seed", "temperature"]) as server:
        done = complete(connect(server), write_prompts(4), Sampling(temperature=1, top_p=1, seed=3))
    assert all(one.finish == "stop" for one in done)
    assert len(server.calls) == 4 + 3  # the first call finds all three out


def test_a_temperature_that_the_model_refuses_is_an_error_and_not_left_out() -> None:
    with (
        FaultyServer(rejects_parameters=["temperature"]) as server,
        pytest.raises(SamplingRefused, match=r"does not take temperature 0\.5"),
    ):
        complete(connect(server), write_prompts(4))


def test_no_more_calls_are_made_than_the_reader_keeps_up_with() -> None:
    """A reader that commits each completion can lose `concurrency` calls to a kill, and no more."""
    taken = 3
    with FaultyServer() as server:
        stream = connect(server, concurrency=2).complete(write_prompts(40), SAMPLING)
        for _ in range(taken):
            next(stream)
        time.sleep(0.5)  # the reader is slow; an unbounded client would have sent all 40 by now
        sent = len(server.calls)
        stream.close()
    assert sent <= taken + 2


def test_one_prompt_that_the_server_refuses_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long for the context, or against the server's rules: status 400 for this prompt alone."""
    monkeypatch.setitem(STATUS_FAULTS, "too long", 400)
    with ScriptedServer(lambda body: "too long" if " 2 eggs" in str(body) else None) as server:
        done = complete(connect(server), write_prompts(6))
    assert [one.finish for one in done].count("error") == 1
    assert done[2].finish == "error"
    assert done[2].detail.startswith("status 400: ")


def test_answers_that_were_paid_for_are_handed_on_before_the_run_stops() -> None:
    """The key is revoked in the middle of the run: three calls are in flight beside the refused one."""

    def revoke(body: Mapping[str, Any]) -> str | None:
        return "wrong_key" if " 1 eggs" in str(body) else None

    class SlowButForRefusals(ScriptedServer):
        def chat(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
            time.sleep(0.3)
            return super().chat(body, fault)

    handed: list[int] = []

    def read(llm: OpenAIChat) -> None:
        for place, _ in llm.complete(write_prompts(5), SAMPLING):
            handed.append(place)

    with SlowButForRefusals(revoke) as server:
        with pytest.raises(LanguageModelError):
            read(connect(server, concurrency=4))
        answered = len(server.answered()) - 1  # all but the refused one, which has no fault of the plan
    assert len(handed) == answered


def test_a_run_in_which_nothing_succeeds_stops_with_the_reason() -> None:
    with FaultyServer(faults={"server_error": 1.0}) as server, pytest.raises(LanguageModelError):
        complete(connect(server, retries=0), write_prompts(5))


def test_a_resumed_run_with_only_a_refused_prompt_left_ends_like_an_undisturbed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All other calls are in the journal; the one that is too long is tried again, and fails again."""
    monkeypatch.setitem(STATUS_FAULTS, "too long", 400)
    with ScriptedServer(lambda body: "too long") as server:
        (done,) = complete(connect(server), write_prompts(1))
    assert done.finish == "error"


class CrowdedServer(FaultyServer):
    """Serves one call at a time for the second after the second call came, and refuses the others."""

    def __init__(self, status: int) -> None:
        self.crowd = Capacity(1, refuses=True, retry_after=1.0, status=status)
        super().__init__(capacity=self.crowd, delay=0.05)
        self.times: list[float] = []

    def record(self, path: str, body: Mapping[str, Any], authorization: str | None, **request: Any) -> str | None:
        self.times.append(time.monotonic())
        if self.times[-1] - self.times[min(1, len(self.times) - 1)] > 0.95:
            self.crowd.at_once = None
        return super().record(path, body, authorization, **request)


@pytest.mark.parametrize("status", [429, 503, 529])
def test_all_calls_wait_when_one_is_told_to(status: int) -> None:
    with CrowdedServer(status) as server:
        done = complete(connect(server, concurrency=32), write_prompts(60))
    assert {one.finish for one in done} == {"stop"}
    assert server.crowd.refused > 0
    assert not [moment for moment in server.times if 0.4 < moment - server.times[1] < 0.9]


def test_a_wait_is_read_in_seconds_in_milliseconds_and_as_a_date() -> None:
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert read_wait({"Retry-After": "2"}) == 2.0
    assert read_wait({"Retry-After": "2", "retry-after-ms": "1500"}) == 1.5
    assert 27 < (read_wait({"Retry-After": later}) or 0) <= 30
    assert read_wait({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert read_wait({"Retry-After": "soon"}) is None
    assert read_wait({}) is None


def test_refusals_are_put_up_with_longer_than_failures() -> None:
    """Twelve 429s in a row do not end a call that would be given up after two failures."""
    left = [12]

    def refuse(body: Mapping[str, Any]) -> str | None:
        left[0] -= 1
        return "rate_limit" if left[0] >= 0 else None

    with ScriptedServer(refuse) as server:
        (done,) = complete(connect(server, retries=3), write_prompts(1))
    assert (done.finish, len(server.calls)) == ("stop", 13)


def test_a_quota_that_is_used_up_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS_FAULTS, "insufficient_quota", 429)
    server = ScriptedServer(lambda body: "insufficient_quota")
    with server, pytest.raises(LanguageModelError, match="quota is used up"):
        complete(connect(server), write_prompts(5))
    assert len(server.calls) == 1


class DyingServer(FaultyServer):
    """Answers `answers` calls, then says `status` and `message` to the next `refusals` (None: to all)."""

    def __init__(self, answers: int, message: str, *, refusals: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._answers, self._message, self._refusals = answers, message, refusals
        self._seen = threading.Lock()

    def record(self, path: str, body: Mapping[str, Any], authorization: str | None, **request: Any) -> str | None:
        with self._seen:
            super().record(path, body, authorization, **request)
            dead = len(self.calls) > self._answers
            return self._message if dead and len(self.calls) - self._answers <= (self._refusals or 10**9) else None


def test_credit_that_is_used_up_in_the_middle_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS_FAULTS, "Insufficient credits", 402)
    server = DyingServer(5, "Insufficient credits")
    with server, pytest.raises(LanguageModelError, match="402 to the call: credit or quota is used up"):
        complete(connect(server), write_prompts(200))
    assert len(server.calls) <= 5 + 4


def test_credit_that_is_used_up_in_other_words_stops_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic says it with 400, as it refuses prompts."""
    monkeypatch.setitem(STATUS_FAULTS, "Your credit balance is too low", 400)
    server = DyingServer(5, "Your credit balance is too low")
    with server, pytest.raises(LanguageModelError, match=r"50 calls in a row .* Your credit balance is too low"):
        complete(connect(server), write_prompts(200))
    assert len(server.calls) < 5 + 50 + 8


@pytest.mark.parametrize("fault", ["unavailable", "drop", "bad gateway"])
def test_a_server_that_dies_in_the_middle_is_probed_and_then_given_up(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred rows of seven attempts each would be billed, and be missing from what is trained on."""
    monkeypatch.setitem(STATUS_FAULTS, "bad gateway", 502)
    server = DyingServer(10, fault)
    with server, pytest.raises(LanguageModelError, match=r"attempts in a row failed, over \d+ s, the last with"):
        complete(connect(server, concurrency=32, outage=1.5), write_prompts(200))
    assert 10 + 20 < len(server.calls) < 10 + 20 + 32


def test_a_server_that_comes_back_costs_no_row() -> None:
    with DyingServer(10, "unavailable", refusals=30) as server:
        done = complete(connect(server, concurrency=32), write_prompts(60))
    assert {one.finish for one in done} == {"stop"}
    assert len(server.calls) == 60 + 30


def test_the_last_rows_may_be_those_that_no_server_answers() -> None:
    """Twelve rows of sixty crash the model: they fail, more than twenty attempts in a row, and the run ends."""
    with ScriptedServer(
        lambda body: "server_error" if "5 eggs" in str(body) or "0 eggs" in str(body) else None
    ) as server:
        done = complete(connect(server, concurrency=256, retries=2, outage=0.1), write_prompts(60))
    assert [one.finish for one in done].count("error") == 12
    assert len(server.calls) == 48 + 12 * 3


def test_calls_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands in for a proxy: it gets the whole address in the request's first line."""
    with FaultyServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        complete(OpenAIChat("tiny", base_url="http://model.invalid/v1"), write_prompts(1))
        assert proxy.calls[0].path == "http://model.invalid/v1/chat/completions"
        monkeypatch.setenv("no_proxy", "model.invalid")
        with pytest.raises(LanguageModelError, match="cannot be reached"):
            complete(OpenAIChat("tiny", base_url="http://model.invalid/v1", retries=0), write_prompts(1))


def test_a_socks_proxy_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://localhost:1080")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigurationError, match="SOCKS"):
        OpenAIChat("tiny", base_url="http://model.invalid/v1")


def test_a_key_that_the_server_repeats_in_its_error_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS_FAULTS, "wrong: secret-key", 500)
    server = ScriptedServer(lambda body: "wrong: secret-key")
    with server, pytest.raises(LanguageModelError, match=r"wrong: \*\*\*") as caught:
        complete(connect(server, retries=0), write_prompts(5))
    assert "secret-key" not in str(caught.value)


def test_without_a_key_no_word_of_an_error_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(STATUS_FAULTS, "none of the listed models is loaded", 500)
    server = ScriptedServer(lambda body: "none of the listed models is loaded")
    with server, pytest.raises(LanguageModelError, match="none of the listed models is loaded"):
        complete(connect(server, retries=0, api_key=None), write_prompts(5))


def test_no_thread_and_no_connection_outlives_a_run() -> None:
    before = threading.active_count()
    with FaultyServer(delay=0.05) as server:
        serving = threading.active_count()
        stream = connect(server).complete(write_prompts(20), SAMPLING)
        next(stream)
        stream.close()  # with calls in flight
        names = [thread.name for thread in threading.enumerate()]
        assert "embedsmith-calls" not in names
    assert serving >= before


def test_an_answer_in_parts_and_a_refusal_in_its_own_field_are_read() -> None:
    class Parts(FaultyServer):
        def chat(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
            answer = super().chat(body, fault)
            refusal = {"role": "assistant", "content": None, "refusal": "I will not"}
            parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
            answer["choices"][0]["message"] = refusal if " 1 eggs" in str(body) else parts
            return answer

    with Parts() as server:
        done = complete(connect(server), write_prompts(2))
    assert [(one.text, one.finish) for one in done] == [("ab", "stop"), ("", "filtered")]
