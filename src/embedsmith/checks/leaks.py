"""Rows that the model is judged by among those that it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedsmith.checks.findings import HEAVY, Finding, Outcome, share_of
from embedsmith.examples import Example
from embedsmith.leakage import find_shared


def check_leaks(
    examples: Sequence[Example], held_out: Sequence[Example], *, name: str = "held-out", choosing: bool = False
) -> Iterator[Outcome]:
    """Yield rows that are trained on among those that the model is judged by (`leakage.find_shared`).

    Args:
        name: of the rows, for people.
        choosing: weights are chosen by these rows or held against them. Then one row in normal form is an error, near
            ones are a warning, and single texts may be shared; else more than 1% of the rows are an error, near ones
            among them, and texts that recur in other rows are a warning.
    """
    if not held_out:
        return
    shared = find_shared(examples, held_out)
    leaked = sorted((*shared.same, *shared.near))
    told = ", ".join(f"{count} {how}" for how, count in shared.how.items())
    if leaked:
        wrong = bool(shared.same) if choosing else len(leaked) > 0.01 * shared.rows
        yield Finding(
            "leaked-rows",
            "error" if wrong else "warning",
            f"{share_of(len(leaked), shared.rows)} {name} rows are training rows as well, {len(shared.near)} of them "
            f"nearly (the first: row {(shared.same or shared.near)[0]}; texts: {told})",
            f"no {name} row that a training row repeats, whatever its case, spaces, order and label",
            "take these rows out of the training set: figures on them would tell nothing "
            "(examples.split parts a set without leaks)",
        )
    count = sum(shared.how.values())
    if not choosing and count > HEAVY * shared.texts:
        yield Finding(
            "leaked-texts",
            "warning",
            f"{share_of(count, shared.texts)} {name} texts are in the training set: {told}",
            f"{name} texts that the model has not seen",
            "part the set by texts and groups (examples.split) unless only the pairs have to be new",
        )


def check_choosing(validation: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Outcome]:
    """Yield rows that choose the weights among those that judge the model: figures on them would be optimistic."""
    if not validation or not held_out:
        return
    shared = find_shared(validation, held_out)
    if shared.same:
        yield Finding(
            "judged-by-choosing-rows",
            "error",
            f"{share_of(len(shared.same), shared.rows)} held-out rows are validation rows: they choose the weights too",
            "validation rows that are not held out",
            "part your labelled rows in two (examples.split): one part chooses, the other judges",
        )
