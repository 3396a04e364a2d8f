"""French, Spanish, Italian, Portuguese and Dutch words as the names that the lexicon knows (words.toml, [western]).

"Désactiver" is read as "disable", "lundi" as "monday", "vingt" as "twenty", so that opposites, families, units and
numbers have one home in all languages. A word that no table lists is read without its ending and with a mark behind
it: an English table cannot take it for its own (French "four" is an oven).

The endings are few, as those of light stemmers (Savoy 2006): of number, gender, infinitive and participle. What they
merge wrongly ("puerto", "puerta") is listed. Which language it is, small words tell; where English ones stand, none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from embedsmith.lexicon import MARK, TENS, load_lexicon, load_tables, stem

ELISION = re.compile(r"\b(?:j|l|qu|n|d)'[^\W\d_]{2}")
FEWEST = 2  # different words of a language without which it is not told
SHORT, LONG_WORD = 3, 6  # words of a text, letters of the one word that tells its language
REACH = 5  # words behind a negation in which another one only strengthens it
FAR = 12  # words before a particle among which its verb is looked for
LARGEST = 12  # digits of a number in groups
LEADING = re.compile(r"[1-9]\d{0,2}")
GROUP = re.compile(r"\d{3}")
GROUPED = re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?")
ENDINGS = {
    code: re.compile(f"(?<=...)(?:{endings})$")
    for code, endings in {
        "fr": "ent|ons|ez|ee|[ei]r|re|[aeio]",
        "es": "iendo|ando|aron|ieron|an|[ai]d[oa]|[aei]r|[aeio]",
        "it": "[ae]ndo|[aiu]t[oaie]|[aei]re|[aeio]",
        "pt": "[aei]ndo|[aei]ran|an|[ai]d[oa]|[aei]r|ao|[aeo]e|[aeio]",
    }.items()
}
SHORTEST = 4  # letters of an ending-less word by which another form of a listed one is known
DUTCH = re.compile("(?<=....)(?:en|e|s)$")
PERSON = re.compile("(?<=....)[td]$")
LONG = re.compile("([aeou])\\1")
DOUBLE = re.compile("([b-df-hj-np-tv-z])\\1$")
PARTICLES = frozenset(("aan", "af", "in", "om", "op", "over", "terug", "toe", "uit", "vast", "weg"))  # of Dutch verbs
JOINTS = frozenset(MARK + word for word in ("y", "e", "et"))  # trente et un
ENGLISH = frozenset(
    """
    the is are do does did how what where which who why when my your to of for can could i it and or with on if you was
    be have has this that from not an get should would will there about am in by at we they been has did just
    """.split()  # noqa: SIM905 shorter to read than a list
)
Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tongue:
    """What is known of one of the five languages.

    Attributes:
        phrases: by its first word each listed word or phrase: (its other words, names), longest first.
        stems: names by the stem of a listed word; of those that two names share, none.
        denying, lead, bound: words that deny; the one without which those that are `bound` do not.
        framing: how a request begins. evidence: words that tell the language. foreign: those that tell another.
        spelling: letters that decide where two languages have as many of the words.
    """

    phrases: Mapping[str, tuple[tuple[Names, Names], ...]]
    stems: Mapping[str, Names]
    denying: frozenset[str]
    lead: str
    bound: frozenset[str]
    framing: re.Pattern[str]
    evidence: frozenset[str]
    foreign: frozenset[str]
    spelling: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Western:
    """The tongues by their codes, and what most texts can be put aside by.

    Attributes:
        english: words that are English only; they come early. marks: words of a tongue that are none of English.
        elided: words that lose their vowel. shared: those that are read as in English.
    """

    tongues: Mapping[str, Tongue]
    english: frozenset[str]
    marks: frozenset[str]
    elided: Mapping[str, str]
    shared: frozenset[str]


def may_tell(text: str, tokens: Sequence[str]) -> bool:
    """Say whether a text in small letters may be of one of the languages: all there is to do for most English ones."""
    known = load_western()
    if not known.english.isdisjoint(tokens):
        return False
    return not known.marks.isdisjoint(tokens) or ("'" in text and ELISION.search(text) is not None)


def tell_language(tokens: Iterable[str]) -> str:
    """Return the code of the language that the words of a text are of, "" where it is none of the five.

    >>> tell_language("puis je résilier mon contrat".split()), tell_language("what does je ne sais quoi mean".split())
    ('fr', '')
    """
    words, known = {piece for token in tokens for piece in token.split("'")}, load_western()
    short = len(words) <= SHORT and any(len(word) >= LONG_WORD for word in words & known.marks)
    found, most = "", (1 if short else FEWEST, -1)
    for code, tongue in known.tongues.items():
        count = len(words & tongue.evidence)
        spelled = sum(tongue.spelling.search(word) is not None for word in words)
        if (count, spelled) > most and count > 2 * len(words & tongue.foreign) and 4 * count >= len(words):
            found, most = code, (count, spelled)
    return found


def split_words(tokens: Iterable[str]) -> list[str]:
    """Return the tokens with what lost its vowel written out: j'active is je, active."""
    return _write_out(tokens, load_western().elided)


def _write_out(tokens: Iterable[str], elided: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    for token in tokens:
        head, mark, tail = token.partition("'")
        found += [elided.get(head, head), tail] if mark else [token]
    return [word for word in found if word]


def read_names(words: Sequence[str], language: str) -> list[str]:
    """Return the names of the words of `split_words`, a negation as "not", numbers as the lexicon reads them.

    >>> read_names("je ne peux plus désactiver la carte pendant trente cinq jours".split(), "fr")[3:]
    ['not', 'disable', '~le', 'card~', 'during~', 'thirty', 'five', 'day']
    """
    tongue, shared = load_western().tongues[language], load_western().shared
    words = _join_numbers(_join_verbs(words, tongue) if language == "nl" else words)
    names: list[str] = []
    place = led = denied = 0  # places behind the last word that leads, that denies
    while place < len(words):
        word = words[place]
        used, found = _find_phrase(words, place, tongue)
        place += max(used, 1)
        if used <= 1 and (word in tongue.denying or (word in tongue.bound and led and place - led <= REACH)):
            found = () if denied and place - denied <= REACH else ("not",)
            denied = place
        elif not used and (word in shared or len(word) == 1 or not word[0].isalpha()):
            found = (word,)
        elif not used:
            cut = cut_ending(fold(word), language)
            found = tongue.stems.get(cut) or (cut + MARK,)
        led = place if word == tongue.lead else led
        names += found
    return [*_drop_joints(_turn_relative(names))]


def fold(word: str) -> str:
    """Return the word without accents."""
    if word.isascii():
        return word
    plain = unicodedata.normalize("NFD", word.replace("œ", "oe"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


@lru_cache(maxsize=1 << 14)
def cut_ending(word: str, language: str) -> str:
    """Return a word without accents, without its ending too.

    >>> cut_ending("facturas", "es"), cut_ending("annulees", "fr"), cut_ending("betaalt", "nl")
    ('factur', 'annul', 'betal')
    """
    if language == "nl":
        word = DUTCH.sub("", word)
        return LONG.sub(r"\1", PERSON.sub("", DOUBLE.sub(r"\1", word)))
    if len(word) > 4 and word[-1] in "sx":
        word = word[:-1]
    if word.endswith("m"):
        word = word[:-1] + "n"  # imagem, imagens
    word = ENDINGS[language].sub("", word)
    word = word.rstrip("i") if len(word) > 3 else word  # envio, envia; messaggio, messaggi
    word = word[:-1] if word.endswith(("ch", "gh")) and len(word) > 3 else word
    return DOUBLE.sub(r"\1", word)


def _find_phrase(words: Sequence[str], place: int, tongue: Tongue) -> tuple[int, Names]:
    """Return how many words at `place` are listed together, and their names."""
    word = words[place]
    for rest, names in tongue.phrases.get(word) or tongue.phrases.get(fold(word), ()):
        if not rest:
            return 1, names
        following = tuple(words[place + 1 : place + 1 + len(rest)])
        if following == rest or tuple(map(fold, following)) == rest:
            return 1 + len(rest), names
    return 0, ()


def _join_numbers(words: Sequence[str]) -> list[str]:
    """Return the words with 1 000 and 1.000 as 1000, and 18 h 30 as 18:30."""
    found: list[str] = []
    grouped = False
    for word in words:
        if not word[0].isdecimal():
            found.append(word)
        elif GROUPED.fullmatch(word):
            found.append(word.replace(".", ""))
        elif (
            found and GROUP.fullmatch(word) and (LEADING.fullmatch(found[-1]) or (grouped and len(found[-1]) < LARGEST))
        ):
            found[-1] += word
            grouped = True
            continue
        elif len(word) == 2 and word.isdecimal() and found[-1:] == ["h"] and found[-2:-1] and found[-2].isdecimal():
            found[-2:] = [f"{found[-2]}:{word}"]
        else:
            found.append(word)
        grouped = False
    return found


def _join_verbs(words: Sequence[str], tongue: Tongue) -> list[str]:
    """Return Dutch words with particles before the verbs that they belong to: zet … aan, aan te zetten."""
    found = list(words)
    for place, particle in enumerate(words):
        if particle not in PARTICLES:
            continue
        if words[place + 1 : place + 2] == ["te"] and place + 2 < len(words):
            found[place : place + 3] = "", "", particle + words[place + 2]
            continue
        for before in range(place - 1, max(place - 1 - FAR, -1), -1):
            if cut_ending(particle + words[before], "nl") in tongue.stems:
                found[before], found[place] = particle + words[before], ""
                break
    return [word for word in found if word]


def _turn_relative(names: list[str]) -> list[str]:
    """Return the names with "semaine prochaine" as "next week"."""
    relative = load_lexicon().relative
    for place in range(1, len(names)):
        if names[place] in ("next", "last") and stem(names[place - 1]) in relative[names[place]]:
            names[place - 1], names[place] = names[place], names[place - 1]
    return names


def _drop_joints(names: Sequence[str]) -> Iterator[str]:
    """Yield the names without what joins tens and units: treinta y cinco."""
    numbers = load_lexicon().numbers
    for place, name in enumerate(names):
        if name in JOINTS and 0 < place < len(names) - 1:
            before, behind = numbers.get(names[place - 1], 0), numbers.get(names[place + 1], 0)
            if before in TENS and 0 < behind < 10:
                continue
        yield name


@lru_cache(maxsize=1)
def load_western() -> Western:
    """Return the tables of words.toml."""
    tables, lexicon = load_tables()["western"], load_lexicon()
    english = {*tables["english"].split(), *load_tables()["small"], *load_tables()["negators"]}
    others = frozenset(tables["others"].split())
    tongues = {
        code: _build_tongue(code, place, tables, others) for place, code in enumerate(tables["languages"], start=1)
    }
    known = {*lexicon.opposites, *lexicon.alike, *lexicon.units, *lexicon.numbers, *lexicon.kin}
    marks = {word for tongue in tongues.values() for word in tongue.evidence}
    return Western(
        tongues=tongues,
        english=ENGLISH.difference(*(tongue.evidence for tongue in tongues.values())),
        marks=frozenset(
            word for word in marks if word not in english and word not in known and stem(word) not in known
        ),
        elided=tables["elided"],
        shared=frozenset(tables["shared"].split()),
    )


def _build_tongue(code: str, place: int, tables: Mapping[str, Any], others: frozenset[str]) -> Tongue:
    listed: dict[str, Names] = {form: (MARK + row.split()[0],) for row in tables["small"][code] for form in row.split()}
    whole, stemmed = ([*_list_forms(tables["words"][part], place)] for part in ("forms", "stems"))
    listed |= dict([*whole, *stemmed])
    listed |= dict(_list_fused(code, listed))
    denying = frozenset(form for word in tables["negations"][code].split() for form in (word, fold(word)))
    phrases: dict[str, dict[Names, Names]] = {}
    for form, names in [*listed.items(), *((fold(form), names) for form, names in listed.items())]:
        head, *rest = _write_out(form.split("_"), tables["elided"])
        phrases.setdefault(head, {}).setdefault(tuple(rest), names)
    stems: dict[str, set[Names]] = {}
    for form, names in stemmed:
        if form.isalpha() and len(cut := cut_ending(fold(form), code)) >= SHORTEST:
            stems.setdefault(cut, set()).add(names)
    words = {form for form in [*listed, *denying] if "_" not in form and "'" not in form}
    evidence = words.union(map(fold, words)).difference(tables["german"].split())
    lead, bound = tables["negations"]["lead"].get(code, ""), tables["negations"]["bound"].get(code, "")
    return Tongue(
        phrases={head: tuple(sorted(found.items(), key=lambda item: -len(item[0]))) for head, found in phrases.items()},
        stems={cut: next(iter(names)) for cut, names in stems.items() if len(names) == 1},
        denying=denying,
        lead=lead,
        bound=frozenset(bound.split()),
        framing=re.compile(rf"(?:(?:{'|'.join(tables['framing'][code])}) )+"),
        evidence=frozenset(evidence),
        spelling=re.compile(tables["spelling"][code]),
        foreign=(others - evidence) | ENGLISH,
    )


def _list_forms(rows: Iterable[Sequence[str]], place: int) -> Iterator[tuple[str, Names]]:
    """Yield each form of the language at `place` in a table, with its names."""
    for row in rows:
        names = tuple(filter(None, row[0].split("_")))
        yield from ((form, names) for form in row[place].split())


def _list_fused(code: str, listed: Mapping[str, Names]) -> Iterator[tuple[str, Names]]:
    """Yield numbers of tens and units that are one word: trentacinque, vijfendertig, veintidós."""
    numbers = load_lexicon().numbers
    words = {form: names for form, names in listed.items() if len(names) == 1 and names[0] in numbers}
    tens = [(form, names) for form, names in words.items() if numbers[names[0]] in TENS]
    units = [(form, names) for form, names in words.items() if 0 < numbers[names[0]] < 10]
    for (ten, many), (one, few) in product(tens, units):
        if code == "nl":
            yield f"{one}{'ën' if one.endswith('e') else 'en'}{ten}", many + few
        elif code == "it":
            yield f"{ten[:-1] if one[0] in 'uo' else ten}{one}", many + few
        elif code == "es" and numbers[many[0]] == 20:
            yield f"veinti{one}", many + few
