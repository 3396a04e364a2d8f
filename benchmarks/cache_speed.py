"""Lookups without embedding, p50 and p99, against GPTCache and redisvl on the same vectors, in turn.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install redisvl gptcache faiss-cpu sqlalchemy
    .venv/bin/python benchmarks/cache_speed.py --peers /tmp/peers/bin/python

384-dimensional unit vectors; a query lies near a stored one. Each system runs in a process of its own and
takes its turn in each round; redisvl talks to a Redis 8 on loopback that this script starts. One thread for
every numeric library. `p50` and `p99` are of the search with its decision, `lookup_p50` and `lookup_p99` (ours
alone) of a whole `SemanticCache.lookup`. Writes benchmarks/results/cache_speed.json; what that file says of other
numbers of entries stays in it, with the machine, commit and rounds it was measured with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests" / "contracts"))

from servers import start_redis  # the contract tests' own

from common import describe_machine, write_result

DIMENSION, QUERIES = 384, 2_020  # the p99 of 500 would be the fifth largest of a tenth of a second
RESULT = HERE / "results" / "cache_speed.json"
MOST = {"gptcache": 10_000, "redisvl": 10_000}  # entries: filling more takes a peer too long


def write_vectors(path: Path, count: int) -> None:
    draw = np.random.default_rng(count)
    vectors = draw.normal(size=(count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = draw.normal(size=(QUERIES, DIMENSION)).astype(np.float32) * 0.02
    queries = vectors[draw.integers(0, count, QUERIES)] + noise
    np.savez(path, vectors=vectors, queries=queries / np.linalg.norm(queries, axis=1, keepdims=True))


def run(name: str, python: str, vectors: Path, redis: str) -> dict[str, float]:
    environment = {**os.environ, "REDIS_URL": redis, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [python, str(HERE / "peers" / f"{name}_lookup.py"), str(vectors)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of lookups")
    parser.add_argument("--peers", help="a python that has redisvl and gptcache")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured = {"machine": describe_machine(), "rounds": options.rounds}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, start_redis() as redis:
        for count in options.entries:
            vectors = Path(folder) / f"{count}.npz"
            write_vectors(vectors, count)
            systems = {"ours": sys.executable}
            if options.peers:
                systems |= {name: options.peers for name, most in MOST.items() if count <= most}
            rounds = [
                {name: run(name, python, vectors, redis) for name, python in systems.items()}
                for _ in range(options.rounds)
            ]
            found[str(count)] = measured | {
                name: {
                    figure: {
                        "median": statistics.median(item[name][figure] for item in rounds),
                        "min": min(item[name][figure] for item in rounds),
                        "max": max(item[name][figure] for item in rounds),
                    }
                    for figure in rounds[0][name]
                }
                for name in systems
            }
            print(count, json.dumps(found[str(count)]), flush=True)
    entries = (json.loads(RESULT.read_text())["entries"] if RESULT.is_file() else {}) | found
    write_result("cache_speed", {"entries": {count: entries[count] for count in sorted(entries, key=int)}})


if __name__ == "__main__":
    main()
