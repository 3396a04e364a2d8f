"""Controlled edits: a query with exactly one fact changed. Negatives that look like the query and need another answer.

No model writes them, so what was changed is known, and so is how near it is. English only; a query in which nothing
can be changed safely yields nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from embedsmith.facts import find_changes
from embedsmith.text import normalize

NEAREST, NEAR, FAR = 3, 2, 1
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-zA-Z]+(?: [A-Z][a-zA-Z]+){0,2}\b")
# Nobody of another age or sex is put into such a question.
INTIMATE = re.compile(
    r"\b(?:sex|porn|nud|nake|rap(?:e|is)|penis|vagin|breast|ejacul|masturb|horny|virgin|incest|bed\b|pregnan)", re.I
)
ENDS = re.compile(r"[?.,;!)]|$| (?:and|or|if|when|without|with|for|to|from|on|in|at|before|after|during|by|as)\b")
NUMBER = re.compile(r"(?<![\w.,:/$€£-])\d{1,6}(?![\w.,:/%-]|\s?(?:am|pm)\b)")
YEAR = re.compile(r"\b20[0-3]\d\b|\b19\d\d\b")
ROUTE = re.compile(r"\bfrom ((?:[A-Z]\w+ ?){1,2}|\w+) (to|into) ((?:[A-Z]\w+ ?){1,2}(?<! )|\w+)")
OFTEN = 3
OTHERS = 200  # names that one may be swapped with: a log of many names has as many lists
Found = tuple[str, int, str]  # the edited query, grade, what was changed


@dataclass(frozen=True, slots=True)
class Edit:
    """A query with one fact changed.

    Attributes:
        kind: one of `facts.KINDS`. grade: 3 nearest (one step in a list or of 20%), 2 near, 1 far.
        detail: "30 → 60".
    """

    query: str
    text: str
    kind: str
    grade: int
    detail: str


def draw_edits(query: str, names: Mapping[str, Sequence[str]], *, seed: int = 0) -> list[Edit]:
    """Return one edit of each kind that the query allows, in an order that the seed and the query decide.

    Args:
        names: see `collect_names`.
    """
    generator = random.Random(hashlib.sha256(f"{seed}\n{query}".encode("utf-8", "replace")).digest())
    found = list_edits(query, names, generator)
    generator.shuffle(found)
    taken: dict[str, Edit] = {}
    for edit in found:
        taken.setdefault(edit.kind, edit)
    return list(taken.values())


def list_edits(query: str, names: Mapping[str, Sequence[str]], generator: random.Random) -> list[Edit]:
    """Return all edits of a query that the rules of `facts` see as a change of fact."""
    makers: Mapping[str, Callable[[], Iterable[Found]]] = {
        "number": lambda: _change_numbers(query),
        "unit": lambda: _swap_words(query, _tables().units, NEAREST, after_number=True),
        "negation": lambda: _negate(query),
        "entity": lambda: [*_swap_family(query, "entity", generator), *_swap_names(query, names, generator)],
        "time": lambda: [*_swap_family(query, "time", generator), *_change_years(query, generator)],
        "direction": lambda: [*_turn_around(query), *_swap_words(query, _tables().directions, NEAREST)],
        "population": lambda: [] if INTIMATE.search(query) else _swap_family(query, "population", generator),
    }
    edits = []
    for kind, make in makers.items():
        for text, grade, detail in make():
            if normalize(text) != normalize(query) and find_changes(query, text):
                edits.append(Edit(query, text, kind, grade, detail))
    return edits


def collect_names(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return for each name in the texts those that stand behind the same words: Leeds for York, not Python for York.

    Two names are of a kind when they share at least three of the words before them, and half of all. Of more than
    `OTHERS` of a kind, those that a hash puts first are taken.
    """
    before: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        if not _is_titled(text):
            for match in NAME.finditer(text):
                before[match.group(0)].add(text[: match.start()].split()[-1].casefold())
    known = {name: words for name, words in sorted(before.items()) if len(words) >= OFTEN}
    drawn = sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest())
    find_kind = _index_words([known[name] for name in drawn])
    kinds: dict[frozenset[str], list[str]] = {}  # one more than is taken: the name itself is among them
    found = {}
    for name, words in known.items():
        same = frozenset(words)
        if same not in kinds:
            kinds[same] = [drawn[place] for place in find_kind(words)[: OTHERS + 1]]
        found[name] = sorted([other for other in kinds[same] if other != name][:OTHERS])
    return found


def _index_words(sets: Sequence[set[str]]) -> Callable[[set[str]], list[int]]:
    """Return what finds the places of the sets that are of a kind with one; numpy, since logs have many names."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(sets):
        for word in words:
            places[word].append(place)
    index = {word: np.array(found) for word, found in places.items()}
    sizes = np.array([len(words) for words in sets])

    def find(words: set[str]) -> list[int]:
        shared = np.bincount(np.concatenate([index[word] for word in words]), minlength=len(sizes))
        alike = (shared >= OFTEN) & (2 * shared >= len(words) + sizes - shared)
        return np.flatnonzero(alike).tolist()

    return find


def _is_titled(text: str) -> bool:
    """Say whether most words have a capital, which then tells no names."""
    found = re.findall(r"[^\W\d_]+", text)
    return bool(sum(word[0].isupper() for word in found) > max(3, 0.5 * len(found)))


def _change_numbers(query: str) -> Iterator[Found]:
    for match in NUMBER.finditer(query):
        value = int(match.group(0))
        named = re.search(r"[A-Z]\w* $", query[: match.start()]) and match.start() > 8  # Xbox 360
        if value < 2 or named or YEAR.fullmatch(match.group(0)):
            continue
        step = 10 ** (len(match.group(0)) - 1)  # the first digit goes one up or down
        near = value + step if value < 5 * step else value - step
        for changed, grade in ((near, NEAREST if abs(near - value) <= 0.2 * value else NEAR), (value * 10, FAR)):
            yield _replace(query, match.span(), str(changed)), grade, f"{value} → {changed}"
    yield from _swap_words(query, _tables().numbers, NEAR)


def _change_years(query: str, generator: random.Random) -> Iterator[Found]:
    for match in YEAR.finditer(query):
        changed = int(match.group(0)) + generator.choice([-3, -2, -1, 1, 2])
        yield _replace(query, match.span(), str(changed)), NEAREST, f"{match.group(0)} → {changed}"


def _negate(query: str) -> Iterator[Found]:
    if re.search(r"\bnot\b|n['’]t\b|\bnever\b", query, re.I):
        return
    for pattern, replacement, detail in _tables().negations:
        changed, count = pattern.subn(replacement, query, count=1)
        if count:
            yield changed, NEAREST, detail
            return


def _turn_around(query: str) -> Iterator[Found]:
    match = ROUTE.search(query)
    if match and match.group(1).strip() != match.group(3).strip():
        one, link, other = (part.strip() for part in match.groups())
        yield _replace(query, match.span(), f"from {other} {link} {one}"), NEAREST, f"{one} ↔ {other}"


def _swap_names(query: str, names: Mapping[str, Sequence[str]], generator: random.Random) -> Iterator[Found]:
    if _is_titled(query):
        return
    for match in NAME.finditer(query):
        name = match.group(0)
        others = [other for other in names.get(name, ()) if other not in query]
        if others and ENDS.match(query[match.end() :]):  # "Latin dancing" needs a word of its own kind
            other = generator.choice(others)
            yield _replace(query, match.span(), other), NEAR, f"{name} → {other}"


def _swap_family(query: str, kind: str, generator: random.Random) -> Iterator[Found]:
    """Yield the query with a word of a family exchanged for the same form of another member."""
    for family in _tables().families:
        if family.kind != kind:
            continue
        named = list(family.pattern.finditer(query))
        if len(named) != 1:  # two of a family compare them
            continue
        word = named[0].group(0)
        if (named[0].start() and word[0].isupper() and word not in family.written) or _is_part(query, named[0].end()):
            continue
        here, form = family.places[word.casefold()]
        fitting = [forms for place, forms in enumerate(family.members) if place != here and len(forms) > form]
        if fitting:
            other = generator.choice(fitting)[form]
            yield _replace(query, named[0].span(), other), NEAREST, f"{word} → {other}"


def _is_part(query: str, end: int) -> bool:
    """Say whether a word is the beginning of another: boy friend, car-pool."""
    return re.match(r"-|['’]?s? ?(?:friend|mate|code|land)", query[end:], re.I) is not None


def _swap_words(query: str, table: Mapping[str, str], grade: int, *, after_number: bool = False) -> Iterator[Found]:
    for match in re.finditer(r"[^\W\d_]+|[€$£]", query):
        other = table.get(match.group(0).casefold())
        behind_number = re.search(r"\d\s?$", query[: match.start()]) is not None
        if other is not None and (behind_number or not after_number):
            yield _replace(query, match.span(), other), grade, f"{match.group(0)} → {other}"


def _replace(query: str, span: tuple[int, int], new: str) -> str:
    """Return the query with `new` in the place of a word, its capital and the article before it made to fit."""
    old = query[span[0] : span[1]]
    if old[:1].isupper() and (span[0] == 0 or old[1:].islower()):
        new = new[:1].upper() + new[1:]
    if old.isupper() and len(old) > 1:
        new = new.upper() if new.isalpha() and len(new) <= 4 else new
    head, tail = query[: span[0]], query[span[1] :]
    article = re.search(r"\b(an?) $", head, re.I)
    if article and new[:1].isalpha():
        fitting = "an" if new[:1].casefold() in "aeio" or new[:2].casefold() in {"un", "ur", "ug"} else "a"
        fitting = fitting.capitalize() if article.group(1)[0].isupper() else fitting
        head = head[: article.start()] + fitting + " "
    return head + new + tail


@dataclass(frozen=True, slots=True)
class _Family:
    kind: str
    members: tuple[tuple[str, ...], ...]
    written: frozenset[str]
    places: Mapping[str, tuple[int, int]]  # member and form by the word in small letters
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Tables:
    units: Mapping[str, str]
    numbers: Mapping[str, str]
    directions: Mapping[str, str]
    negations: tuple[tuple[re.Pattern[str], str, str], ...]
    families: tuple[_Family, ...]


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    tables: dict[str, Any] = tomllib.loads(
        (resources.files("embedsmith") / "data" / "edits.toml").read_text(encoding="utf-8")
    )
    families = []
    for family in tables["families"]:
        members = tuple(tuple(form.replace("_", " ") for form in member.split()) for member in family["members"])
        forms = sorted({form for member in members for form in member}, key=lambda form: (-len(form), form))
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", re.I)
        places = {
            word.casefold(): (member, form) for member, words in enumerate(members) for form, word in enumerate(words)
        }
        families.append(_Family(family["kind"], members, frozenset(forms), places, pattern))
    return _Tables(
        units=_both_ways(tables["units"]),
        numbers=_both_ways(tables["numbers"]),
        directions=_both_ways(tables["directions"]),
        negations=tuple(
            (re.compile(pattern, re.I), replacement, detail) for pattern, replacement, detail in tables["negations"]
        ),
        families=tuple(families),
    )


def _both_ways(pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one, other in pairs:
        for here, there in ((one, other), (other, one)):
            for word, against in zip(here.split(), there.split(), strict=True):
                found.setdefault(word, against)
    return found
