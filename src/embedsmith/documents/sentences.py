"""Where sentences end, how many tokens a text may have, and ranges of a text that fit a number of tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from embedsmith.errors import ConfigurationError

Range = tuple[int, int]
Count = Callable[[str], int]

# A long word is several tokens; each sign of a script without spaces is one.
PIECE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u2e80-\u9fff\uac00-\ud7af]{1,12}")
STOP = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+["”’」』）]*""")
INITIAL = re.compile(r"(?:^|[^\w])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z])\.$")  # "J.", "U.S.", "e.g."
SHORTENED = """mr mrs ms dr prof st jr sr inc corp co ltd llc plc no nos vs fig figs eq sec art vol pp approx est dept
ca cf al etc jan feb mar apr jun jul aug sep sept oct nov dec bzw z.b nr"""
ABBREVIATIONS = frozenset(SHORTENED.split())
WORD = re.compile(r"\S+")
LAST_WORD = re.compile(r"([\w.]+)\.$")


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a word-piece tokenizer makes of `text`: 1.3 a word, rounded up.

    >>> estimate_tokens("Revenue rose by 12 percent.")
    7
    """
    return -(-13 * len(PIECE.findall(text)) // 10)


def split_sentences(text: str, start: int, end: int) -> list[Range]:
    """Return the sentences of text[start:end] as ranges without white space at their ends.

    An abbreviation, an initial or a small letter after the stop means that the sentence goes on.
    """
    found = []
    for match in STOP.finditer(text, start, end):
        if match.end() < end and _ends_here(text, start, match):
            found.append(_trim(text, start, match.end()))
            start = match.end()
    found.append(_trim(text, start, end))
    return [piece for piece in found if piece[0] < piece[1]]


def _ends_here(text: str, start: int, match: re.Match[str]) -> bool:
    following = text[match.end() : match.end() + 40].lstrip()[:1]
    if following.islower():
        return False
    if match[0] != ".":
        return True
    before = text[max(start, match.end() - 24) : match.end()]
    word = LAST_WORD.search(before)
    return not INITIAL.search(before) and not (word and word[1].lower() in ABBREVIATIONS)


def cut(text: str, start: int, end: int, *, limit: int, count: Count) -> Iterator[Range]:
    """Yield pieces of text[start:end] of at most `limit` tokens: sentences; a longer one at lines, words, characters.

    Raises:
        ConfigurationError: the counter gives a single character more than `limit` tokens.
    """
    for sentence in split_sentences(text, start, end):
        if count(text[slice(*sentence)]) <= limit:
            yield sentence
            continue
        for line in re.finditer(r"[^\n]+", text[slice(*sentence)]):
            first, last = _trim(text, sentence[0] + line.start(), sentence[0] + line.end())
            if first < last:
                yield from _cut_line(text, first, last, limit, count)


def _cut_line(text: str, start: int, end: int, limit: int, count: Count) -> Iterator[Range]:
    if count(text[start:end]) <= limit:
        yield start, end
        return
    ends = [match.end() for match in WORD.finditer(text, start, end)]
    place = 0
    while place < len(ends):
        begin = _trim(text, start, end)[0]
        fitting = _longest(text, begin, ends, place, limit, count)
        if fitting > place:
            yield begin, ends[fitting - 1]
        else:
            fitting = place + 1
            yield from _cut_word(text, begin, ends[place], limit, count)
        start, place = ends[fitting - 1], fitting


def _cut_word(text: str, start: int, end: int, limit: int, count: Count) -> Iterator[Range]:
    """Cut what has no white space: an encoded picture, a line of Chinese without a stop."""
    while start < end:
        ends = range(start + 1, min(end, start + 16 * limit) + 1)
        fitting = _longest(text, start, ends, 0, limit, count)
        if fitting == 0:
            raise ConfigurationError(
                f"the counter gives {text[start]!r} {count(text[start])} tokens",
                expected=f"at most {limit} for one character",
                action="allow more tokens, or give a counter that counts no special tokens",
            )
        yield start, ends[fitting - 1]
        start = ends[fitting - 1]


def _longest(text: str, start: int, ends: Sequence[int], place: int, limit: int, count: Count) -> int:
    """Return how many of `ends` may be passed before text[start:end] exceeds the limit; `place` when not one more.

    Whatever the counter does, text[start:ends[result - 1]] was counted and fits.
    """
    highest = min(len(ends), place + 16 * limit)
    return bisect_right(range(highest), limit, place, highest, key=lambda at: count(text[start : ends[at]]))


def _trim(text: str, start: int, end: int) -> Range:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
