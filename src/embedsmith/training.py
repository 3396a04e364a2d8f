"""Training: examples and a base model in, a better model out, in one epoch and without forgetting.

A run is made ready and checked (`checks`, `probes`), optimised step by step (`step`, `optimization`), looked at on its
way and held against its base (`retention`), and saved as a sentence-transformers folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedsmith.batches import Source
from embedsmith.cards import CardFacts, write_card
from embedsmith.checkpoints import remove_checkpoint
from embedsmith.checks import Finding, check_movement, report_of
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig
from embedsmith.devices import Devices
from embedsmith.examples import Example
from embedsmith.model import RECORD
from embedsmith.optimization import (
    Optimized,
    Progress,
    checkpoint_beside,
    count_steps,
    optimize,
    run_seed,
)
from embedsmith.preparation import Preparation, Prepared, save_prepared
from embedsmith.probes import Movement
from embedsmith.readiness import Loaded, Notes, Ready, describe_kept, make_ready, tokens_beside
from embedsmith.recipes import describe_source, write_recipe
from embedsmith.retention import Choice, Keeper, Retention, card_figures, describe_choice
from embedsmith.sharding import gather_whole
from embedsmith.step import EmbeddingTask
from embedsmith.tokens import Tokens


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came out, and what it took.

    Attributes:
        model: the sentence-transformers folder.
        losses: (step, loss) of every step of this run (from the checkpoint on, if resumed).
        tokens: real tokens that went through the model in this run; padding is the share added to them.
        notes: automatic choices with their reasons, and the warnings.
        findings: what the checks of the run found.
        unchecked: checks that could not be made, with the reason.
        choice: the weights that were taken, where `retention` was given (the first process only).
    """

    model: Path
    steps: int
    resumed_from: int
    seconds: float
    tokens: int
    padding: float
    tokens_per_second: float
    losses: tuple[tuple[int, float], ...]
    rows: int
    pairs: int
    truncated: int
    precision: Precision
    notes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    unchecked: tuple[str, ...] = ()
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run would be: everything before its first step.

    Attributes:
        notes: sources with their losses, the pool of negatives, automatic choices; each with its reason.
        step_seconds: one measured step (the second, since the first warms up); seconds: all steps at that pace.
    """

    rows: int
    pairs: int
    steps: int
    step_seconds: float
    seconds: float
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]


def train(
    examples: Sequence[Example] | Sequence[Source],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    preparation: Preparation | None = None,
    card: str | CardFacts | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    held_out: Sequence[Example] = (),
    on_note: Callable[[str], None] | None = None,
    retention: Retention | None = None,
) -> TrainingResult:
    """Return the model tuned on `examples`, saved to the folder `out`.

    A run killed before its end goes on from its last checkpoint (in `out`.checkpoint) when it is
    called again with the same examples, base and configuration, and ends in the same weights. Started by torchrun
    or `accelerate launch`, all processes work on the same batches, and with `sharded` each holds its share of the
    weights; the checkpoint of a run is the same with and without. Another model in `out`, or what belongs to it, is
    kept beside it (`model.spare_folder`).

    Args:
        examples: of any kind, or sources with losses and shares of their own: a mixture.
        card: the text of the model's card; facts get the figures of `retention` besides.
        held_out: rows that the model will be judged by; none of them may be in `examples`.
        on_note: is told what is being done, and each note of the result when it is made; the first process only.
        retention: rows that the model is held against on its way; validation rows choose its final weights. Two
            files are written beside `out`: watch.jsonl and retention.json.

    Raises:
        InputError: no usable example, a validation row among them, or a finding that leaves nothing to train on.
        ModelError: the base cannot be loaded. ConfigurationError: a setting that cannot work, or the run diverges.
        ModelRefused: the model is below its base on the validation rows; nothing is written.
        EmbedsmithError: the loss or a gradient is not finite.
    """
    notes = Notes(on_note)
    ready = make_ready(examples, base, Path(out), config, preparation, held_out, retention, notes)
    run, task, devices = ready.settled, ready.task, ready.settled.devices
    notes.add(*describe_kept(run.out), *notes.report.warnings)
    keeper = _make_keeper(ready, notes)
    movement = Movement(task.network)
    done = optimize(
        task,
        run.config,
        store=checkpoint_beside(out),
        key=ready.loaded.key,
        on_progress=on_progress,
        devices=devices,
        visit=keeper.visit if keeper is not None and keeper.visits else None,
        choose=keeper.choose if keeper is not None else None,
        say=notes.say,
    )
    moved = report_of(check_movement(movement.measure(), done.losses, run.config))
    prepared = _make_whole(ready.loaded, devices)
    choice = keeper.choice if keeper is not None else None
    if devices.rank == 0:
        _save(ready, prepared, card, choice)
    devices.agree(0)
    notes.add(*(describe_choice(choice) if choice is not None else ()), *moved.warnings)
    report, rows, pairs = notes.report + moved, len(run.data.rows), run.data.pairs
    made = make_result(run.out, done, task.precision, notes.lines, rows=rows, pairs=pairs, tokens=task.tokens)
    return replace(made, findings=report.findings, unchecked=report.unchecked, choice=choice)


def _make_keeper(ready: Ready, notes: Notes) -> Keeper | None:
    """Return what looks at the run on its way, if asked for; nobody can where no process has the whole model."""
    run, retention = ready.settled, ready.retention
    if retention is None or run.devices.rank != 0:
        return None
    notes.say("scoring the base on what the model is held against")
    if run.devices.sharded:
        retention.say("general ability is not scored: the weights are sharded, and no process has the whole model")
        return None
    return Keeper(
        ready.task.network,
        retention,
        prompts=run.reading.saved,
        saved=ready.loaded.prompts,
        alone=run.alone,
        precision=ready.task.precision,
        base_weight=run.config.base_weight,
        out=run.out,
        key=ready.loaded.key,
        seed=run.config.seed,
    )


def _save(ready: Ready, prepared: Prepared, card: str | CardFacts | None, choice: Choice | None) -> None:
    """Write the model with its record and its card, and remove what a killed run would have gone on from."""
    run, how = ready.settled, prepared.preparation
    how = replace(how, prompts=run.reading.prompts) if run.reading.named else how  # those of the base are said as well
    files = {RECORD: write_recipe(run.config, how, run.sources)}
    told = _write_card(card, choice, run.sources)
    saved = ready.loaded.prompts if run.reading.named else None
    save_prepared(prepared, run.out, prompts=saved, alone=run.alone, card=told, files=files)
    remove_checkpoint(checkpoint_beside(run.out))
    shutil.rmtree(tokens_beside(run.out), ignore_errors=True)


def _write_card(card: str | CardFacts | None, choice: Choice | None, sources: Sequence[Source]) -> str:
    if not isinstance(card, CardFacts):
        return card or ""
    figures = card_figures(choice) if choice is not None else {}
    configuration = {**card.configuration, "sources": [describe_source(source) for source in sources]}
    return write_card(replace(card, configuration=configuration, figures={**card.figures, **figures}))


def rehearse(
    examples: Sequence[Example] | Sequence[Source],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    preparation: Preparation | None = None,
    held_out: Sequence[Example] = (),
    retention: Retention | None = None,
) -> Rehearsal:
    """Return what `train` with the same arguments would do, and how long it would take; trains and saves nothing.

    Raises:
        what `train` raises before its first step.
    """
    tokens = tokens_beside(Path(out))
    known = tokens.exists()
    notes = Notes()
    ready = make_ready(examples, base, Path(out), config, preparation, held_out, retention, notes)
    if not known:
        shutil.rmtree(tokens, ignore_errors=True)
    seconds = _measure_step(ready.task)
    steps = count_steps(ready.task, ready.settled.config) * ready.settled.config.runs
    data, report = ready.settled.data, notes.report
    return Rehearsal(
        *(len(data.rows), data.pairs, steps, seconds, round(seconds * steps, 1)),
        notes=(*notes.lines, *describe_kept(ready.settled.out)),
        findings=report.findings,
        unchecked=report.unchecked,
    )


def _measure_step(task: EmbeddingTask) -> float:
    """Return the seconds of a step without its update, which is small beside it."""
    task.network.train()
    for rows in task.order(run_seed(task.config.seed, 0), 0)[:1] * 2:
        began = time.monotonic()
        task.accumulate(rows, seed=0)
    return round(time.monotonic() - began, 4)


def _make_whole(loaded: Loaded, devices: Devices) -> Prepared:
    """Return the trained network with whole weights on the first process; the others' shares are not needed again."""
    import torch

    prepared = loaded.prepared
    if not devices.sharded:
        return prepared
    trained = {name: weight.detach() for name, weight in prepared.network.named_parameters() if weight.requires_grad}
    values = gather_whole(trained, keep=devices.rank == 0)
    if not values:
        return prepared
    whole = loaded.build()
    weights = dict(whole.network.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)
    return whole


def make_result(
    model: Path,
    done: Optimized,
    precision: Precision,
    notes: tuple[str, ...],
    *,
    rows: int,
    pairs: int,
    tokens: Tokens,
) -> TrainingResult:
    """Return what a run tells about itself."""
    return TrainingResult(
        model=model,
        steps=done.steps,
        resumed_from=done.resumed_from,
        seconds=round(done.seconds, 3),
        tokens=done.work.tokens,
        padding=round(done.work.padded / max(done.work.tokens, 1) - 1, 4),
        tokens_per_second=round(done.work.tokens / max(done.seconds, 1e-9), 1),
        losses=done.losses,
        rows=rows,
        pairs=pairs,
        truncated=int(tokens.truncated.sum()),
        precision=precision,
        notes=notes,
    )
