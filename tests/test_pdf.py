"""PDF files of real producers become the blocks that HTML and Markdown become, or a reason."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import PageBreak, Paragraph, Spacer

from embedsmith.documents.files import UnusableFile
from embedsmith.documents.html import parse_html
from embedsmith.documents.pdf import parse_pdf, worker
from embedsmith.documents.pdf.layout import Page, lay_out
from embedsmith.documents.pdf.tags import read_tagged
from embedsmith.documents.pdf.words import Line, Word
from embedsmith.documents.structure import Document
from minimal_pdf import write_pdf
from pdf_files import (
    CHROMIUM,
    GHOSTSCRIPT,
    GROFF,
    draw,
    heading,
    items,
    print_page,
    prose,
    set_with_groff,
    styled,
    table,
    text,
    typeset,
    write_lines,
)

DEJAVU = Path(__import__("matplotlib").get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
FIGURES = [["Segment", "2031", "2030"], ["Grid", "41.2", "39.0"], ["Home services", "7.5", "(6.9)"]]
ROWS = ["Segment: Grid; 2031: 41.2; 2030: 39.0", "Segment: Home services; 2031: 7.5; 2030: (6.9)"]


def read(raw: bytes) -> Document:
    document, broken = parse_pdf("report.pdf", raw)
    assert not broken
    return document


def blocks_of(document: Document) -> list[tuple[int, str]]:
    return [(block.level, document.text[block.start : block.end]) for block in document.blocks]


def texts_of(raw: bytes) -> list[str]:
    return [text for _, text in blocks_of(read(raw))]


def page_of(document: Document, text: str) -> int:
    place = document.text.index(text)
    return max(number for start, number in document.pages if start <= place)


# What a report is made of


def test_headings_lists_tables_and_paragraphs_are_blocks_and_what_is_on_every_page_is_not() -> None:
    def decorate(canvas: Canvas, number: int) -> None:
        canvas.drawString(72, 800, "Kestrel Power plc")
        canvas.drawRightString(520, 800, "Annual report 2031")
        canvas.drawCentredString(300, 30, str(number))

    document = read(
        typeset(
            [
                heading("Annual report", 1),
                text(prose(1)),
                heading("1 Business", 2),
                heading("1.1 Segments", 3),
                text(prose(2)),
                table(FIGURES),
                PageBreak(),
                text(prose(3)),
                items("apples and pears", "green tea"),
                items("one step", "another step", ordered=True),
                PageBreak(),
                heading("2 Risks", 2),
                text(prose(4)),
                table(FIGURES, ruled=False, bold=False),
            ],
            decorate=decorate,
        )
    )
    assert blocks_of(document) == [
        (1, "Annual report"),
        (0, prose(1)),
        (2, "1 Business"),
        (3, "1.1 Segments"),
        (0, prose(2)),
        *((0, row) for row in ROWS),
        (0, prose(3)),
        (0, "- apples and pears"),
        (0, "- green tea"),
        (0, "1. one step"),
        (0, "2. another step"),
        (2, "2 Risks"),
        (0, prose(4)),
        *((0, row) for row in ROWS),
    ]
    assert [page_of(document, f"Paragraph {number} ") for number in (1, 3, 4)] == [1, 2, 3]


def test_two_columns_are_read_one_after_the_other_and_over_the_end_of_a_page() -> None:
    paragraphs = [prose(number, 100) for number in range(9)]
    document = read(typeset([heading("Annual report", 1), *map(text, paragraphs)], columns=2))
    assert blocks_of(document) == [(1, "Annual report"), *((0, paragraph) for paragraph in paragraphs)]
    assert [number for _, number in document.pages] == [1, 2]


@pytest.mark.parametrize("repeat", [0, 1])
def test_a_table_over_two_pages_keeps_its_header_and_each_row_its_page(repeat: int) -> None:
    parts = [[f"Part {number}", f"{number}.5", f"{number}.1"] for number in range(60)]
    document = read(typeset([text("Before."), table([FIGURES[0], *parts], repeat=repeat), text("After.")]))
    rows = [f"Segment: Part {number}; 2031: {number}.5; 2030: {number}.1" for number in range(60)]
    assert [text for _, text in blocks_of(document)] == ["Before.", *rows, "After."]
    assert (page_of(document, rows[0]), page_of(document, rows[-1])) == (1, 2)


def test_a_heading_at_the_end_of_a_page_is_one() -> None:
    document = read(typeset([text(prose(1)), Spacer(1, 560), heading("2 Late", 2), PageBreak(), text(prose(2))]))
    assert blocks_of(document)[1] == (1, "2 Late")
    assert (page_of(document, "2 Late"), page_of(document, "Paragraph 2")) == (1, 2)


def test_bookmarks_make_headings_of_lines_that_look_like_text() -> None:
    def page(canvas: Canvas) -> None:
        write_lines(canvas, ["Terms", "You pay on the first day.", "Definitions", "A month is one of the calendar."])
        for depth, title in enumerate(["Terms", "Definitions"]):
            canvas.bookmarkPage(title)
            canvas.addOutlineEntry(title, title, depth)

    levels = [
        (1, "Terms"),
        (0, "You pay on the first day."),
        (2, "Definitions"),
        (0, "A month is one of the calendar."),
    ]
    assert blocks_of(read(draw(page))) == levels


def test_a_raised_note_does_not_become_part_of_a_number() -> None:
    story = [
        text("Revenue rose to 40<super>1</super> million and CO<sub>2</sub> fell by 3 m<super>2</super>."),
        text(prose(1)),
        Paragraph("<super>1</super> Restated for the sale of Home.", styled(7)),
    ]
    first, _, note = texts_of(typeset(story))
    assert first == "Revenue rose to 40¹ million and CO2 fell by 3 m²."
    assert note == "¹ Restated for the sale of Home."


def test_a_footnote_does_not_cut_the_paragraph_above_it() -> None:
    def first(canvas: Canvas) -> None:
        write_lines(canvas, ["The board looked at the plan of the whole group for the year 2031 and"], y=120)
        canvas.setFont("Helvetica", 7)
        canvas.drawString(72, 90, "1) Restated.")

    def second(canvas: Canvas) -> None:
        write_lines(canvas, ["agreed to it in the end.", "Nothing else was said about it on that day, and they left."])

    assert texts_of(draw(first, second))[:2] == [
        "The board looked at the plan of the whole group for the year 2031 and agreed to it in the end.",
        "1) Restated.",
    ]


# Pages that are written in other ways


def test_a_page_that_is_shown_turned_is_read_as_it_is_shown() -> None:
    def page(canvas: Canvas) -> None:
        canvas.setPageRotation(90)
        canvas.rotate(90)
        canvas.translate(0, -595)
        write_lines(canvas, ["It lies on its side in the file,", "and is shown upright."], y=500)

    assert texts_of(draw(page)) == ["It lies on its side in the file, and is shown upright."]


def test_text_on_its_side_comes_last_and_a_watermark_not_at_all() -> None:
    def page(canvas: Canvas) -> None:
        for angle, size, content in ((90, 9, "Stamped in Leith"), (45, 60, "DRAFT")):
            canvas.saveState()
            canvas.translate(560 - 9 * size + 81, 200)
            canvas.rotate(angle)
            canvas.setFont("Helvetica", size)
            canvas.drawString(0, 0, content)
            canvas.restoreState()
        write_lines(canvas, ["The text of the page is longer than what is stamped on it.", "It has two lines."])

    assert texts_of(draw(page)) == [
        "The text of the page is longer than what is stamped on it. It has two lines.",
        "Stamped in Leith",
    ]


def test_other_scripts_are_read_in_their_own_direction_and_without_spaces_they_do_not_have() -> None:
    pdfmetrics.registerFont(TTFont("DejaVu", DEJAVU))
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))

    def hebrew(canvas: Canvas) -> None:
        canvas.setFont("DejaVu", 12)
        canvas.drawRightString(500, 700, "2031 םלוע םולש")  # as it is seen, from the left

    def chinese(canvas: Canvas) -> None:
        write_lines(canvas, ["公司在二零三一年的收入增长了百分之四，", "主要来自电网业务。"], font="STSong-Light")

    def ligatures(canvas: Canvas) -> None:
        write_lines(canvas, ["The e\ufb03cient o\ufb03ce of the \ufb01rm \ufb02ows."], font="DejaVu")

    assert texts_of(draw(hebrew)) == ["שלום עולם 2031"]
    assert texts_of(draw(chinese)) == ["公司在二零三一年的收入增长了百分之四，主要来自电网业务。"]
    assert texts_of(draw(ligatures)) == ["The efficient office of the firm flows."]


# Other producers

STYLES = {
    "columns": "article{column-count:2;font:9pt 'DejaVu Serif'} h1{column-span:all}",
    "shaded": "td{text-align:right} tr:nth-child(even) td{background:#eee} table{border-collapse:collapse}",
}
PAGE = f"""<html><head><meta charset="utf-8"><title>Report</title><style>STYLE</style></head><body><article>
<h1>Annual report 2031</h1><p>{prose(1, 90)}</p><h2>1 Business</h2><p>{prose(2, 90)}</p><h3>1.1 Segments</h3>
<table><caption>Revenue in millions</caption><tr><th>Segment</th><th>2031</th><th>2030</th><th>Note</th></tr>
<tr><td>Grid</td><td>41.2</td><td>39.0</td><td></td></tr><tr><td>Home services</td><td></td><td>(6.9)</td>
<td>sold</td></tr><tr><td colspan="2">Wind and solar</td><td>7.1</td><td>new</td></tr></table><p>{prose(3, 200)}</p>
<ul><li>apples and pears</li><li>green tea</li></ul><ol><li>one step</li><li>another step</li></ol>
<h2>2 Risks</h2><p>{prose(4, 400)}</p><p>{prose(5, 400)}</p><p>{prose(6, 400)}</p></article></body></html>"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_a_short_page_is_read_by_its_tags_however_long_its_footer_is() -> None:
    """Headers and footers have no tags; on the last page of a report they may be most of the text."""
    body = Word("end.", 72, 100, 90, 110, 108, 10, False, mark=0)
    footer = Word("file:///a/long/address/of/the/page.html", 72, 770, 300, 780, 778, 10, False)
    read_tags = [(0, ["Document", "P"], [1, 2])]
    lines, rest = read_tagged([body, footer], read_tags, 792)
    assert ([line.text for line in lines if isinstance(line, Line)], rest) == (["end."], [footer])
    assert read_tagged([body, replace(footer, top=400, bottom=410)], read_tags, 792)[0] == []


@needs_chromium
@pytest.mark.parametrize("style", STYLES)
def test_a_printed_page_gives_the_blocks_of_the_html_that_it_was(tmp_path: Path, style: str) -> None:
    page = PAGE.replace("STYLE", STYLES[style])
    document = read(print_page(tmp_path, page))  # tagged, with the date above and the address below each page
    assert blocks_of(document) == blocks_of(parse_html("report.html", page))
    assert len(document.pages) > 1


@needs_chromium
def test_a_printed_page_without_tags_is_read_by_its_looks(tmp_path: Path) -> None:
    style = "td,th{border:1px solid;padding:2px 8px} table{border-collapse:collapse} caption{display:none}"
    page = PAGE.replace("STYLE", style).replace("<caption>Revenue in millions</caption>", "")
    raw = print_page(tmp_path, page, "--disable-pdf-tagging")
    assert b"/StructTreeRoot" not in raw
    assert blocks_of(read(raw)) == blocks_of(parse_html("report.html", page))


@pytest.mark.skipif(not (GROFF and GHOSTSCRIPT), reason="no groff or no Ghostscript on this machine")
def test_a_page_of_groff_with_cut_words_in_justified_lines_and_a_table() -> None:
    def title(content: str) -> str:
        return f".sp 2\n.ps 14\n.ft B\n{content}\n.br\n.ps 10\n.ft R\n.sp\n"

    words = "The representatives of the organisation acknowledged the responsibilities of the administration. " * 9
    rows = "\n".join("\t".join(row) for row in FIGURES)
    source = (
        f".ll 4i\n.hy 1\n{title('1 Business')}{words}\n.sp\n.TS\nl n n.\n{rows}\n.TE\n{title('2 Risks')}{prose(1)}\n"
    )
    raw = set_with_groff(source)
    assert blocks_of(read(raw)) == [
        (1, "1 Business"),
        (0, words.strip()),
        *((0, row) for row in ROWS),
        (1, "2 Risks"),
        (0, prose(1)),
    ]


# What cannot be read


def lines(*content: str, **options: Any) -> bytes:
    return draw(lambda canvas: write_lines(canvas, content), **options)


def scan() -> bytes:
    picture = ImageReader(Image.new("RGB", (60, 80), "grey"))
    return draw(lambda canvas: canvas.drawImage(picture, 0, 0, 595, 842))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "broken"),
        (b"%PDF-1.7 nothing", "broken"),
        (lines("A secret.", encrypt=StandardEncryption("user", "owner", strength=128)), "encrypted"),
        (scan(), "no-text"),
        (draw(lambda canvas: None), "no-text"),
    ],
)
def test_a_file_without_text_has_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(UnusableFile) as found:
        parse_pdf("x.pdf", raw)
    assert found.value.reason == reason


def test_a_file_that_is_only_locked_against_changes_is_read() -> None:
    assert texts_of(lines("Open to read.", encrypt=StandardEncryption("", "owner", strength=128))) == ["Open to read."]


def test_a_file_whose_table_of_places_is_broken_is_read() -> None:
    raw = lines("Its table is broken.").replace(b"startxref", b"startxxxx").replace(b"0000000", b"0003300")
    assert texts_of(raw) == ["Its table is broken."]


def with_second_page(content: bytes) -> bytes:
    """Three pages, the second of them with the operators `content`, packed."""
    packed = zlib.compress(content, 9)
    raw = write_pdf([["The first page."], [], ["The third page."]])
    start = raw.index(b"7 0 obj")
    end = raw.index(b"endobj", start)
    body = b"7 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream\n" % (len(packed), packed)
    return raw[:start] + body + raw[end:]


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (b"0 0 m 9 9 l S " * 2_000_000, "took more than 0.5 s of the processor"),
        (
            b"BT /F1 .4 Tf 60 700 Td .5 TL " + (b"(" + b"word " * 400 + b") Tj T* ") * 60 + b"ET",
            "characters on one page",
        ),
    ],
    ids=["endless", "crowded"],
)
def test_a_page_that_takes_too_much_is_named_and_the_others_are_read(
    monkeypatch: pytest.MonkeyPatch, content: bytes, remark: str
) -> None:
    monkeypatch.setattr(worker, "PAGE_SECONDS", 0.5)
    document, broken = parse_pdf("bomb.pdf", with_second_page(content))
    assert [text for _, text in blocks_of(document)] == ["The first page.", "The third page."]
    assert len(broken) == 1
    assert broken[0].startswith("page 2: ")
    assert remark in broken[0]


def test_a_page_that_cannot_be_laid_out_is_named_and_the_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(row: dict[str, Any]) -> Page:
        if row["page"] == 2:
            raise ZeroDivisionError("float division by zero")
        return lay_out(row)

    monkeypatch.setattr("embedsmith.documents.pdf.lay_out", stumble)
    document, broken = parse_pdf("odd.pdf", write_pdf([["The first page."], ["An odd one."], ["The third page."]]))
    assert [text for _, text in blocks_of(document)] == ["The first page.", "The third page."]
    assert broken == ["page 2: ZeroDivisionError: float division by zero"]


def test_a_file_with_too_many_such_pages_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PAGE_SECONDS", 0.5)
    monkeypatch.setattr(worker, "RESTARTS", 0)
    document, broken = parse_pdf("bomb.pdf", with_second_page(b"0 0 m 9 9 l S " * 2_000_000))
    assert [text for _, text in blocks_of(document)] == ["The first page."]
    assert broken[1:] == ["page 3: this and the pages after it, to 3, were not read"]


def test_more_pages_than_there_are_end() -> None:
    raw = write_pdf([["The only page."]]).replace(b"/Count 1", b"/Count 2000000000")
    document, broken = parse_pdf("many.pdf", raw)
    assert [text for _, text in blocks_of(document)] == ["The only page."]
    assert len(broken) <= 51


SAMPLES = {
    "report": typeset([heading("1 Report", 1), text(prose(1)), table(FIGURES), items("one", "two")], columns=2),
    "locked": lines("Open.", encrypt=StandardEncryption("", "owner", strength=128)),
    "plain": write_pdf([["Kestrel Power", "Revenue rose."], ["It fell again."]]),
}


def mutate(raw: bytes, drawn: random.Random) -> bytes:
    """Return the file with some bytes changed, lost, or put in twice."""
    changed = bytearray(raw)
    for _ in range(drawn.randint(1, 12)):
        place = drawn.randrange(len(changed))
        match drawn.randrange(4):
            case 0:
                changed[place] = drawn.randrange(256)
            case 1:
                del changed[place : place + drawn.randint(1, 40)]
            case 2:
                changed[place:place] = changed[place : place + drawn.randint(1, 60)]
            case _:
                changed[place : place + 1] = drawn.choice([b"-1", b"99999999999", b"<<", b"]", b"0 0 R", b"\0"])
    return bytes(changed)


@pytest.mark.parametrize("sample", SAMPLES)
def test_damaged_files_end_as_blocks_or_reasons(sample: str) -> None:
    drawn = random.Random(sample)
    reasons = {read_damaged(mutate(SAMPLES[sample], drawn)) for _ in range(12)}
    assert reasons <= {"", "broken", "no-text", "encrypted"}


def read_damaged(raw: bytes) -> str:
    """Return why nothing of the file can be read, "" when something can."""
    try:
        document, broken = parse_pdf("damaged.pdf", raw)
    except UnusableFile as problem:
        return problem.reason
    assert document.blocks
    assert all(remark.startswith("page ") for remark in broken)
    return ""
