"""Plain functions as cache questions: the first argument is the question, everything else is scope."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
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
        try:
            told = {name: _with_types(bound.arguments[name]) for name in names}
            fingerprint(told)
        except (TypeError, ValueError, RecursionError):
            raise InputError(
                f"{self.name}: one of {', '.join(names)} cannot be compared",
                expected="arguments that JSON can hold: each is part of what must be equal for an answer to serve",
                action="cache an inner function that takes the question and plain values only",
            ) from None
        whole = {"function": self.name, "arguments": told} | ({"file": self.file} if self.file else {})
        return Call(text, {**whole, "narrowed": dict(scope)} if scope else whole, bound.args, bound.kwargs)


def wrap_function(
    function: Callable[..., Any],
    *,
    serve: Callable[..., str],
    serve_async: Callable[..., Awaitable[str]],
    scope: Mapping[str, Any],
    told: bool,
) -> Callable[..., Any]:
    """Return a function whose calls are answered by `serve`, those of an `async def` by `serve_async`.

    Args:
        serve, serve_async: take a question, what computes its answer, and its scope. scope: narrows that of each call.
        told: see `read_function`.
    """
    reader = read_function(function, told=told)
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def answer_async(*args: Any, **kwargs: Any) -> str:
            call = reader.read(args, kwargs, scope)
            return await serve_async(call.text, lambda _: function(*call.args, **call.kwargs), scope=call.scope)

        return answer_async

    @wraps(function)
    def answer(*args: Any, **kwargs: Any) -> str:
        call = reader.read(args, kwargs, scope)
        return serve(call.text, lambda _: function(*call.args, **call.kwargs), scope=call.scope)

    return answer


def read_function(function: Callable[..., object], *, told: bool = False) -> Reader:
    """Return the reader of a function's calls.

    Args:
        told: its caller says which object's answers are meant, so it may be a method of one.

    Raises:
        ConfigurationError: it is no `def` or `async def`, a generator, a lambda (all of a module have one name), takes
            no question first, or is one object's method without a word on which.
    """
    module, name = _name_of(function)
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
    return Reader(name, _script_of(function) if module == "__main__" else "", signature)


def _with_types(value: Any) -> Any:
    """Return an argument with the type of each record beside its values: another one may hold the same.

    Raises:
        TypeError: it is a list with something besides (a pandas Series has an index), of which only the list would
            be compared.
    """
    kind = type(value)
    if not isinstance(value, type) and (is_dataclass(value) or hasattr(value, "_asdict")):
        names = [part.name for part in fields(value)] if is_dataclass(value) else value._fields
        told = {name: _with_types(getattr(value, name)) for name in names}
        return {"type": f"{kind.__module__}.{kind.__qualname__}", "fields": told}
    if isinstance(value, Mapping):
        return {key: _with_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_types(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_with_types, value), key=fingerprint)
    if hasattr(value, "tolist") and kind.__module__ != "numpy":
        raise TypeError(f"a {kind.__name__}")
    return value


def _name_of(function: Callable[..., object]) -> tuple[str, str]:
    """Return the module of a function, and its name with it; an inherited class method is its class's own."""
    owner = getattr(function, "__self__", None)
    if inspect.ismethod(function) and inspect.isclass(owner):
        return owner.__module__, f"{owner.__module__}.{owner.__qualname__}.{function.__name__}"
    module = str(getattr(function, "__module__", ""))
    return module, f"{module}.{getattr(function, '__qualname__', '')}"


def _script_of(function: Callable[..., object]) -> str:
    """Return the file of what is defined in `__main__`, which is the module name of every script.

    What is typed into a notebook is in no file; Python then names the cell, anew in each session.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    code = getattr(inspect.unwrap(function), "__code__", None)
    return str(Path(file).resolve()) if file else getattr(code, "co_filename", "__main__")
