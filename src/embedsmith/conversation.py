"""Conversations as texts: messages in, one text out that marks who speaks; and back.

A conversation of one question is that question, so its vector is that of the question. A longer one has a line for
each turn, further lines of a turn are indented:

    User: I have a joint account.
    Assistant: Noted.
    User: How do I close it?

No two conversations are one text: what is said stands behind the mark of its turn or indented below it, so no line of
it can begin a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
MARKS: Mapping[str, Role] = {f"{role.capitalize()}: ": role for role in ROLES}
BEGINNINGS = tuple(MARKS)
INDENT = "  "
CALLS = ("tool_calls", "function_call")  # with one of these a message says more than its text


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: Role
    content: str


def render(turns: Sequence[Turn]) -> str:
    r"""Return the text of a conversation that ends with the user's turn; `read_turns` gives the turns back.

    >>> render([Turn("user", "tea?"), Turn("assistant", "Green\nor black?"), Turn("user", "black")])
    'User: tea?\nAssistant: Green\n  or black?\nUser: black'
    """
    last = turns[-1]
    if len(turns) == 1 and last.role == "user" and not last.content.startswith(BEGINNINGS):
        return last.content
    lines = (f"{turn.role.capitalize()}: {turn.content}".replace("\n", f"\n{INDENT}") for turn in turns)
    return "\n".join(lines)


def read_turns(text: str) -> tuple[Turn, ...]:
    """Return the turns of a text: those of a rendered conversation, else the text as the one turn of its user."""
    bare = (Turn("user", text),)
    if not text.startswith(BEGINNINGS):
        return bare
    turns: list[tuple[Role, list[str]]] = []
    for line in text.split("\n"):
        mark = next((mark for mark in BEGINNINGS if line.startswith(mark)), None)
        if mark is not None:
            turns.append((MARKS[mark], [line.removeprefix(mark)]))
        elif line.startswith(INDENT):
            turns[-1][1].append(line.removeprefix(INDENT))
        else:
            return bare
    return tuple(Turn(role, "\n".join(lines)) for role, lines in turns) if turns[-1][0] == "user" else bare


def roles_of(text: str) -> tuple[Role, ...]:
    """Return who speaks, turn by turn; ("user",) for a single question."""
    return tuple(turn.role for turn in read_turns(text))


def is_conversation(text: str) -> bool:
    """Say whether a text is a rendered conversation of more than one turn."""
    return text.startswith(BEGINNINGS) and len(read_turns(text)) > 1


def read_asked(text: str) -> str:
    """Return all that the user says in a text, turn below turn; a single question is itself."""
    if not text.startswith(BEGINNINGS):
        return text
    return "\n".join(turn.content for turn in read_turns(text) if turn.role == "user")


def parse_messages(messages: Sequence[Any]) -> tuple[Turn, ...]:
    """Return the turns of a list of chat messages, {"role": …, "content": …} each, the last one the user's.

    Raises:
        ValueError: which message is none that a conversation is made of, and why.
    """
    turns = tuple(_parse_message(message, number) for number, message in enumerate(messages, start=1))
    if not turns or turns[-1].role != "user":
        raise ValueError("the last message is not the user's")
    return turns


def _parse_message(message: Any, number: int) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {number} is no object with role and content")
    role = next((role for role in ROLES if role == message.get("role")), None)
    if role is None:
        raise ValueError(f"message {number} has the role {message.get('role')!r}, not user or assistant")
    text = text_of(message.get("content"))
    called = next((name for name in CALLS if message.get(name)), None)
    if text is None or not text.strip() or called is not None:
        raise ValueError(f"message {number} {f'has {called}' if called else 'is not text'}")
    return Turn(role, text)


def text_of(content: object) -> str | None:
    """Return the text of a message's content, its parts as lines; None when it is or holds anything else (images)."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "\n".join(part["text"] for part in content)
    return None


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
