"""The batches: anchors without negatives, and with false ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from embedsmith.batches import Row, TrainingSet, contrast, localize
from embedsmith.checks.findings import HEAVY, LOOKED, Finding, Outcome, share_of
from embedsmith.objectives import CLASSED, IN_BATCH
from embedsmith.text import normalize

BATCHES = 20  # batches in which false negatives are counted


def check_pool(
    batches: Sequence[Sequence[Row]], data: TrainingSet, losses: Sequence[Mapping[str, float]], names: Sequence[str]
) -> Iterator[Outcome]:
    """Yield infonce sources whose anchors have no negatives, or false ones: the same answer under another anchor.

    Args:
        batches: the rows of the first batches of a run.
        losses, names: of each source.
    """
    texts = data.texts
    answers: dict[str, set[str]] = defaultdict(set)
    for row in (*data.rows[:LOOKED], *(row for batch in batches for row in batch)):
        answers[normalize(texts[row.anchor])] |= {normalize(texts[text]) for text in (row.anchor, *row.positives)}
    counts = [Counter[str]() for _ in losses]
    for batch in batches:
        for source in {row.source for row in batch}:
            rows = [row for row in batch if row.source == source]
            if IN_BATCH & set(losses[source]):
                counts[source] += _count_negatives(rows, texts, answers)
            if CLASSED & set(losses[source]):
                counts[source] += Counter({"batches": 1, "idle": int(not _has_triplet(rows))})
    for name, count in zip(names, counts, strict=True):
        yield from _judge_pool(name, count)
        yield from _judge_classes(name, count)


def _has_triplet(rows: Sequence[Row]) -> bool:
    classes = Counter(row.label for row in rows)
    return len(classes) > 1 and max(classes.values()) > 1


def _judge_classes(name: str, count: Counter[str]) -> Iterator[Outcome]:
    if count["idle"] > HEAVY * count["batches"]:
        yield Finding(
            "no-triplets",
            "error" if count["idle"] == count["batches"] else "warning",
            found=f"{name}: {share_of(count['idle'], count['batches'])} batches lack two texts of a class beside "
            f"another",
            expected="a triplet in every batch",
            action="raise --batch (texts of a class come in fours, so 16 has four classes)",
            place="configuration",
        )


def _count_negatives(rows: Sequence[Row], texts: Sequence[str], answers: Mapping[str, set[str]]) -> Counter[str]:
    """Return how many anchors and negatives a batch has, and how many of them are false; linear in its texts."""
    places, local = localize(rows)
    found = contrast(local)
    plain = [normalize(texts[place]) for place in places.tolist()]
    columns: dict[str, set[int]] = defaultdict(set)
    for column, place in enumerate(found.candidates.tolist()):
        columns[plain[place]].add(column)
    left_out = [{own} for own in found.positive_of.tolist()]
    for number, column in found.excluded.tolist():
        left_out[number].add(column)
    counts = Counter({"anchors": len(found.anchors)})
    for anchor, out in zip(found.anchors.tolist(), left_out, strict=True):
        left = len(found.candidates) - len(out)
        false = sum(len(columns.get(text, set()) - out) for text in answers[plain[anchor]])
        counts.update({"negatives": left, "alone": not left, "misled": false > 0, "false": false})
    return counts


def _judge_pool(name: str, count: Counter[str]) -> Iterator[Outcome]:
    anchors = count["anchors"]
    if anchors and count["alone"] > HEAVY * anchors:
        yield Finding(
            "no-negatives",
            "error" if count["alone"] == anchors else "warning",
            found=f"{name}: {share_of(count['alone'], anchors)} anchors of the first batches have no negative under "
            f"infonce",
            expected="other rows in the same batch, or negatives of their own",
            action="raise --batch, give rows different groups, or give triplets",
            place="configuration",
        )
    if count["misled"] > 0.1 * anchors and count["misled"] >= 2:
        yield Finding(
            "false-negatives",
            "warning",
            found=f"{name}: {share_of(count['misled'], anchors)} anchors meet one of their own answers as a negative "
            f"({count['false']} of {count['negatives']} negatives)",
            expected="texts with the same answer in one group",
            action="give rows with the same answer the same `group`, leave copies out, or mask them: --set guide=self",
        )
