"""Suites of graded sentence pairs: encoders in; Spearman per set and their mean, with paired differences, out.

The sets come from the user's own files (`read_suite`) or through mteb from the hub (`fetch_suite`).

Never train on STSb and report STS12–16: STSb was drawn from the pairs of the SemEval tasks of 2012 to 2017, and its
training part holds pairs of STS12–16, so their figures would be partly those of the training data.
`warn_of_overlap` says so for a model whose card, or that of its base, names STSb.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Encoder, check_vectors, pair_cosines
from embedsmith.errors import ConfigurationError, InputError, MissingPartError, ModelError, require
from embedsmith.evaluation import RESAMPLES
from embedsmith.examples import LABELS, Rejected, ScoredPair, detect_format, units_of
from embedsmith.metrics import (
    Difference,
    Estimate,
    RankCorrelation,
    choose_baseline,
    difference,
    estimate,
    resample_weights,
)
from embedsmith.model import resolve_model
from embedsmith.tables import KINDS, detect_kind, read_rows

CHUNK = 512  # texts between two moves of the progress bar
FEW_UNITS = 20  # an interval over fewer units is called rough
LARGE_UNIT = 0.25  # so is one where a single unit holds this share of the pairs
SPLITS = (("test", {"test"}), ("validation", {"validation", "valid", "val"}), ("dev", {"dev", "trial"}))
TRAINING = {"train", "training"}
SCORE_NAMES = {"relatedness_score": "score", "relatedness": "score"}  # SICK's own
ENGLISH = {"en", "en-en", "eng", "eng-latn"}
STSB_NAME = re.compile(r"(?<![a-z0-9])sts[-_ ]?b(?:enchmark)?(?![a-z0-9])", re.I)
CARD_BASE = re.compile(r"^Base: `(.+?)`\. Tuned on ", re.M)
CARD_LINES = re.compile(r"^datasets:.*(?:\n[ \t]*-[ \t].*)*|^.*Tuned on .*$", re.M)


@dataclass(frozen=True, slots=True)
class SuiteSet:
    """A public set of graded pairs, as data.

    Attributes:
        task: its name in mteb; `split` is the part that papers report.
        low, high: the scale of its scores.
        rows: pairs of the public split.
        names: what a file or folder may be called, in small letters and digits only.
        language: where the set has several, the pairs that count.
        note: what a reader of its figures has to know.
    """

    name: str
    source: str
    split: str
    low: float
    high: float
    rows: int
    names: tuple[str, ...]
    task: str
    language: str | None = None
    note: str = ""


def _semeval(year: int, number: str, rows: int) -> SuiteSet:
    name = f"STS{year}"
    names = (name.lower(), f"sts20{year}", f"{name.lower()}sts")
    return SuiteSet(name, f"SemEval-20{year}, {number}", "test", 0, 5, rows, names, name)


SUITES: Mapping[str, tuple[SuiteSet, ...]] = {
    "sts": (
        _semeval(12, "task 6", 3108),
        _semeval(13, "shared task of *SEM", 1500),
        _semeval(14, "task 10", 3750),
        _semeval(15, "task 2", 3000),
        _semeval(16, "task 1", 1186),
        SuiteSet(
            "STS17",
            "SemEval-2017, task 1, track 5 (en-en)",
            "test",
            *(0, 5, 250),
            ("sts17", "sts2017", "sts17enen", "sts17sts", "sts17crosslingualsts"),
            "STS17",
            language="en-en",
        ),
        SuiteSet(
            "STSBenchmark",
            "Cer et al. 2017, a selection from SemEval STS 2012–2017",
            "test",
            *(0, 5, 1379),
            ("stsb", "stsbenchmark", "stsbenchmarksts"),
            "STSBenchmark",
        ),
        SuiteSet(
            "SICK-R",
            "Marelli et al. 2014, relatedness",
            "test",
            *(1, 5, 4927),
            ("sickr", "sick", "sickrsts"),
            "SICK-R",
            note="mteb's has 9,927: all of SICK, its training part too",
        ),
        SuiteSet(
            "BIOSSES",
            "Soğancıoğlu et al. 2017, biomedical sentences",
            "test",
            *(0, 4, 100),
            ("biosses", "biossessts"),
            "BIOSSES",
        ),
    )
}
SHARE_WITH_STSB = ("STS12", "STS13", "STS14", "STS15", "STS16")


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """A set that can be measured.

    Attributes:
        source: the file or the dataset of the hub; `choice` says why this part of it.
        rejected: the rows that are not used, each with its line and reason.
        notes: what a reader of its figures has to know.
    """

    name: str
    pairs: tuple[ScoredPair, ...]
    source: str = ""
    choice: str = ""
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """The sets of a suite that were found, and those that were not: name → why."""

    name: str
    sets: tuple[ScoredSet, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set: Spearman's correlation of cosine and score, by encoder.

    Attributes:
        rows, units: pairs measured, and how many clusters of pairs that share a text are resampled.
        rejected: rows not used, counted by reason.
        differences: by encoder: encoder − baseline.
    """

    name: str
    rows: int
    units: int
    source: str
    choice: str
    rejected: Mapping[str, int]
    notes: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Encoders side by side on a suite; `means` are over its sets, each set with the same weight."""

    baseline: str
    sets: tuple[SetReport, ...]
    means: Mapping[str, Estimate]
    mean_differences: Mapping[str, Difference]
    resamples: int
    seed: int


def find_suite(name: str) -> tuple[SuiteSet, ...]:
    """Return the sets of the suite `name`.

    Raises:
        ConfigurationError: there is no such suite.
    """
    require(name in SUITES, f"there is no suite {name!r}", f"one of {', '.join(SUITES)}")
    return SUITES[name]


# --- from files -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be a set's, and the part its name says it is."""

    path: Path
    part: str | None  # a name of SPLITS, "train", or None: the name does not say


def read_suite(folder: Path | str, name: str = "sts") -> Suite:
    """Return the suite's sets from a folder of files or folders that are named after them, in any case.

    Of a set's files, test is taken, then validation, then dev, then the only one; a training file never is.

    Raises:
        InputError: no such folder, none of the sets in it, two files for the same part, or a file without
            sentence1, sentence2 and score (or their other names).
    """
    folder, specs = Path(folder), find_suite(name)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", expected="a folder with files named after the sets")
    sets, missing = [], {}
    for spec in specs:
        found = _candidates(folder, spec)
        chosen = _choose(found, spec)
        if chosen is None:
            why = f"only a training file ({found[0].path})" if found else f"not in {folder}"
            missing[spec.name] = why
        else:
            sets.append(_read_set(spec, *chosen))
    if not sets:
        raise InputError(
            f"{folder} holds none of the sets of the suite {name}",
            expected="files or folders named " + ", ".join(spec.names[0] for spec in specs),
            action="name the folder that holds them with --data",
        )
    return Suite(name, tuple(sets), missing)


def _tokens(stem: str) -> list[str]:
    return [token for token in re.split(r"[^a-z0-9]+", stem.lower()) if token]


def _is_table(path: Path) -> bool:
    ending = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    return path.is_file() and KINDS.get(ending) is not None and detect_kind(path) != "txt"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _part_of(tokens: Sequence[str]) -> str | None:
    if TRAINING & set(tokens):
        return "train"
    return next((part for part, words in SPLITS if words & set(tokens)), None)


def _candidates(folder: Path, spec: SuiteSet) -> list[_Candidate]:
    parts = TRAINING.union(*(words for _, words in SPLITS))
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and "".join(_tokens(path.name)) in spec.names:
            inside = [file for file in sorted(path.iterdir()) if _is_table(file)]
            found += [_Candidate(file, _part_of(_tokens(_stem(file)))) for file in inside]
        elif _is_table(path):
            tokens = _tokens(_stem(path))
            if "".join(token for token in tokens if token not in parts) in spec.names:
                found.append(_Candidate(path, _part_of(tokens)))
    return found


def _choose(found: Sequence[_Candidate], spec: SuiteSet) -> tuple[Path, str] | None:
    """Return (file, why this one), or None where there is nothing but training files."""
    before: list[str] = []
    for part, _ in SPLITS:
        path = _single([item.path for item in found if item.part == part], spec)
        if path is not None:
            return path, f"{part}, as there is no {' or '.join(before)} file" if before else part
        before.append(part)
    path = _single([item.path for item in found if item.part is None], spec)
    return None if path is None else (path, "the only file, its name does not say which part")


def _single(paths: Sequence[Path], spec: SuiteSet) -> Path | None:
    if len(paths) > 1:
        raise InputError(
            f"{len(paths)} files could be {spec.name}: {', '.join(map(str, paths))}",
            expected="one file that is named test, validation or dev",
            action="move the others away, or join them",
        )
    return paths[0] if paths else None


def _read_set(spec: SuiteSet, path: Path, choice: str) -> ScoredSet:
    return _collect(spec, read_rows(path), source=str(path), choice=choice)


def _collect(spec: SuiteSet, rows: Iterable[tuple[int, Mapping[str, Any]]], *, source: str, choice: str) -> ScoredSet:
    pairs: list[ScoredPair] = []
    rejected: list[Rejected] = []
    columns: tuple[str, str, str] | None = None
    for line, given in rows:
        row = {SCORE_NAMES.get(name.strip().lower(), name): value for name, value in given.items()}
        columns = columns or _columns(row, source)
        found = _read_pair(row, columns, spec)
        if isinstance(found, ScoredPair):
            pairs.append(found)
        else:
            rejected.append(Rejected(found, file=source, line=line))
    if not pairs:
        first = f", the first: line {rejected[0].line}, {rejected[0].reason}" if rejected else ""
        raise InputError(f"{source} has no usable pair ({len(rejected)} rejected{first})", expected="graded pairs")
    notes = [*_size_notes(spec, len(pairs), rejected, choice), *_scale_notes(spec, pairs)]
    return ScoredSet(spec.name, tuple(pairs), source, choice, tuple(rejected), tuple(notes))


def _columns(row: Mapping[str, Any], source: str) -> tuple[str, str, str]:
    """Return the names of the columns of both texts and the score; a class beside the score does not count."""
    try:
        layout = detect_format(name for name in row if name.strip().lower() not in LABELS)
    except InputError:
        layout = None
    if layout is None or layout.kind is not ScoredPair:
        labelled = sorted(name for name in row if name.strip().lower() in LABELS)
        raise InputError(
            f"{source} has the columns {', '.join(row) or '(none)'}",
            expected="two texts and a score: sentence1, sentence2, score",
            action=f"rename {labelled[0]} to score, if it is the score" if labelled else "rename the columns",
        )
    first, second, score = (layout.columns[part][0] for part in ("sentence1", "sentence2", "score"))
    return first, second, score


def _read_pair(row: Mapping[str, Any], columns: tuple[str, str, str], spec: SuiteSet) -> ScoredPair | str:
    """Return the pair of a row, or the reason why it is none."""
    left, right, score = (row.get(name) for name in columns)
    if spec.language is not None and str(row.get("lang") or "en").lower() not in ENGLISH:
        return "other-language"
    if not all(isinstance(text, str) and text.strip() for text in (left, right)):
        return "no-text"
    try:
        value = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "no-score"
    return ScoredPair(str(left), str(right), value) if np.isfinite(value) else "no-score"


def _size_notes(spec: SuiteSet, pairs: int, rejected: Sequence[Rejected], choice: str) -> Iterator[str]:
    read = pairs + sum(item.reason != "other-language" for item in rejected)
    other_part = any(choice.startswith(part) for part, _ in SPLITS if part != spec.split)
    if read != spec.rows and not other_part:
        note = f" ({spec.note})" if spec.note else ""
        yield f"{read:,} rows, where the public {spec.split} split has {spec.rows:,}{note}"


def _scale_notes(spec: SuiteSet, pairs: Sequence[ScoredPair]) -> Iterator[str]:
    low, high = min(pair.score for pair in pairs), max(pair.score for pair in pairs)
    if low < spec.low or high > spec.high:
        yield (
            f"scores from {low:g} to {high:g}, where the published ones go from {spec.low:g} to {spec.high:g}: "
            "another scale does not matter, a number that stands for a missing score would"
        )


# --- through mteb ---------------------------------------------------------------------------------


def fetch_suite(name: str = "sts", *, on_progress: Callable[[int, int], None] | None = None) -> Suite:
    """Return the suite's sets from the hub, through mteb, at the revisions that mteb names.

    Raises:
        MissingPartError: mteb is not installed. InputError: the hub cannot be reached.
    """
    specs = find_suite(name)
    try:
        import mteb
    except ImportError:
        raise MissingPartError(
            f"the suite {name} without local files needs mteb, which is not installed",
            expected="mteb, or a folder of files given with --data",
            action="pip install 'embedsmith[mteb]'",
        ) from None
    sets = []
    for place, spec in enumerate(specs):
        subsets = [spec.language] if spec.language else None
        sets.append(read_task(spec, mteb.get_task(spec.task, hf_subsets=subsets)))
        if on_progress is not None:
            on_progress(place + 1, len(specs))
    return Suite(name, tuple(sets))


def read_task(spec: SuiteSet, task: Any) -> ScoredSet:
    """Return the set of an STS task of mteb (`mteb.get_task`, or your own `AbsTaskSTS`), loading its data.

    Raises:
        InputError: the hub cannot be reached, or the data is not what the task says.
    """
    from datasets.exceptions import DatasetsError

    where = str(task.metadata.dataset.get("path", spec.task))
    try:
        task.load_data()
    except (OSError, DatasetsError) as error:  # without a network, and where the network breaks on the way
        raise InputError(
            f"{where} cannot be loaded from the hub: {str(error).splitlines()[0] if str(error) else type(error)}",
            expected="a hub that this machine can reach, or the data in its cache",
            action="check the network (HF_HUB_OFFLINE), or name a folder of files with --data",
        ) from error
    try:
        split = (task.dataset[spec.language] if spec.language else task.dataset)[spec.split]
    except KeyError as error:
        raise InputError(f"{where} has no part {error}", expected=f"the split {spec.split} of {spec.name}") from None
    first, second = task.column_names
    renamed = {first: "sentence1", second: "sentence2"}
    rows = ((line, {renamed.get(key, key): value for key, value in row.items()}) for line, row in enumerate(split, 1))
    return _collect(spec, rows, source=where, choice=f"{spec.split}, from the hub")


# --- measuring ------------------------------------------------------------------------------------


def warn_of_overlap(model: str | Path, sets: Sequence[ScoredSet]) -> str | None:
    """Return a warning where a card says that the model or its base saw STSb and `sets` holds STS12–16; else None.

    A card is a folder's README.md: its `datasets` and the line that says what it was tuned on.

    Args:
        model: a model's folder, or the folder of a run.
    """
    shared = [item.name for item in sets if item.name in SHARE_WITH_STSB]
    for name, card in _read_cards(model) if shared else ():
        if STSB_NAME.search("\n".join(CARD_LINES.findall(card))):
            return (
                f"{name} was trained on STSb, as its card says; STSb shares pairs with {', '.join(shared)}, "
                "so these figures and the mean are no held-out ones"
            )
    return None


def _read_cards(model: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the name and card of a model in a folder, then of the base that its card names, and so on."""
    seen: set[str] = set()
    while Path(model).expanduser().is_dir() and (folder := resolve_model(model)) not in seen:
        seen.add(folder)
        file = Path(folder) / "README.md"
        card = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        yield str(model), card
        found = CARD_BASE.search(card)
        model = found[1] if found else folder


def measure_suite(
    encoders: Mapping[str, Encoder],
    sets: Sequence[ScoredSet],
    *,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> SuiteReport:
    """Return Spearman's correlation of cosine and score per set and its mean over the sets, by encoder.

    Intervals are 95% percentile intervals over resamples of whole units (pairs that share a text, also through
    others). All encoders see the same resamples, so differences are paired. For the mean, each set is resampled
    by itself: with .80 and .90 on two sets in a resample, the mean of that resample is .85.

    Args:
        encoders: by name; each is asked for once, so a mapping may load them on demand.
        baseline: the encoder that the others are compared with; default: the first.
        on_progress: called with (texts encoded, texts to encode), over all encoders.

    Raises:
        ConfigurationError: no encoder, no set, two sets of one name, an unknown baseline.
        InputError: a set whose scores are all the same.
        ModelError: an encoder whose vectors are not finite or not of length 1, or that gives all pairs of a set one
            cosine.
    """
    base = _require(encoders, sets, baseline)
    ordered = [sorted(item.pairs, key=lambda pair: (pair.sentence1, pair.sentence2, pair.score)) for item in sets]
    similarities = _encode_all(encoders, ordered, on_progress)
    draws: list[dict[str, NDArray[np.float64]]] = []
    reports: list[SetReport] = []
    for place, (item, pairs) in enumerate(zip(sets, ordered, strict=True)):
        own = {name: found[place] for name, found in similarities.items()}
        report, drawn = _measure_set(item, pairs, own, base, seed=seed, resamples=resamples)
        reports.append(report)
        draws.append(drawn)
    values = {name: float(np.mean([report.estimates[name].value for report in reports])) for name in encoders}
    means = {name: np.mean([drawn[name] for drawn in draws], axis=0) for name in encoders}
    return SuiteReport(
        baseline=base,
        sets=tuple(reports),
        means={name: estimate(values[name], means[name]) for name in encoders},
        mean_differences=_differences(values, means, base),
        resamples=resamples,
        seed=seed,
    )


def _require(encoders: Mapping[str, Encoder], sets: Sequence[ScoredSet], baseline: str | None) -> str:
    base = choose_baseline(encoders, baseline)
    require(bool(sets), "no set to measure on", "at least one")
    twice = [name for name, count in Counter(item.name for item in sets).items() if count > 1]
    if twice:
        raise ConfigurationError(f"two sets are called {twice[0]}", expected="a name for each")
    for item in sets:
        scores = {pair.score for pair in item.pairs}
        if len(scores) < 2:
            raise InputError(
                f"all {len(item.pairs)} scores of {item.name} ({item.source or 'given'}) are "
                f"{next(iter(scores), 'missing')}: they cannot be ranked",
                expected="scores that differ",
                action="check which column holds the score",
            )
    return base


def _encode_all(
    encoders: Mapping[str, Encoder],
    sets: Sequence[Sequence[ScoredPair]],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, list[NDArray[np.float64]]]:
    """Return the cosines of each set's pairs by encoder; each distinct text is encoded once per encoder."""
    distinct = {text for pairs in sets for pair in pairs for text in (pair.sentence1, pair.sentence2)}
    texts = sorted(distinct, key=lambda text: (len(text), text))  # like lengths together: little padding
    place = {text: row for row, text in enumerate(texts)}
    sides = [
        np.array([(place[pair.sentence1], place[pair.sentence2]) for pair in pairs], dtype=np.int64) for pairs in sets
    ]
    found = {}
    for turn, name in enumerate(encoders):

        def advance(done: int, before: int = turn * len(texts)) -> None:
            if on_progress is not None:
                on_progress(before + done, len(encoders) * len(texts))

        # No name is bound to the encoder: a mapping that loads models on demand has one in memory at a time.
        vectors = check_vectors(_encode(encoders[name], texts, advance), len(texts), name=name)
        found[name] = [pair_cosines(vectors[rows[:, 0]], vectors[rows[:, 1]]) for rows in sides]
    return found


def _encode(encoder: Encoder, texts: Sequence[str], advance: Callable[[int], None]) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(encoder.encode(texts[start : start + CHUNK]))
        advance(min(start + CHUNK, len(texts)))
    return np.concatenate(parts)


def _measure_set(
    item: ScoredSet,
    pairs: Sequence[ScoredPair],
    similarities: Mapping[str, NDArray[np.float64]],
    base: str,
    *,
    seed: int,
    resamples: int,
) -> tuple[SetReport, dict[str, NDArray[np.float64]]]:
    """Return the report of one set and what each encoder's figure was in each resample."""
    for name, found in similarities.items():
        if np.ptp(found) == 0:
            raise ModelError(
                f"{name} gives all {len(pairs)} pairs of {item.name} the cosine {found[0]:.4f}: they cannot be ranked",
                expected="cosines that differ",
                action="check the pooling of the model, and whether its texts are cut to nothing",
            )
    units = units_of(pairs)
    # A seed for each set: with one for all, sets of the same size would draw the same rows.
    own_seed = zlib.crc32(f"{seed}:{item.name}".encode())
    weights = resample_weights(len(pairs), groups=units, resamples=resamples, seed=own_seed)
    scores = [pair.score for pair in pairs]
    correlations = {name: RankCorrelation(found, scores) for name, found in similarities.items()}
    values = {name: correlation() for name, correlation in correlations.items()}
    draws = {name: correlation.draws(weights) for name, correlation in correlations.items()}
    report = SetReport(
        name=item.name,
        rows=len(pairs),
        units=len(set(units)),
        source=item.source,
        choice=item.choice,
        rejected=dict(Counter(bad.reason for bad in item.rejected)),
        notes=(*item.notes, *_unit_notes(Counter(units))),
        estimates={name: estimate(values[name], draws[name]) for name in values},
        differences=_differences(values, draws, base),
    )
    return report, draws


def _unit_notes(units: Counter[str]) -> Iterator[str]:
    rows, largest = units.total(), max(units.values())
    if len(units) < FEW_UNITS or largest > LARGE_UNIT * rows:
        yield (
            f"its {rows:,} pairs form {len(units):,} cluster(s) that share texts, the largest of {largest:,}: "
            "its interval is a rough one"
        )


def _differences(
    values: Mapping[str, float], draws: Mapping[str, NDArray[np.float64]], base: str
) -> dict[str, Difference]:
    return {name: difference(values[name] - values[base], draws[name] - draws[base]) for name in values if name != base}
