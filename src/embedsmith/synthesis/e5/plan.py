"""The plan of an E5 data set: which rows of which group, and what chance gives each of them.

All that is random about a row follows from (seed, group, number of the row in its group), and rows come in an order
in which a larger plan begins with the smaller one. So raising `tasks` asks the same prompts and some more.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from typing import get_args

from embedsmith.choices import StsForm
from embedsmith.errors import ConfigurationError, require
from embedsmith.llm import Sampling
from embedsmith.synthesis.languages import default_weights, require_languages

# Rows of each group in the published data, in thousands (arXiv 2401.00368; 507 in all).
PUBLISHED: Mapping[str, float] = {
    "short-long": 167,
    "long-short": 122,
    "short-short": 13,
    "long-long": 17,
    "sts": 99,
    "bitext": 89,
}
GROUPS = tuple(PUBLISHED)
TWO_STEPS = ("short-long", "long-short", "short-short", "long-long")  # tasks first, then an example for each
# As published; two documents of 500 words need room, in scripts that tokenizers know badly three times as much.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=4096)


@dataclass(frozen=True, slots=True)
class Row:
    """A planned row: the `number`-th of its group, from 0."""

    group: str
    number: int

    @property
    def id(self) -> str:
        """What rejections and provenance call it, e.g. "sts/17"."""
        return f"{self.group}/{self.number}"

    def draw(self, seed: int, purpose: str) -> float:
        """Return the random number of this row for one purpose, 0 ≤ x < 1; the same in every run, on every machine."""
        digest = blake2b(f"{seed}/{self.group}/{self.number}/{purpose}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / (1 << 53)

    def stream(self, seed: int, purpose: str) -> random.Random:
        """Return a source of many random numbers for one purpose."""
        return random.Random(f"{seed}/{self.group}/{self.number}/{purpose}")


@dataclass(frozen=True, slots=True)
class E5Plan:
    """How many rows of which groups, in which languages, and how they are asked for.

    Attributes:
        tasks: rows in all; each ends as one example (or the two scored pairs of an STS row) or as a rejection.
        groups: proportions by group; a group that is not named gets no row. They need not sum to 1.
        languages: shares by ISO code (`languages.parse_languages`).
        topics: a file of the user's topics or documents (any table or text file) in place of ours.
        brainstorm: task ideas asked for in a call of the first step.
        used: of them, how many become rows. One a topic is what paid best (+1.7 on MTEB against five, REFERENCES §1).
        sts_as: "triplet" (S1, S2, S3), which the infonce loss of the recipe trains on as it is; or "scored": two pairs
            with the scores that were asked for, which need a loss for scores (cosent) and carry no instruction.
        prompts: a prompts file of the user's; see `synthesis/prompts/e5.toml`.
        check_languages: reject texts that are surely in another language than asked for (needs py3langid).

    Raises:
        ConfigurationError: numbers out of range, unknown groups or languages, bitext with one language.
    """

    tasks: int = 500
    groups: Mapping[str, float] = field(default_factory=lambda: dict(PUBLISHED))
    languages: Mapping[str, float] = field(default_factory=default_weights)
    seed: int = 0
    topics: Path | str | None = None
    brainstorm: int = 20
    used: int = 1
    sts_as: StsForm = "triplet"
    prompts: Path | str | None = None
    check_languages: bool = True

    def __post_init__(self) -> None:
        require(self.tasks >= 1, f"{self.tasks} tasks", "at least one")
        require(2 <= self.brainstorm <= 100, f"brainstorms of {self.brainstorm} tasks", "2 to 100")
        require(1 <= self.used <= self.brainstorm, f"{self.used} of {self.brainstorm} tasks used", "1 to all of them")
        require(self.sts_as in get_args(StsForm), f"STS as {self.sts_as!r}", " or ".join(get_args(StsForm)))
        unknown = sorted(set(self.groups) - set(GROUPS))
        require(not unknown, f"unknown group {', '.join(unknown)}", "some of " + ", ".join(GROUPS))
        good = all(isfinite(share) and share >= 0 for share in self.groups.values()) and any(self.groups.values())
        require(good, f"the proportions {dict(self.groups)}", "numbers of 0 or more, one of them above 0")
        require_languages(self.languages)
        if self.groups.get("bitext") and len(self.languages) < 2:
            raise ConfigurationError(
                f"bitext in one language, {next(iter(self.languages))}",
                expected="two languages or more",
                action="name another language, or leave bitext out: groups " + ",".join(GROUPS[:-1]),
            )

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the plan; those of a smaller plan come first, in the same order.

        Row after row goes to the group that is farthest behind its share (Sainte-Laguë: the smallest
        (2·rows so far + 1) / share), the one method whose counts never fall when the whole grows. 500 rows give
        164, 120, 13, 17, 98 and 88.
        """
        shares = [(group, self.groups[group]) for group in GROUPS if self.groups.get(group)]
        waiting = [(1 / share, place, 0) for place, (_, share) in enumerate(shares)]
        heapq.heapify(waiting)
        for _ in range(self.tasks):
            _, place, number = waiting[0]
            group, share = shares[place]
            heapq.heapreplace(waiting, ((2 * number + 3) / share, place, number + 1))
            yield Row(group, number)

    def brainstorms(self) -> Iterator[Row]:
        """Yield the calls of the first step: call c of a group is for its rows c·used … c·used + used − 1."""
        for row in self.rows():
            if row.group in TWO_STEPS and row.number % self.used == 0:
                yield Row(row.group, row.number // self.used)


@dataclass(frozen=True, slots=True)
class CallsOfPlan:
    """What a plan asks, before anything fails.

    Attributes:
        rows: by group. brainstorms: calls of the first step by group. A row is one call of the second step.
    """

    rows: Mapping[str, int]
    brainstorms: Mapping[str, int]

    @property
    def first(self) -> int:
        """Calls of the first step."""
        return sum(self.brainstorms.values())

    @property
    def second(self) -> int:
        """Calls of the second step."""
        return sum(self.rows.values())


def count_calls(plan: E5Plan) -> CallsOfPlan:
    """Return how many calls of which step a plan takes; calls already in the journal are among them."""
    rows = Counter(row.group for row in plan.rows())
    first = Counter(call.group for call in plan.brainstorms())
    return CallsOfPlan({group: rows[group] for group in GROUPS}, {group: first[group] for group in TWO_STEPS})


def parse_groups(text: str) -> Mapping[str, float]:
    """Return the proportions that `text` asks for: "all", names in their published proportions, or name=share.

    >>> dict(parse_groups("sts, bitext")), dict(parse_groups("sts=2,bitext=1"))
    ({'sts': 99, 'bitext': 89}, {'sts': 2.0, 'bitext': 1.0})

    Raises:
        ConfigurationError: an unknown group, one that comes twice, a share that is no number.
    """
    if text.strip() == "all":
        return dict(PUBLISHED)
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, given, share = (piece.strip() for piece in part.partition("="))
        known = name in PUBLISHED and name not in found
        require(known, f"{part!r} among the groups", "each once of " + ", ".join(GROUPS))
        try:
            found[name] = float(share) if given else PUBLISHED[name]
        except ValueError:
            raise ConfigurationError(f"{part!r} among the groups", expected="a share as in sts=2") from None
    require(bool(found), "no group is named", "some of " + ", ".join(GROUPS))
    return found
