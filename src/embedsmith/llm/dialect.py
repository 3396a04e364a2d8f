"""In what terms a server is asked: the form of the answer, the name of the token limit, what is left out.

OpenAI-compatible servers differ in these; each is asked in the terms that it is known to take, and what it refuses is
left out or named otherwise from then on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from embedsmith.errors import SamplingRefused
from embedsmith.llm import Completion, Prompt, Sampling
from embedsmith.llm.forms import Forms

DRAWING = re.compile(r"\\?['\"`](temperature|top_p|seed)\\?['\"`]")  # as servers name a parameter they refuse


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one request.

    Attributes:
        form: of response_format. limit: the name of the token limit. unsent: parameters that are left out.
    """

    form: str
    limit: str
    unsent: frozenset[str]


class Dialect:
    """What one server takes, for the model `model`; learnt from its answers and refusals."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._forms = Forms()
        self._limits = ["max_completion_tokens", "max_tokens"]  # the first is sent, the next where it is refused
        self._overran = False  # the server has ignored the first name of the token limit
        self._unsent: frozenset[str] = frozenset()  # parameters that it refused and the call can do without

    def choose(self, prompt: Prompt) -> Terms:
        """Return the terms in which the next try of a call is made."""
        return Terms(self._forms.find(prompt), self._limits[0], self._unsent)

    def write_body(self, prompt: Prompt, sampling: Sampling, terms: Terms) -> dict[str, Any]:
        """Return the body of a request in these terms."""
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.messages,
            terms.limit: sampling.max_tokens,
            **{name: value for name, value in drawn.items() if value is not None and name not in terms.unsent},
        }
        if terms.form != "none":
            body["response_format"] = _response_format(terms.form, prompt)
        return body

    def accept(self, prompt: Prompt, sampling: Sampling, terms: Terms, completion: Completion) -> None:
        """Learn from an answer what the server takes, and whether it keeps to the token limit."""
        self._forms.accept(prompt, terms.form)
        if completion.completion_tokens > sampling.max_tokens and not self._overran:
            self._overran = True  # older servers know the limit by its older name only, and ignore the other
            self._limits = ["max_tokens", "max_completion_tokens"]

    def step_down(self, prompt: Prompt, sampling: Sampling, terms: Terms, message: str) -> bool:
        """Say whether a call that was refused is worth another try in simpler terms.

        Raises:
            SamplingRefused: the server refuses a way to draw that was asked for.
        """
        if (terms.limit, terms.unsent) != (self._limits[0], self._unsent):
            return True  # another call has stepped down since
        if len(self._limits) > 1 and terms.limit in message:
            self._limits = self._limits[1:]
            return True
        # Reasoning models refuse how to draw. What is asked for and cannot be had is an error, not a silence.
        refused = set(DRAWING.findall(message)) - self._unsent
        if refused:
            wanted = {name: getattr(sampling, name) for name in refused & {"temperature", "top_p"}}
            if any(value != 1 for value in wanted.values()):
                raise self._undrawable(wanted)
            self._unsent |= refused
            return True
        return self._forms.refuse(prompt, terms.form, message)

    def _undrawable(self, asked: dict[str, float]) -> SamplingRefused:
        names = " and ".join(f"{name} {value:g}" for name, value in asked.items())
        return SamplingRefused(
            f"the model {self.model!r} does not take {names}",
            expected="the model's own way to draw, as reasoning models ask for",
            action="leave temperature and top_p at 1",
        )


def _response_format(form: str, prompt: Prompt) -> dict[str, Any]:
    if form == "json_object":
        return {"type": "json_object"}
    schema = {"name": prompt.task, "strict": True, "schema": dict(prompt.answer_schema)}
    return {"type": "json_schema", "json_schema": schema}
