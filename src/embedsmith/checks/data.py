"""The examples of a source, by reading them: texts, roles, repeats."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from embedsmith.batches import Source
from embedsmith.checks.findings import FEWEST, HEAVY, LOOKED, Finding, Outcome, sample, share_of
from embedsmith.checks.labels import check_classes, check_labels, check_triplets
from embedsmith.checks.sides import alike, unlike
from embedsmith.examples import Example, LabelledPair, Triplet, texts_of
from embedsmith.text import normalize


def check_source(source: Source, *, seed: int = 0) -> Iterator[Outcome]:
    """Yield what is wrong with the texts, labels, scores and classes of a source, by reading alone."""
    examples = sample(source.examples, LOOKED, seed=seed)
    for check in (_check_texts, _check_garbled, _check_roles, check_labels, check_classes, _check_repeats):
        yield from check(source.name, examples)
    if "triplet" in source.losses:
        yield from check_triplets(source.name, examples)


def _check_texts(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    texts = [normalize(text) for example in examples for text in texts_of(example)]
    if not texts:
        return
    empty = sum(not text for text in texts)
    if empty:
        yield Finding(
            "empty-texts",
            "error" if empty > len(texts) / 2 else "warning",
            found=f"{name}: {share_of(empty, len(texts))} texts are empty or only punctuation",
            expected="words in every text",
            action="leave these rows out; check that the text column is the right one",
        )
    if len(examples) >= 2 and len(set(texts)) == 1:
        yield Finding(
            "same-texts",
            "error",
            found=f"{name}: all {len(texts)} texts of {len(examples)} rows are the same",
            expected="texts that differ",
            action="check that the right column was read",
        )
        return
    anchors = {normalize(texts_of(example)[0]) for example in examples}
    if len(examples) >= FEWEST and len(anchors) == 1:
        yield Finding(
            "same-anchors",
            "warning",
            found=f"{name}: all {len(examples)} rows have the same first text",
            expected="many different anchors",
            action="check that the anchor's column is the right one",
        )


MARKUP = re.compile(
    r"</?(?:p|br|div|span|li|ul|ol|td|tr|table|b|i|a|h[1-6]|script|font)\b[^<>]*>|&(?:[a-z]{2,8}|#\d{2,6});", re.I
)
BROKEN = re.compile(r"�|Ã[\x80-\xbf¡-¿]|â(?:€|\x80)|Â[\xa0-\xbf]|ï»¿|[\x00-\x08\x0e-\x1f]|\\x[0-9a-f]{2}", re.I)


def _check_garbled(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    texts = [text for example in examples for text in texts_of(example)]
    broken = sum(BROKEN.search(text) is not None for text in texts)
    if broken > 0.05 * len(texts):
        yield Finding(
            "garbled-texts",
            "warning",
            found=f"{name}: {share_of(broken, len(texts))} texts have broken letters (mojibake such as Ã©, U+FFFD, "
            f"bytes)",
            expected="text in its own encoding",
            action="read the source again with its encoding (often UTF-8 read as Latin-1) and write it as UTF-8",
        )
    marked = sum(MARKUP.search(text) is not None for text in texts)
    if marked > HEAVY * len(texts):
        yield Finding(
            "markup-in-texts",
            "warning",
            found=f"{name}: {share_of(marked, len(texts))} texts have HTML tags or entities",
            expected="plain text as it will be asked",
            action="take the tags out and the entities apart (html.unescape) unless such texts are to be searched",
        )


def _check_roles(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    positives = [(normalize(left), normalize(right)) for left, right in alike(examples)]
    same = sum(left == right for left, right in positives)
    if positives and same > HEAVY * len(positives) and same >= 2:
        yield Finding(
            "positives-equal-anchors",
            "error" if same == len(positives) and _only_pairs(examples) else "warning",
            found=f"{name}: {share_of(same, len(positives))} positives are their anchor again (but for case and "
            f"punctuation)",
            expected="positives in other words: equal texts have cosine 1 already",
            action="check that two different columns were read, or leave these rows out",
        )
    yield from _check_negatives(name, examples)


def _only_pairs(examples: Sequence[Example]) -> bool:
    return not any(isinstance(example, Triplet) or _is_pair(example, 0) for example in examples)


def _check_negatives(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    known: dict[str, set[str]] = defaultdict(set)
    for left, right in alike(examples):
        known[normalize(left)].add(normalize(right))
    pairs = [(normalize(left), normalize(right)) for left, right in unlike(examples)]
    wrong = sum(right == left or right in known.get(left, ()) for left, right in pairs)
    if not wrong or wrong <= 0.01 * len(pairs):
        return
    yield Finding(
        "negatives-equal-positives",
        "error" if wrong > len(pairs) / 2 else "warning",
        found=f"{name}: {share_of(wrong, len(pairs))} negatives are the anchor or a positive of the same anchor",
        expected="negatives with another answer",
        action="leave these negatives out; check that the columns of positives and negatives are two",
    )


def _is_pair(example: Example, label: int) -> bool:
    return isinstance(example, LabelledPair) and example.label == label


def _check_repeats(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    rows = Counter(_content(example) for example in examples)
    copies = len(examples) - len(rows)
    if len(examples) >= FEWEST and copies > HEAVY * len(examples):
        most = rows.most_common(1)[0][1]
        yield Finding(
            "repeated-rows",
            "warning",
            found=f"{name}: {share_of(copies, len(examples))} rows say what another row says; one comes {most} times",
            expected="each row once",
            action="leave the copies out, or raise --epochs if rows are to be seen more often",
        )
    labels: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for example in examples:
        if isinstance(example, LabelledPair):
            labels[tuple(sorted(map(normalize, texts_of(example))))].add(example.label)
    torn = sum(len(found) > 1 for found in labels.values())
    if torn > 0.01 * len(labels):
        yield Finding(
            "contradicting-labels",
            "warning",
            found=f"{name}: {share_of(torn, len(labels))} pairs of texts have label 1 in one row and 0 in another",
            expected="one label for a pair",
            action="decide which label holds and leave the other rows out",
        )


def _content(example: Example) -> tuple[object, ...]:
    texts = tuple(map(normalize, texts_of(example)))
    return (*texts, getattr(example, "label", None), getattr(example, "score", None))
