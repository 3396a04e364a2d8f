"""Where brainstorms start: topics, seen by many readers from many angles, none twice before all have been used."""

from __future__ import annotations

import math
import random
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from embedsmith.corpus import Query, read_queries
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Rejected
from embedsmith.text import normalize

EXCERPT = 1500  # characters of a document that serves as a topic


@dataclass(frozen=True, slots=True)
class Start:
    """Where one call starts: a topic, for whom, and under which aspect."""

    topic: str
    reader: str
    angle: str


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of a run, and the rows of the user's file that are none."""

    topics: tuple[str, ...]
    readers: tuple[str, ...]
    angles: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        """Number of different starts."""
        return len(self.topics) * len(self.readers) * len(self.angles)

    def start(self, seed: int, group: str, number: int) -> Start:
        """Return the start of a group's call; no two of the first `len(self)` calls have the same.

        Every round of calls goes through all topics once, in an order of its own; a topic goes through all
        (reader, angle) by steps that have no divisor in common with their number.

        Raises:
            ConfigurationError: the topics are used up.
        """
        if number >= len(self):
            raise ConfigurationError(
                f"{group} needs more than {len(self)} different starts",
                expected=f"at most {len(self.topics)} topics × {len(self.readers)} readers × {len(self.angles)} angles",
                action="give a file with more topics (--topics), or use more tasks of each brainstorm (--used)",
            )
        round_, place = divmod(number, len(self.topics))
        topic = _shuffled(len(self.topics), f"{seed}/{group}/topics/{round_}")[place]
        facets = len(self.readers) * len(self.angles)
        chance = random.Random(f"{seed}/{group}/facets/{topic}")
        first, step = chance.randrange(facets), chance.choice(_steps(facets))
        facet = (first + round_ * step) % facets
        reader, angle = divmod(facet, len(self.angles))
        return Start(self.topics[topic], self.readers[reader], self.angles[angle])


@lru_cache(maxsize=64)  # the rounds of six groups that are read side by side
def _shuffled(count: int, key: str) -> tuple[int, ...]:
    return tuple(random.Random(key).sample(range(count), count))


@lru_cache(maxsize=8)
def _steps(facets: int) -> tuple[int, ...]:
    return tuple(step for step in range(1, facets + 1) if math.gcd(step, facets) == 1)


def load_topics(path: Path | str | None = None) -> Topics:
    """Return our topics, or those of the user's file: a line or row each; long documents are cut to an excerpt.

    Raises:
        InputError: the file cannot be read or has no text.
    """
    source = resources.files("embedsmith.synthesis.e5") / "topics.toml"
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    readers, angles = tuple(table["readers"]), tuple(table["angles"])
    if path is None:
        ours = (topic.strip() for domain in table["topics"].values() for topic in domain.split(";"))
        return Topics(tuple(dict.fromkeys(ours)), readers, angles)
    topics: dict[str, str] = {}
    rejected: list[Rejected] = []
    for row in read_queries(path):
        if isinstance(row, Rejected):
            rejected.append(row)
        elif normalize(row.text) in topics:
            rejected.append(Rejected("repeated-topic", "the same text came before", row.text, str(path), source=row.id))
        else:
            topics[normalize(row.text)] = _excerpt(row)
    if not topics:
        raise InputError(f"{path} has no topic", expected="a topic or a document a line or row")
    return Topics(tuple(topics.values()), readers, angles, tuple(rejected))


def _excerpt(row: Query) -> str:
    text = " ".join(row.text.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " …"
