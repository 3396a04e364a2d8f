"""What is known of words, most of them English (data/words.toml), and the one reader of numbers, units and families.

Two policies stand on it: the cache's guard refuses what an answer must not be shared across, `facts` names what a
paraphrase must not exchange. What `facts.find_changes` names between two members of these tables, the guard refuses
(tests/cache/test_guard.py tries all of them).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain, combinations
from typing import Any, NamedTuple

from embedsmith.artifacts import fingerprint
from embedsmith.text import MARKS, SIGNED

# French and Italian words that lose their vowel: what matters stands behind them
ELIDED = frozenset(
    ["l", "d", "j", "m", "n", "t", "s", "c", "qu", "jusqu", "lorsqu", "puisqu", "un", "all", "dell", "nell"]
)
LETTERS = rf"[^\W\d_]+(?:[{MARKS}]+[^\W\d_]*)*"
TOKEN = re.compile(rf"\d+/\d+|\d+(?::\d+)+|\d+(?:[.,]\d+)*|{LETTERS}(?:['’]{LETTERS})?(?:\+\+|#)?|[%€$£¥₹]")
LARGEST = 1e300
MARK = "~"  # in a name that is no English word (`western`): behind it, before that of a small word
ARTICLES = frozenset(("a", "an", "one"))
PARTS = {"half": 1 / 2, "quarter": 1 / 4, "third": 1 / 3}
ORDINALS = frozenset(("first", "second", "third", "fourth", "last"))
LONE_SCALES = {"k": "thousand", "mil": "million"}  # as a word of their own: "5 m" are metres
TIME = re.compile(r"\d{1,2}:\d\d(?::\d\d)?")
YEAR = re.compile(r"(?:19|20)\d\d")
UNNAMED = frozenset(("plain", "year", "ordinal"))  # "the 500 notes" may be of 500 rupees, 2000 may be a year or not
POUND = 453.59237  # grams
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
TENS = range(20, 100, 10)
SIGN = re.compile(f"[{SIGNED}]")
HIRAGANA = tuple(map(chr, range(0x3041, 0x3097)))
KATAKANA = "[\u30a1-\u30fa\u30fc-\u30ff]+"
HANGUL = re.compile("[가-힣]+")
SCALED = re.compile(r"(?<!\d)(\d+(?:,\d{3})*(?:\.\d+)?) ?([천만억])")  # 5만 is 50,000
SCALES = {"천": 10**3, "만": 10**4, "억": 10**8}
TENFOLD = {"천": 1000, "백": 100, "십": 10}
DIGITS = "일이삼사오육칠팔구"
NEGATED = re.compile("지(?:는|도|를)?(?=[않못])[가-힣]*|지(?:마|말)[가-힣]*")
ASKED_WHY = re.compile("왜|이유|까닭|어째서")
WHETHER = re.compile(rf"([{SIGNED}]{{1,2}})[不没沒]\1")  # "can not can": whether it can
CASED = re.compile(r"\d ?([^\W\d_]{2,12}?)(?:ps|/s)?(?!\w)")  # a unit behind its number, and not per second
SYMBOL = 3  # letters up to which a unit is a symbol, and its case counts
CASED_ALONE = re.compile(rf"(?<!\w)([^\W\d_]{{2,{SYMBOL}}}?)(?:ps|/s)?(?!\w)")  # what may be one without a number
Quantity = tuple[str, float]  # kind, value in the unit of that kind
Entry = tuple[int, int, bool]  # family, member, whether it must be written with a capital
Phrases = dict[str, tuple[tuple[tuple[str, ...], tuple[Entry, ...]], ...]]


class Amount(NamedTuple):
    """A number as it was read, with its unit.

    Attributes:
        kind, value: the quantity, in the unit of its kind. number: the number as written, in its own unit.
        before, used: tokens up to the unit, and with it. said: only an article says the number.
    """

    kind: str
    value: float
    number: float
    before: int
    used: int
    said: bool


class Member(NamedTuple):
    """A word or words of a family whose members exclude each other; `raised`: only where written with a capital."""

    family: int
    member: int
    raised: bool
    stem: str


@dataclass(frozen=True, slots=True)
class Korean:
    """The table [korean] of words.toml.

    Attributes:
        beginnings: by a beginning, the name of its word; the longest counts. names: of whole words.
        particles: by a particle "" or the direction that it stays as; `sure` may stand behind one syllable, and all
            behind the syllables that are `nouns`.
        verb: what makes a verb of a noun, at its end. polite: a question in the negative that asks the same without.
        counted: a number in words before what is counted, a Korean one, which `numbers` has, or a Chinese one (두 시간,
            삼십 분).
    """

    beginnings: dict[str, str]
    longest: int
    names: dict[str, str]
    particles: dict[str, str]
    sure: frozenset[str]
    nouns: frozenset[str]
    verb: re.Pattern[str]
    polite: re.Pattern[str]
    counted: re.Pattern[str]
    numbers: dict[str, int]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The tables of words.toml by the stems of their words.

    Attributes:
        articles: German ones, which are small in German texts only.
        openers: what begins a number, beside digits. units: (kind, factor), several words joined by "_"; `joined` are
            the first of such. cased: symbols that are two units by their case. money: the kinds of what stands before
            a number.
        members: by its first word each phrase of the families: (its other words, entries), longest first.
        relative: by word and period, "next" and "week": (family, member).
        kin: all words of those phrases. kinds, names: of each family, of its members.
        calendar: the words of the families of kind time as they are written.
        fingerprint: of all tables, 16 hex digits; comments and order in the file aside.
    """

    small: frozenset[str]
    fillers: frozenset[str]
    framing: re.Pattern[str]
    directions: frozenset[str]
    negators: frozenset[str]
    articles: frozenset[str]
    opposites: dict[str, frozenset[str]]
    alike: dict[str, str]
    units: dict[str, tuple[str, float]]
    joined: frozenset[str]
    cased: frozenset[str]
    money: dict[str, str]
    numbers: dict[str, float]
    openers: frozenset[str]
    members: Phrases
    relative: dict[str, dict[str, tuple[int, int]]]
    kin: frozenset[str]
    kinds: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    calendar: frozenset[str]
    signs: re.Pattern[str]
    signed: dict[str, str]
    korean: Korean
    fingerprint: str


@lru_cache(maxsize=1)
def load_tables() -> dict[str, Any]:
    """Return words.toml as it is."""
    return tomllib.loads((resources.files("embedsmith") / "data" / "words.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """Return the tables of words.toml, indexed."""
    tables = load_tables()
    signs, korean, western = tables["signs"], tables["korean"], tables["western"]
    families, relative = tables["families"], tables["relative"]
    own, signed = _index_korean(korean), _name_signs(signs)
    units = _index_units(tables["units"])
    numbers = {word: float(value) for word, value in tables["numbers"].items()}
    money = {word: units[word][0] for word in tables["money"].split()}
    members, seen = _index_members(families), _index_relative(relative, len(families))
    small = (*signs["small"].split(), *HIRAGANA, *korean["small"].split(), *_name_small(western["small"]))
    directions = (*tables["directions"], *signs["directions"].split(), *filter(None, own.particles.values()))
    negators = (*tables["negators"], *signs["negators"].split(), *korean["negators"].split())
    opposites = (*tables["opposites"], *signs["opposites"], *_name_opposites(korean, own), *western["opposites"])
    return Lexicon(
        small=frozenset((*tables["small"], *small)),
        fillers=frozenset(map(stem, tables["fillers"])),
        framing=re.compile(rf"(?:(?:{'|'.join(tables['framing'])}) )+"),
        directions=frozenset(map(stem, directions)),
        negators=frozenset(map(stem, negators)),
        articles=frozenset(map(stem, tables["articles"].split())),
        opposites=index_opposites(opposites),
        alike={stem(word): stem(group.split()[0]) for group in reversed(tables["alike"]) for word in group.split()},
        units=units,
        joined=frozenset(name.partition("_")[0] for name in units if "_" in name),
        cased=frozenset(stem(pair[0].split()[0].casefold()) for pair in tables["cased"]),
        money=money,
        numbers=numbers,
        openers=frozenset({*numbers, *ARTICLES, *PARTS, *money}),
        members=members,
        relative=seen,
        kin=frozenset(seen) | {word for head, rests in members.items() for rest, _ in rests for word in (head, *rest)},
        kinds=(*(family["kind"] for family in families), *("time" for _ in relative["of"].split())),
        names=_name_members(families, relative),
        calendar=_list_calendar(families),
        signs=_match_signs(signed),
        signed=signed,
        korean=own,
        fingerprint=fingerprint(tables),
    )


def index_opposites(pairs: Sequence[Sequence[str]]) -> dict[str, frozenset[str]]:
    """Return for each stem those that it meets in one of the pairs of sides."""
    found: dict[str, set[str]] = {}
    for left, right in pairs:
        one, other = ({stem(word) for word in side.split()} for side in (left, right))
        for word in one:
            found.setdefault(word, set()).update(other - {word})
        for word in other:
            found.setdefault(word, set()).update(one - {word})
    return {word: frozenset(others) for word, others in found.items()}


def _index_units(table: list[tuple[str, float, str]]) -> dict[str, tuple[str, float]]:
    return {
        form: (kind, factor)
        for names, factor, kind in table
        for name in names.split()
        for form in (name, "_".join(map(stem, name.split("_"))))
    }


def _index_members(families: list[dict[str, Any]]) -> Phrases:
    phrases: dict[tuple[str, ...], list[Entry]] = {}
    for family, table in enumerate(families):
        for member, listed in enumerate(table["members"]):
            for words in listed.split():
                tokens = expand_contractions(TOKEN.findall(words.casefold().replace("_", " ")))
                phrases.setdefault(tuple(map(stem, tokens)), []).append((family, member, words[0].isupper()))
    found: dict[str, list[tuple[tuple[str, ...], tuple[Entry, ...]]]] = {}
    for phrase in sorted(phrases, key=len, reverse=True):
        found.setdefault(phrase[0], []).append((phrase[1:], tuple(dict.fromkeys(phrases[phrase]))))
    return {word: tuple(rests) for word, rests in found.items()}


def _index_relative(table: dict[str, Any], first: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Return by word and period (family, member), the families from `first` on."""
    periods = [stem(period) for period in table["of"].split()]
    return {
        stem(word): {period: (first + place, member) for place, period in enumerate(periods)}
        for member, words in enumerate(table["members"])
        for word in words.split()
    }


def _name_members(families: list[dict[str, Any]], relative: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return by family the names of its members, those seen from now last ("next_week")."""
    seen = [words.split()[0] for words in relative["members"]]
    return (
        *(tuple(member.split()[0] for member in family["members"]) for family in families),
        *(tuple(f"{word}_{period}" for word in seen) for period in relative["of"].split()),
    )


def _list_calendar(families: list[dict[str, Any]]) -> frozenset[str]:
    timed = (family["members"] for family in families if family["kind"] == "time")
    return frozenset(word.casefold() for members in timed for member in members for word in member.split())


def _match_signs(signed: Mapping[str, str]) -> re.Pattern[str]:
    """Return what finds the words of more than one sign, the longest first, words in katakana, and single signs."""
    longest = sorted(signed, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest), KATAKANA, SIGN.pattern]))


def _name_signs(signs: dict[str, Any]) -> dict[str, str]:
    """Return the name of each word of more than one sign, and of those that mean the same."""
    lists = [signs["negators"], signs["plain"], signs["small"], signs["directions"], *chain(*signs["opposites"])]
    names = {word: word for found in lists for word in found.split()}
    return names | {word: group.split()[0] for group in signs["alike"] for word in group.split()}


def _name_small(tables: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the names of the small words of `western`."""
    return (stem(MARK + row.split()[0]) for rows in tables.values() for row in rows)


def _index_korean(table: dict[str, Any]) -> Korean:
    beginnings = {form: row.split()[0] for row in table["beginnings"] for form in row.split()[1:]}
    kept = {form: row.split()[0] for row in table["directions"] for form in row.split()}
    verbs, endings = (sorted(table[key].split(), key=len, reverse=True) for key in ("verbs", "endings"))
    numbers, chinese = "|".join(table["counted"]), f"(?:[{DIGITS[1:]}]?[천백십])+[{DIGITS}]?"
    counters = "|".join(table["counters"].split())
    particles = dict.fromkeys(table["particles"].split(), "") | kept
    ended = f"(?:{'|'.join(particles)}){{0,2}}(?![가-힣])"
    return Korean(
        beginnings=beginnings,
        longest=max(map(len, beginnings)),
        names={word: row.split()[0] for row in table["alike"] for word in row.split()},
        particles=particles,
        sure=frozenset(table["sure"].split()),
        nouns=frozenset(table["nouns"].split()),
        verb=re.compile(f"(?<=..)(?:{'|'.join(verbs)})(?:{'|'.join(endings)})?$"),
        polite=re.compile(table["polite"]),
        counted=re.compile(f"(?<![가-힣0-9])(?<!\\d )(?:{numbers}|{chinese})(?= ?(?:{counters}){ended})"),
        numbers=table["counted"],
    )


def _name_opposites(table: dict[str, Any], korean: Korean) -> Iterator[tuple[str, str]]:
    """Yield the pairs of sides by the names of their words."""
    pairs = [*table["opposites"], *(pair for row in table["apart"] for pair in combinations(row.split(), 2))]
    for one, other in pairs:
        yield " ".join(_name_korean(one, korean)), " ".join(_name_korean(other, korean))


def _name_korean(words: str, korean: Korean) -> Iterator[str]:
    return (korean.names.get(word, word) for word in words.split())


def holds_hangul(text: str) -> bool:
    """Say whether Korean letters are in `text`."""
    return HANGUL.search(text) is not None


def part_hangul(text: str, korean: Korean) -> str:
    """Return `text` with its Korean words without endings, particles of direction and negations as words of their own.

    >>> part_hangul("서울에서 부산까지 안 가나요", load_lexicon().korean).split()
    ['서울', '에서', '부산', '까지', '안', '가나']
    """
    text = SCALED.sub(lambda match: f"{float(match[1].replace(',', '')) * SCALES[match[2]]:.15g} ", text)
    text = korean.counted.sub(lambda match: f"{korean.numbers.get(match[0]) or _read_chinese(match[0])} ", text)
    asked = not ASKED_WHY.search(text)
    return HANGUL.sub(lambda match: f" {_part_word(match[0], korean, asked)} ", text)


def _read_chinese(word: str) -> int:
    """Return a number in Chinese words: 이천오백삼십일 is 2531."""
    total = digit = 0
    for sign in word:
        if sign in TENFOLD:
            total, digit = total + (digit or 1) * TENFOLD[sign], 0
        else:
            digit = DIGITS.index(sign) + 1
    return total + digit


def _part_word(word: str, korean: Korean, asked: bool) -> str:
    """Return the name of a word, and behind it a particle of direction and a negation.

    Args:
        asked: a polite question, whose negation denies nothing; "why is there no …" is none.
    """
    if word in korean.names:
        return korean.names[word]
    if asked and korean.polite.fullmatch(word):
        return ""
    for size in range(min(len(word), korean.longest), 0, -1):
        name = korean.beginnings.get(word[:size])
        if name is not None:
            return f"{korean.names.get(name, name)}{' 않' if NEGATED.match(word, size) else ''}"
    negated = " 않" if NEGATED.search(word) else ""
    word = NEGATED.sub("", word)
    kept: list[str] = []
    word = korean.verb.sub("", word)
    while word not in korean.names:
        cut = _find_particle(word, korean)
        if not cut:
            break
        word = word[: -len(cut)]
        if korean.particles[cut]:
            kept.insert(0, korean.particles[cut])
    word = korean.verb.sub("", word)
    return " ".join([korean.names.get(word, word), *kept]) + negated


def _find_particle(word: str, korean: Korean) -> str:
    """Return the longest particle at the end of a word, "" where none can be."""
    for size in range(min(len(word) - 1, 4), 0, -1):
        end, left = word[-size:], word[:-size]
        if end in korean.particles and (len(left) > 1 or end in korean.sure or left in korean.nouns):
            return end
    return ""


def holds_signs(text: str) -> bool:
    """Say whether kana or Chinese signs are in `text`."""
    return SIGN.search(text) is not None


def part_signs(text: str, lexicon: Lexicon) -> str:
    """Return `text` with spaces around each word of Chinese and Japanese that is known, else around each sign.

    >>> part_signs("我可不可以退款", load_lexicon())
    ' 我  可以  退  款 '
    """
    return lexicon.signs.sub(lambda match: f" {lexicon.signed.get(match[0], match[0])} ", WHETHER.sub(r"\1", text))


def expand_contractions(tokens: list[str]) -> list[str]:
    """Return the tokens with n't and cannot written out, and without 's and French elisions.

    >>> expand_contractions(["isn't", "mum's", "l'espagne"])
    ['is', 'not', 'mum', 'espagne']
    """
    if "cannot" not in tokens and "".join(tokens).isalpha():
        return tokens
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


def read_amount(tokens: Sequence[str], place: int, lexicon: Lexicon) -> Amount | None:
    """Return the number that begins at `place`, with its unit; None where none does.

    >>> read_amount(["1.5", "hours"], 0, load_lexicon())
    Amount(kind='time', value=5400.0, number=1.5, before=1, used=2, said=False)
    >>> read_amount(["$", "1.5", "million"], 0, load_lexicon())
    Amount(kind='dollar', value=1500000.0, number=1500000.0, before=3, used=3, said=False)
    """
    token = tokens[place]
    if token in ARTICLES:
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if stem(following) not in lexicon.units or following in lexicon.money:
            return None
        kind, value, more = _read_unit(1.0, tokens, place, 1, lexicon)
        return Amount(kind, value, 1.0, 1, 1 + more, said=True)
    if token in lexicon.money:
        if place + 1 < len(tokens) and tokens[place + 1][0].isdecimal():
            number, used = _read_number(tokens, place + 1, lexicon)
            if number is not None:
                return Amount(lexicon.money[token], number, number, used + 1, used + 1, said=False)
        return None
    number, used = _read_part(tokens, place) or _read_number(tokens, place, lexicon)
    if number is None:
        return None
    kind, value, more = _read_unit(number, tokens, place, used, lexicon)
    return Amount(kind, value, number, used, used + more, said=False)


def _read_part(tokens: Sequence[str], place: int) -> tuple[float, int] | None:
    """Return a fraction in words that begins at `place`: half, quarter of, third of."""
    part = PARTS.get(tokens[place])
    if part is None or (place and tokens[place - 1] in ORDINALS):
        return None  # the third quarter is a time
    of = place + 1 < len(tokens) and tokens[place + 1] == "of"
    return (part, 1 + of) if of or tokens[place] == "half" else None


def _read_number(tokens: Sequence[str], place: int, lexicon: Lexicon) -> tuple[float | None, int]:
    """Return the number that begins at `place` (None: there is none) and how many tokens it takes."""
    token = tokens[place]
    if token[0].isdecimal():  # what \d finds; isdigit knows signs that float does not read
        return _read_digits(token, tokens[place + 1] if place + 1 < len(tokens) else "", lexicon)
    value = lexicon.numbers.get(token)
    if value is None:
        return None, 0
    used = 1
    while place + used < len(tokens):
        following = tokens[place + used]
        more = lexicon.numbers.get(following, 1.0 if following == "one" and value in TENS else None)
        if more is None:
            break
        if more < 10 <= value < 100:
            value += more
        elif more >= 100:
            value *= more
        else:
            break
        used += 1
    return value, used


def _read_digits(token: str, following: str, lexicon: Lexicon) -> tuple[float | None, int]:
    if "/" in token:
        part, whole = token.split("/")
        return (_read(part) / _read(whole), 1) if _read(whole) else (None, 0)
    if ":" in token:
        hours, minutes = token.split(":")[:2]
        return _read(hours) + _read(minutes) / 60, 1
    digits = token.replace(",", "") if THOUSANDS.fullmatch(token) else token.replace(",", ".")
    value = _read(digits if digits.count(".") <= 1 else digits.replace(".", ""))
    scale = lexicon.numbers.get(LONE_SCALES.get(following, following), 0.0)
    return (value * scale, 2) if scale >= 100 else (value, 1)


def _read(digits: str) -> float:
    """Return the number; a text may hold thousands of digits, which neither overflow nor become infinite."""
    return min(float(digits), LARGEST)


def _read_unit(value: float, tokens: Sequence[str], place: int, used: int, lexicon: Lexicon) -> tuple[str, float, int]:
    """Return (kind, value in the unit of the kind, tokens taken) for the number of `used` tokens at `place`."""
    token, behind = tokens[place], place + used
    following = tokens[behind] if behind < len(tokens) else ""
    if following in {"am", "pm"}:
        return "clock", value % 12 + (12 if following == "pm" else 0), 1
    if ":" in token:  # 1:160 is a ratio or a titre
        return ("clock", value, 0) if TIME.fullmatch(token) else ("ratio", max(value, 1.0), 0)
    taken = 1
    if following in {"a", "an"} and value < 1 and behind + 1 < len(tokens):  # half an hour
        following, taken = tokens[behind + 1], 2
    name = stem(following)
    if name in lexicon.joined:
        for more in (2, 1):
            phrase = "_".join([name, *map(stem, tokens[behind + taken : behind + taken + more])])
            if phrase in lexicon.units:
                name, taken = phrase, taken + phrase.count("_")
                break
    known = lexicon.units.get(name)
    if known is not None:
        kind, factor = known
        return ("temperature", (value - 32) * 5 / 9, taken) if kind == "fahrenheit" else (kind, value * factor, taken)
    if YEAR.fullmatch(token):
        return "year", value, 0
    return "share" if token in PARTS else "plain", value, 0


@lru_cache(maxsize=1)
def _index_cased() -> dict[str, tuple[str, str]]:
    return {
        name: (pair[0].split()[0].casefold(), side.split()[0])
        for pair in load_tables()["cased"]
        for side in pair
        for name in side.split()
    }


@lru_cache(maxsize=1 << 14)
def find_cased(text: str, alone: bool = False) -> dict[str, frozenset[str]]:
    """Return for each symbol that is two units by its case (mw) which of them stand behind a number in `text`.

    Where the case says nothing ("25 mb", or a text all in capitals) there is none.

    Args:
        alone: those without a number, too, unless in small letters.

    >>> find_cased("3 megawatts"), find_cased("100 Mb/s"), find_cased("25 mb")
    ({'mw': frozenset({'MW'})}, {'mb': frozenset({'Mb'})}, {})
    >>> find_cased("What is MW?", alone=True), find_cased("what is mw", alone=True)
    ({'mw': frozenset({'MW'})}, {})
    """
    units, raised = _index_cased(), text.isupper()
    found: dict[str, set[str]] = {}
    lone = (name for name in CASED_ALONE.findall(text) if not name.islower()) if alone else ()
    for name in chain(CASED.findall(text), lone):
        written = len(name) <= SYMBOL
        unit = units.get(name if written else name.casefold())
        if unit is not None and not (written and raised):
            found.setdefault(unit[0], set()).add(unit[1])
    return {symbol: frozenset(names) for symbol, names in found.items()}


def are_equal(one: Quantity, written: float, other: Quantity, also: float, tolerance: float = 1e-6) -> bool:
    """Say whether two quantities, and as they are written, may be one: a unit that one side leaves out changes nothing.

    >>> are_equal(("rupee", 500.0), 500, ("plain", 500.0), 500), are_equal(("rupee", 500.0), 500, ("euro", 500.0), 500)
    (True, False)
    """
    if written == also and (one[0] in UNNAMED or other[0] in UNNAMED):
        return True
    if {one[0], other[0]} == {"mass", "pound"}:  # 109 pounds are money or 109 lbs
        mine, theirs = (value * POUND if kind == "pound" else value for kind, value in (one, other))
        return abs(mine - theirs) <= 1e-3 * max(mine, theirs)
    return one[0] == other[0] and abs(one[1] - other[1]) <= tolerance * max(abs(one[1]), abs(other[1]))


def find_members(words: Sequence[str], lexicon: Lexicon) -> Iterator[Member]:
    """Yield the members of families that stems name, the longest phrase first, and what is seen from now.

    >>> [lexicon.names[found.family][found.member] for lexicon in [load_lexicon()]
    ...  for found in find_members(["next", "friday"], lexicon)]
    ['next_friday', 'friday']
    """
    free = 0  # the first place that no phrase has taken
    for place, word in enumerate(words):
        if word in lexicon.relative and place + 1 < len(words):
            family, member = lexicon.relative[word].get(words[place + 1], (None, 0))
            if family is not None:
                yield Member(family, member, raised=False, stem=word)
        if place < free:
            continue
        for rest, entries in lexicon.members.get(word, ()):
            if tuple(words[place + 1 : place + 1 + len(rest)]) == rest:
                yield from (Member(*entry, word) for entry in entries)
                free = place + 1 + len(rest)
                break


def share_words(one: Mapping[str, int], other: Mapping[str, int], longest: int) -> float:
    """Return the share of its `longest` words that the longer text shares with the shorter, 0 to 1, by their counts."""
    common = sum(min(times, other[word]) for word, times in one.items() if word in other)
    return common / longest if longest else 1.0


def find_flip(
    one: Mapping[str, int], other: Mapping[str, int], opposites: Mapping[str, frozenset[str]]
) -> tuple[str, str] | None:
    """Return a word of one that is its opposite in the other, where one of the two stands in both; None for none.

    So "turn off" is told from "turn on" in questions about what is on a phone. Both are words by their counts; where no
    word stands in both, a side may hold a pair and take no side ("pros and cons").
    """
    fewer = [word for word, count in one.items() if count > other.get(word, 0)]
    more = {word for word, count in other.items() if count > one.get(word, 0)}
    for word in sorted(fewer):
        for opposite in sorted(opposites.get(word, frozenset()) & more):
            if word in other or opposite in one:
                return word, opposite
    return None


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
