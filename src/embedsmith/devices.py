"""Devices: the processes that work on one run together, started by torchrun or `accelerate launch`.

Every process knows the whole batch and encodes its share of the texts; embeddings are gathered, so negatives are
shared, and gradients are summed. So many processes give what one gives with the same batch. Processes find each other
and their devices through accelerate; one alone needs neither. Each holds all weights, or its share (`sharding`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError, MissingPartError
from embedsmith.machine import find_device

if TYPE_CHECKING:
    import torch

    from embedsmith.tokens import Index

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
Made = TypeVar("Made")
BUCKET = 2**23  # numbers that are summed across processes at once: 32 MB in float32


class Devices(Protocol):
    """What a run asks of the processes beside it."""

    rank: int
    size: int
    sharded: bool  # each process holds its share of the weights, and all run the network equally often

    def gather(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the rows of all processes (sum(counts), d) in the order of ranks; `own` is (counts[rank], d)."""
        ...

    def sum(self, values: Iterable[torch.Tensor]) -> None:
        """Add up each tensor over all processes, in place."""
        ...

    def agree(self, value: int) -> int:
        """Return the first process's value (a broadcast); no process goes on before all are here."""
        ...


class Alone:
    """One process."""

    rank, size, sharded = 0, 1, False

    def gather(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:  # noqa: ARG002
        """Return `own`."""
        return own

    def sum(self, values: Iterable[torch.Tensor]) -> None:
        """Leave everything as it is."""

    def agree(self, value: int) -> int:
        """Return `value`."""
        return value


class Together:
    """The processes of a launcher, on one machine or many."""

    def __init__(self, *, sharded: bool = False) -> None:
        self.sharded = sharded
        try:
            from accelerate import PartialState
        except ImportError:
            raise MissingPartError(
                "several processes work on this run, and accelerate is not installed",
                action="pip install 'embedsmith[train]'",
            ) from None
        from torch import distributed

        self.device = PartialState(cpu=find_device() == "cpu").device
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def gather(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the rows of all processes; they may have unequal numbers of them."""
        import torch
        from torch import distributed

        widest = max(counts)
        padded = own.new_zeros((widest, own.shape[1]))
        padded[: len(own)] = own
        everyone = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(everyone, padded)
        return torch.cat([rows[:number] for rows, number in zip(everyone, counts, strict=True)])

    def sum(self, values: Iterable[torch.Tensor]) -> None:
        """Add up in buckets, because each exchange has a price of its own."""
        import torch
        from torch import distributed

        for bucket in _buckets(values):
            flat = torch.cat([value.reshape(-1) for value in bucket])
            distributed.all_reduce(flat)
            for value, summed in zip(bucket, torch.split(flat, [value.numel() for value in bucket]), strict=True):
                value.copy_(summed.view_as(value))

    def agree(self, value: int) -> int:
        """Return the first process's value."""
        import torch
        from torch import distributed

        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        distributed.broadcast(shared, src=0)
        return int(shared.item())


def count_processes() -> int:
    """Return how many processes a launcher started for this run, on all machines; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Say whether this is the one of them that speaks."""
    return os.environ.get("RANK", "0") == "0"


def open_devices(*, sharded: bool = False) -> Devices:
    """Return the processes of this run: those a launcher started, or this one alone.

    Raises:
        ConfigurationError: the weights are to be sharded, and there is one process.
    """
    if count_processes() > 1:
        return Together(sharded=sharded)
    if sharded:
        raise ConfigurationError(
            "sharded is true, and this is the only process of the run",
            expected="two processes or more, which share the weights",
            action="torchrun --nproc-per-node 2 -m embedsmith train …, or leave sharded out",
        )
    return Alone()


@contextlib.contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Have torch take the kernels that give the same bits each time, and what was set before afterwards.

    A CPU's do that by themselves with the same number of threads. On a GPU ("cuda") what has no such kernel warns and
    runs all the same. The workspace is what NVIDIA asks for where streams share a cuBLAS handle.
    """
    if device != "cuda":
        yield
        return
    import torch

    was, lenient = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=lenient or not was)  # who asked for errors gets errors
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=lenient)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def deal(weights: Index, size: int) -> list[list[int]]:
    """Return which of the pieces each of `size` processes takes: the heaviest first, each to who has least.

    Weights (5, 4, 3, 2) for two: [[0, 3], [1, 2]], seven each.
    """
    hands: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for piece in (-weights).argsort(kind="stable").tolist():
        lightest = loads.index(min(loads))
        hands[lightest].append(piece)
        loads[lightest] += int(weights[piece])
    return [sorted(hand) for hand in hands]


def require_shared(found: int, devices: Devices) -> int:
    """Return `found` when all processes found the same, as they do when they read the same file.

    Raises:
        EmbedsmithError: this process sees another file than the first.
    """
    first = devices.agree(found)
    if first != found:
        raise EmbedsmithError(
            f"process {devices.rank} found a checkpoint at step {found}, the first process at step {first}",
            expected="an output folder that all machines share",
            action="put --out on a shared file system",
        )
    return found


def make_once(read: Callable[[], Made | None], make: Callable[[], Made], folder: Path, devices: Devices) -> Made:
    """Return what `read` finds in `folder`; where that is nothing, the first process makes it, and all others read it.

    Args:
        make: gives what was made, and leaves it in `folder` where another process will read it.

    Raises:
        InputError: this process does not see what the first one left.
    """
    found = read()
    if found is None and devices.rank == 0:
        found = make()
    devices.agree(0)
    found = read() if found is None else found
    if found is None:
        raise InputError(
            f"process {devices.rank} does not see {folder}",
            expected="an output folder that all machines share",
            action="put --out on a shared file system",
        )
    return found


def _buckets(values: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    held = 0
    for value in values:
        if bucket and held + value.numel() > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(value)
        held += value.numel()
    if bucket:
        yield bucket
