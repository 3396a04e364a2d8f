"""Plain functions as cache questions: the first argument is the question, everything else is scope."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, TypeVar

from embedsmith.artifacts import fingerprint
from embedsmith.errors import ConfigurationError, InputError

Answering = Callable[Concatenate[str, ...], str] | Callable[Concatenate[str, ...], Coroutine[Any, Any, str]]
Function = TypeVar("Function", bound=Answering)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function.

    Attributes:
        text: the first argument. scope: the function's name and its other arguments.
        args, kwargs: what the function is called with when there is no answer.
    """

    text: str
    scope: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the calls of one function."""

    name: str
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
        try:
            fingerprint(whole)
        except (TypeError, ValueError):
            raise InputError(
                f"{self.name}: one of {', '.join(names)} cannot be compared",
                expected="arguments that JSON can hold: each is part of what must be equal for an answer to serve",
                action="cache an inner function that takes the question and plain values only",
            ) from None
        return Call(text, {**whole, "narrowed": dict(scope)} if scope else whole, bound.args, bound.kwargs)


def read_function(function: Callable[..., object]) -> Reader:
    """Return the reader of a function's calls.

    Raises:
        ConfigurationError: it is no `def` or `async def`, a generator, or takes no question first.
    """
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if not inspect.isroutine(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
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
            action="for a method, cache the bound one: self.answer = cache.cached(self.answer)",
        )
    return Reader(name, signature)
