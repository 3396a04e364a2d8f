"""Configuration: all that decides the weights besides examples and base, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from embedsmith.batches import Mixing
from embedsmith.choices import TrainingPrecision
from embedsmith.errors import ConfigurationError, require, require_kinds
from embedsmith.objectives import Mining, check_losses

MEMORY = ("token_budget", "held_tokens")  # what cuts a batch into blocks
KEPT = "own"  # how a file says that the base's own value stays
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """All that decides the weights, besides the examples and the base.

    Attributes:
        losses: weight by loss name; the step minimises their weighted sum; {} lets the data choose. The online
            contrastive sum is divided by the number of pairs of the batch, so that weights mean the same at any size.
        epochs: passes over the rows.
        steps: at most so many steps; 0 is all of the epochs'.
        batch: rows (anchors with all their positives and negatives) a step, over all devices; 0 chooses 16, or less
            where a small set would give fewer than 45 steps.
        mixing: whether the rows of a batch come from one source or from all.
        learning_rate: its peak; reached after `warmup` (share of all steps), then decayed by `schedule`.
        gradient_norm: cap of the global norm; 0.5 keeps the model near its base (LangCache-Embed).
        temperature: τ of infonce, cosent, angle and distill_kl; cosines are divided by it.
        margin: of online_contrastive, contrastive, triplet and batch_triplet, in cosine distance.
        symmetric: infonce in both directions: the positive has to find its anchor as well.
        mining: the triplets that batch_triplet takes of a batch.
        guide: masks false negatives of infonce: "" none, "self" by the model's own cosines, or a model whose cosines
            tell them; a candidate counts as false when it is closer to the anchor than the positive less the margin.
        guide_margin, guide_relative: that margin, and whether it is a share of the positive's cosine.
        dimensions: Matryoshka: the losses also hold for the first d numbers of an embedding, for each d.
        logistic_scale, logistic_bias: sharpness and place of the border of the logistic loss.
        dropout: None keeps the base's own; none at all is as good in one epoch, and faster (docs/log.md).
        base_weight: share of the base's weights in the result, 0 to 1 (WiSE-FT, arXiv 2109.01903). None has it chosen
            on validation rows, where there are any, and is 0 otherwise. Of adapters the change is scaled, exactly.
        average: decay of the running average of the weights that is returned; 0 returns the last ones.
        runs: how many runs with other orders of the rows have their weights averaged (a model soup,
            Wortsman et al. 2022, arXiv 2203.05482); time grows with it, the model does not.
        token_budget: tokens a micro-batch, with its padding; 0 leaves it to the device (`step.choose_budget`). It
            changes memory and speed, not the result.
        held_tokens: padded tokens of a batch whose activations are kept for the backward pass; the rest is encoded
            a second time (gradient caching, arXiv 2101.06983). 0 chooses what a quarter of the memory holds. It
            changes memory and speed, not the result.
        sharded: each process of the run holds its share of the weights, their moments and averages, and the whole of a
            layer only while it works, for more exchange between them. It does not change the result. The memory in use
            between steps is divided by the processes; on a CPU, little of what is freed goes back to the system.
        compile: each layer becomes a program of its own (torch.compile), which takes a C++ compiler and about a minute
            before the first step. On the CPU it was measured to gain nothing or to lose (docs/log.md). The weights are
            the same but for rounding, so a run that is killed and goes on may differ in the last digits.
        precision: "auto" is bf16 where the chip multiplies it natively, else fp32.
        checkpoint_seconds: at least this long between checkpoints, and at least 20 times what the last one took: they
            cost a twentieth of the run at most. 0 writes one after every step, whatever it takes.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 1
    steps: int = 0
    batch: int = 0
    mixing: Mixing = "apart"
    learning_rate: float = 5e-5
    warmup: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    gradient_norm: float = 0.5
    temperature: float = 0.05
    margin: float = 0.5
    symmetric: bool = False
    mining: Mining = "semi_hard"
    guide: str = ""
    guide_margin: float = 0.0
    guide_relative: bool = False
    dimensions: tuple[int, ...] = ()
    logistic_scale: float = 15.0
    logistic_bias: float = 0.65
    dropout: float | None = 0.0
    base_weight: float | None = None
    average: float = 0.0
    runs: int = 1
    token_budget: int = 0
    held_tokens: int = 0
    sharded: bool = False
    compile: bool = False
    precision: TrainingPrecision = "auto"
    seed: int = 0
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        require_kinds(self)
        check_losses(self.losses)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                action = _SCALE.format(value, 1 / value) if name == "temperature" and value > high else ""
                raise ConfigurationError(f"{name} is {value}", expected=f"{low} to {high}", action=action)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}", expected=f"one of {', '.join(choices)}")
        require(not (self.compile and self.sharded), "compile with sharded weights is not offered", "one of them")


_SCALE = "a scale of {:g} in other libraries is a temperature of {:g} here"
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "mixing": get_args(Mixing),
    "mining": get_args(Mining),
    "schedule": get_args(Schedule),
    "precision": ("auto", "bf16", "fp32"),
}
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 1000),
    ("steps", 0, 1_000_000_000),
    ("batch", 0, 1_000_000),
    ("learning_rate", 1e-9, 1.0),
    ("warmup", 0.0, 1.0),
    ("gradient_norm", 1e-6, math.inf),
    ("temperature", 1e-4, 10.0),
    ("margin", 0.0, 2.0),
    ("guide_margin", -1.0, 1.0),
    ("weight_decay", 0.0, 1.0),
    ("base_weight", 0.0, 1.0),
    ("average", 0.0, 0.9999),
    ("runs", 1, 100),
    ("token_budget", 0, 10_000_000),
    ("held_tokens", 0, math.inf),
    ("logistic_scale", 1e-3, 1000.0),
    ("logistic_bias", -1.0, 1.0),
    ("dropout", 0.0, 0.99),
    ("seed", 0, 2**63 - 1),
    ("checkpoint_seconds", 0.0, math.inf),
)


def keyed(config: TrainingConfig) -> TrainingConfig:
    """Return the configuration reduced to what decides the weights, for the key of a checkpoint.

    Left out is what a resumed run may change: settings of memory, the interval of checkpoints, sharding, and
    `base_weight`, which acts after the last step. Settings of memory (`MEMORY`) may change the last digits, since sums
    are then taken in another order; the run says so.
    """
    return replace(config, sharded=False, checkpoint_seconds=0.0, base_weight=None, token_budget=0, held_tokens=0)


def describe_memory(config: TrainingConfig) -> str:
    """Return the settings of memory that a checkpoint was written under."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in MEMORY)


def config_from(values: Mapping[str, object]) -> TrainingConfig:
    """Return the configuration with `values` over the defaults; an unknown key is an error."""
    known = {item.name for item in fields(TrainingConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigurationError(
            f"unknown training option: {', '.join(unknown)}",
            expected=f"any of {', '.join(sorted(known))}",
            action=next((_MISTAKEN[name] for name in unknown if name in _MISTAKEN), ""),
        )
    return TrainingConfig(**{name: _from_toml(value) for name, value in values.items()})  # type: ignore[arg-type]


def _from_toml(value: object) -> object:
    """Return a value as the configuration has it: TOML knows no tuples and no None."""
    if isinstance(value, list):
        return tuple(value)
    return None if value == KEPT else value


_POOL = (
    "set `batch`: all of its rows are each other's negatives, whatever the memory (gradient caching); accumulated "
    "small batches would only have small pools of negatives"
)
_MISTAKEN = dict.fromkeys(
    ("accumulation", "gradient_accumulation", "gradient_accumulation_steps", "accumulation_steps", "mini_batch_size"),
    _POOL,
)
