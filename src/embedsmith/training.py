"""Training: examples and a base model in, a better model out, in one epoch and without forgetting.

The step: every text of a batch is encoded once, in length-sorted micro-batches under a token budget;
the loss sees all embeddings of the batch, so it and its gradients are those of the one padded batch.
What it does not do yet: gradient caching for batches beyond memory, more than one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedsmith.artifacts import fingerprint
from embedsmith.batches import Batch, TrainingSet, assemble, collect_rows, count_batches, order_batches
from embedsmith.checkpoints import remove_checkpoint
from embedsmith.errors import InputError
from embedsmith.examples import Example
from embedsmith.model import (
    Precision,
    autocast,
    embed,
    fingerprint_model,
    load_network,
    save_network,
    tokenize_for,
)
from embedsmith.optimization import (
    LOSSES,
    Optimized,
    Progress,
    TrainingConfig,
    Work,
    best_attention,
    checkpoint_beside,
    choose_precision,
    config_from,
    count_work,
    keep_memory,
    learning_rate_at,
    optimize,
)
from embedsmith.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

__all__ = ["LOSSES", "Progress", "TrainingConfig", "TrainingResult", "config_from", "learning_rate_at", "train"]
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
    examples: Sequence[Example],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    card: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Return the model tuned on `examples`, saved to the folder `out`.

    A run killed before its end goes on from its last checkpoint (in `out`.checkpoint) when it is
    called again with the same examples, base and configuration, and ends in the same weights.

    Raises:
        InputError: no usable example. ModelError: the base cannot be loaded.
        EmbedsmithError: the loss is not finite.
    """
    config = config or TrainingConfig()
    data = collect_rows(examples)
    if not data.pairs:
        raise InputError("there is no example to train on", expected="positive pairs, triplets or labelled pairs")
    config, batch_reason = choose_batch(config, len(data.rows))
    keep_memory()
    network = load_network(base, attention=best_attention())
    precision, reason = choose_precision(config.precision, network.device.type)
    tokens = tokenize_for(network, data.texts)
    key = fingerprint([data, fingerprint_model(base), config, precision])
    task = _EmbeddingTask(network, data, tokens, config, precision)
    done = optimize(task, config, store=checkpoint_beside(out), key=key, on_progress=on_progress)
    save_network(network, out, card=card or "")
    remove_checkpoint(checkpoint_beside(out))
    notes = (batch_reason, reason, *describe_truncation(tokens))
    return make_result(Path(out), done, precision, notes, rows=len(data.rows), pairs=data.pairs, tokens=tokens)


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
        config: TrainingConfig,
        precision: Precision,
    ) -> None:
        self.network, self.data, self.tokens = network, data, tokens
        self.config, self.precision = config, precision

    def count(self) -> int:
        return count_batches(self.data.rows, size=self.config.batch)

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        return order_batches(self.data.rows, size=self.config.batch, seed=seed, epoch=epoch)

    def loss(self, rows: Sequence[int]) -> tuple[torch.Tensor, Work]:
        import torch

        batch = assemble([self.data.rows[row] for row in rows])
        with autocast(self.network, self.precision):
            vectors = embed(self.network, self.tokens, batch.texts, budget=self.config.token_budget)
        vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
        lengths = self.tokens.lengths[batch.texts]
        return batch_loss(vectors, batch, self.config), count_work(lengths, self.config.token_budget)


def choose_batch(config: TrainingConfig, rows: int) -> tuple[TrainingConfig, str]:
    """Return the configuration with its batch size settled, and the reason for it."""
    if config.batch:
        return config, f"batch {config.batch} as asked"
    size = min(LARGEST_BATCH, max(rows // FEWEST_STEPS, 1))
    why = "the default" if size == LARGEST_BATCH else f"{rows} rows would give too few steps at {LARGEST_BATCH}"
    return replace(config, batch=size), f"batch {size}: {why}"


def batch_loss(embeddings: torch.Tensor, batch: Batch, config: TrainingConfig) -> torch.Tensor:
    """Return the weighted sum of the configured losses; `embeddings` are (n, d) float32 unit rows."""
    import torch

    from embedsmith import losses

    total = embeddings.new_zeros(())
    similarities = (embeddings[batch.left] * embeddings[batch.right]).sum(dim=1)
    labels = torch.from_numpy(batch.labels).to(embeddings.device)
    for name, weight in config.losses.items():
        if name == "infonce" and len(batch.anchors):
            value = losses.infonce(
                embeddings[batch.anchors],
                embeddings[batch.candidates],
                torch.from_numpy(batch.positive_of).to(embeddings.device),
                temperature=config.temperature,
                excluded=torch.from_numpy(batch.excluded).to(embeddings.device),
            )
        elif name == "online_contrastive":
            value = losses.online_contrastive(similarities, labels, margin=config.margin) / len(batch.labels)
        elif name == "logistic":
            value = losses.logistic(similarities, labels, scale=config.logistic_scale, bias=config.logistic_bias)
        elif name == "cosent":
            value = losses.cosent(similarities, labels, temperature=config.temperature)
        else:
            continue
        total = total + weight * value
    return total


def describe_truncation(tokens: Tokens) -> tuple[str, ...]:
    """Return a sentence on the texts that were cut, or nothing."""
    cut = int(tokens.truncated.sum())
    return (f"{cut} of {len(tokens)} texts are longer than the model reads and were cut",) if cut else ()
