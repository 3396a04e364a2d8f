"""Markdown as blocks: headings, paragraphs, items and rows as the text that a reader sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from embedsmith.documents.structure import Builder, Document, join_cells
from embedsmith.errors import MissingPartError

if TYPE_CHECKING:
    from markdown_it.token import Token

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
KEYED = re.compile(r"""["']?[\w.@/-]+(?: [\w.@/-]+){0,2}["']?[ \t]*:(?:[ \t].*)?""")  # "key: value", "last changed: …"
# That, an item of a list, a comment, or what goes on from the line above.
SETTING = re.compile(rf"(?:{KEYED.pattern}|-(?:[ \t].*)?|#.*|[ \t]+.*|[\]}}].*|)")
TITLE = re.compile(r"""^title:[ \t]*["']?(.*?)["']?[ \t]*$""", re.MULTILINE)
NESTING = 100  # of quotes and lists; the parser drops what is deeper, and 20 is its own choice
BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def parse_markdown(name: str, text: str) -> Document:
    """Return a markdown file as a document; settings at its top (front matter) are dropped, but for their title."""
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise MissingPartError(
            "reading markdown needs markdown-it-py", action="pip install 'embedsmith[rag]'"
        ) from None
    builder = Builder(name)
    settings = _find_settings(text)
    body = text[settings.end() :] if settings else text
    tokens = MarkdownIt("commonmark", {"maxNesting": NESTING}).enable(["table", "strikethrough"]).parse(body)
    title = TITLE.search(settings[1] or "") if settings else None
    if title and not any(token.type == "heading_open" and token.tag == "h1" for token in tokens):
        builder.add(title[1], level=1)
    for piece, level in _read_blocks(tokens):
        builder.add(piece, level=level)
    return builder.finish()


def _find_settings(text: str) -> re.Match[str] | None:
    """Return the front matter, or None: text between two rules at the top of a file is text."""
    found = FRONT_MATTER.match(text)
    lines = (found[1] or "").splitlines() if found else []
    # A heading is a comment as well, so comments alone are none; nor is a list, or an indented text.
    keyed = not any(line.strip() for line in lines) or any(KEYED.fullmatch(line.rstrip()) for line in lines)
    return found if keyed and all(SETTING.fullmatch(line.rstrip()) for line in lines) else None


def _read_blocks(tokens: Sequence[Token]) -> Iterator[tuple[str, int]]:
    """Yield (text, level of a heading or 0) of each block, in order."""
    marks = _Marks()
    table: list[list[str]] = []
    level, in_cell = 0, False
    for token in tokens:
        marks.follow(token)
        match token.type:
            case "heading_open" | "heading_close":
                level = int(token.tag[1]) if token.nesting == 1 else 0
            case "tr_open":
                table.append([])
            case "th_open" | "td_open" | "th_close" | "td_close":
                in_cell = token.nesting == 1
            case "table_close":
                yield from ((row, 0) for row in _read_table(table))
                table = []
            case "inline" if in_cell:
                table[-1].append(_plain_text(token))
            case "inline":
                yield marks.take() + _plain_text(token), level
            case "fence" | "code_block":
                yield marks.take() + token.content, 0
            case "html_block":
                yield from _read_html(token.content)


class _Marks:
    """What stands before the first block of a list item: "- " or "3. "."""

    def __init__(self) -> None:
        self._lists: list[int | None] = []  # of each open list the next number, None for bullets
        self._mark = ""

    def follow(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open":
                self._lists.append(None)
            case "ordered_list_open":
                self._lists.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
            case "list_item_open":
                number = self._lists[-1]
                self._mark = "- " if number is None else f"{number}. "
                self._lists[-1] = None if number is None else number + 1
            case "list_item_close":
                self._mark = ""

    def take(self) -> str:
        mark, self._mark = self._mark, ""
        return mark


def _read_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    header, body = rows[0], rows[1:]
    yield from (join_cells(header, row) for row in body)
    if not body:
        yield join_cells((), header)


def _plain_text(inline: Token) -> str:
    parts = []
    for child in inline.children or ():
        if child.type == "image":
            parts.append(_plain_text(child))  # what it says when it is not shown
        elif child.type in ("softbreak", "hardbreak") or BREAK.fullmatch(child.content):
            parts.append("\n")
        elif child.type in ("text", "code_inline"):
            parts.append(child.content)
    return "".join(parts)


def _read_html(content: str) -> Iterator[tuple[str, int]]:
    from embedsmith.documents.html import parse_html

    document = parse_html("", content)
    yield from ((document.text[block.start : block.end], block.level) for block in document.blocks)
