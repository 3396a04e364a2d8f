"""What an optimisation is told and chooses: ranges of its values, its precision, the time between checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from embedsmith import optimization
from embedsmith.checkpoints import Checkpoint, write_checkpoint
from embedsmith.config import TrainingConfig
from embedsmith.errors import ConfigurationError
from embedsmith.optimization import optimize, pause_after
from steps import make_task


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 2.0),
        ("logistic_scale", 0.0),
        ("logistic_bias", 1.5),
        ("seed", -1),
        ("checkpoint_seconds", -1.0),
        ("average", float("nan")),
    ],
)
def test_a_value_out_of_its_range_is_refused_in_words(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is") as told:
        TrainingConfig(**{name: value})
    assert " to " in told.value.expected


def test_the_dearer_a_checkpoint_the_rarer() -> None:
    assert pause_after(took=0.1, asked=30.0) == 30.0
    assert pause_after(took=48.0, asked=30.0) == 960.0
    assert pause_after(took=48.0, asked=0.0) == 0.0  # after every step, as asked


@pytest.mark.parametrize(("seconds", "saves"), [(0.5, [2, 12, 22]), (0.0, list(range(1, 24)))])
def test_checkpoints_cost_a_twentieth_of_the_run_at_most(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saves: list[int]
) -> None:
    """By a clock of our own a step takes .25 s and a checkpoint .125 s: 2.5 s lie between them, not .5 as asked."""
    told = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: told["now"])
    seen: list[int] = []

    def write(path: Path, checkpoint: Checkpoint, key: str) -> None:
        seen.append(checkpoint.step)
        told["now"] += 0.125
        write_checkpoint(path, checkpoint, key)

    monkeypatch.setattr(optimization, "write_checkpoint", write)
    config = TrainingConfig(epochs=24, checkpoint_seconds=seconds)
    task = make_task(str(tiny_model), "logistic", config)
    accumulate = task.accumulate

    def take(rows: Any, seed: int) -> Any:
        told["now"] += 0.25
        return accumulate(rows, seed)

    monkeypatch.setattr(task, "accumulate", take)
    optimize(task, config, store=tmp_path / "store", key="")
    assert seen == saves
