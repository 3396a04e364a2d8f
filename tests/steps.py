"""One training step for every loss, as a program: run alone or by torchrun, it writes the gradients it ended with.

python tests/steps.py MODEL OUT          # or: python -m torch.distributed.run --nproc-per-node 2 tests/steps.py …
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from embedsmith.batches import Plan, Source, collect
from embedsmith.devices import Devices, open_devices
from embedsmith.examples import Example, LabelledPair, LabelledText, ScoredPair, Triplet
from embedsmith.model import load_network, tokenize_for
from embedsmith.objectives import LOSSES, settle_losses
from embedsmith.optimization import TrainingConfig
from embedsmith.training import _EmbeddingTask

WORDS = ["card", "pin", "bank", "loan", "rate", "fee", "app", "phone", "code", "limit", "transfer", "account"]
EVERYTHING = 10**9


def make_examples(loss: str, count: int = 12) -> list[Example]:
    """Return examples that `loss` takes, of very unequal lengths."""
    rows: list[Example] = []
    for row in range(count):
        word, other = WORDS[row % len(WORDS)], WORDS[(row + 5) % len(WORDS)]
        anchor = f"how do I change my {word} number {row}"
        same = f"{word} {row} has to be another one, please " * (row % 4 + 1)
        different = f"how do I change my {other} number {row}"
        if loss == "batch_triplet":
            rows += [LabelledText(text, word if row % 3 else "other") for text in (anchor, same)]
        elif loss in {"margin_mse", "distill_kl"}:
            negatives = (different, f"{other} {word}", "no idea")[: row % 3 + 1]
            rows.append(Triplet(anchor, same, negatives, scores=(0.9, 0.4, 0.2, 0.1)[: len(negatives) + 1]))
        elif loss == "cosine_similarity":
            rows += [ScoredPair(anchor, same, 0.9), ScoredPair(anchor, different, 0.3)]
        else:
            rows += [LabelledPair(anchor, same, 1, str(row)), LabelledPair(anchor, different, 0, str(row))]
    return rows


def make_task(model: str, loss: str, config: TrainingConfig, *, devices: Devices | None = None) -> _EmbeddingTask:
    """Return the training task of all examples of a loss; one step takes them all."""
    network = load_network(model)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout or 0.0
    sources, _ = settle_losses([Source(tuple(make_examples(loss)))], {loss: 1.0})
    data = collect(sources)
    tokens = tokenize_for(network, data.texts)
    losses: Sequence[Mapping[str, float]] = [source.losses for source in sources]
    network.train()
    return _EmbeddingTask(network, data, tokens, losses, Plan(len(data.rows)), config, "fp32", devices=devices)


def step(task: _EmbeddingTask) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of one step and the gradients it leaves, summed over all processes."""
    value, _ = task.accumulate(range(len(task.data.rows)), seed=7)
    for weight in task.network.parameters():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    task.devices.sum(weight.grad for weight in task.network.parameters() if weight.grad is not None)
    return value, {name: weight.grad for name, weight in task.network.named_parameters() if weight.grad is not None}


CONFIGS: Mapping[str, TrainingConfig] = {
    "held": TrainingConfig(token_budget=60, held_tokens=EVERYTHING, dropout=0.3),
    "cached": TrainingConfig(token_budget=60, held_tokens=1, dropout=0.3),
    "half cached": TrainingConfig(token_budget=60, held_tokens=150, dropout=0.3),
}
VARIANTS: Mapping[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in LOSSES},
    "infonce symmetric": ("infonce", {"symmetric": True}),
    "infonce masked": ("infonce", {"guide": "self", "guide_margin": 0.02}),
    "infonce matryoshka": ("infonce", {"dimensions": (32, 16, 8)}),
    "batch_triplet hard": ("batch_triplet", {"mining": "hard"}),
}


def main(model: str, out: Path) -> None:
    devices = open_devices()
    for variant, (loss, options) in VARIANTS.items():
        for how, config in CONFIGS.items():
            chosen = replace(config, **options)  # type: ignore[arg-type]
            value, gradients = step(make_task(model, loss, chosen, devices=devices))
            if devices.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                numbers = {name: gradient.contiguous() for name, gradient in gradients.items()}
                save_file(
                    numbers | {"loss": torch.tensor(np.float32(value))}, str(out / f"{variant}, {how}.safetensors")
                )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
