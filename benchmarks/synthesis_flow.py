"""Can one trust the flow of calls with money and a million rows? Five figures.

    python benchmarks/synthesis_flow.py [--quick] [--part capacity|hidden|faults|memory|pilot]

capacity: calls a second of the client, journal and all, against the server of embedsmith.testing in a process of its
own on the same two cores. hidden: share of a server's hidden capacity that is used after 30 s; counted by the server,
as answers in a window of 20 s over what it could have answered. faults: answers of the model (billed: status 200, or a
connection that broke off after the model was asked) per completion, under each fault. memory: the highest resident set
of a process that walks n prompts, twice: answered at once by a model in process, then all from the journal. pilot:
what 20 rows say that all will take, and what all of them then take in a journal of their own, for each recipe and for
servers that queue, refuse or fail. Seconds are those in which calls were out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import ROOT, describe_machine, write_result
from embedsmith.answers import write_e5_answer, write_rag_answer
from embedsmith.corpus import Query
from embedsmith.documents import Passage
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.calls import Calls
from embedsmith.llm.journal import Journal
from embedsmith.llm.openai_chat import OpenAIChat
from embedsmith.synthesis.e5 import E5Plan
from embedsmith.synthesis.orders import Order, order_e5, order_langcache, order_rag, try_order
from embedsmith.synthesis.rag import RagPlan
from embedsmith.synthesis.recipes import load_recipe
from embedsmith.testing import ANSWERED, Capacity, FaultyServer, write_answer

ASKED = 'Reply with {"paraphrases": [3 strings]}'
SYSTEM = "You write paraphrases of questions that users ask. " * 8
RETRYABLE = ("rate_limit", "rate_limit_silent", "server_error", "unavailable", "drop", "garbled", "hang")
RATE = 0.1  # of each fault
BILLED = ANSWERED  # a broken connection may be billed or not: `requests_per_answer` is its upper bound


def write_prompts(count: int, start: int = 0) -> Iterator[Prompt]:
    for number in range(start, start + count):
        yield Prompt(
            SYSTEM, f"Question: how do i repair part {number} of a bicycle?\n{ASKED}", str(number), "paraphrases"
        )


def answer_recipe(prompt: str) -> str:
    """Answer a prompt of any recipe."""
    if "<passage" in prompt:
        return write_rag_answer(prompt)
    return write_answer(prompt) if '{"paraphrases"' in prompt or '{"distinct"' in prompt else write_e5_answer(prompt)


# The server, in a process of its own: a line of JSON on its input changes the capacity or asks for the counts.


def serve(settings: dict[str, Any]) -> None:
    limits = settings.pop("capacity", None)
    if settings.pop("recipes", False):
        settings |= {"answer": answer_recipe, "count": lambda prompt, text: (len(prompt) // 4, len(text) // 3)}
    capacity = Capacity(**limits) if limits is not None else None
    with FaultyServer(**settings, capacity=capacity) as server:
        print(server.base_url, flush=True)
        for line in sys.stdin:
            for name, value in json.loads(line).items():
                setattr(capacity, name, value)
            billed = sum(call.fault in BILLED for call in server.calls)
            served = capacity.served if capacity is not None else billed
            refused = capacity.refused if capacity is not None else 0
            print(
                json.dumps({"calls": len(server.calls), "billed": billed, "served": served, "refused": refused}),
                flush=True,
            )


class Elsewhere:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.base_url = self._read().strip()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def tell(self, **changes: Any) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(changes) + "\n")
        self._process.stdin.flush()
        counts: dict[str, int] = json.loads(self._read())
        return counts


@contextmanager
def serve_elsewhere(**settings: Any) -> Iterator[Elsewhere]:
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Elsewhere(process)
    finally:
        process.kill()
        process.wait()


# The five figures.


def measure_capacity(count: int) -> dict[str, Any]:
    with (
        serve_elsewhere() as server,
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "journal.sqlite") as journal,
    ):
        llm = OpenAIChat("m", base_url=server.base_url)
        began, cpu = time.perf_counter(), time.process_time()
        calls = Calls(llm, journal, Sampling(seed=1))
        answered = sum(done.text is not None for _, done in calls.complete(lambda: write_prompts(count)))
        seconds = time.perf_counter() - began
    assert answered == count
    cpu = time.process_time() - cpu
    return {
        "calls": count,
        "calls_per_second": round(count / seconds),
        "client_cpu_ms_per_call": round(1e3 * cpu / count, 3),
    }


SCENES: dict[str, dict[str, Any]] = {
    "40 at once, queue": {"delay": 0.2, "capacity": {"at_once": 40}, "ideal": 200.0},
    "40 at once, 429": {"delay": 0.2, "capacity": {"at_once": 40, "refuses": True}, "ideal": 200.0},
    "150 a second, 429 with Retry-After": {
        "delay": 0.1,
        "capacity": {"rate": 150, "refuses": True, "retry_after": 1},
        "ideal": 150.0,
    },
    "20 at once, then 60, 429": {
        "delay": 0.2,
        "capacity": {"at_once": 20, "refuses": True},
        "then": {"at_once": 60},
        "ideal": 300.0,
    },
    "60 at once, then 20, queue": {
        "delay": 0.2,
        "capacity": {"at_once": 60},
        "then": {"at_once": 20},
        "ideal": 100.0,
    },
}


def measure_hidden(name: str, *, settle: float = 30.0, window: float = 20.0) -> dict[str, Any]:
    scene = SCENES[name]
    with serve_elsewhere(delay=scene["delay"], capacity=scene["capacity"]) as server, Journal(":memory:") as journal:
        llm = OpenAIChat("m", base_url=server.base_url)
        end = threading.Event()

        def prompts() -> Iterator[Prompt]:
            for number in range(10**9):
                if end.is_set():
                    return
                yield from write_prompts(1, number)

        windows: list[float] = []
        calls = Calls(llm, journal, Sampling(seed=1), on_progress=lambda _: windows.append(llm.window))
        thread = threading.Thread(target=lambda: next(iter(calls.complete(prompts)), None), daemon=True)
        thread.start()
        if "then" in scene:
            time.sleep(settle)
            server.tell(**scene["then"])
        time.sleep(settle)
        before, began = server.tell(), time.monotonic()
        time.sleep(window)
        after, seconds = server.tell(), time.monotonic() - began
        end.set()
        thread.join(30)
    rate = (after["served"] - before["served"]) / seconds
    refused = (after["refused"] - before["refused"]) / max(after["calls"] - before["calls"], 1)
    print(name, f"{rate / scene['ideal']:.1%}", f"window {windows[-1]:.1f}", f"refused {refused:.1%}", flush=True)
    return {
        "answers_per_second": round(rate, 1),
        "capacity": scene["ideal"],
        "used": round(rate / scene["ideal"], 3),
        "refused": round(refused, 4),
    }


def measure_fault(fault: str | None, count: int) -> dict[str, Any]:
    faults = {fault: RATE} if fault is not None else {}
    with serve_elsewhere(faults=faults, delay=0.02, hang=30.0, seed=7) as server, Journal(":memory:") as journal:
        calls = Calls(OpenAIChat("m", base_url=server.base_url), journal, Sampling(seed=1))
        began = time.perf_counter()
        answered = sum(done.text is not None for _, done in calls.complete(lambda: write_prompts(count)))
        seconds = time.perf_counter() - began
        seen = server.tell()
    print(fault, answered, seen, f"{seconds:.1f} s", flush=True)
    return {
        "rows": count,
        "answered": answered,
        "requests_per_answer": round(seen["calls"] / answered, 3),
        "billed_per_answer": round(seen["billed"] / answered, 3),
        "seconds": round(seconds, 1),
    }


def order_of(recipe: str, rows: int) -> Order:
    if recipe == "e5":
        return order_e5(E5Plan(tasks=rows))
    if recipe == "rag":
        texts = [
            f"The Harbour Act of Port{n} sets a berth fee of {n}7 marks a day for vessels of class {n}."
            for n in range(rows)
        ]
        passages = [Passage(f"p{n}", text, document=f"act{n // 8}") for n, text in enumerate(texts)]
        return order_rag(RagPlan(judge=True, trip="off", further=False), passages)
    words = ["", "very ", "really old and very ", "old, worn and hardly readable "]
    queries = [Query(str(n), f"how do I change the {words[n % 4]}card of account {n}") for n in range(rows)]
    return order_langcache(load_recipe(), queries)


PILOTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "langcache, keeps up": ("langcache", 1000, {"delay": 0.5}),
    "rag with a judge, keeps up": ("rag", 600, {"delay": 0.5}),
    "e5, keeps up": ("e5", 1000, {"delay": 0.5}),
    "langcache, 8 at once, queue": ("langcache", 400, {"delay": 0.2, "capacity": {"at_once": 8}}),
    "langcache, 8 at once, 429": ("langcache", 400, {"delay": 0.2, "capacity": {"at_once": 8, "refuses": True}}),
    "langcache, 40 at once, queue": ("langcache", 1000, {"delay": 0.5, "capacity": {"at_once": 40}}),
    "e5, one in ten fails": ("e5", 600, {"delay": 0.2, "faults": {"server_error": 0.05, "rate_limit": 0.05}}),
}
PRICE = Price(0.15, 0.6)


def measure_pilot(name: str, *, at_once: int = 128, part: int = 1) -> dict[str, Any]:
    """Return for calls, tokens, dollars and seconds what the pilot said, with its interval, and what was true."""
    recipe, rows, settings = PILOTS[name]
    order = order_of(recipe, rows // part)
    with serve_elsewhere(**settings, recipes=True) as server, Journal(":memory:") as one, Journal(":memory:") as other:

        def connect(journal: Journal) -> Calls:
            return Calls(OpenAIChat("m", base_url=server.base_url, concurrency=at_once), journal, Sampling(seed=1))

        found = try_order(order, connect(one), 20, price=PRICE, in_flight=at_once).estimate
        calls, began = connect(other), time.monotonic()
        for _ in order.fill(calls):
            pass
        seconds = time.monotonic() - began
    assert found is not None
    tally = calls.tally
    truths = {
        "calls": (found.calls, calls.budget.spent.calls),
        "prompt_tokens": (found.prompt_tokens, tally.prompt_tokens),
        "completion_tokens": (found.completion_tokens, tally.completion_tokens),
        "dollars": (found.cost, PRICE.of(Usage(0, tally.prompt_tokens, tally.completion_tokens))),
        "seconds": (found.seconds, tally.waited),
    }
    figures: dict[str, Any] = {"rows": rows // part, "calls_at_once_in_the_pilot": found.at_once}
    for figure, (said, true) in truths.items():
        assert said is not None
        figures[figure] = {
            "said": [round(value, 4) for value in (said.low, said.value, said.high)],
            "true": round(true, 4),
            "off": round(said.value / true - 1, 3),
            "inside": said.low <= true <= said.high,
        }
    figures["whole_seconds"] = round(seconds, 1)
    print(name, {figure: own["off"] for figure, own in figures.items() if isinstance(own, dict)}, flush=True)
    return figures


class AtOnce:
    """Answers without delay, and remembers nothing."""

    name, instant = "at once", True

    def complete(self, prompts: Sequence[Prompt], _: Sampling, /) -> Iterator[tuple[int, Completion]]:
        for place, prompt in enumerate(prompts):
            yield place, Completion(prompt.user[::-1], "stop", 10, 10, 0.0, "at once")


def read_peak() -> int:
    """Return the highest resident set of this program in kB; getrusage would tell that of its parent, if larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def walk(count: int, folder: str) -> None:
    """Print the highest resident set in MB of both walks, and their seconds."""
    figures: dict[str, Any] = {}
    for name in ("sent", "from the journal"):
        with Journal(Path(folder) / "journal.sqlite") as journal:
            calls, began = Calls(AtOnce(), journal, Sampling(seed=1)), time.perf_counter()
            seen = sum(1 for _ in calls.complete(lambda: write_prompts(count)))
        assert seen == count
        assert calls.tally.missing == 0
        figures[name] = {"peak_mb": round(read_peak() / 1024, 1), "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(figures))


def measure_memory(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--walk", str(count), folder]
        figures: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(count, figures, flush=True)
    return figures


def read_result() -> dict[str, Any]:
    """Return what other parts have written."""
    path = ROOT / "benchmarks" / "results" / "synthesis_flow.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls, shorter windows; nothing is written")
    parser.add_argument("--part", choices=["capacity", "hidden", "faults", "memory", "pilot"])
    parser.add_argument("--serve")
    parser.add_argument("--walk", nargs=2)
    options = parser.parse_args()
    if options.serve:
        serve(json.loads(options.serve))
        return
    if options.walk:
        walk(int(options.walk[0]), options.walk[1])
        return
    quick, wanted = options.quick, options.part
    result: dict[str, Any] = {} if quick or wanted is None else read_result()
    result["machine"] = describe_machine()
    result["load"] = os.getloadavg()[1]  # of the last five minutes, before: two cores, so above 2 somebody waits
    if wanted in {None, "capacity"}:
        result["capacity"] = measure_capacity(2_000 if quick else 20_000)
        print(result["capacity"], flush=True)
    if wanted in {None, "hidden"}:
        result["hidden"] = {name: measure_hidden(name, window=10 if quick else 20) for name in SCENES}
    if wanted in {None, "faults"}:
        counts = {fault: 300 if quick or fault == "hang" else 1_000 for fault in (None, *RETRYABLE)}  # a hang takes 3 s
        result["faults"] = {str(fault): measure_fault(fault, count) for fault, count in counts.items()}
    if wanted in {None, "memory"}:
        sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
        result["memory"] = {str(count): measure_memory(count) for count in sizes}
    if wanted in {None, "pilot"}:
        result["pilot"] = {name: measure_pilot(name, part=4 if quick else 1) for name in PILOTS}
    if not quick:
        write_result("synthesis_flow", result)


if __name__ == "__main__":
    main()
