"""How a command ends that did not do what it was asked: what is kept, one JSON object, places, what to do next."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedsmith.artifacts import require_place, write_json, write_jsonl
from embedsmith.cache.feedback import NOTED
from embedsmith.cache.semantic import SemanticCache
from embedsmith.calibration import calibrate
from embedsmith.cli import main
from embedsmith.cli.console import console, print_table
from embedsmith.errors import CalibrationRefused, ConfigurationError, InputError, ModelError
from embedsmith.llm import open_llm
from embedsmith.model import _spare_retries, check_model, resolve_model
from embedsmith.pipeline import Job, run
from embedsmith.testing import FakeLLM, FaultyServer, write_answer

Ended = Callable[..., tuple[int, str, str]]


@pytest.fixture
def embedsmith(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """Run a command in this process; return its exit code and what it wrote to standard output and error."""

    def end(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedsmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return int(str(ended.value.code)), written.out, " ".join(written.err.split())

    monkeypatch.setattr(console, "quiet", False)
    return end


# --- Ctrl-C ----------------------------------------------------------------------------------------


def hear_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, this test run perhaps among them: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("text\nwhere is my card\nwhere is my pin\n")
    asked = threading.Event()

    def answer(user: str) -> str:
        asked.set()
        return write_answer(user)

    with FaultyServer(answer=answer, delay=1.0) as server:
        options = ["--llm", "openai:any", "--base-url", server.base_url, "--out", "my run", "--json"]
        command = [sys.executable, "-m", "embedsmith", "synthesize", "log.csv", *options]
        at_work = subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True, preexec_fn=hear_ctrl_c)
        try:
            assert asked.wait(120)
            at_work.send_signal(signal.SIGINT)
            out, told = at_work.communicate(timeout=120)
        finally:
            at_work.kill()
    assert at_work.returncode == 130
    assert "stopped; answers of the language model are kept" in told
    assert f"to go on, the same command: embedsmith {shlex.join(command[3:])}" in told
    assert "Traceback" not in told
    assert json.loads(out)["exit_code"] == 130


# --- one object for programs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["explain", "nowhere.csv", "--json"], "nowhere.csv does not exist"),
        (["explain", "nowhere.csv", "--colum", "q", "--json"], "No such option: --colum"),
        (["mine", "nowhere.jsonl", "--json"], "Missing option '--encoder'."),
        (["chunk", "x.md", "--out", "/proc/x.jsonl", "--json"], "nothing can be written at /proc/x.jsonl"),
        (["reencode", "sqlite:///nowhere.db", "--model", "MODEL", "--json"], "sqlite:///nowhere.db does not exist"),
        (["reencode", "memory://", "--model", "no such folder", "--json"], "'memory://' cannot be re-encoded"),
    ],
)
def test_an_error_is_one_object_with_json(
    embedsmith: Ended, tiny_model: Path, arguments: list[str], found: str
) -> None:
    code, out, told = embedsmith(*[str(tiny_model) if word == "MODEL" else word for word in arguments])
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert json.loads(out)["error"].startswith(found)
    assert json.loads(out)["action"]
    assert found.split(":")[0] in told


def test_without_json_standard_output_stays_empty(embedsmith: Ended) -> None:
    assert embedsmith("explain", "nowhere.csv")[:2] == (2, "")


# --- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [True, False])
def test_a_place_is_probed_and_left_as_it_was(tmp_path: Path, folder: bool) -> None:
    require_place(tmp_path / "new" / "deep", folder=folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for place in (Path("/proc/new"), tmp_path / "file" / "below", tmp_path if not folder else tmp_path / "file"):
        with pytest.raises(InputError, match=r"nothing can be written at|is a f"):
            require_place(place, folder=folder)
    assert [at.name for at in tmp_path.iterdir()] == ["file"]


def test_nothing_is_left_of_a_file_that_cannot_get_its_name(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for write in (write_json, write_jsonl):
        with pytest.raises(OSError, match="directory"):
            write(tmp_path / "taken", [{}])
    assert [at.name for at in tmp_path.iterdir()] == ["taken"]


def test_documents_without_a_passage_leave_no_file(embedsmith: Ended, tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing")
    (tmp_path / "passages.jsonl").write_text("of another day")
    code, _, told = embedsmith("chunk", tmp_path / "broken.pdf", "--out", tmp_path / "passages.jsonl")
    assert code == 2
    assert "there is no passage in" in told
    assert (tmp_path / "passages.jsonl").read_text() == "of another day"
    assert f"see {tmp_path / 'passages_rejected.jsonl'}" in told
    assert (tmp_path / "passages_rejected.jsonl").read_text()


# --- models ----------------------------------------------------------------------------------------


def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t1" / "model").mkdir(parents=True)
    for name, words in (("t1/modle", "did you mean t1/model?"), ("a/b/c", "check the path"), ("~/x", "check")):
        with pytest.raises(ModelError, match="is not a folder") as refused:
            resolve_model(name)
        assert words in refused.value.action


def test_a_mistyped_path_costs_no_import_of_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from embedsmith.model import load_encoder
try:
    load_encoder({str(tmp_path / "nowhere")!r})
except Exception as error:
    print(error, sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "is not a folder" in told
    assert told.endswith("[]\n")


def test_a_hub_that_has_no_address_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked: list[object] = []

    def fail(*place: object, **_: object) -> None:
        asked.append(place)
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    _spare_retries.cache_clear()
    try:
        with pytest.raises(ModelError, match="nomodel"):
            check_model("nomodel")
    finally:
        _spare_retries.cache_clear()
    assert len(asked) == 1


def test_a_language_model_without_its_kind_is_recognised(tmp_path: Path) -> None:
    names = {"gpt-5-mini": "openai:gpt-5-mini", "small.gguf": "local:small.gguf", "Qwen/Q3": "local:Qwen/Q3"}
    for name, meant in names.items():
        with pytest.raises(ConfigurationError) as refused:
            open_llm(name)
        assert refused.value.action == f"did you mean {meant}?"


# --- too few ---------------------------------------------------------------------------------------


def test_too_few_pairs_for_any_model_are_told_before_the_model_is_blamed() -> None:
    """8 pairs carry no promise of 5%, however they are ranked; what the guard vetoes no model can serve."""
    for cosines in (np.linspace(1, 0, 8), np.linspace(0, 1, 8)):
        with pytest.raises(CalibrationRefused, match=r"8 labelled pairs are too few .* whatever the model") as refused:
            calibrate([1, 1, 1, 1, 0, 0, 0, 0], cosines)
        assert refused.value.facts == {"pairs": 8, "pairs_needed": 118, "delta_carried": None}
    with pytest.raises(CalibrationRefused, match="60 more are vetoed") as refused:
        calibrate([1] * 80 + [0] * 80, np.array([0.9] * 20 + [-1.0] * 60 + [0.1] * 80))
    assert refused.value.facts["pairs_needed"] == 59 * 160 // 20


def test_a_log_too_short_to_judge_by_costs_no_call(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "three.csv").write_text("text\nwhere is my card\nwhat is a pin\nhow do I get a loan\n")
    model = FakeLLM()
    job = Job(tmp_path / "three.csv", str(tiny_model), tmp_path / "run")
    with pytest.raises(InputError, match=r"3 distinct queries in .* are too few"):
        run(job, model)
    same = {"sentence1": "a", "sentence2": "b", "label": 1, "group": "all"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(same)}\n{json.dumps(same | {'sentence2': 'c', 'label': 0})}\n")
    with pytest.raises(InputError, match="share texts or groups"):
        run(replace(job, evaluation=tmp_path / "pairs.jsonl"), model)
    (tmp_path / "marks.jsonl").write_text(json.dumps(same | dict.fromkeys(NOTED, "x") | {"label": 1}))
    with pytest.raises(InputError, match="marked by people"):
        run(replace(job, evaluation=tmp_path / "marks.jsonl"), model)
    assert not model.calls


# --- calibrate, then serve -------------------------------------------------------------------------


def test_a_model_is_calibrated_and_then_served_by_the_command_that_is_named(
    embedsmith: Ended, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "my model")
    code, _, told = embedsmith("serve", "--upstream", "simulator:", "--model", model, "--port", "0")
    assert code == 2
    assert f"embedsmith calibrate '{model}' PAIRS --for-cache --out '{model / 'calibration.json'}'" in told
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"a": f"lost card {at}", "b": f"lost card {at}", "label": 1} for at in range(30)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    code, out, told = embedsmith("calibrate", model, pairs, "--json")
    assert (code, json.loads(out)["pairs_needed"]) == (4, 59)
    assert f"serve --model '{model}' --upstream URL --threshold 0.9 --shadow" in told
    rows += [{"a": f"found pin {at}", "b": f"found pin {at}", "label": 1} for at in range(90)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    _, _, told = embedsmith("calibrate", model, pairs)
    assert told.endswith(f"next embedsmith serve --model '{model}' --upstream URL")
    assert SemanticCache(model).calibration is not None
    _, _, told = embedsmith("calibrate", model, pairs, "--out", tmp_path / "other.json", "--no-guard")
    assert told.endswith(f"--upstream URL --calibration {tmp_path / 'other.json'} --no-guard")
    assert SemanticCache(model, calibration=tmp_path / "other.json", guard=False).policy.guard is None
    _, _, told = embedsmith("calibrate", model, pairs, "--out", tmp_path / "other.json", "--model-only")
    assert "of the model by itself, without a cache" in told
    assert "embedsmith serve" not in told


def test_of_many_processes_only_the_first_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet in (False, True):
        monkeypatch.setattr(console, "quiet", quiet)
        print_table("a table", ["name"], [["row"]])
        assert ("a table" in capsys.readouterr().out) != quiet
