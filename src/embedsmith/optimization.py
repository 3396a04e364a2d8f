"""Optimisation: a task and its configuration in, the best weights out, whatever kills the process on the way.

Everything that is random depends on (seed, run, step) only, so a killed run resumes to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from embedsmith.checkpoints import Checkpoint, claim_checkpoint, read_checkpoint, write_checkpoint
from embedsmith.config import TrainingConfig, describe_memory
from embedsmith.devices import Alone, Devices, repeatable, require_shared
from embedsmith.errors import ConfigurationError, EmbedsmithError, ModelRefused
from embedsmith.sharding import gather_whole, spread_like
from embedsmith.tokens import Index, cut_microbatches

if TYPE_CHECKING:
    import torch

RATES = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout")  # as layers call theirs
VISITS = 10  # times that a run is looked at on its way
SAVING = 20  # a checkpoint's seconds are paid for by so many seconds of training
REFUSED = 1  # what the first process tells the others when there will be no model


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that went through a network: real ones, and with the padding among them."""

    tokens: int = 0
    padded: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.padded + other.padded)


class Task(Protocol):
    """What is trained: a network, the batches of an epoch, and the loss of a batch."""

    network: torch.nn.Module

    def count(self) -> int:
        """Return the steps of an epoch; the same for every seed, or runs would differ in length."""
        ...

    def order(self, seed: int, epoch: int) -> Sequence[Sequence[int]]:
        """Return the rows of each batch; seed and epoch alone decide."""
        ...

    def accumulate(self, rows: Sequence[int], seed: int) -> tuple[float, Work]:
        """Leave the gradients of a batch's loss in the network; return the loss and what it took.

        Of several processes each adds its share of gradients and loss: their sums are those of the batch. Under
        sharding the gradients are those of the batch already, each process has its share of the numbers.
        """
        ...

    def recall(self) -> str:
        """Return what the task remembers of the steps so far; a checkpoint keeps it."""
        ...

    def remember(self, memory: str) -> None:
        """Take over what a killed run remembered."""
        ...


@dataclass(frozen=True, slots=True)
class Optimized:
    """What an optimisation did; the weights are in the task's network."""

    losses: tuple[tuple[int, float], ...]
    steps: int
    resumed_from: int
    seconds: float
    work: Work


def optimize(
    task: Task,
    config: TrainingConfig,
    *,
    store: Path,
    key: str,
    on_progress: Callable[[Progress], None] | None = None,
    devices: Devices | None = None,
    visit: Callable[[int], None] | None = None,
    choose: Callable[[Ends], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Optimized:
    """Run all steps of a task and leave the final weights in its network; a checkpoint in `store` is gone on from.

    Args:
        visit: called with the number of steps done, about `VISITS` times and at the end, while the network is in eval
            mode; the first process only. What it draws or reads changes nothing in the run.
        choose: picks the final weights among `Ends` and puts them into the network; the first process only. Without
            it they are the soup, else the running average, else the last weights, interpolated with `base_weight`.
            When it raises ModelRefused, a checkpoint of the whole run is kept: the next call trains nothing again.
        say: is told where a run goes on that was stopped; the first process only.

    Raises:
        EmbedsmithError: the loss or a gradient is not finite. ModelRefused: from `choose`.
        ConfigurationError: the configuration is that of sharded weights, and this task has them whole.
    """
    devices = devices or Alone()
    if config.sharded and not devices.sharded:
        raise ConfigurationError("sharded is true, and this training has its weights whole", action="leave it out")
    state = _State(task.network, config, steps=count_steps(task, config))
    if devices.rank == 0:
        claim_checkpoint(store, key)
    devices.agree(0)
    found = read_checkpoint(store, key)
    start = require_shared(state.restore(found), devices)
    if found is not None:
        task.remember(found.memory)
    if start and devices.rank == 0:
        say(f"goes on at step {start} of {state.steps * config.runs}: the run was stopped there ({store})")
    run = _Run(task, config, state, store, key, on_progress, devices, visit)
    with repeatable(next(task.network.parameters()).device.type):
        losses = run.go(start)
    ends = state.ends()
    try:
        (choose if choose is not None and devices.rank == 0 else partial(_settle, config))(ends)
    except ModelRefused:
        ends.put("tuned", 1.0)
        last = Checkpoint(state.steps * config.runs, state.tensors(), task.recall(), describe_memory(config))
        write_checkpoint(store, last, key)
        devices.agree(REFUSED)
        raise
    if devices.agree(0) == REFUSED:
        raise ModelRefused("the first process refused the model", action="read what it says")
    return Optimized(tuple(losses), state.steps * config.runs, start, run.seconds, run.work)


def count_steps(task: Task, config: TrainingConfig) -> int:
    """Return the steps of one run."""
    whole = config.epochs * task.count()
    return min(whole, config.steps) if config.steps else whole


def checkpoint_beside(out: Path | str) -> Path:
    """Return where the checkpoint of a run into `out` lies until the run is done."""
    return Path(out).with_name(f"{Path(out).name}.checkpoint")


def pause_after(took: float, asked: float) -> float:
    """Return the seconds until the next checkpoint when the last one took `took` and the user asked for `asked`.

    A checkpoint of 2 billion fully trained weights has 24 GB: at 500 MB/s that is 48 s, so 960 s, not 30.
    """
    return max(asked, SAVING * took) if asked else 0.0


def visited_steps(steps: int) -> frozenset[int]:
    """Return after which of `steps` steps a run is looked at: about `VISITS`, evenly spaced, the last among them."""
    return frozenset(-(-steps * part // VISITS) for part in range(1, VISITS + 1))


def learning_rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of `step` (from 0) of `steps`: linear warm-up, then the schedule to 0."""
    warm = round(steps * config.warmup)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    share = (step - warm) / max(steps - warm, 1)
    factor = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
    return config.learning_rate * factor[config.schedule]


@dataclass(frozen=True, slots=True)
class Ends:
    """The candidates for the final weights of a run; `put` interpolates between the base and one of them.

    Attributes:
        parameters: the network's own; `put` changes them.
        base: what they were before the first step.
        tensors: by name: "tuned" (the last weights of the last run), "average" (their running average, where
            `average` is set), "soup" (the mean over the runs, where there are several). The last one is the default.
    """

    parameters: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    tensors: Mapping[str, Mapping[str, torch.Tensor]]

    @property
    def default(self) -> str:
        """The end that is taken when nobody chooses."""
        return tuple(self.tensors)[-1]

    def put(self, end: str, share: float) -> None:
        """Put base + share · (end − base) into the network; share 0 is the base and 1 the end, bit for bit.

        An adapter adds B · A to a frozen matrix, and B is 0 in the base: B alone is scaled, so the change is, exactly.
        """
        import torch

        with torch.no_grad():
            for name, weight in self.parameters.items():
                last = self.tensors[end][name]
                weight.copy_(last if ".lora_A." in name else self.base[name])
                if ".lora_A." not in name:
                    torch._foreach_lerp_([weight], [last], share)  # weights that are shared out know only this one


def _settle(config: TrainingConfig, ends: Ends) -> None:
    ends.put(ends.default, 1 - (config.base_weight or 0.0))


class _State:
    """The weights, the optimiser and the averages: all that a checkpoint holds."""

    def __init__(self, network: torch.nn.Module, config: TrainingConfig, *, steps: int) -> None:
        self.network, self.config, self.steps = network, config, steps
        set_dropout(network, config.dropout)
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

    def sum_gradients(self, devices: Devices) -> None:
        """Add up the gradients over all processes; a weight that none of them used keeps none, and no decay."""
        import torch

        weights = list(self.parameters.values())
        used = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
        devices.sum([used])
        summed = [weight for weight, count in zip(weights, used.tolist(), strict=True) if count]
        for weight in summed:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        devices.sum(weight.grad for weight in summed if weight.grad is not None)

    def clip(self) -> float:
        """Cap the gradients and return the norm that they had."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_norm)
        # of weights that are shared out, each process has its part of the sum only
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def update(self, step: int) -> None:
        """Apply the capped gradients of step `step` of the run: step, average."""
        import torch

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
        _assign(self.parameters, self._stored(checkpoint, "weight"))
        moments = {kind: self._stored(checkpoint, kind) for kind in ("exp_avg", "exp_avg_sq")}
        for name, count in _part(checkpoint, "step").items():
            weight = self.parameters[name]
            state = {kind: tensors[name] for kind, tensors in moments.items()}
            self.optimizer.state[weight] = {"step": count.to(weight.device), **state}
        if self.average is not None:
            self.average = self._stored(checkpoint, "average")
        self.soup = self._stored(checkpoint, "soup") or None
        return checkpoint.step

    def _stored(self, checkpoint: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
        """Return what is stored of a kind, in the order of the parameters and cut as they are."""
        found = _part(checkpoint, kind)
        return {name: spread_like(found[name], weight) for name, weight in self.parameters.items() if name in found}

    def ends(self) -> Ends:
        """Return the weights that the run leaves to choose among."""
        found: dict[str, dict[str, torch.Tensor]] = {"tuned": _copy(self.parameters)}
        if self.average is not None:
            found["average"] = self.average
        if self.config.runs > 1:
            last = self.average if self.average is not None else self.parameters
            assert self.soup is not None
            found["soup"] = {
                name: (weight.detach() + self.soup[name]) / self.config.runs for name, weight in last.items()
            }
        return Ends(self.parameters, self.base, found)


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
        task: Task,
        config: TrainingConfig,
        state: _State,
        store: Path,
        key: str,
        on_progress: Callable[[Progress], None] | None,
        devices: Devices,
        visit: Callable[[int], None] | None,
    ) -> None:
        self.task, self.config, self.state = task, config, state
        self.store, self.key, self.on_progress = store, key, on_progress
        self.devices = devices
        self.visit = visit if devices.rank == 0 else None
        self.visits = visited_steps(state.steps * config.runs)
        self.work = Work()
        self.began = self.seconds = 0.0

    def go(self, start: int) -> list[tuple[int, float]]:
        """Run steps `start` and later, over all runs; return (step, loss)."""
        history: list[tuple[int, float]] = []
        self.began = saved = time.monotonic()
        pause = self.config.checkpoint_seconds
        every = self.state.steps * self.config.runs
        for step, rows in self._steps():
            if step < start:
                continue
            if step and step % self.state.steps == 0:
                self.state.next_run()
            self.state.network.train()
            loss = self._step(step, rows)
            history.append((step, loss))
            self._visit(step + 1)  # before the checkpoint, or a kill between them would lose it
            now = time.monotonic()
            self.seconds = now - self.began
            if step + 1 < every and self._is_due(now - saved, pause):
                self._save(step + 1)
                saved = time.monotonic()
                pause = pause_after(saved - now, self.config.checkpoint_seconds)
            self._report(step, start, loss, every)
        return history

    def _is_due(self, seconds: float, pause: float) -> bool:
        """Say whether this process has to take part in a checkpoint; the first one's clock counts."""
        due = seconds >= pause
        if self.devices.sharded:
            return bool(self.devices.agree(int(due)))
        return due and self.devices.rank == 0

    def _save(self, step: int) -> None:
        first = self.devices.rank == 0
        tensors = gather_whole(self.state.tensors(), keep=first)
        if first:
            settings = describe_memory(self.config)
            write_checkpoint(self.store, Checkpoint(step, tensors, self.task.recall(), settings), self.key)

    def _visit(self, done: int) -> None:
        import torch

        if self.visit is None or done not in self.visits:
            return
        came = time.monotonic()
        device = next(self.state.network.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.state.network.eval()
            self.visit(done)
        self.began += time.monotonic() - came  # a look is no part of the run's speed

    def _steps(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield (step from 0, rows) of all runs and epochs; each run has its own order."""
        for run in range(self.config.runs):
            seed, start = run_seed(self.config.seed, run), run * self.state.steps
            batches = (rows for epoch in range(self.config.epochs) for rows in self.task.order(seed, epoch))
            yield from enumerate(islice(batches, self.state.steps), start)

    def _step(self, step: int, rows: Sequence[int]) -> float:
        # What is random within a step depends on the step, not on the past.
        value, work = self.task.accumulate(rows, _seed(self.config.seed, 0, step))
        _require_finite("loss", step, value)
        if self.devices.size > 1 and not self.devices.sharded:  # shares are summed on their way back
            self.state.sum_gradients(self.devices)
        _require_finite("gradient", step, self.state.clip())  # before a weight is changed
        self.state.update(step % self.state.steps)
        self.work += work
        return value

    def _report(self, step: int, start: int, loss: float, every: int) -> None:
        if self.on_progress is None:
            return
        left = (every - step - 1) * self.seconds / (step + 1 - start)
        rate = self.work.tokens / max(self.seconds, 1e-9)
        self.on_progress(Progress(step + 1, every, loss, rate, left))


def _require_finite(what: str, step: int, value: float) -> None:
    if not math.isfinite(value):
        raise EmbedsmithError(
            f"the {what} of step {step} is {value}",
            expected=f"a finite {what}",
            action="lower --learning-rate, or train with --precision fp32",
        )


def _seed(*parts: int) -> int:
    """Return a seed that differs wherever any part does."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def run_seed(seed: int, run: int) -> int:
    """Return what the order of the rows of a run (from 0) follows from."""
    return _seed(seed, run)


def set_dropout(network: torch.nn.Module, dropout: float | None) -> int:
    """Set every rate of dropout in a network, None leaves them; return how many it has.

    Some layers hold a module for it, others (Llama, OPT, ModernBERT) a number of their own.
    """
    import torch

    places = [
        (module, rate)
        for name, module in network.named_modules()
        if "lora_dropout" not in name  # adapters have a rate of their own
        for rate in (("p",) if isinstance(module, torch.nn.Dropout) else RATES)
        if type(vars(module).get(rate)) in (int, float)
    ]
    for module, rate in places if dropout is not None else ():
        setattr(module, rate, dropout)
    return len(places)


def count_work(lengths: Index, budget: int) -> Work:
    """Return the tokens of texts of these lengths, and with the padding of their micro-batches."""
    blocks = cut_microbatches(lengths, budget)
    return Work(int(lengths.sum()), sum(int(lengths[block].max()) * len(block) for block in blocks))
