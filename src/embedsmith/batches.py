"""Examples as batches: what the training step sees, in an order that only the seed decides.

A *row* is an anchor with all it is compared to: texts with the same answer and texts with another
one, or graded ones, or its class. Rows of one batch never share a group where each takes the others' texts as
negatives, so that none is a false one because both come from the same question or text. A *source* is a set of
examples with its own losses, prompts and share in a mixture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import InputError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet, is_asymmetric

Index = NDArray[np.int64]
Numbers = NDArray[np.float32]
Mixing = Literal["apart", "mixed"]
PAIRS = 2**16  # a row with more pairs (some 400 texts of one anchor) is sampled
PER_CLASS = 4  # texts of one class that are dealt to a batch together; a triplet needs two


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is put before a text; `{instruction}` stands for what the example itself asks for.

    Attributes:
        query: before anchors.
        document: before positives and negatives.
        alone: before both texts of a symmetric pair (graded or labelled); None is the query's prompt.
    """

    query: str = ""
    document: str = ""
    alone: str | None = None


INSTRUCTION = "{instruction}"


@dataclass(frozen=True, slots=True)
class Source:
    """A part of a mixture.

    Attributes:
        losses: weight by name; {} lets the data choose.
        weight: share of the mixture relative to the other sources; 0 takes every row once an epoch.
        prompts: None takes those of the run.
        symmetric: both sides of a pair get the query prompt; None leaves it to the kind of the examples.
    """

    examples: tuple[Example, ...]
    name: str = "examples"
    losses: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    prompts: Prompts | None = None
    symmetric: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """An anchor and what it is compared to; the numbers are places of texts.

    Attributes:
        scores: how close the positives, then the negatives, are; () where nobody graded them.
        label: number of the anchor's class, −1 without classes.
        source: number of the source it comes from.
    """

    anchor: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    group: str
    scores: tuple[float, ...] = ()
    label: int = -1
    source: int = 0


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Distinct texts, prompts included, and the rows that point into them, source after source."""

    texts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def pairs(self) -> int:
        """Number of (anchor, text) pairs."""
        return sum(len(row.positives) + len(row.negatives) for row in self.rows)


def collect_rows(examples: Sequence[Example]) -> TrainingSet:
    """Return the training set of one source; rows with the same anchor and group are joined."""
    return collect([Source(tuple(examples))])


def collect(sources: Sequence[Source], prompts: Prompts | None = None) -> TrainingSet:
    """Return the training set of a mixture; within a source, rows with the same anchor and group are joined.

    Args:
        prompts: for the sources that have none of their own.
    """
    places: dict[str, int] = {}
    rows: list[Row] = []
    for number, source in enumerate(sources):
        own = source.prompts or prompts or Prompts()
        rows.extend(replace(row, source=number) for row in _rows_of(source, own, places))
    return TrainingSet(tuple(places), tuple(rows))


def _rows_of(source: Source, prompts: Prompts, places: dict[str, int]) -> Iterator[Row]:
    joined: dict[tuple[int, str], tuple[dict[int, None], dict[int, None]]] = {}
    classes: dict[str, int] = {}

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    for example in source.examples:
        query, document = prompts_of(example, prompts, symmetric=source.symmetric)
        match example:
            case LabelledText():
                label = classes.setdefault(example.label, len(classes))
                yield Row(place(query + example.text), (), (), _group(example, place(query + example.text)), (), label)
            case ScoredPair():
                anchor, other = place(query + example.sentence1), place(document + example.sentence2)
                yield Row(anchor, (other,), (), _group(example, anchor), (example.score,))
            case Triplet(scores=scores) if scores:
                anchor, positive = place(query + example.anchor), place(document + example.positive)
                negatives = tuple(place(document + text) for text in example.negatives)
                yield Row(anchor, (positive,), negatives, _group(example, anchor), scores)
            case _:
                text, positives, negatives_ = _roles(example)
                anchor = place(query + text)
                known = joined.setdefault((anchor, _group(example, anchor)), ({}, {}))
                for target, texts in zip(known, (positives, negatives_), strict=True):
                    target.update(dict.fromkeys(place(document + text) for text in texts))
    for (anchor, group), (same, other_answers) in joined.items():
        yield Row(anchor, tuple(same), tuple(other_answers), group)


def _roles(example: PositivePair | Triplet | LabelledPair) -> tuple[str, Sequence[str], Sequence[str]]:
    match example:
        case PositivePair():
            return example.anchor, [example.positive], []
        case Triplet():
            return example.anchor, [example.positive], example.negatives
        case LabelledPair(label=1):
            return example.sentence1, [example.sentence2], []
        case LabelledPair():
            return example.sentence1, [], [example.sentence2]


def _group(example: Example, anchor: int) -> str:
    return example.group if example.group is not None else f"text:{anchor}"


def prompts_of(example: Example, prompts: Prompts, *, symmetric: bool | None = None) -> tuple[str, str]:
    """Return what goes before the anchor and before the texts it is compared to.

    Args:
        symmetric: the query prompt for both; None leaves it to the kind of the example.
    """
    instruction = example.instruction if isinstance(example, (PositivePair, Triplet)) else None
    query = prompts.query.replace(INSTRUCTION, instruction or "")
    if not has_equal_sides(example, symmetric):
        return query, prompts.document
    both = query if prompts.alone is None else prompts.alone
    return both, both


def has_equal_sides(example: Example, symmetric: bool | None) -> bool:
    """Say whether both sides of an example are read with one prompt; `symmetric` is what its source says of that."""
    return symmetric if symmetric is not None else not is_asymmetric(example)


def saved_prompts(sources: Sequence[Source], prompts: Prompts) -> tuple[Prompts, tuple[str, ...]]:
    """Return the prompts to save with a model: a placeholder becomes the most frequent instruction; and a note."""
    if INSTRUCTION not in prompts.query:
        return prompts, ()
    asked = (example for source in sources for example in source.examples)
    found = Counter(
        example.instruction for example in asked if isinstance(example, (PositivePair, Triplet)) and example.instruction
    )
    if not found:
        raise InputError(
            "the prompt has a place for an instruction, and no example has one",
            expected='a column "instruction", or a prompt without {instruction}',
            action="add the column, or --set prompts.query='...'",
        )
    most = found.most_common(1)[0][0]
    more = f", the most frequent of {len(found)}" if len(found) > 1 else ""
    query = prompts.query.replace(INSTRUCTION, most)
    return replace(prompts, query=query), (f"prompt for queries saved with the instruction {most!r}{more}",)


def prompt_alone(sources: Sequence[Source], prompts: Prompts) -> str:
    """Return what goes before a text that stands by itself: what most rows with equal sides were read with.

    Without such rows it is what the prompts name for them, else "".
    """
    found: Counter[str] = Counter()
    for source in sources:
        for example in source.examples:
            if has_equal_sides(example, source.symmetric):
                found[prompts_of(example, source.prompts or prompts, symmetric=True)[0]] += 1
    return found.most_common(1)[0][0] if found else prompts.alone or ""


# ── The order of the rows


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of a mixture become batches.

    Attributes:
        size: rows a batch.
        weights: share of each source; 0 for all of them takes every row once an epoch.
        mixing: "apart" gives each batch rows of one source, "mixed" rows of all.
        free: sources whose losses take no negatives from the batch: several rows of one group may share a batch.
    """

    size: int
    weights: tuple[float, ...] = (0.0,)
    mixing: Mixing = "apart"
    free: frozenset[int] = frozenset()


def count_batches(rows: Sequence[Row], plan: Plan) -> int:
    """Return the number of batches of an epoch: enough for all rows and for the most frequent group."""
    shares = _shares(rows, plan)
    if plan.mixing == "apart":
        return sum(share.batches(plan.size) for share in shares)
    whole = -(-sum(share.wanted for share in shares) // plan.size)
    return max([whole, *(share.batches(share.wanted) for share in shares)])


def order_batches(rows: Sequence[Row], plan: Plan, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the rows of each batch of one epoch: no row twice in a batch, nor a group of a source that is not free.

    There are `count_batches` of them. In mixed batches each source starts where the one before it stopped, so sizes
    differ by one row at most. Without weights an epoch takes every row once; with weights a source takes its quota
    from an endless sequence of shuffles, and the next epoch goes on there. The order depends on (seed, epoch) only, so
    a resumed run sees the same batches. Linear time: groups are dealt out like cards, row after
    row to the next batch, so that the rows of a group (at most as many as batches) land in different ones.
    """
    shares = _shares(rows, plan)
    if len(shares) == 1:
        return _deal_apart(rows, shares[0], plan.size, seed, epoch)
    if plan.mixing == "mixed":
        batches = _deal_mixed(rows, shares, count_batches(rows, plan), seed, epoch)
    else:
        batches = [batch for share in shares for batch in _deal_apart(rows, share, plan.size, seed, epoch)]
    return [batches[place] for place in np.random.default_rng([seed, epoch, 0]).permutation(len(batches)).tolist()]


def _deal_apart(rows: Sequence[Row], share: _Share, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of one source, in an order of their own."""
    generator = share.generator(seed, epoch)
    dealt = _deal(rows, share, share.batches(size), seed, epoch, generator)
    if rows[share.places[0]].label >= 0:  # classes came as they fell
        return dealt
    return [dealt[place] for place in generator.permutation(len(dealt)).tolist()]


def _deal_mixed(rows: Sequence[Row], shares: Sequence[_Share], steps: int, seed: int, epoch: int) -> list[list[int]]:
    """Return batches with rows of all sources, each dealt out from where the one before it stopped: none is empty."""
    batches: list[list[int]] = [[] for _ in range(steps)]
    first = 0
    for share in shares:
        for place, own in enumerate(_deal(rows, share, steps, seed, epoch, share.generator(seed, epoch))):
            batches[(first + place) % steps] += own
        first += share.wanted
    return batches


@dataclass(frozen=True, slots=True)
class Crowd:
    """A source whose batches come out less than half as large as planned.

    Its most frequent group has `most` rows, and no batch may hold two of them, so there have to be as many batches.

    Attributes:
        rows: of an epoch. size: rows of a batch as it comes out. planned: rows of a batch as asked for.
    """

    source: int
    rows: int
    most: int
    size: float
    planned: int


def find_crowds(rows: Sequence[Row], plan: Plan) -> list[Crowd]:
    """Return the sources whose most frequent group (or row, if repeated often) shrinks the batches below half.

    With a group of 1,000 among 5,000 rows and a size of 4,096 there are 1,000 batches of 5.
    """
    shares = _shares(rows, plan)
    if plan.mixing == "mixed":
        whole = sum(share.wanted for share in shares)
        counted = [(max(shares, key=lambda share: share.most), whole, count_batches(rows, plan), len(rows))]
    else:
        counted = [(share, share.wanted, share.batches(plan.size), len(share.places)) for share in shares]
    found = [
        Crowd(share.number, whole, share.most, whole / count, min(plan.size, whole, distinct))
        for share, whole, count, distinct in counted
    ]
    return [crowd for crowd in found if crowd.size < crowd.planned / 2]


@dataclass(frozen=True, slots=True)
class _Share:
    """The rows of a source, its quota of an epoch, and the least number of batches: the size of its largest group."""

    number: int
    places: tuple[int, ...]
    wanted: int
    most: int

    def batches(self, size: int) -> int:
        return min(max(-(-self.wanted // size), self.most), self.wanted)

    def generator(self, seed: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng([seed, epoch, *([self.number] if self.number else [])])


def _shares(rows: Sequence[Row], plan: Plan) -> list[_Share]:
    members: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        members[row.source].append(place)
    total = sum(plan.weights[source] for source in members) if any(plan.weights) else 0.0
    shares = []
    for source, places in sorted(members.items()):
        wanted = max(round(len(rows) * plan.weights[source] / total), 1) if total else len(places)
        most = 1 if source in plan.free else max(Counter(rows[place].group for place in places).values())
        # Where an epoch stops within a pass, it may have a row once more than it has whole passes.
        passes = 1 if wanted == len(places) else 1 - (1 - wanted) // len(places)
        shares.append(_Share(source, tuple(places), wanted, most * passes))
    return shares


def _deal(
    rows: Sequence[Row], share: _Share, steps: int, seed: int, epoch: int, generator: np.random.Generator
) -> list[list[int]]:
    """Return the share's rows of this epoch, dealt to `steps` batches; larger ones, by one row, come first."""
    drawn = _draw(share, seed, epoch) if share.wanted != len(share.places) else generator.permutation(share.places)
    members: dict[str, list[int]] = defaultdict(list)
    for row in drawn.tolist():
        members[_together(rows[row])].append(row)
    dealt = [row for group in members.values() for row in _join_repeats(group, steps)]
    if rows[share.places[0]].label >= 0:
        return _deal_classes(list(members.values()), steps, generator)
    batches: list[list[int]] = [[] for _ in range(steps)]
    for place, row in enumerate(dealt):
        batches[place % steps].append(row)
    return batches


def _join_repeats(group: Sequence[int], steps: int) -> Sequence[int]:
    """Return a group that is larger than there are batches with its repeats side by side: no batch has a row twice."""
    return group if len(group) <= steps else list(Counter(group).elements())


def _together(row: Row) -> str:
    return row.group if row.label < 0 else f"class:{row.label}"


def _draw(share: _Share, seed: int, epoch: int) -> Index:
    """Return `share.wanted` rows from an endless row of shuffles, from where the epoch before stopped."""
    size, start = len(share.places), epoch * share.wanted
    passes = range(start // size, (start + share.wanted - 1) // size + 1)
    shuffled = np.concatenate([share.generator(seed, number).permutation(share.places) for number in passes])
    return np.asarray(shuffled[start % size : start % size + share.wanted], dtype=np.int64)


def _deal_classes(classes: Sequence[Sequence[int]], steps: int, generator: np.random.Generator) -> list[list[int]]:
    """Return batches in which texts of a class come in fours, and classes as they fall."""
    fours = [rows[start : start + PER_CLASS] for rows in classes for start in range(0, len(rows), PER_CLASS)]
    order = [row for place in generator.permutation(len(fours)).tolist() for row in fours[place]]
    return [part.tolist() for part in np.array_split(np.array(order), steps)]


# ── What the losses take from the rows of a batch; all numbers are places in the batch's texts


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs with what is known of them: 1 or 0, or a grade; each array (P,)."""

    left: Index
    right: Index
    labels: Numbers


@dataclass(frozen=True, slots=True)
class Contrasts:
    """A positive each that has to be found among all candidates.

    Attributes:
        anchors: (A,) texts.
        candidates: (C,) the distinct positives and negatives of the rows.
        positive_of: (A,) place in `candidates` of each anchor's positive.
        excluded: (E, 2) sorted (contrast, candidate) that is no negative: the anchor's other positives, itself.
    """

    anchors: Index
    candidates: Index
    positive_of: Index
    excluded: Index


@dataclass(frozen=True, slots=True)
class Triples:
    """Anchor, positive, negative (T,) each; margins (T,) are a teacher's positive − negative, empty without one."""

    anchors: Index
    positives: Index
    negatives: Index
    margins: Numbers


@dataclass(frozen=True, slots=True)
class Lists:
    """Graded candidates of each anchor: anchors (Q,), candidates and teacher (Q, K), mask (Q, K) where there is one."""

    anchors: Index
    candidates: Index
    teacher: Numbers
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Classes:
    """Texts (M,) and the number of the class of each (M,)."""

    texts: Index
    classes: Index


def localize(rows: Sequence[Row]) -> tuple[Index, list[Row]]:
    """Return the distinct texts of `rows` (n,) and the rows with places among these."""
    used = dict.fromkeys(text for row in rows for text in (row.anchor, *row.positives, *row.negatives))
    place = {text: index for index, text in enumerate(used)}
    local = [
        replace(
            row,
            anchor=place[row.anchor],
            positives=tuple(place[text] for text in row.positives),
            negatives=tuple(place[text] for text in row.negatives),
        )
        for row in rows
    ]
    return _index(used), local


def pairs_of(row: Row) -> list[tuple[int, int, float]]:
    """Return (left, right, label) of every pair of a row whose label follows; left and right are places of texts.

    The anchor and its positives are alike (1), each of them and each negative are not (0), whatever scores the row has.
    """
    same = (row.anchor, *row.positives)
    alike = [(left, right, 1.0) for left, right in combinations(same, 2)]
    return alike + [(left, right, 0.0) for left, right in product(same, row.negatives)]


def count_pairs(row: Row) -> int:
    """Return how many pairs of a row have a label: 3 positives and 2 negatives make 6 + 8."""
    same = len(row.positives) + 1
    return same * (same - 1) // 2 + same * len(row.negatives)


def pair_up(rows: Sequence[Row], *, graded: bool = False) -> Pairs:
    """Return the pairs of the rows with their labels; of a row with more than `PAIRS`, the anchor's and a drawn part.

    Args:
        graded: a row with scores gives its anchor's pairs with these instead.
    """
    found = [_graded_pairs(row) if graded and row.scores else _labelled_pairs(row) for row in rows]
    if not found:
        return Pairs(_index(()), _index(()), np.zeros(0, dtype=np.float32))
    left, right, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Pairs(left, right, labels.astype(np.float32))


_Columns = tuple[Index, Index, NDArray[np.float64]]


def _graded_pairs(row: Row) -> _Columns:
    others = _index((*row.positives, *row.negatives))
    return np.full(len(others), row.anchor, dtype=np.int64), others, np.array(row.scores, dtype=np.float64)


def _labelled_pairs(row: Row) -> _Columns:
    if row.positives and count_pairs(row) > PAIRS:
        return _drawn_pairs(row)
    same, other = _index((row.anchor, *row.positives)), _index(row.negatives)
    first, second = np.triu_indices(len(same), 1)
    left = np.concatenate([same[first], np.repeat(same, len(other))])
    right = np.concatenate([same[second], np.tile(other, len(same))])
    return left, right, np.repeat([1.0, 0.0], [len(first), len(same) * len(other)])


def _drawn_pairs(row: Row) -> _Columns:
    """Return all pairs of the anchor, and of those without it each with the same chance, about `PAIRS` or fewer.

    The sizes of the row alone decide, so every epoch, process and resumed run has the same pairs.
    """
    alike, others = _index(row.positives), _index((*row.positives, *row.negatives))
    chance = np.random.default_rng([len(alike), len(others)])
    drawn = np.unique(chance.integers(len(alike) * len(others), size=PAIRS))
    first, second = np.divmod(drawn, len(others))
    fresh = first < second  # two positives make one pair, none is one with itself
    places = np.concatenate([np.arange(len(others)), second[fresh]])
    left = np.concatenate([np.full(len(others), row.anchor, dtype=np.int64), alike[first[fresh]]])
    return left, others[places], (places < len(alike)).astype(np.float64)


def contrast(rows: Sequence[Row]) -> Contrasts:
    """Return one contrast for every positive; the candidates are the positives and negatives of all rows.

    What answers the anchor as well (its other positives, in whichever row of the batch, and the anchor itself) is
    excluded.
    """
    contrasts = [(row.anchor, text) for row in rows for text in row.positives]
    candidates = list(dict.fromkeys([text for _, text in contrasts] + [text for row in rows for text in row.negatives]))
    column = {text: index for index, text in enumerate(candidates)}
    anchors, positive_of = _index(anchor for anchor, _ in contrasts), _index(column[text] for _, text in contrasts)
    return Contrasts(anchors, _index(candidates), positive_of, _exclude(contrasts, column))


def _exclude(contrasts: Sequence[tuple[int, int]], column: Mapping[int, int]) -> Index:
    """Return the sorted (contrast, candidate) of all that answers a contrast's anchor besides its own positive."""
    answers: dict[int, set[int]] = defaultdict(set)
    asked: dict[int, list[int]] = defaultdict(list)
    for number, (anchor, text) in enumerate(contrasts):
        answers[anchor] |= {text, anchor} & column.keys()
        asked[anchor].append(number)
    several = [anchor for anchor, texts in answers.items() if len(texts) > 1]
    if not several:
        return np.zeros((0, 2), dtype=np.int64)
    numbers = np.concatenate([np.repeat(asked[anchor], len(answers[anchor])) for anchor in several])
    columns = np.concatenate(
        [np.tile([column[text] for text in answers[anchor]], len(asked[anchor])) for anchor in several]
    )
    own = _index(column[text] for _, text in contrasts)
    found = np.stack([numbers, columns], axis=1)[columns != own[numbers]]
    return np.asarray(found[np.lexsort(found.T[::-1])], dtype=np.int64)


def triple_up(rows: Sequence[Row]) -> Triples:
    """Return every (anchor, positive, negative) of the rows; of a row with more than `PAIRS`, a drawn part."""
    found = [_triples_of(row) for row in rows if row.positives and row.negatives]
    if not found:
        return Triples(_index(()), _index(()), _index(()), np.zeros(0, dtype=np.float32))
    anchors, positives, negatives, margins = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Triples(anchors, positives, negatives, margins.astype(np.float32))


def _triples_of(row: Row) -> tuple[Index, Index, Index, NDArray[np.float64]]:
    alike, others = _index(row.positives), _index(row.negatives)
    count = len(alike) * len(others)
    chance = np.random.default_rng([len(alike), len(others)])
    places = np.arange(count) if count <= PAIRS else np.unique(chance.integers(count, size=PAIRS))
    first, second = np.divmod(places, len(others))
    scores = np.array(row.scores, dtype=np.float64)
    margins = scores[first] - scores[len(alike) + second] if row.scores else scores
    return np.full(len(places), row.anchor, dtype=np.int64), alike[first], others[second], margins


def list_up(rows: Sequence[Row]) -> Lists:
    """Return the graded candidates of each row, padded to the longest list."""
    width = max((len(row.scores) for row in rows), default=0)
    candidates = np.zeros((len(rows), width), dtype=np.int64)
    teacher = np.zeros((len(rows), width), dtype=np.float32)
    mask = np.zeros((len(rows), width), dtype=np.bool_)
    for place, row in enumerate(rows):
        count = len(row.scores)
        candidates[place, :count] = (*row.positives, *row.negatives)
        teacher[place, :count] = row.scores
        mask[place, :count] = True
    return Lists(_index(row.anchor for row in rows), candidates, teacher, mask)


def classify(rows: Sequence[Row]) -> Classes:
    """Return the texts that have a class."""
    labelled = [row for row in rows if row.label >= 0]
    return Classes(_index(row.anchor for row in labelled), _index(row.label for row in labelled))


def _index(values: Iterable[int]) -> Index:
    return np.fromiter(values, dtype=np.int64)
