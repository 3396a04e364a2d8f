"""A document in, passages out: packed along its structure, at most so many tokens, whole sentences as overlap."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from embedsmith.artifacts import fingerprint
from embedsmith.documents.passages import Passage
from embedsmith.documents.sentences import Count, cut, split_sentences
from embedsmith.documents.structure import Block, Document
from embedsmith.errors import ConfigurationError

FILLED = 0.6  # of the limit: from here on a passage may end where the text suggests it
SHORT = 8  # a passage below an eighth of the limit looks for company
LEAST = 16  # tokens; below it no sentence fits


@dataclass(frozen=True, slots=True)
class Size:
    """How long passages are.

    Attributes:
        tokens: most tokens of a passage, from 16.
        overlap: most tokens repeated from the passage before, at most half of `tokens`.
        count: tokens of a text; without special tokens.
    """

    tokens: int
    overlap: int
    count: Count

    def __post_init__(self) -> None:
        if self.tokens < LEAST:
            raise ConfigurationError(f"passages of {self.tokens} tokens", expected=f"at least {LEAST}")
        if not 0 <= 2 * self.overlap <= self.tokens:
            raise ConfigurationError(
                f"an overlap of {self.overlap} tokens", expected=f"0 to {self.tokens // 2}, half of a passage"
            )


@dataclass(frozen=True, slots=True)
class Unit:
    """What is never cut: a block, or a sentence of a block that is too long.

    Attributes:
        path: the headings above it.
        opens: it begins with a sentence, and not within one that had to be cut.
        closes: it is the end of its block.
    """

    start: int
    end: int
    tokens: int
    path: tuple[str, ...]
    heading: bool
    opens: bool = True
    closes: bool = True


def chunk_document(document: Document, size: Size) -> Iterator[Passage]:
    """Yield the passages of a document, in order.

    What stands below a heading is never in one passage with what stands below the next one of the same or a higher
    level. Where a passage ends is decided by the text around the place alone (content-defined chunking), so a change
    moves the passages near it and the others keep their text and id.
    """
    seen: Counter[str] = Counter()
    ranges = [
        (start, run)
        for section in _split_sections(document, size)
        for start, run in _pack(document.text, section, size)
    ]
    for start, run in ranges:
        text = document.text[start : run[-1].end]
        seen[text] += 1
        name = _name(document, text, seen[text], alone=len(ranges) == 1)
        yield Passage(name, text, document.name, start, run[-1].end, _headings(document, run), _page(document, start))


def _name(document: Document, text: str, occurrence: int, *, alone: bool) -> str:
    """A row keeps its own id; what is cut from it, and all else, is called after its text."""
    if document.id is None:
        return fingerprint([document.name, text, occurrence])
    return document.id if alone else f"{document.id}-{fingerprint([text, occurrence], length=8)}"


def _headings(document: Document, run: Sequence[Unit]) -> tuple[str, ...]:
    paths = [unit.path for unit in run if not unit.heading] or [run[-1].path]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return document.headings + tuple(names[0] for names in shared)


def _page(document: Document, start: int) -> int | None:
    place = bisect_right(document.pages, start, key=lambda page: page[0])
    return document.pages[place - 1][1] if place else None


def _split_sections(document: Document, size: Size) -> Iterator[list[Unit]]:
    """Yield the units of each section with the headings right above it; a short one goes with the section below it."""
    group: list[Unit] = []
    stack: list[tuple[int, str]] = []
    body = 0  # tokens of the group below its headings
    above = 0  # level of the section that has the last of them
    for block in document.blocks:
        if block.level and body and (body >= size.tokens // SHORT or block.level <= above):
            yield group
            group, body = [], 0
        if block.level:
            stack = _descend(stack, block.level, document.text[block.start : block.end])
        path = tuple(name for _, name in stack)
        units = list(_split_block(document.text, block, path, _waiting(group), size))
        group += units
        if not block.level:
            body += sum(unit.tokens for unit in units)
            above = stack[-1][0] if stack else 0
    if group:
        yield group


def _descend(stack: Sequence[tuple[int, str]], level: int, text: str) -> list[tuple[int, str]]:
    return [*takewhile(lambda above: above[0] < level, stack), (level, " ".join(text.split()))]


def _waiting(group: Sequence[Unit]) -> int:
    """Tokens of the headings at the end of the group: they want to be in one passage with what comes next."""
    return sum(unit.tokens for unit in takewhile(lambda unit: unit.heading, reversed(group)))


def _split_block(text: str, block: Block, path: tuple[str, ...], waiting: int, size: Size) -> Iterator[Unit]:
    heading = block.level > 0
    room = max(size.tokens - waiting, size.tokens // 2)
    tokens = size.count(text[block.start : block.end])
    if tokens <= room:
        yield Unit(block.start, block.end, tokens, path, heading)
        return
    limit = min(room, size.tokens - size.overlap)  # a cut sentence leaves room for the overlap
    pieces = list(cut(text, block.start, block.end, limit=limit, count=size.count))
    sentences = {start for start, _ in split_sentences(text, block.start, block.end)}
    for start, end in pieces:
        tokens = size.count(text[start:end])
        yield Unit(start, end, tokens, path, heading, opens=start in sentences, closes=end == pieces[-1][1])


def _pack(text: str, units: Sequence[Unit], size: Size) -> Iterator[tuple[int, Sequence[Unit]]]:
    """Yield (start of the overlap, the units) of each passage of one section."""
    first = 0
    start = units[0].start
    while True:
        last = _choose_end(text, units, first, start, size)
        yield start, units[first:last]
        if last == len(units):
            return
        start = _overlap(text, units[first:last], units[last], size)
        first = last


def _choose_end(text: str, units: Sequence[Unit], first: int, start: int, size: Size) -> int:
    """Return the place after the last unit of the passage that begins with unit `first`."""
    sizes = {first + 1: size.count(text[start : units[first].end])}
    for place in range(first + 1, len(units)):
        if sizes[place] + units[place].tokens > size.tokens:
            break
        sizes[place + 1] = sizes[place] + units[place].tokens
    while True:
        end = _best_end(text, units, sizes, size)
        # The tokens of a whole are not always the sum of those of its parts.
        if len(sizes) == 1 or size.count(text[start : units[end - 1].end]) <= size.tokens:
            return end
        sizes = {place: tokens for place, tokens in sizes.items() if place < end} or {first + 1: 0}


def _best_end(text: str, units: Sequence[Unit], sizes: Mapping[int, int], size: Size) -> int:
    """Return the end of a block before that of a sentence; among equals, what a checksum of the text there says."""
    if max(sizes) == len(units):
        return len(units)
    good = [place for place in sizes if not units[place - 1].heading] or list(sizes)
    good = [place for place in good if _has_tokens(units, place, size.tokens // SHORT)] or good
    full = [place for place in good if sizes[place] >= FILLED * size.tokens] or [max(good)]
    return min(full, key=lambda place: (not units[place - 1].closes, _checksum(text, units[place - 1]), -place))


def _has_tokens(units: Sequence[Unit], place: int, wanted: int) -> bool:
    """Say whether what comes from `place` on is worth a passage; looks no farther than it must."""
    found = 0
    for at in range(place, len(units)):
        found += units[at].tokens
        if found >= wanted:
            return True
    return False


def _checksum(text: str, unit: Unit) -> int:
    return zlib.crc32(text[unit.start : unit.end].encode("utf-8"))


def _overlap(text: str, before: Sequence[Unit], following: Unit, size: Size) -> int:
    """Return where the next passage starts: whole sentences before `following` that it has room for."""
    start = following.start
    for unit in reversed(before):
        if unit.heading:
            break
        for sentence, _ in reversed(split_sentences(text, unit.start, unit.end)):
            whole = sentence > unit.start or (unit.opens and sentence > before[0].start)
            fits = size.count(text[sentence : before[-1].end]) <= size.overlap
            if not whole or not fits or size.count(text[sentence : following.end]) > size.tokens:
                return start
            start = sentence
    return start
