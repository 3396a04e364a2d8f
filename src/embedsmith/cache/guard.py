"""The guard: two questions that look alike and differ in a fact get different answers. Microseconds, no model.

An embedding sees that "raise my limit" and "lower my limit" are near; it does not see that nothing else
matters. The guard looks at the words. The more of them two questions share, the more the few that they do
not share decide: near misses are mostly one sentence with one word exchanged, true paraphrases are mostly
other sentences. So it vetoes a candidate when

- the numbers differ, in one unit (90 minutes are 1.5 hours, 9 pm is 21:00), or
- among mostly the same words: an odd number of negations differs, a word meets its opposite, the same
  words stand in another order (from A to B, from B to A), or a name or other word is exchanged.

It only ever turns a hit into a miss. What it knows of English is in data/words.toml (`lexicon`). Its figures are
those of `benchmarks/cache_traps.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from embedsmith.lexicon import TOKEN, expand_contractions, load_lexicon, read_number, read_unit, stem
from embedsmith.text import normalize

Quantity = tuple[str, float]  # kind, value in the unit of that kind
ALIKE = 0.4  # share of words in common from which on a negation, an opposite or the order decides
SAME = 0.6  # from which on any exchanged word decides
MANY = 4  # exchanged words, both sides together, up to which they are an exchange and not another sentence


@dataclass(frozen=True, slots=True)
class Veto:
    """Why a candidate must not be served.

    Attributes:
        kind: "number", "negation", "opposite", "order" or "word".
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
    """

    words: tuple[str, ...]
    bag: dict[str, int]
    quantities: Counter[Quantity]
    implied: Counter[Quantity]
    negations: int
    content: frozenset[str]


def find_veto(query: str, candidate: str) -> Veto | None:
    """Return why an answer to `candidate` must not be served to `query`, or None.

    >>> find_veto("how do I raise my limit", "how do I lower my limit")
    Veto(kind='opposite', detail='rais / lower')
    """
    left, right = read_facts(query), read_facts(candidate)
    alike = likeness(left, right)
    veto = _find_number(left, right, alike)
    if veto is not None or alike < ALIKE:
        return veto
    opposite = _find_opposite(left, right)
    if left.negations % 2 != right.negations % 2:  # "not slow" and "fast": two turns lead back
        return None if opposite else Veto("negation", f"{left.negations} / {right.negations}")
    return opposite or _find_order(left, right) or _find_exchange(left, right, alike)


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
    if left.words == right.words or left.bag != right.bag:
        return None
    one, other = _sort_choices(left.words), _sort_choices(right.words)
    if one != other:
        place = next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        return Veto("order", f"{one[place]} / {other[place]}")
    return None


def _sort_choices(words: tuple[str, ...]) -> list[str]:
    """Return the words with both sides of "or" and "and" in one order: "on or off" is "off or on"."""
    found = list(words)
    for place in range(1, len(found) - 1):
        if found[place] in {"or", "and"} and found[place - 1] > found[place + 1]:
            found[place - 1], found[place + 1] = found[place + 1], found[place - 1]
    return found


def _find_exchange(left: Facts, right: Facts, alike: float) -> Veto | None:
    ours, theirs = left.content - right.content, right.content - left.content
    if alike >= SAME and ours and theirs and len(ours) + len(theirs) <= MANY:
        return Veto("word", f"{' '.join(sorted(ours))} / {' '.join(sorted(theirs))}")
    return None


def _name(quantities: Counter[Quantity]) -> str:
    return (
        " ".join(f"{value:g}{'' if kind == 'plain' else f' ({kind})'}" for kind, value in sorted(quantities)) or "none"
    )


@lru_cache(maxsize=1 << 14)
def read_facts(text: str) -> Facts:
    """Return the facts of a question."""
    lexicon = load_lexicon()
    tokens = expand_contractions(TOKEN.findall(normalize(text).replace(" or not", "")))
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
    return Facts(tuple(words), dict(Counter(words)), found[True], found[False], negations, content)
