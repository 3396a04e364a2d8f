"""Recorded completions: a file of answers that stands in for a language model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from embedsmith.errors import ConfigurationError, InputError
from embedsmith.llm import Completion, Prompt, Sampling, open_llm
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.recorded import Recorded
from embedsmith.llm.structured import parse_list

ROWS = [
    {"id": 7, "paraphrases": ["Können Eier verderben?", "do eggs spoil"], "distinct": ["how big is an egg"]},
    {"id": "b", "paraphrases": [], "model": "gpt-x"},
]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def ask(llm: Recorded, row: str, task: str = "paraphrases") -> Completion:
    ((_, completion),) = llm.complete([Prompt("", "any words", row, task)], Sampling())
    return completion


def test_an_answer_is_found_by_row_and_task(recorded: Path) -> None:
    llm = Recorded(recorded)
    assert parse_list(ask(llm, "7").text, "paraphrases").items == ("Können Eier verderben?", "do eggs spoil")
    assert parse_list(ask(llm, "7", "distinct").text, "distinct").items == ("how big is an egg",)
    assert ask(llm, "7").finish == "stop"
    assert "ö" in str(ask(llm, "7").text)  # the words as a person reads them, not \u00f6


def test_a_row_or_task_that_was_not_recorded_is_missing(recorded: Path) -> None:
    llm = Recorded(recorded)
    for row, task in [("8", "paraphrases"), ("b", "distinct"), ("b", "model")]:
        completion = ask(llm, row, task)
        assert (completion.text, completion.finish) == (None, "missing")


def test_an_empty_list_was_recorded_and_is_not_missing(recorded: Path) -> None:
    assert ask(Recorded(recorded), "b").text == '{"paraphrases": []}'


def test_answers_come_in_the_order_of_the_prompts(recorded: Path) -> None:
    prompts = [Prompt("", "", row, "paraphrases") for row in ("b", "x", "7")]
    places = [place for place, _ in Recorded(recorded).complete(prompts, Sampling())]
    assert places == [0, 1, 2]


def test_gzip_reads_like_plain(recorded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "completions.jsonl.gz"
    packed.write_bytes(gzip.compress(recorded.read_bytes()))
    assert ask(Recorded(packed), "7").text == ask(Recorded(recorded), "7").text


def test_the_name_changes_with_the_content_of_the_file(recorded: Path) -> None:
    """The name is part of the key of a call, so edited recordings are not hidden by a journal."""
    before = Recorded(recorded).name
    assert before.startswith("recorded:completions.jsonl@")
    assert Recorded(recorded).name == before
    recorded.write_text(recorded.read_text(encoding="utf-8").replace("spoil", "rot"), encoding="utf-8")
    assert Recorded(recorded).name != before


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"paraphrases": ["a"]}\n', "line 1: no id"),
        ('{"id": 1, "paraphrases": ["a"]}\n{"id": 2,\n', "line 2: not JSON"),
        ("[1]\n", "line 1: a JSON list"),
        (
            '{"id": 7, "paraphrases": ["a"]}\n{"id": "7", "paraphrases": ["b"]}\n',
            "another answer for the id '7'",
        ),
        ("", "is empty"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, content: str | None, found: str) -> None:
    path = tmp_path / "broken.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=found) as caught:
        Recorded(path)
    assert "broken.jsonl" in str(caught.value)


def test_a_row_that_comes_twice_with_one_answer_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": 7, "paraphrases": ["a"]}\n' * 2 + '{"id": 7, "distinct": ["b"]}\n', encoding="utf-8")
    assert ask(Recorded(path), "7").text == '{"paraphrases": ["a"]}'
    assert ask(Recorded(path), "7", "distinct").text == '{"distinct": ["b"]}'


def test_a_row_whose_name_has_half_a_character_is_found_in_the_journal_too(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text('{"id": "a\\ud800", "paraphrases": ["spoilt?"]}\n', encoding="utf-8")
    with Journal(tmp_path / "journal.sqlite") as journal:
        prompts = [Prompt("", "", "a\ud800", "paraphrases")]
        [(_, done)] = Calls(Recorded(path), journal).complete(lambda: prompts)
    assert done.text == '{"paraphrases": ["spoilt?"]}'


def test_open_llm_reads_the_kind_from_the_spec(recorded: Path) -> None:
    assert open_llm(f"recorded:{recorded}").name == Recorded(recorded).name
    assert open_llm("openai:gpt-5-mini", base_url="http://127.0.0.1:9/v1").name == "openai:gpt-5-mini"


@pytest.mark.parametrize("spec", ["gpt-5-mini", "", "openai:", "recorded:", "local:", "ollama:qwen"])
def test_a_spec_of_another_form_is_an_error_that_lists_the_forms(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="recorded:FILE"):
        open_llm(spec)


def test_the_shared_recordings_answer_every_row(data: Path) -> None:
    path = data / "medical_queries" / "completions.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        rows = [str(json.loads(line)["id"]) for line in handle if line.strip()]
    prompts = [Prompt("", "", row, task) for row in rows for task in ("paraphrases", "distinct")]
    completions = [completion for _, completion in Recorded(path).complete(prompts, Sampling())]
    assert {completion.finish for completion in completions} == {"stop"}
