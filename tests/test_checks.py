"""Planted mistakes: each is found by `train` before (or while) it costs anything; the good twin raises nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from embedsmith.adapters import LoraConfig
from embedsmith.batches import Prompts, Source
from embedsmith.checks import (
    Finding,
    Probe,
    Unchecked,
    Watch,
    check_effects,
    check_leaks,
    check_movement,
    check_order,
    check_pooling,
    check_tokens,
    draw_probe,
    mean_cosine,
    quality,
    report_of,
)
from embedsmith.cli import app
from embedsmith.config import TrainingConfig, config_from
from embedsmith.corpus import Query, read_queries
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError
from embedsmith.examples import (
    Example,
    LabelledPair,
    LabelledText,
    PositivePair,
    ScoredPair,
    Triplet,
    read_examples,
    write_examples,
)
from embedsmith.llm import open_llm
from embedsmith.model import DEMO_MODEL, load_network, resolve_model
from embedsmith.preparation import Preparation
from embedsmith.probes import Movement, check_ends, check_padding, check_positions, check_trainable
from embedsmith.synthesis import synthesize
from embedsmith.tokens import tokenize
from embedsmith.training import rehearse, train
from tiny_decoders import write_decoder

ASKED = [
    "freeze my card", "change my PIN", "close my account", "open a savings account", "pay a bill", "cancel a transfer",
    "order a new card", "raise my limit", "report a stolen phone", "get a loan", "exchange currency",
    "download a statement", "change my address", "add a joint owner", "dispute a payment", "set up a standing order",
    "reset my password", "talk to an adviser", "invest in shares", "find a cash machine", "insure my car",
    "stop paper letters", "pay in a cheque", "verify my identity",
]  # fmt: skip
ORDER = {"swapped-columns", "inverted-labels", "inverted-scores", "pooling"}  # random weights may well say these


def triplets() -> list[Triplet]:
    return [
        Triplet(f"how can I {ask}", f"I want to {ask}, what are the steps?", (f"can I {ASKED[row - 7]} today?",))
        for row, ask in enumerate(ASKED)
    ]


def pairs() -> list[PositivePair]:
    return [PositivePair(item.anchor, item.positive) for item in triplets()]


def labelled() -> list[LabelledPair]:
    alike = [LabelledPair(item.anchor, item.positive, 1, item.anchor) for item in triplets()]
    return alike + [LabelledPair(item.anchor, item.negatives[0], 0, item.anchor) for item in triplets()]


def scored() -> list[ScoredPair]:
    close = [ScoredPair(item.anchor, item.positive, 4 + row % 5 / 5) for row, item in enumerate(triplets())]
    return close + [ScoredPair(item.anchor, item.negatives[0], row % 5 / 5) for row, item in enumerate(triplets())]


def classed() -> list[LabelledText]:
    return [LabelledText(text, item.anchor) for item in triplets() for text in (item.anchor, item.positive)]


def found_by(examples: Sequence[Example] | Sequence[Source], model: Path | str, out: Path, **options: Any) -> set[str]:
    """Return the names of what `train` finds in two steps; an error counts by its name as well."""
    values = {"steps": 2, "precision": "fp32", "batch": 8, **options.pop("values", {})}
    try:
        result = train(examples, base=model, out=out / "model", config=config_from(values), **options)
    except EmbedsmithError as error:
        if not (error.exit_code == 2 and error.expected and error.action):
            raise
        return set(re.findall(r"\[([a-z-]+)\]", error.found)) | {"stopped"}
    assert all(f"warning: {finding}" in result.notes for finding in result.findings)
    return {finding.name for finding in result.findings}


GOOD: dict[str, Callable[[], Sequence[Any]]] = {
    "triplets": triplets,
    "pairs": pairs,
    "labelled pairs": labelled,
    "scored pairs": scored,
    "classes": classed,
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_examples_raise_nothing(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    assert found_by(GOOD[kind](), tiny_model, tmp_path) - ORDER == set()


@pytest.mark.parametrize("kind", GOOD)
def test_good_examples_raise_nothing_with_a_real_model(kind: str, tmp_path: Path) -> None:
    found = rehearse(
        GOOD[kind](), base=DEMO_MODEL, out=tmp_path / "m", config=TrainingConfig(batch=8, precision="fp32")
    )
    assert found.findings == ()


def lose_negatives() -> list[Triplet]:
    return [replace(item, negatives=(f"{item.positive.upper()} ",)) for item in triplets()]


def repeat_anchors() -> list[PositivePair]:
    return [replace(item, positive=f"{item.anchor.title()}?") for item in pairs()]


def number_classes() -> list[LabelledText]:
    return [replace(item, label=str(row)) for row, item in enumerate(classed())]


def mix_scales() -> list[ScoredPair]:
    return [replace(item, score=item.score * (20 if row % 2 else 0.19)) for row, item in enumerate(scored())]


def add_score(value: float) -> list[ScoredPair]:
    return [*scored(), ScoredPair("a card", "a pin", value)]


def garble(text: str) -> str:
    return f"{text} für Café".encode().decode("latin-1")


PLANTED: list[tuple[str, Callable[[], Sequence[Any]], dict[str, Any], bool]] = [
    ("negatives-equal-positives", lose_negatives, {}, True),
    ("negatives-equal-positives", lambda: [*lose_negatives()[:6], *triplets()[6:]], {}, False),
    ("positives-equal-anchors", repeat_anchors, {}, True),
    ("positives-equal-anchors", lambda: [*repeat_anchors()[:8], *pairs()[8:]], {}, False),
    ("one-label", lambda: [pair for pair in labelled() if pair.label], {}, False),
    ("constant-scores", lambda: [replace(item, score=3.0) for item in scored()], {}, True),
    ("scores-not-numbers", lambda: add_score(float("nan")), {}, True),
    ("mixed-scales", mix_scales, {}, False),
    ("same-texts", lambda: [PositivePair("a text", "A text.")] * 8, {}, True),
    ("empty-texts", lambda: [*pairs(), PositivePair("", "an answer")], {}, False),
    ("empty-texts", lambda: [PositivePair(" ?", "...")] * 8, {}, True),
    ("same-anchors", lambda: [replace(item, sentence1="my card") for item in scored()], {}, False),
    ("no-triplets", lambda: [replace(item, sentence1=f"{item.sentence1} {item.label}") for item in labelled()],
     {"values": {"losses": {"triplet": 1.0}}}, True),
    ("repeated-rows", lambda: [*scored(), *[scored()[0]] * 40], {}, False),
    ("contradicting-labels", lambda: [*labelled(), *(replace(item, label=0) for item in labelled()[:4])], {}, False),
    ("false-negatives", lambda: [PositivePair(f"how do I pay{'?' * row}", f"By transfer {row}", str(row))
                                 for row in range(24)], {}, False),
    ("one-class", lambda: [replace(item, label="x") for item in classed()], {}, True),
    ("classes-of-one", number_classes, {}, True),
    ("no-negatives", pairs, {"values": {"batch": 1}}, True),
    ("batch-larger-than-rows", pairs, {"values": {"batch": 64}}, False),
    ("temperature", pairs, {"values": {"temperature": 0.0001}}, False),
    ("temperature", pairs, {"values": {"temperature": 9.0}}, False),
    ("prompt-twice", lambda: [replace(item, anchor=f"query: {item.anchor}") for item in pairs()],
     {"preparation": Preparation(prompts=Prompts("query: ", "passage: "))}, False),
    ("instructions-missing", pairs,
     {"preparation": Preparation(prompts=Prompts("Instruct: {instruction}\nQuery: "))}, True),
    ("garbled-texts", lambda: [replace(item, anchor=garble(item.anchor)) for item in pairs()], {}, False),
    ("markup-in-texts", lambda: [replace(item, anchor=f"<p>{item.anchor}</p>&nbsp;") for item in pairs()], {}, False),
    ("matryoshka-dimensions", pairs, {"values": {"dimensions": (64, 32)}}, True),
    ("matryoshka-dimensions", pairs, {"values": {"dimensions": (8, 16, 32)}}, False),
    ("max-length-beyond-positions", pairs, {"preparation": Preparation(max_length=4096)}, True),
    ("truncated-texts", pairs, {"preparation": Preparation(max_length=8)}, False),
    ("truncated-texts", pairs, {"preparation": Preparation(max_length=4)}, True),
    ("temperature", lambda: [replace(item, scores=(0.9, 0.1)) for item in triplets()],
     {"values": {"temperature": 2.0, "losses": {"distill_kl": 1.0}}}, False),
    ("crowded-group", lambda: [replace(item, group="one" if row % 2 else None) for row, item in enumerate(pairs())],
     {"values": {"batch": 12}}, False),
    ("option-without-effect", pairs, {"values": {"margin": 0.3}}, False),
    ("repeated-source",
     lambda: [Source(tuple(pairs()), weight=0.3), Source(tuple(triplets()[:1]), "one row", {}, 0.7)],
     {"values": {"epochs": 6, "steps": 0}}, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "plant", "options", "stops"), PLANTED, ids=[f"{row} {plant[0]}" for row, plant in enumerate(PLANTED)]
)
def test_a_planted_mistake_is_found(
    name: str,
    plant: Callable[[], Sequence[Any]],
    options: dict[str, Any],
    stops: bool,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    found = found_by(plant(), tiny_model, tmp_path, **{**options, "values": dict(options.get("values", {}))})
    assert name in found
    assert ("stopped" in found) == stops
    assert (tmp_path / "model").exists() != stops


@pytest.mark.parametrize(
    "options",
    [
        {"preparation": Preparation(prompts=Prompts("query: ", "passage: "))},
        {"values": {"temperature": 0.02, "dimensions": (32, 16, 8)}},
        {"preparation": Preparation(max_length=64)},
    ],
    ids=["prompts", "temperature and dimensions", "max_length"],
)
def test_sane_settings_raise_nothing(options: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    assert found_by(pairs(), tiny_model, tmp_path, **options) - ORDER == set()


def test_a_group_binds_no_batch_of_a_loss_without_negatives_from_it(tiny_model: Path, tmp_path: Path) -> None:
    rows = [replace(item, group="one") for item in triplets()]
    options = {"values": {"batch": 12, "losses": {"triplet": 1.0}}}
    assert "crowded-group" not in found_by(rows, tiny_model, tmp_path, **options)


# ── What an untrained encoder says of the data

SWAPPED: dict[str, Callable[[], Sequence[Any]]] = {
    "swapped-columns": lambda: [replace(t, positive=t.negatives[0], negatives=(t.positive,)) for t in triplets()],
    "inverted-labels": lambda: [replace(pair, label=1 - pair.label) for pair in labelled()],
    "inverted-scores": lambda: [replace(pair, score=5 - pair.score) for pair in scored()],
}


@pytest.mark.parametrize("name", SWAPPED)
def test_data_turned_around_is_seen_by_the_untrained_base(name: str, tmp_path: Path) -> None:
    found = found_by(SWAPPED[name](), DEMO_MODEL, tmp_path, values={"steps": 1})
    assert found == {name}


def test_a_plain_model_is_no_judge_so_the_demo_model_is_asked(tmp_path: Path) -> None:
    base = write_decoder(tmp_path / "base")
    found = rehearse(SWAPPED["swapped-columns"](), base=base, out=tmp_path / "model", config=TrainingConfig(batch=8))
    (one,) = [finding for finding in found.findings if finding.name == "swapped-columns"]
    assert DEMO_MODEL in one.found
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"temperature": 0.02, "symmetric": True, "guide": "self", "guide_margin": 0.1, "guide_relative": True}, set()),
        ({"margin": 0.3, "mining": "all", "logistic_scale": 9.0}, {"margin", "mining", "logistic_scale"}),
        ({"guide_margin": 0.1, "guide_relative": True}, {"guide_margin", "guide_relative"}),
        ({"losses": {"infonce": 1.0}, "mixing": "mixed"}, {"losses", "mixing"}),
    ],
)
def test_an_option_that_no_loss_of_the_run_reads_is_named(values: dict[str, Any], idle: set[str]) -> None:
    source = Source(tuple(pairs()), losses={"infonce": 1.0})
    found = list(check_effects(config_from(values), Preparation(), [source], [source]))
    assert {str(finding).partition(" ")[0] for finding in found} == idle
    several = Source(tuple(classed()), losses={"batch_triplet": 1.0})
    assert not list(
        check_effects(config_from({"mining": "all", "mixing": "mixed"}), Preparation(), [], [source, several])
    )


def test_weights_that_are_not_merged_need_adapters() -> None:
    source = Source(tuple(labelled()), losses={"logistic": 1.0})
    (finding,) = check_effects(TrainingConfig(), Preparation(merge=False), [source], [source])
    assert isinstance(finding, Finding)
    assert (finding.name, finding.severity) == ("option-without-effect", "warning")
    assert not list(check_effects(TrainingConfig(), Preparation(merge=False, lora=LoraConfig()), [source], [source]))


def test_what_is_too_small_to_tell_is_no_warning(tiny_model: Path, tmp_path: Path) -> None:
    result = train(triplets()[:9], base=tiny_model, out=tmp_path / "model", config=TrainingConfig(batch=4))
    assert "order: examples has 9 rows of a kind, too few of 20 to tell" in result.unchecked
    assert not any("too few" in note for note in result.notes)


def test_the_figures_of_a_probe_are_those_of_a_hand() -> None:
    three = Probe("x", "triplets", ("a",) * 4, ("b",) * 4, np.array([1.0, 1, 0, 0]))
    assert quality(three, np.array([0.8, 0.5, 0.3, 0.6])) == 0.5
    assert list(check_order(three, np.array([0.8, 0.7, 0.3, 0.6]), "a base")) == []
    (finding,) = check_order(three, np.array([0.1, 0.2, 0.3, 0.6]), "a base")
    assert isinstance(finding, Finding)
    assert "0% of 2 triplets" in finding.found
    assert isinstance(draw_probe(Source(tuple(pairs()))), Unchecked)


# ── The base itself


def copy_demo(folder: Path) -> Path:
    return Path(shutil.copytree(resolve_model(DEMO_MODEL), folder))


def test_the_wrong_pooling_for_a_base_is_seen_in_its_folder(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "cls")
    (folder / "modules.json").unlink()
    found = rehearse(
        labelled(),
        base=folder,
        out=tmp_path / "model",
        config=TrainingConfig(batch=8, precision="fp32"),
        preparation=Preparation(pooling="cls"),
    )
    assert [finding.name for finding in found.findings] == ["pooling"]
    assert found.findings[0].found == "the base was trained with mean pooling, and this run pools by cls"


def test_the_wrong_pooling_for_a_base_is_seen_on_the_data(data: Path, tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "cls")
    settings = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    graded = read_examples(data / "stsb/validation.jsonl.gz").examples
    config = TrainingConfig(batch=8, steps=1, precision="fp32")
    found = train(graded, base=folder, out=tmp_path / "model", config=config).findings
    assert [finding.name for finding in found] == ["pooling"]
    assert "mean pooling orders 150 rows better than cls" in found[0].found


def test_a_decoder_that_was_trained_on_its_last_token_is_told_from_its_mean() -> None:
    probe = Probe("x", "labels", ("a",) * 80, ("b",) * 80, np.repeat([1.0, 0.0], 40))
    last, mean = probe.truth + np.linspace(0, 1.1, 80), np.cos(np.arange(80.0))
    (finding,) = check_pooling(probe, {"lasttoken": last, "mean": mean}, "mean")
    assert isinstance(finding, Finding)
    assert "lasttoken pooling orders 80 rows better" in finding.found
    assert list(check_pooling(probe, {"lasttoken": last, "mean": mean}, "lasttoken")) == []
    upside_down = replace(probe, truth=1 - probe.truth)  # inverted labels are no reason to change the pooling
    assert list(check_pooling(upside_down, {"lasttoken": mean, "mean": last}, "mean")) == []


@pytest.mark.parametrize(("pooling", "words"), [("lasttoken", "no decoder"), ("cls", "seen nothing")])
def test_impossible_poolings_are_refused(pooling: Any, words: str, tiny_model: Path, tmp_path: Path) -> None:
    base = tiny_model.parent / "bert" if pooling == "lasttoken" else write_decoder(tmp_path / "base")
    with pytest.raises(ConfigurationError, match=words):
        train(pairs(), base=base, out=tmp_path / "model", preparation=Preparation(pooling=pooling))


def test_a_decoder_folder_without_end_token_and_with_the_end_token_as_padding(tmp_path: Path) -> None:
    plain = write_decoder(tmp_path / "plain")
    load_network(plain).save(str(tmp_path / "good"))
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # those of the plain model append nothing
        shutil.copy(plain / name, tmp_path / "bad" / name)
    settings = json.loads((tmp_path / "bad" / "tokenizer_config.json").read_text())
    (tmp_path / "bad" / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "</s>"}))
    assert found_by(pairs(), tmp_path / "good", tmp_path / "a") - ORDER == set()
    assert found_by(pairs(), tmp_path / "bad", tmp_path / "b") >= {"end-token-missing", "pad-is-end-token"}


def test_vectors_that_change_with_the_padding_stop_the_run(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    found = found_by([*pairs(), PositivePair("pin", "number " * 60)], folder, tmp_path)
    assert found == {"padding-changes-vectors", "stopped"}


def test_the_probes_of_a_good_network_are_silent(tiny_model: Path) -> None:
    network = load_network(tiny_model)
    checks: Iterator[Any] = (
        item
        for check in (check_positions, check_ends, check_trainable)
        for item in check(network)  # type: ignore[operator]
    )
    assert list(checks) == []
    assert list(check_padding(network, ["a", "a much longer text than that"], "fp32")) == []


def test_texts_that_are_cut_nowhere_run_beyond_learnt_positions(tiny_model: Path) -> None:
    network = load_network(tiny_model)
    network.max_seq_length = 10**30
    (finding,) = check_positions(network)
    assert isinstance(finding, Finding)
    assert (finding.severity, finding.found) == ("error", "texts are not cut, and the model has 512 positions")


def test_a_network_without_a_trainable_weight_is_refused(tiny_model: Path) -> None:
    network = load_network(tiny_model).requires_grad_(False)
    (finding,) = check_trainable(network)
    assert isinstance(finding, Finding)
    assert (finding.name, finding.severity) == ("nothing-to-train", "error")


def test_adapters_that_hit_nothing_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from embedsmith.adapters import LoraConfig

    with pytest.raises(ConfigurationError, match="no linear module") as told:
        train(pairs(), base=tiny_model, out=tmp_path / "m", preparation=Preparation(lora=LoraConfig(targets=("qkv",))))
    assert "query" in told.value.expected


def test_texts_that_are_the_same_once_cut_stop_the_run(tiny_model: Path) -> None:
    network = load_network(tiny_model)
    texts = [f"how do I pay bill number {row}" for row in range(20)]
    (finding,) = check_tokens(tokenize(network.tokenizer, texts, max_length=5), 5)
    assert isinstance(finding, Finding)
    assert finding.severity == "error"
    assert "20 of 20 (100.0%) texts are longer than the 5 tokens" in finding.found
    assert list(check_tokens(tokenize(network.tokenizer, texts, max_length=32), 32)) == []


# ── Settings that have a home elsewhere


@pytest.mark.parametrize(
    ("values", "action"), [({"gradient_accumulation_steps": 4}, "set `batch`"), ({"temperature": 20.0}, "0.05")]
)
def test_values_that_are_mistaken_say_what_to_set_instead(values: dict[str, Any], action: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        config_from(values)
    assert action in told.value.action


@pytest.mark.parametrize("loss", ["contrastive", "online_contrastive", "logistic", "triplet"])
def test_a_loss_that_needs_both_labels_refuses_one(loss: str, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainingConfig(losses={loss: 1.0})
    with pytest.raises(InputError, match="cannot use"):
        train(pairs(), base=tiny_model, out=tmp_path / "model", config=config)


# ── Leaks


def test_rows_of_the_held_out_set_in_the_training_set_stop_the_run(tiny_model: Path, tmp_path: Path) -> None:
    item = labelled()[0]
    for leaked in (
        item,
        replace(item, sentence1=f"{item.sentence2.upper()} ", sentence2=item.sentence1),
        replace(item, sentence2=f"{item.sentence2} {item.sentence2}"),  # the same trigrams
    ):
        found = found_by(labelled(), tiny_model, tmp_path, held_out=[leaked])
        assert found >= {"leaked-rows", "stopped"}


def test_held_out_rows_of_their_own_are_no_leak(tiny_model: Path, tmp_path: Path) -> None:
    assert list(check_leaks(labelled()[:4], [LabelledPair("other", "texts", 1)])) == []
    item = labelled()[0]
    near = replace(item, sentence2="I do not want to freeze my card, what are the steps?")  # another fact
    assert not any(finding.name == "leaked-rows" for finding in report_of(check_leaks([item], [near])).findings)
    (texts,) = check_leaks(labelled(), [LabelledPair(item.sentence1, "nothing of the kind", 0)])
    assert isinstance(texts, Finding)
    assert texts.name == "leaked-texts"


# ── While it runs


@pytest.mark.parametrize(("demo", "rate"), [(False, 0.3), (True, 0.01)], ids=["random weights", "real"])
def test_a_rate_that_diverges_stops_the_run(demo: bool, rate: float, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainingConfig(batch=8, epochs=20, learning_rate=rate, precision="fp32", schedule="constant", warmup=0.0)
    with pytest.raises(ConfigurationError, match="diverged") as told:
        train(pairs(), base=DEMO_MODEL if demo else tiny_model, out=tmp_path / "model", config=config)
    assert "lower --learning-rate" in told.value.action


@pytest.mark.parametrize("loss", ["infonce", "logistic", "online_contrastive", "triplet", "cosent"])
def test_a_sane_rate_runs_to_its_end(loss: str, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainingConfig(losses={loss: 1.0}, batch=8, epochs=6, learning_rate=1e-3, precision="fp32")
    result = train(labelled(), base=tiny_model, out=tmp_path / "model", config=config)
    assert {finding.name for finding in result.findings} <= ORDER


def test_the_watch_sees_a_loss_that_rises_and_texts_that_fall_together() -> None:
    def watch(steps: Iterable[tuple[float, float, int]]) -> None:
        one = Watch()
        for loss, closeness, source in steps:
            one.see(loss, closeness, (source,))

    watch((1 + 0.5 * np.sin(step), 0.4, 0) for step in range(200))
    watch((0.1 if step % 2 else 9.0, 0.4, step % 2) for step in range(200))  # two sources, each with its own size
    with pytest.raises(ConfigurationError, match=r"loss rose from 0.1 .* to 1.55"):
        watch((0.1 if step < 20 else 3.0, 0.4, 0) for step in range(60))
    with pytest.raises(ConfigurationError, match=r"rose from 0.500 to 0.999"):
        watch((1.0, 0.5 if step < 20 else 0.999, 0) for step in range(60))


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.manual_seed(0)), dim=1)
    products = rows @ rows.T
    wanted = float((products.sum() - 6) / 30)
    assert mean_cosine(float(rows.sum(dim=0).square().sum()), 6) == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(mean_cosine(4.0, 2))


def test_a_rate_that_changes_nothing_is_told_at_the_end(tiny_model: Path, tmp_path: Path) -> None:
    assert "nothing-learnt" in found_by(pairs(), tiny_model, tmp_path, values={"learning_rate": 1e-9})
    network = load_network(tiny_model)
    movement = Movement(network)
    assert movement.measure() == 0
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    assert movement.measure() == pytest.approx(0.5, abs=1e-3)
    assert list(check_movement(0.5, [(0, 1.0)], TrainingConfig())) == []


def test_checks_change_no_weight(tiny_model: Path, tmp_path: Path) -> None:
    """The probes encode before the first step; the trained weights are those of the seed all the same."""
    config = TrainingConfig(batch=8, steps=2, precision="fp32", dropout=0.3)
    folders = [train(examples, base=tiny_model, out=tmp_path / name, config=config, held_out=held).model
               for name, examples, held in (("a", labelled(), ()), ("b", labelled(), [LabelledPair("x", "y", 1)]))
               ]  # fmt: skip
    first, second = (SentenceTransformer(str(folder)).state_dict() for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ── The command line


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--small"], "--small without --recipe"),
        (["--force"], "--force without --validation"),
        (["--verifier", "--tolerance", "0.1"], "--tolerance with --verifier"),
    ],
)
def test_an_option_without_what_it_needs_is_refused(options: list[str], found: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["train", "none.jsonl", "--base", "none", "--out", str(tmp_path), *options])
    assert isinstance(ended.exception, ConfigurationError)
    assert ended.exception.found.startswith(found)


def test_a_dry_run_tells_all_and_trains_nothing(tiny_model: Path, tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.jsonl", [*pairs(), *pairs()])
    arguments = ["train", str(tmp_path / "rows.jsonl"), "--base", str(tiny_model), "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*arguments, "--batch", "64", "--dry-run"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    for words in ("48 examples", "loss of", "pool of negatives: about 23", "1 steps", "nothing was trained"):
        assert words in " ".join(shown.output.split())
    assert "warning: a batch of 64 from 24 rows" in shown.output
    assert not (tmp_path / "run").exists()
    found = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    assert {finding["name"] for finding in json.loads(found.stdout)["findings"]} == {"repeated-rows"}


def test_a_dry_run_says_what_was_not_read_and_not_checked(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"anchor": row.anchor, "positive": row.positive, "negative_id": "doc17"} for row in pairs()[:9]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", str(tmp_path / "rows.jsonl"), "--base", str(tiny_model), "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*arguments, "--dry-run"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    assert "not read: negative_id of " in shown.output
    assert "not checked: order: " in shown.output


def test_a_held_out_file_that_was_trained_on_stops_the_command(tiny_model: Path, tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.jsonl", pairs())
    write_examples(tmp_path / "held.jsonl", pairs()[:3])
    options = ["--base", str(tiny_model), "--out", str(tmp_path / "run"), "--held-out", str(tmp_path / "held.jsonl")]
    shown = CliRunner().invoke(app, ["train", str(tmp_path / "rows.jsonl"), *options])
    assert isinstance(shown.exception, InputError)
    assert "3 of 3 (100.0%) held-out rows are training rows as well" in shown.exception.found
    assert shown.exception.exit_code == 2


# ── Real data as it is


def medical(data: Path) -> Sequence[Example]:
    queries = [row for row in read_queries(data / "medical_queries/queries.jsonl.gz") if isinstance(row, Query)]
    llm = open_llm(f"recorded:{data / 'medical_queries/completions.jsonl.gz'}")
    return synthesize(queries[:120], llm=llm).examples


def finance(data: Path) -> Sequence[Example]:
    from embedsmith.artifacts import read_jsonl

    passages = {row["id"]: row["text"] for _, row in read_jsonl(data / "finance_passages/passages.jsonl.gz")}
    rows = (row for _, row in read_jsonl(data / "finance_passages/completions.jsonl.gz"))
    return [
        PositivePair(item["question"], passages[row["id"]], row["id"])
        for row in rows
        for item in row["questions"]
        if row["id"] in passages
    ]


REAL: dict[str, Callable[[Path], Sequence[Example]]] = {
    "duplicate questions": lambda data: read_examples(data / "duplicate_questions/train.jsonl.gz").examples[:8000],
    "medical, synthetic": medical,
    "nli": lambda data: read_examples(data / "nli/triplets.jsonl.gz").examples,
    "stsb": lambda data: read_examples(data / "stsb/validation.jsonl.gz").examples,
    "banking77": lambda data: read_examples(data / "banking77/train.jsonl.gz").examples,
    "finance": finance,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_data_raises_no_false_alarm(name: str, data: Path, tmp_path: Path) -> None:
    found = rehearse(REAL[name](data), base=DEMO_MODEL, out=tmp_path / "model", config=TrainingConfig(precision="fp32"))
    assert {finding.name for finding in found.findings} <= ({"truncated-texts"} if name == "finance" else set())


def test_a_watch_that_is_put_together_again_stops_where_the_first_one_would() -> None:
    first = Watch()
    for _ in range(20):
        first.see(0.5, 0.4)
    second = Watch()
    second.remember(json.loads(json.dumps(first.recall())))
    told = []
    for watch in (first, second):
        with pytest.raises(ConfigurationError, match=r"rose from 0\.5 ") as stopped:
            see_often(watch, 9.0)
        told.append(str(stopped.value))
    assert told[0] == told[1]


def see_often(watch: Watch, loss: float) -> None:
    for _ in range(30):
        watch.see(loss, 0.4)
