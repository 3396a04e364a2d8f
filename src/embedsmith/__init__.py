"""From raw text to an embedding model that knows the domain, with proof, and to the cache it serves.

The verbs are the commands: `run`, `synthesize`, `explain`, `train`, `evaluate`, `compare`, `calibrate`,
`recalibrate`.
Importing the package loads neither torch nor a web framework; a name loads what it needs when used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "run": "pipeline",
    "Job": "pipeline",
    "synthesize": "synthesis",
    "explain": "synthesis",
    "train": "training",
    "TrainingConfig": "training",
    "evaluate": "evaluation",
    "compare": "evaluation",
    "calibrate": "calibration",
    "load_encoder": "model",
    "SemanticCache": "cache.semantic",
    "SampleRule": "cache.samples",
    "recalibrate": "cache.recalibration",
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
