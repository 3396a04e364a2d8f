"""Exact search of mining at size: peak memory, wall time, and the same result through Ray (issue 5, point 7).

    OMP_NUM_THREADS=1 python benchmarks/mining_scale.py --count 200000 --blocks 4      # four of 49 query blocks
    OMP_NUM_THREADS=1 python benchmarks/mining_scale.py --count 200000                 # all
    OMP_NUM_THREADS=1 python benchmarks/mining_scale.py --count 20000 --engine ray     # both engines, compared

Vectors are synthetic: 384 numbers around one of count/20 centres, so that neighbours are as close as real ones; the
store's files are written as `mine` writes them, and the search is the one that `mine` runs. Peak memory is the
process's own; with Ray each worker holds one block, as this process does without.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import describe_machine, write_result
from embedsmith.encoder import normalize
from embedsmith.mining.blocks import NeighbourFiles, SearchBlock, open_neighbours
from embedsmith.mining.engines import Engine, LocalEngine, RayEngine
from embedsmith.mining.planning import plan_search
from embedsmith.mining.settings import MiningSettings
from embedsmith.mining.store import VectorFile

DIMENSION, DEPTH, PER_CENTRE, NOISE = 384, 100, 20, 1.0


def write_vectors(folder: Path, count: int, dimension: int, *, seed: int) -> VectorFile:
    """Write `count` unit rows around shared centres, block by block."""
    folder.mkdir(parents=True)
    file = VectorFile(folder, count, dimension, "float16")
    with (folder / "vectors.bin").open("wb") as handle:
        handle.truncate(count * dimension * file.type.itemsize)
    (folder / "done.bin").write_bytes(bytes(file.blocks))
    centres = count // PER_CENTRE
    for number in range(file.blocks):
        rows = np.arange(number * file.block, min((number + 1) * file.block, count))
        drawn = np.random.default_rng([seed, number])
        noise = drawn.standard_normal((len(rows), dimension), dtype=np.float32)
        file.write_block(number, normalize(centre_of(drawn.integers(0, centres, len(rows)), dimension) + NOISE * noise))
    return file


def centre_of(numbers: np.ndarray, dimension: int) -> np.ndarray:
    return np.stack([np.random.default_rng(int(n)).standard_normal(dimension, dtype=np.float32) for n in numbers])


def search_all(folder: Path, queries: VectorFile, corpus: VectorFile, engine: Engine, blocks: int | None) -> Any:
    """Return seconds, blocks done and the files, after a search of the first `blocks` query blocks."""
    files = open_neighbours(folder, len(queries), {"run": folder.name})
    numbers = files.missing()[:blocks]
    begun = time.perf_counter()
    for number in engine.run(SearchBlock(files, queries, corpus, DEPTH), numbers):
        print(f"block {number} of {files.blocks}: {time.perf_counter() - begun:.0f} s, {peak():.2f} GB", flush=True)
    return time.perf_counter() - begun, numbers, files


def hash_neighbours(files: NeighbourFiles, numbers: list[int]) -> str:
    digest = hashlib.sha256()
    for number in numbers:
        found = files.read(number)
        digest.update(found.places.tobytes() + found.scores.tobytes())
    return digest.hexdigest()[:16]


def peak() -> float:
    """Return the process's peak resident memory in GB (10⁹ bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    parser.add_argument("--blocks", type=int, default=None)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embedsmith-scale-") as name:
        folder = Path(name)
        queries = write_vectors(folder / "queries", given.count, given.dimension, seed=1)
        corpus = write_vectors(folder / "corpus", given.count, given.dimension, seed=2)
        plan = plan_search(given.count, given.count, given.dimension, MiningSettings())
        before = peak()
        print(f"{plan.kind}: {plan.reason}; about {plan.seconds:.0f} s; {before:.2f} GB before the search", flush=True)
        seconds, numbers, files = search_all(folder / "local", queries, corpus, LocalEngine(), given.blocks)
        result = {
            "machine": describe_machine(),
            "count": given.count,
            "dimension": given.dimension,
            "depth": DEPTH,
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "blocks_searched": len(numbers),
            "blocks": files.blocks,
            "estimated_seconds": round(plan.seconds, 1),
            "seconds": round(seconds, 1),
            "seconds_for_all": round(seconds * files.blocks / len(numbers), 1),
            "peak_gb": round(peak(), 3),
            "hash": hash_neighbours(files, numbers),
        }
        if given.engine == "ray":
            with RayEngine() as engine:
                own, _, there = search_all(folder / "ray", queries, corpus, engine, given.blocks)
                result["ray"] = {"seconds": round(own, 1), "hash": hash_neighbours(there, numbers)}
            result["ray"]["same"] = result["ray"]["hash"] == result["hash"]
    print(result)
    write_result(f"mining_scale_{given.count}_{given.engine}{'_part' if given.blocks else ''}", result)


if __name__ == "__main__":
    main()
