"""Any OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, hosted ones.

The requests are made with aiohttp in one event loop: 0.2 ms of CPU a call, where the client of the package openai
takes 2-3 ms. Proxies are those of the environment, certificates those that httpx trusts.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from embedsmith.errors import ConfigurationError, LanguageModelError, require_address
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.budget import Budget, Usage
from embedsmith.llm.dialect import Dialect, Terms
from embedsmith.llm.health import LONGEST
from embedsmith.llm.structured import storable
from embedsmith.llm.throttle import Throttle
from embedsmith.llm.traffic import Attempt, Outcome, RetryPolicy, Traffic

if TYPE_CHECKING:
    import aiohttp

__all__ = ["RETRIES", "TIMEOUT", "OpenAIChat"]

RETRIES = 6  # with waits that double, and Retry-After where the server sends it
TIMEOUT = 120.0  # seconds for one call
CONNECT = 10.0  # seconds to get a connection
CONCURRENCY = 256  # calls in flight, at most
OPENAI = "https://api.openai.com/v1"
PASSING = frozenset({408, 409, 425})  # beside 5xx: worth another try
QUOTA = "insufficient_quota"  # a 429 that no waiting ends
OVERLOADED = frozenset({503, 529})  # with Retry-After (529: always) they mean all calls, as 429 does
ENDED = frozenset({"length", "content_filter"})  # finishes of a choice that some servers leave without a message


class OpenAIChat:
    """Chat completions, as many at once as the server keeps up with, at most `concurrency`.

    Rate limits, server errors, timeouts and dropped connections are tried again (six times, rate limits more often,
    waiting as long as the server asks). A call that still fails is a completion with finish "error"; when none of
    the first calls succeeds, the key or the model is refused, the credit is used up, or the server counts as dead
    (`embedsmith.llm.health`), the run stops with the reason.

    Args:
        base_url: default is OpenAI's own, or the environment's OPENAI_BASE_URL.
        api_key: default is the environment's OPENAI_API_KEY; local servers need none. Never stored.
        timeout: seconds for a call, at most; a call that takes far longer than others is given up earlier.
        outage: seconds for which a server that has answered may fail before the run stops; default is five minutes.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        outage: float | None = None,
    ) -> None:
        if base_url is not None:
            require_address(base_url)  # an empty one would be OpenAI's, and get the texts
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._server = Server(self.base_url, model, key, _find_proxy(self.base_url))
        self._dialect = Dialect(model)
        self._policy = RetryPolicy(
            max(concurrency, 1),
            retries,
            timeout,
            max(LONGEST, 2 * timeout) if outage is None else outage,
            self._server.dead,
        )
        self._throttle = Throttle(self._policy.concurrency)
        self.name = f"openai:{model}"

    @property
    def window(self) -> float:
        """Calls that may be in flight now, as the server's answers have led to it."""
        return self._throttle.window

    @property
    def refused_at(self) -> float | None:
        """Calls in flight at which the server said 429; None where it has not, or takes more by now."""
        return self._throttle.refused_at

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield completions as they arrive; no more calls are out than the reader has room for.

        Raises:
            LanguageModelError: the key or the model is refused, the credit is used up, the server cannot be reached
                or counts as dead. What arrived until then has been yielded.
        """
        with contextlib.closing(self._stream(iter(prompts), sampling, None)) as stream:
            for arrived in stream:
                yield from arrived

    def stream(
        self, prompts: Iterator[Prompt], sampling: Sampling, /, *, budget: Budget | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield what has arrived since the last time, for prompts that are taken as there is room; see `complete`.

        Every attempt is paid for from the budget before it goes out.
        """
        return self._stream(prompts, sampling, budget)

    def _stream(
        self, prompts: Iterator[Prompt], sampling: Sampling, budget: Budget | None
    ) -> Generator[list[tuple[int, Completion]], None, None]:
        line = _Line(self._server, self._dialect)
        traffic = Traffic(line.send, self._policy, self._throttle, sampling, budget)
        yield from traffic.stream(prompts, line.open)

    def write_body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """Return the body of the request for a prompt, in the terms that the server is known to take."""
        return self._dialect.write_body(prompt, sampling, self._dialect.choose(prompt))


@dataclass(frozen=True, slots=True)
class Server:
    """Where a model is asked, and in what words it fails.

    Attributes:
        address: its base URL. key: None for a server that needs none. proxy: on the way there.
    """

    address: str
    model: str
    key: str | None = field(repr=False)
    proxy: str | None

    def censor(self, text: str) -> str:
        """Return `text` without the key, which some servers repeat."""
        return text.replace(self.key, "***") if self.key else text

    def refused(self, status: int) -> LanguageModelError:
        """Return the error for a status that all calls would get."""
        known = {401: "the API key", 403: "the API key", 404: f"the model {self.model!r} or the address"}
        if status in known:
            check = "check OPENAI_API_KEY, the model's name and the base URL (it often ends in /v1)"
        else:
            check = "add credit or raise the limit there, then run the same command again"
        return LanguageModelError(
            f"{self.address} answered {status} to {known.get(status, 'the call: credit or quota is used up')}",
            expected="a completion",
            action=f"{check}; finished calls are kept",
        )

    def dead(self, why: str, last: str) -> LanguageModelError:
        """Return the error for a server that counts as dead; `last`: how the last call failed."""
        return LanguageModelError(
            f"{self.address}: {why}, the last with {last}",
            expected="completions",
            action="check the server; finished calls are kept, run the same command again to go on",
        )

    def unreachable(self, cause: str) -> LanguageModelError:
        """Return the error for an address where nobody answers."""
        return LanguageModelError(
            f"{self.address} cannot be reached ({cause})",
            expected="an OpenAI-compatible server",
            action="check the base URL and the network; finished calls are kept",
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """One request as it was sent, and when."""

    prompt: Prompt
    sampling: Sampling
    terms: Terms
    began: float


class _Line:
    """The connections of one stream of calls, and what their answers mean."""

    def __init__(self, server: Server, dialect: Dialect) -> None:
        self._server, self._dialect = server, dialect
        self._url = f"{server.address}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep connections for as long as the stream runs."""
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0, ssl=_trust(self._url))
        headers = {"Authorization": f"Bearer {self._server.key or 'none'}", "Content-Type": "application/json"}
        named = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
        headers |= {name: os.environ[key] for name, key in named.items() if os.environ.get(key)}
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, headers=headers, cookie_jar=jar) as self._session:
            yield

    async def send(self, prompt: Prompt, sampling: Sampling, patience: float) -> Attempt:
        """Make one request and say what became of it."""
        import aiohttp

        sent = _Request(prompt, sampling, self._dialect.choose(prompt), time.monotonic())
        body = json.dumps(self._dialect.write_body(prompt, sampling, sent.terms)).encode()
        try:
            status, headers, content = await self._post(body, patience)
        except TimeoutError:
            return self._fail("late", f"no answer within {patience:.3g} s", sent.began)
        except aiohttp.ClientConnectorError as error:
            return self._fail("again", str(error), sent.began, self._server.unreachable(str(error)), unsent=True)
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            return self._fail("again", str(error) or type(error).__name__, sent.began)
        try:
            if status == 200:
                return self._read(headers, content, sent)
            return self._refuse(status, headers, content.decode("utf-8", "replace"), sent)
        except LanguageModelError as error:
            return Attempt("stop", used=Usage(1), error=error)

    async def _post(self, body: bytes, patience: float) -> tuple[int, Mapping[str, str], bytes]:
        import aiohttp

        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=patience, sock_connect=min(CONNECT, patience), ceil_threshold=60)
        async with self._session.post(self._url, data=body, proxy=self._server.proxy, timeout=limit) as response:
            return response.status, response.headers, await response.read()

    def _refuse(self, status: int, headers: Mapping[str, str], said: str, sent: _Request) -> Attempt:
        """Return what an answer that is no completion means."""
        what, wait = f"status {status}: {_find_message(said)}", read_wait(headers)
        if status in {401, 402, 403, 404} or (status == 429 and QUOTA in said):
            raise self._server.refused(status)
        if status in {400, 422} and self._dialect.step_down(sent.prompt, sent.sampling, sent.terms, said):
            return Attempt("simpler", used=Usage(1))
        if status == 429:
            return self._fail("later", what, sent.began, wait=wait, unsent=True)
        if status >= 500 or status in PASSING:
            failed = self._fail("again", what, sent.began, wait=wait)
            return replace(failed, overloaded=status in OVERLOADED and (bool(wait) or status == 529))
        return self._fail("failed", what, sent.began, unsent=True)

    def _fail(
        self,
        kind: Outcome,
        reason: str,
        began: float,
        error: LanguageModelError | None = None,
        *,
        wait: float | None = None,
        unsent: bool = False,
    ) -> Attempt:
        """Return a failed attempt; `unsent`: no model has seen the call, so it cannot have been billed."""
        said = self._server.censor(reason)
        completion = Completion(
            None, "error", seconds=time.monotonic() - began, model=self._server.model, detail=storable(said)
        )
        return Attempt(kind, completion, wait, Usage(1) if unsent else None, error, reason=said)

    def _read(self, headers: Mapping[str, str], content: bytes, sent: _Request) -> Attempt:
        """Return what a body with status 200 holds: a completion, or the error of a server behind the server."""
        try:
            answer = json.loads(content)
            error = find_error(answer)
            completion = None if error else read_completion(answer, self._server.model, time.monotonic() - sent.began)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as wrong:
            return self._fail("again", f"an answer that is no completion ({type(wrong).__name__})", sent.began)
        if completion is None:
            return self._refuse(read_status(error), headers, json.dumps({"error": error}), sent)
        self._dialect.accept(sent.prompt, sent.sampling, sent.terms, completion)
        tokens = completion.prompt_tokens, completion.completion_tokens
        return Attempt("answer", completion, used=Usage(1, *tokens) if any(tokens) else None)


def find_error(answer: Any) -> Any:
    """Return the error that the body of an answer tells of, of the whole or of its choice; None if it does not."""
    choice = (answer.get("choices") or [{}])[0]
    if answer.get("error") or choice.get("error"):
        return answer.get("error") or choice["error"]
    return "finish_reason is error" if choice.get("finish_reason") == "error" else None


def read_status(error: object) -> int:
    """Return the status that an error inside an answer with status 200 stands for; 502 where it has no number.

    >>> read_status({"code": 429}), read_status({"message": "upstream"})
    (429, 502)
    """
    said = json.dumps(error).lower()
    if QUOTA in said:
        return 402
    if "unexpected endpoint" in said:  # LM Studio, to an address without /v1
        return 404
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if code.isascii() and code.isdigit() and 400 <= int(code) < 600 else 502


def read_completion(answer: Any, model: str, seconds: float) -> Completion:
    """Return the completion in the body of an answer; an empty one is an answer: counted, not repeated.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: the body has an error, or no choice with a message.
    """
    if find_error(answer):
        raise ValueError("an error")
    usage = answer.get("usage") or {}
    choice = answer["choices"][0]
    message = choice.get("message") or ({} if choice.get("finish_reason") in ENDED else None)
    if message is None:
        raise ValueError("no message")
    text = message.get("content")
    if isinstance(text, list):  # parts, as some servers write it
        text = "".join(part.get("text") or "" for part in text)
    refused = text is None and bool(message.get("refusal"))
    finish = str(choice.get("finish_reason") or "stop")
    return Completion(
        text=str(text) if text is not None else "",
        finish="filtered" if refused or finish == "content_filter" else finish,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        seconds=round(seconds, 4),
        model=str(answer.get("model") or model),
    )


def read_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait: Retry-After in seconds or as a date; None if it does not.

    >>> read_wait({"Retry-After": "1.5"})
    1.5
    """
    said = headers.get("Retry-After", "").strip()
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        return max(float(said), 0.0)
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(said)
    except ValueError:
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _find_message(said: str) -> str:
    """Return what the body of an error says, short."""
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        error = json.loads(said)["error"]
        said = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    return said[:300]


def _find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address.

    Raises:
        ConfigurationError: a SOCKS proxy.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    if proxy.startswith("socks"):
        raise ConfigurationError(
            "the environment names a SOCKS proxy for the language model's server",
            expected="an HTTP proxy in HTTPS_PROXY or ALL_PROXY, or the host in NO_PROXY",
        )
    return proxy if "://" in proxy else f"http://{proxy}"


def _trust(url: str) -> Any:
    """Return the certificates to hold a server to: those of httpx, with SSL_CERT_FILE and SSL_CERT_DIR."""
    if not url.startswith("https"):
        return True
    import httpx

    return httpx.create_ssl_context()
