"""What a program tells a cache, checked before anything is done with it: limits, tags, texts, the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from embedsmith.artifacts import require_file
from embedsmith.cache.decision import Policy
from embedsmith.cache.settings import Promised, count_taught, read_promises, require_cosine, settle_turns
from embedsmith.choices import Turns
from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError, InputError, require_share
from embedsmith.text import is_storable
from embedsmith.verifier import Verifier, read_report

ENDLESS = 1 << 63  # of a limit: seconds, entries or bytes that no store counts to; nothing overflows below


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """The rules as `SemanticCache` is told them, checked when made: to load a model takes seconds.

    Attributes:
        policy: stands in the place of all others but `delta`.

    Raises:
        ConfigurationError: a policy comes with its parts, the threshold is no cosine, or delta no share.
        InputError: a file is not there, or the verifier's folder is none.
    """

    policy: Policy | None = None
    threshold: float | None = None
    calibration: Path | str | None = None
    namespaces: Path | str | None = None
    verifier: Verifier | Path | str | None = None
    guard: bool = True
    turns: Turns = "auto"
    delta: float | None = None

    def __post_init__(self) -> None:
        parts = [part for part in fields(self) if part.name not in {"policy", "delta"}]
        given = [part.name for part in parts if getattr(self, part.name) != part.default]
        if self.policy is not None and given:
            raise ConfigurationError(
                f"a policy together with {', '.join(given)}",
                expected="a policy, or what one is made of",
                action="put it into the policy, or leave the policy out",
            )
        require_cosine(self.threshold)
        if self.delta is not None:
            require_share("delta", self.delta)
        for file in (self.calibration, self.namespaces):
            if file is not None:
                require_file(file)
        if isinstance(self.verifier, (str, Path)):
            read_report(Path(self.verifier))

    def settle(self, model: Encoder | Path | str, encoder: Encoder, fingerprint: str) -> tuple[Promised, str]:
        """Return the rules for a model with what they promise, and what becomes of earlier turns, in a sentence.

        Raises:
            ConfigurationError, InputError: see `read_promises` and `settle_turns`.
        """
        promised, told = self._read(model, encoder, fingerprint)
        return promised if self.delta is None else replace(promised, delta=self.delta), told

    def _read(self, model: Encoder | Path | str, encoder: Encoder, fingerprint: str) -> tuple[Promised, str]:
        if self.policy is not None:
            by = "must be equal" if self.policy.conversations is None else "are compared by meaning"
            return Promised(self.policy), f"earlier turns {by}, as the rules given say"
        found = read_promises(
            model,
            fingerprint=fingerprint,
            threshold=self.threshold,
            calibration=self.calibration,
            namespaces=self.namespaces,
            verifier=self.verifier,
            encoder=encoder,
            guard=self.guard,
        )
        policy, told = settle_turns(
            found.policy, self.turns, taught=count_taught(model), calibration=found.calibration, model=model
        )
        return replace(found, policy=policy), told


def require_limits(**limits: float | None) -> None:
    """Raise `ConfigurationError` unless each limit is None (there is none) or a number above 0 and below `ENDLESS`."""
    for name, limit in limits.items():
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < ENDLESS):
            raise ConfigurationError(
                f"{name} is {limit!r:.80}",
                expected="a number above 0, and below 2 to the 63rd",
                action=f"leave {name} out for no limit; to keep nothing, do without the cache",
            )


def read_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of an entry, each once.

    Raises:
        InputError: they are one text, whose letters would be the tags, or one of them is none or empty.
    """
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise InputError(f"tags are {tags!r}", expected='a list of texts that are not empty, such as ["faq"]')
    require_text(*tags)
    return tuple(dict.fromkeys(tags))


def require_text(*texts: str) -> None:
    """Raise `InputError` unless each is a text that every store can hold."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{text!r:.80} is a {type(text).__name__}", expected="a text (str)")
        if not is_storable(text):
            raise InputError(f"{text[:80]!r} holds NUL or half a character", expected="text that UTF-8 can hold")
