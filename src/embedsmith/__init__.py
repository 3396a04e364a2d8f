"""From raw text to an embedding model that knows the domain, with proof, and to the cache it serves.

What the commands do, a program can do as well. Names with a dot are below the package, others are its own:

- run: `run` with a `Job`, `run_rag` with a `RagJob`
- synthesize: `synthesize` for langcache; `synthesis.orders.order_rag` and `synthesis.orders.order_e5` for the others
- explain: `explain`
- chunk: `documents.read_passages`
- inspect: `inspect`
- mine: `mining.Miner`
- train: `train`; with --verifier `cross_encoder.train_verifier`
- evaluate: `evaluate`; `suites.measure_suite` on public sets, `retrieval.compare_rankings` on retrieval
- compare: `compare`
- calibrate: `calibrate_model` for a cache, `calibrate` from similarities
- recalibrate: `recalibrate_model` for a cache, `recalibrate` from similarities
- export: `export.export`
- serve: `SemanticCache` in a program, `server.run.listen` as a proxy
- reencode: `reencode`

Importing the package loads neither torch nor a web framework; a name loads what it needs when used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "run": "pipeline",
    "Job": "pipeline",
    "run_rag": "pipeline",
    "RagJob": "pipeline",
    "synthesize": "synthesis",
    "explain": "synthesis",
    "inspect": "inspection",
    "train": "training",
    "TrainingConfig": "training",
    "evaluate": "evaluation",
    "compare": "evaluation",
    "calibrate": "calibration",
    "calibrate_model": "cache.promises",
    "load_encoder": "model",
    "SemanticCache": "cache.semantic",
    "SampleRule": "cache.samples",
    "recalibrate": "cache.recalibration",
    "recalibrate_model": "cache.promises",
    "reencode": "cache.reencoding",
    "open_llm": "llm",
    "read_queries": "corpus",
    "deduplicate": "corpus",
    "read_examples": "examples",
    "write_examples": "examples",
    "split": "examples",
    "EmbedsmithError": "errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedsmith' has no attribute {name!r}")
    return getattr(importlib.import_module(f"embedsmith.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
