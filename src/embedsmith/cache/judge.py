"""A language model as judge of samples, in a thread of its own: nobody waits for it, and what it cannot judge waits.

Its verdicts are those of a model: it errs, and a question can try to talk it into a verdict (which concerns the
estimate, never an answer). People can judge the same samples.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from embedsmith.cache.samples import Sample, Samples
from embedsmith.errors import LanguageModelError, SamplingRefused
from embedsmith.llm import Completion, LanguageModel, Sampling, verdicts

LOG = logging.getLogger("embedsmith.cache")
LABELS = {"yes": 1, "no": 0}
BATCH = 8  # samples in the judge's hands at once
ATTEMPTS = 3  # calls that may fail before a sample is left for people
PAUSES = (1.0, 60.0)  # seconds after a failure: the first, doubled each time, and the longest
TIMEOUT, RETRIES = 20.0, 1  # of a call: the end of the process may wait for those in flight


class Judge:
    """Judges the samples that wait until it is closed.

    Attributes:
        trouble: why the last call failed, "" while all is well; it may quote the server.
        counts: "judged", "unreadable" (left for people), "unwritten" (the file took none) and "failed" calls.
    """

    def __init__(self, samples: Samples, llm: LanguageModel, *, pauses: tuple[float, float] = PAUSES) -> None:
        self.name = llm.name
        self.trouble = ""
        self.counts: Counter[str] = Counter()
        self._samples, self._llm, self._pauses = samples, llm, pauses
        self._terms = Sampling(temperature=0.0)
        self._attempts: Counter[int] = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedsmith-judge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; calls in flight are not waited for, and their verdicts are lost."""
        self._end.set()
        self._samples.arrived.set()

    def _run(self) -> None:
        pause = self._pauses[0]
        while not self._end.is_set():
            batch = self._samples.take(BATCH)
            if not batch:
                self._samples.arrived.wait(1.0)
            elif self._judge(batch):
                pause = self._pauses[0]
            else:
                self._end.wait(pause)
                pause = min(2 * pause, self._pauses[1])

    def _judge(self, batch: list[Sample]) -> bool:
        """Judge a batch; say whether the judge could be asked at all. Whatever happens, no sample is lost."""
        left = dict(enumerate(batch))
        prompts = [verdicts.ask("cache", (sample.asked, sample.stored), str(sample.number)) for sample in batch]
        failed = self._failures
        try:
            for place, completion in self._llm.complete(prompts, self._terms):
                if self._end.is_set():
                    return True
                self._settle(left[place], completion)
                del left[place]
        except Exception as error:  # noqa: BLE001  a judge that fails must leave nothing wrong
            self._fail(error, left.values())
        for sample in left.values():
            self._samples.give_back(sample.number, for_people=self._is_spent(sample))
        return not left and self._failures == failed

    @property
    def _failures(self) -> int:
        return self.counts["failed"] + self.counts["unwritten"]

    def _settle(self, sample: Sample, completion: Completion) -> None:
        if completion.text is None or completion.finish == "error":
            self.counts["failed"] += 1
            self._attempts[sample.number] += 1
            self._samples.give_back(sample.number, for_people=self._is_spent(sample))
            self._say("a call failed")
            return
        self._attempts.pop(sample.number, None)
        verdict, _ = verdicts.read_verdict(completion.text)
        label = LABELS.get(verdict or "")
        if label is None:
            self.counts["unreadable"] += 1
            self._samples.give_back(sample.number, for_people=True)
            return
        try:
            settled = self._samples.settle(sample.number, label, self.name)
        except OSError as error:  # a full disk; the sample waits on, and is none the worse for it
            self.counts["unwritten"] += 1
            self._say(f"a verdict could not be written ({error.strerror or type(error).__name__})")
            return
        if settled is not None:
            self.counts["judged"] += 1
        self.trouble = ""

    def _is_spent(self, sample: Sample) -> bool:
        """Say whether a sample has failed too often; it is forgotten then, people have it."""
        spent = self._attempts[sample.number] >= ATTEMPTS
        if spent:
            del self._attempts[sample.number]
        return spent

    def _fail(self, error: Exception, left: Iterable[Sample]) -> None:
        self.counts["failed"] += 1
        if not isinstance(error, LanguageModelError):  # it may be the sample's fault
            self._attempts.update(sample.number for sample in left)
            self._say(type(error).__name__)
            return
        if isinstance(error, SamplingRefused):  # as reasoning models do; a server that is down says nothing of this
            self._terms = replace(self._terms, temperature=1.0)
        self._say(error.found)

    def _say(self, told: str) -> None:
        """Keep the reason for the dashboard; the log gets one line without it, since it may quote the user."""
        if not self.trouble:
            LOG.warning("the judge %s fails, samples wait; the dashboard says why", self.name)
        self.trouble = told
