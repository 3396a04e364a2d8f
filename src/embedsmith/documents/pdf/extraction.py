"""Runs as a process of its own: a PDF on standard input, its words and lines on standard output, a page a line of JSON.

PDFium is C++ that reads what strangers wrote. Here a crash, a loop or a bomb ends this process and a page, not the run.
The file imports nothing of ours, so that starting it costs no more than starting Python.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

MEMORY = 2 << 30  # bytes beyond the file itself
CHARACTERS = 50_000  # of a page; a dense one has 10,000
OBJECTS = 50_000  # drawn things of a page that are looked at for lines
SEGMENTS = 500  # of one path; a longer one is a drawing, not the lines of a table
DEPTH = 4  # of forms within forms
PAGES = 20_000
TAGS = 20_000  # elements of a page's structure, and how deep they go
NESTING = 40
LOST_IN_A_ROW = 50  # pages that cannot be loaded, after which the count of pages is taken for a lie
WEIGHT = 600  # from here on a font is bold
LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
BOLD = re.compile(rb"bold|black|heavy|semibold|demi(?!ght)", re.IGNORECASE)
UNSUITABLE = {0, 0xFFFE, 0xFFFF}  # no characters; PDFium puts 0xFFFE where a word was cut


def main() -> None:
    """Read the file, write one line about it, one a page, and one with what went wrong, if anything did."""
    first, seconds = int(sys.argv[1]), float(sys.argv[2])
    raw = sys.stdin.buffer.read()
    _limit_memory(len(raw))
    try:
        for row in _read(raw, first, seconds):
            sys.stdout.write(json.dumps(row, separators=(",", ":")) + "\n")
            sys.stdout.flush()
    except MemoryError:
        sys.exit("MemoryError")


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none of these bounds
        return
    limit = MEMORY + 3 * size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _start_clock(seconds: float) -> None:
    """Give the next page its time; when that is over the system ends the process, wherever it is."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _read(raw: bytes, first: int, seconds: float) -> Iterator[dict[str, Any]]:
    import pypdfium2 as pdfium

    _start_clock(seconds)
    try:
        file = pdfium.PdfDocument(raw)
    except pdfium.PdfiumError as error:
        yield {"error": str(error)}
        return
    pages = min(len(file), PAGES)
    yield {"pages": len(file), "outline": _read_outline(file) if first == 1 else []}
    lost = 0
    for number in range(first, pages + 1):
        _start_clock(seconds)
        try:
            page = file[number - 1]
        except pdfium.PdfiumError as error:
            lost += 1
            yield {"page": number, "error": str(error)}
            if lost == LOST_IN_A_ROW:
                return
            continue
        lost = 0
        try:
            yield {"page": number, **_Page(pdfium.raw, page).read()}
        except Exception as error:  # noqa: BLE001  whatever is wrong with one page, others can be read
            yield {"page": number, "error": f"{type(error).__name__}: {error}"}
        finally:
            page.close()


def _read_outline(file: Any) -> list[tuple[int, str, int]]:
    """Return (depth from 1, title, page from 1) of each bookmark; of a broken outline what can be read."""
    found: list[tuple[int, str, int]] = []
    try:
        for mark in file.get_toc(max_depth=6):
            target = mark.get_dest()
            page = target.get_index() if target else None
            if page is not None:
                found.append((mark.level + 1, mark.get_title(), page + 1))
            if len(found) == PAGES:
                break
    except Exception:  # noqa: BLE001  the text does not depend on it
        pass
    return found


class _Page:
    """The words and the straight lines of one page, seen upright: x to the right, y down, in points."""

    def __init__(self, raw: Any, page: Any) -> None:
        self._raw, self._page = raw, page
        width, height = page.get_size()
        self._width, self._height = width, height
        self._place = _turn(page.get_rotation(), page.get_mediabox(), page.get_cropbox())
        self._fonts: dict[int, tuple[float, int, float, int]] = {}

    def read(self) -> dict[str, Any]:
        """Return the size, and what is on the page.

        Words are [text, x0, top, x1, bottom, x and y of the baseline, size, bold, angle, mark], rules (straight lines)
        and dots (drawn signs of lists) [x0, y0, x1, y1]; tags [mark, roles from the outermost, numbers of these] say
        in a tagged file, in the order of reading, what the words with a mark are part of.
        """
        size = [round(self._width, 1), round(self._height, 1)]
        words = self._read_words()
        rules, dots = self._read_paths()
        return {"size": size, "words": words, "rules": rules, "dots": dots, "tags": self._read_tags()}

    def _read_words(self) -> list[list[Any]]:
        raw = self._raw
        text = raw.FPDFText_LoadPage(self._page)
        if not text:
            return []
        try:
            count = raw.FPDFText_CountChars(text)
            if count > CHARACTERS:
                raise ValueError(f"{count} characters on one page; at most {CHARACTERS} are read")
            return list(self._join(self._read_characters(text, count)))
        finally:
            raw.FPDFText_ClosePage(text)

    def _read_characters(self, text: Any, count: int) -> Iterator[tuple[str, tuple[Any, ...]] | None]:
        """Yield (character, (x0, top, x1, bottom, baseline, size, bold, angle, mark)); None between words."""
        raw, box, high = self._raw, self._raw.FS_RECTF(), ""
        x, y = ctypes.c_double(), ctypes.c_double()
        for place in range(count):
            code = raw.FPDFText_GetUnicode(text, place)
            if 0xD800 <= code < 0xDC00:  # half of a character beyond 16 bits
                high = chr(code)
                continue
            if high:
                character = (high + chr(code)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                high = ""
            else:
                character = LIGATURES.get(code) or (chr(code) if code <= 0x10FFFF else "\ufffd")
            generated = raw.FPDFText_IsGenerated(text, place) == 1
            if code == 0xFFFE or raw.FPDFText_IsHyphen(text, place) == 1:
                character = "-"
            elif generated or code in UNSUITABLE or character.isspace():
                yield None
                continue
            if not raw.FPDFText_GetLooseCharBox(text, place, box) or not raw.FPDFText_GetCharOrigin(text, place, x, y):
                continue
            style = self._describe(text, place)
            x0, y0 = self._place(box.left, box.bottom)
            x1, y1 = self._place(box.right, box.top)
            base = self._place(x.value, y.value)
            yield character, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), base, *style)

    def _describe(self, text: Any, place: int) -> tuple[float, int, float, int]:
        """Return size in points, bold or not, angle in degrees, and mark of the text that a character belongs to."""
        raw = self._raw
        drawn = raw.FPDFText_GetTextObject(text, place)
        key = ctypes.cast(drawn, ctypes.c_void_p).value or 0
        if key not in self._fonts:
            matrix = raw.FS_MATRIX()
            raw.FPDFText_GetMatrix(text, place, matrix)
            name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
            raw.FPDFText_GetFontInfo(text, place, name, 128, flags)
            heavy = raw.FPDFText_GetFontWeight(text, place) >= WEIGHT or bool(flags.value & 1 << 18)
            size = abs(raw.FPDFText_GetFontSize(text, place)) * math.hypot(matrix.c, matrix.d)
            zero, one = self._place(0, 0), self._place(matrix.a, matrix.b)
            angle = math.degrees(math.atan2(zero[1] - one[1], one[0] - zero[0])) % 360
            bold = int(heavy or BOLD.search(name.value) is not None)
            mark = raw.FPDFPageObj_GetMarkedContentID(drawn) if drawn else -1
            self._fonts[key] = (round(size, 2), bold, round(angle), mark)
        return self._fonts[key]

    def _join(self, characters: Iterator[tuple[str, tuple[Any, ...]] | None]) -> Iterator[list[Any]]:
        """Yield words: what no space, no jump and no change of the font parts."""
        word: list[Any] = []
        for found in characters:
            if found is None:
                if word:
                    yield self._finish(word)
                word = []
                continue
            character, (x0, top, x1, bottom, base, *style) = found
            if word and not (style == word[6:] and _follows(word, x0, top, x1, bottom)):
                yield self._finish(word)
                word = []
            if word:
                word[0] += character
                word[1:5] = min(word[1], x0), min(word[2], top), max(word[3], x1), max(word[4], bottom)
            else:
                word = [character, x0, top, x1, bottom, base, *style]
        if word:
            yield self._finish(word)

    @staticmethod
    def _finish(word: list[Any]) -> list[Any]:
        x, y = word[5]
        return [word[0], *(round(value, 1) for value in (*word[1:5], x, y)), *word[6:]]

    def _read_tags(self) -> list[tuple[int, list[str], list[int]]]:
        raw = self._raw
        tree = raw.FPDF_StructTree_GetForPage(self._page)
        if not tree:
            return []
        try:
            roots = (
                raw.FPDF_StructTree_GetChildAtIndex(tree, n) for n in range(raw.FPDF_StructTree_CountChildren(tree))
            )
            return list(self._walk_tags([root for root in roots if root][:TAGS]))
        finally:
            raw.FPDF_StructTree_Close(tree)

    def _walk_tags(self, roots: list[Any]) -> Iterator[tuple[int, list[str], list[int]]]:
        raw, name = self._raw, ctypes.create_string_buffer(64)
        stack: list[tuple[Any, int, list[str], list[int]]] = [(root, -1, [], []) for root in reversed(roots)]
        for number in range(TAGS):
            if not stack:
                return
            element, mark, roles, path = stack.pop()
            if element is None:
                yield mark, roles, path
                continue
            raw.FPDF_StructElement_GetType(element, name, 64)
            kind = name.raw.decode("utf-16-le", "replace").partition("\0")[0]
            kind += self._find_span(element) if kind in ("TD", "TH") else ""
            roles, path = [*roles, kind], [*path, number]
            single = raw.FPDF_StructElement_GetMarkedContentID(element)
            children: list[tuple[Any, int, list[str], list[int]]] = []
            for place in range(min(raw.FPDF_StructElement_CountChildren(element), TAGS)):
                child = raw.FPDF_StructElement_GetChildAtIndex(element, place)
                mark = raw.FPDF_StructElement_GetChildMarkedContentID(element, place)
                if child and len(path) < NESTING:
                    children.append((child, -1, roles, path))
                elif mark >= 0:
                    children.append((None, mark, roles, path))
                elif kind == "TR":  # a cell with nothing in it is not loaded
                    children.append((None, -1, [*roles, "TD"], [*path, -1 - place]))
            if single >= 0 and not children:
                children.append((None, single, roles, path))
            stack += reversed(children)

    def _find_span(self, element: Any) -> str:
        """Return ":3" for a cell over three columns, "" for one over its own."""
        raw, number = self._raw, ctypes.c_float()
        for place in range(min(raw.FPDF_StructElement_GetAttributeCount(element), 20)):
            attribute = raw.FPDF_StructElement_GetAttributeAtIndex(element, place)
            value = raw.FPDF_StructElement_Attr_GetValue(attribute, b"ColSpan") if attribute else None
            if value and raw.FPDF_StructElement_Attr_GetNumberValue(value, number) and 1 < number.value < 100:
                return f":{int(number.value)}"
        return ""

    def _read_paths(self) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        rules: set[tuple[float, ...]] = set()
        dots: set[tuple[float, ...]] = set()
        left = OBJECTS
        whole: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        stack = [(self._page.raw, False, whole, 0)]
        raw = self._raw
        while stack:
            holder, is_form, matrix, depth = stack.pop()
            count = raw.FPDFFormObj_CountObjects(holder) if is_form else raw.FPDFPage_CountObjects(holder)
            for place in range(max(0, min(count, left))):
                left -= 1
                drawn = raw.FPDFFormObj_GetObject(holder, place) if is_form else raw.FPDFPage_GetObject(holder, place)
                kind = raw.FPDFPageObj_GetType(drawn)
                if kind == raw.FPDF_PAGEOBJ_PATH:
                    points, found = self._read_path(drawn, _multiply(self._get_matrix(drawn), matrix))
                    rules.update(found)
                    dots.update(_as_dot(points))
                elif kind == raw.FPDF_PAGEOBJ_FORM and depth < DEPTH:
                    stack.append((drawn, True, _multiply(self._get_matrix(drawn), matrix), depth + 1))
        return sorted(rules), sorted(dots)

    def _get_matrix(self, drawn: Any) -> tuple[float, ...]:
        matrix = self._raw.FS_MATRIX()
        self._raw.FPDFPageObj_GetMatrix(drawn, matrix)
        return matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f

    def _read_path(
        self, drawn: Any, matrix: tuple[float, ...]
    ) -> tuple[list[tuple[float, float]], list[tuple[float, ...]]]:
        """Return the points of a path, and its level and upright segments."""
        points: list[tuple[float, float]] = []
        found: list[tuple[float, ...]] = []
        raw, x, y = self._raw, ctypes.c_float(), ctypes.c_float()
        start = here = (0.0, 0.0)
        for number in range(min(raw.FPDFPath_CountSegments(drawn), SEGMENTS)):
            segment = raw.FPDFPath_GetPathSegment(drawn, number)
            raw.FPDFPathSegment_GetPoint(segment, x, y)
            there = self._place(*_apply(matrix, x.value, y.value))
            points.append(there)
            kind = raw.FPDFPathSegment_GetType(segment)
            if kind == raw.FPDF_SEGMENT_MOVETO:
                start = there
            elif kind == raw.FPDF_SEGMENT_LINETO:
                found += _as_rule(here, there)
            here = there
            if raw.FPDFPathSegment_GetClose(segment):
                found += _as_rule(here, start)
                here = start
        return points, found


def _follows(word: list[Any], x0: float, top: float, x1: float, bottom: float) -> bool:
    """Say whether a character touches the word, in any direction of writing."""
    near = 0.12 * max(word[6], 1.0)
    beside = x0 <= word[3] + near and x1 >= word[1] - near
    return bool(beside and top <= word[4] + near and bottom >= word[2] - near)


def _as_rule(start: tuple[float, float], end: tuple[float, float]) -> Iterator[tuple[float, ...]]:
    (x0, y0), (x1, y1) = start, end
    across, down = abs(x1 - x0), abs(y1 - y0)
    if min(across, down) <= 1 and max(across, down) >= 6 and max(across, down) < 1e5:
        yield tuple(round(value, 1) for value in (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))


def _as_dot(points: list[tuple[float, float]]) -> Iterator[tuple[float, ...]]:
    """Yield the box of a path as small and as square as the sign before an item of a list."""
    if 4 <= len(points) <= 60:
        xs, ys = zip(*points, strict=True)
        box = min(xs), min(ys), max(xs), max(ys)
        width, height = box[2] - box[0], box[3] - box[1]
        if 1.5 <= width <= 8 and 0.7 <= width / max(height, 0.1) <= 1.4:
            yield tuple(round(value, 1) for value in box)


def _multiply(m: tuple[float, ...], n: tuple[float, ...]) -> tuple[float, ...]:
    a, b = _apply((*n[:4], 0, 0), m[0], m[1])
    c, d = _apply((*n[:4], 0, 0), m[2], m[3])
    return (a, b, c, d, *_apply(n, m[4], m[5]))


def _apply(m: tuple[float, ...], x: float, y: float) -> tuple[float, float]:
    return m[0] * x + m[2] * y + m[4], m[1] * x + m[3] * y + m[5]


def _turn(rotation: int, media: tuple[float, ...], crop: tuple[float, ...]) -> Any:
    """Return the function from a page's own coordinates to what a reader sees, for a page that is shown turned."""
    left, bottom, right, top = (
        max(media[0], crop[0]), max(media[1], crop[1]), min(media[2], crop[2]), min(media[3], crop[3])
    )  # fmt: skip
    return {
        90: lambda x, y: (y - bottom, x - left),
        180: lambda x, y: (right - x, y - bottom),
        270: lambda x, y: (top - y, right - x),
    }.get(rotation, lambda x, y: (x - left, top - y))


if __name__ == "__main__":
    main()
