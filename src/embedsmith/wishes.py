"""What a question wishes for its answer: the language, the form, the length, for whom.

"How do I cancel? Answer in Spanish." is another question than "How do I cancel?", and an embedding hardly sees it. The
same words may be what is asked about ("How do I say hello in German?"), so where they stand decides:

- A wish is *firm* where nothing else can be meant: behind a word that asks for an answer ("reply in German", "auf
  Deutsch antworten"), or as a clause of its own ("In one sentence.", "(German)", "JSON only").
- It is *loose* where it ends a clause or opens one ("Explain the tariff in German", "Step by step, how do I …"). It may
  be the topic; then another text that asks the same names it as well, in whatever place.

A mere politeness ("could you briefly explain") is none. English, German, French, Spanish, Italian, Portuguese, Dutch,
Chinese, Japanese and Korean; the words are in data/words.toml.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

from embedsmith.lexicon import TOKEN, holds_hangul, holds_signs, load_lexicon, load_tables, stem

PIECE = re.compile(
    rf"(?P<word>{TOKEN.pattern})|(?P<pause>[,，、])|(?P<bracket>[()\[\]（）])|[.?!;:{{}}\n|¿¡。．！？；：…]|(?<=\s)[-–—](?=\s)"
)
END, PAUSE, SKIPPED = "|", ",", "~"  # of a clause, in it, and what was politeness
NAMED = frozenset({"language", "form"})  # kinds of names: where they open or end a clause, they are mostly the topic
# These are wishes only where somebody is told to explain or write: dates are written in JSON, books are for beginners,
# and what a question in English calls "in English" is a film.
UNLIKELY = re.compile(r"(?:in|im|en) ")
UNSAID = re.compile(r"in english")
AIMED = re.compile(r"(?:for|to|für|pour|à|para|a|einem) (?!(?:a )?(?:dumm|lay))")  # nothing is made for dummies
FEW = "{0,8}"
NEAR = 120  # letters before a wish among which a word that asks for it is looked for
SPACE = re.compile(" ")
Key = tuple[str, str]  # kind, value
Signed = tuple[Key, "Entry", re.Pattern[str]]
Hangul = tuple["Entry", tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A wish that the tables know.

    Attributes:
        kind: "language", "form", "length" or "audience". name: the value, but for a count ("word": "100 word").
        words: stems that name it, as a wish or as a topic. signs: the same in Chinese, Japanese and Korean.
        wish: a pattern of how it is wished for, compiled when a text has one of the words; in the group "bare" as a
            word of its own, in "count" how many.
    """

    kind: str
    name: str
    words: frozenset[str]
    signs: re.Pattern[str] | None
    wish: str

    def count_named(self, bag: Mapping[str, int], text: str) -> int:
        """Return how often a text names it."""
        signs = len(self.signs.findall(text)) if self.signs is not None and not text.isascii() else 0
        return signs + sum(bag.get(word, 0) for word in self.words)


@dataclass(frozen=True, slots=True)
class Wish:
    """One wish for the answer.

    Attributes:
        kind, value: what for, by its English name. firm: it cannot be the topic.
        beside: how often another text has to name it, and once more, to ask for it too.
    """

    kind: str
    value: str
    firm: bool
    beside: int
    entry: Entry = field(repr=False, compare=False)

    @property
    def key(self) -> Key:
        """Return what two wishes for the same have in common."""
        return self.kind, self.value


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wishes of a text in the order of their keys, and the text without those of their words that are no topic."""

    found: tuple[Wish, ...]
    rest: str

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return what is wished for."""
        return tuple(wish.key for wish in self.found)


NONE = Wishes((), "")


def may_wish(bag: Mapping[str, int], signed: bool) -> bool:
    """Say whether a text with these stems may hold a wish; `signed`: Chinese, Japanese or Korean is among them."""
    return signed or not _known().by_word.keys().isdisjoint(bag)


def find_unmet(one: Wishes, other: Wishes, bag: Mapping[str, int], text: str) -> Wish | None:
    """Return the first wish of `one` that `other` does not share, None where there is none.

    Args:
        bag, text: the stems of the other text with their counts, and that text: what it names is no loose wish.
    """
    theirs = other.keys
    for wish in one.found:
        if wish.key not in theirs and (wish.firm or wish.entry.count_named(bag, text) <= wish.beside):
            return wish
    return None


@lru_cache(maxsize=1 << 14)
def read_wishes(text: str) -> Wishes:
    """Return the wishes of a text.

    >>> read_wishes("What is a deductible? In one sentence, auf Deutsch bitte.").keys
    (('language', 'german'), ('length', '1 sentence'))
    >>> read_wishes("How long is it in short tracks?").keys
    ()
    """
    lowered = text.lower().replace("’", "'")
    if len(lowered) != len(text):  # a few capitals have small letters of another length
        text = lowered
    found = [*_find_spaced(lowered)]
    if not lowered.isascii():
        found += _find_signed(lowered) if holds_signs(lowered) else ()
        found += _find_hangul(lowered) if holds_hangul(lowered) else ()
    beside = _cut(lowered, found)
    if not found or not any(map(str.isalnum, beside)):  # who says nothing else asks about the words
        return NONE
    bag = Counter(map(stem, TOKEN.findall(beside)))
    wishes = {}
    for place in sorted(found, key=lambda place: (place.key, place.firm)):  # the firm ones last
        count = place.entry.count_named(bag, beside) if place.told else 0
        kind, value = place.key
        wishes[place.key] = Wish(kind, value, place.firm, count, place.entry)
    own = [place for place in found if place.firm or place.key[0] not in NAMED]
    return Wishes(tuple(wishes.values()), _cut(text, own))


@dataclass(frozen=True, slots=True)
class _Place:
    """A wish where it stands.

    Attributes:
        span: of what belongs to it alone ("Answer in … please"). told: its clause tells somebody to explain or write.
    """

    key: Key
    entry: Entry
    firm: bool
    told: bool
    span: tuple[int, int]


def _cut(text: str, places: Iterable[_Place]) -> str:
    kept, at = [], 0
    for start, end in sorted(place.span for place in places):
        kept.append(text[at:start])
        at = max(at, end)
    return " ".join([*kept, text[at:]])


def _find_spaced(lowered: str) -> Iterator[_Place]:
    """Yield the wishes in words with spaces between them."""
    known = _known()
    pieces = list(PIECE.finditer(lowered))
    words = (stem(piece[0].partition("'")[0]) for piece in pieces if piece["word"])  # layman's
    entries = list(dict.fromkeys(entry for word in words for entry in known.by_word.get(word, ())))
    if not entries:
        return
    flat = " ".join([END, *_name_pieces(pieces), END])
    flat = known.heedless.sub(lambda match: " ".join(SKIPPED for _ in match[0].split()), flat)
    places = [0, *(match.end() for match in SPACE.finditer(flat))]  # where each word begins
    for entry in entries:
        for match in _compile(entry.wish).finditer(flat):
            clause = flat.rindex(END, 0, match.start())
            near = max(clause, match.start() - NEAR)
            told = known.told.match(flat, clause, match.start()) or known.explained.search(flat, near, match.start())
            placed = _place(flat, entry, match, near, told is not None)
            if placed is not None:
                firm, start, end = placed
                first, last = bisect(places, start) - 2, bisect(places, end - 1) - 2  # END stands before all
                key = entry.kind, _name_value(entry, match)
                yield _Place(key, entry, firm, told is not None, (pieces[first].start(), pieces[last].end()))


def _name_pieces(pieces: Iterable[re.Match[str]]) -> Iterator[str]:
    """Yield the words, and END or PAUSE for what stands between them; brackets behind a sentence are another one."""
    last = inside = END
    for piece in pieces:
        if piece["bracket"]:
            inside = (END if last == END else PAUSE) if piece[0] in "([（" else inside
            last = inside
        else:
            last = piece[0] if piece["word"] else PAUSE if piece["pause"] else END
        yield last


def _place(flat: str, entry: Entry, match: re.Match[str], clause: int, told: bool) -> tuple[bool, int, int] | None:
    """Return whether words are a firm wish, and where it begins and ends; None where they are no wish.

    `clause` is where to begin reading before it.
    """
    known = _known()
    start, end = match.span()
    bare = match["bare"] is not None
    asked, opens = known.asked.search(flat, clause, start), known.opens.search(flat, clause, start)
    closes, follows = known.closes.match(flat, end), known.follows.match(flat, end) is not None
    before = asked or opens
    begin = before.start("clause") if before is not None else start
    answered = known.answered.match(flat, end)
    if answered is not None and (opens is not None or not bare):
        return True, begin, answered.end()
    if asked is not None and (closes is not None or (follows and not bare)):
        return (True, begin, closes.end("clause")) if closes is not None else (True, start, end)
    if opens is not None and closes is not None:
        own = opens["mark"] == closes["mark"] == END
        if own or opens["clause"] or closes["clause"]:
            return True, begin, closes.end("clause")
    if bare and entry.kind in NAMED:  # "… (German)" at the end
        ended = opens is not None and closes is not None and flat.startswith(f" {PAUSE} {END}", closes.end("clause"))
        return (False, start, end) if ended else None
    if not told and (
        (entry.kind == "audience" and AIMED.match(match[0]))
        or (entry.kind == "form" and UNLIKELY.match(match[0]))
        or UNSAID.match(match[0])
    ):
        return None
    follows = follows or known.asks.match(flat, end) is not None
    loose = (opens is not None and (closes is not None or follows)) or (closes is not None and (told or not bare))
    return (False, start, end) if loose else None


def _name_value(entry: Entry, match: re.Match[str]) -> str:
    count = match.groupdict().get("count")
    if count is None:
        return entry.name
    lexicon = load_lexicon()
    number = count if count[0].isdecimal() else f"{lexicon.numbers.get(count, lexicon.korean.numbers.get(count, 1)):g}"
    least = "at least " if match.groupdict().get("least") else ""
    return f"{least}{number} {entry.name}"


def _find_signed(lowered: str) -> Iterator[_Place]:
    """Yield the wishes in Chinese and Japanese."""
    if _known().any_signed.search(lowered) is None:
        return
    for key, entry, pattern in _known().signed:
        for match in pattern.finditer(lowered):
            named = match.groupdict()
            yield _Place(key, entry, not named or any(named.values()), False, match.span())


def _find_hangul(lowered: str) -> Iterator[_Place]:
    """Yield the wishes in Korean."""
    for entry, patterns in dict.fromkeys(wish for word, wish in _known().hangul if word in lowered):
        for match in chain.from_iterable(_compile(pattern).finditer(lowered) for pattern in patterns):
            named, key = match.groupdict(), (entry.kind, _name_value(entry, match))
            yield _Place(key, entry, not named or any(named.values()), False, match.span())


# The tables of words.toml


@dataclass(frozen=True, slots=True)
class _Known:
    """What surrounds a wish, all wishes by the stems of their words, and those in signs.

    Attributes:
        heedless: politeness. asked: a word that asks for an answer stands before. told: it opens the clause.
        explained: somebody explains in it, or is told to answer right before.
        opens, closes: nothing else stands before, behind in the clause. answered: a word that asks closes it.
        follows: a question or clause begins behind. asks: a word that asks for an answer stands behind.
        hangul: wishes in Korean by the words without which a text holds none.
    """

    heedless: re.Pattern[str]
    asked: re.Pattern[str]
    told: re.Pattern[str]
    explained: re.Pattern[str]
    opens: re.Pattern[str]
    closes: re.Pattern[str]
    answered: re.Pattern[str]
    follows: re.Pattern[str]
    asks: re.Pattern[str]
    by_word: Mapping[str, tuple[Entry, ...]]
    signed: tuple[Signed, ...]
    any_signed: re.Pattern[str]
    hangul: tuple[tuple[str, Hangul], ...]


@lru_cache(maxsize=1)
def _known() -> _Known:
    tables = load_tables()["wishes"]
    answers, explains = _either(tables["answers"]), _either(tables["explains"])
    asks, manners = _either(tables["answers"], tables["asks"]), _either(tables["polite"], tables["only"])
    leading = _either(*(tables[name] for name in ("before", "polite", "only")))
    between = _either(*(tables[name] for name in ("between", "polite", "only")))
    entries = [*_list_entries(tables)]
    by_key = {(entry.kind, entry.name): entry for entry in entries}
    signed = tuple(_list_signed(tables["signs"], by_key))
    by_word: dict[str, list[Entry]] = {}
    for entry in entries:
        for word in entry.words:
            by_word.setdefault(word, []).append(entry)
    return _Known(
        heedless=re.compile(rf"(?<= )(?:{'|'.join(tables['heedless'])})(?= )"),
        asked=re.compile(rf"[|,] (?P<clause>(?:{leading} ){FEW}{asks} (?:{between} ){FEW})$"),
        told=re.compile(rf"\| (?:{leading} ){FEW}{asks} "),
        explained=re.compile(rf" (?:{explains} |{answers} (?:{between} ){FEW}$)"),
        opens=re.compile(rf"(?P<mark>[|,]) (?P<clause>(?:{manners} ){FEW})$"),
        closes=re.compile(rf"(?P<clause>(?:(?: ,)? {manners}){FEW}) (?P<mark>[|,])"),
        answered=re.compile(rf"(?: {between}){FEW} {asks}(?: {manners}){FEW}(?= [|,])"),
        follows=re.compile(rf" {_either(tables['follow'])} "),
        asks=re.compile(rf" {asks} "),
        by_word={word: tuple(found) for word, found in by_word.items()},
        signed=signed,
        any_signed=re.compile("|".join(re.sub(r"\?P<\w+>", "?:", pattern.pattern) for _, _, pattern in signed)),
        hangul=tuple(_list_hangul(tables["hangul"], by_key)),
    )


_compile = lru_cache(maxsize=None)(re.compile)


def _either(*lists: str) -> str:
    """Return a pattern of the words of lists; each once, or a long text would be read in too many ways."""
    words = dict.fromkeys(chain.from_iterable(words.split() for words in lists))
    return f"(?:{'|'.join(re.escape(word).replace('_', ' ') for word in words)})"


def _list_entries(tables: Mapping[str, Any]) -> Iterator[Entry]:
    for kind, names, before, behind in (
        ("language", tables["languages"], tables["in_language"], "language|sprache|langue|idioma|only"),
        ("form", tables["forms"], tables["in_form"], "format|form|object|array|document"),
    ):
        for listed in names:
            wished = f"{_either(listed)}(?: (?:{behind}))?"
            name, bare = listed.split()[0], f"(?:{_either(tables['articles'])} )?{wished}"
            signs = "|".join(filter(None, (tables[writing][f"{kind}s"].get(name) for writing in ("signs", "hangul"))))
            yield _build(kind, name, listed, signs, f"{before} {wished}", bare)
    for row in tables["others"]:
        full, bare = ("|".join(row.get(place, ())) or "(?!)" for place in ("phrases", "bare"))
        yield _build(row["kind"], row["value"], row["words"], None, full, bare)
    counted = tables["counted"]
    plain = " ".join(word for word in counted["before"].split() if word not in counted["least"].split())
    numbers = _either(counted["one"], " ".join(load_lexicon().numbers))
    for listed in counted["units"]:
        count = rf"(?P<count>\d+(?: \d+)?|{numbers}) {_either(listed)}{counted['behind']}"
        before = rf"(?:(?:{_either(plain)}|(?P<least>{_either(counted['least'])})) ){{1,4}}"
        ahead = rf"(?:an? )?(?=\S+ \S+ {_either(counted['texts'])} )"  # a one word answer
        full = f"(?:{before}|{ahead}){count}(?: {_either(counted['texts'])})?"
        yield _build("length", listed.split()[0], listed, None, full, "(?!)")


def _build(kind: str, name: str, words: str, signs: str | None, full: str, bare: str) -> Entry:
    return Entry(
        kind,
        name,
        frozenset(stem(word) for word in words.replace("_", " ").split()),
        re.compile(signs) if signs else None,
        rf"(?<= )(?:(?:{full})|(?P<bare>{bare}))(?= )",
    )


def _list_signed(signs: Mapping[str, Any], by_key: Mapping[Key, Entry]) -> Iterator[Signed]:
    for kind in ("language", "form"):
        for name, names in signs[f"{kind}s"].items():
            yield (kind, name), by_key[kind, name], re.compile(signs["named"].replace("{names}", names))
    for kind, value, pattern in signs["others"]:
        name = value.rpartition(" ")[2] if value[0].isdecimal() else value
        yield (kind, value), by_key[kind, name], re.compile(pattern)


def _list_hangul(table: Mapping[str, Any], by_key: Mapping[Key, Entry]) -> Iterator[tuple[str, Hangul]]:
    for key, found_by, words, told in _write_hangul(table):
        patterns = tuple(
            wished.replace("{words}", words).replace("{told}", told).replace("{shown}", table["shown"])
            for wished in table["wished"]
        )
        yield from ((word, (by_key[key], patterns)) for word in found_by)


def _write_hangul(table: Mapping[str, Any]) -> Iterator[tuple[Key, list[str], str, str]]:
    """Yield for each wish in Korean what for, by what it is found, its words, and what asks for an answer behind them.

    Only a language or a form may be the topic, so for those what asks is a group.
    """
    for kind in ("language", "form"):
        for name, names in table[f"{kind}s"].items():
            words = table["named"].replace("{names}", names)
            yield (kind, name), names.split("|"), words, f"(?P<told>{table['told']})"
    numbers = "|".join(load_lexicon().korean.numbers)
    for name, names in table["units"].items():
        words = table["counted"].replace("{numbers}", numbers).replace("{names}", names)
        yield ("length", name), names.split("|"), words, table["told"]
    for kind, value, found_by, words in table["others"]:
        yield (kind, value), found_by.split(), words, table["told"]
