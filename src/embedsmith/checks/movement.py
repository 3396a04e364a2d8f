"""While it runs, and at its end: a run that diverges, or changes nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embedsmith.checks.findings import Finding, Outcome
from embedsmith.config import TrainingConfig
from embedsmith.errors import ConfigurationError

FIRST = 4  # steps that tell the loss before training; a run may diverge in its warm-up
WINDOW = 10  # steps whose mean is compared with that of the first ones; small batches are noisy


class Watch:
    """Stops a run that diverges: a loss far above its start, or embeddings that fall together to one point.

    Losses are compared within the sources of a batch, since those of different sources have different sizes. A resumed
    run remembers what the killed one had seen, so it stops where that would have stopped.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._losses: dict[tuple[int, ...], list[float]] = {}
        self._recent: dict[tuple[int, ...], deque[float]] = {}
        self._first: list[float] = []
        self._spreads: deque[float] = deque(maxlen=WINDOW)

    def recall(self) -> dict[str, Any]:
        """Return what was seen, as JSON knows it."""
        return {
            "steps": self._steps,
            "losses": [[list(sources), found] for sources, found in self._losses.items()],
            "recent": [[list(sources), list(found)] for sources, found in self._recent.items()],
            "first": self._first,
            "spreads": list(self._spreads),
        }

    def remember(self, seen: Mapping[str, Any]) -> None:
        """Take over what `recall` gave."""
        self._steps = int(seen["steps"])
        self._losses = {tuple(sources): list(found) for sources, found in seen["losses"]}
        self._recent = {tuple(sources): deque(found, maxlen=WINDOW) for sources, found in seen["recent"]}
        self._first = list(seen["first"])
        self._spreads = deque(seen["spreads"], maxlen=WINDOW)

    def see(self, loss: float, closeness: float, sources: tuple[int, ...] = (0,)) -> None:
        """Take in a step.

        Args:
            closeness: mean cosine of any two texts of the batch (`mean_cosine`); NaN where there are too few.

        Raises:
            ConfigurationError: the run diverges.
        """
        self._steps += 1
        if not math.isfinite(loss):
            return  # the optimisation says so itself
        self._see_loss(loss, sources)
        if math.isfinite(closeness):
            self._see_closeness(closeness)

    def _see_loss(self, loss: float, sources: tuple[int, ...]) -> None:
        first = self._losses.setdefault(sources, [])
        if len(first) < FIRST:
            first.append(loss)
            return
        recent = self._recent.setdefault(sources, deque(maxlen=WINDOW))
        recent.append(loss)
        start, now = float(np.mean(first)), float(np.mean(recent))
        if len(recent) == WINDOW and now > 4 * start + 1:
            raise self._stop(f"the loss rose from {start:.3g} (first {FIRST} steps) to {now:.3g} (last {WINDOW})")

    def _see_closeness(self, closeness: float) -> None:
        apart = 1 - closeness
        if len(self._first) < 2:  # more would be of weights that have moved already
            self._first.append(apart)
            return
        self._spreads.append(apart)
        start, now = float(np.mean(self._first)), float(np.mean(self._spreads))
        if len(self._spreads) == WINDOW and max(self._spreads) < 0.02 and now < start / 10:
            raise self._stop(
                f"all embeddings fall together: the mean cosine of two texts rose from {1 - start:.3f} to {1 - now:.4f}"
            )

    def _stop(self, found: str) -> ConfigurationError:
        return ConfigurationError(
            f"{found} after {self._steps} steps [diverged]",
            expected="a loss that falls and texts that stay apart",
            action="lower --learning-rate (a tenth), or raise warmup; then check the labels",
        )


def mean_cosine(total: float, count: int) -> float:
    """Return the mean cosine of two different rows of `count` unit rows whose sum has squared length `total`.

    (‖Σ e‖² − n) / (n (n − 1)): two rows at right angles have 2, so 0. NaN below four rows.
    """
    return (total - count) / (count * (count - 1)) if count >= 4 else math.nan


def check_movement(moved: float, losses: Sequence[tuple[int, float]], config: TrainingConfig) -> Iterator[Outcome]:
    """Yield a run that changed nothing.

    Args:
        moved: length of the weights' change over their length.
        losses: (step, loss) of the run.
    """
    if moved >= 1e-6 or config.base_weight == 1 or not losses:
        return
    first, last = losses[0][1], losses[-1][1]
    yield Finding(
        "nothing-learnt",
        "warning",
        found=f"the weights moved by {moved:.1e} of their length in {len(losses)} steps at learning rate "
        f"{config.learning_rate:g}; the loss went from {first:.4g} to {last:.4g}",
        expected="a change of 1e-4 or more",
        action="raise --learning-rate (5e-5 tunes encoders, 1e-4 to 2e-4 adapters) or train for more steps",
        place="configuration",
    )
