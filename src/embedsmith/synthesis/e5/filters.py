"""Filters of E5's rows: each says why an answer is no example, or nothing. In order; the first objection counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from embedsmith.leakage import LeakIndex
from embedsmith.synthesis.e5.duplicates import SeenTexts
from embedsmith.synthesis.e5.prompting import KEYS, Request, Template, Templates
from embedsmith.synthesis.filters import find_repetition
from embedsmith.synthesis.languages import Identifier, Language, check_language
from embedsmith.synthesis.refusals import find_refusal
from embedsmith.text import NEAR, jaccard, normalize, runs_of, same_facts, words

Verdict = tuple[str, str] | None  # (reason, detail)
ECHOED = 0.5  # share of a text's runs of three words that the template has as well
RUNS_TO_JUDGE = 4
VERBATIM = 6  # words of a query; the same run in the document is copied, not met by chance
# Our own placeholders, and what lazy writers leave for others to fill in; not the braces and tags of programs.
KEY = re.compile(  # the form's names within a text
    r"\b(?:S[123]\s*(?::|(?:and|or) S[123]\b)|"
    r"(?:hard_negative_document|positive_document|user_query|input_text|misleading_label)\b)"
)
PLACEHOLDER = re.compile(
    r"\{(?:task|topic|reader|angle|language|source|target|query_type|query_length|clarity|num_words|difficulty|unit)\}|"
    r"[\[<](?:insert|your|placeholder|full name|name of|company name|name\]|date\])[^\]>]{0,60}[\]>]?|lorem ipsum|"
    r"^\W*(?:string|text|example|tbd|n/?a|none|null)\W*$",
    re.I,
)
# How far a length may be from what was asked: models count badly, and a filter that is strict on it costs money.
FEWEST, MOST = 0.25, 4.0
LENGTHS = 0.7  # of two texts whose trigrams are compared
NUMBER_WORD = re.compile(r"\d+")


@dataclass(frozen=True)
class Case:
    """A row's call and the texts of its answer, in the order of the group's keys."""

    request: Request
    texts: tuple[str, ...]

    @property
    def group(self) -> str:
        return self.request.row.group

    @cached_property
    def named(self) -> dict[str, str]:
        """The texts by key."""
        return dict(zip(KEYS[self.group], self.texts, strict=True))

    @property
    def bodies(self) -> dict[str, str]:
        """The texts that are no labels, by key."""
        return {key: text for key, text in self.named.items() if "label" not in key}

    def language_of(self, key: str) -> Language:
        """Return the language that was asked for under a key."""
        return self.request.answered if key in {"S2", "S3"} else self.request.anchored


def check_form(case: Case) -> Verdict:
    """Reject texts without letters, pieces of the form, and labels that are no labels."""
    for key, text in case.named.items():
        letters = sum(character.isalpha() for character in text[:100])
        if letters < 2 and key in case.bodies:
            return "malformed", f"{key} has {letters} letters"
        found = PLACEHOLDER.search(text) or KEY.search(text)
        if (found and key in case.bodies) or text.strip().lower().strip("\"'") in {
            *KEYS[case.group],
            "label 1",
            "label 2",
        }:
            return "placeholder", f"{key}: “{found.group(0) if found else text}”"
    return None


def check_refusal(case: Case) -> Verdict:
    """Reject refusals inside the form."""
    for key, text in case.named.items():
        found = find_refusal(text)
        if found:
            return "refusal", f"{key}: “{found}”"
    return None


class EchoCheck:
    """Rejects what repeats the prompt: half of its runs of three words are the template's."""

    __name__ = "check_echo"

    def __init__(self, templates: Templates) -> None:
        self._runs = {group: template_runs(template) for group, template in templates.examples.items()}

    def __call__(self, case: Case) -> Verdict:
        for key, text in case.named.items():
            runs = runs_of(text)
            shared = sum(run in self._runs[case.group] for run in runs)
            if len(runs) >= RUNS_TO_JUDGE and shared >= ECHOED * len(runs):
                return "prompt-echo", f"{key}: {shared} of {len(runs)} runs of three words are the prompt's"
            if normalize(text) == normalize(case.request.instruction):
                return "prompt-echo", f"{key} is the task"
        return None


def check_sides(case: Case) -> Verdict:
    """Reject a side that copies another, and a negative that is the positive."""
    texts = case.texts
    plain = [normalize(text) for text in texts]
    if len(plain) == 3 and _same_words(plain[1], plain[2]):
        return "positive-is-negative", "the same words"
    for other in range(1, len(plain)):
        keys = KEYS[case.group]
        if plain[0] == plain[other]:
            return "copy", f"{keys[0]} and {keys[other]} are the same"
        if case.group != "long-short" and (closeness := _closeness(plain[0], plain[other])) >= NEAR:
            return "copy", f"{keys[0]} and {keys[other]}: Jaccard {closeness:.2f}"
    if case.group == "short-long" and case.request.anchored.count_words(texts[0]) >= VERBATIM:
        for other in (1, 2):
            if " ".join(words(texts[0])) in " ".join(words(texts[other])):
                return "copy", f"{KEYS[case.group][other]} has the query word for word"
    return None


def check_repetition(case: Case) -> Verdict:
    """Reject texts that say the same words over and over."""
    for key, text in case.bodies.items():
        found = find_repetition(text)
        if found:
            return found[0], f"{key}: {found[1]}"
    return None


def check_length(case: Case) -> Verdict:
    """Reject what is far from the length that was asked for."""
    for key, text in case.named.items():
        count = case.language_of(key).count_words(text)
        fewest, most = length_bounds(case.request, key)
        if count < fewest:
            return "too-short", f"{key} has {count} words; {fewest} is the least"
        if count > most:
            return "too-long", f"{key} has {count} words; {most} is the most"
    return None


def length_bounds(request: Request, key: str) -> tuple[int, int]:
    """Return the least and the most words of the text under a key: a quarter and four times what was asked for."""
    values, group = request.values, request.row.group
    if "label" in key:
        return 1, 20
    if group == "short-long":
        if key == "user_query":
            return _bounds(values.get("query_length", ""), fewest=1, most=80)
        asked = [int(number) for number in NUMBER_WORD.findall(values.get("num_words", ""))]
        return round(min(asked, default=20) * FEWEST), round(max(asked, default=500) * MOST) + 100
    if group == "long-short":
        return _bounds(values.get("num_words", ""), fewest=2, most=1500)
    if group == "short-short":
        return 1, 60
    if group == "long-long":
        return 75, 3000
    return {"phrase": (1, 40), "passage": (12, 600)}.get(values.get("unit", ""), (2, 120))


def _bounds(asked: str, *, fewest: int, most: int) -> tuple[int, int]:
    """Read "less than 5 words", "5 to 15 words", "at least 200 words"."""
    numbers = [int(number) for number in NUMBER_WORD.findall(asked)]
    if not numbers:
        return fewest, most
    if "less" in asked or len(numbers) > 1:
        return max(round(numbers[0] * FEWEST), fewest) if len(numbers) > 1 else fewest, round(numbers[-1] * MOST)
    return max(round(numbers[0] * FEWEST), fewest), max(most, round(numbers[0] * MOST))


def check_labels(case: Case) -> Verdict:
    """Reject labels that are the same, or whose words stand in the text: then nothing has to be understood."""
    if case.group != "long-short":
        return None
    text, label = normalize(case.texts[0]), normalize(case.texts[1])
    found = words(label)
    contents = {word for word in found if len(word) > 3}
    spaced = case.request.anchored.letters == 0
    if spaced:
        inside = bool(contents) and f" {' '.join(found)} " in f" {' '.join(words(text))} "
    else:
        inside = len(label) > 1 and label in text
    if inside or (len(contents) > 1 and contents <= set(words(text))):
        return "label-in-text", f"“{case.texts[1]}”"
    return None


class LanguageCheck:
    """Rejects texts that are surely not in the language that was asked for. Labels may be in any."""

    __name__ = "check_language"

    def __init__(self, identifier: Identifier | None) -> None:
        self._identifier = identifier

    def __call__(self, case: Case) -> Verdict:
        for key, text in case.bodies.items():
            wrong = check_language(text, case.language_of(key), self._identifier)
            if wrong:
                return "wrong-language", f"{key}: {wrong}"
        return None


class LeakCheck:
    """Rejects texts that are, nearly are, or contain texts of the evaluation sets; a document may quote a question."""

    __name__ = "check_leak"

    def __init__(self, evaluation: Iterable[str]) -> None:
        self._index = LeakIndex(evaluation, same_kind=True)

    def __call__(self, case: Case) -> Verdict:
        for key, text in case.bodies.items() if len(self._index) else ():
            found = self._index.find(text)
            if found is not None:
                return "evaluation-leak", f"{key}: {found}"
        return None


class RepeatCheck:
    """Rejects a row whose anchor or positive another row has, nearly or quite; remembers the others.

    A positive that comes twice would be a false negative of one of its two anchors. Labels may come as often as
    they like.
    """

    __name__ = "check_repeat"

    def __init__(self, rows: int) -> None:
        self._anchors, self._positives = SeenTexts(rows), SeenTexts(rows)

    def __call__(self, case: Case) -> Verdict:
        anchor, positive = KEYS[case.group][:2]
        labelled = case.group == "long-short"
        for key, seen in ((anchor, self._anchors), (positive, self._positives)):
            if key in case.bodies and (found := seen.find(case.named[key])):
                return found, f"another row has this {key}"
        self._anchors.add(case.texts[0])
        if not labelled:
            self._positives.add(case.texts[1])
        return None


Check = Callable[[Case], Verdict]


def build_checks(
    templates: Templates, identifier: Identifier | None, evaluation: Iterable[str], rows: int
) -> tuple[Check, ...]:
    """Return the filters in their order; what remembers other rows comes last, so that it remembers only good ones."""
    return (
        check_form,
        check_refusal,
        EchoCheck(templates),
        check_sides,
        LanguageCheck(identifier),
        check_labels,
        check_length,
        check_repetition,
        LeakCheck(evaluation),
        RepeatCheck(rows),
    )


def name_checks(checks: Iterable[Check]) -> tuple[str, ...]:
    """Return the names of the filters, for provenance."""
    return tuple(str(getattr(check, "__name__", check)).removeprefix("check_") for check in checks)


def template_runs(template: Template) -> frozenset[str]:
    """Return the runs of three words of a template, those around its placeholders left out."""
    lines = [*template.user.splitlines(), *template.guidelines, *template.sometimes, *template.ideas]
    pieces = (piece for line in lines for piece in re.split(r"\{\w*\}", line))
    return frozenset(run for piece in pieces for run in runs_of(piece))


def _closeness(left: str, right: str) -> float:
    """Return the Jaccard of trigrams; 0 where lengths or facts say that the texts differ.

    Not `text.trigrams`, which remembers what it is asked: right for questions, gigabytes for documents.
    """
    short, long = sorted((len(left), len(right)))
    if short < LENGTHS * long or not same_facts(left, right):
        return 0.0
    return jaccard(*(frozenset(text[place : place + 3] for place in range(len(text))) for text in (left, right)))


def _same_words(left: str, right: str) -> bool:
    return left == right or (sorted(words(left)) == sorted(words(right)) and len(words(left)) > 3)
