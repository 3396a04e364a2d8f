"""One training step for every loss: a process alone, or several, write the gradients they ended with.

python tests/steps.py MODEL OUT          # or: python -m torch.distributed.run --nproc-per-node 2 tests/steps.py …
Several processes also take steps and train models with sharded weights.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from embedsmith.adapters import LoraConfig
from embedsmith.batches import Plan, Source, collect
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig
from embedsmith.devices import Devices, open_devices
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.model import load_network
from embedsmith.networks import tokenize_for
from embedsmith.objectives import LOSSES, settle_losses
from embedsmith.optimization import Progress, checkpoint_beside
from embedsmith.packing import find_packer
from embedsmith.preparation import Preparation
from embedsmith.sharding import gather_whole, shard
from embedsmith.step import EmbeddingTask
from embedsmith.training import train

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


def make_task(
    model: str,
    loss: str,
    config: TrainingConfig,
    *,
    devices: Devices | None = None,
    precision: Precision = "fp32",
    packed: bool = True,
) -> EmbeddingTask:
    """Return the training task of all examples of a loss; one step takes them all."""
    network = load_network(model)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout or 0.0
    sources, _ = settle_losses([Source(tuple(make_examples(loss)))], {loss: 1.0})
    data = collect(sources)
    tokens = tokenize_for(network, data.texts)
    losses: Sequence[Mapping[str, float]] = [source.losses for source in sources]
    packer, reason = find_packer(network, tokens, precision) if packed else (None, "")
    assert packed == (packer is not None), reason
    network.train()
    if devices is not None and devices.sharded:
        shard(network, size=devices.size)
    plan = Plan(len(data.rows))
    return EmbeddingTask(network, data, tokens, losses, plan, config, precision, devices=devices, packer=packer)


def step(task: EmbeddingTask) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of one step and the gradients it leaves, summed over all processes."""
    value, _ = task.accumulate(range(len(task.data.rows)), seed=7)
    for weight in task.network.parameters():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    found = {name: weight.grad for name, weight in task.network.named_parameters() if weight.grad is not None}
    if not task.devices.sharded:
        task.devices.sum(found.values())
    return value, gather_whole(found, keep=True)


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


SHARDED = ("infonce", "logistic")  # one whose loss sees the whole batch, one that is a sum over pairs
PAIRS = tuple(PositivePair(f"how do I change my {word}", f"{word}: another one, please") for word in WORDS)
# two runs of four steps, with all that a checkpoint holds
RUN = TrainingConfig(
    batch=6,
    epochs=2,
    runs=2,
    average=0.5,
    base_weight=0.2,
    dropout=0.3,
    learning_rate=1e-3,
    precision="fp32",
    token_budget=40,
    held_tokens=60,
)
LORA = Preparation(lora=LoraConfig(targets="all-linear"))
KILLED_RUN = replace(RUN, checkpoint_seconds=0.0)
KILLED = 6  # steps after which a run is stopped


def write_steps(model: str, out: Path, variants: Sequence[str], devices: Devices) -> None:
    """Write the gradients of a step of each variant, whole, in each way of keeping activations."""
    for variant in variants:
        loss, options = VARIANTS[variant]
        for how, config in CONFIGS.items():
            chosen = replace(config, **options)  # type: ignore[arg-type]
            write_step(make_task(model, loss, chosen, devices=devices), out / f"{variant}, {how}.safetensors")


def write_step(task: EmbeddingTask, file: Path) -> None:
    value, gradients = step(task)
    if task.devices.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: gradient.contiguous() for name, gradient in gradients.items()}
        save_file(numbers | {"loss": torch.tensor(np.float32(value))}, str(file))


def write_shares(model: str, out: Path, devices: Devices) -> None:
    """Write the steps of sharded weights in float32 and in bf16, once each process is seen to hold half of them."""
    write_steps(model, out, SHARDED, devices)
    task = make_task(model, "infonce", CONFIGS["held"], devices=devices, precision="bf16")
    held = sum(weight.to_local().numel() for weight in task.network.parameters())  # type: ignore[attr-defined]
    assert held == sum(weight.numel() for weight in task.network.parameters()) / devices.size
    write_step(task, out / "infonce, bf16.safetensors")


def train_sharded(model: str, out: Path, devices: Devices) -> None:
    """Train "whole" at once, "resumed" after a kill, leave the checkpoint of a killed run at "left", and "lora"."""
    config, killed = replace(RUN, sharded=True), replace(KILLED_RUN, sharded=True)

    def kill(progress: Progress) -> None:
        if progress.step == KILLED:
            raise KeyboardInterrupt

    train(PAIRS, base=model, out=out / "whole", config=config)
    with contextlib.suppress(KeyboardInterrupt):
        train(PAIRS, base=model, out=out / "resumed", config=killed, on_progress=kill)
    if devices.rank == 0:
        shutil.copy(checkpoint_beside(out / "resumed"), checkpoint_beside(out / "left"))
    devices.agree(0)
    resumed = train(PAIRS, base=model, out=out / "resumed", config=killed)
    assert resumed.resumed_from == KILLED
    train(PAIRS, base=model, out=out / "lora", config=config, preparation=LORA)


def main(model: str, out: Path) -> None:
    devices = open_devices()
    write_steps(model, out, tuple(VARIANTS), devices)
    if devices.size > 1:
        sharded = open_devices(sharded=True)
        write_shares(model, out / "sharded", sharded)
        train_sharded(model, out / "sharded", sharded)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
