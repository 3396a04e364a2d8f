"""Several processes with several writers each on one store, of which now and then one is killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import pytest
from places import Place

from embedsmith.cache.stores import Counts

KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "1"))
PROCESSES, WRITERS = 4, 4
PATIENCE = 60.0  # seconds until a process must have done what it does in milliseconds
DIMENSION = 64
# Each writer adds, and looks up what it has added before; what another has added is looked up when it is told to.
CHILD = f"""
import hashlib, itertools, random, sys, threading
from embedsmith.cache.semantic import SemanticCache
from embedsmith.testing import FakeEncoder
url, name = sys.argv[1:]
cache = SemanticCache(FakeEncoder({DIMENSION}), store=url, threshold=0.9, fingerprint="fake")
lock = threading.Lock()
def say(*words):
    with lock:
        print(*words, sep="\\t", flush=True)
def answer(text):
    return hashlib.sha256(text.encode()).hexdigest() * (1 + len(text) % 50)
def read(kind, text):
    found = cache.lookup(text)
    say(kind if found.answer == answer(text) else "lost", text)
def write(thread):
    draw = random.Random(f"{{name}} {{thread}}")
    for number in itertools.count():
        text = f"process {{name}} thread {{thread}} question {{number}} {{'x' * draw.randrange(50)}}"
        cache.add(text, answer(text), tags=[name])
        say("added", text)
        if number % 5 == 4:
            read("own", text)
for thread in range({WRITERS}):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
for line in sys.stdin:
    read("found", line.rstrip("\\n"))
"""


@dataclass
class Child:
    """A process with a cache of its own, and what it has said so far."""

    name: str
    process: subprocess.Popen[str]
    added: list[str] = field(default_factory=list)
    said: Queue[tuple[str, str]] = field(default_factory=Queue)  # all but additions

    def listen(self) -> None:
        """Read what it says until it is dead; a line that was cut off was no acknowledgement."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, text = line.partition("\t")
            if not line.endswith("\n"):
                continue
            if kind == "added":
                self.added.append(text.rstrip("\n"))
            elif kind != "own":
                self.said.put((kind, text.rstrip("\n")))

    def find(self, text: str) -> None:
        """Let it look up a question that another process has added, and be served the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        try:
            assert self.said.get(timeout=PATIENCE) == ("found", text)
        except Empty:
            raise AssertionError(f"process {self.name} says nothing") from None

    def write_on(self) -> None:
        """Wait until it has added something more."""
        before, end = len(self.added), time.monotonic() + PATIENCE
        while len(self.added) == before:
            assert self.process.poll() is None, f"process {self.name} has ended"
            assert time.monotonic() < end, f"process {self.name} adds nothing any more"
            time.sleep(0.005)


@dataclass
class Crowd:
    """Processes on one store; those that are dead, too."""

    url: str
    errors: Path
    children: list[Child] = field(default_factory=list)
    readers: list[Thread] = field(default_factory=list)

    def start(self) -> Child:
        """Return a new process."""
        name = str(len(self.children))
        with self.errors.open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, self.url, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        child = Child(name, process)
        reader = Thread(target=child.listen)
        reader.start()
        self.children.append(child)
        self.readers.append(reader)
        return child

    def kill(self, child: Child) -> None:
        """End a process with all that it is about to do."""
        child.process.send_signal(signal.SIGKILL)
        self.readers[int(child.name)].join()
        child.process.wait()


@contextmanager
def crowd(url: str, folder: Path) -> Iterator[Crowd]:
    """Yield processes that write; what is left of them at the end is killed, too."""
    own = Crowd(url, folder / "errors")
    try:
        yield own
    finally:
        for child in own.children:
            own.kill(child)
            for pipe in (child.process.stdin, child.process.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.mark.timeout(120 + 20 * KILLS)
def test_a_kill_in_a_crowd_of_processes_loses_nothing(durable: Place, tmp_path: Path) -> None:
    """SIGKILL of one of four processes, at a random moment: the others go on, find all of it, and it starts again."""
    draw = random.Random(durable.kind)
    with crowd(durable.url, tmp_path) as own:
        alive = [own.start() for _ in range(PROCESSES)]
        for child in alive:
            child.write_on()
        for _ in range(KILLS):
            time.sleep(draw.uniform(0.0, 0.2))
            killed = alive.pop(draw.randrange(PROCESSES))
            own.kill(killed)
            for other in alive:
                other.find(killed.added[-1])
                other.find(draw.choice(killed.added))
                other.write_on()
            alive.append(own.start())
            alive[-1].write_on()
            alive[-1].find(draw.choice(killed.added))
    assert (tmp_path / "errors").read_text() == ""
    assert all(child.said.empty() for child in own.children)  # what a process has added itself, it has found
    acknowledged = [text for child in own.children for text in child.added]
    store = durable.open(DIMENSION, "fake")
    kept = {entry.text: entry for entry in store.scan()}
    assert {*acknowledged} <= kept.keys()
    assert len(kept) <= len(acknowledged) + WRITERS * len(own.children)  # in flight at the kill
    for text, entry in kept.items():
        assert entry.answer == hashlib.sha256(text.encode()).hexdigest() * (1 + len(text) % 50)
    assert store.count() == Counts(len(kept), sum(entry.size for entry in kept.values()))
    for text in draw.sample(acknowledged, 100):
        nearest = store.search(kept[text].partition, kept[text].vector, 1, time.time())
        assert nearest[0].similarity == pytest.approx(1.0, abs=1e-6)
    for child in own.children:  # tags are as whole as entries
        assert store.purge(tag=child.name) >= len(child.added)
    assert store.count() == Counts(0, 0)
    store.put([kept[acknowledged[0]]])
