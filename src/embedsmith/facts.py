"""Facts: what differs between two texts that claim to say the same. Pure rules, no model.

A paraphrase may drop a fact or add one; what it must not do is put another in its place. So nearly all rules ask for a
*substitution*: something of one kind here that is not there, and something of the same kind there that is not here.
Words are known in English: data/words.toml, read by `lexicon`, and in data/facts.toml what is a matter of judging
examples only. Numbers, codes and names are read in any language that writes them in Latin letters and digits.

The cache's guard stands on the same words and numbers but is another judgement: it may turn away a true paraphrase,
which costs a call, so that no wrong answer is served. A filter of training data that does the same throws away its
best rows.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from importlib import resources
from statistics import median

from embedsmith.lexicon import (
    TOKEN,
    Lexicon,
    Quantity,
    are_equal,
    expand_contractions,
    find_flip,
    find_members,
    index_opposites,
    load_lexicon,
    read_amount,
    share_words,
    stem,
)

CODE = re.compile(r"\b(?:[A-Za-z]{1,6}-?\d{1,6}[A-Za-z]?|\d{1,3}[A-Z]{1,2}\d*)\b")
GROUPED = re.compile(r"[1-9]\d{0,2}\.\d{3}")  # 1.000 is a thousand in most of Europe, 2.375 inches are none
VULGARS = {"½": ".5", "¼": ".25", "¾": ".75"}
VULGAR = re.compile("[½¼¾]")
READING = re.compile(r"\b(\d{2,3})\s*/\s*(\d{2,3})\b")  # 140/88 is no fraction
SERIES = re.compile(r"\b([^\W\d_]{3,})[ -](\d{1,3}|[B-HJ-Z])\b")
ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.I)
DECADE = re.compile(r"\b(?:1[89]|20)?(\d0)['’]?s\b")
SUFFIXED = re.compile(r"\b(\d+(?:[.,]\d+)*)(k|m|mil|mn|bn)\b", re.I)
GLUED = re.compile(r"(\d)([A-Za-zµ]{1,5})\b")
SCALES = {"k": "thousand", "m": "million", "mil": "million", "mn": "million", "bn": "billion"}
KINDS = ("number", "unit", "negation", "entity", "time", "direction", "population")
CLOCKS = frozenset({"clock", "year", "decade", "ordinal"})  # kinds of numbers that say when
ALIKE = 0.4  # share of words in common from which on a single "not", opposite or order decides (as in the guard)
SAME = 0.6  # from which on a fact that only one side has decides
SHORT = 16  # words up to which a "not" belongs to what is asked; a story has others
ROUNDED = 0.02  # relative: "180 days" are "6 months"
TITLED = 0.6  # share of words with a capital from which on capitals tell nothing
LINKS = frozenset({"from", "to", "than", "before", "after", "by"})
CHOICES = frozenset({"and", "or", "between", "vs"})  # either order is right
LINKED = {"into": "to", "onto": "to"}
SMALL = frozenset({"s", "t", "m", "re", "ve", "ll", "d"})
PAIRS = frozenset({"pair", "both", "couple", "twice"})
COUNTED = frozenset({*SCALES.values(), "dozen", "hundred", "half", "quarter", "third"})  # of which one is said
PREFIXES = ("un", "in", "im", "ir", "il")
ASKERS = frozenset(stem(word) for word in ("where", "who", "why", "long", "often", "far"))
TYPO = 0.8  # similarity of the letters of two names from which on they are one, misspelt
FOLLOWED = re.compile(r"(?=\b([^\W\d_]{2,}) ([^\W\d_]{2,}))")
COMMONEST, FEWEST_COMMON, BEFORE_CAPITALS = 20, 5, 0.25  # words looked at by `raises_nouns`, at least, median share
# Small words of German that English, Dutch and the Nordic languages do not have; and of English that German has not.
GERMAN = frozenset(
    """
    der das und nicht ich ist ein eine einen einem einer eines für wie kann mein meine meinen meinem meiner auf zu zum
    zur von vom dem wo warum wann wird werden bei beim sich sind haben habe wurde welche welchen welcher welches ohne
    mir mich sie wir auch noch nach über aus oder muss gibt es darf lässt kein keine keinen
    """.split()  # noqa: SIM905 shorter to read than a list
)
ENGLISH = frozenset(
    "the is are do does how what where which who why my your to of for can i it and or with".split()  # noqa: SIM905 as above
)


@dataclass(frozen=True, slots=True)
class Change:
    """One fact that differs.

    Attributes:
        kind: one of `KINDS`.
        evidence: what stands against what: "30 / 60".
    """

    kind: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the rules see it.

    Attributes:
        words: stems in order, numbers and negators left out. content_words: those that carry meaning.
        content: the same with synonyms under one name. raw: the words before stemming.
        quantities: (kind, value in the unit of the kind) to the value as written. implied: those "a week" may mean.
        negations: how many negators. denials: other words that deny.
        members: for each family of words that exclude each other, which of its members are named.
        names: names by their folded form. codes: E24, A320. series: Model Y, type 2.
        stripped: words that begin with un-, in-, …, without it.
        nouns: where all nouns have a capital, those that may be names: no article or the like stands before them.
    """

    words: tuple[str, ...]
    content: frozenset[str]
    content_words: frozenset[str]
    raw: tuple[str, ...]
    quantities: Mapping[Quantity, float]
    implied: frozenset[Quantity]
    negations: int
    denials: Counter[str]
    members: Mapping[int, frozenset[int]]
    names: Mapping[str, str]
    codes: frozenset[str]
    series: Mapping[str, str]
    stripped: frozenset[str]
    nouns: frozenset[str] = frozenset()


def find_changes(left: str, right: str, *, nouns_raised: bool = False) -> tuple[Change, ...]:
    """Return the facts that differ between two texts, none for a clean paraphrase; at most one of each kind.

    Args:
        nouns_raised: the language writes every noun with a capital (`raises_nouns`): a capital alone makes no name.

    >>> find_changes("Is the pool open at 9 pm?", "Can I swim there at 21:00?")
    ()
    >>> find_changes("Can I give my dog 5 mg of it?", "Is 5 g of it safe for a dog?")
    (Change(kind='unit', evidence='0.005 (mass) / 5 (mass)'),)
    """
    nouns_raised = nouns_raised or is_german(left, right)
    one, other = read_facts(left, nouns_raised=nouns_raised), read_facts(right, nouns_raised=nouns_raised)
    alike = likeness(one, other)
    found: dict[str, Change] = {}
    for change in _changes(one, other, alike):
        found.setdefault(change.kind, change)
    return tuple(found.values())


def likeness(one: Reading, other: Reading) -> float:
    """Return the share of words that the longer text shares with the shorter, 0 to 1; small words count."""
    return share_words(Counter(one.words), Counter(other.words), max(len(one.words), len(other.words)))


def overlap(one: Reading, other: Reading) -> float:
    """Return the Jaccard similarity of the words that carry meaning, synonyms merged, 0 to 1."""
    union = one.content | other.content
    return len(one.content & other.content) / len(union) if union else 1.0


def raises_nouns(texts: Iterable[str]) -> bool:
    """Say whether the texts write all nouns with a capital, as German does.

    Seen from the words before: in German half of the commonest words (der, meine, für) stand before a capital more
    often than not, in English only a few do ("from", "in"). The median of these shares is .67 in 30 German questions,
    at most .07 in the English sets of this project, 0 in questions about journeys between cities.

    >>> raises_nouns(["How do I get from Leeds to York?", "Is the train from Leeds to Hull late?"] * 9)
    False
    """
    total: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    for text in texts:
        for word, following in FOLLOWED.findall(text):
            if word.islower():
                total[word] += 1
                raised[word] += following.istitle()
    common = sorted(total, key=lambda word: (-total[word], word))[:COMMONEST]
    shares = [raised[word] / total[word] for word in common if total[word] >= 2]
    return len(shares) >= FEWEST_COMMON and median(shares) >= BEFORE_CAPITALS


def is_german(*texts: str) -> bool:
    """Say whether each text has a small word of German and none of English, and one of them has two.

    For logs of several languages, where `raises_nouns` does not hold of all.

    >>> is_german("Wo finde ich meine Rechnung?", "Wo ist der Beleg?"), is_german("Who was Mein Kampf by?")
    (True, False)
    """
    found = [_count_german(text) for text in texts]
    return min(found) >= 1 and max(found) >= 2


@lru_cache(maxsize=1 << 14)
def _count_german(text: str) -> int:
    """Return how many different small words of German a text has, 0 where it has one of English."""
    words = set(re.findall(r"[^\W\d_]+", text.casefold()))
    return 0 if words & ENGLISH else len(words & GERMAN)


def says_the_same(left: str, right: str, *, nouns_raised: bool = False) -> bool:
    """Say whether two texts are one question by their words alone: no fact changed, no word exchanged, few added.

    >>> says_the_same("How do I cancel my gym membership?", "how can I cancel a gym membership")
    True
    >>> says_the_same("How do I cancel my gym membership?", "How do I freeze my gym membership?")
    False
    """
    nouns_raised = nouns_raised or is_german(left, right)
    one, other = read_facts(left, nouns_raised=nouns_raised), read_facts(right, nouns_raised=nouns_raised)
    ours, theirs = one.content - other.content, other.content - one.content
    if not one.content & other.content or (ours and theirs) or len(ours | theirs) > 1:
        return False
    if ours | theirs and len(one.content | other.content) < 4:  # of three words, each one decides
        return False
    asked, wanted = (frozenset(reading.words) & ASKERS for reading in (one, other))
    if asked != wanted or (ours | theirs) & _known().decisive:
        return False
    return not one.quantities.keys() ^ other.quantities.keys() and not find_changes(
        left, right, nouns_raised=nouns_raised
    )


def _changes(one: Reading, other: Reading, alike: float) -> Iterator[Change]:
    yield from _compare_quantities(one, other)
    yield from _compare_negation(one, other, alike)
    yield from _compare_families(one, other)
    if alike >= ALIKE:
        yield from _compare_opposites(one, other)
        yield from _compare_order(one, other)
    if alike >= SAME:
        yield from _compare_flip(one, other)
    yield from _compare_names(one, other, alike)


# Numbers and units


def _compare_quantities(one: Reading, other: Reading) -> Iterator[Change]:
    ours, theirs = _unmatched(one, other), _unmatched(other, one)
    if not ours or not theirs:
        return
    shared = {kind for kind, _ in ours} & {kind for kind, _ in theirs}
    written = {one.quantities[item] for item in ours} & {other.quantities[item] for item in theirs}
    if written and not shared & CLOCKS:
        yield Change("unit", f"{_name(ours)} / {_name(theirs)}")
    elif shared:
        yield Change("time" if shared & CLOCKS else "number", f"{_name(ours)} / {_name(theirs)}")


def _unmatched(one: Reading, other: Reading) -> list[Quantity]:
    others = [*other.quantities.items(), *((item, item[1]) for item in other.implied)]
    return [
        item for item, written in one.quantities.items() if not any(_equal(item, written, *more) for more in others)
    ]


def _equal(one: Quantity, written: float, other: Quantity, also: float) -> bool:
    return are_equal(one, written, other, also, ROUNDED if one[0] == "time" else 1e-6)


def _name(items: Iterable[Quantity]) -> str:
    return ", ".join(f"{value:g}{'' if kind == 'plain' else f' ({kind})'}" for kind, value in sorted(items)) or "none"


# Negation


def _compare_negation(one: Reading, other: Reading, alike: float) -> Iterator[Change]:
    if alike < (ALIKE if max(len(one.words), len(other.words)) <= SHORT else SAME):
        return
    ours, theirs = one.denials - other.denials, other.denials - one.denials
    opposed = next(iter(_compare_opposites(one, other)), None)
    prefixed = len(one.stripped & set(other.words)) + len(other.stripped & set(one.words))
    odd = (one.negations - other.negations + prefixed) % 2
    if odd and not ours and not theirs and opposed is None:
        yield Change("negation", f"{one.negations} / {other.negations} negators")
    elif not odd and opposed is None and alike >= SAME:
        deny = {word for word in (ours + theirs) if word in _known().deny}
        if len(ours + theirs) == 1 and deny:
            yield Change("negation", f"{' '.join(ours) or 'nothing'} / {' '.join(theirs) or 'nothing'}")


# Words that exclude each other


def _compare_families(one: Reading, other: Reading) -> Iterator[Change]:
    lexicon = load_lexicon()
    for family in sorted(one.members.keys() & other.members.keys()):
        ours, theirs = one.members[family] - other.members[family], other.members[family] - one.members[family]
        if ours and theirs:
            name = lexicon.names[family]
            yield Change(lexicon.kinds[family], f"{name[min(ours)]} / {name[min(theirs)]}")


def _compare_opposites(one: Reading, other: Reading) -> Iterator[Change]:
    known = _known()
    ours, theirs = set(one.words) - set(other.words), set(other.words) - set(one.words)
    for word in sorted(ours):
        against = known.opposites.get(word, frozenset())
        met = against & theirs
        if met and not against & set(one.words) and (one.negations - other.negations) % 2 == 0:
            yield Change(known.opposite_kinds.get(word, "direction"), f"{word} / {min(met)}")


def _compare_flip(one: Reading, other: Reading) -> Iterator[Change]:
    known = _known()
    flip = find_flip(Counter(one.words), Counter(other.words), known.opposites)
    if flip is not None and (one.negations - other.negations) % 2 == 0:
        yield Change(known.opposite_kinds.get(flip[0], "direction"), " / ".join(flip))


def _compare_order(one: Reading, other: Reading) -> Iterator[Change]:
    """Yield a change where the same things stand on the other side of "from", "to", "than", or of a verb."""
    ours, theirs = _roles(one), _roles(other)
    for link in sorted(ours.keys() & theirs.keys()):
        (before, after), (early, late) = ours[link], theirs[link]
        crossed = before == late and after == early
        moved = after != late and after in other.words and late in one.words and one.content == other.content
        source, target = ours.get("from", ("", "-"))[1], theirs.get("to", ("", "+"))[1]
        if crossed or (link != "to" and moved) or (link == "to" and source == target):
            yield Change("direction", f"{link} {after} / {link} {late}")
            return
    here, there = _told(one), _told(other)
    moved = here == there or any(
        here[place:] + here[:place] == there for place in range(len(here))
    )  # "last year I paid"
    exchanged = not moved and Counter(one.words) == Counter(other.words)
    if exchanged and not CHOICES & set(one.words):
        yield Change("direction", f"{' '.join(one.words)} / {' '.join(other.words)}")


def _told(reading: Reading) -> list[str]:
    return [word for word in reading.words if word in reading.content_words]


def _roles(reading: Reading) -> dict[str, tuple[str, str]]:
    """Return the nearest words with a meaning before and after each linking word that occurs once."""
    found: dict[str, tuple[str, str]] = {}
    links = [LINKED.get(word, word) for word in reading.words]
    for place, link in enumerate(links):
        if link in LINKS and links.count(link) == 1:
            before = next((word for word in reversed(reading.words[:place]) if word in reading.content_words), "")
            after = next((word for word in reading.words[place + 1 :] if word in reading.content_words), "")
            if before and after and before != after:
                found[link] = before, after
    return found


# Names


def _compare_names(one: Reading, other: Reading, alike: float) -> Iterator[Change]:
    codes = one.codes - other.codes, other.codes - one.codes
    if all(codes):
        yield Change("entity", f"{min(codes[0])} / {min(codes[1])}")
        return
    for head in one.series.keys() & other.series.keys():
        if one.series[head] != other.series[head] and not (one.series[head] + other.series[head]).isdecimal():
            yield Change("entity", f"{head} {one.series[head]} / {head} {other.series[head]}")
            return
    ours, theirs = _strangers(one, other), _strangers(other, one)
    if ours and theirs and not _same_names(ours, theirs):
        yield Change("entity", f"{' '.join(ours.values())} / {' '.join(theirs.values())}")
    elif (ours or theirs) and alike >= SAME and (replaced := _find_replaced(one, other, {*ours, *theirs})):
        yield Change("entity", " / ".join(replaced))
    elif one.nouns and other.nouns and alike >= SAME:
        pairs = _find_replaced(one, other, {*one.nouns, *other.nouns})
        if pairs and pairs[0] in one.nouns and pairs[1] in other.nouns and not _is_compound(*pairs):
            yield Change("entity", " / ".join(pairs))


def _is_compound(one: str, other: str) -> bool:
    """Say whether one noun is the other with a closer word before it: Karte, Bankkarte."""
    return one.endswith(other) or other.endswith(one)


def _strangers(one: Reading, other: Reading) -> dict[str, str]:
    """Return the names of one text that the other has in no spelling."""
    there = {*other.words, *other.names}
    alike = _known().alike
    decided = {
        folded for folded in one.names if _shares_family(folded, other) or alike.get(folded, folded) in other.content
    }
    return {
        folded: name
        for folded, name in one.names.items()
        if folded not in decided
        and not any(_resembles(folded, word) for word in there)
        and not _is_initials(name, other)
    }


def _shares_family(word: str, other: Reading) -> bool:
    """Say whether the other text names a member of a family that this word is of: the rule of families decides then."""
    return any(found.family in other.members for found in find_members((word,), load_lexicon()))


def _resembles(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < 4:
        return False
    return one[:5] == other[:5] or SequenceMatcher(None, one, other).ratio() >= TYPO


def _is_initials(name: str, other: Reading) -> bool:
    """Say whether a name is made of the first letters of words of the other text: EU, European Union."""
    letters = "".join(word[0] for word in other.raw if word)
    return 2 <= len(name) <= 5 and name.isupper() and name.casefold() in letters


def _same_names(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Say whether some name on one side is short for one on the other: JS, JavaScript; or has their initials."""
    for short, long in ((ours, theirs), (theirs, ours)):
        spelt = "".join(name[0] for name in long.values()).casefold()
        for name in short.values():
            capitals = ["".join(letter for letter in other if letter.isupper()) for other in long.values()]
            if name in capitals or (len(name) > 1 and name.casefold() == spelt):
                return True
    return False


def _find_replaced(one: Reading, other: Reading, names: set[str]) -> tuple[str, str] | None:
    """Return the one word that stands in the place of a name, both in the same surroundings."""
    left, right = list(one.words), list(other.words)
    for tag, start, end, first, last in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag != "replace" or end - start != 1 or last - first != 1:
            continue
        here, there = left[start], right[first]
        framed = left[start - 1 : start] == right[first - 1 : first]
        both = {here, there} & names and {here, there} <= one.content_words | other.content_words
        if both and framed and not _resembles(here, there):
            return here, there
    return None


# Reading


@lru_cache(maxsize=1 << 14)
def read_facts(text: str, *, nouns_raised: bool = False) -> Reading:
    """Return what the rules need of a text; `nouns_raised` as in `find_changes`."""
    lexicon, known = load_lexicon(), _known()
    text = unicodedata.normalize("NFKC", VULGAR.sub(lambda match: VULGARS[match.group(0)], text)).replace("’", "'")
    capitals = _find_names(text)
    names = {folded: name for folded, name in capitals.items() if not nouns_raised or not name.istitle()}
    nouns = _find_bare_nouns(text, capitals) if nouns_raised else frozenset()
    codes = frozenset(_find_codes(text))
    plain = text.casefold().strip(" ?!.\"'“”")
    for pattern, replacement in known.rewrites:
        plain = pattern.sub(replacement, plain)
    quantities: dict[Quantity, float] = {}
    for pattern, kind in ((ORDINAL, "ordinal"), (DECADE, "decade")):
        for match in pattern.finditer(plain):
            quantities[kind, float(match.group(1))] = float(match.group(1))
        plain = pattern.sub(" ", plain)
    for code in codes:
        plain = re.sub(rf"\b{re.escape(code)}\b", " ", plain)
    plain = SUFFIXED.sub(lambda match: f"{match.group(1)} {SCALES[match.group(2).casefold()]}", plain)
    plain = READING.sub(r"\1 \2", plain)
    plain = GLUED.sub(r"\1 \2", plain)
    tokens = expand_contractions(TOKEN.findall(plain))
    told, implied = _read_quantities(tokens, quantities)
    raw = [word for word in told if word]
    stems = tuple(map(stem, raw))
    negations = sum(word in lexicon.negators for word in stems)
    words = tuple(word for word in stems if word not in lexicon.negators)
    content_words = frozenset(word for word in words if word not in lexicon.small and word not in SMALL)
    content = frozenset(known.alike.get(word, word) for word in content_words)
    denials = Counter(word for word in words if word in known.denials)
    raised = _raise_prefixed(words)
    return Reading(
        words,
        content,
        content_words,
        tuple(raw),
        quantities,
        frozenset(implied),
        negations,
        denials,
        _find_members(tuple(map(stem, told)), capitals, lexicon),
        names,
        codes,
        {head.casefold(): tail.casefold() for head, tail in SERIES.findall(text)},
        raised,
        nouns,
    )


def _raise_prefixed(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word[2:] for word in words if word.startswith(PREFIXES) and len(word) > 5)


def _find_names(text: str) -> dict[str, str]:
    """Return the names of a text by their stems: words with a capital that do not open a sentence.

    None where most words have one: such capitals tell nothing.
    """
    found: dict[str, str] = {}
    opening, total, raised = True, 0, 0
    for match in re.finditer(r"[^\W\d_]+(?:'[^\W\d_]+)?|[.?!:\"“]", text):
        word = match.group(0)
        if not word[0].isalpha():
            opening = True
            continue
        total += 1
        bare = word.partition("'")[0]
        inner = any(letter.isupper() for letter in bare[1:])
        if (bare[0].isupper() and not opening) or inner:
            raised += not opening
            if len(bare) > 1 and bare.casefold() not in _known().nameless:
                found[stem(bare.casefold())] = bare
        opening = False
    return found if raised <= max(2, TITLED * total) else {}


def _find_bare_nouns(text: str, capitals: Mapping[str, str]) -> frozenset[str]:
    """Return the words with a capital that stand bare, as names do: "nach Hamburg", not "mein Paket"."""
    following = (
        (before, word) for before, word in FOLLOWED.findall(text) if before.casefold() not in _known().attributes
    )
    return frozenset(stem(word.casefold()) for _, word in following) & capitals.keys()


def _find_codes(text: str) -> Iterator[str]:
    """Yield E24, A320, B12, but neither Q1 (a time) nor 5kg."""
    for match in CODE.finditer(text):
        code = match.group(0).casefold().replace("-", "")
        if not re.fullmatch(r"q[1-4]|\d+[a-z]+", code) and not ORDINAL.fullmatch(code):
            yield match.group(0).casefold()


def _read_quantities(tokens: list[str], quantities: dict[Quantity, float]) -> tuple[list[str], set[Quantity]]:
    """Return the words, "" for each number, and the quantities that articles imply; written ones go to `quantities`."""
    lexicon = load_lexicon()
    implied: set[Quantity] = set()
    told: list[str] = []
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token in {"a", "one"} and tokens[place + 1 : place + 2] and tokens[place + 1] in COUNTED:
            place += 1
            continue
        if token in PAIRS:
            implied.add(("plain", 2.0))
        amount = read_amount(tokens, place, lexicon)
        if amount is None:
            told.append(token)
            place += 1
            continue
        behind = place + amount.used
        if GROUPED.fullmatch(token):
            implied.add((amount.kind, round(1000 * amount.value, 9)))
        if amount.said:
            implied.add((amount.kind, amount.value))
            told += tokens[place:behind]
        else:
            quantities[amount.kind, round(amount.value, 9)] = amount.number
            unit = tokens[place + amount.before : behind] if amount.kind != "plain" else []
            told += ["", *(word for word in unit if word.isalpha())]
        place = behind
    return told, implied


def _find_members(stems: Sequence[str], names: Mapping[str, str], lexicon: Lexicon) -> dict[int, frozenset[int]]:
    """Return the members of each family that a text names."""
    members: dict[int, set[int]] = {}
    for found in find_members(stems, lexicon):
        if not found.raised or found.stem in names:
            members.setdefault(found.family, set()).add(found.member)
    return {family: frozenset(found) for family, found in members.items()}


@dataclass(frozen=True, slots=True)
class _Known:
    """The tables of facts.toml, with those of words.toml that they change."""

    rewrites: tuple[tuple[re.Pattern[str], str], ...]
    denials: frozenset[str]
    deny: frozenset[str]
    decisive: frozenset[str]
    opposites: Mapping[str, frozenset[str]]
    opposite_kinds: Mapping[str, str]
    alike: Mapping[str, str]
    nameless: frozenset[str]
    attributes: frozenset[str]


@lru_cache(maxsize=1)
def _known() -> _Known:
    tables = tomllib.loads((resources.files("embedsmith") / "data" / "facts.toml").read_text(encoding="utf-8"))
    lexicon = load_lexicon()
    unsure = frozenset(stem(word) for word in tables["unsure"])
    sure = index_opposites(tables["sure"])
    opposites = {
        word: (frozenset() if word in unsure else others - unsure) | sure.get(word, frozenset())
        for word, others in lexicon.opposites.items()
    }
    return _Known(
        rewrites=tuple((re.compile(pattern), replacement) for pattern, replacement in tables["rewrites"]),
        denials=frozenset(stem(word) for word in tables["denials"]),
        deny=frozenset(stem(word) for word in tables["deny"]),
        decisive=frozenset(stem(word) for word in tables["decisive"]),
        opposites={word: others for word, others in opposites.items() if others},
        opposite_kinds={stem(word): kind for kind in ("time", "population", "negation") for word in tables[kind]},
        alike=dict(lexicon.alike)
        | {stem(word): stem(group.split()[0]) for group in tables["alike"] for word in group.split()},
        attributes=frozenset(tables["attributes"]),
        nameless=lexicon.small | lexicon.units.keys() | lexicon.calendar,
    )
