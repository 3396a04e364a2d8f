"""Checkpoints of a training run: one safetensors file, replaced atomically; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedsmith.artifacts import fingerprint, remove_leftovers, replacing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` steps; tensors by "kind/parameter name", and what the task remembers of them.

    Attributes:
        settings: those of memory, which may differ between runs of one key.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    memory: str = ""
    settings: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """Whose checkpoint a file is, and after how many steps it was written."""

    key: str
    step: int
    settings: str = ""


def write_checkpoint(path: Path, checkpoint: Checkpoint, key: str) -> None:
    """Write a checkpoint that is whole or absent; `key` names the run it belongs to."""
    from safetensors.torch import save_file

    remove_leftovers(path)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    about = {"step": str(checkpoint.step), "key": key, "memory": checkpoint.memory, "settings": checkpoint.settings}
    with replacing(path) as new:
        save_file(tensors, str(new), metadata=about)


def read_checkpoint(path: Path, key: str) -> Checkpoint | None:
    """Return the checkpoint of the run `key`, or None when there is none or it belongs to another run."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(int(about["step"]), tensors, about.get("memory", ""), about.get("settings", ""))
    except SafetensorError:
        return None


def read_about(path: Path) -> About | None:
    """Return whose checkpoint lies at `path`, or None when there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="np") as file:
            about = file.metadata() or {}
    except SafetensorError:
        return None
    return About(about.get("key", ""), int(about.get("step", "0")), about.get("settings", ""))


def claim_checkpoint(path: Path, key: str) -> None:
    """Make `path` that of the run `key`: another run's checkpoint goes to its own name, and this one's comes back."""
    found = read_about(path)
    if found is not None and found.key != key:
        path.replace(aside(path, found.key))
    if aside(path, key).exists() and not path.exists():
        aside(path, key).replace(path)


def aside(path: Path, key: str) -> Path:
    """Return where the checkpoint of the run `key` lies while another run has `path`."""
    return path.with_name(f"{path.name}.{fingerprint(key)[:8]}")


def remove_checkpoint(path: Path) -> None:
    """Delete the checkpoint of a finished run, and what a kill left of one that was being written."""
    path.unlink(missing_ok=True)
    remove_leftovers(path)
