"""Prompts that come twice, instructions that are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedsmith.batches import INSTRUCTION, Prompts, Source
from embedsmith.checks.findings import LOOKED, Finding, Outcome, share_of
from embedsmith.examples import texts_of


def check_prompts(source: Source, prompts: Prompts) -> Iterator[Outcome]:
    """Yield texts that have their prompt already, and instructions that are missing.

    Args:
        prompts: those of the run, for a source without prompts of its own.
    """
    own = source.prompts or prompts
    examples = source.examples[:LOOKED]
    yield from _check_doubled(source.name, own.query, [texts_of(example)[0] for example in examples])
    if own.document != own.query:
        others = [text for example in examples for text in texts_of(example)[1:]]
        yield from _check_doubled(source.name, own.document, others)
    yield from _check_instructions(source, own)


def check_default_prompt(source: Source, default: str) -> Iterator[Outcome]:
    """Yield texts that have the prompt which the base puts before every text."""
    yield from _check_doubled(source.name, default, [texts_of(example)[0] for example in source.examples[:LOOKED]])


def _check_doubled(name: str, prompt: str, texts: Sequence[str]) -> Iterator[Outcome]:
    start = prompt.partition(INSTRUCTION)[0].strip().casefold()
    doubled = sum(text.lstrip().casefold().startswith(start) for text in texts) if len(start) >= 3 else 0
    if doubled > 0.05 * len(texts):
        yield Finding(
            "prompt-twice",
            "warning",
            found=f"{name}: {share_of(doubled, len(texts))} texts begin with the prompt that is put before them, "
            f"{prompt!r}",
            expected="texts without it",
            action="take the prompt out of the texts, or train without prompts",
        )


def _check_instructions(source: Source, prompts: Prompts) -> Iterator[Outcome]:
    if INSTRUCTION not in prompts.query:
        return
    given = [getattr(example, "instruction", None) for example in source.examples]
    missing = sum(not text for text in given)
    if missing:
        yield Finding(
            "instructions-missing",
            "error" if missing == len(given) else "warning",
            found=f"{source.name}: {share_of(missing, len(given))} rows have no instruction, and the prompt is "
            f"{prompts.query!r}",
            expected="a column instruction (or task) in every row",
            action="add the column, or write the instruction into the prompt",
        )
