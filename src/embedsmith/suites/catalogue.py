"""The sets of graded sentence pairs that papers report, as data: where each comes from, its scale, its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from embedsmith.errors import require


@dataclass(frozen=True, slots=True)
class SuiteSet:
    """A public set of graded pairs, as data.

    Attributes:
        task: its name in mteb; `split` is the part that papers report.
        low, high: the scale of its scores.
        rows: pairs of the public split.
        names: what a file or folder may be called, in small letters and digits only.
        language: where the set has several, the pairs that count.
        note: what a reader of its figures has to know.
    """

    name: str
    source: str
    split: str
    low: float
    high: float
    rows: int
    names: tuple[str, ...]
    task: str
    language: str | None = None
    note: str = ""


def _semeval(year: int, number: str, rows: int) -> SuiteSet:
    name = f"STS{year}"
    names = (name.lower(), f"sts20{year}", f"{name.lower()}sts")
    return SuiteSet(name, f"SemEval-20{year}, {number}", "test", 0, 5, rows, names, name)


SUITES: Mapping[str, tuple[SuiteSet, ...]] = {
    "sts": (
        _semeval(12, "task 6", 3108),
        _semeval(13, "shared task of *SEM", 1500),
        _semeval(14, "task 10", 3750),
        _semeval(15, "task 2", 3000),
        _semeval(16, "task 1", 1186),
        SuiteSet(
            "STS17",
            "SemEval-2017, task 1, track 5 (en-en)",
            "test",
            *(0, 5, 250),
            ("sts17", "sts2017", "sts17enen", "sts17sts", "sts17crosslingualsts"),
            "STS17",
            language="en-en",
        ),
        SuiteSet(
            "STSBenchmark",
            "Cer et al. 2017, a selection from SemEval STS 2012–2017",
            "test",
            *(0, 5, 1379),
            ("stsb", "stsbenchmark", "stsbenchmarksts"),
            "STSBenchmark",
        ),
        SuiteSet(
            "SICK-R",
            "Marelli et al. 2014, relatedness",
            "test",
            *(1, 5, 4927),
            ("sickr", "sick", "sickrsts"),
            "SICK-R",
            note="mteb's has 9,927: all of SICK, its training part too",
        ),
        SuiteSet(
            "BIOSSES",
            "Soğancıoğlu et al. 2017, biomedical sentences",
            "test",
            *(0, 4, 100),
            ("biosses", "biossessts"),
            "BIOSSES",
        ),
    )
}


def find_suite(name: str) -> tuple[SuiteSet, ...]:
    """Return the sets of the suite `name`.

    Raises:
        ConfigurationError: there is no such suite.
    """
    require(name in SUITES, f"there is no suite {name!r}", f"one of {', '.join(SUITES)}")
    return SUITES[name]
