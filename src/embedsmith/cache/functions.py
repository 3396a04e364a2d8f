"""Plain functions as cache questions: the first argument is the question, everything else is scope."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, TypeVar

from embedsmith.artifacts import fingerprint
from embedsmith.errors import ConfigurationError, InputError

Answering = Callable[Concatenate[str, ...], str] | Callable[Concatenate[str, ...], Coroutine[Any, Any, str]]
Function = TypeVar("Function", bound=Answering)
BOUND = 'self.answer = cache.cached(scope={"object": self.name})(self.answer)'


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function.

    Attributes:
        text: the first argument. scope: the function, and its other arguments.
        args, kwargs: what the function is called with when there is no answer.
    """

    text: str
    scope: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the calls of one function.

    Attributes:
        name: with its module. file: the script that defines it; empty in a module that can be imported, whose name
            says enough.
    """

    name: str
    file: str
    signature: inspect.Signature

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], scope: Mapping[str, Any]) -> Call:
        """Return the call as a question; `scope` narrows it.

        Raises:
            InputError: the first argument is no text, or another one is nothing that JSON can hold.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        first, *names = bound.arguments
        text = bound.arguments[first]
        if not isinstance(text, str):
            raise InputError(f"{self.name}: {first} is a {type(text).__name__}", expected="the question, a str")
        whole = {"function": self.name, "arguments": {name: bound.arguments[name] for name in names}}
        whole |= {"file": self.file} if self.file else {}
        try:
            fingerprint(whole)
        except (TypeError, ValueError):
            raise InputError(
                f"{self.name}: one of {', '.join(names)} cannot be compared",
                expected="arguments that JSON can hold: each is part of what must be equal for an answer to serve",
                action="cache an inner function that takes the question and plain values only",
            ) from None
        return Call(text, {**whole, "narrowed": dict(scope)} if scope else whole, bound.args, bound.kwargs)


def read_function(function: Callable[..., object], *, told: bool = False) -> Reader:
    """Return the reader of a function's calls.

    Args:
        told: its caller says which object's answers are meant, so it may be a method of one.

    Raises:
        ConfigurationError: it is no `def` or `async def`, a generator, a lambda (all of a module have one name), takes
            no question first, or is one object's method without a word on which.
    """
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    plain = inspect.isroutine(function) and getattr(function, "__name__", "") != "<lambda>"
    if not plain or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{type(function).__name__} {name.strip('.')} cannot be cached".replace("  ", " "),
            expected="a def or an async def that takes the question first and returns the answer, a str",
        )
    signature = inspect.signature(function)
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.kind not in {first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD} or first.name == "self":
        raise ConfigurationError(
            f"{name} takes no question as its first argument",
            expected="def answer(question: str, ...) -> str",
            action="for a method, cache the bound one: " + BOUND,
        )
    if inspect.ismethod(function) and not inspect.isclass(function.__self__) and not told:
        raise ConfigurationError(
            f"{name} is a method, and two objects would serve each other's answers",
            expected="a scope or a namespace that tells them apart; scope={} where all objects answer alike",
            action=BOUND,
        )
    return Reader(name, _script_of(function), signature)


def _script_of(function: Callable[..., object]) -> str:
    """Return the file of a function in `__main__`, which is the module name of every script.

    What is typed into a notebook is in no file; Python then names the cell, anew in each session.
    """
    if getattr(function, "__module__", "") != "__main__":
        return ""
    file = getattr(sys.modules["__main__"], "__file__", None)
    code = getattr(inspect.unwrap(function), "__code__", None)
    return str(Path(file).resolve()) if file else getattr(code, "co_filename", "__main__")
