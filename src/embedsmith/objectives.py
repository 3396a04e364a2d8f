"""Objectives: what is known of a loss without computing it: which rows it takes, what it reads, what follows from data.

The losses themselves are in `losses`, that of a batch in `parts`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from embedsmith.batches import PAIRS, Row, Source, collect_rows, count_pairs
from embedsmith.errors import ConfigurationError, InputError, require
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet

Offer = Literal["positives", "negatives", "scores", "teacher", "classes"]
Mining = Literal["hard", "semi_hard", "all"]
Option = Literal[  # what a loss can be told, as `config.TrainingConfig` calls it
    "temperature",
    "margin",
    "mining",
    "symmetric",
    "guide",
    "guide_margin",
    "guide_relative",
    "logistic_scale",
    "logistic_bias",
]
Kind = Literal[
    "positive pairs",
    "labelled pairs",
    "triplets",
    "triplets with a teacher's scores",
    "scored pairs",
    "texts with classes",
]


@dataclass(frozen=True, slots=True)
class LossFact:
    """What is known of a loss: it takes rows of these kinds only, which together offer any of these sets.

    Attributes:
        kinds: of each row; a triplet without negatives is a positive pair.
        takes: alternatives; of one of them, all must be there.
        formats: the same in words, for people.
        source: who published it.
        reads: the options that it is told.
        in_batch: takes the other rows of a batch as negatives, whose group must differ for that.
        on_scale: compares scores with cosines as numbers, not by their order.
    """

    kinds: frozenset[Kind]
    takes: tuple[frozenset[Offer], ...]
    formats: str
    source: str
    reads: tuple[Option, ...] = ()
    in_batch: bool = False
    on_scale: bool = False


def _needs(*alternatives: tuple[Offer, ...]) -> tuple[frozenset[Offer], ...]:
    return tuple(frozenset(alternative) for alternative in alternatives)


_LABELS: tuple[Offer, ...] = ("positives", "negatives")
_ROLES = frozenset[Kind]({"positive pairs", "labelled pairs", "triplets", "triplets with a teacher's scores"})
_GRADES = _ROLES | frozenset[Kind]({"scored pairs"})
_TAUGHT = frozenset[Kind]({"triplets with a teacher's scores"})
_CLASSES = frozenset[Kind]({"texts with classes"})
_LABELLED, _SCORED, _TEACHER = _needs(_LABELS), _needs(("scores",), _LABELS), _needs(("teacher",))
_LABELLED_FORMATS = (
    "labelled pairs; triplets, as 1 and 0 whatever a teacher says of them; positive pairs together with either"
)
_GRADED_FORMATS = "scored pairs; also labelled pairs and triplets, as 1 and 0, or as a teacher scores them"
_TAUGHT_FORMATS = "triplets with a teacher's scores"
LOSSES: Mapping[str, LossFact] = {
    "logistic": LossFact(
        *(_ROLES, _LABELLED, _LABELLED_FORMATS, "Zhai et al. 2023, arXiv 2303.15343"),
        reads=("logistic_scale", "logistic_bias"),
    ),
    "online_contrastive": LossFact(
        *(_ROLES, _LABELLED, _LABELLED_FORMATS, "sentence-transformers; LangCache-Embed 2504.02268"),
        reads=("margin",),
    ),
    "contrastive": LossFact(_ROLES, _LABELLED, _LABELLED_FORMATS, "Hadsell et al. 2006", reads=("margin",)),
    "infonce": LossFact(
        _ROLES,
        _needs(("positives",)),
        "positive pairs; triplets with any number of negatives; labelled pairs",
        "1807.03748",
        reads=("temperature", "symmetric", "guide", "guide_margin", "guide_relative"),
        in_batch=True,
    ),
    "triplet": LossFact(
        *(_ROLES, _LABELLED, "triplets; labelled pairs whose anchors have both labels", "Schroff et al. 2015"),
        reads=("margin",),
    ),
    "batch_triplet": LossFact(
        *(_CLASSES, _needs(("classes",)), "texts with classes", "Hermans et al. 2017, arXiv 1703.07737"),
        reads=("margin", "mining"),
    ),
    "cosine_similarity": LossFact(
        _GRADES, _SCORED, _GRADED_FORMATS, "Reimers & Gurevych 2019, arXiv 1908.10084", on_scale=True
    ),
    "cosent": LossFact(_GRADES, _SCORED, _GRADED_FORMATS, "Su 2022", reads=("temperature",)),
    "angle": LossFact(_GRADES, _SCORED, _GRADED_FORMATS, "Li & Li 2023, arXiv 2309.12871", reads=("temperature",)),
    "margin_mse": LossFact(_TAUGHT, _TEACHER, _TAUGHT_FORMATS, "Hofstätter et al. 2020, 2010.02666", on_scale=True),
    "distill_kl": LossFact(
        _TAUGHT, _TEACHER, _TAUGHT_FORMATS, "Hinton et al. 2015, arXiv 1503.02531", reads=("temperature",)
    ),
}
PAIRED = frozenset(name for name, fact in LOSSES.items() if {*_LABELS} in fact.takes)  # read all pairs of a row
GRADED = frozenset(name for name in PAIRED if LOSSES[name].kinds == _GRADES)  # by grade, so they read scores
CLASSED = frozenset(name for name, fact in LOSSES.items() if fact.kinds == _CLASSES)  # read which texts are of a class
IN_BATCH = frozenset(name for name, fact in LOSSES.items() if fact.in_batch)
ON_SCALE = frozenset(name for name, fact in LOSSES.items() if fact.on_scale)
READERS: Mapping[str, frozenset[str]] = {  # the losses that an option is for
    option: frozenset(name for name, fact in LOSSES.items() if option in fact.reads) for option in get_args(Option)
}


def offers_of(examples: Sequence[Example]) -> frozenset[Offer]:
    """Return what the examples have that a loss can use."""
    found: set[Offer] = set()
    for example in examples:
        match example:
            case PositivePair() | LabelledPair(label=1):
                found.add("positives")
            case LabelledPair():
                found.add("negatives")
            case Triplet():
                found |= {"positives", "negatives"} if example.negatives else {"positives"}
                found |= {"teacher"} if example.scores and example.negatives else set()
            case ScoredPair():
                found.add("scores")
            case LabelledText():
                found.add("classes")
    return frozenset(found)


def kind_of(example: Example) -> Kind:
    """Return which kind of row an example is to a loss."""
    match example:
        case ScoredPair():
            return "scored pairs"
        case LabelledText():
            return "texts with classes"
        case LabelledPair():
            return "labelled pairs"
        case Triplet(negatives=negatives, scores=scores) if negatives:
            return "triplets with a teacher's scores" if scores else "triplets"
        case _:
            return "positive pairs"


def choose_losses(examples: Sequence[Example]) -> tuple[Mapping[str, float], str]:
    """Return the loss that follows from the kind of the examples, and the reason."""
    offers = offers_of(examples)
    if "classes" in offers:
        return {"batch_triplet": 1.0}, "texts with classes"
    if "teacher" in offers:
        return {"margin_mse": 1.0}, "triplets with a teacher's scores"
    if "scores" in offers:
        return {"cosent": 1.0}, "scored pairs: their order is what counts"
    if any(isinstance(example, LabelledPair) for example in examples) and "negatives" in offers:
        return {"logistic": 1.0}, "labelled pairs: one border for all of them"
    return {"infonce": 1.0}, "pairs or triplets without labels: every other row of a batch is a negative"


def settle_losses(
    sources: Sequence[Source], losses: Mapping[str, float], *, temperature: float = 0.05
) -> tuple[list[Source], tuple[str, ...]]:
    """Return the sources with their losses settled, and a sentence on each choice.

    Sources of several kinds of examples that have no losses yet are parted by kind, and their weight with their rows.

    Args:
        losses: for sources without losses of their own; {} lets the data choose.
        temperature: τ of distill_kl, which a teacher's logits are brought to.

    Raises:
        InputError: a loss cannot use the examples of a source. ConfigurationError: no such loss.
    """
    settled, notes = [], []
    if any(source.weight for source in sources):
        for source in sources:
            if not source.weight:
                raise ConfigurationError(
                    f"{source.name} has no weight", expected="a weight for all sources, or for none"
                )
    for source in sources:
        for part in _parts_by_kind(source) if not (source.losses or losses) else [source]:
            chosen, reason = part.losses or losses, "as asked"
            if not chosen:
                chosen, reason = choose_losses(part.examples)
            check_losses(chosen)
            _require(part, chosen)
            notes.append(f"loss of {part.name}: {' + '.join(chosen)} ({reason})")
            fitted, fit_notes = _fit_scores(part, chosen)
            taught, teacher_notes = _fit_teacher(fitted, chosen, temperature)
            settled.append(replace(taught, losses=dict(chosen)))
            notes += (*fit_notes, *teacher_notes)
    return settled, tuple(notes)


def _fit_scores(source: Source, losses: Mapping[str, float]) -> tuple[Source, tuple[str, ...]]:
    """Return the source with scores brought to 0 … 1 where a loss compares them with cosines or labels, and a note."""
    scores = [score for example in source.examples for score in _scores_of(example)]
    beside = any(not _scores_of(example) for example in source.examples)
    compared = ON_SCALE & set(losses) or (beside and GRADED & set(losses))
    if not compared or not scores or (min(scores) >= -1 and max(scores) <= 1):
        return source, ()
    low, high = min(scores), max(scores)
    others = "cosines and labels" if beside else "cosines"
    note = f"scores of {source.name} run from {low:g} to {high:g}, {others} to 1: brought to 0 … 1"
    return _map_scores(source, lambda score: (score - low) / (high - low) if high > low else 0.5), (note,)


REACH = 2.5  # cosines differ by 2 at most, and `teacher` adds at most .4 of BM25 and .1 for the known answer
WIDEST = 20.0  # 1 / .05: what cosines of 0 … 1 become at the usual temperature; e⁻²⁰ is no share that can be learnt
MOST = 0.95  # quantile of the lists' widths that sets the scale: single outliers do not


def _fit_teacher(source: Source, losses: Mapping[str, float], temperature: float) -> tuple[Source, tuple[str, ...]]:
    """Return the source with a teacher's logits brought to the scale that distill_kl divides by τ, and a note.

    A teacher on the scale of cosines (no list wider than `REACH`) shares the student's temperature. A wider one gives
    logits: their softmax is taken as it is, as FlagEmbedding trains BGE (the student's cosines by τ, the teacher's
    scores by 1). Lists wider than `WIDEST` would be one-hot, so these are divided by what makes them that wide. At
    τ .05 logits from −10 to 10 are multiplied by .05: they differ by 1 then, and by 20 in the softmax.
    """
    taught = [example.scores for example in source.examples if isinstance(example, Triplet) and example.scores]
    if "distill_kl" not in losses or not taught:
        return source, ()
    width = float(np.quantile([max(scores) - min(scores) for scores in taught], MOST))
    if not np.isfinite(width) or width <= REACH + 1e-6:  # what is no number is refused by `checks`
        note = f"teacher of {source.name}: lists {width:.3g} wide, as cosines are: shares temperature {temperature:g}"
        return source, (note,)
    own = max(width / WIDEST, 1.0)
    note = f"teacher of {source.name}: lists {width:.3g} wide, wider than cosines: logits, at temperature {own:.3g}"
    return _map_scores(source, lambda score: score * temperature / own), (note,)


def _map_scores(source: Source, change: Callable[[float], float]) -> Source:
    return replace(source, examples=tuple(_with_scores(example, change) for example in source.examples))


def _scores_of(example: Example) -> tuple[float, ...]:
    if isinstance(example, ScoredPair):
        return (example.score,)
    return example.scores if isinstance(example, Triplet) else ()


def _with_scores(example: Example, fit: Callable[[float], float]) -> Example:
    if isinstance(example, ScoredPair):
        return replace(example, score=fit(example.score))
    if isinstance(example, Triplet):
        return replace(example, scores=tuple(map(fit, example.scores)))
    return example


def read_source_spec(spec: str) -> tuple[str, dict[str, float], float]:
    """Return (file, losses, weight) of "FILE", "FILE:LOSS" or "FILE:LOSS:WEIGHT".

    Raises:
        ConfigurationError: what follows the file is neither.
    """
    path, *rest = spec.split(":")
    if not rest or Path(spec).is_file():
        return spec, {}, 0.0
    try:
        weight = float(rest[1]) if len(rest) == 2 else 0.0
    except ValueError:
        weight = -1.0
    if len(rest) > 2 or weight < 0 or rest[0] not in LOSSES:
        raise ConfigurationError(
            f"{spec} is neither a file nor one with a loss",
            expected=f"FILE:LOSS or FILE:LOSS:WEIGHT with one of {', '.join(LOSSES)}",
        )
    return path, {rest[0]: 1.0}, weight


def check_losses(losses: Mapping[str, float]) -> None:
    """Raise `ConfigurationError` where a name is no loss, or a weight is not above 0: it would train backwards."""
    require(isinstance(losses, Mapping), f"losses is {losses!r}", "weights by name: { infonce = 1.0 }")
    unknown = sorted(set(losses) - set(LOSSES))
    require(not unknown, f"losses: {', '.join(unknown)}", f"any of {', '.join(LOSSES)}")
    for name, weight in losses.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ConfigurationError(f"the loss {name} has the weight {weight!r}", expected="a number above 0")


def _parts_by_kind(source: Source) -> list[Source]:
    kinds: dict[str, list[Example]] = {}
    for example in source.examples:
        kinds.setdefault(_FAMILIES[kind_of(example)], []).append(example)
    if len(kinds) == 1:
        return [source]
    parts = [replace(source, examples=tuple(rows), name=f"{source.name} ({kind})") for kind, rows in kinds.items()]
    if not source.weight:
        return parts
    rows = [len(collect_rows(part.examples).rows) for part in parts]  # labelled pairs of an anchor become one row
    return [replace(part, weight=source.weight * count / sum(rows)) for part, count in zip(parts, rows, strict=True)]


_FAMILIES: Mapping[Kind, str] = {
    "scored pairs": "scored",
    "texts with classes": "classes",
    "triplets with a teacher's scores": "taught",
    "triplets": "pairs",
    "labelled pairs": "pairs",
    "positive pairs": "pairs",
}


def _require(source: Source, losses: Mapping[str, float]) -> None:
    kinds, offers = Counter(kind_of(example) for example in source.examples), offers_of(source.examples)
    for name in losses:
        unfit = {kind: count for kind, count in kinds.items() if kind not in LOSSES[name].kinds}
        if unfit or not any(need <= offers for need in LOSSES[name].takes):
            raise InputError(
                f"the loss {name} cannot use {_describe_unfit(source, unfit, offers)}",
                expected=LOSSES[name].formats,
                action=_advise(kinds, offers),
            )


def _describe_unfit(source: Source, unfit: Mapping[Kind, int], offers: frozenset[Offer]) -> str:
    count = sum(unfit.values())
    found = " and ".join(f"{number} {kind}" for kind, number in unfit.items())
    if not unfit:
        return f"{source.name}: it has {', '.join(sorted(offers)) or 'nothing'}"
    if count == len(source.examples):
        return f"{source.name}: its rows are {found}"
    return f"{source.name}: {count} of its {len(source.examples)} rows are {found}"


def _advise(kinds: Mapping[Kind, int], offers: frozenset[Offer]) -> str:
    fitting = [
        name
        for name, fact in LOSSES.items()
        if kinds.keys() <= fact.kinds and any(need <= offers for need in fact.takes)
    ]
    ways = [f"use {' or '.join(fitting)}"] if fitting else []
    if len(kinds) > 1:
        ways.append(
            "give each kind as a file of its own (FILE:LOSS), or no losses at all: then rows are parted by kind"
        )
    return "; ".join(ways) or "give examples of that kind"


def free_sources(losses: Sequence[Mapping[str, float]]) -> frozenset[int]:
    """Return the sources none of whose losses takes the other rows of a batch as negatives: any rows may meet."""
    return frozenset(number for number, own in enumerate(losses) if not IN_BATCH & set(own))


def describe_rows(rows: Sequence[Row], losses: Sequence[Mapping[str, float]], names: Sequence[str]) -> tuple[str, ...]:
    """Return what the losses leave out of the rows: most pairs of very large ones, and anchors without a triplet."""
    notes = []
    for source, (own, name) in enumerate(zip(losses, names, strict=True)):
        ours = [row for row in rows if row.source == source]
        pairs = [count_pairs(row) for row in ours] if PAIRED & set(own) else []
        if pairs and max(pairs) > PAIRS:
            large = sum(count > PAIRS for count in pairs)
            notes.append(
                f"{name}: {large} rows have more than {PAIRS:,} pairs (up to {max(pairs):,}); "
                "those of the anchor count, and a drawn part of the others"
            )
        idle = sum(not row.positives or not row.negatives for row in ours) if "triplet" in own else 0
        if idle:
            notes.append(f"{name}: {idle} of {len(ours)} anchors have no positive or no negative; triplet skips them")
    return tuple(notes)
