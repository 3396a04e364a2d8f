"""The STS suite: found in folders as people keep them, measured in pairs, with a mean that has an interval."""

from __future__ import annotations

import gc
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from embedsmith.artifacts import plain, write_jsonl
from embedsmith.encoder import Embeddings, pair_similarities
from embedsmith.errors import ConfigurationError, InputError, MissingPartError, ModelError
from embedsmith.examples import ScoredPair, units_of
from embedsmith.metrics import resample_weights
from embedsmith.model import DEMO_MODEL
from embedsmith.suites import (
    SUITES,
    ScoredSet,
    SuiteSet,
    fetch_suite,
    measure_suite,
    read_suite,
    read_task,
    warn_of_overlap,
)
from embedsmith.testing import FakeEncoder, FaultyServer

SETS = {spec.name: spec for spec in SUITES["sts"]}
NOUNS = ("river", "station", "garden", "engine", "letter", "mountain", "window", "kitchen", "bridge", "violin")
CHANGES = ("the old {0} near the {1}", "an old {0} near a {1}", "the {0} is old", "nobody saw the {1}", "prices rose")


def graded(count: int, *, salt: str = "") -> list[ScoredPair]:
    """Pairs of sentences whose second half says less and less of the first; scores 0 to 4, with ties."""
    pairs = []
    for row in range(count):
        names = NOUNS[row % 10] + salt, f"{NOUNS[(row // 10) % 10]}{row}"
        pairs.append(ScoredPair(CHANGES[0].format(*names), CHANGES[row % 5].format(*names), 4.0 - row % 5))
    return pairs


def rows_of(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    return [{"sentence1": pair.sentence1, "sentence2": pair.sentence2, "score": pair.score} for pair in pairs]


class CoarseEncoder:
    """A worse encoder than the fake one, and as reproducible: what it sees is the first letters of a text."""

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        return FakeEncoder(64).encode([text[:12] for text in texts])


class CountingEncoder(FakeEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        self.seen += texts
        return super().encode(texts)


# --- what is found in a folder --------------------------------------------------------------------


def test_sets_are_found_by_name_in_any_case_and_the_rest_is_listed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "STS12.jsonl.gz", rows_of(graded(30)))
    write_jsonl(tmp_path / "SICK_R" / "test.jsonl", rows_of(graded(20)))
    write_jsonl(tmp_path / "sts-b" / "sts-dev.jsonl", rows_of(graded(10)))
    write_jsonl(tmp_path / "biosses-test.jsonl", rows_of(graded(15)))
    (tmp_path / "README.md").write_text("not a table")
    found = read_suite(tmp_path)

    assert {item.name: len(item.pairs) for item in found.sets} == {
        "STS12": 30,
        "STSBenchmark": 10,
        "SICK-R": 20,
        "BIOSSES": 15,
    }
    assert list(found.missing) == ["STS13", "STS14", "STS15", "STS16", "STS17"]
    assert {item.name: item.choice for item in found.sets}["STSBenchmark"].startswith("dev, as there is no test")


def test_of_a_folder_test_is_taken_then_validation_and_training_never(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("validation", 6), ("dev", 7)):
        write_jsonl(tmp_path / "stsb" / f"{part}.jsonl", rows_of(graded(count)))
    write_jsonl(tmp_path / "sick" / "train.jsonl", rows_of(graded(9)))
    found = read_suite(tmp_path)

    (stsb,) = found.sets
    assert len(stsb.pairs) == 6
    assert stsb.choice == "validation, as there is no test file"
    assert found.missing["SICK-R"].startswith("only a training file")

    write_jsonl(tmp_path / "stsb" / "test.jsonl", rows_of(graded(8)))
    assert len(read_suite(tmp_path).sets[0].pairs) == 8


def test_two_files_for_one_part_are_not_chosen_between(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sts12.jsonl", rows_of(graded(5)))
    write_jsonl(tmp_path / "sts12" / "all.jsonl", rows_of(graded(5)))
    with pytest.raises(InputError, match="2 files could be STS12"):
        read_suite(tmp_path)


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_any_set_is_an_error_that_names_what_it_looked_for(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "data"
    if made:
        folder.mkdir()
    with pytest.raises(InputError) as error:
        read_suite(folder)
    assert ("biosses" in error.value.expected) is made


def test_sicks_own_columns_are_read_and_its_entailment_label_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sick.tsv").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tlabel\n"
        "1\ta dog\ta cat\t3.5\tneutral\n2\ta\tb\t1\tneutral\n"
    )
    (sick,) = read_suite(tmp_path).sets
    assert sick.pairs == (ScoredPair("a dog", "a cat", 3.5), ScoredPair("a", "b", 1.0))


@pytest.mark.parametrize(
    ("row", "action"),
    [
        ({"sentence1": "a", "sentence2": "b", "label": 3.2}, "rename label to score"),
        ({"text": "a", "score": 1}, "rename the columns"),
    ],
)
def test_wrong_columns_are_named_with_what_to_do(tmp_path: Path, row: dict[str, Any], action: str) -> None:
    write_jsonl(tmp_path / "sts12.jsonl", [row])
    with pytest.raises(InputError, match=r"sts12\.jsonl has the columns") as error:
        read_suite(tmp_path)
    assert action in error.value.action


def test_rows_that_cannot_be_used_are_counted_with_line_and_reason(tmp_path: Path) -> None:
    rows = [*rows_of(graded(6)), {"sentence1": "a", "sentence2": "b", "score": None}]
    rows += [{"sentence1": " ", "sentence2": "b", "score": 1}, {"sentence1": "a", "sentence2": "b", "score": "nan"}]
    write_jsonl(tmp_path / "sts16.jsonl", rows)
    (found,) = read_suite(tmp_path).sets

    assert [(bad.line, bad.reason) for bad in found.rejected] == [(7, "no-score"), (8, "no-text"), (9, "no-score")]
    report = measure_suite({"fake": FakeEncoder()}, [found], resamples=20)
    assert report.sets[0].rejected == {"no-score": 2, "no-text": 1}


def test_a_file_without_one_usable_pair_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sts16.jsonl", [{"sentence1": "a", "sentence2": "b", "score": ""}])
    with pytest.raises(InputError, match=r"no usable pair \(1 rejected, the first: line 1, no-score\)"):
        read_suite(tmp_path)


def test_of_sts17_only_english_counts(tmp_path: Path) -> None:
    rows = [row | {"lang": lang} for row in rows_of(graded(4)) for lang in ("en-en", "en-de", "ko-ko")]
    write_jsonl(tmp_path / "sts17.jsonl", rows)
    (found,) = read_suite(tmp_path).sets

    assert len(found.pairs) == 4
    assert {bad.reason for bad in found.rejected} == {"other-language"}


def test_another_size_or_scale_than_the_published_one_is_noted(tmp_path: Path) -> None:
    rows = [row | {"score": row["score"] - 1} for row in rows_of(graded(10))]
    write_jsonl(tmp_path / "biosses" / "test.jsonl", rows)
    notes = read_suite(tmp_path).sets[0].notes

    assert notes[0] == "10 rows, where the public test split has 100"
    assert notes[1].startswith("scores from -1 to 3, where the published ones go from 0 to 4")


# --- what is measured -----------------------------------------------------------------------------


def test_figures_are_scipys_and_differences_are_after_less_before() -> None:
    sets = [ScoredSet("one", tuple(graded(60))), ScoredSet("two", tuple(graded(40, salt="s")))]
    report = measure_suite({"before": CoarseEncoder(), "after": FakeEncoder()}, sets, resamples=200)

    for item, found in zip(sets, report.sets, strict=True):
        left, right = ([getattr(pair, side) for pair in item.pairs] for side in ("sentence1", "sentence2"))
        expected = spearmanr(pair_similarities(FakeEncoder(), left, right), [pair.score for pair in item.pairs])
        assert found.estimates["after"].value == pytest.approx(expected.statistic, abs=1e-9)
        gain = found.estimates["after"].value - found.estimates["before"].value
        assert found.differences["after"].value == pytest.approx(gain)
        assert found.differences["after"].low <= gain <= found.differences["after"].high
    assert report.baseline == "before"
    assert list(report.mean_differences) == ["after"]


def test_the_means_interval_resamples_each_set_by_itself() -> None:
    sets = [ScoredSet(name, tuple(graded(size, salt=name))) for name, size in (("one", 60), ("two", 60), ("x", 30))]
    report = measure_suite({"coarse": CoarseEncoder()}, sets, resamples=400)
    mean = report.means["coarse"]
    values = [item.estimates["coarse"].value for item in report.sets]
    widths = [item.estimates["coarse"].high - item.estimates["coarse"].low for item in report.sets]

    assert mean.value == pytest.approx(np.mean(values))
    # Independent sets: variances add, so the mean's interval is about √(Σ width²) / 3 wide.
    assert mean.high - mean.low == pytest.approx(np.sqrt(np.sum(np.square(widths))) / 3, rel=0.25)
    assert mean.low < mean.value < mean.high


def test_rows_that_share_a_text_are_resampled_together() -> None:
    chained = [ScoredPair("one text", f"text {row} " + "x" * row, float(row % 4)) for row in range(30)]
    report = measure_suite({"fake": FakeEncoder()}, [ScoredSet("chained", tuple(chained))], resamples=50)

    (found,) = report.sets
    assert found.units == 1
    assert "its interval is a rough one" in found.notes[-1]
    assert set(units_of(chained)) == {units_of(chained)[0]}
    assert set(np.ravel(list(resample_weights(30, groups=units_of(chained), resamples=3)))) == {1.0}


def test_a_model_against_itself_differs_by_nothing() -> None:
    sets = [ScoredSet("one", tuple(graded(50)))]
    report = measure_suite({"before": FakeEncoder(), "after": FakeEncoder()}, sets, resamples=100)

    for found in (report.sets[0].differences["after"], report.mean_differences["after"]):
        assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_neither_the_order_of_rows_nor_other_sets_change_a_figure() -> None:
    pairs, other = graded(50), ScoredSet("other", tuple(graded(20, salt="o")))
    straight = measure_suite({"fake": FakeEncoder()}, [ScoredSet("one", tuple(pairs))], resamples=100)
    turned = measure_suite({"fake": FakeEncoder()}, [other, ScoredSet("one", tuple(pairs[::-1]))], resamples=100)

    assert straight.sets[0].estimates == turned.sets[1].estimates


def test_each_distinct_text_is_encoded_once_and_progress_ends_at_all_of_them() -> None:
    sets = [ScoredSet("one", tuple(graded(30))), ScoredSet("same again", tuple(graded(30)))]
    encoder, moves = CountingEncoder(), []
    measure_suite({"a": encoder, "b": FakeEncoder()}, sets, resamples=5, on_progress=lambda *move: moves.append(move))
    distinct = {text for pair in sets[0].pairs for text in (pair.sentence1, pair.sentence2)}

    assert sorted(encoder.seen) == sorted(distinct)
    assert moves[-1] == (2 * len(distinct), 2 * len(distinct))


def test_models_that_are_loaded_on_demand_are_in_memory_one_at_a_time() -> None:
    alive: weakref.WeakSet[FakeEncoder] = weakref.WeakSet()
    most = []

    class OnDemand(dict[str, int]):
        def __getitem__(self, name: str) -> Any:
            gc.collect()
            encoder = FakeEncoder(super().__getitem__(name))
            alive.add(encoder)
            most.append(len(alive))
            return encoder

    models: Any = OnDemand(small=16, large=256)
    report = measure_suite(models, [ScoredSet("one", tuple(graded(30)))], resamples=10)
    assert most == [1, 1]
    assert report.sets[0].estimates["small"] != report.sets[0].estimates["large"]


def test_the_report_is_json() -> None:
    report = measure_suite({"fake": FakeEncoder()}, [ScoredSet("one", tuple(graded(30)))], resamples=20)
    assert json.loads(json.dumps(plain(report)))["sets"][0]["estimates"]["fake"]["level"] == 0.95


# --- what cannot be measured ----------------------------------------------------------------------


def test_constant_scores_are_an_error_that_says_so() -> None:
    constant = tuple(ScoredPair(pair.sentence1, pair.sentence2, 3.0) for pair in graded(20))
    with pytest.raises(InputError, match=r"all 20 scores of one \(given\) are 3\.0"):
        measure_suite({"fake": FakeEncoder()}, [ScoredSet("one", constant)])


@pytest.mark.parametrize(("value", "message"), [(1.0, "all 20 pairs of one the cosine"), (np.nan, "not finite")])
def test_a_broken_model_is_an_error_that_names_it(value: float, message: str) -> None:
    class Broken:
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            return np.full((len(texts), 1), value, dtype=np.float32)

    with pytest.raises(ModelError, match=f"^broken gives .*{message}"):
        measure_suite({"fake": FakeEncoder(), "broken": Broken()}, [ScoredSet("one", tuple(graded(20)))])


def test_wrong_calls_are_named() -> None:
    item = ScoredSet("one", tuple(graded(20)))
    with pytest.raises(ConfigurationError, match="baseline 'nobody'"):
        measure_suite({"fake": FakeEncoder()}, [item], baseline="nobody")
    with pytest.raises(ConfigurationError, match="two sets are called one"):
        measure_suite({"fake": FakeEncoder()}, [item, item])
    with pytest.raises(ConfigurationError, match="no set"):
        measure_suite({"fake": FakeEncoder()}, [])
    with pytest.raises(ConfigurationError, match="no suite 'stts'"):
        read_suite(".", "stts")


@pytest.mark.parametrize(
    ("card", "warned"),
    [
        ("---\ndatasets:\n- sentence-transformers/all-nli\n- mteb/stsbenchmark-sts\n---\n", True),
        ("# Model\nBase: `x`. Tuned on 5,749 examples: the examples of stsb_train.jsonl.\n", True),
        ("---\ndatasets:\n- sentence-transformers/all-nli\n---\nEvaluated on STSb: .86\n", False),
        ("# Model\nBase: `x`. Tuned on 100 examples: the examples of sts_bank.jsonl.\n", False),
        (None, False),
    ],
)
def test_a_model_that_saw_stsb_is_warned_of_on_the_sets_that_share_its_pairs(
    tmp_path: Path, card: str | None, warned: bool
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    pairs = tuple(graded(5))
    warning = warn_of_overlap(tmp_path, [ScoredSet("STS14", pairs), ScoredSet("STSBenchmark", pairs)])

    assert (warning is not None and "shares pairs with STS14," in warning) is warned
    assert warn_of_overlap(tmp_path, [ScoredSet("BIOSSES", pairs)]) is None


def test_the_folder_of_a_run_and_a_model_that_was_tuned_on_stsb_before_are_warned_of(tmp_path: Path) -> None:
    for run, base, rows in (("first", "x", "stsb_train.jsonl"), ("second", tmp_path / "first", "mine.jsonl")):
        folder = tmp_path / run / "model"
        folder.mkdir(parents=True)
        (folder / "modules.json").write_text("[]")
        (folder / "README.md").write_text(f"Base: `{base}`. Tuned on 9 examples: the examples of {rows}.\n")
        warning = warn_of_overlap(tmp_path / run, [ScoredSet("STS14", tuple(graded(5)))])
        assert warning is not None
        assert warning.startswith(f"{tmp_path / 'first'} was trained on STSb")


# --- through mteb ---------------------------------------------------------------------------------

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is not installed")


def local_task(spec: SuiteSet, rows: list[dict[str, Any]]) -> Any:
    """A task of mteb whose data come from here; all else, the metadata and columns too, is mteb's."""
    import mteb
    from datasets import Dataset, DatasetDict

    class Local(type(mteb.get_task(spec.task))):  # type: ignore[misc]
        def load_data(self, *arguments: Any, **options: Any) -> None:
            split = DatasetDict({"test": Dataset.from_list(rows)})
            self.dataset = {spec.language: split} if spec.language else split
            self.data_loaded = True

    return Local()


@needs_mteb
@pytest.mark.parametrize("name", list(SETS))
def test_tasks_of_mteb_are_read_by_their_own_names_and_columns(name: str) -> None:
    spec = SETS[name]
    found = read_task(spec, local_task(spec, rows_of(graded(12))))

    assert found.pairs == tuple(graded(12))
    assert found.choice == "test, from the hub"
    assert found.source.startswith("mteb/")


@needs_mteb
def test_sets_of_mteb_are_measured_as_mteb_measures_them() -> None:
    task = local_task(SETS["BIOSSES"], rows_of(graded(40)))
    report = measure_suite({"fake": FakeEncoder()}, [read_task(SETS["BIOSSES"], task)], resamples=20)

    pairs = task.dataset["test"]
    cosines = pair_similarities(FakeEncoder(), pairs["sentence1"], pairs["sentence2"])
    distances = {"manhattan_distances": -cosines, "euclidean_distances": -cosines, "similarity_scores": None}
    theirs = task._calculate_scores({"cosine_scores": cosines, **distances}, pairs["score"])
    assert report.means["fake"].value == pytest.approx(theirs["cosine_spearman"], abs=1e-9)


@needs_mteb
def test_a_task_without_the_split_is_an_error() -> None:
    spec = SuiteSet("BIOSSES", "", "validation", 0, 4, 100, (), "BIOSSES")
    with pytest.raises(InputError, match="no part 'validation'"):
        read_task(spec, local_task(SETS["BIOSSES"], rows_of(graded(5))))


@needs_mteb
@pytest.mark.parametrize("kind", ["ConnectionError", "DatasetGenerationError"])
def test_data_that_do_not_load_are_told_with_the_way_round_it(kind: str) -> None:
    import datasets.exceptions

    failure = getattr(datasets.exceptions, kind, ConnectionError)
    task = local_task(SETS["STS12"], [])

    def load_data() -> None:
        raise failure("cut\nhere")

    task.load_data = load_data
    with pytest.raises(InputError, match=r"mteb/sts12-sts cannot be loaded from the hub: cut\n") as error:
        read_task(SETS["STS12"], task)
    assert "--data" in error.value.action


def test_without_mteb_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingPartError) as error:
        fetch_suite()
    assert error.value.action == "pip install 'embedsmith[mteb]'"


# --- the command line -----------------------------------------------------------------------------


def evaluate(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedsmith", "evaluate", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.fixture(scope="session")
def biosses(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with BIOSSES alone, as a user would lay it out."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "BIOSSES.jsonl").write_bytes(gzip.decompress((data / "biosses" / "test.jsonl.gz").read_bytes()))
    return folder


def test_before_and_after_on_real_pairs(biosses: Path) -> None:
    with FaultyServer() as server:  # serves trigrams: a model that needs no torch
        before = ("--compare", "openai:trigrams", "--base-url", server.base_url)
        shown = evaluate(DEMO_MODEL, "--suite", "sts", *before, "--data", biosses, OPENAI_API_KEY="none")

    assert shown.returncode == 0, shown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if "BIOSSES" in line]
    name, pairs, _, after, *_ = row.split()
    assert (name, pairs, after) == ("BIOSSES", "100", "0.816")
    assert "mean of 1" in shown.stdout
    assert "before  openai:trigrams" in shown.stdout
    assert f"after   {DEMO_MODEL}" in shown.stdout
    assert "not measured: STS12, STS13, STS14, STS15, STS16, STS17, STSBenchmark, SICK-R: not in" in shown.stderr


def test_one_model_alone_as_json(biosses: Path) -> None:
    with FaultyServer() as server:
        model = ("openai:trigrams", "--base-url", server.base_url)
        shown = evaluate(*model, "--suite", "sts", "--data", biosses, "--json", OPENAI_API_KEY="none")

    assert shown.returncode == 0, shown.stderr
    suite = json.loads(shown.stdout)["suite"]
    assert suite["sets"][0]["rows"] == 100
    assert suite["means"]["openai:trigrams"]["low"] < suite["means"]["openai:trigrams"]["high"]
    assert len(suite["missing"]) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to evaluate on"),
        (("pairs.jsonl", "--data", "."), "--data without --suite"),
        (("--suite", "sts", "--guard", "x.jsonl"), "--guard without PAIRS"),
        (("--suite", "mteb"), "no suite 'mteb'"),
        (("--suite", "sts", "--compare", DEMO_MODEL, "--data", "."), "each of them once"),
        (("--suite", "sts", "--data", "./nowhere"), "nowhere is not a folder"),
    ],
)
def test_options_that_make_no_sense_end_with_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    shown = evaluate(DEMO_MODEL, *arguments)
    assert shown.returncode == 2
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr


@needs_mteb
def test_a_hub_out_of_reach_is_told_with_the_way_round_it(tmp_path: Path) -> None:
    empty = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    shown = evaluate(DEMO_MODEL, "--suite", "sts", **empty)

    assert shown.returncode == 2
    assert "mteb/sts12-sts cannot be loaded from the hub" in shown.stderr
    assert "--data" in shown.stderr
