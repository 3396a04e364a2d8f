"""Any OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, hosted ones."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from embedsmith.errors import LanguageModelError
from embedsmith.llm import Completion, Prompt, Sampling

RETRIES = 6  # with the client's exponential waits, and Retry-After where the server sends it
FIRST_FAILURES = 5  # calls that fail before any succeeds, after which a run stops
DRAWING = re.compile(r"['\"`](temperature|top_p|seed)['\"`]")  # as servers name a parameter they refuse
TIMEOUT = 120.0  # seconds for one call


class OpenAIChat:
    """Chat completions with `concurrency` calls in flight.

    Rate limits, server errors, timeouts and dropped connections are tried again (six times, waiting as
    long as the server asks). A call that still fails is a completion with finish "error"; when none of
    the first calls succeeds, or the key or the model is refused, the run stops with the reason.

    Args:
        base_url: default is OpenAI's own, or the environment's OPENAI_BASE_URL.
        api_key: default is the environment's OPENAI_API_KEY; local servers need none. Never stored.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        from openai import OpenAI

        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)
        self._model = model
        self._concurrency = max(concurrency, 1)
        self._formats: list[str] = ["json_schema", "json_object", "none"]  # the first that the server takes
        self._tokens_name = "max_completion_tokens"
        self._unsent: frozenset[str] = frozenset()  # parameters that the server refused and the call can do without
        self._last_error = ""
        self.name = f"openai:{model}"

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield completions as they arrive; no more calls are out than the reader has room for.

        Raises:
            LanguageModelError: the key or the model is refused, the server cannot be reached, or none of
                the first calls succeeds. What arrived until then has been yielded.
        """
        waiting = iter(range(len(prompts)))
        failed, succeeded = 0, False
        stop: LanguageModelError | None = None
        with ThreadPoolExecutor(self._concurrency) as pool:
            # The first call goes alone: it finds out what the server takes, and fails alone.
            running = {pool.submit(self._call, prompts[place], sampling): place for place in islice(waiting, 1)}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    place = running.pop(future)
                    error = future.exception()
                    if isinstance(error, LanguageModelError):
                        stop = stop or error
                        continue
                    completion = future.result()
                    good = completion.finish != "error"
                    succeeded, failed = succeeded or good, failed + (not good)
                    yield place, completion
                if not succeeded and failed >= FIRST_FAILURES:
                    stop = stop or self._nothing_succeeds(failed)
                if stop is None:
                    room = self._concurrency - len(running)
                    running |= {pool.submit(self._call, prompts[at], sampling): at for at in islice(waiting, room)}
        if stop is not None:
            raise stop

    def _call(self, prompt: Prompt, sampling: Sampling) -> Completion:
        from openai import APIConnectionError, APIError, APIStatusError

        began = time.monotonic()
        try:
            answer = self._request(prompt, sampling)
        except APIStatusError as error:
            if error.status_code in {401, 403, 404}:
                raise self._refused(error) from None
            self._last_error = f"status {error.status_code}: {error.message}"
        except APIConnectionError as error:
            cause = str(error.__cause__ or error)
            if "refused" in cause.lower() or "name" in cause.lower():
                raise self._unreachable(cause) from None
            self._last_error = cause
        except (APIError, ValueError) as error:  # an answer that is no JSON at all
            self._last_error = str(error)
        else:
            return self._read(answer, time.monotonic() - began)
        return Completion(None, "error", seconds=time.monotonic() - began, model=self._model)

    def _request(self, prompt: Prompt, sampling: Sampling) -> Any:
        """Send one call, stepping down to what the server supports."""
        from openai import BadRequestError, UnprocessableEntityError

        while True:
            terms = form, tokens_name, unsent = self._formats[0], self._tokens_name, self._unsent
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
            arguments: dict[str, Any] = {
                "model": self._model,
                "messages": prompt.messages,
                tokens_name: sampling.max_tokens,
                **{name: value for name, value in drawn.items() if value is not None and name not in unsent},
            }
            if form != "none":
                arguments["response_format"] = _response_format(form, prompt)
            try:
                return self._client.chat.completions.create(**arguments)
            except (BadRequestError, UnprocessableEntityError) as error:
                if not self._step_down(str(error), terms, sampling):
                    raise

    def _step_down(self, message: str, terms: tuple[str, str, frozenset[str]], sampling: Sampling) -> bool:
        """Say whether a call that was refused is worth another try in simpler terms."""
        if terms != (self._formats[0], self._tokens_name, self._unsent):
            return True  # another thread has stepped down since
        if "max_completion_tokens" in message and self._tokens_name == "max_completion_tokens":
            self._tokens_name = "max_tokens"
            return True
        # Reasoning models refuse how to draw. What is asked for and cannot be had is an error, not a silence.
        refused = set(DRAWING.findall(message)) - self._unsent
        if refused:
            asked = {name: getattr(sampling, name) for name in refused & {"temperature", "top_p"}}
            if any(value != 1 for value in asked.values()):
                raise self._undrawable(asked)
            self._unsent |= refused
            return True
        if len(self._formats) > 1:
            self._formats = self._formats[1:]
            return True
        return False

    def _read(self, answer: Any, seconds: float) -> Completion:
        usage = getattr(answer, "usage", None)
        choice = answer.choices[0] if getattr(answer, "choices", None) else None
        finish = {"content_filter": "filtered"}.get(getattr(choice, "finish_reason", ""), "")
        text = choice.message.content if choice is not None and choice.message is not None else None
        return Completion(
            text=text if text is not None else "",  # an empty answer is an answer: counted, not repeated
            finish=finish or str(getattr(choice, "finish_reason", None) or "stop"),
            prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
            completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
            seconds=round(seconds, 4),
            model=str(getattr(answer, "model", None) or self._model),
        )

    def _refused(self, error: Any) -> LanguageModelError:
        known = {401: "the API key", 403: "the API key", 404: f"the model {self._model!r}"}
        what = known.get(error.status_code, "the call")
        return LanguageModelError(
            f"{self._client.base_url} answered {error.status_code} to {what}",
            expected="a completion",
            action="check OPENAI_API_KEY, the model's name and --base-url; finished calls are kept",
        )

    def _undrawable(self, asked: dict[str, float]) -> LanguageModelError:
        names = " and ".join(f"{name} {value:g}" for name, value in asked.items())
        return LanguageModelError(
            f"the model {self._model!r} does not take {names}",
            expected="the model's own way to draw, as reasoning models ask for",
            action="leave --temperature and --top-p at 1",
        )

    def _nothing_succeeds(self, failed: int) -> LanguageModelError:
        return LanguageModelError(
            f"the first {failed} calls to {self._client.base_url} all failed, the last with {self._last_error}",
            expected="completions",
            action="check the server; finished calls are kept, run the same command again to go on",
        )

    def _unreachable(self, cause: str) -> LanguageModelError:
        return LanguageModelError(
            f"{self._client.base_url} cannot be reached ({cause})",
            expected="an OpenAI-compatible server",
            action="check --base-url and the network; finished calls are kept",
        )


def _response_format(form: str, prompt: Prompt) -> dict[str, Any]:
    if form == "json_object":
        return {"type": "json_object"}
    schema = {"name": prompt.task, "strict": True, "schema": dict(prompt.answer_schema)}
    return {"type": "json_schema", "json_schema": schema}
