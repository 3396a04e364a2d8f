"""The main job end to end on a tiny model: stages run once, reports are whole, errors are words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from embedsmith.artifacts import RunDirectory
from embedsmith.calibration import read_calibration
from embedsmith.encoder import Embeddings
from embedsmith.errors import InputError, LanguageModelError, ModelError
from embedsmith.examples import LabelledPair
from embedsmith.hosted import HostedEncoder
from embedsmith.llm import Prompt, find_host, open_llm
from embedsmith.pipeline import Job, Watcher, cache_job, common, run
from embedsmith.pipeline.cache_job import set_apart
from embedsmith.synthesis.recipes import load_recipe
from embedsmith.testing import REWORDINGS, FakeEncoder, FakeLLM, FaultyServer, write_answer
from embedsmith.training import TrainingConfig

WORDS = ["card", "pin", "loan", "app", "phone", "bank", "rate", "fee", "code", "limit"]


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures of reports empty, but in tests marked `painted`: they are a sixth of a run of a tiny model."""
    save = Figure.savefig

    def save_without(figure: Figure, file: Any, **options: Any) -> None:
        if options.get("format") == "svg":
            file.write('<svg width="1pt" height="1pt"></svg>')
        else:
            save(figure, file, **options)

    if request.node.get_closest_marker("painted") is None:
        monkeypatch.setattr(Figure, "savefig", save_without)


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Job:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"how do I change my {word}\n" for word in [*WORDS, "card"]))
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"a": f"where is the {word} page", "b": f"{form} {word} page", "label": label, "group": word}
        for word in WORDS
        for form, label in (("find the", 1), ("delete the whole", 0))
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = TrainingConfig(batch=4, runs=1)
    return Job(log, str(tiny_model), tmp_path / "run", evaluation=pairs, training=training)


@pytest.mark.painted
def test_a_run_leaves_model_report_and_json(job: Job) -> None:
    result = run(job, FakeLLM())
    assert (result.model / "model.safetensors").exists()
    page = result.report.read_text()
    for heading in ("Before and after", "The threshold and what it promises", "General ability", "How to reproduce"):
        assert heading in page
    assert page.count("<svg") == 3
    assert not re.search(r"""(src|href)=["']https?:""", page)  # self-contained
    summary = json.loads((job.out / "report.json").read_text())
    assert summary["corpus"] == {"queries": 10, "rows": 11, "not_used": {"repeat": 1}}
    assert summary["comparison"]["reports"]["tuned"]["pairs"] == 10
    assert summary["calibration"]["refused"]  # twenty pairs cannot promise anything
    assert not (job.out / "calibration.json").exists()


@pytest.mark.parametrize("mask", [False, True])
def test_personal_data_is_told_before_the_first_call_and_masked_where_asked(job: Job, mask: bool) -> None:
    job.log.write_text(job.log.read_text() + "please send it to ada@example.org\nplease send it to bob@example.org\n")
    told: list[str] = []

    class Hosted(FakeLLM):
        base_url = "https://llm.example.org/v1"

    def refuse(prompt: Prompt) -> str:
        assert any(line.startswith("personal data in 2 queries") and "2 × e-mail" in line for line in told)
        raise LanguageModelError("this is the first call")

    with pytest.raises(LanguageModelError, match="the first call"):
        run(replace(job, mask=mask), Hosted(refuse), Watcher(told.append))
    kept = (job.out / "queries.jsonl").read_text()
    assert ("@example.org" in kept, "please send it to [e-mail]" in kept) == (not mask, mask)
    assert kept.count("please send") == (1 if mask else 2)  # what only the address told apart is one question


@pytest.mark.parametrize("mask", [False, True])
def test_personal_data_in_labelled_pairs_is_told_and_masked_where_a_hosted_peer_reads_them(
    job: Job, monkeypatch: pytest.MonkeyPatch, mask: bool
) -> None:
    assert job.evaluation is not None
    row = {"a": "mail ada@example.org the bill", "b": "send the bill to ada@example.org", "label": 1, "group": "mail"}
    job.evaluation.write_text(job.evaluation.read_text() + json.dumps(row) + "\n")
    told, read = [], set()

    def embed(texts: Sequence[str]) -> Embeddings:
        read.update(texts)
        return FakeEncoder().encode(texts)

    def name_peer(model: object) -> str | None:
        return "peer.example.org" if isinstance(model, HostedEncoder) else None

    def answer(prompt: Prompt) -> str:
        assert any(line.startswith("personal data in 1 labelled pairs") and "2 × e-mail" in line for line in told)
        return write_answer(prompt.user)

    for module in (cache_job, common):
        monkeypatch.setattr(module, "find_host", name_peer)
    with FaultyServer(embed=embed) as server:
        peered = replace(job, mask=mask, peers=("openai:peer",), base_url=server.base_url)
        run(peered, FakeLLM(answer), Watcher(told.append))
    seen = "mail [e-mail] the bill" if mask else "mail ada@example.org the bill"
    assert [text for text in read if text.startswith("mail ")] == [seen]
    assert any("2 × e-mail" in line and ("masked" if mask else "sent to peer.example.org") in line for line in told)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://127.0.0.1:8000/v1", None),
        ("http://localhost:11434/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://10.0.0.5:8000/v1", "10.0.0.5"),
        ("https://api.openai.com/v1", "api.openai.com"),
    ],
)
def test_a_language_model_is_hosted_where_its_address_is_not_this_machine(address: str, host: str | None) -> None:
    assert find_host(open_llm("openai:any", base_url=address)) == host
    assert find_host(FakeLLM()) is None


def test_rows_that_are_not_used_are_told_of_and_their_texts_kept_out_of_the_training(job: Job) -> None:
    assert job.evaluation is not None
    written = REWORDINGS[0].format("how do I change my pin")
    with job.evaluation.open("a") as file:
        file.write(json.dumps({"a": written, "b": "another thing", "label": "yes"}) + "\n")
    with job.log.open("a") as file:
        file.write("\n")
    said: list[str] = []
    result = run(job, FakeLLM(), Watcher(say=said.append))
    lost = "1 of 21 rows not used, e.g. line 21: label is 'yes', not 0 or 1"
    assert f"warning: {job.evaluation}: {lost}" in said
    assert "corpus: 10 distinct queries of 11 in log.txt, 1 rows not used (queries_rejected.jsonl)" in said
    assert result.summary["evaluation_not_used"] == lost
    assert lost.partition(":")[0] in result.report.read_text()
    assert written not in (job.out / "synthesis/examples.jsonl").read_text()
    assert written in (job.out / "synthesis/rejected.jsonl").read_text()


def test_a_log_without_a_text_is_named(job: Job) -> None:
    job.log.write_text("\n\n")
    with pytest.raises(InputError, match=r"log.txt has no row with a text: 2 rows not used, e.g. line 1"):
        run(job, FakeLLM())


def test_a_second_run_into_a_folder_is_refused_while_the_first_one_works(job: Job) -> None:
    def start_another(line: str) -> None:
        if line.startswith("synthesis:"):  # its own lock is free again, and the training has not begun
            script = (
                "import sys; from embedsmith.artifacts import RunDirectory\nwith RunDirectory(sys.argv[1]).hold(): pass"
            )
            shown = subprocess.run([sys.executable, "-c", script, job.out], capture_output=True, text=True, check=False)
            refused.append(shown.stderr)

    refused: list[str] = []
    run(job, FakeLLM(), Watcher(say=start_another))
    assert f"another run (process {os.getpid()}) works with {job.out}" in refused[0]
    with RunDirectory(job.out).hold(), pytest.raises(InputError, match="another run"):
        run(job, FakeLLM())
    run(job, FakeLLM())


def test_the_threshold_of_a_run_says_what_it_was_made_on(job: Job) -> None:
    rows = [{"a": f"lost card {at}", "b": f"lost card {at}", "label": 1, "group": at} for at in range(60)]
    assert job.evaluation is not None
    with job.evaluation.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    run(replace(job, delta=0.3, alpha=0.3), FakeLLM())
    made = read_calibration(job.out / "calibration.json")
    assert (made.precision, made.guard) == ("fp32", True)


def test_a_second_run_does_nothing_again_and_a_changed_option_only_what_depends_on_it(job: Job) -> None:
    llm = FakeLLM()
    run(job, llm)
    calls, said = len(llm.calls), list[str]()
    trained = (job.out / "model" / "model.safetensors").stat().st_mtime_ns
    run(job, llm, Watcher(say=said.append))
    assert len(llm.calls) == calls
    assert "training: up to date" in said
    assert (job.out / "model" / "model.safetensors").stat().st_mtime_ns == trained
    run(replace(job, training=replace(job.training, epochs=2)), llm)
    assert len(llm.calls) == calls
    assert (job.out / "model" / "model.safetensors").stat().st_mtime_ns != trained


def test_an_edited_prompts_file_is_read_again(job: Job, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.toml"
    shipped = Path(load_recipe.__code__.co_filename).parent / "prompts/langcache.toml"
    prompts.write_text(shipped.read_text())
    first, second, third = FakeLLM(), FakeLLM(), FakeLLM()
    run(replace(job, prompts=prompts), first)
    run(replace(job, prompts=prompts), second)
    assert second.calls == []
    prompts.write_text(shipped.read_text().replace('system = """', 'system = """Be brief. '))
    run(replace(job, prompts=prompts), third)
    assert len(third.calls) == len(first.calls)
    assert all(prompt.system.startswith("Be brief. ") for prompt in third.calls)


def test_a_calibration_that_was_changed_or_lost_is_made_again(job: Job) -> None:
    """Two hundred and forty pairs, half of which choose, can promise what twenty cannot."""
    rows = [
        {"a": text, "b": text.upper() if label else f"delete all {number}", "label": label, "group": str(number)}
        for number in range(120)
        for text in [f"where is page {number}"]
        for label in (1, 0)
    ]
    assert job.evaluation is not None
    job.evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = replace(job, delta=0.2, alpha=0.2)
    run(job, FakeLLM())
    file = job.out / "calibration.json"
    written = file.read_bytes()
    for spoil in (file.unlink, lambda: file.write_text("{}")):
        spoil()
        run(job, FakeLLM())
        assert file.read_bytes() == written


def test_calls_that_failed_are_made_again_by_the_next_run(job: Job) -> None:
    down = FakeLLM(answer=lambda prompt: None if prompt.row in {"1", "2"} else write_answer(prompt.user))
    run(job, down)
    up = FakeLLM()
    summary = run(job, up).summary
    assert {prompt.row for prompt in up.calls} == {"1", "2"}
    assert summary["synthesis"]["calls"]["missing"] == 0


@pytest.mark.painted
def test_user_text_in_the_report_is_escaped(job: Job) -> None:
    assert job.evaluation is not None
    with job.evaluation.open("a") as handle:
        handle.write(json.dumps({"a": "<script>alert(1)</script>", "b": "<b>x</b>", "label": 0, "group": "x"}) + "\n")
    page = run(job, FakeLLM()).report.read_text()
    assert "<script>alert" not in page


def test_without_labelled_pairs_a_part_of_the_synthetic_ones_judges_and_it_says_so(job: Job) -> None:
    said: list[str] = []
    result = run(replace(job, evaluation=None), FakeLLM(), Watcher(say=said.append))
    assert any("held out" in line for line in said)
    assert "synthetic pairs held out" in result.report.read_text()


def test_every_stage_says_that_it_begins(job: Job) -> None:
    said: list[str] = []
    run(job, FakeLLM(), Watcher(say=said.append, steps=lambda step: said.append(f"step {step.step}")))
    begun = ("base: looking", "synthesis: ", "hardness: ", "training: batch", "training: loading", "step 1")
    begun += ("training: weights", "evaluation: ", "evaluation: general", "threshold: chosen on")
    lines = iter(said)  # each is looked for behind the one before it
    missing = [words for words in begun if not any(line.startswith(words) for line in lines)]
    assert not missing, said


def test_a_weak_language_model_is_said_plainly(job: Job) -> None:
    def mumble(prompt: object) -> str:
        task = prompt.task  # type: ignore[attr-defined]
        good = "please tell me about " + prompt.row  # type: ignore[attr-defined]
        return json.dumps({task: ["", "As an AI model I cannot", f"{task} {good}"]})

    page = run(job, FakeLLM(answer=mumble)).report.read_text()
    assert "It is too weak for this job" in page


def test_the_whole_job_against_a_real_http_server_that_misbehaves(job: Job) -> None:
    faults = {"rate_limit": 0.1, "server_error": 0.1, "drop": 0.05, "thinking": 0.1, "fenced": 0.1, "null": 0.05}
    with FaultyServer(faults=faults, rejects_formats=["json_schema"], seed=1) as server:
        result = run(job, open_llm("openai:any", base_url=server.base_url))
    counts = result.summary["synthesis"]["counts"]
    assert counts["kept"] > 30
    assert result.summary["synthesis"]["calls"]["prompt_tokens"] > 0


def test_a_judge_and_controlled_edits_are_part_of_the_run_and_of_its_record(job: Job) -> None:
    job.log.write_text("".join(f"how do I raise my {word} to {20 + row} euros\n" for row, word in enumerate(WORDS)))
    said: list[str] = []
    with FaultyServer(faults={"rate_limit": 0.05, "thinking": 0.1}, seed=2) as server:
        llm = open_llm("openai:any", base_url=server.base_url)
        result = run(replace(job, edits=2, judge=True), llm, Watcher(say=said.append))
        judged = [call for call in server.calls if '"same_answer"' in call.body["messages"][-1]["content"]]
    found = result.summary["synthesis"]
    assert found["written_by"]["controlled-edits"] >= len(WORDS)
    assert len(judged) >= found["counts"]["kept"]
    assert any("by controlled-edits" in line for line in said)
    assert "controlled-edits" in result.report.read_text()
    manifest = json.loads((job.out / "manifest.json").read_text())
    assert manifest["stages"]["synthesis"]["configuration"]["recipe"]["edits"] == 2


def test_a_base_that_is_no_model_is_found_before_the_first_call(job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    llm = FakeLLM()
    with pytest.raises(ModelError, match="holds no model"):
        run(replace(job, base=str(tmp_path / "empty")), llm)
    assert llm.calls == []


def test_a_guard_that_gives_no_figure_is_found_before_the_first_call(job: Job, tmp_path: Path) -> None:
    guard = tmp_path / "mine.jsonl"
    guard.write_text('{"text": "one", "label": "x"}\n{"text": "two", "label": "x"}\n')
    llm = FakeLLM()
    with pytest.raises(InputError, match="one class only"):
        run(replace(job, guards=(guard,)), llm)
    assert not llm.calls


def test_a_missing_log_is_an_error_with_its_name(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none\\.txt does not exist"):
        run(replace(job, log=tmp_path / "none.txt"), FakeLLM())


def written(queries: int) -> list[LabelledPair]:
    return [
        LabelledPair(f"how do I change my {name}", f"{form} {name}", label, group=str(name))
        for name in range(queries)
        for form, label in (("update", 1), ("delete", 0))
    ]


def test_a_tenth_of_the_queries_is_kept_back_to_choose_the_weights() -> None:
    taught, choosing = set_apart(written(200), seed=0)

    kept_back, left = {pair.group for pair in choosing}, {pair.group for pair in taught}
    assert 10 <= len(kept_back) <= 30
    assert not kept_back & left
    assert len(taught) + len(choosing) == 400


def test_few_queries_are_all_trained_on_and_choose_nothing() -> None:
    assert set_apart(written(20), seed=0) == (written(20), ())


@pytest.mark.painted
def test_the_report_says_how_much_of_the_base_the_weights_keep(job: Job) -> None:
    job.log.write_text("".join(f"how do I change my {word} {number}\n" for word in WORDS for number in range(15)))
    result = run(replace(job, force=True), FakeLLM())

    choice = result.summary["retention"]
    taken = choice["candidates"][choice["chosen"]]
    assert choice["searched"]
    assert f"Its weights are {taken['share']:g} · tuned" in result.report.read_text()
    assert result.report.read_text().count("<svg") == 4
