"""Retention: what a model still does in general while it is tuned, and how much of the tuning its weights keep.

Guards (general rows) and validation rows (the domain's) are scored on the way. At the end the weights on the line from
the base to the result are scored, and the best on validation is taken among those that keep every guard. All figures
are set against the base on the same rows, with the intervals of a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedsmith.artifacts import fingerprint, read_jsonl, write_json, write_jsonl
from embedsmith.batches import Prompts, prompts_of
from embedsmith.choices import Precision
from embedsmith.encoder import Side
from embedsmith.encoder import normalize as to_unit_rows
from embedsmith.errors import InputError, ModelRefused, require
from embedsmith.examples import Example
from embedsmith.guards import VALIDATION, Measured, Numbering, make_measure, shipped_guards
from embedsmith.metrics import Difference, Estimate, difference, estimate
from embedsmith.networks import autocast, embed, encoding_budget, tokenize_for
from embedsmith.optimization import Ends

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROWS = 1000  # of a set that are looked at; drawn by the seed
RESAMPLES = 500
LOWEST, FINE, COARSE = 0.2, 0.1, 0.2  # shares tried: from LOWEST to 1 in steps of FINE, of COARSE with several `Ends`
NORMAL_95 = 1.96  # half the width of a 95% interval in standard errors
REFINEMENTS = 3  # further shares around the best of them


@dataclass(frozen=True, slots=True)
class Retention:
    """What a tuned model is held against.

    Attributes:
        validation: the domain's rows, of one kind; they choose the weights. () leaves the weights as they were trained.
        guards: rows of general ability by name, each of one kind; None takes those that ship with the package.
        tolerance: how far below the base a guard may be, in its metric (0.01 is one point).
        force: a model that is below its base on validation is written all the same.
        say: hears a line for each look on the way, and the warnings.
        show: called with the path of `retention.json` once it is written.
        distractors: documents that the positives of validation's positive pairs are ranked among besides each other;
            without them a few hundred pairs are too easy a test of retrieval.
        slack: standard errors by which a candidate may be below the best on validation and still count as its equal,
            of which the one farthest from the base is taken then; see `pick`.
    """

    validation: tuple[Example, ...] = ()
    guards: Mapping[str, tuple[Example, ...]] | None = None
    tolerance: float = 0.01
    force: bool = False
    say: Callable[[str], None] = lambda _: None
    show: Callable[[Path], object] = lambda _: None
    distractors: tuple[str, ...] = ()
    slack: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.tolerance <= 1, f"tolerance is {self.tolerance}", "0 to 1")
        require(not self.slack < 0, f"slack is {self.slack}", "0 or more standard errors")

    @property
    def sets(self) -> dict[str, tuple[Example, ...]]:
        """All rows by name: validation's, if there are any, and the guards."""
        guards = shipped_guards() if self.guards is None else self.guards
        return {**({VALIDATION: self.validation} if self.validation else {}), **guards}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one network: on `rows` rows of the set `data`, and its change against the base on the same rows."""

    data: str
    metric: str
    rows: int
    estimate: Estimate
    change: Difference


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that may be taken: base + share · (end − base).

    Attributes:
        end: "base", "tuned", "average" or "soup" (see `optimization.Ends`).
        validation: None without validation rows.
        fall: how far the guard that fell most is below the base; negative when all have risen.
    """

    end: str
    share: float
    validation: Figure | None
    general: tuple[Figure, ...]
    fall: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The weights that were taken, and all that could have been.

    Attributes:
        base: the figures before the first step.
        chosen: the place of the one that was taken among `candidates`.
        searched: the validation rows chose it, so its figures on them are optimistic.
        kept: no guard fell by more than the tolerance.
        worse: it is below the base on the validation rows.
    """

    base: Candidate
    candidates: tuple[Candidate, ...]
    chosen: int
    reason: str
    tolerance: float
    searched: bool
    kept: bool
    worse: bool
    forced: bool

    @property
    def taken(self) -> Candidate:
        """The candidate that was taken."""
        return self.candidates[self.chosen]


# ── What is measured


def read_with(prompts: Prompts, saved: Prompts, alone: str) -> Callable[[Side, str, Example | None], str]:
    """Return how the saved model reads a text on a side: with the prompt saved for it, by itself with `alone`.

    A query with an instruction of its own has that in the place of the saved one.
    """

    before = {"query": saved.query, "document": saved.document, "": alone}

    def read(side: Side, text: str, example: Example | None) -> str:
        if side == "query" and example is not None and getattr(example, "instruction", None):
            return prompts_of(example, prompts)[0] + text
        return before[side] + text

    return read


# ── On the way, and at the end


class Keeper:
    """Scores a network while it is trained, and at the end selects its weights on the line from base to result.

    `watch.jsonl` (the figures on the way) and `retention.json` (the choice) are written into the folder above the
    model's.

    Raises:
        InputError: validation or guards that cannot be scored.
    """

    def __init__(
        self,
        network: SentenceTransformer,
        retention: Retention,
        *,
        prompts: Prompts,
        saved: Prompts,
        alone: str,
        precision: Precision,
        base_weight: float | None,
        out: Path,
        key: str,
        seed: int,
    ) -> None:
        self.network, self.retention, self.precision = network, retention, precision
        self.base_weight = base_weight
        self.log, self.record = out.parent / "watch.jsonl", out.parent / "retention.json"
        sets = retention.sets
        texts = Numbering(read_with(prompts, saved, alone))
        self.measures = [
            make_measure(
                name,
                rows,
                texts.place,
                most=ROWS,
                resamples=RESAMPLES,
                seed=seed,
                others=texts.place_documents(retention.distractors if name == VALIDATION else ()),
            )
            for name, rows in sets.items()
        ]
        self.tokens = tokenize_for(network, tuple(texts.places))
        self.before = self._measure()
        self.choice: Choice | None = None
        self.key = fingerprint([key, sets, retention.distractors, retention.tolerance])
        self.history = self._read_log()

    @property
    def visits(self) -> bool:
        """Whether the run is looked at on its way: only with validation rows, since a look costs time."""
        return bool(self.retention.validation)

    @property
    def _searches(self) -> bool:
        return self.visits and self.base_weight is None

    def visit(self, step: int) -> None:
        """Score the network after `step` steps, write it to the log and say it; a guard that fell is said once."""
        now = self._candidate("tuned", 1.0)
        self.history = [row for row in self.history if row["step"] < step]
        warned = {name for row in self.history for name in row["warned"]}
        fallen = [figure for figure in now.general if self._fell(figure) and figure.data not in warned]
        self._log(step, now, tuple(figure.data for figure in fallen))
        self.retention.say(f"step {step:,}: {', '.join(map(_brief, _figures(now)))}")
        for figure in fallen:
            self.retention.say(f"warning: at step {step:,} {_describe_fall(figure, self.retention.tolerance)}")

    def choose(self, ends: Ends) -> None:
        """Put the weights into the network that do best on validation and keep every guard; write what was compared.

        Raises:
            ModelRefused: they are below the base on the validation rows, and nobody forces them.
        """
        if self._searches:
            self.retention.say(f"choosing on {VALIDATION} how much of the tuning the weights keep")
        self.choice = choice = self._choose(ends)
        taken = choice.taken
        ends.put(taken.end, taken.share)
        write_json(self.record, choice)
        self.retention.show(self.record)
        if choice.worse and not choice.forced:
            for line in describe_choice(choice):
                self.retention.say(line)
            raise _refusal(choice, self.record)

    def _choose(self, ends: Ends) -> Choice:
        tolerance = self.retention.tolerance
        searched = self._searches
        found = self._search(ends) if searched else [self._try(ends, ends.default, 1 - (self.base_weight or 0.0))]
        chosen = pick(found, tolerance, slack=self.retention.slack)
        taken = found[chosen]
        return Choice(
            base=self._candidate("base", 0.0, self.before),
            candidates=tuple(found),
            chosen=chosen,
            reason=_reason(found, chosen, tolerance, self.retention.slack) if searched else self._fixed_reason(),
            tolerance=tolerance,
            searched=searched,
            kept=taken.fall <= tolerance,
            worse=taken.validation is not None and taken.validation.change.value < 0,
            forced=self.retention.force,
        )

    def _fixed_reason(self) -> str:
        if self.base_weight is not None:
            return f"base_weight {self.base_weight:g} as asked"
        return "there are no validation rows to choose on: the weights are those of the training"

    def _search(self, ends: Ends) -> list[Candidate]:
        """Return candidates on all lines, then around the best in steps that are halved each time.

        Where no candidate keeps the guards, half of the lowest share is tried instead: nearer to the base.
        """
        step = FINE if len(ends.tensors) == 1 else COARSE
        found = [self._try(ends, end, share) for end in ends.tensors for share in shares(step)]
        most = len(found) + REFINEMENTS
        while len(found) < most:
            step /= 2
            best = found[pick(found, self.retention.tolerance)]
            near = [best.share + step, best.share - step]
            if best.fall > self.retention.tolerance:
                step = min(candidate.share for candidate in found if candidate.end == best.end) / 2
                near = [step]
            around = [round(share, 4) for share in near]
            new = [share for share in around if 0 < share < 1][: most - len(found)]
            found += [self._try(ends, best.end, share) for share in new]
        return found

    def _try(self, ends: Ends, end: str, share: float) -> Candidate:
        ends.put(end, share)
        return self._candidate(end, share)

    def _candidate(self, end: str, share: float, measured: Sequence[Measured] | None = None) -> Candidate:
        measured = self._measure() if measured is None else measured
        figures = [
            Figure(
                measure.data,
                measure.metric,
                measure.rows,
                estimate(now.value, now.draws),
                difference(now.value - was.value, now.draws - was.draws),
            )
            for measure, now, was in zip(self.measures, measured, self.before, strict=True)
        ]
        validation = figures.pop(0) if self.retention.validation else None
        fall = max((-figure.change.value for figure in figures), default=0.0)
        return Candidate(end, share, validation, tuple(figures), fall)

    def _measure(self) -> list[Measured]:
        import torch

        self.network.eval()
        with torch.no_grad(), autocast(self.network, self.precision):
            vectors = embed(
                self.network, self.tokens, np.arange(len(self.tokens)), budget=encoding_budget(self.network.device.type)
            )
        rows = to_unit_rows(vectors.float().cpu().numpy())
        if not np.isfinite(rows).all():
            raise InputError("the network's vectors are not finite", action="lower --learning-rate")
        return [measure.read(rows) for measure in self.measures]

    def _fell(self, figure: Figure) -> bool:
        return figure.change.value < -self.retention.tolerance

    def _read_log(self) -> list[dict[str, Any]]:
        """Return what was seen of this very run before it was killed."""
        rows = [row for _, row in read_jsonl(self.log)] if self.log.is_file() else []
        return rows if rows and rows[0].get("run") == self.key else []

    def _log(self, step: int, now: Candidate, warned: tuple[str, ...]) -> None:
        row = {
            "run": self.key,
            "step": step,
            "domain": now.validation.estimate.value if now.validation else None,
            "general": {figure.data: figure.estimate.value for figure in now.general},
            "change": {figure.data: figure.change for figure in _figures(now)},
            "warned": list(warned),
        }
        self.history.append(row)
        write_jsonl(self.log, self.history)


def shares(step: float) -> list[float]:
    """Return the shares of the tuned weights that are tried first: from `LOWEST` to 1."""
    return [round(LOWEST + step * place, 4) for place in range(round((1 - LOWEST) / step) + 1)]


def pick(candidates: Sequence[Candidate], tolerance: float, *, slack: float = 0.0) -> int:
    """Return the place of the best on validation among those that keep every guard, else of the one that loses least.

    Of equals the one nearest to the base is taken. With `slack`, who is at most so many standard errors of the best
    one's figure below it, and not below the base, is its equal, and the one with most of the tuning is taken: that is
    the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees, §3.4.3), which knows that the
    best of many is partly luck.
    """
    places = range(len(candidates))
    kept = [place for place in places if candidates[place].fall <= tolerance]
    if not kept:
        return min(places, key=lambda place: (candidates[place].fall, candidates[place].share))
    best = max(kept, key=lambda place: (_domain(candidates[place]), -candidates[place].share))
    figure = candidates[best].validation
    if not slack or figure is None:
        return best
    error = (figure.estimate.high - figure.estimate.low) / (2 * NORMAL_95)
    edge = max(figure.estimate.value - slack * error, figure.estimate.value - figure.change.value)
    equals = [place for place in kept if place == best or _domain(candidates[place]) >= edge]
    return max(equals, key=lambda place: (candidates[place].share, _domain(candidates[place])))


def _domain(candidate: Candidate) -> float:
    return candidate.validation.estimate.value if candidate.validation is not None else 0.0


# ── In words


def describe_choice(choice: Choice) -> tuple[str, ...]:
    """Return what was taken and why, then a warning for each guard that fell by more than the tolerance."""
    taken = choice.taken
    lines = [f"weights: {name_candidate(taken)}; {choice.reason}"]
    lines += [f"base → this model: {', '.join(map(_full, _figures(taken)))}"]
    if choice.searched:
        lines[-1] += f" ({VALIDATION}: chosen on these rows, optimistic)"
    fallen = [figure for figure in taken.general if figure.change.value < -choice.tolerance]
    lines += [f"warning: {_describe_fall(figure, choice.tolerance)}" for figure in fallen]
    if choice.worse and choice.forced:
        lines.append("warning: the model is below its base on validation; it is written as forced")
    return tuple(lines)


def name_candidate(candidate: Candidate) -> str:
    """Return what the weights are made of, for people."""
    if candidate.share == 1:
        return f"{candidate.end} as trained"
    return f"{candidate.share:g} · {candidate.end} + {1 - candidate.share:g} · base"


def card_figures(choice: Choice) -> dict[str, str]:
    """Return the rows of a model card's table: the weights, and every figure before and after."""
    rows = {"weights": f"base → {name_candidate(choice.taken)} ({choice.reason})"}
    for figure in _figures(choice.taken):
        optimistic = choice.searched and figure is choice.taken.validation
        mark = ", chosen on these rows: optimistic" if optimistic else ""
        rows[f"{figure.data} ({figure.metric}, {figure.rows} rows{mark})"] = _before_after(figure)
    return rows


def _reason(candidates: Sequence[Candidate], chosen: int, tolerance: float, slack: float) -> str:
    kept = sum(candidate.fall <= tolerance for candidate in candidates)
    if not kept:
        return (
            f"NO candidate of {len(candidates)} keeps every guard within {tolerance:g} of the base: "
            f"this one loses least ({candidates[chosen].fall:.4f})"
        )
    best = "most of the tuning among those as good as the best" if slack else "best"
    return f"{best} on {VALIDATION} of the {kept} candidates among {len(candidates)} that keep every guard within " + (
        f"{tolerance:g} of the base"
    )


def _refusal(choice: Choice, record: Path) -> ModelRefused:
    figure = choice.taken.validation
    assert figure is not None
    return ModelRefused(
        f"the tuned model ({name_candidate(choice.taken)}) is below its base on {figure.rows} validation rows: "
        f"{_full(figure)}",
        expected="at least what the base has",
        action="give more or other data, another loss or a lower learning rate; or --force, which writes this model at "
        f"once, without training again. What was tried is in {record}",
    )


def _describe_fall(figure: Figure, tolerance: float) -> str:
    sure = "" if figure.change.high < 0 else " (it may be chance)"
    return f"{figure.data} fell by more than {tolerance:g}: {_full(figure)}{sure}"


def _figures(candidate: Candidate) -> tuple[Figure, ...]:
    return (*((candidate.validation,) if candidate.validation is not None else ()), *candidate.general)


def _brief(figure: Figure) -> str:
    return f"{figure.data} {figure.estimate.value:.3f} ({figure.change.value:+.3f})"


def _full(figure: Figure) -> str:
    return f"{figure.data} {figure.metric} {_before_after(figure)}"


def _before_after(figure: Figure) -> str:
    change, value = figure.change, figure.estimate.value
    return f"{value - change.value:.3f} → {value:.3f} ({change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}])"
