"""Languages: their names, how often each is asked for, and whether a text is written in the one that was asked for."""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Protocol

from embedsmith.errors import ConfigurationError, MissingPartError

DEFAULT = "default"
UNLIKELY = 0.001  # probability of the language asked for and its similar ones below which a text is of another
LETTERS_TO_JUDGE = 30  # of alphabets; below, identifiers guess
SIGNS_TO_JUDGE = 12  # of writings without spaces, where a sign says more
READ = 600  # characters of a text that are looked at
IN_SCRIPT = 0.5  # share of letters that must be of the language's own writing; names and code may be of another


@dataclass(frozen=True, slots=True)
class Language:
    """A language that can be asked for.

    Attributes:
        scripts: of its letters, as the first words of their Unicode names.
        letters: letters a word where no spaces stand between words, 0 elsewhere.
        similar: codes of languages that a short text of it can be taken for.
    """

    code: str
    name: str
    scripts: frozenset[str]
    letters: int
    similar: frozenset[str]

    def count_words(self, text: str) -> int:
        """Return the number of words, reckoned from letters where no spaces stand between them.

        >>> known_languages()["en"].count_words("two words"), known_languages()["zh"].count_words("我们去图书馆")
        (2, 3)
        """
        if not self.letters:
            return len(text.split())
        signs = sum(script_of(character) in self.scripts for character in text)
        others = "".join(" " if script_of(character) in self.scripts else character for character in text).split()
        return -(-signs // self.letters) + sum(any(map(str.isalnum, word)) for word in others)


class Identifier(Protocol):
    """Says in which language a text may be."""

    known: frozenset[str]

    def rank(self, text: str, /) -> Mapping[str, float]:
        """Return the probability of each known language, likeliest first."""
        ...


@cache
def known_languages() -> Mapping[str, Language]:
    """Return the 93 languages of XLM-R by ISO code."""
    table = _table()
    groups = [frozenset(group) for group in table["similar"]["groups"]]
    return {
        code: Language(
            code,
            row["name"],
            frozenset(row.get("scripts", ["LATIN"])),
            row.get("letters", 0),
            frozenset().union(*(group for group in groups if code in group)) - {code},
        )
        for code, row in table["languages"].items()
    }


@cache
def default_weights() -> Mapping[str, float]:
    """Return the share of each language: English 43%, thirteen languages 3% each, the rest evenly (sum 1).

    Source: the shares of the data of E5-mistral (arXiv 2401.00368); which thirteen is our choice. With 93 languages
    each of the other 79 gets (1 − .43 − .39) / 79 = .0023.
    """
    terms = _table()["weights"]
    high = terms["high"]
    rest = [code for code in known_languages() if code != "en" and code not in high]
    left = 1 - terms["english"] - terms["each"] * len(high)
    return {"en": terms["english"], **dict.fromkeys(high, terms["each"]), **dict.fromkeys(rest, left / len(rest))}


def parse_languages(text: str) -> Mapping[str, float]:
    """Return the share of each language (sum 1) that `text` asks for.

    >>> dict(parse_languages("en=3, de=1"))
    {'en': 0.75, 'de': 0.25}

    Args:
        text: "default"; or codes with commas between, as in "en,de,fr" (even shares) or "en=0.5,de=0.5".

    Raises:
        ConfigurationError: an unknown code, one that comes twice, shares that are no positive numbers.
    """
    if text.strip() == DEFAULT:
        return default_weights()
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        code, given, share = (piece.strip() for piece in part.partition("="))
        if code in weights:
            raise ConfigurationError(f"the language {code} comes twice", expected="each code once")
        weights[code] = _read_share(share, part) if given else 1.0
    require_languages(weights)
    total = sum(weights.values())
    return {code: share / total for code, share in weights.items()}


def require_languages(weights: Mapping[str, float]) -> None:
    """Raise a ConfigurationError unless all codes are known and all shares positive."""
    unknown = [code for code in weights if code not in known_languages()]
    if unknown or not weights:
        raise ConfigurationError(
            f"unknown language {', '.join(unknown)}" if unknown else "no language is named",
            expected='"default", or ISO codes as in "en,de,fr" or "en=0.5,de=0.5"',
            action="the known ones: " + " ".join(known_languages()),
        )
    wrong = [f"{code}={share}" for code, share in weights.items() if not 0 < share < float("inf")]
    if wrong:
        raise ConfigurationError(f"the share {wrong[0]}", expected="a positive number")


def check_language(text: str, language: Language, identifier: Identifier | None) -> str:
    """Return what is wrong with the language of `text`, "" if nothing is or nobody can say.

    First the writing: at least half of the letters are of the language's own. Then the identifier, where the text is
    long enough: the language and those that are similar to it are unlikely, all together. For a language that the
    identifier does not know, only English counts against a text.
    """
    text = text[:READ]
    scripts = Counter(script for character in text if (script := script_of(character)))
    letters = sum(scripts.values())
    own = sum(scripts[script] for script in language.scripts)
    if letters >= 4 and own < IN_SCRIPT * letters:
        return f"{scripts.most_common(1)[0][0].lower()} letters where {language.name} was asked for"
    enough = SIGNS_TO_JUDGE if language.letters or "HANGUL" in language.scripts else LETTERS_TO_JUDGE
    if identifier is None or letters < enough:
        return ""
    ranked = identifier.rank(text)
    found = next(iter(ranked))
    if language.code not in identifier.known and found != "en":
        return ""
    if sum(ranked.get(code, 0.0) for code in (language.code, *language.similar)) >= UNLIKELY:
        return ""
    return f"{known_languages()[found].name} where {language.name} was asked for"


@cache
def open_identifier() -> Identifier:
    """Return the identifier of py3langid: naive Bayes over byte n-grams, its model inside the package.

    Raises:
        MissingPartError: py3langid is not installed.
    """
    return _Langid()


class _Langid:
    """py3langid (BSD-3), held to the languages that can be asked for."""

    def __init__(self) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise MissingPartError(
                "the language of what is written cannot be checked: py3langid is not installed",
                action="pip install 'embedsmith[e5]', or leave the check out with --no-language-check",
            ) from None
        self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        taken = sorted(set(known_languages()) & {str(label) for label in self._model.nb_classes})
        self._model.set_languages(taken)
        self.known = frozenset(taken)

    def rank(self, text: str, /) -> Mapping[str, float]:
        """Return the probability of each known language, likeliest first."""
        return {str(code): float(probability) for code, probability in self._model.rank(text)}


@lru_cache(maxsize=1 << 14)
def script_of(character: str) -> str:
    """Return the writing of a letter as the first word of its Unicode name, "" for what is no letter.

    >>> script_of("я"), script_of("3")
    ('CYRILLIC', '')
    """
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def _read_share(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{part!r} among the languages", expected="a share as in en=0.5") from None


@cache
def _table() -> dict[str, Any]:
    source = resources.files("embedsmith.synthesis") / "languages.toml"
    return tomllib.loads(source.read_text(encoding="utf-8"))
