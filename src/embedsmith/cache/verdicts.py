"""What people say of the answers of a cache: kept in the feedback file, heard from it, and heeded from then on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from embedsmith.cache.feedback import Feedback, Judged
from embedsmith.cache.options import require_text
from embedsmith.cache.refusals import Refusals
from embedsmith.cache.samples import Sample, SampleRule, Samples
from embedsmith.cache.settings import Promised
from embedsmith.encoder import Encoder, find_unread
from embedsmith.errors import ConfigurationError
from embedsmith.evaluation import similarities_of
from embedsmith.examples import LabelledPair
from embedsmith.llm import LanguageModel

HEARING = 1.0  # seconds between two looks at the feedback file, which other processes may add to


def open_feedback(feedback: Path | str | None, rule: SampleRule | None, judge: LanguageModel | None) -> Feedback | None:
    """Return the feedback file, None for none; for before a model is loaded, which takes seconds.

    Raises:
        ConfigurationError: samples are drawn and there is no file for the verdicts, or a judge has no samples.
        InputError: nothing can be added to the file.
    """
    if rule is not None and feedback is None:
        raise ConfigurationError(
            "samples are drawn, and there is no file for the verdicts", expected="a feedback file (--feedback FILE)"
        )
    if judge is not None and rule is None:
        raise ConfigurationError("a judge, and nothing to judge", expected="a share of the lookups to sample")
    if feedback is None:
        return None
    file = Feedback(feedback)
    file.require_place()
    return file


class Verdicts:
    """The verdicts on what one model has joined. Safe for threads.

    Args:
        file: None keeps verdicts until the process ends.
        rule: of the samples, whose verdicts go into the file; None draws none.
        encoder, model: the one that serves, and its fingerprint.

    Attributes:
        refusals: the pairs that are not joined again. samples: those to be judged; None where none are drawn.
    """

    def __init__(
        self,
        file: Feedback | None,
        rule: SampleRule | None,
        promised: Promised,
        *,
        encoder: Encoder,
        model: str,
        clock: Callable[[], float],
    ) -> None:
        self.refusals = refusals = Refusals()
        self.samples: Samples | None = None
        self._file, self._encoder, self._model, self._clock = file, encoder, model, clock
        self._policy, self._heard = promised.policy, time.monotonic()
        if file is None:
            return
        judged = file.read()
        refusals.recall(judged, model)
        file.listen(lambda rows, _: refusals.recall(rows, model))
        if rule is not None:
            self.samples = Samples(
                rule,
                file,
                judged,
                model=model,
                threshold_for=promised.policy.threshold_for,
                delta=promised.delta,
                since=promised.since,
                clock=clock,
            )

    @property
    def kept(self) -> bool:
        """Say whether there is a file that marked pairs go into."""
        return self._file is not None

    def hear(self) -> None:
        """Take the verdicts that other processes have added to the feedback file, looking at its size now and then."""
        now = time.monotonic()
        if self._file is None or now - self._heard < HEARING:
            return
        self._heard = now
        self._file.hear()

    def mark(self, asked: str, stored: str, label: int, namespace: str) -> bool:
        """Take a person's word on a pair, 1 where one answer serves both, else 0; return whether the file has it."""
        require_text(asked, stored, namespace)
        if self._file is not None:
            self._file.append(self._judge(asked, stored, label, namespace))
        self.refusals.note(asked, stored, label, namespace)
        if self.samples is not None:
            self.samples.decide(asked, stored, label, namespace)
        return self.kept

    def _judge(self, asked: str, stored: str, label: int, namespace: str) -> Judged:
        """Return the row of a marked pair; its cosine is the one that is decided on, -1 where nothing is served."""
        (cosine,) = similarities_of(self._encoder, [LabelledPair(asked, stored, label)])
        vetoed = self._policy.guard is not None and self._policy.guard(asked, stored) is not None
        vetoed = vetoed or any(find_unread(self._encoder, text) for text in (asked, stored))
        return Judged(
            sentence1=asked,
            sentence2=stored,
            label=label,
            cosine=-1.0 if vetoed else float(cosine),
            namespace=namespace,
            marked=self._clock(),
            model=self._model,
        )

    def settle(self, number: int, label: int) -> Sample | None:
        """Record a person's verdict on a sample and return it; None where there is no such sample.

        Raises:
            OSError: the verdict cannot be written; the sample waits on.
        """
        sample = self.samples.settle(number, label) if self.samples is not None else None
        if sample is not None:
            self.refusals.note(sample.asked, sample.stored, label, sample.namespace)
        return sample

    def forget(self, namespace: str) -> int:
        """Remove a namespace, and all below it, from the samples and from the file; return how many rows of the file.

        Raises:
            OSError: the file cannot be written.
        """
        if self.samples is not None:
            self.samples.forget(namespace)
        return self._file.remove(namespace) if self._file is not None else 0
