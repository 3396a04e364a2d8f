"""Training: examples and a base model in, a better model out, in one epoch and without forgetting.

The step: every text of a batch is encoded once, in length-sorted micro-batches under a token budget;
the loss sees all embeddings of the batch, so it and its gradients are those of the one padded batch.
Everything that is random depends on (seed, step) only, so a killed run resumes to the same weights.

What it does not do yet: gradient caching for batches beyond memory, more than one device.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from embedsmith.artifacts import fingerprint
from embedsmith.batches import Batch, TrainingSet, assemble, collect_rows, count_batches, order_batches
from embedsmith.checkpoints import Checkpoint, read_checkpoint, remove_checkpoint, write_checkpoint
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError
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
from embedsmith.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Schedule = Literal["linear", "cosine", "constant"]
LARGEST_BATCH, FEWEST_STEPS = 16, 45  # what the automatic batch size keeps to (docs/log.md)
LOSSES = ("infonce", "online_contrastive", "cosent", "logistic")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """All that decides the weights, besides the examples and the base.

    Attributes:
        losses: weight by loss name; the step minimises their weighted sum. The online contrastive sum
            is divided by the number of pairs of the batch, so that weights mean the same at any size.
        epochs: passes over the rows.
        batch: rows (anchors with all their positives and negatives) a step; 0 chooses 16, or less where a small
            set would give fewer than 45 steps.
        learning_rate: its peak; reached after `warmup` (share of all steps), then decayed by `schedule`.
        gradient_norm: cap of the global norm; 0.5 keeps the model near its base (LangCache-Embed).
        temperature, margin: of infonce and cosent, of online_contrastive.
        logistic_scale, logistic_bias: sharpness and place of the border of the logistic loss.
        dropout: None keeps the base's own; none at all is as good in one epoch, and faster (docs/log.md).
        base_weight: share of the base's weights in the result, 0 to 1 (WiSE-FT, arXiv 2109.01903).
        average: decay of the running average of the weights that is returned; 0 returns the last ones.
        runs: how many runs with other orders of the rows have their weights averaged (a model soup,
            Wortsman et al. 2022, arXiv 2203.05482); time grows with it, the model does not.
        token_budget: padded tokens a micro-batch; changes memory and speed, not the result.
        precision: "auto" is bf16 where the chip multiplies it natively, else fp32.
        checkpoint_seconds: at least this long between checkpoints.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"logistic": 1.0})
    epochs: int = 1
    batch: int = 0
    learning_rate: float = 5e-5
    warmup: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    gradient_norm: float = 0.5
    temperature: float = 0.05
    margin: float = 0.5
    logistic_scale: float = 15.0
    logistic_bias: float = 0.65
    dropout: float | None = 0.0
    base_weight: float = 0.0
    average: float = 0.0
    runs: int = 1
    token_budget: int = 1024
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.losses) - set(LOSSES))
        if unknown or not self.losses:
            raise ConfigurationError(f"losses: {unknown or 'none'}", expected=f"any of {', '.join(LOSSES)}")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"{name} is {value}", expected=f"{low} to {high}")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 1000),
    ("batch", 0, 1_000_000),
    ("learning_rate", 1e-9, 1.0),
    ("warmup", 0.0, 1.0),
    ("gradient_norm", 1e-6, math.inf),
    ("temperature", 1e-4, 10.0),
    ("margin", 0.0, 2.0),
    ("base_weight", 0.0, 1.0),
    ("average", 0.0, 0.9999),
    ("runs", 1, 100),
    ("token_budget", 1, 10_000_000),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


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
    network = load_network(base, attention="eager" if _on_cpu() else None)
    precision, reason = choose_precision(config.precision, network.device.type)
    tokens = tokenize_for(network, data.texts)
    key = fingerprint([data, fingerprint_model(base), config, precision])
    store = Path(out).with_name(f"{Path(out).name}.checkpoint")
    state = _State(network, config, steps=_count_steps(data, config))
    start = state.restore(read_checkpoint(store, key))
    run = _Run(data, tokens, config, precision, state, store, key, on_progress)
    losses = run.go(start)
    state.finish()
    notes = (batch_reason, reason, *_describe_truncation(tokens))
    save_network(network, out, card=card or "")
    remove_checkpoint(store)
    return TrainingResult(
        model=Path(out),
        steps=state.steps * config.runs,
        resumed_from=start,
        seconds=round(run.seconds, 3),
        tokens=run.tokens_seen,
        padding=round(run.padded / max(run.tokens_seen, 1) - 1, 4),
        tokens_per_second=round(run.tokens_seen / max(run.seconds, 1e-9), 1),
        losses=tuple(losses),
        rows=len(data.rows),
        pairs=data.pairs,
        truncated=int(tokens.truncated.sum()),
        precision=precision,
        notes=notes,
    )


def choose_batch(config: TrainingConfig, rows: int) -> tuple[TrainingConfig, str]:
    """Return the configuration with its batch size settled, and the reason for it."""
    if config.batch:
        return config, f"batch {config.batch} as asked"
    size = min(LARGEST_BATCH, max(rows // FEWEST_STEPS, 1))
    why = "the default" if size == LARGEST_BATCH else f"{rows} rows would give too few steps at {LARGEST_BATCH}"
    return replace(config, batch=size), f"batch {size}: {why}"


def choose_precision(wanted: str, device: str) -> tuple[Precision, str]:
    """Return the precision of matrix products and the reason for it."""
    import torch

    if wanted == "bf16":
        return "bf16", "bf16 as asked"
    if wanted == "fp32":
        return "fp32", "fp32 as asked"
    if device == "cuda" and torch.cuda.is_bf16_supported():
        return "bf16", "bf16: this GPU multiplies it natively"
    if device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_instructions():
        return "bf16", "bf16: this processor has AMX or AVX512-BF16 instructions"
    return "fp32", f"fp32: no native bf16 on this {device}"


def _has_bf16_instructions() -> bool:
    import torch

    capabilities = torch.backends.cpu.get_cpu_capability()
    cpu = torch.cpu
    native = (cpu._is_avx512_bf16_supported(), cpu._is_amx_tile_supported())
    return capabilities.startswith("AVX512") and any(native)


def keep_memory() -> None:
    """Tell glibc to keep freed blocks; returning them to the system costs a page fault per page and step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return  # another libc has other habits; nothing is lost but speed


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


def learning_rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of `step` (from 0) of `steps`: linear warm-up, then the schedule to 0."""
    warm = max(round(steps * config.warmup), 1)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    share = (step - warm) / max(steps - warm, 1)
    factor = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
    return config.learning_rate * factor[config.schedule]


class _State:
    """The weights, the optimiser and the averages: all that a checkpoint holds."""

    def __init__(self, network: SentenceTransformer, config: TrainingConfig, *, steps: int) -> None:
        self.network, self.config, self.steps = network, config, steps
        _set_dropout(network, config.dropout)
        self.parameters = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.base = _copy(self.parameters)
        self.soup: dict[str, torch.Tensor] | None = None  # sum over the finished runs
        self._begin()

    def _begin(self) -> None:
        import torch

        decayed = [weight for weight in self.parameters.values() if weight.ndim >= 2]
        free = [weight for weight in self.parameters.values() if weight.ndim < 2]  # biases, norms: no decay
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        self.average = _copy(self.parameters) if self.config.average else None

    def next_run(self) -> None:
        """Put the finished run into the soup and go back to the base."""
        self._stir()
        _assign(self.parameters, self.base)
        self._begin()

    def _stir(self) -> None:
        done = self.average if self.average is not None else self.parameters
        self.soup = {
            name: weight.detach() + (self.soup[name] if self.soup is not None else 0) for name, weight in done.items()
        }

    def update(self, step: int) -> None:
        """Apply the gradients of step `step` of the run: clip, step, average."""
        import torch

        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_norm)
        rate = learning_rate_at(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            decay = min(self.config.average, (1 + step) / (10 + step))  # short memory while it is young
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything to store, by "kind/parameter name"."""
        found = {f"weight/{name}": weight.detach() for name, weight in self.parameters.items()}
        for name, weight in self.parameters.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                found[f"{key}/{name}"] = value
        for kind, tensors in (("average", self.average), ("soup", self.soup)):
            found |= {f"{kind}/{name}": weight for name, weight in (tensors or {}).items()}
        return found

    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Take over a checkpoint, if there is one, and return the step to go on with."""
        if checkpoint is None:
            return 0
        _assign(self.parameters, _part(checkpoint, "weight"))
        moments = {kind: _part(checkpoint, kind) for kind in ("step", "exp_avg", "exp_avg_sq")}
        for name, weight in self.parameters.items():
            if name in moments["step"]:
                state = {kind: tensors[name] for kind, tensors in moments.items()}
                self.optimizer.state[weight] = {
                    kind: value if kind == "step" else value.to(weight.device) for kind, value in state.items()
                }
        device = self.network.device
        if self.average is not None:
            stored = _part(checkpoint, "average")
            self.average = {name: stored[name].to(device) for name in self.parameters}  # the order counts
        self.soup = {name: weight.to(device) for name, weight in _part(checkpoint, "soup").items()} or None
        return checkpoint.step

    def finish(self) -> None:
        """Put the mean of all runs, mixed with the base's share, into the network."""
        import torch

        self._stir()
        assert self.soup is not None
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(self.soup[name] / self.config.runs)
                weight.lerp_(self.base[name], self.config.base_weight)


def _copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _assign(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in parameters.items():
            weight.copy_(values[name])


def _part(checkpoint: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}


class _Run:
    """One pass through the steps that are left."""

    def __init__(
        self,
        data: TrainingSet,
        tokens: Tokens,
        config: TrainingConfig,
        precision: Precision,
        state: _State,
        store: Path,
        key: str,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.data, self.tokens, self.config, self.precision = data, tokens, config, precision
        self.state, self.store, self.key, self.on_progress = state, store, key, on_progress
        self.tokens_seen = self.padded = 0
        self.seconds = 0.0

    def go(self, start: int) -> list[tuple[int, float]]:
        """Run steps `start` and later, over all runs; return (step, loss)."""
        history: list[tuple[int, float]] = []
        began = saved = time.monotonic()
        every = self.state.steps * self.config.runs
        for step, rows in self._steps():
            if step < start:
                continue
            if step and step % self.state.steps == 0:
                self.state.next_run()
            self.state.network.train()
            loss = self._step(step, assemble([self.data.rows[row] for row in rows]))
            history.append((step, loss))
            now = time.monotonic()
            self.seconds = now - began
            if now - saved >= self.config.checkpoint_seconds and step + 1 < every:
                write_checkpoint(self.store, Checkpoint(step + 1, self.state.tensors()), self.key)
                saved = time.monotonic()
            self._report(step, start, loss, every)
        return history

    def _steps(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (step from 0, rows) of all runs and epochs; each run has its own order."""
        step = 0
        for run in range(self.config.runs):
            for epoch in range(self.config.epochs):
                seed = _seed(self.config.seed, run)
                for rows in order_batches(self.data.rows, size=self.config.batch, seed=seed, epoch=epoch):
                    yield step, rows
                    step += 1

    def _step(self, step: int, batch: Batch) -> float:
        import torch

        torch.manual_seed(_seed(self.config.seed, 0, step))  # dropout depends on the step, not on the past
        network = self.state.network
        with autocast(network, self.precision):
            vectors = embed(network, self.tokens, batch.texts, budget=self.config.token_budget)
        vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
        loss = batch_loss(vectors, batch, self.config)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise EmbedsmithError(
                f"the loss of step {step} is {value}",
                expected="a finite loss",
                action="lower --learning-rate, or train with --precision fp32",
            )
        if loss.requires_grad:
            torch.autograd.backward(loss)
            self.state.update(step % self.state.steps)
        self._count(batch)
        return value

    def _count(self, batch: Batch) -> None:
        from embedsmith.tokens import cut_microbatches

        lengths = self.tokens.lengths[batch.texts]
        self.tokens_seen += int(lengths.sum())
        blocks = cut_microbatches(lengths, self.config.token_budget)
        self.padded += sum(int(lengths[block].max()) * len(block) for block in blocks)

    def _report(self, step: int, start: int, loss: float, every: int) -> None:
        if self.on_progress is None:
            return
        left = (every - step - 1) * self.seconds / (step + 1 - start)
        rate = self.tokens_seen / max(self.seconds, 1e-9)
        self.on_progress(Progress(step + 1, every, loss, rate, left))


def _seed(*parts: int) -> int:
    """Return a seed that differs wherever any part does."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _count_steps(data: TrainingSet, config: TrainingConfig) -> int:
    """Return the steps of one run. Their number may not depend on the order, or runs would differ in length."""
    return config.epochs * count_batches(data.rows, size=config.batch)


def _set_dropout(network: SentenceTransformer, dropout: float | None) -> None:
    import torch

    if dropout is None:
        return
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout


def _describe_truncation(tokens: Tokens) -> tuple[str, ...]:
    cut = int(tokens.truncated.sum())
    return (f"{cut} of {len(tokens)} texts are longer than the model reads and were cut",) if cut else ()


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def config_from(values: Mapping[str, object]) -> TrainingConfig:
    """Return the configuration with `values` over the defaults; an unknown key is an error."""
    known = {item.name for item in fields(TrainingConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigurationError(
            f"unknown training option: {', '.join(unknown)}", expected=f"any of {', '.join(sorted(known))}"
        )
    return TrainingConfig(**values)  # type: ignore[arg-type]
