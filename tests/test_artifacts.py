"""Files are whole or absent; a stage runs again when anything it depends on has changed."""

from __future__ import annotations

import errno
import gzip
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from embedsmith.artifacts import (
    JsonLines,
    RunDirectory,
    Spool,
    fingerprint,
    fingerprint_file,
    read_arrays,
    read_json,
    read_jsonl,
    replacing,
    write_ahead,
    write_arrays,
    write_json,
    write_jsonl,
    write_text,
)
from embedsmith.documents import Passage
from embedsmith.documents.passages import passage_from
from embedsmith.errors import InputError


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_back_and_the_same_rows_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    rows = [{"text": "ünïcode\u2028line"}, {"text": "b", "n": 1}]
    assert write_jsonl(tmp_path / name, rows) == 2
    first = (tmp_path / name).read_bytes()
    assert [row for _, row in read_jsonl(tmp_path / name)] == rows
    write_jsonl(tmp_path / name, rows)
    assert (tmp_path / name).read_bytes() == first
    assert list(tmp_path.iterdir()) == [tmp_path / name]  # no temporary file is left


def test_half_a_character_comes_back(tmp_path: Path) -> None:
    row = {"text": "cut \ud83d here, \\\udfff there", "plain": "ü \\ud83d"}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert [found for _, found in read_jsonl(tmp_path / "rows.jsonl")] == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\nnot json\n', "line 2: not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: not JSON .a number of more digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1: not JSON .brackets within brackets"),
        (b"[1, 2]\n", "a JSON list, not an object"),
        (b'{"a": "\xff\xfe"}\n', "not UTF-8"),
        (b"", "is empty"),
    ],
)
def test_broken_files_are_refused_in_words(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(path))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="is a folder"):
        list(read_jsonl(tmp_path))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert list(read_jsonl(tmp_path / "bom.jsonl")) == [(1, {"a": 1})]
    (tmp_path / "zipped").write_bytes(gzip.compress(b'{"a": 2}\n'))  # by content, not by name
    assert list(read_jsonl(tmp_path / "zipped")) == [(1, {"a": 2})]


def test_fingerprints_follow_content_not_key_order(tmp_path: Path) -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    (tmp_path / "x").write_text("one")
    before = fingerprint_file(tmp_path)
    (tmp_path / "x").write_text("two")
    assert fingerprint_file(tmp_path) != before


def test_half_a_character_has_a_fingerprint_of_its_own() -> None:
    assert fingerprint("\ud83d") != fingerprint("\ude00")
    assert fingerprint(["How", "é"]) == "a5e8d4067f5b64a2"  # journals and run folders are found again


def test_a_stage_is_fresh_until_inputs_configuration_or_outputs_change(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    inputs, settings = {"log": "1234"}, {"n": 3}
    assert not run.is_fresh("corpus", inputs, settings)
    with run.stage("corpus", inputs, settings, ["out.txt"]):
        write_text(run / "out.txt", "result")
    assert run.is_fresh("corpus", inputs, settings)
    assert not run.is_fresh("corpus", {"log": "5678"}, settings)
    assert not run.is_fresh("corpus", inputs, {"n": 4})
    (run / "out.txt").write_text("someone else's")
    assert not run.is_fresh("corpus", inputs, settings)


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.stage("corpus", {}, {}, []):
        pass
    with pytest.raises(RuntimeError), run.stage("corpus", {}, {}, []):
        raise RuntimeError
    assert not run.is_fresh("corpus", {}, {})
    assert read_json(run / "manifest.json") == {"stages": {}}


def test_a_file_that_another_one_is_opening_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    threading.Timer(0.2, lambda: other.execute("commit")).start()
    mine = sqlite3.connect(path, timeout=0)
    write_ahead(mine, wait=30)
    assert mine.execute("pragma journal_mode").fetchone() == ("wal",)
    third = sqlite3.connect(tmp_path / "third.sqlite", timeout=0)
    busy = sqlite3.connect(tmp_path / "third.sqlite", isolation_level=None)
    busy.execute("begin exclusive")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(third, wait=0.05)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".rows.jsonl.{gone.pid}.tmp"
    kept = [
        tmp_path / name for name in (f".rows.jsonl.{os.getppid()}.tmp", f".rows.{gone.pid}.tmp", ".rows.jsonl.a.tmp")
    ]
    for room in (left, *kept):
        room.mkdir()
        (room / "rows.jsonl").write_text("{")
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])
    assert not left.exists()
    assert all(room.exists() for room in kept)


def test_a_set_has_one_fingerprint_in_all_processes() -> None:
    code = "from embedsmith.artifacts import fingerprint; print(fingerprint({'rates': {'a', 'b', 'c', 'd'}}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1


def test_folders_of_the_same_bytes_in_other_files_differ(tmp_path: Path) -> None:
    contents = [{"a": "b"}, {"ab": ""}, {"a": "x", "c": "y"}, {"a": "xcy"}]
    for place, files in enumerate(contents):
        for name, text in files.items():
            write_text(tmp_path / str(place) / name, text)
    assert len({fingerprint_file(tmp_path / str(place)) for place in range(len(contents))}) == len(contents)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_jsonl(tmp_path / name, [{"a": 1}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_jsonl(tmp_path / name, [{"a": 2}])
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [row for _, row in read_jsonl(tmp_path / name)] == [{"a": 1}]


def test_a_gzip_end_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: gzip.GzipFile) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines = JsonLines(tmp_path / "rows.jsonl.gz")
    monkeypatch.setattr(gzip.GzipFile, "close", full)
    with pytest.raises(OSError, match="No space"), lines:
        lines.write({"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_spool_gives_its_rows_back_as_they_were_by_place_and_in_turns() -> None:
    halves = Passage("1", "half \ud800 of a character, and two: \ud83d\ude00", headings=("a", "b"), also=("4",))
    rows = [halves, Passage("2", "\n\r\u2028\0\ufeff"), Passage("3", "Öl", page=1)]
    with Spool(passage_from) as spool:
        assert not spool
        for row in rows[:2]:
            spool.add(row)
        first, second = iter(spool), iter(spool)
        assert [next(first), next(second), next(first), next(second)] == [rows[0], rows[0], rows[1], rows[1]]
        spool.add(rows[2])  # also after it was read
        assert (list(spool), spool[1], len(spool)) == (rows, rows[1], 3)


def test_a_folder_takes_its_place_whole_or_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with pytest.raises(InputError), replacing(folder) as new:
        read_json(write_text(new / "config.json", "{"))
    assert list(folder.parent.iterdir()) == []
    with replacing(folder) as new:
        write_text(new / "part" / "config.json", "{}")
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert read_json(folder / "part" / "config.json") == {}


def test_arrays_are_read_by_the_key_that_they_were_written_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_arrays(tmp_path, "tokens", "one", ids=np.arange(3), ends=np.array([0, 3]))
    found = read_arrays(tmp_path, "tokens", "one", "ids", "ends")
    assert found is not None
    assert [array.tolist() for array in found] == [[0, 1, 2], [0, 3]]
    assert read_arrays(tmp_path, "tokens", "two", "ids") is None
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_arrays(tmp_path, "tokens", "two", ids=np.arange(4), ends=np.array([0, 4]))
    assert read_arrays(tmp_path, "tokens", "one", "ids") is None  # half written is not written
