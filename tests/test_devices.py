"""One step gives the same gradients however much of it is encoded twice, and however many processes share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from embedsmith.batches import Source, localize
from embedsmith.devices import Alone, deal, require_shared
from embedsmith.errors import EmbedsmithError
from embedsmith.examples import PositivePair
from embedsmith.model import load_encoder
from embedsmith.objectives import parts_of
from embedsmith.optimization import TrainingConfig
from embedsmith.training import train
from steps import CONFIGS, EVERYTHING, VARIANTS, WORDS, make_task, step

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


@pytest.fixture(scope="module")
def by_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps, by two processes over gloo."""
    out = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).with_name("steps.py")), str(tiny_model), str(out)]
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, env=ALONE | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return out


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
