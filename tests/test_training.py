"""The training step: same result however the batch is cut, and however often the run is killed."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embedsmith.batches import Mixing, Prompts, Source
from embedsmith.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from embedsmith.compilation import require_compiler
from embedsmith.errors import ConfigurationError, InputError, MissingPartError
from embedsmith.examples import Example, LabelledPair, LabelledText, PositivePair, ScoredPair, Triplet
from embedsmith.model import load_encoder
from embedsmith.preparation import Preparation
from embedsmith.recipes import read_recipe
from embedsmith.training import (
    Progress,
    TrainingConfig,
    choose_batch,
    config_from,
    learning_rate_at,
    rehearse,
    train,
)

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

    class Killed(Exception):
        pass

    def kill_at(step: int) -> object:
        def check(progress: Progress) -> None:
            if progress.step == step:
                raise Killed

        return check

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


KILLS = int(os.environ.get("EMBEDSMITH_KILLS", "2"))  # `make kills` raises it
KILLED_RUN = """
import sys
sys.path.insert(0, {tests!r})
from test_training import KILLED, make_examples
from embedsmith.training import train
train(make_examples(400), base={base!r}, out={out!r}, config=KILLED,
      on_progress=lambda progress: print(progress.step, flush=True))
"""
KILLED = TrainingConfig(batch=4, runs=2, dropout=0.1, learning_rate=1e-3, checkpoint_seconds=0.0)


def test_sigkill_at_random_points_ends_in_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    """Kills fall a random number of steps and a random time after the start: in a step or in a checkpoint."""
    whole = train(make_examples(400), base=tiny_model, out=tmp_path / "whole", config=KILLED)
    script = KILLED_RUN.format(tests=str(Path(__file__).parent), base=str(tiny_model), out=str(tmp_path / "resumed"))
    chance = random.Random(KILLS)
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randint(1, max(whole.steps // (KILLS + 1), 2))):
                process.stdout.readline()
            time.sleep(chance.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
    result = train(make_examples(400), base=tiny_model, out=tmp_path / "resumed", config=KILLED)
    assert result.resumed_from > 0
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[key], second[key]) for key in first)


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


def test_a_guide_model_masks_what_it_takes_for_answers(tiny_model: Path, tmp_path: Path) -> None:
    rows = [PositivePair(f"{word} one", f"{word} two") for word in WORDS]
    plain = train(rows, base=tiny_model, out=tmp_path / "plain", config=replace(CONFIG, steps=1))
    config = replace(CONFIG, steps=1, guide=str(tiny_model), guide_margin=1.0)  # everything within 1 of the positive
    guided = train(rows, base=tiny_model, out=tmp_path / "guided", config=config)
    assert guided.losses[0][1] < plain.losses[0][1]


def test_tokens_are_made_once_and_mapped_by_whoever_comes_later(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.training.MAPPED", 1)

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(make_examples(), base=tiny_model, out=tmp_path / "model", config=CONFIG, on_progress=kill)
    assert (tmp_path / "model.tokens" / "ids.npy").is_file()
    monkeypatch.setattr("embedsmith.training.tokenize_for", None)  # nobody tokenises again
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
