"""The guard: two questions that look alike and differ in a fact get different answers. Microseconds, no model.

An embedding sees that "raise my limit" and "lower my limit" are near; it does not see that nothing else
matters. The guard looks at the words. The more of them two questions share, the more the few that they do
not share decide: near misses are mostly one sentence with one word exchanged, true paraphrases are mostly
other sentences. So it vetoes a candidate when

- one of them wishes for another answer than the other (`wishes`: "Answer in Spanish.", "as a table", "in short"), or
- the numbers differ, in one unit (90 minutes are 1.5 hours, 9 pm is 21:00), or their units do (20 lbs, 20 kg; 10 mW,
  10 MW; mW, MW), or
- there is no word in it to compare, as in Thai, Lao, Burmese and Khmer, whose words nothing here can part, or
- among mostly the same words: an odd number of negations differs, a word meets its opposite, two words change
  places (from A to B, from B to A), a name or other word is exchanged, or a member of a family for another (this week,
  next week), or what is written beside the words differs where it counts (5 + 3, 5 - 3, 5!; i++, ++i; hepatitis A,
  hepatitis B; x², x₂; among the same words, the letters A and a, and the indentation of code).

Words that only frame a request, before its matter begins ("I want to", "what is the way to"), are no exchange where
they stand against words that do the same.

In Chinese and Japanese every sign is a word, but for runs of katakana and the words that are listed; the order counts
only around a direction there, since what is asked about may stand first or last. Korean words are read without their
endings and particles; those that say from where, to where, who and whom stay as directions. French, Spanish, Italian,
Portuguese and Dutch words are read as the English ones that the tables know (`western`), where small words tell which
of these languages both questions are; the order counts there as in Chinese.

Of conversations it compares all that the users said, as one text: the same exchange is asked for in any turn. Turn by
turn it vetoed a third of the paraphrases of benchmarks/traps/turns.jsonl (dev), so none. What the assistants said is
left to the model: two answers to one question seldom agree in words and numbers.

It only ever turns a hit into a miss. What it knows of words in all these languages is in data/words.toml
(`lexicon`), and so is what `facts` knows, which judges more mildly: training data needs the paraphrases that a veto
here would cost.
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
from typing import Any

from embedsmith.conversation import read_asked
from embedsmith.facts import is_german
from embedsmith.lexicon import (
    TOKEN,
    UNNAMED,
    Lexicon,
    Quantity,
    are_equal,
    expand_contractions,
    find_cased,
    find_flip,
    find_members,
    holds_hangul,
    holds_signs,
    load_lexicon,
    part_hangul,
    part_signs,
    read_amount,
    share_words,
    stem,
)
from embedsmith.text import is_spelled, normalize
from embedsmith.western import fold, load_western, may_tell, read_names, split_words, tell_language
from embedsmith.wishes import find_unmet, may_wish, read_wishes

RULES = 7  # of this code and the lexicon's; one more whenever a change of theirs changes a decision (a test tells)
Turn = tuple[str, str, str]  # word before, direction, word behind
ALIKE = 0.4  # share of words in common from which on a negation, an opposite, a family or the order is a veto
SAME = 0.6  # share of words in common from which on any exchanged word is a veto
FROM_TO = "from to"
NEAR = 2  # words of content on each side of a direction that it can be about
OR_NOT = re.compile(r" or not\b")
RAISED = re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+")
LOWERED = re.compile(r"[₀-₉]+")
PART = re.compile(r"[¼-¾⅐-⅞↉]")
SIGNED = re.compile(r"[!*+^_×÷<>=≤≥≠±√/-]")  # most texts hold none of these, and need not be searched for `SIGN`
LONE = r"[^\W\d_](?!\w|['’.]\w)"  # a letter behind a sign: x, but not that of e-mail
SIGN = re.compile(
    r"(?<=[\d)])!|(?P<before>(?<!\w)(?:\+\+(?=\w)|--(?=\w\b)))|(?<=\b\w)--(?!\w)|[*+^×÷<>=≤≥≠±√]+"
    rf"|(?<=[\d)]) ?[-/](?= ?[\d(])|(?<=[\d)])(?:-| - )(?={LONE})"
    rf"|(?:(?<=[\W\d_][^\W\d_])|(?<=^[^\W\d_]))(?:-| - )(?=[\d(]|{LONE})"
    r"|(?P<negative>(?<![\w)])-(?=\d))|(?<=[^\W_])_(?=\d)"
)
LETTER = re.compile(r"(?<![\w'’.])[^\W\d_](?!['’+#]|\.?\w)")
INDENTED = re.compile(r"^([ \t]*)\S", re.MULTILINE)
VOWELS = frozenset("aàeéèiìoòóuùy")
FRAMED = 24  # words of a question among which its framing is looked for
MANY = 4  # exchanged words, both sides together, up to which they are an exchange and not another sentence
TABLES = 1024  # comparisons of two quantities, about 1 ms
SPELLED = frozenset(("opposite", "order", "word"))  # vetoes whose details are words
MANY_SIGNS = 6  # the same for Chinese and Japanese, where most signs are a word each


@dataclass(frozen=True, slots=True)
class Veto:
    """Why a candidate must not be served.

    Attributes:
        kind: "wish", "number", "sign", "letter", "layout", "negation", "opposite", "order" or "word".
        detail: what stands against what.
    """

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class GuardView:
    """A question as the guard sees it.

    Attributes:
        words: stems in order, numbers among them, negations left out. bag: how often each of them occurs.
        quantities: those that are written, with their counts. written: the number of each in its own unit.
        implied: those that "a week", "one day" may mean.
        negations: how many.
        content: stems that carry meaning, synonyms under one name, and the kinds of units: "20 kg" is not "20 bags".
        signed: words of a writing without spaces are among them, each sign by itself where no list knows its word; or
            Korean ones, whose order is as free.
        wishful: some of them may wish for something of the answer.
        language: the code of the one of `western` as whose words they are read, "" where it is none.
    """

    words: tuple[str, ...]
    bag: dict[str, int]
    quantities: Counter[Quantity]
    written: dict[Quantity, float]
    implied: Counter[Quantity]
    negations: int
    content: frozenset[str]
    signed: bool = False
    wishful: bool = False
    language: str = ""

    @property
    def free(self) -> bool:
        """Say whether the order of words is free: what is asked about may stand first or last."""
        return self.signed or self.language != ""

    @property
    def silent(self) -> bool:
        """Say whether no word was read."""
        return not self.words and not self.negations


@dataclass(frozen=True, slots=True)
class Marks:
    """What is written beside the words.

    Attributes:
        signs: those of sums and the like, in their order. letters: the single ones, as written.
        layout: the indentation of each line, () where none has any.
    """

    signs: tuple[str, ...]
    letters: frozenset[str]
    layout: tuple[str, ...]


def record_guard(on: bool) -> dict[str, Any]:
    """Return what a calibration records of the guard behind which it was made: `guard` and `guard_rules`."""
    return {"guard": on, "guard_rules": fingerprint_rules() if on else ""}


def fingerprint_rules() -> str:
    """Return which rules and which words decide here; another version of either is another string."""
    return f"{RULES}-{load_lexicon().fingerprint}"


def find_veto(query: str, candidate: str) -> Veto | None:
    """Return why an answer to `candidate` must not be served to `query`, or None.

    >>> find_veto("how do I raise my limit", "how do I lower my limit")
    Veto(kind='opposite', detail='raise / lower')
    """
    query, candidate = read_asked(query), read_asked(candidate)
    veto = _find_difference(query, candidate) if query != candidate else None
    if veto is None or veto.kind not in SPELLED:
        return veto
    return Veto(veto.kind, _spell(veto.detail, query, candidate))


def _find_difference(query: str, candidate: str) -> Veto | None:
    left, right = view_both(query, candidate)
    if left.silent or right.silent:
        return Veto("word", "none to compare")
    if left.wishful or right.wishful:
        one, other = read_wishes(query), read_wishes(candidate)
        ours = find_unmet(one, other, _name_written(right, candidate), candidate)
        theirs = find_unmet(other, one, _name_written(left, query), query)
        if ours is not None or theirs is not None:
            return Veto("wish", f"{ours.value if ours else 'none'} / {theirs.value if theirs else 'none'}")
        if one.found and one.keys == other.keys:  # whatever the words are in which they wish for it
            query, candidate = one.rest, other.rest
            left, right = view_both(query, candidate)
    alike = share_words(left.bag, right.bag, max(len(left.words), len(right.words)))
    veto = _find_number(left, right, alike) or _find_unit(query, candidate, left, right)
    if veto is not None or alike < ALIKE:
        return veto
    opposite = _find_opposite(left, right) or _find_flip(left, right, alike)
    if left.negations % 2 != right.negations % 2:  # "not slow" and "fast": two turns lead back
        return None if opposite else Veto("negation", f"{left.negations} / {right.negations}")
    exchange = _find_exchange(query, candidate, left, right, alike)
    found = opposite or _find_order(left, right) or exchange or _find_member(query, candidate, left, right)
    return found or _find_turn(left, right) or _find_mark(query, candidate, left, right, alike)


def view_both(query: str, candidate: str) -> tuple[GuardView, GuardView]:
    """Return what the guard compares of two questions, both read as of the language that they tell together."""
    left, right = view_question(query, ""), view_question(candidate, "")  # named, as below: the same remembered view
    if left.language != right.language:
        language = tell_language(TOKEN.findall(normalize(f"{query}\n{candidate}")))
        if language:
            left, right = view_question(query, language), view_question(candidate, language)
    return left, right


def _name_written(view: GuardView, text: str) -> dict[str, int]:
    """Return the stems by which wishes are named: of the words as written, which are no names of `western`."""
    return Counter(map(stem, TOKEN.findall(normalize(text)))) if view.language else view.bag


def _find_number(left: GuardView, right: GuardView, alike: float) -> Veto | None:
    if not left.quantities and not right.quantities:
        return None
    ours, theirs = _find_beyond(left, right), _find_beyond(right, left)
    if not ours and not theirs:
        return None
    here, there = _leave_unequal(ours, theirs, left, right), _leave_unequal(theirs, ours, right, left)
    kinds, others = {kind for kind, _ in here}, {kind for kind, _ in there}
    same_kind = kinds & others or (kinds and others and "plain" in kinds | others)  # $1,000, 1,000,000
    same_number = {left.written[one] for one in here} & {right.written[other] for other in there}  # 20 lbs, 20 kg
    if same_kind or same_number or ((here or there) and alike >= SAME):
        return Veto("number", f"{_name(here)} / {_name(there)}")
    return None


def _find_unit(query: str, candidate: str, left: GuardView, right: GuardView) -> Veto | None:
    """Return the veto on units whose case alone tells them apart: mW, MW."""
    cased = load_lexicon().cased
    alone = not cased.isdisjoint(left.bag) and not cased.isdisjoint(right.bag)
    if not alone and not (left.quantities and right.quantities):
        return None
    one, other = find_cased(query, alone), find_cased(candidate, alone)
    for symbol in sorted(one.keys() & other.keys()):
        if one[symbol].isdisjoint(other[symbol]):
            return Veto("number", f"{min(one[symbol])} / {min(other[symbol])}")
    return None


def _find_beyond(one: GuardView, other: GuardView) -> Counter[Quantity]:
    """Return the quantities of one that the other neither has nor may mean."""
    found = one.quantities - other.quantities if other.quantities else one.quantities
    return found - other.implied if found and other.implied else found


def _leave_unequal(
    ours: Counter[Quantity], theirs: Counter[Quantity], left: GuardView, right: GuardView
) -> list[Quantity]:
    """Return which of ours are none of theirs, a unit that only one side names aside; but 9 is not 9 pm.

    Of tables of numbers all: each against each would take minutes, and two that agree in every unit are beyond neither.
    """
    if len(ours) * len(theirs) > TABLES:
        return list(ours)
    return [
        one
        for one in ours
        if not any(
            "clock" not in (one[0], other[0]) and are_equal(one, left.written[one], other, right.written[other])
            for other in theirs
        )
    ]


def _find_opposite(left: GuardView, right: GuardView) -> Veto | None:
    ours, theirs = left.bag.keys() - right.bag.keys(), right.bag.keys() - left.bag.keys()
    for word in sorted(ours):
        against = load_lexicon().opposites.get(word, frozenset())
        if against & theirs and not against & left.bag.keys():  # "pros and cons" takes no side
            return Veto("opposite", f"{word} / {min(against & theirs)}")
    return None


def _find_flip(left: GuardView, right: GuardView, alike: float) -> Veto | None:
    repeats = len(left.bag) < len(left.words) or len(right.bag) < len(right.words)
    flip = find_flip(left.bag, right.bag, load_lexicon().opposites) if repeats and alike >= SAME else None
    return Veto("opposite", " / ".join(flip)) if flip else None


def _find_member(query: str, candidate: str, left: GuardView, right: GuardView) -> Veto | None:
    """Return the veto on another member of a family: this week, next week."""
    if load_lexicon().kin.isdisjoint(left.bag.keys() ^ right.bag.keys()):
        return None
    one, other = read_members(query, left.language), read_members(candidate, right.language)
    ours, theirs = one - other, other - one
    if not ours or not theirs:
        return None
    for family, mine in sorted(ours):
        yours = min((member for there, member in theirs if there == family), default=None)
        if yours is not None:
            names = load_lexicon().names[family]
            return Veto("word", f"{names[mine]} / {names[yours]}".replace("_", " "))
    return None


def _find_order(left: GuardView, right: GuardView) -> Veto | None:
    fillers = load_lexicon().fillers
    if left.free or right.free:
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


def _find_turn(left: GuardView, right: GuardView) -> Veto | None:
    if load_lexicon().directions.isdisjoint(left.bag.keys() & right.bag.keys()):
        return None
    one, other = _turns_of(left), _turns_of(right)
    turned = (one - other) & {(behind, direction, before) for before, direction, behind in other - one}
    if not turned:
        return None
    before, direction, behind = min(turned)
    return Veto("order", f"{before} {direction} {behind} / {behind} {direction} {before}")


def _find_mark(query: str, candidate: str, left: GuardView, right: GuardView, alike: float) -> Veto | None:
    one, other = read_marks(query), read_marks(candidate)
    if one == other:
        return None
    if one.signs != other.signs:
        mine, yours = Counter(one.signs), Counter(other.signs)
        ours, theirs = mine - yours, yours - mine
        if mine == yours and left.words == right.words:  # a - b + c, a + b - c
            return Veto("sign", f"{' '.join(one.signs)} / {' '.join(other.signs)}")
        if (ours and theirs) or any(sign in found for found in (ours, theirs) for sign in ("!", "negative")):
            return Veto("sign", f"{' '.join(sorted(ours)) or 'none'} / {' '.join(sorted(theirs)) or 'none'}")
    letter = _find_letter(one.letters - other.letters, other.letters - one.letters, left, right, alike)
    if letter is not None:
        return letter
    if one.layout != other.layout and left.words == right.words:
        return Veto("layout", "indentation")
    return None


def _find_letter(
    ours: frozenset[str], theirs: frozenset[str], left: GuardView, right: GuardView, alike: float
) -> Veto | None:
    """Return the veto on a letter for another; the words do not tell, since "a" is an article to them."""
    if left.language:  # "à", "y", "é" are words
        ours, theirs = ours - VOWELS, theirs - VOWELS
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


def _find_exchange(query: str, candidate: str, left: GuardView, right: GuardView, alike: float) -> Veto | None:
    ours, theirs = left.content - right.content, right.content - left.content
    if left.implied or right.implied:  # 12 months, one year
        ours, theirs = ours - _name_kinds(right.implied), theirs - _name_kinds(left.implied)
    if alike < SAME or not ours or not theirs or len(ours) + len(theirs) > (MANY_SIGNS if left.signed else MANY):
        return None
    articles, fillers = load_lexicon().articles, load_lexicon().fillers
    if not articles.isdisjoint(ours | theirs) and is_german(query, candidate):
        ours, theirs = ours - articles, theirs - articles
        if not ours or not theirs:  # "meine Rechnung", "die Rechnung"
            return None
    framing = read_framing(query, left.language), read_framing(candidate, right.language)
    if ours - fillers <= framing[0] and theirs - fillers <= framing[1]:
        return None  # "I want to pay by card" asks what "what is the way to pay by card" asks
    return Veto("word", f"{' '.join(sorted(ours))} / {' '.join(sorted(theirs))}")


def _name(quantities: Sequence[Quantity]) -> str:
    return (
        " ".join(f"{value:g}{'' if kind == 'plain' else f' ({kind})'}" for kind, value in sorted(quantities)) or "none"
    )


def _spell(detail: str, query: str, candidate: str) -> str:
    """Return what stands against what in the words of the questions, where it is told by their stems."""
    left, right = view_both(query, candidate)
    ours, theirs = _read_spellings(query, left.language), _read_spellings(candidate, right.language)
    one, _, other = detail.partition(" / ")
    return " / ".join(
        " ".join(known.get(word, word) for word in side.split())
        for side, known in ((one, theirs | ours), (other, ours | theirs))
    )


def _read_spellings(text: str, language: str) -> dict[str, str]:
    """Return the words of a question by the names under which they are compared, the first of each."""
    found, alike = TOKEN.findall(normalize(spell_digits(text))), load_lexicon().alike
    if language:
        named = [(stem(name), word) for word in split_words(found) for name in read_names([word], language)]
    else:
        named = [(stem(word), word) for word in expand_contractions(found)]
    spelled: dict[str, str] = {}
    for name, word in named:
        spelled.setdefault(alike.get(name, name), word)
        spelled.setdefault(name, word)
    return spelled


@lru_cache(maxsize=1 << 14)
def view_question(text: str, language: str = "") -> GuardView:
    """Return what the guard compares of a question; `language` as in `GuardView`, "": its words tell it."""
    lexicon = load_lexicon()
    plain = spell_digits(text)
    if is_spelled(plain):
        return GuardView((), {}, Counter(), {}, Counter(), 0, frozenset())
    read = OR_NOT.sub("", normalize(plain))
    signed = not text.isascii() and holds_signs(read)
    read = part_signs(read, lexicon) if signed else read
    if not text.isascii() and holds_hangul(read):
        read, signed = part_hangul(read, lexicon.korean), True
    found = TOKEN.findall(read)
    if not language and may_tell(read, found):
        language = tell_language(found)
    tokens = read_names(split_words(found), language) if language else expand_contractions(found)
    quantities: Counter[Quantity] = Counter()
    implied: Counter[Quantity] = Counter()
    written: dict[Quantity, float] = {}
    words: list[str] = []
    numbers: set[str] = set()
    openers, negators = lexicon.openers, lexicon.negators
    negations = place = 0
    while place < len(tokens):
        token = tokens[place]
        amount = read_amount(tokens, place, lexicon) if token in openers or token[0].isdecimal() else None
        if amount is None:
            word = stem(token)
            if word in negators:
                negations += 1
            else:
                words.append(word)
            place += 1
            continue
        item = amount.kind, round(amount.value, 6)
        behind = place + amount.used
        if amount.said:
            implied[item] += 1
            words += map(stem, tokens[place:behind])
        else:
            quantities[item] += 1
            written[item] = amount.number
            words.append(f"{item[1]:g}")
            numbers.add(words[-1])
        place = behind
    content = frozenset(
        lexicon.alike.get(word, word) for word in words if word not in lexicon.small and word not in numbers
    )
    if quantities:
        content |= _name_kinds(quantities)
    bag: dict[str, int] = {}
    for word in words:  # half the time of a Counter
        bag[word] = bag.get(word, 0) + 1
    wishful = may_wish({stem(word): 1 for word in found} if language else bag, signed)
    return GuardView(tuple(words), bag, quantities, written, implied, negations, content, signed, wishful, language)


def _name_kinds(quantities: Counter[Quantity]) -> frozenset[str]:
    return frozenset(f"({kind})" for kind, _ in quantities if kind not in UNNAMED)


@lru_cache(maxsize=1 << 14)
def read_members(text: str, language: str = "") -> frozenset[tuple[int, int]]:
    """Return (family, member) of the words of a question that exclude others of their family."""
    return frozenset(
        (found.family, found.member)
        for found in find_members(view_question(text, language).words, load_lexicon())
        if not found.raised or f" {found.stem.capitalize()}" in text  # at the beginning, May may be no month
    )


@lru_cache(maxsize=1 << 14)
def read_framing(text: str, language: str = "") -> frozenset[str]:
    """Return the words that only say that something is asked for: those before the matter, and not in it again.

    >>> sorted(read_framing("Please tell me the way to want less") - load_lexicon().small)
    ['pleas', 'tell', 'way']
    """
    tokens, lexicon = TOKEN.findall(normalize(spell_digits(text))), load_lexicon()
    words, framing = expand_contractions(tokens), lexicon.framing
    if language:
        words, framing = split_words(tokens), load_western().tongues[language].framing
    begin = framing.match("".join(f"{fold(word) if language else word} " for word in words[:FRAMED]))
    many = begin[0].count(" ") if begin is not None else 0
    framed, matter = (
        frozenset(lexicon.alike.get(word, word) for word in map(stem, read_names(part, language) if language else part))
        for part in (words[:many], words[many:])
    )
    return framed - matter


@lru_cache(maxsize=1 << 14)
def read_marks(text: str) -> Marks:
    """Return what is written beside the words of a question."""
    plain = spell_digits(text)
    layout = tuple(INDENTED.findall(text)) if "\n" in text else ()
    return Marks(
        signs=tuple(map(_name_sign, SIGN.finditer(plain))) if SIGNED.search(plain) else (),
        letters=frozenset(LETTER.findall(plain, 1)) - {"I", "i"},  # a capital at the beginning says nothing
        layout=layout if any(layout) else (),
    )


def _name_sign(match: re.Match[str]) -> str:
    if match["before"]:
        return f"{match[0]} before"  # ++i is not i++
    return "negative" if match["negative"] else match[0].strip()


def spell_digits(text: str) -> str:
    """Return `text` with raised and lowered digits and fractions as they are typed: a normal form makes 102 of 10².

    >>> spell_digits("10², x₂ and 2½")
    '10^2, x_2 and 2 1/2'
    """
    if text.isascii():
        return text
    text = RAISED.sub(lambda match: "^" + match[0], PART.sub(lambda match: f" {match[0]}", text))
    text = LOWERED.sub(lambda match: "_" + match[0], text)
    return unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")


def _turns_of(view: GuardView) -> frozenset[Turn]:
    return frozenset(_find_turns(view.words, load_lexicon()))


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
