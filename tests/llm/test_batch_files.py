"""Batch files: calls out to a file, answers back into the journal under the same keys."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from embedsmith.errors import InputError
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.batches import BatchResults, BatchWriter, read_results
from embedsmith.llm.budget import Budget, Price, Usage, bound_tokens
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal, call_key
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.testing import FaultyServer

SAMPLING = Sampling(temperature=0.5, max_tokens=50, seed=1)
CHAT = OpenAIChat("m", base_url="http://127.0.0.1:9/v1", api_key="sk-secret")


def write_prompts(count: int) -> list[Prompt]:
    return [Prompt("system", f"question {n}: größer?", str(n), "paraphrases") for n in range(count)]


def write(
    journal: Journal, folder: Path, prompts: list[Prompt], *, budget: Budget | None = None, **limits: int
) -> tuple[list[Path], list[str]]:
    writer = BatchWriter(CHAT, folder, journal, **limits)
    calls = Calls(writer, journal, SAMPLING, budget=budget)
    finishes = [done.finish for _, done in calls.complete(lambda: prompts)]
    return writer.files, finishes


def answer(server: FaultyServer, file: Path) -> list[Path]:
    """Run a batch as a provider does; the files that a user downloads."""
    results, errors = server.run_batch(file.read_text(encoding="utf-8").splitlines())
    names = file.with_suffix(".output.jsonl"), file.with_suffix(".errors.jsonl")
    for name, lines in zip(names, (results, errors), strict=True):
        name.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [name for name in names if name.stat().st_size]


def test_a_run_goes_on_from_a_batch_without_a_call(tmp_path: Path) -> None:
    prompts = write_prompts(20)
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        files, finishes = write(journal, tmp_path / "batch", prompts)
        assert finishes == ["batched"] * 20
        assert read_results(answer(server, files[0]), journal) == BatchResults(20, 0, 0, 0, 0)
        batched = len(server.calls)
        live = OpenAIChat("m", base_url=server.base_url)
        done = [one for _, one in Calls(live, journal, SAMPLING).complete(lambda: prompts)]
        assert len(server.calls) == batched
        assert [one.text for one in done] == [server.answer(prompt.user) for prompt in prompts]


def test_a_line_is_what_the_providers_ask_for_and_holds_no_key(tmp_path: Path) -> None:
    (prompt,) = write_prompts(1)
    with Journal(":memory:") as journal:
        (file,), _ = write(journal, tmp_path, [prompt])
    text = file.read_text(encoding="utf-8")
    line = json.loads(text)
    assert line["custom_id"] == call_key(prompt, "openai:m", SAMPLING)
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"]["messages"] == prompt.messages
    assert (line["body"]["model"], line["body"]["max_completion_tokens"], line["body"]["seed"]) == ("m", 50, 1)
    assert "sk-secret" not in text


def test_files_stay_below_the_limits_and_hold_each_call_once(tmp_path: Path) -> None:
    prompts = write_prompts(25)
    with Journal(":memory:") as journal:
        files, _ = write(journal, tmp_path / "calls", prompts + prompts[:5], calls=10)
        assert [len(file.read_bytes().splitlines()) for file in files] == [10, 10, 5]
        assert [file.name for file in files] == ["batch-00001.jsonl", "batch-00002.jsonl", "batch-00003.jsonl"]
    line = len(files[2].read_bytes()) // 5 + 10
    with Journal(":memory:") as journal:
        files, _ = write(journal, tmp_path / "size", prompts, size=3 * line)
        assert all(file.stat().st_size <= 3 * line for file in files)
        written = [json.loads(row)["custom_id"] for file in files for row in file.read_bytes().splitlines()]
    assert sorted(written) == sorted(call_key(prompt, "openai:m", SAMPLING) for prompt in prompts)


def test_calls_that_are_out_are_written_to_no_other_file(tmp_path: Path) -> None:
    prompts = write_prompts(6)
    with Journal(tmp_path / "journal.sqlite") as journal:
        write(journal, tmp_path, prompts[:4])
    with Journal(tmp_path / "journal.sqlite") as journal:
        files, finishes = write(journal, tmp_path, prompts)
    assert finishes == ["batched"] * 6
    assert [file.name for file in files] == ["batch-00002.jsonl"]
    assert len(files[0].read_bytes().splitlines()) == 2


def test_errors_and_missing_answers_go_into_the_next_round(tmp_path: Path) -> None:
    """Silence (dropped) and errors (500) are as common here as they are with providers."""
    prompts = write_prompts(40)
    with Journal(tmp_path / "journal.sqlite") as journal:
        with FaultyServer(faults={"drop": 0.2, "server_error": 0.2, "thinking": 0.2}, seed=4) as server:
            (file,), _ = write(journal, tmp_path, prompts)
            results = read_results(answer(server, file), journal)
            faults = [call.fault for call in server.calls]
        dropped, failed = faults.count("drop"), faults.count("server_error")
        assert min(dropped, failed) > 0
        assert "status 500: " in results.first_failed
        assert replace(results, first_failed="") == BatchResults(40 - dropped - failed, failed, dropped, 0, 0)
        (second,), finishes = write(journal, tmp_path, prompts)
        assert len(second.read_bytes().splitlines()) == dropped + failed == finishes.count("batched")


def test_files_read_twice_count_once(tmp_path: Path) -> None:
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        (file,), _ = write(journal, tmp_path, write_prompts(8))
        files = answer(server, file)
        read_results(files, journal)
        spent = journal.read_spending("openai:m")
        assert read_results(files, journal) == BatchResults(0, 0, 0, 8, 0)
        assert journal.read_spending("openai:m") == spent == (Usage(8, 800, 400), Usage())


def test_foreign_lines_are_counted_and_foreign_files_refused(tmp_path: Path) -> None:
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        (file,), _ = write(journal, tmp_path, write_prompts(2))
        (output,) = answer(server, file)
        stranger = '{"custom_id": "request-1", "response": {"status_code": 200, "body": {}}}\n'
        mixed, foreign = tmp_path / "mixed.jsonl", tmp_path / "foreign.jsonl"
        mixed.write_text(output.read_text(encoding="utf-8") + stranger, encoding="utf-8")
        foreign.write_text(stranger, encoding="utf-8")
        results = read_results([mixed], journal)
        assert (results.stored, results.unreadable) == (2, 1)
        assert "request-1" in results.first_unreadable
        with pytest.raises(InputError, match=r"foreign\.jsonl has no answer"):
            read_results([foreign], journal)


def test_an_error_in_the_body_of_an_answer_is_a_failed_call(tmp_path: Path) -> None:
    """It would be an empty answer, for ever; the call goes into the next round."""
    (prompt,) = write_prompts(1)
    row = {"custom_id": call_key(prompt, "openai:m", SAMPLING), "error": None}
    body = {"error": {"code": 502, "message": "Provider returned error"}}
    file = tmp_path / "output.jsonl"
    file.write_text(json.dumps({**row, "response": {"status_code": 200, "body": body}}) + "\n", encoding="utf-8")
    with Journal(tmp_path / "journal.sqlite") as journal:
        write(journal, tmp_path, [prompt])
        said = f"{file}, line 1: status 200: Provider returned error"
        assert read_results([file], journal) == BatchResults(0, 1, 0, 0, 0, first_failed=said)
        assert journal.count() == 0


def test_an_answer_without_a_body_is_a_failed_call(tmp_path: Path) -> None:
    with Journal(":memory:") as journal:
        (file,), _ = write(journal, tmp_path, write_prompts(1))
        key = json.loads(file.read_text(encoding="utf-8"))["custom_id"]
        output = tmp_path / "output.jsonl"
        output.write_text(json.dumps({"custom_id": key, "response": {"status_code": 200, "body": None}}) + "\n")
        assert read_results([output], journal).failed == 1


def test_a_batch_that_is_out_counts_at_its_worst_case(tmp_path: Path) -> None:
    price = Price(1.0, 1.0)
    prompts = write_prompts(30)
    worst = sum(price.of(Usage(1, bound_tokens(prompt), 50)) for prompt in prompts[:10]) + 1e-9
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        (file,), finishes = write(journal, tmp_path, prompts, budget=Budget(max_cost=worst, price=price))
        assert finishes == ["batched"] * 10 + ["budget"] * 20
        _, finishes = write(journal, tmp_path, prompts, budget=Budget(max_cost=worst, price=price))
        assert finishes == ["batched"] * 10 + ["budget"] * 20
        read_results(answer(server, file), journal)
        budget = Budget(max_cost=worst, price=price)
        _, finishes = write(journal, tmp_path, prompts, budget=budget)
    assert budget.cost == pytest.approx(10 * 150e-6)
    assert finishes[:10] == ["stop"] * 10
    assert 0 < finishes.count("batched") < 10


def test_a_recipe_of_two_steps_takes_two_rounds(tmp_path: Path) -> None:
    def ask(calls: Calls) -> list[Completion]:
        first = [done.text for _, done in calls.complete(lambda: write_prompts(3)) if done.text is not None]
        second = [Prompt("", f"more of {text}", "0", "t") for text in first]
        return [done for _, done in calls.complete(lambda: second)]

    with FaultyServer(answer=lambda text: text[::-1]) as server, Journal(tmp_path / "journal.sqlite") as journal:
        for expected in (0, 3):
            writer = BatchWriter(CHAT, tmp_path, journal)
            assert len(ask(Calls(writer, journal, SAMPLING))) == expected
            read_results(answer(server, writer.files[0]), journal)
        assert {done.finish for done in ask(Calls(CHAT, journal, SAMPLING))} == {"stop"}


# SIGKILL while a batch is written and read.

KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))
COUNT = 3000
CHILD = f"""
import sys
from pathlib import Path
from embedsmith.llm import Prompt, Sampling
from embedsmith.llm.batches import BatchWriter, read_results
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
what, folder = sys.argv[1], Path(sys.argv[2])
print("begun", flush=True)
with Journal(folder / "journal.sqlite") as journal:
    if what == "write":
        chat = OpenAIChat("m", base_url="http://127.0.0.1:9/v1")
        writer = BatchWriter(chat, folder, journal, calls=200)
        prompts = lambda: (Prompt("s", f"question {{n}}", str(n), "t") for n in range({COUNT}))
        for _ in Calls(writer, journal, Sampling(seed=1)).complete(prompts): pass
    else:
        read_results(sorted(folder.glob("*.output.jsonl")), journal)
"""


def kill_often(what: str, folder: Path, draw: random.Random) -> None:
    command = [sys.executable, "-c", CHILD, what, str(folder)]
    for _ in range(KILLS):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=60)
        child.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)


def test_a_batch_that_is_killed_loses_no_call_and_doubles_none(tmp_path: Path) -> None:
    draw = random.Random(KILLS)
    kill_often("write", tmp_path, draw)
    files = sorted(tmp_path.glob("batch-*.jsonl"))
    written = [json.loads(line)["custom_id"] for file in files for line in file.read_bytes().splitlines()]
    assert len(written) == len(set(written)) == COUNT
    with FaultyServer() as server:
        for file in files:
            answer(server, file)
    kill_often("read", tmp_path, draw)
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.count() == COUNT
        assert journal.read_spending("openai:m")[0] == Usage(COUNT, 100 * COUNT, 50 * COUNT)
        assert journal.read_committed("openai:m") == Usage()
