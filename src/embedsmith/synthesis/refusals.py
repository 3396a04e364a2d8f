"""Refusals: the words in which an assistant declines, told from users who write that something does not work."""

from __future__ import annotations

import re

from embedsmith.llm.structured import BULLET, THINKING

# At the beginning of a text, and only in the words of an assistant: a letter may well say "I cannot come".
OPENING = re.compile(
    r"^\W*(?:(?:i['’]m|i am)(?: really| very)? sorry|sorry|i apologi[sz]e|unfortunately)?[,.]?\s*(?:but )?"
    r"i(?: can(?:no|['’])t| won['’]t| will not|['’]m (?:not able|unable) to| am (?:not able|unable) to) "
    r"(?:(?:assist|help)(?: you)? with (?:that|this|your)|comply|fulfil+ (?:that|this|your)|generate|do (?:that|this)|"
    r"(?:answer|rewrite|rephrase|paraphrase) (?:that|this|your)|"
    r"(?:create|provide|produce|write|continue with) (?:that|this|such|content|texts?|examples?|an example|"
    r"paraphrases|(?:new )?(?:versions|questions)))",
    re.I,
)
# Where no honest text speaks so.
ANYWHERE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b(?: language)?(?: model| assistant)?\b"
    r"[^.!?]{0,40}\bI\b",
    re.I,
)


def find_refusal(text: str) -> str:
    """Return the words by which a model refuses, "" if it does not.

    >>> find_refusal("I'm sorry, but I can't help with that."), find_refusal("I cannot log in, what should I do?")
    ("I'm sorry, but I can't help with that", '')
    """
    found = OPENING.search(text[:400]) or ANYWHERE.search(text)
    return found.group(0) if found else ""


def find_declined(answer: str) -> str:
    """Return the words by which an answer refuses before it lists anything, "" if it does not: its list is advice.

    >>> find_declined("I'm sorry, but I can't help with that. Instead:\\n- Call a doctor")
    "I'm sorry, but I can't help with that"
    """
    return find_refusal(BULLET.split(THINKING.sub("", answer), maxsplit=1)[0].strip())
