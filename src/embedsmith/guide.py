"""Guide: another model's vectors of a run's texts, whose cosines tell which candidates are no negatives.

The guide reads the bare texts, with prompts of its own where it has any (GISTEmbed, Solatorio 2024, arXiv 2402.16829):
a prompt that all texts of the run begin with would make all of its cosines alike. Its vectors are kept beside the
tokens, so a run that goes on does not ask it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedsmith.artifacts import fingerprint, read_arrays, write_arrays
from embedsmith.batches import Numbers, Prompts, Source, TrainingSet, has_equal_sides, prompts_of
from embedsmith.devices import Devices, make_once
from embedsmith.encoder import NO_SIDES, SIDES, Side, encode_by_side
from embedsmith.examples import texts_of
from embedsmith.model import fingerprint_model, load_encoder


def read_guide(
    guide: str,
    data: TrainingSet,
    sources: Sequence[Source],
    prompts: Prompts,
    *,
    folder: Path,
    devices: Devices,
) -> Numbers:
    """Return the guide's vectors of all texts of `data`, (n, g) float32: made by the first process, mapped by all.

    Args:
        prompts: those of the run, for sources without their own; the guide's texts are without.
        folder: where the vectors are kept.

    Raises:
        InputError: this process does not see what the first one wrote.
    """
    texts = bare_texts(data, sources, prompts)
    key = fingerprint([fingerprint_model(guide), texts])

    def make() -> Numbers:
        vectors = encode_by_side(load_encoder(guide), texts)
        write_arrays(folder, "guide", key, guide=vectors)
        return vectors

    def read() -> Numbers | None:
        found = read_arrays(folder, "guide", key, "guide")
        return np.asarray(found[0]) if found else None

    return make_once(read, make, folder, devices)


def bare_texts(data: TrainingSet, sources: Sequence[Source], prompts: Prompts) -> list[tuple[Side, str]]:
    """Return (side, text without prompt) of each text of `data`; the side is "query", "document", or "" for neither.

    A text that is on both sides, which can be without prompts only, is on the one where it comes first.
    """
    found: dict[str, tuple[Side, str]] = {}
    for source in sources:
        for example in source.examples:
            before, behind = prompts_of(example, source.prompts or prompts, symmetric=source.symmetric)
            side, other = NO_SIDES if has_equal_sides(example, source.symmetric) else SIDES
            first, *others = texts_of(example)
            found.setdefault(before + first, (side, first))
            for text in others:
                found.setdefault(behind + text, (other, text))
    return [found[text] for text in data.texts]
