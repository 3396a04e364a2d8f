"""A second opinion on mined candidates: a cross-encoder or a language model says which of them answer.

Retrieved neighbours are full of unlabelled positives: of duplicate-style negatives taken naively, 39–47% are false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from embedsmith.artifacts import fingerprint
from embedsmith.errors import ConfigurationError
from embedsmith.llm import Prompt, Sampling, object_schema, open_llm
from embedsmith.llm.calls import Calls, Progress
from embedsmith.llm.journal import Journal
from embedsmith.llm.prompts import Slots, Template, load_template, quote
from embedsmith.llm.structured import parse_object
from embedsmith.model import load_pair_network
from embedsmith.text import normalize

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Says = Literal["yes", "no", "unclear"]
HIGH, LOW = 0.9, 0.3  # probabilities of a cross-encoder from which on, and up to which, it is sure
BATCH = 64  # pairs in a cross-encoder's forward pass
SCHEMA = object_schema(
    {"verdict": {"type": "string", "enum": ["yes", "no", "unclear"]}, "evidence": {"type": "string"}}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a relabeller says of one text.

    Attributes:
        answers: "yes", "no" or "unclear".
        score: 0 to 1, None where the relabeller has none.
        evidence: words of the text that answer, or why there is no verdict.
    """

    answers: Says
    score: float | None = None
    evidence: str = ""


class Relabeller(Protocol):
    """Judges texts found for anchors. `name` goes into the provenance of what it makes a positive."""

    name: str
    prompt: str

    def judge(self, pairs: Sequence[tuple[str, str]], /) -> list[Verdict]:
        """Return a verdict for each (anchor, text), in order; called with the pairs of many anchors at once."""
        ...


class CrossEncoderRelabeller:
    """A cross-encoder of sentence-transformers with one output; its probability decides.

    Args:
        network: the CrossEncoder. high: from here on it answers; low: up to here it does not; between: unclear.
            Probabilities of cross-encoders are not calibrated: look at some before trusting the defaults.
    """

    prompt = ""

    def __init__(self, network: CrossEncoder, *, name: str, high: float = HIGH, low: float = LOW) -> None:
        if not 0 <= low < high <= 1:
            raise ConfigurationError(f"the bounds {low} and {high}", expected="0 ≤ low < high ≤ 1")
        self.network, self.name, self.high, self.low = network, name, high, low

    def judge(self, pairs: Sequence[tuple[str, str]], /) -> list[Verdict]:
        """Return a verdict for each pair, from the sigmoid of the logit."""
        import torch

        if not pairs:
            return []
        scores = self.network.predict(
            list(pairs), batch_size=BATCH, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False
        )
        return [self._verdict(float(score)) for score in scores]

    def _verdict(self, score: float) -> Verdict:
        if score >= self.high:
            return Verdict("yes", score, f"probability {score:.3f} of at least {self.high}")
        return Verdict("no" if score <= self.low else "unclear", score)


def load_cross_encoder(spec: str, *, high: float = HIGH, low: float = LOW) -> CrossEncoderRelabeller:
    """Return the cross-encoder at `spec`, a folder or a hub id; no code from its repository is run.

    Raises:
        ModelError: it cannot be loaded, or has more than one output. MissingPartError: no sentence-transformers.
    """
    network = load_pair_network(spec)
    return CrossEncoderRelabeller(network, name=spec, high=high, low=low)


class JudgeRelabeller:
    """A language model that reads anchor and text; a "yes" counts if the words it quotes are in the text."""

    def __init__(self, calls: Calls, *, prompt: Path | None = None) -> None:
        self.calls = calls
        self.name = calls.llm.name
        self.template = load_relabel_prompt(prompt)
        self.prompt = fingerprint(self.template)

    def judge(self, pairs: Sequence[tuple[str, str]], /) -> list[Verdict]:
        """Return a verdict for each pair; an answer that cannot be read, or none, is "unclear"."""
        asked = [self._ask(place, anchor, text) for place, (anchor, text) in enumerate(pairs)]
        answers = self.calls.complete(lambda: asked)
        return [read_verdict(done.text, text) for (_, text), (_, done) in zip(pairs, answers, strict=True)]

    def _ask(self, place: int, anchor: str, text: str) -> Prompt:
        return self.template.fill(str(place), "verdict", SCHEMA, question=quote(anchor), passage=quote(text))


def read_verdict(answer: str | None, text: str) -> Verdict:
    """Return the verdict in an answer; a yes without words of the text that show it is unclear.

    >>> read_verdict('{"verdict": "yes", "evidence": "Opens at 9"}', "The shop opens at 9.").answers
    'yes'
    >>> read_verdict('{"verdict": "yes", "evidence": "opens at 8"}', "The shop opens at 9.").answers
    'unclear'
    """
    found, _ = parse_object(answer, ["verdict"])
    says = str((found or {}).get("verdict", "")).strip().lower()
    evidence = str((found or {}).get("evidence") or "").strip()
    if says not in ("yes", "no", "unclear"):
        return Verdict("unclear", evidence="no verdict in the answer")
    if says == "yes" and (not evidence or normalize(evidence) not in normalize(text)):
        return Verdict("unclear", evidence="its evidence is not in the text")
    return Verdict("yes" if says == "yes" else "no" if says == "no" else "unclear", evidence=evidence)


def load_relabel_prompt(path: Path | None = None) -> Template:
    """Return the two messages, from the user's file or ours.

    Raises:
        InputError: no such file. ConfigurationError: not TOML, other keys, or a wrong placeholder.
    """
    slots = Slots(("question", "passage"), needed=("question", "passage"))
    return load_template(resources.files("embedsmith.mining") / "relabel.toml", slots, path)


@contextmanager
def open_relabeller(
    spec: str,
    journal: Path,
    *,
    base_url: str | None = None,
    concurrency: int = 8,
    prompt: Path | None = None,
    bounds: tuple[float, float] = (LOW, HIGH),
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Relabeller]:
    """Yield the relabeller that `spec` names: `cross-encoder:FOLDER_OR_ID`, or a language model (`openai:MODEL`, …).

    Args:
        journal: where finished calls of a language model are kept. bounds: low and high of a cross-encoder.
    """
    kind, _, name = spec.partition(":")
    if kind == "cross-encoder" and name:
        yield load_cross_encoder(name, low=bounds[0], high=bounds[1])
        return
    if kind not in ("openai", "local", "recorded"):
        raise ConfigurationError(
            f"{spec!r} names no relabeller",
            expected="cross-encoder:FOLDER_OR_ID, openai:MODEL, local:PATH_OR_HUB_ID or recorded:FILE",
        )
    llm = open_llm(spec, base_url=base_url, concurrency=concurrency)
    with Journal(journal) as kept:
        sampling = Sampling(temperature=0.0, max_tokens=256)
        yield JudgeRelabeller(Calls(llm, kept, sampling, on_progress=on_progress), prompt=prompt)
