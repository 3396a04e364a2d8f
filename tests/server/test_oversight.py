"""The loop through a real server: drawn, judged over HTTP or by a person, estimated, alarmed; and nobody waits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedsmith.cache.feedback import Feedback, Judged, read_feedback
from embedsmith.cache.recalibration import FILE, recalibrate, write_recalibration
from embedsmith.cache.samples import SampleRule
from embedsmith.llm import open_llm
from embedsmith.server.watch import Watch
from embedsmith.testing import FaultyServer

from .conftest import Served
from .test_app import post, state
from .test_proxy import ASKED, Serve, ask

CLOSE = "How do I freeze my cards?"


def sampling(share: float = 1.0, **options: Any) -> dict[str, Any]:
    return {"sample": SampleRule(share, seed=0), **options}


def judge_at(server: FaultyServer, timeout: float = 5.0) -> Any:
    return open_llm("openai:judge", base_url=server.base_url, timeout=timeout, retries=0)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def repeat(served: Served, text: str, key: str, times: int) -> set[str]:
    """Ask one thing many times, storing nothing; return what the cache said."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {key}", "x-embedsmith-cache": "no-store"}
    with httpx.Client(base_url=served.url, headers=headers) as client:
        answers = [client.post("/v1/chat/completions", json=body) for _ in range(times)]
    return {answer.headers["x-embedsmith-cache"] for answer in answers}


def metric(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"embedsmith_{name} ")))


def test_without_sampling_nothing_is_kept_and_the_state_says_so(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, CLOSE)
    shown = state(served)
    assert (shown["quality"], shown["judge"], shown["drift"]["promise"]) == (None, None, None)
    assert shown["by_similarity"] == metric(served, "hits_by_similarity") == 1
    assert post(served, "/admin/judge", {"number": 1, "verdict": "same"}).status_code == 409
    assert not served.feedback.exists()


def test_the_share_drawn_is_right_and_tenants_stay_apart(serve: Serve) -> None:
    served = serve(cache=sampling(0.5))
    for key in ("sk-a", "sk-b"):
        ask(served, key=key)
        assert repeat(served, CLOSE, key, 30) == {"hit"}
    quality = state(served)["quality"]
    assert quality["drawn"] == pytest.approx(30, abs=12)  # 3 standard deviations
    samples = served.cache.samples
    assert samples is not None
    tenants = {sample.namespace for sample in samples.to_judge(99, judged_by_model=False)}
    assert len(tenants) == 2
    assert len(quality["to_judge"]) == 5  # the oldest
    assert all("sk-" not in tenant for tenant in tenants)


def test_a_model_over_http_judges_what_was_served(serve: Serve) -> None:
    with FaultyServer(answer=lambda _: '{"same_answer": "no"}', faults={"thinking": 0.5}) as judge:
        served = serve(cache=sampling(judge=judge_at(judge)))
        ask(served)
        for _ in range(12):
            ask(served, CLOSE)
        wait_until(lambda: state(served)["quality"]["estimate"]["judged"] == 12)
        asked = judge.calls[0].body["messages"][-1]["content"]
    shown = state(served)
    assert shown["judge"]["name"] == "openai:judge"
    assert shown["quality"]["estimate"] == {"judged": 12, "wrong": 12, "rate": 1.0, "bound": 1.0}
    assert json.dumps(CLOSE) in asked
    assert json.dumps(ASKED) in asked
    assert "12 of the last 12" not in shown["drift"]["promise"]["alarm"]["told"]  # it began earlier
    assert "answers served are wrong" in shown["drift"]["promise"]["alarm"]["told"]
    assert metric(served, "drift_promise_alarm") == metric(served, "false_hit_rate") == 1
    assert metric(served, "samples_judged") == 12
    rows, rejected = read_feedback(served.feedback)
    assert not rejected
    assert {(row.source, row.judge, row.label, row.model) for row in rows} == {("sample", "openai:judge", 0, "fake")}
    assert ask(served, CLOSE)[0] == "hit"  # a model's verdict takes nothing away


def test_requests_are_answered_while_the_judge_thinks(serve: Serve) -> None:
    thinking, goes_on = threading.Event(), threading.Event()

    def think(_: str) -> str:
        thinking.set()
        goes_on.wait(60)
        return '{"same_answer": "yes"}'

    with FaultyServer(answer=think) as judge:
        served = serve(cache=sampling(judge=judge_at(judge, timeout=60)))
        ask(served)
        ask(served, CLOSE)
        assert thinking.wait(10)
        with ThreadPoolExecutor(4) as pool:
            assert {found[0] for found in pool.map(lambda _: ask(served, CLOSE), range(8))} == {"hit"}
        assert len(judge.calls) == 1  # still in its first thought
        assert (state(served)["quality"]["waiting"], served.feedback.exists()) == (9, False)
        goes_on.set()
        wait_until(lambda: state(served)["quality"]["estimate"]["judged"] == 9)


@pytest.mark.parametrize("fault", ["server_error", "drop", "empty", "null", "truncated"])
def test_a_judge_that_fails_poisons_nothing(serve: Serve, fault: str) -> None:
    with FaultyServer(answer=lambda _: '{"same_answer": "yes"}', faults={fault: 1.0}) as judge:
        served = serve(cache=sampling(judge=judge_at(judge)))
        ask(served)
        assert repeat(served, CLOSE, "sk-a", 20) == {"hit"}
        wait_until(lambda: bool(judge.calls))
        quality = state(served)["quality"]
        assert (quality["estimate"]["judged"], quality["waiting"]) == (0, 20)
        assert not served.feedback.exists()
        assert ask(served, CLOSE)[2] == f"the answer to {ASKED}"
        served.cache.close()


def test_a_judge_without_a_server_waits_and_says_so(serve: Serve) -> None:
    judge = open_llm("openai:judge", base_url="http://127.0.0.1:1/v1", timeout=1, retries=0)
    served = serve(cache=sampling(judge=judge))
    ask(served)
    ask(served, CLOSE)
    wait_until(lambda: "cannot be reached" in state(served)["judge"]["trouble"])
    assert state(served)["quality"]["waiting"] == 1
    assert metric(served, "judge_failures") >= 1


def test_garbage_is_left_for_people(serve: Serve) -> None:
    with FaultyServer(answer=lambda _: "it depends on the card") as judge:
        served = serve(cache=sampling(judge=judge_at(judge)))
        ask(served)
        ask(served, CLOSE)
        wait_until(lambda: state(served)["quality"]["left"] == 1)
        (sample,) = state(served)["quality"]["to_judge"]
        assert post(served, "/admin/judge", {"number": sample["number"], "verdict": "same"}).status_code == 200
        assert state(served)["judge"]["unreadable"] == metric(served, "judge_unreadable") == 1
    assert state(served)["quality"]["estimate"]["judged"] == 1


def test_people_judge_on_the_dashboard_and_a_wrong_answer_goes(serve: Serve) -> None:
    served = serve(cache=sampling())
    ask(served)
    ask(served, CLOSE)
    ask(served, CLOSE)
    first, second = state(served)["quality"]["to_judge"]
    assert (first["asked"], first["stored"], first["answer"], first["served"]) == (
        CLOSE,
        ASKED,
        f"the answer to {ASKED}",
        True,
    )
    assert post(served, "/admin/judge", {"number": first["number"], "verdict": "same"}).json() == {"judged": "same"}
    assert ask(served, CLOSE)[0] == "hit"
    post(served, "/admin/judge", {"number": second["number"], "verdict": "different"})
    assert post(served, "/admin/judge", {"number": second["number"], "verdict": "same"}).status_code == 409
    assert ask(served, CLOSE)[0] == "miss"
    assert [row.label for row in read_feedback(served.feedback)[0]] == [1, 0]
    assert state(served)["quality"]["estimate"]["rate"] == 0.5


def test_a_verdict_that_cannot_be_written_is_told_and_the_sample_waits(serve: Serve) -> None:
    served = serve(cache=sampling())
    ask(served)
    ask(served, CLOSE)
    served.feedback.mkdir()
    assert post(served, "/admin/judge", {"number": 1, "verdict": "same"}).status_code == 503
    assert state(served)["quality"]["waiting"] == 1


def test_a_server_that_nobody_asks_shows_the_verdicts_of_the_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.cache.verdicts.HEARING", 0.0)
    served, verdict = serve(cache=sampling()), Judged(CLOSE, ASKED, 0, 0.99, "n", "sample", "openai:x", 5.0, "fake")
    Feedback(served.feedback).append(verdict)
    assert (metric(served, "samples_judged"), metric(served, "samples_wrong")) == (1, 1)
    Feedback(served.feedback).append(replace(verdict, sentence1="Can I freeze my card?"))
    assert state(served)["quality"]["estimate"]["judged"] == 2


@pytest.mark.parametrize("body", [{}, {"number": 1}, {"number": True, "verdict": "same"}, {"number": 1, "verdict": 1}])
def test_wrong_verdicts_are_refused(serve: Serve, body: dict[str, Any]) -> None:
    assert post(serve(cache=sampling()), "/admin/judge", body).status_code == 400


@pytest.mark.parametrize("path", ["/admin/judge", "/admin/usual"])
def test_verdicts_need_the_token(serve: Serve, path: str) -> None:
    assert httpx.post(serve(cache=sampling()).url + path, json={"number": 1, "verdict": "same"}).status_code == 401


def test_shadow_mode_estimates_what_it_would_have_served(serve: Serve) -> None:
    with FaultyServer(answer=lambda text: '{"same_answer": "yes"}') as judge:
        served = serve(cache=sampling(judge=judge_at(judge)), app={"shadow": True})
        ask(served)
        for _ in range(10):
            assert ask(served, CLOSE)[0] == "miss"
        wait_until(lambda: state(served)["quality"]["estimate"]["judged"] >= 10)
    shown = state(served)
    assert (shown["shadow"], shown["hits"], shown["by_similarity"]) == (True, 0, 10)
    assert shown["quality"]["estimate"] == {
        "judged": 10,
        "wrong": 0,
        "rate": 0.0,
        "bound": pytest.approx(1 - 0.05**0.1),  # no mistake in ten
    }
    assert metric(served, "false_hit_rate_bound") == pytest.approx(1 - 0.05**0.1)


def test_marks_of_people_carry_tenant_and_cosine(serve: Serve) -> None:
    served = serve()
    ask(served)
    ask(served, "How do I unfreeze my card?")
    seen = state(served)["latest"][0]
    post(served, "/admin/mark", {"number": seen["number"], "verdict": "same"})
    (row,) = read_feedback(served.feedback)[0]
    assert (row.source, row.cosine, row.namespace, row.model) == ("person", -1.0, seen["namespace"], "fake")


def test_a_tenant_is_recalibrated_on_its_own_verdicts(serve: Serve, tmp_path: Path) -> None:
    """One tenant's answers are right, the other's are wrong: the first gets a lower threshold, the other none."""

    def says(prompt: str) -> str:
        return json.dumps({"same_answer": "yes" if "card" in prompt.partition("First text")[2] else "no"})

    with FaultyServer(answer=says) as judge:
        rule = SampleRule(1.0, margin=0.4, seed=0)
        served = serve(cache={"sample": rule, "judge": judge_at(judge), "threshold": 0.95})
        for key, first, second in (
            ("sk-right", ASKED, CLOSE),
            ("sk-wrong", "where is the branch office", "where is that branch office"),
        ):
            ask(served, first, key=key)
            repeat(served, second, key, 25)
        wait_until(lambda: state(served)["quality"]["judged"] == 50)
    rows, _ = read_feedback(served.feedback)
    cosines = [row.cosine if row.cosine is not None else -1.0 for row in rows]
    found = recalibrate(rows, cosines, model="fake", common=0.95, delta=0.2, min_pairs=20)
    (granted,) = [item for item in found.outcomes if item.granted]
    (other,) = [item for item in found.outcomes if not item.granted]
    assert granted.threshold is not None
    assert granted.threshold < 0.95
    assert "refused" in other.reason
    path = write_recalibration(tmp_path / FILE, found)
    again = serve(cache={"threshold": 0.95, "namespaces": path})
    ask(again, key="sk-right")
    ask(again, "where is the branch office", key="sk-wrong")
    assert ask(again, CLOSE, key="sk-right")[0] == "hit"
    assert ask(again, "where is that branch office", key="sk-wrong")[0] == "miss"


def test_a_stream_that_changes_is_said_until_somebody_calls_it_usual(serve: Serve) -> None:
    served = serve()
    held = served.cache
    held.add(ASKED, "x")
    watch = Watch(held)
    watch.oversight.stream.reference, watch.oversight.stream.size = 10, 50
    for text in [CLOSE, ASKED] * 30 + ["what does a tariff cost", ASKED] * 25:
        watch.looked_up(held.lookup(text))
    told = watch.oversight.state()["drift"]["stream"]
    assert told["first_median"] == pytest.approx(1, abs=1e-3)
    assert "are asked more often" not in told["alarm"]["told"]
    assert f"was {told['first_median']:.3f}" in told["alarm"]["told"]
    assert b"embedsmith_drift_stream_alarm 1.0" in watch.exposition()
    watch.oversight.stream.accept()
    assert watch.oversight.state()["drift"]["stream"]["alarm"] is None
    assert b"embedsmith_drift_stream_alarm 0.0" in watch.exposition()


def test_what_the_verifier_let_pass_counts_as_served_by_similarity(serve: Serve) -> None:
    held = serve().cache
    held.add(ASKED, "x")
    watch, found = Watch(held), held.lookup(CLOSE)
    for reason in ("verified", "shadow: verified", "verifier"):
        watch.looked_up(replace(found, decision=replace(found.decision, reason=reason)))
    assert watch.oversight.state()["by_similarity"] == 2
