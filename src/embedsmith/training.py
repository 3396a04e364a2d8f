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
from functools import partial
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
    saved_prompts,
)
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
from embedsmith.preparation import Preparation, Prepared, prepare, save_prepared
from embedsmith.recipes import write_recipe
from embedsmith.sharding import gather_whole, shard
from embedsmith.tokens import Tokens, cut_microbatches, read_tokens, write_tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

__all__ = [
    "LOSSES",
    "Progress",
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


def train(
    examples: Sequence[Example] | Sequence[Source],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    preparation: Preparation | None = None,
    card: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Return the model tuned on `examples`, saved to the folder `out`.

    A run killed before its end goes on from its last checkpoint (in `out`.checkpoint) when it is
    called again with the same examples, base and configuration, and ends in the same weights. Started by torchrun
    or `accelerate launch`, all processes work on the same batches, and with `sharded` each holds its share of the
    weights; the checkpoint of a run is the same with and without.

    Args:
        examples: of any kind, or sources with losses and shares of their own: a mixture.

    Raises:
        InputError: no usable example. ModelError: the base cannot be loaded.
        ConfigurationError: `sharded` in one process.
        EmbedsmithError: the loss is not finite.
    """
    config, preparation = config or TrainingConfig(), preparation or Preparation()
    devices = open_devices(sharded=config.sharded)
    given = list(examples) if _are_sources(examples) else [Source(tuple(examples))]  # type: ignore[arg-type]
    if not any(source.examples for source in given):
        raise InputError("there is no example to train on", expected="pairs, triplets, or texts with classes")
    sources, loss_notes = settle_losses(given, config.losses)
    data = collect(sources, preparation.prompts)
    prompts, prompt_notes = saved_prompts(sources, preparation.prompts)
    config, batch_reason = choose_batch(config, len(data.rows))
    keep_memory()
    device = "cuda" if _has_cuda() else "cpu"
    precision, reason = choose_precision(config.precision, device)
    build = partial(prepare, base, preparation, precision=precision, seed=config.seed, attention=best_attention())
    prepared = build()
    network = prepared.network
    losses = [source.losses for source in sources]
    settings = replace(config, sharded=False)  # a checkpoint holds whole weights either way
    key = fingerprint([data, losses, fingerprint_model(base), settings, preparation, precision])
    tokens = _tokenize_once(network, data.texts, Path(out), key, devices)
    plan = Plan(config.batch, tuple(source.weight for source in sources), config.mixing)
    held, memory_note = choose_held(network, tokens, config, precision)
    if devices.sharded:
        held = devices.agree(held)
        shard(network, size=devices.size)
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
    notes = [*prepared.notes, *prompt_notes, *loss_notes, batch_reason, reason, *_describe_pool(task), *memory_note]
    done = optimize(task, config, store=checkpoint_beside(out), key=key, on_progress=on_progress, devices=devices)
    prepared = _make_whole(prepared, build, devices)
    if devices.rank == 0:
        files = {"recipe.toml": write_recipe(config, preparation)}
        save_prepared(prepared, out, prompts=prompts, card=card or "", files=files)
        remove_checkpoint(checkpoint_beside(out))
        shutil.rmtree(_tokens_beside(Path(out)), ignore_errors=True)
    devices.agree(0)
    notes += describe_truncation(tokens)
    return make_result(Path(out), done, precision, tuple(notes), rows=len(data.rows), pairs=data.pairs, tokens=tokens)


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
    process encodes it. Under sharding a process without a block takes its turn with a text that counts for nothing,
    and all keep the activations of the same turns.
    """

    def __init__(self, task: _EmbeddingTask, texts: Index, seed: int) -> None:
        self.task, self.texts, self.seed = task, texts, seed
        lengths = task.tokens.lengths[texts]
        self.blocks = cut_microbatches(lengths, task.config.token_budget)
        padded = np.array([int(lengths[block].max()) * len(block) for block in self.blocks])
        self.work = Work(int(lengths.sum()), int(padded.sum()))
        self.hands = deal(padded, task.devices.size)
        turns, kept = share_turns(self.hands, padded, task.config.held_tokens, task.devices)
        self.held, self.again = turns[:kept], turns[kept:]
        self.kept: list[torch.Tensor] = []

    def encode(self) -> torch.Tensor:
        """Return the embeddings (n, d) of all texts, float32 unit rows, cut off from the network."""
        import torch

        with self._autocast():
            self.kept = [self._run(block) for block in self.held]
        with torch.no_grad(), self._autocast():
            loose = [self._run(block) for block in self.again]
        done = zip([*self.kept, *loose], [*self.held, *self.again], strict=True)
        dimension = self.task.network.get_embedding_dimension()
        empty = torch.zeros((0, dimension), device=self.task.network.device)
        mine = torch.cat([empty, *(vectors.detach() for vectors, block in done if block is not None)])
        counts = [sum(len(self.blocks[block]) for block in hand) for hand in self.hands]
        everyone = self.task.devices.gather(mine, counts)
        order = [self.blocks[block] for hand in self.hands for block in hand]
        return everyone[torch.from_numpy(invert(order)).to(everyone.device)]

    def backward(self, gradient: torch.Tensor) -> None:
        """Leave the gradients of this process's texts in the network; `gradient` (n, d) is that of all embeddings."""
        import torch

        kept, self.kept = self.kept, []
        if kept and not self.task.devices.sharded:
            torch.autograd.backward(kept, [self._part(gradient, block) for block in self.held])
        elif kept:  # one after the other, so that the processes meet in the same order
            for vectors, block in zip(kept, self.held, strict=True):
                torch.autograd.backward([vectors], [self._part(gradient, block)])
        for block in self.again:
            with self._autocast():
                vectors = self._run(block)
            torch.autograd.backward([vectors], [self._part(gradient, block)])

    def _part(self, gradient: torch.Tensor, block: int | None) -> torch.Tensor:
        return gradient.new_zeros((1, gradient.shape[1])) if block is None else gradient[self.blocks[block]]

    def _run(self, block: int | None) -> torch.Tensor:
        import torch

        task = self.task
        torch.manual_seed(self.seed + (block or 0))
        rows = self.texts[:1] if block is None else self.texts[self.blocks[block]]
        vectors = run_block(task.network, task.tokens, rows, "sentence_embedding")
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        # A rounded weight that two blocks share gives its gradient after the last of them, and FSDP has summed by then.
        return autocast(self.task.network, self.task.precision, cache=not self.task.devices.sharded)


def share_turns(
    hands: Sequence[Sequence[int]], padded: Index, held_tokens: int, devices: Devices
) -> tuple[list[int | None], int]:
    """Return the blocks this process encodes, turn by turn, and in how many turns it keeps the activations.

    Under sharding all processes have as many turns (None: nothing of its own to encode) and keep equally many. With
    blocks of 5, 4 and 3 tokens dealt as [[0], [1, 2]] and 4 tokens held, that is ([0, None], 0) on the first process.

    Args:
        hands: for each process its blocks. padded: the padded tokens of each block.
    """
    fits = [int((np.cumsum(padded[list(hand)]) <= held_tokens).sum()) for hand in hands]
    own: list[int | None] = list(hands[devices.rank])
    if not devices.sharded:
        return own, fits[devices.rank]
    turns = max(len(hand) for hand in hands)
    kept = min((fit for fit, hand in zip(fits, hands, strict=True) if fit < len(hand)), default=turns)
    return [*own, *[None] * (turns - len(own))], kept


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
