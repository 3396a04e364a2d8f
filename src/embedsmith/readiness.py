"""Readiness: a run before its first step: rows and settings settled, the network loaded, batches planned, all checked.

What is cheap to check comes before what is dear to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedsmith.artifacts import fingerprint
from embedsmith.batches import (
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
from embedsmith.checkpoints import aside, read_about
from embedsmith.checks import (
    BATCHES,
    Finding,
    Report,
    check_choosing,
    check_crowds,
    check_effects,
    check_leaks,
    report_of,
    stop_on_errors,
)
from embedsmith.choices import Precision
from embedsmith.compilation import compile_layers, require_compiler
from embedsmith.config import TrainingConfig, describe_memory, keyed
from embedsmith.devices import Devices, is_first_process, make_once, open_devices
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example
from embedsmith.guards import SHIPPED, VALIDATION, Numbering, bare, make_measure, shipped_guards
from embedsmith.guide import read_guide
from embedsmith.machine import best_attention, choose_precision, find_device, keep_memory
from embedsmith.model import fingerprint_model, spare_folder
from embedsmith.networks import tokenize_for
from embedsmith.objectives import CLASSED, IN_BATCH, describe_rows, free_sources, settle_losses
from embedsmith.optimization import checkpoint_beside, run_seed, set_dropout
from embedsmith.preparation import Preparation, Prepared, Reading, prepare, require_pooled, settle_prompts
from embedsmith.probes import examine_batches, examine_examples, examine_network
from embedsmith.retention import ROWS, Retention
from embedsmith.sharding import shard
from embedsmith.step import BUDGET, EmbeddingTask, choose_budget, choose_held, describe_pool
from embedsmith.tokens import Tokens, cut_packed, read_tokens, write_tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from embedsmith.packing import Packer

MAPPED = 2**20  # token ids that are worth a file
LEAST_BATCH = 8  # rows a batch at least where its rows are each other's negatives; one row alone has none
NO_MODEL = frozenset({"", "self"})  # values of `guide` that load no second model
LARGEST_BATCH, FEWEST_STEPS = 16, 45  # what the automatic batch size keeps to (docs/log.md)


class Notes:
    """What a run has to tell, told when it is known; of many processes the first one tells it.

    Attributes:
        lines: the notes of its result so far. report: what its checks found so far.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.say: Callable[[str], None] = tell if tell is not None and is_first_process() else lambda _: None
        self.lines: tuple[str, ...] = ()
        self.report = Report()

    def add(self, *lines: str) -> None:
        """Tell notes, and keep them."""
        self.lines += lines
        for line in lines:
            self.say(line)

    def check(self, report: Report) -> None:
        """Keep what was found, and raise what leaves nothing to train on (`checks.stop_on_errors`)."""
        self.report += report
        stop_on_errors(report.findings)


@dataclass(frozen=True, slots=True)
class Settled:
    """A run without its network: what follows from rows and settings.

    Attributes:
        config: with its batch; `asked` is the one that the user asked for, 0 where it was chosen.
        sources: with their losses.
        alone: the prompt of a text that stands by itself.
    """

    base: str | Path
    out: Path
    config: TrainingConfig
    asked: int
    preparation: Preparation
    devices: Devices
    sources: tuple[Source, ...]
    reading: Reading
    data: TrainingSet
    alone: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The network of a run; `build` makes it again, `key` is that of its checkpoints."""

    prepared: Prepared
    build: Callable[[], Prepared]
    prompts: Prompts  # those to save
    precision: Precision
    key: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A run before its first step."""

    settled: Settled
    loaded: Loaded
    task: EmbeddingTask
    retention: Retention | None


def make_ready(
    examples: Sequence[Example] | Sequence[Source],
    base: str | Path,
    out: Path,
    config: TrainingConfig | None,
    preparation: Preparation | None,
    held_out: Sequence[Example],
    retention: Retention | None,
    notes: Notes,
) -> Ready:
    """Return the run, checked; `retention` comes with the guards that ship where it names none."""
    config, given = config or TrainingConfig(), _sources_of(examples)
    if retention is not None:
        retention = _settle_guards(retention, config)
        notes.check(_check_retention(retention, given, config, held_out))
    settled = _settle(given, base, out, config, preparation or Preparation(), held_out, notes)
    loaded = _load(settled, notes)
    return Ready(settled, loaded, _plan(settled, loaded, notes), retention)


def _settle_guards(retention: Retention, config: TrainingConfig) -> Retention:
    """Return the retention with the guards that ship where it names none and somebody can score them."""
    if config.sharded and (retention.validation or retention.guards):
        raise ConfigurationError(
            "validation rows or guards with sharded weights: no process has the whole model to score",
            expected="one of them",
            action="train without --validation and --guard, then compare the saved model with its base",
        )
    if retention.guards is not None:
        return retention
    return replace(retention, guards={} if config.sharded else shipped_guards())


def _check_retention(
    retention: Retention, given: Sequence[Source], config: TrainingConfig, held_out: Sequence[Example]
) -> Report:
    """Return what the examples share with rows that the model is held against, and these with the held-out ones.

    Raises:
        InputError: rows that give no figure, or that the examples have; before the base is loaded.
    """
    sets = retention.sets
    general = [name for name in SHIPPED if name in sets]  # read in one pass: it takes 90 µs a text trained on
    judged = {name: rows for name, rows in sets.items() if name not in general}
    if general:
        judged[" and ".join(general)] = tuple(row for name in general for row in sets[name])
    trained = [example for source in given for example in source.examples]
    report = report_of(
        outcome for name, rows in judged.items() for outcome in check_leaks(trained, rows, name=name, choosing=True)
    )
    report += report_of(check_choosing(retention.validation, held_out))
    stop_on_errors(report.findings)
    for name, rows in sets.items():
        texts = Numbering(bare)
        others = texts.place_documents(retention.distractors if name == VALIDATION else ())
        make_measure(name, rows, texts.place, most=ROWS, resamples=1, seed=config.seed, others=others)
    return report


def _settle(
    given: Sequence[Source],
    base: str | Path,
    out: Path,
    config: TrainingConfig,
    preparation: Preparation,
    held_out: Sequence[Example],
    notes: Notes,
) -> Settled:
    if config.compile:
        require_compiler()
    devices = open_devices(sharded=config.sharded)
    if not any(source.examples for source in given):
        raise InputError("there is no example to train on", expected="pairs, triplets, or texts with classes")
    sources, loss_notes = settle_losses(given, config.losses, temperature=config.temperature)
    reading = settle_prompts(base, sources, preparation.prompts)
    notes.add(*loss_notes, *reading.notes)
    data = collect(sources, reading.prompts)
    asked, apart = config.batch, any((IN_BATCH | CLASSED) & set(source.losses) for source in sources)
    config, batch_reason = choose_batch(config, len(data.rows), least=LEAST_BATCH if apart else 1)
    notes.add(batch_reason)
    effects = report_of(check_effects(config, preparation, given, sources))
    notes.check(examine_examples(given, sources, data, reading.prompts, config, held_out) + effects)
    alone = prompt_alone(sources, reading.prompts)
    return Settled(base, out, config, asked, preparation, devices, tuple(sources), reading, data, alone)


def _load(run: Settled, notes: Notes) -> Loaded:
    base, config, sources, reading = run.base, run.config, run.sources, run.reading
    prompts, prompt_notes = saved_prompts(sources, reading.saved)
    keep_memory()
    precision, reason = choose_precision(config.precision, find_device())
    notes.add(*prompt_notes, reason)
    build = partial(
        prepare,
        base,
        run.preparation,
        precision=precision,
        seed=config.seed,
        attention=best_attention(),
        own_prompts=reading.named,
    )
    notes.say(f"loading {base}")
    prepared = build()
    notes.add(*prepared.notes)
    require_pooled(prepared.network, reading, sources)
    notes.check(examine_network(prepared, sources, run.data, config, precision, asked=run.asked))
    guide = "" if config.guide in NO_MODEL else fingerprint_model(config.guide)
    losses, weights = [source.losses for source in sources], tuple(source.weight for source in sources)
    decisive = [run.data, losses, weights, fingerprint_model(base), guide]
    key = fingerprint([*decisive, keyed(config), run.preparation, precision])
    notes.check(report_of(check_checkpoint(checkpoint_beside(run.out), key, config)))
    notes.check(report_of(choose_dropout(prepared.network, config)))
    return Loaded(prepared, build, prompts, precision, key)


def _plan(run: Settled, loaded: Loaded, notes: Notes) -> EmbeddingTask:
    config, sources, data, devices = run.config, run.sources, run.data, run.devices
    losses, names = [source.losses for source in sources], [source.name for source in sources]
    prepared, network, precision = loaded.prepared, loaded.prepared.network, loaded.precision
    notes.say(f"reading {len(data.texts):,} texts, and trying the first batches")
    tokens = _tokenize_once(network, data.texts, run.out, loaded.key, devices)
    notes.add(*describe_truncation(tokens))
    plan = Plan(config.batch, tuple(source.weight for source in sources), config.mixing, free_sources(losses))
    order = order_batches(data.rows, plan, seed=run_seed(config.seed, 0), epoch=0)  # that of the first run
    batches = [[data.rows[row] for row in rows] for rows in order]
    crowds = report_of(check_crowds(data.rows, plan, names))
    first = batches[:BATCHES]
    notes.check(crowds + examine_batches(prepared, run.base, sources, data, tokens, first, config, precision))
    packer, packing_note = _find_packer(network, tokens, config, precision, next(iter(batches), []), devices)
    held, memory_note = choose_held(network, tokens, config, precision, packer)
    notes.add(packing_note, *memory_note, *((compile_layers(network),) if config.compile else ()))
    if devices.sharded:
        held = devices.agree(held)
        shard(network, size=devices.size)
    guide, folder = None, tokens_beside(run.out)
    if config.guide not in NO_MODEL:
        guide = read_guide(config.guide, data, sources, run.reading.prompts, folder=folder, devices=devices)
    budget, budget_note = choose_budget(config.token_budget, find_device(), held)
    task = EmbeddingTask(
        network,
        data,
        tokens,
        losses,
        plan,
        replace(config, held_tokens=held, token_budget=budget),
        precision,
        guide=guide,
        devices=devices,
        packer=packer,
    )
    notes.add(budget_note, *describe_pool(task, batches, names), *describe_rows(data.rows, losses, names))
    return task


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


def _tokenize_once(network: SentenceTransformer, texts: Sequence[str], out: Path, key: str, devices: Devices) -> Tokens:
    """Return the tokens of all texts: made by the first process, mapped by the others and by a later run."""
    folder = tokens_beside(out)

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


def describe_kept(out: Path) -> tuple[str, ...]:
    """Return a sentence on the model that lies where the new one will, or nothing."""
    if not out.is_dir() or not any(out.iterdir()):
        return ()
    return (f"{out} holds a model already: where the new one differs, the old is kept as {spare_folder(out)}",)


def _sources_of(examples: Sequence[Example] | Sequence[Source]) -> list[Source]:
    sources = [item for item in examples if isinstance(item, Source)]
    return sources or [Source(tuple(item for item in examples if not isinstance(item, Source)))]


def tokens_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.tokens")
