"""Quality of any set, examples, log or passages: counts, diversity, overlap, coverage, leakage, labels, rows.

Everything is a figure with its source; what costs an encoder is left out without one, and said so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_jsonl
from embedsmith.documents.rows import TEXTS
from embedsmith.encoder import Embeddings, Encoder, encode_unique, hash_trigrams
from embedsmith.errors import InputError
from embedsmith.examples import (
    Example,
    LabelledPair,
    LabelledText,
    PositivePair,
    Triplet,
    draw_groups,
    draw_of,
    read_examples,
    texts_of,
)
from embedsmith.hardness import Hardness, measure_hardness
from embedsmith.leakage import LeakIndex
from embedsmith.signatures import NearTexts
from embedsmith.synthesis.labels import Judge, LabelVerdict, check_labels, list_pairs
from embedsmith.tables import read_id, read_rows
from embedsmith.text import count_words, cut_words, jaccard, runs_of, words

SAMPLE = 1_000  # texts of the Vendi score: its cost is cubic, its figure settles long before
SCORED = 5_000  # texts that are compared with evaluation texts by an encoder, and examples whose labels are checked
ROWS = 20
COLUMNS = (*TEXTS, "question", "query")
SHOWN = 10  # leaks and doubted labels that are kept with their texts


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it is inspected.

    Attributes:
        kind: "LabelledPair" and so on, or "text".
        examples: () for plain texts. texts: all texts in order. sources: the row or document that each text or
            example comes from, where the file tells.
        lines: of the file, of each example or, without examples, text.
        rejected: rows that could not be read, by reason.
    """

    path: str
    kind: str
    examples: tuple[Example, ...]
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    lines: tuple[int, ...]
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much a set repeats itself.

    Attributes:
        texts: all; distinct in normal form. exact: texts that were there before. near: distinct texts near an earlier
            one (trigram Jaccard ≥ .9, same numbers).
        distinct_1, distinct_2, distinct_3: different runs of words over all runs (Li et al. 2016).
        vendi: effective number of different texts of a sample of `sampled` (see `vendi_score`). `embedded` by what.
    """

    texts: int
    distinct: int
    exact: int
    near: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    vendi: float
    sampled: int
    embedded: str


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution: quantiles and a histogram. edges: one more than counts."""

    count: int
    mean: float
    quantiles: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How evenly the sources are used.

    Attributes:
        sources: with at least one example. of: sources there are, where it is known.
        gini: 0 all alike, towards 1 a few have all. entropy: of the shares, divided by its largest value, 0 to 1.
        most: the sources with most examples.
    """

    sources: int
    of: int | None
    gini: float
    entropy: float
    most: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Leakage:
    """What an evaluation file and the set have in common.

    Attributes:
        evaluation: its distinct texts.
        counts: texts of the set by how they leak: exact, near, 8-gram, embedding.
        threshold: cosine from which on a text leaks by its embedding; None without an encoder.
        shown: some, each with how, text, evaluation text and closeness.
    """

    file: str
    evaluation: int
    counts: Mapping[str, int]
    threshold: float | None
    shown: tuple[Mapping[str, object], ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """All figures of a set. `label_lines` are the lines of `labels`; `notes` say what was left out, and why."""

    file: str
    kind: str
    rows: int
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    diversity: Diversity
    lengths: Mapping[str, Spread]
    overlaps: Mapping[str, Spread]
    coverage: Coverage | None
    leakage: tuple[Leakage, ...]
    hardness: Hardness | None
    labels: tuple[LabelVerdict, ...]
    label_lines: tuple[int, ...]
    label_reasons: Mapping[str, int]
    rows_to_read: tuple[Mapping[str, object], ...]
    notes: tuple[str, ...]


def inspect(
    path: Path | str,
    *,
    separator: str | None = None,
    against: Sequence[Path | str] = (),
    base: Encoder | None = None,
    rejected: Path | str | None = None,
    log: Path | str | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Inspection:
    """Return the quality of a set of examples, a log or passages; the same file and seed give the same report.

    Args:
        separator: of the set's columns where it is csv or tsv; by default found by the first line.
        against: evaluation files that the set must share no text with.
        base: the model that will be tuned; without one there is no hardness and no leakage by meaning.
        rejected: the rejected.jsonl beside it: its reasons are counted, too.
        log: the file the examples were made from, to know how many of its rows have none.
        judge: asked about doubted labels.

    Raises:
        InputError: a file cannot be read or has no text.
    """
    source = read_source(path, separator=separator)
    notes: list[str] = []
    on_progress("diversity")
    diversity = measure_diversity(source.texts, base, seed=seed)
    on_progress("labels")
    places = _cap(source.examples, notes)
    examples = [source.examples[place] for place in places]
    verdicts = check_labels(examples, base, judge) if examples else []
    hardness = _measure_hardness(examples, base, verdicts, seed, notes)
    leaks = []
    for file in against:
        on_progress(f"leakage against {file}")
        leaks.append(find_leaks(source.texts, file, base, notes))
    return Inspection(
        file=str(path),
        kind=source.kind,
        rows=len(source.examples) or len(source.texts),
        counts=_count_labels(source.examples),
        reasons={**source.rejected, **(_count_reasons(rejected) if rejected is not None else {})},
        diversity=diversity,
        lengths=_measure_lengths(source),
        overlaps=_measure_overlaps(source.examples),
        coverage=_measure_coverage(source.sources, log),
        leakage=tuple(leaks),
        hardness=hardness,
        labels=tuple(verdicts[:SHOWN]),
        label_lines=tuple(source.lines[places[verdict.pair.place]] for verdict in verdicts[:SHOWN]),
        label_reasons=dict(Counter(verdict.reason for verdict in verdicts).most_common()),
        rows_to_read=choose_rows(source, seed=seed),
        notes=tuple(dict.fromkeys(notes)),
    )


# Reading


def read_source(path: Path | str, *, separator: str | None = None) -> Source:
    """Return a file's examples, or its texts where its columns are those of no kind of examples.

    Raises:
        InputError: no row has a text.
    """
    try:
        found = read_examples(path, separator=separator)
    except InputError as problem:
        return _read_texts(path, problem, separator)
    texts = tuple(text for example in found.examples for text in texts_of(example))
    sources = tuple(_source_of(example) for example in found.examples)
    reasons = Counter(item.reason for item in found.rejected)
    known = sources if any(sources) else ()
    return Source(str(path), found.kind.__name__, found.examples, texts, known, found.lines, reasons)


def _read_texts(path: Path | str, problem: InputError, separator: str | None) -> Source:
    texts, sources, lines = [], [], []
    unread = 0
    for line, row in read_rows(path, separator=separator):
        name = next((name for name in COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
        if name is None:
            unread += 1
            continue
        texts.append(row[name])
        lines.append(line)
        names = (read_id(row.get(name)) for name in ("document", "source", "group"))
        sources.append(next((name for name in names if name is not None), ""))
    if not texts:
        raise InputError(
            f"{path} has no row with a text; as examples: {problem.found}",
            expected=f"examples, or texts in a column {', '.join(COLUMNS)}",
        )
    reasons = {"no-text": unread} if unread else {}
    return Source(str(path), "text", (), tuple(texts), tuple(sources) if any(sources) else (), tuple(lines), reasons)


def _source_of(example: Example) -> str:
    if example.provenance is not None:
        return example.provenance.source
    return example.group or ""


def _count_labels(examples: Sequence[Example]) -> dict[str, int]:
    """Return the examples by label or class; positives and negatives where an example has several."""
    counts: Counter[str] = Counter()
    for example in examples:
        match example:
            case LabelledPair():
                counts["positive" if example.label else "negative"] += 1
            case LabelledText():
                counts[example.label] += 1
            case Triplet():
                counts.update(positive=1, negative=len(example.negatives))
            case PositivePair():
                counts["positive"] += 1
            case _:
                counts["scored"] += 1
    return dict(counts.most_common())


def _count_reasons(path: Path | str) -> dict[str, int]:
    counts = Counter(str(row.get("reason", "no-reason")) for _, row in read_jsonl(path))
    return dict(counts.most_common())


def _cap(examples: tuple[Example, ...], notes: list[str]) -> list[int]:
    """Return the places of at most `SCORED` examples."""
    if len(examples) <= SCORED:
        return list(range(len(examples)))
    chosen = draw_groups([example.group or texts_of(example)[0] for example in examples], SCORED)
    notes.append(f"labels and hardness: {len(chosen):,} of {len(examples):,} examples, drawn by a hash of their group")
    return chosen


def _measure_hardness(
    examples: Sequence[Example], base: Encoder | None, flagged: Sequence[LabelVerdict], seed: int, notes: list[str]
) -> Hardness | None:
    if not list_pairs(examples):
        return None
    if base is None:
        notes.append("average precision and triplet accuracy need a base model (--base)")
    return measure_hardness(examples, base, flagged=flagged, seed=seed)


# Diversity


def measure_diversity(texts: Sequence[str], base: Encoder | None = None, *, seed: int = 0) -> Diversity:
    """Return how much the texts repeat themselves."""
    normal = list(dict.fromkeys(" ".join(words(text)) for text in texts))
    sample = sorted(normal, key=lambda text: draw_of(text, seed))[:SAMPLE]
    vectors = base.encode(sample) if base is not None else hash_trigrams(sample)
    return Diversity(
        texts=len(texts),
        distinct=len(normal),
        exact=len(texts) - len(normal),
        near=_count_near(normal),
        distinct_1=distinct_runs(normal, 1),
        distinct_2=distinct_runs(normal, 2),
        distinct_3=distinct_runs(normal, 3),
        vendi=vendi_score(vectors),
        sampled=len(sample),
        embedded="hashed trigrams" if base is None else "base model",
    )


def _count_near(texts: Sequence[str]) -> int:
    index = NearTexts(texts.__getitem__)
    count = 0
    for text in texts:
        count += index.find(text) is not None
        index.add(text)
    return count


def distinct_runs(texts: Iterable[str], length: int) -> float:
    """Return different runs of `length` words over all runs, 0 to 1 (distinct-n, Li et al. 2016, arXiv 1510.03055).

    Two signs without spaces are a word (`text.runs_of`).

    >>> distinct_runs(["a b a b"], 2)  # ab, ba, ab
    0.6666666666666666
    """
    seen: set[str] = set()
    total = 0
    for text in texts:
        runs = runs_of(text, length)
        seen.update(runs)
        total += len(runs)
    return len(seen) / total if total else 0.0


def vendi_score(vectors: Embeddings) -> float:
    """Return the effective number of different texts: e^(−Σ λ log λ), λ the eigenvalues of XXᵀ/n (arXiv 2210.02410).

    Four texts of which two pairs are equal and the pairs orthogonal: λ = ½, ½, 0, 0, the score is 2.

    Args:
        vectors: (n, d), unit rows.
    """
    if not len(vectors):
        return 0.0
    table = np.asarray(vectors, dtype=np.float64)
    gram = table @ table.T if len(table) < table.shape[1] else table.T @ table  # the same eigenvalues but zeros
    values = np.linalg.eigvalsh(gram / len(table))
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


# Distributions


def spread_of(values: Sequence[float], *, bins: int = 20, limits: tuple[float, float] | None = None) -> Spread:
    """Return quantiles and histogram of the values; the last bin takes what lies beyond `limits`."""
    table = np.asarray(values, dtype=np.float64)
    low, high = limits or (0.0, float(np.quantile(table, 0.99)) or 1.0)
    counts, edges = np.histogram(np.clip(table, low, high), bins=bins, range=(low, max(high, low + 1e-9)))
    levels = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    quantiles = {f"{level:g}": round(float(np.quantile(table, level)), 4) for level in levels}
    return Spread(len(table), float(table.mean()), quantiles, tuple(edges.tolist()), tuple(counts.tolist()))


def _measure_lengths(source: Source) -> dict[str, Spread]:
    parts: dict[str, list[float]] = defaultdict(list)
    for text in source.texts if not source.examples else ():
        parts["text"].append(count_words(text))
    for example in source.examples:
        for part, text in _parts(example):
            parts[part].append(count_words(text))
    return {part: spread_of(values) for part, values in parts.items()}


def _parts(example: Example) -> list[tuple[str, str]]:
    match example:
        case LabelledPair():
            side = "positive" if example.label else "negative"
            return [("anchor", example.sentence1), (side, example.sentence2)]
        case PositivePair():
            return [("anchor", example.anchor), ("positive", example.positive)]
        case Triplet():
            return [
                ("anchor", example.anchor),
                ("positive", example.positive),
                *(("negative", text) for text in example.negatives),
            ]
        case LabelledText():
            return [("text", example.text)]
        case _:
            return [("sentence1", example.sentence1), ("sentence2", example.sentence2)]


def _measure_overlaps(examples: Sequence[Example]) -> dict[str, Spread]:
    """Return the Jaccard of the words of both texts, for positives and for negatives."""
    found: dict[str, list[float]] = defaultdict(list)
    for pair in list_pairs(examples):
        close = jaccard(frozenset(cut_words(pair.left)), frozenset(cut_words(pair.right)))
        found["positive" if pair.label else "negative"].append(close)
    return {name: spread_of(values, limits=(0.0, 1.0)) for name, values in found.items()}


# Coverage


def _measure_coverage(sources: Sequence[str], log: Path | str | None) -> Coverage | None:
    named = Counter(source for source in sources if source)
    if not named:
        return None
    everything = sum(1 for _ in read_rows(log)) if log is not None else None
    counts = [*named.values(), *[0] * max((everything or 0) - len(named), 0)]
    return Coverage(len(named), everything, gini(counts), evenness(counts), dict(named.most_common(5)))


def gini(counts: Sequence[int]) -> float:
    """Return Gini's coefficient of the counts: 0 all alike, towards 1 a few have all.

    Σ (2i − n − 1)·xᵢ / (n·Σx), x in rising order: counts 1, 3 give (−1·1 + 1·3) / (2·4) = .25.
    """
    values = np.sort(np.asarray(counts, dtype=np.float64))
    if not values.sum():
        return 0.0
    weights = 2 * np.arange(1, len(values) + 1) - len(values) - 1
    return float(weights @ values / (len(values) * values.sum()))


def evenness(counts: Sequence[int]) -> float:
    """Return the entropy of the shares over its largest value, log n: 1 all alike; 1 for a single source."""
    values = np.asarray([count for count in counts if count], dtype=np.float64)
    if len(counts) < 2 or not len(values):
        return 1.0
    shares = values / values.sum()
    return float(-(shares @ np.log(shares)) / np.log(len(counts)))


# Leakage


def find_leaks(texts: Sequence[str], file: Path | str, base: Encoder | None, notes: list[str]) -> Leakage:
    """Return which texts an evaluation file has, too: by their words, and by their meaning with an encoder."""
    held = list(dict.fromkeys(read_source(file).texts))
    index = LeakIndex(held)
    distinct = list(dict.fromkeys(texts))
    found = [leak for text in distinct if (leak := index.find(text)) is not None]
    counts = Counter(leak.how for leak in found)
    shown: list[Mapping[str, object]] = [
        {"how": leak.how, "text": leak.text, "evaluation": leak.evaluation, "closeness": leak.closeness}
        for leak in found
    ]
    threshold = None
    if base is not None:
        known = {leak.text for leak in found}
        rest = [text for text in distinct if text not in known]
        if len(rest) > SCORED:
            notes.append(f"leakage by meaning: {SCORED:,} of {len(rest):,} texts, drawn by a hash")
            rest = sorted(rest, key=draw_of)[:SCORED]
        threshold, met = _find_alike(rest, held, base)
        counts["embedding"] = len(met)
        shown += met
    return Leakage(str(file), len(held), dict(counts), threshold, tuple(shown[:SHOWN]))


def _find_alike(texts: Sequence[str], held: Sequence[str], base: Encoder) -> tuple[float, list[Mapping[str, object]]]:
    """Return the cosine from which on a text is one of the evaluation texts, and the texts that reach it.

    The evaluation texts say themselves how near different texts of the domain come: the threshold is the cosine that
    only 1 in 100 of them has to its nearest neighbour among the others, and at least .9, below which models of this
    kind put questions on one subject.
    """
    inside = base.encode(held)
    threshold = max(0.9, float(np.quantile(_nearest(inside, inside, itself=True)[0], 0.99)) if len(held) > 1 else 0.0)
    close, place = _nearest(encode_unique(base, list(texts)) if texts else inside[:0], inside)
    found: list[Mapping[str, object]] = [
        {
            "how": "embedding",
            "text": texts[row],
            "evaluation": held[place[row]],
            "closeness": round(float(close[row]), 4),
        }
        for row in np.argsort(-close, kind="stable")
        if close[row] >= threshold
    ]
    return round(threshold, 4), found


def _nearest(
    rows: Embeddings, others: Embeddings, *, itself: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best cosine of each row and its place, in blocks; a row is not its own neighbour with `itself`."""
    best = np.zeros(len(rows), dtype=np.float32)
    place = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), 256):
        scores = rows[start : start + 256] @ others.T
        if itself:
            scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -1
        place[start : start + 256] = scores.argmax(axis=1)
        best[start : start + 256] = scores.max(axis=1)
    return best, place


# Rows to read


def choose_rows(source: Source, *, seed: int = 0, rows: int = ROWS) -> tuple[Mapping[str, object], ...]:
    """Return rows to read: as many of each label as there are labels for, drawn by a hash, in the order of the file.

    "row" is the line of the file.
    """
    if not source.examples:
        places = sorted(range(len(source.texts)), key=lambda place: draw_of(source.texts[place], seed))[:rows]
        return tuple({"row": source.lines[place], "text": source.texts[place]} for place in sorted(places))
    strata: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(source.examples):
        strata[str(getattr(example, "label", ""))].append(place)
    for places in strata.values():
        places.sort(key=lambda place: draw_of(" ".join(texts_of(source.examples[place])), seed))
    chosen: list[int] = []
    while len(chosen) < min(rows, len(source.examples)):
        for name in sorted(strata):
            if strata[name] and len(chosen) < rows:
                chosen.append(strata[name].pop(0))
    return tuple(_show(source.lines[place], source.examples[place]) for place in sorted(chosen))


def _show(line: int, example: Example) -> dict[str, object]:
    shown: dict[str, object] = {"row": line}
    names: Counter[str] = Counter()
    for name, text in _parts(example):
        names[name] += 1
        shown[name if names[name] == 1 else f"{name} {names[name]}"] = re.sub(r"\s+", " ", text)
    for extra in ("label", "score"):
        if hasattr(example, extra):
            shown[extra] = getattr(example, extra)
    return shown
