"""STSb in what a model was trained on: its training part holds pairs of STS12–16, as model cards may tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedsmith.model import resolve_model
from embedsmith.suites.reading import ScoredSet

SHARE_WITH_STSB = ("STS12", "STS13", "STS14", "STS15", "STS16")
STSB_NAME = re.compile(r"(?<![a-z0-9])sts[-_ ]?b(?:enchmark)?(?![a-z0-9])", re.I)
CARD_BASE = re.compile(r"^Base: `(.+?)`\. Tuned on ", re.M)
CARD_LINES = re.compile(r"^datasets:.*(?:\n[ \t]*-[ \t].*)*|^.*Tuned on .*$", re.M)


def warn_of_overlap(model: str | Path, sets: Sequence[ScoredSet]) -> str | None:
    """Return a warning where a card says that the model or its base saw STSb and `sets` holds STS12–16; else None.

    A card is a folder's README.md: its `datasets` and the line that says what it was tuned on.

    Args:
        model: a model's folder, or the folder of a run.
    """
    shared = [item.name for item in sets if item.name in SHARE_WITH_STSB]
    for name, card in _read_cards(model) if shared else ():
        if STSB_NAME.search("\n".join(CARD_LINES.findall(card))):
            return (
                f"{name} was trained on STSb, as its card says; STSb shares pairs with {', '.join(shared)}, "
                "so these figures and the mean are no held-out ones"
            )
    return None


def _read_cards(model: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the name and card of a model in a folder, then of the base that its card names, and so on."""
    seen: set[str] = set()
    while Path(model).expanduser().is_dir() and (folder := resolve_model(model)) not in seen:
        seen.add(folder)
        file = Path(folder) / "README.md"
        card = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        yield str(model), card
        found = CARD_BASE.search(card)
        model = found[1] if found else folder
