"""Suites of graded sentence pairs: encoders in; Spearman per set and their mean, with paired differences, out.

The sets come from the user's own files (`read_suite`) or through mteb from the hub (`fetch_suite`).

Never train on STSb and report STS12–16: STSb was drawn from the pairs of the SemEval tasks of 2012 to 2017, and its
training part holds pairs of STS12–16, so their figures would be partly those of the training data.
`warn_of_overlap` says so for a model whose card, or that of its base, names STSb.
"""

from __future__ import annotations

from embedsmith.suites.catalogue import SUITES, SuiteSet, find_suite
from embedsmith.suites.comparison import SetReport, SuiteReport, measure_suite
from embedsmith.suites.overlap import warn_of_overlap
from embedsmith.suites.reading import ScoredSet, Suite, fetch_suite, read_suite, read_task

__all__ = [
    "SUITES",
    "ScoredSet",
    "SetReport",
    "Suite",
    "SuiteReport",
    "SuiteSet",
    "fetch_suite",
    "find_suite",
    "measure_suite",
    "read_suite",
    "read_task",
    "warn_of_overlap",
]
