"""Embeddings on disk, written in blocks that survive a kill, read in blocks that fit in memory.

Files are read, not mapped: pages of a mapped file count as the process's memory and nobody can bound them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_json, write_json
from embedsmith.choices import Storage
from embedsmith.encoder import Embeddings, Encoder, check_vectors
from embedsmith.errors import EmbedsmithError, InputError

Places = NDArray[np.int64]
BLOCK = 1024  # texts encoded and made durable at once
PROBES = 3  # texts whose vectors tell one encoder from another
SAME = 1e-3  # largest difference of a number between two runs of one encoder


class Vectors(Protocol):
    """Rows of numbers that are read in pieces."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, start: int, stop: int) -> Embeddings:
        """Return rows start … stop − 1 as float32."""
        ...

    def gather(self, places: Places) -> Embeddings:
        """Return the rows at `places` as float32."""
        ...


@dataclass(frozen=True, slots=True)
class VectorFile:
    """The vectors of a store: a flat file of `rows` times `dimension` numbers, and one byte a block that is done."""

    folder: Path
    rows: int
    dimension: int
    storage: Storage = "float16"
    block: int = BLOCK

    def __len__(self) -> int:
        return self.rows

    @property
    def type(self) -> np.dtype[Any]:
        """The numbers as they are on disk."""
        return np.dtype(self.storage).newbyteorder("<")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block)

    def missing(self) -> list[int]:
        """Return the blocks that are not done, in order."""
        return [number for number, done in enumerate((self.folder / "done.bin").read_bytes()) if not done]

    def write_block(self, number: int, vectors: Embeddings) -> None:
        """Write one block; it counts as done when its numbers are durable, not before."""
        with (self.folder / "vectors.bin").open("r+b") as handle:
            handle.seek(number * self.block * self.dimension * self.type.itemsize)
            handle.write(np.ascontiguousarray(vectors, dtype=self.type).tobytes())
            handle.flush()
            os.fsync(handle.fileno())
        with (self.folder / "done.bin").open("r+b") as handle:
            handle.seek(number)
            handle.write(b"\1")
            handle.flush()
            os.fsync(handle.fileno())

    def read(self, start: int, stop: int) -> Embeddings:
        """Return rows start … stop − 1 as float32."""
        width = self.dimension * self.type.itemsize
        with (self.folder / "vectors.bin").open("rb") as handle:
            handle.seek(start * width)
            content = handle.read((min(stop, self.rows) - start) * width)
        return np.frombuffer(content, dtype=self.type).reshape(-1, self.dimension).astype(np.float32)

    def gather(self, places: Places) -> Embeddings:
        """Return the rows at `places` as float32; for some thousands, each is a read of its own."""
        width = self.dimension * self.type.itemsize
        descriptor = os.open(self.folder / "vectors.bin", os.O_RDONLY)
        try:
            content = b"".join(os.pread(descriptor, width, place * width) for place in places.tolist())
        finally:
            os.close(descriptor)
        return np.frombuffer(content, dtype=self.type).reshape(-1, self.dimension).astype(np.float32)


def open_vectors(
    folder: Path, texts: Sequence[str], encoder: Encoder, *, fingerprint: str, name: str = "", storage: Storage
) -> VectorFile:
    """Return the vector file of these texts and this encoder: the one in `folder` if it is theirs, else an empty one.

    Whether it is theirs is told by the texts' fingerprint, the encoder's `name` (its fingerprint, where the caller
    knows one) and the vectors of three of the texts, which are encoded each time.

    Raises:
        ModelError: the encoder gives no unit rows.
    """
    probes = _probe(encoder, texts)
    about = {
        "texts": fingerprint,
        "encoder": name,
        "rows": len(texts),
        "dimension": int(probes.shape[1]),
        "storage": storage,
        "block": BLOCK,
    }
    found = VectorFile(folder, len(texts), int(probes.shape[1]), storage)
    if not _is_of(folder, about, probes):
        _create(found, about, probes)
    return found


def describe_vectors(file: VectorFile) -> dict[str, Any]:
    """Return what decides a file's vectors, for the keys of what is made from them."""
    probes = np.load(file.folder / "probes.npy", allow_pickle=False).tolist()
    return {"about": read_json(file.folder / "about.json"), "probes": probes}


def _probe(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    if not len(texts):
        raise InputError("there is no text to encode", expected="at least one")
    places = sorted({0, len(texts) // 2, len(texts) - 1})[:PROBES]
    return check_vectors(encoder.encode([texts[place] for place in places]), len(places))


def _is_of(folder: Path, about: dict[str, Any], probes: Embeddings) -> bool:
    with contextlib.suppress(EmbedsmithError, OSError, ValueError):
        if read_json(folder / "about.json") == about:
            known = np.load(folder / "probes.npy", allow_pickle=False)
            return bool(known.shape == probes.shape and np.abs(known - probes).max() < SAME)
    return False


def _create(file: VectorFile, about: dict[str, Any], probes: Embeddings) -> None:
    shutil.rmtree(file.folder, ignore_errors=True)
    file.folder.mkdir(parents=True)
    with (file.folder / "vectors.bin").open("wb") as handle:
        handle.truncate(file.rows * file.dimension * file.type.itemsize)
    (file.folder / "done.bin").write_bytes(bytes(file.blocks))
    np.save(file.folder / "probes.npy", probes, allow_pickle=False)
    write_json(file.folder / "about.json", about)  # last: without it, nothing in the folder counts


@dataclass(frozen=True, slots=True)
class FillBlock:
    """The work of one block: encode its texts, write its vectors. The same in this process and on a cluster."""

    file: VectorFile
    texts: Sequence[str]
    encoder: Encoder

    def __call__(self, number: int) -> None:
        """Encode and write block `number`."""
        start = number * self.file.block
        texts = self.texts[start : start + self.file.block]
        self.file.write_block(number, check_vectors(self.encoder.encode(texts), len(texts)))
