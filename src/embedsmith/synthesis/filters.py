"""Filters: each says why a candidate is not used, or nothing. Verdicts carry the evidence.

The filters run in order, rows in the order of the log, so the same completions give the same examples
whatever order they came in. All comparisons are on normalised text (case, spaces and closing
punctuation do not count); *near* means a trigram Jaccard of at least 0.9 with the same numbers and
negations and no fact exchanged, so that "30 days" is never near "60 days", nor "raise it" near "lower it".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedsmith.conversation import read_asked, roles_of
from embedsmith.corpus import Query
from embedsmith.examples import Rejected
from embedsmith.facts import find_changes, says_the_same
from embedsmith.leakage import LeakIndex
from embedsmith.llm.prompts import quote
from embedsmith.synthesis.refusals import find_refusal
from embedsmith.text import UNSPACED, is_unspaced, nearness, normalize, runs_of, same_facts, trigrams, words

LONGEST = 2000  # characters of a question; three paraphrases of a longer one do not fit into an answer
WORDS_OF_A_QUESTION = 4  # from here on, one word cannot say the same
ECHOED = 0.5  # share of a text's runs of three words; questions share next to none with the instructions
RUNS_TO_REPEAT, NEW = 10, 0.5  # from so many runs of three words on, half are new; of 6,000 real passages all have more
SIGNS = 6  # three words, where a word has two
UNSPACED_SIGN = re.compile(f"[{UNSPACED}]")
FRAME = re.compile(r"^\W*(?:\d{1,2}[.)]\s+)?(?:(?:question|query|title|q|paraphrase)(?: \d+)?\s*:)?", re.I)
BRACES = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = frozenset({"query", "count", "quoted", "passage", "passages", "place", "styles", "number"})
NAME_ALONE = re.compile(r"^\W*(paraphrases|distinct|question)\W*$", re.I)
COURTESY = frozenset({"hi", "hello", "hey", "dear", "please", "thanks", "thank", "regards"})
LABEL = {"paraphrases": 1, "distinct": 0}


@dataclass(slots=True)
class Context:
    """What a candidate is compared with.

    Attributes:
        query: the row it was made from.
        task: "paraphrases" or "distinct".
        accepted: texts of this row that passed so far, by task.
        elsewhere: row id by normalised text, for all texts of all rows so far, queries included.
        evaluation: finds texts of the evaluation sets.
        asked: runs of three words (or six signs) of the prompt, without the query.
        nouns_raised: the log writes all nouns with a capital (`facts.raises_nouns`).
    """

    query: Query
    task: str
    accepted: dict[str, list[str]]
    elsewhere: dict[str, str]
    evaluation: LeakIndex
    asked: frozenset[str] = frozenset()
    nouns_raised: bool = False


Verdict = tuple[str, str] | None  # (reason, detail)
Filter = Callable[[str, Context], Verdict]


def check_form(text: str, context: Context) -> Verdict:
    """Reject what is no question: empty, no letters, far too long, one word for a question, one phrase repeated.

    So is what has other speakers than the query: a question for a conversation, or a conversation that lost its form.
    """
    if not text.strip():
        return "malformed", "empty"
    if sum(character.isalpha() for character in text) < 3 and not is_unspaced(text):  # two signs are two words
        return "malformed", "fewer than three letters"
    if is_too_long(text):
        return "malformed", f"{len(text)} characters"
    if roles_of(text) != roles_of(context.query.text):
        return (
            "malformed",
            f"the turns of {', '.join(roles_of(text))}, not of {', '.join(roles_of(context.query.text))}",
        )
    asked = len(words(context.query.text))
    if asked >= WORDS_OF_A_QUESTION and len(words(text)) == 1 and not is_unspaced(text):
        return "malformed", f"one word for a question of {asked}"
    return find_repetition(text)


def is_too_long(text: str) -> bool:
    """Say whether a text is no question but a document: nothing that is written about it would be short enough."""
    return len(text) > LONGEST


def find_repetition(text: str) -> Verdict:
    """Reject a text that says the same words over and over, as weak models do when they lose the thread."""
    runs = find_runs(text)
    if len(runs) >= RUNS_TO_REPEAT and len(set(runs)) < NEW * len(runs):
        return "repeats-itself", f"{len(set(runs))} of {len(runs)} runs of three words are new"
    return None


def find_runs(text: str) -> list[str]:
    """Return the runs of three words, in order; in writings without spaces those of six signs.

    >>> find_runs("我想申请退款吗")
    ['我想申请退款', '想申请退款吗']
    """
    return _runs_of_signs(text) if is_unspaced(text) else runs_of(text)


def _runs_of_signs(text: str) -> list[str]:
    signs = "".join(words(text))
    return [signs[start : start + SIGNS] for start in range(len(signs) - SIGNS + 1)]


def check_refusal(text: str, context: Context) -> Verdict:
    """Reject a refusal, unless the user's question itself speaks that way."""
    found = find_refusal(text)
    return ("refusal", f"“{found}”") if found and not find_refusal(context.query.text) else None


def check_echo(text: str, context: Context) -> Verdict:
    """Reject pieces of the prompt: its sentences, placeholders, the names of JSON keys."""
    runs = find_runs(text)
    shared = sum(run in context.asked for run in runs)
    if len(runs) >= WORDS_OF_A_QUESTION and shared >= ECHOED * len(runs):
        return "prompt-echo", f"{shared} of {len(runs)} runs of three words are the prompt's"
    if NAME_ALONE.search(text) or _has_new_placeholder(text, context.query.text):
        return "prompt-echo", "a piece of the prompt"
    return None


def _has_new_placeholder(text: str, query: str) -> bool:
    """Say whether a text has words in braces that are no code: the prompt's own, or any where the query has none."""
    known = set(BRACES.findall(query))
    return any(name not in known and (not known or name in PLACEHOLDERS) for name in BRACES.findall(text))


def check_copy(text: str, context: Context) -> Verdict:
    """Reject the query itself, or nearly itself."""
    query = context.query.text
    if normalize(text) == normalize(query):
        return "copy-of-query", "the same text"
    if bare_words(text) == bare_words(query) and same_facts(text, query):
        return "copy-of-query", "the same words but for courtesy and marks"
    closeness = _near([query], text, context)
    if closeness is not None:
        return "copy-of-query", f"Jaccard {closeness[1]:.2f}"
    return None


def check_changes(text: str, context: Context) -> Verdict:
    """Reject a paraphrase that puts another fact in the place of one of the query: "changed-number", …

    Of conversations what the user says is compared, as by the guard of the cache.
    """
    if context.task != "paraphrases":
        return None
    query, text = read_asked(context.query.text), read_asked(text)
    changes = find_changes(query, text, nouns_raised=context.nouns_raised)
    detail = "; ".join(f"{change.kind} {change.evidence}" for change in changes)
    return (f"changed-{changes[0].kind}", detail) if changes else None


def check_sameness(text: str, context: Context) -> Verdict:
    """Reject a question that is to be distinct and says the same by its words."""
    if context.task == "distinct" and says_the_same(context.query.text, text, nouns_raised=context.nouns_raised):
        return "paraphrase-as-negative", "the same words but for small ones, no fact differs"
    return None


def bare_words(text: str) -> list[str]:
    """Return the words of a text without what is put around a question: numbering, "Question:", hello, thanks.

    >>> bare_words("1. Hi, how do I contest a will? Thanks")
    ['how', 'do', 'i', 'contest', 'a', 'will']
    """
    return [word for word in words(FRAME.sub("", text.strip())) if word not in COURTESY]


def check_conflict(text: str, context: Context) -> Verdict:
    """Reject a candidate that the other task of the same row also has: it cannot be both."""
    other = "distinct" if context.task == "paraphrases" else "paraphrases"
    found = _near(context.accepted[other], text, context)
    return ("label-conflict", f"also among the {other}: “{found[0]}”") if found else None


def check_repeat(text: str, context: Context) -> Verdict:
    """Reject a repeat within the row."""
    for other in context.accepted[context.task]:
        if normalize(other) == normalize(text):
            return "duplicate", "the same text in this row"
    found = _near(context.accepted[context.task], text, context)
    return ("near-duplicate", f"Jaccard {found[1]:.2f} with “{found[0]}”") if found else None


def check_elsewhere(text: str, context: Context) -> Verdict:
    """Reject a text that another row has: it would be a false negative there."""
    row = context.elsewhere.get(normalize(text))
    if row is not None and row != context.query.id:
        return "duplicate-elsewhere", f"row {row} has the same text"
    return None


def check_leak(text: str, context: Context) -> Verdict:
    """Reject a text that is (nearly) one of an evaluation set or contains one, so that the evaluation stays honest."""
    found = context.evaluation.find(text)
    return ("evaluation-leak", str(found)) if found else None


CHAIN: tuple[Filter, ...] = (
    check_echo,
    check_form,
    check_refusal,
    check_copy,
    check_changes,
    check_sameness,
    check_conflict,
    check_repeat,
    check_elsewhere,
    check_leak,
)
CHECKS = tuple(check.__name__.removeprefix("check_") for check in CHAIN)


def judge(text: str, context: Context) -> Rejected | None:
    """Return the first objection of the chain as a `Rejected`, or None when the candidate is good."""
    for check in CHAIN:
        verdict = check(text, context)
        if verdict is not None:
            reason, detail = verdict
            about = {"query": context.query.text, "task": context.task}
            return Rejected(reason, detail, text, source=context.query.id, context=about)
    return None


def index_prompt(prompt: str, query: str) -> frozenset[str]:
    """Return what `check_echo` needs of a prompt: its runs of three words or six signs without those of the query."""
    quoted = quote(query)
    rest = prompt.replace(quoted if quoted in prompt else query, " ")
    return frozenset([*runs_of(rest), *(_runs_of_signs(rest) if UNSPACED_SIGN.search(rest) else ())])


def _near(others: Sequence[str], text: str, context: Context) -> tuple[str, float] | None:
    grams = trigrams(text)
    for other in others:
        closeness = nearness(text, other, grams, trigrams(other))
        if closeness and not find_changes(other, text, nouns_raised=context.nouns_raised):
            return other, closeness
    return None
