"""Entries per second that move to another model, with an encoder that costs nothing: what the store itself takes.

    .venv/bin/python benchmarks/reencoding_speed.py --entries 10000 100000

Old vectors have 8 dimensions (so that filling is quick), new ones 384, random: the worst case for the graphs of
Redis and PostgreSQL, whose building is most of their time. Servers are those of the contract tests, on loopback or
a socket, with their files in memory. Writes benchmarks/results/reencoding_speed.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "contracts"))

from servers import start_postgres, start_redis  # the contract tests' own

from common import describe_machine, write_result
from embedsmith.cache.reencoding import reencode
from embedsmith.cache.stores import Entry, open_store
from embedsmith.encoder import Embeddings

OLD, NEW, ROWS = 8, 384, 4096


class TableEncoder:
    """A row of a random table for each text."""

    def __init__(self, dimension: int) -> None:
        rows = np.random.default_rng(dimension).normal(size=(ROWS, dimension))
        self.rows = np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        noise = [zlib.crc32(text.encode()) for text in texts]
        mixed = self.rows[[mark % ROWS for mark in noise]] + self.rows[[mark // ROWS % ROWS for mark in noise]]
        return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)


def make_entries(count: int) -> Iterator[list[Entry]]:
    """Yield entries of about 400 bytes besides the vector, 1,000 at a time, in 20 namespaces of one partition."""
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        texts = [f"how do i do the thing with the number {number}?" for number in numbers]
        vectors = TableEncoder(OLD).encode(texts)
        answer = "an answer of some length, as they are. " * 9
        yield [
            Entry(f"{number:064x}", f"n{number % 20}", "p", text, answer, vector, float(number))
            for number, text, vector in zip(numbers, texts, vectors, strict=True)
        ]


def measure(url: str, count: int) -> dict[str, float]:
    with closing(open_store(url, dimension=OLD, model="old")) as store:
        for entries in make_entries(count):
            store.put(entries)
    done = reencode(url, TableEncoder(NEW), model="new")
    assert done.encoded == count
    with closing(open_store(url, dimension=NEW, model="new")) as store:
        began = time.perf_counter()
        removed = store.evict(entries=count - 100)
        evicted = time.perf_counter() - began
        assert removed == 100
    speed = round(count / done.seconds)
    return {"entries_per_second": speed, "held_s": round(done.held, 3), "evict_100_s": round(evicted, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of re-encoding")
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--stores", nargs="+", default=["sqlite", "redis", "postgres"])
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "old_dimension": OLD, "dimension": NEW, "stores": {}}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers = {
            "sqlite": lambda: f"sqlite:///{folder}/",
            "redis": lambda: stack.enter_context(start_redis()) + "?prefix=s",
            "postgres": lambda: stack.enter_context(start_postgres()) + "&table=s",
        }
        for name in given.stores:
            url = servers[name]()
            for count in given.entries:
                found = measure(f"{url}{count}", count)
                result["stores"].setdefault(name, {})[count] = found
                print(f"{name:9} {count:8,} entries  {found}", flush=True)
    write_result("reencoding_speed", result)


if __name__ == "__main__":
    main()
