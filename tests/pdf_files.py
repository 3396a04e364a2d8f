"""PDF files for tests, by producers that our users' files come from: ReportLab, Chromium, groff with Ghostscript."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    ListFlowable,
    PageTemplate,
    Paragraph,
    Table,
)

STYLES = getSampleStyleSheet()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GROFF, GHOSTSCRIPT = shutil.which("groff"), shutil.which("ps2pdf")
WORDS = """board group revenue risk market energy capital long term policy segment customer contract liability
review report year rate with from under over price demand""".split()  # noqa: SIM905


def prose(seed: int, words: int = 60) -> str:
    """Return sentences that differ from those of another seed."""
    drawn = [WORDS[(seed * 7 + place * place + place * seed) % len(WORDS)] for place in range(words)]
    sentences = [" ".join(drawn[at : at + 12]).capitalize() + "." for at in range(0, words, 12)]
    return f"Paragraph {seed} begins. " + " ".join(sentences)


def text(content: str, style: str = "BodyText") -> Flowable:
    return Paragraph(content, STYLES[style])


def heading(content: str, level: int) -> Flowable:
    return Paragraph(content, STYLES[f"Heading{level}"])


def items(*contents: str, ordered: bool = False) -> Flowable:
    kind = "1" if ordered else "bullet"
    return ListFlowable(
        [text(content) for content in contents], bulletType=kind, bulletFormat="%s." if ordered else None
    )


def table(rows: Sequence[Sequence[str]], *, ruled: bool = True, bold: bool = True, repeat: int = 0) -> Flowable:
    style: list[Any] = [("GRID", (0, 0), (-1, -1), 0.5, "black")] if ruled else []
    style += [("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold")] if bold else []
    return Table(rows, style=style, repeatRows=repeat)


def typeset(
    story: Sequence[Flowable], *, columns: int = 1, decorate: Callable[[Canvas, int], None] | None = None
) -> bytes:
    """Return a PDF of ReportLab; `decorate` draws on every page, told its number."""
    width, height = A4
    gap, side = 18, (width - 2 * 72 - (columns - 1) * 18) / columns
    frames = [Frame(72 + place * (side + gap), 72, side, height - 144, 0, 0, 0, 0) for place in range(columns)]

    def draw(canvas: Canvas, document: Any) -> None:
        if decorate:
            decorate(canvas, document.page)

    out = io.BytesIO()
    BaseDocTemplate(out, pagesize=A4, pageTemplates=PageTemplate(frames=frames, onPage=draw)).build(list(story))
    return out.getvalue()


def draw(*pages: Callable[[Canvas], None], **options: Any) -> bytes:
    """Return a PDF with one page for each function that draws one."""
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=A4, **options)
    for page in pages:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def write_lines(
    canvas: Canvas, lines: Sequence[str], *, x: float = 72, y: float = 720, font: str = "Helvetica"
) -> None:
    """Draw lines of 11 points from the top down."""
    canvas.setFont(font, 11)
    for number, line in enumerate(lines):
        canvas.drawString(x, y - 14 * number, line)


def print_page(folder: Path, html: str, *options: str) -> bytes:
    """Return the PDF that Chromium prints of a page."""
    assert CHROMIUM
    source, target = folder / "page.html", folder / "page.pdf"
    source.write_text(html, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        *options,
    ]
    environment = {**os.environ, "HOME": str(folder)}
    done = [*command, f"--print-to-pdf={target}", source.as_uri()]
    subprocess.run(done, env=environment, check=True, capture_output=True, timeout=120)
    return target.read_bytes()


def set_with_groff(source: str) -> bytes:
    """Return the PDF that Ghostscript makes of what groff sets."""
    assert GROFF
    assert GHOSTSCRIPT
    set_ = subprocess.run([GROFF, "-t", "-Tps"], input=source.encode(), check=True, capture_output=True, timeout=60)
    done = subprocess.run([GHOSTSCRIPT, "-", "-"], input=set_.stdout, check=True, capture_output=True, timeout=60)
    return done.stdout


def styled(size: float, **options: Any) -> ParagraphStyle:
    return ParagraphStyle("own", fontSize=size, leading=1.2 * size, **options)
