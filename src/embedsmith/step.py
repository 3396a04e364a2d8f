"""The step: a batch's texts encoded in blocks, its loss, and the gradients, whatever the memory and the devices.

Every distinct text of a batch is encoded once, in length-sorted micro-batches under a token budget. The loss sees all
embeddings, cut off from the network, and leaves a gradient on them; each block then takes its part of it, from
activations that were kept or from a second pass (gradient caching, Gao et al. 2021, arXiv 2101.06983). Loss and
gradients are those of one padded batch on one device.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedsmith.batches import Index, Numbers, Plan, Row, TrainingSet, contrast, count_batches, localize, order_batches
from embedsmith.checks import Watch, mean_cosine
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig
from embedsmith.devices import Alone, Devices, deal, processes_here
from embedsmith.machine import count_memory
from embedsmith.networks import autocast, invert, run_block
from embedsmith.objectives import IN_BATCH
from embedsmith.optimization import Work
from embedsmith.tokens import Tokens, cut_microbatches, cut_packed

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from embedsmith.packing import Packer

BUDGET = 2048  # padded tokens a micro-batch; on a CPU more do not pay (docs/log.md)
GPU_BUDGET = 16384  # fewer leave a large GPU waiting for the next launch
SAMPLE = 1024  # texts of which the longest show what activations take
MEMORY_SHARE = 4  # activations may take a quarter of the memory


class EmbeddingTask:
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
        packer: Packer | None = None,
    ) -> None:
        self.network, self.data, self.tokens, self.losses = network, data, tokens, losses
        self.packer = packer
        self.plan, self.config, self.precision = plan, config, precision
        self.guide, self.devices = guide, devices or Alone()
        self.budget = config.token_budget or BUDGET
        self.watch = Watch()

    def count(self) -> int:
        return count_batches(self.data.rows, self.plan)

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        return order_batches(self.data.rows, self.plan, seed=seed, epoch=epoch)

    def accumulate(self, rows: Sequence[int], seed: int) -> tuple[float, Work]:
        from embedsmith.parts import parts_of

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
        pool.backward(gradient)  # what is not finite in it is found in the weights' gradients, and ends the run
        total = float(embeddings.detach().sum(dim=0).square().sum())
        sources = tuple(sorted({row.source for row in local}))
        self.watch.see(float(value), mean_cosine(total, len(embeddings)), sources)
        return float(value), pool.work

    def cut(self, texts: Index) -> tuple[list[Index], Index]:
        """Return the blocks that texts are encoded in, as positions in `texts`, and the tokens of each with padding."""
        lengths = self.tokens.lengths_of(texts)
        if self.packer is not None:
            blocks = cut_packed(lengths, self.budget)
            return blocks, np.array([int(lengths[block].sum()) for block in blocks])
        blocks = cut_microbatches(lengths, self.budget)
        return blocks, np.array([int(lengths[block].max()) * len(block) for block in blocks])

    def encode(self, texts: Index) -> torch.Tensor:
        """Return the embeddings of a block of texts (n, d) as the network gives them."""
        return encode_block(self.network, self.tokens, texts, self.packer)

    def recall(self) -> str:
        return json.dumps(self.watch.recall())

    def remember(self, memory: str) -> None:
        self.watch.remember(json.loads(memory))


def encode_block(network: SentenceTransformer, tokens: Tokens, texts: Index, packer: Packer | None) -> torch.Tensor:
    """Return the embeddings (n, d) of a block of texts as the network gives them: packed where it can be."""
    if packer is not None:
        return packer.run(tokens, texts)
    return run_block(network, tokens, texts, "sentence_embedding")


class _Pool:
    """The texts of a batch, encoded in blocks: some with their activations kept, some encoded again for the gradients.

    Dropout draws from the number of the block, so a block is the same when it is encoded again, and whichever
    process encodes it. Under sharding a process without a block takes its turn with a text that counts for nothing,
    and all keep the activations of the same turns.
    """

    def __init__(self, task: EmbeddingTask, texts: Index, seed: int) -> None:
        self.task, self.texts, self.seed = task, texts, seed
        self.blocks, padded = task.cut(texts)
        self.work = Work(int(task.tokens.lengths_of(texts).sum()), int(padded.sum()))
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
        vectors = task.encode(rows)
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


def describe_pool(task: EmbeddingTask, batches: Sequence[Sequence[Row]], names: Sequence[str]) -> tuple[str, ...]:
    """Return what an anchor is compared with, for each source whose negatives come from its rows of the batch.

    Args:
        batches: the rows of an epoch. names: of the sources.
    """
    notes = []
    where = f" of all {task.devices.size} processes" if task.devices.size > 1 else ""
    for source, losses in enumerate(task.losses):
        own = next((rows for batch in batches if (rows := [row for row in batch if row.source == source])), [])
        if not own or not IN_BATCH & set(losses):
            continue
        pool = max(len(contrast(localize(own)[1]).candidates) - 1, 0)
        of = f" of {names[source]}" if len(names) > 1 else ""
        notes.append(
            f"pool of negatives{of}: about {pool} for each anchor, from the {len(own)} rows of a batch{where}; "
            "a larger batch has more and needs no more memory"
        )
    return tuple(notes)


def choose_held(
    network: SentenceTransformer,
    tokens: Tokens,
    config: TrainingConfig,
    precision: Precision,
    packer: Packer | None = None,
) -> tuple[int, tuple[str, ...]]:
    """Return how many padded tokens keep their activations, and the reason; measured on one micro-batch.

    It depends on the machine's memory, not on what is free, so that a resumed run takes the same way.
    """
    if config.held_tokens:
        return config.held_tokens, (f"activations of {config.held_tokens:,} padded tokens are kept, as asked",)
    budget = config.token_budget or BUDGET
    size = measure_activations(network, tokens, budget, precision, packer)
    memory = count_memory(network.device, processes=processes_here()) // MEMORY_SHARE
    held = max(int(memory // max(size, 1)), budget)
    note = f"activations take {size / 1024:,.0f} KB a token: {memory / 2**30:.1f} GB hold {held:,} padded tokens"
    return held, (note,)


def choose_budget(asked: int, device: str, held: int) -> tuple[int, str]:
    """Return the padded tokens of a micro-batch and the reason.

    Args:
        asked: what the user asked for, 0 where nothing.
        device: "cpu", "cuda", …
        held: padded tokens whose activations fit into memory: a micro-batch on its way back has to.
    """
    if asked:
        return asked, f"micro-batches of {asked:,} padded tokens, as asked"
    if device != "cuda":
        return BUDGET, f"micro-batches of {BUDGET:,} padded tokens: more do not pay on this {device}"
    budget = max(min(held, GPU_BUDGET), BUDGET)
    why = "fewer are done before the next are launched" if budget == GPU_BUDGET else "its memory holds no more"
    return budget, f"micro-batches of {budget:,} padded tokens: {why}"


def measure_activations(
    network: SentenceTransformer, tokens: Tokens, budget: int, precision: Precision, packer: Packer | None = None
) -> float:
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
        kept = encode_block(network, tokens, block, packer)
    del kept
    return sum(sizes.values()) / (len(block) * int(tokens.lengths[block].max()))
