"""Training and evaluation examples: five kinds of rows, told apart by their column names.

Column names are those of sentence-transformers; the order of columns never matters. Where a text may stand, a list of
chat messages may, too (`conversation`).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeGuard, TypeVar, overload

from embedsmith.artifacts import plain, write_jsonl
from embedsmith.conversation import is_conversation, parse_messages, render
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.settlement import NOTED, Verdict, pair_of, settle, verdict_in
from embedsmith.tables import read_id, read_rows
from embedsmith.text import normalize


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a synthetic example comes from, so that every row can be traced and repeated."""

    source: str  # id of the row of the log
    prompt: str  # fingerprint of the exact prompt
    model: str
    seed: int | None = None
    checks: tuple[str, ...] = ()  # names of the filters it passed


@dataclass(frozen=True, slots=True)
class PositivePair:
    """Two texts that belong together (columns anchor, positive; `instruction` says what the anchor asks for)."""

    anchor: str
    positive: str
    group: str | None = None
    provenance: Provenance | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Triplet:
    """An anchor, its positive and any number of negatives (columns anchor, positive, negative[s]).

    Attributes:
        scores: what a teacher gives the positive and each negative, in this order (column scores); () without one.
        instruction: what the anchor asks for, put before it by models that read instructions.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    group: str | None = None
    provenance: Provenance | None = None
    scores: tuple[float, ...] = ()
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how close they are (columns sentence1, sentence2, score); any scale, higher is closer."""

    sentence1: str
    sentence2: str
    score: float
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two texts, and 1 if one answer serves both, else 0 (columns sentence1, sentence2, label)."""

    sentence1: str
    sentence2: str
    label: int
    group: str | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class (columns text, label)."""

    text: str
    label: str
    group: str | None = None
    provenance: Provenance | None = None


Example: TypeAlias = PositivePair | Triplet | ScoredPair | LabelledPair | LabelledText
Row = TypeVar("Row", bound=Example)
Kind = TypeVar("Kind", bound=Example, covariant=True)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row or a candidate that is not used, and why."""

    reason: str  # a short kebab-case name that can be counted, e.g. "near-duplicate"
    detail: str = ""  # for people: "Jaccard .93 with paraphrase 1"
    text: str = ""
    file: str = ""
    line: int | None = None
    source: str | None = None  # id of the row of the log it was made from
    context: Mapping[str, str] = field(default_factory=dict)


PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("a", "b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
)
ANCHORS = ("anchor", "query", "question")
POSITIVES = ("positive", "pos", "answer", "passage", "paraphrase", "document")
NEGATIVES = re.compile(r"(?:negatives?|neg|hard_negatives?)(?:_text)?(?:_(?P<number>\d+))?")
LABELS = ("label", "is_duplicate")
SCORES = ("score", "similarity", "similarity_score")
CLASSES = ("label", "intent", "class")
GROUPS = ("group", "source_id")
TEACHERS = ("scores", "teacher_scores")
INSTRUCTIONS = ("instruction", "task")
TEXT_PARTS = ("anchor", "positive", "negatives", "sentence1", "sentence2", "text")  # of `Format.columns`
LAYOUTS = (
    "anchor + positive; anchor + positive + negative (also negative_1, negative_2, … or a list); "
    "sentence1 + sentence2 (or anchor + positive) + label (0 or 1) or score; text + label (a class)"
)


@dataclass(frozen=True, slots=True)
class Format:
    """The kind of a table's rows and which column plays which part."""

    kind: type[Example]
    columns: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ExampleSet(Generic[Kind]):
    """The examples of a file with the line of each, its rows that are none, and the columns that were not read."""

    kind: type[Kind]
    examples: tuple[Kind, ...]
    rejected: tuple[Rejected, ...]
    lines: tuple[int, ...]
    unread: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Every text of the file, those of the rows that are no examples as well: what must not leak."""
        own = [text for example in self.examples for text in texts_of(example)]
        return own + [text for row in self.rejected for text in row.context.values()]

    def describe_rejected(self) -> str:
        """Return how many rows are no examples and why the first is none; "" where all are."""
        return describe_rejected(self.rejected, len(self.examples) + len(self.rejected))


def describe_rejected(rejected: Sequence[Rejected], total: int | None = None) -> str:
    """Return how many rows, of `total` if that is known, are not used and why the first is not; "" where all are."""
    if not rejected:
        return ""
    first = rejected[0]
    of = f" of {total}" if total is not None else ""
    return f"{len(rejected)}{of} rows not used, e.g. line {first.line}: {first.detail}"


def detect_format(columns: Iterable[str]) -> Format:
    """Return the format of a table by the names of its columns; their order never matters.

    Negatives are in the order of their numbers (negative_2 before negative_10), since a teacher's scores are.

    Raises:
        InputError: no layout fits, or a pair has both a label and a score.
    """
    names = {name.strip().lower(): name for name in columns}

    def first(wanted: Sequence[str]) -> tuple[str, ...]:
        return next(((names[name],) for name in wanted if name in names), ())

    group = {"group": first(GROUPS)} if first(GROUPS) else {}
    negatives = tuple(names[name] for name in sorted(filter(NEGATIVES.fullmatch, names), key=_by_number))
    anchor, positive, text = first(ANCHORS), first(POSITIVES), first(("text",))
    label, score = first(LABELS), first(SCORES)
    if anchor and positive and not negatives and (label or score):  # what is judged need not be right
        return _of_pair((anchor[0], positive[0]), label, score, group)
    if anchor and positive:
        kind: type[Example] = Triplet if negatives else PositivePair
        found = {"anchor": anchor, "positive": positive, "instruction": first(INSTRUCTIONS)}
        found |= {"negatives": negatives, "scores": first(TEACHERS) if negatives else ()}
        return Format(kind, {part: columns for part, columns in found.items() if columns} | group)
    pair = next((both for both in PAIR_NAMES if both[0] in names and both[1] in names), None)
    if pair and (label or score):
        return _of_pair((names[pair[0]], names[pair[1]]), label, score, group)
    if text and first(CLASSES):
        return Format(LabelledText, {"text": text, "label": first(CLASSES)} | group)
    raise InputError(
        f"no known layout in the columns {', '.join(names.values()) or '(none)'}",
        expected=LAYOUTS,
        action="texts without labels? `embedsmith run` and `embedsmith synthesize` write examples from them",
    )


def _by_number(name: str) -> tuple[int, str]:
    """Return what columns of negatives are sorted by; one without a number comes first."""
    found = NEGATIVES.fullmatch(name)
    return int(found["number"]) if found and found["number"] else -1, name


def _of_pair(
    sides: tuple[str, str], label: tuple[str, ...], score: tuple[str, ...], group: Mapping[str, tuple[str, ...]]
) -> Format:
    """Return the format of two texts with a label or a score."""
    if label and score:
        raise InputError(f"a pair with both {label[0]} and {score[0]}", expected="one of them", action="drop one")
    columns = {"sentence1": (sides[0],), "sentence2": (sides[1],), **group}
    return Format(ScoredPair, columns | {"score": score}) if score else Format(LabelledPair, columns | {"label": label})


@overload
def read_examples(path: Path | str, *, separator: str | None = None) -> ExampleSet[Example]: ...


@overload
def read_examples(path: Path | str, *, kind: type[Row], separator: str | None = None) -> ExampleSet[Row]: ...


def read_examples(path: Path | str, *, kind: type[Any] | None = None, separator: str | None = None) -> ExampleSet[Any]:
    """Return the examples of a file; a row that is none is in `rejected` with its line and reason.

    Each row is read by its own columns, so a column that the first row lacks is not lost. Pairs among triplets are
    triplets without negatives. In a file of verdicts (what `serve --feedback` writes) every row has the label that
    counts for its pair (`settlement`).

    Args:
        kind: what the caller can use; another kind is an error that names both.
        separator: of the columns of csv and tsv files; by default found by the first line.

    Raises:
        InputError: the file cannot be read, its columns fit no layout, or not one row is usable.
    """
    examples: list[Example] = []
    lines: list[int] = []
    rejected: list[Rejected] = []
    layouts: dict[tuple[str, ...], Format] = {}
    verdicts: list[Verdict] = []
    for line, row in read_rows(path, separator=separator):
        columns = tuple(row)
        if columns not in layouts:
            layouts[columns] = _choose_layout(row, next(iter(layouts.values()), None), path)
        try:
            example = _parse(row, layouts[columns])
            examples.append(example)
            lines.append(line)
            if isinstance(example, LabelledPair) and "marked" in row:
                verdicts.append(verdict_in(row, example.sentence1, example.sentence2, example.label))
        except (KeyError, ValueError, TypeError) as error:
            detail = f"no column {error}" if isinstance(error, KeyError) else str(error)
            texts = _find_texts(row, layouts[columns])
            rejected.append(Rejected("bad-row", detail, file=str(path), line=line, context=texts))
    if not examples:
        first = f"; the first: line {rejected[0].line}, {rejected[0].detail}" if rejected else ""
        raise InputError(f"{path} has no usable row ({len(rejected)} rejected{first})", expected=LAYOUTS)
    if any(isinstance(example, Triplet) for example in examples):
        examples = [as_triplet(example) for example in examples]
    if any(set(columns) >= NOTED for columns in layouts):
        examples = _with_labels(examples, settle(verdicts))
    found = type(examples[0])
    if kind is not None and found is not kind:
        raise InputError(f"{path} has {found.__name__} rows", expected=f"{kind.__name__} rows")
    return ExampleSet(found, tuple(examples), tuple(rejected), tuple(lines), _unread(layouts, examples))


def _with_labels(examples: Iterable[Example], labels: Mapping[tuple[str, ...], int]) -> list[Example]:
    """Return the examples with the labels that count; pairs without a verdict as they are."""

    def label(example: Example) -> Example:
        if not isinstance(example, LabelledPair):
            return example
        return replace(example, label=labels.get(pair_of(example.sentence1, example.sentence2), example.label))

    return [label(example) for example in examples]


def _unread(layouts: Mapping[tuple[str, ...], Format], examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the columns that no row was read from, in the order of the file."""
    read = {name for layout in layouts.values() for part in layout.columns.values() for name in part}
    read |= {"provenance"} if any(example.provenance is not None for example in examples) else set()
    return tuple(dict.fromkeys(name for columns in layouts for name in columns if name not in read))


def as_triplet(example: Example) -> Example:
    """Return a positive pair as a triplet without negatives, so that a file of both has one layout; others as is."""
    if not isinstance(example, PositivePair):
        return example
    given = example.group, example.provenance, (), example.instruction
    return Triplet(example.anchor, example.positive, (), *given)


def _choose_layout(row: Mapping[str, Any], first: Format | None, path: Path | str) -> Format:
    """Return the layout of a row with these columns: its own, if it is of the first row's kind and has as much."""
    if first is None:
        return _detect(row, path)
    try:
        own = detect_format(row)
    except InputError:
        return first
    kinds = {first.kind, own.kind}
    fits = len(kinds) == 1 or kinds == {PositivePair, Triplet}
    return own if fits and ("scores" in own.columns or "scores" not in first.columns) else first


def _detect(row: Mapping[str, Any], path: Path | str) -> Format:
    try:
        return detect_format(row)
    except InputError as error:
        raise InputError(
            f"{path}: {error.found}", expected=error.expected, action=f"rename the columns; {error.action}"
        ) from None


def _parse(row: Mapping[str, Any], layout: Format) -> Example:
    def text(part: str) -> str:
        name = layout.columns[part][0]
        value = row[name]
        if _is_chat(value):
            return _render(value, name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} has no text")
        return value

    shared: dict[str, Any] = {"group": _group(row, layout), "provenance": provenance_from(row.get("provenance"))}
    if layout.kind in (PositivePair, Triplet):
        shared["instruction"] = _instruction(row, layout)
    if layout.kind is PositivePair:
        return PositivePair(text("anchor"), text("positive"), **shared)
    if layout.kind is Triplet:
        negatives = _negatives(row, layout)
        scores = _scores(row, layout, 1 + len(negatives))
        return Triplet(text("anchor"), text("positive"), negatives, scores=scores, **shared)
    if layout.kind is LabelledText:
        return LabelledText(text("text"), _class(row, layout), **shared)
    left, right = text("sentence1"), text("sentence2")
    if layout.kind is ScoredPair:
        return ScoredPair(left, right, _score(row, layout), **shared)
    label = row[layout.columns["label"][0]]
    if str(label).strip() not in {"0", "1", "0.0", "1.0", "True", "False"}:
        raise ValueError(f"{layout.columns['label'][0]} is {label!r}, not 0 or 1")
    return LabelledPair(left, right, int(str(label).strip() in {"1", "1.0", "True"}), **shared)


def _is_chat(value: object) -> TypeGuard[list[Any]]:
    """Say whether a value is meant as a list of messages."""
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _render(messages: list[Any], name: str) -> str:
    try:
        return render(parse_messages(messages))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _find_texts(row: Mapping[str, Any], layout: Format) -> dict[str, str]:
    """Return the texts of a row that is no example, by column; of messages what each of them says."""
    found: dict[str, str] = {}
    for name in (name for part in TEXT_PARTS for name in layout.columns.get(part, ())):
        values = row.get(name)
        for place, item in enumerate(values if isinstance(values, list) else [values]):
            value = item.get("content") if isinstance(item, Mapping) else item
            if isinstance(value, str) and value.strip():
                found[f"{name}[{place}]" if place else name] = value
    return found


def _class(row: Mapping[str, Any], layout: Format) -> str:
    name = layout.columns["label"][0]
    found = read_id(row[name])
    if found is None or not found.strip():
        raise ValueError(f"{name} has no class")
    return found


def _score(row: Mapping[str, Any], layout: Format) -> float:
    name = layout.columns["score"][0]
    value = float(row[name])
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, no number")
    return value


def _negatives(row: Mapping[str, Any], layout: Format) -> tuple[str, ...]:
    found: list[Any] = []
    for column in layout.columns["negatives"]:
        value = row.get(column)
        items = value if isinstance(value, list) and not _is_chat(value) else [value]
        found.extend(_render(item, column) if _is_chat(item) else item for item in items)
    return tuple(text for text in found if isinstance(text, str) and text.strip())


def _scores(row: Mapping[str, Any], layout: Format, wanted: int) -> tuple[float, ...]:
    if "scores" not in layout.columns:
        return ()
    name = layout.columns["scores"][0]
    found = tuple(float(value) for value in row[name])
    if len(found) != wanted:
        raise ValueError(f"{name} has {len(found)} numbers for {wanted} texts (the positive, then the negatives)")
    return found


def _group(row: Mapping[str, Any], layout: Format) -> str | None:
    return read_id(row.get(layout.columns["group"][0])) if "group" in layout.columns else None


def _instruction(row: Mapping[str, Any], layout: Format) -> str | None:
    (name,) = layout.columns.get("instruction", ("",))
    value = row.get(name)
    if isinstance(value, str) or read_id(value) is None:
        return value if isinstance(value, str) and value.strip() else None
    raise ValueError(f"{name} is {value!r}, not a text")


def provenance_from(value: Any) -> Provenance | None:
    """Return the provenance that was written as JSON; None for anything else, a user's own column of that name too."""
    if not isinstance(value, Mapping) or value.keys() - {part.name for part in fields(Provenance)}:
        return None
    if not all(isinstance(value.get(name), str) for name in ("source", "prompt", "model")):
        return None
    checks = value.get("checks") or ()
    return Provenance(**{**value, "checks": tuple(checks)}) if isinstance(checks, (list, tuple)) else None


def write_examples(path: Path | str, examples: Iterable[Example]) -> int:
    """Write examples as JSON lines that `read_examples` gives back; return their number."""
    return write_jsonl(path, map(to_row, examples))


def to_row(example: Example) -> dict[str, Any]:
    """Return the columns of an example as `read_examples` finds them."""
    row = {key: value for key, value in plain(example).items() if value is not None}
    if isinstance(example, Triplet):
        row["negative"] = row.pop("negatives")
        if not example.scores:
            del row["scores"]
    return row


def texts_of(example: Example) -> tuple[str, ...]:
    """Return all texts of an example."""
    match example:
        case PositivePair():
            return example.anchor, example.positive
        case Triplet():
            return example.anchor, example.positive, *example.negatives
        case LabelledText():
            return (example.text,)
        case _:
            return example.sentence1, example.sentence2


def has_conversations(example: Example) -> bool:
    """Say whether all texts of an example are conversations: such rows teach, and prove, how to compare them."""
    return all(map(is_conversation, texts_of(example)))


def split(examples: Sequence[Row], fractions: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Row]]:
    """Return the examples in parts that share no group and no text, so that nothing leaks between them.

    Examples that share a group or a text (in normal form) are one unit; units are drawn in an order
    that depends on their content and `seed` only, not on the order of rows, and go to the part that
    is farthest below its share. A part that would be empty, which happens with few units or a small
    share, gets a unit of the part that is farthest above its own.

    Args:
        fractions: share of each part by name; they sum to 1.

    Raises:
        ConfigurationError: shares that do not sum to 1. InputError: fewer units than parts.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values(), default=-1) <= 0:
        raise ConfigurationError(f"the shares {dict(fractions)}", expected="positive shares that sum to 1")
    units = connect(examples)
    if len(units) < len(fractions):
        raise InputError(
            f"{len(examples)} examples form {len(units)} unit(s) that share texts or groups",
            expected=f"at least {len(fractions)} that do not",
            action="give more rows: those that share a text or a group with others stay with them",
        )
    order = random.Random(seed).sample(sorted(units), len(units))
    drawn: dict[str, list[str]] = {name: [] for name in fractions}
    sizes = dict.fromkeys(fractions, 0)
    for unit in order:
        name = min(fractions, key=lambda part: (sizes[part] + len(units[unit]) / 2) / fractions[part])
        sizes[name] += len(units[unit])
        drawn[name].append(unit)
    _fill_empty(drawn, units, fractions)
    return {
        name: [examples[place] for place in sorted(place for unit in own for place in units[unit])]
        for name, own in drawn.items()
    }


def _fill_empty(
    drawn: Mapping[str, list[str]], units: Mapping[str, Sequence[int]], fractions: Mapping[str, float]
) -> None:
    """Give every part without a unit the smallest one of the part that has most for its share and more than one."""
    for empty in (name for name, own in drawn.items() if not own):
        giving = [name for name, own in drawn.items() if len(own) > 1]
        giver = max(giving, key=lambda part: sum(len(units[unit]) for unit in drawn[part]) / fractions[part])
        unit = min(drawn[giver], key=lambda own: len(units[own]))
        drawn[giver].remove(unit)
        drawn[empty].append(unit)


def connect(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the places of the examples by unit: those that share a group or a text, also through others.

    The name of a unit is the smallest of its keys, so it does not depend on the order of rows.
    """
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        root = key
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[key] != root:
            parent[key], key = root, parent[key]
        return root

    keys = []
    for example in examples:
        names = [f"text:{normalize(text)}" for text in texts_of(example)]
        names += [f"group:{example.group}"] if example.group is not None else []
        roots = sorted({find(name) for name in names})
        for root in roots[1:]:
            parent[root] = roots[0]  # the smallest key wins, so the unit's name does not depend on the order
        keys.append(names[0])
    units: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        units[find(key)].append(place)
    return dict(units)


def draw_groups(groups: Sequence[str], limit: int) -> list[int]:
    """Return the places of at most `limit` rows, given the group of each row, (n,): whole groups but for the last one.

    Groups are taken in the order of a hash of their names, so which ones depends neither on the order of rows nor on
    the other groups; the one that goes beyond the limit gives its first rows.
    """
    turns = {name: (draw_of(name), name) for name in set(groups)}
    return sorted(sorted(range(len(groups)), key=lambda place: (turns[groups[place]], place))[:limit])


def draw_of(name: str, seed: int = 0) -> float:
    """Return a number from 0 to 1, evenly spread, that depends on the name and the seed only."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_asymmetric(example: Example) -> bool:
    """Say whether the anchor is a query and the other texts are documents."""
    return isinstance(example, (PositivePair, Triplet))


def units_of(examples: Sequence[Example]) -> list[str]:
    """Return the unit of each example, (n,): rows that share a group or a text are resampled together."""
    names = [""] * len(examples)
    for name, places in connect(examples).items():
        for place in places:
            names[place] = name
    return names
