"""The training step: same result however the batch is cut, and however often the run is killed."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from commands import FORKS
from embedsmith import readiness
from embedsmith.adapters import LoraConfig
from embedsmith.batches import Mixing, Prompts, Source, collect
from embedsmith.cards import CardFacts, write_card
from embedsmith.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from embedsmith.compilation import require_compiler
from embedsmith.config import TrainingConfig, config_from
from embedsmith.devices import Alone
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError, MissingPartError, ModelError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.guide import read_guide
from embedsmith.model import TorchEncoder, load_encoder, load_network
from embedsmith.networks import tokenize_for
from embedsmith.optimization import Progress, learning_rate_at, optimize, set_dropout
from embedsmith.preparation import Preparation, settle_prompts
from embedsmith.readiness import choose_batch
from embedsmith.recipes import read_recipe
from embedsmith.retention import Retention
from embedsmith.step import EmbeddingTask
from embedsmith.training import TrainingResult, rehearse, train
from steps import make_task
from tiny_decoders import write_decoder

WORDS = ["card", "pin", "bank", "loan", "rate", "fee", "app", "phone", "code", "limit", "transfer", "account"]
CONFIG = TrainingConfig(batch=4, runs=1, precision="fp32", learning_rate=1e-3, checkpoint_seconds=0.0)


def make_examples(count: int = 24) -> list[Example]:
    examples: list[Example] = []
    for row in range(count):
        word, other = WORDS[row % len(WORDS)], WORDS[(row + 5) % len(WORDS)]
        anchor = f"how do I change my {word} number {row}"
        examples.append(
            LabelledPair(anchor, f"{word} {row} has to be another one, please " * (row % 3 + 1), 1, str(row))
        )
        examples.append(LabelledPair(anchor, f"how do I change my {other} number {row}", 0, str(row)))
    return examples


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_trained_folder_loads_in_sentence_transformers_and_has_learnt(tiny_model: Path, tmp_path: Path) -> None:
    examples = make_examples()
    result = train(examples, base=tiny_model, out=tmp_path / "model", config=CONFIG, card="# a card")
    theirs = SentenceTransformer(str(tmp_path / "model")).encode(["change my pin"], normalize_embeddings=True)
    ours = load_encoder(tmp_path / "model").encode(["change my pin"])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (tmp_path / "model" / "README.md").read_text() == "# a card"
    assert result.steps == 6
    assert result.losses[-1][1] < result.losses[0][1]
    assert not (tmp_path / "model.checkpoint").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(make_examples(), base=tiny_model, out=tmp_path / name, config=TrainingConfig(batch=4, seed=seed))
    first, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_killed_run_goes_on_and_ends_in_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    config = TrainingConfig(batch=4, runs=2, dropout=0.1, learning_rate=1e-3, checkpoint_seconds=0.0, average=0.9)
    train(make_examples(), base=tiny_model, out=tmp_path / "whole", config=config)

    for step in (3, 6, 7, 10):
        with pytest.raises(Killed):
            train(
                make_examples(),
                base=tiny_model,
                out=tmp_path / "resumed",
                config=config,
                on_progress=kill_at(step),
            )
    result = train(make_examples(), base=tiny_model, out=tmp_path / "resumed", config=config)
    assert result.resumed_from == 10
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("where", ["a weight", "an embedding"])
def test_a_gradient_that_is_not_finite_ends_the_run_before_a_weight_is_changed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The loss may be finite all the same: the slope of a root at 0, a product that overflows on its way back."""
    config = replace(CONFIG, losses={"logistic": 1.0}, batch=len(WORDS), steps=3, epochs=3)
    task = make_task(str(tiny_model), "logistic", config)
    before = {name: weight.detach().clone() for name, weight in task.network.named_parameters()}
    if where == "a weight":
        next(task.network.parameters()).register_hook(lambda gradient: gradient * math.nan)
    else:
        monkeypatch.setattr("embedsmith.parts.parts_of", lambda *_, **__: [lambda rows: (rows * 0).sum().sqrt()])
    with pytest.raises(EmbedsmithError, match="gradient of step 0 is nan"):
        optimize(task, config, store=tmp_path / "store", key="")
    assert all(torch.equal(before[name], weight) for name, weight in task.network.named_parameters())


class Killed(Exception):
    """What stops a run in these tests."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def check(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return check


def test_a_mixture_with_other_weights_is_another_run(tiny_model: Path, tmp_path: Path) -> None:
    graded = tuple(ScoredPair(f"{word} fee", f"price of the {word}", row / 12) for row, word in enumerate(WORDS))
    pairs = Source(tuple(make_examples()), "pairs", {"infonce": 1.0}, 3.0)

    def run(weight: float, on_progress: Callable[[Progress], None] | None = None) -> TrainingResult:
        sources = [pairs, Source(graded, "graded", {"cosent": 1.0}, weight)]
        return train(sources, base=tiny_model, out=tmp_path / "m", config=CONFIG, on_progress=on_progress)

    with pytest.raises(Killed):
        run(1.0, kill_at(5))
    with pytest.raises(Killed):
        run(1.0, kill_at(6))  # the same weights go on
    result = run(9.0)
    assert result.resumed_from == 0
    (told,) = [finding for finding in result.findings if finding.name == "checkpoint-of-another-run"]
    assert "at step 6" in told.found
    (kept,) = tmp_path.glob("m.checkpoint.*")
    assert kept.name in told.found
    assert kept.name in told.action
    assert run(1.0).resumed_from == 6  # a value mistyped once loses nothing
    assert not list(tmp_path.glob("m.checkpoint*"))


def test_a_run_goes_on_with_other_memory_and_pauses_and_what_may_differ_is_said(
    tiny_model: Path, tmp_path: Path
) -> None:
    def run(name: str, on_progress: Callable[[Progress], None] | None = None, **values: Any) -> TrainingResult:
        config = replace(CONFIG, **values)
        return train(make_examples(), base=tiny_model, out=tmp_path / name, config=config, on_progress=on_progress)

    whole = run("whole")
    for name, values in (("memory", {"held_tokens": 1, "token_budget": 64}), ("pauses", {"checkpoint_seconds": 50.0})):
        with pytest.raises(Killed):
            run(name, kill_at(3))
        result = run(name, **values)
        assert result.resumed_from == 3
        told = [finding.found for finding in result.findings if finding.name == "memory-settings-changed"]
        assert bool(told) == (name == "memory")
        for key, weight in weights(whole.model).items():
            close = 1e-5 if told else 0.0
            torch.testing.assert_close(weights(result.model)[key], weight, rtol=0, atol=close)


def test_the_weight_of_the_base_may_be_named_after_a_run_was_killed(tiny_model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"base": tiny_model, "out": tmp_path / "m"}
    with pytest.raises(Killed):
        train(make_examples(), **given, config=CONFIG, on_progress=kill_at(3))
    result = train(make_examples(), **given, config=replace(CONFIG, base_weight=1.0))
    assert result.resumed_from == 3
    base = SentenceTransformer(str(tiny_model))[0].auto_model.state_dict()
    for name, weight in SentenceTransformer(str(result.model))[0].auto_model.state_dict().items():
        torch.testing.assert_close(weight, base[name], rtol=0, atol=0)


def test_the_batches_that_are_checked_are_those_the_run_begins_with(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    trained: list[Any] = []
    examine, step = readiness.examine_batches, EmbeddingTask.accumulate

    def look(prepared: Any, base: Any, sources: Any, data: Any, tokens: Any, batches: Any, *rest: Any) -> Any:
        checked.extend(batches)
        return examine(prepared, base, sources, data, tokens, batches, *rest)

    def accumulate(task: EmbeddingTask, rows: Any, seed: int) -> Any:
        trained.append([task.data.rows[row] for row in rows])
        return step(task, rows, seed)

    monkeypatch.setattr(readiness, "examine_batches", look)
    monkeypatch.setattr(EmbeddingTask, "accumulate", accumulate)
    train(make_examples(), base=tiny_model, out=tmp_path / "m", config=replace(CONFIG, seed=3))
    assert checked == trained[: len(checked)]


def test_dropout_reaches_layers_that_hold_it_as_a_number(tmp_path: Path) -> None:
    network = load_network(write_decoder(tmp_path / "decoder"))
    layer = network[0].auto_model.layers[0].self_attn
    assert layer.attention_dropout == 0
    assert set_dropout(network, None) == set_dropout(network, 0.3) > 0
    assert layer.attention_dropout == 0.3
    config = transformers.OPTConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16
    )
    opt = transformers.OPTModel(config)
    set_dropout(opt, 0.0)  # what "none at all" says
    ids = torch.arange(4)[None]
    torch.testing.assert_close(opt.train()(ids)[0], opt.train()(ids)[0], rtol=0, atol=0)
    assert set_dropout(torch.nn.Linear(2, 2), 0.3) == 0


def test_dropout_that_a_base_has_no_place_for_is_told(tiny_model: Path) -> None:
    asked = replace(CONFIG, dropout=0.3)
    (told,) = readiness.choose_dropout(torch.nn.Linear(2, 2), asked)
    assert "dropout is 0.3" in told.found
    assert not list(readiness.choose_dropout(load_network(tiny_model), asked))
    assert not list(readiness.choose_dropout(torch.nn.Linear(2, 2), CONFIG))


def test_a_guide_with_other_weights_is_another_run(tiny_model: Path, tmp_path: Path) -> None:
    guide = tmp_path / "guide"
    shutil.copytree(tiny_model, guide)
    rows = [PositivePair(f"{word} one", f"{word} two") for word in WORDS]
    config = replace(CONFIG, guide=str(guide), losses={"infonce": 1.0})
    with pytest.raises(Killed):
        train(rows, base=tiny_model, out=tmp_path / "m", config=config, on_progress=kill_at(2))
    network = load_network(guide)
    torch.nn.init.zeros_(next(network.parameters()))
    network.save_pretrained(str(guide), create_model_card=False)
    assert train(rows, base=tiny_model, out=tmp_path / "m", config=config).resumed_from == 0


def test_what_a_kill_left_half_written_is_gone_after_the_next_run(tiny_model: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for half, file in ((".model.new", "model.safetensors"), (f".model.checkpoint.{gone.pid}.tmp", ".tmpA1b2C3")):
        (tmp_path / half).mkdir()
        (tmp_path / half / file).write_bytes(b"torn")
    train(make_examples(8), base=tiny_model, out=tmp_path / "model", config=TrainingConfig(batch=4, precision="fp32"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))  # `make kills` raises it
KILLED = TrainingConfig(batch=4, dropout=0.1, learning_rate=1e-3, checkpoint_seconds=0.0)
KILLED_RUNS = {
    "two runs": replace(KILLED, runs=2),
    "average": replace(KILLED, average=0.9),
    "gradient caching": replace(KILLED, token_budget=40, held_tokens=60),
    "mixture": replace(KILLED, losses={}),
    "adapters": replace(KILLED, losses={"infonce": 1.0}),
}


def tell_steps(writer: Any, *run: Any) -> None:
    run_killed(*run, on_progress=lambda progress: writer.send(progress.step))


def run_killed(
    name: str, steps: int, base: str, out: str, on_progress: Callable[[Progress], None] | None = None
) -> TrainingResult:
    """Train in one of the ways that are killed, for about so many steps."""
    config, preparation = KILLED_RUNS[name], Preparation()
    rows = tuple(make_examples(steps * config.batch // config.runs))
    sources = [Source(rows, "pairs", {}, 0.0)]
    if name == "mixture":
        graded = tuple(ScoredPair(f"{w} {row}", f"price of the {w}", row / 48) for row, w in enumerate(WORDS * 4))
        sources = [Source(rows, "pairs", {"infonce": 1.0}, 3.0), Source(graded, "graded", {"cosent": 1.0}, 1.0)]
    if name == "adapters":
        preparation = Preparation(lora=LoraConfig(targets="all-linear"))
    return train(sources, base=base, out=out, config=config, preparation=preparation, on_progress=on_progress)


WAYS = random.Random(KILLS).sample(sorted(KILLED_RUNS), k=len(KILLED_RUNS))
DEALT = Counter(name for name, _ in zip(cycle(WAYS), range(KILLS), strict=False))  # fewer kills than ways: fewer ways


@pytest.mark.parametrize("name", DEALT)
def test_sigkill_at_random_points_ends_in_the_same_weights(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Kills fall a random number of steps and a random time after the start: in a step or in a checkpoint."""
    base = tiny_model if name != "adapters" else write_decoder(tmp_path / "decoder")
    folder, kills, chance = tmp_path / "runs", DEALT[name], random.Random(f"{KILLS} {name}")
    steps = 30 + 10 * kills
    run_killed(name, steps, str(base), str(folder / "whole"))
    for _ in range(kills):
        reader, writer = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=tell_steps, args=(writer, name, steps, str(base), str(folder / "resumed")))
        process.start()
        writer.close()
        with suppress(EOFError):  # it was done before
            for _ in range(chance.randint(1, max(steps // (kills + 1), 2))):
                reader.recv()
        time.sleep(chance.random() * 0.05)
        process.kill()  # SIGKILL
        process.join()
    result = run_killed(name, steps, str(base), str(folder / "resumed"))
    assert result.resumed_from > 0
    first, second = weights(folder / "whole"), weights(folder / "resumed")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert sorted(path.name for path in folder.iterdir()) == ["resumed", "whole"]


def test_what_lies_in_the_folder_of_a_model_is_kept_when_another_takes_its_place(
    tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(make_examples(), base=tiny_model, out=out, config=CONFIG)
    (out / "calibration.json").write_text("{}")
    first = weights(out)
    result = train(make_examples(), base=tiny_model, out=out, config=replace(CONFIG, epochs=2))
    kept = tmp_path / "model.before-1"
    assert (kept / "calibration.json").is_file()
    assert all(torch.equal(first[key], tensor) for key, tensor in weights(kept).items())
    assert any(str(kept) in note for note in result.notes)
    train(make_examples(), base=tiny_model, out=out, config=replace(CONFIG, epochs=2))  # the same once more: no copy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.before-1"]


def test_notes_are_told_when_they_are_made_and_a_resumed_run_says_so(tiny_model: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def kill(progress: Progress) -> None:
        told.append("a step")
        if progress.step == 3:
            raise KeyboardInterrupt

    given: dict[str, Any] = {"base": tiny_model, "out": tmp_path / "m", "config": CONFIG, "on_note": told.append}
    with pytest.raises(KeyboardInterrupt):
        train(make_examples(), **given, on_progress=kill)
    before = told[: told.index("a step")]
    assert {f"loading {tiny_model}", "batch 4 as asked"} <= set(before)
    told.clear()
    result = train(make_examples(), **given)
    assert any(line.startswith(f"goes on at step {result.resumed_from} of 6") for line in told)
    assert set(result.notes) <= set(told)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("numbers", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_is_trained_and_saved_in_float32(
    tiny_model: Path, tmp_path: Path, numbers: torch.dtype, precision: Literal["fp32", "bf16"]
) -> None:
    """Trained as it is, bfloat16 loses nine updates of ten to rounding, and autocast refuses float16."""
    SentenceTransformer(str(tiny_model)).to(numbers).save_pretrained(str(tmp_path / "half"), create_model_card=False)
    config = replace(CONFIG, precision=precision, learning_rate=1e-5)
    result = train(make_examples(), base=tmp_path / "half", out=tmp_path / "model", config=config)
    before, after = weights(tmp_path / "half"), weights(tmp_path / "model")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    dense = [name for name in before if name.endswith("dense.weight") and "encoder" in name]
    moved = [float((before[name].float() != after[name]).float().mean()) for name in dense]
    assert min(moved) > 0.9
    assert any(f"saved in {str(numbers)[6:]}" in note for note in result.notes)


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "model.checkpoint"
    write_checkpoint(path, Checkpoint(5, {"weight/x": torch.ones(2)}), key="one")
    found = read_checkpoint(path, "one")
    assert found is not None
    assert found.step == 5
    assert read_checkpoint(path, "two") is None
    path.write_bytes(b"torn")
    assert read_checkpoint(path, "one") is None


def test_the_whole_share_of_the_base_gives_the_base_back(tiny_model: Path, tmp_path: Path) -> None:
    config = TrainingConfig(batch=4, learning_rate=1e-3, base_weight=1.0)
    train(make_examples(), base=tiny_model, out=tmp_path / "model", config=config)
    base, mixed = weights(tiny_model), weights(tmp_path / "model")
    for key in base:
        torch.testing.assert_close(base[key], mixed[key], atol=1e-6, rtol=0)


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 90)
    assert learning_rate_at(0, 100, replace(config, warmup=0.0)) == 1.0  # none was asked for
    assert learning_rate_at(0, 1, config) == 1.0  # a tenth of one step is none


def test_the_batch_is_smaller_where_a_small_set_would_give_few_steps() -> None:
    assert choose_batch(TrainingConfig(), 762)[0].batch == 16
    config, reason = choose_batch(TrainingConfig(), 302)
    assert config.batch == 6
    assert reason == "batch 6: 302 rows would give too few steps at 16"
    assert choose_batch(TrainingConfig(), 3)[0].batch == 1
    assert choose_batch(TrainingConfig(batch=64), 3)[0].batch == 64


def test_wrong_options_and_examples_are_refused_in_words(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="warmup is 3"):
        TrainingConfig(warmup=3)
    with pytest.raises(ConfigurationError, match="lerning_rate"):
        config_from({"lerning_rate": 1})
    with pytest.raises(ConfigurationError, match="hinge"):
        TrainingConfig(losses={"hinge": 1.0})
    with pytest.raises(InputError, match="no example"):
        train([], base=tiny_model, out=tmp_path / "model")
    config = TrainingConfig(losses={"infonce": 1.0})
    with pytest.raises(InputError, match=r"infonce cannot use examples: its rows are 1 texts with classes"):
        train([LabelledText("a", "b")], base=tiny_model, out=tmp_path / "model", config=config)
    with pytest.raises(ConfigurationError, match="gradient_accumulation_steps") as told:
        config_from({"gradient_accumulation_steps": 16})
    assert "set `batch`" in told.value.action


def test_a_mixture_trains_each_source_with_its_own_loss(tiny_model: Path, tmp_path: Path) -> None:
    graded = tuple(ScoredPair(f"{word} fee", f"price of the {word}", 4.0 - row % 5) for row, word in enumerate(WORDS))
    sources = [Source(tuple(make_examples()), "pairs", {"infonce": 1.0}, 1.0), Source(graded, "graded", {}, 3.0)]
    result = train(sources, base=tiny_model, out=tmp_path / "model", config=CONFIG)
    assert "loss of pairs: infonce (as asked)" in result.notes
    assert any(note.startswith("loss of graded: cosent") for note in result.notes)
    assert result.steps == 3 + 7  # a quarter and three quarters of 36 rows, in batches of 4
    half = [replace(sources[0], weight=0.0), sources[1]]
    with pytest.raises(ConfigurationError, match="pairs has no weight"):
        train(half, base=tiny_model, out=tmp_path / "model", config=CONFIG)


@pytest.mark.parametrize(("mixing", "rows"), [("mixed", 12), ("apart", 24)])
def test_the_pool_of_negatives_is_that_of_the_rows_with_such_a_loss(
    mixing: Mixing, rows: int, tiny_model: Path, tmp_path: Path
) -> None:
    paired = tuple(PositivePair(f"how do I change my {word} {n}", f"new {word} {n}") for word in WORDS for n in (1, 2))
    graded = tuple(ScoredPair(f"{word} fee", f"price of the {word}", 4.0 - n) for word in WORDS for n in range(4))
    sources = [Source(graded, "graded", {"cosent": 1.0}), Source(paired, "pairs", {"infonce": 1.0})]
    config = replace(CONFIG, batch=36 if mixing == "mixed" else 24, mixing=mixing)
    said = rehearse(sources, base=tiny_model, out=tmp_path / "model", config=config).notes
    pools = [note.partition(";")[0] for note in said if note.startswith("pool of negatives")]
    assert pools == [f"pool of negatives of pairs: about {rows - 1} for each anchor, from the {rows} rows of a batch"]


def test_examples_of_several_kinds_are_parted_and_each_gets_the_loss_of_its_kind(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [*make_examples(8), *(LabelledText(f"{word} {n}", word) for word in WORDS[:4] for n in range(3))]
    result = train(rows, base=tiny_model, out=tmp_path / "model", config=replace(CONFIG, batch=8))
    assert [note for note in result.notes if note.startswith("loss of")] == [
        "loss of examples (pairs): logistic (labelled pairs: one border for all of them)",
        "loss of examples (classes): batch_triplet (texts with classes)",
    ]


def test_scores_that_cosines_cannot_reach_are_brought_to_their_scale(tiny_model: Path, tmp_path: Path) -> None:
    graded = [ScoredPair(f"{word} fee", f"price of the {word}", float(row % 6)) for row, word in enumerate(WORDS)]
    config = replace(CONFIG, losses={"cosine_similarity": 1.0})
    result = train(graded, base=tiny_model, out=tmp_path / "model", config=config)
    assert "scores of examples run from 0 to 5, cosines to 1: brought to 0 … 1" in result.notes
    assert all(loss < 1 for _, loss in result.losses)


def test_a_cross_encoders_logits_teach_what_they_say_at_any_temperature(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, losses={"distill_kl": 1.0}, temperature=0.02, steps=1)
    firsts = []
    for scale in (1.0, 0.02):  # divided by the same τ as the cosines, the second are the first as they are
        rows = [
            Triplet(f"my {word}", f"the {word}", (f"no {word}",), scores=(9.0 * scale, -row * scale))
            for row, word in enumerate(WORDS[:8])
        ]
        result = train(rows, base=tiny_model, out=tmp_path / f"{scale}", config=config)
        firsts.append(result.losses[0][1])
        assert any(note.startswith("teacher of examples: lists") for note in result.notes)
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-4)


def test_steps_end_the_run_and_the_recipe_lies_in_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3, epochs=5, gradient_norm=math.inf, dimensions=(32, 8), losses={"infonce": 1.0})
    preparation = Preparation(max_length=20, prompts=Prompts(query="ask: "))
    result = train(make_examples(), base=tiny_model, out=tmp_path / "model", config=config, preparation=preparation)
    assert result.steps == 3
    stored = read_recipe(tmp_path / "model" / "recipe.toml")
    assert (stored.configure(), stored.preparation) == (config, preparation)
    assert SentenceTransformer(str(tmp_path / "model")).prompts["query"] == "ask: "


@pytest.mark.parametrize(
    ("base", "named"), [("google/gemma", True), ("runs/a", False), ("./a", False), ("wheel:a", False)]
)
def test_a_base_in_a_folder_is_no_id_on_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert (f"base_model: {base}\n" in write_card(CardFacts(base, 1, "a file."))) is named


def test_the_folder_records_each_source_with_its_loss_and_weight(tiny_model: Path, tmp_path: Path) -> None:
    graded = tuple(ScoredPair(f"{word} fee", f"price of the {word}", row / 12) for row, word in enumerate(WORDS))
    sources = [Source(tuple(make_examples(8)), "pairs", {"infonce": 1.0}, 1.0), Source(graded, "graded", {}, 3.0)]
    facts = CardFacts("a-base", 28, "two files.")
    train(sources, base=tiny_model, out=tmp_path / "model", config=CONFIG, card=facts)
    stored = tomllib.loads(read_recipe(tmp_path / "model" / "recipe.toml").text)["sources"]
    assert stored == [
        {"name": "pairs", "examples": 16, "losses": {"infonce": 1.0}, "weight": 1.0},
        {"name": "graded", "examples": 12, "losses": {"cosent": 1.0}, "weight": 3.0},
    ]
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert json.loads(card.partition("```json\n")[2].partition("```")[0])["sources"] == stored


@pytest.mark.parametrize("name", ["search", "query"])
def test_a_default_prompt_of_the_base_gives_way_to_the_prompts_of_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base = SentenceTransformer(str(tiny_model), prompts={name: "search: "}, default_prompt_name=name)
    base.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    monkeypatch.setattr("embedsmith.readiness.MAPPED", 1)
    preparation = Preparation(prompts=Prompts("query: ", "passage: "))
    given = {"base": tmp_path / "base", "out": tmp_path / "model", "config": CONFIG, "preparation": preparation}
    rows = [PositivePair(f"{word} one", f"{word} two") for word in WORDS]
    with pytest.raises(Killed):
        train(rows, **given, on_progress=kill_at(1))
    seen = np.load(tmp_path / "model.tokens" / "ids.npy")
    tokenizer = base.tokenizer
    assert tokenizer.decode(seen[: len(tokenizer("query: card one")["input_ids"])]) == "[CLS] query : card one [SEP]"
    result = train(rows, **given)
    assert "the base's default prompt 'search: ' is left out: the run names its prompts" in result.notes
    again = SentenceTransformer(str(tmp_path / "model"))
    assert again.prompts == {"query": "query: ", "document": "passage: "}
    theirs = again.encode_query(["one"], normalize_embeddings=True)
    np.testing.assert_allclose(load_encoder(tmp_path / "model").encode(["query: one"]), theirs, atol=1e-5)


def with_prompts(tiny_model: Path, folder: Path, default: str | None = None, **prompts: str) -> Path:
    base = SentenceTransformer(str(tiny_model), prompts=prompts, default_prompt_name=default)
    base.save_pretrained(str(folder), create_model_card=False)
    return folder


ASKED = [PositivePair(f"{word} one", f"{word} two") for word in WORDS]


def make_pairs() -> list[Example]:
    return [
        LabelledPair(f"{word} lost", f"{word} {'gone' if place % 2 else 'new'}", place % 2)
        for place, word in enumerate(WORDS)
    ]


ALIKE = [LabelledPair(f"{word} one", f"{word} two", place % 2) for place, word in enumerate(WORDS)]


def test_a_base_with_prompts_of_its_own_is_trained_with_them_unless_the_run_says_otherwise(
    tiny_model: Path, tmp_path: Path
) -> None:
    own = {"query": "query: ", "document": "passage: ", "clustering": "topic: "}
    base = with_prompts(tiny_model, tmp_path / "base", **own)
    config = replace(CONFIG, steps=2)
    result = train(ASKED, base=base, out=tmp_path / "model", config=config)
    assert any("the base's own prompts are put before queries ('query: ')" in note for note in result.notes)
    saved = SentenceTransformer(str(tmp_path / "model"))
    assert (saved.prompts, saved.default_prompt_name) == (own, None)
    named = Preparation(prompts=Prompts("query: ", "passage: "))
    train(ASKED, base=base, out=tmp_path / "named", config=config, preparation=named)
    for name, weight in weights(tmp_path / "model").items():
        torch.testing.assert_close(weight, weights(tmp_path / "named")[name], rtol=0, atol=0)

    train(ASKED, base=base, out=tmp_path / "none", config=config, preparation=Preparation(prompts=Prompts()))
    assert not any(SentenceTransformer(str(tmp_path / "none")).prompts.values())
    train(ASKED, base=tiny_model, out=tmp_path / "bare", config=config)
    assert weights(tmp_path / "none").keys() == weights(tmp_path / "bare").keys()
    for name, weight in weights(tmp_path / "none").items():
        torch.testing.assert_close(weight, weights(tmp_path / "bare")[name], rtol=0, atol=0)


def test_texts_that_stand_by_themselves_keep_the_default_prompt_of_the_base(tiny_model: Path, tmp_path: Path) -> None:
    own = {"query": "query: ", "document": "passage: ", "same": "similar: "}
    base = with_prompts(tiny_model, tmp_path / "base", "same", **own)
    reading = settle_prompts(base, [Source(tuple(ASKED)), Source(tuple(ALIKE))], None)
    assert reading.prompts == reading.saved == Prompts("query: ", "passage: ", "similar: ")
    assert "similar: card one" in collect([Source(tuple(ALIKE))], reading.prompts).texts
    train(ASKED, base=base, out=tmp_path / "model", config=replace(CONFIG, steps=1))
    saved = SentenceTransformer(str(tmp_path / "model"))
    assert (saved.prompts, saved.default_prompt_name) == (own, "same")


def test_prompts_that_only_a_source_names_are_saved_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    asked = Source(tuple(ASKED), "asked", prompts=Prompts("ask: ", "say: "))
    rare = Source((PositivePair("a", "b"),), "rare", prompts=Prompts("find: "))
    reading = settle_prompts(tiny_model, [asked, rare], None)
    assert (reading.saved, reading.named) == (Prompts("ask: ", "say: "), True)
    assert "which 12 of 13 rows have" in reading.notes[0]
    train([asked], base=tiny_model, out=tmp_path / "model", config=replace(CONFIG, steps=1))
    assert SentenceTransformer(str(tmp_path / "model")).prompts == {"query": "ask: ", "document": "say: "}


def test_a_base_that_leaves_its_prompt_out_of_the_pooling_is_not_trained_with_prompts(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = SentenceTransformer(str(tiny_model))
    base.set_pooling_include_prompt(include_prompt=False)
    base.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    given = {"base": tmp_path / "base", "out": tmp_path / "model", "config": replace(CONFIG, steps=1)}
    with pytest.raises(ModelError, match="leaves its prompt out of the pooling"):
        train(ASKED, **given, preparation=Preparation(prompts=Prompts("query: ")))
    own = with_prompts(tmp_path / "base", tmp_path / "own", query="query: ")
    with pytest.raises(ModelError, match="leaves its prompt out of the pooling"):
        train(ASKED, **given | {"base": own})
    for base in (given["base"], own):
        train(ASKED, **given | {"base": base}, preparation=Preparation(prompts=Prompts()))


def test_rows_that_a_run_is_held_against_have_the_prompts_of_the_base(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run has symmetric rows only, since the saved folder has the base's prompts for queries."""
    own = {"query": "query: ", "document": "passage: ", "same": "similar: "}
    base = with_prompts(tiny_model, tmp_path / "base", "same", **own)
    seen: list[str] = []

    def look(network: Any, texts: Any) -> Any:
        seen.extend(texts)
        return tokenize_for(network, texts)

    monkeypatch.setattr("embedsmith.retention.tokenize_for", look)
    kept = Retention(guards={"asked": tuple(ASKED), "alike": tuple(ALIKE)})
    train(make_pairs(), base=base, out=tmp_path / "model", config=replace(CONFIG, steps=1), retention=kept)
    assert {"query: card one", "passage: card two", "similar: card one"} <= set(seen)
    saved = SentenceTransformer(str(tmp_path / "model"))
    assert (saved.prompts, saved.default_prompt_name) == (own, "same")


def test_what_is_trained_with_a_prompt_on_both_sides_is_read_with_it_ever_after(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Labelled pairs have the query's prompt on both sides; who encodes without a word of prompts gets it as well."""
    preparation = Preparation(prompts=Prompts("query: ", "passage: "))
    rows = [LabelledPair(f"{word} one", f"{word} two", place % 2) for place, word in enumerate(WORDS)]
    train(rows, base=tiny_model, out=tmp_path / "model", config=CONFIG, preparation=preparation)
    saved = SentenceTransformer(str(tmp_path / "model"))
    assert (saved.default_prompt_name, saved.prompts) == ("query", {"query": "query: ", "document": "passage: "})
    encoder = load_encoder(tmp_path / "model")
    assert isinstance(encoder, TorchEncoder)
    plain = TorchEncoder(encoder.network, name="plain", prompt="")
    np.testing.assert_allclose(encoder.encode(["card one"]), plain.encode(["query: card one"]), atol=1e-5)


def test_a_guide_model_masks_what_it_takes_for_answers(tiny_model: Path, tmp_path: Path) -> None:
    rows = [PositivePair(f"{word} one", f"{word} two") for word in WORDS]
    plain = train(rows, base=tiny_model, out=tmp_path / "plain", config=replace(CONFIG, steps=1))
    config = replace(CONFIG, steps=1, guide=str(tiny_model), guide_margin=1.0)  # everything within 1 of the positive
    guided = train(rows, base=tiny_model, out=tmp_path / "guided", config=config)
    assert guided.losses[0][1] < plain.losses[0][1]


def test_a_guide_reads_plain_texts_with_prompts_of_its_own_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"query": "find: ", "document": "text: "}
    spec = str(with_prompts(tiny_model, tmp_path / "guide", **own))
    sources = [Source(tuple(ASKED)), Source(tuple(ALIKE))]
    prompts = Prompts("Instruct: answer\nQuery: ", "passage: ")
    data = collect(sources, prompts)
    given: dict[str, Any] = {"folder": tmp_path / "m.tokens", "devices": Alone()}
    found = read_guide(spec, data, sources, prompts, **given)
    expected = {
        prompts.query + "card one": "find: card one",
        "passage: card two": "text: card two",
        prompts.query + "card two": "card two",  # of the labelled pairs, whose sides are alike
    }
    bare = load_encoder(tiny_model)
    for text, read in expected.items():
        np.testing.assert_allclose(found[data.texts.index(text)], bare.encode([read])[0], atol=1e-5)

    monkeypatch.setattr("embedsmith.guide.load_encoder", lambda _: pytest.fail("asked again"))
    np.testing.assert_array_equal(read_guide(spec, data, sources, prompts, **given), found)


def test_tokens_are_made_once_and_mapped_by_whoever_comes_later(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.readiness.MAPPED", 1)

    with pytest.raises(Killed):
        train(make_examples(), base=tiny_model, out=tmp_path / "model", config=CONFIG, on_progress=kill_at(1))
    assert (tmp_path / "model.tokens" / "ids.npy").is_file()
    monkeypatch.setattr("embedsmith.readiness.tokenize_for", None)  # nobody tokenises again
    train(make_examples(), base=tiny_model, out=tmp_path / "model", config=CONFIG)
    assert not (tmp_path / "model.tokens").exists()


def has_compiler() -> bool:
    try:
        require_compiler()
    except MissingPartError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler, and there is none")
def test_compiled_layers_are_trained_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    for name, on in (("plain", False), ("compiled", True)):
        config = replace(CONFIG, compile=on, steps=4)
        result = train(make_examples(), base=tiny_model, out=tmp_path / name, config=config)
        assert any("compiled with" in note for note in result.notes) == on
    plain, compiled, base = (weights(folder) for folder in (tmp_path / "plain", tmp_path / "compiled", tiny_model))
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-4, rtol=1e-3)
    assert any(not torch.allclose(base[name], weight, atol=5e-4) for name, weight in plain.items())


def test_compiling_without_a_compiler_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(MissingPartError, match="C\\+\\+ compiler") as refused:
        train(make_examples(), base=tmp_path / "no-model", out=tmp_path / "m", config=replace(CONFIG, compile=True))
    assert "leave compile out" in refused.value.action
    with pytest.raises(ConfigurationError, match="sharded"):
        TrainingConfig(compile=True, sharded=True)
