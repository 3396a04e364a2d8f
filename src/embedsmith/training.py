"""Training: examples and a base model in, a better model out, in one epoch and without forgetting.

The step: every text of a batch is encoded once, in length-sorted micro-batches under a token budget; the loss sees all
embeddings of the batch, so it and its gradients are those of one padded batch on one device, however much of it is
encoded a second time to save memory (gradient caching) and however many processes share it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from embedsmith.artifacts import fingerprint
from embedsmith.batches import (
    Index,
    Numbers,
    Plan,
    Source,
    TrainingSet,
    collect,
    contrast,
    count_batches,
    localize,
    order_batches,
)
from embedsmith.cards import CardFacts, write_card
from embedsmith.checkpoints import remove_checkpoint
from embedsmith.devices import Alone, Devices, deal, open_devices
from embedsmith.errors import InputError
from embedsmith.examples import Example
from embedsmith.model import (
    Precision,
    autocast,
    fingerprint_model,
    invert,
    load_encoder,
    run_block,
    tokenize_for,
)
from embedsmith.objectives import LOSSES, parts_of, settle_losses
from embedsmith.optimization import (
    Optimized,
    Progress,
    TrainingConfig,
    Work,
    best_attention,
    checkpoint_beside,
    choose_precision,
    config_from,
    keep_memory,
    learning_rate_at,
    optimize,
)
from embedsmith.preparation import Preparation, prepare, save_prepared
from embedsmith.retention import Choice, Keeper, Retention, card_figures, check_apart, describe_choice
from embedsmith.tokens import Tokens, cut_microbatches, read_tokens, write_tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

__all__ = [
    "LOSSES",
    "Progress",
    "Retention",
    "Source",
    "TrainingConfig",
    "TrainingResult",
    "config_from",
    "learning_rate_at",
    "train",
]
MAPPED = 2**20  # token ids that are worth a file
SAMPLE = 1024  # texts of which the longest show what activations take
MEMORY_SHARE = 4  # activations may take a quarter of the memory
LARGEST_BATCH, FEWEST_STEPS = 16, 45  # what the automatic batch size keeps to (docs/log.md)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came out, and what it took.

    Attributes:
        model: the sentence-transformers folder.
        losses: (step, loss) of every step of this run (from the checkpoint on, if resumed).
        tokens: real tokens that went through the model in this run; padding is the share added to them.
        notes: automatic choices with their reasons.
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
    choice: Choice | None = None


def train(
    examples: Sequence[Example] | Sequence[Source],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    preparation: Preparation | None = None,
    card: str | CardFacts | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    retention: Retention | None = None,
) -> TrainingResult:
    """Return the model tuned on `examples`, saved to the folder `out`.

    A run killed before its end goes on from its last checkpoint (in `out`.checkpoint) when it is
    called again with the same examples, base and configuration, and ends in the same weights. Started by torchrun
    or `accelerate launch`, all processes work on the same batches.

    Args:
        examples: of any kind, or sources with losses and shares of their own: a mixture.
        card: the text of the model's card; facts get the figures of `retention` besides.
        retention: rows that the model is held against on its way; validation rows choose its final weights. Two
            files are written beside `out`: watch.jsonl and retention.json.

    Raises:
        InputError: no usable example, or a validation row among them. ModelError: the base cannot be loaded.
        ModelRefused: the model is below its base on the validation rows; nothing is written.
        EmbedsmithError: the loss is not finite.
    """
    config, preparation = config or TrainingConfig(), preparation or Preparation()
    given = list(examples) if _are_sources(examples) else [Source(tuple(examples))]  # type: ignore[arg-type]
    if not any(source.examples for source in given):
        raise InputError("there is no example to train on", expected="pairs, triplets, or texts with classes")
    if retention is not None:
        check_apart(retention, [example for source in given for example in source.examples])
    sources, loss_notes = settle_losses(given, config.losses)
    data = collect(sources, preparation.prompts)
    config, batch_reason = choose_batch(config, len(data.rows))
    keep_memory()
    devices = open_devices()
    device = "cuda" if _has_cuda() else "cpu"
    precision, reason = choose_precision(config.precision, device)
    prepared = prepare(base, preparation, precision=precision, seed=config.seed, attention=best_attention())
    network = prepared.network
    losses = [source.losses for source in sources]
    key = fingerprint([data, losses, fingerprint_model(base), config, preparation, precision])
    tokens = _tokenize_once(network, data.texts, Path(out), key, devices)
    plan = Plan(config.batch, tuple(source.weight for source in sources), config.mixing)
    held, memory_note = choose_held(network, tokens, config, precision)
    task = _EmbeddingTask(
        network,
        data,
        tokens,
        losses,
        plan,
        replace(config, held_tokens=held),
        precision,
        guide=_guide(config, data.texts),
        devices=devices,
    )
    notes = [*prepared.notes, *loss_notes, batch_reason, reason, *_describe_pool(task), *memory_note]
    keeper = None
    if retention is not None and devices.rank == 0:
        keeper = Keeper(
            network,
            retention,
            prompts=preparation.prompts,
            precision=precision,
            base_weight=config.base_weight,
            out=Path(out),
            key=key,
            seed=config.seed,
        )
    done = optimize(
        task,
        config,
        store=checkpoint_beside(out),
        key=key,
        on_progress=on_progress,
        devices=devices,
        visit=keeper.visit if keeper is not None and keeper.visits else None,
        choose=keeper.choose if keeper is not None else None,
    )
    choice = keeper.choice if keeper is not None else None
    notes += describe_choice(choice) if choice is not None else ()
    if devices.rank == 0:
        save_prepared(prepared, out, card=_write_card(card, choice))
        remove_checkpoint(checkpoint_beside(out))
        shutil.rmtree(_tokens_beside(Path(out)), ignore_errors=True)
    devices.agree(0)
    notes += describe_truncation(tokens)
    result = make_result(Path(out), done, precision, tuple(notes), rows=len(data.rows), pairs=data.pairs, tokens=tokens)
    return replace(result, choice=choice)


def _write_card(card: str | CardFacts | None, choice: Choice | None) -> str:
    if not isinstance(card, CardFacts):
        return card or ""
    figures = card_figures(choice) if choice is not None else {}
    return write_card(replace(card, figures={**card.figures, **figures}))


def _are_sources(examples: Sequence[Example] | Sequence[Source]) -> TypeGuard[Sequence[Source]]:
    return bool(examples) and isinstance(examples[0], Source)


def _tokens_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.tokens")


def _tokenize_once(network: SentenceTransformer, texts: Sequence[str], out: Path, key: str, devices: Devices) -> Tokens:
    """Return the tokens of all texts: made by the first process, mapped by the others and by a later run."""
    folder = _tokens_beside(out)
    found = read_tokens(folder, key)
    if found is None and devices.rank == 0:
        found = tokenize_for(network, texts)
        if devices.size > 1 or len(found.ids) >= MAPPED:
            write_tokens(folder, found, key)
    devices.agree(0)
    found = found or read_tokens(folder, key)
    if found is None:
        raise InputError(
            f"process {devices.rank} does not see {folder}",
            expected="an output folder that all machines share",
            action="put --out on a shared file system",
        )
    return found


def _guide(config: TrainingConfig, texts: Sequence[str]) -> Numbers | None:
    """Return the guide model's embeddings of all texts, (n, g), or None where there is none."""
    if config.guide in {"", "self"}:
        return None
    return load_encoder(config.guide).encode(texts)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def choose_held(
    network: SentenceTransformer, tokens: Tokens, config: TrainingConfig, precision: Precision
) -> tuple[int, tuple[str, ...]]:
    """Return how many padded tokens keep their activations, and the reason; measured on one micro-batch.

    It depends on the machine's memory, not on what is free, so that a resumed run takes the same way.
    """
    if config.held_tokens:
        return config.held_tokens, (f"activations of {config.held_tokens:,} padded tokens are kept, as asked",)
    size = measure_activations(network, tokens, config.token_budget, precision)
    memory = _memory(network.device) // MEMORY_SHARE
    held = max(int(memory // max(size, 1)), config.token_budget)
    note = f"activations take {size / 1024:,.0f} KB a token: {memory / 2**30:.1f} GB hold {held:,} padded tokens"
    return held, (note,)


def measure_activations(network: SentenceTransformer, tokens: Tokens, budget: int, precision: Precision) -> float:
    """Return the bytes that a padded token leaves for the backward pass, measured on a micro-batch of long texts."""
    import torch

    block = cut_microbatches(tokens.lengths[:SAMPLE], budget)[0]
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not tensor.is_leaf:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    with autocast(network, precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run_block(network, tokens, block, "sentence_embedding")
    del kept
    return sum(sizes.values()) / (len(block) * int(tokens.lengths[block].max()))


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


class _EmbeddingTask:
    """Rows of texts whose embeddings are compared."""

    def __init__(
        self,
        network: SentenceTransformer,
        data: TrainingSet,
        tokens: Tokens,
        losses: Sequence[Mapping[str, float]],
        plan: Plan,
        config: TrainingConfig,
        precision: Precision,
        *,
        guide: Numbers | None = None,
        devices: Devices | None = None,
    ) -> None:
        self.network, self.data, self.tokens, self.losses = network, data, tokens, losses
        self.plan, self.config, self.precision = plan, config, precision
        self.guide, self.devices = guide, devices or Alone()

    def count(self) -> int:
        return count_batches(self.data.rows, self.plan)

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        return order_batches(self.data.rows, self.plan, seed=seed, epoch=epoch)

    def accumulate(self, rows: Sequence[int], seed: int) -> tuple[float, Work]:
        texts, local = localize([self.data.rows[row] for row in rows])
        pool = _Pool(self, texts, seed)
        embeddings = pool.encode().requires_grad_()
        guide = None if self.guide is None else self.guide[texts]
        parts = parts_of(local, self.losses, self.config, guide=guide, least=self.devices.size)
        value = embeddings.new_zeros(1)
        for part in parts[self.devices.rank :: self.devices.size]:
            loss = part(embeddings)
            value += loss.detach()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        gradient = embeddings.grad if embeddings.grad is not None else embeddings.detach() * 0
        self.devices.sum([gradient, value])
        if bool(gradient.isfinite().all()):
            pool.backward(gradient)
        return float(value), pool.work


class _Pool:
    """The texts of a batch, encoded in blocks: some with their activations kept, some encoded again for the gradients.

    Dropout draws from the number of the block, so a block is the same when it is encoded again, and whichever
    process encodes it.
    """

    def __init__(self, task: _EmbeddingTask, texts: Index, seed: int) -> None:
        self.task, self.texts, self.seed = task, texts, seed
        lengths = task.tokens.lengths[texts]
        self.blocks = cut_microbatches(lengths, task.config.token_budget)
        padded = np.array([int(lengths[block].max()) * len(block) for block in self.blocks])
        self.work = Work(int(lengths.sum()), int(padded.sum()))
        self.hands = deal(padded, task.devices.size)
        self.own = self.hands[task.devices.rank]
        fits = np.cumsum(padded[self.own]) <= task.config.held_tokens
        self.held = [block for block, fit in zip(self.own, fits, strict=True) if fit]
        self.again = [block for block, fit in zip(self.own, fits, strict=True) if not fit]
        self.kept: list[torch.Tensor] = []

    def encode(self) -> torch.Tensor:
        """Return the embeddings (n, d) of all texts, float32 unit rows, cut off from the network."""
        import torch

        with self._autocast():
            self.kept = [self._run(block) for block in self.held]
        with torch.no_grad(), self._autocast():
            loose = [self._run(block) for block in self.again]
        done = dict(zip([*self.held, *self.again], [*self.kept, *loose], strict=True))
        dimension = self.task.network.get_embedding_dimension()
        empty = torch.zeros((0, dimension), device=self.task.network.device)
        mine = torch.cat([empty, *(done[block].detach() for block in self.own)])
        counts = [sum(len(self.blocks[block]) for block in hand) for hand in self.hands]
        everyone = self.task.devices.gather(mine, counts)
        order = [self.blocks[block] for hand in self.hands for block in hand]
        return everyone[torch.from_numpy(invert(order)).to(everyone.device)]

    def backward(self, gradient: torch.Tensor) -> None:
        """Leave the gradients of this process's texts in the network; `gradient` (n, d) is that of all embeddings."""
        import torch

        if self.kept:
            torch.autograd.backward(self.kept, [gradient[self.blocks[block]] for block in self.held])
        self.kept = []
        for block in self.again:
            with self._autocast():
                vectors = self._run(block)
            torch.autograd.backward([vectors], [gradient[self.blocks[block]]])

    def _run(self, block: int) -> torch.Tensor:
        import torch

        task = self.task
        torch.manual_seed(self.seed + block)
        vectors = run_block(task.network, task.tokens, self.texts[self.blocks[block]], "sentence_embedding")
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.task.network, self.task.precision)


def _describe_pool(task: _EmbeddingTask) -> tuple[str, ...]:
    """Return what an anchor is compared with, where its negatives come from the batch."""
    if not any("infonce" in losses for losses in task.losses):
        return ()
    rows = [task.data.rows[row] for row in task.order(task.config.seed, 0)[0]]
    pool = max(len(contrast(localize(rows)[1]).candidates) - 1, 0)
    where = f" of all {task.devices.size} processes" if task.devices.size > 1 else ""
    return (
        f"pool of negatives: about {pool} for each anchor, from the {len(rows)} rows of a batch{where}; "
        "a larger batch has more and needs no more memory",
    )


def _memory(device: torch.device) -> int:
    """Return the bytes of memory that one process of this machine can count on."""
    import torch

    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for text in _cgroup_limits() if text.isdigit()]
    return int(min([whole, *limits])) // share


def _cgroup_limits() -> list[str]:
    names = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return [Path(name).read_text(encoding="ascii").strip() for name in names if Path(name).is_file()]


def choose_batch(config: TrainingConfig, rows: int) -> tuple[TrainingConfig, str]:
    """Return the configuration with its batch size settled, and the reason for it."""
    if config.batch:
        return config, f"batch {config.batch} as asked"
    size = min(LARGEST_BATCH, max(rows // FEWEST_STEPS, 1))
    why = "the default" if size == LARGEST_BATCH else f"{rows} rows would give too few steps at {LARGEST_BATCH}"
    return replace(config, batch=size), f"batch {size}: {why}"


def describe_truncation(tokens: Tokens) -> tuple[str, ...]:
    """Return a sentence on the texts that were cut, or nothing."""
    cut = int(tokens.truncated.sum())
    return (f"{cut} of {len(tokens)} texts are longer than the model reads and were cut",) if cut else ()
