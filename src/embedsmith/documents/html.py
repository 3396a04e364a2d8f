"""HTML as blocks: what a reader came for, without scripts, navigation and notices."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from embedsmith.documents.structure import Builder, Document, join_cells
from embedsmith.errors import MissingPartError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from bs4.element import PageElement

# "ix:header" holds the hidden facts of inline XBRL filings.
DROPPED = """script style noscript template nav aside footer button select svg iframe object canvas audio video
head ix:header"""
ROLES = "navigation banner contentinfo search complementary dialog alert menu menubar"
# Whole words of a class or id: "site-nav" and "cookie_banner", not "navigable". Words that name what a filing is about
# ("share-capital", "social-risks", "consent") are not among them: better a button too many than a table lost.
NOISE = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|menu|breadcrumbs?|sidebar|cookies?|advert|popup|modal|newsletter|skip-link|"
    r"pagination|share-?(?:buttons?|links?|icons?)|social-?(?:media|links?|icons?|buttons?))(?:$|[\s_-])",
    re.IGNORECASE,
)
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
HEADING = re.compile(r"h[1-6]")
TAGS = """address article blockquote body caption center dd details dialog div dl dt fieldset figcaption figure
header hr html legend li main ol p pre section summary table tbody td tfoot th thead tr ul h1 h2 h3 h4 h5 h6"""
BLOCKS = frozenset(TAGS.split())
SPAN = 200  # columns or rows that a cell covers at most: a few bytes must not become a million cells
LABEL = 200  # characters of a cell that is repeated in each of its rows


def parse_html(name: str, text: str) -> Document:
    """Return a page as a document; its title is the first heading where it has no h1 of its own.

    Rows of a table become "column: value; …"; tables that hold other tables are layout and read as text.
    """
    soup = _load(text)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    _drop_noise(soup)
    builder = Builder(name)
    if title and not soup.find("h1"):
        builder.add(title, level=1)
    for piece, level in _Walk().read(soup):
        builder.add(piece, level=level)
    return builder.finish()


def _load(text: str) -> BeautifulSoup:
    try:
        from bs4 import BeautifulSoup
    except ImportError:
        BeautifulSoup = None  # type: ignore[assignment, misc]  # noqa: N806
    if BeautifulSoup is None or find_spec("lxml") is None:
        raise MissingPartError(
            "reading html needs beautifulsoup4 and lxml", action="pip install 'embedsmith[rag]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks like XML, or like a file name
        return BeautifulSoup(text, "lxml")


def _drop_noise(soup: BeautifulSoup) -> None:
    from bs4.element import PreformattedString

    for tag in soup.find_all(DROPPED.split()):
        tag.decompose()
    for tag in soup.find_all(_is_noise):
        if not tag.decomposed:
            tag.decompose()
    for string in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        string.extract()  # comments, doctypes, CDATA
    _drop_forms(soup)


def _drop_forms(soup: BeautifulSoup) -> None:
    """Drop forms, but not those that are the page: ASP.NET puts all of a page into one."""
    whole = _count_letters(soup)
    for form in soup.find_all("form"):
        if form.decomposed:
            continue
        if form.find(["h1", "main", "article"]) is None and 2 * _count_letters(form) <= whole:
            form.decompose()
        else:
            form.unwrap()


def _count_letters(tag: Tag) -> int:
    return sum(len(text.strip()) for text in tag.strings)


def _is_noise(tag: Tag) -> bool:
    if tag.name in ("html", "body", "main", "article"):
        return False
    if tag.has_attr("hidden") or tag.get("aria-hidden") == "true" or tag.get("role") in ROLES.split():
        return True
    if HIDDEN.search(str(tag.get("style", ""))):
        return True
    if tag.name == "header":
        return tag.find("h1") is None
    classes = tag.get("class")
    names = [str(tag.get("id", "")), *(map(str, classes) if isinstance(classes, list) else ())]
    # A wrapper that holds the page's title is the page, whatever it is called.
    return any(NOISE.search(name) for name in names) and tag.find("h1") is None


class _Walk:
    """Goes through a page and gives its blocks; text between block tags is a paragraph.

    It keeps its own stack, since tags that nobody closed nest deeper than Python calls functions.
    """

    def __init__(self) -> None:
        self._inline: list[str] = []
        self._mark = ""
        self._items: Counter[int] = Counter()  # of each open list

    def read(self, root: Tag) -> Iterator[tuple[str, int]]:
        """Yield (text, level of a heading or 0) of each block, in order."""
        from bs4.element import NavigableString, Tag

        stack: list[tuple[Tag, Iterator[PageElement], bool]] = [(root, iter(root.children), False)]
        while stack:
            parent, children, exact = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                yield from self._close(parent)
            elif isinstance(child, Tag):
                yield from self._open(child)
                if not _is_table(child):
                    stack.append((child, iter(child.children), exact or child.name == "pre"))
            elif isinstance(child, NavigableString) and (child.strip() or self._inline):
                self._inline.append(str(child) if exact else re.sub(r"\s+", " ", child))

    def _open(self, tag: Tag) -> Iterator[tuple[str, int]]:
        if tag.name == "br":
            self._inline.append("\n")
        elif tag.name == "img":
            self._inline.append(str(tag.get("alt", "")))
        if tag.name not in BLOCKS:
            return
        yield from self._flush(0)
        if _is_table(tag):
            yield from ((row, 0) for row in _read_table(tag))
        elif tag.name == "li":
            parent = tag.parent
            self._items[id(parent)] += 1
            ordered = parent is not None and parent.name == "ol"
            self._mark = f"{self._items[id(parent)]}. " if ordered else "- "

    def _close(self, tag: Tag) -> Iterator[tuple[str, int]]:
        if tag.name not in BLOCKS and tag.parent is not None:
            return
        yield from self._flush(int(tag.name[1]) if HEADING.fullmatch(tag.name) else 0)
        if tag.name == "li":
            self._mark = ""

    def _flush(self, level: int) -> Iterator[tuple[str, int]]:
        text = re.sub(r" *\n *", "\n", "".join(self._inline)).strip()
        self._inline = []
        if text:
            mark, self._mark = self._mark, ""
            yield mark + text, level


def _is_table(tag: Tag) -> bool:
    """Say whether it is a table of figures; one that holds tables or headings is there for the layout."""
    return tag.name == "table" and tag.find(["table", HEADING]) is None


def _read_table(table: Tag) -> Iterator[str]:
    caption = table.find("caption")
    if caption is not None:
        yield caption.get_text(" ", strip=True)
    header: list[str] = []
    for values, heads in _lay_out(table):
        if heads and not header:
            header = [" ".join(value.split()) for value in values]
            waiting = join_cells((), header)
            continue
        yield join_cells(header, values)
        waiting = ""
    if header and waiting:
        yield waiting


def _lay_out(table: Tag) -> Iterator[tuple[list[str], bool]]:
    """Yield the texts of each row by column, and whether the row is all heads.

    A cell over several rows stands in each of them, so that a row can be read by itself, unless it is long; over
    several columns, in the first. A head over several rows of heads stands once.
    """
    spans: dict[int, tuple[int, str]] = {}  # by column: further rows that a cell covers, and what stands there
    group: Tag | None = None
    for row in table.find_all("tr"):
        if row.parent is not group:
            spans, group = {}, row.parent  # a cell ends with its thead or tbody
        cells = row.find_all(["td", "th"])
        heads = bool(cells) and all(cell.name == "th" for cell in cells)
        values: list[str] = []
        for cell in cells:
            _carry_down(spans, values)
            text = cell.get_text(" ", strip=True)
            for place in range(_span(cell, "colspan") or 1):
                own = text if place == 0 else ""
                spans.pop(len(values), None)  # cells that overlap: the later one stands
                if (rows := _span(cell, "rowspan")) != 1 and len(values) < SPAN:
                    carried = "" if heads or len(own) > LABEL else own
                    spans[len(values)] = (rows - 1, carried)  # 0 rows: to the end of the group
                values.append(own)
        while any(column >= len(values) for column in spans):
            values += [] if len(values) in spans else [""]
            _carry_down(spans, values)
        yield values, heads


def _carry_down(spans: dict[int, tuple[int, str]], values: list[str]) -> None:
    """Append what cells of rows above hold in the columns that come next."""
    while (column := len(values)) in spans:
        left, text = spans.pop(column)
        values.append(text)
        if left != 1:
            spans[column] = (left - 1, text)


def _span(cell: Tag, name: str) -> int:
    """Return how many columns or rows a cell covers; nonsense is 1, as in browsers."""
    number = str(cell.get(name, "1")).strip()
    return min(int(number), SPAN) if number.isascii() and number.isdecimal() else 1
