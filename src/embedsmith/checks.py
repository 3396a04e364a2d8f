"""Checks: what is wrong with a training run before it costs anything, and while it runs.

Pure functions: examples, tokens, cosines and the configuration in, findings out; `probes` asks the network. A finding
is an error only where the training cannot be meant; where it may be meant, it is a warning with figures. What a set is
too small to tell is said as well (`Unchecked`).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedsmith.batches import Prompts, Row, Source, TrainingSet, contrast, localize
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet, texts_of
from embedsmith.leakage import find_shared
from embedsmith.metrics import Ranking, spearman
from embedsmith.optimization import TrainingConfig
from embedsmith.text import normalize
from embedsmith.tokens import Tokens

LOOKED = 50_000  # examples of a source whose texts are read; beyond it a seeded sample
ROWS = 150  # examples whose cosines the untrained base gives, shared by all sources
FEWEST = 20  # rows of a kind below which a share tells nothing
BATCHES = 20  # batches in which false negatives are counted
FIRST = 4  # steps that tell the loss before training; a run may diverge in its warm-up
WINDOW = 10  # steps whose mean is compared with that of the first ones; small batches are noisy
HEAVY = 0.2  # share of texts or rows that is worth a warning
NONE_LEFT = 0.9  # share at which nothing useful is left

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: what was found (with figures), what would be right, what to do.

    Attributes:
        name: kebab-case, stable, for programs.
        severity: "error" stops the run before the first step.
        place: what it is about; decides the kind of exception.
    """

    name: str
    severity: Literal["error", "warning"]
    found: str
    expected: str
    action: str
    place: Literal["data", "configuration"] = "data"

    def __str__(self) -> str:
        return f"{self.found}; expected: {self.expected}. To do: {self.action}"


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A check that could not be made, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


Outcome: TypeAlias = Finding | Unchecked


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks of a run gave.

    Attributes:
        unchecked: one sentence for each check that could not be made.
    """

    findings: tuple[Finding, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.findings + other.findings, self.unchecked + other.unchecked)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings that do not stop the run, as lines for people."""
        return tuple(f"warning: {finding}" for finding in self.findings if finding.severity == "warning")


def report_of(outcomes: Iterable[Outcome]) -> Report:
    """Return the outcomes, sorted into findings and what was not checked."""
    found = list(outcomes)
    return Report(
        tuple(item for item in found if isinstance(item, Finding)),
        tuple(dict.fromkeys(str(item) for item in found if isinstance(item, Unchecked))),
    )


def stop_on_errors(findings: Iterable[Finding]) -> None:
    """Raise where a finding is an error; further errors stand in the first one's `found`.

    Raises:
        InputError: about the data. ConfigurationError: about an option.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    kind: type[EmbedsmithError] = InputError if first.place == "data" else ConfigurationError
    others = "".join(f"\nalso: {finding}" for finding in errors[1:])
    raise kind(f"{first.found} [{first.name}]{others}", expected=first.expected, action=first.action)


def sample(examples: Sequence[Example], count: int, *, seed: int = 0) -> list[Example]:
    """Return `count` of the examples in their order, drawn by `seed`; all where there are no more."""
    if len(examples) <= count:
        return list(examples)
    places = np.random.default_rng(seed).choice(len(examples), count, replace=False)
    return [examples[place] for place in sorted(places.tolist())]


# ── The examples of a source


def check_source(source: Source, *, seed: int = 0) -> Iterator[Outcome]:
    """Yield what is wrong with the texts, labels, scores and classes of a source, by reading alone."""
    examples = sample(source.examples, LOOKED, seed=seed)
    for check in (_check_texts, _check_garbled, _check_roles, _check_labels, _check_classes, _check_repeats):
        yield from check(source.name, examples)
    if "triplet" in source.losses:
        yield from _check_triplets(source.name, examples)


def _check_texts(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    texts = [normalize(text) for example in examples for text in texts_of(example)]
    if not texts:
        return
    empty = sum(not text for text in texts)
    if empty:
        yield Finding(
            "empty-texts",
            "error" if empty > len(texts) / 2 else "warning",
            f"{name}: {_share(empty, len(texts))} texts are empty or only punctuation",
            "words in every text",
            "leave these rows out; check that the text column is the right one",
        )
    if len(examples) >= 2 and len(set(texts)) == 1:
        yield Finding(
            "same-texts",
            "error",
            f"{name}: all {len(texts)} texts of {len(examples)} rows are the same",
            "texts that differ",
            "check that the right column was read",
        )
        return
    anchors = {normalize(texts_of(example)[0]) for example in examples}
    if len(examples) >= FEWEST and len(anchors) == 1:
        yield Finding(
            "same-anchors",
            "warning",
            f"{name}: all {len(examples)} rows have the same first text",
            "many different anchors",
            "check that the anchor's column is the right one",
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
            f"{name}: {_share(broken, len(texts))} texts have broken letters (mojibake such as Ã©, U+FFFD, bytes)",
            "text in its own encoding",
            "read the source again with its encoding (often UTF-8 read as Latin-1) and write it as UTF-8",
        )
    marked = sum(MARKUP.search(text) is not None for text in texts)
    if marked > HEAVY * len(texts):
        yield Finding(
            "markup-in-texts",
            "warning",
            f"{name}: {_share(marked, len(texts))} texts have HTML tags or entities",
            "plain text as it will be asked",
            "take the tags out and the entities apart (html.unescape) unless such texts are to be searched",
        )


def _check_roles(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    positives = [(normalize(left), normalize(right)) for left, right in _alike(examples)]
    same = sum(left == right for left, right in positives)
    if positives and same > HEAVY * len(positives) and same >= 2:
        yield Finding(
            "positives-equal-anchors",
            "error" if same == len(positives) and _only_pairs(examples) else "warning",
            f"{name}: {_share(same, len(positives))} positives are their anchor again (but for case and punctuation)",
            "positives in other words: equal texts have cosine 1 already",
            "check that two different columns were read, or leave these rows out",
        )
    yield from _check_negatives(name, examples)


def _only_pairs(examples: Sequence[Example]) -> bool:
    return not any(isinstance(example, Triplet) or _is_pair(example, 0) for example in examples)


def _alike(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    for example in examples:
        match example:
            case PositivePair() | Triplet():
                yield example.anchor, example.positive
            case LabelledPair(label=1):
                yield example.sentence1, example.sentence2


def _check_negatives(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    known: dict[str, set[str]] = defaultdict(set)
    for left, right in _alike(examples):
        known[normalize(left)].add(normalize(right))
    pairs = [(normalize(left), normalize(right)) for left, right in _unlike(examples)]
    wrong = sum(right == left or right in known.get(left, ()) for left, right in pairs)
    if not wrong or wrong <= 0.01 * len(pairs):
        return
    yield Finding(
        "negatives-equal-positives",
        "error" if wrong > len(pairs) / 2 else "warning",
        f"{name}: {_share(wrong, len(pairs))} negatives are the anchor or a positive of the same anchor",
        "negatives with another answer",
        "leave these negatives out; check that the columns of positives and negatives are two",
    )


def _unlike(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    for example in examples:
        match example:
            case Triplet():
                yield from ((example.anchor, negative) for negative in example.negatives)
            case LabelledPair(label=0):
                yield example.sentence1, example.sentence2


def _is_pair(example: Example, label: int) -> bool:
    return isinstance(example, LabelledPair) and example.label == label


def _check_labels(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    pairs = [example for example in examples if isinstance(example, LabelledPair)]
    if len(pairs) < len(examples) or not pairs:
        return
    ones = sum(pair.label for pair in pairs)
    rare = min(ones, len(pairs) - ones)
    if len(pairs) >= FEWEST and rare <= 0.01 * len(pairs):
        yield Finding(
            "one-label",
            "warning",
            f"{name}: {ones} of {len(pairs)} labelled pairs have label 1, {len(pairs) - ones} have label 0",
            "both labels",
            "add pairs of the other label; with positives only, infonce takes the other rows of a batch as negatives",
        )


def _check_triplets(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    positives = {normalize(left) for left, _ in _alike(examples)}
    if not any(normalize(left) in positives for left, _ in _unlike(examples)):
        yield Finding(
            "no-triplets",
            "error",
            f"{name}: no anchor of the {len(examples)} rows has both a positive and a negative",
            "anchors with both, which the triplet loss needs: it would be 0 in every step",
            "use --losses logistic or online_contrastive, or give triplets",
        )


def check_scores(source: Source) -> Iterator[Outcome]:
    """Yield what is wrong with the scores as they were given; all are looked at, since one NaN is enough."""
    graded = [example for example in source.examples if isinstance(example, ScoredPair)]
    taught = [score for example in source.examples if isinstance(example, Triplet) for score in example.scores]
    scores = np.array([*(example.score for example in graded), *taught])
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        yield Finding(
            "scores-not-numbers",
            "error",
            f"{source.name}: {_share(len(bad), len(scores))} scores are no numbers (the first: number {bad[0] + 1})",
            "finite scores",
            "leave these rows out or give them a score",
        )
        return
    if len(graded) >= 2 and scores.min() == scores.max():
        yield Finding(
            "constant-scores",
            "error",
            f"{source.name}: all {len(scores)} scores are {scores[0]:g}",
            "scores that differ: there is no order to learn",
            "check that the right column was read; for pairs that all belong together use anchor and positive",
        )
    yield from _check_scales(source.name, scores)


def _check_scales(name: str, scores: Values) -> Iterator[Outcome]:
    fractions = int(((scores > 0) & (scores < 1)).sum())
    large = int((scores > 10).sum())
    if min(fractions, large) >= max(0.05 * len(scores), 2):
        yield Finding(
            "mixed-scales",
            "warning",
            f"{name}: {_share(fractions, len(scores))} scores lie between 0 and 1, {_share(large, len(scores))} above "
            "10",
            "one scale",
            f"bring all scores to one scale (the largest is {scores.max():g}), or give the parts as sources (--mix)",
        )


def _check_classes(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    counts = Counter(example.label for example in examples if isinstance(example, LabelledText))
    if not counts:
        return
    if len(counts) == 1:
        yield Finding(
            "one-class",
            "error",
            f"{name}: all {len(examples)} texts are of the class {next(iter(counts))!r}",
            "at least two classes",
            "check that the right column was read as the class",
        )
        return
    alone = sum(count == 1 for count in counts.values())
    if alone > len(counts) / 2:
        yield Finding(
            "classes-of-one",
            "error" if alone == len(counts) else "warning",
            f"{name}: {_share(alone, len(counts))} classes have one text",
            "two texts or more of a class: a triplet needs an anchor and a mate",
            "give more texts a class, or check that the class column is not an id",
        )


def _check_repeats(name: str, examples: Sequence[Example]) -> Iterator[Outcome]:
    rows = Counter(_content(example) for example in examples)
    copies = len(examples) - len(rows)
    if len(examples) >= FEWEST and copies > HEAVY * len(examples):
        most = rows.most_common(1)[0][1]
        yield Finding(
            "repeated-rows",
            "warning",
            f"{name}: {_share(copies, len(examples))} rows say what another row says; one comes {most} times",
            "each row once",
            "leave the copies out, or raise --epochs if rows are to be seen more often",
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
            f"{name}: {_share(torn, len(labels))} pairs of texts have label 1 in one row and 0 in another",
            "one label for a pair",
            "decide which label holds and leave the other rows out",
        )


def _content(example: Example) -> tuple[object, ...]:
    texts = tuple(map(normalize, texts_of(example)))
    return (*texts, getattr(example, "label", None), getattr(example, "score", None))


# ── Prompts, mixture, settings


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


def check_default_prompt(source: Source, prompts: Prompts, default: str) -> Iterator[Outcome]:
    """Yield texts that have the prompt which the base puts before every text, and prompts that come on top of it."""
    yield from _check_doubled(source.name, default, [texts_of(example)[0] for example in source.examples[:LOOKED]])
    own = source.prompts or prompts
    if default and default in (own.query, own.document):
        yield Finding(
            "prompt-twice",
            "warning",
            f"the base puts {default!r} before every text, and so do the prompts of {source.name}",
            "one of them",
            "leave the prompt out of the run",
            "configuration",
        )


def _check_doubled(name: str, prompt: str, texts: Sequence[str]) -> Iterator[Outcome]:
    start = prompt.partition("{instruction}")[0].strip().casefold()
    doubled = sum(text.lstrip().casefold().startswith(start) for text in texts) if len(start) >= 3 else 0
    if doubled > 0.05 * len(texts):
        yield Finding(
            "prompt-twice",
            "warning",
            f"{name}: {_share(doubled, len(texts))} texts begin with the prompt that is put before them, {prompt!r}",
            "texts without it",
            "take the prompt out of the texts, or train without prompts",
        )


def _check_instructions(source: Source, prompts: Prompts) -> Iterator[Outcome]:
    if "{instruction}" not in prompts.query:
        return
    given = [getattr(example, "instruction", None) for example in source.examples]
    missing = sum(not text for text in given)
    if missing:
        yield Finding(
            "instructions-missing",
            "error" if missing == len(given) else "warning",
            f"{source.name}: {_share(missing, len(given))} rows have no instruction, and the prompt is "
            f"{prompts.query!r}",
            "a column instruction (or task) in every row",
            "add the column, or write the instruction into the prompt",
        )


def check_mixture(sources: Sequence[Source], counts: Sequence[int], config: TrainingConfig) -> Iterator[Outcome]:
    """Yield sources that a mixture's weights repeat hundreds of times.

    Args:
        counts: rows of each source.
    """
    total, rows = sum(source.weight for source in sources), sum(counts)
    if not total or len(sources) < 2:
        return
    seen = rows * config.epochs if not config.steps else min(rows * config.epochs, config.steps * config.batch)
    for source, count in zip(sources, counts, strict=True):
        passes = seen * source.weight / total / max(count, 1)
        if passes > max(100, 3 * config.epochs):
            yield Finding(
                "repeated-source",
                "warning",
                f"{source.name}: its {count} rows make up {source.weight / total:.0%} of the mixture, so each comes "
                f"{passes:,.0f} times",
                "at most some dozens of times: more is learnt by heart",
                "lower its weight, or give it more rows",
                "configuration",
            )


TEMPERED = frozenset({"infonce", "cosent", "angle"})


def check_settings(
    config: TrainingConfig, losses: Collection[str], *, rows: int, dimension: int, asked: int = 0
) -> Iterator[Outcome]:
    """Yield settings that cannot do what they say.

    Args:
        losses: names of all losses of the run.
        rows: rows of the training set.
        dimension: length of the model's embeddings.
        asked: the batch that the user asked for, 0 where it was chosen.
    """
    if asked > rows:
        yield Finding(
            "batch-larger-than-rows",
            "warning",
            f"a batch of {asked} from {rows} rows: an epoch is one step",
            f"a batch far below {rows}",
            f"set --batch to {max(rows // 45, 1)} or so",
            "configuration",
        )
    own = sorted(TEMPERED & set(losses))
    if own and not 0.005 <= config.temperature < 1:
        large = config.temperature >= 1
        yield Finding(
            "temperature",
            "warning",
            f"{', '.join(own)} with temperature {config.temperature:g}: cosines from −1 to 1 become logits from "
            f"{-1 / config.temperature:g} to {1 / config.temperature:g}",
            "0.01 to 0.1",
            f"a scale of {config.temperature:g} is a temperature of {1 / config.temperature:g}"
            if large
            else "set --set temperature=0.05",
            "configuration",
        )
    yield from _check_dimensions(config.dimensions, dimension)


def _check_dimensions(dimensions: Sequence[int], width: int) -> Iterator[Outcome]:
    if not dimensions:
        return
    if min(dimensions) < 1 or max(dimensions) > width:
        yield Finding(
            "matryoshka-dimensions",
            "error",
            f"matryoshka dimensions {list(dimensions)} of a model with {width}",
            f"1 to {width}",
            f"leave out those above {width}",
            "configuration",
        )
    elif list(dimensions) != sorted(set(dimensions), reverse=True) or width not in dimensions:
        whole = [width, *sorted(set(dimensions) - {width}, reverse=True)]
        yield Finding(
            "matryoshka-dimensions",
            "warning",
            f"matryoshka dimensions {list(dimensions)}: twice, not descending, or without the whole {width}",
            f"{whole}",
            f"--set 'dimensions={whole}', unless the whole embedding is not to be trained",
            "configuration",
        )


# ── The batches


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
            if "infonce" in losses[source]:
                counts[source] += _count_negatives(rows, texts, answers)
            if "batch_triplet" in losses[source]:
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
            f"{name}: {_share(count['idle'], count['batches'])} batches lack two texts of a class beside another",
            "a triplet in every batch",
            "raise --batch (texts of a class come in fours, so 16 has four classes)",
            "configuration",
        )


def _count_negatives(rows: Sequence[Row], texts: Sequence[str], answers: Mapping[str, set[str]]) -> Counter[str]:
    places, local = localize(rows)
    found = contrast(local)
    plain = [normalize(texts[place]) for place in places.tolist()]
    excluded: dict[int, set[int]] = defaultdict(set)
    for number, column in found.excluded.tolist():
        excluded[number].add(column)
    counts = Counter({"anchors": len(found.anchors)})
    for number, (anchor, own) in enumerate(zip(found.anchors.tolist(), found.positive_of.tolist(), strict=True)):
        left = set(range(len(found.candidates))) - excluded[number] - {own}
        known = answers[plain[anchor]]
        false = sum(plain[found.candidates[column]] in known for column in left)
        counts.update({"negatives": len(left), "alone": not left, "misled": false > 0, "false": false})
    return counts


def _judge_pool(name: str, count: Counter[str]) -> Iterator[Outcome]:
    anchors = count["anchors"]
    if anchors and count["alone"] > HEAVY * anchors:
        yield Finding(
            "no-negatives",
            "error" if count["alone"] == anchors else "warning",
            f"{name}: {_share(count['alone'], anchors)} anchors of the first batches have no negative under infonce",
            "other rows in the same batch, or negatives of their own",
            "raise --batch, give rows different groups, or give triplets",
            "configuration",
        )
    if count["misled"] > 0.1 * anchors and count["misled"] >= 2:
        yield Finding(
            "false-negatives",
            "warning",
            f"{name}: {_share(count['misled'], anchors)} anchors meet one of their own answers as a negative "
            f"({count['false']} of {count['negatives']} negatives)",
            "texts with the same answer in one group",
            "give rows with the same answer the same `group`, leave copies out, or mask them: --set guide=self",
        )


# ── Tokens


def check_tokens(tokens: Tokens, limit: int | None) -> Iterator[Outcome]:
    """Yield texts that are cut, and texts that are the same once they are cut."""
    cut = np.flatnonzero(tokens.truncated)
    share = len(cut) / max(len(tokens), 1)
    if share <= HEAVY or not len(cut):
        return
    kept = Counter(_ids(tokens, place) for place in cut.tolist())
    equal = sum(count for count in kept.values() if count > 1)
    lost = share > NONE_LEFT and equal > len(cut) / 2
    same = f"; {equal} of them are then the same as another" if equal else ""
    yield Finding(
        "truncated-texts",
        "error" if lost else "warning",
        f"{_share(len(cut), len(tokens))} texts are longer than the {limit} tokens that the model reads{same}",
        "texts that are read to their end",
        "raise --set max_length=… as far as the model's positions go, or cut long texts into passages",
        "configuration" if lost else "data",
    )


def _ids(tokens: Tokens, place: int) -> bytes:
    return bytes(tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]].tobytes())


# ── What the untrained base says


@dataclass(frozen=True, slots=True)
class Probe:
    """Pairs of texts whose order is known, drawn from a source.

    Attributes:
        kind: "triplets" (the first half of the pairs are positives, the second half their negatives), "labels" or
            "scores".
        truth: (n,) 1 or 0, or the score.
    """

    name: str
    kind: Literal["triplets", "labels", "scores"]
    left: tuple[str, ...]
    right: tuple[str, ...]
    truth: Values

    @property
    def rows(self) -> int:
        """Rows that were looked at."""
        return len(self.left) // 2 if self.kind == "triplets" else len(self.left)


def draw_probe(source: Source, count: int = ROWS, *, seed: int = 0) -> Probe | Unchecked:
    """Return pairs of the source that the base is asked about, or why it cannot be asked."""
    triplets = [item for item in source.examples if isinstance(item, Triplet) and item.negatives]
    if triplets:
        drawn = [item for item in sample(triplets, count, seed=seed) if isinstance(item, Triplet)]
        right = (*(item.positive for item in drawn), *(item.negatives[0] for item in drawn))
        truth = np.repeat([1.0, 0.0], len(drawn))
        return _enough(Probe(source.name, "triplets", tuple(item.anchor for item in drawn) * 2, right, truth))
    pairs = [item for item in source.examples if isinstance(item, (LabelledPair, ScoredPair))]
    if not pairs:
        return Unchecked("order", f"{source.name} has neither triplets nor labels nor scores to hold the base against")
    kept = [item for item in sample(pairs, count, seed=seed) if isinstance(item, (LabelledPair, ScoredPair))]
    graded = isinstance(kept[0], ScoredPair)
    truth = np.array([item.score if isinstance(item, ScoredPair) else float(item.label) for item in kept])
    sides = tuple(item.sentence1 for item in kept), tuple(item.sentence2 for item in kept)
    return _enough(Probe(source.name, "scores" if graded else "labels", *sides, truth))


def _enough(probe: Probe) -> Probe | Unchecked:
    least = min(int((probe.truth == 1).sum()), int((probe.truth == 0).sum()))
    if probe.kind == "scores":
        least = probe.rows if np.isfinite(probe.truth).all() and np.ptp(probe.truth) > 0 else 0
    if least < FEWEST:
        return Unchecked("order", f"{probe.name} has {least} rows of a kind, too few of {FEWEST} to tell")
    return probe


def quality(probe: Probe, cosines: Values) -> float:
    """Return how well cosines order the pairs of a probe: a share of triplets or an AUC (.5 is chance), a Spearman (0).

    Two triplets, positives at (.8, .5), negatives at (.3, .6): one of two is right, 0.5.
    """
    if probe.kind == "scores":
        return spearman(cosines, probe.truth) if np.ptp(cosines) > 0 else 0.0
    if probe.kind == "labels":
        return float(Ranking(probe.truth.astype(np.int64), cosines).roc_auc())
    positives, negatives = np.split(cosines, 2)
    return float(((positives > negatives) + 0.5 * (positives == negatives)).mean())


_REVERSED: Mapping[str, tuple[str, float, str, str, str]] = {
    "triplets": (
        "swapped-columns",
        1 / 3,
        "the positive is closer than the negative in {:.0%} of {} triplets",
        "positives that are closer than negatives in most",
        "look at some rows: exchange the columns positive and negative; if the negatives are hard ones, go on",
    ),
    "labels": (
        "inverted-labels",
        0.4,
        "the cosine tells label 1 from label 0 with an AUC of {:.2f} on {} pairs, worse than chance (.5)",
        "pairs with label 1 that are closer",
        "look at some rows: label 1 means that one answer serves both; exchange 0 and 1 if it is the other way round",
    ),
    "scores": (
        "inverted-scores",
        -0.2,
        "the Spearman correlation of cosine and score is {:.2f} on {} pairs",
        "higher scores for closer texts",
        "look at some rows: if the score is a distance, give its negative",
    ),
}


def check_order(probe: Probe, cosines: Values, judge: str) -> Iterator[Outcome]:
    """Yield labels, scores or columns that say the opposite of what an untrained encoder says.

    A warning, since the negatives may be hard ones on purpose. `judge` names the encoder.
    """
    name, bound, found, expected, action = _REVERSED[probe.kind]
    value = quality(probe, cosines)
    if value < bound:
        told = found.format(value, probe.rows)
        yield Finding(name, "warning", f"{probe.name}: by {judge}, before training, {told}", expected, action)


BETTER = 0.04  # lead of another pooling that is worth a word, if it is no chance
DRAWS = 200  # bootstrap draws of that lead


def check_pooling(probe: Probe, cosines: Mapping[str, Values], own: str) -> Iterator[Outcome]:
    """Yield a pooling that orders the pairs clearly better than the base's own: in 98% of bootstrap draws as well.

    Args:
        cosines: by name of the pooling, the own one among them.
    """
    values = {name: quality(probe, found) for name, found in cosines.items()}
    best = max(values, key=values.__getitem__)
    if values[own] < _REVERSED[probe.kind][1]:
        return  # the labels look inverted, and then the worst pooling orders best
    if values[best] - values[own] > BETTER and _leads(probe, cosines[best], cosines[own]) >= 0.98:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in sorted(values.items()))
        yield _wrong_pooling(
            f"{probe.name}: before training, {best} pooling orders {probe.rows} rows better than {own}: {shown}", best
        )


def check_known_pooling(known: str, chosen: str) -> Iterator[Outcome]:
    """Yield a pooling other than the one that the base's folder was made with (`known`, "" where it says nothing)."""
    if known and known != chosen:
        yield _wrong_pooling(f"the base was trained with {known} pooling, and this run pools by {chosen}", known)


def _wrong_pooling(found: str, better: str) -> Finding:
    return Finding(
        "pooling",
        "warning",
        found,
        "the pooling that the base was trained with",
        f"read the base's model card; start from the plain model with --set pooling={better} if it fits",
        "configuration",
    )


def _leads(probe: Probe, better: Values, own: Values) -> float:
    """Return the share of resamples of the rows in which `better` orders them better than `own`."""
    generator = np.random.default_rng(0)
    won = []
    for _ in range(DRAWS):
        rows = generator.integers(probe.rows, size=probe.rows)
        places = np.concatenate([rows, rows + probe.rows]) if probe.kind == "triplets" else rows
        drawn = replace(probe, truth=probe.truth[places])
        if np.ptp(drawn.truth) > 0:
            won.append(quality(drawn, better[places]) > quality(drawn, own[places]))
    return float(np.mean(won)) if won else 0.0


# ── Leaks


def check_leaks(
    examples: Sequence[Example], held_out: Sequence[Example], *, name: str = "held-out", choosing: bool = False
) -> Iterator[Outcome]:
    """Yield rows that are trained on among those that the model is judged by (`leakage.find_shared`).

    Args:
        name: of the rows, for people.
        choosing: weights are chosen by these rows or held against them. Then one row in normal form is an error, near
            ones are a warning, and single texts may be shared; else more than 1% of the rows are an error, near ones
            among them, and texts that recur in other rows are a warning.
    """
    if not held_out:
        return
    shared = find_shared(examples, held_out)
    leaked = sorted((*shared.same, *shared.near))
    told = ", ".join(f"{count} {how}" for how, count in shared.how.items())
    if leaked:
        wrong = bool(shared.same) if choosing else len(leaked) > 0.01 * shared.rows
        yield Finding(
            "leaked-rows",
            "error" if wrong else "warning",
            f"{_share(len(leaked), shared.rows)} {name} rows are training rows as well, {len(shared.near)} of them "
            f"nearly (the first: row {(shared.same or shared.near)[0]}; texts: {told})",
            f"no {name} row that a training row repeats, whatever its case, spaces, order and label",
            "take these rows out of the training set: figures on them would tell nothing "
            "(examples.split parts a set without leaks)",
        )
    count = sum(shared.how.values())
    if not choosing and count > HEAVY * shared.texts:
        yield Finding(
            "leaked-texts",
            "warning",
            f"{_share(count, shared.texts)} {name} texts are in the training set: {told}",
            f"{name} texts that the model has not seen",
            "part the set by texts and groups (examples.split) unless only the pairs have to be new",
        )


# ── While it runs


class Watch:
    """Stops a run that diverges: a loss far above its start, or embeddings that fall together to one point.

    Losses are compared within the sources of a batch, since those of different sources have different sizes. A resumed
    run remembers what the killed one had seen, so it stops where that would have stopped.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._losses: dict[tuple[int, ...], list[float]] = {}
        self._recent: dict[tuple[int, ...], deque[float]] = {}
        self._first: list[float] = []
        self._spreads: deque[float] = deque(maxlen=WINDOW)

    def recall(self) -> dict[str, Any]:
        """Return what was seen, as JSON knows it."""
        return {
            "steps": self._steps,
            "losses": [[list(sources), found] for sources, found in self._losses.items()],
            "recent": [[list(sources), list(found)] for sources, found in self._recent.items()],
            "first": self._first,
            "spreads": list(self._spreads),
        }

    def remember(self, seen: Mapping[str, Any]) -> None:
        """Take over what `recall` gave."""
        self._steps = int(seen["steps"])
        self._losses = {tuple(sources): list(found) for sources, found in seen["losses"]}
        self._recent = {tuple(sources): deque(found, maxlen=WINDOW) for sources, found in seen["recent"]}
        self._first = list(seen["first"])
        self._spreads = deque(seen["spreads"], maxlen=WINDOW)

    def see(self, loss: float, closeness: float, sources: tuple[int, ...] = (0,)) -> None:
        """Take in a step.

        Args:
            closeness: mean cosine of any two texts of the batch (`mean_cosine`); NaN where there are too few.

        Raises:
            ConfigurationError: the run diverges.
        """
        self._steps += 1
        if not math.isfinite(loss):
            return  # the optimisation says so itself
        self._see_loss(loss, sources)
        if math.isfinite(closeness):
            self._see_closeness(closeness)

    def _see_loss(self, loss: float, sources: tuple[int, ...]) -> None:
        first = self._losses.setdefault(sources, [])
        if len(first) < FIRST:
            first.append(loss)
            return
        recent = self._recent.setdefault(sources, deque(maxlen=WINDOW))
        recent.append(loss)
        start, now = float(np.mean(first)), float(np.mean(recent))
        if len(recent) == WINDOW and now > 4 * start + 1:
            raise self._stop(f"the loss rose from {start:.3g} (first {FIRST} steps) to {now:.3g} (last {WINDOW})")

    def _see_closeness(self, closeness: float) -> None:
        apart = 1 - closeness
        if len(self._first) < 2:  # more would be of weights that have moved already
            self._first.append(apart)
            return
        self._spreads.append(apart)
        start, now = float(np.mean(self._first)), float(np.mean(self._spreads))
        if len(self._spreads) == WINDOW and max(self._spreads) < 0.02 and now < start / 10:
            raise self._stop(
                f"all embeddings fall together: the mean cosine of two texts rose from {1 - start:.3f} to {1 - now:.4f}"
            )

    def _stop(self, found: str) -> ConfigurationError:
        return ConfigurationError(
            f"{found} after {self._steps} steps [diverged]",
            expected="a loss that falls and texts that stay apart",
            action="lower --learning-rate (a tenth), or raise warmup; then check the labels",
        )


def mean_cosine(total: float, count: int) -> float:
    """Return the mean cosine of two different rows of `count` unit rows whose sum has squared length `total`.

    (‖Σ e‖² − n) / (n (n − 1)): two rows at right angles have 2, so 0. NaN below four rows.
    """
    return (total - count) / (count * (count - 1)) if count >= 4 else math.nan


def check_movement(moved: float, losses: Sequence[tuple[int, float]], config: TrainingConfig) -> Iterator[Outcome]:
    """Yield a run that changed nothing.

    Args:
        moved: length of the weights' change over their length.
        losses: (step, loss) of the run.
    """
    if moved >= 1e-6 or config.base_weight == 1 or not losses:
        return
    first, last = losses[0][1], losses[-1][1]
    yield Finding(
        "nothing-learnt",
        "warning",
        f"the weights moved by {moved:.1e} of their length in {len(losses)} steps at learning rate "
        f"{config.learning_rate:g}; the loss went from {first:.4g} to {last:.4g}",
        "a change of 1e-4 or more",
        "raise --learning-rate (5e-5 tunes encoders, 1e-4 to 2e-4 adapters) or train for more steps",
        "configuration",
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(whole, 1):.1%})"
