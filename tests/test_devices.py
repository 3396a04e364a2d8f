"""One step gives the same gradients however much of it is encoded twice, and however many processes share it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import steps
from commands import FORKS
from embedsmith.batches import Source, localize
from embedsmith.config import TrainingConfig
from embedsmith.devices import WORKSPACE, Alone, deal, open_devices, repeatable, require_shared
from embedsmith.errors import ConfigurationError, EmbedsmithError
from embedsmith.examples import PositivePair
from embedsmith.model import load_encoder, load_network
from embedsmith.networks import encoding_budget
from embedsmith.optimization import Work, checkpoint_beside, optimize
from embedsmith.parts import parts_of
from embedsmith.preparation import Preparation
from embedsmith.sharding import layers_of
from embedsmith.step import choose_budget, share_turns
from embedsmith.training import train
from steps import CONFIGS, EVERYTHING, KILLED, KILLED_RUN, LORA, PAIRS, RUN, SHARDED, VARIANTS, WORDS, make_task, step

ALONE = {name: value for name, value in os.environ.items() if name not in {"WORLD_SIZE", "RANK"}}


def reference(model: Path, variant: str) -> tuple[float, dict[str, torch.Tensor]]:
    """One padded batch through sentence-transformers' own forward pass, one backward pass: nothing is cut."""
    loss, options = VARIANTS[variant]
    task = make_task(str(model), loss, replace(TrainingConfig(), **options))  # type: ignore[arg-type]
    texts, rows = localize(task.data.rows)
    features = task.network.preprocess([task.data.texts[text] for text in texts])
    embeddings = torch.nn.functional.normalize(task.network(features)["sentence_embedding"], dim=1)
    total = torch.stack([part(embeddings) for part in parts_of(rows, task.losses, task.config)]).sum()
    total.backward()
    found = {name: weight.grad for name, weight in task.network.named_parameters() if weight.grad is not None}
    return float(total.detach()), found


def encode_anchors(model: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return load_encoder(model).encode([pair.anchor for pair in PAIRS])


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    for name, gradient in left.items():
        torch.testing.assert_close(right[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_and_cached_steps_have_the_gradients_of_one_padded_batch(tiny_model: Path, variant: str) -> None:
    value, gradients = reference(tiny_model, variant)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    loss, options = VARIANTS[variant]
    for config in (TrainingConfig(held_tokens=EVERYTHING), *(replace(c, dropout=0.0) for c in CONFIGS.values())):
        ours, found = step(make_task(str(tiny_model), loss, replace(config, **options)))  # type: ignore[arg-type]
        assert ours == pytest.approx(value, abs=1e-5)
        assert_same(gradients, found)


@pytest.mark.parametrize("loss", ["cosent", "angle", "margin_mse"])
@pytest.mark.parametrize("how", CONFIGS)
def test_pairs_compared_in_slices_leave_the_gradients_of_all_at_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, loss: str, how: str
) -> None:
    value, gradients = reference(tiny_model, loss)
    monkeypatch.setattr("embedsmith.parts.CHUNK", 7 * 32)  # seven pairs
    ours, found = step(make_task(str(tiny_model), loss, replace(CONFIGS[how], dropout=0.0)))
    assert ours == pytest.approx(value, abs=1e-5)
    assert_same(gradients, found)


@pytest.fixture(scope="module")
def by_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps, by two processes over gloo."""
    out = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    processes = [FORKS.Process(target=become_one_of_two, args=(rank, port, str(tiny_model), out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]  # what went wrong they have printed
    return out


def become_one_of_two(rank: int, port: int, model: str, out: Path) -> None:
    """Do what torchrun's processes do, from what it would put into the environment (it is run further down)."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(1)
    steps.main(model, out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_caching_and_two_processes_change_nothing_with_dropout_on(tiny_model: Path, by_two: Path, variant: str) -> None:
    loss, options = VARIANTS[variant]
    config = replace(CONFIGS["held"], **options)  # type: ignore[arg-type]
    value, gradients = step(make_task(str(tiny_model), loss, config))
    undropped, _ = step(make_task(str(tiny_model), loss, replace(config, dropout=0.0)))
    assert value != pytest.approx(undropped, abs=1e-4)  # dropout is really on
    for how, chosen in CONFIGS.items():
        ours, found = step(make_task(str(tiny_model), loss, replace(chosen, **options)))  # type: ignore[arg-type]
        assert ours == pytest.approx(value, abs=1e-5)
        assert_same(gradients, found)
        two = load_file(by_two / f"{variant}, {how}.safetensors")
        assert float(two.pop("loss")) == pytest.approx(value, abs=1e-5)
        assert_same(gradients, two)


@pytest.mark.parametrize("variant", SHARDED)
def test_sharded_weights_have_the_gradients_of_whole_ones(tiny_model: Path, by_two: Path, variant: str) -> None:
    value, gradients = step(make_task(str(tiny_model), variant, CONFIGS["held"]))
    for how in CONFIGS:
        sharded = load_file(by_two / "sharded" / f"{variant}, {how}.safetensors")
        assert float(sharded.pop("loss")) == pytest.approx(value, abs=1e-5)
        assert_same(gradients, sharded)


def test_sharded_gradients_in_bf16_are_as_near_as_bf16_is(tiny_model: Path, by_two: Path) -> None:
    _, gradients = step(make_task(str(tiny_model), "infonce", CONFIGS["held"]))
    found = load_file(by_two / "sharded" / "infonce, bf16.safetensors")
    exact, near = (torch.cat([part[name].flatten() for name in gradients]) for part in (gradients, found))
    error = float((near - exact).norm() / exact.norm())
    assert 0 < error < 0.01  # 0.0003 in one process; 0.045 when blocks share their rounded weights


@pytest.mark.parametrize(("name", "preparation"), [("whole", Preparation()), ("lora", LORA)])
def test_sharded_training_gives_the_model_of_one_process(
    tiny_model: Path, by_two: Path, tmp_path: Path, name: str, preparation: Preparation
) -> None:
    train(PAIRS, base=tiny_model, out=tmp_path / "one", config=RUN, preparation=preparation)
    one, two, base = (encode_anchors(model) for model in (tmp_path / "one", by_two / "sharded" / name, tiny_model))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.abs(one - base).max() > 1e-3


def test_a_sharded_run_that_was_killed_goes_on_sharded_or_in_one_process(
    tiny_model: Path, by_two: Path, tmp_path: Path
) -> None:
    whole = encode_anchors(by_two / "sharded" / "whole")
    np.testing.assert_array_equal(whole, encode_anchors(by_two / "sharded" / "resumed"))
    shutil.copy(checkpoint_beside(by_two / "sharded" / "left"), checkpoint_beside(tmp_path / "left"))
    done = train(PAIRS, base=tiny_model, out=tmp_path / "left", config=KILLED_RUN)
    assert done.resumed_from == KILLED
    np.testing.assert_allclose(whole, encode_anchors(tmp_path / "left"), atol=1e-5)


def test_one_process_does_not_shard(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigurationError, match="torchrun --nproc-per-node 2"):
        open_devices(sharded=True)
    with pytest.raises(ConfigurationError, match="only process"):
        train(PAIRS, base=tiny_model, out=tmp_path / "out", config=replace(RUN, sharded=True))
    task = make_task(str(tiny_model), "infonce", RUN)
    with pytest.raises(ConfigurationError, match="weights whole"):
        optimize(task, replace(RUN, sharded=True), store=tmp_path / "store", key="")


def test_under_sharding_all_processes_take_and_keep_as_many_turns() -> None:
    class Process(Alone):
        def __init__(self, rank: int, *, sharded: bool) -> None:
            self.rank, self.sharded = rank, sharded

    hands, padded = [[0], [1, 2]], np.array([5, 4, 3], dtype=np.int64)
    for held, first, second in ((4, 0, 0), (5, 1, 1), (7, 2, 2)):
        assert share_turns(hands, padded, held, Process(0, sharded=True)) == ([0, None], first)
        assert share_turns(hands, padded, held, Process(1, sharded=True)) == ([1, 2], second)
    assert share_turns(hands, padded, 4, Process(0, sharded=False)) == ([0], 0)
    assert share_turns(hands, padded, 4, Process(1, sharded=False)) == ([1, 2], 1)


def test_the_layers_are_the_list_with_most_weights(tiny_model: Path) -> None:
    kinds = [type(layer).__name__ for layer in layers_of(load_network(tiny_model))]
    assert kinds == ["BertLayer", "BertLayer"]
    assert layers_of(torch.nn.Linear(2, 2)) == []


@given(weights=st.lists(st.integers(1, 100), max_size=30), size=st.integers(1, 5))
def test_pieces_are_dealt_once_and_evenly(weights: list[int], size: int) -> None:
    hands = deal(np.array(weights, dtype=np.int64), size)
    assert sorted(piece for hand in hands for piece in hand) == list(range(len(weights)))
    loads = [sum(weights[piece] for piece in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(weights, default=0)


def test_dealing_as_in_the_docstring() -> None:
    assert deal(np.array([5, 4, 3, 2]), 2) == [[0, 3], [1, 2]]


def test_processes_that_see_other_checkpoints_stop() -> None:
    class Second(Alone):
        rank = 1

        def agree(self, value: int) -> int:
            return 40

    assert require_shared(40, Second()) == 40
    with pytest.raises(EmbedsmithError, match=r"step 0.*step 40"):
        require_shared(0, Second())


def test_torchrun_trains_the_model_that_one_process_trains(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"anchor": f"how do I change my {word}", "positive": f"{word}: another one, please"} for word in WORDS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pairs = tuple(PositivePair(row["anchor"], row["positive"]) for row in rows)
    config = TrainingConfig(batch=6, precision="fp32", token_budget=40)
    train([Source(pairs, f"{tmp_path.name}/pairs.jsonl")], base=tiny_model, out=tmp_path / "one", config=config)
    options = ["--batch", "6", "--precision", "fp32", "--set", "token_budget=40", "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "embedsmith", "train", str(tmp_path / "pairs.jsonl"), "--base", str(tiny_model)]
    done = subprocess.run(
        [*launcher, *command, "--out", str(tmp_path / "two"), *options],
        capture_output=True,
        text=True,
        env=ALONE | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)  # of two processes, one speaks
    assert any("of all 2 processes" in note for note in told["notes"])
    texts = [row["anchor"] for row in rows]
    one, two, base = (load_encoder(spec).encode(texts) for spec in (tmp_path / "one", tmp_path / "two", tiny_model))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.abs(one - base).max() > 1e-4


def settings() -> tuple[bool, bool, str | None]:
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), lenient, os.environ.get(WORKSPACE)


def test_on_a_gpu_training_takes_deterministic_kernels_and_puts_back_what_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The switches only: no GPU was there when this was written."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    within: list[object] = []

    def fail() -> None:
        with repeatable("cuda"):
            within.append(settings())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert within == [(True, True, ":4096:8")]
    assert settings() == (False, False, None)
    with repeatable("cpu"):
        assert settings() == (False, False, None)
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with repeatable("cuda"):
            assert settings() == (True, False, ":16:8")  # errors stay errors
        assert settings() == (True, False, ":16:8")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_is_repeatable_on_the_device_of_its_network(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(str(tiny_model), "logistic", replace(TrainingConfig(), steps=1))
    asked: list[str] = []
    monkeypatch.setattr("embedsmith.optimization.repeatable", lambda device: repeatable(asked.append(device) or "cuda"))
    accumulate, seen = task.accumulate, []

    def look(rows: Sequence[int], seed: int) -> tuple[float, Work]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return accumulate(rows, seed)

    monkeypatch.setattr(task, "accumulate", look)
    optimize(task, TrainingConfig(steps=1), store=tmp_path / "store", key="")
    assert (asked, seen, torch.are_deterministic_algorithms_enabled()) == (["cpu"], [True], False)


@pytest.mark.parametrize(
    ("asked", "device", "held", "budget", "why"),
    [
        (700, "cuda", 10**6, 700, "as asked"),
        (0, "cpu", 10**6, 2048, "more do not pay on this cpu"),
        (0, "mps", 10**6, 2048, "more do not pay on this mps"),
        (0, "cuda", 10**6, 16384, "launched"),
        (0, "cuda", 9000, 9000, "memory holds no more"),
        (0, "cuda", 100, 2048, "memory holds no more"),
    ],
)
def test_micro_batches_are_as_large_as_the_device_wants(
    asked: int, device: str, held: int, budget: int, why: str
) -> None:
    found, reason = choose_budget(asked, device, held)
    assert found == budget
    assert f"{budget:,} padded tokens" in reason
    assert why in reason


def test_encoding_takes_larger_blocks_on_a_gpu() -> None:
    assert encoding_budget("cuda") > encoding_budget("cpu") == 4096


def test_the_size_of_micro_batches_is_told(tiny_model: Path, tmp_path: Path) -> None:
    result = train(PAIRS, base=tiny_model, out=tmp_path / "one", config=replace(RUN, token_budget=0, steps=1))
    assert any(note.startswith("micro-batches of 2,048 padded tokens") for note in result.notes)
