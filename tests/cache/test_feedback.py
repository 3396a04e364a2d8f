"""The file of judged pairs: durable, readable by all, and whole after a kill."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from embedsmith.cache.feedback import Feedback, Judged, read_all_feedback, read_feedback, refuse_feedback
from embedsmith.errors import InputError
from embedsmith.examples import LabelledPair, read_examples

ROW = Judged("put my card on ice", "how do I freeze my card?", 1, 0.83, "tenant", "sample", "openai:x", 5.0, "model")
OLD = {"sentence1": "a", "sentence2": "b", "label": 0, "marked": 1.0}


def test_a_file_that_is_there_may_lie_where_nothing_new_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "feedback.jsonl"
    file.write_text("")
    Feedback(tmp_path / "later" / "feedback.jsonl").require_place()
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.jsonl"]

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # as in a folder of another user
    Feedback(file).require_place()
    with pytest.raises(InputError, match=r"nothing can be written at .*other.jsonl \(Permission denied\)"):
        Feedback(tmp_path / "other.jsonl").require_place()


def test_rows_come_back_as_they_were_and_are_examples_too(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "new" / "feedback.jsonl")
    assert feedback.read() == []
    feedback.append(ROW)
    assert feedback.read() == [ROW]
    (pair,) = read_examples(feedback.path, kind=LabelledPair).examples
    assert isinstance(pair, LabelledPair)
    assert (pair.sentence1, pair.sentence2, pair.label) == (ROW.sentence1, ROW.sentence2, 1)


def test_rows_of_older_versions_are_read_as_marked_by_people(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps(OLD) + "\n")
    Feedback(path).append(ROW)
    old, new = Feedback(path).read()
    assert (old.source, old.judge, old.cosine, old.namespace) == ("person", "person", None, "default")
    assert new == ROW
    assert len(read_examples(path, kind=LabelledPair).examples) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 2}, "label is 2"),
        ({"sentence2": " "}, "sentence2 has no text"),
        ({"source": "oracle"}, "source is 'oracle'"),
        ({"cosine": "near"}, "could not convert"),
        ({"namespace": 3}, "namespace is no text"),
        ({"marked": 10**400}, "int too large"),
        ({"marked": float("inf")}, "marked is inf"),
    ],
)
def test_a_bad_row_is_left_out_with_its_reason(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps(OLD | row) + "\n" + json.dumps(OLD) + "\n")
    rows, (bad,) = read_feedback(path)
    assert (len(rows), bad.reason, bad.line) == (1, "bad-row", 1)
    assert reason in bad.detail


def test_a_line_cut_by_a_kill_is_skipped_and_removed_by_the_next_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl")
    feedback.append(ROW)
    whole = feedback.path.read_bytes()
    feedback.path.write_bytes(whole + whole[:40])
    rows, (bad,) = read_feedback(feedback.path)
    assert (rows, bad.reason, bad.line) == ([ROW], "cut-line", 2)
    with caplog.at_level(logging.WARNING):
        feedback.append(ROW)
    assert "40 bytes" in caplog.text
    assert feedback.path.read_bytes() == whole * 2


def test_the_rows_of_a_tenant_go_and_no_other_moves(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    feedback, other = Feedback(path), Feedback(path)
    for name in ("default", "acme", "acme/part", "acmes"):
        feedback.append(replace(ROW, sentence1=f"asked by {name}", namespace=name))
    assert len(other.read()) == 4
    size = path.stat().st_size
    with path.open("ab") as handle:
        handle.write(b'"sentence2": "x", "namespace": "acme"}\n{"sentence1": "of anoth')
    assert (feedback.remove("acme"), feedback.remove("acme"), feedback.remove("none")) == (3, 0, 0)
    assert [row.namespace for row in Feedback(path).read()] == ["default", "acmes"]
    assert b'"acme"' not in path.read_bytes()
    assert path.read_bytes()[:size].splitlines()[1].strip() == b""
    other.append(ROW)  # cuts off what is left of the last line
    assert other.read_new() == ([ROW], False)
    assert len(read_examples(path).examples) == 3
    assert Feedback(tmp_path / "none.jsonl").remove("acme") == 0


REMOVER = """
import sys
from embedsmith.cache.feedback import Feedback
feedback = Feedback(sys.argv[1])
while True:
    feedback.remove("acme")
"""


def test_rows_that_are_added_while_a_tenant_is_removed_are_all_kept_whatever_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    feedback, killed = Feedback(path), random.Random(0)
    feedback.append(ROW)
    for turn in range(3):
        process = subprocess.Popen([sys.executable, "-c", REMOVER, str(path)])
        for at in range(50):
            feedback.append(replace(ROW, sentence1=f"row {turn} {at}", namespace="acme" if at % 2 else "default"))
        time.sleep(killed.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    feedback.remove("acme")
    kept = {row.sentence1 for row in feedback.read()} - {ROW.sentence1}
    assert kept == {f"row {turn} {at}" for turn in range(3) for at in range(0, 50, 2)}


def test_what_others_add_is_read_when_it_is_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    feedback = Feedback(path)
    assert (feedback.read(), feedback.read_new()) == ([], ([], False))
    Feedback(path).append(ROW)
    assert (feedback.read_new(), feedback.read_new()) == (([ROW], False), ([], False))
    with path.open("a") as other:
        line = json.dumps(OLD) + "\n"
        other.write(line[:30])
        other.flush()
        assert feedback.read_new() == ([], False)
        other.write(line[30:])
    assert len(feedback.read_new()[0]) == 1
    path.rename(tmp_path / "old.jsonl")
    Feedback(path).append(ROW)
    assert feedback.read_new() == ([ROW], True)
    assert feedback.read() == [ROW]


def test_a_whole_last_line_without_its_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps(OLD))
    Feedback(path).append(ROW)
    assert len(Feedback(path).read()) == 2


def test_many_threads_lose_no_row(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: feedback.append(Judged(f"a{at}", "b", 1)), range(200)))
    assert {row.sentence1 for row in feedback.read()} == {f"a{at}" for at in range(200)}


WRITER = """
import sys, pathlib
from embedsmith.cache.feedback import Feedback, Judged
feedback = Feedback(pathlib.Path(sys.argv[1]))
for number in range(100000):
    feedback.append(Judged(f"question {number} " + "x" * 5000, "stored", 1))
    print(number, flush=True)
"""


def test_a_killed_writer_loses_no_acknowledged_row(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    generator = random.Random(0)
    for _ in range(3):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        told = process.communicate()[0].split()
        held = {row.sentence1.split()[1] for row in Feedback(path).read()}
        assert set(told) <= held
        Feedback(path).append(ROW)
        assert len(read_examples(path, kind=LabelledPair).examples) == len(held) + 1


def test_files_of_replicas_are_one_stream(tmp_path: Path) -> None:
    for name, marked in (("a", 2.0), ("b", 1.0)):
        Feedback(tmp_path / name).append(Judged(name, "x", 1, marked=marked))
    rows, rejected = read_all_feedback([tmp_path / "a", tmp_path / "b"])
    assert ([row.sentence1 for row in rows], rejected) == (["b", "a"], [])
    (tmp_path / "c").write_text("{}\n")
    with pytest.raises(InputError, match="not one judged pair"):
        read_all_feedback([tmp_path / "c"])


def test_a_mark_that_is_repeated_counts_once_and_a_sample_as_often_as_it_was_drawn(tmp_path: Path) -> None:
    mark = Judged("a", "b", 0, namespace="x", marked=1.0)
    sample = replace(mark, source="sample")
    other = [replace(mark, namespace="y"), replace(mark, sentence2="c")]
    for name in ("one", "two"):
        for row in (mark, sample, *other):
            Feedback(tmp_path / name).append(row)
    rows, _ = read_all_feedback([tmp_path / "one", tmp_path / "two"])
    assert sorted(rows, key=repr) == sorted([mark, *other, sample, sample], key=repr)


MODEL = replace(ROW, sentence1="a", sentence2="b", label=1, source="sample", judge="openai:x", marked=9.0)
PERSON = replace(MODEL, label=0, source="person", judge="person", marked=2.0)


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        ([PERSON, MODEL], 0),  # a person's goes before a model's, however late
        ([MODEL, PERSON], 0),
        ([MODEL, PERSON, replace(PERSON, label=1, marked=3.0)], 1),  # the latest of people's
        ([PERSON, replace(MODEL, label=1, judge="person")], 1),  # on a sample as on a mark
        ([replace(MODEL, label=0), replace(MODEL, marked=10.0)], 1),  # the latest of models'
        ([MODEL, replace(PERSON, sentence1="b", sentence2="a ")], 0),  # a pair has no direction
    ],
)
def test_a_pair_has_one_verdict_for_recalibration_and_training_alike(
    tmp_path: Path, rows: list[Judged], label: int
) -> None:
    for row in rows:
        Feedback(tmp_path / "feedback.jsonl").append(row)
    assert {row.label for row in read_all_feedback([tmp_path / "feedback.jsonl"])[0]} == {label}
    examples = read_examples(tmp_path / "feedback.jsonl", kind=LabelledPair).examples
    assert {example.label for example in examples if isinstance(example, LabelledPair)} == {label}
    assert len(examples) == len(rows)


def test_of_verdicts_at_one_time_the_later_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    for label in (0, 1):
        Feedback(path).append(replace(ROW, label=label))
    assert [row.label for row in read_all_feedback([path])[0]] == [1, 1]


def test_a_verdict_without_a_time_gives_way_to_one_that_has_it(tmp_path: Path) -> None:
    """In a table of rows of two versions the missing time is NaN."""
    path = tmp_path / "feedback.jsonl"
    rows = [
        OLD | {"source": "person", "judge": "person", "marked": at, "label": at == 5.0} for at in (float("nan"), 5.0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [pair.label for pair in read_examples(path, kind=LabelledPair).examples] == [1, 1]


def test_tenants_judge_apart_and_training_takes_the_latest(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl")
    feedback.append(PERSON)
    feedback.append(replace(PERSON, namespace="other", label=1, marked=3.0))
    assert [row.label for row in read_all_feedback([feedback.path])[0]] == [0, 1]
    assert [
        example.label for example in read_examples(feedback.path).examples if isinstance(example, LabelledPair)
    ] == [1, 1]


def test_labelled_pairs_that_contradict_each_other_stay_as_they_are_where_nobody_judged(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(OLD | {"label": label}) + "\n" for label in (0, 1)))
    assert [example.label for example in read_examples(path).examples if isinstance(example, LabelledPair)] == [0, 1]


def test_what_people_marked_is_no_sample_to_make_a_promise_on(tmp_path: Path) -> None:
    marked, labelled = tmp_path / "marked.jsonl", tmp_path / "labelled.jsonl"
    Feedback(marked).append(ROW)
    labelled.write_text('{"sentence1": "a b", "sentence2": "b a", "label": 1, "source": "our team"}\n')
    refuse_feedback(labelled)
    with pytest.raises(InputError, match="1 rows were marked") as caught:
        refuse_feedback(marked)
    assert "embedsmith recalibrate" in str(caught.value)
