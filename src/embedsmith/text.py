"""What it means for two texts to be the same, or nearly: normal form, trigrams, Jaccard, facts."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate


def _find_marks() -> str:
    """Return the marks that Unicode writes as characters of their own, as ranges for a class: vowel signs, accents.

    Python's \\w leaves them out, and would cut a Hindi or Thai word at each vowel.
    """
    blocks = (range(0x300, 0x1E00), range(0x20D0, 0x3100), range(0xA600, 0xAC00), range(0xFB00, 0xFE30))
    marks = [place for block in blocks for place in block if unicodedata.category(chr(place))[0] == "M"]
    starts = [place for place, before in zip(marks, [-1, *marks], strict=False) if place != before + 1]
    ends = [place for place, after in zip(marks, [*marks[1:], -1], strict=True) if after != place + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


MARKS = _find_marks()
# Writings that put no spaces between words: Thai, Lao, Burmese, Khmer; kana, Chinese signs.
SPELLED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
SIGNED = "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = SPELLED + SIGNED
SIGNS_A_WORD = 2  # in those
NEAR = 0.9  # trigram Jaccard from which on two texts with the same facts are near
WORD = re.compile(rf"[\w{MARKS}]+(?:['’][\w{MARKS}]+)*(?:\+\+|#(?!\w))?")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SIGN = re.compile("[$€£¥₹₩₽₺₫฿\u2600-\u27bf\U0001f300-\U0001faff]")  # currencies, emoji
NEGATIONS = frozenset({"no", "not", "never", "none", "nothing", "nobody", "without", "cannot", "neither", "nor"})
# Of other languages, where a word more is a small difference in letters; no common English words.
FOREIGN_NEGATIONS = frozenset(
    """
    nicht kein keine keinen keinem keiner niemals ohne niet geen nooit zonder pas jamais sans aucun nunca sin não nem
    sem inte ikke aldri aldrig nie bez नहीं
    """.split()  # noqa: SIM905 shorter to read than a list
)
# Marks of the end of a sentence: Latin, Greek, Arabic and Urdu, Indic, Armenian, Burmese, Khmer, Ethiopic, Chinese.
CLOSING = " .?!…;؟۔।॥։၊။។៕።፧。？！"
OPENING = " ¿¡"
# What is not seen (soft hyphens, spaces of no width, marks of direction), and how Armenian marks the tone of a word.
UNSEEN = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u055b\u055c\u055e]"
)
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
    """Return `text` without differences that carry no meaning: NFKC, case, spaces, marks around a sentence.

    >>> normalize("  How do I  FREEZE my card?? ")
    'how do i freeze my card'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", UNSEEN.sub("", text)).replace("’", "'")
    return " ".join(text.casefold().split()).rstrip(CLOSING).lstrip(OPENING)


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


def is_unspaced(text: str) -> bool:
    """Say whether most letters are of writings without spaces between words (Chinese, Japanese, Thai, …)."""
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and 2 * len(_UNSPACED_LETTER.findall(text)) > letters


def is_spelled(text: str) -> bool:
    """Say whether most letters are of writings without spaces whose letters are sounds (Thai, Lao, Burmese, Khmer)."""
    if text.isascii() or not (found := len(_SPELLED_LETTER.findall(text))):
        return False
    return 2 * found > sum(character.isalpha() for character in text)


_SPELLED_LETTER = re.compile(f"[{SPELLED}]")
_UNSPACED_LETTER = re.compile(rf"[{UNSPACED}]")
_PARTS = re.compile(rf"[{UNSPACED}]|[^{UNSPACED}]+")


def words(text: str) -> list[str]:
    """Return the words and numbers of the normal form, in order.

    >>> words("How do I sort in C++?")
    ['how', 'do', 'i', 'sort', 'in', 'c++']
    """
    return WORD.findall(normalize(text))


def cut_words(text: str) -> list[str]:
    """Return the words; in writings without spaces, each sign by itself, since nothing says where a word ends.

    >>> cut_words("How do I pay?"), cut_words("我想退款 USD")
    (['how', 'do', 'i', 'pay'], ['我', '想', '退', '款', 'usd'])
    """
    found = words(text)
    return _cut_signs(found) if _has_signs(found) else found


def runs_of(text: str, length: int = 3) -> list[str]:
    """Return the runs of `length` words, in order; none of a shorter text. Two signs without spaces are a word.

    >>> runs_of("How do I pay?"), runs_of("我想申请退款")
    (['how do i', 'do i pay'], ['我 想 申 请 退 款'])
    """
    found = words(text)
    if not _has_signs(found):
        return [" ".join(found[start : start + length]) for start in range(len(found) - length + 1)]
    found = _cut_signs(found)
    ends = list(accumulate(map(_weigh, found), initial=0))  # in signs
    runs = []
    last = 0
    for start in range(len(found)):
        last = bisect_left(ends, ends[start] + SIGNS_A_WORD * length, lo=max(start, last))
        if last == len(ends):
            break
        runs.append(" ".join(found[start:last]))
    return runs


def count_words(text: str) -> float:
    """Return how many words a text has; in writings without spaces, two signs are one.

    >>> count_words("How do I pay?"), count_words("我想申请退款")
    (4.0, 3.0)
    """
    found = words(text)
    return sum(map(_weigh, _cut_signs(found))) / SIGNS_A_WORD if _has_signs(found) else float(len(found))


def _has_signs(found: list[str]) -> bool:
    whole = "".join(found)
    return not whole.isascii() and _UNSPACED_LETTER.search(whole) is not None


def _cut_signs(found: list[str]) -> list[str]:
    """Return words with each sign of a writing without spaces by itself."""
    return [part for word in found for part in _PARTS.findall(word)]


def _weigh(part: str) -> int:
    """Return the length in signs: one, or that of a word."""
    return 1 if _UNSPACED_LETTER.match(part) else SIGNS_A_WORD


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


def nearness(left: str, right: str, ours: frozenset[str], theirs: frozenset[str], least: float = NEAR) -> float:
    """Return the trigram Jaccard of two near texts (`least` or more, with `same_facts`), 0.0 of any others."""
    small, large = sorted((len(ours), len(theirs)))
    if small < least * large:  # no need to look at what they share
        return 0.0
    closeness = jaccard(ours, theirs)
    return closeness if closeness >= least and same_facts(left, right) else 0.0


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return shared over all elements, 0 to 1; two empty sets are equal."""
    if not left and not right:
        return 1.0
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def same_facts(left: str, right: str) -> bool:
    """Say whether both texts have the same numbers, as many negations, and no sign that stands against another.

    "in 30 days" and "in 60 days", "it works" and "it doesn't work", "in C++" and "in C#", "$50" and "€50" are close as
    strings and far apart as questions. A sign that only one has ("50" and "$50", a smile at the end) is no difference.
    """
    ours, theirs = SIGN.findall(left), SIGN.findall(right)
    opposed = ours and theirs and set(ours) != set(theirs)
    return not opposed and _facts(left) == _facts(right)


def _facts(text: str) -> tuple[list[str], int, list[str]]:
    plain = normalize(text)
    found = WORD.findall(plain)
    denials = sum(word in NEGATIONS or word in FOREIGN_NEGATIONS or word.endswith("n't") for word in found)
    return sorted(NUMBER.findall(plain)), denials, sorted(word for word in found if word[-1] in "+#")


class OwnNames:
    """Gives every name once: where one was given before, its stem with the first free number gets in its place.

    >>> names = OwnNames()
    >>> [names.give(name) for name in ("7", "7", "8", "7")]
    ['7', '7~2', '8', '7~3']
    """

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._next: dict[str, int] = {}  # by stem: no smaller number is free, however often it comes

    def give(self, name: str, stem: str | None = None) -> str:
        """Return `name`, or the stem (default: the name itself) with a number behind it."""
        stem = name if stem is None else stem
        while name in self._given:
            number = self._next.get(stem, 2)
            self._next[stem] = number + 1
            name = f"{stem}~{number}"
        self._given.add(name)
        return name
