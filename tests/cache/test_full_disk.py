"""A disk without room: answers are computed, nothing is left in pieces, and all comes back with the room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedsmith.cache.feedback import read_feedback
from embedsmith.cache.stores import open_store

resource = pytest.importorskip("resource")
# The process may write into no file, as on a full disk, until it is allowed to again.
CHILD = """
import logging, resource, sys, time
from pathlib import Path
from embedsmith.cache.judge import Judge
from embedsmith.cache.samples import SampleRule
from embedsmith.cache.semantic import SemanticCache
from embedsmith.testing import FakeEncoder, FakeLLM

told = []
class Listening(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger().addHandler(Listening())

def leave_room(room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, (told, judge.counts, judge.trouble, samples.counts)
        time.sleep(0.01)

def ask(number):
    return f"how do i freeze card number {number}"

llm = FakeLLM(answer=lambda prompt: '{"same_answer": "yes"}')
cache = SemanticCache(FakeEncoder(64), store=sys.argv[1], threshold=0.8, guard=False, fingerprint="fake",
                      feedback=sys.argv[2], sample=SampleRule(1.0))
samples, file = cache.samples, Path(sys.argv[2])
for number in range(300):
    cache.add(ask(number), "in the app")
cache.mark_wrong("what does it cost", "nothing", "what is it made of")
before = file.read_bytes()

leave_room(len(before) + 9)  # of a row only its beginning would fit
cache.lookup("how do i freeze my card number 7")
judge = Judge(samples, llm, pauses=(0.01, 0.02))
for number in range(300):
    assert cache.serve(ask(number), str.upper) == "in the app"
    assert cache.serve(f"{number} is another question", str.upper) == f"{number} IS ANOTHER QUESTION"
try:
    cache.mark_same("what does it cost", "what is the price")
except OSError as error:
    assert "arge" in error.strerror, error  # "File too large"
else:
    raise AssertionError("kept without room")
assert file.read_bytes() == before
wait_until(lambda: judge.counts["unwritten"] > 5)
assert (samples.waiting, samples.left, judge.counts["failed"]) == (1, 0, 0)
assert "could not be written" in judge.trouble
kinds = sorted({line.partition(":")[0] for line in told})
assert len(told) < 30 and len(kinds) == 3, told  # of six hundred questions; a slow machine takes more than ten seconds
print(*kinds, sep="\\n")

leave_room(resource.RLIM_INFINITY)
wait_until(lambda: samples.counts.judged == 1)
assert (judge.trouble, samples.left) == ("", 0)
assert cache.serve("what comes with the room", str.upper) == "WHAT COMES WITH THE ROOM"
assert cache.lookup("what comes with the room").hit
cache.store.evict(entries=300)  # the one that was used last stays, and so do those whose uses waited for room
assert all(cache.lookup(ask(number)).answer == "in the app" for number in range(1, 300))
assert cache.mark_same("what does it cost", "what is the price")

leave_room(0)
cache.lookup(ask(1))
told.clear()
judge.close()
cache.close()
assert told == [] or "without the last uses" in told[0], told
"""


def test_without_room_answers_are_computed_and_all_comes_back_with_the_room(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path / 'c.db'}", tmp_path / "feedback.jsonl"
    done = subprocess.run([sys.executable, "-c", CHILD, url, str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "a use of an entry could not be counted",
        "an answer could not be stored",
        "the judge fake",  # … fails, samples wait; the dashboard says why
    ]
    rows, lost = read_feedback(file)
    assert ([(row.source, row.label) for row in rows], lost) == ([("person", 0), ("sample", 1), ("person", 1)], [])
    store = open_store(url, dimension=64, model="fake")
    assert store.count().entries == 300
    store.close()
