"""The whole way through the proxy: a hit over HTTP, embedding included, one client at a time and 32 at once.

    .venv/bin/embedsmith demo && .venv/bin/embedsmith export runs/demo/model --precision int8
    .venv/bin/python benchmarks/proxy_speed.py --model runs/demo/model

Starts `embedsmith serve` on loopback with an SQLite store in front of the simulated LLM, fills it with the
questions of examples/home_energy, and asks them again (exact tier) and in the words of the recorded
paraphrases (semantic tier; only what is a hit counts). A server keeps the vectors of the last questions, so each
paraphrase is asked for the first time where it is measured (a server before has told which ones are hits), and `again`
is how long one takes that was asked before. One client measures first times twice: `between_misses`, where most
questions before a hit went to the simulated LLM and its fifth of a second has let the core and its caches go cold,
and `in_a_row`, hit after hit. The client is Python's http.client with one connection: it takes about .2 ms of its own.
Then the embeddings endpoint, one text a request, with as many clients at once. Client and server share the cores.
Each round starts a server of its own; figures are medians over the rounds, with the range.
Writes benchmarks/results/proxy_speed.json. With --embeddings only that part runs, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import ROOT, describe_machine, write_result

EXAMPLE = ROOT / "examples" / "home_energy"
CLIENTS = 32
SAME, SIMILAR = "hit: same text", "hit: similar"


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / name).read_text(encoding="utf-8").splitlines()]


@contextmanager
def server(model: str, folder: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield the address of a running server, and what tells the seconds of CPU it has used (Linux)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "embedsmith", "serve", "--upstream", "simulator:", "--model", model]
    command += ["--threshold", "0.75", "--store", f"sqlite:///{folder}/cache.db", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        ticks = os.sysconf("SC_CLK_TCK")
        stat = Path(f"/proc/{process.pid}/stat")
        yield url, lambda: sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) / ticks
    finally:
        process.terminate()
        process.wait()


def ask(client: HTTPConnection, text: str, wishes: Mapping[str, str] = MappingProxyType({})) -> tuple[float, str]:
    """Return (milliseconds until the answer is read, what the cache says)."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
    began = time.perf_counter()
    client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **wishes})
    answer = client.getresponse()
    answer.read()
    taken = 1000 * (time.perf_counter() - began)
    return taken, f"{answer.headers['x-embedsmith-cache']}: {answer.headers['x-embedsmith-reason']}"


def connect(url: str) -> HTTPConnection:
    return HTTPConnection(url.removeprefix("http://"), timeout=60)


def together(url: str, texts: Sequence[str]) -> float:
    """Return requests a second with CLIENTS clients."""

    def work(part: Sequence[str]) -> None:
        client = connect(url)
        for text in part:
            ask(client, text)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, [texts[start::CLIENTS] for start in range(CLIENTS)]))
    return len(texts) / (time.perf_counter() - began)


def embed_together(url: str, texts: Sequence[str]) -> dict[str, float]:
    """Return requests a second with CLIENTS clients, one text each, and what one of them waits."""
    times: list[float] = []

    def work(part: Sequence[str]) -> None:
        client = connect(url)
        for text in part:
            body = json.dumps({"model": "embedsmith", "input": text, "encoding_format": "base64"})
            began = time.perf_counter()
            client.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = client.getresponse()
            answer.read()
            times.append(1000 * (time.perf_counter() - began))
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, [texts[start::CLIENTS] for start in range(CLIENTS)]))
    return {"a_second": round(len(texts) / (time.perf_counter() - began)), **percentiles(times)}


def percentiles(times: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, [50, 99])
    return {"requests": len(times), "p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def measure_embeddings(url: str, cpu: Callable[[], float], texts: Sequence[str]) -> dict[str, float]:
    began = cpu()
    found = embed_together(url, texts)
    return {**found, "server_cpu_ms_a_request": round(1000 * (cpu() - began) / len(texts), 2)}


def find_similar(url: str, queries: list[str], others: list[str]) -> list[str]:
    """Return those of `others` that are hits in other words, where only `queries` are stored."""
    together(url, queries)
    client = connect(url)
    return [text for text in others if ask(client, text, {"x-embedsmith-cache": "only-if-cached"})[1] == SIMILAR]


def measure_hits(url: str, queries: list[str], others: list[str], similar: set[str]) -> dict[str, dict[str, float]]:
    """Return the figures of one server, which has seen nothing yet; each of `others` is asked first in one part."""
    together(url, queries)
    client = connect(url)
    in_a_row, at_once = ([text for text in others[start::3] if text in similar] for start in (0, 1))

    def hits(texts: list[str], kind: str) -> dict[str, float]:
        return percentiles([taken for taken, told in [ask(client, text) for text in texts] if told == kind])

    return {
        "exact_hit": hits(queries * 3, SAME),
        "semantic_hit_in_a_row": hits(in_a_row, SIMILAR),
        "semantic_hit_again": hits(in_a_row * 2, SIMILAR),
        "semantic_hits": {"requests": len(at_once), "a_second": round(together(url, at_once))},
        "exact_hits": {"a_second": round(together(url, queries * 5))},
        "semantic_hit_between_misses": hits(others[2::3], SIMILAR),
    }


def summarize(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return median and range over the rounds for each figure of each part."""

    def over(part: str, figure: str) -> dict[str, float]:
        values = [found[part][figure] for found in rounds]
        return {"median": round(statistics.median(values), 2), "min": min(values), "max": max(values)}

    return {part: {figure: over(part, figure) for figure in figures} for part, figures in rounds[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the proxy")
    parser.add_argument("--model", required=True)
    parser.add_argument("--embeddings", action="store_true", help="only the embeddings endpoint; nothing is written")
    parser.add_argument("--requests", type=int, default=4000, help="requests for embeddings")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    queries = list(dict.fromkeys(row["query"] if "query" in row else row["text"] for row in read_rows("queries.jsonl")))
    others = [text for row in read_rows("completions.jsonl") for text in row["paraphrases"]]
    others = list(dict.fromkeys(others))
    similar: set[str] = set()
    if not options.embeddings:
        with tempfile.TemporaryDirectory() as folder, server(options.model, folder) as (url, _):
            similar |= set(find_similar(url, queries, others))
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, server(options.model, folder) as (url, cpu):
            hits = {} if options.embeddings else measure_hits(url, queries, others, similar)
            rounds.append({**hits, "embeddings": measure_embeddings(url, cpu, (others * 20)[: options.requests])})
        print(json.dumps(rounds[-1]), flush=True)
    result = {
        "machine": describe_machine(),
        "model": options.model,
        "exported": (Path(options.model) / "onnx").is_dir(),
        "entries": len(queries),
        "clients": CLIENTS,
        "rounds": options.rounds,
        **summarize(rounds),
    }
    print(json.dumps(result, indent=2))
    if not options.embeddings:
        write_result("proxy_speed", result)


if __name__ == "__main__":
    main()
