"""What an obedient model answers to the prompts of the recipe `rag`: spans are copied out of the passages."""

from __future__ import annotations

import json
import re

PASSAGE = re.compile(r"<passage[^>]*>\n(.*?)\n</passage>", re.S)
STYLES = re.compile(r'(\d+) in the style "(\w+)"')
FORMS = {
    "keyword": "{1} {0} {2}",
    "natural": "What is known about {1} when it comes to {0} and {2}?",
    "conversational": "I keep hearing of {0}. Could you tell me how {2} goes with {1}?",
}


def write_rag_answer(prompt: str) -> str:
    """Return the JSON that a prompt of the recipe asks for: questions, a multi-passage question or verdicts."""
    passages = PASSAGE.findall(prompt)
    if '"multi_questions"' in prompt:
        return json.dumps({"multi_questions": [_connect(passages)]})
    if '"verdicts"' in prompt:
        question = re.findall(r"^Question: (.+)$", prompt, re.M)[0]
        return json.dumps({"verdicts": [_judge(question, text, n) for n, text in enumerate(passages, start=1)]})
    if '"questions"' in prompt:
        asked = [style for count, style in STYLES.findall(prompt) for _ in range(int(count))]
        return json.dumps({"questions": [_ask(passages[0], style, n) for n, style in enumerate(asked)]})
    return json.dumps({"answer": "no task of the recipe rag"})


def _ask(passage: str, style: str, number: int) -> dict[str, str]:
    span = _span(passage, number)
    words = [word for word in _telling(passage) if word not in span]
    if len(words) < 3:  # a short passage says little
        words = (words or _telling(passage) or [span]) * 3
    chosen = [*words[:2], words[2 + number % max(len(words) - 2, 1)]]
    return {"style": style, "question": FORMS[style].format(*chosen), "answer": span}


def _connect(passages: list[str]) -> dict[str, object]:
    both = " and ".join(" ".join(_telling(passage)[:2]) for passage in passages)
    return {"question": f"How do {both} compare with each other?", "answers": [_span(text, 0) for text in passages]}


def _judge(question: str, passage: str, number: int) -> dict[str, object]:
    """Say yes if the passage has every name of the question."""
    asked = {word for word in re.findall(r"\w{4,}", question) if word[0].isupper()} - {"What", "Could"}
    found = all(word in passage for word in asked)
    return {"passage": number, "verdict": "yes" if found else "no", "span": _span(passage, 0) if found else ""}


def _telling(passage: str) -> list[str]:
    """Return the words of a passage that name something, each once: names first, then the longest."""
    words = dict.fromkeys(re.findall(r"\b[^\W\d_]{4,}\b", passage))
    return sorted(words, key=lambda word: (not word[0].isupper(), -len(word), word))


def _span(passage: str, number: int) -> str:
    """Return three words of the passage as they stand in it, not the first ones."""
    words = list(re.finditer(r"\S+", passage))
    start = (3 + number) % max(len(words) - 3, 1)
    return passage[words[start].start() : words[min(start + 2, len(words) - 1)].end()]
