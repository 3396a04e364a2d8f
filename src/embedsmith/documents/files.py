"""Files: which ones a source names, their bytes (plain or gzip, bounded), and bytes as text."""

from __future__ import annotations

import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedsmith.artifacts import GZIP_MAGIC
from embedsmith.errors import InputError
from embedsmith.examples import Rejected

FORMATS = {".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".pdf": "pdf"}
FORMATS |= {".html": "html", ".htm": "html", ".xhtml": "html", ".json": "json", ".jsonl": "table", ".ndjson": "table"}
FORMATS |= {".csv": "table", ".tsv": "table", ".parquet": "table", ".pq": "table"}
LARGEST = 256 << 20  # bytes of one document, unpacked; a small .gz can hold terabytes
MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True)
class File:
    """A file that was named, and what its passages call it.

    Attributes:
        name: path below the folder that was read, with forward slashes.
        format: text, markdown, html, pdf, json or table.
    """

    path: Path
    name: str
    format: str


class UnusableFile(Exception):
    """A file that cannot be read; becomes a `Rejected`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def find_files(sources: Iterable[Path | str], *, without: Iterable[Path] = ()) -> Iterator[File | Rejected]:
    """Yield the files that `sources` name, each once, in a fixed order; what is no document as `Rejected`.

    A folder is read with all folders in it, sorted; hidden files and folders are passed over, links are followed only
    to files inside the folder. A glob is one when no file has that name ("reports/**/*.md").

    Args:
        without: files and folders of our own, such as the results of an earlier run: one `Rejected` each if they lie
            inside a source. A source that is one of these files, or lies inside one of these folders, is read.

    Raises:
        InputError: a source that names nothing, no source, or a source that is a folder of `without`.
    """
    seen: set[Path] = set()
    names: set[str] = set()
    results = {path.resolve(): path for path in without}
    roots = [(root, source) for source in sources for root in _expand(str(source))]
    if not roots:
        raise InputError("no source", expected="files, folders or globs")
    passed: set[Path] = set()
    for root, source in roots:
        own = _list_own(str(source), results)
        for path, name in _walk(root):
            if isinstance(name, Rejected):
                yield name
                continue
            real = path.resolve()
            if (held := next((item for item in own if real.is_relative_to(item)), None)) is not None:
                if held not in passed:
                    yield Rejected(
                        "own-output", "results of this command (--out), no document", file=str(results[held])
                    )
                passed.add(held)
                continue
            if real in seen:
                continue
            seen.add(real)
            name = _as_storable(name)
            name = name if name not in names else _as_storable(path.as_posix())  # two folders may have one name
            names.add(name)
            form = detect_format(path)
            yield File(path, name, form) if form else _no_document(path)


def detect_format(path: Path) -> str | None:
    """Return how a file is read, from its ending (a closing .gz does not count), or None when we do not read it."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return FORMATS.get(name.suffix.lower())


def _expand(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(source) else []
    if not found:
        raise InputError(f"{source} names no file", expected="a file, a folder or a glob", action="check the path")
    return [Path(item) for item in found]


def _list_own(source: str, results: Mapping[Path, Path]) -> list[Path]:
    """Return the results that are no part of what a source names."""
    path = Path(source).expanduser()
    while not path.exists():  # a glob names what is below its last folder without a sign
        path = path.parent
    named = path.resolve()
    if named in results and named.is_dir():
        raise InputError(
            f"{source} is the folder of the results (--out)",
            expected="results in a folder of their own: those of one run would be the documents of the next",
            action=f"give --out another folder; one inside {source} will do",
        )
    return [item for item in results if not named.is_relative_to(item)]


def _walk(root: Path) -> Iterator[tuple[Path, str | Rejected]]:
    """Yield (path, name) of the files of a source; a link that leaves the folder as (path, Rejected)."""
    if not root.is_dir():
        yield root, root.name
        return
    inside = root.resolve()
    closed: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=closed.append, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                yield path, Rejected("link-out-of-folder", "a link to a place outside the folder", file=str(path))
            elif path.is_file():
                yield path, path.relative_to(root).as_posix()
    for error in closed:
        yield root, Rejected("unreadable", f"{type(error).__name__}: {error.strerror}", file=str(error.filename))


def _as_storable(name: str) -> str:
    """Return a name that UTF-8 can hold: half characters, which names that are not UTF-8 are given, as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _no_document(path: Path) -> Rejected:
    detail = f"the ending {path.suffix or '(none)'!r}; read are {', '.join(sorted(FORMATS))}, plain or .gz"
    return Rejected("unknown-format", detail, file=str(path))


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, unpacked when it is gzip.

    Raises:
        UnusableFile: empty, too large, or not readable.
    """
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as handle:
            raw = handle.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableFile("unreadable", f"{type(error).__name__}: {error}") from None
    if len(raw) > LARGEST:
        raise UnusableFile("too-large", f"more than {LARGEST >> 20} MB")
    if not raw.strip():
        raise UnusableFile("empty", "nothing but white space" if raw else "no bytes")
    return raw


def decode(raw: bytes) -> tuple[str, str | None]:
    """Return (text, remark): UTF-8, or what the byte order mark says; else what html declares, else Windows-1252.

    The remark names an encoding that had to be assumed, and is None where there was no doubt.

    Raises:
        UnusableFile: the bytes are no text.
    """
    marked = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8-sig")
    try:
        return _as_text(raw.decode(marked)), None
    except UnicodeDecodeError as error:
        problem = f"not {marked.removesuffix('-sig').upper()}: byte {raw[error.start]:#04x} at {error.start}"
    declared = DECLARED.search(raw[:2048])
    for name in ([declared[1].decode()] if declared else []) + ["cp1252", "latin-1"]:
        try:
            return _as_text(raw.decode(name)), f"read as {name} ({problem})"
        except (UnicodeDecodeError, LookupError):
            continue
    raise UnusableFile("binary", problem)  # not reached: Latin-1 has a character for every byte


def _as_text(text: str) -> str:
    """Return `text` with one kind of line end; control characters mean that it is none."""
    sample = text[:65536]
    odd = len(CONTROL.findall(sample))
    if "\0" in text or odd > 0.01 * len(sample):
        raise UnusableFile("binary", f"{odd} control characters among the first {len(sample)} characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")
