"""Training: examples and a base model in, a better model out, in one epoch and without forgetting.

A run is made ready and checked (`checks`, `probes`), optimised step by step (`step`, `optimization`), looked at on its
way and held against its base (`retention`), and saved as a sentence-transformers folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from embedsmith.artifacts import fingerprint
from embedsmith.batches import (
    Numbers,
    Plan,
    Prompts,
    Row,
    Source,
    TrainingSet,
    collect,
    localize,
    order_batches,
    prompt_alone,
    saved_prompts,
)
from embedsmith.cards import CardFacts, write_card
from embedsmith.checkpoints import aside, read_about, remove_checkpoint
from embedsmith.checks import (
    BATCHES,
    Finding,
    Report,
    check_choosing,
    check_crowds,
    check_effects,
    check_leaks,
    check_movement,
    report_of,
    stop_on_errors,
)
from embedsmith.choices import Precision
from embedsmith.compilation import compile_layers, require_compiler
from embedsmith.config import TrainingConfig, config_from, describe_memory, keyed
from embedsmith.devices import Devices, is_first_process, make_once, open_devices
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example
from embedsmith.guards import SHIPPED, VALIDATION, Numbering, make_measure, shipped_guards
from embedsmith.guide import read_guide
from embedsmith.machine import best_attention, choose_precision, find_device, keep_memory
from embedsmith.model import RECORD, fingerprint_model, spare_folder, tokenize_for
from embedsmith.objectives import CLASSED, IN_BATCH, LOSSES, describe_rows, free_sources, settle_losses
from embedsmith.optimization import (
    Optimized,
    Progress,
    checkpoint_beside,
    count_steps,
    learning_rate_at,
    optimize,
    run_seed,
    set_dropout,
)
from embedsmith.preparation import (
    Preparation,
    Prepared,
    Reading,
    prepare,
    require_pooled,
    save_prepared,
    settle_prompts,
)
from embedsmith.probes import Movement, examine_batches, examine_examples, examine_network
from embedsmith.recipes import describe_source, write_recipe
from embedsmith.retention import ROWS, Choice, Keeper, Retention, card_figures, describe_choice
from embedsmith.sharding import gather_whole, shard
from embedsmith.step import BUDGET, EmbeddingTask, choose_budget, choose_held, describe_pool
from embedsmith.tokens import Tokens, cut_packed, read_tokens, write_tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from embedsmith.packing import Packer

__all__ = [
    "LOSSES",
    "Progress",
    "Rehearsal",
    "Retention",
    "Source",
    "TrainingConfig",
    "TrainingResult",
    "config_from",
    "learning_rate_at",
    "rehearse",
    "train",
]
MAPPED = 2**20  # token ids that are worth a file
LEAST_BATCH = 8  # rows a batch at least where its rows are each other's negatives; one row alone has none
NO_MODEL = frozenset({"", "self"})  # values of `guide` that load no second model
LARGEST_BATCH, FEWEST_STEPS = 16, 45  # what the automatic batch size keeps to (docs/log.md)


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
    retention = retention and _settle_guards(retention, config)
    apart = Report() if retention is None else _check_retention(retention, examples, config, held_out)
    notes = Notes(on_note)
    ready = _make_ready(examples, base, Path(out), config, preparation, held_out, notes)
    ready = replace(ready, report=apart + ready.report)
    devices, network, checkpoint = ready.task.devices, ready.prepared.network, checkpoint_beside(out)
    notes.add(*describe_kept(Path(out)), *ready.report.warnings)
    keeper = None
    if retention is not None and devices.rank == 0:
        notes.say("scoring the base on what the model is held against")
        keeper = _make_keeper(ready, retention, Path(out))
    movement = Movement(network)
    done = optimize(
        ready.task,
        ready.config,
        store=checkpoint,
        key=ready.key,
        on_progress=on_progress,
        devices=devices,
        visit=keeper.visit if keeper is not None and keeper.visits else None,
        choose=keeper.choose if keeper is not None else None,
        say=notes.say,
    )
    moved = report_of(check_movement(movement.measure(), done.losses, ready.config))
    report = ready.report + moved
    prepared = _make_whole(ready.prepared, ready.build, devices)
    choice = keeper.choice if keeper is not None else None
    if devices.rank == 0:
        how, reading = prepared.preparation, ready.reading
        how = replace(how, prompts=reading.prompts) if reading.named else how  # those of the base are said as well
        files = {RECORD: write_recipe(ready.config, how, ready.sources)}
        told = _write_card(card, choice, ready.sources)
        saved = ready.prompts if reading.named else None
        save_prepared(prepared, out, prompts=saved, alone=ready.alone, card=told, files=files)
        remove_checkpoint(checkpoint)
        shutil.rmtree(_tokens_beside(Path(out)), ignore_errors=True)
    devices.agree(0)
    data, tokens = ready.task.data, ready.task.tokens
    notes.add(*(describe_choice(choice) if choice is not None else ()), *moved.warnings)
    made = make_result(
        Path(out), done, ready.task.precision, notes.lines, rows=len(data.rows), pairs=data.pairs, tokens=tokens
    )
    return replace(made, findings=report.findings, unchecked=report.unchecked, choice=choice)


class Notes:
    """What a run has to tell, told when it is known; of many processes the first one tells it.

    Attributes:
        lines: the notes of its result so far.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.say: Callable[[str], None] = tell if tell is not None and is_first_process() else lambda _: None
        self.lines: tuple[str, ...] = ()

    def add(self, *lines: str) -> None:
        """Tell notes, and keep them."""
        self.lines += lines
        for line in lines:
            self.say(line)


def describe_kept(out: Path) -> tuple[str, ...]:
    """Return a sentence on the model that lies where the new one will, or nothing."""
    if not out.is_dir() or not any(out.iterdir()):
        return ()
    return (f"{out} holds a model already: where the new one differs, the old is kept as {spare_folder(out)}",)


def _settle_guards(retention: Retention, config: TrainingConfig | None) -> Retention:
    """Return the retention with the guards that ship where it names none and somebody can score them."""
    sharded = config is not None and config.sharded
    if sharded and (retention.validation or retention.guards):
        raise ConfigurationError(
            "validation rows or guards with sharded weights: no process has the whole model to score",
            expected="one of them",
            action="train without --validation and --guard, then compare the saved model with its base",
        )
    return retention if sharded or retention.guards is not None else replace(retention, guards=shipped_guards())


def _check_retention(
    retention: Retention,
    examples: Sequence[Example] | Sequence[Source],
    config: TrainingConfig | None,
    held_out: Sequence[Example],
) -> Report:
    """Return what the examples share with rows that the model is held against, and these with the held-out ones.

    Raises:
        InputError: rows that give no figure, or that the examples have; before the base is loaded.
    """
    sets = {**({VALIDATION: retention.validation} if retention.validation else {}), **(retention.guards or {})}
    general = [name for name in SHIPPED if name in sets]  # read in one pass: it takes 90 µs a text trained on
    judged = {name: rows for name, rows in sets.items() if name not in general}
    if general:
        judged[" and ".join(general)] = tuple(row for name in general for row in sets[name])
    trained = [example for source in _sources_of(examples) for example in source.examples]
    report = report_of(
        outcome for name, rows in judged.items() for outcome in check_leaks(trained, rows, name=name, choosing=True)
    )
    report += report_of(check_choosing(retention.validation, held_out))
    stop_on_errors(report.findings)
    for name, rows in sets.items():
        texts, seed = Numbering(), config.seed if config else 0
        others = [texts.number("document", text) for text in retention.distractors] if name == VALIDATION else ()
        make_measure(name, rows, texts.place, most=ROWS, resamples=1, seed=seed, others=others)
    return report


def _make_keeper(ready: _Ready, retention: Retention, out: Path) -> Keeper | None:
    """Return what looks at the run on its way; nobody can where no process has the whole model."""
    if ready.task.devices.sharded:
        retention.say("general ability is not scored: the weights are sharded, and no process has the whole model")
        return None
    return Keeper(
        ready.prepared.network,
        retention,
        prompts=ready.reading.saved,
        saved=ready.prompts,
        alone=ready.alone,
        precision=ready.task.precision,
        base_weight=ready.config.base_weight,
        out=out,
        key=ready.key,
        seed=ready.config.seed,
    )


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
    retention = retention and _settle_guards(retention, config)
    apart = Report() if retention is None else _check_retention(retention, examples, config, held_out)
    tokens = _tokens_beside(Path(out))
    known = tokens.exists()
    notes = Notes()
    ready = _make_ready(examples, base, Path(out), config, preparation, held_out, notes)
    if not known:
        shutil.rmtree(tokens, ignore_errors=True)
    seconds = _measure_step(ready.task)
    steps = count_steps(ready.task, ready.config) * ready.config.runs
    data, report = ready.task.data, apart + ready.report
    return Rehearsal(
        *(len(data.rows), data.pairs, steps, seconds, round(seconds * steps, 1)),
        notes=(*notes.lines, *describe_kept(Path(out))),
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


@dataclass(frozen=True, slots=True)
class _Ready:
    """A run before its first step."""

    prepared: Prepared
    build: Callable[[], Prepared]
    reading: Reading
    prompts: Prompts  # those to save
    alone: str
    task: EmbeddingTask
    config: TrainingConfig
    key: str
    report: Report
    sources: tuple[Source, ...]  # with their losses settled


def _make_ready(
    examples: Sequence[Example] | Sequence[Source],
    base: str | Path,
    out: Path,
    config: TrainingConfig | None,
    preparation: Preparation | None,
    held_out: Sequence[Example],
    notes: Notes,
) -> _Ready:
    """Return the run, checked; what is cheap to check comes before what is dear to load."""
    config, preparation = config or TrainingConfig(), preparation or Preparation()
    if config.compile:
        require_compiler()
    devices = open_devices(sharded=config.sharded)
    given = _sources_of(examples)
    if not any(source.examples for source in given):
        raise InputError("there is no example to train on", expected="pairs, triplets, or texts with classes")
    sources, loss_notes = settle_losses(given, config.losses, temperature=config.temperature)
    reading = settle_prompts(base, sources, preparation.prompts)
    notes.add(*loss_notes, *reading.notes)
    data = collect(sources, reading.prompts)
    losses, names, asked = [source.losses for source in sources], [source.name for source in sources], config.batch
    apart = any((IN_BATCH | CLASSED) & set(own) for own in losses)
    config, batch_reason = choose_batch(config, len(data.rows), least=LEAST_BATCH if apart else 1)
    notes.add(batch_reason)
    report = examine_examples(given, sources, data, reading.prompts, config, held_out)
    report += report_of(check_effects(config, preparation, given, sources))
    stop_on_errors(report.findings)
    prompts, prompt_notes = saved_prompts(sources, reading.saved)
    keep_memory()
    device = find_device()
    precision, reason = choose_precision(config.precision, device)
    notes.add(*prompt_notes, reason)
    build = partial(
        prepare,
        base,
        preparation,
        precision=precision,
        seed=config.seed,
        attention=best_attention(),
        own_prompts=reading.named,
    )
    notes.say(f"loading {base}")
    prepared = build()
    notes.add(*prepared.notes)
    network = prepared.network
    require_pooled(network, reading, sources)
    report += examine_network(prepared, sources, data, config, precision, asked=asked)
    stop_on_errors(report.findings)
    weights = tuple(source.weight for source in sources)
    guide = "" if config.guide in NO_MODEL else fingerprint_model(config.guide)
    key = fingerprint([data, losses, weights, fingerprint_model(base), guide, keyed(config), preparation, precision])
    report += report_of(check_checkpoint(checkpoint_beside(out), key, config))
    report += report_of(choose_dropout(network, config))
    notes.say(f"reading {len(data.texts):,} texts, and trying the first batches")
    tokens = _tokenize_once(network, data.texts, out, key, devices)
    notes.add(*describe_truncation(tokens))
    plan = Plan(config.batch, weights, config.mixing, free_sources(losses))
    order = order_batches(data.rows, plan, seed=run_seed(config.seed, 0), epoch=0)  # that of the first run
    batches = [[data.rows[row] for row in rows] for rows in order]
    report += report_of(check_crowds(data.rows, plan, names))
    report += examine_batches(prepared, base, sources, data, tokens, batches[:BATCHES], config, precision)
    stop_on_errors(report.findings)
    packer, packing_note = _find_packer(network, tokens, config, precision, next(iter(batches), []), devices)
    held, memory_note = choose_held(network, tokens, config, precision, packer)
    notes.add(packing_note, *memory_note, *((compile_layers(network),) if config.compile else ()))
    if devices.sharded:
        held = devices.agree(held)
        shard(network, size=devices.size)
    budget, budget_note = choose_budget(config.token_budget, device, held)
    task = EmbeddingTask(
        network,
        data,
        tokens,
        losses,
        plan,
        replace(config, held_tokens=held, token_budget=budget),
        precision,
        guide=_guide(config, data, sources, reading.prompts, out, devices),
        devices=devices,
        packer=packer,
    )
    notes.add(budget_note, *describe_pool(task, batches, names), *describe_rows(data.rows, losses, names))
    alone = prompt_alone(sources, reading.prompts)
    return _Ready(prepared, build, reading, prompts, alone, task, config, key, report, tuple(sources))


def _find_packer(
    network: SentenceTransformer,
    tokens: Tokens,
    config: TrainingConfig,
    precision: Precision,
    rows: Sequence[Row],
    devices: Devices,
) -> tuple[Packer | None, str]:
    """Return what runs the network packed where all processes can, and the reason; `rows` come first in the run."""
    from embedsmith.packing import find_packer

    texts, _ = localize(rows)
    first = texts[cut_packed(tokens.lengths_of(texts), config.token_budget or BUDGET)[0]] if len(texts) else None
    found = find_packer(network, tokens, precision, compiled=config.compile, first=first)
    return agree_on_packer(*found, devices, network.device)


def agree_on_packer(
    packer: Packer | None, reason: str, devices: Devices, device: torch.device
) -> tuple[Packer | None, str]:
    """Return `packer` and the reason if every process has one, since all have to cut a batch into the same blocks."""
    import torch

    able = torch.tensor([float(packer is not None)], device=device)
    devices.sum([able])
    if packer is not None and int(able) < devices.size:
        return None, "texts are padded: another process of this run cannot pack them"
    return packer, reason


def _make_whole(prepared: Prepared, build: Callable[[], Prepared], devices: Devices) -> Prepared:
    """Return the trained network with whole weights on the first process; the others' shares are not needed again."""
    import torch

    if not devices.sharded:
        return prepared
    trained = {name: weight.detach() for name, weight in prepared.network.named_parameters() if weight.requires_grad}
    values = gather_whole(trained, keep=devices.rank == 0)
    if not values:
        return prepared
    whole = build()
    weights = dict(whole.network.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)
    return whole


def _sources_of(examples: Sequence[Example] | Sequence[Source]) -> list[Source]:
    return list(examples) if _are_sources(examples) else [Source(tuple(examples))]  # type: ignore[arg-type]


def _are_sources(examples: Sequence[Example] | Sequence[Source]) -> TypeGuard[Sequence[Source]]:
    return bool(examples) and isinstance(examples[0], Source)


def _tokens_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.tokens")


def _tokenize_once(network: SentenceTransformer, texts: Sequence[str], out: Path, key: str, devices: Devices) -> Tokens:
    """Return the tokens of all texts: made by the first process, mapped by the others and by a later run."""
    folder = _tokens_beside(out)

    def make() -> Tokens:
        made = tokenize_for(network, texts)
        if devices.size > 1 or len(made.ids) >= MAPPED:
            write_tokens(folder, made, key)
        return made

    return make_once(partial(read_tokens, folder, key), make, folder, devices)


def check_checkpoint(store: Path, key: str, config: TrainingConfig) -> Iterator[Finding]:
    """Yield a checkpoint of a run with other values, and one of this run that was written under others of memory."""
    found = read_about(store)
    if found is not None and found.key != key:
        place = aside(store, found.key).name
        yield Finding(
            "checkpoint-of-another-run",
            "warning",
            found=f"{store} is the checkpoint of another run, at step {found.step}: it is kept as {place}, and this "
            f"run does "
            "not go on from it",
            expected="the same examples, base and settings as in the run that was stopped",
            action=f"start with the values of that run, which goes on from there, or delete {place}",
            place="configuration",
        )
        found = read_about(aside(store, key))
    if found is not None and found.settings not in ("", describe_memory(config)):
        yield Finding(
            "memory-settings-changed",
            "warning",
            found=f"the run goes on from step {found.step}, made with {found.settings}: now {describe_memory(config)}",
            expected="the same, for the same weights to the last bit",
            action="nothing, if rounding may differ (and, with dropout, what is drawn)",
            place="configuration",
        )


def _guide(
    config: TrainingConfig,
    data: TrainingSet,
    sources: Sequence[Source],
    prompts: Prompts,
    out: Path,
    devices: Devices,
) -> Numbers | None:
    """Return the guide model's vectors of all texts, (n, g), or None where there is none."""
    if config.guide in NO_MODEL:
        return None
    return read_guide(config.guide, data, sources, prompts, folder=_tokens_beside(out), devices=devices)


def choose_dropout(network: torch.nn.Module, config: TrainingConfig) -> Iterator[Finding]:
    """Set the dropout of the network before it is looked at; yield one that was asked for and has no place."""
    if not set_dropout(network, config.dropout) and config.dropout:
        yield Finding(
            "dropout-without-effect",
            "warning",
            found=f"dropout is {config.dropout:g}, and the base has no layer that drops anything",
            expected="a base with dropout, or none asked for",
            action="leave dropout out; for adapters, --set lora.dropout=0.1",
            place="configuration",
        )


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


def choose_batch(config: TrainingConfig, rows: int, *, least: int = 1) -> tuple[TrainingConfig, str]:
    """Return the configuration with its batch size settled, `least` or more if chosen, and the reason for it."""
    if config.batch:
        return config, f"batch {config.batch} as asked"
    size = min(LARGEST_BATCH, max(rows // FEWEST_STEPS, least))
    why = "the default" if size == LARGEST_BATCH else f"{rows} rows would give too few steps at {LARGEST_BATCH}"
    return replace(config, batch=size), f"batch {size}: {why}"


def describe_truncation(tokens: Tokens) -> tuple[str, ...]:
    """Return a sentence on the texts that were cut, or nothing."""
    cut = int(tokens.truncated.sum())
    return (f"{cut} of {len(tokens)} texts are longer than the model reads and were cut",) if cut else ()
