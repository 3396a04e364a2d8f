"""The journal: a finished call is never made again, whatever happens to the process."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsmith.artifacts import fingerprint
from embedsmith.errors import InputError, LanguageModelError
from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling
from embedsmith.llm.calls import Calls, Progress
from embedsmith.llm.journal import Finished, Journal, call_key
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.llm.recorded import Recorded
from embedsmith.testing import FakeLLM, FaultyServer

SAMPLING = Sampling(seed=1)


def echo(name: str = "fake:echo") -> FakeLLM:
    return FakeLLM(answer=lambda prompt: f"answer to {prompt.user}", name=name)


def put(journal: Journal, key: str, prompt: Prompt, model: str, completion: Completion) -> None:
    journal.put_many([Finished(key, prompt.fingerprint, model, completion)])


def write_prompts(*texts: str) -> list[Prompt]:
    return [Prompt("system", text, row=str(row), task="paraphrases") for row, text in enumerate(texts)]


def ask(llm: LanguageModel, prompts: Sequence[Prompt], journal: Journal, **more: Any) -> list[Completion]:
    return [done for _, done in Calls(llm, journal, SAMPLING, **more).complete(lambda: prompts)]


def test_a_second_run_sends_nothing_and_answers_the_same(tmp_path: Path) -> None:
    prompts = write_prompts("a", "b", "c")
    with Journal(tmp_path / "journal.sqlite") as journal:
        first = ask(echo(), prompts, journal)
    again = echo()
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert ask(again, prompts, journal) == first
    assert again.calls == []
    assert [one.text for one in first] == ["answer to a", "answer to b", "answer to c"]


def test_only_what_is_new_is_sent() -> None:
    with Journal(":memory:") as journal:
        ask(echo(), write_prompts("a", "b"), journal)
        llm = echo()
        done = ask(llm, write_prompts("c", "b", "d"), journal)
    assert sorted(prompt.user for prompt in llm.calls) == ["c", "d"]
    assert [one.text for one in done] == ["answer to c", "answer to b", "answer to d"]


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.sets(st.sampled_from("abcde")))
def test_each_text_is_sent_once_and_every_place_is_answered(texts: list[str], known: set[str]) -> None:
    with Journal(":memory:") as journal:
        ask(echo(), write_prompts(*sorted(known)), journal)
        llm = echo()
        done = ask(llm, write_prompts(*texts), journal)
    assert Counter(prompt.user for prompt in llm.calls) == Counter(set(texts) - known)
    assert [one.text for one in done] == [f"answer to {text}" for text in texts]


def test_all_that_decides_an_answer_is_in_the_key_and_nothing_else() -> None:
    prompt = Prompt("s", "u", "row", "task")
    key = call_key(prompt, "m", SAMPLING)
    others = [
        call_key(replace(prompt, system="s2"), "m", SAMPLING),
        call_key(replace(prompt, user="u2"), "m", SAMPLING),
        call_key(Prompt("su", "", "row", "task"), "m", SAMPLING),
        call_key(prompt, "m2", SAMPLING),
        *(
            call_key(prompt, "m", replace(SAMPLING, **changed))
            for changed in ({"seed": 2}, {"seed": None}, {"temperature": 0.9}, {"top_p": 0.9}, {"max_tokens": 9})
        ),
    ]
    assert len({key, *others}) == 1 + len(others)
    assert call_key(replace(prompt, row="other", task="other"), "m", SAMPLING) == key


@given(st.text(), st.text(), st.sampled_from([SAMPLING, Sampling(temperature=0.5), Sampling(max_tokens=9, seed=None)]))
def test_the_key_is_the_fingerprint_of_what_decides_the_answer(system: str, user: str, sampling: Sampling) -> None:
    """Journals of earlier versions are found again."""
    assert call_key(Prompt(system, user, "r", "t"), "m", sampling) == fingerprint([system, user, "m", sampling])


def test_recorded_answers_are_kept_by_row(tmp_path: Path) -> None:
    """Two rows of the log with the same words were recorded with different answers."""
    file = tmp_path / "completions.jsonl"
    file.write_text('{"id": 0, "paraphrases": ["x"]}\n{"id": 1, "paraphrases": ["y"]}\n', encoding="utf-8")
    with Journal(":memory:") as journal:
        for _ in range(2):  # sent, then from the journal
            done = ask(Recorded(file), write_prompts("same", "same"), journal)
            assert [one.text for one in done] == ['{"paraphrases": ["x"]}', '{"paraphrases": ["y"]}']


def test_failures_are_tried_again_and_empty_answers_are_not() -> None:
    answers: dict[str, Completion] = {
        "failed": Completion(None, "error"),
        "unknown": Completion(None, "missing"),
        "empty": Completion("", "stop"),
        "cut": Completion('{"a": [', "length"),
        "filtered": Completion("", "filtered"),
    }

    class Scripted:
        name = "fake:scripted"
        sent: list[str]

        def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
            self.sent = [prompt.user for prompt in prompts]
            yield from ((place, answers[prompt.user]) for place, prompt in enumerate(prompts))

    llm = Scripted()
    with Journal(":memory:") as journal:
        assert ask(llm, write_prompts(*answers), journal) == list(answers.values())
        assert journal.count() == 3
        assert ask(llm, write_prompts(*answers), journal) == list(answers.values())
    assert llm.sent == ["failed", "unknown"]


def test_what_an_older_version_took_for_an_empty_answer_is_asked_again_once(tmp_path: Path) -> None:
    """It stored the error of a gateway with status 200 as an empty answer without tokens; its calls stay counted."""
    path, prompts = tmp_path / "journal.sqlite", write_prompts("error", "empty", "cut", "good")
    stored = [Completion("", "stop"), Completion("", "stop", 9, 1), Completion("", "length"), Completion("x", "stop")]
    with Journal(path) as journal:
        for prompt, completion in zip(prompts, stored, strict=True):
            put(journal, call_key(prompt, "openai:m", SAMPLING), prompt, "openai:m", completion)
        put(journal, "other", prompts[0], "recorded:file", Completion("", "stop"))
        journal._connection.execute("pragma user_version = 0")
    llm = echo("openai:m")
    with Journal(path) as journal:
        assert journal.doubted == 1
        assert journal.get("other") == Completion("", "stop")
        done = ask(llm, prompts, journal)
        assert journal.read_spending("openai:m")[0].calls == 4 + 1
    assert [prompt.user for prompt in llm.calls] == ["error"]
    assert done == [Completion("answer to error", "stop", 10, 10, 0.0, "openai:m"), *stored[1:]]
    with Journal(path) as journal:
        put(journal, "later", prompts[0], "openai:m", Completion("", "stop"))
    with Journal(path) as journal:
        assert journal.get("later") == Completion("", "stop")


HOLDER = """
import sys, time
from embedsmith.llm.journal import Journal
with Journal(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_one_process_works_with_a_journal_and_others_may_read_it(tmp_path: Path) -> None:
    path, prompt = tmp_path / "journal.sqlite", write_prompts("a")[0]
    with Journal(path) as journal:
        put(journal, "key", prompt, "fake:llm", Completion("answer", "stop"))
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(InputError, match=rf"another run \(process {child.pid}\) works with .*journal\.sqlite"):
            Journal(path)
        with Journal(path, writable=False) as reader:
            assert reader.texts() == {prompt.fingerprint: "answer"}
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                put(reader, "other", prompt, "fake:llm", Completion("answer", "stop"))
    finally:
        child.kill()  # SIGKILL: nothing of its own gives the lock back
        child.wait(timeout=30)
        child.stdout.close()
    with Journal(path) as journal:
        assert journal.count() == 1


def test_two_journals_of_one_file_are_refused_in_one_process_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path), pytest.raises(InputError, match=f"process {os.getpid()}"):
        Journal(path)
    with Journal(path):
        pass


def test_a_journal_that_is_not_there_is_read_as_empty_and_not_made(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite", writable=False) as journal:
        assert journal.count() == 0
    assert not list(tmp_path.iterdir())


def test_every_field_of_a_completion_survives(tmp_path: Path) -> None:
    whole = Completion("Größe: 5 µg\n“ok” 🥚", "length", 12, 34, 0.125, "gpt-x-2026")
    prompt = write_prompts("a")[0]
    with Journal(tmp_path / "deep" / "folder" / "journal.sqlite") as journal:
        put(journal, "key", prompt, "openai:gpt-x", whole)
    with Journal(tmp_path / "deep" / "folder" / "journal.sqlite") as journal:
        assert journal.get("key") == whole
        assert journal.get("other") is None
        assert journal.texts() == {prompt.fingerprint: whole.text}


def test_why_a_call_failed_is_kept_also_in_the_journal_of_an_older_version(tmp_path: Path) -> None:
    path, failed = tmp_path / "journal.sqlite", Completion(None, "error", detail="status 400: too long", model="m")
    with Journal(path) as journal:
        put(journal, "known", write_prompts("a")[0], "openai:m", Completion("x", "stop"))
        journal._connection.execute("alter table failures drop column detail")
        journal._connection.execute("insert into failures values ('key', 'old', 'error', 0, 'm')")
        journal._connection.commit()
    with Journal(path, writable=False) as journal:
        assert journal.count() == 1
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.get_failure("key", "old") == Completion(None, "error", model="m")
            journal.put_many([Finished("other", "p", "openai:m", failed)], run="new")
            assert journal.get_failure("other", "new") == failed


def test_a_completion_is_committed_before_progress_is_reported(tmp_path: Path) -> None:
    """Seen through a second connection, as after a kill at that moment."""
    path = tmp_path / "journal.sqlite"
    seen: list[tuple[int, int | None, int]] = []

    def look(at: Progress) -> None:
        with sqlite3.connect(path) as other:
            seen.append((at.done, at.total, other.execute("select count(*) from calls").fetchone()[0]))

    with Journal(path) as journal:
        ask(echo(), write_prompts("a", "b", "a"), journal, on_progress=look)
    assert seen == [(0, 3, 0), (1, 3, 1), (3, 3, 2)]


def test_what_was_finished_before_the_model_gave_up_is_kept(tmp_path: Path) -> None:
    class GivesUp:
        name = "fake:gives-up"

        def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
            yield 1, Completion("second", "stop")
            raise LanguageModelError("the key was revoked")

    with Journal(tmp_path / "journal.sqlite") as journal:
        with pytest.raises(LanguageModelError):
            ask(GivesUp(), write_prompts("a", "b"), journal)
        assert journal.count() == 1


def test_answers_that_arrive_together_are_one_commit(tmp_path: Path) -> None:
    """Sixty answers that wait for the disk take a handful of commits, not sixty."""
    prompts = [Prompt("system", f"question {n}", str(n), "paraphrases") for n in range(60)]
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        sizes: list[int] = []
        put_many = journal.put_many

        def slowly(finished: Sequence[Finished], **options: object) -> None:
            sizes.append(len(finished))
            time.sleep(0.02)  # a slow disk
            put_many(finished, **options)  # type: ignore[arg-type]

        journal.put_many = slowly  # type: ignore[method-assign]
        ask(OpenAIChat("m", base_url=server.base_url), prompts, journal)
        assert sum(sizes) == journal.count() == 60
    assert len(sizes) < 30


def test_commits_are_synchronous_and_no_reader_is_blocked(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        ask = journal._connection.execute
        assert ask("pragma synchronous").fetchone()[0] == 2  # FULL: the log is flushed at every commit
        assert ask("pragma journal_mode").fetchone()[0] == "wal"


def test_no_key_of_a_user_reaches_the_file(tmp_path: Path) -> None:
    with FaultyServer() as server, Journal(tmp_path / "journal.sqlite") as journal:
        llm = OpenAIChat("m", base_url=server.base_url, api_key="sk-very-secret")
        ask(llm, write_prompts("a"), journal)
    assert server.calls[0].authorization == "Bearer sk-very-secret"
    assert all(b"very-secret" not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as a header " * 9, None])
def test_another_file_in_its_place_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match="is not a journal") as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert content is None or path.read_bytes() == content


def test_an_answer_with_half_an_emoji_can_be_stored() -> None:
    """Servers that cut at a token boundary send it, as the escape \\ud83d of their JSON."""
    with Journal(":memory:") as journal:
        ask(FakeLLM(answer=lambda _: "is it bad \ud83d"), write_prompts("a"), journal)


def test_the_first_run_hands_on_what_later_runs_will_find() -> None:
    """Otherwise rejected.jsonl cannot be written (no UTF-8) in the first run, and can in the second."""
    llm = FakeLLM(answer=lambda _: "is it bad \ud83d")
    with Journal(":memory:") as journal:
        first = ask(llm, write_prompts("a"), journal)
        assert ask(llm, write_prompts("a"), journal) == first


# SIGKILL. A child synthesizes against a server in this process and is killed again and again; the
# benchmark sets EMBEDSMITH_KILLS=20 and more. A kill falls a random time after a random number of
# calls, so it meets the child while it sends, waits, commits and (at the end) writes its files.

KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "3"))
CALLS_BETWEEN = 12  # calls that reach the server before the next kill, at most
CONCURRENCY = 4
CHILD = f"""
import sys
from embedsmith.corpus import Query
from embedsmith.llm import Sampling, open_llm
from embedsmith.synthesis import synthesize

url, out, count = sys.argv[1:]
queries = [Query(str(n), f"how do i repair bicycle part number {{n}}") for n in range(int(count))]
llm = open_llm("openai:tiny", base_url=url, concurrency={CONCURRENCY})
synthesize(queries, llm=llm, out=out, sampling=Sampling(seed=5))
"""


@dataclass(frozen=True)
class KilledRun:
    """What the server and the disk saw of a run that was killed `kills` times."""

    kills: int
    repeated: list[str]  # calls whose completion had been committed before, yet came again
    answered: Counter[tuple[str, str]]  # calls that were answered, by their messages
    folder: Path
    undisturbed: Path


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    folder, undisturbed = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("undisturbed")
    queries = (KILLS * CALLS_BETWEEN) // 2 + 10  # two calls each: enough that every kill meets work
    with FaultyServer() as server:
        start_child(server, undisturbed, queries).wait(timeout=120)
    draw, repeated, kills = random.Random(KILLS), [], 0
    with FaultyServer(delay=0.01, faults={"drop": 0.02}) as server:
        for _ in range(KILLS):
            before, committed = len(server.calls), read_committed(folder)
            child = start_child(server, folder, queries)
            wait_for_calls(server, child, before + draw.randint(1, CALLS_BETWEEN))
            time.sleep(draw.uniform(0, 0.02))
            child.send_signal(signal.SIGKILL)
            kills += child.wait(timeout=60) == -signal.SIGKILL
            repeated += find_repeated(server, before, committed)
        before, committed = len(server.calls), read_committed(folder)
        assert start_child(server, folder, queries).wait(timeout=120) == 0
        repeated += find_repeated(server, before, committed)
    return KilledRun(kills, repeated, Counter(read_calls(server, answered=True)), folder, undisturbed)


def start_child(server: FaultyServer, out: Path, queries: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, server.base_url, str(out), str(queries)])


def wait_for_calls(server: FaultyServer, child: subprocess.Popen[bytes], count: int) -> None:
    while len(server.calls) < count and child.poll() is None:
        time.sleep(0.001)


def read_committed(folder: Path) -> set[str]:
    """Fingerprints of the prompts in the journal, read as the next process will read them."""
    if not (folder / "journal.sqlite").exists():
        return set()
    with Journal(folder / "journal.sqlite") as journal:
        return set(journal.texts())


def find_repeated(server: FaultyServer, start: int, committed: set[str]) -> list[str]:
    return [user for system, user in read_calls(server, start) if Prompt(system, user, "", "").fingerprint in committed]


def read_calls(server: FaultyServer, start: int = 0, *, answered: bool = False) -> list[tuple[str, str]]:
    """System and user message of the calls; a request that a kill cut in half has none and is no call."""
    whole = [call for call in server.calls[start:] if "messages" in call.body and not (answered and call.fault)]
    return [(call.body["messages"][0]["content"], call.body["messages"][1]["content"]) for call in whole]


def test_a_killed_run_repeats_no_committed_call(killed_run: KilledRun) -> None:
    assert killed_run.kills == KILLS  # every child was killed at work, none had already ended
    assert killed_run.repeated == []


def test_a_killed_run_writes_the_bytes_of_an_undisturbed_one(killed_run: KilledRun) -> None:
    for name in ("examples.jsonl", "rejected.jsonl"):
        assert (killed_run.folder / name).read_bytes() == (killed_run.undisturbed / name).read_bytes()
    lines = (killed_run.folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["label"] for line in lines} == {0, 1}


def test_a_kill_costs_at_most_the_calls_in_flight(killed_run: KilledRun) -> None:
    assert sum(killed_run.answered.values()) - len(killed_run.answered) <= killed_run.kills * CONCURRENCY
