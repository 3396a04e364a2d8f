"""Filters of the recipe `rag` as pure functions: each says what is wrong with a question, with evidence, or nothing.

Texts are compared as the runs of their words and numbers after `flatten`: case, white space, quotes, dashes, table
bars and thousands separators do not count. "$ 8,313,836" and "$8313836" are the same span, "30 days" and "60 days"
are not. In writings without spaces (Chinese, Japanese, Thai) each sign is a word, and two in a row are a term.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from embedsmith.artifacts import fingerprint
from embedsmith.text import MARKS, NEGATIONS, UNSPACED, is_unspaced, nearness, normalize, same_facts, trigrams

LETTER = rf"[^\W\d_{UNSPACED}][{MARKS}]*"
TOKEN = re.compile(rf"\d+(?:[.,]\d+)*|(?:{LETTER})+(?:'(?:{LETTER})+)*|[{UNSPACED}]|[%$€£¥]")
SIGN = re.compile(rf"[{UNSPACED}]")
SIGNS_A_WORD = 2  # in writings without spaces
SILENT = frozenset("$€£¥")  # currency signs stand apart in tables, or are left out in the answer
ELLIPSIS = re.compile(r"\s*(?:\.{3,}|…|\[\.{3}\])\s*")
PIECE = 3  # words that a piece of an answer with an ellipsis has to have
ALIKE = 0.8  # share of the shorter passage's words from which two passages say the same
COVERED = 0.75  # share of the question's words in the source that another answering passage has as well
TELLING = 3  # such words that a question needs for that to say anything
STEM = 6  # letters; "increase" and "increased" begin alike
REFERENCE = re.compile(
    r"\b(?:the|this|that|given|provided|above|following|these|both|first|second)\s+(?:passages?|excerpts?|snippets?)\b(?!\s+of\b)"
    r"|\b(?:in|from|by|of|to|per|with|on)\s+(?:the|this)\s+(?:given\s+|provided\s+|above\s+|following\s+)?"
    r"(?:text|paragraph|extract)\b(?!\s+of\b)"
    r"|\bin the (?:given |provided |above )?context\b(?!\s+of\b)"
    r"|\baccording to (?:the|this|what is)\s+(?:given |provided |above )?"
    r"(?:text|paragraph|context|information|description|document|sentence|statement|extract|structure)\b"
    r"|\b(?:mentioned|described|listed|stated|discussed|given|shown|provided) (?:above|here|below)\b"
    r"|\b(?:table|list|figure|text|paragraph|information|statement|sentence) (?:above|below)\b"
    r"|\bas (?:described|mentioned|stated) in (?:the|this) (?:text|passage|document|paragraph)\b",
    re.I,
)
STOP = frozenset(
    """
    a about after all also an and any are as at be been before being between both but by can could did
    do does during each for from get had has have he how i if in into is it its many me more most much
    my of on or our out over per please she so some such than that the their them then there these they
    this those through to under up us was we were what when where which while who whom whose why will
    with would you your
    """.split()  # noqa: SIM905 shorter to read than a list
)
SMALL = STOP - {"after", "before", "more", "most", "over", "under"}  # these say which way


@dataclass(frozen=True, slots=True)
class Span:
    """An answer as it stands in a passage.

    Attributes:
        text: the passage's own characters.
        edits: words in which the answer differed.
    """

    text: str
    edits: int = 0


def flatten(text: str) -> list[str]:
    """Return the words, numbers and single signs of `text` in the form in which they are compared.

    >>> flatten("“Net sales” | $ | 8,313,836 (up 5.30%)")
    ['net', 'sales', '8313836', 'up', '5.30', '%']
    """
    return [word for word, _, _ in _locate(text)]


@lru_cache(maxsize=1 << 12)
def _locate(text: str) -> tuple[tuple[str, int, int], ...]:
    """Return (word in compared form, start, end) of each word of `text`."""
    found = []
    for match in TOKEN.finditer(text.replace("’", "'")):
        word = match.group(0)
        if word not in SILENT:
            word = unicodedata.normalize("NFKC", word).casefold().removesuffix("'s")
            found.append((word.replace(",", "") if word[0].isdigit() else word, match.start(), match.end()))
    return tuple(found)


def find_span(answer: str, passage: str, *, edits: int = 0) -> Span | None:
    """Return where `passage` has `answer`, or None.

    An answer that leaves something out ("first … last") needs each piece in order. With `edits` = n, one word in n
    of a longer answer may be missing, added or another, if numbers and negations are the same: models drop an
    article or mend a typing error while they copy.
    """
    located = _locate(passage)
    words = [word for word, _, _ in located]
    whole = flatten(answer)
    pieces = [piece for piece in (flatten(piece) for piece in ELLIPSIS.split(answer)) if piece]
    if not pieces:
        return None
    if _find_run(whole, words) >= 0:  # the passage itself may have the ellipsis
        pieces = [whole]
    if len(pieces) > 1 and min(sum(map(_weigh, piece)) for piece in pieces) < PIECE:
        return None
    first, last, start = -1, -1, 0
    for piece in pieces:
        place = _find_run(piece, words, start)
        if place < 0:
            return _find_edited(whole, passage, located, edits) if len(pieces) == 1 else None
        first, last = place if first < 0 else first, place + len(piece)
        start = last
    return Span(_cut_out(passage, located[first][1], located[last - 1][2]))


def _cut_out(passage: str, start: int, end: int) -> str:
    """Return this part of the passage, with the currency sign before it."""
    before = passage[:start].rstrip(" |")
    start = len(before) - 1 if before[-1:] in SILENT and before else start
    return passage[start:end]


def _find_run(run: Sequence[str], words: Sequence[str], start: int = 0) -> int:
    for place in range(start, len(words) - len(run) + 1):
        if words[place] == run[0] and list(words[place : place + len(run)]) == list(run):
            return place
    return -1


def _find_edited(run: Sequence[str], passage: str, located: Sequence[tuple[str, int, int]], edits: int) -> Span | None:
    """Return the part of the passage nearest to `run` by edit distance over words, if it is near enough."""
    allowed = len(run) // edits if edits and not is_unspaced("".join(run)) else 0  # one sign is a word there
    if not allowed or not located:
        return None
    words = [word for word, _, _ in located]
    distance, start, end = _align(run, words)
    if distance > allowed or start >= end:
        return None
    text = _cut_out(passage, located[start][1], located[end - 1][2])
    return Span(text, distance) if same_facts(" ".join(run), " ".join(words[start:end])) else None


def _align(run: Sequence[str], words: Sequence[str]) -> tuple[int, int, int]:
    """Return (edits, start, end) of the part of `words` nearest to `run` (Sellers 1980: any start, any end)."""
    before = [(0, place) for place in range(len(words) + 1)]  # (edits, start) of the best part that ends here
    for number, own in enumerate(run, start=1):
        row = [(number, 0)]
        for place, word in enumerate(words, start=1):
            moves = (
                (before[place - 1][0] + (own != word), before[place - 1][1]),
                (before[place][0] + 1, before[place][1]),
                (row[place - 1][0] + 1, row[place - 1][1]),
            )
            row.append(min(moves))
        before = row
    best = min(range(len(before)), key=lambda place: (before[place][0], place))
    return before[best][0], before[best][1], best


def find_reference(question: str) -> str | None:
    """Return the words by which the question refers to the passage it was made from, or None.

    >>> find_reference("What does the company sell according to the text?")
    'according to the text'
    """
    found = REFERENCE.search(question)
    return found.group(0) if found else None


def measure_copy(question: str, passage: str) -> tuple[int, float]:
    """Return the longest run of words that the question shares with the passage, and its share of the question.

    Two signs of a writing without spaces count as one word.
    """
    asked, words = flatten(question), flatten(passage)
    if not asked:
        return 0, 0.0
    longest = 0.0
    before = [0.0] * (len(words) + 1)
    for own in asked:
        row = [0.0] * (len(words) + 1)
        for place, word in enumerate(words, start=1):
            if own == word:
                row[place] = before[place - 1] + _weigh(own)
        longest = max(longest, max(row))
        before = row
    return int(longest), longest / sum(map(_weigh, asked))


def _weigh(word: str) -> float:
    return 1 / SIGNS_A_WORD if SIGN.match(word) else 1.0


def gives_answer_away(question: str, answer: str) -> bool:
    """Say whether the question already holds the whole answer, so that nothing is asked."""
    run = flatten(answer)
    return bool(run) and _find_run(run, flatten(question)) >= 0


def find_repeat(question: str, others: Sequence[str]) -> str | None:
    """Return the one of `others` that is the same question, or nearly (Jaccard ≥ 0.9, same facts), or None."""
    grams = trigrams(question)
    for other in others:
        if normalize(other) == normalize(question):
            return other
        if nearness(question, other, grams, trigrams(other)):
            return other
    return None


def sum_up(question: str) -> int:
    """Return a number (63 bits) that is the same for questions with the same telling words, in whatever order.

    >>> sum_up("What was NIKE's revenue in 2023?") == sum_up("nike revenue 2023")
    True
    >>> sum_up("What must be done before surgery?") == sum_up("What must be done after surgery?")
    False
    """
    words = set(_terms(question)) - SMALL
    return int(fingerprint(sorted(words or {normalize(question)})), 16) >> 1


def answers_alike(answer: str, passage: str, other_answer: str, other_passage: str) -> bool:
    """Say whether two passages give the same answer: one of them has the other's span."""
    return find_span(other_answer, passage) is not None or find_span(answer, other_passage) is not None


def names_and_numbers(question: str) -> frozenset[str]:
    """Return the words of a question that decide whom and when it is about: numbers, and words with a capital letter.

    The first word counts, too, if it is no question word: rather a name too many than one too few.

    >>> sorted(names_and_numbers("What did Kroger's CFO earn in 2022?"))
    ['2022', 'cfo', 'kroger']
    """
    facts = set()
    for match in TOKEN.finditer(question.replace("’", "'")):
        word = match.group(0)
        plain = unicodedata.normalize("NFKC", word).casefold().removesuffix("'s")
        if word[0].isdigit():
            facts.add(plain.replace(",", ""))
        elif word[0].isupper() and plain not in STOP:
            facts.add(plain)
    return frozenset(facts)


def measure_likeness(passage: str, other: str) -> float:
    """Return the share of the shorter passage's telling words that the other one has, 0 to 1."""
    left, right = _stems(passage), _stems(other)
    return len(left & right) / max(min(len(left), len(right)), 1)


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:STEM] if word.isalpha() else word for word in _terms(text) if word not in STOP)


def _terms(text: str) -> list[str]:
    """Return the words and numbers, and of writings without spaces every two signs in a row; one that stands alone."""
    found: list[str] = []
    run: list[str] = []
    for word in [*flatten(text), ""]:
        if SIGN.match(word):
            run.append(word)
            continue
        found += map("".join, pairwise(run)) if len(run) > 1 else run
        run = []
        found += [word] if word else []
    return found


def answers_too(question: str, answer: str, source: str, other: str) -> str | None:
    """Return why `other` answers the question as `source` does, or None when that is not sure.

    Both must have the answer span. Then either the passages say the same (their words agree and `other` lacks no
    name or number of the question that `source` has), or every name and number of the question stands in both,
    and so do most of the words that the question shares with its source.
    """
    if find_span(answer, other) is None:
        return None
    own, words = frozenset(flatten(source)), frozenset(flatten(other))
    facts = names_and_numbers(question)
    if (facts & own) - words:
        return None
    likeness = measure_likeness(source, other)
    if likeness >= ALIKE and _changes_no_fact(source, other, answer):
        return f"says the same (likeness {likeness:.2f})"
    shared = _stems(question) & _stems(source)
    covered = shared & _stems(other)
    if facts - own or len(shared) < TELLING or len(covered) < COVERED * len(shared):
        return None
    if not _is_telling(answer):
        return None
    return f"has the answer and {len(covered)} of {len(shared)} words of the question"


def _changes_no_fact(source: str, other: str, answer: str) -> bool:
    """Say whether the shorter passage has no number, and no negation, that the longer one lacks."""
    short, long = sorted((flatten(source), flatten(other)), key=len)
    facts = {word for word in short if word[0].isdigit() or word in NEGATIONS}
    return facts <= {*long, *flatten(answer)}


def _is_telling(answer: str) -> bool:
    """Say whether the answer alone is rare enough to tell: two words, or a number of three digits and more."""
    telling = [word for word in flatten(answer) if word not in STOP]
    return sum(map(_weigh, telling)) >= 2 or any(
        sum(map(str.isdigit, word)) >= 3 and not _is_year(word) for word in telling
    )


def _is_year(word: str) -> bool:
    return len(word) == 4 and word.isdigit() and word[:2] in ("19", "20")
