"""Documents: folders of files in, passages out that know their file and place.

>>> for row in read_passages(["filings/"]):                                              # doctest: +SKIP
...     print(row.id, row.document, row.headings)
"""

from __future__ import annotations

from embedsmith.documents.passages import (
    NEAR_DUPLICATE,
    OTHER_ENCODING,
    Passage,
    Summary,
    Tally,
    read_passages_file,
    screen_passages,
    summarize,
    write_passages,
)
from embedsmith.documents.reading import read_documents, read_passages
from embedsmith.documents.sentences import estimate_tokens
from embedsmith.documents.structure import Block, Document

__all__ = [
    "NEAR_DUPLICATE",
    "OTHER_ENCODING",
    "Block",
    "Document",
    "Passage",
    "Summary",
    "Tally",
    "estimate_tokens",
    "read_documents",
    "read_passages",
    "read_passages_file",
    "screen_passages",
    "summarize",
    "write_passages",
]
