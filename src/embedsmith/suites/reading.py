"""The sets of a suite, read from the user's own files or through mteb from the hub, each with what is odd about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedsmith.errors import InputError, MissingPartError
from embedsmith.examples import LABELS, Rejected, ScoredPair, detect_format
from embedsmith.suites.catalogue import SuiteSet, find_suite
from embedsmith.tables import KINDS, detect_kind, read_rows

SPLITS = (("test", {"test"}), ("validation", {"validation", "valid", "val"}), ("dev", {"dev", "trial"}))
TRAINING = {"train", "training"}
SCORE_NAMES = {"relatedness_score": "score", "relatedness": "score"}  # SICK's own
ENGLISH = {"en", "en-en", "eng", "eng-latn"}


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
