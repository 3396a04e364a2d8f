"""The table of options: what would do nothing is refused, and no option of any command is left undecided."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from embedsmith.cli import app
from embedsmith.cli.options import RULES, Rule, naming
from embedsmith.errors import ConfigurationError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EVERYWHERE = {"--out", "--json", "--help"}
# What always does something. Whoever adds an option says here that it does, or in `cli.options` what it needs.
ACTS = {
    "run": """--llm --base --recipe --eval --column --separator --guard --prompts --max-calls --price --temperature
        --max-tokens --epochs --batch --learning-rate --precision --losses --judge --tolerance --force --mask --seed""",
    "demo": "--seed",
    "synthesize": """--llm --recipe --eval --prompts --pilot --max-calls --price --batch-in --temperature --max-tokens
        --seed""",
    "explain": "--column --separator --mask --conversations --row --synthesis --paraphrases --distinct --prompts",
    "chunk": "--tokens --overlap --base --column --separator",
    "inspect": "--against --base --rejected --log --separator --seed",
    "mine": """--encoder --corpus --negatives --window --relative --margin --minimum --maximum --sampling --ruling
        --output --relabel --search --storage --engine --work --separator""",
    "train": "--separator --base --set --epochs --batch --learning-rate --precision --compile --verifier --seed",
    "recipe": "",
    "evaluate": "--suite --retrieval --seed",
    "compare": "--pairs --validation --separator --seed",
    "calibrate": "--separator --delta --alpha --for-cache --duplicate-rate --traffic",
    "recalibrate": "--model --delta --alpha --min-pairs --threshold --guard",
    "export": "--precision --pairs",
    "serve": """--upstream --model --store --threshold --guard --turns --ttl --max-entries --max-bytes
        --feedback --namespaces --allow-tools --allow-images --allow-several --temperature --shadow --ignore-header
        --allow-origin --allow-host --price --host --port --max-body --grace --log --truncate""",
    "reencode": "--model --batch --restart --drop-failed",
    "version": "",
}
VALUES = {"--eviction": "lru", "--sts-as": "scored"}
CHOICES = {"--recipe": ("rag", "langcache", "e5"), "--output": ("pairs",)}  # of options whose default is some need
ENTRIES = [
    pytest.param(command, option, rule, other, id=f"{command} {option} {other or 'alone'}")
    for command, rules in RULES.items()
    for option, rule in rules.items()
    for other in ((None,) if rule.needs else ()) + rule.excludes
]


def find(command: str, name: str) -> Any:
    for parameter in COMMANDS[command].params:
        if name in (*parameter.opts, *parameter.secondary_opts, parameter.name.upper()):
            return parameter
    raise LookupError(f"{command} has no {name}")


def write(command: str, name: str) -> list[str]:
    """Return a thing of the table as it is typed, with a value of its kind."""
    name, _, value = name.partition(" ")
    parameter = find(command, name)
    value = value or VALUES.get(name, "1")  # a number, a text, a file
    if not name.startswith("--"):
        return [value]
    return [name] if parameter.is_flag else [name, value]


def required(command: str) -> Iterator[str]:
    """Yield what the command cannot be called without, with values that fulfil no need."""
    for parameter in COMMANDS[command].params:
        if parameter.required:
            yield from write(command, parameter.opts[0] if parameter.param_type_name == "option" else parameter.name)


def unfulfil(rule: Rule) -> list[str]:
    """Return what gives an option that is needed another value than the one that is."""
    for name, _, value in (other.partition(" ") for other in rule.needs):
        if value and name in CHOICES:
            return [name, next(other for other in CHOICES[name] if f"{name} {other}" not in rule.needs)]
    return []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_option_is_in_the_table_or_acts_by_itself(command: str) -> None:
    options = {parameter.opts[0] for parameter in COMMANDS[command].params if parameter.param_type_name == "option"}
    acts, ruled = set(ACTS[command].split()), set(RULES.get(command, {}))
    assert not acts & ruled
    assert acts | ruled == options - EVERYWHERE


@pytest.mark.parametrize(("command", "option", "rule", "other"), ENTRIES)
def test_an_option_that_would_do_nothing_is_refused(
    command: str, option: str, rule: Rule, other: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*required(command), *write(command, option)]
    if other is None:
        arguments += unfulfil(rule)
    else:  # all is there that the option needs, and what makes it useless
        arguments += write(command, other) + (write(command, rule.needs[0]) if rule.needs else [])
    ended = CliRunner().invoke(app, [command, *arguments])
    assert isinstance(ended.exception, ConfigurationError), ended.output
    assert ended.exception.found.startswith(f"{option} with {other}" if other else f"{option} with")
    assert ended.exception.action
    assert not list(tmp_path.iterdir())


def test_an_option_with_what_it_needs_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for recipe, option in (("langcache", "--edits"), ("rag", "--quota")):
        ended = CliRunner().invoke(app, ["synthesize", "log.txt", "--llm", "x", "--recipe", recipe, option, "3"])
        assert str(ended.exception).startswith("log.txt ")  # there is no such file: the command itself says so


def test_a_default_counts_where_it_is_typed(tmp_path: Path) -> None:
    """Given is what stands on the command line: --tolerance 0.01 with --verifier does nothing, whatever its value."""
    options = ["--base", "x", "--out", str(tmp_path), "--verifier", "--tolerance", "0.01"]
    ended = CliRunner().invoke(app, ["train", "none.jsonl", *options])
    assert "--tolerance with --verifier" in str(ended.exception)


def test_a_useless_option_ends_with_code_2_and_what_to_do() -> None:
    command = [sys.executable, "-m", "embedsmith", "serve", "--upstream", "simulator:", "--model", "x"]
    done = subprocess.run([*command, "--sample-margin", "0.1"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.split("\n")[:3] == [
        "error: --sample-margin without --sample",
        "Expected: --sample",
        "To do: leave it out, or give --sample with it",
    ]


def test_an_error_of_a_function_is_about_the_option_that_its_value_came_from() -> None:
    with pytest.raises(ConfigurationError, match="--judge: 'gpt' is no model"), naming("--judge"):
        raise ConfigurationError("'gpt' is no model")
