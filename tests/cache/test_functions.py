"""`SemanticCache.cached`: functions, sync and async, with and without options; their types stay what they were."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import embedsmith
from embedsmith.cache.functions import read_function
from embedsmith.cache.semantic import SemanticCache
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.testing import FakeEncoder

ASKED, ALIKE, TRAP = "How do I freeze my card?", "How do I freeze my cards?", "How do I unfreeze my card?"


def make(**options: Any) -> SemanticCache:
    return SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake", **options)


def test_a_function_is_called_once_for_what_means_the_same() -> None:
    cache, calls = make(), list[str]()

    @cache.cached
    def answer(question: str) -> str:
        """Say it."""
        calls.append(question)
        return question.upper()

    assert answer(ASKED) == answer(ALIKE) == answer(question=ASKED) == ASKED.upper()
    assert answer(TRAP) == TRAP.upper()  # the guard
    assert calls == [ASKED, TRAP]
    assert (answer.__name__, answer.__doc__) == ("answer", "Say it.")


def test_a_function_that_asks_itself_the_same_again_is_computed_and_does_not_wait_for_itself() -> None:
    cache, left = make(), [2]

    @cache.cached
    def answer(question: str) -> str:
        if not left[0]:
            return "the third try"
        left[0] -= 1
        return answer(question)

    async def go() -> str:
        left[0] = 2
        return await asyncio.wait_for(answer_async(TRAP), 5)

    @cache.cached
    async def answer_async(question: str) -> str:
        if not left[0]:
            return "the third try"
        left[0] -= 1
        return await asyncio.create_task(answer_async(question))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(answer, ASKED).result(5) == "the third try"
    assert asyncio.run(go()) == "the third try"
    assert [entry.answer for entry in cache.store.scan()] == ["the third try"] * 2
    assert answer(ASKED) == "the third try"


def test_a_coroutine_function_stays_one() -> None:
    cache, calls = make(), list[str]()

    @cache.cached(ttl=60, tags=["help"])
    async def answer(question: str) -> str:
        calls.append(question)
        await asyncio.sleep(0)
        return question.upper()

    async def go() -> list[str]:
        return [await answer(ASKED), *await asyncio.gather(answer(ALIKE), answer(ASKED))]

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(go()) == [ASKED.upper()] * 3
    assert calls == [ASKED]
    (entry,) = cache.store.scan()
    assert entry.tags == ("help",)
    assert entry.expires == pytest.approx(entry.created + 60)


def test_other_arguments_and_other_functions_never_share() -> None:
    cache = make()

    @cache.cached
    def translate(text: str, to: str = "de", *, polite: bool = False) -> str:
        return f"{text} in {to}, {polite}"

    @cache.cached(scope={"tone": "short"})
    def explain(text: str) -> str:
        return f"{text} explained"

    @cache.cached(namespace="other")
    def count(text: str) -> str:
        return str(len(text))

    assert translate(ASKED) == translate(ALIKE, to="de") == translate(ASKED, "de") == f"{ASKED} in de, False"
    assert translate(ASKED, "fr") == f"{ASKED} in fr, False"
    assert translate(ASKED, polite=True) == f"{ASKED} in de, True"
    assert explain(ALIKE) == f"{ALIKE} explained"
    assert count(ASKED) == "24"


def test_tenants_and_options_hold() -> None:
    now, cache = [0.0], SemanticCache(FakeEncoder(64), threshold=0.8, fingerprint="fake", clock=lambda: now[0])
    calls = list[str]()

    def answer(question: str) -> str:
        calls.append(question)
        return "answer"

    ours, theirs = cache.cached(namespace="a", ttl=10)(answer), cache.cached(namespace="b", ttl=10)(answer)
    ours(ASKED), theirs(ASKED), ours(ASKED), theirs(ASKED)
    assert len(calls) == 2
    now[0] = 11
    ours(ASKED)
    assert len(calls) == 3


def test_a_bound_method_is_cached_by_its_question() -> None:
    class Desk:
        def __init__(self, cache: SemanticCache) -> None:
            self.calls = 0
            self.answer = cache.cached(scope={})(self.look_up)

        def look_up(self, question: str) -> str:
            self.calls += 1
            return question.upper()

    desk = Desk(make())
    assert desk.answer(ASKED) == desk.answer(ALIKE)
    assert desk.calls == 1


def test_methods_of_two_objects_never_share_without_a_word() -> None:
    class Desk:
        def __init__(self, name: str) -> None:
            self.name = name

        def look_up(self, question: str) -> str:
            return f"{self.name}: {question}"

        @classmethod
        def look_up_anywhere(cls, question: str) -> str:
            return question

    cache = make()
    with pytest.raises(ConfigurationError, match="two objects would serve each other's answers"):
        cache.cached(Desk("north").look_up)
    north, south = (cache.cached(scope={"desk": name})(Desk(name).look_up) for name in ("north", "south"))
    assert (north(ASKED), south(ASKED), north(ALIKE)) == (f"north: {ASKED}", f"south: {ASKED}", f"north: {ASKED}")
    assert cache.cached(Desk.look_up_anywhere)(ASKED) == ASKED


def test_class_methods_of_two_classes_never_share() -> None:
    class Desk:
        place = ""

        @classmethod
        def look_up(cls, question: str) -> str:
            return f"{cls.place}: {question}"

    class North(Desk):
        place = "north"

    class South(Desk):
        place = "south"

    cache = make()
    north, south = cache.cached(North.look_up), cache.cached(South.look_up)
    assert (north(ASKED), south(ASKED), north(ALIKE)) == (f"north: {ASKED}", f"south: {ASKED}", f"north: {ASKED}")


@dataclass(frozen=True)
class Only:
    topic: str


@dataclass(frozen=True)
class Without:
    topic: str


class Exactly(NamedTuple):
    topic: str


def test_records_with_the_same_values_are_told_apart_by_their_types() -> None:
    @make().cached
    def answer(question: str, filters: object) -> str:
        return repr(filters)

    for kind in (Only, Without, Exactly):
        for told in (kind("cards"), [kind("cards")], {"first": kind("cards")}, {kind("cards"), kind("fees")}):
            assert answer(ASKED, told) == answer(ALIKE, told) == repr(told)
    assert answer(ASKED, ["cards"]) == answer(ASKED, ("cards",)) == "['cards']"


class Series:
    """What pandas calls so: a list and an index, of which `tolist` tells only the list."""

    def tolist(self) -> list[int]:
        return [1, 2]


def stream(question: str) -> Iterator[str]:
    yield question


def nothing() -> str:
    return ""


def method(self: str) -> str:
    return self


@pytest.mark.parametrize(
    "wrong", [stream, nothing, method, partial(str.upper), len.__class__, lambda question: question]
)
def test_what_cannot_be_cached_is_refused_when_it_is_decorated(wrong: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be cached|takes no question"):
        make().cached(wrong)


def test_what_cannot_be_compared_is_refused_when_it_is_called() -> None:
    @make().cached
    def answer(question: str, client: object = None) -> str:
        return question

    assert answer(ASKED) == ASKED
    with pytest.raises(InputError, match="client cannot be compared"):
        answer(ASKED, client=object())
    with pytest.raises(InputError, match="client cannot be compared"):
        answer(ASKED, client=Series())
    with pytest.raises(InputError, match="client cannot be compared"):
        answer(ASKED, client=Only)
    deep: list[object] = []
    deep.append(deep)
    with pytest.raises(InputError, match="client cannot be compared"):
        answer(ASKED, client=deep)
    assert answer(ASKED, client=np.arange(3)) == ASKED
    with pytest.raises(InputError, match="question is a int"):
        answer(3)  # type: ignore[arg-type]


SCRIPT = """
import sys
from embedsmith.cache.semantic import SemanticCache
from embedsmith.testing import FakeEncoder

cache = SemanticCache(FakeEncoder(64), store=sys.argv[1], threshold=0.8, fingerprint="fake")

@cache.cached
def answer(question: str) -> str:
    return "answer of {name}"

print(answer("How do I freeze my card?"))
"""


def test_functions_of_one_name_in_two_scripts_never_share(tmp_path: Path) -> None:
    url, said = f"sqlite:///{tmp_path}/shared.db", []
    for name in ("one", "two", "one"):  # the third is a hit, whatever the script says by now
        script = tmp_path / f"{name}.py"
        script.write_text(SCRIPT.format(name=f"{name}, run {len(said) + 1}"))
        run = subprocess.run([sys.executable, str(script), url], capture_output=True, text=True, check=True)
        said.append(run.stdout.strip())
    assert said == ["answer of one, run 1", "answer of two, run 2", "answer of one, run 1"]


def test_what_is_typed_in_belongs_to_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a notebook
    cells = []
    for cell in ("<cell 1>", "<cell 2>"):
        typed: dict[str, Any] = {"__name__": "__main__"}
        exec(compile("def answer(question: str) -> str: return question", cell, "exec"), typed)
        cells.append(read_function(typed["answer"]).read(("x",), {}, {}).scope)
    assert cells[0] != cells[1]
    assert cells[0]["function"] == cells[1]["function"] == "__main__.answer"


TYPED = """
from collections.abc import Callable, Coroutine
from typing import Any, assert_type
from embedsmith.cache.semantic import SemanticCache
from embedsmith.testing import FakeEncoder

cache = SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake")

@cache.cached
def plain(question: str, *, language: str = "en") -> str: return question

@cache.cached(ttl=60)
async def later(question: str, top: int) -> str: return question

async def go() -> None:
    assert_type(plain("x", language="de"), str)
    assert_type(await later("x", top=3), str)
    assert_type(await later(question="x", top=3), str)
"""
WRONG = (
    TYPED
    + """
    plain(3)                  # arg-type
    plain("x", tongue="de")   # call-arg
    await later("x", "y")     # arg-type
    cache.cached(len)         # type-var
    cache.cached(lifetime=3)  # call-overload

@cache.cached                 # type-var
def no_text(question: str) -> int: return 3
"""
)


# Read whole, our imports lead through numpy and torch (a minute); what gives a decorated function its type is here.
MYPY = """
[mypy]
strict = True
follow_imports = skip

[mypy-embedsmith.cache.semantic,embedsmith.cache.functions]
follow_imports = silent
"""


def test_the_types_of_a_function_stay(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(MYPY)
    source = Path(embedsmith.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "typed.py", "wrong.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(source), "PATH": ""},
        capture_output=True,
        text=True,
    )
    found = [line for line in run.stdout.splitlines() if ": error:" in line]
    assert not [line for line in found if not line.startswith("wrong.py")], run.stdout + run.stderr
    wanted = [(at, line.split("# ")[1]) for at, line in enumerate(WRONG.splitlines(), 1) if "# " in line]
    for at, code in wanted:
        assert any(line.startswith(f"wrong.py:{at}:") and line.endswith(f"[{code}]") for line in found), (at, found)
    assert len(found) == len(wanted)
