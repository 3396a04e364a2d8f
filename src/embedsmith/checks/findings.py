"""Findings: what a check says, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError
from embedsmith.examples import Row

LOOKED = 50_000  # examples of a source whose texts are read; beyond it a seeded sample
FEWEST = 20  # rows of a kind below which a share tells nothing
HEAVY = 0.2  # share of texts or rows that is worth a warning
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: what was found (with figures), what would be right, what to do.

    Attributes:
        name: kebab-case, stable, for programs.
        severity: "error" stops the run before the first step.
        place: what it is about; decides the kind of exception.
    """

    name: str
    severity: Literal["error", "warning"]
    _: KW_ONLY
    found: str
    expected: str
    action: str
    place: Literal["data", "configuration"] = "data"

    def __str__(self) -> str:
        return f"{self.found}; expected: {self.expected}. To do: {self.action}"


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A check that could not be made, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


Outcome: TypeAlias = Finding | Unchecked


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks of a run gave.

    Attributes:
        unchecked: one sentence for each check that could not be made.
    """

    findings: tuple[Finding, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.findings + other.findings, self.unchecked + other.unchecked)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings that do not stop the run, as lines for people."""
        return tuple(f"warning: {finding}" for finding in self.findings if finding.severity == "warning")


def report_of(outcomes: Iterable[Outcome]) -> Report:
    """Return the outcomes, sorted into findings and what was not checked."""
    found = list(outcomes)
    return Report(
        tuple(item for item in found if isinstance(item, Finding)),
        tuple(dict.fromkeys(str(item) for item in found if isinstance(item, Unchecked))),
    )


def stop_on_errors(findings: Iterable[Finding]) -> None:
    """Raise where a finding is an error; further errors stand in the first one's `found`.

    Raises:
        InputError: about the data. ConfigurationError: about an option.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    kind: type[EmbedsmithError] = InputError if first.place == "data" else ConfigurationError
    others = "".join(f"\nalso: {finding}" for finding in errors[1:])
    raise kind(f"{first.found} [{first.name}]{others}", expected=first.expected, action=first.action)


def sample(examples: Sequence[Row], count: int, *, seed: int = 0) -> list[Row]:
    """Return `count` of the examples in their order, drawn by `seed`; all where there are no more."""
    if len(examples) <= count:
        return list(examples)
    places = np.random.default_rng(seed).choice(len(examples), count, replace=False)
    return [examples[place] for place in sorted(places.tolist())]


def share_of(part: int, whole: int) -> str:
    """Return a count with its share, for people: "3 of 12 (25.0%)"."""
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"
