"""Lists out of what language models really answer: thinking, prose, fences, broken and cut JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

# At the beginning of a line: a question may name the tag. What ends before JSON, or began as none, are thoughts, too.
THINKING = re.compile(
    r"^[ \t]*<(think|thinking|reasoning)>.*?(</\1>|\Z)"
    r"|\A(?!\s*[{\[`]).*</(think|thinking|reasoning)>"
    r"|\A.*</(think|thinking|reasoning)>(?=\s*[{\[`])",
    re.S | re.I | re.M,
)
FENCE = re.compile(r"^[ \t]*```[a-zA-Z]*\n?(.*?)(?:^[ \t]*```|```[ \t]*$|\Z)", re.S | re.M)
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
NAMING = re.compile(r"\s*:")  # behind the name of a value
BULLET = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+(.+?)\s*$", re.M)
FIRST_LIST = re.compile(r'\s*(?:\{\s*(?:"([^"]*)"\s*:\s*)?)?\[')  # of an answer, with its name
BETWEEN = re.compile(r"[\s,]*")  # values that stand one after the other
DECODER = json.JSONDecoder()
TEXT_KEYS = ("question", "text", "query", "paraphrase", "content")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The texts of an answer, and what had to be done to get them.

    Attributes:
        notes: of "thinking-removed", "repaired", "truncated", "empty", "not-json"; each at most once.
    """

    items: tuple[str, ...]
    notes: tuple[str, ...] = ()


def parse_list(text: str | None, key: str, *, others: Collection[str] = ()) -> Parsed:
    """Return the texts under `key` of a JSON answer, repaired where it can be; never raises.

    A list that stands alone in its object may have another name, but none of `others`: it answers another call.

    >>> parse_list('<think>hm</think>{"paraphrases": ["one", "two",]}', "paraphrases")
    Parsed(items=('one', 'two'), notes=('thinking-removed', 'repaired'))
    """
    body, notes = _strip(text)
    if not body:
        return Parsed((), (*notes, "empty"))
    found, how = _find_list(body, key, others)
    return Parsed(tuple(found), (*notes, how) if how else notes)


def parse_object(text: str | None, keys: Sequence[str]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the JSON object of an answer, repaired where it can be, and notes as in `Parsed`; never raises.

    None when there is no object with at least one of `keys`; texts inside can be stored as UTF-8.

    >>> parse_object('Sure!\n```json\n{"label": "yes",}\n```', ["label"])
    ({'label': 'yes'}, ('repaired',))
    """
    body, notes = _strip(text)
    if not body:
        return None, (*notes, "empty")
    whole = _load(body)
    if isinstance(whole, dict) and set(keys) & set(whole):
        return _clean(whole), notes
    start, end = body.find("{"), body.rfind("}") + 1
    if start >= 0 and end > start:
        inner = body[start:end]
        for found in (_load(inner), _load(_mend(inner)), _load_python(inner)):
            if isinstance(found, dict) and set(keys) & set(found):
                return _clean(found), (*notes, "repaired")
    return None, (*notes, "truncated" if start >= 0 and end <= start else "not-json")


def _strip(text: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the answer without its thinking and its fence, and a note if there was thinking.

    An answer that is JSON is left alone: its texts may speak of fences and of thinking.
    """
    whole = (text or "").strip()
    for body in (whole, _unfence(whole)):
        if body[:1] in ("{", "[") and _load(body) is not None:
            return body, ()
    body = THINKING.sub("", whole)
    return _unfence(body), ("thinking-removed",) if body != whole else ()


def _unfence(body: str) -> str:
    fenced = FENCE.search(body)
    return (fenced.group(1).strip() if fenced else "") or body.strip()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return {storable(str(key)): _clean(item) for key, item in value.items()} if isinstance(value, dict) else value


def _find_list(body: str, key: str, others: Collection[str]) -> tuple[list[str], str]:
    """Return the texts and the note for the first way that works, strictest first."""
    whole = _load(body)
    if whole is not None:
        return _texts(whole, key, others), ""
    start, end = _outline(body)
    if start >= 0:
        inner = _load(body[start:end])
        if inner is not None:
            return _texts(inner, key, others), "repaired"
        row = _load_row(body[start:end])
        if row:
            named = [value for value in row if isinstance(value, dict) and key in value]
            return [text for value in named or row for text in _texts(value, key, others)], "repaired"
        mended = _load(_mend(body[start:end])) or _load_python(body[start:end])
        if mended is not None:
            return _texts(mended, key, others), "repaired"
        cut = _complete_strings(body[start:], key, others)
        if cut:
            return cut, "truncated"
    return [match.strip().strip("\"'") for match in BULLET.findall(body)], "not-json"


def _load(body: str) -> Any | None:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # a model that loops writes brackets without end
        return None


def _load_row(body: str) -> list[Any]:
    """Return the JSON values that stand one after the other, as some models write a list; [] if there is more."""
    found, place = [], 0
    try:
        while place < len(body):
            value, end = DECODER.raw_decode(body, place)
            found.append(value)
            place = BETWEEN.match(body, end).end()  # type: ignore[union-attr]  # it matches nothing, too
    except (ValueError, RecursionError):
        return []
    return found


def _load_python(body: str) -> Any | None:
    """Read single-quoted "JSON", which is a Python literal."""
    try:
        return ast.literal_eval(body)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _outline(body: str) -> tuple[int, int]:
    starts = [place for place in (body.find("{"), body.find("[")) if place >= 0]
    if not starts:
        return -1, -1
    start = min(starts)
    end = body.rfind("}" if body[start] == "{" else "]")
    return start, end + 1 if end > start else len(body)


def _mend(body: str) -> str:
    body = re.sub(r",\s*([\]}])", r"\1", body)  # trailing commas
    body = re.sub(r'(?<=[^\[{,:\s\\])"\s*"(?=[^\]},:])', '", "', body)  # missing commas between strings
    return re.sub(r"[\x00-\x1f]+", " ", body)  # raw line breaks inside strings


def _complete_strings(body: str, key: str, others: Collection[str]) -> list[str]:
    """Return the strings of a list that was cut off; the last, unclosed one is lost."""
    opening = re.search(rf'"{re.escape(key)}"\s*:\s*\[', body) or FIRST_LIST.match(body)
    if opening is None or (opening.lastindex and opening[1] in others):
        return []
    place = opening.end()
    texts = []
    while (match := STRING.search(body, place)) and "]" not in body[place : match.start()]:
        place = match.end()
        if not NAMING.match(body, place):
            texts.append(_load(match.group(0)))
    return [text for text in texts if isinstance(text, str)]


def _texts(value: Any, key: str, others: Collection[str]) -> list[str]:
    if isinstance(value, dict):
        alone = [item for name, item in value.items() if len(value) == 1 and name not in others]
        value = value.get(key, alone[0] if alone and isinstance(alone[0], list) else [])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return []
    return [text for item in value if (text := _text(item)) is not None]


def _text(item: Any) -> str | None:
    if isinstance(item, dict):
        item = next((item[name] for name in TEXT_KEYS if isinstance(item.get(name), str)), None)
    return storable(item) if isinstance(item, str) else None


def storable(text: str) -> str:
    """Return `text` with half characters (lone surrogates, from cut escapes) replaced, so that UTF-8 holds it."""
    return text.encode("utf-8", "replace").decode("utf-8")
