"""Checks: what is wrong with a training run before it costs anything, and while it runs.

Pure functions: examples, tokens, cosines and the configuration in, findings out; `probes` asks the network. A finding
is an error only where the training cannot be meant; where it may be meant, it is a warning with figures. What a set is
too small to tell is said as well (`Unchecked`).
"""

from embedsmith.checks.data import check_source
from embedsmith.checks.findings import (
    Finding,
    Outcome,
    Report,
    Unchecked,
    Values,
    report_of,
    sample,
    stop_on_errors,
)
from embedsmith.checks.labels import check_scores
from embedsmith.checks.leaks import check_choosing, check_leaks
from embedsmith.checks.lengths import check_tokens
from embedsmith.checks.movement import Watch, check_movement, mean_cosine
from embedsmith.checks.order import (
    ROWS,
    Probe,
    check_known_pooling,
    check_order,
    check_pooling,
    draw_probe,
    quality,
)
from embedsmith.checks.pool import BATCHES, check_pool
from embedsmith.checks.prompts import check_default_prompt, check_prompts
from embedsmith.checks.settings import check_crowds, check_effects, check_mixture, check_settings

__all__ = [
    "BATCHES",
    "ROWS",
    "Finding",
    "Outcome",
    "Probe",
    "Report",
    "Unchecked",
    "Values",
    "Watch",
    "check_choosing",
    "check_crowds",
    "check_default_prompt",
    "check_effects",
    "check_known_pooling",
    "check_leaks",
    "check_mixture",
    "check_movement",
    "check_order",
    "check_pool",
    "check_pooling",
    "check_prompts",
    "check_scores",
    "check_settings",
    "check_source",
    "check_tokens",
    "draw_probe",
    "mean_cosine",
    "quality",
    "report_of",
    "sample",
    "stop_on_errors",
]
