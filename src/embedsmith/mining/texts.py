"""A corpus on disk: any stream of texts in, a sequence out that reads what is asked for and holds nothing.

Texts with the same normal form are one text: a hundred copies of a footer would fill the ranks of every query.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_json, write_json
from embedsmith.documents.rows import TEXTS, find_text
from embedsmith.errors import InputError
from embedsmith.tables import read_rows
from embedsmith.text import normalize

Places = NDArray[np.int64]


def spool(texts: Iterable[str], folder: Path, *, merge: bool = True) -> SpooledTexts:
    """Write texts below `folder` and return them as a sequence, in the order in which they first came.

    Args:
        merge: keep the first of those with one normal form; False keeps all.

    Memory: 24 bytes a text while it runs, whatever their length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").unlink(missing_ok=True)
    keys, ends = array("Q"), array("q", [0])
    with (folder / "texts.bin").open("wb", buffering=1 << 20) as handle:
        for text in texts:
            content = text.encode("utf-8", "replace")
            handle.write(content)
            keys.append(key_of(text))
            ends.append(ends[-1] + len(content))
    first = _first_places(np.frombuffer(keys, dtype=np.uint64)) if merge else np.arange(len(keys))
    borders = np.frombuffer(ends, dtype=np.int64)
    np.column_stack((borders[first], borders[first + 1])).tofile(folder / "rows.bin")
    np.frombuffer(keys, dtype=np.uint64)[first].tofile(folder / "keys.bin")
    found = SpooledTexts(folder, len(first))
    about = {"rows": len(first), "read": len(keys), "fingerprint": found.hash_texts()}
    write_json(folder / "about.json", about)
    return open_texts(folder)


def _first_places(keys: NDArray[np.uint64]) -> Places:
    return np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)


def key_of(text: str) -> int:
    """Return 64 bits of the normal form; among ten million texts, two have the same by chance once in 4e5 corpora."""
    return int.from_bytes(hashlib.blake2b(normalize(text).encode("utf-8", "replace"), digest_size=8).digest(), "little")


def open_texts(folder: Path) -> SpooledTexts:
    """Return the texts that `spool` wrote."""
    about = read_json(folder / "about.json")
    return SpooledTexts(folder, about["rows"], read=about["read"], fingerprint=about["fingerprint"])


class SpooledTexts(Sequence[str]):
    """Texts on disk.

    Attributes:
        read: texts that came in, with repeats. fingerprint: 16 hex digits of all texts in their order.
    """

    def __init__(self, folder: Path, rows: int, *, read: int = 0, fingerprint: str = "") -> None:
        self.folder, self.read, self.fingerprint = folder, read, fingerprint
        self._rows = rows

    def __reduce__(self) -> tuple[type[SpooledTexts], tuple[Path, int]]:
        """Another process opens the files itself: open ones mean nothing there."""
        return SpooledTexts, (self.folder, self._rows)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, int):
            if not -self._rows <= place < self._rows:
                raise IndexError(f"text {place} of {self._rows}")
            place %= self._rows
            return self._range(place, place + 1)[0]
        start, stop, step = place.indices(self._rows)
        return self._range(start, stop)[::step] if step > 0 else [self[index] for index in range(start, stop, step)]

    def _range(self, start: int, stop: int) -> list[str]:
        if stop <= start:
            return []
        rows = np.frombuffer(os.pread(self._files[0], 16 * (stop - start), 16 * start), dtype=np.int64).reshape(-1, 2)
        first = int(rows[0, 0])
        content = os.pread(self._files[1], int(rows[-1, 1]) - first, first)
        return [content[begin - first : end - first].decode("utf-8") for begin, end in rows.tolist()]

    @cached_property
    def _files(self) -> tuple[int, int]:
        return os.open(self.folder / "rows.bin", os.O_RDONLY), os.open(self.folder / "texts.bin", os.O_RDONLY)

    def close(self) -> None:
        """Give the files back; reading opens them again."""
        for descriptor in self.__dict__.pop("_files", ()):
            os.close(descriptor)

    def hash_texts(self, *, block: int = 4096) -> str:
        """Return 16 hex digits of all texts and their lengths."""
        digest = hashlib.sha256()
        for start in range(0, self._rows, block):
            for text in self[start : start + block]:
                content = text.encode()
                digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()[:16]

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.uint64], Places]:
        keys = np.fromfile(self.folder / "keys.bin", dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        return keys[order], order.astype(np.int64)

    def find(self, texts: Sequence[str]) -> list[int | None]:
        """Return for each text the place of the one with its normal form, None where there is none."""
        keys, places = self._sorted_keys
        wanted = np.array([key_of(text) for text in texts], dtype=np.uint64)
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        hits = keys[at] == wanted if len(keys) else np.zeros(len(texts), dtype=bool)
        return [int(places[where]) if hit else None for where, hit in zip(at, hits.tolist(), strict=True)]


@dataclass(slots=True)
class Passages:
    """The texts of a table, one by one, in the columns that `chunk` reads too; rows without a text are counted.

    Attributes:
        unread: rows without a text so far. first: line of the first of them.
        separator: of the columns, where they are csv or tsv; by default found by the first line.
    """

    path: Path
    unread: int = 0
    first: int = 0
    separator: str | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield the texts, a title before its text; raise `InputError` after the last row if none had any."""
        self.unread = read = 0
        for line, row in read_rows(self.path, separator=self.separator):
            text = find_text(row)
            if text is not None:
                read += 1
                yield text
            elif set(row) != {"text"} or row["text"] != "":  # not a blank line of a text file
                self.unread, self.first = self.unread + 1, self.first or line
        if not read:
            raise InputError(f"{self.path}: no row with a text", expected=f"one of the columns {', '.join(TEXTS)}")

    def describe(self) -> str | None:
        """Return how many rows were not used, or None."""
        if not self.unread:
            return None
        return f"{self.path}: {self.unread:,} rows without a text not used, the first in line {self.first}"
