"""Near-duplicate passages merged into the first of their kind, in memory that a million of them fit into.

Near means what it means everywhere here: trigram Jaccard ≥ 0.9, the same numbers, as many negations; and it is found
exactly (`embedsmith.signatures`). The passages themselves lie on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from embedsmith.artifacts import Spool
from embedsmith.documents.passages import NEAR_DUPLICATE, Passage, passage_from
from embedsmith.examples import Rejected
from embedsmith.signatures import NearTexts

EVIDENCE = 300  # characters of the kept passage that a rejection quotes


def merge_near(rows: Iterable[Passage | Rejected]) -> Iterator[Passage | Rejected]:
    """Yield the passages of `rows`, the first of each kind with the ids of the others in `also`.

    Rejections pass at once, and each merged passage becomes one; the passages follow at the end, since only then it is
    known what was merged into them. Until then they lie in a temporary file.
    """
    also: dict[int, list[str]] = defaultdict(list)
    with Spool(passage_from) as kept:
        index = NearTexts(lambda place: kept[place].text)
        for row in rows:
            if isinstance(row, Rejected):
                yield row
                continue
            found = index.find_or_add(row.text)
            if found is None:
                kept.add(row)
                continue
            place, closeness = found
            also[place].append(row.id)
            yield _describe_merger(row, kept[place], closeness)
        for place, passage in enumerate(kept):
            yield replace(passage, also=passage.also + tuple(also[place])) if place in also else passage


def _describe_merger(passage: Passage, first: Passage, closeness: float) -> Rejected:
    about = {"merged_into": first.id, "document": first.document, "text": first.text[:EVIDENCE]}
    detail = f"Jaccard {closeness:.2f} with {first.id}"
    return Rejected(NEAR_DUPLICATE, detail, passage.text, file=passage.document, source=passage.id, context=about)
