"""Which options belong together: what each one needs to do anything, and beside which others it would do nothing.

One table for all commands, read before any of them runs: an option that was given and has no effect is an error, for
nothing is ignored silently. What is not in the table always acts (a test holds that each option is here or there).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from embedsmith.errors import ConfigurationError, EmbedsmithError


@dataclass(frozen=True, slots=True)
class Rule:
    """What an option asks of the others of its command.

    Others are written as they are typed: "--judge", "--no-guard", "PAIRS"; "--recipe rag" for a value;
    "--llm openai:MODEL" and "--store redis://…" for all values of this kind.

    Attributes:
        needs: one of these has to be there; () for nothing.
        excludes: none of these may be there.
        action: what to do otherwise.
    """

    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    action: str = "leave it out"


def _needs(*others: str, action: str = "") -> Rule:
    return Rule(needs=others, action=action or f"leave it out, or give {_one_of(others)} with it")


def _excludes(*others: str, action: str = "leave one of them out") -> Rule:
    return Rule(excludes=others, action=action)


def _one_of(others: Iterable[str]) -> str:
    return " or ".join(others)


def _each(options: str, rule: Rule) -> dict[str, Rule]:
    return {f"--{option}": rule for option in options.split()}


ELSEWHERE = "for a cache, write pairs with `embedsmith synthesize`; `embedsmith train` takes all options of training"
LANGCACHE, RAG, E5 = (_needs(f"--recipe {name}") for name in ("langcache", "rag", "e5"))
PRICED = _needs("--price", action="--price INPUT,OUTPUT in US dollars for a million tokens")
TO_A_SERVER = _needs("--llm openai:MODEL")
RANKED = _needs("--retrieval", "--qrels")
NO_VERIFIER = _excludes("--verifier", action="leave it out: it is for embedding models, and a verifier is none")
BY_HAND = _excludes("--threshold", action="leave one of them out: a threshold given by hand counts as it is")

RULES: Mapping[str, Mapping[str, Rule]] = {
    "run": {
        **_each("compare paraphrases distinct edits delta alpha conversations", LANGCACHE),
        **_each("tokens quota across set training instruction", _needs("--recipe rag", action=ELSEWHERE)),
        "--base-url": _needs("--llm openai:MODEL", "--compare openai:MODEL"),
        "--concurrency": TO_A_SERVER,
        "--max-cost": PRICED,
    },
    "synthesize": {
        **_each("paraphrases distinct edits conversations", LANGCACHE),
        **_each("column separator mask judge", _needs("--recipe langcache", "--recipe rag")),
        **_each("quota base across", RAG),
        **_each("tasks groups languages topics used language-check sts-as", E5),
        **_each("base-url batch-out", TO_A_SERVER),
        "--concurrency": Rule(TO_A_SERVER.needs, ("--batch-out",), "leave it out: it is for calls that are sent"),
        "--max-cost": PRICED,
    },
    "inspect": {"--base-url": _needs("--base openai:MODEL")},
    "mine": {
        "--relabel-prompt": _needs("--relabel openai:MODEL", "--relabel local:MODEL", "--relabel recorded:FILE"),
        "--bounds": _needs("--relabel cross-encoder:MODEL"),
        "--judged": _needs("--relabel"),
        "--concurrency": _needs("--relabel openai:MODEL"),
        "--base-url": _needs("--encoder openai:MODEL", "--relabel openai:MODEL"),
        "--scores": _needs("--output triplets"),
        "--seed": _needs("--sampling uniform", "--sampling weighted"),
        **_each("workers address", _needs("--engine ray")),
    },
    "train": {
        **_each("losses recipe mix held-out dry-run validation guard tolerance", NO_VERIFIER),
        "--small": _needs("--recipe", action="--recipe with it: it takes that recipe's values for a small machine"),
        "--force": _needs("--validation", action="--validation with it: without, nothing refuses the model"),
    },
    "evaluate": {
        **_each("validation guard separator", _needs("PAIRS")),
        "--data": _needs("--suite"),
        "--compare": _needs("--suite", "--retrieval"),
        "--run": RANKED,
        **_each("k run-out report", RANKED),
        **_each("bm25 matryoshka", _needs("--retrieval")),
        "--qrels": Rule(
            ("--run",),
            ("--retrieval", "MODEL"),
            "--run FILE --qrels FILE alone: they have no texts to rank; or MODEL --retrieval FOLDER, with --run or not",
        ),
        "--base-url": _needs("MODEL openai:MODEL", "--compare openai:MODEL"),
    },
    "compare": {"--base-url": _needs("MODELS openai:MODEL")},
    "calibrate": {
        "--base-url": _needs("MODEL openai:MODEL"),
        **_each("guard verifier", _excludes("--model-only", action="leave --model-only out: they are for a cache")),
    },
    "export": {"--separator": _needs("--pairs")},
    "recalibrate": {"--calibration": BY_HAND, "--verifier": BY_HAND},
    "serve": {
        "--calibration": BY_HAND,
        "--verifier": BY_HAND,
        "--store-timeout": _needs(
            *(f"--store {kind}://…" for kind in ("redis", "rediss", "unix", "postgresql", "postgres")),
            action="leave it out: a store in this process is not waited for",
        ),
        "--eviction": _needs("--max-entries", "--max-bytes"),
        "--sample": _needs("--feedback", action="--feedback FILE with it, for the verdicts"),
        **_each("sample-margin judge delta", _needs("--sample")),
        "--judge-url": _needs("--judge openai:MODEL"),
        **_each("prompt-price completion-price", _excludes("--price")),
    },
}


class CheckedCommand(TyperCommand):
    """A command that refuses options without effect before it runs."""

    def invoke(self, ctx: Any) -> Any:
        require_effect(ctx)
        return super().invoke(ctx)


def require_effect(context: typer.Context) -> None:
    """Raise where an option was given that would do nothing beside the others.

    Raises:
        ConfigurationError: names the options, what they are without or beside, and what to do.
    """
    rules = RULES.get(str(context.info_name), {})
    given = {name: rule for name, rule in rules.items() if _is_given(context, name)}
    for rule in given.values():
        names = ", ".join(_spell(context, name) for name, other in given.items() if other == rule)
        for other in rule.excludes:
            if _is_there(context, other):
                raise ConfigurationError(f"{names} with {other}", expected="one or the other", action=rule.action)
        if rule.needs and not any(_is_there(context, other) for other in rule.needs):
            raise ConfigurationError(
                f"{names} {_tell_missing(context, rule.needs)}", expected=_one_of(rule.needs), action=rule.action
            )


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Say in an error of the body to which option the value was given that it is about: a function does not know."""
    try:
        yield
    except EmbedsmithError as error:
        error.found = f"{option}: {error.found}"
        error.args = (error.found,)
        raise


def _find(context: typer.Context, name: str) -> Any:
    """Return the parameter that is typed as `name`: an option by any of its names, an argument in capitals."""
    for parameter in context.command.params:
        argument = [str(parameter.name).upper()] if parameter.param_type_name == "argument" else []
        if name in (*parameter.opts, *parameter.secondary_opts, *argument):
            return parameter
    raise LookupError(f"{context.info_name} has no {name}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(_find(context, name).name)
    return source is not None and source.name == "COMMANDLINE"


def _spell(context: typer.Context, name: str) -> str:
    """Return the option as it was typed: of a pair such as --bm25/--no-bm25 the one that was meant."""
    parameter = _find(context, name)
    off = parameter.secondary_opts and context.params[parameter.name] is False
    return str(parameter.secondary_opts[0]) if off else name


def _is_there(context: typer.Context, other: str) -> bool:
    """Say whether an option has a value, typed or by default, and the one that `other` asks for if it names any."""
    name, _, wanted = other.partition(" ")
    parameter = _find(context, name)
    value = context.params[parameter.name]
    if name in parameter.secondary_opts:
        return value is False
    values = value if isinstance(value, list) else [value] if value else []
    if wanted.endswith((":MODEL", ":FILE", "://…")):
        return any(str(one).startswith(wanted.partition(":")[0] + ":") for one in values)
    return any(not wanted or str(one) == wanted for one in values)


def _tell_missing(context: typer.Context, needs: tuple[str, ...]) -> str:
    """Return "with --recipe rag", say, where that option has another value; else "without --recipe langcache"."""
    names = {other.partition(" ")[0] for other in needs}
    value = context.params[_find(context, next(iter(names))).name] if len(names) == 1 else None
    if value and not isinstance(value, list):
        return f"with {names.pop()} {value}"
    return f"without {_one_of(needs)}"
