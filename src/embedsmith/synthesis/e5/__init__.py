"""E5's synthetic data (arXiv 2401.00368): six groups of tasks in two steps, in the languages of XLM-R.

A plan says how many rows; `synthesize_e5` yields, for each of them, an example or a rejection with its reason.
"""

from __future__ import annotations

from embedsmith.synthesis.e5.plan import (
    GROUPS,
    PUBLISHED,
    SAMPLING,
    CallsOfPlan,
    E5Plan,
    Row,
    count_calls,
    parse_groups,
)
from embedsmith.synthesis.e5.prompting import Asker
from embedsmith.synthesis.e5.stream import open_asker, synthesize_e5
from embedsmith.synthesis.languages import parse_languages

__all__ = [
    "GROUPS",
    "PUBLISHED",
    "SAMPLING",
    "Asker",
    "CallsOfPlan",
    "E5Plan",
    "Row",
    "count_calls",
    "open_asker",
    "parse_groups",
    "parse_languages",
    "synthesize_e5",
]
