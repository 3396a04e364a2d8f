"""The corpus: a log of queries in any common form, read as a stream, repeats merged."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embedsmith.charsets import find_twice_encoded
from embedsmith.conversation import parse_messages, render
from embedsmith.errors import InputError
from embedsmith.examples import Rejected
from embedsmith.facts import find_changes
from embedsmith.personal import Screen
from embedsmith.signatures import NearTexts
from embedsmith.tables import read_id, read_rows
from embedsmith.text import OwnNames, is_storable, normalize

TEXT_COLUMNS = ("text", "query", "question", "prompt", "content", "message", "utterance", "input", "request")
UNHEARD = ("system", "developer")  # roles whose messages the user does not see
ID_COLUMNS = ("id", "query_id", "_id", "qid")  # not uid: that is a user, who asks more than once


@dataclass(frozen=True, slots=True)
class Query:
    """One question of the log.

    Attributes:
        id: the row's own id, or its number from 0; one that an earlier row has gets an ending: "7", "7~2".
        frequency: how many rows of the log it stands for.
        also: ids of the rows that were merged into it.
    """

    id: str
    text: str
    frequency: int = 1
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The distinct queries in the order of the log, the rows that were merged, and those that had no text."""

    kept: tuple[Query, ...]
    merged: tuple[Rejected, ...]
    rejected: tuple[Rejected, ...] = ()


def read_queries(
    path: Path | str, *, column: str | None = None, separator: str | None = None, conversations: bool = False
) -> Iterator[Query | Rejected]:
    """Yield the queries of a log, each with an id of its own; a row without a usable text as `Rejected`.

    Reads txt (one query a line), jsonl, csv, tsv, parquet, plain or gzip, and chat logs
    ({"messages": [...]}, also as JSON text in a table: the last user message). One row in memory at a time, and the
    ids. A `Rejected` has file and line.

    Args:
        column: name of the text column; by default the first of the usual names that a row has.
        separator: of the columns of csv and tsv files; by default found by the first line.
        conversations: a chat with earlier turns is a query as a whole (`conversation.render`), without its system
            prompts; where a turn of it is no plain text, the last user message is the query as else.

    Raises:
        InputError: the file cannot be read, or no row has the text column.
    """
    found_column = False
    columns: set[str] = set()
    ids = OwnNames()
    for index, (line, row) in enumerate(read_rows(path, separator=separator)):
        columns.update(row)
        name = _match_column(column, row) if column is not None else _find_column(row)
        if name is None or name not in row:
            yield _reject("no-text-column", f"columns: {', '.join(row) or 'none'}", path, line)
            continue
        found_column = True
        text = _read_chat(row[name], whole=conversations) if name == "messages" else row[name]
        if not isinstance(text, str) or not text.strip():
            yield _reject("no-text", f"{name} is {_describe(text)}", path, line)
            continue
        if not is_storable(text):
            yield _reject(
                "not-storable", f"{name} has half a character or a NUL, which UTF-8 files do not hold", path, line
            )
            continue
        yield Query(ids.give(_find_id(row, index)), text.strip())
    if not found_column:
        raise _no_column(path, column, columns)


def screen_queries(rows: Iterable[Query | Rejected], screen: Screen) -> Iterator[Query | Rejected]:
    """Yield the rows with the queries' texts as `screen` gives them back."""
    for row in rows:
        yield row if isinstance(row, Rejected) else replace(row, text=screen.read(row.id, row.text))


def deduplicate(rows: Iterable[Query | Rejected]) -> Deduplicated:
    """Return the queries with exact and near repeats merged into the first of their kind.

    Near means a trigram Jaccard of at least .9 (`text.NEAR`) with the same numbers and negations, and no fact exchanged
    (`facts`): "from savings to checking" and "from checking to savings" are two questions. The search is exact
    (`signatures`), not sampled. Frequencies add up. Takes what `read_queries` yields.
    """
    rows = list(rows)
    queries = [row for row in rows if isinstance(row, Query)]
    exact: dict[str, int] = {}
    kept: list[Query] = []
    index = NearTexts(lambda place: kept[place].text, apart=find_changes)
    repeats: list[list[Query]] = []
    merged: list[Rejected] = []
    for query in queries:
        key = normalize(query.text)
        place, detail = exact.get(key), "the same text"
        if place is None:
            near = index.find_or_add(query.text)
            if near is not None:
                place, detail = near[0], f"Jaccard {near[1]:.2f}"
        if place is None:
            exact[key] = len(kept)
            kept.append(query)
            repeats.append([])
            continue
        exact.setdefault(key, place)
        repeats[place].append(query)
        reason = "repeat" if detail == "the same text" else "near-repeat"
        about = {"merged_into": kept[place].id, "text": kept[place].text}
        merged.append(Rejected(reason, detail, query.text, source=query.id, context=about))
    lost = tuple(row for row in rows if isinstance(row, Rejected))
    return Deduplicated(tuple(map(_merge, kept, repeats)), tuple(merged), lost)


def describe_twice_encoded(queries: Iterable[Query]) -> str:
    """Return a sentence on queries that were encoded twice ("fÃ¼r"), "" where there is none."""
    found = list(find_twice_encoded(query.text for query in queries))
    if not found:
        return ""
    stands, meant = found[0]
    return (
        f"{len(found):,} queries were encoded twice, e.g. “{stands}” for “{meant}”: the model would learn this. "
        "Write the log again as UTF-8; where all of it is so, `iconv -f UTF-8 -t WINDOWS-1252 LOG > MENDED` undoes it"
    )


def require_queries(found: Deduplicated, path: Path | str) -> None:
    """Raise `InputError` if a log has no row with a text."""
    if found.kept:
        return
    lost = [f"line {row.line}: {row.detail}" for row in found.rejected[:1]]
    raise InputError(
        f"{path} has no row with a text{f': {len(found.rejected)} rows not used, e.g. {lost[0]}' if lost else ''}",
        expected="at least one query",
        action="check how the log was written, and --column",
    )


def _merge(query: Query, repeats: list[Query]) -> Query:
    if not repeats:
        return query
    also = query.also + tuple(name for other in repeats for name in (other.id, *other.also))
    return replace(query, frequency=query.frequency + sum(other.frequency for other in repeats), also=also)


def _find_column(row: Mapping[str, Any]) -> str | None:
    names = {name.strip().lower(): name for name in row}
    written = next((names[name] for name in TEXT_COLUMNS if name in names), None)
    if "messages" in row and (written is None or _read_messages(row["messages"]) is not None):
        return "messages"
    return written


def _match_column(column: str, row: Mapping[str, Any]) -> str | None:
    """Return the row's own spelling of a name that the user gave: "anfrage" is "Anfrage" where there is no other."""
    if column in row:
        return column
    return next((name for name in row if name.strip().lower() == column.strip().lower()), None)


def _no_column(path: Path | str, column: str | None, columns: set[str]) -> InputError:
    there = ", ".join(sorted(columns)) or "no column"
    if column is None:
        return InputError(
            f"{path} has no text column",
            expected=f"one of {', '.join(TEXT_COLUMNS)}, messages",
            action=f"name it with --column; the file has: {there}",
        )
    near = get_close_matches(column, sorted(columns), n=1)
    action = f"--column {shlex.quote(near[0])}" if near else "name one of them, or leave --column out"
    return InputError(f"{path} has no column {column!r}", expected=f"one that the file has: {there}", action=action)


def _find_id(row: Mapping[str, Any], index: int) -> str:
    return next((found for name in ID_COLUMNS if (found := read_id(row.get(name))) is not None), str(index))


def require_own_ids(queries: Iterable[Query]) -> None:
    """Raise `InputError` if two queries have one id: answers are found by it."""
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            raise InputError(
                f"two queries have the id {query.id!r}",
                expected="an id of its own for each query",
                action="number them",
            )
        seen.add(query.id)


def _read_messages(value: Any) -> list[Any] | None:
    """Return the messages of a chat: a list, or what a CSV file has of it, JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _read_chat(value: Any, *, whole: bool) -> str | None:
    """Return the last user message of a chat, or all that was said up to it, if asked for and plain text."""
    messages = [message for message in _read_messages(value) or [] if isinstance(message, Mapping)]
    while messages and messages[-1].get("role") != "user":
        messages.pop()
    if not messages:
        return None
    if whole:
        with suppress(ValueError):
            return render(parse_messages([message for message in messages if message.get("role") not in UNHEARD]))
    return _text_of(messages[-1].get("content"))


def _text_of(content: Any) -> str | None:
    """Return the text of an OpenAI message content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return None


def _describe(value: Any) -> str:
    return "empty" if value in (None, "") or isinstance(value, str) else f"a {type(value).__name__}"


def _reject(reason: str, detail: str, path: Path | str, line: int) -> Rejected:
    return Rejected(reason, detail, file=str(path), line=line)
