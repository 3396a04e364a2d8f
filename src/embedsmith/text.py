"""What it means for two texts to be the same, or nearly: normal form, trigrams, Jaccard, facts."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

WORD = re.compile(r"\w+(?:['’]\w+)*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NEGATIONS = frozenset({"no", "not", "never", "none", "nothing", "nobody", "without", "cannot", "neither", "nor"})
CLOSING = " \t\r\n.?!…。？！"
OPENERS = (
    "how what which who whose when where why can could should would do does did is are"  # no word in capitals is one
)
INNER = r"[^\W_]+(?:['’-][^\W_]+)*"
QUESTION = re.compile(rf"(?:{OPENERS.replace(' ', '|')})(?:['’]\w+)?(?:,? {INNER})+[ ?]*", re.IGNORECASE)
ME = re.compile(
    r"\A((?:\w+ ){0,3}(?:do|did|can|could|should|would)) i(?= (?!and |or ))"
)  # "how do i", and never "i and j"
REMEMBERED = 400  # letters of a text whose trigrams are kept for the next question: 65,536 of them are a few hundred MB


def normalize(text: str) -> str:
    """Return `text` without differences that carry no meaning: NFKC, case, spaces, closing punctuation.

    >>> normalize("  How do I  FREEZE my card?? ")
    'how do i freeze my card'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split()).rstrip(CLOSING)


def exact_form(text: str) -> str:
    """Return `text` without differences that cannot ask for another answer: NFC, outer whitespace, and little else.

    Case, marks and spaces can be what a text is about ("5!", "10²", "ASCII code of A", indented code). Only in one
    plain question (words behind an English question word) the first capital, that of "how do I", the kind of
    apostrophe and a closing "?" say nothing that the words do not. `normalize` goes further, for what is compared.

    >>> exact_form("How do I freeze my card ?"), exact_form("What is 5!")
    ('how do I freeze my card', 'What is 5!')
    """
    plain = unicodedata.normalize("NFC", text)
    inner = plain.strip()
    if "\n" in inner:  # the first line of code is indented for a reason
        return plain.lstrip("\r\n").rstrip()
    if QUESTION.fullmatch(inner):
        return ME.sub(r"\1 I", inner[:1].lower() + inner[1:].rstrip(" ?").replace("’", "'"), count=1)
    return inner


def is_storable(text: str) -> bool:
    """Say whether UTF-8 and every store can hold `text`: no half characters (lone surrogates), no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def words(text: str) -> list[str]:
    """Return the words and numbers of the normal form, in order."""
    return WORD.findall(normalize(text))


def runs_of(text: str) -> list[str]:
    """Return the runs of three words, in order; none of a text of two.

    >>> runs_of("How do I pay?")
    ['how do i', 'do i pay']
    """
    found = words(text)
    return [" ".join(found[start : start + 3]) for start in range(len(found) - 2)]


def trigrams(text: str) -> frozenset[str]:
    """Return the character trigrams of the words, with one space at both ends; never empty.

    >>> sorted(trigrams("ab"))
    [' ab', 'ab ']
    """
    return _known_trigrams(text) if len(text) <= REMEMBERED else cut_trigrams(text)


def cut_trigrams(text: str) -> frozenset[str]:
    """Return `trigrams` of a text that is looked at once: nothing is kept for the next time."""
    padded = f" {' '.join(words(text))} "
    return frozenset(padded[start : start + 3] for start in range(max(len(padded) - 2, 1)))


_known_trigrams = lru_cache(maxsize=1 << 16)(cut_trigrams)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return shared over all elements, 0 to 1; two empty sets are equal."""
    if not left and not right:
        return 1.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def same_facts(left: str, right: str) -> bool:
    """Say whether both texts have the same numbers and as many negations.

    "in 30 days" and "in 60 days", "it works" and "it doesn't work" are close as strings and far apart
    as questions.
    """
    return _facts(left) == _facts(right)


def _facts(text: str) -> tuple[list[str], int]:
    plain = normalize(text)
    found = WORD.findall(plain)
    return sorted(NUMBER.findall(plain)), sum(word in NEGATIONS or word.endswith("n't") for word in found)
