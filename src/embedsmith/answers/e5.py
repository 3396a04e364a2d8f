"""What an obedient model answers to the prompts of the recipe `e5`: it reads what it is asked for and writes just that.

Texts are common words of the language in an order that the prompt's hash decides, with a number that makes each text
one of its kind; so they are in the right language and of the right length, and mean nothing.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from functools import cache
from importlib import resources

from embedsmith.errors import ConfigurationError
from embedsmith.synthesis.languages import known_languages

ADJECTIVES = (
    *("urgent", "seasonal", "remote", "informal", "disputed", "partial"),
    *("recent", "hidden", "shared", "costly", "minor", "regional"),
)
KINDS = (
    *("questions", "complaints", "reports", "notices", "recipes", "contracts"),
    *("letters", "reviews", "plans", "records", "offers", "diaries"),
)
LABELS = ("Zirkonium", "Kaleidoscope", "Quartzite", "Obsidian", "Xylophone", "Jubilee", "Walnut", "Mercury")


@cache
def common_words() -> dict[str, tuple[str, ...]]:
    """Return common words of each language by its code."""
    file = resources.files("embedsmith") / "data" / "obedient_words.toml"
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    return {code: tuple(words.split()) for code, words in found.items()}


@cache
def _codes() -> dict[str, str]:
    return {language.name: code for code, language in known_languages().items()}


def _find(pattern: str, text: str) -> re.Match[str]:
    """Return what the prompt must have.

    Raises:
        ConfigurationError: it is no prompt of the recipe.
    """
    found = re.search(pattern, text, re.M)
    if found is None:
        raise ConfigurationError(f"a prompt without {pattern!r}", expected="one of the recipe e5, as it ships")
    return found


def write_e5_answer(user: str) -> str:
    """Return an obedient answer, as JSON, to the user message of any prompt of the recipe."""
    chance = random.Random(user)
    asked = re.search(r"^Think of (\d+) ", user)
    if asked:
        return json.dumps({"tasks": [_task(user, chance) for _ in range(int(asked.group(1)))]})
    if '"S1"' in user:
        return _write_three(user, chance)
    language = _codes()[_find(r"written in ([^,;]+)[,;]", user).group(1)]
    if '"user_query"' in user:
        count = int(_find(r"at least (\d+) words and stands", user).group(1))
        texts = {
            "user_query": write_text(language, _query_length(user), chance),
            "positive_document": write_text(language, count, chance),
            "hard_negative_document": write_text(language, count, chance),
        }
    elif '"input_text"' in user:
        right, wrong = chance.sample(LABELS, 2)
        found = _find(r"input_text has (less than|at least) (\d+) words", user)
        count = int(found.group(2)) - 3 if found.group(1) == "less than" else int(found.group(2))
        texts = {"input_text": write_text(language, count, chance), "label": right, "misleading_label": wrong}
    else:
        count = 310 if "at least 300 words" in user else 6
        texts = {key: write_text(language, count, chance) for key in ("input", "positive_document")}
    return json.dumps(texts, ensure_ascii=False)


def _write_three(user: str, chance: random.Random) -> str:
    pair = re.search(r"^Write a (\w+) in (.+) and two in (.+), on this topic", user)
    unit = pair.group(1) if pair else _find(r"each of them a (\w+),", user).group(1)
    names = pair.groups()[1:] if pair else _find(r"written in ([^,;]+)[,;]", user).groups() * 2
    first, second = (_codes()[name] for name in names)
    count = {"phrase": 4, "sentence": 11, "passage": 50}[unit]
    three = {"S1": first, "S2": second, "S3": second}
    return json.dumps({key: write_text(code, count, chance) for key, code in three.items()}, ensure_ascii=False)


def _query_length(user: str) -> int:
    return {"less than 5 words": 3, "5 to 15 words": 9, "at least 10 words": 13}[
        next(found for found in ("less than 5 words", "5 to 15 words", "at least 10 words") if found in user)
    ]


def _task(user: str, chance: random.Random) -> str:
    topic = _find(r"^Start from this topic: (.+)$", user).group(1)[:80]
    number = chance.randrange(10**6)
    return f"Look through {chance.choice(ADJECTIVES)} {chance.choice(KINDS)} on {topic}, series {number}."


def write_text(language: str, count: int, chance: random.Random) -> str:
    """Return a text of `count` words of a language, one of them a number that no other text has."""
    between = "" if known_languages()[language].letters else " "
    words = common_words()[language]
    wanted = count if between else -(-count * known_languages()[language].letters // 3)
    texts = [chance.choice(words) for _ in range(max(wanted - 1, 2))]
    return between.join([*texts[: len(texts) // 2], f" {chance.randrange(10**9)} ".strip(), *texts[len(texts) // 2 :]])
