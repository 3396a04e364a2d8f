"""The main job: an unlabelled log in; a tuned, evaluated, calibrated model and a report out.

Six stages, each a function that reads and writes files of the run directory: corpus, synthesis,
training, evaluation, calibration, report. A stage whose inputs and configuration did not change is
not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embedsmith.artifacts import (
    RunDirectory,
    fingerprint,
    fingerprint_file,
    plain,
    read_json,
    write_json,
    write_jsonl,
)
from embedsmith.calibration import calibrate, write_calibration
from embedsmith.cards import CardFacts, write_card
from embedsmith.corpus import Query, deduplicate, read_queries
from embedsmith.encoder import Encoder
from embedsmith.errors import CalibrationRefused, InputError
from embedsmith.evaluation import compare, evaluate_general, measure_latency
from embedsmith.examples import Example, LabelledPair, Rejected, read_examples, split
from embedsmith.llm import LanguageModel, Sampling
from embedsmith.model import fingerprint_model, load_encoder
from embedsmith.report import write_report
from embedsmith.synthesis import Synthesis, synthesize
from embedsmith.synthesis.recipes import load_recipe
from embedsmith.training import Progress, TrainingConfig, train
