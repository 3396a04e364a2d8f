"""What is known of words, most of them English: numbers, units, stems, opposites, synonyms (data/words.toml).

The cache's guard and the facts of synthetic examples stand on it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain
from typing import Any

from embedsmith.text import SIGNED

# French and Italian words that lose their vowel: what matters stands behind them
ELIDED = frozenset(
    ["l", "d", "j", "m", "n", "t", "s", "c", "qu", "jusqu", "lorsqu", "puisqu", "un", "all", "dell", "nell"]
)
TOKEN = re.compile(r"\d+/\d+|\d+(?::\d+)+|\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?(?:\+\+|#)?|[%€$£]")
LARGEST = 1e300
ARTICLES = frozenset(("a", "an", "one"))
SIGN = re.compile(f"[{SIGNED}]")
HIRAGANA = tuple(map(chr, range(0x3041, 0x3097)))
KATAKANA = "[\u30a1-\u30fa\u30fc-\u30ff]+"
WHETHER = re.compile(rf"([{SIGNED}]{{1,2}})[不没沒]\1")  # "can not can": whether it can


@dataclass(frozen=True, slots=True)
class Lexicon:
    small: frozenset[str]
    fillers: frozenset[str]
    framing: re.Pattern[str]
    directions: frozenset[str]
    negators: frozenset[str]
    opposites: dict[str, frozenset[str]]
    alike: dict[str, str]
    units: dict[str, tuple[str, float]]
    numbers: dict[str, float]
    signs: re.Pattern[str]
    names: dict[str, str]


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    tables = tomllib.loads((resources.files("embedsmith") / "data" / "words.toml").read_text(encoding="utf-8"))
    signs = tables["signs"]
    opposites: dict[str, set[str]] = {}
    for left, right in [*tables["opposites"], *signs["opposites"]]:
        one, other = ({stem(word) for word in side.split()} for side in (left, right))
        for word in one:
            opposites.setdefault(word, set()).update(other - {word})
        for word in other:
            opposites.setdefault(word, set()).update(one - {word})
    names = _name_signs(signs)
    longest = sorted(names, key=len, reverse=True)
    alike = {stem(word): stem(group.split()[0]) for group in reversed(tables["alike"]) for word in group.split()}
    return Lexicon(
        small=frozenset([*tables["small"], *signs["small"].split(), *HIRAGANA]),
        fillers=frozenset(stem(word) for word in tables["fillers"]),
        framing=re.compile(rf"(?:(?:{'|'.join(tables['framing'])}) )+"),
        directions=frozenset(stem(word) for word in [*tables["directions"], *signs["directions"].split()]),
        negators=frozenset(stem(word) for word in [*tables["negators"], *signs["negators"].split()]),
        opposites={word: frozenset(others) for word, others in opposites.items()},
        alike=alike,
        units={stem(name): (kind, factor) for names, factor, kind in tables["units"] for name in names.split()},
        numbers={word: float(value) for word, value in tables["numbers"].items()},
        signs=re.compile("|".join([*map(re.escape, longest), KATAKANA, SIGN.pattern])),
        names=names,
    )


def _name_signs(signs: dict[str, Any]) -> dict[str, str]:
    """Return the name of each word of more than one sign, and of those that mean the same."""
    lists = [signs["negators"], signs["plain"], signs["small"], signs["directions"], *chain(*signs["opposites"])]
    names = {word: word for found in lists for word in found.split()}
    return names | {word: group.split()[0] for group in signs["alike"] for word in group.split()}


def holds_signs(text: str) -> bool:
    """Say whether kana or Chinese signs are in `text`."""
    return SIGN.search(text) is not None


def part_signs(text: str, lexicon: Lexicon) -> str:
    """Return `text` with spaces around each word of Chinese and Japanese that is known, else around each sign.

    >>> part_signs("我可不可以退款", load_lexicon())
    ' 我  可以  退  款 '
    """
    return lexicon.signs.sub(lambda match: f" {lexicon.names.get(match[0], match[0])} ", WHETHER.sub(r"\1", text))


def expand_contractions(tokens: list[str]) -> list[str]:
    """Return the tokens with n't and cannot written out, and without 's and French elisions.

    >>> expand_contractions(["isn't", "mum's", "l'espagne"])
    ['is', 'not', 'mum', 'espagne']
    """
    found: list[str] = []
    for token in tokens:
        if token.isalpha() and token != "cannot":
            found.append(token)
            continue
        word = token.replace("’", "'")
        if word.endswith("n't"):
            verb = {"ca": "can", "wo": "will", "sha": "shall"}.get(word[:-3], word[:-3])
            found += [verb, "not"] if verb else ["not"]  # "do n't", as some tokenizers leave it
        elif word == "cannot":
            found += ["can", "not"]
        else:
            head, _, tail = word.partition("'")
            found.append(tail if head in ELIDED and len(tail) > 2 else head or word)
    return found


def read_number(tokens: list[str], place: int, lexicon: Lexicon) -> tuple[float | None, int]:
    """Return the number that begins at `place` (None: there is none) and how many tokens it takes."""
    token = tokens[place]
    if token[0].isdecimal():  # what \d finds; isdigit knows signs that float does not read
        if "/" in token:
            part, whole = token.split("/")
            return (_read(part) / _read(whole), 1) if _read(whole) else (None, 0)
        if ":" in token:
            hours, minutes = token.split(":")[:2]
            return _read(hours) + _read(minutes) / 60, 1
        digits = token.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", token) else token.replace(",", ".")
        return _read(digits if digits.count(".") <= 1 else digits.replace(".", "")), 1
    value = lexicon.numbers.get(token)
    if value is None and token in ARTICLES and place + 1 < len(tokens):
        following = stem(tokens[place + 1])
        return (1.0, 1) if following in lexicon.units else (None, 0)
    if value is None:
        return None, 0
    used = 1
    while place + used < len(tokens) and (more := lexicon.numbers.get(tokens[place + used])) is not None:
        if more < 10 <= value < 100:
            value += more
        elif more >= 100:
            value *= more
        else:
            break
        used += 1
    return value, used


def _read(digits: str) -> float:
    """Return the number; a text may hold thousands of digits, which neither overflow nor become infinite."""
    return min(float(digits), LARGEST)


def read_unit(value: float, tokens: list[str], place: int, lexicon: Lexicon) -> tuple[str, float, int]:
    """Return (kind, value in the unit of the kind, tokens taken) for a number before `place`."""
    following = tokens[place] if place < len(tokens) else ""
    if following in {"am", "pm"}:
        return "clock", value % 12 + (12 if following == "pm" else 0), 1
    if ":" in tokens[place - 1]:
        return "clock", value, 0
    if following in {"a", "an"} and place + 1 < len(tokens) and stem(tokens[place + 1]) in lexicon.units:
        kind, factor = lexicon.units[stem(tokens[place + 1])]  # half an hour
        return kind, value * factor, 2
    if stem(following) in lexicon.units:
        kind, factor = lexicon.units[stem(following)]
        return kind, value * factor, 1
    return "plain", value, 0


@lru_cache(maxsize=1 << 14)
def stem(word: str) -> str:
    """Return the word without the endings of number and tense; the same for both questions is all that counts.

    >>> stem("cancelled"), stem("cancelling"), stem("companies"), stem("fees")
    ('cancel', 'cancel', 'company', 'fee')
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sz" else word
    if len(word) > 3 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word
