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
        choosing: the rows select weights (validation, guards). Then any exact repeat is an error, a near repeat a
            warning, and single texts may be shared. Otherwise (a test set) it is an error when more than 1% of the rows
            repeat, exactly or nearly, and a warning when single texts recur.
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
            found=f"{share_of(len(leaked), shared.rows)} {name} rows are training rows as well, {len(shared.near)} "
            f"of them "
            f"nearly (the first: row {(shared.same or shared.near)[0]}; texts: {told})",
            expected=f"no {name} row that a training row repeats, whatever its case, spaces, order and label",
            action="take these rows out of the training set: figures on them would tell nothing "
            "(examples.split parts a set without leaks)",
        )
    count = sum(shared.how.values())
    if not choosing and count > HEAVY * shared.texts:
        yield Finding(
            "leaked-texts",
            "warning",
            found=f"{share_of(count, shared.texts)} {name} texts are in the training set: {told}",
            expected=f"{name} texts that the model has not seen",
            action="part the set by texts and groups (examples.split) unless only the pairs have to be new",
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
            found=f"{share_of(len(shared.same), shared.rows)} held-out rows are validation rows: they choose the "
            f"weights too",
            expected="validation rows that are not held out",
            action="part your labelled rows in two (examples.split): one part chooses, the other judges",
        )
