"""The models of the cache's benchmarks: an encoder and a verifier for questions, and for patients' questions.

    .venv/bin/python benchmarks/cache_models.py runs/cache-models

Questions: one epoch of `duplicate_questions/train`, the published way (online contrastive loss); the verifier
on its first 40,000 rows. Medical: no labels, the recorded completions, the defaults of `embedsmith run`. About
45 minutes on 2 cores. Nothing of the validation sets is read but their texts, so that none of them leaks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from common import data_folder
from embedsmith.config import TrainingConfig
from embedsmith.corpus import Query, read_queries
from embedsmith.cross_encoder import train_verifier
from embedsmith.examples import Example, read_examples, texts_of
from embedsmith.llm import open_llm
from embedsmith.model import DEMO_MODEL
from embedsmith.optimization import Progress
from embedsmith.synthesis import synthesize
from embedsmith.training import train

VERIFIER_ROWS = 40_000
VERIFIER = TrainingConfig(batch=32, learning_rate=1e-4, gradient_norm=1.0)
QUESTIONS = TrainingConfig(losses={"online_contrastive": 1.0}, batch=64, learning_rate=5e-5)


def show(progress: Progress) -> None:
    if progress.step % 100 == 0:
        left = progress.seconds_left / 60
        print(f"{progress.step}/{progress.steps} loss {progress.loss:.3f}, {left:.1f} min left", flush=True)


def medical_examples() -> list[Example]:
    folder = data_folder()
    pairs = read_examples(folder / "medical_pairs/validation.jsonl.gz").examples
    queries = [row for row in read_queries(folder / "medical_queries/queries.jsonl.gz") if isinstance(row, Query)]
    llm = open_llm(f"recorded:{folder / 'medical_queries/completions.jsonl.gz'}")
    return list(synthesize(queries, llm=llm, evaluation=[text for pair in pairs for text in texts_of(pair)]).examples)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the models of the cache's benchmarks")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    medical = medical_examples()
    questions = list(read_examples(data_folder() / "duplicate_questions/train.jsonl.gz").examples)
    for name, rows, config, verified in (
        ("medical", medical, TrainingConfig(), medical),
        ("questions", questions, QUESTIONS, questions[:VERIFIER_ROWS]),
    ):
        if not (out / name).is_dir():
            train(rows, base=DEMO_MODEL, out=out / name, config=config, on_progress=show)
        if not (out / f"verifier_{name}").is_dir():
            folder = out / f"verifier_{name}"
            result = train_verifier(verified, base=out / name, out=folder, config=VERIFIER, on_progress=show)
            print(folder, *result.notes, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
