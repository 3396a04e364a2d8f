"""What may become a negative: the rules as one value that is checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from embedsmith.choices import Output, Ruling, Sampling, Search, Storage
from embedsmith.errors import ConfigurationError, require

CHOICES = {"sampling": Sampling, "ruling": Ruling, "output": Output, "search": Search, "storage": Storage}


@dataclass(frozen=True, slots=True)
class MiningSettings:
    """The rules of mining. A similarity is a cosine, -1 to 1, higher is closer.

    Attributes:
        negatives: wanted for each row.
        window: first and last rank from which negatives come. Rank 1 is the nearest text of the corpus, whatever
            it is, so the positive has a rank as well.
        relative: a candidate at or above this share of the positive's similarity is dropped; None for no such rule.
            NV-Retriever's TopK-PercPos (arXiv 2407.15831): a positive at .80 drops candidates from .76 on. Below 0
            the limit lies (1 − relative)·|positive| under the positive, so that it is always below.
        margin: a candidate above positive − margin is dropped (there: TopK-MarginPos): .80 and .05 drop what is
            above .75. A positive at .40 is at .38 with relative = .95 and at .35 with margin = .05: the share is
            milder on far positives, the margin on near ones. Both may be set; the stricter rules.
        minimum, maximum: candidates below or above are dropped.
        sampling: within what is left: "top" takes the nearest, "uniform" draws evenly, "weighted" draws with
            weights exp(similarity / temperature). Draws depend on the seed and the anchor's text only.
        ruling: which positive sets the limit when there are several: the "lowest" (a text that is as close as the
            farthest known answer may be an answer: .90 and .60 give the limit .57), or the "mean" (.7125), which
            keeps harder negatives when one positive is an outlier.
        output: "triplets", or "pairs" with label 1 and 0.
        scores: write cosines of the positive and of each negative into the column `scores` (triplets only).
        judged: with a relabeller, candidates of each anchor that it sees; 0 is twice `negatives`.
        search: "exact", "index" (HNSW, approximate), or "auto", which says its choice and why.
        storage: of the embeddings on disk; float16 moves a cosine by about 2e-5.
    """

    negatives: int = 4
    window: tuple[int, int] = (1, 100)
    relative: float | None = 0.95
    margin: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    sampling: Sampling = "top"
    temperature: float = 0.05
    seed: int = 0
    ruling: Ruling = "lowest"
    output: Output = "triplets"
    scores: bool = False
    judged: int = 0
    search: Search = "auto"
    storage: Storage = "float16"

    def __post_init__(self) -> None:
        for name, choice in CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}", expected=" or ".join(get_args(choice)))
        first, last = self.window
        require(self.negatives >= 1, f"{self.negatives} negatives a row", "at least 1")
        require(1 <= first <= last, f"the window {first}:{last}", "FIRST:LAST with 1 ≤ FIRST ≤ LAST")
        require(
            last - first + 1 >= self.negatives,
            f"the window {first}:{last} has {last - first + 1} ranks for {self.negatives} negatives",
            "a window with as many ranks as negatives",
        )
        require(self.relative is None or 0 < self.relative <= 1, f"relative {self.relative}", "above 0, at most 1")
        require(self.margin is None or 0 <= self.margin <= 2, f"margin {self.margin}", "0 to 2")
        for name in ("minimum", "maximum"):
            value = getattr(self, name)
            require(value is None or -1 <= value <= 1, f"{name} {value}", "a cosine, -1 to 1")
        if self.minimum is not None and self.maximum is not None:
            require(self.minimum < self.maximum, f"minimum {self.minimum}, maximum {self.maximum}", "min < max")
        require(self.temperature > 0, f"temperature {self.temperature}", "above 0")
        require(self.judged == 0 or self.judged >= self.negatives, f"judged {self.judged}", "0 or ≥ negatives")
        require(not (self.scores and self.output == "pairs"), "scores with output pairs", "scores with triplets")

    @property
    def judged_at_most(self) -> int:
        """Candidates of an anchor that a relabeller sees."""
        return self.judged or 2 * self.negatives

    def limit(self, positive: float) -> float:
        """Return the similarity that negatives stay below, given that of the positive.

        >>> round(MiningSettings(relative=0.95).limit(0.8), 4)
        0.76
        """
        limits = [float("inf")]
        if self.relative is not None:
            limits.append(positive - (1 - self.relative) * abs(positive))
        if self.margin is not None:
            limits.append(positive - self.margin)
        return min(limits)
