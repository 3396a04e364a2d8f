"""From raw text to an embedding model that knows the domain, with proof, and to the cache it serves.

What the commands do, in Python:

- run: `run` with a `Job`, `run_rag` with a `RagJob`
- synthesize, explain: `synthesize`, `explain` for langcache; rag and e5 are in `embedsmith.synthesis.orders`
- chunk: `read_passages`
- inspect: `inspect`
- mine: `mine`
- train, recipe: `train`, `train_verifier`, `read_recipe`
- evaluate, compare: `evaluate`, `compare`; `measure_suite` on public sets, `measure_retrieval` on retrieval
- calibrate, recalibrate: `calibrate_model`, `recalibrate_model` for a cache; `calibrate`, `recalibrate` on similarities
- export: `export_model`
- serve: `SemanticCache`, which the command puts behind a proxy
- reencode: `reencode`

Importing the package loads neither torch nor a web framework; a name loads what it needs when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` does it, by need
    from embedsmith.adapters import LoraConfig as LoraConfig
    from embedsmith.batches import Prompts as Prompts, Source as Source
    from embedsmith.cache.promises import calibrate_model as calibrate_model, recalibrate_model as recalibrate_model
    from embedsmith.cache.recalibration import recalibrate as recalibrate
    from embedsmith.cache.reencoding import reencode as reencode
    from embedsmith.cache.samples import SampleRule as SampleRule
    from embedsmith.cache.semantic import Lookup as Lookup, SemanticCache as SemanticCache
    from embedsmith.calibration import Calibration as Calibration, calibrate as calibrate
    from embedsmith.config import TrainingConfig as TrainingConfig
    from embedsmith.corpus import deduplicate as deduplicate, read_queries as read_queries
    from embedsmith.cross_encoder import train_verifier as train_verifier
    from embedsmith.documents import read_passages as read_passages
    from embedsmith.encoder import Encoder as Encoder
    from embedsmith.errors import EmbedsmithError as EmbedsmithError
    from embedsmith.evaluation import (
        Comparison as Comparison,
        PairReport as PairReport,
        compare as compare,
        evaluate as evaluate,
        evaluate_general as evaluate_general,
    )
    from embedsmith.examples import (
        LabelledPair as LabelledPair,
        LabelledText as LabelledText,
        PositivePair as PositivePair,
        ScoredPair as ScoredPair,
        Triplet as Triplet,
        read_examples as read_examples,
        split as split,
        write_examples as write_examples,
    )
    from embedsmith.export import export_model as export_model
    from embedsmith.inspection import inspect as inspect
    from embedsmith.llm import LanguageModel as LanguageModel, open_llm as open_llm
    from embedsmith.mining import mine as mine
    from embedsmith.model import load_encoder as load_encoder
    from embedsmith.pipeline import Job as Job, RagJob as RagJob, run as run, run_rag as run_rag
    from embedsmith.preparation import Preparation as Preparation
    from embedsmith.recipes import read_recipe as read_recipe
    from embedsmith.retention import Retention as Retention
    from embedsmith.retrieval import measure_retrieval as measure_retrieval, read_beir as read_beir
    from embedsmith.suites import measure_suite as measure_suite, read_suite as read_suite
    from embedsmith.synthesis import explain as explain, synthesize as synthesize
    from embedsmith.training import TrainingResult as TrainingResult, train as train

__version__ = "0.1.0"

_NAMES = {  # by module; a test holds them to be those above
    "adapters": "LoraConfig",
    "batches": "Prompts Source",
    "cache.promises": "calibrate_model recalibrate_model",
    "cache.recalibration": "recalibrate",
    "cache.reencoding": "reencode",
    "cache.samples": "SampleRule",
    "cache.semantic": "Lookup SemanticCache",
    "calibration": "Calibration calibrate",
    "config": "TrainingConfig",
    "corpus": "deduplicate read_queries",
    "cross_encoder": "train_verifier",
    "documents": "read_passages",
    "encoder": "Encoder",
    "errors": "EmbedsmithError",
    "evaluation": "Comparison PairReport compare evaluate evaluate_general",
    "examples": "LabelledPair LabelledText PositivePair ScoredPair Triplet read_examples split write_examples",
    "export": "export_model",
    "inspection": "inspect",
    "llm": "LanguageModel open_llm",
    "mining": "mine",
    "model": "load_encoder",
    "pipeline": "Job RagJob run run_rag",
    "preparation": "Preparation",
    "recipes": "read_recipe",
    "retention": "Retention",
    "retrieval": "measure_retrieval read_beir",
    "suites": "measure_suite read_suite",
    "synthesis": "explain synthesize",
    "training": "TrainingResult train",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedsmith' has no attribute {name!r}")
    return getattr(importlib.import_module(f"embedsmith.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
