"""Templates into pages: every user text is escaped, nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from embedsmith.metrics import percent

SURE = 0.05  # p from which down, corrected, a difference is told as one


def judge(
    change: Mapping[str, float], p_value: float, figures: str, *, better: str, worse: str, remedy: str, doubt: str = ""
) -> dict[str, str]:
    """Return the one sentence a reader wants first, and its tone: better, worse or open.

    Better is what holds after the correction for all metrics of the table, on rows that no model wrote.

    Args:
        better, worse: what a proven difference means. doubt: why a gain proves little. remedy: what would prove one.
    """
    if change["low"] > 0 and p_value < SURE:
        return {"tone": "open" if doubt else "better", "text": f"{better}: {figures}.{doubt and f' {doubt}.'}"}
    if change["high"] < 0:
        return {"tone": "worse", "text": f"The tuned model {worse} its base: {figures}. Do not deploy it."}
    return {"tone": "open", "text": f"No difference is proven: {figures}. {remedy}."}


def render(template: str, **values: Any) -> str:
    """Return the page that `template` (a file of this package) becomes with `values`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("embedsmith", "report"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "change": _change, "seconds": _seconds, "percent": percent}
    return environment


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _change(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:+.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"
