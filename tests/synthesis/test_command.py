"""synthesize on the command line: every recipe before a server that misbehaves, pilots, budgets, batches, kills."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedsmith.answers import write_e5_answer, write_rag_answer
from embedsmith.cli import app
from embedsmith.errors import ConfigurationError
from embedsmith.testing import FaultyServer, write_answer

FILINGS = Path(__file__).resolve().parents[2] / "examples" / "filings"
FAULTS = {"rate_limit": 0.05, "server_error": 0.04, "drop": 0.04, "thinking": 0.1, "fenced": 0.1, "refusal": 0.02}
FAULTS |= {"truncated": 0.02, "null": 0.02}
KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))


def answer(prompt: str) -> str:
    if "<passage" in prompt:
        return write_rag_answer(prompt)
    return write_answer(prompt) if '{"paraphrases"' in prompt or '{"distinct"' in prompt else write_e5_answer(prompt)


def command(server: FaultyServer, out: Path, *arguments: object) -> list[str]:
    to_server = ["--llm", "openai:any", "--base-url", server.base_url, "--out", str(out)]
    return [sys.executable, "-m", "embedsmith", "synthesize", *map(str, arguments), *to_server]


def run(server: FaultyServer, out: Path, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(command(server, out, *arguments, "--json"), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    words = ["card", "pin", "loan", "app", "phone", "bank", "rate", "fee"]
    path = tmp_path / "log.txt"
    path.write_text("".join(f"how do I change the {word} of account {row}\n" for row, word in enumerate(words)))
    return path


@pytest.mark.parametrize("recipe", ["langcache", "rag", "e5"])
def test_every_recipe_ends_whole_whatever_the_server_does(recipe: str, tmp_path: Path, log: Path) -> None:
    sources = {"langcache": [log], "rag": [FILINGS], "e5": ["--tasks", 24]}[recipe]
    with FaultyServer(faults=FAULTS, answer=answer, seed=5) as server:
        found = run(server, tmp_path / "out", *sources, "--recipe", recipe)
        asked = len(server.calls)
        assert found["counts"]["kept"] > 0
        assert found["calls"]["missing"] == 0
        run(server, tmp_path / "out", *sources, "--recipe", recipe)
        assert len(server.calls) == asked
    assert len({call.fault for call in server.calls}) > 3
    rows = (tmp_path / "out/examples.jsonl").read_text().splitlines()
    assert len(rows) == found["counts"]["kept"]


def test_a_pilot_shows_rows_and_says_what_all_of_them_take(tmp_path: Path) -> None:
    with FaultyServer(answer=answer) as server:
        tried = run(server, tmp_path, "--recipe", "e5", "--tasks", 500, "--pilot", 20, "--price", "1,2")
        piloted = len(server.calls)
        assert (tried["rows"], tried["all_rows"]) == (20, 500)
        assert len(tried["exchanges"]) == piloted
        assert {"short-long", "sts"} <= {prompt["task"] for prompt, _ in tried["exchanges"]}
        whole = run(server, tmp_path, "--recipe", "e5", "--tasks", 500, "--price", "1,2")
    estimated = tried["estimate"]
    assert estimated["calls"]["value"] == pytest.approx(len(server.calls), rel=0.15)
    assert estimated["cost"]["value"] == pytest.approx(whole["cost"], rel=0.15)
    assert whole["calls"]["sent"] == len(server.calls) - piloted  # what the pilot paid for is not paid again


def test_edits_and_a_judge_stand_beside_the_language_model_and_the_record_says_who_wrote_what(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "".join(f"how do I move {10 + 3 * row} euros to account number {row} before noon?\n" for row in range(8))
    )

    def weak(prompt: str) -> str:
        """Write a near miss of account 3 that is a paraphrase, and paraphrases of account 5 that ask for else."""
        text = write_answer(prompt)
        if "account number 3 " in prompt and '{"distinct"' in prompt:
            return text.replace("why should nobody how", "what is the way, again, how")
        if "account number 5 " in prompt and '{"paraphrases"' in prompt:
            return text.replace("what is the way to", "what is the fee for the way to")
        if "account number 3 " in prompt and '"same_answer"' in prompt and "again" in prompt:
            return json.dumps({"same_answer": "yes", "difference": ""})
        return text

    judged = ("--judge", "--edits", 2, "--paraphrases", 2, "--distinct", 2)
    faults = {"rate_limit": 0.05, "server_error": 0.05, "thinking": 0.1, "fenced": 0.1}
    with FaultyServer(faults=faults, answer=weak, seed=4) as server:
        tried = run(server, tmp_path / "out", log, *judged, "--pilot", 4)
        found = run(server, tmp_path / "out", log, *judged)
        asked = len(server.calls)
        limited = run(server, tmp_path / "poor", log, *judged, "--max-calls", 25)
        assert len(server.calls) == asked + 25
        asked = len(server.calls)
        unjudged = run(server, tmp_path / "out", log, *judged[1:])
        assert len(server.calls) == asked  # the judge's calls apart, both runs are the same
    assert found["counts"]["judged-different"] == 1
    assert found["counts"]["judged-same"] == 1
    assert set(found["written_by"]) == {"any", "controlled-edits"}
    assert found["written_by"]["controlled-edits"] == 16
    assert sum(found["written_by"].values()) == found["counts"]["kept"]
    assert found["calls"]["calls"] == 16 + unjudged["counts"]["kept"]  # a call for each pair
    assert unjudged["counts"]["kept"] == found["counts"]["kept"] + 2
    assert limited["counts"]["no-budget"] > 0
    assert tried["estimate"]["calls"]["value"] == pytest.approx(found["calls"]["calls"], rel=0.2)
    rows = [json.loads(line) for line in (tmp_path / "out/examples.jsonl").read_text().splitlines()]
    edits = [row for row in rows if row["provenance"]["model"] == "controlled-edits"]
    assert all(row["label"] == 0 and row["provenance"]["prompt"] == "" for row in edits)
    assert {check.partition("=")[0] for row in edits for check in row["provenance"]["checks"][-3:]} == {
        *("edit", "grade", "change"),
    }


def test_personal_data_is_told_before_it_leaves_the_machine_and_masked_where_asked(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("why was ada@example.org charged\nwhere is order 4711 0815\nplease call +49 170 1234567 about it\n")
    asked = [sys.executable, "-m", "embedsmith", "synthesize", str(log), "--llm", "openai:any", "--out"]
    hosted = ["--base-url", "https://llm.example.org/v1", "--batch-out"]  # sends nothing itself
    for options, words in (
        ([], "1 × e-mail, 1 × phone number, sent to llm.example.org as they are; --mask"),
        (["--mask"], "1 × e-mail, 1 × phone number, masked"),
    ):
        out = tmp_path / f"out{len(options)}"
        whole = [*asked, str(out), *hosted, str(out / "calls"), *options]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=100)
        assert f"personal data in 2 queries (ids in {out}/personal.jsonl): {words}" in done.stderr
        rows = [json.loads(line) for line in (out / "personal.jsonl").read_text().splitlines()]
        assert rows == [{"id": "0", "kinds": {"e-mail": 1}}, {"id": "2", "kinds": {"phone number": 1}}]
        sent = "".join(file.read_text() for file in (out / "calls").rglob("*.jsonl"))
        assert ("ada@example.org" in sent, "why was [e-mail] charged" in sent) == (not options, bool(options))
    with FaultyServer(answer=answer) as server:  # on this machine: nothing to tell
        done = subprocess.run(command(server, tmp_path / "here", log), capture_output=True, text=True, timeout=100)
    assert "personal data" not in done.stderr


def test_a_pilot_tells_paraphrases_from_near_misses_and_counts_what_was_rejected(tmp_path: Path, log: Path) -> None:
    def repeating(prompt: str) -> str:
        found = json.loads(answer(prompt))
        return json.dumps({task: [*texts[:2], texts[0]] for task, texts in found.items()})

    with FaultyServer(answer=repeating) as server:
        asked = command(server, tmp_path, log, "--paraphrases", 3, "--distinct", 3, "--pilot", 4)
        done = subprocess.run(asked, capture_output=True, text=True, timeout=100)
        counts = run(server, tmp_path, log, "--paraphrases", 3, "--distinct", 3, "--pilot", 4)["counts"]
    assert done.stderr.count("kept (1, paraphrase)  how do I change the ") == 8
    assert done.stderr.count("kept (0, near miss)  how do I change the ") == 8
    assert counts == {"kept": 16, "duplicate": 8}
    assert re.search(r"duplicate +8", done.stdout)


def test_explain_shows_what_a_judge_was_asked_and_said(tmp_path: Path, log: Path) -> None:
    def strict(prompt: str) -> str:
        if '"same_answer"' in prompt:
            different = {"same_answer": "no", "difference": "the account"}
            return json.dumps(different if "account 3" in prompt else {"same_answer": "yes", "difference": ""})
        return answer(prompt)

    with FaultyServer(answer=strict) as server:
        run(server, tmp_path / "out", log, "--paraphrases", 2, "--distinct", 1, "--judge")
    asked = [sys.executable, "-m", "embedsmith", "explain", str(log), "--row", "3", "--paraphrases", "2"]
    asked += ["--distinct", "1", "--synthesis", str(tmp_path / "out")]
    done = subprocess.run([*asked, "--json"], capture_output=True, text=True, timeout=100)
    (shown,) = json.loads(done.stdout)
    assert [prompt["task"] for prompt in shown["prompts"]] == ["paraphrases", "distinct", *3 * ["same_answer"]]
    assert all("the account" in said for said in shown["completions"][2:])  # kept and rejected pairs alike
    assert {row["reason"] for row in shown["rejected"]} == {"judged-different"}
    done = subprocess.run(asked, capture_output=True, text=True, timeout=100)
    assert done.stderr.count("You check training data") == 1  # the same for each pair
    assert done.stderr.count("First text:") == 3


@pytest.mark.parametrize("option", [("--recipe", "e5", "--judge"), ("--recipe", "e5", "--edits", "1")])
def test_options_of_another_recipe_are_refused(option: tuple[str, ...], tmp_path: Path) -> None:
    with FaultyServer(answer=answer) as server:
        done = subprocess.run(command(server, tmp_path, *option), capture_output=True, text=True, timeout=100)
        assert not server.calls
    assert done.returncode == 2
    assert "--recipe e5" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "option", "owner"),
    [
        ("langcache", ("--quota", "5"), "rag"),
        ("rag", ("--sts-as", "scored"), "e5"),
        ("langcache", ("--no-language-check",), "e5"),
        ("rag", ("--distinct", "1"), "langcache"),
        ("e5", ("--column", "text"), "langcache or --recipe rag"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    recipe: str, option: tuple[str, ...], owner: str, tmp_path: Path, log: Path
) -> None:
    sources = [] if recipe == "e5" else [str(log)]
    chosen = ["--llm", "recorded:none", "--recipe", recipe, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["synthesize", *sources, *chosen, *option])
    assert isinstance(done.exception, ConfigurationError)
    assert f"{option[0]} with --recipe {recipe}" in str(done.exception)
    assert done.exception.expected == f"--recipe {owner}"
    assert not (tmp_path / "out").exists()


def test_a_budget_is_never_exceeded_and_its_rows_wait_for_the_next_run(tmp_path: Path, log: Path) -> None:
    with FaultyServer(faults={"server_error": 0.3}, answer=answer, seed=2) as server:
        first = run(server, tmp_path, log, "--max-calls", 7)
        assert len(server.calls) <= 7
        assert first["counts"]["no-budget"] > 0
        second = run(server, tmp_path, log)
    assert "no-budget" not in second["counts"]


def test_calls_go_out_as_a_batch_and_come_back(tmp_path: Path, log: Path) -> None:
    with FaultyServer(answer=answer) as server:
        line = command(server, tmp_path, log, "--batch-out", tmp_path / "files")
        subprocess.run(line, check=True, capture_output=True, timeout=100)
        assert not server.calls
        (file,) = (tmp_path / "files").glob("*.jsonl")
        asked = [json.loads(row) for row in file.read_text().splitlines()]
        results = tmp_path / "results.jsonl"
        results.write_text("".join(json.dumps(answer_batched(row)) + "\n" for row in asked))
        found = run(server, tmp_path, log, "--batch-in", results)
        assert found["calls"]["sent"] == 0
        assert not server.calls
    assert found["counts"]["kept"] > 40


def test_only_rows_that_wait_for_the_batch_are_said_to(tmp_path: Path, log: Path) -> None:
    """Neither a row that is an evaluation text, nor in the second round what the first one's answers led to."""
    leak = tmp_path / "eval.jsonl"
    leak.write_text(json.dumps({"text1": log.read_text().splitlines()[0], "text2": "x", "label": 1}) + "\n")
    with FaultyServer() as server:
        line = command(server, tmp_path / "out", log, "--eval", leak, "--judge", "--batch-out", tmp_path / "files")
        first = subprocess.run(line, check=True, capture_output=True, text=True, timeout=100)
        (file,) = (tmp_path / "files").glob("*.jsonl")
        rows = [answer_batched(json.loads(row)) for row in file.read_text().splitlines()]
        refused = rows[0]["response"]["body"]["choices"][0]["message"] | {"content": "I would rather not."}
        rows[0]["response"]["body"]["choices"][0]["message"] = refused
        results = tmp_path / "results.jsonl"
        results.write_text("".join(json.dumps(row) + "\n" for row in rows))
        line += ["--batch-in", str(results)]
        second = subprocess.run(line, check=True, capture_output=True, text=True, timeout=100)
    assert "7 rows wait" in first.stderr
    assert "7 rows wait" in second.stderr


def test_e5_takes_more_tasks_of_a_brainstorm(tmp_path: Path) -> None:
    arguments = ("--recipe", "e5", "--groups", "short-long", "--tasks", 12, "--used", 4)
    with FaultyServer(answer=answer) as server:
        tried = run(server, tmp_path, *arguments, "--pilot", 4)
        found = run(server, tmp_path, *arguments)
    assert found["calls"]["calls"] == 3 + 12
    assert tried["estimate"]["calls"]["value"] == pytest.approx(15, rel=0.1)


def test_the_language_check_of_e5_can_be_left_out(tmp_path: Path) -> None:
    texts = {
        "S1": "Der Hafenmeister hat heute keine Zeit für die vielen Besucher aus der großen Stadt am Fluss.",
        "S2": "Heute kann sich der Leiter des Hafens nicht um die Gäste kümmern, die in Scharen aus der Stadt kommen.",
        "S3": "Am Abend schließt der Hafen, und die Fischer bringen ihre Netze in das alte Lager hinter der Mühle.",
    }
    arguments = ("--recipe", "e5", "--groups", "sts", "--tasks", 1, "--languages", "en")
    with FaultyServer(answer=lambda _: json.dumps(texts)) as server:
        refused = subprocess.run(command(server, tmp_path, *arguments), capture_output=True, text=True, timeout=100)
        assert "wrong-language" in refused.stderr
        found = run(server, tmp_path, *arguments, "--no-language-check")
    assert found["counts"] == {"kept": 1}


def answer_batched(row: dict[str, Any]) -> dict[str, Any]:
    content = answer(row["body"]["messages"][-1]["content"])
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    body = {"id": "x", "object": "chat.completion", "model": row["body"]["model"], "choices": [choice], "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": row["custom_id"], "response": response, "error": None}


@pytest.mark.timeout(3600)
def test_sigkill_anywhere_in_both_steps_repeats_no_acknowledged_call(tmp_path: Path) -> None:
    """What a journal has is never asked again, and the files are those of a run that nobody disturbed."""
    arguments = ("--recipe", "e5", "--tasks", 60, "--concurrency", 4)
    with FaultyServer(answer=answer) as server:
        run(server, tmp_path / "calm", *arguments)
    chance = random.Random(0)
    with FaultyServer(answer=answer, delay=0.02) as server:
        for _ in range(KILLS):
            process = subprocess.Popen(command(server, tmp_path / "killed", *arguments), stderr=subprocess.DEVNULL)
            before = len(server.calls)
            deadline = time.monotonic() + 60
            while len(server.calls) <= before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
        run(server, tmp_path / "killed", *arguments)
        asked = [call.body["messages"][-1]["content"] for call in server.calls]
    twice = len(asked) - len(set(asked))
    assert twice <= 4 * KILLS  # at most those in flight
    for name in ("examples.jsonl", "rejected.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
