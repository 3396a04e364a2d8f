"""The two sides of an example: which texts it puts together, and which apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedsmith.examples import Example, LabelledPair, PositivePair, Triplet


def alike(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of texts that belong together."""
    for example in examples:
        match example:
            case PositivePair() | Triplet():
                yield example.anchor, example.positive
            case LabelledPair(label=1):
                yield example.sentence1, example.sentence2


def unlike(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of texts that do not belong together."""
    for example in examples:
        match example:
            case Triplet():
                yield from ((example.anchor, negative) for negative in example.negatives)
            case LabelledPair(label=0):
                yield example.sentence1, example.sentence2
