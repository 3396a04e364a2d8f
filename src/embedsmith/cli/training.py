"""Commands that train: train, recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedsmith.artifacts import RunDirectory, fingerprint, plain, read_json, write_json
from embedsmith.cli.console import (
    AsJson,
    Base,
    Batch,
    Epochs,
    Guards,
    LearningRate,
    Losses,
    Out,
    Precision,
    Separator,
    app,
    console,
    own_values,
    print_json,
    print_table,
    read_table,
    say,
    tell_rejected,
    watch_run,
)
from embedsmith.cli.options import naming
from embedsmith.errors import ConfigurationError

if TYPE_CHECKING:
    from embedsmith.batches import Source
    from embedsmith.config import TrainingConfig
    from embedsmith.examples import Example
    from embedsmith.preparation import Preparation
    from embedsmith.retention import Retention
    from embedsmith.training import Rehearsal, TrainingResult


VERIFIER = frozenset(  # what the training of a verifier reads, or refuses in words of its own
    {
        *("epochs", "steps", "batch", "learning_rate", "warmup", "schedule", "weight_decay", "gradient_norm"),
        *("dropout", "base_weight", "average", "runs", "token_budget", "sharded", "compile", "precision", "seed"),
        "checkpoint_seconds",
    }
)


@app.command()
def train(
    examples: Annotated[
        list[str], typer.Argument(help="FILE, FILE:LOSS or FILE:LOSS:WEIGHT; the format is found by column names.")
    ],
    base: Base,
    out: Out,
    separator: Separator = None,
    mix: Annotated[
        bool, typer.Option("--mix", help="Each file is a source of its own: with its loss, never in one batch.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="Values of a published system, or your own .toml: embedsmith recipe lists and prints them."),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="The recipe's values for a machine without a GPU.")] = False,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any value of a recipe: temperature=.02, lora.rank=16; repeatable."),
    ] = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    losses: Losses = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile: takes a C++ compiler and a minute first; on a CPU it gained nothing."
        ),
    ] = False,
    verifier: Annotated[
        bool, typer.Option("--verifier", help="Train the cache's second look: a cross-encoder, exported to ONNX.")
    ] = False,
    held_out: Annotated[
        Path | None, typer.Option(help="Rows that the model will be judged by: the run stops if they are trained on.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would do, how long it takes, and what is wrong with it.")
    ] = False,
    validation: Annotated[
        Path | None, typer.Option(help="Rows that choose between base and tuned weights; not among the examples.")
    ] = None,
    guard: Guards = None,
    tolerance: Annotated[float, typer.Option(help="How far a guard may fall below the base, in its metric.")] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Write a model that is below its base on validation.")] = False,
    seed: Annotated[int | None, typer.Option(help="Decides the order of the rows and all chance.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on your own examples; a killed run goes on where it was."""
    from embedsmith.cards import CardFacts, write_card
    from embedsmith.recipes import PLAIN, change, read_recipe

    own = own_values(epochs, batch, learning_rate, precision, losses, seed) | ({"compile": True} if compiled else {})
    over = read_recipe(recipe, small=small) if recipe else PLAIN
    with naming("--set"):
        chosen = change(over, assign or [])
    config, preparation = chosen.configure(**own), chosen.preparation
    if verifier:
        _require_read(config, preparation)
    say(f"reading {', '.join(examples)}")
    sources = _read_sources(examples, separator, apart=mix)
    count = sum(len(source.examples) for source in sources)
    told = f"the examples of {', '.join(source.name for source in sources)}."
    facts = CardFacts(base, count, told, plain(config), verifier=verifier)
    given: dict[str, Any] = {"base": base, "config": config, "preparation": preparation}
    given |= {"held_out": _read_held_out(held_out, separator), "out": out / "model"}
    kept = _retention(validation, separator, guard, tolerance, force)
    if dry_run:
        _rehearse(sources, {**given, "retention": kept}, as_json)
        return
    made = _Made(out, "verifier" if verifier else "model", {**given, "sources": sources, "kept": kept})
    if (done := made.find()) is not None:
        _print_already(done, made.model, as_json)
        _print_next(made, base, held_out, as_json)
        return
    with watch_run() as watch:
        watching: dict[str, Any] = {"on_progress": watch.steps, "on_note": watch.say}
        if verifier:
            from embedsmith.cross_encoder import train_verifier

            rows = [item for source in sources for item in source.examples]
            result = train_verifier(rows, base=base, out=made.model, config=config, card=write_card(facts), **watching)
        else:
            from embedsmith.training import train as train_encoder

            result = train_encoder(sources, **given, card=facts, **watching, retention=replace(kept, say=watch.say))
    made.remember(result)
    if as_json:
        print_json(plain(result))
        return
    for note in _not_checked(result):
        say(note)
    say(f"{result.steps} steps, {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s")
    say(f"{result.model.name}  {result.model}")
    _print_next(made, base, held_out, as_json)


@dataclass(frozen=True, slots=True)
class _Made:
    """What a command of this kind has made in a folder, if all that decides it is still the same."""

    out: Path
    name: str  # "model" or "verifier"
    decided_by: Mapping[str, Any]

    @property
    def model(self) -> Path:
        return self.out / self.name

    @property
    def about(self) -> Path:
        """The file with the figures of the training."""
        return self.out / ("training.json" if self.name == "model" else f"{self.name}_training.json")

    def find(self) -> Mapping[str, Any] | None:
        """Return the figures of the training that made what is there, or None: it is not there, or of other values.

        What was added since (a calibration, an export) changes nothing in that.
        """
        fresh = self.model.is_dir() and RunDirectory(self.out).is_fresh(self._stage, *self._key())
        return read_json(self.about) if fresh else None

    def remember(self, result: TrainingResult) -> None:
        """Write down what was made and by what; of many processes the first one does."""
        if console.quiet:
            return
        files = [file for file in sorted(self.model.rglob("*")) if file.is_file()]
        with RunDirectory(self.out).stage(
            self._stage, *self._key(), [str(file.relative_to(self.out)) for file in (*files, self.about)]
        ):
            write_json(self.about, result)

    @property
    def _stage(self) -> str:
        return f"train {self.name}"

    def _key(self) -> tuple[dict[str, str], dict[str, Any]]:
        from embedsmith.model import fingerprint_model

        values = {name: plain(value) for name, value in self.decided_by.items() if not callable(value)}
        kept = {name: value for name, value in values.pop("kept").items() if name not in ("say", "show")}
        apart = ("sources", "held_out", "base", "out")
        inputs = {name: fingerprint(values[name]) for name in apart[:2]}
        inputs |= {"base": fingerprint_model(self.decided_by["base"]), "kept": fingerprint(kept)}
        return inputs, {name: value for name, value in values.items() if name not in apart}


def _print_already(done: Mapping[str, Any], model: Path, as_json: bool) -> None:
    """Say that there is nothing to do; a program gets what it got the first time."""
    if as_json:
        print_json(done)
        return
    told = f"{model} is what this command makes, {done['steps']} steps, made before: nothing was trained"
    say(told)


def _print_next(made: _Made, base: str, held_out: Path | None, as_json: bool) -> None:
    """Name the command that says what the model is worth."""
    if as_json:
        return
    pairs = str(held_out) if held_out is not None else "LABELLED_PAIRS"
    if made.name == "verifier":
        command = ["embedsmith", "calibrate", "MODEL", pairs, "--verifier", str(made.model)]
    else:
        command = ["embedsmith", "compare", base, str(made.model), "--pairs", pairs]
    say(f"next   {shlex.join(command)}")


def _require_read(config: TrainingConfig, preparation: Preparation) -> None:
    """Raise if a value was set that the training of a verifier does not read."""
    from embedsmith.config import TrainingConfig
    from embedsmith.preparation import Preparation

    pairs: tuple[tuple[Any, Any], ...] = ((config, TrainingConfig()), (preparation, Preparation()))
    names = ((item.name, given, default) for given, default in pairs for item in fields(given))
    changed = [name for name, given, default in names if getattr(given, name) != getattr(default, name)]
    unread = [name for name in changed if name not in VERIFIER]
    if unread:
        raise ConfigurationError(
            f"{', '.join(unread)} with --verifier: a cross-encoder has no use for it",
            expected=f"any of {', '.join(sorted(VERIFIER))}",
        )


def _read_held_out(path: Path | None, separator: str | None) -> tuple[Example, ...]:
    return read_table(path, separator).examples if path is not None else ()


def _rehearse(sources: Sequence[Source], given: Mapping[str, Any], as_json: bool) -> None:
    """Print what the run would be."""
    from embedsmith.training import rehearse

    found = rehearse(sources, **given)
    if as_json:
        print_json(found)
        return
    for source in sources:
        say(f"source {source.name}: {len(source.examples)} examples")
    for note in (*found.notes, *(f"warning: {finding}" for finding in found.findings), *_not_checked(found)):
        say(note)
    whole = timedelta(seconds=round(found.seconds))
    pace = f"about {whole} (h:mm:ss) at {found.step_seconds:.2f} s a step, measured on one"
    say(f"{found.rows} rows, {found.pairs} pairs, {found.steps} steps: {pace}; nothing was trained")


def _not_checked(result: TrainingResult | Rehearsal) -> Iterator[str]:
    return (f"not checked: {check}" for check in result.unchecked)


def _read_sources(specs: Sequence[str], separator: str | None, *, apart: bool) -> list[Source]:
    """Return the sources that the user named; files without losses of their own are one unless `apart`."""
    from embedsmith.batches import Source
    from embedsmith.objectives import read_source_spec

    sources = []
    for spec in specs:
        path, losses, weight = read_source_spec(spec)
        found = read_table(Path(path), separator)
        tell_rejected(path, found.rejected, len(found.examples) + len(found.rejected))
        if found.unread:
            say(f"not read: {', '.join(found.unread)} of {path}")
        sources.append(Source(found.examples, "/".join(Path(path).parts[-2:]), losses, weight))
    if apart or any(source.losses or source.weight for source in sources):
        return sources
    rows = tuple(item for source in sources for item in source.examples)
    return [Source(rows, ", ".join(source.name for source in sources))]


def _retention(
    validation: Path | None, separator: str | None, guards: list[Path] | None, tolerance: float, force: bool
) -> Retention:
    from embedsmith.guards import read_guards
    from embedsmith.retention import Retention

    kept = Retention(
        validation=read_table(validation, separator).examples if validation is not None else (),
        guards=read_guards(guards) if guards else None,
        tolerance=tolerance,
        force=force,
    )
    if validation is None:
        return kept
    from embedsmith.report.pareto import write_pareto

    return replace(kept, show=write_pareto)


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="A recipe to print, to be changed and given to train.")] = None,
) -> None:
    """List the training recipes, or print one."""
    from embedsmith.recipes import read_recipe, recipe_names

    if name is not None:
        sys.stdout.write(read_recipe(name).text)
        return
    rows = [[each, read_recipe(each).about] for each in recipe_names()]
    print_table("Training recipes", ["recipe", ""], rows, texts=True)
