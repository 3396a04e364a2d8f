"""The guard: two questions that look alike and differ in a fact get different answers. Microseconds, no model.

An embedding sees that "raise my limit" and "lower my limit" are near; it does not see that nothing else
matters. The guard looks at the words. The more of them two questions share, the more the few that they do
not share decide: near misses are mostly one sentence with one word exchanged, true paraphrases are mostly
other sentences. So it vetoes a candidate when

- the numbers differ, in one unit (90 minutes are 1.5 hours, 9 pm is 21:00), or
- there is no word in it to compare, as in Thai, Lao, Burmese and Khmer, whose words nothing here can part, or
- among mostly the same words: an odd number of negations differs, a word meets its opposite, two words change
  places (from A to B, from B to A), a name or other word is exchanged, or what is written beside the words differs
  where it counts (5 + 3, 5 - 3, 5!; hepatitis A, hepatitis B; among the same words, the letters A and a, and the
  indentation of code).

Words that only frame a request, before its matter begins ("I want to", "what is the way to"), are no exchange where
they stand against words that do the same.

In Chinese and Japanese every sign is a word, but for runs of katakana and the words that are listed; the order counts
only around a direction there, since what is asked about may stand first or last.

Of conversations it compares all that the users said, as one text: the same exchange is asked for in any turn. Turn by
turn it vetoed a third of the paraphrases of benchmarks/traps/turns.jsonl (dev), so none. What the assistants said is
left to the model: two answers to one question seldom agree in words and numbers.

It only ever turns a hit into a miss. What it knows of English, Chinese and Japanese is in data/words.toml (`lexicon`).
Its figures are those of `benchmarks/cache_traps.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from embedsmith.conversation import read_asked
from embedsmith.lexicon import (
    TOKEN,
    Lexicon,
    expand_contractions,
    holds_signs,
    load_lexicon,
    part_signs,
    read_number,
    read_unit,
    stem,
)
from embedsmith.text import is_spelled, normalize

Quantity = tuple[str, float]  # kind, value in the unit of that kind
Turn = tuple[str, str, str]  # word before, direction, word behind
ALIKE = 0.4  # share of words in common from which on a negation, an opposite or the order decides
SAME = 0.6  # from which on any exchanged word decides
FROM_TO = "from to"
NEAR = 2  # words of content on each side of a direction that it can be about
OR_NOT = re.compile(r" or not\b")
RAISED = re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+")
PART = re.compile(r"[¼-¾⅐-⅞↉]")
SIGN = re.compile(r"(?<=[\d)])!|[*+^×÷<>=≤≥≠±√]+|(?<=[\d)]) ?[-/](?= ?[\d(])|(?P<negative>(?<![\w)])-(?=\d))")
LETTER = re.compile(r"(?<![\w'’.])[^\W\d_](?!['’+#]|\.?\w)")
INDENTED = re.compile(r"^([ \t]*)\S", re.MULTILINE)
SIGNS = 6  # the same where each sign is a word
FRAMED = 24  # words of a question among which its framing is looked for
MANY = 4  # exchanged words, both sides together, up to which they are an exchange and not another sentence


@dataclass(frozen=True, slots=True)
class Veto:
    """Why a candidate must not be served.

    Attributes:
        kind: "number", "sign", "letter", "layout", "negation", "opposite", "order" or "word".
        detail: what stands against what.
    """

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A question as the guard sees it.

    Attributes:
        words: stems in order, numbers among them, negations left out. bag: how often each of them occurs.
        quantities: (kind, value) as written, with their counts. implied: those that "a week", "one day" may mean.
        negations: how many.
        content: stems that carry meaning, synonyms under one name.
        signed: words of a writing without spaces are among them, each sign by itself where no list knows its word.
    """

    words: tuple[str, ...]
    bag: dict[str, int]
    quantities: Counter[Quantity]
    implied: Counter[Quantity]
    negations: int
    content: frozenset[str]
    signed: bool = False

    @property
    def silent(self) -> bool:
        """Say whether no word was read."""
        return not self.words and not self.negations


@dataclass(frozen=True, slots=True)
class Marks:
    """What is written beside the words.

    Attributes:
        signs: those of sums and the like, with their counts. letters: the single ones, as written.
        layout: the indentation of each line, () where none has any.
    """

    signs: Counter[str]
    letters: frozenset[str]
    layout: tuple[str, ...]


def find_veto(query: str, candidate: str) -> Veto | None:
    """Return why an answer to `candidate` must not be served to `query`, or None.

    >>> find_veto("how do I raise my limit", "how do I lower my limit")
    Veto(kind='opposite', detail='rais / lower')
    """
    query, candidate = read_asked(query), read_asked(candidate)
    if query == candidate:
        return None
    left, right = read_facts(query), read_facts(candidate)
    if left.silent or right.silent:
        return Veto("word", "none to compare")
    alike = likeness(left, right)
    veto = _find_number(left, right, alike)
    if veto is not None or alike < ALIKE:
        return veto
    opposite = _find_opposite(left, right)
    if left.negations % 2 != right.negations % 2:  # "not slow" and "fast": two turns lead back
        return None if opposite else Veto("negation", f"{left.negations} / {right.negations}")
    exchange = _find_exchange(query, candidate, left, right, alike)
    found = opposite or _find_order(left, right) or exchange or _find_turn(left, right)
    return found or _find_mark(query, candidate, left, right, alike)


def likeness(left: Facts, right: Facts) -> float:
    """Return the share of words, small ones too, that the longer question shares with the shorter, 0 to 1."""
    longer = max(len(left.words), len(right.words))
    common = sum(min(times, right.bag[word]) for word, times in left.bag.items() if word in right.bag)
    return common / longer if longer else 1.0


def _find_number(left: Facts, right: Facts, alike: float) -> Veto | None:
    if not left.quantities and not right.quantities:
        return None
    ours = left.quantities - right.quantities - right.implied
    theirs = right.quantities - left.quantities - left.implied
    same_kind = {kind for kind, _ in ours} & {kind for kind, _ in theirs}
    if same_kind or ((ours or theirs) and alike >= SAME):
        return Veto("number", f"{_name(ours)} / {_name(theirs)}")
    return None


def _find_opposite(left: Facts, right: Facts) -> Veto | None:
    ours, theirs = left.bag.keys() - right.bag.keys(), right.bag.keys() - left.bag.keys()
    for word in sorted(ours):
        against = load_lexicon().opposites.get(word, frozenset())
        if against & theirs and not against & left.bag.keys():  # "pros and cons" takes no side
            return Veto("opposite", f"{word} / {min(against & theirs)}")
    return None


def _find_order(left: Facts, right: Facts) -> Veto | None:
    fillers = load_lexicon().fillers
    if left.signed or right.signed:  # what is asked about may stand first or last
        return None
    if not (left.content ^ right.content) <= fillers:
        return None
    ours, theirs = ([word for word in side.words if word not in fillers] for side in (left, right))
    if ours == theirs or sorted(ours) != sorted(theirs):
        return None
    one, other = _sort_choices(ours), _sort_choices(theirs)
    if one == other or any(direction == FROM_TO for _, direction, _ in _turns_of(left) & _turns_of(right)):
        return None  # to B from A is from A to B
    place = next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return Veto("order", f"{one[place]} / {other[place]}")


def _find_turn(left: Facts, right: Facts) -> Veto | None:
    if load_lexicon().directions.isdisjoint(left.bag.keys() & right.bag.keys()):
        return None
    one, other = _turns_of(left), _turns_of(right)
    turned = (one - other) & {(behind, direction, before) for before, direction, behind in other - one}
    if not turned:
        return None
    before, direction, behind = min(turned)
    return Veto("order", f"{before} {direction} {behind} / {behind} {direction} {before}")


def _find_mark(query: str, candidate: str, left: Facts, right: Facts, alike: float) -> Veto | None:
    one, other = read_marks(query), read_marks(candidate)
    if one == other:
        return None
    ours, theirs = one.signs - other.signs, other.signs - one.signs
    if (ours and theirs) or any(sign in found for found in (ours, theirs) for sign in ("!", "negative")):
        return Veto("sign", f"{' '.join(sorted(ours)) or 'none'} / {' '.join(sorted(theirs)) or 'none'}")
    letter = _find_letter(one.letters - other.letters, other.letters - one.letters, left, right, alike)
    if letter is not None:
        return letter
    if one.layout != other.layout and left.words == right.words:
        return Veto("layout", "indentation")
    return None


def _find_letter(ours: frozenset[str], theirs: frozenset[str], left: Facts, right: Facts, alike: float) -> Veto | None:
    """Return the veto on a letter for another; the words do not tell, since "a" is an article to them."""
    if not ours or not theirs:
        return None
    if left.content == right.content:
        for letter in sorted(ours):
            if letter.swapcase() in theirs:
                return Veto("letter", f"{letter} / {letter.swapcase()}")
    one, other = ({letter.casefold() for letter in side} for side in (ours, theirs))
    named = len(left.words) == len(right.words) or (any(map(str.isupper, ours)) and any(map(str.isupper, theirs)))
    if alike >= SAME and named and one - other and other - one:  # hepatitis A, hepatitis B
        return Veto("letter", f"{min(one - other)} / {min(other - one)}")
    return None


def _sort_choices(words: Sequence[str]) -> list[str]:
    """Return the words with both sides of "or" and "and" in one order: "on or off" is "off or on"."""
    found = list(words)
    for place in range(1, len(found) - 1):
        if found[place] in {"or", "and"} and found[place - 1] > found[place + 1]:
            found[place - 1], found[place + 1] = found[place + 1], found[place - 1]
    return found


def _find_exchange(query: str, candidate: str, left: Facts, right: Facts, alike: float) -> Veto | None:
    ours, theirs = left.content - right.content, right.content - left.content
    if alike < SAME or not ours or not theirs or len(ours) + len(theirs) > (SIGNS if left.signed else MANY):
        return None
    fillers = load_lexicon().fillers
    if ours - fillers <= read_framing(query) and theirs - fillers <= read_framing(candidate):
        return None  # "I want to pay by card" asks what "what is the way to pay by card" asks
    return Veto("word", f"{' '.join(sorted(ours))} / {' '.join(sorted(theirs))}")


def _name(quantities: Counter[Quantity]) -> str:
    return (
        " ".join(f"{value:g}{'' if kind == 'plain' else f' ({kind})'}" for kind, value in sorted(quantities)) or "none"
    )


@lru_cache(maxsize=1 << 14)
def read_facts(text: str) -> Facts:
    """Return the facts of a question."""
    lexicon = load_lexicon()
    plain = spell_digits(text)
    if is_spelled(plain):
        return Facts((), {}, Counter(), Counter(), 0, frozenset())
    read = OR_NOT.sub("", normalize(plain))
    signed = not text.isascii() and holds_signs(read)
    tokens = expand_contractions(TOKEN.findall(part_signs(read, lexicon) if signed else read))
    found: dict[bool, Counter[Quantity]] = {True: Counter(), False: Counter()}
    words: list[str] = []
    negations = place = 0
    while place < len(tokens):
        value, used = read_number(tokens, place, lexicon)
        if value is None:
            word = stem(tokens[place])
            negations += word in lexicon.negators
            words += [word] if word not in lexicon.negators else []
            place += 1
            continue
        written = tokens[place] not in {"a", "an", "one"}
        kind, value, more = read_unit(value, tokens, place + used, lexicon)
        found[written][kind, round(value, 6)] += 1
        words += [f"{value:g}"] if written else [stem(token) for token in tokens[place : place + used + more]]
        place += used + more
    numbers = {f"{value:g}" for _, value in found[True]}
    content = frozenset(
        lexicon.alike.get(word, word) for word in words if word not in lexicon.small and word not in numbers
    )
    return Facts(tuple(words), dict(Counter(words)), found[True], found[False], negations, content, signed)


@lru_cache(maxsize=1 << 14)
def read_framing(text: str) -> frozenset[str]:
    """Return the words that only say that something is asked for: those before the matter, and not in it again.

    >>> sorted(read_framing("Please tell me the way to want less") - load_lexicon().small)
    ['pleas', 'tell', 'way']
    """
    lexicon = load_lexicon()
    tokens = expand_contractions(TOKEN.findall(normalize(spell_digits(text))))
    begin = lexicon.framing.match("".join(f"{token} " for token in tokens[:FRAMED]))
    stems = [lexicon.alike.get(word, word) for word in map(stem, tokens)]
    many = begin[0].count(" ") if begin is not None else 0
    return frozenset(stems[:many]).difference(stems[many:])


@lru_cache(maxsize=1 << 14)
def read_marks(text: str) -> Marks:
    """Return what is written beside the words of a question."""
    plain = spell_digits(text)
    layout = tuple(INDENTED.findall(text)) if "\n" in text else ()
    return Marks(
        signs=Counter(match.lastgroup or match[0].strip() for match in SIGN.finditer(plain)),
        letters=frozenset(LETTER.findall(plain, 1)) - {"I", "i"},  # a capital at the beginning says nothing
        layout=layout if any(layout) else (),
    )


def spell_digits(text: str) -> str:
    """Return `text` with raised digits and fractions as they are typed, before a normal form makes 102 of 10².

    >>> spell_digits("10² and 2½")
    '10^2 and 2 1/2'
    """
    if text.isascii():
        return text
    text = RAISED.sub(lambda match: "^" + match[0], PART.sub(lambda match: f" {match[0]}", text))
    return unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")


def _turns_of(facts: Facts) -> frozenset[Turn]:
    return frozenset(_find_turns(facts.words, load_lexicon()))


def _find_turns(words: Sequence[str], lexicon: Lexicon) -> Iterator[Turn]:
    """Yield the words of content near each direction, before and behind it; and what "from" and "to" name."""
    content: list[str] = []
    at: list[tuple[int, str]] = []
    for word in words:
        if word in lexicon.directions:
            at.append((len(content), word))
        elif word not in lexicon.small:
            content.append(lexicon.alike.get(word, word))
    for place, direction in at:
        behind = content[place : place + (NEAR if direction != "to" else 1)]  # "for Ben to take": of a verb no more
        for one in content[max(place - NEAR, 0) : place]:
            yield from ((one, direction, other) for other in behind if one != other)
    ends = [(word, content[place]) for place, word in at if word in {"from", "to"} and place < len(content)]
    for (first, one), (second, other) in pairwise(ends):
        if first != second:
            yield (one, FROM_TO, other) if first == "from" else (other, FROM_TO, one)
