"""No forgetting: looking at a run changes nothing in it, and what it leaves is weighed against its base."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embedsmith.adapters import LoraConfig
from embedsmith.artifacts import read_json, read_jsonl
from embedsmith.batches import Prompts
from embedsmith.cards import CardFacts
from embedsmith.config import TrainingConfig
from embedsmith.errors import ConfigurationError, InputError, ModelRefused
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.guards import Numbering, shipped_guards
from embedsmith.metrics import Difference
from embedsmith.model import load_encoder, load_network
from embedsmith.optimization import Ends, Progress, visited_steps
from embedsmith.preparation import Preparation
from embedsmith.report.pareto import write_pareto
from embedsmith.retention import Candidate, Estimate, Figure, Retention, describe_choice, pick, read_with, shares
from embedsmith.training import rehearse, train

THINGS = ["card", "pin", "loan", "rate", "fee", "app", "phone", "code", "limit", "transfer", "account", "address"]
WAYS = ["how do I change my {}", "change of the {} please", "I want another {}", "is there a new {} for me"]
ELSE = ["who pays for the {}", "where is the {} kept", "why was my {} refused"]
CONFIG = TrainingConfig(batch=4, precision="fp32", learning_rate=1e-3, checkpoint_seconds=0.0)


def make_pairs(start: int, count: int) -> tuple[Example, ...]:
    """Questions of one thing: the same wish in other words (1), another question (0); the number keeps them apart."""
    found: list[Example] = []
    for row in range(start, start + count):
        thing = f"{THINGS[row % len(THINGS)]} {row}"
        anchor = WAYS[row % len(WAYS)].format(thing)
        found.append(LabelledPair(anchor, WAYS[(row + 1) % len(WAYS)].format(thing), 1, str(row)))
        found.append(LabelledPair(anchor, ELSE[row % len(ELSE)].format(thing), 0, str(row)))
    return tuple(found)


def upside_down(pairs: tuple[Example, ...]) -> tuple[Example, ...]:
    return tuple(replace(pair, label=1 - pair.label) for pair in pairs if isinstance(pair, LabelledPair))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


TRAINED, HELD = make_pairs(0, 24), make_pairs(100, 30)
OPPOSITE = upside_down(make_pairs(300, 40))  # a guard that falls as far as the examples are learnt
SMALL: dict[str, tuple[Example, ...]] = {"small": make_pairs(400, 8)}
AS_TRAINED = replace(CONFIG, base_weight=0.0)


# ── Looking changes nothing


def test_a_watched_run_has_the_weights_of_an_unwatched_one(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(AS_TRAINED, dropout=0.1, runs=2, average=0.9)
    lines: list[str] = []
    train(TRAINED, base=tiny_model, out=tmp_path / "alone" / "model", config=config)
    kept = Retention(HELD, force=True, say=lines.append)
    train(TRAINED, base=tiny_model, out=tmp_path / "watched" / "model", config=config, retention=kept)
    assert same(weights(tmp_path / "alone" / "model"), weights(tmp_path / "watched" / "model"))
    rows = [row for _, row in read_jsonl(tmp_path / "watched" / "watch.jsonl")]
    assert [row["step"] for row in rows] == sorted(visited_steps(12))
    assert set(rows[0]["general"]) == {"general_pairs", "general_sts"}
    assert lines[0].startswith("step 2: validation ")


def test_so_has_one_that_is_killed_between_looks_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(AS_TRAINED, dropout=0.1)

    def run(folder: str, kill_at: int = 0, retention: Retention | None = None) -> None:
        def check(progress: Progress) -> None:
            if progress.step == kill_at:
                raise KeyboardInterrupt

        out = tmp_path / folder / "model"
        train(TRAINED, base=tiny_model, out=out, config=config, on_progress=check, retention=retention)

    run("whole")
    kept = Retention(HELD, SMALL, force=True)
    for step in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            run("killed", step, kept)
    run("killed", retention=kept)
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model"))
    steps = [row["step"] for _, row in read_jsonl(tmp_path / "killed" / "watch.jsonl")]
    assert steps == sorted(visited_steps(6))


def test_a_run_is_looked_at_ten_times_and_at_its_end() -> None:
    assert sorted(visited_steps(1000)) == list(range(100, 1001, 100))
    assert sorted(visited_steps(4)) == [1, 2, 3, 4]
    assert max(visited_steps(101)) == 101


def test_a_guard_that_falls_is_told_once_at_its_step(tiny_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    kept = Retention(HELD, {"upside down": OPPOSITE}, force=True, say=lines.append)
    train(TRAINED, base=tiny_model, out=tmp_path / "model", config=replace(AS_TRAINED, epochs=2), retention=kept)
    warned = [line for line in lines if line.startswith("warning: at step")]
    assert len(warned) == 1
    assert "upside down fell by more than 0.01: upside down average precision" in warned[0]
    (row,) = [row for _, row in read_jsonl(tmp_path / "watch.jsonl") if row["warned"]]
    assert f"at step {row['step']} " in warned[0]


# ── The line between base and result


def test_share_one_is_the_tuned_weights_and_share_zero_the_base(tiny_model: Path, tmp_path: Path) -> None:
    train(TRAINED, base=tiny_model, out=tmp_path / "one", config=CONFIG)
    train(TRAINED, base=tiny_model, out=tmp_path / "zero", config=replace(CONFIG, base_weight=1.0))
    train(TRAINED, base=tiny_model, out=tmp_path / "half", config=replace(CONFIG, base_weight=0.5))
    base = load_network(tiny_model).state_dict()
    one, zero, half = (weights(tmp_path / name) for name in ("one", "zero", "half"))
    for name, value in zero.items():
        assert torch.equal(value, next(base[key] for key in base if key.endswith(name)))
        torch.testing.assert_close(half[name], (one[name] + value) / 2)
    assert not same(one, zero)


def test_the_ends_are_put_bit_for_bit() -> None:
    weight, base, end = torch.nn.Parameter(torch.zeros(500)), torch.randn(500), 3 * torch.randn(500)
    ends = Ends({"w": weight}, {"w": base}, {"tuned": {"w": end}})
    for share, wanted in ((1.0, end), (0.0, base)):
        ends.put("tuned", share)
        assert torch.equal(weight.detach(), wanted)


@pytest.mark.parametrize("merge", [True, False])
def test_of_adapters_the_change_is_scaled_exactly(tiny_model: Path, tmp_path: Path, merge: bool) -> None:
    """Half the share is half the change of each merged matrix: not so if A and B were both mixed with the base's."""
    lora = Preparation(lora=LoraConfig(targets=("query", "value"), dropout=0.0), merge=merge)
    found = {}
    for name, base_weight in (("whole", 0.0), ("half", 0.5), ("base", 1.0)):
        config = replace(CONFIG, learning_rate=1e-2, base_weight=base_weight)
        train(TRAINED, base=tiny_model, out=tmp_path / name, config=config, preparation=lora)
        network = load_network(tmp_path / name)
        if not merge:
            from embedsmith.adapters import merge_lora

            network = merge_lora(network)
        found[name] = {key: value for key, value in network.state_dict().items() if key.endswith("query.weight")}
    plain = load_network(tiny_model).state_dict()
    for key, base in found["base"].items():
        assert torch.equal(base, plain[key])
        change = found["whole"][key] - base
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(found["half"][key] - base, change / 2, atol=1e-6, rtol=0)


# ── The choice


def candidate(share: float, domain: float, fall: float) -> Candidate:
    figure = Figure("validation", "Spearman", 9, Estimate(domain, 0, 1), Difference(0.0, 0, 0, 1.0))
    return Candidate("tuned", share, figure, (), fall)


def test_the_best_on_validation_is_taken_among_those_that_keep_every_guard() -> None:
    found = [candidate(0.2, 0.6, 0.0), candidate(0.5, 0.7, 0.01), candidate(0.6, 0.7, 0.01), candidate(1, 0.9, 0.02)]
    assert pick(found, 0.01) == 1  # of equals the one nearest to the base
    assert pick(found, 0.05) == 3
    assert pick([*found[3:], candidate(0.9, 0.95, 0.015)], 0.01) == 1  # none keeps them: the one that loses least


def test_a_run_that_forgets_gives_a_part_of_its_weights_up(tiny_model: Path, tmp_path: Path) -> None:
    """The guard says the opposite of the examples, so the more is learnt the more is forgotten."""
    kept = Retention(HELD, {"opposite": OPPOSITE}, tolerance=0.05)
    config = replace(CONFIG, learning_rate=2e-3)
    result = train(TRAINED, base=tiny_model, out=tmp_path / "model", config=config, retention=kept)
    choice = result.choice
    assert choice is not None
    whole = next(item for item in choice.candidates if item.share == 1)
    assert whole.fall > 0.05
    assert choice.taken.share < 1
    assert choice.taken.fall <= 0.05
    assert choice.kept
    assert choice.taken.validation is not None
    assert choice.taken.validation.change.value > 0
    assert len(choice.candidates) <= 12
    assert not same(weights(tmp_path / "model"), weights_of_share(tiny_model, tmp_path, config, 1.0))
    assert same(weights(tmp_path / "model"), weights_of_share(tiny_model, tmp_path, config, choice.taken.share))


def weights_of_share(base: Path, folder: Path, config: TrainingConfig, share: float) -> dict[str, torch.Tensor]:
    out = folder / f"share {share}"
    train(TRAINED, base=base, out=out, config=replace(config, base_weight=1 - share))
    return weights(out)


def test_when_no_weights_keep_the_guards_it_is_said_loudly(tiny_model: Path, tmp_path: Path) -> None:
    kept = Retention(HELD, {"opposite": OPPOSITE}, tolerance=0.0)
    config = replace(CONFIG, epochs=4, learning_rate=5e-3)
    choice = train(TRAINED, base=tiny_model, out=tmp_path / "model", config=config, retention=kept).choice
    assert choice is not None
    assert not choice.kept
    assert choice.taken.fall == min(item.fall for item in choice.candidates)
    assert choice.taken.share == 0.025  # nearer and nearer to the base
    assert "NO candidate of 12 keeps every guard within 0 of the base" in choice.reason
    assert any(line.startswith("warning: opposite fell by more than 0") for line in describe_choice(choice))


def test_averages_and_soups_are_candidates_with_lines_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, average=0.9, runs=2)
    kept = Retention(HELD, SMALL, tolerance=1.0, force=True)
    result = train(TRAINED, base=tiny_model, out=tmp_path / "model", config=config, retention=kept)
    assert result.choice is not None
    assert {item.end for item in result.choice.candidates} == {"tuned", "average", "soup"}
    assert len({(item.end, item.share) for item in result.choice.candidates}) == len(result.choice.candidates)


def test_a_share_the_user_fixed_is_not_searched(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, base_weight=0.3)
    result = train(
        TRAINED, base=tiny_model, out=tmp_path / "model", config=config, retention=Retention(HELD, SMALL, force=True)
    )
    assert result.choice is not None
    assert [item.share for item in result.choice.candidates] == [0.7]
    assert result.choice.reason == "base_weight 0.3 as asked"


def test_without_validation_only_the_guards_are_scored_at_start_and_end(tiny_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    kept = Retention(guards={"opposite": OPPOSITE}, say=lines.append)
    config = replace(CONFIG, learning_rate=5e-3)
    result = train(TRAINED, base=tiny_model, out=tmp_path / "a" / "model", config=config, retention=kept)
    train(TRAINED, base=tiny_model, out=tmp_path / "b" / "model", config=config)
    assert same(weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model"))
    assert not lines
    assert not (tmp_path / "a" / "watch.jsonl").exists()
    assert any(note.startswith("warning: opposite fell by more than 0.01") for note in result.notes)


# ── The refusal


def test_a_model_below_its_base_is_refused_and_forced_without_training_again(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    kept = Retention(upside_down(HELD), {"held": HELD})
    config = replace(CONFIG, learning_rate=5e-3, average=0.5)
    with pytest.raises(ModelRefused) as refused:
        train(TRAINED, base=tiny_model, out=out, config=config, retention=kept)
    assert refused.value.exit_code == 4
    assert "below its base on 60 validation rows: validation average precision" in refused.value.found
    assert "--force" in refused.value.action
    assert not out.exists()
    assert read_json(tmp_path / "retention.json")["worse"]
    forced = train(TRAINED, base=tiny_model, out=out, config=config, retention=replace(kept, force=True))
    assert forced.resumed_from == forced.steps
    assert forced.losses == ()
    assert any("written as forced" in note for note in forced.notes)
    assert forced.choice is not None
    share = forced.choice.taken.share
    straight = replace(
        config, base_weight=1 - share, average=config.average if forced.choice.taken.end != "tuned" else 0
    )
    train(TRAINED, base=tiny_model, out=tmp_path / "straight", config=straight)
    assert same(weights(out), weights(tmp_path / "straight"))
    assert not (tmp_path / "model.checkpoint").exists()


# ── What is measured


def figure_of(tiny_model: Path, folder: Path, rows: tuple[Example, ...]) -> Figure:
    """Return the figure of the base on `rows`, from a run that keeps the base's weights."""
    config = replace(CONFIG, base_weight=1.0)
    kept = Retention(guards={"rows": rows})
    result = train(TRAINED, base=tiny_model, out=folder / "model", config=config, retention=kept)
    assert result.choice is not None
    assert result.choice.taken.fall == 0
    return result.choice.taken.general[0]


def test_each_kind_of_rows_has_its_figure(tiny_model: Path, tmp_path: Path) -> None:
    encode = load_encoder(tiny_model).encode
    texts = [f"{thing} {number}" for number, thing in enumerate(THINGS)]
    vectors = encode(texts)
    cosines = vectors @ vectors.T
    sets: dict[str, tuple[tuple[Example, ...], float]] = {}

    triplets = tuple(Triplet(*texts[at : at + 2], (texts[at + 2],)) for at in range(10))
    sets["triplet accuracy"] = triplets, sum(cosines[at, at + 1] > cosines[at, at + 2] for at in range(10)) / 10

    pairs = tuple(PositivePair(texts[at], texts[at + 6]) for at in range(6))
    ranks = [1 + sum(cosines[at, 6:12] > cosines[at, at + 6]) for at in range(6)]
    sets["MRR among 6"] = pairs, sum(1 / rank for rank in ranks) / 6

    classes = tuple(LabelledText(text, str(number % 2)) for number, text in enumerate(texts))
    nearest = (cosines - 9 * torch.eye(12).numpy()).argmax(axis=1)
    sets["nearest-neighbour accuracy"] = classes, sum(nearest[at] % 2 == at % 2 for at in range(12)) / 12

    scored = tuple(ScoredPair(texts[at], texts[at + 1], float(cosines[at, at + 1])) for at in range(10))
    sets["Spearman"] = scored, 1.0
    for metric, (rows, wanted) in sets.items():
        found = figure_of(tiny_model, tmp_path / metric, rows)
        assert found.metric == metric
        assert found.rows == len(rows)
        assert found.estimate.value == pytest.approx(wanted, abs=1e-6)


def test_positives_are_ranked_among_distractors_too(tiny_model: Path, tmp_path: Path) -> None:
    encode = load_encoder(tiny_model).encode
    texts = [f"{thing} {number}" for number, thing in enumerate(THINGS)]
    vectors = encode(texts)
    cosines = vectors @ vectors.T
    pairs = tuple(PositivePair(texts[at], texts[at + 3]) for at in range(3))
    ranks = [1 + sum(cosines[at, 3:12] > cosines[at, at + 3]) for at in range(3)]
    kept = Retention(validation=pairs, distractors=(*texts[6:], texts[3]), guards={}, force=True)
    result = train(TRAINED, base=tiny_model, out=tmp_path / "model", config=CONFIG, retention=kept)
    assert result.choice is not None
    found = result.choice.base.validation
    assert found is not None
    assert found.metric == "MRR among 9"  # three positives and six others: one distractor is a positive
    assert found.estimate.value == pytest.approx(sum(1 / rank for rank in ranks) / 3, abs=1e-6)


def test_another_right_answer_of_the_group_is_no_wrong_candidate(tiny_model: Path, tmp_path: Path) -> None:
    rows = tuple(PositivePair(f"question {at}", f"answer {at}", group="one") for at in range(8))
    assert figure_of(tiny_model, tmp_path, rows).estimate.value == 1.0


def test_of_large_sets_a_thousand_rows_are_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = tuple(ScoredPair(f"a {number % 50}", f"b {number % 49}", chance.random()) for number in range(1200))
    assert figure_of(tiny_model, tmp_path, rows).rows == 1000


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((LabelledPair("a", "b", 1), LabelledPair("c", "d", 1)), "label 1 only"),
        ((ScoredPair("a", "b", 2.0), ScoredPair("c", "d", 2.0)), "one score only"),
        ((LabelledPair("a", "b", 1), ScoredPair("c", "d", 2.0)), "kinds: LabelledPair, ScoredPair"),
        ((PositivePair("a", "b"),), "one positive only"),
        ((LabelledText("a", "x"),), "one class only"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_before_training(
    tiny_model: Path, tmp_path: Path, rows: tuple[Example, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(TRAINED, base=tiny_model, out=tmp_path / "model", config=CONFIG, retention=Retention(rows))
    assert not list(tmp_path.iterdir())


def test_validation_rows_among_the_examples_are_an_error_that_counts_them(tmp_path: Path) -> None:
    first, second = TRAINED[0], TRAINED[3]
    assert isinstance(first, LabelledPair)
    assert isinstance(second, LabelledPair)
    shouted = LabelledPair(first.sentence2.upper() + " ?", f"  {first.sentence1}", 0)
    held = (*HELD, shouted, PositivePair(second.sentence1, second.sentence2))
    with pytest.raises(
        InputError,
        match=r"2 of 62 \(3.2%\) validation rows are training rows as well, 0 of them nearly \(the first: row 61;",
    ):
        train(TRAINED, base="not needed", out=tmp_path / "model", retention=Retention(held))
    with pytest.raises(InputError, match=r"1 of 1 \(100.0%\) mine rows"):
        train(TRAINED, base="not needed", out=tmp_path / "model", retention=Retention(guards={"mine": (shouted,)}))


def test_the_guards_that_ship_may_not_be_trained_on_either(tmp_path: Path) -> None:
    """They are the default, and decide how much of the tuning is kept."""
    row = shipped_guards()["general_sts"][7]
    with pytest.raises(InputError, match="general_pairs and general_sts rows are training rows"):
        train((*TRAINED, row), base="not needed", out=tmp_path / "model", retention=Retention())


def test_a_dry_run_says_what_is_wrong_with_the_rows_that_the_model_is_held_against(tmp_path: Path) -> None:
    for wrong, words in ((TRAINED[:1], "validation rows are training rows"), (HELD[:1], "label 1 only")):
        with pytest.raises(InputError, match=words):
            rehearse(TRAINED, base="not needed", out=tmp_path / "model", retention=Retention(wrong))


def test_validation_rows_among_the_held_out_ones_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="they choose the weights too"):
        train(TRAINED, base="not needed", out=tmp_path / "model", retention=Retention(HELD), held_out=HELD[:6])


def test_sharded_weights_can_be_held_against_nothing(tmp_path: Path) -> None:
    sharded = replace(CONFIG, sharded=True)
    for retention in (Retention(HELD), Retention(guards=SMALL)):
        with pytest.raises(ConfigurationError, match="no process has the whole model"):
            train(TRAINED, base="not needed", out=tmp_path / "model", config=sharded, retention=retention)


def test_texts_are_looked_at_as_the_saved_model_reads_them() -> None:
    """A query has its own instruction or the saved one; a text by itself has what training put before such texts."""
    asked = Prompts("Instruct: {instruction}\nQuery: ", "passage: ")
    texts = Numbering(read_with(asked, replace(asked, query="Instruct: find it\nQuery: "), alone=""))
    for row in (Triplet("a", "b", (), instruction="its own"), Triplet("c", "d", ()), LabelledPair("e", "f", 1)):
        texts.place(row)

    assert list(texts.places) == [
        *("Instruct: its own\nQuery: a", "passage: b"),
        *("Instruct: find it\nQuery: c", "passage: d"),
        *("e", "f"),
    ]


def test_a_validation_row_that_is_nearly_a_training_row_is_a_warning_and_texts_may_be_shared(
    tiny_model: Path, tmp_path: Path
) -> None:
    first, second = TRAINED[0], TRAINED[3]
    assert isinstance(first, LabelledPair)
    assert isinstance(second, LabelledPair)
    nearly = replace(first, sentence1=first.sentence1.replace(" ", ", ", 1))
    held = (*HELD, nearly, LabelledPair(first.sentence1, second.sentence1, 0))
    result = train(
        TRAINED, base=tiny_model, out=tmp_path / "model", config=CONFIG, retention=Retention(held, {}, force=True)
    )
    (found,) = [str(finding) for finding in result.findings if finding.name == "leaked-rows"]
    assert "1 of 62 (1.6%) validation rows are training rows as well, 1 of them nearly (the first: row 61" in found


def test_a_tolerance_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tolerance is -1"):
        Retention(tolerance=-1)


# ── What is written


def test_the_record_the_picture_and_the_card_name_the_choice(tiny_model: Path, tmp_path: Path) -> None:
    shown: list[Path] = []
    kept = Retention(HELD, SMALL, force=True, show=shown.append)
    facts = CardFacts("tiny", len(TRAINED), "made for a test.")
    result = train(TRAINED, base=tiny_model, out=tmp_path / "model", config=CONFIG, card=facts, retention=kept)
    assert shown == [tmp_path / "retention.json"]
    record = read_json(shown[0])
    assert record["candidates"][record["chosen"]]["share"] == result.choice.taken.share  # type: ignore[union-attr]
    assert {item["share"] for item in record["candidates"]} >= set(shares(0.1))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "validation (average precision, 60 rows, chosen on these rows: optimistic)" in card
    assert result.choice is not None
    assert describe_choice(result.choice)[0] in result.notes
    page = write_pareto(shown[0])
    picture = (tmp_path / "pareto.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 20_000
    assert "<svg" in page.read_text()
    assert page.read_text().count("<tr") == len(record["candidates"]) + 2


def test_a_record_without_validation_has_no_picture(tiny_model: Path, tmp_path: Path) -> None:
    figure_of(tiny_model, tmp_path, HELD)
    with pytest.raises(InputError, match="no validation figures"):
        write_pareto(tmp_path / "retention.json")
    assert json.loads((tmp_path / "retention.json").read_text())["searched"] is False


def test_with_slack_the_most_tuned_of_equals_is_taken() -> None:
    """With an error of .01: what is within it of the best is its equal, unless it or a guard is below the base."""

    def candidate(share: float, value: float, fall: float = 0.0) -> Candidate:
        change = Difference(value - 0.583, value - 0.6, value - 0.5, 0.5)
        figure = Figure("validation", "MRR", 100, Estimate(value, value - 0.0196, value + 0.0196), change)
        return Candidate("tuned", share, figure, (), fall)

    found = [candidate(0.4, 0.60), candidate(0.6, 0.592), candidate(0.8, 0.585), candidate(1.0, 0.599, fall=0.05)]
    assert pick(found, 0.01) == 0
    assert pick(found, 0.01, slack=1.0) == 1
    assert pick(found, 0.01, slack=2.0) == 2
    assert pick(found, 0.10, slack=1.0) == 3
    assert pick([*found, candidate(0.9, 0.582)], 0.01, slack=9.0) == 2
